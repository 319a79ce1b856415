"""The purchase: one thought bought, from the search for a provider to an answer.

Rules
-----
1. Providers are tried one after the other, best first; each gets a request of its own, addressed to it alone.
   After ``MAX_PROVIDERS`` it is enough: announcing costs nothing, and each of them sees the prompt.
2. A quote is paid only if it comes from the provider that was chosen, for the request that it was sent, and does not,
   with the debts that it takes off, exceed what that provider announced nor the bid. Anything else makes us turn to
   the next provider.
3. Payment happens once. The intent is committed before the wallet is called. *Unknown* is not *failed*: while the
   wallet does not say "failed", this purchase turns to nobody else.
4. Only when the wallet says that a payment failed for good does the search go on.
5. Paid and not answered by the deadline, which runs from the settlement, is *lost*: counted as spent; a late answer
   or a credit is still accepted. A credit counts only if it covers what was paid, and for no more than that.
6. An answer is accepted once, from the chosen provider, for the current request; also where it came for nothing.
   A provider that says that it serves the request without being paid has until the answer's deadline, once.
7. Its owner may give a purchase up as long as nothing is being paid; from then on it takes its course. A provider
   that was asked is told. What a hold invoice holds is given up by telling the provider, which lets go of it.
8. *Pay on delivery*: a hold invoice is paid like any other; until its provider settles or cancels it, the payment is
   on its way. Cancelled, it has failed (rule 4), unless the purchase was given up. Where it outlasts the time that the
   provider named, that is said, and the wallet is waited for.
9. *The open market*: a request to nobody in particular, shown to everybody. Quotes are collected for a while, one a
   provider, at most ``MAX_QUOTES``, the cheapest; then one of them is chosen, and for everybody else this purchase is
   over: late quotes, and what others answer, mean nothing. If its payment fails, another one of them is chosen.

The machine is pure (``pylon.machine``). What a quote must satisfy is checked by ``pylon.compute.quotes``.
"""

from __future__ import annotations

import attrs

from pylon.machine import Arrow, Effect, Machine, State, arrows
from pylon.money import Msat

MAX_PROVIDERS = 10
"""The most that one purchase asks."""
MAX_QUOTES = 10
"""The most quotes that an open request keeps."""


class PurchaseState(State):
    NEW = "new"
    SEEKING = "seeking"
    REQUESTED = "requested"
    COLLECTING = "collecting"
    PAYING = "paying"
    PAID = "paid"
    ANSWERED = "answered"
    FAILED = "failed"
    LOST = "lost"
    CREDITED = "credited"


class PurchaseEffect(Effect):
    DISCOVER = "discover"
    PUBLISH_REQUEST = "publish_request"
    PUBLISH_CANCELLATION = "publish_cancellation"
    PAY = "pay"
    RECONCILE = "reconcile"


@attrs.frozen
class Quote:
    """What a provider asks for an answer."""

    provider: str
    bolt11: str
    payment_hash: str
    amount: Msat
    credit_used: Msat = Msat(0)
    """What it takes off its price, of what it owes to the buyer."""
    hold_until: float | None = None
    """Of a hold invoice: when it is settled or cancelled at the latest, Unix seconds."""

    @property
    def price(self) -> Msat:
        """What the answer costs, paid or taken off."""
        return Msat(self.amount + self.credit_used)


