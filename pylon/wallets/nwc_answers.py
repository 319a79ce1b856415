"""What our wallet answers to a connection: the methods of NIP-47 but paying, over a wallet and the rows of the store.

A connection sees what it caused, and nothing else: its own invoices and payments, and as its balance the smaller of
what the wallet can spend and what its budget leaves it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import orjson
import trio

from protocols import bolt11, nip47_methods
from protocols.nip47 import PAGE, ErrorCode, Failure, Nip47Invalid, Request
from protocols.nip47_methods import (
    GET_BALANCE,
    GET_INFO,
    HOLD_INVOICE_ACCEPTED,
    HOLD_METHODS,
    LIST_TRANSACTIONS,
    LOOKUP_INVOICE,
    MAKE_INVOICE,
    PAY_INVOICE,
    PAYMENT_RECEIVED,
    PAYMENT_SENT,
    PayInvoice,
    ServiceInfo,
    Transaction,
    TransactionState,
    TransactionType,
)
from pylon.clock import Clock
from pylon.errors import (
    AlreadyPaid,
    BudgetExceeded,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    NotFound,
    NotSupported,
    PaymentUnknown,
    WalletError,
    WalletFrozen,
    WrongNetwork,
    brief,
)
from pylon.money import Msat, format_msat, max_fee
from pylon.store import intents
from pylon.store import wallet_connections as connections
from pylon.store.database import RECORD_SECONDS, Reads, Store
from pylon.store.intents import Approval, Intent, IntentState
from pylon.store.wallet_connections import Connection, MadeInvoice
from pylon.wallets.nwc_guests import check_budget
from pylon.wallets.port import Can, IssuedInvoice, Wallet

log = logging.getLogger(__name__)

WALLET_SECONDS = 20.0
"""How long the wallet itself may take to answer a question."""
DEFAULT_EXPIRY = 3_600
LONGEST_EXPIRY = 7 * 86_400
MOST_UNPAID = 500
"""Invoices that a connection may have waiting for their payment."""
_LONGEST_LIST = 45_000
"""Bytes: with its encryption and base64 it stays below what relays of wallets carry."""


class Answers:
    """See the module. ``alias`` is how the wallet calls itself."""

    def __init__(self, wallet: Wallet, store: Store, clock: Clock, alias: str) -> None:
        self._wallet = wallet
        self._store = store
        self._clock = clock
        self._alias = alias

    async def methods(self) -> tuple[str, ...]:
        """What a connection can ask for."""
        info = await self._wallet.info()
        hold = HOLD_METHODS if Can.HOLD in info.can else ()
        return (PAY_INVOICE, GET_BALANCE, GET_INFO, MAKE_INVOICE, LOOKUP_INVOICE, LIST_TRANSACTIONS, *hold)

    async def notifications(self) -> tuple[str, ...]:
        info = await self._wallet.info()
        return (PAYMENT_RECEIVED, PAYMENT_SENT, *((HOLD_INVOICE_ACCEPTED,) if Can.HOLD in info.can else ()))

    async def answer(self, connection: Connection, request: Request) -> Mapping[str, Any] | Failure:
        """The result of anything but ``pay_invoice``. Cut off after ``WALLET_SECONDS``."""
        answering = {
            GET_INFO: self._info,
            GET_BALANCE: self._balance,
            MAKE_INVOICE: self._make_invoice,
            LOOKUP_INVOICE: self._lookup,
            LIST_TRANSACTIONS: self._list,
            nip47_methods.MAKE_HOLD_INVOICE: self._make_hold_invoice,
            nip47_methods.SETTLE_HOLD_INVOICE: self._settle,
            nip47_methods.CANCEL_HOLD_INVOICE: self._cancel,
        }.get(request.method)
        if answering is None or request.method not in await self.methods():
            return Failure(ErrorCode.NOT_IMPLEMENTED, f"this wallet does not do {request.method[:50]}")
        try:
            with trio.fail_after(WALLET_SECONDS):
                return await answering(connection, request)
        except Exception as error:
            return failure_of(error)

    async def check(self, connection: Connection, text: str, invoice: bolt11.Invoice, amount: Msat) -> None:
        """Whatever can be known before anything is set aside. Raises ``WalletError``.

        The budget comes first: whoever asks for more than that learns nothing of the wallet.
        """
        check_budget(
            self._store,
            connections.get(self._store, connection.client),
            amount,
            Msat(amount + max_fee(amount)),
            self._clock.now(),
        )
        with trio.fail_after(WALLET_SECONDS):
            info = await self._wallet.info()
            if invoice.network != info.network:
                raise WrongNetwork(f"the invoice is for {invoice.network}, this wallet is on {info.network}")
            if invoice.expires_at <= self._clock.now():
                raise InvoiceExpired("the invoice has expired", "ask for a new one")
            named = amount if invoice.amount_msats is None else None
            fee = await self._wallet.quote(text, amount=named)
            if fee > max_fee(amount):
                raise FeeTooHigh(f"the fee of {format_msat(fee)} is more than {format_msat(max_fee(amount))}")
            spendable = (await self._wallet.balance()).spendable
            if amount + fee > spendable:
                raise InsufficientFunds(amount + fee, max(spendable, 0))

    # --- one by one -------------------------------------------------------------------------------------------

    async def _info(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        info = await self._wallet.info()
        told = ServiceInfo(
            alias=self._alias,
            network=info.network,
            pubkey=info.node_pubkey,
            methods=await self.methods(),
            notifications=await self.notifications(),
        )
        return told.result()

    async def _balance(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        balance = await self._wallet.balance()
        left = connections.left(self._store, connection, self._clock.now())
        return {"balance": max(min(balance.spendable, left), 0)}

    async def _make_invoice(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        asked = nip47_methods.MakeInvoice.read(request.params)
        made = connections.invoice_of(self._store, request.id)
        if made is None:
            expiry = self._expiry(connection, asked.expiry)
            words, hashed = _description(asked.description, asked.description_hash)
            issued = await self._wallet.receive(
                Msat(asked.amount), words, expiry, f"nwc:{request.id}", hash_description=hashed
            )
            made = await self._keep(connection, request, issued, hold=False)
        return self.incoming(made, None).result()

    async def _make_hold_invoice(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        asked = nip47_methods.MakeHoldInvoice.read(request.params)
        made = connections.invoice_of(self._store, request.id)
        if made is None:
            if connections.find_invoice(self._store, asked.payment_hash) is not None:
                raise InvoiceInvalid("there is an invoice for this payment hash already")
            expiry = self._expiry(connection, asked.expiry)
            words, hashed = _description(asked.description, asked.description_hash)
            if hashed:
                raise NotSupported("hold invoices carry their description, not its hash")
            issued = await self._wallet.hold(Msat(asked.amount), words, expiry, f"nwc:{request.id}", asked.payment_hash)
            made = await self._keep(connection, request, issued, hold=True)
        return self.incoming(made, None).result()

    async def _settle(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        preimage = nip47_methods.SettleHoldInvoice.read(request.params).preimage
        self._own_hold(connection, hashlib.sha256(bytes.fromhex(preimage)).hexdigest())
        await self._wallet.settle(preimage)
        return {}

    async def _cancel(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        payment_hash = nip47_methods.CancelHoldInvoice.read(request.params).payment_hash
        self._own_hold(connection, payment_hash)
        await self._wallet.cancel(payment_hash)
        return {}

    async def _lookup(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        asked = nip47_methods.LookupInvoice.read(request.params)
        payment_hash = asked.payment_hash
        if payment_hash is None:
            try:
                payment_hash = bolt11.decode(asked.invoice or "").payment_hash
            except bolt11.Bolt11Invalid as error:
                raise InvoiceInvalid(f"the invoice: {error}") from None
        made = connections.find_invoice(self._store, payment_hash)
        if made is not None and made.client == connection.client:
            return (await self._as_it_is(made)).result()
        intent = intents.find(self._store, payment_hash)
        if intent is not None and intent.scope == connection.scope:
            return (await self._sent(intent)).result()
        raise NotFound("this connection has no such invoice or payment")

    async def _list(self, connection: Connection, request: Request) -> Mapping[str, Any]:
        asked = nip47_methods.ListTransactions.read(request.params)
        now = int(self._clock.now())
        found = connections.history(
            self._store,
            connection,
            since=asked.since or 0,
            until=now if asked.until is None else asked.until,
            limit=min(asked.limit or PAGE, PAGE),
            offset=asked.offset or 0,
            unpaid=asked.unpaid,
            incoming=asked.type is not TransactionType.OUTGOING,
            outgoing=asked.type is not TransactionType.INCOMING,
        )
        told: list[dict[str, Any]] = []
        size = 0
        for entry in found:
            transaction = await (self._sent(entry) if isinstance(entry, Intent) else self._as_it_is(entry))
            told.append(transaction.result())
            size += len(orjson.dumps(told[-1]))
            if size > _LONGEST_LIST and len(told) > 1:
                told.pop()
                break
        return {"transactions": told}

    # --- within -----------------------------------------------------------------------------------------------

    def _expiry(self, connection: Connection, asked: int | None) -> int:
        now = self._clock.now()
        if len(connections.unpaid_invoices(self._store, now, connection.client)) >= MOST_UNPAID:
            raise WalletError(f"{MOST_UNPAID} invoices of this connection wait to be paid already")
        return DEFAULT_EXPIRY if asked is None else min(asked, LONGEST_EXPIRY)

    async def _keep(
        self, connection: Connection, request: Request, issued: IssuedInvoice, *, hold: bool
    ) -> MadeInvoice:
        now = self._clock.now()
        # The wallet has made it: it is written down, whoever goes away meanwhile.
        with trio.fail_after(RECORD_SECONDS, shield=True):
            await self._store.write(
                lambda tx: connections.add_invoice(
                    tx,
                    payment_hash=issued.payment_hash,
                    client=connection.client,
                    request_id=request.id,
                    amount=issued.amount,
                    bolt11=issued.bolt11,
                    hold=hold,
                    at=now,
                    expires_at=issued.expires_at,
                )
            )
        made = connections.find_invoice(self._store, issued.payment_hash)
        if made is None or made.client != connection.client:
            raise InvoiceInvalid("there is an invoice for this payment hash already")
        return made

    def _own_hold(self, connection: Connection, payment_hash: str) -> None:
        made = connections.find_invoice(self._store, payment_hash)
        if made is None or made.client != connection.client or not made.hold:
            raise NotFound("this connection has no such hold invoice")

    async def _as_it_is(self, made: MadeInvoice) -> Transaction:
        """An invoice with what the wallet says of it now."""
        if made.settled_at is not None:
            return self.incoming(made, None)
        return self.incoming(made, await self._wallet.lookup_invoice(made.payment_hash))

    def incoming(self, made: MadeInvoice, issued: IssuedInvoice | None, preimage: str | None = None) -> Transaction:
        """An invoice for the wire. ``issued`` is what the wallet says of it, ``None`` for a new one."""
        text = connections.invoice_text(self._store, self._store.vault, made.payment_hash)
        read = bolt11.decode(text)
        settled_at = made.settled_at if issued is None or issued.settled_at is None else issued.settled_at
        if settled_at is not None:
            state = TransactionState.SETTLED
        elif issued is not None and issued.held > 0:
            state = TransactionState.ACCEPTED
        elif (issued is not None and issued.cancelled) or self._clock.now() > made.expires_at:
            state = TransactionState.EXPIRED
        else:
            state = TransactionState.PENDING
        return Transaction(
            type=TransactionType.INCOMING,
            payment_hash=made.payment_hash,
            amount=made.amount if issued is None or issued.received <= 0 else issued.received,
            created_at=int(made.created_at),
            state=state,
            invoice=text,
            description=read.description,
            description_hash=read.description_hash,
            preimage=preimage,
            expires_at=int(made.expires_at),
            settled_at=None if settled_at is None else int(settled_at),
        )

    async def _sent(self, intent: Intent) -> Transaction:
        fee = intent.fee_msats
        if intent.state is IntentState.PENDING:
            # What it will cost is the wallet's to say; unknown, it is what was set aside for it.
            fee = intent.max_fee_msats
            try:
                payment = await self._wallet.lookup_payment(intent.payment_hash)
            except Exception as error:
                log.debug("the wallet cannot tell of %s: %s", intent.payment_hash[:16], brief(error))
            else:
                fee = fee if payment is None else payment.fee
        return outgoing(self._store, self._store, intent, fee or Msat(0))


def outgoing(source: Reads, store: Store, intent: Intent, fee: Msat) -> Transaction:
    """A payment for the wire."""
    text = intents.invoice(source, store.vault, intent.id)
    read = bolt11.decode(text)
    settled = intent.state is IntentState.SETTLED
    return Transaction(
        type=TransactionType.OUTGOING,
        payment_hash=intent.payment_hash,
        amount=intent.amount_msats,
        fees_paid=fee if intent.state is not IntentState.FAILED else 0,
        created_at=int(intent.created_at),
        state=TransactionState(intent.state.value),
        invoice=text,
        description=read.description,
        description_hash=read.description_hash,
        preimage=intents.preimage(source, store.vault, intent.id) if settled else None,
        expires_at=int(read.expires_at),
        settled_at=int(intent.updated_at) if settled else None,
    )


def failure_of(error: Exception) -> Failure:
    """What a client is told of an error. Only our own errors' words are told, and of the home's money none."""
    if isinstance(error, (InsufficientFunds, BudgetExceeded, WalletFrozen)):
        log.info("a payment for a wallet connection was refused: %s", error.message)
    match error:
        case Nip47Invalid():
            return Failure(ErrorCode.OTHER, f"the request: {error}")
        case NotFound():
            return Failure(ErrorCode.NOT_FOUND, error.message)
        case InsufficientFunds():
            return Failure(ErrorCode.INSUFFICIENT_BALANCE, _TOO_LITTLE, error.code)
        case BudgetExceeded():
            return Failure(ErrorCode.QUOTA_EXCEEDED, "it is more than may be spent now", error.code)
        case WalletFrozen():
            return Failure(ErrorCode.RESTRICTED, "spending is frozen", error.code)
        case AlreadyPaid():
            return Failure(ErrorCode.OTHER, _WORDS[error.code], error.code)
        case NotSupported():
            return Failure(ErrorCode.NOT_IMPLEMENTED, error.message, error.code)
        case PaymentUnknown():
            return Failure(ErrorCode.INTERNAL, "the wallet did not answer in time", error.code)
        case WalletError():
            return Failure(ErrorCode.OTHER, error.message, error.code)
        case trio.TooSlowError():
            return Failure(ErrorCode.INTERNAL, "the wallet did not answer in time")
        case _:
            log.warning("a request of a wallet connection broke: %s", brief(error))
            return Failure(ErrorCode.INTERNAL, "the wallet cannot answer now")


_TOO_LITTLE = "the wallet has not enough for this payment and its fee"
_WORDS = {
    AlreadyPaid.code: "the invoice is paid already, or about to be",
    FeeTooHigh.code: "the fee would be too high",
    InvoiceExpired.code: "the invoice has expired",
    InvoiceInvalid.code: "the invoice cannot be paid",
    NoRoute.code: "there is no route to the payee",
    WrongNetwork.code: "the invoice is for another network",
}
"""What a client is told of a payment that has failed. The wallet's own words are the operator's: they name balances."""


def failed(intent: Intent, own_fault: bool, detail: str) -> Failure:
    """What a client is told of a payment that has failed. ``detail`` is the code of the wallet's error, if any."""
    if intent.approval in (Approval.WAITING, Approval.DENIED):
        return Failure(ErrorCode.RESTRICTED, "the operator has not approved it", detail)
    if own_fault:
        return Failure(ErrorCode.INSUFFICIENT_BALANCE, _TOO_LITTLE, detail)
    return Failure(ErrorCode.PAYMENT_FAILED, _WORDS.get(detail, "the payment has failed"), detail)


