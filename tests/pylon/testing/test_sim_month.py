"""A month in the life of 200 agents; here some days of 20."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import attrs
import pytest

from pylon.host import host, schedule, tick
from pylon.host.schedule import Beat, Cause
from pylon.testing.sim import month


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _all_is_well(told: month.MonthTold) -> None:
    assert told.ok, told.broken[:10]
    assert told.run == told.due
    assert told.revivals > 0
    assert told.slowest < 60.0
    assert told.low_seconds > 0
    assert told.asleep_seconds > 0
    assert len(told.deaths) == 2


@pytest.mark.timeout(300)
def test_some_days_of_twenty_agents():
    told = month.live(1, agents=20, days=4)
    print(told.figures())
    _all_is_well(told)
    assert told.run > 400
    assert told.thoughts > 80


@pytest.mark.deep
@pytest.mark.timeout(1_800)
def test_a_month_of_two_hundred_agents():
    told = month.live(1, agents=200, days=30)
    print(told.figures())
    _all_is_well(told)
    assert told.run >= 20_000
    assert told.thoughts >= 5_000


def test_a_heartbeat_that_is_left_out_is_noticed(monkeypatch):
    """Every tenth time the next one but one is waited for."""
    following, asked = schedule.next_beat, [0]

    def next_beat(agent, interval, now, rng, chosen):
        asked[0] += 1
        beat = following(agent, interval, now, rng, chosen)
        return Beat(beat.due + interval) if asked[0] % 10 == 0 else beat

    monkeypatch.setattr(schedule, "next_beat", next_beat)
    told = month.live(1, agents=4, days=2)
    assert any("did not beat" in problem for problem in told.broken)


def test_a_heartbeat_that_is_not_slowed_is_noticed(monkeypatch):
    monkeypatch.setattr(tick, "heartbeat_factor", lambda state, chosen: 1)
    told = month.live(1, agents=20, days=4)
    assert any("was not due" in problem for problem in told.broken)


def test_a_sleeper_that_nobody_wakes_is_noticed(monkeypatch):
    def paid(self, agent_id):
        runner = self._runners.get(agent_id)
        if runner is not None:
            runner.paid()

    monkeypatch.setattr(host.Host, "_paid", paid)
    told = month.live(1, agents=8, days=2)
    assert any(problem.startswith("h09") for problem in told.broken)


def test_missed_heartbeats_that_are_all_run_are_noticed(monkeypatch):
    decide = schedule.decide

    def decide_each(view, now, rng, chosen):
        decision = decide(view, now, rng, chosen)
        if view.beat is None or decision.tick is None or decision.tick.cause is not Cause.HEARTBEAT:
            return decision
        following = view.beat.due + view.interval
        return attrs.evolve(decision, beat=Beat(following, firm=True), ask_at=following)

    monkeypatch.setattr(tick, "decide", decide_each)
    told = month.live(1, agents=8, days=2)
    assert any(problem.startswith(("heartbeats_due", "h15")) for problem in told.broken)
