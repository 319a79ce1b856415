"""The part of the conformance suite about hold invoices; a wallet that has none must say so."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from protocols import bolt11
from pylon.errors import AlreadyPaid, InsufficientFunds, InvoiceInvalid, NotSupported, PaymentFailed, WalletError
from pylon.money import Msat, max_fee
from pylon.wallets.port import Can, Direction, IssuedInvoice, Payment, PaymentState
from tests.pylon.wallets.conformance_house import (
    AMOUNT,
    FEE_CAP,
    House,
    charged_once,
    eventually,
    key,
    nothing_moves,
    settled,
)

PREIMAGE = "5a" * 32
HASH = hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest()
OTHER_PREIMAGE = "5b" * 32


async def hold(house: House, amount: Msat = AMOUNT, name: str = "hold-1") -> IssuedInvoice:
    """A hold invoice of the payee's for ``PREIMAGE``."""
    if Can.HOLD not in (await house.payee.info()).can:
        pytest.skip("this wallet has no hold invoices")
    return await house.payee.hold(amount, "a job", 600, name, HASH)


async def invoice_of(house: House) -> IssuedInvoice:
    issued = await house.payee.lookup_invoice(HASH)
    assert issued is not None
    return issued


async def payment_of(house: House) -> Payment:
    payment = await house.payer.lookup_payment(HASH)
    assert payment is not None
    return payment


async def ended(house: House, state: PaymentState) -> Payment:
    return await eventually(house, lambda: payment_of(house), lambda payment: payment.state is state)


@asynccontextmanager
async def held(house: House, issued: IssuedInvoice, cap: Msat = FEE_CAP) -> AsyncIterator[None]:
    """The payer has paid, and the payee holds it. ``pay`` may wait for the end, or return the payment pending."""

    async def pay() -> None:
        try:
            paid = await house.payer.pay(issued.bolt11, max_fee=cap, idempotency_key=key("1"))
        except PaymentFailed:
            return
        assert paid.state is not PaymentState.FAILED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pay)
        await eventually(house, lambda: invoice_of(house), lambda invoice: invoice.held == issued.amount)
        yield


