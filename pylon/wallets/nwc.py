"""Any wallet that a user has already, by Nostr Wallet Connect (NIP-47): ``pylon.wallets.port.Wallet``.

Rules
-----
1. A payment is a row before the wallet is asked (``pylon.wallets.nwc_records``). NWC has no idempotency keys: the
   payment hash is the wallet's key, and ours are kept in the rows.
2. A request to pay goes out once. Whatever is heard of it counts, from whichever side: the response, a notification, or
   a look at the invoice, which is taken again and again while we wait.
3. An error is no proof that nothing was paid: the invoice is looked up, and what then is not known is
   ``PaymentUnknown``. What the wallet answered to have failed, and does not show as failed, is not asked for again, and
   fails an hour after its invoice has expired. A failure is doubted by whoever looks it up later.
4. A payment of which the wallet has never heard is asked for again only when the request before has lapsed. A relay
   that refuses a request may have passed it on.
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
from protocols.nip47 import ConnectionUri, Nip47Invalid, Notification
from protocols.nip47_methods import (
    CANCEL_HOLD_INVOICE,
    HOLD_INVOICE_ACCEPTED,
    HOLD_METHODS,
    LIST_TRANSACTIONS,
    MAKE_HOLD_INVOICE,
    MAKE_INVOICE,
    PAY_INVOICE,
    PAYMENT_RECEIVED,
    PAYMENT_SENT,
    SETTLE_HOLD_INVOICE,
    Transaction,
    TransactionState,
    TransactionType,
)
from pylon.clock import Clock
from pylon.errors import (
    InvoiceInvalid,
    NotSupported,
    PaymentFailed,
    StoreError,
    WalletError,
    brief,
)
from pylon.money import Msat, max_fee
from pylon.relays.pool import RelayPool
from pylon.relays.transport import Connect
from pylon.store.database import RECORD_SECONDS, Store
from pylon.wallets.nwc_client import NwcClient
from pylon.wallets.nwc_link import NwcLink
from pylon.wallets.nwc_paying import Payer, price_of, read_invoice, state_of
from pylon.wallets.nwc_records import Records, received_id, sent_id
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
"""Between two looks at everything, where it does; and at what is doubted."""
_MOST_PAGES = 500
_TOLD = 5_000


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
        self._name = uri.wallet.hex[:16]
        self._client = NwcClient(uri, pool, clock, self._heard)
        self._link = NwcLink(self._client, store, uri.client.hex)
        self._records = Records(uri.client.hex, store.vault)
        self._payer = Payer(self._link, self._records, store, clock, self._announce, network=network, patience=patience)
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
            nursery.start_soon(self._link.keep_confirming)
            task_status.started()

    # --- what it is -------------------------------------------------------------------------------------------

    async def info(self) -> WalletInfo:
        await self._begin()
        service = await self._link.service()
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
        text, invoice = read_invoice(target)
        return Target.of_invoice(text, invoice)

    async def balance(self) -> Balance:
        """What can be spent is what the wallet says. NWC does not say whether that leaves out the fee of what is under
        way: of a wallet that sets none aside, ``settled`` and ``pending_out`` are too high by it meanwhile.
        """
        await self._begin()
        for _ in range(3):
            spendable = await self._link.spendable()
            at = self._clock.now()
            waiting = self._records.pending(self._store)
            for row in waiting:
                if not self._payer.is_busy(row):
                    await self._payer.look(row)
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
        made = await self._link.ask(MAKE_INVOICE, asked.params())
        return await self._keep(made, key, amount, digest, hold=False)

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        await self._begin()
        await self._link.need(MAKE_HOLD_INVOICE, "hold invoices")
        known = self._records.invoice_by_key(self._store, key)
        if known is not None:
            return known.issued()
        _check_invoice(amount, description, expiry_seconds)
        if not is_hex(payment_hash, 64):
            raise InvoiceInvalid("the payment hash is not 64 lowercase hex digits")
        asked = nip47_methods.MakeHoldInvoice(amount, payment_hash, description, None, expiry_seconds)
        made = await self._link.ask(MAKE_HOLD_INVOICE, asked.params())
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
        # The wallet has made it: it is written down, whoever goes away meanwhile.
        with trio.fail_after(RECORD_SECONDS, shield=True):
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
        await self._link.need(SETTLE_HOLD_INVOICE, "hold invoices")
        if not is_hex(preimage, 64):
            raise PaymentFailed("a preimage has 64 lowercase hex digits")
        await self._link.end_hold(SETTLE_HOLD_INVOICE, {"preimage": preimage})

    async def cancel(self, payment_hash: str) -> None:
        await self._begin()
        await self._link.need(CANCEL_HOLD_INVOICE, "hold invoices")
        await self._link.end_hold(CANCEL_HOLD_INVOICE, {"payment_hash": payment_hash})
        with trio.fail_after(RECORD_SECONDS, shield=True):
            await self._store.write(functools.partial(self._records.cancel, payment_hash=payment_hash))

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        await self._begin()
        row = self._records.invoice(self._store, payment_hash)
        found = await self._link.find(payment_hash) if payment_hash else None
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
        _, invoice = read_invoice(target)
        price = price_of(invoice, amount)
        await self._payer.check_way(invoice)
        return max_fee(price)

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        await self._begin()
        return await self._payer.pay(target, amount=amount, limit=max_fee, key=idempotency_key)

    # --- looking up -------------------------------------------------------------------------------------------

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        await self._begin()
        row = self._records.of_hash(self._store, payment_hash)
        if row is not None:
            return await self._payer.report(row)
        found = await self._link.find(payment_hash) if payment_hash else None
        if found is None or found.type is not TransactionType.OUTGOING:
            return None
        return _foreign(found)

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await self._begin()
        row = self._records.by_key(self._store, idempotency_key)
        return None if row is None else await self._payer.report(row)

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        await self._begin()
        await self._link.need(LIST_TRANSACTIONS, "a list of its payments")
        found = {sent_id(row.payment_hash): row.payment() for row in self._records.since(self._store, since)}
        told, offset = 0, 0
        for _ in range(_MOST_PAGES):
            page, count = await self._link.page(since, offset, unpaid=not completed)
            for entry in page:
                payment = await self._payment_of(entry)
                if payment is not None:
                    found[payment.payment_id] = payment
                    told += not completed or payment.state is PaymentState.SETTLED
            if count == 0 or (newest and told >= limit):
                break
            offset += count
        kept = [
            payment
            for payment in found.values()
            if payment.created_at >= since and not (completed and payment.state is not PaymentState.SETTLED)
        ]
        kept.sort(key=lambda payment: (payment.created_at, payment.payment_id), reverse=newest)
        return kept[:limit]

    async def _payment_of(self, entry: Transaction) -> Payment | None:
        """A transaction as a payment; ``None`` for an invoice that nobody has paid."""
        if entry.type is TransactionType.INCOMING:
            return _received(entry)
        row = self._records.of_hash(self._store, entry.payment_hash)
        if row is None:
            return _foreign(entry)
        return (await self._payer.learn(row, entry) or row).payment()

    # --- learning ---------------------------------------------------------------------------------------------

    async def _heard(self, notification: Notification) -> None:
        """A notification: what was sent settles a row, what was received is told to who listens."""
        if notification.type not in (PAYMENT_RECEIVED, PAYMENT_SENT, HOLD_INVOICE_ACCEPTED):
            return
        sent = notification.type == PAYMENT_SENT
        default = TransactionType.OUTGOING if sent else TransactionType.INCOMING
        state = TransactionState.ACCEPTED if notification.type == HOLD_INVOICE_ACCEPTED else TransactionState.SETTLED
        try:
            entry = attrs.evolve(Transaction.read(notification.body, default), state=state)
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
        swept = doubted = -1e9
        while True:
            if not self._listeners and not self._records.pending(self._store):
                with trio.move_on_after(SWEEP_SECONDS):
                    await self._wanted.wait()
            self._wanted = trio.Event()
            await trio.sleep(POLL_SECONDS)
            try:
                patient = trio.current_time() - doubted < SWEEP_SECONDS
                for row in self._records.pending(self._store):
                    if not self._payer.is_busy(row) and not (patient and row.is_doubted):
                        await self._payer.look(row)
                if not patient:
                    doubted = trio.current_time()
                wait = SWEEP_SECONDS if self._link.notifies else POLL_SECONDS
                if self._listeners and trio.current_time() - swept >= wait:
                    swept = trio.current_time()
                    await self._sweep()
            except Exception as error:
                log.debug("the wallet cannot be looked at: %s", brief(error))

    async def _sweep(self) -> None:
        """The newest transactions: what nobody has told of."""
        page, _ = await self._link.page(0, 0, unpaid=False)
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
    state = state_of(entry)
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
