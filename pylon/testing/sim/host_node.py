"""A home that hosts agents, in the simulation: the real host over the simulated network, and mortal as every node."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.errors import PaymentFailed
from pylon.host.agents import Agents
from pylon.host.deeds import Deeds
from pylon.host.funds import AgentFunds
from pylon.host.host import Host, HostSettings
from pylon.host.registry import Agent
from pylon.money import Msat
from pylon.relays.pool import RelayPool
from pylon.store.database import Store
from pylon.testing.sim.node import MortalWallet, Node, Setting
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.port import Balance, Payment, Wallet
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import PREFIX


class HostNode(Node):
    """Agents, and what runs them. What is spawned stays over its deaths."""

    host: Host | None = None
    agents: Agents | None = None
    buyer: Buyer | None = None

    def __init__(
        self, name: str, setting: Setting, rng: random.Random, *, settings: HostSettings | None = None
    ) -> None:
        super().__init__(name, setting, rng)
        self.settings = settings
        self.outage = False
        """While true, no wallet says what it holds."""

    async def populate(self, nursery: trio.Nursery, store: Store, pool: RelayPool, wallet: MortalWallet) -> None:
        clock, rng = self.setting.clock, self.rng
        keeper = MortalKeeper(SimnetKeeper(self.setting.ledger), self)
        home = Account("", self.secret, Purse(wallet, store, clock), await wallet.info())
        self.agents = agents = Agents(store, keeper, clock, rng, runner=self.secret, relays=lambda: pool.urls)
        self.buyer = Buyer(
            accounts=lambda owner: home if owner == "" else agents.account(owner),
            store=store,
            pool=pool,
            clock=clock,
            rng=rng,
            settings=BuyerSettings(network="simnet", invoice_prefix=PREFIX),
        )
        deeds = Deeds(agents, zap_invoice=_no_zaps, invoice_prefix=PREFIX)
        funds = AgentFunds(agents, paid_zap=_no_zap)
        self.host = Host(agents, self.buyer, pool, deeds, funds, locks=None, settings=self.settings)
        await nursery.start(self.buyer.run)
        await nursery.start(self.host.run)


class MortalKeeper:
    """A node's wallets: a dead node neither asks them nor hears their answers."""

    def __init__(self, keeper: SimnetKeeper, node: HostNode) -> None:
        self._keeper = keeper
        self._node = node

    @property
    def kind(self) -> str:
        return self._keeper.kind

    @property
    def network(self) -> str:
        return self._keeper.network

    @property
    def invoice_prefix(self) -> str:
        return self._keeper.invoice_prefix

    def wallet(self, secret: bytes, name: str) -> Wallet:
        return _Unreliable(self._keeper.wallet(secret, name), self._node)

    def wallet_id(self, secret: bytes) -> str:
        return self._keeper.wallet_id(secret)

    async def balances(self, ids: Collection[str] | None = None) -> dict[str, Balance]:
        if self._node.outage:
            raise TimeoutError("the wallets do not answer")
        return await self._keeper.balances(ids)

    @asynccontextmanager
    async def _changes(self) -> AsyncIterator[AsyncIterator[str]]:
        async with self._keeper.changes() as changes:
            yield changes

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return self._changes()


class _Unreliable(MortalWallet):
    """A wallet that does not say what it holds while there is an outage."""

    def __init__(self, wallet: Wallet, node: HostNode) -> None:
        super().__init__(wallet, node)  # type: ignore[arg-type]
        self._host = node

    async def balance(self) -> Balance:
        if self._host.outage:
            await trio.lowlevel.checkpoint()
            raise TimeoutError("the wallet does not answer")
        return await super().balance()


async def _no_zaps(agent: Agent, secret: SecretKey, to: str, amount: Msat, comment: str, note: Event | None) -> str:
    raise PaymentFailed("nobody can be zapped in this simulation")


async def _no_zap(agent: str, payment: Payment) -> bool:
    return False
