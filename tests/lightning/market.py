"""A buyer and a provider at home: real clock, real websockets to the relay, a wallet by its connection string."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip47 import ConnectionUri
from pylon.clock import SystemClock
from pylon.compute.buyer import Account, Buyer, BuyerSettings
from pylon.inference.router import Router
from pylon.money import sats
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.relays.websocket import connect
from pylon.store.database import Store, open_store
from pylon.store.vault import Vault
from pylon.testing.backend import ScriptedBackend
from pylon.wallets.nwc import open_nwc
from pylon.wallets.port import Wallet
from pylon.wallets.purse import Purse

NETWORK, PREFIX = "regtest", "bcrt"
PRICE = sats(7)
BACKEND_SAYS = "What was asked, answered."


@attrs.define
class Home:
    """One home's parts; run again and again if wished, for its database stays."""

    directory: Path
    name: str
    relay: str
    connection: str
    secret: SecretKey = attrs.field(factory=SecretKey.generate)
    clock: SystemClock = attrs.field(factory=SystemClock)
    rng: random.Random = attrs.field(factory=random.Random)

    @property
    def hex(self) -> str:
        """Its public key."""
        return self.secret.public.hex

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Store, RelayPool, Wallet]]:
        """Store, pool and wallet, running."""
        vault = Vault(bytes(range(32)))
        async with open_store(self.directory / f"{self.name}.db", vault=vault, clock=self.clock) as store:
            pool = RelayPool([self.relay], connect=connect, clock=self.clock, rng=self.rng)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                nursery.start_soon(Publisher(pool, store, self.clock, self.rng).run)
                uri = ConnectionUri.parse(self.connection)
                async with open_nwc(uri, store=store, connect=connect, clock=self.clock, rng=self.rng) as wallet:
                    yield store, pool, wallet
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def buying(self, **changes: Any) -> AsyncIterator[tuple[Buyer, Store]]:
        async with self.opened() as (store, pool, wallet), trio.open_nursery() as nursery:
            account = Account("", self.secret, Purse(wallet, store, self.clock), await wallet.info())
            buyer = Buyer(
                accounts=lambda owner: account,
                store=store,
                pool=pool,
                clock=self.clock,
                rng=self.rng,
                settings=BuyerSettings(NETWORK, PREFIX, **changes),
            )
            await nursery.start(buyer.run)
            yield buyer, store
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def selling(self) -> AsyncIterator[tuple[Provider, Store]]:
        """Announced, and taking requests."""
        async with self.opened() as (store, pool, wallet), trio.open_nursery() as nursery:
            provider = Provider(
                secret=self.secret,
                store=store,
                pool=pool,
                wallet=wallet,
                wallet_name="own",
                router=Router([ScriptedBackend(BACKEND_SAYS)]),
                clock=self.clock,
                rng=self.rng,
                terms=Terms(min_price=PRICE, unit=sats(1)),
            )
            announcer = Announcer(
                secret=self.secret,
                store=store,
                pool=pool,
                router=provider.router,
                clock=self.clock,
                terms=provider.terms,
                profile=Profile(self.name, "", NETWORK),
            )
            await nursery.start(provider.run)
            nursery.start_soon(announcer.run)
            yield provider, store
            nursery.cancel_scope.cancel()
