"""The suite that every wallet passes, with ``NwcWallet`` over somebody else's service over real Lightning.

What takes virtual time, or a network that does as it is told, is not for it: ``test_job`` has payments that hang and
answers that are lost.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio

from protocols.nip47 import ConnectionUri
from pylon.clock import SystemClock
from pylon.relays.websocket import connect as connect_relay
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.nwc import open_nwc
from pylon.wallets.port import PaymentState
from tests.lightning.processes import FAILED, channel_msats
from tests.pylon.wallets.conformance import House, WalletConformance

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
        while await trio.to_thread.run_sync(self.failures) == before:  # noqa: ASYNC110 - another process counts
            await trio.sleep(0.05)
        self.mend()

    def mend(self):
        self.payee.settle(True)
        self.payee.fail(False)
        self.payer.forget_failures()


class TestConformance(WalletConformance):
    @pytest.fixture
    async def house(self, lightning, connect, tmp_path):
        clock = SystemClock()
        daemons = (lightning.payer, lightning.distant, lightning.payee)
        before = sum(channel_msats(*daemons))
        async with AsyncExitStack() as stack:
            wallets = []
            for daemon in daemons:
                path, vault = tmp_path / f"{daemon.name}.db", Vault(bytes(range(32)))
                store = await stack.enter_async_context(open_store(path, vault=vault, clock=clock))
                uri = ConnectionUri.parse(connect(daemon).connection)
                opening = open_nwc(uri, store=store, connect=connect_relay, clock=clock, rng=random.Random())
                wallets.append(await stack.enter_async_context(opening))
            nursery = await stack.enter_async_context(trio.open_nursery())
            faults = Faults(lightning.payer, lightning.payee, nursery)
            try:
                yield House(
                    *wallets,
                    clock=clock,
                    prefix="bcrt",
                    pass_time=pass_time,
                    delay_next=faults.delay_next,
                    fail_next=faults.fail_next,
                )
            finally:
                nursery.cancel_scope.cancel()
                faults.mend()
        assert sum(channel_msats(*daemons)) == before
