"""A home whose agents can be paid, for tests: a store, simnet wallets, a pay service, and what its pool would be."""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from protocols import nip57
from protocols.keys import SecretKey
from protocols.nip01 import Event
from pylon.clock import Clock
from pylon.host.zaps import Payee, PayLimits, PayService
from pylon.money import Msat
from pylon.store.database import Store, open_store
from pylon.store.schema import migrate
from pylon.store.vault import Vault
from pylon.wallets.simnet import SimnetLedger, SimnetWallet
from pylon.wallets.simnet_ledger import LedgerFile

RELAYS = ("ws://relay.test", "wss://other.test/inbox")
SENDER = SecretKey(b"\x51" * 32)


@attrs.define
class Village:
    """``payees`` of a home: what the host will be."""

    store: Store
    ledger: SimnetLedger
    clock: Clock
    signer: SecretKey
    wallets: dict[str, SimnetWallet] = attrs.Factory(dict)
    keys: dict[str, SecretKey] = attrs.Factory(dict)
    about: str = "An agent of tests"

    def add(self, name: str, number: int) -> SimnetWallet:
        """An agent; its keys come of its number."""
        self.keys[name] = SecretKey(number.to_bytes(32, "big"))
        self.wallets[name] = self.ledger.wallet(name, (number + 1_000).to_bytes(32, "big"))
        return self.wallets[name]

    def hex(self, name: str) -> str:
        return self.keys[name].public.hex

    def named(self, name: str) -> Payee | None:
        if name not in self.keys:
            return None
        return Payee(self.hex(name), name, self.about, lambda: self.wallets[name])

    def keyed(self, agent: str) -> Payee | None:
        return next((self.named(name) for name in self.keys if self.hex(name) == agent), None)

    def service(self, limits: PayLimits | None = None, address: str | None = "agents.example.com") -> PayService:
        service = PayService(
            self,
            signer=self.signer,
            store=self.store,
            relays=lambda: RELAYS,
            clock=self.clock,
            limits=limits,
        )
        service.address = address
        return service

    def request(self, name: str = "alice", amount: int = 21_000, sender: SecretKey = SENDER, **changes) -> str:
        """A zap request for an agent, as JSON."""
        said = {"relays": RELAYS[:1], "comment": "nice", "created_at": int(self.clock.now()), **changes}
        return nip57.build_request(sender, recipient=self.hex(name), amount_msats=amount, **said).to_json()

    def receipts(self) -> list[tuple[Event, list[str]]]:
        """What is in the outbox, with where it goes."""
        rows = self.store.read("SELECT event_id, event FROM outbox WHERE effect = 'zap.receipt' ORDER BY id")
        return [
            (
                Event.from_json(row["event"]),
                [
                    delivery["relay"]
                    for delivery in self.store.read(
                        "SELECT relay FROM deliveries WHERE event_id = ? ORDER BY relay", (row["event_id"],)
                    )
                ],
            )
            for row in rows
        ]


async def pay(payer: SimnetWallet, invoice: str) -> None:
    await payer.pay(invoice, max_fee=Msat(1_000_000), idempotency_key=invoice[-40:])


@functools.cache
def _empty_database() -> bytes:
    """Made once: the migrations cost more than most tests."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            migrate(connection, str(path))
        return path.read_bytes()


@functools.cache
def _empty_ledger() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "simnet.db"
        LedgerFile(path, rng=random.Random(), durable=False).close()
        return path.read_bytes()


@asynccontextmanager
async def open_ledger(directory: Path, clock: Clock) -> AsyncIterator[SimnetLedger]:
    """For virtual time and one process; quick to make."""
    path = directory / "simnet.db"
    if not path.exists():
        path.write_bytes(_empty_ledger())
    async with SimnetLedger(path, clock=clock, poll_seconds=None, durable=False) as ledger:
        yield ledger


@asynccontextmanager
async def open_village(
    directory: Path, ledger: SimnetLedger, clock: Clock, *, name: str = "home", executor: str = "inline"
) -> AsyncIterator[Village]:
    """A home with two agents, alice and bob. Opened again with the same name, it finds what it has stored."""
    number = int.from_bytes(name.encode()[-2:], "big")
    path = directory / f"{name}.db"
    if not path.exists():
        path.write_bytes(_empty_database())
    vault = Vault(bytes(range(32)))
    async with open_store(path, vault=vault, clock=clock, executor=executor, durable=False) as store:
        village = Village(store, ledger, clock, SecretKey((number + 500_000).to_bytes(32, "big")))
        village.add("alice", number * 4 + 10_000)
        village.add("bob", number * 4 + 10_001)
        yield village
