"""What happens to a simulated home that hosts agents: who there is, and a list of steps, one after the other.

A ``Plan`` is all that a run depends on. It is drawn from a ``Chooser``: from a seed, to be replayed, or from a test
harness that draws, and makes what it has drawn smaller. Steps name agents by their number, modulo how many there are,
so that a plan stays one when agents or steps are taken out of it.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import attrs

from protocols.nip_sa import Autonomy
from pylon.compute.purchase import PURCHASE
from pylon.host.acting import ACTION
from pylon.host.lifecycle import LifecycleSettings
from pylon.host.schedule import ScheduleSettings
from pylon.host.settings import ActionKind, AgentSettings, Grant
from pylon.host.ticking import TICK
from pylon.money import sats
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import FaultKind

T = TypeVar("T")

MAX_AGENTS = 5
PRICES = ((10,), (5,), (14,), (8, 9))
MAX_STEPS = 16
CRASH_POINTS = (TICK.crash_points(), ACTION.crash_points(), PURCHASE.crash_points())


class Wallets(enum.StrEnum):
    """How the wallets of the home answer."""

    FINE = "fine"
    MUTE = "mute"
    """They do not say what they hold; they pay."""
    DEAD = "dead"
    """They answer nothing. What they were told to pay is paid, or not: nobody learns which."""


class Relay(enum.StrEnum):
    """What the relay is like."""

    FINE = "fine"
    DOWN = "down"
    SILENT = "silent"
    """Half-open: connections stand, nothing passes."""
    FLAKY = "flaky"
    """Slow, twice, in another order, and without an answer."""
    CUT = "cut"
    """All connections break once."""
    CLOSING = "closing"
    """All subscriptions are ended once."""
    BUSY = "busy"
    """It refuses every event for the moment."""


class Market(enum.StrEnum):
    """What the vendors are like."""

    FINE = "fine"
    DOWN = "down"
    """They announce nothing, and answer nobody."""
    DEAR = "dear"
    """They quote twice what they announced."""
    LYING = "lying"
    """The amount that they name is not the invoice's."""
    SILENT = "silent"
    """They take the money, and say nothing."""
    NOISE = "noise"
    """They answer what is no reply."""
    EMPTY = "empty"
    """They answer without a word."""
    SLOW = "slow"
    """They think for minutes."""


class Who(enum.StrEnum):
    OPERATOR = "operator"
    STRANGER = "stranger"
    ANYBODY = "anybody"


# --- the steps ------------------------------------------------------------------------------------------------


@attrs.frozen
class Wait:
    """Time passes, seconds."""

    seconds: float


@attrs.frozen
class Fund:
    agent: int
    sats: int


@attrs.frozen
class Withdraw:
    """The operator takes so many sats out, at most what is there."""

    agent: int
    sats: int


@attrs.frozen
class Hover:
    """The operator brings the balance to so many percent of one of the agent's lines: ``hibernate`` or ``low``."""

    agent: int
    line: str
    percent: int


@attrs.frozen
class Outage:
    wallets: Wallets


@attrs.frozen
class PaymentFault:
    """The next payment of the home's wallets goes wrong like this."""

    kind: FaultKind
    seconds: float
    ends: PaymentState


@attrs.frozen
class RelayTrouble:
    relay: Relay


@attrs.frozen
class Crash:
    """The home dies ``turns`` turns of the scheduler from now, and is started again after ``down`` seconds."""

    turns: int
    down: float


@attrs.frozen
class CrashAt:
    """It dies at the n-th passage of a crash point from now on. The operator tells this agent something, so that it
    has a reason to pass there."""

    agent: int
    point: str
    passage: int
    down: float


@attrs.frozen
class CrashAfter:
    """As ``CrashAt``; it dies ``turns`` turns after the n-th commit from now on that moves a record of this table."""

    agent: int
    table: str
    commits: int
    turns: int
    down: float


@attrs.frozen
class Restart:
    """It dies now, or is dead, and is started at once."""


@attrs.frozen
class Storm:
    """Events that name an agent, spread over ``seconds``."""

    agent: int
    count: int
    who: Who
    private: bool
    seconds: float
    ahead: int = 0
    """How far in the future they claim to be, seconds."""


@attrs.frozen
class Repeat:
    """All that was said to anybody is said again, and every connection is made anew."""


@attrs.frozen
class Poison:
    """Events that break whoever handles them."""

    agent: int
    count: int


