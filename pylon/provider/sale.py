"""The sale: one job request from the first look at it to a published result or a recorded debt.

Rules
-----
1. A request is looked at once. It is refused, served free, or priced; a price becomes an invoice (*quoted*).
2. Nothing is worked on before it is paid, unless it is free, or the customer is trusted to pay with the result in hand.
3. *Paid* is legal in every state, also after expiry, refusal and cancellation: the customer's money is never an error.
   Where the job can still be done it is done, else the money is owed.
4. Paid work ends in a stored, then published result (*earned*), or in what is *owed* to the customer's key. An empty
   answer is no answer. An attempt that fails is repeated ``MAX_ATTEMPTS`` times before the debt is admitted.
5. A result that every relay refused was not delivered: what it earned is owed.
6. Always ``paid + credit used = earned + owed + unearned``; more than the price is owed as soon as the job has ended,
   and the customer is told.
7. *Credit*: what is owed to the customer from before pays first. It is reserved with the price, asked for no more, and
   given back to the customer's credit when the job comes to nothing.
8. *Pay on delivery*: what is *held* is not paid. It is worked for, and taken (*settling*) once the result is stored;
   whatever fails is given back (*cancelling*), and nothing was paid. The result is published when the money is there.
   While the wallet does not say that the hold is gone it is asked again: unknown is not failed.
9. *On trust*: the job is done at once, and its result carries the invoice. What comes is earned; what does not is lost,
   and is no debt of anybody's.
10. Its customer may cancel a job that nothing was paid for; one that is paid takes its course.

The machine is pure (``pylon.machine``): amounts move by changing the record, its driver books the differences.
NIP-90 names: kind 5050 request, 7000 feedback, 6050 result.
"""

from __future__ import annotations

from typing import Any

import attrs

from pylon.machine import Arrow, Effect, Machine, State, arrows
from pylon.money import Msat

MAX_ATTEMPTS = 5
"""Inference attempts for one paid job before it is owed."""


class SaleState(State):
    RECEIVED = "received"
    PRICED = "priced"
    QUOTED = "quoted"
    HELD = "held"
    """Worked on, for money that is held."""
    SETTLING = "settling"
    """The result is stored; what is held for it is being taken."""
    CANCELLING = "cancelling"
    """What is held is being given back."""
    WORKING = "working"
    BILLING = "billing"
    """Done on trust; the invoice for it is being made."""
    SERVED = "served"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    OWED = "owed"


class SaleEffect(Effect):
    MINT_INVOICE = "mint_invoice"
    PUBLISH_QUOTE = "publish_quote"
    PUBLISH_PROCESSING = "publish_processing"
    INFER = "infer"
    SETTLE_HOLD = "settle_hold"
    CANCEL_HOLD = "cancel_hold"
    PUBLISH_RESULT = "publish_result"
    PUBLISH_DEBT = "publish_debt"
    PUBLISH_REFUSAL = "publish_refusal"


@attrs.frozen
class Sale:
    id: str
    """Id of the request event."""
    customer: str
    kind: int
    created_at: float
    state: SaleState = SaleState.RECEIVED
    prompt: str = attrs.field(default="", repr=False)
    encrypted: bool = True
    scheme: str = "nip44"
    """How an encrypted request was sealed, and its answers are: ``nip44`` or ``nip04``."""
    model: str = ""
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    json_schema: dict[str, Any] | None = attrs.field(default=None, hash=False, repr=False)
    """What the reply must satisfy, where the customer asks for it."""
    seed: int | None = None
    request: str = attrs.field(default="", repr=False)
    """The request event as JSON, for the ``request`` tag of an open result."""
    price: Msat = Msat(0)
    bolt11: str | None = None
    payment_hash: str | None = None
    expires_at: float | None = None
    preimage: str | None = attrs.field(default=None, repr=False)
    """Ours, of its hold invoice (hex); ``None``: it is paid before it is worked on."""
    held: Msat = Msat(0)
    """What is held for it, and not paid."""
    held_until: float | None = None
    """When a hold is answered at the latest, Unix seconds."""
    on_trust: bool = False
    """It is paid with the result in hand, or not at all."""
    cancelled: bool = False
    """By its customer."""
    attempts: int = 0
    paid: Msat = Msat(0)
    credit_used: Msat = Msat(0)
    """What was owed to the customer before, and pays for this."""
    earned: Msat = Msat(0)
    owed: Msat = Msat(0)
    result: str | None = attrs.field(default=None, repr=False)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str = ""

    @property
    def unearned(self) -> Msat:
        return Msat(self.paid + self.credit_used - self.earned - self.owed)

    @property
    def asked(self) -> Msat:
        """What its invoice asks for: the price, less the credit."""
        return Msat(self.price - self.credit_used)


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Refused:
    reason: str


