"""A Spark wallet by the Breez SDK, behind the Wallet port. Its identity is a BIP-39 seed.

The SDK is asyncio's and lives behind ``pylon.wallets.bridge``. It hangs, waits and lies when it is offline (its
``sync_wallet`` returns "synchronized" when nobody was reached, ``get_info`` gives what it last wrote down), so:

* Every call has a deadline. A deadline before anything was sent is ``WalletUnreachable``; afterwards *unknown*.
* **A balance is known after a proven round trip**, which is three calls in a row: ``get_user_settings``, ``sync_wallet``,
  ``get_user_settings`` again. The settings are fetched from the coordinating Spark operator, signed in as this wallet,
  each time that they are asked for; offline the call fails at DNS. On top of it this instance must once have said
  ``SYNCED``, which it says first after it has read all its leaves from the operators. ``known_at`` is the beginning of
  the last such trip; one within ``fresh_seconds`` serves again, until there is news of a payment.
* A payment is written down (``spark_journal``) before the SDK hears of it, under an id that follows from wallet and
  key, which makes the operators refuse a second one. ``send_payment`` is never broken off: who is cancelled leaves, and
  the call goes on. Nothing but what the SDK checks by itself counts as "not sent" (``spark_errors``).
* Invoices go over Lightning, to payees on Spark too: a direct transfer would give no preimage, which is the proof.

Limits of the SDK, refused or told as such: no invoice by the hash of its description; ``cancel`` keeps the payment from
ever being taken, but its payer has it back only when its HTLC expires (hours).
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols import bolt11, nip06, spark_address
from pylon.clock import Clock
from pylon.errors import (
    AlreadyPaid,
    ConfigError,
    FeeTooHigh,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    StoreError,
    WalletError,
    WalletUnreachable,
    brief,
)
from pylon.money import MAX_MSAT, Msat, ceil_to_sat, format_msat, sats
from pylon.wallets import spark_errors, spark_types
from pylon.wallets.bridge import AsyncioBridge, Bridge
from pylon.wallets.port import (
    Addresses,
    Balance,
    Can,
    IssuedInvoice,
    Payment,
    PaymentEvents,
    PaymentState,
    Target,
    TargetKind,
    WalletInfo,
)
from pylon.wallets.spark_journal import Issued, Journal, Send, Stage
from pylon.wallets.spark_types import SparkNetwork

log = logging.getLogger(__name__)

MAX_MEMO_BYTES = bolt11.MAX_FIELD_BYTES
"""Longer descriptions are cut: the SDK has no way to put in a hash instead."""
MAX_EXPIRY = 2**31 - 1
LOST_SECONDS = 900.0
"""A payment of which the operators have heard nothing for so long was never made."""
PAGE = 200
_POLL_SECONDS = 5.0
"""How often a wallet in server mode is asked for news while somebody listens to it."""
_NAMESPACE = uuid.UUID("6d7a3f0e-4c58-5d2b-9c2e-5b6f1f1d8a10")
_CAN = frozenset({Can.HOLD, Can.SPARK_ADDRESS, Can.BITCOIN_ADDRESS, Can.OPEN_AMOUNT})
KEY_HINT = (
    "ask Breez for a key, free of charge (https://breez.technology/request-api-key/#contact-us-form-sdk), and set"
    " [spark] api_key in config.toml, or PYLON_SPARK_API_KEY"
)


@attrs.frozen(kw_only=True)
class SparkDeadlines:
    """Seconds after which a call of the SDK has failed."""

    connect: float = 20.0
    call: float = 15.0
    sync: float = 25.0
    settle: float = 30.0
    """How long ``pay`` waits for a Lightning payment; then it is pending."""
    send: float = 50.0
    """For ``send_payment`` as a whole; then it is unknown."""
    disconnect: float = 3.0


class SparkKit:
    """What the Spark wallets of a process share: the SDK, the bridge to it, the network.

    :param api_key: mainnet wants one. Raises ``ConfigError`` without.
    :param directory: under it each wallet has its own, 0700.
    :param fresh_seconds: how long a proven round trip serves.
    :param sdk: the module, or a fake of it; imported when it is first needed.
    """

    def __init__(
        self,
        network: SparkNetwork,
        *,
        clock: Clock,
        directory: Path,
        api_key: str = "",
        bridge: Bridge | None = None,
        sdk: Any = None,
        deadlines: SparkDeadlines | None = None,
        fresh_seconds: float = 10.0,
    ) -> None:
        if network.name == "mainnet" and not api_key:
            raise ConfigError("Spark's mainnet wants an API key, and none is set", KEY_HINT)
        self.network = network
        self.clock = clock
        self.directory = directory
        self.deadlines = deadlines or SparkDeadlines()
        self.fresh_seconds = fresh_seconds
        self._api_key = api_key
        self._bridge = bridge
        self._sdk = sdk
        self._context: Any = None
        self._context_lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<SparkKit {self.network.name}>"

    @property
    def bridge(self) -> Bridge:
        if self._bridge is None:
            self._bridge = AsyncioBridge.shared()
        return self._bridge

    @property
    def sdk(self) -> Any:
        """The SDK's module; 50 MB, so that nobody pays for it who has no Spark wallet."""
        if self._sdk is None:
            try:
                self._sdk = importlib.import_module("breez_sdk_spark")
            except ImportError as error:
                raise ConfigError(
                    f"the Spark SDK cannot be loaded: {error}", 'pip install breez-sdk-spark; or network = "simnet"'
                ) from None
        return self._sdk

    def identity(self, seed: bytes) -> str:
        """The identity key of a seed, by which its wallet is known: hex, 33 bytes compressed."""
        secret = nip06.derive(seed, spark_types.identity_path(self.network))
        return bolt11.node_public_key(secret).hex()

    async def connect(self, seed: bytes, directory: Path, *, server: bool) -> Any:
        """Open a wallet: with background work of its own, or (``server``) as one of many that has none."""
        sdk, variant = self.sdk, self.network.variant
        network = getattr(sdk.Network, variant)
        config = (sdk.default_server_config if server else sdk.default_config)(network)
        config.api_key = self._api_key or None
        # A direct transfer gives no preimage, and the other services would learn what is nobody's business.
        config.prefer_spark_over_lightning = False
        config.real_time_sync_server_url = None
        config.use_default_external_input_parsers = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # the SDK's own files are 0644
        context = await self._shared_context() if server else None

        async def build() -> Any:
            builder = sdk.SdkBuilder(config, sdk.Seed.ENTROPY(seed))
            await builder.with_default_storage(str(directory))
            if context is not None:
                await builder.with_shared_context(context)
            return await builder.build()

        try:
            with trio.move_on_after(self.deadlines.connect):
                return await self.bridge.run(build)
        except sdk.SdkError as error:
            text = spark_errors.words(error)
            if "api key" in text.lower() or "base64" in text.lower() or "certificate" in text.lower():
                raise ConfigError("Spark does not take the API key that is set", KEY_HINT) from None
            raise spark_errors.before_sending(error, "opening the wallet") from None
        raise spark_errors.unreachable("opening the wallet", f"no answer within {self.deadlines.connect:.0f} s")

    async def _shared_context(self) -> Any:
        async with self._context_lock:
            if self._context is None:
                sdk = self.sdk
                config = sdk.SdkContextConfig(
                    network=getattr(sdk.Network, self.network.variant), api_key=self._api_key or None
                )
                with trio.fail_after(self.deadlines.connect):
                    self._context = await self.bridge.run(sdk.new_shared_sdk_context, config)
            return self._context


