"""The wallets that the conformance suite runs with, and what its tests share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import pytest
import trio

from protocols import bolt11
from pylon.clock import Clock
from pylon.money import Msat, max_fee, sats
from pylon.wallets.port import PaymentState, Wallet

T = TypeVar("T")
AMOUNT = sats(1_000)
FEE_CAP = max_fee(AMOUNT)


@attrs.frozen
class House:
    """Wallets to test with. ``payer`` and ``other`` can pay ``AMOUNT`` some times; ``payee`` has nothing."""

    payer: Wallet
    other: Wallet
    payee: Wallet
    clock: Clock
    prefix: str
    """Of invoices of this network."""
    pass_time: Callable[[float], Awaitable[None]] = trio.sleep
    delay_next: Callable[[float, PaymentState], None] | None = None
    """Let the payer's next ``pay`` wait so long before it ends so."""
    pend_next: Callable[[float, PaymentState], None] | None = None
    """Let it return the payment pending."""
    fail_next: Callable[[], None] | None = None
    unroute_next: Callable[[], None] | None = None
    time_out_next: Callable[[], None] | None = None
    """Let it settle, and raise ``PaymentUnknown``."""
    open_invoice: Callable[[str], Awaitable[str]] | None = None
    """An invoice of somebody else that names no amount, with this description."""
    deposit: Callable[[str, Msat], Awaitable[object]] | None = None
    """Send to an on-chain address, from outside."""
    hold_lapses: float | None = None
    """Seconds after which a payment that is held, and never answered, has gone back to the payer."""


def key(name: str) -> str:
    """An idempotency key: a UUID, as the port says."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def needs(fault: Callable[..., None] | None) -> Callable[..., None]:
    if fault is None:
        pytest.skip("this network cannot be made to do that")
    return fault


async def settled(wallet: Wallet) -> Msat:
    return (await wallet.balance()).settled


@asynccontextmanager
async def nothing_moves(house: House) -> AsyncIterator[None]:
    before = [await wallet.balance() for wallet in (house.payer, house.other, house.payee)]
    yield
    after = [await wallet.balance() for wallet in (house.payer, house.other, house.payee)]
    assert [(b.settled, b.pending_out) for b in after] == [(b.settled, b.pending_out) for b in before]


@asynccontextmanager
async def charged_once(house: House) -> AsyncIterator[None]:
    """The payer pays ``AMOUNT`` and a fee within the cap, the payee gets it, both once."""
    payer, payee = await settled(house.payer), await settled(house.payee)
    yield
    assert await settled(house.payee) - payee == AMOUNT
    assert AMOUNT <= payer - await settled(house.payer) <= AMOUNT + FEE_CAP
    assert (await house.payer.balance()).pending_out == 0


async def eventually(house: House, look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """What ``look`` tells once it is as wanted; a network may take its time."""
    for _ in range(200):
        found = await look()
        if wanted(found):
            return found
        await house.pass_time(0.1)
    raise AssertionError(f"it stays at {found}")


def signed_elsewhere(prefix: str, now: float, *, amount: Msat | None = AMOUNT) -> str:
    return bolt11.encode(
        prefix=prefix,
        amount_msats=amount,
        timestamp=int(now),
        payment_hash="11" * 32,
        payment_secret="22" * 32,
        description="from a stranger",
        node_secret=b"\x07" * 32,
    )
