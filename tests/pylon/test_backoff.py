from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pylon.backoff import RESET_AFTER, Backoff


def test_doubles_to_the_longest():
    backoff = Backoff(random.Random(2))
    waits = [backoff.wait(0) for _ in range(9)]
    for wait, base in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert 0.75 * base <= wait <= 1.25 * base
    assert len(set(waits[6:])) == 3  # jittered, each by itself


@given(st.lists(st.floats(0, 1000), max_size=30), st.integers(0, 9))
def test_starts_over_only_after_it_has_lasted(lasted, seed):
    backoff = Backoff(random.Random(seed))
    last = 0.0
    for seconds in lasted:
        wait = backoff.wait(seconds)
        base = 1.0 if last == 0 or seconds >= RESET_AFTER * last else min(60.0, 2 * last)
        assert 0.75 * base <= wait <= 1.25 * base
        last = base


def test_the_edge_of_having_lasted():
    backoff = Backoff(random.Random(0), first=2.0, longest=10.0, jitter=0.0)
    assert [backoff.wait(seconds) for seconds in (0, 9.9, 19.9, 39.9, 49.9, 50, 10, 9)] == [2, 4, 8, 10, 10, 2, 2, 4]
