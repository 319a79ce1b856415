"""A small market for tests: one memory relay, one simnet ledger, one home each that buys or sells, in virtual time."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip89 import build_announcement
from protocols.nip90 import FEEDBACK, JOB_TEXT, FeedbackStatus, build_feedback, build_request, build_result
from pylon.clock import VirtualClock
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.errors import NotFound
from pylon.inference.router import Router
from pylon.money import Msat, sats
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.store.database import Store, open_store
from pylon.store.vault import Vault
from pylon.testing.backend import ScriptedBackend
from pylon.testing.relay import MemoryRelay, network, open_memory_relay
from pylon.wallets.purse import Limits, Purse
from pylon.wallets.simnet import PREFIX, SimnetLedger, SimnetWallet

RELAY = "ws://relay.test"
PRICE = sats(5)


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until ``condition`` gives something true, and return that."""
    with trio.fail_after(seconds):
        while True:
            found = condition()
            if found:
                return found
            await trio.sleep(0.05)


@attrs.define
class Market:
    """What everybody meets on."""

    directory: Path
    relay: MemoryRelay
    ledger: SimnetLedger
    clock: VirtualClock = attrs.field(factory=VirtualClock)
    keys: int = 0
    others: tuple[MemoryRelay, ...] = ()
    """Relays beside the one that everybody meets on."""

    def key(self) -> bytes:
        self.keys += 1
        return self.keys.to_bytes(32, "big")

    @property
    def now(self) -> int:
        return int(self.clock.now())

    def events(self, kind: int, author: str | None = None) -> list[Event]:
        return self.relay.events(Filter(kinds=[kind], authors=None if author is None else [author]))


def account_of(accounts: dict[str, Account], gone: set[str], owner: str) -> Account:
    """One of these accounts. Raises ``NotFound``."""
    if owner not in accounts or owner in gone:
        raise NotFound(f"there is no agent {owner[:16]}")
    return accounts[owner]


@attrs.define
class Agent:
    """An owner beside the home."""

    secret: SecretKey
    wallet: SimnetWallet
    limits: Limits | None = None
    relays: tuple[str, ...] = ()

    @property
    def hex(self) -> str:
        return self.secret.public.hex