@attrs.frozen
class Priced:
    price: Msat
    credit: Msat = Msat(0)
    """What of it the customer's credit carries."""
    preimage: str | None = attrs.field(default=None, repr=False)
    """Of a hold invoice, hex: it is paid on delivery."""


@attrs.frozen
class OnTrust:
    """Served at once, payable with the result."""

    price: Msat
    credit: Msat = Msat(0)


@attrs.frozen
class Free:
    """Served without payment."""


@attrs.frozen
class Minted:
    bolt11: str
    payment_hash: str
    expires_at: float
    held_until: float | None = None


@attrs.frozen
class MintFailed:
    reason: str


@attrs.frozen
class Paid:
    amount: Msat
    credit: Msat = Msat(0)
    """What else is owed to the customer by now: it may carry what the payment lacks."""
    by_hold: bool = False
    """What was held has been taken."""


@attrs.frozen
class Held:
    """A payment waits at the hold invoice."""

    amount: Msat
    credit: Msat = Msat(0)
    """As in ``Paid``."""


@attrs.frozen
class HoldGone:
    """The wallet says that nothing is held, and nothing was paid: given back, by us or by itself."""


@attrs.frozen
class HoldOverdue:
    """The time by which a hold is to be answered."""


@attrs.frozen
class Cancelled:
    """Its customer wants it no more."""


@attrs.frozen
class InvoiceExpired:
    """The invoice's time is over and the wallet says that nothing came."""


@attrs.frozen
class Answered:
    text: str = attrs.field(repr=False)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@attrs.frozen
class AttemptFailed:
    reason: str


@attrs.frozen
class Delivered:
    """At least one relay has the result."""


@attrs.frozen
class Undeliverable:
    """Every relay refused the result for good, or none has taken it in all the time that it was given."""


# --- what the arrows remember ---------------------------------------------------------------------------------


def _refuse(sale: Sale, message: Refused | MintFailed) -> Sale:
    return attrs.evolve(sale, reason=message.reason, credit_used=Msat(0))


def _price(sale: Sale, message: Priced) -> Sale:
    return attrs.evolve(sale, price=message.price, credit_used=message.credit, preimage=message.preimage)


def _price_by_credit(sale: Sale, message: Priced) -> Sale:
    return attrs.evolve(sale, price=message.price, credit_used=message.price)


def _trust(sale: Sale, message: OnTrust) -> Sale:
    return attrs.evolve(sale, price=message.price, credit_used=message.credit, on_trust=True)


def _mint(sale: Sale, message: Minted) -> Sale:
    return attrs.evolve(
        sale,
        bolt11=message.bolt11,
        payment_hash=message.payment_hash,
        expires_at=message.expires_at,
        held_until=message.held_until,
    )


def _expire(sale: Sale, message: object) -> Sale:
    return attrs.evolve(sale, credit_used=Msat(0))


def _cancel(sale: Sale, message: Cancelled) -> Sale:
    return attrs.evolve(sale, cancelled=True, credit_used=Msat(0), reason="cancelled by its customer")


def _take(sale: Sale, message: Paid) -> Sale:
    """Credit that was given back when the quote expired, or as much of it as is still there, pays again."""
    paid = Msat(sale.paid + message.amount)
    lacks = max(0, sale.price - paid - sale.credit_used)
    return attrs.evolve(sale, paid=paid, credit_used=Msat(sale.credit_used + min(message.credit, lacks)))


def _hold(sale: Sale, message: Held) -> Sale:
    lacks = max(0, sale.price - sale.paid - message.amount - sale.credit_used)
    return attrs.evolve(sale, held=message.amount, credit_used=Msat(sale.credit_used + min(message.credit, lacks)))


def _hold_short(sale: Sale, message: Held) -> Sale:
    return attrs.evolve(sale, held=message.amount, credit_used=Msat(0), reason="less was held than the job costs")


def _owe_all(sale: Sale) -> Sale:
    """Nothing more will be earned: what was paid for it is owed, and credit is the customer's again."""
    return attrs.evolve(sale, held=Msat(0), credit_used=Msat(0), owed=Msat(sale.paid - sale.earned))


def _take_as_debt(sale: Sale, message: Paid) -> Sale:
    return _owe_all(attrs.evolve(sale, paid=Msat(sale.paid + message.amount)))


