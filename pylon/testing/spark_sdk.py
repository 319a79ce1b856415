"""The Breez SDK's builder and instance over a pretended Spark network (``pylon.testing.spark``)."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import trio

from protocols import bolt11, nip06, spark_address
from pylon.testing.spark_values import DNS, SERVICE_SECRET, Fault, Invoice, Storage, Transfer, bitcoin_address
from pylon.wallets.spark_types import REGTEST, identity_path

if TYPE_CHECKING:
    from pylon.testing.spark import FakeSpark


class FakeSdkBuilder:
    """``breez_sdk_spark.SdkBuilder``, as far as it is used."""

    def __init__(self, network: FakeSpark, config: Any, seed: Any) -> None:
        self._network = network
        self._config = config
        self._seed = seed
        self._storage_dir = ""

    async def with_default_storage(self, storage_dir: str) -> None:
        self._storage_dir = storage_dir

    async def with_shared_context(self, context: object) -> None:
        assert not self._config.background_tasks_enabled, "only servers share"

    async def build(self) -> FakeBreezSdk:
        network, config = self._network, self._config
        if config.network is network.real.Network.MAINNET and not config.api_key:
            raise network.real.SdkError.Generic("Missing Breez API key")
        seed = self._seed[0]
        sdk = FakeBreezSdk(network, seed, server=not config.background_tasks_enabled, storage_dir=self._storage_dir)
        network.open.add(sdk)
        if not sdk.server and network.online:
            sdk.catch_up()
        return sdk


class FakeBreezSdk:
    """``breez_sdk_spark.BreezSdk``, as far as it is used."""

    def __init__(self, network: FakeSpark, seed: bytes, *, server: bool, storage_dir: str) -> None:
        self.identity = bolt11.node_public_key(nip06.derive(seed, identity_path(REGTEST))).hex()
        self.server = server
        self._network = network
        self._real = network.real
        self._storage = network._storages.setdefault(storage_dir, Storage())
        self._listeners: dict[str, Any] = {}

    # --- the methods of the SDK -------------------------------------------------------------------------------

    async def add_event_listener(self, listener: Any) -> str:
        name = f"listener-{len(self._listeners)}"
        self._listeners[name] = listener
        return name

    async def disconnect(self) -> None:
        await self._begin("disconnect", local=True)
        self._network.open.discard(self)
        self._listeners.clear()

    async def get_info(self, request: Any) -> Any:
        await self._begin("get_info", local=True)
        if request.ensure_synced:
            if self.server:
                raise self._real.SdkError.InvalidInput("ensure_synced is not supported in server mode")
            if not self._network.online:
                await trio.sleep_forever()
        return self._real.GetInfoResponse(
            identity_pubkey=self.identity,
            balance_sats=self._storage.balance,
            token_balances={},
            recoverable_funds_sats=0,
        )

    async def get_user_settings(self) -> Any:
        await self._begin("get_user_settings")
        return self._real.UserSettings(
            spark_private_mode_enabled=self._network.account(self.identity).private,
            stable_balance_active_label=None,
            spark_master_identity_public_key=None,
        )

    async def update_user_settings(self, request: Any) -> None:
        await self._begin("update_user_settings")
        if request.spark_private_mode_enabled is not None:
            self._network.account(self.identity).private = request.spark_private_mode_enabled

    async def sync_wallet(self, request: Any) -> Any:
        await self._begin("sync_wallet", local=True)
        if self._network.online:
            news = self.catch_up()
            for transfer in news:
                await self.emit(transfer)
            await self._emit(self._real.SdkEvent.SYNCED())
        return self._real.SyncWalletResponse()

    async def get_payment(self, request: Any) -> Any:
        await self._begin("get_payment", local=True)
        found = self._storage.payments.get(request.payment_id)
        if found is None:
            raise self._real.SdkError.StorageError("Underlying implementation error: Query returned no rows")
        return self._real.GetPaymentResponse(payment=found)

    async def list_payments(self, request: Any) -> Any:
        await self._begin("list_payments", local=True)
        ascending = sorted(self._storage.payments.values(), key=lambda p: p.timestamp)
        found = [
            p
            for p in (ascending if request.sort_ascending else reversed(ascending))
            if (request.type_filter is None or p.payment_type in request.type_filter)
            and (request.status_filter is None or p.status in request.status_filter)
            and (request.from_timestamp is None or p.timestamp >= request.from_timestamp)
            and (request.to_timestamp is None or p.timestamp < request.to_timestamp)
        ]
        begin = request.offset or 0
        return self._real.ListPaymentsResponse(payments=found[begin : begin + (request.limit or len(found))])

    async def receive_payment(self, request: Any) -> Any:
        await self._begin("receive_payment")
        method, network = request.payment_method, self._network
        if method.is_SPARK_ADDRESS():
            text = spark_address.encode("regtest", self.identity)
        elif method.is_BITCOIN_ADDRESS():
            network.account(self.identity)
            text = bitcoin_address(self.identity)
        elif method.is_BOLT11_INVOICE():
            text = self._invoice(method)
        else:
            raise network._spark_error("not pretended")
        return self._real.ReceivePaymentResponse(payment_request=text, fee=0, cross_chain_info=None)

    async def claim_htlc_payment(self, request: Any) -> Any:
        await self._begin("claim_htlc_payment")
        payment_hash = hashlib.sha256(bytes.fromhex(request.preimage)).hexdigest()
        for transfer in self._network._transfers.values():
            if transfer.hash == payment_hash and transfer.receiver == self.identity and transfer.waits:
                transfer.preimage = request.preimage
                await self._network._end(transfer, settles=True)
                self._network._take(transfer)
                self.learn(transfer)
                return self._real.ClaimHtlcPaymentResponse(payment=self._network.payment(transfer, self.identity))
        raise self._real.SdkError.InvalidInput("No claimable HTLC with the given payment hash")

    async def prepare_send_payment(self, request: Any) -> Any:
        text = request.payment_request.input
        faults = self._network.account(self.identity).faults
        if faults and faults[0].kind == "no_route":
            faults.pop(0)
            raise self._network._service_error("no route found")
        if spark_address.looks_like(text):
            await self._begin("prepare_send_payment", local=True)
            method = self._real.SendPaymentMethod.SPARK_ADDRESS(address=text, fee=0, token_identifier=None)
            amount = request.amount
        else:
            await self._begin("prepare_send_payment")
            read = self._read(text)
            amount = request.amount or -(-(read.amount_msats or 0) // 1_000)
            self._route(text, read)
            method = self._real.SendPaymentMethod.BOLT11_INVOICE(
                invoice_details=self._details(text, read),
                spark_transfer_fee_sats=None,
                lightning_fee_sats=self._network.fee(amount),
            )
        return self._real.PrepareSendPaymentResponse(
            payment_method=method,
            amount=amount,
            token_identifier=None,
            conversion_estimate=None,
            fee_policy=self._real.FeePolicy.FEES_EXCLUDED,
        )

    async def send_payment(self, request: Any) -> Any:
        network, prepared = self._network, request.prepare_response
        transfer_id = str(uuid.UUID(request.idempotency_key)) if request.idempotency_key else network._uuid()
        await self._begin("send_payment")
        known = network._transfers.get(transfer_id)
        if known is not None:
            self.learn(known)
            return self._real.SendPaymentResponse(payment=network.payment(known, self.identity))
        account = network.account(self.identity)
        if account.faults and account.faults[0].kind == "slow":
            await trio.sleep(account.faults.pop(0).seconds)
        transfer = self._transfer(transfer_id, prepared)
        if account.balance < transfer.sats + transfer.fee:
            raise self._real.SdkError.InsufficientFunds(token_identifier=None)
        invoice = network._invoices.get(transfer.hash)
        if invoice is not None:
            self._route(transfer.bolt11, bolt11.decode(transfer.bolt11))
        fault = account.faults.pop(0) if account.faults else None
        if fault is not None and fault.kind == "dropped":
            raise network._spark_error("Operator RPC error: Transport error: Connection error: connection reset")
        account.balance -= transfer.sats + transfer.fee
        network._transfers[transfer_id] = transfer
        if invoice is not None:
            invoice.paid_by = transfer_id
        await self._move(transfer, invoice, fault, request.options)
        self.learn(transfer)
        return self._real.SendPaymentResponse(payment=network.payment(transfer, self.identity))

    # --- how ----------------------------------------------------------------------------------------------------

    async def _move(self, transfer: Transfer, invoice: Invoice | None, fault: Fault | None, options: Any) -> None:
        network = self._network
        self.learn(transfer)
        if invoice is not None and invoice.preimage is None:
            transfer.waits = True
            network._later(network.htlc_seconds, transfer, settles=False)
            await network._arrive(transfer)
            with trio.move_on_after(options.completion_timeout_secs or 0):
                await transfer.ended.wait()
            return
        kind = "" if fault is None else fault.kind
        if fault is not None and kind == "pend":
            network._later(fault.seconds, transfer, settles=fault.settles)
            return
        if fault is not None and kind == "delay":
            # The network goes on, whoever waits for it.
            network._later(fault.seconds, transfer, settles=fault.settles)
            await transfer.ended.wait()
            return
        await network._end(transfer, settles=kind != "fail")
        if kind == "lost":
            raise network._spark_error("Operator RPC error: Transport error: Connection error: timed out")
        if kind == "silent":
            await trio.sleep_forever()

    async def _begin(self, name: str, *, local: bool = False) -> None:
        """Every call: counted, hung where a test wants that, and refused offline unless the disk suffices."""
        await trio.lowlevel.checkpoint()
        self._network.calls.append(name)
        if name in self._network.hangs:
            await trio.sleep_forever()
        if not local and not self._network.online:
            raise self._network._spark_error(DNS)

    def _invoice(self, method: Any) -> str:
        network = self._network
        preimage = None if method.payment_hash else network._bytes()
        payment_hash = method.payment_hash or hashlib.sha256(preimage or b"").hexdigest()
        text = bolt11.encode(
            prefix=REGTEST.prefix,
            amount_msats=method.amount_sats * 1_000 if method.amount_sats else None,
            timestamp=int(network.clock.now()),
            payment_hash=payment_hash,
            payment_secret=network._bytes().hex(),
            description=method.description,
            expiry=method.expiry_secs or 86_400,
            node_secret=SERVICE_SECRET,
        )
        network._invoices[payment_hash] = Invoice(
            text,
            self.identity,
            method.amount_sats or 0,
            payment_hash,
            None if preimage is None else preimage.hex(),
            method.description,
        )
        return text

    def _read(self, text: str) -> bolt11.Invoice:
        try:
            return bolt11.decode(text)
        except bolt11.Bolt11Invalid:
            raise self._real.SdkError.InvalidInput("invalid input") from None

    def _route(self, text: str, read: bolt11.Invoice) -> None:
        """What the Lightning service refuses."""
        invoice = self._network._invoices.get(read.payment_hash)
        if invoice is None or invoice.bolt11 != text:
            raise self._network._service_error("no route found")
        if invoice.paid_by:
            raise self._network._service_error("the invoice has already been paid")

    def _details(self, text: str, read: bolt11.Invoice) -> Any:
        real = self._real
        return real.Bolt11InvoiceDetails(
            amount_msat=read.amount_msats,
            description=read.description,
            description_hash=read.description_hash,
            expiry=read.expiry,
            invoice=real.Bolt11Invoice(
                bolt11=text, source=real.PaymentRequestSource(bip_21_uri=None, bip_353_address=None)
            ),
            min_final_cltv_expiry_delta=read.min_final_cltv,
            network=real.BitcoinNetwork.REGTEST,
            payee_pubkey=read.payee,
            payment_hash=read.payment_hash,
            payment_secret=read.payment_secret,
            routing_hints=[],
            timestamp=read.timestamp,
        )

    def _transfer(self, transfer_id: str, prepared: Any) -> Transfer:
        network, method = self._network, prepared.payment_method
        now = network.clock.now()
        if method.is_SPARK_ADDRESS():
            receiver = spark_address.decode(method.address).identity
            if receiver == self.identity:
                raise network._spark_error("Self payment not allowed")
            return Transfer(transfer_id, self.identity, receiver, prepared.amount, 0, now, "SPARK")
        details = method.invoice_details
        invoice = network._invoices.get(details.payment_hash)
        if invoice is None:
            raise network._service_error("no route found")
        return Transfer(
            transfer_id,
            self.identity,
            invoice.receiver,
            prepared.amount,
            method.lightning_fee_sats,
            now,
            "LIGHTNING",
            bolt11=details.invoice.bolt11,
            hash=details.payment_hash,
            description=details.description,
            expires_at=now + network.htlc_seconds,
        )

    def learn(self, transfer: Transfer) -> None:
        """Write down what has become of a transfer, and the balance."""
        # Who is to receive sees nothing before there is something to take, but an HTLC that waits for its preimage.
        if (
            transfer.sender == self.identity
            or transfer.id in self._storage.payments
            or (transfer.receiver == self.identity and (transfer.state == "COMPLETED" or transfer.waits))
        ):
            self._storage.payments[transfer.id] = self._network.payment(transfer, self.identity)
        self._storage.balance = self._network.account(self.identity).balance

    def catch_up(self) -> list[Transfer]:
        """Take what has come in, and learn what has changed; returns that."""
        news = []
        for transfer in self._network._transfers.values():
            if self.identity not in (transfer.sender, transfer.receiver):
                continue
            if transfer.receiver == self.identity:
                self._network._take(transfer)
            before = self._storage.payments.get(transfer.id)
            self.learn(transfer)
            after = self._storage.payments.get(transfer.id)
            if after is not None and (before is None or before.status != after.status):
                news.append(transfer)
        self._storage.balance = self._network.account(self.identity).balance
        return news

    async def emit(self, transfer: Transfer) -> None:
        payment = self._storage.payments.get(transfer.id)
        if payment is None:
            return
        event = {
            "COMPLETED": self._real.SdkEvent.PAYMENT_SUCCEEDED,
            "PENDING": self._real.SdkEvent.PAYMENT_PENDING,
            "FAILED": self._real.SdkEvent.PAYMENT_FAILED,
        }[payment.status.name]
        await self._emit(event(payment=payment))

    async def _emit(self, event: Any) -> None:
        for listener in list(self._listeners.values()):
            await listener.on_event(event)