@attrs.frozen
class Purchase:
    id: str
    """Ours; also the cause of its payment intents."""
    created_at: float
    prompt: str = attrs.field(repr=False)
    max_tokens: int
    bid: Msat
    """The most that may be paid for the answer, fees not included."""
    model: str | None = None
    wanted: str | None = None
    """Only this provider, if given (hex)."""
    owner: str = ""
    """Whose purchase it is: '' is the home itself, else an agent's public key (hex)."""
    scope: str = ""
    """What it is a part of, for the budgets: an agent's tick."""
    params: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """What else the request asks for (NIP-90, ``param``), by name and value."""
    open: bool = False
    """Everybody is asked, in public."""
    upfront: bool = False
    """It is paid before it is done: no provider tells its words while they come for money that could be taken back."""
    state: PurchaseState = PurchaseState.NEW
    tried: tuple[str, ...] = ()
    provider: str | None = None
    ceiling: Msat = Msat(0)
    """The announced price of the chosen provider, at most the bid."""
    request_id: str | None = None
    quote_by: float = 0.0
    """Wall time by which the chosen provider must have quoted; of an open request, by which everybody must."""
    quotes: tuple[Quote, ...] = attrs.field(default=(), repr=False)
    """Of an open request: what was offered, and not chosen yet."""
    served: bool = False
    """The provider says that it works on it, without being paid now."""
    bolt11: str | None = None
    payment_hash: str | None = None
    quoted: Msat = Msat(0)
    credit_used: Msat = Msat(0)
    """What the provider took off its price, of what it owed (``pylon.compute.debts``)."""
    hold_until: float | None = None
    """The payment is held by the provider's invoice, until then at the latest (Unix seconds)."""
    hold_overdue: bool = False
    """That time is over, and the payment is still held."""
    unwanted: bool = False
    """It was given up while its payment was held."""
    answer_by: float = 0.0
    """Wall time after which a paid purchase without an answer is lost."""
    paid: Msat = Msat(0)
    fee: Msat = Msat(0)
    preimage: str | None = attrs.field(default=None, repr=False)
    text: str | None = attrs.field(default=None, repr=False)
    result_id: str | None = None
    credit: Msat = Msat(0)
    reason: str = ""


# --- inputs ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Begun:
    """The purchase is written down."""


@attrs.frozen
class Chosen:
    provider: str
    ceiling: Msat
    request_id: str
    quote_by: float


@attrs.frozen
class Opened:
    """An open request is signed."""

    request_id: str
    quote_by: float


@attrs.frozen
class Offered:
    """Somebody has a quote for an open request."""

    request_id: str
    quote: Quote


@attrs.frozen
class Picked:
    """The time for quotes is over, and this one is to be paid."""

    provider: str
    answer_by: float


@attrs.frozen
class NoneLeft:
    reason: str


@attrs.frozen
class Quoted:
    request_id: str
    bolt11: str
    payment_hash: str
    amount: Msat
    answer_by: float
    credit_used: Msat = Msat(0)
    hold_until: float | None = None


@attrs.frozen
class Served:
    """The chosen provider works on it already, and is not to be paid before."""

    request_id: str
    answer_by: float
    credit_used: Msat = Msat(0)


@attrs.frozen
class TurnedAway:
    """The chosen provider refused, quoted badly or stayed silent."""

    request_id: str
    reason: str


@attrs.frozen
class PaymentSettled:
    amount: Msat
    fee: Msat
    preimage: str | None = attrs.field(repr=False)
    answer_by: float = 0.0


@attrs.frozen
class PaymentFailed:
    """The wallet says: failed for good."""

    reason: str


@attrs.frozen
class PaymentRefused:
    """Nothing was sent, and no other provider would change that: no funds, frozen, over budget."""

    reason: str


@attrs.frozen
class Answered:
    request_id: str
    result_id: str
    text: str = attrs.field(repr=False)
    credit_used: Msat = Msat(0)


@attrs.frozen
class Credited:
    """The provider says that it failed, and what it owes us."""

    request_id: str
    credit: Msat
    reason: str


@attrs.frozen
class GivenUp:
    """Nobody wants the answer any more."""

    reason: str


@attrs.frozen
class AnswerOverdue:
    """``answer_by`` has passed."""


@attrs.frozen
class HoldOverdue:
    """``hold_until`` has passed, and the wallet says nothing new."""


# --- what the arrows remember ---------------------------------------------------------------------------------


def _choose(purchase: Purchase, message: Chosen) -> Purchase:
    return attrs.evolve(
        purchase,
        provider=message.provider,
        ceiling=message.ceiling,
        request_id=message.request_id,
        quote_by=message.quote_by,
        tried=(*purchase.tried, message.provider),
        bolt11=None,
        payment_hash=None,
        quoted=Msat(0),
        credit=Msat(0),
    )


def _open(purchase: Purchase, message: Opened) -> Purchase:
    return attrs.evolve(purchase, request_id=message.request_id, quote_by=message.quote_by, ceiling=purchase.bid)