class HoldConformance:
    async def test_without_hold_invoices_it_says_so(self, house: House):
        if Can.HOLD in (await house.payee.info()).can:
            pytest.skip("this wallet has hold invoices")
        async with nothing_moves(house):
            with pytest.raises(NotSupported):
                await house.payee.hold(AMOUNT, "a job", 600, "hold-1", HASH)
            with pytest.raises(NotSupported):
                await house.payee.settle(PREIMAGE)
            with pytest.raises(NotSupported):
                await house.payee.cancel(HASH)

    async def test_a_hold_invoice_is_what_was_asked_for(self, house: House):
        issued = await hold(house)
        read = bolt11.decode(issued.bolt11)
        assert (read.prefix, read.amount_msats, read.payment_hash) == (house.prefix, AMOUNT, HASH)
        assert read.description == "a job"
        assert (issued.payment_hash, issued.amount) == (HASH, AMOUNT)
        assert (issued.received, issued.held, issued.cancelled, issued.settled_at) == (0, 0, False, None)
        assert await hold(house) == issued
        assert await invoice_of(house) == issued

    async def test_settled_it_is_a_payment_as_any(self, house: House):
        issued = await hold(house)
        payee = await settled(house.payee)
        async with charged_once(house):
            async with held(house, issued):
                pending = await payment_of(house)
                assert (pending.state, pending.preimage) == (PaymentState.PENDING, None)
                assert AMOUNT <= (await house.payer.balance()).pending_out <= AMOUNT + FEE_CAP
                assert await settled(house.payee) == payee
                assert not [p for p in await house.payee.payments(completed=True) if p.payment_hash == HASH]
                await house.payee.settle(PREIMAGE)
            paid = await ended(house, PaymentState.SETTLED)
            assert (paid.payment_id, paid.preimage) == (pending.payment_id, PREIMAGE)
            await house.payee.settle(PREIMAGE)
            with pytest.raises(AlreadyPaid):
                await house.payee.cancel(HASH)
            with pytest.raises(AlreadyPaid):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))
        invoice = await invoice_of(house)
        assert (invoice.received, invoice.held, invoice.cancelled) == (AMOUNT, 0, False)
        assert invoice.settled_at is not None
        (received,) = [p for p in await house.payee.payments(completed=True) if p.payment_hash == HASH]
        assert (received.direction, received.amount) == (Direction.RECEIVED, AMOUNT)

    async def test_cancelled_it_comes_back(self, house: House):
        issued = await hold(house)
        async with nothing_moves(house):
            async with held(house, issued):
                await house.payee.cancel(HASH)
            failed = await ended(house, PaymentState.FAILED)
            assert (failed.preimage, failed.settled_at) == (None, None)
            invoice = await invoice_of(house)
            assert (invoice.received, invoice.held, invoice.cancelled) == (0, 0, True)
            await house.payee.cancel(HASH)
            with pytest.raises(PaymentFailed):
                await house.payee.settle(PREIMAGE)
            for wallet in (house.payer, house.other):
                with pytest.raises(WalletError):
                    await wallet.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))

    async def test_cancelled_before_it_is_paid(self, house: House):
        issued = await hold(house)
        await house.payee.cancel(HASH)
        await house.payee.cancel(HASH)
        assert (await invoice_of(house)).cancelled
        async with nothing_moves(house):
            with pytest.raises(WalletError):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
            with pytest.raises(PaymentFailed):
                await house.payee.settle(PREIMAGE)

    async def test_nothing_is_settled_that_is_not_held(self, house: House):
        await hold(house)
        async with nothing_moves(house):
            for preimage in (PREIMAGE, OTHER_PREIMAGE):
                with pytest.raises(PaymentFailed):
                    await house.payee.settle(preimage)
            with pytest.raises(WalletError):
                await house.payee.cancel("00" * 32)

    async def test_another_preimage_takes_nothing(self, house: House):
        issued = await hold(house)
        async with charged_once(house), held(house, issued):
            async with nothing_moves(house):
                with pytest.raises(PaymentFailed):
                    await house.payee.settle(OTHER_PREIMAGE)
            await house.payee.settle(PREIMAGE)
            await ended(house, PaymentState.SETTLED)

    async def test_only_its_own_wallet_answers(self, house: House):
        issued = await hold(house)
        async with charged_once(house), held(house, issued):
            async with nothing_moves(house):
                with pytest.raises(WalletError):
                    await house.payer.settle(PREIMAGE)
                with pytest.raises(WalletError):
                    await house.payer.cancel(HASH)
            await house.payee.settle(PREIMAGE)
            await ended(house, PaymentState.SETTLED)

    async def test_what_is_held_cannot_be_spent(self, house: House):
        there_is = await settled(house.payer)
        unit = (await house.payer.info()).unit_msats
        most = Msat(there_is * 9 // 10 // unit * unit)
        issued = await hold(house, most)
        more = await house.payee.receive(Msat(there_is // 5 // unit * unit), "more", 600, "more")
        back = await house.other.receive(AMOUNT, "back", 600, "back")
        async with held(house, issued, max_fee(there_is)):
            with pytest.raises(InsufficientFunds):
                await house.payer.pay(more.bolt11, max_fee=max_fee(there_is), idempotency_key=key("2"))
            with pytest.raises(InsufficientFunds):
                await house.payee.pay(back.bolt11, max_fee=FEE_CAP, idempotency_key=key("3"))
            await house.payee.cancel(HASH)

    async def test_unanswered_it_comes_back(self, house: House):
        issued = await hold(house)
        if house.hold_lapses is None:
            pytest.skip("nobody waits so long")
        async with nothing_moves(house):
            async with held(house, issued):
                await house.pass_time(house.hold_lapses)
            await ended(house, PaymentState.FAILED)
            assert (await invoice_of(house)).held == 0
            with pytest.raises(PaymentFailed):
                await house.payee.settle(PREIMAGE)

    @pytest.mark.parametrize("payment_hash", ["", "00", "zz" * 32, "5a" * 33])
    async def test_no_hash_no_hold_invoice(self, house: House, payment_hash: str):
        await hold(house)
        with pytest.raises(InvoiceInvalid):
            await house.payee.hold(AMOUNT, "a job", 600, "hold-2", payment_hash)
