"""Homes that let others use their wallets by NWC, and others who do: one memory relay, one simnet, virtual time."""

from __future__ import annotations

import functools
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip47 import ConnectionUri
from pylon.clock import VirtualClock
from pylon.money import Msat, sats
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.store.database import Store, open_store
from pylon.store.schema import migrate
from pylon.store.vault import Vault
from pylon.store.wallet_connections import Connection
from pylon.testing.relay import MemoryRelay, network, open_memory_relay
from pylon.wallets.nwc import NwcWallet, open_nwc
from pylon.wallets.nwc_connect import connect
from pylon.wallets.nwc_service import WalletService
from pylon.wallets.simnet import SimnetLedger, SimnetWallet

RELAY = "ws://relay.test"
VAULT = Vault(bytes(range(32)))
PATIENCE = 20.0
PLENTY = sats(1_000_000)


@functools.cache
def _new_database() -> bytes:
    """An empty database of the present schema: to make one anew takes longer than most tests."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "new.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            migrate(connection, path)
        return Path(path).read_bytes()


@attrs.define
class Serving:
    """A home while its service runs."""

    store: Store
    wallet: Any
    service: WalletService
    clock: VirtualClock

    async def connect(
        self, name: str = "app", per_day: Msat = PLENTY, relays: tuple[str, ...] = (RELAY,), **more: Any
    ) -> tuple[Connection, ConnectionUri]:
        made = await connect(self.store, name=name, relays=relays, per_day=per_day, at=self.clock.now(), **more)
        await trio.sleep(0.5)  # the service listens for it
        return made


@attrs.define
class World:
    directory: Path
    ledger: SimnetLedger
    relay: MemoryRelay
    clock: VirtualClock
    others: tuple[MemoryRelay, ...] = ()
    keys: int = 0

    def wallet(self, name: str) -> SimnetWallet:
        self.keys += 1
        return self.ledger.wallet(name, SecretKey(self.keys.to_bytes(32, "big")).reveal())

    @property
    def connect(self) -> Any:
        return network(self.relay, *self.others)

    @asynccontextmanager
    async def store(self, name: str) -> AsyncIterator[Store]:
        path = self.directory / f"{name}.db"
        if not path.exists():
            path.write_bytes(_new_database())
        async with open_store(path, vault=VAULT, clock=self.clock, executor="inline", durable=False) as store:
            yield store

    @asynccontextmanager
    async def serving(self, wallet: Any, name: str, **changes: Any) -> AsyncIterator[Serving]:
        """The service of a home; again with the same name, it is the same home started anew."""
        rng = random.Random(name)
        urls = [RELAY, *(relay.url for relay in self.others)]
        async with self.store(name) as store, trio.open_nursery() as nursery:
            pool = RelayPool(urls, connect=self.connect, clock=self.clock, rng=rng)
            await nursery.start(pool.run)
            nursery.start_soon(Publisher(pool, store, self.clock, rng).run)
            service = WalletService(wallet, store, pool, self.clock, rng, alias=name, **changes)
            await nursery.start(service.run)
            yield Serving(store, wallet, service, self.clock)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def using(self, uri: ConnectionUri, name: str, **changes: Any) -> AsyncIterator[NwcWallet]:
        """Somebody who has a connection string."""
        said = {"patience": PATIENCE, **changes}
        async with self.store(f"{name}-client") as store:
            async with open_nwc(
                uri, store=store, connect=self.connect, clock=self.clock, rng=random.Random(name), **said
            ) as wallet:
                yield wallet


@asynccontextmanager
async def open_world(directory: Path, *, relays: int = 1) -> AsyncIterator[World]:
    clock = VirtualClock()
    async with (
        open_memory_relay(RELAY, clock=clock) as relay,
        open_memory_relay("ws://second.test", clock=clock) as second,
        SimnetLedger(
            directory / "simnet.db", clock=clock, rng=random.Random(0), poll_seconds=None, durable=False
        ) as ledger,
    ):
        yield World(directory, ledger, relay, clock, (second,) if relays > 1 else ())