def _collect(purchase: Purchase, message: Offered) -> Purchase:
    """The cheapest are kept; of equal ones, those that came first."""
    quotes = sorted((*purchase.quotes, message.quote), key=lambda quote: quote.price)[:MAX_QUOTES]
    return attrs.evolve(purchase, quotes=tuple(quotes))


def _pick(purchase: Purchase, message: Picked) -> Purchase:
    chosen = next(quote for quote in purchase.quotes if quote.provider == message.provider)
    return attrs.evolve(
        purchase,
        provider=chosen.provider,
        tried=(*purchase.tried, chosen.provider),
        quotes=tuple(quote for quote in purchase.quotes if quote is not chosen),
        bolt11=chosen.bolt11,
        payment_hash=chosen.payment_hash,
        quoted=chosen.amount,
        credit_used=chosen.credit_used,
        hold_until=chosen.hold_until,
        answer_by=message.answer_by,
        credit=Msat(0),
    )


def _quote(purchase: Purchase, message: Quoted) -> Purchase:
    return attrs.evolve(
        purchase,
        bolt11=message.bolt11,
        payment_hash=message.payment_hash,
        quoted=message.amount,
        credit_used=message.credit_used,
        hold_until=message.hold_until,
        answer_by=message.answer_by,
    )


def _serve(purchase: Purchase, message: Served) -> Purchase:
    return attrs.evolve(
        purchase,
        served=True,
        quote_by=max(purchase.quote_by, message.answer_by),
        credit_used=message.credit_used,
    )


def _turn(purchase: Purchase, reason: str) -> Purchase:
    """Nothing of what this provider said or promised counts any more."""
    return attrs.evolve(
        purchase,
        reason=reason,
        credit=Msat(0),
        credit_used=Msat(0),
        hold_until=None,
        hold_overdue=False,
        served=False,
    )


def _note(purchase: Purchase, message: TurnedAway | PaymentFailed | PaymentRefused | GivenUp) -> Purchase:
    return _turn(purchase, message.reason)


def _give_up(purchase: Purchase, message: TurnedAway | PaymentFailed) -> Purchase:
    return _turn(purchase, f"{len(purchase.tried)} providers were asked; last: {message.reason}")


def _let_go(purchase: Purchase, message: PaymentFailed) -> Purchase:
    """Why it was given up says more than that its payment came back."""
    return _turn(purchase, purchase.reason)


def _want_no_more(purchase: Purchase, message: GivenUp) -> Purchase:
    return attrs.evolve(purchase, unwanted=True, reason=message.reason)


def _outlast(purchase: Purchase, message: HoldOverdue) -> Purchase:
    said = "the provider holds the payment for longer than it said; it comes back when the wallet gives it up"
    return attrs.evolve(purchase, hold_overdue=True, reason=said)


def _give_reason(purchase: Purchase, message: NoneLeft) -> Purchase:
    """The last provider's own reason says more than "none left"."""
    said = f"{message.reason}; last: {purchase.reason}" if purchase.reason else message.reason
    return attrs.evolve(purchase, reason=said)


def _settle(purchase: Purchase, message: PaymentSettled) -> Purchase:
    return attrs.evolve(
        purchase,
        paid=message.amount,
        fee=message.fee,
        preimage=message.preimage,
        answer_by=max(purchase.answer_by, message.answer_by),
        credit=Msat(min(purchase.credit, message.amount)),
        reason=purchase.reason if purchase.credit else "",
    )


def _answer(purchase: Purchase, message: Answered) -> Purchase:
    return attrs.evolve(
        purchase,
        text=message.text,
        result_id=message.result_id,
        credit_used=max(purchase.credit_used, message.credit_used),
        reason="",
    )


def _credit(purchase: Purchase, message: Credited) -> Purchase:
    return attrs.evolve(purchase, credit=Msat(min(message.credit, _price(purchase))), reason=message.reason)


def _lose(purchase: Purchase, message: AnswerOverdue) -> Purchase:
    return attrs.evolve(purchase, reason="paid, and not answered in time")


