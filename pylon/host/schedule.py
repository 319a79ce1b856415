"""The schedule: when an agent ticks, and because of what. Values in, decisions out; time is an argument.

Rules
-----
1. Heartbeats stand on a grid whose phase is the agent's own (a hash of its key), with some jitter, so that many agents
   never beat together. Low balance makes the interval longer.
2. A heartbeat that was missed by long (sleep, downtime, a clock set forward) is one tick, however many were missed,
   and not at once: the agents of a machine that wakes are spread over ``catch_up`` seconds. A clock set back makes
   nobody wait for longer than an interval and a half.
3. Triggers never move the heartbeat: a chatty peer cannot postpone it.
4. A trigger waits until nothing more has come for ``debounce`` seconds, at most ``patience``; then one tick takes all
   that are there. ``triggered_per_hour`` ticks, and no more, are run for triggers; what comes beyond waits for its
   turn or for the heartbeat. What was handled is never handled again.
5. Thoughts that strangers alone have caused share a budget for any 24 hours; when it is used up, their triggers wait
   apart, and neither wake the agent nor make a heartbeat think.
6. A goal is due when its next review has come; it is looked at by the next tick, and wakes nobody by itself. A tick
   that strangers alone have woken looks at none: a goal that is always due must not pay for what they cause.
7. A tick without an unhandled trigger and without a due goal is quiet: it buys nothing, so it keeps no distance. Two
   ticks that may buy begin at least ``min_gap`` seconds apart.

The driver stores ``Decision.beat`` and the tick in one transaction before it runs the tick, and adds the tick to what
is ``Past`` with it; it asks again when a tick has ended, when a trigger has come, and at ``Decision.ask_at``.
"""

from __future__ import annotations

import enum
import hashlib
import math
import random
from collections.abc import Collection, Iterable

import attrs

from pylon.host.lifecycle import LifecycleState, may_tick
from pylon.money import Msat, sats

HOUR = 3_600.0
DAY = 86_400.0

_positive = [attrs.validators.gt(0.0), attrs.validators.lt(math.inf)]
_not_negative = [attrs.validators.ge(0.0), attrs.validators.lt(math.inf)]


@attrs.frozen(kw_only=True)
class ScheduleSettings:
    """Seconds, unless the name says otherwise."""

    jitter: float = attrs.field(default=0.05, validator=[attrs.validators.ge(0.0), attrs.validators.le(0.2)])
    """Part of the interval by which a heartbeat is early or late."""
    late: float = attrs.field(default=60.0, validator=_not_negative)
    """A heartbeat later than this was missed, not delayed."""
    catch_up: float = attrs.field(default=300.0, validator=_not_negative)
    """Time over which missed heartbeats are spread; never more than an interval."""
    min_gap: float = attrs.field(default=60.0, validator=_not_negative)
    debounce: float = attrs.field(default=5.0, validator=_not_negative)
    patience: float = attrs.field(default=30.0, validator=_not_negative)
    """The longest that a trigger is kept waiting for others."""
    triggered_per_hour: int = attrs.field(default=12, validator=attrs.validators.ge(0))
    stranger_budget_sats: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    """For any 24 hours. 0: strangers cause no thought."""


# --- what there is --------------------------------------------------------------------------------------------


class TriggerKind(enum.StrEnum):
    MENTION = "mention"
    DM = "dm"
    ZAP = "zap"
    KIND = "kind"
    FUNDS = "funds"


@attrs.frozen
class Trigger:
    id: str
    """Of the event; for own funds, of the payment."""
    kind: TriggerKind
    at: float
    """Wall time at which it came here, whatever it says itself."""
    stranger: bool = True
    """Whether it came from somebody whose thoughts the agent does not pay for as its own."""


@attrs.frozen
class Goal:
    id: str
    review_at: float
    """Wall time; the default is the next heartbeat, for which any past time will do."""