def _description(words: str | None, wanted_hash: str | None) -> tuple[str, bool]:
    """The description, and whether the invoice shall carry its hash only."""
    if wanted_hash is None:
        return words or "", False
    if words is None or hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest() != wanted_hash:
        raise NotSupported("a description hash wants the description, and must be its SHA-256")
    return words, True


def payable(asked: PayInvoice) -> tuple[str, bolt11.Invoice, Msat]:
    """What is to be paid, and how much. Raises ``InvoiceInvalid``."""
    try:
        invoice = bolt11.decode(asked.invoice)
    except bolt11.Bolt11Invalid as error:
        raise InvoiceInvalid(f"not an invoice that can be paid: {error}") from None
    if invoice.amount_msats is None and asked.amount is None:
        raise InvoiceInvalid("the invoice names no amount, and the request none either")
    if None not in (invoice.amount_msats, asked.amount) and invoice.amount_msats != asked.amount:
        raise InvoiceInvalid("the invoice is for another amount")
    return asked.invoice, invoice, Msat(invoice.amount_msats or asked.amount or 0)


def is_same(source: Reads, store: Store, intent: Intent, text: str, invoice: bolt11.Invoice, amount: Msat) -> bool:
    """Whether what is asked for is the very payment of an intent: many invoices may have one payment hash."""
    if intents.invoice(source, store.vault, intent.id).lower() != text.lower():
        return False
    if intent.state is IntentState.SETTLED:
        # What has left may be rounded to whole sats; an invoice that names its amount was settled with that.
        return invoice.amount_msats is not None or abs(intent.amount_msats - amount) < 1_000
    return intent.amount_msats == amount