def _price(purchase: Purchase) -> Msat:
    """What was paid, or is being paid."""
    return purchase.paid or purchase.quoted


def _current(purchase: Purchase, message: TurnedAway | Answered | Credited) -> bool:
    return message.request_id == purchase.request_id


def _makes_good(purchase: Purchase, message: Credited) -> bool:
    """A provider that keeps money and "credits" one msat of it has not made anything good."""
    return _current(purchase, message) and message.credit >= _price(purchase)


def _more_to_ask(purchase: Purchase, message: PaymentFailed) -> bool:
    return len(purchase.tried) < MAX_PROVIDERS


def _current_and_more_to_ask(purchase: Purchase, message: TurnedAway) -> bool:
    return _current(purchase, message) and len(purchase.tried) < MAX_PROVIDERS


def _unwanted(purchase: Purchase, message: PaymentFailed) -> bool:
    return purchase.unwanted


def _quotes_left(purchase: Purchase, message: PaymentFailed) -> bool:
    return purchase.open and bool(purchase.quotes)


def _only_open(purchase: Purchase, message: PaymentFailed) -> bool:
    return purchase.open


def _held(purchase: Purchase, message: GivenUp) -> bool:
    return purchase.hold_until is not None and not purchase.unwanted and purchase.text is None


def _held_in_time(purchase: Purchase, message: HoldOverdue) -> bool:
    return purchase.hold_until is not None and not purchase.hold_overdue


def _is_open(purchase: Purchase, message: Opened) -> bool:
    return purchase.open


def _worth_keeping(purchase: Purchase, message: Offered) -> bool:
    """The first of its provider, within the bid, and cheaper than what is there already, if that is enough."""
    quote, quotes = message.quote, purchase.quotes
    return (
        message.request_id == purchase.request_id
        and quote.amount > 0
        and quote.credit_used >= 0
        and quote.price <= purchase.ceiling
        and quote.provider not in purchase.tried
        and all(quote.provider != other.provider for other in quotes)
        and (len(quotes) < MAX_QUOTES or quote.price < quotes[-1].price)
    )


def _offered(purchase: Purchase, message: Picked) -> bool:
    return any(quote.provider == message.provider for quote in purchase.quotes)


def _not_served(purchase: Purchase, message: Served) -> bool:
    return message.request_id == purchase.request_id and not purchase.served


def _untried(purchase: Purchase, message: Chosen) -> bool:
    return not purchase.open and message.provider not in purchase.tried and message.ceiling <= purchase.bid


def _acceptable(purchase: Purchase, message: Quoted) -> bool:
    return (
        message.request_id == purchase.request_id
        and message.amount > 0
        and message.credit_used >= 0
        and message.amount + message.credit_used <= purchase.ceiling
    )


def _has_answer(purchase: Purchase, message: object) -> bool:
    return purchase.text is not None


def _has_credit(purchase: Purchase, message: PaymentSettled) -> bool:
    return 0 < message.amount <= purchase.credit


def _says_something(purchase: Purchase, message: Answered) -> bool:
    """An empty answer is no answer."""
    return _current(purchase, message) and bool(message.text.strip())


# --- the table ------------------------------------------------------------------------------------------------

_S, _E = PurchaseState, PurchaseEffect

_accept = Arrow(_S.ANSWERED, (), _answer, _says_something, "current request, not empty")
_for_nothing = Arrow[Purchase](_S.ANSWERED, guard=_has_answer, label="answer is here")
_make_good = Arrow(_S.CREDITED, (), _credit, _makes_good, "current request, all that was paid")

