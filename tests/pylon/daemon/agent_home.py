"""A home with agents on disk, and its verbs over it, as a command without a daemon has them: real store, real ledger.

``furnish`` makes a home once; ``open_verbs`` opens it, or a copy of it, as often as a test likes.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs

from protocols.nip_sa import Autonomy
from pylon import identity
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.daemon.agents import AgentVerbs
from pylon.daemon.hosting import assemble
from pylon.daemon.wallets import open_wallets
from pylon.host.replies import Proposed
from pylon.host.settings import ActionKind
from pylon.host.tick import tick_records
from pylon.host.ticking import Begun, TickRecord, name_of
from pylon.money import sats
from pylon.paths import Home
from pylon.store.database import Store, open_store
from pylon.store.vault import Vault
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import SimnetLedger

CONFIG = Config(network="simnet")
PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"


@attrs.frozen
class Opened:
    """A home that is open."""

    verbs: AgentVerbs
    store: Store
    ledger: SimnetLedger

    async def ask(self, verb: str, **params: Any) -> Any:
        return await self.call(verb, params)

    async def call(self, verb: str, params: dict[str, Any]) -> Any:
        async def notify(method: str, data: Any) -> None:
            pass

        return await self.verbs.table()[verb](params, notify)


@asynccontextmanager
async def open_verbs(root: Path, clock: Any = None) -> AsyncIterator[Opened]:
    home, clock = Home(root), clock or SystemClock()
    known, vault = identity.load(home), Vault.load(home.data_key)
    async with (
        open_store(home.database, vault=vault, clock=clock, executor="inline", durable=False) as store,
        open_wallets(home, CONFIG, known, clock) as wallets,
    ):
        wallet = wallets.own
        keeper = SimnetKeeper(wallet.ledger)
        relays = ["ws://relay.test"]
        hosting = assemble(CONFIG, known, store, keeper, clock, random.Random(1), relays=lambda: relays)
        yield Opened(AgentVerbs(home, CONFIG, hosting, Purse(wallet, store, clock)), store, wallet.ledger)


async def furnish(root: Path) -> Path:
    """A home with two agents: alice, supervised, with funds, goals, memories, a tick and a question; and bob."""
    identity.create(Home(root), now=1.0)
    async with open_verbs(root) as opened:
        ask = opened.ask
        grants = [{"action": "pay_invoice", "each_sats": 50, "day_sats": 100}]
        await ask("agent.spawn", name="alice", autonomy="supervised", goals=["be of use", "rest"], grants=grants)
        await ask("agent.spawn", name="bob", mnemonic=PHRASE)
        await ask("agent.fund", agent="alice", amount_msats=sats(1_000))
        await ask("agent.memory_add", agent="alice", text="the sky is blue")
        await begin_tick(opened, "alice", Proposed(kind=ActionKind.POST, text="may I?"))
        assert (await ask("agent.info", agent="alice"))["autonomy"] == Autonomy.SUPERVISED.value
    return root


async def begin_tick(opened: Opened, name: str, *wishes: Proposed, n: int = 1) -> list[str]:
    """A tick of an agent's own that has thought of ``wishes``; returns the ids of its actions."""
    agent = (await opened.ask("agent.info", agent=name))["pubkey"]
    tick = TickRecord(id=name_of(agent, n), agent=agent, n=n, created_at=opened.store.clock.now(), cause="heartbeat",
                      goals=("g1",), proposed=wishes)  # fmt: skip
    records = tick_records(opened.store)
    await opened.store.write(lambda tx: records.begin(tx, tick, Begun(), tick.created_at))
    return await opened.verbs.deeds.begin(attrs.evolve(tick, proposed=wishes))


def everything(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a home's database, and what its ledger's accounts hold."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with closing(sqlite3.connect(Home(root).database)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1").fetchall()
        for (name,) in names:
            found[name] = sorted(map(tuple, database.execute(f"SELECT * FROM {name}")), key=repr)
    with closing(sqlite3.connect(Home(root).simnet)) as ledger:
        found["ledger"] = sorted(ledger.execute("SELECT account, msats FROM accounts"))
    return found
