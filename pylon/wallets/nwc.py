"""Any wallet that a user has already, by Nostr Wallet Connect (NIP-47): ``pylon.wallets.port.Wallet``.

Rules
-----
1. A payment is a row before the wallet is asked (``pylon.wallets.nwc_records``). NWC has no idempotency keys: the
   payment hash is the wallet's key, and ours are kept in the rows.
2. A request to pay goes out once. Whatever is heard of it counts, from whichever side: the response, a notification, or
   a look at the invoice, which is taken again and again while we wait.
3. An error is no proof that nothing was paid, unless it says so: after ``PAYMENT_FAILED`` and worse the invoice is
   looked up, and what then is not known is ``PaymentUnknown``.
4. A payment of which the wallet has never heard is asked for again only when the request before has lapsed.
5. NWC names no fee beforehand and takes no limit for it: what is quoted is the most that we are ready to pay
   (``pylon.money.max_fee``), and who allows less is refused.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio

from protocols import bolt11, nip47_methods
from protocols.keys import is_hex
from protocols.nip47 import PAGE, ConnectionUri, ErrorCode, Failure, Nip47Invalid, Notification
from protocols.nip47_methods import (
    CANCEL_HOLD_INVOICE,
    GET_BALANCE,
    GET_INFO,
    HOLD_METHODS,
    LIST_TRANSACTIONS,
    LOOKUP_INVOICE,
    MAKE_HOLD_INVOICE,
    MAKE_INVOICE,
    PAY_INVOICE,
    PAYMENT_RECEIVED,
    PAYMENT_SENT,
    SETTLE_HOLD_INVOICE,
    ServiceInfo,
    Transaction,
    TransactionState,
    TransactionType,
)
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
    StoreError,
    WalletError,
    WrongNetwork,
    brief,
)
from pylon.money import Msat, max_fee
from pylon.relays.pool import RelayPool
from pylon.relays.transport import Connect
from pylon.store.database import Store
from pylon.wallets.nwc_client import NoAnswer, NotAsked, NwcClient, Refused
from pylon.wallets.nwc_errors import error_of, unreachable
from pylon.wallets.nwc_records import Records, SentRow, received_id, sent_id
from pylon.wallets.port import (
    Addresses,
    Balance,
    Can,
    Direction,
    IssuedInvoice,
    Payment,
    PaymentEvents,
    PaymentState,
    Target,
    TargetKind,
    WalletInfo,
)

log = logging.getLogger(__name__)

UNIT = Msat(1_000)
"""Many wallets behind NWC settle whole sats, and the protocol does not say which."""
PAY_SECONDS = 50.0
"""How long a payment is waited for; then it is pending, or not known."""
POLL_SECONDS = 10.0
"""Between two looks at what is pending; also at everything, where the wallet does not notify."""
SWEEP_SECONDS = 60.0
"""Between two looks at everything, where it does."""
LOOK_SECONDS = 8.0
_FIRST_LOOK = 3.0
_LONGEST_LOOK = 20.0
_MOST_PAGES = 500
_TOLD = 5_000
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
"""Errors after which nothing has happened."""
_UNDONE_DETAILS = frozenset(
    kind.code for kind in (AlreadyPaid, FeeTooHigh, InvoiceExpired, InvoiceInvalid, NoRoute, NotSupported, WrongNetwork)
)
"""The same, where a Pylon says more than the protocol has words for."""


@attrs.define(eq=False)
class _Attempt:
    """A payment that somebody is at."""

    ended: trio.Event = attrs.field(factory=trio.Event)
    error: WalletError | None = None


@asynccontextmanager
async def open_nwc(
    uri: ConnectionUri,
    *,
    store: Store,
    connect: Connect,
    clock: Clock,
    rng: random.Random,
    network: str = "",
    patience: float = PAY_SECONDS,
) -> AsyncIterator[NwcWallet]:
    """The wallet of a connection string, over the relays that it names. Nothing is asked of it yet.

    :param network: what to take it for if it does not say.
    """
    pool = RelayPool(uri.relays, connect=connect, clock=clock, rng=rng, signer=uri.secret)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        wallet = NwcWallet(uri, pool, store, clock, network=network, patience=patience)
        await nursery.start(wallet.run)
        try:
            yield wallet
        finally:
            await wallet.aclose()
            nursery.cancel_scope.cancel()


class NwcWallet:
    """See the module. Made by ``open_nwc``."""

    def __init__(
        self,
        uri: ConnectionUri,
        pool: RelayPool,
        store: Store,
        clock: Clock,
        *,
        network: str = "",
        patience: float = PAY_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._network = network
        self._patience = patience
        self._name = uri.wallet.hex[:16]
        self._client = NwcClient(uri, pool, clock, self._heard)
        self._records = Records(uri.client.hex, store.vault)
        self._service: ServiceInfo | None = None
        self._attempts: dict[str, _Attempt] = {}
        self._bell = trio.Event()
        self._listeners: set[_Listener] = set()
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._wanted = trio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<NwcWallet {self._name}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and poll until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._client.run)
            nursery.start_soon(self._poll)
            task_status.started()

    # --- what it is -------------------------------------------------------------------------------------------

    async def info(self) -> WalletInfo:
        await self._begin()
        service = await self._learn_service()
        can = {Can.OPEN_AMOUNT} if PAY_INVOICE in service.methods else set()
        if set(HOLD_METHODS) <= set(service.methods):
            can.add(Can.HOLD)
        return WalletInfo(
            name=service.alias or self._name,
            network=service.network or self._network or "unknown",
            kind="nwc",
            node_pubkey=service.pubkey if is_hex(service.pubkey, 66) else "",
            unit_msats=UNIT,
            can=frozenset(can),
            note="another wallet, by Nostr Wallet Connect; it has no addresses, only invoices",
        )

    async def addresses(self) -> Addresses:
        """None: NWC has no word for them."""
        await self._begin()
        return Addresses()

    async def decode(self, target: str) -> Target:
        await self._begin()
        text, invoice = _read(target)
        return Target(
            kind=TargetKind.BOLT11,
            text=text,
            network=invoice.network,
            amount=None if invoice.amount_msats is None else Msat(invoice.amount_msats),
            payee=invoice.payee,
            payment_hash=invoice.payment_hash,
            description=invoice.description or "",
            created_at=float(invoice.timestamp),
            expires_at=float(invoice.expires_at),
        )

    async def balance(self) -> Balance:
        await self._begin()
        for _ in range(3):
            spendable = await self._spendable()
            at = self._clock.now()
            waiting = self._records.pending(self._store)
            for row in waiting:
                if row.key not in self._attempts:
                    await self._look(row)
            still = self._records.pending(self._store)
            if [(row.key, row.fee) for row in still] == [(row.key, row.fee) for row in waiting]:
                break
        leaving = sum(row.amount + row.fee for row in still)
        return Balance(settled=Msat(spendable + leaving), pending_out=Msat(leaving), known_at=at)

    # --- receiving --------------------------------------------------------------------------------------------

    async def receive(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, *, hash_description: bool = False
    ) -> IssuedInvoice:
        """See ``Wallet.receive``. A description over 639 bytes travels as its hash."""
        await self._begin()
        known = self._records.invoice_by_key(self._store, key)
        if known is not None:
            return known.issued()
        raw = _check_invoice(amount, description, expiry_seconds)
        hashed = hash_description or len(raw) > bolt11.MAX_FIELD_BYTES
        digest = hashlib.sha256(raw).hexdigest() if hashed else None
        asked = nip47_methods.MakeInvoice(amount, description, digest, expiry_seconds)
        made = await self._ask(MAKE_INVOICE, asked.params())
        return await self._keep(made, key, amount, digest, hold=False)

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        await self._begin()
        await self._need(MAKE_HOLD_INVOICE, "hold invoices")
        known = self._records.invoice_by_key(self._store, key)
        if known is not None:
            return known.issued()
        _check_invoice(amount, description, expiry_seconds)
        if not is_hex(payment_hash, 64):
            raise InvoiceInvalid("the payment hash is not 64 lowercase hex digits")
        asked = nip47_methods.MakeHoldInvoice(amount, payment_hash, description, None, expiry_seconds)
        made = await self._ask(MAKE_HOLD_INVOICE, asked.params())
        return await self._keep(made, key, amount, None, hold=True, payment_hash=payment_hash)

    async def _keep(
        self,
        made: Mapping[str, Any],
        key: str,
        amount: Msat,
        digest: str | None,
        *,
        hold: bool,
        payment_hash: str | None = None,
    ) -> IssuedInvoice:
        """Check the invoice that the wallet made, and note it."""
        text = made.get("invoice")
        try:
            read = bolt11.decode(text if isinstance(text, str) else "")
        except bolt11.Bolt11Invalid as error:
            raise WalletError(f"the wallet made no invoice that can be read: {error}") from None
        if read.amount_msats != amount or payment_hash not in (None, read.payment_hash):
            raise WalletError("the wallet made another invoice than was asked for", "does it settle whole sats only?")
        if digest is not None and read.description_hash != digest:
            raise NotSupported("this wallet makes no invoices that carry the hash of their description")
        row = await self._store.write(
            lambda tx: self._records.keep(
                tx,
                key=key,
                payment_hash=read.payment_hash,
                amount=amount,
                text=str(text).lower(),
                hold=hold,
                at=self._clock.now(),
            )
        )
        return row.issued()

    async def settle(self, preimage: str) -> None:
        await self._begin()
        await self._need(SETTLE_HOLD_INVOICE, "hold invoices")
        if not is_hex(preimage, 64):
            raise PaymentFailed("a preimage has 64 lowercase hex digits")
        await self._end_hold(SETTLE_HOLD_INVOICE, {"preimage": preimage})

    async def cancel(self, payment_hash: str) -> None:
        await self._begin()
        await self._need(CANCEL_HOLD_INVOICE, "hold invoices")
        await self._end_hold(CANCEL_HOLD_INVOICE, {"payment_hash": payment_hash})
        await self._store.write(functools.partial(self._records.cancel, payment_hash=payment_hash))

    async def _end_hold(self, method: str, params: Mapping[str, Any]) -> None:
        """What is done to a hold invoice may be asked for again; no answer leaves it open whether it was done."""
        try:
            await self._client.ask(method, params)
        except Refused as error:
            failure = error.failure
            if method == SETTLE_HOLD_INVOICE and failure.code is ErrorCode.NOT_FOUND:
                raise PaymentFailed("nothing is held for this preimage") from None
            raise error_of(failure) from None
        except NotAsked:
            raise unreachable() from None
        except NoAnswer:
            raise PaymentUnknown("the wallet did not answer", "look the invoice up") from None

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        await self._begin()
        row = self._records.invoice(self._store, payment_hash)
        found = await self._find(payment_hash) if payment_hash else None
        if found is None or found.type is not TransactionType.INCOMING:
            return None if row is None else row.issued()
        if row is not None:
            issued = row.issued()
        elif found.invoice is not None and found.amount > 0:
            issued = IssuedInvoice(
                bolt11=found.invoice,
                payment_hash=payment_hash,
                amount=Msat(found.amount),
                expires_at=float(found.expires_at or 0),
            )
        else:
            return None
        if found.state is TransactionState.SETTLED:
            at = float(found.settled_at or found.created_at)
            return attrs.evolve(issued, received=Msat(found.amount or issued.amount), settled_at=at)
        return attrs.evolve(issued, held=issued.amount if found.state is TransactionState.ACCEPTED else Msat(0))

    # --- paying -----------------------------------------------------------------------------------------------

    async def quote(self, target: str, *, amount: Msat | None = None) -> Msat:
        """The most that we are ready to pay: NWC does not say what it will be."""
        await self._begin()
        _, invoice = _read(target)
        price = _price(invoice, amount)
        await self._check_way(invoice)
        return max_fee(price)

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        await self._begin()
        text, invoice = _read(target)
        row = self._records.by_key(self._store, idempotency_key)
        price = _price(invoice, amount) if row is None else row.amount
        new = row is None
        if row is None:
            row = await self._begin_payment(text, invoice, price, max_fee, idempotency_key)
        deadline = trio.current_time() + self._patience
        while row.state is PaymentState.PENDING:
            attempt = self._attempts.get(row.key)
            if attempt is None:
                return await self._drive(row, new)
            with trio.move_on_at(deadline) as scope:
                await attempt.ended.wait()
            if attempt.error is not None:
                raise attempt.error
            row = self._records.by_key(self._store, idempotency_key) or row
            if scope.cancelled_caught:
                break
        return _ended(row)

    async def _begin_payment(self, text: str, invoice: bolt11.Invoice, price: Msat, limit: Msat, key: str) -> SentRow:
        """Check what can be checked, and note the payment. Raises ``WalletError``."""
        self._refuse_paid(self._records.open_of(self._store, invoice.payment_hash), key)
        if invoice.expires_at <= self._clock.now():
            raise InvoiceExpired("the invoice has expired", "ask for a new one")
        found = await self._check_way(invoice)
        if found is not None and _STATES.get(found.state or TransactionState.PENDING) is not PaymentState.FAILED:
            raise AlreadyPaid("the wallet has paid this invoice already, or is about to")
        if limit < max_fee(price):
            raise FeeTooHigh(
                f"NWC cannot bound a fee below {max_fee(price)} msat, and {limit} msat are allowed",
                "allow 1 %, at least 2 sat",
            )
        row = await self._store.write(
            lambda tx: self._records.begin(
                tx,
                key=key,
                payment_hash=invoice.payment_hash,
                amount=price,
                fee=max_fee(price),
                text=text,
                asked_until=self._client.lapses(self._patience),
                at=self._clock.now(),
            )
        )
        self._refuse_paid(row, key)
        return row

    def _refuse_paid(self, row: SentRow | None, key: str) -> None:
        if row is not None and row.key != key:
            raise AlreadyPaid("this invoice is paid, or being paid, under another key")

    async def _check_way(self, invoice: bolt11.Invoice) -> Transaction | None:
        """Raises ``WrongNetwork``, ``NoRoute`` (to itself). Returns what the wallet knows of paying this invoice."""
        network = (await self._learn_service()).network or self._network
        if network and invoice.network != network:
            raise WrongNetwork(f"the invoice is for {invoice.network}, the wallet is on {network}")
        own = self._records.invoice(self._store, invoice.payment_hash)
        found = None if own is not None else await self._find(invoice.payment_hash)
        if own is not None or (found is not None and found.type is TransactionType.INCOMING):
            raise NoRoute("the invoice is the wallet's own")
        return found

    async def _drive(self, row: SentRow, new: bool) -> Payment:
        """Be the one who is at a payment. ``new``: nobody has been before."""
        attempt = self._attempts[row.key] = _Attempt()
        try:
            return await self._attempt(row, new)
        except WalletError as error:
            attempt.error = error
            raise
        finally:
            del self._attempts[row.key]
            attempt.ended.set()

    async def _attempt(self, row: SentRow, new: bool) -> Payment:
        ask = new
        if not new:
            try:
                found = await self._find(row.payment_hash)
            except WalletError as error:
                raise PaymentUnknown(f"the wallet cannot tell: {error.message}") from None
            if found is not None:
                row = await self._learn_sent(row, found) or row
            elif self._clock.now() >= row.asked_until:
                ask = True
                lapses = self._client.lapses(self._patience)
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
        if now is not None and now.state is not PaymentState.PENDING:
            return _ended(now)
        if answer.error is not None:
            raise answer.error
        return _ended(now or row)

    async def _ask_to_pay(self, row: SentRow, new: bool, answer: _Attempt) -> None:
        """Ask, and take what is answered. Sets ``answer.error`` where it did not pay, or may not have."""
        invoice = bolt11.decode(row.bolt11)
        asked = nip47_methods.PayInvoice(row.bolt11, row.amount if invoice.amount_msats is None else None)
        try:
            result = await self._ask_once(asked)
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

    async def _ask_once(self, asked: nip47_methods.PayInvoice) -> Mapping[str, Any]:
        for again in range(_RETRIES):
            try:
                return await self._client.ask_once(PAY_INVOICE, asked.params(), self._patience)
            except Refused as error:
                if error.failure.code is not ErrorCode.RATE_LIMITED or again + 1 == _RETRIES:
                    raise
                await trio.sleep(_BUSY_SECONDS)
        raise AssertionError("the last try raises or returns")

    async def _paid(self, row: SentRow, paid: nip47_methods.Paid, answer: _Attempt) -> None:
        """The wallet says that it has paid; one look more tells when, and is the only proof if it named no preimage."""
        found = None
        try:
            found = await self._find(row.payment_hash)
        except WalletError as error:
            log.debug("payment %s: %s", row.payment_hash[:16], error.message)
        if found is not None and found.state is TransactionState.SETTLED:
            fee = found.fees_paid or paid.fees_paid or 0
            await self._learn_sent(
                row, attrs.evolve(found, fees_paid=fee, preimage=found.preimage or paid.preimage), answered=True
            )
        elif paid.preimage is not None:
            now = self._clock.now()
            await self._note(
                row,
                PaymentState.SETTLED,
                fee=Msat(paid.fees_paid or 0),
                preimage=paid.preimage,
                settled_at=now,
            )
        else:
            answer.error = PaymentUnknown("the wallet says that it has paid, and does not prove it")

    async def _refused(self, row: SentRow, failure: Failure) -> WalletError | None:
        """What an error in answer to a request to pay means; ``None``: what the wallet knows of it is in the row."""
        if failure.code in _UNDONE or failure.detail in _UNDONE_DETAILS:
            await self._withdraw(row)
            available = 0
            if failure.code is ErrorCode.INSUFFICIENT_BALANCE:
                try:
                    available = await self._spendable()
                except WalletError:
                    pass
            return error_of(failure, required=row.amount + row.fee, available=available)
        try:
            found = await self._find(row.payment_hash)
        except NotSupported:
            found = None
        except WalletError:
            return PaymentUnknown(f"the wallet reports {failure.code}, and cannot be asked about it")
        if found is not None and found.type is TransactionType.OUTGOING:
            state = _STATES.get(found.state or TransactionState.PENDING, PaymentState.PENDING)
            if state is not PaymentState.FAILED:
                await self._learn_sent(row, found, answered=True)
                return None
        elif failure.code is not ErrorCode.PAYMENT_FAILED:
            return PaymentUnknown(f"the wallet reports {failure.code}: {failure.message}")
        await self._note(row, PaymentState.FAILED, fee=Msat(0))
        return PaymentFailed(failure.message or "the payment has failed", "ask for a new invoice")

    async def _withdraw(self, row: SentRow) -> None:
        await self._store.write(functools.partial(self._records.withdraw, key=row.key))

    async def _watch(self, row: SentRow) -> None:
        """Look again and again: a response can be lost."""
        wait = _FIRST_LOOK
        while True:
            await trio.sleep(wait)
            await self._look(row)
            wait = min(2 * wait, _LONGEST_LOOK)

    async def _look(self, row: SentRow) -> SentRow | None:
        """The row with what the wallet says now, as far as it says anything; ``None``: it has never heard of it."""
        try:
            found = await self._find(row.payment_hash)
        except WalletError as error:
            log.debug("payment %s: %s", row.payment_hash[:16], error.message)
            return row
        if found is None or found.type is not TransactionType.OUTGOING:
            return None
        return await self._learn_sent(row, found)

    # --- looking up -------------------------------------------------------------------------------------------

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        await self._begin()
        row = self._records.of_hash(self._store, payment_hash)
        if row is not None:
            return await self._report(row)
        found = await self._find(payment_hash) if payment_hash else None
        if found is None or found.type is not TransactionType.OUTGOING:
            return None
        return _foreign(found)

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await self._begin()
        row = self._records.by_key(self._store, idempotency_key)
        return None if row is None else await self._report(row)

    async def _report(self, row: SentRow) -> Payment | None:
        if row.state is not PaymentState.PENDING:
            return row.payment()
        found = await self._find(row.payment_hash)
        if found is None or found.type is not TransactionType.OUTGOING:
            # While a request may still arrive, nobody can say that it was never made.
            lapsed = self._clock.now() >= row.asked_until and row.key not in self._attempts
            return None if lapsed else row.payment()
        return (await self._learn_sent(row, found) or row).payment()

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        await self._begin()
        await self._need(LIST_TRANSACTIONS, "a list of its payments")
        found = {row.payment().payment_id: row.payment() for row in self._records.since(self._store, since)}
        told = 0
        async for page in self._pages(since, unpaid=not completed):
            for entry in page:
                payment = await self._payment_of(entry)
                if payment is not None:
                    found[payment.payment_id] = payment
                    told += not completed or payment.state is PaymentState.SETTLED
            if newest and told >= limit:
                break
        kept = [
            payment
            for payment in found.values()
            if payment.created_at >= since and not (completed and payment.state is not PaymentState.SETTLED)
        ]
        kept.sort(key=lambda payment: (payment.created_at, payment.payment_id), reverse=newest)
        return kept[:limit]

    async def _pages(self, since: float, *, unpaid: bool) -> AsyncIterator[list[Transaction]]:
        """What the wallet lists, newest first; small pages, for relays bound the size of an answer."""
        offset = 0
        for _ in range(_MOST_PAGES):
            asked = nip47_methods.ListTransactions(
                since=int(since) or None, limit=PAGE, offset=offset or None, unpaid=unpaid
            )
            try:
                page, count = nip47_methods.read_transactions(await self._ask(LIST_TRANSACTIONS, asked.params()))
            except Nip47Invalid as error:
                raise WalletError(f"the wallet's list cannot be read: {error}") from None
            if count == 0:
                return
            yield page
            offset += count

    async def _payment_of(self, entry: Transaction) -> Payment | None:
        """A transaction as a payment; ``None`` for an invoice that nobody has paid."""
        if entry.type is TransactionType.INCOMING:
            return _received(entry)
        row = self._records.of_hash(self._store, entry.payment_hash)
        if row is None:
            return _foreign(entry)
        return (await self._learn_sent(row, entry) or row).payment()

    async def _find(self, payment_hash: str) -> Transaction | None:
        """What the wallet knows of an invoice or payment; ``None``: nothing. Raises ``WalletError``."""
        await self._need(LOOKUP_INVOICE, "looking up an invoice")
        try:
            result = await self._client.ask(LOOKUP_INVOICE, {"payment_hash": payment_hash}, LOOK_SECONDS * 2)
            return Transaction.read({"payment_hash": payment_hash, **result})
        except Refused as error:
            if error.failure.code is ErrorCode.NOT_FOUND:
                return None
            raise error_of(error.failure) from None
        except (NotAsked, NoAnswer):
            raise unreachable() from None
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's answer cannot be read: {error}") from None

    # --- learning ---------------------------------------------------------------------------------------------

    async def _learn_sent(self, row: SentRow, found: Transaction, *, answered: bool = False) -> SentRow | None:
        """Take what the wallet says of a payment of ours.

        "Failed" may be said of an earlier payment of the same invoice: it counts only when our request was answered,
        was seen at work, or has lapsed.
        """
        if found.type is not TransactionType.OUTGOING:
            return row
        state = _STATES.get(found.state or TransactionState.PENDING, PaymentState.PENDING)
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

        def write(tx: Any) -> bool:
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

    async def _heard(self, notification: Notification) -> None:
        """A notification: what was sent settles a row, what was received is told to who listens."""
        if notification.type not in (PAYMENT_RECEIVED, PAYMENT_SENT):
            return
        sent = notification.type == PAYMENT_SENT
        default = TransactionType.OUTGOING if sent else TransactionType.INCOMING
        try:
            entry = attrs.evolve(Transaction.read(notification.body, default), state=TransactionState.SETTLED)
            payment = await self._payment_of(attrs.evolve(entry, type=default))
        except Nip47Invalid as error:
            log.warning("a notification of the wallet cannot be read: %s", error)
        except StoreError as error:
            log.error("a notification of the wallet cannot be recorded: %s", error.message)
        else:
            if payment is not None:
                self._announce(payment)

    def _announce(self, payment: Payment) -> None:
        """Tell who listens, once of each end of a payment."""
        said = (payment.payment_id, payment.state.value)
        if said in self._told:
            return
        self._told[said] = None
        if len(self._told) > _TOLD:
            self._told.popitem(last=False)
        for listener in self._listeners:
            listener.put(payment)

    async def _poll(self) -> None:
        """Look at what is pending, and now and then at everything, while somebody cares."""
        swept = -1e9
        while True:
            if not self._listeners and not self._records.pending(self._store):
                with trio.move_on_after(SWEEP_SECONDS):
                    await self._wanted.wait()
            self._wanted = trio.Event()
            await trio.sleep(POLL_SECONDS)
            try:
                for row in self._records.pending(self._store):
                    if row.key not in self._attempts:
                        await self._look(row)
                notifies = self._service is not None and bool(self._service.notifications)
                wait = SWEEP_SECONDS if notifies else POLL_SECONDS
                if self._listeners and trio.current_time() - swept >= wait:
                    swept = trio.current_time()
                    await self._sweep()
            except Exception as error:
                log.debug("the wallet cannot be looked at: %s", brief(error))

    async def _sweep(self) -> None:
        """The newest transactions: what nobody has told of."""
        asked = nip47_methods.ListTransactions(limit=PAGE)
        page, _ = nip47_methods.read_transactions(await self._ask(LIST_TRANSACTIONS, asked.params()))
        since = min((listener.since for listener in self._listeners), default=self._clock.now())
        for entry in reversed(page):
            payment = await self._payment_of(entry)
            if payment is not None and (payment.settled_at or 0) >= int(since):
                self._announce(payment)

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        return _Listener(self)

    async def aclose(self) -> None:
        """End the listening; the records stay."""
        self._closed = True
        for listener in self._listeners:
            listener.wake()
        await trio.lowlevel.checkpoint()

    # --- asking -----------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreError(f"the wallet {self._name} is closed")

    async def _learn_service(self) -> ServiceInfo:
        """Who it is, asked until it has said so."""
        if self._service is None:
            published = await self._client.info()
            listed = () if published is None else published.methods
            try:
                service = ServiceInfo.read(await self._client.ask(GET_INFO, {}))
            except Refused as error:
                if error.failure.code not in (ErrorCode.NOT_IMPLEMENTED, ErrorCode.RESTRICTED) or not listed:
                    raise error_of(error.failure) from None
                service = ServiceInfo()
            except (NotAsked, NoAnswer):
                raise unreachable() from None
            except Nip47Invalid as error:
                raise WalletError(f"the wallet's answer cannot be read: {error}") from None
            told = () if published is None else published.notifications
            self._service = attrs.evolve(
                service, methods=service.methods or listed, notifications=service.notifications or told
            )
        return self._service

    async def _need(self, method: str, what: str) -> None:
        """Raises ``NotSupported`` where the wallet does not have a method."""
        methods = (await self._learn_service()).methods
        if methods and method not in methods:
            raise NotSupported(f"this wallet does not offer {what} (NWC: {method})", "ask it for a wider connection")

    async def _spendable(self) -> Msat:
        try:
            return Msat(nip47_methods.read_balance(await self._ask(GET_BALANCE, {})))
        except Nip47Invalid as error:
            raise WalletError(f"the wallet's balance cannot be read: {error}") from None

    async def _ask(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask what may be asked twice. Raises ``WalletError``."""
        try:
            return await self._client.ask(method, params)
        except Refused as error:
            raise error_of(error.failure) from None
        except (NotAsked, NoAnswer):
            raise unreachable() from None


