"""The burn: what ticks say about a day, and what says nothing."""

from __future__ import annotations

import cattrs
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from pylon.host.burn import DAY, KEPT_DAYS, Burn
from pylon.money import Msat, sats

HOUR = 3_600.0
ASSUMED = sats(1_000)
TEN = sats(10)


def lived(days, cost=TEN, heartbeat=HOUR, start=1_000.0, burn=None) -> Burn:
    """``days`` of ticks by the heartbeat, the first of which opens the history."""
    burn = burn or Burn()
    for n in range(int(days * DAY / heartbeat) + 1):
        burn = burn.beaten(at=start + n * heartbeat, cost=cost, heartbeat=heartbeat)
    return burn


ticks = st.one_of(
    st.tuples(st.just("beat"), st.floats(1, 3 * DAY), st.integers(0, 10**7), st.sampled_from([60.0, HOUR, DAY])),
    st.tuples(st.just("slow"), st.floats(1, 3 * DAY), st.integers(0, 10**7), st.sampled_from([60.0, HOUR, DAY])),
    st.tuples(st.just("trigger"), st.just(0.0), st.integers(0, 10**7), st.just(HOUR)),
)


def run(burn, steps, at=0.0):
    for name, later, cost, heartbeat in steps:
        at += later
        if name == "trigger":
            burn = burn.prompted(cost=Msat(cost))
        else:
            burn = burn.beaten(at=at, cost=Msat(cost), heartbeat=heartbeat, factor=2 if name == "slow" else 1)
    return burn


def test_it_is_assumed_until_there_is_a_day_of_active_history():
    assert Burn().per_day(ASSUMED) == ASSUMED
    assert lived(23 / 24).per_day(ASSUMED) == ASSUMED
    assert lived(1).per_day(ASSUMED) == sats(240)


def test_the_first_tick_of_a_daily_heartbeat_is_no_day():
    assert lived(0, heartbeat=DAY).per_day(ASSUMED) == ASSUMED
    assert lived(1, heartbeat=DAY).per_day(ASSUMED) == sats(10)


def test_quiet_ticks_count_and_cost_nothing():
    burn = Burn()
    for n in range(48):
        burn = burn.beaten(at=n * HOUR, cost=sats(10) if n % 4 == 0 else Msat(0), heartbeat=HOUR)
    assert burn.per_day(ASSUMED) == sats(60)


def test_h13_an_idle_week_burns_nothing():
    assert lived(7, cost=Msat(0)).per_day(ASSUMED) == 0


def test_triggered_thoughts_are_added_by_the_day():
    burn = lived(2)
    for _ in range(6):
        burn = burn.prompted(cost=sats(5))
    assert burn.per_day(ASSUMED) == sats(240) + sats(15)


def test_a_slowed_agent_seems_to_need_no_less_and_no_more():
    """Its ticks are rarer, and each finds more to do."""
    burn = lived(2)
    for n in range(1, 200):
        burn = burn.beaten(at=1_000.0 + 2 * DAY + 2 * n * HOUR, cost=sats(40), heartbeat=HOUR, factor=2)
    assert burn.per_day(ASSUMED) == sats(240)


def test_triggered_thoughts_of_a_slowed_agent_count_for_the_days_in_which_they_came():
    burn = lived(1)
    for n in range(1, 13):
        burn = burn.beaten(at=1_000.0 + DAY + 2 * n * HOUR, cost=sats(40), heartbeat=HOUR, factor=2)
    assert burn.prompted(cost=sats(30)).per_day(ASSUMED) == sats(240) + sats(15)


@pytest.mark.parametrize("jump", [-30 * DAY, 30 * DAY])
def test_time_without_ticks_and_a_clock_set_anew_are_no_history(jump):
    """Dormant for a month, or a clock that was wrong: neither a day of history nor cheaper triggers."""
    burn = Burn().beaten(at=100 * DAY, cost=sats(10), heartbeat=HOUR)
    burn = burn.beaten(at=100 * DAY + jump, cost=sats(10), heartbeat=HOUR)
    assert burn.per_day(ASSUMED) == ASSUMED
    grown = lived(1).prompted(cost=sats(24))
    later = grown.beaten(at=1_000.0 + DAY + jump, cost=sats(10), heartbeat=HOUR)
    assert sats(240) + sats(22) <= later.per_day(ASSUMED) <= sats(240) + sats(24)


def test_a_new_heartbeat_counts_from_its_first_tick():
    burn = lived(2)
    faster = burn.beaten(at=1_000.0 + 2 * DAY + HOUR / 2, cost=sats(10), heartbeat=HOUR / 2)
    assert (burn.per_day(ASSUMED), faster.per_day(ASSUMED)) == (sats(240), sats(480))


def test_old_days_are_forgotten():
    burn = lived(KEPT_DAYS + 2, cost=sats(10), start=0.0)
    burn = lived(KEPT_DAYS + 2, cost=sats(1), start=(KEPT_DAYS + 2) * DAY + HOUR, burn=burn)
    assert burn.per_day(ASSUMED) == sats(24)


@given(st.lists(ticks, max_size=80))
def test_h11_the_burn_is_bounded_in_size_and_by_the_dearest_day(steps):
    """Whatever was run, also by ticks that failed."""
    burn = run(Burn(), steps)
    assert len(burn.normal) <= KEPT_DAYS + 1
    assert len(burn.triggered) <= KEPT_DAYS + 1
    dearest = max((cost for _, _, cost, _ in steps), default=0)
    assert 0 <= burn.per_day(ASSUMED) <= max(ASSUMED, dearest * (DAY / 60) + dearest * len(steps) + 1)


@given(st.lists(ticks, max_size=40), st.lists(ticks, max_size=40))
def test_it_survives_the_store(before, after):
    burn = run(Burn(), before)
    kept = cattrs.structure(orjson.loads(orjson.dumps(cattrs.unstructure(burn))), Burn)
    assert kept == burn
    assert run(kept, after, 1e9) == run(burn, after, 1e9)


@given(st.lists(ticks, min_size=1, max_size=60), st.integers(0, 10**7))
def test_dearer_ticks_never_make_a_smaller_burn(steps, more):
    dearer = [(name, later, cost + more, heartbeat) for name, later, cost, heartbeat in steps]
    assert run(Burn(), dearer).per_day(Msat(0)) >= run(Burn(), steps).per_day(Msat(0))


@given(st.lists(st.tuples(st.floats(1, 3 * DAY), st.integers(0, 10**7)), max_size=60))
def test_slowed_ticks_alone_never_change_it(slowed):
    burn, at = lived(3), 1_000.0 + 3 * DAY
    known = burn.per_day(ASSUMED)
    for later, cost in slowed:
        at += later
        burn = burn.beaten(at=at, cost=Msat(cost), heartbeat=HOUR, factor=2)
        assert burn.per_day(ASSUMED) == known