@attrs.frozen
class Beat:
    """The next heartbeat. ``due`` is kept; ``firm`` is not, so that a restart spreads what it finds missed."""

    due: float
    firm: bool = attrs.field(default=False, kw_only=True)
    """To be run however late it is: it was spread already, or only waits for the minimum gap."""


@attrs.frozen
class StrangerCost:
    at: float
    msats: Msat
    """What a thought that strangers caused has cost; while it is unknown, what is reserved for it."""


@attrs.frozen
class Past:
    """What was run lately. More history than asked for does no harm."""

    last_paid: float | None = None
    """When the last tick began that was not quiet."""
    triggered: tuple[float, ...] = ()
    """When the triggered ticks of the last hour began."""
    strangers: tuple[StrangerCost, ...] = ()
    """Of the last 24 hours."""


@attrs.frozen(kw_only=True)
class View:
    """All that a decision is drawn from."""

    agent: str
    """Public key, hex."""
    state: LifecycleState
    heartbeat: float = attrs.field(validator=_positive)
    """The normal one, seconds."""
    factor: int = 1
    """``lifecycle.heartbeat_factor`` of the state."""
    beat: Beat | None = None
    """The one of the last decision; ``None`` for an agent that has none yet."""
    triggers: tuple[Trigger, ...] = ()
    handled: Collection[str] = frozenset()
    """Ids of triggers that a tick has taken already."""
    goals: tuple[Goal, ...] = ()
    past: Past = attrs.field(factory=Past)

    @property
    def interval(self) -> float:
        return self.heartbeat * self.factor


# --- what is decided ------------------------------------------------------------------------------------------


class Cause(enum.StrEnum):
    HEARTBEAT = "heartbeat"
    TRIGGER = "trigger"


@attrs.frozen
class Tick:
    cause: Cause
    triggers: tuple[Trigger, ...] = ()
    """All that it takes, oldest first. They are handled with it."""
    goals: tuple[Goal, ...] = ()
    allowance: Msat | None = None
    """The most that it may spend where strangers alone have caused it; ``None``: the purse's budgets alone."""

    @property
    def quiet(self) -> bool:
        """Counted and recorded here; nothing bought, nothing published."""
        return not self.triggers and not self.goals

    @property
    def strangers_alone(self) -> bool:
        return self.allowance is not None


@attrs.frozen
class Decision:
    beat: Beat | None
    """The next heartbeat, after ``tick`` if there is one."""
    tick: Tick | None = None
    """To be run now."""
    ask_at: float = math.inf
    """When to ask again if nothing happens; infinite where only funds change anything."""


def decide(view: View, now: float, rng: random.Random, settings: ScheduleSettings) -> Decision:
    """Whether to tick now, else when to ask again."""
    if not may_tick(view.state):
        return Decision(view.beat)
    beat = _expected(view, now, rng, settings)
    pending = unhandled(view.triggers, view.handled)
    left, budget_at = _stranger_budget(view.past.strangers, now, settings)
    admitted = tuple(trigger for trigger in pending if not trigger.stranger or left > 0)
    goals = tuple(goal for goal in view.goals if goal.review_at <= now)
    strangers_alone = bool(admitted) and all(trigger.stranger for trigger in admitted)
    gap_over = _gap_over(view.past.last_paid, now, settings)
    waiting = len(admitted) < len(pending)

    if beat.due <= now:
        tick = Tick(Cause.HEARTBEAT, admitted, goals, left if strangers_alone and not goals else None)
        if tick.quiet or gap_over <= now:
            following = next_beat(view.agent, view.interval, now, rng, settings)
            return Decision(following, tick, min(following.due, budget_at) if waiting else following.due)
        return Decision(attrs.evolve(beat, firm=True), None, gap_over)

    ask_at = beat.due
    if admitted:
        ready = max(_ripe(admitted, now, settings), _hour_free(view.past.triggered, now, settings), gap_over)
        if ready <= now:
            due, allowance = ((), left) if strangers_alone else (goals, None)
            return Decision(beat, Tick(Cause.TRIGGER, admitted, due, allowance), ask_at)
        ask_at = min(ask_at, ready)
    if waiting:
        ask_at = min(ask_at, budget_at)
    return Decision(beat, None, ask_at)


