"""Simnet: a Lightning network in a file. **Simnet sats are not money**: a faucet makes them from nowhere.

Everything else is as it is with money: invoices are real BOLT 11 (prefix ``lnsb``, which no real network pays), signed
by the wallet's node key; a payer learns the preimage only by paying; fees are charged; payments stay pending, time out
and fail, where a test injects that. A wallet also has an address like Spark's, and one like Bitcoin's for deposits,
both marked as simnet's (``pylon.wallets.simnet_address``). Wallets of all processes that open the same file can pay
each other; a payee learns of a payment at once in the same process, and within 50 ms in another one.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

import trio

from protocols import bolt11, entropy
from pylon.clock import Clock
from pylon.errors import InvoiceInvalid, PaymentFailed, StoreError, WrongNetwork
from pylon.money import Msat
from pylon.wallets.port import (
    Addresses,
    Balance,
    Can,
    IssuedInvoice,
    Payment,
    PaymentEvents,
    PaymentState,
    Target,
    WalletInfo,
)
from pylon.wallets.simnet_address import NETWORK, bitcoin_address, bitcoin_owner, read_target, spark_address
from pylon.wallets.simnet_ledger import HOLD_SECONDS, LedgerFile
from pylon.wallets.simnet_model import Fault, FaultKind, FeeModel, Side

__all__ = ["NETWORK", "PREFIX", "Fault", "FaultKind", "FeeModel", "Side", "SimnetLedger", "SimnetWallet"]

PREFIX = "sb"
NOTE = "simnet sats are not money"
POLL_SECONDS = 0.02
_BRISK_POLL_SECONDS = 0.004
_BRISK_SECONDS = 1.0
"""How long after issuing an invoice the ledger is asked more often: most are paid at once, or not for a while."""
_BLOCK_SECONDS = 600


class SimnetLedger:
    """The ledger file as one process uses it; its wallets share it.

    ``poll_seconds`` is how often the file is asked for changes by other processes, only while somebody listens or
    waits; ``None`` says that there are none, which spares a simulation in virtual time 50 wake-ups a second.
    ``durable=False`` gives up fsync. ``rng`` draws the jitter of faults. Opens the file at once, creating it if need
    be. Raises ``StoreError``.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Clock,
        rng: random.Random | None = None,
        poll_seconds: float | None = POLL_SECONDS,
        durable: bool = True,
    ) -> None:
        self.path = Path(path)
        self.clock = clock
        self._poll_seconds = poll_seconds
        self._file = LedgerFile(self.path, rng=rng or random.Random(), durable=durable, on_commit=self._ring)
        self._bell = trio.Event()
        self._changes = 0
        self._polling = False
        self._brisk_until = -float("inf")
        self._closed = False

    async def __aenter__(self) -> SimnetLedger:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file; ends what listens to it."""
        if not self._closed:
            self._closed = True
            self._file.close()
            self._ring()

    def wallet(self, name: str, node_secret: bytes, label: str = "") -> SimnetWallet:
        """The wallet of a node key, made when it is new. ``label`` says to people whose it is."""
        return SimnetWallet(self, name, node_secret, label)

    def accounts(self) -> dict[str, Msat]:
        """Balances by node key, with ``fees`` and ``outside`` (minus what the faucet gave). They sum to zero."""
        return self._file.accounts()

    async def deposit(self, address: str, amount: Msat) -> Payment:
        """As if ``amount`` had been sent on chain to a wallet's Bitcoin address: it comes from nowhere.

        Raises ``InvoiceInvalid`` for what is no such address, ``NoRoute`` where no wallet of this ledger has it.
        """
        await trio.lowlevel.checkpoint()
        owner = bitcoin_owner(address)
        return self._file.deposit(owner, amount, self._look_now(), "deposit")

    async def balances(self, wallets: Collection[str] | None = None) -> dict[str, Balance]:
        """What these wallets hold (by node key), or all of the ledger, in one look; unknown ones are left out."""
        await trio.lowlevel.checkpoint()
        now = self._look_now()
        return {
            wallet: Balance(settled=settled, pending_out=leaving, known_at=now)
            for wallet, (settled, leaving) in self._file.balances(wallets).items()
        }

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Node keys of wallets about which there is news, from the moment of entering until the ledger is closed."""
        return _Changes(self)

    def fees(self) -> FeeModel:
        return self._file.fees()

    def set_fees(self, fees: FeeModel) -> None:
        """Stored in the ledger: for all its wallets, in every process."""
        self._file.set_fees(fees)

    def inject(
        self, fault: Fault, *, wallet: SimnetWallet | str | None = None, side: Side = Side.PAYER, count: int = 1
    ) -> None:
        """Let the next ``count`` payments from (or to) a wallet, or of anybody, go wrong. Stored in the ledger.

        ``wallet`` is one, or its node key in hex. Only payments that would have gone through use up a fault.
        """
        node = wallet.node_pubkey if isinstance(wallet, SimnetWallet) else wallet
        self._file.inject(fault, node, side, count)

    def clear_faults(self) -> None:
        self._file.clear_faults()

    def _look_now(self) -> float:
        """Bring the ledger up to now, and say when that is. Raises ``StoreError`` for a closed one."""
        if self._closed:
            raise StoreError(f"the simnet ledger {self.path} is closed")
        now = self.clock.now()
        self._file.resolve_due(now)
        return now

    def _ring(self) -> None:
        self._changes += 1
        self._bell.set()
        self._bell = trio.Event()

    async def _changed(self, since: int) -> None:
        """Wait until the ledger is another than at ``since``.

        The first who waits polls for all; when it leaves, it rings, and another one takes over.
        """
        while self._changes == since and not self._closed:
            if self._polling:
                await self._bell.wait()
                continue
            self._polling = True
            try:
                while self._changes == since and not self._closed:
                    with trio.move_on_after(self._patience()):
                        await self._bell.wait()
                    self._look()
            finally:
                self._polling = False
                self._bell.set()
                self._bell = trio.Event()

    def _patience(self) -> float:
        """Seconds until something may have happened of which nobody here rings."""
        due = self._file.next_due()
        until_due = float("inf") if due is None else max(due - self.clock.now(), 0.001)
        if self._poll_seconds is None:
            return until_due
        brisk = trio.current_time() < self._brisk_until
        return min(until_due, self._poll_seconds, _BRISK_POLL_SECONDS if brisk else float("inf"))

    def _look(self) -> None:
        if self._closed:
            return
        self._file.resolve_due(self.clock.now())
        if self._file.changed_elsewhere():
            self._ring()


