"""The purse: every payment of an owner passes through it, nobody pays around it.

1. ``reserve``, inside the caller's transaction: an intent row is the budget reservation. One open intent per cause,
   one per payment hash, ever. The freeze and the budgets (``pylon.wallets.budgets``) are read and checked in that same
   transaction, so that of many who ask at once no more are let through than the budget carries.
2. ``send`` calls the wallet, once the intent is committed, unless the operator's yes is still wanted or spending is
   frozen by then. The call is shielded: a cancelled caller must not cut a payment in half. Whatever is not a clear yes
   or no is *unknown*. An intent has one driver: nobody sends or reconciles it while another does and has not recorded
   what came of it.
3. ``record``, inside the caller's transaction: the outcome, and its entries in the ledger.
4. ``reconcile`` asks the wallet what became of an intent, at start and until it knows; also while spending is frozen.
   What the wallet has never heard of is sent then, under the same key, if it may be.

A budget of 0 means that nothing may be spent; one that cannot be read refuses, and so does a freeze that does not
read. A withdrawal is the operator's own: no budget bounds it, and it counts against none. A freeze stops it, too.
"""

from __future__ import annotations

import logging
import weakref

import attrs
import trio

from protocols import bolt11
from pylon.clock import Clock
from pylon.errors import (
    AlreadyPaid,
    BudgetExceeded,
    InsufficientFunds,
    InvoiceInvalid,
    PaymentUnknown,
    SealError,
    StoreError,
    WalletError,
    brief,
)
from pylon.money import Msat, format_msat, max_fee
from pylon.store import credits, freeze, intents, ledger
from pylon.store.database import Reads, Store, Tx
from pylon.store.intents import PURCHASE, WITHDRAWAL, Approval, Intent, IntentState, TargetForm
from pylon.wallets import budgets
from pylon.wallets.budgets import DAY, UNBOUNDED, Budget, Limits, Spend
from pylon.wallets.port import Payment, PaymentState, Wallet

__all__ = ["DAY", "Budget", "Failed", "Limits", "Outcome", "Purse", "Settled", "Spend", "Unknown", "book_outcome"]

log = logging.getLogger(__name__)

SEND_DEADLINE = 60.0
"""Seconds after which a wallet's silence is *unknown*."""
ASK_SECONDS = DAY
"""How long the operator is waited for at most."""
_LEAST_LIFE = 5.0
"""Seconds an invoice must still live when the operator says yes."""
_LISTEN_SECONDS = 30.0
"""How long ``reconcile`` waits for the operator before it says that nothing is known yet."""


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
    """May still settle. Counts as spent until the wallet says otherwise.

    ``moving``: the wallet itself says that it is on its way.
    """

    reason: str
    moving: bool = False


Outcome = Settled | Failed | Unknown


