"""The part of the conformance suite about what can be paid: decoding, amounts, addresses."""

from __future__ import annotations

import pytest
import trio

from protocols import bech32_words, bolt11
from pylon.errors import (
    AlreadyPaid,
    InsufficientFunds,
    InvoiceInvalid,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
)
from pylon.money import Msat, max_fee
from pylon.wallets.port import Can, Direction, Payment, PaymentState, TargetKind, Wallet
from tests.pylon.wallets.conformance_house import (
    AMOUNT,
    FEE_CAP,
    House,
    charged_once,
    eventually,
    key,
    needs,
    nothing_moves,
    settled,
    signed_elsewhere,
)

SOMEBODYS_SPARK_ADDRESS = bech32_words.encode(
    "spark", bech32_words.to_words(bytes([0x0A, 33]) + bolt11.node_public_key(b"\x07" * 32)), bech32m=True
)


async def can(wallet: Wallet, what: Can) -> bool:
    return what in (await wallet.info()).can


async def address_of(wallet: Wallet) -> str:
    """Its Spark address, where it has one."""
    address = (await wallet.addresses()).spark
    if address is None:
        pytest.skip("this wallet has no Spark address")
    return address


class TargetConformance:
    # Reading

    async def test_an_invoice_is_read(self, house: House):
        issued = await house.payee.receive(AMOUNT, "für dich", 600, "job-1")
        for text in (issued.bolt11, issued.bolt11.upper()):
            target = await house.payer.decode(text)
            assert (target.kind, target.network) == (TargetKind.BOLT11, bolt11.NETWORKS[house.prefix])
            assert (target.amount, target.payment_hash) == (AMOUNT, issued.payment_hash)
            assert target.description == "für dich"
            assert target.payee == bolt11.decode(issued.bolt11).payee
            assert target.created_at is not None
            assert target.expires_at is not None
            assert target.expires_at - target.created_at == 600
            assert abs(target.expires_at - issued.expires_at) <= 1
        async with charged_once(house):
            await house.payer.pay(target.text, max_fee=FEE_CAP, idempotency_key=key("1"))

    @pytest.mark.parametrize("prefix", sorted(bolt11.NETWORKS))
    @pytest.mark.parametrize("amount", [AMOUNT, None])
    async def test_an_invoice_of_any_network_is_read(self, house: House, prefix: str, amount: Msat | None):
        text = signed_elsewhere(prefix, house.clock.now(), amount=amount)
        target = await house.payer.decode(text)
        assert (target.kind, target.network) == (TargetKind.BOLT11, bolt11.NETWORKS[prefix])
        assert (target.amount, target.payment_hash) == (amount, "11" * 32)

    # Amounts

    async def test_the_amount_that_is_named_is_the_only_one(self, house: House):
        issued = await house.payee.receive(AMOUNT, "a job", 600, "job-1")
        async with nothing_moves(house):
            for amount in (AMOUNT // 2, AMOUNT * 2, 0, -AMOUNT):
                with pytest.raises(InvoiceInvalid):
                    await house.payer.quote(issued.bolt11, amount=Msat(amount))
                with pytest.raises(InvoiceInvalid):
                    await house.payer.pay(issued.bolt11, amount=Msat(amount), max_fee=FEE_CAP, idempotency_key=key("1"))
        async with charged_once(house):
            assert await house.payer.quote(issued.bolt11, amount=AMOUNT) <= FEE_CAP
            await house.payer.pay(issued.bolt11, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_an_invoice_without_an_amount_wants_one(self, house: House):
        text = signed_elsewhere(house.prefix, house.clock.now(), amount=None)
        refusal = InvoiceInvalid if await can(house.payer, Can.OPEN_AMOUNT) else (InvoiceInvalid, NotSupported)
        async with nothing_moves(house):
            with pytest.raises(refusal):
                await house.payer.quote(text)
            with pytest.raises(refusal):
                await house.payer.pay(text, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_an_invoice_without_an_amount(self, house: House):
        if not await can(house.payer, Can.OPEN_AMOUNT):
            text = signed_elsewhere(house.prefix, house.clock.now(), amount=None)
            async with nothing_moves(house):
                with pytest.raises(NotSupported):
                    await house.payer.quote(text, amount=AMOUNT)
                with pytest.raises(NotSupported):
                    await house.payer.pay(text, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            return
        if house.open_invoice is None:
            pytest.skip("nobody here issues invoices without an amount")
        text = await house.open_invoice("as you like")
        assert (await house.payer.decode(text)).amount is None
        async with nothing_moves(house):
            for amount in (0, -1):
                with pytest.raises(InvoiceInvalid):
                    await house.payer.pay(text, amount=Msat(amount), max_fee=FEE_CAP, idempotency_key=key("1"))
        assert await house.payer.quote(text, amount=AMOUNT) <= FEE_CAP
        before = await settled(house.payer)
        paid = await house.payer.pay(text, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert (paid.state, paid.amount) == (PaymentState.SETTLED, AMOUNT)
        after = await settled(house.payer)
        assert after == before - AMOUNT - paid.fee
        async with nothing_moves(house):
            for amount in (AMOUNT, Msat(2 * AMOUNT)):
                again = await house.payer.pay(text, amount=amount, max_fee=FEE_CAP, idempotency_key=key("1"))
                assert again == paid
                with pytest.raises(AlreadyPaid):
                    await house.payer.pay(text, amount=amount, max_fee=FEE_CAP, idempotency_key=key("2"))

    # Addresses

    async def test_addresses_are_there_or_not_and_stay(self, house: House):
        for wallet in (house.payer, house.payee):
            addresses = await wallet.addresses()
            assert (addresses.spark is not None) == await can(wallet, Can.SPARK_ADDRESS)
            assert (addresses.bitcoin is not None) == await can(wallet, Can.BITCOIN_ADDRESS)
            assert await wallet.addresses() == addresses
            if addresses.bitcoin is not None:
                with pytest.raises(InvoiceInvalid):
                    await wallet.decode(addresses.bitcoin)
        first, second = await house.payer.addresses(), await house.payee.addresses()
        assert first.spark is None or first.spark != second.spark
        assert first.bitcoin is None or first.bitcoin != second.bitcoin

    async def test_an_address_of_another_network_or_of_none_is_not_paid(self, house: House):
        damaged = SOMEBODYS_SPARK_ADDRESS[:-1] + ("q" if SOMEBODYS_SPARK_ADDRESS[-1] != "q" else "p")
        for text in (SOMEBODYS_SPARK_ADDRESS, damaged):
            async with nothing_moves(house):
                with pytest.raises(WalletError) as caught:
                    await house.payer.pay(text, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
                assert not isinstance(caught.value, PaymentUnknown)

    async def test_an_address_is_read(self, house: House):
        address = await address_of(house.payee)
        target = await house.payer.decode(address)
        assert (target.kind, target.amount, target.payment_hash) == (TargetKind.SPARK, None, None)
        assert target.network == (await house.payee.info()).network
        assert target.payee
        assert target.expires_at is None

    async def test_an_address_is_paid(self, house: House):
        address = await address_of(house.payee)
        quoted = await house.payer.quote(address, amount=AMOUNT)
        before = await settled(house.payer)
        async with charged_once(house):
            paid = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert (paid.direction, paid.state, paid.amount) == (Direction.SENT, PaymentState.SETTLED, AMOUNT)
        assert paid.fee <= quoted
        assert (paid.payment_hash, paid.bolt11) == ("", None)
        assert paid.settled_at is not None
        assert before - await settled(house.payer) == AMOUNT + paid.fee
        assert await house.payer.lookup_key(key("1")) == paid
        assert await house.payer.lookup_payment("") is None
        assert await house.other.lookup_key(key("1")) is None
        received = (await house.payee.payments(newest=True, limit=1))[0]
        assert (received.direction, received.amount, received.payment_hash) == (Direction.RECEIVED, AMOUNT, "")
        assert received.outside

    async def test_an_address_is_paid_once_a_key(self, house: House):
        address = await address_of(house.payee)
        async with charged_once(house):
            paid = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            again = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            assert again == paid
        async with charged_once(house):
            other = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("2"))
        assert other.payment_id != paid.payment_id
        async with nothing_moves(house):
            elsewhere = await address_of(house.other)
            again = await house.payer.pay(elsewhere, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            assert again == paid

    @pytest.mark.parametrize("slow", [True, False], ids=["slow", "quick"])
    async def test_ten_at_once_pay_an_address_once(self, house: House, slow: bool):
        address = await address_of(house.payee)
        if slow:
            needs(house.delay_next)(5.0, PaymentState.SETTLED)
        paid: list[Payment] = []

        async def pay() -> None:
            paid.append(await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1")))

        async with charged_once(house):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(pay)
        assert len({payment.payment_id for payment in paid}) == 1

    async def test_an_address_wants_an_amount(self, house: House):
        address = await address_of(house.payee)
        async with nothing_moves(house):
            for amount in (None, Msat(0), Msat(-1)):
                with pytest.raises(InvoiceInvalid):
                    await house.payer.quote(address, amount=amount)
                with pytest.raises(InvoiceInvalid):
                    await house.payer.pay(address, amount=amount, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_an_address_is_not_paid_more_than_there_is(self, house: House):
        address = await address_of(house.payee)
        there_is = await settled(house.payer)
        more = Msat(there_is + (await house.payer.info()).unit_msats)
        async with nothing_moves(house):
            with pytest.raises(InsufficientFunds) as caught:
                await house.payer.pay(address, amount=more, max_fee=max_fee(more), idempotency_key=key("1"))
        assert caught.value.available_msats == there_is
        assert await house.payer.lookup_key(key("1")) is None

    @pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
    async def test_a_pending_payment_to_an_address_ends(self, house: House, ends: PaymentState):
        address = await address_of(house.payee)
        needs(house.pend_next)(30.0, ends)
        before = await settled(house.payer)
        paid = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert paid.state is PaymentState.PENDING
        assert AMOUNT <= (await house.payer.balance()).pending_out <= AMOUNT + FEE_CAP
        async with nothing_moves(house):
            again = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            assert again == paid
        await house.pass_time(30.0)
        after = await house.payer.lookup_key(key("1"))
        assert after is not None
        assert (after.payment_id, after.state) == (paid.payment_id, ends)
        spent = AMOUNT + after.fee if ends is PaymentState.SETTLED else 0
        assert await settled(house.payer) == before - spent
        assert await settled(house.payee) == (AMOUNT if ends is PaymentState.SETTLED else 0)

    async def test_a_payment_to_an_address_fails_for_good(self, house: House):
        address = await address_of(house.payee)
        needs(house.fail_next)()
        async with nothing_moves(house):
            for _ in range(2):
                with pytest.raises(PaymentFailed):
                    await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
        failed = await house.payer.lookup_key(key("1"))
        assert failed is not None
        assert failed.state is PaymentState.FAILED
        async with charged_once(house):
            await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("2"))

    async def test_no_route_to_an_address(self, house: House):
        address = await address_of(house.payee)
        needs(house.unroute_next)()
        async with nothing_moves(house):
            with pytest.raises(NoRoute):
                await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
        async with charged_once(house):
            await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_an_unknown_payment_to_an_address_is_looked_up(self, house: House):
        address = await address_of(house.payee)
        needs(house.time_out_next)()
        async with charged_once(house):
            with pytest.raises(PaymentUnknown):
                await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            found = await house.payer.lookup_key(key("1"))
            assert found is not None
            assert found.state is PaymentState.SETTLED
            again = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
            assert again == found

    async def test_both_sides_hear_of_a_payment_to_an_address(self, house: House):
        address = await address_of(house.payee)
        with trio.fail_after(30):
            async with house.payer.events() as sent, house.payee.events() as received:
                paid = await house.payer.pay(address, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))
                assert await anext(aiter(sent)) == paid
                heard = await anext(aiter(received))
        assert (heard.direction, heard.amount) == (Direction.RECEIVED, AMOUNT)
        assert heard.outside

    async def test_a_deposit_to_the_bitcoin_address(self, house: House):
        address = (await house.payee.addresses()).bitcoin
        if address is None:
            pytest.skip("this wallet has no Bitcoin address")
        if house.deposit is None:
            pytest.skip("nobody here sends on chain")
        await house.deposit(address, AMOUNT)
        await eventually(house, lambda: settled(house.payee), lambda amount: amount == AMOUNT)
        (deposit,) = await house.payee.payments()
        assert deposit.outside
        assert (deposit.direction, deposit.amount) == (Direction.RECEIVED, AMOUNT)
        assert (deposit.payment_hash, deposit.bolt11) == ("", None)
