"""What every wallet must do: the rules of ``pylon.wallets.port`` as tests.

A wallet's own test module subclasses ``WalletConformance`` and gives the fixture ``house``: two wallets with money and
one without, on one network. What a network cannot be made to do (``None`` in the house) is skipped; what a wallet
cannot do (``WalletInfo.can``) it must refuse, and that is tested in its place.
"""

from __future__ import annotations

import contextlib
import hashlib

import pytest
import trio

from protocols import bolt11
from pylon.errors import (
    AlreadyPaid,
    FeeTooHigh,
    InsufficientFunds,
    InvoiceExpired,
    InvoiceInvalid,
    NoRoute,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
    WrongNetwork,
)
from pylon.money import Msat, max_fee
from pylon.wallets.port import Can, Direction, Payment, PaymentState, Wallet
from tests.pylon.wallets.conformance_holds import HoldConformance
from tests.pylon.wallets.conformance_house import (
    AMOUNT,
    FEE_CAP,
    House,
    charged_once,
    key,
    needs,
    nothing_moves,
    settled,
    signed_elsewhere,
)
from tests.pylon.wallets.conformance_targets import TargetConformance

__all__ = ["AMOUNT", "FEE_CAP", "House", "WalletConformance", "key"]


class WalletConformance(TargetConformance, HoldConformance):
    """Subclass it as ``TestSomething`` and define the fixture ``house``."""

    async def invoice(self, house: House, name: str = "job-1", expiry: int = 600):
        return await house.payee.receive(AMOUNT, "a job", expiry, name)

    # Identity and invoices

    async def test_it_says_what_it_is(self, house: House):
        info = await house.payee.info()
        assert info.name
        assert info.network
        assert info.kind
        assert info.unit_msats >= 1
        assert info.can <= frozenset(Can)
        assert await house.payee.info() == info

    async def test_an_invoice_is_what_was_asked_for(self, house: House):
        before = house.clock.now()
        issued = await self.invoice(house)
        read = bolt11.decode(issued.bolt11)
        assert (read.prefix, read.amount_msats, read.payment_hash) == (house.prefix, AMOUNT, issued.payment_hash)
        assert read.description == "a job"
        assert issued.amount == AMOUNT
        assert issued.received == 0
        assert issued.settled_at is None
        assert before + 598 <= issued.expires_at <= house.clock.now() + 601
        assert abs(read.expires_at - issued.expires_at) <= 1
        assert (await house.payee.info()).node_pubkey in ("", read.payee)
        assert await house.payee.lookup_invoice(issued.payment_hash) == issued

    async def test_one_key_is_one_invoice(self, house: House):
        first = await self.invoice(house)
        assert await self.invoice(house) == first
        second = await self.invoice(house, "job-2")
        assert second.payment_hash != first.payment_hash
        # Keys are the wallet's own.
        assert (await house.other.receive(AMOUNT, "a job", 600, "job-1")).payment_hash != first.payment_hash

    async def test_an_invoice_may_commit_to_its_description_by_a_hash(self, house: House):
        """LUD-06 and NIP-57: what the payer was told, however short, stands in the invoice as SHA-256."""
        words = '{"kind":9734,"content":"für dich"}'
        issued = await house.payee.receive(AMOUNT, words, 600, "zap-1", hash_description=True)
        read = bolt11.decode(issued.bolt11)
        assert read.description is None
        assert read.description_hash == hashlib.sha256(words.encode()).hexdigest()
        assert await house.payee.receive(AMOUNT, words, 600, "zap-1", hash_description=True) == issued
        async with charged_once(house):
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        received = [p for p in await house.payee.payments() if p.direction is Direction.RECEIVED]
        assert [p.payment_hash for p in received] == [issued.payment_hash]

    async def test_what_it_does_not_know_is_none(self, house: House):
        issued = await self.invoice(house)
        assert await house.payer.lookup_payment("00" * 32) is None
        assert await house.payer.lookup_payment("") is None
        assert await house.payer.lookup_key(key("never used")) is None
        assert await house.payer.lookup_invoice("00" * 32) is None
        assert await house.payer.lookup_invoice(issued.payment_hash) is None
        assert await house.payer.lookup_payment(issued.payment_hash) is None
        assert await house.payee.lookup_payment(issued.payment_hash) is None

    # Paying

    async def test_a_payment_moves_the_amount_and_the_fee(self, house: House):
        issued = await self.invoice(house)
        payer, payee = await house.payer.balance(), await settled(house.payee)
        quoted = await house.payer.quote(issued.bolt11)
        paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
        assert paid.state is PaymentState.SETTLED
        assert paid.direction is Direction.SENT
        assert (paid.payment_hash, paid.amount) == (issued.payment_hash, AMOUNT)
        assert 0 <= paid.fee <= quoted <= FEE_CAP
        assert paid.preimage is not None
        assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == issued.payment_hash
        assert paid.settled_at is not None
        after = await house.payer.balance()
        assert after.settled == payer.settled - AMOUNT - paid.fee
        assert after.spendable == after.settled
        assert after.known_at >= payer.known_at
        assert await settled(house.payee) == payee + AMOUNT
        assert await house.payer.lookup_payment(issued.payment_hash) == paid
        assert await house.payer.lookup_key(key("purchase-1")) == paid
        assert paid.key in ("", key("purchase-1"))
        assert await house.other.lookup_key(key("purchase-1")) is None
        received = await house.payee.lookup_invoice(issued.payment_hash)
        assert received is not None
        assert received.received == AMOUNT
        assert received.settled_at is not None

    async def test_upper_case_is_the_same_invoice(self, house: House):
        issued = await self.invoice(house)
        async with charged_once(house):
            paid = await house.payer.pay(issued.bolt11.upper(), max_fee=FEE_CAP, idempotency_key=key("1"))
            assert await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1")) == paid

    async def test_the_same_key_again_reports(self, house: House):
        issued = await self.invoice(house)
        async with charged_once(house):
            first = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
            assert await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1")) == first

    async def test_a_used_key_never_pays_another_invoice(self, house: House):
        first, second = await self.invoice(house), await self.invoice(house, "job-2")
        async with charged_once(house):
            paid = await house.payer.pay(first.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
            again = await house.payer.pay(second.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
        assert again.payment_hash == paid.payment_hash

    async def test_the_same_invoice_under_another_key_is_refused(self, house: House):
        issued = await self.invoice(house)
        async with charged_once(house):
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
            with pytest.raises(AlreadyPaid):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-2"))

    async def test_a_paid_invoice_takes_no_second_payer(self, house: House):
        issued = await self.invoice(house)
        await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))
        async with nothing_moves(house):
            with pytest.raises(AlreadyPaid):
                await house.other.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("purchase-1"))

    @pytest.mark.parametrize("one_key", [True, False], ids=["one key", "a key each"])
    @pytest.mark.parametrize("slow", [True, False], ids=["slow", "quick"])
    async def test_ten_at_once_pay_once(self, house: House, one_key: bool, slow: bool):
        issued = await self.invoice(house)
        if slow:
            needs(house.delay_next)(5.0, PaymentState.SETTLED)
        outcomes: list[Payment | WalletError] = []

        async def pay(nth: int) -> None:
            under = key("purchase" if one_key else f"purchase-{nth}")
            try:
                outcomes.append(await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=under))
            except AlreadyPaid as error:
                outcomes.append(error)

        async with charged_once(house):
            async with trio.open_nursery() as nursery:
                for nth in range(10):
                    nursery.start_soon(pay, nth)
        payments = [outcome for outcome in outcomes if isinstance(outcome, Payment)]
        assert len(outcomes) == 10
        assert len(payments) == (10 if one_key else 1)
        assert len({payment.payment_id for payment in payments}) == 1

    # Refusals: nothing moves, and none of them uses up the key

    async def test_a_fee_over_the_cap(self, house: House):
        issued = await self.invoice(house)
        quoted = await house.payer.quote(issued.bolt11)
        if quoted == 0:
            pytest.skip("this wallet charges no fee")
        async with nothing_moves(house):
            with pytest.raises(FeeTooHigh):
                await house.payer.pay(issued.bolt11, max_fee=Msat(quoted - 1), idempotency_key=key("1"))
        async with charged_once(house):
            await house.payer.pay(issued.bolt11, max_fee=quoted, idempotency_key=key("1"))

    async def test_more_than_there_is(self, house: House):
        there_is = await settled(house.payer)
        issued = await house.payee.receive(there_is, "everything, so nothing is left for the fee", 600, "all")
        async with nothing_moves(house):
            with pytest.raises(InsufficientFunds) as caught:
                await house.payer.pay(issued.bolt11, max_fee=max_fee(there_is), idempotency_key=key("1"))
        assert caught.value.available_msats == there_is
        assert caught.value.required_msats > there_is
        assert await house.payer.lookup_payment(issued.payment_hash) is None

    async def test_an_expired_invoice(self, house: House):
        issued = await self.invoice(house, expiry=60)
        await house.pass_time(61)
        async with nothing_moves(house):
            with pytest.raises(InvoiceExpired):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_a_paid_invoice_stays_paid_when_it_expires(self, house: House):
        issued = await self.invoice(house, expiry=60)
        paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        await house.pass_time(61)
        assert await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1")) == paid
        with pytest.raises(AlreadyPaid):
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))

    @pytest.mark.parametrize("prefix", sorted(bolt11.NETWORKS))
    async def test_an_invoice_of_another_network(self, house: House, prefix: str):
        text = signed_elsewhere(prefix, house.clock.now())
        expected = NoRoute if prefix == house.prefix else WrongNetwork
        async with nothing_moves(house):
            with pytest.raises(expected):
                await house.payer.quote(text)
            with pytest.raises(expected):
                await house.payer.pay(text, max_fee=FEE_CAP, idempotency_key=key("1"))

    @pytest.mark.parametrize("text", ["", "lightning", "lnsb1", "lnbc1\ud800", "q" * 100_000])
    async def test_what_is_no_invoice(self, house: House, text: str):
        async with nothing_moves(house):
            with pytest.raises(InvoiceInvalid):
                await house.payer.decode(text)
            with pytest.raises(InvoiceInvalid):
                await house.payer.quote(text)
            with pytest.raises(InvoiceInvalid):
                await house.payer.pay(text, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_a_changed_invoice(self, house: House):
        """Same hash, smaller amount, another signer: who paid that would prove nothing and get nothing."""
        issued = await self.invoice(house)
        read = bolt11.decode(issued.bolt11)
        forged = bolt11.encode(
            prefix=read.prefix,
            amount_msats=AMOUNT // 2,
            timestamp=read.timestamp,
            payment_hash=read.payment_hash,
            payment_secret=read.payment_secret,
            description=read.description,
            node_secret=b"\x07" * 32,
        )
        async with nothing_moves(house):
            with pytest.raises(WalletError):
                await house.payer.pay(forged, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_itself(self, house: House):
        issued = await house.payer.receive(AMOUNT, "to myself", 600, "self")
        async with nothing_moves(house):
            with pytest.raises(NoRoute):
                await house.payer.quote(issued.bolt11)
            with pytest.raises(NoRoute):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))

    @pytest.mark.parametrize(
        ("amount", "description", "expiry"),
        [(0, "", 600), (-1, "", 600), (22_000_000 * 10**11, "", 600), (1_000, "\ud800", 600), (1_000, "", 0)],
        ids=["nothing", "negative", "more than exists", "no text", "never valid"],
    )
    async def test_no_such_invoice(self, house: House, amount: int, description: str, expiry: int):
        with pytest.raises(InvoiceInvalid):
            await house.payee.receive(Msat(amount), description, expiry, "bad")

    async def test_a_long_description(self, house: House):
        issued = await house.payee.receive(AMOUNT, "long " * 500, 600, "long")
        assert bolt11.decode(issued.bolt11).payment_hash == issued.payment_hash
        async with charged_once(house):
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))

    # Failing, pending, unknown

    async def test_no_route(self, house: House):
        issued = await self.invoice(house)
        needs(house.unroute_next)()
        async with nothing_moves(house):
            with pytest.raises(NoRoute):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        async with charged_once(house):
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_failed_for_good(self, house: House):
        issued = await self.invoice(house)
        needs(house.fail_next)()
        async with nothing_moves(house):
            with pytest.raises(PaymentFailed):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        failed = await house.payer.lookup_payment(issued.payment_hash)
        assert failed is not None
        assert (failed.state, failed.preimage, failed.settled_at) == (PaymentState.FAILED, None, None)
        assert failed.fee == 0
        async with nothing_moves(house):
            with pytest.raises(PaymentFailed):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        async with charged_once(house):
            paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))
        assert await house.payer.lookup_payment(issued.payment_hash) == paid

    @pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
    async def test_pending_is_reserved_and_ends(self, house: House, ends: PaymentState):
        issued = await self.invoice(house)
        needs(house.pend_next)(30.0, ends)
        before = await house.payer.balance()
        paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert (paid.state, paid.preimage, paid.settled_at) == (PaymentState.PENDING, None, None)
        during = await house.payer.balance()
        assert during.settled == before.settled
        assert AMOUNT <= during.pending_out <= AMOUNT + FEE_CAP
        assert (await house.payee.balance()).settled == 0
        assert await house.payer.lookup_payment(issued.payment_hash) == paid
        async with nothing_moves(house):
            assert await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1")) == paid
            for wallet in (house.payer, house.other):
                with pytest.raises(AlreadyPaid):
                    await wallet.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))
        await house.pass_time(29.0)
        assert await house.payer.lookup_payment(issued.payment_hash) == paid
        await house.pass_time(1.0)
        after = await house.payer.lookup_payment(issued.payment_hash)
        assert after is not None
        assert after.state is ends
        assert (after.preimage is not None) == (ends is PaymentState.SETTLED)
        balance = await house.payer.balance()
        assert balance.pending_out == 0
        spent = AMOUNT + after.fee if ends is PaymentState.SETTLED else 0
        assert balance.settled == before.settled - spent
        assert await settled(house.payee) == (AMOUNT if ends is PaymentState.SETTLED else 0)

    async def test_pending_money_is_not_spent_again(self, house: House):
        there_is = await settled(house.payer)
        most = await house.payee.receive(Msat(there_is * 9 // 10), "most", 600, "most")
        needs(house.pend_next)(30.0, PaymentState.SETTLED)
        await house.payer.pay(most.bolt11, max_fee=max_fee(there_is), idempotency_key=key("1"))
        more = await house.payee.receive(Msat(there_is // 5), "more", 600, "more")
        with pytest.raises(InsufficientFunds):
            await house.payer.pay(more.bolt11, max_fee=max_fee(there_is), idempotency_key=key("2"))

    @pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
    async def test_a_slow_payment_is_waited_for(self, house: House, ends: PaymentState):
        issued = await self.invoice(house)
        needs(house.delay_next)(5.0, ends)
        began = house.clock.monotonic()
        if ends is PaymentState.SETTLED:
            async with charged_once(house):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        else:
            async with nothing_moves(house):
                with pytest.raises(PaymentFailed):
                    await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert house.clock.monotonic() - began >= 4.999

    async def test_unknown_is_looked_up(self, house: House):
        issued = await self.invoice(house)
        needs(house.time_out_next)()
        async with charged_once(house):
            with pytest.raises(PaymentUnknown):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
            found = await house.payer.lookup_payment(issued.payment_hash)
            assert found is not None
            assert found.state is PaymentState.SETTLED
            assert await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1")) == found

    async def test_cancelled_before_it_began(self, house: House):
        issued = await self.invoice(house)
        with trio.CancelScope() as scope:
            scope.cancel()
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        async with charged_once(house):
            # Whatever came of it, the same call ends in one payment.
            if await house.payer.lookup_payment(issued.payment_hash) is not None:
                pytest.skip("this wallet had begun")
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_cancelled_half_way(self, house: House):
        issued = await self.invoice(house)
        needs(house.delay_next)(5.0, PaymentState.SETTLED)
        async with charged_once(house):
            with trio.move_on_after(2.0) as scope:
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
            assert scope.cancelled_caught
            pending = await house.payer.lookup_payment(issued.payment_hash)
            assert pending is not None
            assert pending.state is PaymentState.PENDING
            paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
            await house.pass_time(4.0)
            found = await house.payer.lookup_payment(issued.payment_hash)
            assert found is not None
            assert (found.payment_id, found.state) == (paid.payment_id, PaymentState.SETTLED)

    # History and events

    async def test_history(self, house: House):
        begin = {wallet: await wallet.payments() for wallet in (house.payer, house.payee)}
        hashes = []
        for nth in range(3):
            issued = await self.invoice(house, f"job-{nth}")
            await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key(f"{nth}"))
            hashes.append(issued.payment_hash)
            await house.pass_time(2.0)
        for wallet, direction in ((house.payer, Direction.SENT), (house.payee, Direction.RECEIVED)):
            everything = await wallet.payments()
            made = everything[len(begin[wallet]) :]
            assert everything[: len(begin[wallet])] == begin[wallet]
            assert [payment.payment_hash for payment in made] == hashes
            assert all(payment.direction is direction and not payment.outside for payment in made)
            assert all(payment.amount == AMOUNT and payment.state is PaymentState.SETTLED for payment in made)
            assert len({payment.payment_id for payment in everything}) == len(everything)
            assert await wallet.payments(since=made[1].created_at) == made[1:]
            assert await wallet.payments(since=made[1].created_at, limit=1) == made[1:2]

    async def test_pages_of_the_newest_and_of_what_is_complete(self, house: House):
        names = ["first", "failed", "last", "pending"]
        for name in names:
            issued = await self.invoice(house, name)
            if name == "failed":
                needs(house.fail_next)()
            elif name == "pending":
                needs(house.pend_next)(1_000.0, PaymentState.SETTLED)
            with contextlib.suppress(PaymentFailed):
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key(name))
            await house.pass_time(2.0)
        everything = await house.payer.payments()
        complete = [payment for payment in everything if payment.state is PaymentState.SETTLED]
        sent = [payment for payment in everything if payment.direction is Direction.SENT]
        assert [payment.state for payment in sent] == ["settled", "failed", "settled", "pending"]
        assert await house.payer.payments(completed=True) == complete
        assert await house.payer.payments(newest=True) == everything[::-1]
        assert await house.payer.payments(newest=True, limit=2) == everything[:-3:-1]
        assert await house.payer.payments(newest=True, completed=True, limit=1) == [sent[2]]
        assert await house.payer.payments(completed=True, since=sent[1].created_at) == [sent[2]]
        assert await house.payer.payments(newest=True, since=sent[1].created_at, limit=10) == sent[:0:-1]

    async def test_a_deposit_is_from_outside(self, house: House):
        (deposit,) = await house.payer.payments()
        assert deposit.outside
        assert deposit.direction is Direction.RECEIVED
        assert deposit.amount == await settled(house.payer)

    async def test_both_sides_hear_of_it(self, house: House):
        issued = await self.invoice(house)
        heard: dict[str, list[Payment]] = {"payer": [], "payee": [], "payee again": []}

        async def listen(name: str, wallet: Wallet, task_status: trio.TaskStatus[None]) -> None:
            async with wallet.events() as events:
                task_status.started()
                async for payment in events:
                    heard[name].append(payment)
                    break

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(listen, "payer", house.payer)
                await nursery.start(listen, "payee", house.payee)
                await nursery.start(listen, "payee again", house.payee)
                paid = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        assert heard["payer"] == [paid]
        for name in ("payee", "payee again"):
            (received,) = heard[name]
            assert (received.direction, received.amount) == (Direction.RECEIVED, AMOUNT)
            assert received.payment_hash == issued.payment_hash
            assert received.state is PaymentState.SETTLED
            assert received.bolt11 == issued.bolt11

    async def test_what_settles_later_is_heard_then(self, house: House):
        issued = await self.invoice(house)
        needs(house.pend_next)(20.0, PaymentState.SETTLED)
        with trio.fail_after(60):
            async with house.payee.events() as events:
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
                began = house.clock.monotonic()
                heard = await anext(aiter(events))
        assert heard.payment_hash == issued.payment_hash
        assert house.clock.monotonic() - began == pytest.approx(20.0, abs=0.1)

    async def test_a_failure_is_heard_by_the_payer(self, house: House):
        issued = await self.invoice(house)
        needs(house.pend_next)(20.0, PaymentState.FAILED)
        with trio.fail_after(60):
            async with house.payer.events() as events:
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
                heard = await anext(aiter(events))
        assert (heard.payment_hash, heard.state) == (issued.payment_hash, PaymentState.FAILED)

    async def test_closing_ends_the_listening(self, house: House):
        async def close_soon() -> None:
            await trio.sleep(1.0)
            await house.payee.aclose()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery, house.payee.events() as events:
                nursery.start_soon(close_soon)
                assert [payment async for payment in events] == []