class SparkWallet:
    """See the module. Connects with its first use.

    :param seed: the 64 bytes of a BIP-39 phrase.
    :param server: without background work of its own: it is looked after in turn (``spark_fleet``).
    :param on_change: told, without delay, that balance or payments may have changed.
    """

    def __init__(
        self,
        kit: SparkKit,
        seed: bytes,
        name: str,
        *,
        server: bool = False,
        on_change: Callable[[SparkWallet], None] = lambda wallet: None,
    ) -> None:
        self.name = name
        self.identity_pubkey = kit.identity(seed)
        self.server = server
        self._kit = kit
        self._clock = kit.clock
        self._seed = seed
        self._on_change = on_change
        self._directory = kit.directory / self.identity_pubkey[:16]
        self._journal = Journal(self._directory / "journal.db")
        self._instance: Any = None
        self._opening = trio.Lock()
        self._proving = trio.Lock()
        self._issuing = trio.Lock()
        self._closed = False
        self._users = 0
        self._synced = False
        self._proved_at = -math.inf
        self._proof_started = -math.inf
        self._trips = 0
        self._good_trip = 0
        self._stale = True
        self._sending: dict[str, _Sending] = {}
        self._listeners: set[_Listener] = set()
        self.last_use = -math.inf
        """Monotonic time."""

    def __repr__(self) -> str:
        return f"<SparkWallet {self.name} {self.identity_pubkey[:16]}>"

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
            known_at = self._proved_at
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
            if send.id not in known and not await self._knows_end(send):
                leaving += send.amount + send.most_fee
        return Balance(settled=Msat(settled), pending_out=Msat(leaving), known_at=known_at)

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
        if len(payment_hash) != 64 or payment_hash.strip("0123456789abcdef"):
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
        """See ``Wallet.cancel``. Spark cannot send it back: the payer has it when its HTLC expires; we never take it."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        issued = self._journal.issued_by_hash(payment_hash)
        if issued is None or not issued.hold:
            raise PaymentFailed("there is no hold invoice for this hash")
        if issued.invoice.settled_at is not None:
            raise AlreadyPaid("the invoice was settled")
        self._journal.cancel(payment_hash)

    # --- paying -----------------------------------------------------------------------------------------------

    async def decode(self, target: str) -> Target:
        await trio.lowlevel.checkpoint()
        return spark_types.read_target(target)

    async def quote(self, target: str, *, amount: Msat | None = None) -> Msat:
        await trio.lowlevel.checkpoint()
        self._check_open()
        read, wanted = self._payable(target, amount)
        async with self._using() as instance:
            _, fee = await self._prepare(instance, read, wanted)
        return fee

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        """See ``Wallet.pay``. Cancelled, it leaves a payment that was begun to end by itself."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        known = self._journal.send(idempotency_key)
        if known is not None:
            return await self._report(known)
        read, wanted = self._payable(target, amount)
        self._check_unpaid(read)
        if read.expires_at is not None and self._clock.now() >= read.expires_at:
            raise InvoiceExpired("the invoice has expired", "ask the payee for another one")
        send = Send(
            key=idempotency_key,
            id=self._id(idempotency_key),
            hash=read.payment_hash or "",
            target=read.text,
            amount=wanted,
            most_fee=max_fee,
            created_at=self._clock.now(),
            stage=Stage.ASKED,
        )
        sending = self._sending[send.key] = _Sending(send)
        try:
            self._journal.begin(send)
            async with self._using() as instance:
                prepared, fee = await self._prepare(instance, read, wanted)
                if fee > max_fee:
                    raise FeeTooHigh(f"the fee is {format_msat(fee)}, more than the {format_msat(max_fee)} allowed")
                if read.kind is TargetKind.SPARK:
                    # Nobody was asked so far, and an error while sending would be unknown.
                    await self._ask("reaching Spark", instance.get_user_settings)
            self._journal.mark(send.key, Stage.SENT)
        except BaseException:
            # Nothing was sent: the key is as it was.
            self._journal.forget(send.key)
            sending.end(self._sending)
            raise
        trio.lowlevel.spawn_system_task(self._send, sending, prepared, fee)
        await sending.ended.wait()
        if sending.error is not None:
            raise sending.error
        assert sending.payment is not None, "a payment or an error"
        if sending.payment.state is PaymentState.FAILED:
            raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
        return sending.payment

    async def _send(self, sending: _Sending, prepared: Any, fee: Msat) -> None:
        """The call that moves money, in a task of its own that nobody's cancellation reaches. Raises nothing."""
        send = sending.send
        try:
            sending.payment = await self._sent(send, prepared, fee)
        except WalletError as error:
            if not isinstance(error, PaymentUnknown):
                self._journal.forget(send.key)
            sending.error = error
        except Exception as error:
            log.warning("Spark broke while paying %s: %s", send.id[:16], brief(error))
            sending.error = PaymentUnknown(f"the Spark SDK broke off ({type(error).__name__})")
        finally:
            self._stale = True
            sending.end(self._sending)
            self._on_change(self)

    async def _sent(self, send: Send, prepared: Any, fee: Msat) -> Payment:
        sdk = self._kit.sdk
        options = None
        if prepared.payment_method.is_BOLT11_INVOICE():
            seconds = max(1, int(self._kit.deadlines.settle))
            options = sdk.SendPaymentOptions.BOLT11_INVOICE(prefer_spark=False, completion_timeout_secs=seconds)
        request = sdk.SendPaymentRequest(prepare_response=prepared, options=options, idempotency_key=send.id)
        async with self._using() as instance:
            try:
                with trio.move_on_after(self._kit.deadlines.send):
                    response = await self._kit.bridge.outlast(instance.send_payment, request)
                    return self._news(response.payment)
            except sdk.SdkError as error:
                available = Msat(0)
                if spark_errors.kind(error) == "InsufficientFunds":
                    info = await self._ask(
                        "asking for the balance", instance.get_info, sdk.GetInfoRequest(ensure_synced=False)
                    )
                    available = sats(info.balance_sats)
                required = Msat(ceil_to_sat(send.amount) + fee)
                raise spark_errors.while_sending(error, required=required, available=available) from None
        raise PaymentUnknown(
            f"Spark did not say within {self._kit.deadlines.send:.0f} s what became of the payment",
            "it is looked up again; do not pay again",
        )

    def _payable(self, target: str, amount: Msat | None) -> tuple[Target, Msat]:
        """Target and amount, as far as can be told without asking anybody."""
        read = spark_types.read_target(target)
        spark_types.check_network(read, self._kit.network)
        wanted = spark_types.amount_of(read, amount)
        own = (
            spark_address.decode(read.text).identity == self.identity_pubkey
            if read.kind is TargetKind.SPARK
            else self._journal.issued_by_hash(read.payment_hash or "") is not None
        )
        if own:
            raise NoRoute("a wallet cannot pay itself")
        return read, wanted

    def _check_unpaid(self, read: Target) -> None:
        """Raises ``AlreadyPaid`` for an invoice of which a payment has settled or is under way."""
        if not read.payment_hash:
            return
        before = self._journal.send_of(read.payment_hash)
        if before is not None and before.stage is not Stage.FAILED:
            raise AlreadyPaid("this invoice was paid, or is being paid, under another key")

    async def _prepare(self, instance: Any, read: Target, amount: Msat) -> tuple[Any, Msat]:
        """The SDK's preparation and the fee, the fraction of a sat that is rounded up included. Moves nothing."""
        sdk = self._kit.sdk
        rounded = ceil_to_sat(amount)
        request = sdk.PrepareSendPaymentRequest(
            payment_request=sdk.PaymentRequest.INPUT(input=read.text),
            amount=None if read.amount is not None else rounded // 1_000,
        )
        prepared = await self._ask("asking what the payment costs", instance.prepare_send_payment, request)
        method = prepared.payment_method
        if method.is_BOLT11_INVOICE():
            fee = sats(method.lightning_fee_sats)
        elif method.is_SPARK_ADDRESS():
            fee = sats(method.fee)
        else:
            raise NotSupported("Spark would pay this in a way that is not built")
        if sats(prepared.amount) != rounded:
            raise WalletError("Spark would pay another amount than it was asked to; nothing was sent")
        return prepared, Msat(fee + rounded - amount)

    def _id(self, key: str) -> str:
        """The SDK's name of a payment: of this wallet alone, for the operators know those of all."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.identity_pubkey}:{key}"))

    async def _report(self, send: Send) -> Payment:
        """What became of a payment that was begun before. Raises ``PaymentFailed`` where it has failed."""
        running = self._sending.get(send.key)
        if running is not None:
            await running.ended.wait()
            if running.error is not None:
                raise running.error
        payment = await self.lookup_key(send.key)
        if payment is None:
            # It was never sent, after all, and the row is gone.
            raise PaymentFailed("the payment was never sent", "pay again under another key")
        if payment.state is PaymentState.FAILED:
            raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
        return payment

    # --- looking up -------------------------------------------------------------------------------------------

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        """See ``Wallet.lookup_payment``. Raises ``WalletUnreachable`` where that is not known."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        send = self._journal.send_of(payment_hash) if payment_hash else None
        if send is not None:
            return await self._became(send)
        found = await self._sent_elsewhere(payment_hash)
        if found is None:
            await self._refresh()
            found = await self._sent_elsewhere(payment_hash)
        return None if found is None else self._payment(found)

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        send = self._journal.send(idempotency_key)
        if send is not None:
            return await self._became(send)
        payment_id = self._id(idempotency_key)
        found = await self._by_id(payment_id)
        if found is None:
            await self._refresh()
            found = await self._by_id(payment_id)
        return None if found is None else attrs.evolve(self._payment(found), key=idempotency_key)

    async def _became(self, send: Send) -> Payment | None:
        """What became of a payment that this wallet was asked to make."""
        if send.stage is Stage.ASKED:
            if send.key in self._sending:
                return self._as_pending(send)
            # The process that wrote it down ended before it told the SDK.
            self._journal.forget(send.key)
            return None
        if send.stage is Stage.FAILED:
            found = await self._by_id(send.id)
            return self._as_failed(send) if found is None else self._payment(found)
        found = await self._by_id(send.id)
        running = send.key in self._sending
        if (found is None or found.status.name == "PENDING") and not running:
            await self._refresh()
            found = await self._by_id(send.id)
        if found is not None:
            return self._news(found, tell=False)
        if running or self._proved_at - send.created_at < LOST_SECONDS:
            return self._as_pending(send)
        log.warning("payment %s never reached Spark", send.id)
        self._journal.mark(send.key, Stage.FAILED)
        return self._as_failed(send)

    def _as_pending(self, send: Send) -> Payment:
        return Payment(
            payment_id=send.id,
            payment_hash=send.hash,
            direction=spark_types.Direction.SENT,
            state=PaymentState.PENDING,
            amount=send.amount,
            fee=send.most_fee,
            created_at=send.created_at,
            bolt11=send.target if send.hash else None,
            key=send.key,
        )

    def _as_failed(self, send: Send) -> Payment:
        return attrs.evolve(self._as_pending(send), state=PaymentState.FAILED, fee=Msat(0))

    async def _knows_end(self, send: Send) -> bool:
        """Whether the SDK says how a payment ended; that is written down with it."""
        found = await self._by_id(send.id)
        if found is None or found.status.name == "PENDING":
            return False
        self._take_note(found)
        return True

    async def _by_id(self, payment_id: str) -> Any:
        """A payment as the SDK has it; ``None`` where it has none."""
        sdk = self._kit.sdk
        async with self._using() as instance:
            try:
                with trio.fail_after(self._kit.deadlines.call):
                    response = await self._kit.bridge.run(
                        instance.get_payment, sdk.GetPaymentRequest(payment_id=payment_id)
                    )
            except sdk.SdkError as error:
                text = spark_errors.words(error).lower()
                if "no rows" in text or "not found" in text:
                    return None
                raise spark_errors.before_sending(error, "looking a payment up") from None
            except trio.TooSlowError:
                raise spark_errors.unreachable("looking a payment up") from None
        return response.payment

    async def _sent_elsewhere(self, payment_hash: str) -> Any:
        """A payment of this hash that another device with this seed has sent, or that our journal has lost."""
        sdk = self._kit.sdk
        async with self._using() as instance:
            payments = await self._list(instance, type_filter=[sdk.PaymentType.SEND])
        found = [p for p in payments if payment_hash and spark_types.payment_hash(p) == payment_hash]
        return max(found, key=lambda p: p.status.name != "FAILED", default=None)

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        """See ``Wallet.payments``. Where Spark cannot be reached: what was known when it last was."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        try:
            await self._refresh()
        except WalletUnreachable as error:
            log.info("the history may be behind: %s", error.message)
        sdk = self._kit.sdk
        async with self._using() as instance:
            found = await self._list(
                instance,
                status_filter=[sdk.PaymentStatus.COMPLETED] if completed else None,
                since=math.ceil(since),
                limit=limit,
                newest=newest,
            )
        ours = self._journal.issued_hashes([spark_types.payment_hash(p) for p in found])
        keys = self._journal.keys([p.id for p in found])
        return [
            spark_types.to_payment(p, ours=spark_types.payment_hash(p) in ours, key=keys.get(p.id, "")) for p in found
        ]

    async def _list(
        self,
        instance: Any,
        *,
        type_filter: list[Any] | None = None,
        status_filter: list[Any] | None = None,
        since: int = 0,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Any]:
        """The SDK's payments in sats, page by page, oldest first unless the ``newest`` are asked for."""
        sdk = self._kit.sdk
        found: list[Any] = []
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            request = sdk.ListPaymentsRequest(
                type_filter=type_filter,
                status_filter=status_filter,
                asset_filter=sdk.AssetFilter.BITCOIN(),
                from_timestamp=max(0, since) or None,
                offset=len(found),
                limit=size,
                sort_ascending=not newest,
            )
            page = (await self._ask("reading the payments", instance.list_payments, request)).payments
            found.extend(page)
            if len(page) < size:
                break
        return found

    # --- events -----------------------------------------------------------------------------------------------

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        return _Listener(self)

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
        elif event.is_NEW_DEPOSITS() or event.is_CLAIMED_DEPOSITS():
            self._stale = True
            self._on_change(self)

    def _news(self, found: Any, *, tell: bool = True) -> Payment:
        """Write down what the SDK says of a payment, and tell who listens if it has ended."""
        payment = self._payment(found)
        self._take_note(found)
        if tell and payment.state is not PaymentState.PENDING:
            for listener in self._listeners:
                listener.push(payment)
        return payment

    def _take_note(self, found: Any) -> None:
        """What is final goes into the journal."""
        if found.status.name not in ("COMPLETED", "FAILED"):
            return
        settled = found.status.name == "COMPLETED"
        if found.payment_type.name == "SEND":
            key = self._journal.keys([found.id]).get(found.id)
            if key is not None:
                self._journal.mark(key, Stage.DONE if settled else Stage.FAILED)
        elif settled and spark_types.payment_hash(found):
            self._journal.settled(spark_types.payment_hash(found), sats(found.amount), float(found.timestamp))

    def _payment(self, found: Any) -> Payment:
        payment_hash = spark_types.payment_hash(found)
        ours = bool(payment_hash) and self._journal.issued_by_hash(payment_hash) is not None
        return spark_types.to_payment(found, ours=ours, key=self._journal.keys([found.id]).get(found.id, ""))

    # --- the round trip ---------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Prove that Spark is there and we have what it has: see the module. Raises ``WalletUnreachable``."""
        self._check_open()
        if not self._stale and self._clock.monotonic() - self._proof_started < self._kit.fresh_seconds:
            return
        next_trip = self._trips + 1
        async with self._proving:
            if self._good_trip >= next_trip:
                return  # one that began after we asked has ended well while we waited
            self._trips += 1
            trip = self._trips
            async with self._using() as instance:
                began, self._stale = self._clock.now(), False
                started = self._clock.monotonic()
                try:
                    settings = await self._ask("reaching Spark", instance.get_user_settings)
                    await self._keep_private(instance, settings)
                    await self._ask(
                        "synchronizing",
                        instance.sync_wallet,
                        self._kit.sdk.SyncWalletRequest(),
                        seconds=self._kit.deadlines.sync,
                    )
                    await self._ask("reaching Spark", instance.get_user_settings)
                    if not self._synced:
                        raise spark_errors.unreachable("synchronizing", "it has not said that it is done")
                except BaseException:
                    self._stale = True
                    raise
            self._proved_at, self._proof_started, self._good_trip = began, started, trip

    async def _keep_private(self, instance: Any, settings: Any) -> None:
        """Have the operators show its balance to nobody. In client mode the SDK does that by itself."""
        if not self.server or settings.spark_private_mode_enabled:
            return
        request = self._kit.sdk.UpdateUserSettingsRequest(
            spark_private_mode_enabled=True, stable_balance_active_label=None, spark_master_identity_public_key=None
        )
        await self._ask("setting the wallet to private", instance.update_user_settings, request)

    @property
    def known(self) -> bool:
        """Whether there was a round trip at all."""
        return self._proved_at > -math.inf

    # --- the connection ---------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the SDK holds it."""
        return self._instance is not None

    @property
    def is_busy(self) -> bool:
        """Whether something is under way with it, or somebody listens."""
        return bool(self._users or self._sending or self._listeners)

    async def let_go(self) -> bool:
        """Disconnect, to be connected anew (perhaps in the other mode) when it is used again. False: it is busy."""
        async with self._opening:
            if self.is_busy:
                return False
            await self._disconnect()
            return True

    async def aclose(self) -> None:
        """Let go of the SDK within a few seconds, and end the listeners. A payment under way ends by itself."""
        if self._closed:
            return
        self._closed = True
        for listener in list(self._listeners):
            listener.end()
        with trio.CancelScope(shield=True):
            await self._disconnect()
        self._journal.close()

    async def _disconnect(self) -> None:
        instance, self._instance, self._synced, self._stale = self._instance, None, False, True
        if instance is None:
            return
        # With twenty wallets open in client mode the SDK takes up to 15 s, and nothing is won by waiting for it.
        with trio.move_on_after(self._kit.deadlines.disconnect):
            try:
                await self._kit.bridge.outlast(instance.disconnect)
            except Exception as error:
                log.info("closing %r: %s", self, brief(error))

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Any]:
        """The SDK's instance, connected if need be, and kept while it is in use."""
        self._users += 1
        try:
            self.last_use = self._clock.monotonic()
            if self._instance is None:
                async with self._opening:
                    if self._instance is None:
                        self._instance = await self._connect()
            yield self._instance
        finally:
            self._users -= 1

    async def _connect(self) -> Any:
        if self._closed and not self._sending:
            raise StoreError(f"the Spark wallet {self.name} is closed")
        instance = await self._kit.connect(self._seed, self._directory, server=self.server)
        post = self._kit.bridge.poster()

        class Listener(self._kit.sdk.EventListener):  # type: ignore[misc,name-defined]
            async def on_event(_, event: Any) -> None:  # noqa: N805
                post(self._heard, event)

        with trio.fail_after(self._kit.deadlines.call):
            await self._kit.bridge.run(instance.add_event_listener, Listener())
        return instance

    async def _ask(
        self, doing: str, method: Callable[..., Awaitable[Any]], *args: Any, seconds: float | None = None
    ) -> Any:
        """A call that moves no money, with a deadline. ``doing`` says what, in words."""
        seconds = self._kit.deadlines.call if seconds is None else seconds
        try:
            with trio.move_on_after(seconds):
                return await self._kit.bridge.run(method, *args)
        except self._kit.sdk.SdkError as error:
            raise spark_errors.before_sending(error, doing) from None
        raise spark_errors.unreachable(doing, f"no answer within {seconds:.0f} s")

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the Spark wallet {self.name} is closed")