class SimnetWallet:
    """A wallet of the simulated network: ``pylon.wallets.port.Wallet``. Its identity is its node key."""

    def __init__(self, ledger: SimnetLedger, name: str, node_secret: bytes, label: str = "") -> None:
        self.name = name
        self.node_pubkey = bolt11.node_public_key(node_secret).hex()
        self._node_secret = node_secret
        self._ledger = ledger
        self._file = ledger._file
        self._clock = ledger.clock
        self._closed = False
        self._listeners = 0
        self._file.register(self.node_pubkey, name, label, self._clock.now())

    @property
    def ledger(self) -> SimnetLedger:
        """The ledger that it shares with the others."""
        return self._ledger

    def __repr__(self) -> str:
        return f"<SimnetWallet {self.name} {self.node_pubkey[:16]}>"

    async def info(self) -> WalletInfo:
        await self._begin()
        return WalletInfo(
            name=self.name,
            network=NETWORK,
            kind="simnet",
            node_pubkey=self.node_pubkey,
            can=frozenset(Can),
            note=NOTE,
        )

    async def balance(self) -> Balance:
        now = await self._begin()
        settled, pending = self._file.balance(self.node_pubkey)
        return Balance(settled=settled, pending_out=pending, known_at=now)

    async def fund(self, amount: Msat) -> Payment:
        """The faucet: ``amount`` from nowhere, a payment received from outside."""
        now = await self._begin()
        return self._file.deposit(self.node_pubkey, amount, now)

    async def receive(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, *, hash_description: bool = False
    ) -> IssuedInvoice:
        """See ``Wallet.receive``. A description over 639 bytes travels as its hash. Raises ``InvoiceInvalid``."""
        return await self._issue(amount, description, expiry_seconds, key, hash_description=hash_description)

    async def receive_any(self, description: str, expiry_seconds: int, key: str) -> IssuedInvoice:
        """An invoice that names no amount (``IssuedInvoice.amount`` is 0): the payer chooses. Idempotent by ``key``."""
        return await self._issue(None, description, expiry_seconds, key)

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        """See ``Wallet.hold``. Unanswered, a payment goes back 6 hours after it arrived.

        Raises ``InvoiceInvalid``, also for a hash or a key that another invoice has.
        """
        issued = await self._issue(amount, description, expiry_seconds, key, payment_hash=payment_hash)
        if issued.payment_hash != payment_hash.lower():
            raise InvoiceInvalid("this key is that of an invoice with another payment hash", "take a new key")
        return issued

    async def settle(self, preimage: str) -> None:
        now = await self._begin()
        try:
            secret = bytes.fromhex(preimage)
        except ValueError:
            raise PaymentFailed("nothing is held for what is no preimage") from None
        self._file.settle(self.node_pubkey, secret, now)

    async def cancel(self, payment_hash: str) -> None:
        """See ``Wallet.cancel``. Raises ``InvoiceInvalid`` where this wallet has no such hold invoice."""
        now = await self._begin()
        self._file.cancel(self.node_pubkey, payment_hash.lower(), now)

    async def addresses(self) -> Addresses:
        await self._begin()
        return Addresses(spark=spark_address(self.node_pubkey), bitcoin=bitcoin_address(self.node_pubkey))

    async def decode(self, target: str) -> Target:
        await self._begin()
        return read_target(target)

    async def quote(self, target: str, *, amount: Msat | None = None) -> Msat:
        await self._begin()
        return self._file.course(self.node_pubkey, _payable(target), amount).fee

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        """See ``Wallet.pay``. Cancelled, it leaves the payment to end by itself, as a network does.

        One that a hold invoice holds is returned pending.
        """
        now = await self._begin()
        attempt = self._file.pay(
            self.node_pubkey, _payable(target), amount=amount, max_fee=max_fee, key=idempotency_key, now=now
        )
        if attempt.error is not None:
            raise attempt.error
        payment = attempt.payment
        assert payment is not None, "an attempt without an error has a payment"
        ends_at = attempt.waits_until
        while ends_at is not None and payment.state is PaymentState.PENDING:
            await trio.sleep(max(ends_at - self._clock.now(), 0.001))
            now = self._clock.now()
            self._file.resolve_due(now)
            payment = self._file.payment(payment.payment_id)
            if now >= ends_at:
                # Still pending, it has arrived at a hold invoice.
                break
        if payment.state is PaymentState.FAILED:
            raise PaymentFailed("the payment has failed", "nothing was charged; ask for a new invoice")
        return payment

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        await self._begin()
        return self._file.sent(self.node_pubkey, payment_hash)

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await self._begin()
        return self._file.sent_under(self.node_pubkey, idempotency_key)

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        await self._begin()
        return self._file.invoice(self.node_pubkey, payment_hash)

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        await self._begin()
        return self._file.payments(self.node_pubkey, since, limit, completed=completed, newest=newest)

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        return _Listener(self)

    async def aclose(self) -> None:
        """End this wallet's listeners; the ledger stays open."""
        self._closed = True
        # Only where somebody listens to this very wallet: the bell wakes the listeners of all.
        if self._listeners and not self._ledger._closed:
            self._ledger._ring()

    async def _issue(
        self,
        amount: Msat | None,
        description: str,
        expiry_seconds: int,
        key: str,
        *,
        hash_description: bool = False,
        payment_hash: str | None = None,
    ) -> IssuedInvoice:
        """An invoice with a preimage of ours, or one for the payment hash that is given."""
        now = await self._begin()
        known = self._file.invoice_by_key(self.node_pubkey, key)
        if known is not None:
            return known
        try:
            raw = description.encode()
        except UnicodeEncodeError:
            raise InvoiceInvalid("the description is not Unicode text") from None
        preimage = None if payment_hash is not None else entropy.random_bytes(32)
        hashed = hashlib.sha256(preimage).hexdigest() if preimage is not None else (payment_hash or "").lower()
        plain = not hash_description and len(raw) <= bolt11.MAX_FIELD_BYTES
        try:
            text = bolt11.encode(
                prefix=PREFIX,
                amount_msats=amount,
                timestamp=int(now),
                payment_hash=hashed,
                payment_secret=entropy.random_bytes(32).hex(),
                description=description if plain else None,
                description_hash=None if plain else hashlib.sha256(raw).hexdigest(),
                expiry=expiry_seconds,
                min_final_cltv=bolt11.DEFAULT_MIN_FINAL_CLTV if preimage else int(HOLD_SECONDS) // _BLOCK_SECONDS,
                node_secret=self._node_secret,
            )
        except bolt11.Bolt11Invalid as error:
            raise InvoiceInvalid(f"no such invoice can be made: {error}") from None
        issued = IssuedInvoice(
            bolt11=text, payment_hash=hashed, amount=amount or Msat(0), expires_at=float(int(now) + expiry_seconds)
        )
        self._ledger._brisk_until = trio.current_time() + _BRISK_SECONDS
        secret = None if preimage is None else preimage.hex()
        return self._file.add_invoice(self.node_pubkey, key, issued, secret, description, now)

    async def _begin(self) -> float:
        """The one checkpoint of a call that does not wait: cancelled here, nothing has happened."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreError(f"the simnet wallet {self.name} is closed")
        now = self._clock.now()
        self._file.resolve_due(now)
        return now


class _Changes:
    """Whose news there are since the moment of entering, each wallet once a look; ends when the ledger is closed."""

    def __init__(self, ledger: SimnetLedger) -> None:
        self._ledger = ledger
        self._seen = 0
        self._waiting: deque[str] = deque()

    async def __aenter__(self) -> AsyncIterator[str]:
        await trio.lowlevel.checkpoint()
        self._ledger._look_now()
        self._seen = self._ledger._file.last_news()
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ledger._closed:
                raise StopAsyncIteration
            changes = self._ledger._changes
            self._seen, wallets = self._ledger._file.changed_wallets(self._seen)
            self._waiting.extend(wallets)
            if not self._waiting:
                await self._ledger._changed(changes)
        return self._waiting.popleft()


class _Listener:
    """The news of one wallet since the moment of entering; ends when the wallet or the ledger is closed."""

    def __init__(self, wallet: SimnetWallet) -> None:
        self._wallet = wallet
        self._ledger = wallet._ledger
        self._seen = 0
        self._waiting: deque[Payment] = deque()

    async def __aenter__(self) -> PaymentEvents:
        await self._wallet._begin()
        self._seen = self._wallet._file.last_news()
        self._wallet._listeners += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._wallet._listeners -= 1

    def __aiter__(self) -> AsyncIterator[Payment]:
        return self

    async def __anext__(self) -> Payment:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._wallet._closed or self._ledger._closed:
                raise StopAsyncIteration
            changes = self._ledger._changes
            for seq, payment in self._wallet._file.news(self._wallet.node_pubkey, self._seen):
                self._seen = seq
                self._waiting.append(payment)
            if not self._waiting:
                await self._ledger._changed(changes)
        return self._waiting.popleft()


def _payable(text: str) -> Target:
    """A target on this network."""
    target = read_target(text)
    if target.network != NETWORK:
        raise WrongNetwork(
            f"{target.kind} of {target.network}: this wallet is on simnet", "use a wallet of that network"
        )
    return target
