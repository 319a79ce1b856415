"""The purse: every payment of an owner passes through it, nobody pays around it.

1. ``reserve``, inside the caller's transaction: an intent row is the budget reservation. One open intent per cause,
   one per payment hash, ever. The budgets are read and checked in that same transaction, so that of many who ask at
   once no more are let through than the budget carries.
2. ``send`` calls the wallet, once the intent is committed. The call is shielded: a cancelled caller must not cut a
   payment in half. Whatever is not a clear yes or no is *unknown*. An intent has one driver: nobody sends or
   reconciles it while another does and has not recorded what came of it.
3. ``record``, inside the caller's transaction: the outcome, and its entries in the ledger.
4. ``reconcile`` asks the wallet what became of an intent, at start and until it knows.

What budgets count: amount and fee of what has settled, amount and highest fee of what is pending. 0 means that nothing
may be spent; a budget that cannot be read refuses. A withdrawal is the operator's own: no budget bounds it, and it
counts against none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio

from pylon.clock import Clock
from pylon.errors import (
    AlreadyPaid,
    BudgetExceeded,
    InsufficientFunds,
    PaymentUnknown,
    SealError,
    StoreError,
    WalletError,
    brief,
)
from pylon.money import Msat, format_msat, max_fee
from pylon.store import intents, ledger
from pylon.store.database import Reads, Store, Tx
from pylon.store.intents import PURCHASE, WITHDRAWAL, Intent
from pylon.wallets.port import Payment, PaymentState, Wallet

log = logging.getLogger(__name__)

SEND_DEADLINE = 60.0
"""Seconds after which a wallet's silence is *unknown*."""
DAY = 86_400.0
"""What a budget of a day covers: any 24 hours."""


@attrs.frozen
class Spend:
    """What somebody wants to pay."""

    owner: str
    cause: str
    scope: str
    purpose: str
    amount: Msat
    """Without the fee. 0 where it is only asked how much could be paid."""
    max_fee: Msat

    @property
    def most(self) -> Msat:
        """All that it may take from the wallet."""
        return Msat(self.amount + self.max_fee)


@attrs.frozen
class Budget:
    """The bounds of one payment, as they stand. ``None``: no bound; 0: nothing. Raises ``ValueError``."""

    per_scope: Msat | None
    """For everything of its scope, fees included. A payment of no scope is alone in its own."""
    per_day: Msat | None
    """For everything of its owner in any 24 hours, fees included."""
    reserve: Msat = Msat(0)
    """What the owner must still hold when all that is reserved is gone."""
    each: Msat | None = None
    """For the amount of this payment alone, fee not included."""
    purpose_day: Msat | None = None
    """For everything of this purpose in any 24 hours, fees included."""

    def __attrs_post_init__(self) -> None:
        for bound in (self.per_scope, self.per_day, self.reserve, self.each, self.purpose_day):
            if bound is not None and (type(bound) is not int or bound < 0):
                raise ValueError("a budget is a whole number of millisatoshi, 0 or more")
        if self.reserve is None:
            raise ValueError("a reserve is an amount: 0 for none")


Limits = Callable[[Reads, Spend], Budget]
"""The budget of a payment, read in the transaction that reserves it. Whatever it raises refuses the payment."""


@attrs.frozen
class Settled:
    amount: Msat
    fee: Msat
    preimage: str | None = attrs.field(repr=False)


@attrs.frozen
class Failed:
    """No money has moved, and none will.

    ``ours``: the cause lies in our own wallet, so that another payee would fare no better.
    """

    reason: str
    ours: bool = False


@attrs.frozen
class Unknown:
    """May still settle. Counts as spent until the wallet says otherwise."""

    reason: str


Outcome = Settled | Failed | Unknown