class _Listener:
    """The ends of payments since the moment of entering; ends when the wallet is closed."""

    def __init__(self, wallet: NwcWallet) -> None:
        self._wallet = wallet
        self._waiting: deque[Payment] = deque()
        self._filled = trio.Event()
        self.since = 0.0

    async def __aenter__(self) -> PaymentEvents:
        await self._wallet._begin()
        self.since = self._wallet._clock.now()
        self._wallet._listeners.add(self)
        self._wallet._wanted.set()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._wallet._listeners.discard(self)

    def put(self, payment: Payment) -> None:
        self._waiting.append(payment)
        self.wake()

    def wake(self) -> None:
        self._filled.set()

    def __aiter__(self) -> AsyncIterator[Payment]:
        return self

    async def __anext__(self) -> Payment:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._wallet._closed:
                raise StopAsyncIteration
            self._filled = trio.Event()
            await self._filled.wait()
        return self._waiting.popleft()


def _read(target: str) -> tuple[str, bolt11.Invoice]:
    """Raises ``InvoiceInvalid``, ``NotSupported`` for what is an address."""
    text = target.strip().lower().removeprefix("lightning:") if len(target) <= bolt11.MAX_CHARS else ""
    try:
        return text, bolt11.decode(text)
    except bolt11.Bolt11Invalid as error:
        if text.startswith(_ADDRESSES):
            raise NotSupported("Nostr Wallet Connect pays invoices, not addresses", "ask for an invoice") from None
        raise InvoiceInvalid(f"not an invoice that can be paid: {error}", "ask for a new one") from None