@attrs.frozen
class SetClock:
    """The home's wall clock is set forwards or backwards, seconds; that of all others is right."""

    by: float


@attrs.frozen
class MarketTurns:
    market: Market


@attrs.frozen
class Rush:
    """So many thoughts are bought for one agent at once, outside its ticks."""

    agent: int
    count: int


@attrs.frozen
class Decide:
    """The operator says yes, or no, to all that waits."""

    yes: bool


@attrs.frozen
class Ask:
    """The operator wants a tick now."""

    agent: int


@attrs.frozen
class Pause:
    agent: int
    on: bool


@attrs.frozen
class Curse:
    """Whatever this agent thinks breaks off with an error that nobody expects."""

    agent: int
    on: bool


@attrs.frozen
class Damage:
    """A row of the agent's does not read any more: its ``state`` or its ``settings``. Repaired by the next of these."""

    agent: int
    what: str


Step = (
    Wait
    | Fund
    | Withdraw
    | Hover
    | Outage
    | PaymentFault
    | RelayTrouble
    | Crash
    | CrashAt
    | CrashAfter
    | Restart
    | Storm
    | Repeat
    | Poison
    | SetClock
    | MarketTurns
    | Rush
    | Decide
    | Ask
    | Pause
    | Curse
    | Damage
)


@attrs.frozen
class Newcomer:
    """An agent of a plan."""

    settings: AgentSettings
    goals: int
    funds: int
    """Sats that it has from the beginning."""


@attrs.frozen
class Plan:
    """All that a run depends on."""

    seed: int
    agents: tuple[Newcomer, ...]
    steps: tuple[Step, ...]
    prices: tuple[int, ...] = (10,)
    """Of the vendors, in sats a thought; one vendor each."""
    thoughts_at_once: int = 16


# --- drawn ----------------------------------------------------------------------------------------------------


class Chooser(Protocol):
    """Whoever draws plans."""

    def number(self, least: int, most: int) -> int: ...

    def choice(self, options: Sequence[T]) -> T: ...