_under_way: weakref.WeakKeyDictionary[Store, set[str]] = weakref.WeakKeyDictionary()
"""Intents that are being sent, by the store that they are in: no two calls at once, whoever makes them."""


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
        payment_hash: str | None = None,
        amount: Msat,
        scope: str = "",
        purpose: str = PURCHASE,
        highest_fee: Msat | None = None,
    ) -> Intent:
        """Write the intent to pay; the same again gives the intent that is there, and takes nothing from any budget.

        :param bolt11: an invoice, or an address that the wallet pays to.
        :param payment_hash: of the invoice; ``None`` for an address.
        :param amount: what the invoice names; where it names none, or for an address, what is to be paid.
        :param highest_fee: a bound of the caller's own, beside that of the budget.

        An intent that ``waits`` is reserved, and not sent before the operator has said yes. Raises ``WalletFrozen``,
        ``BudgetExceeded``, ``StoreError`` where a budget cannot be read, and what ``intents.reserve`` raises:
        ``AlreadyPaid`` where the cause or the hash has an intent already.
        """
        target = _read_target(bolt11, payment_hash, amount)
        if payment_hash is None:
            payment_hash = intents.hash_of_key(intents.address_key(self.owner, cause, bolt11))
        there = intents.standing(tx, owner=self.owner, cause=cause, payment_hash=payment_hash, amount=amount)
        if there is None or there.state is not IntentState.SETTLED:
            freeze.check(tx)
        if there is not None:
            return there
        fee = max_fee(amount) if highest_fee is None else Msat(max(0, highest_fee))
        spend = Spend(self.owner, cause, scope, purpose, amount, fee, target.payee)
        budget = self._budget(tx, spend)
        spend = attrs.evolve(spend, max_fee=fee if budget.max_fee is None else min(fee, budget.max_fee))
        now = self._clock.now()
        rooms = budgets.rooms(tx, spend, budget, now)
        budgets.check(spend, budget, rooms)
        asks_until = None
        if budget.approve_above is not None and amount > budget.approve_above:
            asks_until = min(now + ASK_SECONDS, target.expires_at - _LEAST_LIFE)
        intent = intents.reserve(
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
            at=now,
            payee=target.payee,
            target=target.form,
            asks_until=asks_until,
        )
        budgets.warn(tx, spend, rooms, now)
        return intent

    def affordable(self, source: Reads, *, scope: str = "", purpose: str = PURCHASE, spendable: Msat) -> Msat:
        """The highest price that, with the highest fee for it, passes all budgets now; 0 if there is none.

        :param spendable: what the wallet says it can spend.

        Nothing is reserved: of two who ask at once, both may be told the same; and the budget of a payee is not asked,
        for there is none yet. Raises ``WalletFrozen``, ``StoreError``.
        """
        freeze.check(source)
        spend = Spend(self.owner, "", scope, purpose, Msat(0), Msat(0))
        try:
            budget = self._budget(source, spend)
        except BudgetExceeded as error:
            log.warning("nothing may be spent: %s", error.message)
            return Msat(0)
        return budgets.highest_price(budget, budgets.rooms(source, spend, budget, self._clock.now()), spendable)

    def _budget(self, source: Reads, spend: Spend) -> Budget:
        """What bounds a payment. Raises ``BudgetExceeded``, ``StoreError``."""
        if self._limits is None or spend.purpose == WITHDRAWAL:
            return UNBOUNDED
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

    async def send(self, intent: Intent) -> Outcome:
        """Call the wallet for a committed intent, if it may be sent. Never raises for anything that the wallet does.

        What is paid is what was reserved, as the record has it sealed: no caller can have another invoice paid for it.

        Raises ``StoreError`` where the record cannot be read: then nothing was sent.
        """
        with trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_DEADLINE):
            # Nothing is awaited between this look and the call.
            said = self._on_record(intent) or self._held_back(intent)
            if said is not None:
                return said
            text = intents.invoice(self._store, self._store.vault, intent.id)
            under_way = _under_way.setdefault(self._store, set())
            if intent.id in under_way:
                return Unknown("it is being sent already")
            under_way.add(intent.id)
            try:
                return await self._call(intent, text)
            finally:
                under_way.discard(intent.id)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    async def _call(self, intent: Intent, text: str) -> Outcome:
        """The one place where a wallet is asked to pay."""
        # An invoice that names its amount is asked for no other.
        named = {} if intent.target is TargetForm.INVOICE else {"amount": intent.amount_msats}
        try:
            payment = await self.wallet.pay(
                text, max_fee=Msat(intent.max_fee_msats), idempotency_key=intent.idempotency_key, **named
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

    async def _paid_by_whom(self, intent: Intent, error: AlreadyPaid) -> Outcome:
        """A wallet that has forgotten our key says "already paid" of our own payment too: ask before believing it."""
        try:
            payment = await self._lookup(intent)
        except Exception as broken:
            return Unknown(f"already paid, and the wallet cannot tell by whom ({type(broken).__name__})")
        return Failed(error.message) if payment is None else _outcome(intent, payment)

    async def _lookup(self, intent: Intent) -> Payment | None:
        if intent.target is TargetForm.ADDRESS:
            return await self.wallet.lookup_key(intent.idempotency_key)
        return await self.wallet.lookup_payment(intent.payment_hash)

    async def look(self, intent: Intent) -> Outcome | None:
        """What became of an intent, by the record or else by the wallet; ``None``: the wallet has never heard of it.

        Sends nothing; asks the wallet also while spending is frozen. Raises ``StoreError``.
        """
        return self._on_record(intent) or await self.ask(intent)

    async def ask(self, intent: Intent) -> Outcome | None:
        """What the wallet says of an intent, whatever the record says; ``None``: it has never heard of it."""
        with trio.move_on_after(SEND_DEADLINE):
            try:
                payment = await self._lookup(intent)
            except Exception as error:
                return Unknown(f"the wallet cannot tell ({type(error).__name__})")
            return None if payment is None else _outcome(intent, payment)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    async def reconcile(self, intent: Intent) -> Outcome:
        """What became of an intent. Pays it only where the wallet has never heard of it, under the same key, and only
        where it may: one that waits for the operator is waited for, a while. Raises ``StoreError``.
        """
        found = await self.look(intent)
        if found is not None:
            return found
        await self._decided(intent)
        return await self.send(intent)

    def _on_record(self, intent: Intent) -> Outcome | None:
        """What the record says by now, which is more than the caller may know; ``None`` while it is pending."""
        now = intents.get(self._store, intent.id)
        match now.state:
            case IntentState.SETTLED:
                proof = intents.preimage(self._store, self._store.vault, now.id)
                return Settled(now.amount_msats, Msat(now.fee_msats or 0), proof)
            case IntentState.FAILED:
                # Nobody whom we might pay instead would fare any better with our own operator.
                return Failed(now.error or "it has failed", ours=now.approval in (Approval.DENIED, Approval.WAITING))
            case IntentState.PENDING:
                return None

    def _held_back(self, intent: Intent) -> Outcome | None:
        """Why an intent must not be sent now; ``None``: it may be."""
        now = intents.get(self._store, intent.id)
        if now.lapsed(self._clock.now()):
            return Failed("the operator did not approve it in time", ours=True)
        if now.waits:
            return Unknown("it waits for the operator's yes: pylon wallet approvals")
        frozen = freeze.mark(self._store)
        return None if frozen is None else Unknown(f"{frozen.words} ({freeze.REMEDY})")

    async def _decided(self, intent: Intent) -> None:
        """Wait for what the operator says to an intent that waits, for a while."""
        with self._store.listen(f"intent:{intent.id}") as changed, trio.move_on_after(_LISTEN_SECONDS):
            while True:
                now = intents.get(self._store, intent.id)
                if not now.waits or now.lapsed(self._clock.now()):
                    return
                await changed.receive()

    def record(self, tx: Tx, intent: Intent, outcome: Outcome) -> None:
        """Write the outcome down. Recording the same outcome again changes nothing."""
        book_outcome(tx, intent, outcome, self._clock.now())


def book_outcome(tx: Tx, intent: Intent, outcome: Outcome, at: float) -> None:
    """``Purse.record`` for whoever has no purse at hand: what was sent is booked, whatever became of its owner."""
    match outcome:
        case Settled(amount, fee, preimage):
            settled = intents.settle(tx, tx.vault, intent.id, amount=amount, fee=fee, preimage=preimage, at=at)
            # A wallet may tell another fee the second time it is asked; its first word was booked.
            if credits.customer_of(settled.cause):
                ledger.debt_paid_out(
                    tx,
                    settled.cause,
                    settled.payment_hash,
                    settled.amount_msats,
                    settled.fee_msats or 0,
                    at,
                )
                return
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
class _Target:
    """What is known of a target beside its text."""

    form: TargetForm
    payee: str = ""
    expires_at: float = float("inf")


def _read_target(text: str, payment_hash: str | None, amount: Msat) -> _Target:
    """Read what is to be paid, and hold it against what the caller says of it. Raises ``InvoiceInvalid``."""
    try:
        invoice = bolt11.decode(text)
    except bolt11.Bolt11Invalid:
        # No invoice; whether it is an address of its own network, or nothing, only the wallet can tell.
        return _Target(TargetForm.ADDRESS, text) if payment_hash is None else _Target(TargetForm.INVOICE)
    if invoice.payment_hash != payment_hash:
        raise InvoiceInvalid("the invoice has another payment hash than was said")
    if invoice.amount_msats not in (None, amount):
        raise InvoiceInvalid(f"the invoice asks for another amount than {amount} msat")
    form = TargetForm.OPEN if invoice.amount_msats is None else TargetForm.INVOICE
    return _Target(form, invoice.payee, float(invoice.expires_at))


def being_sent(store: Store, intent_id: str) -> bool:
    """Whether a wallet is being asked to pay it at this moment: what anybody else says of it meanwhile may be old."""
    return intent_id in _under_way.get(store, ())


def _outcome(intent: Intent, payment: Payment) -> Outcome:
    match payment.state:
        case PaymentState.SETTLED:
            # Some wallets do not say how much it was; then it was what was agreed. None may say more than it was
            # allowed to take: an invented figure would stand in the ledger for good. The audit shows what differs.
            amount = min(payment.amount, intent.amount_msats) if payment.amount > 0 else intent.amount_msats
            fee = Msat(min(max(payment.fee, 0), intent.max_fee_msats))
            if payment.amount > amount or payment.fee > fee:
                log.error(
                    "payment %s: the wallet says %s and %s fee, more than was allowed: booked as %s and %s",
                    intent.payment_hash[:16],
                    *map(format_msat, (payment.amount, payment.fee, amount, fee)),
                )
            return Settled(Msat(amount), fee, payment.preimage)
        case PaymentState.FAILED:
            return Failed("the wallet reports that the payment failed")
        case PaymentState.PENDING:
            return Unknown("the payment is still on its way", moving=True)