class Purse:
    """Pays from one wallet, on the record of its owner.

    :param limits: what bounds the owner; none: nothing does but the wallet.
    """

    def __init__(
        self, wallet: Wallet, store: Store, clock: Clock, owner: str = "", limits: Limits | None = None
    ) -> None:
        self.wallet = wallet
        self.owner = owner
        self._store = store
        self._clock = clock
        self._limits = limits

    def reserve(
        self,
        tx: Tx,
        *,
        cause: str,
        bolt11: str,
        payment_hash: str,
        amount: Msat,
        scope: str = "",
        purpose: str = PURCHASE,
    ) -> Intent:
        """Write the intent to pay; the same again gives the intent that is there, and takes nothing from any budget.

        Raises ``BudgetExceeded``, ``StoreError`` where a budget cannot be read, and what ``intents.reserve`` raises:
        ``AlreadyPaid`` where the cause or the hash has an intent already.
        """
        there = intents.standing(tx, owner=self.owner, cause=cause, payment_hash=payment_hash, amount=amount)
        if there is not None:
            return there
        spend = Spend(self.owner, cause, scope, purpose, amount, max_fee(amount))
        budget = self._budget(tx, spend)
        if budget is not None:
            self._check(tx, spend, budget)
        return intents.reserve(
            tx,
            self._store.vault,
            owner=self.owner,
            cause=cause,
            scope=scope,
            purpose=purpose,
            payment_hash=payment_hash,
            invoice=bolt11,
            amount=amount,
            max_fee=spend.max_fee,
            at=self._clock.now(),
        )

    def affordable(self, source: Reads, *, scope: str = "", purpose: str = PURCHASE, spendable: Msat) -> Msat:
        """The highest price that, with the highest fee for it, passes all budgets now; 0 if there is none.

        :param spendable: what the wallet says it can spend.

        Nothing is reserved: of two who ask at once, both may be told the same. Raises ``StoreError``.
        """
        spend = Spend(self.owner, "", scope, purpose, Msat(0), Msat(0))
        try:
            budget = self._budget(source, spend)
        except BudgetExceeded as error:
            log.warning("nothing may be spent: %s", error.message)
            return Msat(0)
        rooms = [] if budget is None else self._rooms(source, spend, budget)
        most = _highest_price(min([spendable, *(room.left for room in rooms)]))
        return most if budget is None or budget.each is None else min(most, budget.each)

    def _budget(self, source: Reads, spend: Spend) -> Budget | None:
        """What bounds a payment; ``None`` where nothing does."""
        if self._limits is None or spend.purpose == WITHDRAWAL:
            return None
        try:
            budget = self._limits(source, spend)
            if isinstance(budget, Budget):
                return budget
            why = f"it is a {type(budget).__name__}"
        except (BudgetExceeded, StoreError) as error:
            if not isinstance(error, SealError):
                raise
            why = error.message
        except Exception as error:
            why = brief(error)
        raise BudgetExceeded(f"the budget of {spend.purpose} {spend.cause} cannot be read ({why})", "pylon doctor")

    def _check(self, tx: Tx, spend: Spend, budget: Budget) -> None:
        """Raises ``BudgetExceeded`` where a budget does not carry ``spend``."""
        if budget.each is not None and spend.amount > budget.each:
            raise BudgetExceeded(
                f"{format_msat(spend.amount)} are more than the {format_msat(budget.each)}"
                f" that one {spend.purpose} may cost"
            )
        for room in self._rooms(tx, spend, budget):
            if spend.most > room.left:
                raise BudgetExceeded(
                    f"{format_msat(spend.most)} with the highest fee are more than {room.name} leaves:"
                    f" {format_msat(Msat(max(room.left, 0)))}"
                )

    def _rooms(self, source: Reads, spend: Spend, budget: Budget) -> list[_Room]:
        """What each budget still leaves, fees included; below zero where more is gone than it allows."""
        rooms: list[_Room] = []
        since = self._clock.now() - DAY
        if budget.per_scope is not None:
            gone = intents.spent_in(source, spend.scope)
            rooms.append(_Room("the budget of this tick" if spend.scope else "its budget", budget.per_scope - gone))
        if budget.per_day is not None:
            gone = intents.committed(source, self.owner, since=since)
            rooms.append(_Room("the budget of 24 hours", budget.per_day - gone))
        if budget.purpose_day is not None:
            gone = intents.committed(source, self.owner, since=since, purpose=spend.purpose)
            rooms.append(_Room(f"the budget of 24 hours for {spend.purpose}", budget.purpose_day - gone))
        if budget.reserve > 0:
            holds = ledger.held(source, self.owner) - intents.reserved(source, self.owner)
            rooms.append(_Room(f"the reserve of {format_msat(budget.reserve)}", holds - budget.reserve))
        return rooms

    async def send(self, intent: Intent, bolt11: str) -> Outcome:
        """Call the wallet for a committed intent. Never raises for anything that the wallet does."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_DEADLINE):
            try:
                payment = await self.wallet.pay(
                    bolt11, max_fee=Msat(intent.max_fee_msats), idempotency_key=intent.idempotency_key
                )
            except PaymentUnknown as error:
                return Unknown(error.message)
            except AlreadyPaid as error:
                return await self._paid_by_whom(intent, error)
            except WalletError as error:
                return Failed(error.message, ours=isinstance(error, InsufficientFunds))
            except Exception as error:
                log.warning("the wallet broke while paying %s: %s", intent.payment_hash[:16], brief(error))
                return Unknown(f"the wallet broke off ({type(error).__name__})")
            return _outcome(intent, payment)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    async def _paid_by_whom(self, intent: Intent, error: AlreadyPaid) -> Outcome:
        """A wallet that has forgotten our key says "already paid" of our own payment too: ask before believing it."""
        try:
            payment = await self.wallet.lookup_payment(intent.payment_hash)
        except Exception as broken:
            return Unknown(f"already paid, and the wallet cannot tell by whom ({type(broken).__name__})")
        return Failed(error.message) if payment is None else _outcome(intent, payment)

    async def reconcile(self, intent: Intent, bolt11: str) -> Outcome:
        """What became of an intent. Pays it only where the wallet has never heard of it, under the same key."""
        with trio.move_on_after(SEND_DEADLINE):
            try:
                payment = await self.wallet.lookup_payment(intent.payment_hash)
            except Exception as error:
                return Unknown(f"the wallet cannot tell ({type(error).__name__})")
            if payment is not None:
                return _outcome(intent, payment)
            return await self.send(intent, bolt11)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    def record(self, tx: Tx, intent: Intent, outcome: Outcome) -> None:
        """Write the outcome down. Recording the same outcome again changes nothing."""
        book_outcome(tx, intent, outcome, self._clock.now())


def book_outcome(tx: Tx, intent: Intent, outcome: Outcome, at: float) -> None:
    """``Purse.record`` for whoever has no purse at hand: what was sent is booked, whatever became of its owner."""
    match outcome:
        case Settled(amount, fee, preimage):
            settled = intents.settle(tx, tx.vault, intent.id, amount=amount, fee=fee, preimage=preimage, at=at)
            # A wallet may tell another fee the second time it is asked; its first word was booked.
            ledger.payment_settled(
                tx,
                owner=settled.owner,
                purpose=settled.purpose,
                cause=settled.cause,
                payment_hash=settled.payment_hash,
                amount=settled.amount_msats,
                fee=settled.fee_msats or 0,
                at=at,
            )
        case Failed(reason):
            intents.fail(tx, intent.id, error=reason, at=at)
        case Unknown(reason):
            intents.mark_unknown(tx, intent.id, error=reason, at=at)


@attrs.frozen
class _Room:
    """What one budget still leaves."""

    name: str
    left: int


def _highest_price(room: int) -> Msat:
    """The highest price that fits into ``room`` together with the highest fee for it."""
    least, most = 0, max(room, 0)
    while least < most:
        price = Msat((least + most + 1) // 2)
        if price + max_fee(price) <= room:
            least = price
        else:
            most = price - 1
    return Msat(least)


def _outcome(intent: Intent, payment: Payment) -> Outcome:
    match payment.state:
        case PaymentState.SETTLED:
            # Some wallets do not say how much it was; then it was what was agreed.
            amount = payment.amount if payment.amount > 0 else intent.amount_msats
            return Settled(amount, Msat(max(payment.fee, 0)), payment.preimage)
        case PaymentState.FAILED:
            return Failed("the wallet reports that the payment failed")
        case PaymentState.PENDING:
            return Unknown("the payment is still on its way")
