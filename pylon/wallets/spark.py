"""A Spark wallet by the Breez SDK, behind the Wallet port. Its identity is a BIP-39 seed.

The SDK is asyncio's and lives behind ``pylon.wallets.bridge``. ``spark_kit`` holds what wallets share, ``spark_link``
the connection and how it is proven, ``spark_payments`` what pays; here is the rest of the port, invoices above all.

Limits of the SDK, refused or told as such: no invoice by the hash of its description; ``cancel`` keeps a payment from
ever being taken, but the invoice can still be paid, and who has paid has it back only when the HTLC expires.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import trio

from protocols import bolt11, spark_address
from protocols.keys import is_hex
from pylon.errors import (
    AlreadyPaid,
    InvoiceInvalid,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
    WalletUnreachable,
)
from pylon.money import MAX_MSAT, Msat, format_msat, sats
from pylon.wallets import spark_errors, spark_faucet, spark_types
from pylon.wallets.port import (
    Addresses,
    Balance,
    Can,
    Direction,
    IssuedInvoice,
    Payment,
    PaymentEvents,
    PaymentState,
    WalletInfo,
)
from pylon.wallets.spark_journal import Issued
from pylon.wallets.spark_link import Listener
from pylon.wallets.spark_payments import SparkPayments

log = logging.getLogger(__name__)

MAX_MEMO_BYTES = bolt11.MAX_FIELD_BYTES
"""Longer descriptions are cut: the SDK has no way to put in a hash instead."""
MAX_EXPIRY = 2**31 - 1
_CAN = frozenset({Can.HOLD, Can.SPARK_ADDRESS, Can.BITCOIN_ADDRESS, Can.OPEN_AMOUNT})


class SparkWallet(SparkPayments):
    """``pylon.wallets.port.Wallet``. Connects with its first use; parameters as for ``SparkLink``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._issuing = trio.Lock()

    # --- what it is -------------------------------------------------------------------------------------------

    async def info(self) -> WalletInfo:
        await trio.lowlevel.checkpoint()
        self._check_open()
        network = self._kit.network
        # Its invoices are signed by the Lightning service, so that there is no key of a node to tell.
        return WalletInfo(
            name=self.name,
            network=network.name,
            kind="spark",
            node_pubkey="",
            unit_msats=spark_types.UNIT,
            can=_CAN,
            note=network.note,
        )

    async def balance(self) -> Balance:
        """See ``Wallet.balance`` and the module. Raises ``WalletUnreachable``."""
        await self._refresh()
        async with self._using() as instance:
            known_at = self.known_at
            info = await self._ask(
                "asking for the balance", instance.get_info, self._kit.sdk.GetInfoRequest(ensure_synced=False)
            )
            pending = await self._list(
                instance,
                type_filter=[self._kit.sdk.PaymentType.SEND],
                status_filter=[self._kit.sdk.PaymentStatus.PENDING],
            )
        settled, leaving = info.balance_sats * 1_000, 0
        known = set()
        for payment in pending:
            known.add(payment.id)
            taken = sats(payment.amount + payment.fees)
            # The SDK has taken it from the balance already; by the port's count it has not left yet.
            settled += taken
            leaving += taken
        for send in self._journal.under_way():
            became = None if send.id in known else await self._became(send, fresh=True)
            if became is not None and became.state is PaymentState.PENDING:
                leaving += send.amount + send.most_fee
        # The highest fees of those that are unknown may be more than there is; no more can leave.
        balance = Balance(settled=Msat(settled), pending_out=Msat(min(leaving, settled)), known_at=known_at)
        self._on_balance(self, balance)
        return balance

    async def sweep(self) -> Balance:
        """``balance`` for one who looks after many wallets: it does not count as a use of this one."""
        self._sweeps += 1
        try:
            return await self.balance()
        finally:
            self._sweeps -= 1

    async def addresses(self) -> Addresses:
        """The Bitcoin address is asked for once, and then remembered; ``None`` until Spark was reached for it."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        spark = spark_address.encode(self._kit.network.name, self.identity_pubkey)
        bitcoin = self._journal.fact("bitcoin_address")
        if bitcoin is None:
            try:
                bitcoin = await self._bitcoin_address()
            except WalletUnreachable as error:
                log.info("%s", error.message)
        return Addresses(spark=spark, bitcoin=bitcoin)

    async def _bitcoin_address(self) -> str:
        sdk = self._kit.sdk
        async with self._using() as instance:
            response = await self._ask(
                "asking for a Bitcoin address",
                instance.receive_payment,
                sdk.ReceivePaymentRequest(payment_method=sdk.ReceivePaymentMethod.BITCOIN_ADDRESS(new_address=False)),
            )
        address = str(response.payment_request)
        self._journal.learn("bitcoin_address", address)
        return address

    async def fund(self, amount: Msat) -> Payment:
        """Ask the faucet of Spark's regtest: returns a deposit that is pending, until blocks have confirmed it.

        Raises ``NotSupported`` on mainnet, ``UsageError`` for an amount that it does not give, ``WalletUnreachable``.
        """
        self._check_open()
        if self._kit.network.name == "mainnet":
            raise NotSupported("there is no faucet on mainnet", "pay an invoice of this wallet's from another one")
        spark_faucet.check_amount(amount)
        address = self._journal.fact("bitcoin_address") or await self._bitcoin_address()
        now = self._clock.now()
        txid = await spark_faucet.ask_faucet(address, amount)
        return Payment(
            payment_id=txid,
            payment_hash="",
            direction=Direction.RECEIVED,
            state=PaymentState.PENDING,
            amount=amount,
            fee=Msat(0),
            created_at=now,
            description="from the regtest faucet",
            outside=True,
        )

    # --- invoices ---------------------------------------------------------------------------------------------

    async def receive(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, *, hash_description: bool = False
    ) -> IssuedInvoice:
        """See ``Wallet.receive``. Whole sats only; a description over 639 bytes is cut."""
        if hash_description:
            raise NotSupported(
                "the Spark SDK makes no invoices by the hash of a description",
                "zaps and LNURL-pay want a wallet by Nostr Wallet Connect, or simnet",
            )
        return await self._issue(amount, description, expiry_seconds, key, None)

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        if not is_hex(payment_hash, 64):
            raise InvoiceInvalid("a payment hash has 64 hex digits")
        return await self._issue(amount, description, expiry_seconds, key, payment_hash)

    async def _issue(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str | None
    ) -> IssuedInvoice:
        await trio.lowlevel.checkpoint()
        self._check_open()
        known = self._journal.issued_by_key(key)
        if known is not None:
            return known.invoice
        memo = _memo(description)
        if not 0 < amount <= MAX_MSAT or amount % spark_types.UNIT:
            raise InvoiceInvalid(f"no invoice can be for {format_msat(amount)}: Spark takes whole sats, 1 or more")
        if not 1 <= expiry_seconds <= MAX_EXPIRY:
            raise InvoiceInvalid(f"an invoice lives from 1 to {MAX_EXPIRY} seconds")
        if payment_hash is not None and self._journal.issued_by_hash(payment_hash) is not None:
            raise InvoiceInvalid("there is an invoice for this hash already")
        sdk = self._kit.sdk
        method = sdk.ReceivePaymentMethod.BOLT11_INVOICE(
            description=memo,
            amount_sats=amount // 1_000,
            expiry_secs=expiry_seconds,
            payment_hash=payment_hash,
            receiver_identity_public_key=None,
        )
        # One at a time: two at once with one key would have made two.
        async with self._issuing:
            known = self._journal.issued_by_key(key)
            if known is not None:
                return known.invoice
            async with self._using() as instance:
                response = await self._ask(
                    "asking for an invoice", instance.receive_payment, sdk.ReceivePaymentRequest(payment_method=method)
                )
            issued = self._checked(str(response.payment_request), amount, payment_hash)
            return self._journal.add_issued(key, issued, self._clock.now(), hold=payment_hash is not None).invoice

    def _checked(self, text: str, amount: Msat, payment_hash: str | None) -> IssuedInvoice:
        """What the service has made, which must be what was asked for: it holds the money until we are paid."""
        try:
            invoice = bolt11.decode(text)
        except bolt11.Bolt11Invalid as error:
            raise WalletError(f"Spark has made an invoice that does not read: {error}") from None
        if (
            invoice.prefix != self._kit.network.prefix
            or invoice.amount_msats != amount
            or (payment_hash is not None and invoice.payment_hash != payment_hash)
        ):
            raise WalletError("Spark has made another invoice than it was asked for; it was not handed out")
        return IssuedInvoice(
            bolt11=text, payment_hash=invoice.payment_hash, amount=amount, expires_at=float(invoice.expires_at)
        )

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        """See ``Wallet.lookup_invoice``. Raises ``WalletUnreachable`` where what it has received is not known."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        issued = self._journal.issued_by_hash(payment_hash)
        if issued is None or issued.invoice.settled_at is not None:
            return None if issued is None else issued.invoice
        found = await self._received(issued)
        if found is None or found.status.name == "PENDING":
            await self._refresh()
            found = await self._received(issued)
        if found is None or found.status.name == "FAILED":
            return issued.invoice
        if found.status.name == "COMPLETED":
            self._take_note(found)
            kept = self._journal.issued_by_hash(payment_hash)
            return None if kept is None else kept.invoice
        if spark_types.is_held(found):
            return attrs.evolve(issued.invoice, held=sats(found.amount))
        return issued.invoice

    async def _received(self, issued: Issued) -> Any:
        """The payment of an invoice of ours, as the SDK has it; ``None`` where it has none."""
        sdk = self._kit.sdk
        async with self._using() as instance:
            payments = await self._list(
                instance, type_filter=[sdk.PaymentType.RECEIVE], since=int(issued.created_at) - 600
            )
        mine = [p for p in payments if spark_types.payment_hash(p) == issued.invoice.payment_hash]
        # One that came back to its payer may be followed by one that did not.
        return max(mine, key=lambda p: (p.status.name == "COMPLETED", p.status.name == "PENDING"), default=None)

    async def settle(self, preimage: str) -> None:
        """See ``Wallet.settle``. ``PaymentUnknown`` where Spark did not say; settling again is safe."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        try:
            payment_hash = _hash_of(preimage)
        except ValueError:
            raise PaymentFailed("a preimage has 64 hex digits") from None
        issued = self._journal.issued_by_hash(payment_hash)
        if issued is None or not issued.hold or issued.invoice.cancelled:
            raise PaymentFailed("nothing is held for this preimage")
        if issued.invoice.settled_at is not None:
            return
        sdk = self._kit.sdk
        async with self._using() as instance:
            try:
                with trio.move_on_after(self._kit.deadlines.send) as scope:
                    response = await self._kit.bridge.outlast(
                        instance.claim_htlc_payment, sdk.ClaimHtlcPaymentRequest(preimage=preimage)
                    )
                    self._news(response.payment)
            except sdk.SdkError as error:
                if spark_errors.kind(error) == "InvalidInput":
                    seen = await self._received(issued)
                    if seen is not None and seen.status.name == "COMPLETED":
                        self._news(seen)
                        return
                    raise PaymentFailed("nothing is held for this preimage: unpaid, or given back") from None
                raise PaymentUnknown(
                    f"Spark did not say whether it was settled: {spark_errors.words(error)}", "settle it again"
                ) from None
        if scope.cancelled_caught:
            raise PaymentUnknown("Spark did not say in time whether it was settled", "settle it again")

    async def cancel(self, payment_hash: str) -> None:
        """See ``Wallet.cancel``. It is never taken; its payer has it back when the HTLC ends."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        issued = self._journal.issued_by_hash(payment_hash)
        if issued is None or not issued.hold:
            raise PaymentFailed("there is no hold invoice for this hash")
        if issued.invoice.settled_at is not None:
            raise AlreadyPaid("the invoice was settled")
        self._journal.cancel(payment_hash)

    # --- events -----------------------------------------------------------------------------------------------

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        return Listener(self)

    def _heard(self, event: Any) -> None:
        """On the Trio side, for each event of the SDK."""
        if self._closed:
            return
        if event.is_SYNCED():
            self._synced = True
        elif event.is_PAYMENT_SUCCEEDED() or event.is_PAYMENT_FAILED() or event.is_PAYMENT_PENDING():
            self._stale = True
            if spark_types.is_bitcoin(event.payment):
                self._news(event.payment)
            self._on_change(self)
        elif event.is_UNCLAIMED_DEPOSITS():
            for deposit in event.unclaimed_deposits:
                log.warning(
                    "%s: a deposit of %s waits (%s:%d): taking it costs more than it may, or failed; it is tried again",
                    *(self.name, format_msat(sats(deposit.amount_sats)), deposit.txid, deposit.vout),
                )
        elif event.is_NEW_DEPOSITS() or event.is_CLAIMED_DEPOSITS():
            self._stale = True
            self._on_change(self)


def _memo(description: str) -> str:
    """A description as an invoice can carry it. Raises ``InvoiceInvalid``."""
    try:
        raw = description.encode()
    except UnicodeEncodeError:
        raise InvoiceInvalid("the description is not Unicode text") from None
    if len(raw) <= MAX_MEMO_BYTES:
        return description
    return raw[: MAX_MEMO_BYTES - 3].decode(errors="ignore") + "…"


def _hash_of(preimage: str) -> str:
    raw = bytes.fromhex(preimage)
    if len(raw) != 32:
        raise ValueError("32 bytes")
    return hashlib.sha256(raw).hexdigest()
