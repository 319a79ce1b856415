"""The Wallet port: what every wallet offers, whatever moves the money behind it.

Rules that all implementations keep (``tests/pylon/wallets/conformance.py`` checks them):

* Amounts are millisatoshi. A wallet that settles whole sats says so in ``WalletInfo.unit_msats``.
* ``pay`` is idempotent by ``idempotency_key`` and by payment hash: calling it again never pays again, it reports.
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

from pylon.money import Msat


class PaymentState(enum.StrEnum):
    PENDING = "pending"
    """Sent and not settled, or not known: counts against budgets, is never retried."""
    SETTLED = "settled"
    FAILED = "failed"
    """Failed for good: the wallet says so."""


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


@attrs.frozen
class Payment:
    """One payment, sent or received."""

    payment_id: str
    """Unique within the wallet."""
    payment_hash: str
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


class PaymentEvents(Protocol):
    """Payments as they settle or fail. May repeat itself, may miss what happened while nobody listened."""

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

    async def quote(self, bolt11: str) -> Msat:
        """The fee that ``pay`` would be charged now. Raises ``InvoiceInvalid``, ``WrongNetwork``, ``NoRoute``."""
        ...

    async def pay(self, bolt11: str, *, max_fee: Msat, idempotency_key: str) -> Payment:
        """Pay an invoice that names its amount. Returns it settled, or pending where the wallet stopped waiting.

        Raises ``InsufficientFunds``, ``InvoiceExpired``, ``InvoiceInvalid``, ``WrongNetwork``, ``NoRoute``,
        ``FeeTooHigh``, ``AlreadyPaid`` (under another key), ``PaymentFailed``; ``PaymentUnknown`` on a timeout.
        """
        ...

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        """What became of a payment of ours; ``None`` if the wallet has never been asked to make it."""
        ...

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        """An invoice of ours with what it has received; ``None`` if it is not ours."""
        ...

    async def payments(self, *, since: float = 0.0, limit: int = 1_000) -> list[Payment]:
        """Sent and received, all states, oldest first, created at ``since`` or later."""
        ...

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        """Listen from the moment of entering: ``async with wallet.events() as events: async for payment in events``."""
        ...

    async def aclose(self) -> None:
        """Let go of what it holds, and end its events; harmless when repeated."""
        ...