def _price(invoice: bolt11.Invoice, amount: Msat | None) -> Msat:
    """Raises ``InvoiceInvalid``."""
    price = invoice.amount_msats if amount is None else amount
    if price is None:
        raise InvoiceInvalid("the invoice names no amount", "say how much: --amount")
    if price <= 0 or invoice.amount_msats not in (None, price):
        raise InvoiceInvalid("the invoice is for another amount than was given")
    return Msat(price)


def _check_invoice(amount: int, description: str, expiry: int) -> bytes:
    """The description's bytes. Raises ``InvoiceInvalid`` for what no invoice has."""
    try:
        raw = description.encode()
    except UnicodeEncodeError:
        raise InvoiceInvalid("the description is not Unicode text") from None
    if not 0 < amount <= bolt11.MAX_AMOUNT_MSATS:
        raise InvoiceInvalid(f"no invoice is for {amount} msat")
    if not 0 < expiry <= 10 * 365 * 86_400:
        raise InvoiceInvalid(f"no invoice is valid for {expiry} s")
    return raw


def _ended(row: SentRow) -> Payment:
    """What ``pay`` returns for a row as it stands. Raises ``PaymentFailed``, ``PaymentUnknown``."""
    if row.state is PaymentState.FAILED:
        raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
    if row.state is PaymentState.PENDING and row.asked_until > 0:
        raise PaymentUnknown("the wallet did not say whether it has paid", "never pay again; look it up")
    return row.payment()


