"""The lifecycle: what an agent can afford, and so whether it wakes, how often, and when it rests.

Rules
-----
1. The measure is what is spendable (settled less pending out) beside the burn per day. A balance that is not known
   changes nothing. Less than one sat is nothing: no Lightning wallet settles it.
2. Down: with nothing, *dormant*; below the hibernate threshold, *hibernating*; below ``low_balance_days`` of burn,
   *low_balance*; else *active*. It is walked one step after the other, so that the history shows each of them.
3. Up: the same lines times 1.1, as far as the balance carries, at once. In between nothing changes, so that a
   balance at the edge does not flap.
4. *Spawning* is left on the first sat, through *active*; what that sat does not carry, rule 2 takes down from there.
5. Only *active* and *low_balance* tick, *low_balance* more slowly. *Hibernating* and *dormant* wake on funds alone.
6. No state is final: from each of them enough funds lead back to *active*.
7. To pause is the operator's, and no state here: a paused agent's state follows its balance like any other's, and its
   nursery runs only while it is not paused and its state may tick. To withdraw is to have less.

The machine is pure (``pylon.machine``). One input may move it more than once: ``follow`` walks to where it rests.
NIP-SA names: kind 39202 is the schedule that ``announce`` publishes.
"""

from __future__ import annotations

import math

import attrs

from pylon.machine import Arrow, Effect, Machine, State, arrows
from pylon.money import MSATS_PER_SAT, Msat, ceil_to_sat, format_msat, sats


class LifecycleState(State):
    SPAWNING = "spawning"
    ACTIVE = "active"
    LOW_BALANCE = "low_balance"
    HIBERNATING = "hibernating"
    DORMANT = "dormant"


class LifecycleEffect(Effect):
    WAKE = "wake"
    """Start the agent's nursery, if it is not paused. Nothing where it runs."""
    PARK = "park"
    """End the agent's nursery. Nothing where none runs."""
    RESCHEDULE = "reschedule"
    """Look at the next heartbeat again: it is slower now, or no longer."""
    ANNOUNCE = "announce"
    """Publish the schedule (39202), and tell the operator the reason, once for each change."""


@attrs.frozen(kw_only=True)
class LifecycleSettings:
    low_balance_days: float = attrs.field(
        default=7.0, validator=[attrs.validators.ge(0.0), attrs.validators.lt(math.inf)]
    )
    """Runway below which an agent saves."""
    assumed_daily_burn_sats: int = attrs.field(default=1_000, validator=attrs.validators.ge(0))
    """The burn of an agent that has no day of active history yet."""
    hibernate_threshold_sats: int = attrs.field(default=500, validator=attrs.validators.ge(0))
    reserve_sats: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """What the purse never lets an agent spend. The lines do not know it: what is kept still carries the agent."""
    low_balance_factor: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    """How many times longer the heartbeat is in low balance."""


@attrs.frozen
class Lifecycle:
    id: str
    """The agent's public key, hex."""
    created_at: float
    state: LifecycleState = LifecycleState.SPAWNING
    balance: Msat = Msat(0)
    """Spendable when it was last known."""
    burn: Msat = Msat(0)
    """Per day, as it came with that balance."""
    settings: LifecycleSettings = attrs.field(factory=LifecycleSettings)

    @property
    def days(self) -> float:
        """The runway; infinite where nothing is burnt."""
        return self.balance / self.burn if self.burn > 0 else math.inf


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Spawned:
    """The agent is written down."""


@attrs.frozen
class BalanceKnown:
    spendable: Msat
    """Settled less pending out; may be negative while a payment is counted twice."""
    burn: Msat
    """Per day (``pylon.host.burn``)."""


@attrs.frozen
class BalanceUnknown:
    """The wallet did not say. No arrow takes it."""


# --- where a balance carries ----------------------------------------------------------------------------------

_S, _E = LifecycleState, LifecycleEffect

_LADDER = (_S.DORMANT, _S.HIBERNATING, _S.LOW_BALANCE, _S.ACTIVE)


