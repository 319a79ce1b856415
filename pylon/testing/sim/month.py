"""A month in the life of a home with many agents: who thinks, who only beats, who runs dry and is funded again.

Nothing goes wrong but what does in any month: funds end, and the machine is off for some hours. What is asked is
whether every heartbeat that was due was run, and no other: ``heartbeats_due`` walks the grid of each agent's
heartbeats through the times in which it was awake, and holds each tick against it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import trio
from trio.testing import MockClock

from protocols.nip90 import JobRequest
from pylon.host.lifecycle import LifecycleSettings, may_tick
from pylon.host.schedule import ScheduleSettings
from pylon.host.settings import AgentSettings
from pylon.money import Msat, format_msat, sats
from pylon.relays import connection
from pylon.store.database import Store
from pylon.testing.sim import host_invariants
from pylon.testing.sim.history import History
from pylon.testing.sim.host_invariants import DAY, HOUR
from pylon.testing.sim.hosting import HostWorld
from pylon.testing.sim.steps import Newcomer, Plan
from pylon.testing.sim.told import Told
from pylon.testing.sim.world import determined

HOURS = (1, 2, 4, 6, 8, 12, 24)
"""Heartbeats."""
PRICE = 10
CATCH_UP = 300.0
LATE = 60.0
"""A heartbeat later than this was missed."""
LISTENING = 15.0
"""Within which one that is due is run: an agent that has just been started listens first."""
OFF_SECONDS = 6 * HOUR
SWEEP_SECONDS = 1_800.0
CHECKED = (
    host_invariants.h06_budgets,
    host_invariants.h07_nothing_means_nothing,
    host_invariants.h10_no_flapping,
    host_invariants.h11_costs_recorded,
    host_invariants.h12_storm,
    host_invariants.h13_idle_costs_nothing,
    host_invariants.h15_restart_spreads,
    host_invariants.h15_one_beat_for_many,
    host_invariants.h17_once,
    host_invariants.only_the_awake_tick,
    host_invariants.payments_have_intents,
    host_invariants.conserved,
    host_invariants.books_agree,
    host_invariants.comes_to_rest,
)


@attrs.define
class MonthTold(Told):
    """What a month came to."""

    days: float = 0.0
    due: int = 0
    """Heartbeats that were due by the state at the time."""
    run: int = 0
    deposits: int = 0
    revivals: int = 0
    """Deposits that woke a sleeper."""
    slowest: float = 0.0
    """Seconds from a deposit to being awake, at most."""
    low_seconds: float = 0.0
    asleep_seconds: float = 0.0
    """Of all agents together."""
    spent: Msat = Msat(0)

    def figures(self) -> str:
        """For people."""
        return (
            f"{self.agents} agents, {self.days:.0f} days: {self.run} of {self.due} heartbeats due were run"
            f" ({self.quiet} quiet, {self.failed} failed), {self.thoughts} thoughts for {format_msat(self.spent)};"
            f" {self.low_seconds / DAY:.0f} agent-days in low balance, {self.asleep_seconds / DAY:.0f} asleep;"
            f" {self.deposits} deposits woke {self.revivals} sleepers, the slowest in {self.slowest:.2f} s;"
            f" {len(self.deaths)} downtimes"
        )


def live(seed: int, *, agents: int = 200, days: float = 30.0) -> MonthTold:
    """So many agents, so many days."""
    told = MonthTold(seed, agents, days=days)
    rng = random.Random(f"month {seed}")
    plan = Plan(seed, tuple(_newcomer(rng, number) for number in range(agents)), (), (PRICE,))
    with tempfile.TemporaryDirectory(prefix=f"pylon-month-{seed}-") as name, determined(seed), _seldom_pinged():
        trio.run(MonthWorld(plan, Path(name), told).run, clock=MockClock(autojump_threshold=0.0))
    return told


@contextlib.contextmanager
def _seldom_pinged() -> Iterator[None]:
    """No connection dies here, and most of what happens in a month would be pings."""
    usual = connection.PING_SECONDS, connection.SILENCE_SECONDS
    connection.PING_SECONDS, connection.SILENCE_SECONDS = HOUR, 3 * HOUR
    try:
        yield
    finally:
        connection.PING_SECONDS, connection.SILENCE_SECONDS = usual


def _newcomer(rng: random.Random, number: int) -> Newcomer:
    """One in four always has something to think about, and means for some days; the others only beat."""
    thinks = number % 4 == 0
    hours = rng.choice(HOURS[:4] if thinks else HOURS)
    settings = AgentSettings(
        name=f"agent{number}",
        heartbeat=hours * 3_600,
        publish=number % 20 == 0,
        budget_tick_sats=20,
        budget_day_sats=rng.choice((60, 120, 300)),
        lifecycle=LifecycleSettings(
            low_balance_days=2.0, assumed_daily_burn_sats=rng.choice((0, 40)), hibernate_threshold_sats=30
        ),
        schedule=ScheduleSettings(jitter=0.0, catch_up=CATCH_UP, late=LATE),
    )
    return Newcomer(settings, 1 if thinks else 0, rng.choice((300, 600, 1_200)) if thinks else rng.choice((0, 50, 500)))


class MonthWorld(HostWorld):
    """See the module."""

    told: MonthTold

    def __init__(self, plan: Plan, directory: Path, told: MonthTold) -> None:
        super().__init__(plan, directory, told)
        self.told = told
        self.sweep = SWEEP_SECONDS

    def _answer(self, job: JobRequest) -> str | None:
        return '{"thought": "so be it", "actions": []}'

    async def _live_through(self) -> None:
        """Deposits for whoever thinks, at times of their own, and now and then a machine that is off."""
        rng, end = random.Random(f"deposits {self.plan.seed}"), self.told.days * DAY
        events: list[tuple[float, str]] = [(end * part, "") for part in (0.31, 0.77)]
        for agent, newcomer in self.newcomers.items():
            at = rng.uniform(0.0, 3 * DAY)
            while at < end - HOUR:
                events.append((at, agent))
                at += rng.uniform(2 * DAY, 6 * DAY) if newcomer.goals else rng.uniform(8 * DAY, 30 * DAY)
        for at, agent in sorted(events):
            await trio.sleep_until(at)
            if agent:
                self._background.start_soon(self._deposit, agent, rng.choice((40, 150, 400)))
            else:
                self._down = OFF_SECONDS
                self.node.kill("the machine is off")
        await trio.sleep_until(end)

    async def _deposit(self, agent: str, amount: int) -> None:
        """Fund an agent; whether it is back by itself is looked at after a poll."""
        self.told.deposits += 1
        slept = self.node.ready and not may_tick(self._host().agents.lifecycle(agent).state)
        began = trio.current_time()
        await self.wallets[agent].fund(sats(amount))
        while slept and trio.current_time() < began + host_invariants.POLL:
            if self.node.ready and may_tick(self._host().agents.lifecycle(agent).state):
                self.told.revivals += 1
                self.told.slowest = max(self.told.slowest, trio.current_time() - began)
                break
            await trio.sleep(0.05 if trio.current_time() < began + 2.0 else 5.0)
        await trio.sleep_until(began + host_invariants.POLL + 1.0)
        if self.node.ready and self.node.store is not None:
            for problem in host_invariants.h09_revival(self, self.node.store, [agent]):
                self._problems[f"h09_revival: {problem}"] = None

    async def _calm_down(self) -> None:
        """Nobody begins anything new; what is under way comes to its end."""
        await self._until(lambda: self.node.ready, OFF_SECONDS)
        self.ended = trio.current_time()
        for agent in self.ids:
            await self._pause(agent, True)
        await self._until(lambda: not host_invariants.unfinished(self), HOUR)

    def _judge(self, store: Store) -> Iterable[str]:
        history = History.of(self, store)
        for check in CHECKED:
            for problem in check(self, history):
                yield f"{check.__name__}: {problem}"
        self.told.spent = Msat(sum(paid.cost for paid in history.paid if paid.purpose == "purchase"))
        awake = 0.0
        for agent in self.ids:
            beats = _Beats(self, agent)
            awake += beats.awake_seconds
            yield from (f"heartbeats_due: {problem}" for problem in beats.problems(history))
            self.told.due += beats.due
            self.told.run += beats.run
            self.told.low_seconds += beats.low_seconds
        lived = sum(min(life.end, self.ended) - life.start for life in self.lives)
        self.told.asleep_seconds = lived * len(self.ids) - awake


# --- which heartbeats were due -----------------------------------------------------------------------------------


@attrs.frozen
class _Awake:
    """A time in which an agent was awake and the home alive, and how many times longer its interval was."""

    start: float
    end: float
    factors: tuple[tuple[float, int], ...]
    """From when on it was how many, in order; the first from the start."""

    def factor(self, at: float) -> int:
        """What was decided then was decided with this one: a tick changes it only by what it costs."""
        return [factor for since, factor in self.factors if since <= at - 1e-6 or since == self.start][-1]


class _Beats:
    """One agent's heartbeats, worked out anew from its settings and its states."""

    def __init__(self, world: MonthWorld, agent: str) -> None:
        self._world = world
        self._agent = agent
        self._settings = world.newcomers[agent].settings
        digest = hashlib.sha256(f"heartbeat:{agent}".encode()).digest()
        self._phase = int.from_bytes(digest[:6], "big") / 2**48
        self._epoch = world.home_clock.epoch
        self._awake = list(self._times_awake())
        self.due = self.run = 0

    @property
    def awake_seconds(self) -> float:
        return sum(time.end - time.start for time in self._awake)

    @property
    def low_seconds(self) -> float:
        total = 0.0
        for time in self._awake:
            ends = [*(since for since, _ in time.factors[1:]), time.end]
            total += sum(end - since for (since, factor), end in zip(time.factors, ends, strict=True) if factor > 1)
        return total

    def _times_awake(self) -> Iterator[_Awake]:
        """Its states, cut by the lives of the home."""
        slow = self._settings.lifecycle.low_balance_factor
        changes = [
            (passage.at, {"active": 1, "low_balance": slow}.get(passage.after, 0))
            for passage in self._world.chronicle.passages
            if passage.subject == self._agent and passage.machine == "lifecycle"
        ]
        for life in self._world.lives:
            start, end = life.start, min(life.end, self._world.ended)
            factor = ([0] + [factor for at, factor in changes if at <= start])[-1]
            since, factors = start, [(start, factor)]
            for at, changed in [*((at, f) for at, f in changes if start < at < end), (end, 0)]:
                if (changed > 0) != (factor > 0):
                    if factor > 0 and at > since:
                        yield _Awake(since, at, tuple(factors))
                    since, factors = at, [(at, changed)]
                elif at == factors[-1][0]:
                    factors[-1] = (at, changed)
                else:
                    factors.append((at, changed))
                factor = changed

    def _next(self, at: float, factor: int) -> float:
        """The first place of the grid that is more than half an interval away."""
        interval = self._settings.heartbeat * factor
        offset = self._phase * interval
        count = math.ceil((self._epoch + at + interval / 2 - offset) / interval)
        place = count * interval + offset - self._epoch
        return place if place > at + interval / 2 else place + interval

    def problems(self, history: History) -> Iterator[str]:
        """Heartbeats that were due and not run, or run and not due."""
        ran = [history.begun[tick.id] for tick in history.ticks[self._agent] if tick.cause == "heartbeat"]
        self.run = len(ran)
        due: float | None = None
        for time in self._awake:
            decided, patience = time.start, LISTENING
            interval = self._settings.heartbeat * time.factor(time.start)
            if due is None or due < time.start - LATE:
                # Missed, or the first: spread over a while.
                due, patience = time.start, LISTENING + min(CATCH_UP, interval)
            elif due > time.start + 1.5 * interval:
                due = self._next(time.start, time.factor(time.start))
            while True:
                due = self._followed(time, decided, due)
                late = not ran or ran[0] > due + patience
                if due > time.end + 0.01 or (late and due + patience >= time.end):
                    break
                if late:
                    yield f"{self._settings.name} did not beat at {due:.0f} (awake {time.start:.0f}-{time.end:.0f})"
                    decided = due
                elif ran[0] < due - 0.01:
                    yield f"{self._settings.name} beat at {ran[0]:.0f}, which was not due before {due:.0f}"
                    decided = ran.pop(0)
                else:
                    decided = ran.pop(0)
                self.due += 1
                due, patience = self._next(decided, time.factor(decided)), LISTENING
        for at in ran:
            yield f"{self._settings.name} beat at {at:.0f}, which was not due"

    def _followed(self, time: _Awake, decided: float, due: float) -> float:
        """When it is due after the changes of its interval since: one that is shorter brings it forward."""
        for since, factor in time.factors:
            if decided < since < due and due > since + 1.5 * self._settings.heartbeat * factor:
                due = self._next(since, factor)
        return due