PURCHASE: Machine[Purchase] = Machine(
    name="purchase",
    initial=_S.NEW,
    table=arrows(
        (_S.NEW, Begun, Arrow(_S.SEEKING, (_E.DISCOVER,))),
        (_S.SEEKING, Chosen, Arrow(_S.REQUESTED, (_E.PUBLISH_REQUEST,), _choose, _untried, "untried, within the bid")),
        (
            *(_S.SEEKING, Opened),
            Arrow(_S.COLLECTING, (_E.PUBLISH_REQUEST,), _open, _is_open, "to everybody"),
        ),
        (_S.SEEKING, NoneLeft, Arrow(_S.FAILED, (), _give_reason)),
        (_S.SEEKING, GivenUp, Arrow(_S.FAILED, (), _note)),
        (_S.REQUESTED, GivenUp, Arrow(_S.FAILED, (_E.PUBLISH_CANCELLATION,), _note)),
        (_S.REQUESTED, Quoted, Arrow(_S.PAYING, (_E.PAY,), _quote, _acceptable, "at most the ceiling")),
        (_S.REQUESTED, Served, Arrow(_S.REQUESTED, (), _serve, _not_served, "current request, once")),
        (
            *(_S.REQUESTED, TurnedAway),
            Arrow(_S.SEEKING, (_E.DISCOVER,), _note, _current_and_more_to_ask, "current request, more to ask"),
        ),
        (_S.REQUESTED, TurnedAway, Arrow(_S.FAILED, (), _give_up, _current, "current request")),
        (_S.REQUESTED, Answered, _accept),
        (
            *(_S.COLLECTING, Offered),
            Arrow(_S.COLLECTING, (), _collect, _worth_keeping, "within the bid, one a provider, the cheapest"),
        ),
        (_S.COLLECTING, Picked, Arrow(_S.PAYING, (_E.PAY,), _pick, _offered, "one of the quotes")),
        (_S.COLLECTING, NoneLeft, Arrow(_S.FAILED, (_E.PUBLISH_CANCELLATION,), _give_reason)),
        (_S.COLLECTING, GivenUp, Arrow(_S.FAILED, (_E.PUBLISH_CANCELLATION,), _note)),
        (_S.PAYING, PaymentSettled, Arrow(_S.ANSWERED, (), _settle, _has_answer, "answer is here")),
        (_S.PAYING, PaymentSettled, Arrow(_S.CREDITED, (), _settle, _has_credit, "credit is here")),
        (_S.PAYING, PaymentSettled, Arrow(_S.PAID, (), _settle)),
        (_S.PAYING, PaymentFailed, _for_nothing),
        (_S.PAYING, PaymentFailed, Arrow(_S.FAILED, (), _let_go, _unwanted, "given up")),
        (_S.PAYING, PaymentFailed, Arrow(_S.COLLECTING, (), _note, _quotes_left, "to everybody, quotes are left")),
        (_S.PAYING, PaymentFailed, Arrow(_S.FAILED, (), _give_up, _only_open, "to everybody")),
        (_S.PAYING, PaymentFailed, Arrow(_S.SEEKING, (_E.DISCOVER,), _note, _more_to_ask, "more to ask")),
        (_S.PAYING, PaymentFailed, Arrow(_S.FAILED, (), _give_up)),
        (_S.PAYING, PaymentRefused, _for_nothing),
        (_S.PAYING, PaymentRefused, Arrow(_S.FAILED, (), _note)),
        (
            *(_S.PAYING, GivenUp),
            Arrow(_S.PAYING, (_E.PUBLISH_CANCELLATION,), _want_no_more, _held, "held, and not answered"),
        ),
        (_S.PAYING, HoldOverdue, Arrow(_S.PAYING, (), _outlast, _held_in_time, "held")),
        (_S.PAYING, Answered, Arrow(_S.PAYING, (), _answer, _says_something, "current request, not empty")),
        (_S.PAYING, Credited, attrs.evolve(_make_good, to=_S.PAYING)),
        (_S.PAID, Answered, _accept),
        (_S.PAID, Credited, _make_good),
        (_S.PAID, AnswerOverdue, Arrow(_S.LOST, (), _lose)),
        (_S.LOST, Answered, _accept),
        (_S.LOST, Credited, _make_good),
        (_S.CREDITED, Answered, _accept),
    ),
    resume={_S.SEEKING: (_E.DISCOVER,), _S.PAYING: (_E.RECONCILE,)},
    waiting=frozenset({_S.REQUESTED, _S.COLLECTING, _S.PAID}),
    final=frozenset({_S.ANSWERED, _S.FAILED, _S.LOST, _S.CREDITED}),
    outbox=frozenset({_E.PUBLISH_REQUEST, _E.PUBLISH_CANCELLATION}),
)
