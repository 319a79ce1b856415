"""A small world for tests of the host: a memory relay, a simnet ledger, a home with agents, a scripted vendor.

All of it in virtual time: ask for ``autojump_clock``.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from protocols import nip10, nip17
from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter, sign_event
from protocols.nip90 import JobRequest
from pylon.clock import VirtualClock
from pylon.host import registry
from pylon.host.agents import Agents
from pylon.host.deeds import ZapInvoice
from pylon.host.host import Host, HostSettings
from pylon.host.lifecycle import LifecycleSettings
from pylon.host.schedule import ScheduleSettings
from pylon.host.settings import AgentSettings
from pylon.host.tick import tick_records
from pylon.host.ticking import TickRecord
from pylon.money import Msat, sats
from pylon.store.database import Store
from pylon.testing.relay import MemoryRelay, network, open_memory_relay
from pylon.testing.sim.host_node import HostNode
from pylon.testing.sim.node import Setting
from pylon.testing.vendor import Vendor
from pylon.wallets.simnet import SimnetLedger

RELAY = "ws://relay.test"
PRICE = sats(10)
NOTHING = '{"thought": "nothing to do", "actions": []}'


def reply(*actions: dict[str, Any], thought: str = "so be it", **more: Any) -> str:
    """A reply as a model gives it."""
    return orjson.dumps({"thought": thought, "actions": list(actions), **more}).decode()


async def until(condition: Callable[[], Any], seconds: float = 600.0) -> Any:
    """Wait until ``condition`` gives something true, and return that."""
    with trio.fail_after(seconds):
        while True:
            found = condition()
            if found:
                return found
            await trio.sleep(0.1)


def settings(name: str = "alice", **changes: Any) -> AgentSettings:
    """An agent that is quick to wake, and never short of days."""
    return AgentSettings(
        **{
            "name": name,
            "heartbeat": 900,
            "lifecycle": LifecycleSettings(assumed_daily_burn_sats=0, hibernate_threshold_sats=50),
            "schedule": ScheduleSettings(min_gap=1.0, debounce=1.0, patience=5.0, jitter=0.0),
            **changes,
        }
    )


@attrs.define
class World:
    node: HostNode
    relay: MemoryRelay
    ledger: SimnetLedger
    clock: VirtualClock
    vendor: Vendor
    answers: list[str | Callable[[JobRequest], str | None]]
    """Given in order; the last one again and again."""
    nursery: trio.Nursery

    @property
    def store(self) -> Store:
        assert self.node.store is not None, "the node is dead"
        return self.node.store

    @property
    def agents(self) -> Agents:
        assert self.node.agents is not None
        return self.node.agents

    @property
    def host(self) -> Host:
        assert self.node.host is not None
        return self.node.host

    async def live(self) -> None:
        """Start the node; again after it was killed."""
        await self.nursery.start(self.node.live)

    async def kill(self) -> None:
        self.node.kill("the test wants it")
        await until(lambda: self.node.store is None)

    async def spawn(self, chosen: AgentSettings | None = None, *, funds: int = 1_000, **more: Any) -> str:
        """An agent with funds, in sats; returns its id."""
        born = await self.agents.spawn(chosen or settings(), **more)
        if funds:
            await self.fund(born.agent.id, sats(funds))
        return born.agent.id

    async def fund(self, agent_id: str, amount: int) -> None:
        await self.wallet(agent_id).fund(Msat(amount))

    def wallet(self, agent_id: str) -> Any:
        """The bare wallet, which no outage and no death of the node keeps silent."""
        secret = self.agents.keys(agent_id).wallet.reveal()
        return self.ledger.wallet(agent_id[:16], secret)

    def state(self, agent_id: str) -> str:
        return str(self.agents.lifecycle(agent_id).state.value)

    def row(self, agent_id: str) -> registry.Agent:
        return registry.load(self.store, agent_id)

    def mind(self, agent_id: str) -> Any:
        return registry.state(self.store, self.store.vault, agent_id)

    def ticks(self, agent_id: str, *, quiet: bool = False) -> list[TickRecord]:
        """Those that have begun, oldest first."""
        found = tick_records(self.store).where(self.store, "agent = ? ORDER BY n", (agent_id,))
        return [tick for tick in found if quiet or not tick.quiet]

    def ended(self, agent_id: str) -> list[TickRecord]:
        return [tick for tick in self.ticks(agent_id) if tick.status != "running"]

    def events(self, kind: int, author: str | None = None) -> list[Event]:
        return self.relay.events(Filter(kinds=[kind], authors=None if author is None else [author]))

    def mention(self, agent_id: str, text: str = "hello", secret: SecretKey | None = None) -> Event:
        """A note that names the agent, by a stranger unless ``secret`` says whose it is."""
        author = secret or SecretKey(b"\x07" * 32)
        event = sign_event(author, kind=1, content=text, tags=[["p", agent_id]], created_at=int(self.clock.now()))
        self.relay.publish(event)
        return event

    def dm(self, agent_id: str, text: str, secret: SecretKey) -> None:
        from protocols.keys import PublicKey

        now = int(self.clock.now())
        rumor = nip17.build_message(secret.public, [PublicKey.from_hex(agent_id)], text, created_at=now)
        for wrap in nip17.wrap_message(rumor, secret, now=now, random=random.Random(5)).values():
            self.relay.publish(wrap)

    def replies_to(self, event: Event) -> list[Event]:
        return [
            note
            for note in self.events(1)
            if (thread := nip10.parse_thread(note)).reply_to is not None and thread.reply_to.id == event.id
        ]


@asynccontextmanager
async def open_world(
    directory: Path,
    *answers: str | Callable[[JobRequest], str | None],
    seed: int = 1,
    thoughts_at_once: int = 16,
    zap_invoice: ZapInvoice | None = None,
) -> AsyncIterator[World]:
    """A running node and a running vendor. ``zap_invoice``: where its agents get invoices to zap; none: nowhere."""
    rng = random.Random(seed)
    clock = VirtualClock()
    said = list(answers) or [NOTHING]
    async with (
        open_memory_relay(RELAY, clock=clock) as relay,
        SimnetLedger(directory / "simnet.db", clock=clock, rng=rng, poll_seconds=None, durable=False) as ledger,
        trio.open_nursery() as nursery,
    ):

        def script(job: JobRequest) -> str | None:
            answer = said.pop(0) if len(said) > 1 else said[0]
            return answer(job) if callable(answer) else answer

        vendor = Vendor(relay, ledger, clock, random.Random(rng.random()), script, price=PRICE)
        setting = Setting(directory, clock, ledger, network(relay), (RELAY,))
        node = HostNode(
            "home",
            setting,
            random.Random(rng.random()),
            settings=HostSettings(thoughts_at_once=thoughts_at_once),
            zap_invoice=zap_invoice,
        )
        world = World(node, relay, ledger, clock, vendor, said, nursery)
        nursery.start_soon(vendor.run)
        await world.live()
        yield world
        nursery.cancel_scope.cancel()
