"""One home in the simulation: its database survives, everything else dies with it."""

from __future__ import annotations

import contextvars
import functools
import random
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from protocols.keys import SecretKey
from pylon.clock import VirtualClock
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.daemon.hosting import note_sale
from pylon.host.zaps import Payee, PayService
from pylon.inference.router import Router
from pylon.money import Msat, sats
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.relays.transport import Connect
from pylon.store.database import Store, open_store
from pylon.store.vault import Vault
from pylon.testing.backend import ScriptedBackend
from pylon.wallets.port import (
    Addresses,
    Balance,
    IssuedInvoice,
    Payment,
    PaymentEvents,
    Target,
    Wallet,
    WalletInfo,
)
from pylon.wallets.purse import Budget, Limits, Purse
from pylon.wallets.simnet import PREFIX, SimnetLedger, SimnetWallet

T = TypeVar("T")

current: contextvars.ContextVar[Node | None] = contextvars.ContextVar("current", default=None)
"""Whose task this is; ``None`` for the world's own."""


class Killed(BaseException):
    """The node died here. No ``except Exception`` may stop it, as none stops a SIGKILL."""


@attrs.frozen
class Setting:
    """What all nodes of a world share."""

    directory: Path
    clock: VirtualClock
    ledger: SimnetLedger
    connect: Connect
    relays: tuple[str, ...]


