"""A relay that says exactly what a test tells it to, over transports that count themselves."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager

import orjson
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, RelayEvent, sign_event
from pylon.clock import VirtualClock
from pylon.errors import RelayError
from pylon.relays.transport import TransportClosed

EPOCH = 1_800_000_000
URL = "ws://scripted"
ALICE = SecretKey(b"\x01" * 32)
BOB = SecretKey(b"\x02" * 32)


def note(content="hello", *, kind=1, at=0, tags=(), secret=ALICE) -> Event:
    """``at``: seconds from the epoch of the virtual clock."""
    return sign_event(secret, kind=kind, content=content, tags=tags, created_at=EPOCH + at)


class Link:
    """One connection. ``sent`` is what the client has sent, decoded."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.ended = 0.0
        self.sent = []
        self.open = True
        self.answers_pings = True
        self.reads = True
        self.pings = []
        self._frames = deque()
        self._changed = trio.Event()

    def _tell(self):
        self._changed.set()
        self._changed = trio.Event()

    def say(self, *frame) -> None:
        self._frames.append(frame[0] if len(frame) == 1 else orjson.dumps(frame).decode())
        self._tell()

    def show(self, name, *events) -> None:
        for event in events:
            self.say(RelayEvent(name, event).encode())

    def drop(self) -> None:
        self.open = False
        self.ended = trio.current_time()
        self._tell()

    def reqs(self):
        return [frame for frame in self.sent if frame[0] == "REQ"]

    def of(self, verb):
        return [frame for frame in self.sent if frame[0] == verb]

    # The client's end

    async def send(self, text):
        await trio.lowlevel.checkpoint()
        while self.open and not self.reads:
            await self._changed.wait()
        if not self.open:
            raise TransportClosed("dropped")
        self.sent.append(orjson.loads(text))

    async def receive(self):
        await trio.lowlevel.checkpoint()
        while not self._frames:
            if not self.open:
                raise TransportClosed("dropped")
            await self._changed.wait()
        return self._frames.popleft()

    async def ping(self):
        self.pings.append(trio.current_time())
        while self.open and not self.answers_pings:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        if not self.open:
            raise TransportClosed("dropped")

    async def aclose(self):
        self.drop()
        await trio.lowlevel.checkpoint()


class Script:
    """``connect`` for one URL; ``mood`` says how a connection attempt goes: accept, refuse, drop, hang."""

    def __init__(self, mood="accept") -> None:
        self.mood = mood
        self.attempts = []
        self.links = []

    @asynccontextmanager
    async def connect(self, url):
        self.attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.mood == "refuse":
            raise RelayError(f"{url}: refused")
        if self.mood == "hang":
            await trio.sleep_forever()
        if self.mood == "bug":
            raise ZeroDivisionError("a fault of ours")
        link = Link()
        self.links.append(link)
        if self.mood == "drop":
            link.drop()
        try:
            yield link
        finally:
            if link.open:
                link.drop()

    @property
    def link(self) -> Link:
        return self.links[-1]

    @property
    def open(self) -> int:
        return sum(link.open for link in self.links)


def clock() -> VirtualClock:
    return VirtualClock(float(EPOCH))


async def settle(seconds=0.01) -> None:
    """Let everything that is ready happen."""
    await trio.sleep(seconds)


async def until(true, every=0.05) -> None:
    """Wait for a condition that nobody announces."""
    with trio.fail_after(3600):
        while not true():  # noqa: ASYNC110
            await trio.sleep(every)