def unhandled(triggers: Iterable[Trigger], handled: Collection[str]) -> tuple[Trigger, ...]:
    """Each trigger that no tick has taken, once, oldest first."""
    found: dict[str, Trigger] = {}
    for trigger in sorted(triggers, key=lambda trigger: (trigger.at, trigger.id)):
        if trigger.id not in handled:
            found.setdefault(trigger.id, trigger)
    return tuple(found.values())


# --- the heartbeat --------------------------------------------------------------------------------------------


def phase(agent: str) -> float:
    """Where in an interval the agent's heartbeats lie: 0 to 1, always the same for one agent, even over many."""
    return int.from_bytes(hashlib.sha256(b"heartbeat:" + agent.encode()).digest()[:6], "big") / (1 << 48)


def next_beat(agent: str, interval: float, now: float, rng: random.Random, settings: ScheduleSettings) -> Beat:
    """The next heartbeat after one at ``now``: the first of the agent's grid that is half an interval away.

    So a tick that was late, or caught up, is followed by one in half to one and a half intervals.
    """
    offset = phase(agent) * interval
    slot = (math.floor((now + interval / 2 - offset) / interval) + 1) * interval + offset
    return Beat(slot + rng.uniform(-settings.jitter, settings.jitter) * interval)


def _expected(view: View, now: float, rng: random.Random, settings: ScheduleSettings) -> Beat:
    """The heartbeat to wait for, or to run: the known one, unless time or interval have left it behind."""
    beat, interval = view.beat, view.interval
    if beat is not None and now < beat.due <= now + (1.5 + settings.jitter) * interval:
        return beat
    if beat is not None and beat.due > now:
        # The clock was set back, or the interval is shorter now.
        return next_beat(view.agent, interval, now, rng, settings)
    if beat is not None and (beat.firm or now - beat.due <= settings.late):
        return beat
    return Beat(now + rng.random() * min(settings.catch_up, interval), firm=True)


# --- when triggers may be run ---------------------------------------------------------------------------------


def _ripe(triggers: tuple[Trigger, ...], now: float, settings: ScheduleSettings) -> float:
    """When triggers have waited for others for long enough. One of the future came before the clock was set back."""
    came = [trigger.at for trigger in triggers]
    if max(came) > now:
        return now
    return min(max(came) + settings.debounce, min(came) + settings.patience)


def _hour_free(triggered: tuple[float, ...], now: float, settings: ScheduleSettings) -> float:
    """When one more triggered tick is within the hour's cap."""
    if settings.triggered_per_hour == 0:
        return math.inf
    within = sorted(at for at in triggered if at <= now < at + HOUR)
    excess = len(within) - settings.triggered_per_hour
    return now if excess < 0 else within[excess] + HOUR


def _stranger_budget(costs: tuple[StrangerCost, ...], now: float, settings: ScheduleSettings) -> tuple[Msat, float]:
    """What strangers may still cause, and when they may again if that is nothing. A future cost counts as of now.

    A rest that is less than the cheapest of their thoughts is nothing: a tick would take their triggers for no thought.
    """
    budget = sats(settings.stranger_budget_sats)
    within = sorted((min(cost.at, now), cost.msats) for cost in costs if now < cost.at + DAY)
    least = min((msats for _, msats in within if msats > 0), default=1)
    left = budget - sum(msats for _, msats in within)
    again = now if left >= least else math.inf
    freed = left
    for at, msats in within:
        freed += msats
        if again == math.inf and freed >= min(least, budget) > 0:
            again = at + DAY
    return Msat(left if left >= least else 0), again


def _gap_over(last_paid: float | None, now: float, settings: ScheduleSettings) -> float:
    """When a tick may buy again. A last one far in the future came before the clock was set back."""
    if last_paid is None or last_paid > now + settings.min_gap:
        return now
    return max(now, last_paid + settings.min_gap)
