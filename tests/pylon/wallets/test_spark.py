"""The Spark wallet over a pretended network: conformance, and what is Spark's own."""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
import trio

from pylon.clock import VirtualClock
from pylon.errors import NotSupported
from pylon.money import sats
from pylon.testing.spark import FakeSpark, Fault
from pylon.wallets.bridge import InlineBridge
from pylon.wallets.port import PaymentState
from pylon.wallets.spark import SparkWallet
from pylon.wallets.spark_kit import SparkKit
from pylon.wallets.spark_types import REGTEST
from tests.pylon.wallets.conformance import FEE_CAP, House, WalletConformance

SEEDS = {name: hashlib.sha512(name.encode()).digest() for name in ("alice", "bob", "carol", "dave")}


@pytest.fixture
def clock(autojump_clock):
    return VirtualClock()


@pytest.fixture
def network(clock):
    return FakeSpark(clock)


@pytest.fixture
def kit(clock, network, tmp_path):
    return SparkKit(
        REGTEST, clock=clock, directory=tmp_path / "spark", bridge=InlineBridge(), sdk=network, fresh_seconds=0.0
    )


@pytest.fixture
async def wallet(kit):
    """Opens wallets by name, and closes them."""
    opened: list[SparkWallet] = []

    def open_wallet(name: str, **options) -> SparkWallet:
        made = SparkWallet(kit, SEEDS[name], name, **options)
        opened.append(made)
        return made

    yield open_wallet
    for made in opened:
        await made.aclose()


@pytest.fixture(params=["client", "server"])
def server(request):
    return request.param == "server"


class TestConformance(WalletConformance):
    @pytest.fixture
    async def house(self, network, wallet, clock, server):
        alice, bob, carol = (wallet(name, server=server) for name in ("alice", "bob", "carol"))
        for one, amount in ((alice, 100_000), (carol, 50_000)):
            await network.deposit(one.identity_pubkey, amount)
            await one.balance()
        await bob.balance()
        before = network.total()

        def inject(kind: str, seconds: float = 0.0, ends: PaymentState = PaymentState.SETTLED) -> None:
            network.fault(alice.identity_pubkey, Fault(kind, seconds, ends is PaymentState.SETTLED))

        yield House(
            payer=alice,
            other=carol,
            payee=bob,
            clock=clock,
            prefix=REGTEST.prefix,
            delay_next=partial(inject, "delay"),
            pend_next=partial(inject, "pend"),
            fail_next=partial(inject, "fail"),
            unroute_next=partial(inject, "no_route"),
            time_out_next=partial(inject, "lost"),
        )
        assert network.total() + network.fees() == before

    async def test_an_invoice_may_commit_to_its_description_by_a_hash(self, house: House):
        """The SDK has no way to ask for one."""
        with pytest.raises(NotSupported):
            await house.payee.receive(sats(1), "words", 600, "zap-1", hash_description=True)

    async def test_what_settles_later_is_heard_then(self, house: House, server: bool):
        """At once in client mode; in server mode the wallet is asked every few seconds."""
        issued = await self.invoice(house)
        house.pend_next(20.0, PaymentState.SETTLED)
        with trio.fail_after(60):
            async with house.payee.events() as events:
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
                began = house.clock.monotonic()
                heard = await anext(aiter(events))
        assert heard.payment_hash == issued.payment_hash
        assert house.clock.monotonic() - began == pytest.approx(20.0, abs=5.1 if server else 0.1)