def _received(entry: Transaction) -> Payment | None:
    """``None`` for an invoice that nobody has paid."""
    if entry.state not in (TransactionState.SETTLED, TransactionState.ACCEPTED):
        return None
    settled = entry.state is TransactionState.SETTLED
    return Payment(
        payment_id=received_id(entry.payment_hash),
        payment_hash=entry.payment_hash,
        direction=Direction.RECEIVED,
        state=PaymentState.SETTLED if settled else PaymentState.PENDING,
        amount=Msat(entry.amount),
        fee=Msat(0),
        created_at=float(entry.created_at),
        settled_at=float(entry.settled_at or entry.created_at) if settled else None,
        preimage=entry.preimage,
        bolt11=entry.invoice,
        description=entry.description or "",
        outside=entry.invoice is None,
    )


def _foreign(entry: Transaction) -> Payment:
    """A payment of the wallet's that we have not asked for."""
    state = _STATES.get(entry.state or TransactionState.PENDING, PaymentState.PENDING)
    return Payment(
        payment_id=sent_id(entry.payment_hash),
        payment_hash=entry.payment_hash,
        direction=Direction.SENT,
        state=state,
        amount=Msat(entry.amount),
        fee=Msat(0) if state is PaymentState.FAILED else Msat(entry.fees_paid),
        created_at=float(entry.created_at),
        settled_at=float(entry.settled_at or entry.created_at) if state is PaymentState.SETTLED else None,
        preimage=entry.preimage,
        bolt11=entry.invoice,
        description=entry.description or "",
    )