def _raised(line: Msat) -> Msat:
    """The line that a rising balance must reach: 1.1 times, in whole numbers."""
    return Msat(-(-line * 11 // 10))


def _hibernate_line(settings: LifecycleSettings) -> Msat:
    return sats(settings.hibernate_threshold_sats)


def _low_line(settings: LifecycleSettings, burn: Msat) -> Msat:
    return Msat(math.ceil(settings.low_balance_days * max(burn, 0)))


def _carried(balance: Msat, hibernate: Msat, low: Msat) -> int:
    """The rung of the ladder that ``balance`` reaches, with these lines."""
    if balance < MSATS_PER_SAT:
        return 0
    if balance < hibernate:
        return 1
    return 2 if balance < low else 3


def _falls_to(agent: Lifecycle, message: BalanceKnown) -> int:
    return _carried(message.spendable, _hibernate_line(agent.settings), _low_line(agent.settings, message.burn))


def _rises_to(agent: Lifecycle, message: BalanceKnown) -> int:
    lines = _hibernate_line(agent.settings), _low_line(agent.settings, message.burn)
    return _carried(message.spendable, *map(_raised, lines))


def _know(agent: Lifecycle, message: BalanceKnown) -> Lifecycle:
    return attrs.evolve(agent, balance=message.spendable, burn=message.burn)


def _has_a_sat(agent: Lifecycle, message: BalanceKnown) -> bool:
    return message.spendable >= MSATS_PER_SAT


def _too_little_for_active(agent: Lifecycle, message: BalanceKnown) -> bool:
    return _falls_to(agent, message) < _LADDER.index(_S.ACTIVE)


def _too_little_for_low(agent: Lifecycle, message: BalanceKnown) -> bool:
    return _falls_to(agent, message) < _LADDER.index(_S.LOW_BALANCE)


def _too_little_for_hibernating(agent: Lifecycle, message: BalanceKnown) -> bool:
    return _falls_to(agent, message) < _LADDER.index(_S.HIBERNATING)


def _carries_active(agent: Lifecycle, message: BalanceKnown) -> bool:
    return _rises_to(agent, message) == _LADDER.index(_S.ACTIVE)


def _carries_low(agent: Lifecycle, message: BalanceKnown) -> bool:
    return _rises_to(agent, message) == _LADDER.index(_S.LOW_BALANCE)


# --- the table ------------------------------------------------------------------------------------------------

_wake = Arrow(_S.ACTIVE, (_E.WAKE, _E.ANNOUNCE), _know, _carries_active, "funded: carries active")
_wake_slowly = Arrow(_S.LOW_BALANCE, (_E.WAKE, _E.ANNOUNCE), _know, _carries_low, "funded: carries low_balance")
_low_is_over = "below low_balance_days of burn"
_hibernate = "below the hibernate threshold"

LIFECYCLE: Machine[Lifecycle] = Machine(
    name="lifecycle",
    initial=_S.SPAWNING,
    table=arrows(
        (_S.SPAWNING, Spawned, Arrow(_S.SPAWNING, (_E.ANNOUNCE,))),
        (_S.SPAWNING, BalanceKnown, Arrow(_S.ACTIVE, (_E.WAKE, _E.ANNOUNCE), _know, _has_a_sat, "first sat")),
        (
            *(_S.ACTIVE, BalanceKnown),
            Arrow(_S.LOW_BALANCE, (_E.RESCHEDULE, _E.ANNOUNCE), _know, _too_little_for_active, _low_is_over),
        ),
        (_S.ACTIVE, BalanceKnown, Arrow(_S.ACTIVE, (), _know)),
        (
            *(_S.LOW_BALANCE, BalanceKnown),
            Arrow(_S.HIBERNATING, (_E.PARK, _E.ANNOUNCE), _know, _too_little_for_low, _hibernate),
        ),
        (_S.LOW_BALANCE, BalanceKnown, attrs.evolve(_wake, effects=(_E.RESCHEDULE, _E.ANNOUNCE))),
        (_S.LOW_BALANCE, BalanceKnown, Arrow(_S.LOW_BALANCE, (), _know)),
        (
            *(_S.HIBERNATING, BalanceKnown),
            Arrow(_S.DORMANT, (_E.ANNOUNCE,), _know, _too_little_for_hibernating, "nothing left"),
        ),
        ((_S.HIBERNATING, _S.DORMANT), BalanceKnown, _wake),
        ((_S.HIBERNATING, _S.DORMANT), BalanceKnown, _wake_slowly),
        (_S.HIBERNATING, BalanceKnown, Arrow(_S.HIBERNATING, (), _know)),
        (
            *(_S.DORMANT, BalanceKnown),
            Arrow(_S.HIBERNATING, (_E.ANNOUNCE,), _know, _has_a_sat, "funded: carries hibernating"),
        ),
        (_S.DORMANT, BalanceKnown, Arrow(_S.DORMANT, (), _know)),
    ),
    resume={_S.ACTIVE: (_E.WAKE,), _S.LOW_BALANCE: (_E.WAKE,)},
    waiting=frozenset({_S.SPAWNING, _S.HIBERNATING, _S.DORMANT}),
    final=frozenset(),
    outbox=frozenset({_E.ANNOUNCE}),
)


# --- what the nursery asks ------------------------------------------------------------------------------------


def follow(
    agent: Lifecycle, message: Spawned | BalanceKnown | BalanceUnknown
) -> tuple[list[Lifecycle], tuple[Effect, ...]]:
    """Walk to where ``message`` lets ``agent`` rest: each record on the way, and what is to be done at the end.

    The last record is the one to keep, also where its state is the old one; without any, nothing changes. All of them
    belong into one transaction. Of several starts and stops only the outcome is done, and a change is told once.
    """
    path: list[Lifecycle] = []
    found: set[Effect] = set()
    while (moved := LIFECYCLE.step(agent, message)) is not None:
        before, (agent, effects) = agent, moved
        path.append(agent)
        found.update(effects)
        if agent.state is before.state:
            break
    # What is parked at the end of the way was woken, if at all, on the way; who is woken reads the schedule anyway.
    nursery = next((effect for effect in (_E.PARK, _E.WAKE, _E.RESCHEDULE) if effect in found), None)
    done = tuple(effect for effect in (nursery, _E.ANNOUNCE) if effect in found)
    return path, tuple(effect for effect in done if effect is not None)


def may_tick(state: LifecycleState) -> bool:
    """Whether an agent in this state wakes by itself."""
    return state in (_S.ACTIVE, _S.LOW_BALANCE)


def heartbeat_factor(state: LifecycleState, settings: LifecycleSettings) -> int:
    """How many times its normal length the heartbeat has in this state."""
    return settings.low_balance_factor if state is _S.LOW_BALANCE else 1


def reason(agent: Lifecycle) -> str:
    """Why ``agent`` is in its state, and what would change it, for people. Whole sats."""
    hibernate, low = _hibernate_line(agent.settings), _low_line(agent.settings, agent.burn)
    held = _sat(agent.balance)
    ticks_from = _line(max(_raised(hibernate), Msat(MSATS_PER_SAT)))
    active_from = _line(max(_raised(hibernate), _raised(low), Msat(MSATS_PER_SAT)))
    days = f", {agent.days:,.1f} days" if agent.days < math.inf else ""
    match agent.state:
        case _S.SPAWNING:
            return "spawning: waits for the first sat"
        case _S.ACTIVE:
            return f"active: {held}{days}"
        case _S.LOW_BALANCE:
            return f"low balance: {held}{days}; active again from {active_from}"
        case _S.HIBERNATING:
            below = f", below {agent.settings.hibernate_threshold_sats:,}" if agent.balance < hibernate else ""
            return f"hibernating: {held}{below}; ticks again from {ticks_from}"
        case _S.DORMANT:
            return f"dormant: {held}; wakes on any deposit, ticks again from {ticks_from}"


def _sat(amount: Msat) -> str:
    """Rounded down: what is held."""
    return format_msat(sats(max(amount, 0) // MSATS_PER_SAT))


def _line(amount: Msat) -> str:
    """Rounded up: what must be reached."""
    return format_msat(ceil_to_sat(amount))