class Seeded:
    """Draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"plan {seed}")

    def number(self, least: int, most: int) -> int:
        return self._rng.randint(least, most)

    def choice(self, options: Sequence[T]) -> T:
        return self._rng.choice(options)


def plan_of(seed: int) -> Plan:
    """The plan of one seed."""
    return draw_plan(Seeded(seed), seed)


def draw_plan(chooser: Chooser, seed: int) -> Plan:
    """A plan: simpler choices stand first, so that a harness that minimises comes to plain ones."""
    count = chooser.choice((1, 1, 2, 2, 3, 4, MAX_AGENTS))
    agents = tuple(draw_agent(chooser, number) for number in range(count))
    steps = tuple(draw_step(chooser) for _ in range(chooser.number(3, MAX_STEPS)))
    return Plan(
        seed=seed,
        agents=agents,
        steps=steps,
        prices=chooser.choice(PRICES),
        thoughts_at_once=chooser.choice((16, 1, 2)),
    )


def draw_agent(chooser: Chooser, number: int) -> Newcomer:
    """An agent whose means are small, so that it comes to its bounds within hours."""
    choice = chooser.choice
    heartbeat = choice((900, 60, 300, 3_600))
    grants = choice(
        (
            (),
            (Grant(action=ActionKind.ZAP, each=sats(20), day=sats(50)),),
            (
                Grant(action=ActionKind.ZAP, each=sats(10), day=sats(30), strangers=True),
                Grant(action=ActionKind.PAY_INVOICE, each=sats(15), day=sats(40), per_day=2),
            ),
        )
    )
    settings = AgentSettings(
        name=f"agent{number}",
        heartbeat=heartbeat,
        heartbeat_least=60,
        autonomy=choice((Autonomy.BOUNDED, Autonomy.AUTONOMOUS, Autonomy.AUTONOMOUS, Autonomy.SUPERVISED)),
        mentions=choice((True, True, True, True, False)),
        dms=choice((True, True, False)),
        zaps=False,
        funds=choice((False, True)),
        budget_tick_sats=choice((100, 40, 100, 20, 12, 0)),
        budget_day_sats=choice((100, 60, 100, 30, 60, 0)),
        max_steps=choice((3, 1)),
        grants=grants,
        publish=choice((False, False, True)),
        lifecycle=LifecycleSettings(
            low_balance_days=choice((1.0, 0.0, 7.0)),
            assumed_daily_burn_sats=choice((0, 20, 100)),
            hibernate_threshold_sats=choice((20, 0, 50)),
            reserve_sats=choice((0, 0, 15)),
        ),
        schedule=ScheduleSettings(
            jitter=choice((0.05, 0.0)),
            catch_up=choice((300.0, 60.0)),
            min_gap=choice((60.0, 5.0, 5.0)),
            debounce=choice((5.0, 1.0)),
            patience=choice((30.0, 10.0)),
            triggered_per_hour=choice((12, 12, 3, 1)),
            stranger_budget_sats=choice((100, 60, 12, 0)),
        ),
    )
    # What beats every minute and always has something to do would be all that a run shows.
    goals = choice((0, 1, 2)) if heartbeat >= 300 else 0
    return Newcomer(settings, goals, choice((200, 1_000, 1_000, 60, 0)))


def draw_step(chooser: Chooser) -> Step:
    kind = chooser.choice(_KINDS)
    return _DRAWN[kind](chooser)


def _which(chooser: Chooser) -> int:
    return chooser.number(0, MAX_AGENTS - 1)


def _down(chooser: Chooser) -> float:
    return chooser.choice((1.0, 0.0, 30.0, 900.0, 4_000.0))


_DRAWN: dict[type, Callable[[Chooser], Step]] = {
    Wait: lambda c: Wait(c.choice((10.0, 1.0, 60.0, 60.0, 300.0, 300.0, 1_000.0, 2_000.0))),
    Fund: lambda c: Fund(_which(c), c.choice((100, 10, 22, 54, 60, 500, 1_000))),
    Withdraw: lambda c: Withdraw(_which(c), c.choice((1_000_000, 10, 40, 150))),
    Hover: lambda c: Hover(_which(c), c.choice(("hibernate", "low")), c.choice((105, 95, 112, 99))),
    Outage: lambda c: Outage(c.choice((Wallets.FINE, Wallets.FINE, Wallets.MUTE, Wallets.DEAD))),
    PaymentFault: lambda c: PaymentFault(
        c.choice(tuple(FaultKind)),
        c.choice((0.0, 5.0, 120.0)),
        c.choice((PaymentState.SETTLED, PaymentState.FAILED)),
    ),
    RelayTrouble: lambda c: RelayTrouble(c.choice((Relay.FINE, Relay.FINE, *Relay))),
    Crash: lambda c: Crash(c.choice((0, 1, 3, 10, 40)), _down(c)),
    CrashAt: lambda c: CrashAt(_which(c), c.choice(c.choice(CRASH_POINTS)), c.choice((1, 1, 2)), _down(c)),
    CrashAfter: lambda c: CrashAfter(
        _which(c),
        c.choice(("ticks", "actions", "purchases", "intents", "lifecycles")),
        c.choice((1, 2, 3)),
        c.choice((0, 1, 2, 5)),
        _down(c),
    ),
    Restart: lambda c: Restart(),
    Storm: lambda c: Storm(
        _which(c),
        c.choice((1, 2, 5, 12)),
        c.choice(tuple(Who)),
        c.choice((False, False, True)),
        c.choice((0.0, 3.0, 60.0)),
        c.choice((0, 0, 0, 600)),
    ),
    Repeat: lambda c: Repeat(),
    Poison: lambda c: Poison(_which(c), c.choice((1, 3))),
    SetClock: lambda c: SetClock(c.choice((30.0, -30.0, 600.0, -600.0, 10_000.0, -10_000.0, 100_000.0))),
    MarketTurns: lambda c: MarketTurns(c.choice((Market.FINE, Market.FINE, Market.FINE, *Market))),
    Rush: lambda c: Rush(_which(c), c.choice((2, 6))),
    Decide: lambda c: Decide(c.choice((True, True, False))),
    Ask: lambda c: Ask(_which(c)),
    Pause: lambda c: Pause(_which(c), c.choice((True, False))),
    Curse: lambda c: Curse(_which(c), c.choice((True, False))),
    Damage: lambda c: Damage(_which(c), c.choice(("state", "settings"))),
}
_WEIGHTS: dict[type, int] = {
    Wait: 16,
    Fund: 3,
    Storm: 8,
    CrashAt: 4,
    CrashAfter: 3,
    Withdraw: 2,
    Hover: 3,
    MarketTurns: 2,
}
_KINDS = tuple(kind for kind in _DRAWN for _ in range(_WEIGHTS.get(kind, 1)))
