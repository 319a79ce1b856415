"""A home that hosts agents, in the simulation: the real host over the simulated network, and mortal as every node."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.compute.purchase import Purchase
from pylon.errors import NotFound, PaymentFailed
from pylon.host.agents import Agents
from pylon.host.deeds import Deeds, ZapInvoice
from pylon.host.funds import AgentFunds
from pylon.host.host import Host, HostSettings
from pylon.host.registry import Agent
from pylon.money import Msat
from pylon.relays.pool import RelayPool
from pylon.store.database import Store
from pylon.testing.sim.chronicle import Chronicle
from pylon.testing.sim.node import MortalWallet, Node, Setting
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.port import Balance, Payment, Wallet
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import PREFIX


class HostNode(Node):
    """Agents, and what runs them. What is spawned stays over its deaths.

    :param begins: called in each life before the first agent is run.
    """

    host: Host | None = None
    agents: Agents | None = None
    buyer: Buyer | None = None

    def __init__(
        self,
        name: str,
        setting: Setting,
        rng: random.Random,
        *,
        settings: HostSettings | None = None,
        zap_invoice: ZapInvoice | None = None,
        chronicle: Chronicle | None = None,
        begins: Callable[[Store], None] = lambda store: None,
    ) -> None:
        super().__init__(name, setting, rng)
        self.settings = settings
        self.zap_invoice = zap_invoice or _no_zaps
        self.chronicle = chronicle
        self.begins = begins
        self.outage = False
        """While true, no wallet says what it holds."""
        self.unreachable = False
        """While true, no wallet answers anything. What it was told to pay, it has paid, or not."""
        self.cursed: set[str] = set()
        """Agents whose thoughts break off with an error that nobody expects."""
        self.ready = False
        """Whether it lives, and all in it runs."""
        self.ended_at = 0.0
        """Trio's time at which the last life ended."""

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().live(task_status=task_status)
        finally:
            self.ready = False
            self.ended_at = trio.current_time()

    def kill(self, why: str) -> None:
        self.ready = False
        super().kill(why)

    async def populate(self, nursery: trio.Nursery, store: Store, pool: RelayPool, wallet: MortalWallet) -> None:
        clock, rng = self.setting.clock, self.rng
        if self.chronicle is not None:
            self.chronicle.begin(store, self.ended_at)
            await nursery.start(self.chronicle.follow, store)
        keeper = MortalKeeper(SimnetKeeper(self.setting.ledger), self)
        home = Account("", self.secret, Purse(wallet, store, clock), await wallet.info())
        self.agents = agents = Agents(store, keeper, clock, rng, runner=self.secret, relays=lambda: pool.urls)
        self.buyer = _Buyer(
            self,
            accounts=lambda owner: home if owner == "" else agents.account(owner),
            store=store,
            pool=pool,
            clock=clock,
            rng=rng,
            settings=BuyerSettings(network="simnet", invoice_prefix=PREFIX),
        )
        deeds = Deeds(agents, zap_invoice=self.zap_invoice, invoice_prefix=PREFIX)
        funds = AgentFunds(agents, paid_zap=_no_zap)
        self.host = Host(agents, self.buyer, pool, deeds, funds, locks=None, settings=self.settings)
        await nursery.start(self.buyer.run)
        self.begins(store)
        await nursery.start(self.host.run)
        self.ready = True


class _Buyer(Buyer):
    """The real one, which breaks off for those that are cursed: an error of ours, after the money has gone."""

    def __init__(self, node: HostNode, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self._node = node

    async def finished(self, purchase_id: str) -> Purchase:
        row = self._store.one("SELECT owner FROM purchases WHERE id = ?", (purchase_id,))
        if row is None:
            raise NotFound(f"no purchase {purchase_id}")
        done = await super().finished(purchase_id)
        if row["owner"] in self._node.cursed:
            raise RuntimeError("this agent is cursed")
        return done


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

    @property
    def seeded(self) -> bool:
        return self._keeper.seeded

    def wallet(self, secret: bytes, name: str) -> Wallet:
        return _Unreliable(self._keeper.wallet(secret, name), self._node)

    def wallet_id(self, secret: bytes) -> str:
        return self._keeper.wallet_id(secret)

    async def balances(self, ids: Collection[str] | None = None) -> dict[str, Balance]:
        if self._node.outage or self._node.unreachable:
            raise TimeoutError("the wallets do not answer")
        return await self._keeper.balances(ids)

    @asynccontextmanager
    async def _changes(self) -> AsyncIterator[AsyncIterator[str]]:
        async with self._keeper.changes() as changes:
            yield changes

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return self._changes()


class _Unreliable(MortalWallet):
    """A wallet that does not say what it holds, or anything at all, while there is an outage."""

    def __init__(self, wallet: Wallet, node: HostNode) -> None:
        super().__init__(wallet, node)
        self._host = node

    async def _reach(self) -> None:
        if self._host.unreachable:
            await trio.lowlevel.checkpoint()
            raise TimeoutError("the wallet does not answer")

    async def balance(self) -> Balance:
        if self._host.outage:
            await trio.lowlevel.checkpoint()
            raise TimeoutError("the wallet does not answer")
        await self._reach()
        return await super().balance()

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        await self._reach()
        return await super().payments(since=since, limit=limit, completed=completed, newest=newest)

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        await self._reach()
        return await super().lookup_payment(payment_hash)

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await self._reach()
        return await super().lookup_key(idempotency_key)

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        if self._host.unreachable and self._host.rng.random() < 0.5:
            await self._reach()
        payment = await super().pay(target, amount=amount, max_fee=max_fee, idempotency_key=idempotency_key)
        await self._reach()
        return payment


async def _no_zaps(agent: Agent, secret: SecretKey, to: str, amount: Msat, comment: str, note: Event | None) -> str:
    raise PaymentFailed("nobody can be zapped in this simulation")


async def _no_zap(agent: str, payment: Payment) -> bool:
    return False
