"""Paying from a Spark wallet, and what became of payments.

* A payment is written down (``spark_journal``) before the SDK hears of it, under an id that follows from wallet and
  key, which makes the operators refuse a second one.
* ``send_payment`` is never broken off: who is cancelled leaves, and the call goes on. A deadline there is *unknown*,
  and nothing but what the SDK checks by itself counts as "not sent" (``spark_errors``).
* While that call runs (``spark_calls``) its payment is never taken for lost. What has settled never fails afterwards.
* Invoices go over Lightning, to payees on Spark too: a direct transfer would give no preimage, which is the proof.
"""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

import attrs
import trio

from protocols import spark_address
from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InvoiceExpired,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    StoreError,
    WalletError,
    WalletUnreachable,
    brief,
)
from pylon.money import Msat, ceil_to_sat, format_msat, sats
from pylon.wallets import spark_errors, spark_types
from pylon.wallets.port import Direction, Payment, PaymentState, Target, TargetKind
from pylon.wallets.spark_calls import Sending
from pylon.wallets.spark_journal import Send, Stage
from pylon.wallets.spark_link import SparkLink

log = logging.getLogger(__name__)

LOST_SECONDS = 900.0
"""A payment that the operators do not know so long after its call has ended was never made."""
_NAMESPACE = uuid.UUID("6d7a3f0e-4c58-5d2b-9c2e-5b6f1f1d8a10")