def _owe_more(sale: Sale, message: Paid) -> Sale:
    """The job is done and paid for."""
    return attrs.evolve(sale, paid=Msat(sale.paid + message.amount), owed=Msat(sale.owed + message.amount))


def _keep(sale: Sale, message: Answered) -> Sale:
    return attrs.evolve(
        sale,
        result=message.text,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        reason="",
    )


def _earn(sale: Sale) -> Sale:
    """The result is there: what was paid for it, up to the price, is ours. Credit that is not needed is given back."""
    used = Msat(min(sale.credit_used, max(0, sale.price - sale.paid)))
    earned = Msat(min(sale.paid + used, sale.price))
    return attrs.evolve(sale, held=Msat(0), credit_used=used, earned=earned, owed=Msat(sale.paid + used - earned))


def _serve(sale: Sale, message: Answered) -> Sale:
    return _earn(_keep(sale, message))


def _settle(sale: Sale, message: Paid) -> Sale:
    return _earn(_take(sale, message))


def _serve_paid(sale: Sale, message: HoldGone) -> Sale:
    return _earn(sale)


def _bill(sale: Sale, message: Minted) -> Sale:
    return _earn(_mint(sale, message))


def _serve_unbilled(sale: Sale, message: MintFailed) -> Sale:
    return _earn(attrs.evolve(sale, reason=message.reason))


def _count(sale: Sale, message: AttemptFailed | Answered) -> Sale:
    reason = message.reason if isinstance(message, AttemptFailed) else "the model gave an empty answer"
    return attrs.evolve(sale, attempts=sale.attempts + 1, reason=reason)


def _admit(sale: Sale, message: AttemptFailed | Answered) -> Sale:
    return _owe_all(_count(sale, message))


def _fail_held(sale: Sale, message: AttemptFailed | Answered) -> Sale:
    return attrs.evolve(_count(sale, message), credit_used=Msat(0))


def _overdue(sale: Sale, message: HoldOverdue) -> Sale:
    return attrs.evolve(sale, credit_used=Msat(0), reason="it was not done in time")


def _lapse(sale: Sale, message: HoldGone) -> Sale:
    return attrs.evolve(_owe_all(sale), reason="the payment was given back before the job was done")


def _end_hold(sale: Sale, message: HoldGone) -> Sale:
    return _owe_all(sale)


def _release(sale: Sale, message: HoldGone) -> Sale:
    return attrs.evolve(sale, held=Msat(0))


def _give_back(sale: Sale, message: Undeliverable) -> Sale:
    return attrs.evolve(_owe_all(attrs.evolve(sale, earned=Msat(0))), reason="no relay took the result")


def _covers(sale: Sale, message: Paid | Held) -> bool:
    return 0 < sale.price <= sale.paid + message.amount + sale.credit_used + message.credit


def _credit_carries(sale: Sale, message: Priced) -> bool:
    return message.credit >= message.price


def _has_words(sale: Sale, message: Answered) -> bool:
    return bool(message.text.strip())


def _has_words_and_was_overpaid(sale: Sale, message: Answered) -> bool:
    return _has_words(sale, message) and sale.paid > sale.price


def _has_words_and_is_to_pay(sale: Sale, message: Answered) -> bool:
    return _has_words(sale, message) and sale.on_trust and sale.paid < sale.asked


def _may_retry(sale: Sale, message: AttemptFailed | Answered) -> bool:
    return sale.attempts + 1 < MAX_ATTEMPTS


def _is_paid(sale: Sale, message: object) -> bool:
    return sale.paid > 0


def _is_unpaid(sale: Sale, message: object) -> bool:
    return sale.paid == 0 and sale.credit_used == 0


def _is_paid_in_full(sale: Sale, message: object) -> bool:
    return sale.paid > 0 and sale.paid >= sale.asked


def _is_overpaid(sale: Sale, message: object) -> bool:
    return sale.paid > sale.price


def _is_cancelled(sale: Sale, message: object) -> bool:
    return sale.cancelled


def _has_hold(sale: Sale, message: object) -> bool:
    return sale.preimage is not None


def _by_hold(sale: Sale, message: Paid) -> bool:
    return message.by_hold


def _by_hold_too_much(sale: Sale, message: Paid) -> bool:
    return message.by_hold and sale.paid + message.amount > sale.price


def _is_owing(sale: Sale, message: Paid) -> bool:
    return sale.on_trust and sale.paid + message.amount <= sale.asked


def _is_owing_less(sale: Sale, message: Paid) -> bool:
    return sale.on_trust and sale.paid < sale.asked


