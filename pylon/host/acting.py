"""The action: one thing that an agent wants done, from the wish to its end.

Rules
-----
1. An action is named after its tick and its place there. It is done at most once, whatever happens meanwhile.
2. What the policy bars is *refused*; what needs the operator's yes is *waiting*, and lapses after a while.
3. What is published is put into the outbox with the step that makes it *done*: signed once, never twice.
4. What is paid has an intent before the wallet is called. *Unknown* is not *failed*: it stays *paying* until the
   wallet says what became of it.
5. An invoice that must be asked for first is asked for while *preparing*; nothing is spent there.

The machine is pure (``pylon.machine``); the policy is ``pylon.host.policy``, the driver ``pylon.host.deeds``.
"""

from __future__ import annotations

import attrs

from pylon.host.replies import Proposed
from pylon.host.settings import MONEY, OUTWARD, ActionKind
from pylon.machine import Arrow, Effect, Machine, State, arrows
from pylon.money import Msat

PREPARED = frozenset({*MONEY, ActionKind.REQUEST_PAYMENT})
"""What needs an invoice first."""


class ActionState(State):
    NEW = "new"
    WAITING = "waiting"
    PREPARING = "preparing"
    PAYING = "paying"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    DENIED = "denied"
    EXPIRED = "expired"


class ActionEffect(Effect):
    PREPARE = "prepare"
    """Check the invoice, ask a service for one, or make one of one's own."""
    PAY = "pay"
    RECONCILE = "reconcile"
    PUBLISH = "publish"


@attrs.frozen
class Action:
    id: str
    """``<tick>:<place>``; also the cause of its payment."""
    agent: str
    tick: str
    seq: int
    created_at: float
    wish: Proposed = attrs.field(repr=False)
    about: str | None = None
    """Id of the trigger that it answers."""
    state: ActionState = ActionState.NEW
    lapses_at: float | None = None
    """When a question to the operator lapses."""
    approved: bool = False
    """The operator has said yes to this very action: a grant for it alone."""
    bolt11: str | None = attrs.field(default=None, repr=False)
    """To be paid, or to be sent to whoever shall pay."""
    payment_hash: str | None = None
    amount: Msat = Msat(0)
    note: str = attrs.field(default="", repr=False)
    """What was learnt while preparing, as the publisher wants it."""
    paid: Msat = Msat(0)
    fee: Msat = Msat(0)
    preimage: str | None = attrs.field(default=None, repr=False)
    events: tuple[str, ...] = ()
    """Ids of what was published."""
    reason: str = ""

    @property
    def kind(self) -> ActionKind:
        return self.wish.kind

    @property
    def at_rest(self) -> bool:
        """Nothing more comes of it by itself."""
        return self.state in ACTION.final or self.state is ActionState.WAITING


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Admitted:
    """The policy lets it pass."""


@attrs.frozen
class Held:
    """The operator is to be asked."""

    lapses_at: float


@attrs.frozen
class Barred:
    reason: str


@attrs.frozen
class Approved:
    """The operator says yes."""


@attrs.frozen
class Denied:
    reason: str


@attrs.frozen
class Lapsed:
    """Nobody has said anything in time: no."""


@attrs.frozen
class Prepared:
    bolt11: str = attrs.field(repr=False)
    payment_hash: str = ""
    amount: Msat = Msat(0)
    note: str = attrs.field(default="", repr=False)


@attrs.frozen
class Missed:
    """It cannot be done; nothing was spent."""

    reason: str


@attrs.frozen
class Settled:
    amount: Msat
    fee: Msat
    preimage: str | None = attrs.field(repr=False)


@attrs.frozen
class PaymentFailed:
    """The wallet says: failed for good."""

    reason: str


# --- what the arrows remember ---------------------------------------------------------------------------------


def _hold(action: Action, message: Held) -> Action:
    return attrs.evolve(action, lapses_at=message.lapses_at)


def _say(action: Action, message: Barred | Denied | Missed | PaymentFailed) -> Action:
    return attrs.evolve(action, reason=message.reason)


def _approve(action: Action, message: Approved) -> Action:
    return attrs.evolve(action, approved=True, lapses_at=None)


def _lapse(action: Action, message: Lapsed) -> Action:
    return attrs.evolve(action, reason="nobody approved it in time")


def _prepare(action: Action, message: Prepared) -> Action:
    return attrs.evolve(
        action, bolt11=message.bolt11, payment_hash=message.payment_hash, amount=message.amount, note=message.note
    )


def _settle(action: Action, message: Settled) -> Action:
    return attrs.evolve(action, paid=message.amount, fee=message.fee, preimage=message.preimage)


def _prepares(action: Action, message: object) -> bool:
    return action.kind in PREPARED


def _publishes(action: Action, message: object) -> bool:
    return action.kind in OUTWARD


def _pays(action: Action, message: object) -> bool:
    return action.kind in MONEY


# --- the table ------------------------------------------------------------------------------------------------

_S, _E = ActionState, ActionEffect

ACTION: Machine[Action] = Machine(
    name="action",
    initial=_S.NEW,
    table=arrows(
        (_S.NEW, Admitted, Arrow(_S.PREPARING, (_E.PREPARE,), guard=_prepares, label="wants an invoice")),
        (_S.NEW, Admitted, Arrow(_S.DONE, (_E.PUBLISH,), guard=_publishes, label="others notice it")),
        (_S.NEW, Admitted, Arrow(_S.DONE, ())),
        (_S.NEW, Held, Arrow(_S.WAITING, (), _hold)),
        (_S.NEW, Barred, Arrow(_S.REFUSED, (), _say)),
        (_S.WAITING, Approved, Arrow(_S.PREPARING, (_E.PREPARE,), _approve, _prepares, "wants an invoice")),
        (_S.WAITING, Approved, Arrow(_S.DONE, (_E.PUBLISH,), _approve, _publishes, "others notice it")),
        (_S.WAITING, Denied, Arrow(_S.DENIED, (), _say)),
        (_S.WAITING, Lapsed, Arrow(_S.EXPIRED, (), _lapse)),
        (_S.PREPARING, Prepared, Arrow(_S.PAYING, (_E.PAY,), _prepare, _pays, "to be paid")),
        (_S.PREPARING, Prepared, Arrow(_S.DONE, (_E.PUBLISH,), _prepare)),
        (_S.PREPARING, Missed, Arrow(_S.FAILED, (), _say)),
        (_S.PAYING, Settled, Arrow(_S.DONE, (), _settle)),
        (_S.PAYING, PaymentFailed, Arrow(_S.FAILED, (), _say)),
    ),
    resume={_S.PREPARING: (_E.PREPARE,), _S.PAYING: (_E.RECONCILE,)},
    waiting=frozenset({_S.WAITING}),
    final=frozenset({_S.DONE, _S.FAILED, _S.REFUSED, _S.DENIED, _S.EXPIRED}),
    outbox=frozenset({_E.PUBLISH}),
)
