"""Agents in real daemons: a host, a provider that says what a file holds, and people who write to agents."""

from __future__ import annotations

import json
import time
from typing import Any

import attrs

from protocols import nip10
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from tests.e2e.homes import Node, Stranger, World, until

PRICE_MSATS = 10_000
QUICK = {
    "min_gap": 0.1,
    "debounce": 0.1,
    "patience": 0.5,
    "catch_up": 0.5,
    "late": 5,
    "jitter": 0,
    "triggered_per_hour": 10_000,
    "stranger_budget_sats": 1_000_000,
}
"""A schedule for tests in real time."""


@attrs.define
class Stage:
    """A host that runs one agent, and a provider that it buys from, on an independent relay."""

    world: World
    relay: str
    host: Node
    provider: Node
    agent: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def set(cls, world: World) -> Stage:
        relay = world.relay()
        provider = world.node("provider").configure(relays=[relay], top=f"min_price_msats = {PRICE_MSATS}")
        host = world.node("host").configure(relays=[relay], more='\n[api]\nbind = "127.0.0.1:0"\n')
        return cls(world, relay, host, provider)

    def says(self, *actions: dict[str, Any], thought: str = "so be it") -> None:
        """What every thought comes to from now on."""
        self._words.write_text(json.dumps({"actions": list(actions), "thought": thought}, separators=(",", ":")))

    @property
    def _words(self) -> Any:
        return self.world.directory / "says.json"

    def start_provider(self) -> None:
        self.provider.start("provider", "--says", str(self._words), fake=True)

    def start_host(self, *, wait: bool = True, crash_at: str | None = None) -> None:
        self.host.start("host", wait=wait, crash_at=crash_at)

    def spawn(self, name: str = "ada", **params: Any) -> dict[str, Any]:
        """By the running daemon."""
        said = {
            "budget_day_sats": 1_000_000,
            "lifecycle": {"assumed_daily_burn_sats": 0, "hibernate_threshold_sats": 50},
            "schedule": QUICK,
            **params,
        }
        self.agent = self.host.ask("agent.spawn", name=name, **said)
        return self.agent

    def fund(self, sats: int = 10_000) -> None:
        self.host.ask("agent.fund", agent=self.agent["name"], amount_msats=sats * 1_000, source="faucet")

    def view(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.ask("agent.info", agent=self.agent["name"])
        return found

    def is_in(self, state: str, within: float = 20.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            view = self.view()
            return view if view["state"] == state else None

        found: dict[str, Any] = until(look, within, lambda: f"{state}: it is {self.view()['state']}")
        return found

    def ticks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.host.ask("agent.ticks", agent=self.agent["name"], limit=10_000)["ticks"]
        return found[::-1]

    def mention(self, text: str, secret: SecretKey | None = None) -> Event:
        author = secret or SecretKey(b"\x07" * 32)
        event = sign_event(
            author, kind=1, content=text, tags=[["p", self.agent["pubkey"]]], created_at=int(time.time())
        )
        with Stranger(self.relay) as stranger:
            stranger.publish(event)
        return event

    def notes(self) -> list[Event]:
        """What the agent has written in public."""
        with Stranger(self.relay) as stranger:
            return stranger.fetch(kinds=[1], authors=[self.agent["pubkey"]], limit=500)

    def answers(self) -> dict[str, list[Event]]:
        """Its replies, by the id of what they answer."""
        found: dict[str, list[Event]] = {}
        for note in self.notes():
            answered = nip10.parse_thread(note).reply_to
            if answered is not None:
                found.setdefault(answered.id, []).append(note)
        return found
