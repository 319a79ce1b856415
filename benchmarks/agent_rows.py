"""Homes full of agents, written in bulk: the rows that spawning and funding them leaves, by the functions that write
them. Keys are drawn and not derived from phrases, which takes 5 ms each; nothing is flushed to the disk.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from protocols.keys import SecretKey
from protocols.nip_sa_state import AgentState, build_state
from pylon import identity
from pylon.clock import SystemClock
from pylon.host import memory, registry
from pylon.host.burn import Burn
from pylon.host.lifecycle import BalanceKnown, Lifecycle, Spawned, follow
from pylon.host.registry import Agent, Keys
from pylon.host.schedule import next_beat, phase
from pylon.host.settings import AgentSettings
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.relays.eventstore import EventStore
from pylon.store import cursors, ledger, outbox
from pylon.store.database import Store, Tx, open_store
from pylon.store.vault import Vault
from pylon.wallets.simnet import SimnetLedger

INSTANCE = "benchmark"
MEMORIES = 20
_WORDS = "not a phrase: this agent is a benchmark's"
_AWAKE, _ASLEEP = sats(100_000), sats(100)
"""What the wallets hold: years at the assumed burn, or less than the threshold of hibernation."""
_CHUNK = 500
_NEVER = 10 * 365 * 86_400.0


@attrs.frozen(repr=False)
class _New:
    name: str
    keys: Keys
    wallet: str
    payment: str
    """Id of the payment that has funded it."""


async def write_home(directory: Path, count: int, *, relay: str, heartbeat: int, asleep: bool = False) -> Home:
    """A home with ``count`` agents, all awake or all hibernating; each has a goal that is not due, so ticks are quiet.

    Those awake have ``MEMORIES`` memories, and their state on the home's own relay, which is to serve at the URL
    ``relay``. Of those asleep neither is ever read.
    """
    home, clock, rng = Home(directory), SystemClock(), random.Random(1)
    identity.create(home, now=clock.now())
    async with (
        open_store(home.database, vault=Vault.load(home.data_key), clock=clock, durable=False) as store,
        SimnetLedger(home.simnet, clock=clock, rng=rng, durable=False) as money,
    ):
        balance = _ASLEEP if asleep else _AWAKE
        new = [await _fund(money, number, balance) for number in range(count)]
        mind = _mind(clock.now(), 0 if asleep else MEMORIES)
        writer = _Writer(store, AgentSettings(name="agent", heartbeat=heartbeat), balance, mind, rng)
        for start in range(0, count, _CHUNK):
            await writer.write(new[start : start + _CHUNK])
        if not asleep:
            await _publish(home, store, [entry.keys.nostr for entry in new], mind, relay)
    return home


async def set_heartbeats(home: Home, heartbeat: int, first: float, spread: float) -> None:
    """Set every agent's heartbeat; the next ones come in ``first`` seconds, by their phases spread over ``spread``."""

    def job(tx: Tx) -> None:
        first_at = tx.clock.now() + first
        for agent in registry.everybody(tx):
            settings = attrs.evolve(agent.settings, heartbeat=heartbeat)
            tx.execute(
                "UPDATE agents SET settings = ?, beat = ? WHERE id = ?",
                (settings.to_json(), first_at + phase(agent.id) * spread, agent.id),
            )

    vault = Vault.load(home.data_key)
    async with open_store(home.database, vault=vault, clock=SystemClock(), durable=False) as store:
        await store.write(job)


async def _fund(money: SimnetLedger, number: int, balance: Msat) -> _New:
    name, keys = f"agent-{number}", Keys(SecretKey.generate(), SecretKey.generate())
    wallet = money.wallet(name, keys.wallet.reveal())
    payment = await wallet.fund(balance)
    return _New(name, keys, wallet.node_pubkey, payment.payment_id)


class _Writer:
    """Writes agents down as ``Agents.spawn`` and ``AgentFunds`` do, without publishing anything."""

    def __init__(
        self, store: Store, settings: AgentSettings, balance: Msat, mind: AgentState, rng: random.Random
    ) -> None:
        self._store = store
        self._settings = settings
        self._balance = balance
        self._mind = mind
        self._rng = rng
        self._lifecycles = registry.lifecycle_records(store)

    async def write(self, new: Sequence[_New]) -> None:
        def job(tx: Tx) -> None:
            for entry in new:
                self._one(tx, entry)

        await self._store.write(job)

    def _one(self, tx: Tx, entry: _New) -> None:
        now, settings = tx.clock.now(), attrs.evolve(self._settings, name=entry.name)
        name = entry.keys.nostr.public.hex
        agent = Agent(
            id=name, name=entry.name, created_at=now, wallet=entry.wallet, epoch=1, instance=INSTANCE, paused="",
            moved="", deleted_at=None, ticks=0, quiet=0, last_error="", settings=settings, burn=Burn(),
            beat=next_beat(name, settings.heartbeat, now, self._rng, settings.schedule).due,
        )  # fmt: skip
        registry.insert(tx, agent, entry.keys, _WORDS)
        registry.save_state(tx, name, self._mind)
        ledger.deposit(tx, entry.payment, self._balance, now, name)
        cursors.advance(tx, f"wallet:{name}", int(now))
        born = Lifecycle(id=name, created_at=now, settings=settings.lifecycle)
        self._lifecycles.begin(tx, born, Spawned(), now)
        burn = agent.burn.per_day(sats(settings.lifecycle.assumed_daily_burn_sats))
        path, _ = follow(born, BalanceKnown(self._balance, burn))
        self._lifecycles.amend(tx, path[-1], now)


def _mind(now: float, memories: int) -> AgentState:
    mind, goal = memory.add_goal(AgentState(instance=INSTANCE, epoch=1), "see what happens", priority=1, now=now)
    for number in range(memories):
        said = f"memory {number}: somebody said something of the usual length, and it was answered in the usual way"
        mind = memory.remember(mind, type="observation", content=said, now=now, relevance=0.5, origin="own")
    return memory.reviewed(mind, [goal], review_at=now + _NEVER, now=now)


async def _publish(home: Home, store: Store, secrets: Iterable[SecretKey], mind: AgentState, url: str) -> None:
    """Their states, on the relay and in the outbox as delivered."""
    now, relay = int(store.clock.now()), EventStore(home.relay_database)
    events = [build_state(secret, mind, created_at=now) for secret in secrets]

    def job(tx: Tx) -> None:
        for event in events:
            outbox.add(tx, event, [url], effect="agent.state", subject=event.pubkey, at=now)
            outbox.acknowledge(tx, event.id, url, True, "", now)

    await store.write(job)
    for event in events:
        relay.add(event, now)
    relay.commit()
    relay.close()
