"""The simulated home with agents: 300 plans, replay, lists that shrink, and whether it would notice.

Each planted bug is one that a real system of this kind has had. Each starts at a seed that is known to find it: if a
change makes the simulation blind, this is where it shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from pylon.testing.sim import steps
from pylon.testing.sim.hosting import run_plan, simulate_host

SEEDS = 270
CHUNK = 10
EXAMPLES = 30
"""Lists that Hypothesis draws. With the seeds they are 300."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _hold(seeds: range) -> None:
    for seed in seeds:
        told = simulate_host(seed)
        assert told.ok, f"python -m pylon.testing.sim --host --seed {seed}: {told.broken}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_invariant_holds(first):
    _hold(range(first, first + CHUNK))


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("first", range(1_000, 5_800, 100))
def test_every_invariant_holds_over_thousands_of_seeds(first):
    _hold(range(first, first + 100))


# --- lists that shrink ----------------------------------------------------------------------------------------


class _Drawn:
    """A ``steps.Chooser`` that Hypothesis makes smaller."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def number(self, least: int, most: int) -> int:
        return self._draw(st.integers(least, most))

    def choice(self, options: Any) -> Any:
        return self._draw(st.sampled_from(options))


@st.composite
def plans(draw: Callable[[Any], Any]) -> steps.Plan:
    chooser = _Drawn(draw)
    agents = tuple(steps.draw_agent(chooser, number) for number in range(draw(st.integers(1, steps.MAX_AGENTS))))
    drawn = draw(st.lists(st.builds(lambda: None), max_size=steps.MAX_STEPS))
    return steps.Plan(
        seed=draw(st.integers(0, 2**32)),
        agents=agents,
        steps=tuple(steps.draw_step(chooser) for _ in drawn),
        prices=chooser.choice(steps.PRICES),
        thoughts_at_once=chooser.choice((16, 1, 2)),
    )


def _holds(plan: steps.Plan) -> None:
    told = run_plan(plan)
    note(told.line())
    assert told.ok, told.broken


_given = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(3))
def test_every_invariant_holds_for_any_list(part):
    @settings(max_examples=EXAMPLES // 3, **_given)
    @given(plan=plans())
    def hold(plan):
        _holds(plan)

    hold()
