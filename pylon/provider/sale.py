"""The sale: one job request from the first look at it to a published result or a recorded debt.

Rules
-----
1. A request is looked at once. It is refused, served free, or priced; a price becomes an invoice (*quoted*).
2. Nothing is worked on before it is paid, unless it is free.
3. *Paid* is legal in every state, also after expiry and refusal: the customer's money is never an error. Where the
   job can still be done it is done, else the money is owed.
4. Paid work ends in a stored, then published result (*earned*), or in what is *owed* to the customer's key. An empty
   answer is no answer. An attempt that fails is repeated ``MAX_ATTEMPTS`` times before the debt is admitted.
5. A result that every relay refused was not delivered: what it earned is owed.
6. Always ``paid = earned + owed + unearned``; more than the price is owed as soon as the job has ended, and the
   customer is told.

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
    WORKING = "working"
    SERVED = "served"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    REFUSED = "refused"
    FAILED = "failed"
    OWED = "owed"


class SaleEffect(Effect):
    MINT_INVOICE = "mint_invoice"
    PUBLISH_QUOTE = "publish_quote"
    PUBLISH_PROCESSING = "publish_processing"
    INFER = "infer"
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
    attempts: int = 0
    paid: Msat = Msat(0)
    earned: Msat = Msat(0)
    owed: Msat = Msat(0)
    result: str | None = attrs.field(default=None, repr=False)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str = ""

    @property
    def unearned(self) -> Msat:
        return Msat(self.paid - self.earned - self.owed)


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Refused:
    reason: str


@attrs.frozen
class Priced:
    price: Msat


@attrs.frozen
class Free:
    """Served without payment."""


@attrs.frozen
class Minted:
    bolt11: str
    payment_hash: str
    expires_at: float


@attrs.frozen
class MintFailed:
    reason: str


@attrs.frozen
class Paid:
    amount: Msat


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
    return attrs.evolve(sale, reason=message.reason)


def _price(sale: Sale, message: Priced) -> Sale:
    return attrs.evolve(sale, price=message.price)


def _mint(sale: Sale, message: Minted) -> Sale:
    return attrs.evolve(sale, bolt11=message.bolt11, payment_hash=message.payment_hash, expires_at=message.expires_at)


def _take(sale: Sale, message: Paid) -> Sale:
    return attrs.evolve(sale, paid=Msat(sale.paid + message.amount))


def _take_as_debt(sale: Sale, message: Paid) -> Sale:
    taken = _take(sale, message)
    return attrs.evolve(taken, owed=Msat(taken.owed + taken.unearned))


def _serve(sale: Sale, message: Answered) -> Sale:
    earned = Msat(min(sale.paid, sale.price))
    return attrs.evolve(
        sale,
        result=message.text,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        earned=earned,
        owed=Msat(sale.paid - earned),
        reason="",
    )


def _count(sale: Sale, message: AttemptFailed | Answered) -> Sale:
    reason = message.reason if isinstance(message, AttemptFailed) else "the model gave an empty answer"
    return attrs.evolve(sale, attempts=sale.attempts + 1, reason=reason)


def _admit(sale: Sale, message: AttemptFailed | Answered) -> Sale:
    counted = _count(sale, message)
    return attrs.evolve(counted, owed=Msat(sale.paid - sale.earned))


def _give_back(sale: Sale, message: Undeliverable) -> Sale:
    return attrs.evolve(sale, earned=Msat(0), owed=sale.paid, reason="no relay took the result")


def _covers(sale: Sale, message: Paid) -> bool:
    return sale.paid + message.amount >= sale.price


def _has_words(sale: Sale, message: Answered) -> bool:
    return bool(message.text.strip())


def _has_words_and_was_overpaid(sale: Sale, message: Answered) -> bool:
    return _has_words(sale, message) and sale.paid > sale.price


def _may_retry(sale: Sale, message: AttemptFailed | Answered) -> bool:
    return sale.attempts + 1 < MAX_ATTEMPTS


def _is_paid(sale: Sale, message: object) -> bool:
    return sale.paid > 0


# --- the table ------------------------------------------------------------------------------------------------

_S, _E = SaleState, SaleEffect

_work = Arrow(_S.WORKING, (_E.PUBLISH_PROCESSING, _E.INFER), _take, _covers, "covers the price")
_short = Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _take_as_debt, label="less than the price")
_serve_overpaid = Arrow(
    _S.SERVED, (_E.PUBLISH_RESULT, _E.PUBLISH_DEBT), _serve, _has_words_and_was_overpaid, "has words, overpaid"
)
_retry = Arrow(_S.WORKING, (_E.INFER,), _count, _may_retry, "attempts left")
_admit_debt = Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _admit, _is_paid, "paid")
_give_up = Arrow(_S.FAILED, (_E.PUBLISH_REFUSAL,), _count, label="free")

SALE: Machine[Sale] = Machine(
    name="sale",
    initial=_S.RECEIVED,
    table=arrows(
        (_S.RECEIVED, Refused, Arrow(_S.REFUSED, (_E.PUBLISH_REFUSAL,), _refuse)),
        (_S.RECEIVED, Priced, Arrow(_S.PRICED, (_E.MINT_INVOICE,), _price)),
        (_S.RECEIVED, Free, Arrow(_S.WORKING, (_E.PUBLISH_PROCESSING, _E.INFER))),
        (_S.PRICED, Minted, Arrow(_S.QUOTED, (_E.PUBLISH_QUOTE,), _mint)),
        (_S.PRICED, MintFailed, Arrow(_S.REFUSED, (_E.PUBLISH_REFUSAL,), _refuse)),
        (_S.QUOTED, InvoiceExpired, Arrow(_S.EXPIRED)),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED), Paid, _work),
        ((_S.PRICED, _S.QUOTED, _S.EXPIRED), Paid, _short),
        (_S.WORKING, Answered, _serve_overpaid),
        (_S.WORKING, Answered, Arrow(_S.SERVED, (_E.PUBLISH_RESULT,), _serve, _has_words, "has words")),
        (_S.WORKING, Answered, _retry),
        (_S.WORKING, Answered, _admit_debt),
        (_S.WORKING, Answered, _give_up),
        (_S.WORKING, AttemptFailed, _retry),
        (_S.WORKING, AttemptFailed, _admit_debt),
        (_S.WORKING, AttemptFailed, _give_up),
        (_S.WORKING, Paid, Arrow(_S.WORKING, (), _take)),
        (_S.SERVED, Delivered, Arrow(_S.DELIVERED)),
        (_S.SERVED, Undeliverable, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _give_back, _is_paid, "paid")),
        (_S.SERVED, Undeliverable, Arrow(_S.FAILED, label="free")),
        (_S.SERVED, Paid, Arrow(_S.SERVED, (_E.PUBLISH_DEBT,), _take_as_debt)),
        (_S.DELIVERED, Paid, Arrow(_S.DELIVERED, (_E.PUBLISH_DEBT,), _take_as_debt)),
        ((_S.REFUSED, _S.FAILED, _S.OWED), Paid, Arrow(_S.OWED, (_E.PUBLISH_DEBT,), _take_as_debt)),
    ),
    resume={_S.PRICED: (_E.MINT_INVOICE,), _S.WORKING: (_E.INFER,)},
    waiting=frozenset({_S.QUOTED, _S.SERVED}),
    final=frozenset({_S.DELIVERED, _S.EXPIRED, _S.REFUSED, _S.FAILED, _S.OWED}),
    outbox=frozenset({_E.PUBLISH_QUOTE, _E.PUBLISH_PROCESSING, _E.PUBLISH_RESULT, _E.PUBLISH_DEBT, _E.PUBLISH_REFUSAL}),
)