@attrs.define
class Home:
    """One home's parts. ``live`` runs them, again and again if wished: the database stays."""

    market: Market
    name: str
    wallet: Any
    secret: SecretKey
    vault: Vault = attrs.field(factory=lambda: Vault(bytes(range(32))))
    agents: list[Agent] = attrs.field(factory=list)
    relays: list[str] = attrs.field(factory=lambda: [RELAY])
    gone: set[str] = attrs.field(factory=set)
    """Agents that are not there any more."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Store, RelayPool]]:
        """Store, pool and publisher, running."""
        clock, rng = self.market.clock, random.Random(self.name)
        path = self.market.directory / f"{self.name}.db"
        async with open_store(path, vault=self.vault, clock=clock, executor="inline", durable=False) as store:
            connect = network(self.market.relay, *self.market.others)
            pool = RelayPool(self.relays, connect=connect, clock=clock, rng=rng)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                nursery.start_soon(Publisher(pool, store, clock, rng).run)
                yield store, pool
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def buying(self, **changes: Any) -> AsyncIterator[tuple[Buyer, Store]]:
        async with self.opened() as (store, pool), trio.open_nursery() as nursery:
            accounts = {
                "": Account("", self.secret, Purse(self.wallet, store, self.market.clock), await self.wallet.info())
            }
            for agent in self.agents:
                purse = Purse(agent.wallet, store, self.market.clock, agent.hex, agent.limits)
                accounts[agent.hex] = Account(
                    agent.hex, agent.secret, purse, await agent.wallet.info(), agent.relays or None
                )
            buyer = Buyer(
                accounts=functools.partial(account_of, accounts, self.gone),
                store=store,
                pool=pool,
                clock=self.market.clock,
                rng=random.Random(1),
                settings=BuyerSettings("simnet", PREFIX, **changes),
            )
            await nursery.start(buyer.run)
            yield buyer, store
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def selling(
        self, backend: Any = None, *, terms: Terms | None = None, **changes: Any
    ) -> AsyncIterator[tuple[Provider, Store]]:
        async with self.opened() as (store, pool), trio.open_nursery() as nursery:
            provider = Provider(
                secret=self.secret,
                store=store,
                pool=pool,
                wallet=self.wallet,
                wallet_name="own",
                router=Router(backend if isinstance(backend, list) else [backend or ScriptedBackend("an answer")]),
                clock=self.market.clock,
                rng=random.Random(2),
                terms=terms or Terms(min_price=PRICE),
                **changes,
            )
            await nursery.start(provider.run)
            yield provider, store
            nursery.cancel_scope.cancel()


@attrs.define
class Actor:
    """Somebody who talks straight to the relay, honestly or not."""

    market: Market
    secret: SecretKey
    wallet: SimnetWallet

    @property
    def hex(self) -> str:
        return self.secret.public.hex

    def announce(self, price: int = PRICE, network: str = "simnet", **changes: Any) -> None:
        said = {
            "d": "it",
            "kinds": (JOB_TEXT,),
            "models": ("scripted-1",),
            "price_msats": price,
            "network": network,
            "name": "",
            "about": "",
            "created_at": self.market.now,
            **changes,
        }
        self.market.relay.publish(build_announcement(self.secret, **said))

    def feedback(self, request: str, customer: str, status: FeedbackStatus, **changes: Any) -> Event:
        said = {"created_at": self.market.now, **changes}
        event = build_feedback(self.secret, request=request, customer=customer, status=status, **said)
        self.market.relay.publish(event)
        return event

    async def invoice(self, amount: int = PRICE, key: str = "k", expiry: int = 600) -> str:
        return (await self.wallet.receive(Msat(amount), "job", expiry, key=key)).bolt11

    async def quote(self, request: Event, amount: int = PRICE, **changes: Any) -> str:
        bolt11 = await self.invoice(amount, key=request.id)
        said = {"amount_msats": amount, "bolt11": bolt11, **changes}
        self.feedback(request.id, request.pubkey, FeedbackStatus.PAYMENT_REQUIRED, **said)
        return bolt11

    def answer(self, request: Event, text: str = "words", encrypt: bool = True) -> Event:
        event = build_result(
            self.secret,
            request=request.id,
            request_kind=JOB_TEXT,
            customer=request.pubkey,
            text=text,
            encrypt=encrypt,
            created_at=self.market.now,
        )
        self.market.relay.publish(event)
        return event

    def ask(self, provider: SecretKey, prompt: str = "think", **changes: Any) -> Event:
        said = {"created_at": self.market.now, "max_tokens": 16, **changes}
        event = build_request(self.secret, prompt=prompt, provider=provider.public, **said)
        self.market.relay.publish(event)
        return event

    async def request(self) -> Event:
        """The newest request that somebody has sent to this provider."""

        def mine() -> Event | None:
            found = [event for event in self.market.events(JOB_TEXT) if event.tag("p") == self.hex]
            return found[0] if found else None

        return await until(mine)

    async def told(self, request: Event, status: str) -> Event:
        """Feedback with this status for a request of ours."""

        def found() -> Event | None:
            for event in self.market.events(FEEDBACK):
                if event.tag("e") == request.id and event.tag("status") == status:
                    return event
            return None

        return await until(found)

    async def pay(self, quote: Event) -> None:
        amount = next(tag for tag in quote.tags if tag[0] == "amount")
        await self.wallet.pay(amount[2], max_fee=sats(10), idempotency_key=amount[2][-20:])


@asynccontextmanager
async def open_market(directory: Path) -> AsyncIterator[Market]:
    clock = VirtualClock()
    async with (
        open_memory_relay(RELAY, clock=clock) as relay,
        SimnetLedger(directory / "simnet.db", clock=clock, poll_seconds=None, durable=False) as ledger,
    ):
        yield Market(directory, relay, ledger, clock)


async def open_home(market: Market, name: str = "home", funds: int = sats(1_000)) -> Home:
    wallet = market.ledger.wallet(name, market.key())
    if funds:
        await wallet.fund(Msat(funds))
    return Home(market, name, wallet, SecretKey(market.key()))


async def open_agent(
    home: Home,
    name: str = "agent",
    funds: int = sats(1_000),
    limits: Limits | None = None,
    relays: tuple[str, ...] = (),
) -> Agent:
    """An agent of a home, which buys with it from now on."""
    wallet = home.market.ledger.wallet(name, home.market.key())
    if funds:
        await wallet.fund(Msat(funds))
    agent = Agent(SecretKey(home.market.key()), wallet, limits, relays)
    home.agents.append(agent)
    return agent


async def open_actor(market: Market, name: str = "actor", funds: int = sats(1_000)) -> Actor:
    wallet = market.ledger.wallet(name, market.key())
    if funds:
        await wallet.fund(Msat(funds))
    return Actor(market, SecretKey(market.key()), wallet)
