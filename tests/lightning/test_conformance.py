"""The suite that every wallet passes, with ``NwcWallet`` over somebody else's service over real Lightning.

What takes virtual time, or a network that does as it is told, is not for it: ``test_job`` has payments that hang and
answers that are lost.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, ExitStack

import pytest
import trio

from protocols import bolt11
from protocols.nip47 import ConnectionUri
from pylon.clock import SystemClock
from pylon.errors import InsufficientFunds, NotSupported, PaymentFailed, WrongNetwork
from pylon.money import max_fee
from pylon.relays.websocket import connect as connect_relay
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.nwc import open_nwc
from pylon.wallets.port import PaymentState
from tests.lightning.processes import FAILED, Relay, WalletService
from tests.pylon.wallets.conformance import AMOUNT, House, WalletConformance, key
from tests.pylon.wallets.conformance_house import FEE_CAP, nothing_moves, signed_elsewhere

pytestmark = [pytest.mark.deep, pytest.mark.lightning]


async def pass_time(seconds):
    if seconds > 10:
        pytest.skip("too long to wait for by a real clock")
    await trio.sleep(seconds)


class Faults:
    """What the payee does to the next payment."""

    def __init__(self, payer, payee, nursery):
        self.payer, self.payee, self.nursery = payer, payee, nursery

    def delay_next(self, seconds, ends):
        """Keep it for so long."""
        self.payee.settle(False)
        self.nursery.start_soon(self._end, seconds, ends)

    def fail_next(self):
        self.payee.fail(True)
        self.nursery.start_soon(self._mend, self.failures())

    def failures(self):
        return sum(invoice["status"] == FAILED for invoice in self.payer.call("list_invoices"))

    async def _end(self, seconds, ends):
        before = self.failures()
        await trio.sleep(seconds + 0.5)  # it was asked for before the payment began
        if ends is PaymentState.FAILED:
            self.payee.fail(True)
            await self._mend(before)
        self.payee.settle(True)

    async def _mend(self, before):
        """Be well again when one has failed."""
        while True:
            if await trio.to_thread.run_sync(self.failures) > before:
                return self.mend()
            await trio.sleep(0.05)

    def mend(self):
        self.payee.settle(True)
        self.payee.fail(False)
        self.payer.forget_failures()


@pytest.fixture(scope="module")
def connections(lightning, tmp_path_factory):
    """Of payer, other and payee: one service each for all tests; each test has records of its own."""
    directory = tmp_path_factory.mktemp("services")
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(directory))
        yield [
            stack.enter_context(WalletService(daemon, directory, relay.url)).connection
            for daemon in (lightning.payer, lightning.distant, lightning.payee)
        ]


class TestConformance(WalletConformance):
    @pytest.fixture
    async def house(self, lightning, connections, tmp_path):
        clock, vault = SystemClock(), Vault(bytes(range(32)))
        async with AsyncExitStack() as stack:
            wallets = []
            for number, connection in enumerate(connections):
                store = open_store(tmp_path / f"{number}.db", vault=vault, clock=clock, executor="inline")
                wallet = open_nwc(
                    ConnectionUri.parse(connection),
                    store=await stack.enter_async_context(store),
                    connect=connect_relay,
                    clock=clock,
                    rng=random.Random(),
                )
                wallets.append(await stack.enter_async_context(wallet))
            nursery = await stack.enter_async_context(trio.open_nursery())
            faults = Faults(lightning.payer, lightning.payee, nursery)
            yield House(
                *wallets,
                clock=clock,
                prefix="bcrt",
                pass_time=pass_time,
                delay_next=faults.delay_next,
                fail_next=faults.fail_next,
            )
            nursery.cancel_scope.cancel()
        faults.mend()

    # What this wallet, or this network, does otherwise.

    async def test_an_invoice_may_commit_to_its_description_by_a_hash(self, house):
        """Electrum 4.3 cannot: the wallet says so instead of making another invoice."""
        with pytest.raises(NotSupported):
            await house.payee.receive(AMOUNT, "words", 600, "zap-1", hash_description=True)

    async def test_a_long_description(self, house):
        """Over 639 bytes it would have to be a hash."""
        with pytest.raises(NotSupported):
            await house.payee.receive(AMOUNT, "long " * 500, 600, "long")

    async def test_an_invoice_of_another_network(self, house):
        """NWC does not look for a way beforehand: an invoice of this network, of nobody, fails when it is paid."""
        for prefix in sorted({*bolt11.NETWORKS} - {house.prefix}):
            with pytest.raises(WrongNetwork):
                await house.payer.pay(
                    signed_elsewhere(prefix, house.clock.now()), max_fee=FEE_CAP, idempotency_key=key(prefix)
                )
        async with nothing_moves(house):
            with pytest.raises(PaymentFailed):
                await house.payer.pay(
                    signed_elsewhere(house.prefix, house.clock.now()), max_fee=FEE_CAP, idempotency_key=key("1")
                )

    async def test_more_than_there_is(self, house):
        """It had been asked, and remembers that it could not."""
        there_is = (await house.payer.balance()).settled
        issued = await house.payee.receive(there_is, "everything, and nothing left to keep the channel", 600, "all")
        async with nothing_moves(house):
            with pytest.raises(InsufficientFunds) as caught:
                await house.payer.pay(issued.bolt11, max_fee=max_fee(there_is), idempotency_key=key("1"))
        assert caught.value.available_msats == there_is
        assert caught.value.required_msats > there_is
        found = await house.payer.lookup_payment(issued.payment_hash)
        assert found is None or found.state is PaymentState.FAILED

    async def test_a_paid_invoice_takes_no_second_payer(self, house):
        pytest.skip("an Electrum takes a second payment of an invoice, and keeps it")

    async def test_a_deposit_is_from_outside(self, house):
        pytest.skip("what a channel began with is in no list of NWC's")
