"""Nostr Wallet Connect, our client with our service: the suite that every wallet passes, and what is NWC's own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest

from protocols import bolt11
from pylon.errors import NoRoute, PaymentFailed, WrongNetwork
from pylon.money import sats
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.wallets.conformance import FEE_CAP, House, WalletConformance, key
from tests.pylon.wallets.conformance_house import charged_once, needs, nothing_moves, signed_elsewhere
from tests.pylon.wallets.nwc_world import PATIENCE, open_world


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with open_world(tmp_path) as opened:
        yield opened


class TestConformance(WalletConformance):
    @pytest.fixture
    async def house(self, world):
        alice, bob, carol = (world.wallet(name) for name in ("alice", "bob", "carol"))
        await alice.fund(sats(100_000))
        await carol.fund(sats(50_000))

        def inject(kind: FaultKind, seconds: float = 0.0, ends: PaymentState = PaymentState.SETTLED) -> None:
            world.ledger.inject(Fault(kind, seconds, ends), wallet=alice)

        async def open_invoice(description: str) -> str:
            return (await bob.receive_any(description, 600, description)).bolt11

        async with AsyncExitStack() as stack:
            clients = []
            for wallet, name in ((alice, "alice"), (carol, "carol"), (bob, "bob")):
                serving = await stack.enter_async_context(world.serving(wallet, name))
                _, uri = await serving.connect()
                clients.append(await stack.enter_async_context(world.using(uri, name)))
            payer, other, payee = clients
            yield House(
                payer=payer,
                other=other,
                payee=payee,
                clock=world.clock,
                prefix="sb",
                delay_next=partial(inject, FaultKind.DELAY),
                # A payment that is under way is waited for: it is pending for so much longer.
                pend_next=lambda seconds, ends: inject(FaultKind.PENDING, seconds + PATIENCE, ends),
                fail_next=partial(inject, FaultKind.FAIL),
                unroute_next=partial(inject, FaultKind.NO_ROUTE),
                open_invoice=open_invoice,
            )
        assert sum(world.ledger.accounts().values()) == 0

    # What NWC cannot tell, or a service with a purse does otherwise.

    async def test_an_invoice_of_another_network(self, house: House):
        """Whether there is a way to a payee is known only by trying: it is not quoted."""
        for prefix in bolt11.NETWORKS:
            text = signed_elsewhere(prefix, house.clock.now())
            async with nothing_moves(house):
                with pytest.raises(NoRoute if prefix == house.prefix else WrongNetwork):
                    await house.payer.pay(text, max_fee=FEE_CAP, idempotency_key=key("1"))
                if prefix != house.prefix:
                    with pytest.raises(WrongNetwork):
                        await house.payer.quote(text)

    async def test_no_route(self, house: House):
        """A purse takes no failed payment up again: its invoice is spent, the key is not."""
        issued = await self.invoice(house)
        needs(house.unroute_next)()
        async with nothing_moves(house):
            for expected in (NoRoute, PaymentFailed):
                with pytest.raises(expected):
                    await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key("1"))
        other = await self.invoice(house, "job-2")
        async with charged_once(house):
            await house.payer.pay(other.bolt11, max_fee=FEE_CAP, idempotency_key=key("2"))

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
            for name in ("1", "2"):
                with pytest.raises(PaymentFailed):
                    await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key=key(name))

    async def test_a_deposit_is_from_outside(self, house: House):
        """A connection sees what it has caused, and no deposits."""
        assert await house.payer.payments() == []
