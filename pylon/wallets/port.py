"""The Wallet port: what every wallet offers, whatever moves the money behind it.

Rules that all implementations keep (``tests/pylon/wallets/conformance.py`` checks them):

* Amounts are millisatoshi. A wallet that settles whole sats says so in ``WalletInfo.unit_msats``.
* ``pay`` is idempotent by ``idempotency_key`` and by payment hash: calling it again never pays again, it reports.
  The key is a UUID in text.
* A *target* is what a payer is given: a BOLT 11 invoice, or an address where the wallet has such (``Can``).
* What a wallet cannot do by its nature it refuses with ``NotSupported``, before anything has happened;
  ``WalletInfo.can`` says so beforehand.
* A balance is *known* at ``known_at``; a wallet that cannot tell raises, it never answers zero.
* An exception of ``WalletError`` other than ``PaymentUnknown`` means that no money has moved and none will.
  Any other exception, cancellation included, means *unknown*: look the payment up.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from protocols import bolt11
from pylon.money import Msat


class PaymentState(enum.StrEnum):
    PENDING = "pending"
    """Sent and not settled, or not known: counts against budgets, is never retried."""
    SETTLED = "settled"
    FAILED = "failed"
    """Failed for good: the wallet says so."""


class Can(enum.StrEnum):
    """What not every wallet can."""

    HOLD = "hold"
    """Invoices whose payment it keeps until they are settled or cancelled."""
    SPARK_ADDRESS = "spark_address"
    """Has an address within its own network, and pays to such addresses."""
    BITCOIN_ADDRESS = "bitcoin_address"
    """Has an on-chain address to deposit to."""
    OPEN_AMOUNT = "open_amount"
    """Pays invoices that name no amount."""


class TargetKind(enum.StrEnum):
    BOLT11 = "bolt11"
    SPARK = "spark"
    """An address within the wallet's own network (Spark's, or simnet's form of it): no invoice, no expiry, no hash."""


class Direction(enum.StrEnum):
    SENT = "sent"
    RECEIVED = "received"


@attrs.frozen
class WalletInfo:
    """What a wallet is, which does not change while it is open."""

    name: str
    network: str
    kind: str
    """``simnet``, ``spark`` or ``nwc``."""
    node_pubkey: str
    """Hex of the key that signs this wallet's invoices (33 bytes compressed); empty where unknown."""
    unit_msats: int = 1
    """The smallest amount that it can settle."""
    can: frozenset[Can] = frozenset()
    note: str = ""
    """What a person ought to know: that its sats are not money, that its network is another than was asked for."""


@attrs.frozen
class Addresses:
    """Where a wallet can be paid without an invoice; ``None`` where it cannot."""

    spark: str | None = None
    bitcoin: str | None = None


