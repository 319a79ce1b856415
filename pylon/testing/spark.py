"""A pretended Spark network, with the Breez SDK's own face: what cannot be had without the internet.

``FakeSpark`` stands in for the module ``breez_sdk_spark``. All values (requests, payments, events, errors) are the
SDK's own classes, so that nothing can be asked for or answered that the SDK does not have; what is pretended is the
builder, the instance (``FakeBreezSdk``, with signatures that a test compares with the real one) and everybody behind
it: operators, the Lightning service, other wallets.

It keeps what makes the SDK hard to use:

* What an instance says of balance and payments is what its storage has. In client mode that follows the network by
  itself; in server mode only ``sync_wallet`` brings it up to date and takes what has come in.
* Offline, ``sync_wallet`` returns as if all were well, ``get_info`` tells what it knew, ``ensure_synced`` hangs, and
  everything else fails at DNS.
* A payment that is on its way has left the balance already; an idempotency key is one payment in the whole network.

Coroutines here wait for Trio: they want ``InlineBridge``. Time is the ``clock``'s.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import trio

from protocols import bolt11
from pylon.clock import Clock
from pylon.testing.spark_sdk import FakeBreezSdk, FakeSdkBuilder
from pylon.testing.spark_values import SERVICE_SECRET, Account, Fault, Invoice, Storage, Transfer, bitcoin_address
from pylon.wallets.spark_types import REGTEST


class FakeSpark:
    """See the module.

    :param fee: of a Lightning payment of so many sats, in sats.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        fee: Callable[[int], int] = lambda sats: max(1, -(-sats // 400)),
        htlc_seconds: float = 3_600.0,
    ) -> None:
        import breez_sdk_spark

        self.real: Any = breez_sdk_spark
        self.clock = clock
        self.fee = fee
        self.htlc_seconds = htlc_seconds
        self.online = True
        self.hangs: set[str] = set()
        """Names of methods that never return."""
        self.calls: list[str] = []
        """Names of the methods that were called, in order."""
        self.open: set[FakeBreezSdk] = set()
        self._rng = rng or random.Random(0)
        self._accounts: dict[str, Account] = {}
        self._transfers: dict[str, Transfer] = {}
        self._invoices: dict[str, Invoice] = {}
        self._storages: dict[str, Storage] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    # --- what the module has ----------------------------------------------------------------------------------

    def SdkBuilder(self, config: Any, seed: Any) -> FakeSdkBuilder:
        return FakeSdkBuilder(self, config, seed)

    async def new_shared_sdk_context(self, config: Any) -> object:
        return object()

    # --- what a test does -------------------------------------------------------------------------------------

    def account(self, identity: str) -> Account:
        return self._accounts.setdefault(identity, Account())

    def fault(self, identity: str, fault: Fault) -> None:
        self.account(identity).faults.append(fault)

    async def deposit(self, identity: str, sats: int) -> None:
        """From the chain."""
        transfer = Transfer(self._uuid(), "", identity, sats, 0, self.clock.now(), "DEPOSIT", state="COMPLETED")
        transfer.hash = ""
        self._transfers[transfer.id] = transfer
        await self._arrive(transfer)

    async def deposit_to(self, address: str, sats: int) -> None:
        """From the chain, to an address that somebody here was given."""
        (identity,) = [name for name in self._accounts if bitcoin_address(name) == address]
        await self.deposit(identity, sats)

    def open_invoice(self, description: str) -> str:
        """An invoice of a stranger's that names no amount."""
        preimage = self._bytes()
        payment_hash = hashlib.sha256(preimage).hexdigest()
        text = bolt11.encode(
            prefix=REGTEST.prefix,
            amount_msats=None,
            timestamp=int(self.clock.now()),
            payment_hash=payment_hash,
            payment_secret=self._bytes().hex(),
            description=description,
            node_secret=SERVICE_SECRET,
        )
        self._invoices[payment_hash] = Invoice(text, "stranger", 0, payment_hash, preimage.hex(), description)
        return text

    def total(self) -> int:
        """All sats that somebody has or that are on their way; a fee is nobody's."""
        waiting = sum(
            transfer.sats + (transfer.fee if transfer.state == "PENDING" else 0)
            for transfer in self._transfers.values()
            if transfer.state == "PENDING" or (transfer.state == "COMPLETED" and not transfer.claimed)
        )
        return waiting + sum(account.balance for account in self._accounts.values())

    def fees(self) -> int:
        """What the service has earned."""
        return sum(transfer.fee for transfer in self._transfers.values() if transfer.state == "COMPLETED")

    # --- the network ------------------------------------------------------------------------------------------

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def _bytes(self) -> bytes:
        return self._rng.randbytes(32)

    def _spark_error(self, text: str) -> Exception:
        error: Exception = self.real.SdkError.SparkError(text)
        return error

    def _service_error(self, text: str) -> Exception:
        return self._spark_error(f"Service error: service provider error: graphql error: {text}")

    def _clients(self, identity: str) -> list[FakeBreezSdk]:
        return [sdk for sdk in self.open if sdk.identity == identity and not sdk.server]

    async def _arrive(self, transfer: Transfer) -> None:
        """Something has come to a wallet: it takes it by itself in client mode."""
        if not self.online:
            return
        for sdk in self._clients(transfer.receiver):
            self._take(transfer)
            sdk.learn(transfer)
            await sdk.emit(transfer)

    def _take(self, transfer: Transfer) -> None:
        if transfer.state == "COMPLETED" and not transfer.claimed:
            transfer.claimed = True
            self.account(transfer.receiver).balance += transfer.sats

    async def _end(self, transfer: Transfer, *, settles: bool) -> None:
        if transfer.state != "PENDING":
            return
        transfer.waits = False
        transfer.ended.set()
        if settles:
            transfer.state = "COMPLETED"
            invoice = self._invoices.get(transfer.hash)
            if invoice is not None and invoice.preimage is not None:
                transfer.preimage = invoice.preimage
        else:
            transfer.state = "FAILED"
            self.account(transfer.sender).balance += transfer.sats + transfer.fee
            invoice = self._invoices.get(transfer.hash)
            if invoice is not None and invoice.paid_by == transfer.id:
                invoice.paid_by = ""
        if self.online:
            for sdk in self._clients(transfer.sender):
                sdk.learn(transfer)
                await sdk.emit(transfer)
        await self._arrive(transfer)

    def _later(self, seconds: float, transfer: Transfer, *, settles: bool) -> None:
        async def end() -> None:
            await trio.sleep(seconds)
            await self._end(transfer, settles=settles)

        trio.lowlevel.spawn_system_task(end)

    def payment(self, transfer: Transfer, identity: str) -> Any:
        """A transfer as the SDK tells it to sender or receiver."""
        real = self.real
        sent = transfer.sender == identity
        status = real.PaymentStatus[transfer.state]
        htlc = None
        if transfer.hash:
            stage = {"COMPLETED": "PREIMAGE_SHARED", "PENDING": "WAITING_FOR_PREIMAGE", "FAILED": "RETURNED"}
            htlc = real.SparkHtlcDetails(
                payment_hash=transfer.hash,
                preimage=transfer.preimage if transfer.state == "COMPLETED" else None,
                expiry_time=int(transfer.expires_at),
                status=real.SparkHtlcStatus[stage[transfer.state]],
            )
        match transfer.method:
            case "LIGHTNING":
                details = real.PaymentDetails.LIGHTNING(
                    description=transfer.description,
                    invoice=transfer.bolt11,
                    destination_pubkey=bolt11.node_public_key(SERVICE_SECRET).hex(),
                    htlc_details=htlc,
                    lnurl_pay_info=None,
                    lnurl_withdraw_info=None,
                    lnurl_receive_metadata=None,
                    conversion_info=None,
                )
            case "DEPOSIT":
                details = real.PaymentDetails.DEPOSIT(tx_id=hashlib.sha256(transfer.id.encode()).hexdigest(), vout=0)
            case _:
                details = real.PaymentDetails.SPARK(invoice_details=None, htlc_details=None, conversion_info=None)
        return real.Payment(
            id=transfer.id,
            payment_type=real.PaymentType.SEND if sent else real.PaymentType.RECEIVE,
            status=status,
            amount=transfer.sats,
            fees=transfer.fee if sent else 0,
            timestamp=int(transfer.at),
            method=real.PaymentMethod[transfer.method],
            details=details,
            conversion_details=None,
        )
