"""The simulated home with agents: 300 plans, replay, lists that shrink, and whether it would notice.

Each planted bug is one that a real system of this kind has had. Each starts at a seed that is known to find it: if a
change makes the simulation blind, this is where it shows.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from pylon.host import agents, deeds, funds, host, lifecycle, schedule, tick, ticking, triggers
from pylon.host.lifecycle import LifecycleState
from pylon.host.schedule import Beat, Cause
from pylon.money import Msat, sats
from pylon.store import inbox, intents
from pylon.testing.sim import host_invariants, steps
from pylon.testing.sim.history import AWAKE
from pylon.testing.sim.plans import run_plan, shrink, simulate_host
from pylon.testing.sim.told import Told

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
    for number in seeds:
        told = simulate_host(number)
        assert told.ok, f"python -m pylon.testing.sim --host --seed {number}: {told.broken}"


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
def _steps(draw: Callable[[Any], Any]) -> steps.Step:
    return steps.draw_step(_Drawn(draw))


@st.composite
def _agents(draw: Callable[[Any], Any]) -> steps.Newcomer:
    return steps.draw_agent(_Drawn(draw), 0)


plans = st.builds(
    steps.Plan,
    seed=st.integers(0, 2**32),
    agents=st.lists(_agents(), min_size=1, max_size=steps.MAX_AGENTS).map(tuple),
    steps=st.lists(_steps(), min_size=1, max_size=steps.MAX_STEPS).map(tuple),
    prices=st.sampled_from(steps.PRICES),
    thoughts_at_once=st.sampled_from((16, 1, 2)),
)


def _holds(plan: steps.Plan) -> None:
    told = run_plan(plan)
    note(told.line())
    assert told.ok, told.broken


_given: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(3))
def test_every_invariant_holds_for_any_list(part):
    @seed(part)
    @settings(max_examples=EXAMPLES // 3, **_given)
    @given(plan=plans)
    def hold(plan):
        _holds(plan)

    hold()


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@settings(max_examples=200, **_given)
@given(plan=plans)
def test_every_invariant_holds_for_hundreds_of_lists(plan):
    _holds(plan)


# --- replay ---------------------------------------------------------------------------------------------------


def test_a_seed_is_replayed_exactly():
    one, other = simulate_host(7), simulate_host(7)
    assert one == other
    assert one.ticks > 0
    assert one.digest


def test_a_seed_is_replayed_exactly_in_another_process():
    told = simulate_host(8)
    script = "from pylon.testing.sim.plans import simulate_host; print(simulate_host(8).digest)"
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.strip() == told.digest


def test_the_seeds_do_see_trouble():
    told = [simulate_host(number) for number in range(400, 440)]
    assert sum(len(entry.deaths) for entry in told) > 15
    assert any("." in death for entry in told for death in entry.deaths), "crash points are met"
    assert sum(entry.thoughts for entry in told) > 60
    assert sum(entry.actions for entry in told) > 15
    assert sum(entry.triggers for entry in told) > 150
    assert sum(entry.failed for entry in told) > 10
    assert sum(entry.quiet for entry in told) > 100


def test_what_falls_over_is_told_and_shrinks():
    """A plan that is broken is made smaller, and stays broken in the same way."""
    plan = steps.plan_of(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_invariants, "_AT_THE_END", (_never_withdrawn,))
        withdrawals = [step for step in plan.steps if isinstance(step, steps.Withdraw)]
        plan = attrs.evolve(plan, steps=(*plan.steps[:4], *withdrawals[:1], steps.Withdraw(0, 10)))
        small = shrink(plan)
        assert run_plan(small).broken == ["_never_withdrawn: somebody did"]
    assert len(small.agents) == 1
    assert all(isinstance(step, steps.Withdraw | steps.Fund) for step in small.steps)


def _never_withdrawn(world, history):
    if world.withdrawn:
        yield "somebody did"


# --- whether it would notice ------------------------------------------------------------------------------------


def _noticed(first: int, *names: str, limit: int = 12) -> Told:
    """The first run that is broken, by one of these invariants."""
    for number in range(first, first + limit):
        told = simulate_host(number)
        if not told.ok:
            print(f"found by seed {number}: {told.broken[0]}")
            assert any(problem.startswith(names) for problem in told.broken), told.broken
            return told
    pytest.fail(f"no seed from {first} to {first + limit - 1} notices")


def test_triggers_that_are_taken_after_the_tick_are_noticed(monkeypatch):
    """Marked as handled once all is done: who dies in between is woken twice."""
    run = tick.Ticks.run

    async def run_and_take(self, *decided, **more):
        done = await run(self, *decided, **more)
        await self._store.write(lambda tx: triggers.take(tx, done.agent, done.triggers, done.id))
        return done

    def book_begin(self, tx, record):
        tx.execute(
            "UPDATE agents SET ticks = ?, quiet = quiet + ?, beat = COALESCE(?, beat) WHERE id = ?",
            (record.n, record.quiet, record.next_beat, record.agent),
        )

    monkeypatch.setattr(tick.Ticks, "run", run_and_take)
    monkeypatch.setattr(tick.Ticks, "_book_begin", book_begin)
    _noticed(SEED_OF["late triggers"], "h17")


def test_a_budget_that_forgets_what_is_pending_is_noticed(monkeypatch):
    committed, spent_in = intents.committed, intents.spent_in

    def pending(source, column, value):
        row = source.one(
            "SELECT COALESCE(SUM(amount_msats + max_fee_msats), 0) AS n FROM intents"
            f" WHERE state = 'pending' AND {column} = ?",
            (value,),
        )
        return row["n"]

    monkeypatch.setattr(
        intents,
        "committed",
        lambda source, owner, **more: Msat(max(committed(source, owner, **more) - pending(source, "owner", owner), 0)),
    )
    monkeypatch.setattr(
        intents, "spent_in", lambda source, scope: Msat(spent_in(source, scope) - pending(source, "scope", scope))
    )
    _noticed(SEED_OF["pending"], "h06")


def test_a_balance_that_is_not_known_and_taken_for_zero_is_noticed(monkeypatch):
    look = funds.AgentFunds.look

    async def look_and_despair(self, agent_id):
        known = await look(self, agent_id)
        if not known:
            await self._agents.know(agent_id, Msat(0))
        return known

    monkeypatch.setattr(funds.AgentFunds, "look", look_and_despair)
    _noticed(SEED_OF["unknown"], "h08", "h09")


def test_states_without_a_band_are_noticed(monkeypatch):
    monkeypatch.setattr(lifecycle, "_raised", lambda line: line)
    _noticed(SEED_OF["band"], "h10", "h09")


def test_actions_that_are_begun_again_after_a_crash_are_noticed(monkeypatch):
    begin = deeds.Deeds.begin

    async def begin_again(self, record):
        if self.of_tick(self._store, record.id):
            await begin(self, attrs.evolve(record, id=f"{record.id}:again"))
        return await begin(self, record)

    monkeypatch.setattr(deeds.Deeds, "begin", begin_again)
    _noticed(SEED_OF["again"], "actions_once")


def test_missed_heartbeats_that_are_all_run_are_noticed(monkeypatch):
    decide = schedule.decide

    def decide_each(view, now, rng, chosen):
        beat = view.beat
        if beat is not None and beat.due <= now:
            view = attrs.evolve(view, beat=Beat(beat.due, firm=True))
        decision = decide(view, now, rng, chosen)
        if beat is not None and decision.tick is not None and decision.tick.cause is Cause.HEARTBEAT:
            following = beat.due + view.interval
            return attrs.evolve(decision, beat=Beat(following), ask_at=following)
        return decision

    monkeypatch.setattr(tick, "decide", decide_each)
    _noticed(SEED_OF["missed"], "h15")


def test_a_sleeper_whose_wallet_nobody_watches_is_noticed(monkeypatch):
    def paid(self, agent_id):
        runner = self._runners.get(agent_id)
        if runner is not None:
            runner.paid()

    monkeypatch.setattr(host.Host, "_paid", paid)
    _noticed(SEED_OF["unwatched"], "h09")


def test_strangers_without_a_budget_are_noticed(monkeypatch):
    monkeypatch.setattr(schedule, "_stranger_budget", lambda costs, now, chosen: (sats(100), now))
    monkeypatch.setattr(agents.Agents, "_strangers_left", lambda self, source, agent, tick: sats(100))
    _noticed(SEED_OF["strangers"], "strangers_budget")


def test_poison_that_is_tried_for_ever_is_noticed(monkeypatch):
    monkeypatch.setattr(inbox, "TRIES", 1_000_000)
    _noticed(SEED_OF["poison"], "h18", "triggers_kept")


def test_a_cap_that_does_not_hold_is_noticed(monkeypatch):
    monkeypatch.setattr(schedule, "_hour_free", lambda triggered, now, chosen: now)
    _noticed(SEED_OF["cap"], "h12")


def test_a_thought_that_is_bought_again_after_a_restart_is_noticed(monkeypatch):
    real, init = ticking.TickRecord.purchase, host.Host.__init__
    lives = []

    def begin(self, *parts, **more):
        lives.append(self)
        init(self, *parts, **more)

    monkeypatch.setattr(host.Host, "__init__", begin)
    monkeypatch.setattr(
        ticking.TickRecord, "purchase", property(lambda self: f"{real.fget(self)[:24]}{len(lives):08x}")
    )
    _noticed(SEED_OF["twice"], "h17", "h13", "books", "h06")


def test_an_agent_that_ticks_while_it_hibernates_is_noticed(monkeypatch):
    awake = {*AWAKE, LifecycleState.HIBERNATING}
    for module in (host, schedule):
        monkeypatch.setattr(module, "may_tick", lambda state: state in awake)
    _noticed(SEED_OF["sleepwalker"], "only_the_awake_tick")


SEED_OF = {
    "late triggers": 2,
    "pending": 45,
    "unknown": 31,
    "band": 106,
    "again": 118,
    "missed": 0,
    "unwatched": 0,
    "strangers": 2,
    "poison": 4,
    "cap": 2,
    "twice": 9,
    "sleepwalker": 14,
}
"""Where each search begins."""