class SparkPayments(SparkLink):
    """See the module."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._missed: dict[str, int] = {}
        """Payments that are long due and not found, with the round trip that missed them first."""

    @property
    def is_busy(self) -> bool:
        return self._kit.calls.is_paying(self) or super().is_busy

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
        self._journal.begin(send)
        sending = self._kit.calls.begin(send, self)
        try:
            if self.server or not self._synced:
                # What has come in is ours to spend once it was taken, and nobody has done that here.
                await self._refresh()
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
            try:
                self._journal.forget(send.key)
            finally:
                sending.end()
            raise
        sending.tell(self._kit.deadlines.send)
        trio.lowlevel.spawn_system_task(self._send, sending, prepared, fee)
        if not await sending.wait():
            raise PaymentUnknown(
                f"Spark did not say within {self._kit.deadlines.send:.0f} s what became of the payment",
                "it is looked up again; do not pay again",
            )
        if sending.error is not None:
            raise sending.error
        assert sending.payment is not None, "a payment or an error"
        if sending.payment.state is PaymentState.FAILED:
            raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
        return sending.payment

    async def _send(self, sending: Sending, prepared: Any, fee: Msat) -> None:
        """The call that moves money, in a task that nobody's cancellation or patience ends. Raises nothing."""
        send = sending.send
        try:
            sending.payment = await self._sent(sending, prepared, fee)
        except WalletError as error:
            sending.error = error
            if not isinstance(error, PaymentUnknown):
                self._unsent(send)
        except Exception as error:
            log.warning("Spark broke while paying %s: %s", send.id[:16], brief(error))
            sending.error = PaymentUnknown(f"the Spark SDK broke off ({type(error).__name__})")
        finally:
            self._stale = True
            ended = sending.payment is not None and sending.payment.state is not PaymentState.PENDING
            refused = sending.error is not None and not isinstance(sending.error, PaymentUnknown)
            sending.end(None if ended or refused else self._clock.monotonic())
            self._on_change(self)
            if self._closed:
                self._journal.close()  # opened again to write down what came of it

    def _unsent(self, send: Send) -> None:
        """It is certain that nothing was sent. Raises nothing: a row that stays is looked up, and found lost."""
        try:
            self._journal.forget(send.key)
        except StoreError as error:
            log.warning("%s", error.message)

    async def _sent(self, sending: Sending, prepared: Any, fee: Msat) -> Payment:
        sdk, send = self._kit.sdk, sending.send
        options = None
        if prepared.payment_method.is_BOLT11_INVOICE():
            seconds = max(1, int(self._kit.deadlines.settle))
            options = sdk.SendPaymentOptions.BOLT11_INVOICE(prefer_spark=False, completion_timeout_secs=seconds)
        request = sdk.SendPaymentRequest(prepare_response=prepared, options=options, idempotency_key=send.id)
        async with self._using() as instance:
            try:
                try:
                    return self._news((await self._kit.bridge.outlast(instance.send_payment, request)).payment)
                except sdk.SdkError.InsufficientFunds:
                    # Nothing was sent. What has come in since we looked is ours to spend once it was taken.
                    self._stale = True
                    if not sending.is_late:
                        await self._refresh()
                    if sending.is_late:
                        raise  # who asked has left, and was not told that it is tried again
                    return self._news((await self._kit.bridge.outlast(instance.send_payment, request)).payment)
            except sdk.SdkError as error:
                available = Msat(0)
                if spark_errors.kind(error) == "InsufficientFunds":
                    info = await self._ask(
                        "asking for the balance", instance.get_info, sdk.GetInfoRequest(ensure_synced=False)
                    )
                    available = sats(info.balance_sats)
                required = Msat(ceil_to_sat(send.amount) + fee)
                raise spark_errors.while_sending(error, required=required, available=available) from None

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
        running = self._kit.calls.running(send.id)
        if running is not None and await running.wait() and running.error is not None:
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

    async def _became(self, send: Send, *, fresh: bool = False) -> Payment | None:
        """What became of a payment that this wallet was asked to make. ``fresh``: there was a round trip just now."""
        calls = self._kit.calls
        if send.stage is Stage.ASKED:
            if calls.running(send.id) is not None:
                return self._as_pending(send)
            # The process that wrote it down ended before it told the SDK.
            self._journal.forget(send.key)
            return None
        found = await self._by_id(send.id)
        running = calls.running(send.id)
        unsure = found is None or found.status.name == "PENDING"
        # While somebody waits for the call, it is the call that will tell.
        if unsure and send.stage is not Stage.FAILED and (running is None or running.is_late) and not fresh:
            await self._refresh()
            found = await self._by_id(send.id)
        # What was written down in the meantime counts.
        now = self._journal.send(send.key)
        if now is not None and now.stage is Stage.DONE and (found is None or found.status.name != "COMPLETED"):
            log.warning("the payment %s has settled, whatever the Spark SDK says of it now", send.id)
            return self._as_settled(now)
        if found is not None:
            return self._news(found, tell=False)
        if now is None:
            return None  # nothing was sent, after all
        if now.stage is Stage.FAILED:
            return self._as_failed(send)
        if not self._is_lost(send):
            return self._as_pending(send)
        log.warning("payment %s never reached Spark", send.id)
        self._journal.mark(send.key, Stage.FAILED)
        calls.forget(send.id)
        return self._as_failed(send)

    def _is_lost(self, send: Send) -> bool:
        """Whether one that Spark does not know, by the last round trip, was never made and will not be."""
        calls = self._kit.calls
        if calls.running(send.id) is not None:
            return False
        ended = calls.ended_at(send.id)
        if ended is not None:
            silent = self._trip_began - ended
        else:
            # Another life of the process has sent it; what has passed since by the wall clock may not have passed.
            looked = calls.first_look(send.id, self._clock.monotonic())
            silent = min(self._trip_began - looked, self.known_at - send.created_at)
        if silent < LOST_SECONDS:
            return False
        # The SDK does not say when it could not read its history: two round trips must both have missed it.
        return self._missed.setdefault(send.key, self._good_trip) != self._good_trip

    def _as_pending(self, send: Send) -> Payment:
        return Payment(
            payment_id=send.id,
            payment_hash=send.hash,
            direction=Direction.SENT,
            state=PaymentState.PENDING,
            amount=send.amount,
            fee=send.most_fee,
            created_at=send.created_at,
            bolt11=send.target if send.hash else None,
            key=send.key,
        )

    def _as_failed(self, send: Send) -> Payment:
        return attrs.evolve(self._as_pending(send), state=PaymentState.FAILED, fee=Msat(0))

    def _as_settled(self, send: Send) -> Payment:
        """By the journal alone: without the preimage, and with the highest fee in place of the fee."""
        return attrs.evolve(self._as_pending(send), state=PaymentState.SETTLED, settled_at=send.created_at)

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

    # --- news -------------------------------------------------------------------------------------------------

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
                self._kit.calls.forget(found.id)
        elif settled and spark_types.payment_hash(found):
            self._journal.settled(spark_types.payment_hash(found), sats(found.amount), float(found.timestamp))

    def _payment(self, found: Any) -> Payment:
        payment_hash = spark_types.payment_hash(found)
        ours = bool(payment_hash) and self._journal.issued_by_hash(payment_hash) is not None
        return spark_types.to_payment(found, ours=ours, key=self._journal.keys([found.id]).get(found.id, ""))