@attrs.frozen
class Target:
    """What ``decode`` read; nothing of it was checked against the network."""

    kind: TargetKind
    text: str
    """As it is to be given to ``quote`` and ``pay``."""
    network: str
    amount: Msat | None
    """``None``: the payer chooses."""
    payee: str
    """Node key or address."""
    payment_hash: str | None = None
    description: str = ""
    created_at: float | None = None
    expires_at: float | None = None

    @classmethod
    def of_invoice(cls, text: str, invoice: bolt11.Invoice) -> Target:
        """An invoice as it was decoded from ``text``."""
        return cls(
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


@attrs.frozen
class Balance:
    """What a wallet holds, as it said at ``known_at``."""

    settled: Msat
    """What is on its way out has not left it yet."""
    pending_out: Msat
    """On its way out, fees included; not spendable."""
    known_at: float
    """Wall time of the last proven answer, Unix seconds."""

    @property
    def spendable(self) -> Msat:
        """Settled, less what is on its way out."""
        return Msat(self.settled - self.pending_out)


@attrs.frozen
class IssuedInvoice:
    """An invoice of ours."""

    bolt11: str
    payment_hash: str
    amount: Msat
    expires_at: float
    received: Msat = Msat(0)
    """More than nothing once it is paid."""
    settled_at: float | None = None
    held: Msat = Msat(0)
    """Of a hold invoice: what was paid and waits for ``settle`` or ``cancel``."""
    cancelled: bool = False


@attrs.frozen
class Payment:
    """One payment, sent or received."""

    payment_id: str
    """Unique within the wallet."""
    payment_hash: str
    """Of the invoice; empty where there is none."""
    direction: Direction
    state: PaymentState
    amount: Msat
    """Without the fee."""
    fee: Msat
    created_at: float
    settled_at: float | None = None
    preimage: str | None = attrs.field(default=None, repr=False)
    bolt11: str | None = None
    description: str = ""
    outside: bool = False
    """A deposit or a faucet: not an invoice of ours."""
    key: str = ""
    """The ``idempotency_key`` that it was sent under, where the wallet remembers it."""


class PaymentEvents(Protocol):
    """Payments as they settle or fail. May repeat itself, may miss what happened while nobody listened.

    Wallets that can tell also name what waits at a hold invoice of ours (received, pending), and what was given back
    from there (received, failed); ``lookup_invoice`` knows in any case.
    """

    def __aiter__(self) -> AsyncIterator[Payment]: ...


class Wallet(Protocol):
    async def info(self) -> WalletInfo:
        """What it is."""
        ...

    async def balance(self) -> Balance:
        """What it holds. Raises where it cannot tell."""
        ...

    async def receive(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, *, hash_description: bool = False
    ) -> IssuedInvoice:
        """An invoice for ``amount``. Idempotent by ``key``: the same key gives the same invoice again.

        :param hash_description: the invoice carries SHA-256 of the description and not its words, however few
            (BOLT 11, field ``h``; LUD-06 and NIP-57 want it).

        Raises ``InvoiceInvalid`` for an amount or an expiry that no invoice has.
        """
        ...

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        """A hold invoice for a hash whose preimage the caller has. Idempotent by ``key``.

        Its payment is pending for the payer until ``settle`` or ``cancel``; one that is never answered comes back to
        the payer when the wallet gives up (hours). Raises ``NotSupported``, ``InvoiceInvalid``.
        """
        ...

    async def settle(self, preimage: str) -> None:
        """Take what is held for the hash of ``preimage`` (hex). Settling again changes nothing.

        Raises ``PaymentFailed`` where nothing is held for it (unpaid, cancelled, given back), ``NotSupported``.
        """
        ...

    async def cancel(self, payment_hash: str) -> None:
        """Give back what is held for a hold invoice, and let nobody pay it any more. Again changes nothing.

        Raises ``AlreadyPaid`` once it was settled, ``NotSupported``.
        """
        ...

    async def addresses(self) -> Addresses:
        """Where it can be paid without an invoice; stable."""
        ...

    async def decode(self, target: str) -> Target:
        """Read what a payer was given; no network is asked. Raises ``InvoiceInvalid``; of any network it is."""
        ...

    async def quote(self, target: str, *, amount: Msat | None = None) -> Msat:
        """The fee that ``pay`` would be charged now.

        :param amount: for a target that names none; one that is named and another than this is ``InvoiceInvalid``.

        Raises ``InvoiceInvalid``, ``WrongNetwork``, ``NoRoute``, ``NotSupported``.
        """
        ...

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        """Pay an invoice or an address. Returns it settled, or pending where the wallet stopped waiting.

        :param amount: as for ``quote``.

        Raises ``InsufficientFunds``, ``InvoiceExpired``, ``InvoiceInvalid``, ``WrongNetwork``, ``NoRoute``,
        ``FeeTooHigh``, ``AlreadyPaid`` (under another key), ``PaymentFailed``, ``NotSupported``; ``PaymentUnknown`` on
        a timeout.
        """
        ...

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        """What became of a payment of ours; ``None`` if the wallet has never been asked to make it."""
        ...

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        """The same for a payment to an address, which has no hash; an invoice's is found by either."""
        ...

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        """An invoice of ours with what it has received; ``None`` if it is not ours."""
        ...

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        """Sent and received, oldest first, created at ``since`` or later.

        :param completed: settled ones only; else those of all states.
        :param newest: the newest ``limit`` of them, newest first.
        """
        ...

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        """Listen from the moment of entering: ``async with wallet.events() as events: async for payment in events``."""
        ...

    async def aclose(self) -> None:
        """Let go of what it holds, and end its events; harmless when repeated."""
        ...
