"""A host whose agent is spoken to and the provider that it buys from, on a scripted relay."""

from __future__ import annotations

import time

import attrs

from protocols import nip10
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from tests.e2e.agents import PRICE_MSATS, Stage
from tests.e2e.homes import FEE_MSATS, Node, World, until
from tests.e2e.scripted_relay import ScriptedRelay

VISITOR = SecretKey(b"\x07" * 32)


@attrs.define
class Play(Stage):
    scripted: ScriptedRelay = attrs.field(kw_only=True)

    @classmethod
    def on(cls, world: World, scripted: ScriptedRelay, url: str = "") -> Play:
        """``url``: another name of the relay."""
        relay = url or scripted.url
        provider = world.node("provider").configure(relays=[relay], top=f"min_price_msats = {PRICE_MSATS}")
        host = world.node("host").configure(relays=[relay], more='\n[api]\nbind = "127.0.0.1:0"\n')
        return cls(world, relay, host, provider, scripted=scripted)

    def open(self, *options: str) -> None:
        """Both start, with ``options`` of the testing entry point, and an agent is there that replies."""
        # Whoever speaks at once with another one is heard in the same tick.
        self.says(*({"do": "reply", "about": number, "text": "heard"} for number in (1, 2, 3)))
        self.provider.start("provider", "--says", str(self._words), *options, fake=True, wait=False)
        self.host.start("host", *options, fake=True)
        assert self.provider.daemon is not None
        self.provider.daemon.ready()
        self.spawn(max_steps=4)
        self.fund(100_000)
        self.is_in("active")

    def mention(self, text: str, secret: SecretKey | None = None, *, at: int = 0, send: bool = True) -> Event:
        """``at``: how far its date is off. ``send``: have the relay show it."""
        event = sign_event(
            secret or VISITOR,
            kind=1,
            content=text,
            tags=[["p", self.agent["pubkey"]]],
            created_at=int(time.time()) + at,
        )
        if send:
            self.scripted.publish(event)
        return event

    def answered(self, event: Event) -> bool:
        notes = [note for note in list(self.scripted.events.values()) if note.pubkey == self.agent["pubkey"]]
        replies = [nip10.parse_thread(note).reply_to for note in notes if note.kind == 1]
        return any(to is not None and to.id == event.id for to in replies)

    def hears(self, text: str, within: float = 20.0, *, at: int = 0) -> None:
        event = self.mention(text, at=at)
        until(lambda: self.answered(event), within, lambda: f"an answer to {text!r}; {self.view()['last_error']}")

    def connected(self, *nodes: Node) -> bool:
        return all(
            relay["state"] == "connected"
            for node in (nodes or (self.host, self.provider))
            for relay in node.ask("status")["relays"]
        )

    def check(self) -> None:
        """No thought was paid twice or for nothing; the books agree, and nobody has given up."""
        until(lambda: all(tick["status"] != "running" for tick in self.ticks()), 20, "the end of all ticks")
        paid = [row for row in self.host.purchases() if row["paid_msats"]]
        assert {(row["state"], row["paid_msats"], row["fee_msats"]) for row in paid} <= {
            ("answered", PRICE_MSATS, FEE_MSATS)
        }
        thoughts = [tick["purchase"] for tick in self.ticks() if tick["purchase"]]
        assert len(set(thoughts)) == len(thoughts)
        assert {row["id"] for row in paid} <= set(thoughts)
        for node in (self.host, self.provider):
            assert node.ask("status")["quarantined"] == []
            node.check_books()