class _Sending:
    """A payment that this process is about to make, or is making."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.ended = trio.Event()
        self.payment: Payment | None = None
        self.error: WalletError | None = None

    def end(self, table: dict[str, _Sending]) -> None:
        table.pop(self.send.key, None)
        self.ended.set()


class _Listener:
    """The payments of one wallet that end, from the moment of entering until the wallet is closed."""

    def __init__(self, wallet: SparkWallet) -> None:
        self._wallet = wallet
        self._waiting: deque[Payment] = deque()
        self._bell = trio.Event()
        self._ended = False

    async def __aenter__(self) -> PaymentEvents:
        async with self._wallet._using():
            self._wallet._check_open()
            self._wallet._listeners.add(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._wallet._listeners.discard(self)

    def push(self, payment: Payment) -> None:
        self._waiting.append(payment)
        self._bell.set()

    def end(self) -> None:
        self._ended = True
        self._bell.set()

    def __aiter__(self) -> AsyncIterator[Payment]:
        return self

    async def __anext__(self) -> Payment:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended or self._wallet._closed:
                raise StopAsyncIteration
            with trio.move_on_after(_POLL_SECONDS if self._wallet.server else math.inf):
                await self._bell.wait()
                self._bell = trio.Event()
                continue
            try:
                await self._wallet._refresh()
            except WalletError as error:
                log.info("no news of %r: %s", self._wallet, error.message)
        return self._waiting.popleft()


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
