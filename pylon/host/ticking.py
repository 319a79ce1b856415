"""The tick: one thought of an agent, from what woke it to what came of it.

Rules
-----
1. A tick takes its triggers and its due goals as it begins, in one transaction; no other tick ever takes them.
2. With neither it is *quiet*: counted and recorded, nothing bought, nothing published.
3. A thought is bought once: its purchase is named after the tick. What the purse refuses costs nothing, and fails it.
4. A reply that does not read does nothing. A reply is a wish: of what it names, only what the policy and the purse let
   pass is done, each action once, by its name.
5. An action that waits for the operator, or whose payment is not known, does not hold up the tick: it has a record of
   its own (``pylon.host.acting``).
6. Every tick ends, *done* or *failed*, with what it has cost; counts, memory and events are of the ending transaction.

The machine is pure (``pylon.machine``). NIP-SA's sequence: 39210, state, perceive, reason, act, 39201, 39211.
"""

from __future__ import annotations

import hashlib

import attrs

from pylon.host.replies import Proposed
from pylon.machine import Arrow, Effect, Machine, State, arrows
from pylon.money import Msat


class TickState(State):
    NEW = "new"
    THINKING = "thinking"
    ACTING = "acting"
    DONE = "done"
    FAILED = "failed"
    QUIET = "quiet"


class TickEffect(Effect):
    PUBLISH_CLAIM = "publish_claim"
    """39210: this runner has the tick."""
    THINK = "think"
    """Perceive, then buy the thought, or wait for the one that was bought."""
    ACT = "act"
    """Begin the actions that are not begun, and see them to their rest."""
    PUBLISH_STATE = "publish_state"
    """39201."""
    PUBLISH_TRAJECTORY = "publish_trajectory"
    """39230 and 39231, without words that others have not seen."""
    PUBLISH_RESULT = "publish_result"
    """39211."""


@attrs.frozen
class TickRecord:
    id: str
    """``<first 16 hex digits of the agent>:<n>``."""
    agent: str
    n: int
    created_at: float
    cause: str
    """``heartbeat``, ``trigger``, or ``asked`` for by the operator."""
    triggers: tuple[str, ...] = ()
    """Ids of what woke it."""
    kinds: tuple[str, ...] = ()
    """The kinds of those, for people."""
    goals: tuple[str, ...] = ()
    """Ids of the goals that were due."""
    asked: bool = False
    """The operator wanted it: it thinks whether there is anything to think about or not."""
    strangers: bool = False
    """Whether strangers have a word in it."""
    allowance: Msat | None = None
    """The most that it may spend where strangers alone have caused it."""
    lifecycle: str = ""
    """The agent's state when it began."""
    heartbeat: float = 0.0
    """The normal one, seconds."""
    factor: int = 1
    """How many times slower it was."""
    next_beat: float | None = None
    """When the heartbeat after it is due, wall time."""
    state: TickState = TickState.NEW
    provider: str | None = None
    thought: str = attrs.field(default="", repr=False)
    proposed: tuple[Proposed, ...] = attrs.field(default=(), repr=False)
    review_seconds: float | None = None
    """When the goals of this tick are to be looked at again, as the reply has it."""
    done: int = 0
    failed: int = 0
    open: int = 0
    """Actions that wait for the operator or for a wallet's word."""
    cost: Msat = Msat(0)
    """What was spent or may be, fees included, as known at the end."""
    ended_at: float | None = None
    reason: str = ""

    @property
    def quiet(self) -> bool:
        return not self.triggers and not self.goals and not self.asked

    @property
    def purchase(self) -> str:
        """Id of the one purchase that it makes, if it makes any."""
        return hashlib.sha256(b"purchase of tick " + self.id.encode()).hexdigest()[:32]

    @property
    def status(self) -> str:
        """In the words of NIP-SA's results, and ``running`` and ``quiet``."""
        match self.state:
            case TickState.DONE:
                return "partial" if self.failed or self.open else "success"
            case TickState.FAILED:
                return "error"
            case TickState.QUIET:
                return "quiet"
            case _:
                return "running"


def name_of(agent: str, n: int) -> str:
    """The id of an agent's ``n``-th tick: ``protocols.nip_sa.tick_d`` of a key that is known to be one."""
    return f"{agent[:16]}:{n}"


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Begun:
    """The tick is written down."""


@attrs.frozen
class Thought:
    """It has arrived and was understood."""

    provider: str | None
    thought: str = attrs.field(repr=False)
    proposed: tuple[Proposed, ...] = attrs.field(repr=False)
    review_seconds: float | None = None


@attrs.frozen
class Failed:
    """There is no thought, or none that can be used."""

    reason: str
    provider: str | None = None
    cost: Msat = Msat(0)
    at: float = 0.0


@attrs.frozen
class Acted:
    """All actions have come to their rest."""

    done: int
    failed: int
    open: int
    cost: Msat
    at: float


# --- what the arrows remember ---------------------------------------------------------------------------------


def _rest(tick: TickRecord, message: Begun) -> TickRecord:
    return attrs.evolve(tick, ended_at=tick.created_at)


def _think(tick: TickRecord, message: Thought) -> TickRecord:
    return attrs.evolve(
        tick,
        provider=message.provider,
        thought=message.thought,
        proposed=message.proposed,
        review_seconds=message.review_seconds,
    )


def _fail(tick: TickRecord, message: Failed) -> TickRecord:
    return attrs.evolve(
        tick,
        reason=message.reason,
        provider=message.provider or tick.provider,
        cost=message.cost,
        ended_at=message.at,
    )


def _act(tick: TickRecord, message: Acted) -> TickRecord:
    return attrs.evolve(
        tick, done=message.done, failed=message.failed, open=message.open, cost=message.cost, ended_at=message.at
    )


def _is_quiet(tick: TickRecord, message: Begun) -> bool:
    return tick.quiet


# --- the table ------------------------------------------------------------------------------------------------

_S, _E = TickState, TickEffect
_TELL = (_E.PUBLISH_STATE, _E.PUBLISH_TRAJECTORY, _E.PUBLISH_RESULT)

TICK: Machine[TickRecord] = Machine(
    name="tick",
    initial=_S.NEW,
    table=arrows(
        (_S.NEW, Begun, Arrow(_S.QUIET, (), _rest, _is_quiet, "nothing to think about")),
        (_S.NEW, Begun, Arrow(_S.THINKING, (_E.PUBLISH_CLAIM, _E.THINK))),
        (_S.THINKING, Thought, Arrow(_S.ACTING, (_E.ACT,), _think)),
        (_S.THINKING, Failed, Arrow(_S.FAILED, _TELL, _fail)),
        (_S.ACTING, Acted, Arrow(_S.DONE, _TELL, _act)),
        (_S.ACTING, Failed, Arrow(_S.FAILED, _TELL, _fail)),
    ),
    resume={_S.THINKING: (_E.THINK,), _S.ACTING: (_E.ACT,)},
    final=frozenset({_S.DONE, _S.FAILED, _S.QUIET}),
    outbox=frozenset({_E.PUBLISH_CLAIM, *_TELL}),
)