# --- the table ------------------------------------------------------------------------------------------------

_S, _E = SaleState, SaleEffect

_UNDER_WAY = (_E.PUBLISH_PROCESSING, _E.INFER)
_work = Arrow(_S.WORKING, _UNDER_WAY, _take, _covers, "covers the price")
_short = Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _take_as_debt, label="less than the price")
_hold_work = Arrow(_S.HELD, _UNDER_WAY, _hold, _covers, "covers the price")
_serve_overpaid = Arrow(
    _S.SERVED, (_E.PUBLISH_RESULT, _E.PUBLISH_DEBT), _serve, _has_words_and_was_overpaid, "has words, overpaid"
)
_retry = Arrow(_S.WORKING, (_E.INFER,), _count, _may_retry, "attempts left")
_retry_held = attrs.evolve(_retry, to=_S.HELD)
_admit_debt = Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _admit, _is_paid, "paid")
_give_up = Arrow(_S.FAILED, (_E.PUBLISH_REFUSAL,), _admit, label="nothing paid")
_return = Arrow(_S.CANCELLING, (_E.CANCEL_HOLD,), _fail_held)
_debt = Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _take_as_debt)

SALE: Machine[Sale] = Machine(
    name="sale",
    initial=_S.RECEIVED,
    table=arrows(
        (_S.RECEIVED, Refused, Arrow(_S.REFUSED, (_E.PUBLISH_REFUSAL,), _refuse)),
        (_S.RECEIVED, Priced, Arrow(_S.WORKING, _UNDER_WAY, _price_by_credit, _credit_carries, "credit carries it")),
        (_S.RECEIVED, Priced, Arrow(_S.PRICED, (_E.MINT_INVOICE,), _price)),
        (_S.RECEIVED, OnTrust, Arrow(_S.WORKING, _UNDER_WAY, _trust)),
        (_S.RECEIVED, Free, Arrow(_S.WORKING, _UNDER_WAY)),
        (_S.PRICED, Minted, Arrow(_S.QUOTED, (_E.PUBLISH_QUOTE,), _mint)),
        (_S.PRICED, MintFailed, Arrow(_S.REFUSED, (_E.PUBLISH_REFUSAL,), _refuse)),
        (_S.QUOTED, InvoiceExpired, Arrow(_S.EXPIRED, (), _expire)),
        ((_S.PRICED, _S.QUOTED), Cancelled, attrs.evolve(_return, update=_cancel, guard=_has_hold, label="has a hold")),
        ((_S.PRICED, _S.QUOTED), Cancelled, Arrow(_S.CANCELLED, (), _cancel)),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED, _S.CANCELLED), Paid, _work),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED, _S.CANCELLED), Paid, _short),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED), Held, _hold_work),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED), Held, attrs.evolve(_return, update=_hold_short)),
        (_S.HELD, Answered, Arrow(_S.SETTLING, (_E.SETTLE_HOLD,), _keep, _has_words, "has words")),
        (_S.HELD, Answered, _retry_held),
        (_S.HELD, Answered, _return),
        (_S.HELD, AttemptFailed, _retry_held),
        (_S.HELD, AttemptFailed, _return),
        (_S.HELD, Cancelled, attrs.evolve(_return, update=_cancel)),
        (_S.HELD, HoldOverdue, attrs.evolve(_return, update=_overdue)),
        (_S.HELD, HoldGone, Arrow(_S.WORKING, (_E.INFER,), _release, _is_paid_in_full, "paid otherwise")),
        (_S.HELD, HoldGone, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _lapse, _is_paid, "paid in part")),
        (_S.HELD, HoldGone, Arrow(_S.FAILED, (_E.PUBLISH_REFUSAL,), _lapse)),
        (_S.HELD, Paid, Arrow(_S.WORKING, (_E.INFER,), _take, _by_hold, "by the hold")),
        (_S.HELD, Paid, Arrow(_S.HELD, (), _take)),
        (
            *(_S.SETTLING, Paid),
            Arrow(_S.SERVED, (_E.PUBLISH_RESULT, _E.PUBLISH_DEBT), _settle, _by_hold_too_much, "by the hold, overpaid"),
        ),
        (_S.SETTLING, Paid, Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _settle, _by_hold, "by the hold")),
        (_S.SETTLING, Paid, Arrow(_S.SETTLING, (), _take)),
        (
            _S.SETTLING,
            HoldGone,
            Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _serve_paid, _is_paid_in_full, "paid otherwise"),
        ),
        (_S.SETTLING, HoldGone, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _lapse, _is_paid, "paid in part")),
        (_S.SETTLING, HoldGone, Arrow(_S.FAILED, (_E.PUBLISH_REFUSAL,), _lapse)),
        (_S.CANCELLING, HoldGone, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _end_hold, _is_paid, "paid otherwise")),
        (_S.CANCELLING, HoldGone, Arrow(_S.CANCELLED, (), _end_hold, _is_cancelled, "by its customer")),
        (_S.CANCELLING, HoldGone, Arrow(_S.FAILED, (_E.PUBLISH_REFUSAL,), _end_hold)),
        (_S.CANCELLING, Paid, attrs.evolve(_debt, guard=_by_hold, label="by the hold")),
        (_S.CANCELLING, Paid, Arrow(_S.CANCELLING, (), _take)),
        (_S.WORKING, Answered, _serve_overpaid),
        (
            *(_S.WORKING, Answered),
            Arrow(_S.BILLING, (_E.MINT_INVOICE,), _keep, _has_words_and_is_to_pay, "has words, on trust"),
        ),
        (_S.WORKING, Answered, Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _serve, _has_words, "has words")),
        (_S.WORKING, Answered, _retry),
        (_S.WORKING, Answered, _admit_debt),
        (_S.WORKING, Answered, _give_up),
        (_S.WORKING, AttemptFailed, _retry),
        (_S.WORKING, AttemptFailed, _admit_debt),
        (_S.WORKING, AttemptFailed, _give_up),
        (_S.WORKING, Paid, Arrow(_S.WORKING, (), _take)),
        (_S.WORKING, Cancelled, Arrow(_S.CANCELLED, (), _cancel, _is_unpaid, "nothing paid")),
        (
            *(_S.BILLING, Minted),
            Arrow(_S.SERVED, (_E.PUBLISH_RESULT, _E.PUBLISH_DEBT), _bill, _is_overpaid, "overpaid meanwhile"),
        ),
        (_S.BILLING, Minted, Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _bill)),
        (
            *(_S.BILLING, MintFailed),
            Arrow(_S.SERVED, (_E.PUBLISH_RESULT, _E.PUBLISH_DEBT), _serve_unbilled, _is_overpaid, "overpaid meanwhile"),
        ),
        (_S.BILLING, MintFailed, Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _serve_unbilled)),
        (_S.BILLING, Paid, Arrow(_S.BILLING, (), _take)),
        (_S.SERVED, Delivered, Arrow(_S.DELIVERED)),
        (_S.SERVED, Undeliverable, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _give_back, _is_paid, "paid")),
        (_S.SERVED, Undeliverable, Arrow(_S.FAILED, (), _give_back, label="nothing paid")),
        (_S.SERVED, Paid, Arrow(_S.SERVED, (), _settle, _is_owing, "on trust")),
        (
            _S.SERVED,
            Paid,
            Arrow(_S.SERVED, (_E.PUBLISH_DEBT,), _settle, _is_owing_less, "on trust, more than it costs"),
        ),
        (_S.SERVED, Paid, Arrow(_S.SERVED, (_E.PUBLISH_DEBT,), _owe_more)),
        (_S.DELIVERED, Paid, Arrow(_S.DELIVERED, (), _settle, _is_owing, "on trust")),
        (
            *(_S.DELIVERED, Paid),
            Arrow(_S.DELIVERED, (_E.PUBLISH_DEBT,), _settle, _is_owing_less, "on trust, more than it costs"),
        ),
        (_S.DELIVERED, Paid, Arrow(_S.DELIVERED, (_E.PUBLISH_DEBT,), _owe_more)),
        ((_S.REFUSED, _S.FAILED, _S.OWED), Paid, _debt),
    ),
    resume={
        _S.PRICED: (_E.MINT_INVOICE,),
        _S.HELD: (_E.INFER,),
        _S.SETTLING: (_E.SETTLE_HOLD,),
        _S.CANCELLING: (_E.CANCEL_HOLD,),
        _S.WORKING: (_E.INFER,),
        _S.BILLING: (_E.MINT_INVOICE,),
    },
    waiting=frozenset({_S.QUOTED, _S.SERVED}),
    final=frozenset({_S.DELIVERED, _S.EXPIRED, _S.REFUSED, _S.CANCELLED, _S.FAILED, _S.OWED}),
    outbox=frozenset({_E.PUBLISH_QUOTE, _E.PUBLISH_PROCESSING, _E.PUBLISH_RESULT, _E.PUBLISH_DEBT, _E.PUBLISH_REFUSAL}),
)