class Node:
    """A home that can be started, killed and started again. Subclasses say what it runs."""

    def __init__(self, name: str, setting: Setting, rng: random.Random) -> None:
        self.name = name
        self.setting = setting
        self.rng = rng
        self.secret = SecretKey(rng.randbytes(32))
        self._node_secret = rng.randbytes(32)
        self._vault = Vault(rng.randbytes(32))
        self.alive = False
        self.deaths: list[str] = []
        self.store: Store | None = None
        self._scope = trio.CancelScope()
        self.passages: dict[str, int] = {}
        self.plan: dict[str, int] = {}
        """Crash points at which this node dies, each at its n-th passage."""

    @property
    def database(self) -> Path:
        return self.setting.directory / f"{self.name}.db"

    @property
    def vault(self) -> Vault:
        return self._vault

    def bare_wallet(self) -> SimnetWallet:
        """The wallet as the ledger has it, for those who look on."""
        return self.setting.ledger.wallet(self.name, self._node_secret)

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One life, until killed or cancelled. Started when everything in it runs."""
        current.set(self)
        self._scope = trio.CancelScope()
        self.alive = True
        try:
            with self._scope:
                async with open_store(
                    self.database, vault=self._vault, clock=self.setting.clock, executor="inline", durable=False
                ) as store:
                    self.store = store
                    await self._live(store, task_status)
        except BaseExceptionGroup as group:
            _, other = group.split((Killed, trio.Cancelled))
            if other is not None and self.alive:
                raise other from None
        except Killed:
            pass
        finally:
            self.alive = False
            self.store = None

    async def _live(self, store: Store, task_status: trio.TaskStatus[None]) -> None:
        setting = self.setting
        pool = RelayPool(setting.relays, connect=setting.connect, clock=setting.clock, rng=self.rng)
        wallet = MortalWallet(self.bare_wallet(), self)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            nursery.start_soon(Publisher(pool, store, setting.clock, self.rng).run)
            await self.populate(nursery, store, pool, wallet)
            task_status.started()

    async def populate(self, nursery: trio.Nursery, store: Store, pool: RelayPool, wallet: MortalWallet) -> None:
        raise AssertionError("a node is a buyer or a seller")

    def kill(self, why: str) -> None:
        """As SIGKILL does: nothing more is written, sent or paid."""
        if self.alive:
            self.alive = False
            self.deaths.append(why)
            if self.store is not None:
                self.store.kill()
            self._scope.cancel()

    def passed(self, point: str) -> None:
        """A crash point was passed by a task of this node."""
        if not self.alive:
            raise Killed
        count = self.passages[point] = self.passages.get(point, 0) + 1
        if self.plan.get(point) == count:
            del self.plan[point]
            self.kill(point)
            raise Killed


@attrs.frozen
class Customer:
    """Somebody who buys at a home: the home itself (owner ''), or an agent of it."""

    owner: str
    name: str
    secret: SecretKey
    wallet: SimnetWallet
    """As the ledger has it, for those who look on."""
    budget: Budget | None = None


class BuyerNode(Node):
    """A home that buys, and some agents that buy with it. ``chance`` draws who they are and what they may spend."""

    buyer: Buyer | None = None

    def __init__(self, name: str, setting: Setting, rng: random.Random, chance: random.Random) -> None:
        super().__init__(name, setting, rng)
        self.customers = [Customer("", name, self.secret, self.bare_wallet())]
        self.pay_on_delivery = chance.random() < 0.7
        for number in range(chance.randint(0, 2)):
            secret, agent = SecretKey(chance.randbytes(32)), f"{name}'s agent {number}"
            self.customers.append(
                Customer(
                    secret.public.hex,
                    agent,
                    secret,
                    setting.ledger.wallet(agent, chance.randbytes(32)),
                    Budget(
                        per_scope=chance.choice([None, sats(12), sats(35), Msat(0)]),
                        per_day=chance.choice([None, sats(40), sats(80)]),
                    ),
                )
            )

    async def populate(self, nursery: trio.Nursery, store: Store, pool: RelayPool, wallet: MortalWallet) -> None:
        accounts = {}
        for customer in self.customers:
            mortal = MortalWallet(customer.wallet, self)
            limits = None if customer.budget is None else _limits(customer.budget)
            purse = Purse(mortal, store, self.setting.clock, customer.owner, limits)
            accounts[customer.owner] = Account(customer.owner, customer.secret, purse, await mortal.info())
        self.buyer = Buyer(
            accounts=accounts.__getitem__,
            store=store,
            pool=pool,
            clock=self.setting.clock,
            rng=self.rng,
            settings=BuyerSettings(network="simnet", invoice_prefix=PREFIX, pay_on_delivery=self.pay_on_delivery),
        )
        await nursery.start(self.buyer.run)


def _limits(budget: Budget) -> Limits:
    return lambda source, spend: budget


class SellerNode(Node):
    """A home that sells. ``chance`` draws on what terms."""

    pay: PayService | None = None
    """Where it is zapped, as HTTP would lead there."""

    def __init__(
        self,
        name: str,
        setting: Setting,
        rng: random.Random,
        price: Msat,
        backend: ScriptedBackend,
        chance: random.Random,
    ) -> None:
        super().__init__(name, setting, rng)
        self.price = price
        self.backend = backend
        self.terms = Terms(
            min_price=price,
            invoice_seconds=120,
            on_trust=chance.random() < 0.15,
            pay_on_delivery=chance.random() < 0.85,
            hold_seconds=chance.choice([30, 300, 1_800]),
            # So that a debt carries a part of a price, or more than it. Purchases find it dear.
            price_out=Msat(chance.choice([0, 0, 200_000])),
        )

    async def zap_invoice(self, amount: Msat, request: str) -> str | None:
        """What its lightning address answers to a zap; ``None`` where it does not."""
        try:
            return None if self.pay is None or not self.alive else await self.pay.invoice(self.name, amount, request)
        except (Exception, Killed):
            return None  # it died meanwhile, or it will not

    async def populate(self, nursery: trio.Nursery, store: Store, pool: RelayPool, wallet: MortalWallet) -> None:
        router, terms = Router([self.backend]), self.terms
        own = self.secret.public.hex
        self.pay = PayService(
            _OnlyPayee(Payee(own, self.name, "", lambda: wallet)),
            signer=self.secret,
            store=store,
            relays=lambda: pool.urls,
            clock=self.setting.clock,
            issued=functools.partial(note_sale, own),
        )
        self.pay.address = "sim.example"
        provider = Provider(
            secret=self.secret,
            store=store,
            pool=pool,
            wallet=wallet,
            wallet_name="own",
            received=functools.partial(self.pay.paid, own),
            router=router,
            clock=self.setting.clock,
            rng=self.rng,
            terms=terms,
        )
        await nursery.start(provider.run)
        announcer = Announcer(
            secret=self.secret,
            store=store,
            pool=pool,
            router=router,
            clock=self.setting.clock,
            terms=terms,
            profile=Profile(self.name, "", "simnet"),
        )
        nursery.start_soon(announcer.run)


@attrs.frozen
class _OnlyPayee:
    """``pylon.host.zaps.Payees`` of a home that has no agents."""

    payee: Payee

    def named(self, name: str) -> Payee | None:
        return self.payee if name == self.payee.name else None

    def keyed(self, agent: str) -> Payee | None:
        return self.payee if agent == self.payee.agent else None


class MortalWallet:
    """A node's wallet: a dead node neither asks it nor hears its answer."""

    def __init__(self, wallet: Wallet, node: Node) -> None:
        self._wallet = wallet
        self._node = node

    async def _mortal(self, call: Coroutine[object, object, T]) -> T:
        if not self._node.alive:
            call.close()
            raise Killed
        try:
            return await call
        finally:
            if not self._node.alive:
                raise Killed

    async def info(self) -> WalletInfo:
        return await self._mortal(self._wallet.info())

    async def balance(self) -> Balance:
        return await self._mortal(self._wallet.balance())

    async def receive(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, *, hash_description: bool = False
    ) -> IssuedInvoice:
        issued = self._wallet.receive(amount, description, expiry_seconds, key, hash_description=hash_description)
        return await self._mortal(issued)

    async def hold(
        self, amount: Msat, description: str, expiry_seconds: int, key: str, payment_hash: str
    ) -> IssuedInvoice:
        return await self._mortal(self._wallet.hold(amount, description, expiry_seconds, key, payment_hash))

    async def settle(self, preimage: str) -> None:
        await self._mortal(self._wallet.settle(preimage))

    async def cancel(self, payment_hash: str) -> None:
        await self._mortal(self._wallet.cancel(payment_hash))

    async def addresses(self) -> Addresses:
        return await self._mortal(self._wallet.addresses())

    async def decode(self, target: str) -> Target:
        return await self._mortal(self._wallet.decode(target))

    async def quote(self, target: str, *, amount: Msat | None = None) -> Msat:
        return await self._mortal(self._wallet.quote(target, amount=amount))

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        payment = self._wallet.pay(target, amount=amount, max_fee=max_fee, idempotency_key=idempotency_key)
        return await self._mortal(payment)

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        return await self._mortal(self._wallet.lookup_payment(payment_hash))

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        return await self._mortal(self._wallet.lookup_key(idempotency_key))

    async def lookup_invoice(self, payment_hash: str) -> IssuedInvoice | None:
        return await self._mortal(self._wallet.lookup_invoice(payment_hash))

    async def payments(
        self, *, since: float = 0.0, limit: int = 1_000, completed: bool = False, newest: bool = False
    ) -> list[Payment]:
        return await self._mortal(self._wallet.payments(since=since, limit=limit, completed=completed, newest=newest))

    def events(self) -> AbstractAsyncContextManager[PaymentEvents]:
        return self._wallet.events()

    async def aclose(self) -> None:
        await self._wallet.aclose()
