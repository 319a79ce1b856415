"""What is known of a market is bounded, whoever shouts, and true as far as it was heard."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocols.heartbeat import build_heartbeat
from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip09 import build_deletion
from protocols.nip89 import build_announcement
from pylon.compute import board
from pylon.compute.board import Board

NOW = 1_800_000_000
KEYS = [SecretKey(hashlib.sha256(bytes([number])).digest()) for number in range(6)]


def announced(secret, at=NOW, d="it", price=1_000, models=("m",), kinds=(5050,)):
    return build_announcement(
        secret,
        d=d,
        kinds=kinds,
        models=models,
        price_msats=price,
        network="simnet",
        name="n",
        about="a",
        created_at=at,
    )


def beat(secret, at=NOW):
    return build_heartbeat(secret, d="it", created_at=at)


def gone(secret, at=NOW, d="it"):
    return build_deletion(secret, addresses=[f"31990:{secret.public.hex}:{d}"], created_at=at)


def names(found):
    return {entry.provider for entry in found}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(board, "MOST_PROVIDERS", 3)


def told(*events, now=NOW):
    found = Board(5050)
    for event in events:
        found.take(event, now)
    return found


def test_the_newest_of_each_instance_counts_whatever_the_order():
    one = KEYS[0]
    events = [announced(one, NOW - 2, price=1), announced(one, NOW - 1, price=2), announced(one, NOW, "other", price=3)]
    for order in (events, events[::-1]):
        assert sorted(entry.price_msats for entry in told(*order).announced(NOW)) == [2, 3]


def test_what_is_taken_back_is_gone_in_any_order_until_it_is_announced_anew():
    one = KEYS[0]
    for order in ([announced(one), gone(one)], [gone(one), announced(one)]):
        assert told(*order).announced(NOW) == []
    assert told(gone(one, NOW - 1), announced(one)).announced(NOW)
    event = announced(one)
    by_id = build_deletion(one, ids=[event.id], kinds=[31990], created_at=NOW)
    assert told(event, by_id, event).announced(NOW) == []


def test_nobody_takes_back_what_is_another_ones():
    one, other = KEYS[:2]
    event = announced(one)
    address = f"31990:{one.public.hex}:it"
    forged = sign_event(other, kind=5, tags=[["a", address], ["e", event.id], ["k", "31990"]], created_at=NOW)
    assert told(event, forged).announced(NOW)
    assert told(forged, event).announced(NOW)


def test_others_beats_and_announcements_from_the_future_are_no_signs_of_life():
    one, other = KEYS[:2]
    found = told(announced(one, NOW - 2_000), beat(one, NOW - 1_500), beat(other), beat(one, NOW + 10_000))
    assert found.announced(NOW) == []
    assert found.silent(NOW) == {one.public.hex}
    future = told(announced(one, NOW + 10_000))
    assert future.announced(NOW) == []
    assert future.doubtful(NOW) == {one.public.hex}


def test_of_other_kinds_of_jobs_nothing_is_kept():
    assert len(told(announced(KEYS[0], kinds=(5300,)), beat(KEYS[0]))) == 0


def test_a_crowd_pushes_nobody_out(small):
    found = told(*(announced(secret) for secret in KEYS))
    assert names(found.announced(NOW)) == {secret.public.hex for secret in KEYS[:3]}


def test_whom_we_have_bought_from_finds_a_place_and_keeps_it(small):
    found = Board(5050)
    known = KEYS[5].public.hex
    for secret in KEYS[:4]:
        found.take(announced(secret), NOW)
    found.favour([known])
    assert found.take(announced(KEYS[5]), NOW)
    assert known in names(found.announced(NOW))
    for secret in KEYS[:5]:
        found.take(announced(secret, NOW + 1), NOW + 20)
    assert known in names(found.announced(NOW + 20))
    assert len(found) == 3


def test_who_is_silent_makes_room(small):
    found = told(*(announced(secret, NOW - 1_000) for secret in KEYS[:3]))
    found.take(beat(KEYS[1], NOW - 950), NOW)
    assert found.take(announced(KEYS[4]), NOW)
    assert KEYS[1].public.hex not in names(found.announced(NOW))
    assert len(found) == 3


def test_one_provider_has_only_so_many_instances_and_names_of_models():
    one = KEYS[0]
    found = told(*(announced(one, NOW + number, f"d{number}") for number in range(10)))
    assert {entry.d for entry in found.announced(NOW)} == {"d6", "d7", "d8", "d9"}
    many = tuple(f"{number:03}" + "x" * 400 for number in range(200))
    kept = told(announced(KEYS[1], models=many)).announced(NOW)[0].models
    assert sum(map(len, kept)) <= board.MOST_CHARACTERS
    assert kept == many[: len(kept)]


events_ = st.one_of(
    st.builds(announced, st.sampled_from(KEYS), st.integers(NOW - 3_000, NOW + 3_000), st.sampled_from("abcdef")),
    st.builds(beat, st.sampled_from(KEYS), st.integers(NOW - 3_000, NOW + 3_000)),
    st.builds(gone, st.sampled_from(KEYS), st.integers(NOW - 3_000, NOW + 3_000), st.sampled_from("abcdef")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(events_, st.integers(0, 400)), max_size=30))
def test_no_stream_of_events_makes_it_grow_or_lie(stream):
    now, found = NOW, Board(5050)
    for event, passed in stream:
        now += passed
        found.take(event, now)
        for entry in found.announced(now):
            assert entry.name == "n"
        believed = names(found.announced(now))
        assert not believed & (found.silent(now) | found.doubtful(now))
        assert believed | found.silent(now) | found.doubtful(now) == set(found._entries)
    back = {}
    for event, _ in stream:
        if event.kind == 5:
            place = event.tag("a")
            back[place] = max(event.created_at, back.get(place, 0))
    for entry in found.announced(now):
        assert entry.created_at > back.get(f"31990:{entry.provider}:{entry.d}", 0)
