"""Nostr Wallet Connect, our client with our service: the suite that every wallet passes, and what is NWC's own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest

from pylon.money import sats
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.wallets.conformance import House, WalletConformance
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
