"""Paying by NWC: one request, and whatever is heard of it, until it is known what became of it.

The rules are those of ``pylon.wallets.nwc``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from protocols import bolt11, nip47_methods
from protocols.nip47 import ErrorCode, Failure
from protocols.nip47_methods import Transaction, TransactionState, TransactionType
from pylon.clock import Clock
from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
    WrongNetwork,
)
from pylon.money import Msat, max_fee
from pylon.store.database import RECORD_SECONDS, Store, Tx
from pylon.wallets.nwc_client import NoAnswer, NotAsked, Refused
from pylon.wallets.nwc_link import NwcLink, error_of, unreachable
from pylon.wallets.nwc_records import Records, SentRow
from pylon.wallets.port import Payment, PaymentState

log = logging.getLogger(__name__)

_FIRST_LOOK = 3.0
_LONGEST_LOOK = 20.0
_RETRIES = 3
_BUSY_SECONDS = 3.0
_ADDRESSES = ("spark", "sp1", "bc1", "tb1", "bcrt1", "lno1", "lnurl1")
_STATES = {
    TransactionState.SETTLED: PaymentState.SETTLED,
    TransactionState.FAILED: PaymentState.FAILED,
    TransactionState.EXPIRED: PaymentState.FAILED,
}
_UNDONE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.NOT_IMPLEMENTED,
        ErrorCode.INSUFFICIENT_BALANCE,
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.RESTRICTED,
        ErrorCode.UNAUTHORIZED,
        ErrorCode.UNSUPPORTED_ENCRYPTION,
    }
)
"""Errors after which nothing has happened, if the wallet has not heard of it otherwise."""
_UNDONE_DETAILS = frozenset(
    kind.code for kind in (AlreadyPaid, FeeTooHigh, InvoiceExpired, InvoiceInvalid, NoRoute, NotSupported, WrongNetwork)
)
"""The same, where a Pylon says more than the protocol has words for."""


@attrs.define(eq=False)
class _Attempt:
    """A payment that somebody is at."""

    ended: trio.Event = attrs.field(factory=trio.Event)
    error: WalletError | None = None


class Payer:
    """See the module. ``announce`` is told of every payment that has ended.

    :param network: what the wallet is taken for if it does not say.
    :param patience: seconds for which a payment is waited for.
    """

    def __init__(
        self,
        link: NwcLink,
        records: Records,
        store: Store,
        clock: Clock,
        announce: Callable[[Payment], None],
        *,
        network: str,
        patience: float,
    ) -> None:
        self._link = link
        self._records = records
        self._store = store
        self._clock = clock
        self._announce = announce
        self._network = network
        self._patience = patience
        self._attempts: dict[str, _Attempt] = {}
        self._bell = trio.Event()

    def is_busy(self, row: SentRow) -> bool:
        """Whether somebody is at it, and looks by himself."""
        return row.key in self._attempts

    async def pay(self, target: str, *, amount: Msat | None, limit: Msat, key: str) -> Payment:
        """See ``Wallet.pay``; ``limit`` is for the fee."""
        text, invoice = read_invoice(target)
        deadline = trio.current_time() + self._patience
        while True:
            row = self._records.by_key(self._store, key)
            if row is not None and row.state is not PaymentState.PENDING:
                return _ended(row)
            attempt = self._attempts.get(key)
            if attempt is None:
                # Nothing is awaited since the look: of many at once, one is at it, and the others wait for him.
                price = price_of(invoice, amount) if row is None else row.amount
                return await self._drive(key, row, text, invoice, price, limit)
            with trio.move_on_at(deadline) as scope:
                await attempt.ended.wait()
            if attempt.error is not None:
                raise attempt.error
            if scope.cancelled_caught:
                raise PaymentUnknown("it is being paid, and not known to have settled", "look it up")

    async def _begin_payment(
        self, text: str, invoice: bolt11.Invoice, price: Msat, limit: Msat, key: str
    ) -> tuple[SentRow, bool]:
        """Check what can be checked, and note the payment. Returns the row, and whether it is new: then it is asked for
        without another look. Raises ``WalletError``.
        """
        self._refuse_paid(self._records.open_of(self._store, invoice.payment_hash), key)
        if invoice.expires_at <= self._clock.now():
            raise InvoiceExpired("the invoice has expired", "ask for a new one")
        found = await self.check_way(invoice)
        known = found is not None and state_of(found) is not PaymentState.FAILED
        if known and self._records.by_key(self._store, key) is None:
            # Else it is this very payment, begun by another caller while we asked.
            raise AlreadyPaid("the wallet has paid this invoice already, or is about to")
        if limit < max_fee(price):
            raise FeeTooHigh(
                f"NWC cannot bound a fee below {max_fee(price)} msat, and {limit} msat are allowed",
                "allow 1 %, at least 2 sat",
            )
        row, new = await self._store.write(
            lambda tx: self._records.begin(
                tx,
                key=key,
                payment_hash=invoice.payment_hash,
                amount=price,
                fee=max_fee(price),
                text=text,
                asked_until=self._link.lapses(self._patience),
                at=self._clock.now(),
            )
        )
        self._refuse_paid(row, key)
        return row, new

    def _refuse_paid(self, row: SentRow | None, key: str) -> None:
        if row is not None and row.key != key:
            raise AlreadyPaid("this invoice is paid, or being paid, under another key")

    async def check_way(self, invoice: bolt11.Invoice) -> Transaction | None:
        """Raises ``WrongNetwork``, ``NoRoute`` (to itself). Returns what the wallet knows of paying this invoice."""
        network = (await self._link.service()).network or self._network
        if network and invoice.network != network:
            raise WrongNetwork(f"the invoice is for {invoice.network}, the wallet is on {network}")
        own = self._records.invoice(self._store, invoice.payment_hash)
        found = None
        if own is None:
            try:
                found = await self._link.find(invoice.payment_hash)
            except NotSupported:
                pass  # such a wallet must be believed unasked
        if own is not None or (found is not None and found.type is TransactionType.INCOMING):
            raise NoRoute("the invoice is the wallet's own")
        return found

    async def _drive(
        self, key: str, row: SentRow | None, text: str, invoice: bolt11.Invoice, price: Msat, limit: Msat
    ) -> Payment:
        """Be the one who is at a payment. Without a ``row`` nobody has been before."""
        attempt = self._attempts[key] = _Attempt()
        new = False
        try:
            if row is None:
                row, new = await self._begin_payment(text, invoice, price, limit, key)
            return await self._attempt(row, new)
        except WalletError as error:
            attempt.error = error
            raise
        finally:
            del self._attempts[key]
            attempt.ended.set()

    async def _attempt(self, row: SentRow, new: bool) -> Payment:
        """Ask, where that is safe, and wait for what becomes of it. ``new``: nobody has been at it before."""
        ask = new
        if not new:
            try:
                found = await self._find(row)
            except WalletError as error:
                raise PaymentUnknown(f"the wallet cannot tell: {error.message}") from None
            if found is not None or row.is_doubted or row.asked_until == 0:
                # It is on its way, and was waited for before; or it was, and is not asked for again.
                return _ended(await self._take(row, found))
            if self._clock.now() >= row.asked_until:
                ask = True
                lapses = self._link.lapses(self._patience)
                await self._store.write(functools.partial(self._records.ask_again, key=row.key, asked_until=lapses))
        answer = _Attempt()
        with trio.move_on_after(self._patience):
            async with trio.open_nursery() as nursery:
                if ask:
                    nursery.start_soon(self._ask_to_pay, row, new, answer)
                nursery.start_soon(self._watch, row)
                while answer.error is None:
                    bell = self._bell
                    known = self._records.by_key(self._store, row.key)
                    if known is None or known.state is not PaymentState.PENDING:
                        break
                    await bell.wait()
                nursery.cancel_scope.cancel()
        now = self._records.by_key(self._store, row.key)
        if answer.error is not None and (now is None or now.state is not PaymentState.SETTLED):
            raise answer.error
        return _ended(now or row)

    async def _ask_to_pay(self, row: SentRow, new: bool, answer: _Attempt) -> None:
        """Ask, and take what is answered. Sets ``answer.error`` where it did not pay, or may not have."""
        invoice = bolt11.decode(row.bolt11)
        asked = nip47_methods.PayInvoice(row.bolt11, row.amount if invoice.amount_msats is None else None)
        try:
            result = await self._ask_once(row, asked)
        except NotAsked:
            if new:
                await self._withdraw(row)
            answer.error = unreachable() if new else PaymentUnknown("the wallet cannot be reached")
        except NoAnswer:
            return  # what is heard otherwise counts
        except Refused as error:
            answer.error = await self._refused(row, error.failure)
        else:
            await self._paid(row, nip47_methods.Paid.read(result, row.payment_hash), answer)
        self._ring()

    async def _ask_once(self, row: SentRow, asked: nip47_methods.PayInvoice) -> Mapping[str, Any]:
        """Ask; again where the wallet is busy, and says that it has not heard of it. Raises as ``NwcLink.pay``."""
        busy: Refused | None = None
        for again in range(_RETRIES):
            try:
                return await self._link.pay(asked, self._patience)
            except NotAsked:
                raise busy or NotAsked from None
            except Refused as error:
                busy = error
            if busy.failure.code is not ErrorCode.RATE_LIMITED or again + 1 == _RETRIES:
                break
            await trio.sleep(_BUSY_SECONDS)
            # Another relay may have brought the same request, and that one may be at work.
            if not await self._is_unheard(row):
                break
            lapses = self._link.lapses(self._patience)
            await self._store.write(functools.partial(self._records.ask_again, key=row.key, asked_until=lapses))
        assert busy is not None, "else it has returned"
        raise busy

    async def _is_unheard(self, row: SentRow) -> bool:
        try:
            found = await self._link.find(row.payment_hash)
        except WalletError:
            return False
        return found is None or (found.type is TransactionType.OUTGOING and state_of(found) is PaymentState.FAILED)

    async def _paid(self, row: SentRow, paid: nip47_methods.Paid, answer: _Attempt) -> None:
        """The wallet says that it has paid; one look more tells when, and is the only proof if it named no preimage."""
        found, looked = None, False
        try:
            with contextlib.suppress(WalletError):
                found = await self._link.find(row.payment_hash)
            looked = True
        finally:
            if not looked and paid.preimage is not None:
                # We are cut off; the proof is in hand.
                with trio.fail_after(RECORD_SECONDS, shield=True):
                    await self._proven(row, paid)
        if found is not None and found.state is TransactionState.SETTLED:
            fee = found.fees_paid or paid.fees_paid or 0
            await self.learn(
                row, attrs.evolve(found, fees_paid=fee, preimage=found.preimage or paid.preimage), answered=True
            )
        elif paid.preimage is not None:
            await self._proven(row, paid)
        else:
            answer.error = PaymentUnknown("the wallet says that it has paid, and does not prove it")

    async def _proven(self, row: SentRow, paid: nip47_methods.Paid) -> None:
        await self._note(
            row,
            PaymentState.SETTLED,
            fee=Msat(paid.fees_paid or 0),
            preimage=paid.preimage,
            settled_at=self._clock.now(),
        )

    async def _refused(self, row: SentRow, failure: Failure) -> WalletError | None:
        """What an error in answer to a request to pay means; ``None``: what the wallet knows of it is in the row.

        One look decides: "failed" may be said of a timeout, and "nothing has happened" of a twin of the request, which
        another relay has brought, while the first one is paid.
        """
        undone = failure.code in _UNDONE or failure.detail in _UNDONE_DETAILS
        unknown = PaymentUnknown(
            f"the wallet reports {failure.code}, and does not show what became of it: {failure.message}",
            "never pay again; look it up",
        )
        if failure.code is ErrorCode.PAYMENT_FAILED and not undone:
            await self._doubt(row)
        try:
            found = await self._link.find(row.payment_hash)
        except NotSupported:
            if undone:
                await self._doubt(row)
            return unknown
        except WalletError:
            return unknown
        if found is None:
            return await self._undo(row, failure) if undone else unknown
        if found.type is not TransactionType.OUTGOING:
            # It was not there before we asked (``check_way``): a wallet that does not say which way it goes.
            return unknown
        if state_of(found) is not PaymentState.FAILED:
            await self.learn(row, found, answered=True)
            return None
        if undone:
            return await self._undo(row, failure)
        await self._note(row, PaymentState.FAILED, fee=Msat(0))
        return PaymentFailed(failure.message or "the payment has failed", "ask for a new invoice")

    async def _undo(self, row: SentRow, failure: Failure) -> WalletError:
        """It was refused before anything happened. Returns why."""
        await self._withdraw(row)
        available = None
        if failure.code is ErrorCode.INSUFFICIENT_BALANCE:
            try:
                available = await self._link.spendable()
            except WalletError:
                pass
        return error_of(failure, required=row.amount + row.fee, available=available)

    async def _doubt(self, row: SentRow) -> None:
        await self._store.write(functools.partial(self._records.doubt, row=row))

    async def _withdraw(self, row: SentRow) -> None:
        await self._store.write(functools.partial(self._records.withdraw, key=row.key))

    async def _watch(self, row: SentRow) -> None:
        """Look again and again: a response can be lost."""
        wait = _FIRST_LOOK
        while True:
            await trio.sleep(wait)
            await self.look(row)
            wait = min(2 * wait, _LONGEST_LOOK)

    async def look(self, row: SentRow) -> None:
        """Take what the wallet says now, as far as it says anything."""
        try:
            found = await self._find(row)
        except WalletError as error:
            log.debug("payment %s: %s", row.payment_hash[:16], error.message)
        else:
            await self._take(row, found)

    async def report(self, row: SentRow) -> Payment | None:
        """See ``Wallet.lookup_payment``. A failure is looked at again: the wallet may know better by now."""
        if row.state is PaymentState.SETTLED:
            return row.payment()
        try:
            found = await self._find(row)
        except WalletError:
            if row.state is PaymentState.FAILED:
                return row.payment()
            raise
        if (
            _is_nothing(found)
            and row.state is PaymentState.PENDING
            # While a request may still arrive, nobody can say that it was never made; nor of what was heard of.
            and 0 < row.asked_until <= self._clock.now()
            and not row.is_doubted
            and row.key not in self._attempts
        ):
            return None
        return (await self._take(row, found)).payment()

    async def _find(self, row: SentRow) -> Transaction | None:
        """What the wallet knows of a payment. Raises ``WalletError``; ``NotSupported`` only where nothing but a look
        could tell.
        """
        try:
            return await self._link.find(row.payment_hash)
        except NotSupported:
            if row.state is PaymentState.FAILED or row.is_doubted:
                return None
            raise

    async def _take(self, row: SentRow, found: Transaction | None) -> SentRow:
        """The row with what was found of it. What was heard of and is not found is doubted, and ends when it may."""
        if found is not None and not _is_nothing(found):
            return await self.learn(row, found) or row
        if row.state is PaymentState.PENDING and row.asked_until == 0:
            await self._doubt(row)
        elif row.is_doubted and self._clock.now() >= row.asked_until:
            await self._note(row, PaymentState.FAILED, fee=Msat(0))
        return self._records.by_key(self._store, row.key) or row

    async def learn(self, row: SentRow, found: Transaction, *, answered: bool = False) -> SentRow | None:
        """Take what the wallet says of a payment of ours.

        "Failed" may be said of an earlier payment of the same invoice: it counts only when our request was answered,
        was seen at work, or has lapsed.
        """
        if found.type is not TransactionType.OUTGOING:
            return row
        if row.state is PaymentState.FAILED and found.state is None:
            return row  # a wallet that names no state says nothing new
        state, answered = state_of(found), answered or row.is_doubted
        if state is PaymentState.FAILED and not answered and self._clock.now() < row.asked_until:
            return row
        if state is PaymentState.PENDING:
            return await self._note(
                row, state, fee=Msat(found.fees_paid) if found.fees_paid else None, created_at=found.created_at or None
            )
        return await self._note(
            row,
            state,
            fee=Msat(found.fees_paid),
            preimage=found.preimage,
            created_at=found.created_at or None,
            settled_at=float(found.settled_at or self._clock.now()),
        )

    async def _note(
        self,
        row: SentRow,
        state: PaymentState,
        *,
        fee: Msat | None,
        preimage: str | None = None,
        created_at: float | None = None,
        settled_at: float | None = None,
    ) -> SentRow | None:
        if row.state is PaymentState.SETTLED or (
            row.state is state and fee in (None, row.fee) and row.asked_until == 0
        ):
            return row

        def write(tx: Tx) -> bool:
            changed = self._records.note(
                tx, row.key, state, fee=fee, preimage=preimage, created_at=created_at, settled_at=settled_at
            )
            if state is PaymentState.PENDING:
                # It has arrived: from now on the wallet speaks of this very payment.
                self._records.ask_again(tx, row.key, 0.0)
            return changed

        changed = await self._store.write(write)
        now = self._records.by_key(self._store, row.key)
        if changed and now is not None and now.state is not PaymentState.PENDING:
            self._announce(now.payment())
        self._ring()
        return now

    def _ring(self) -> None:
        self._bell.set()
        self._bell = trio.Event()


def read_invoice(target: str) -> tuple[str, bolt11.Invoice]:
    """Raises ``InvoiceInvalid``, ``NotSupported`` for what is an address."""
    text = target.strip().lower().removeprefix("lightning:") if len(target) <= bolt11.MAX_CHARS else ""
    try:
        return text, bolt11.decode(text)
    except bolt11.Bolt11Invalid as error:
        if text.startswith(_ADDRESSES):
            raise NotSupported("Nostr Wallet Connect pays invoices, not addresses", "ask for an invoice") from None
        raise InvoiceInvalid(f"not an invoice that can be paid: {error}", "ask for a new one") from None


def price_of(invoice: bolt11.Invoice, amount: Msat | None) -> Msat:
    """Raises ``InvoiceInvalid``."""
    price = invoice.amount_msats if amount is None else amount
    if price is None:
        raise InvoiceInvalid("the invoice names no amount", "say how much: --amount")
    if price <= 0 or invoice.amount_msats not in (None, price):
        raise InvoiceInvalid("the invoice is for another amount than was given")
    return Msat(price)


def _is_nothing(found: Transaction | None) -> bool:
    """Whether it tells nothing of a payment of ours. A wallet that names no direction may have paid all the same."""
    return found is None or (found.type is TransactionType.INCOMING and found.state is not TransactionState.SETTLED)


def state_of(found: Transaction) -> PaymentState:
    """What a wallet's word for it means; none is *pending*."""
    return _STATES.get(found.state or TransactionState.PENDING, PaymentState.PENDING)


def _ended(row: SentRow) -> Payment:
    """What ``pay`` returns for a row as it stands. Raises ``PaymentFailed``, ``PaymentUnknown``."""
    if row.state is PaymentState.FAILED:
        raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
    if row.state is PaymentState.PENDING and row.asked_until > 0:
        raise PaymentUnknown("the wallet did not say whether it has paid", "never pay again; look it up")
    return row.payment()
