"""Relays without sockets: the embedded relay's own core over in-memory connections.

It behaves as the real one, under ``trio.testing.MockClock`` too. With ``Faults`` it is a relay behind a bad network,
or one with bad manners; every chance is drawn from the ``random.Random`` it is given, so that a seed replays a
failure::

    async with open_memory_relay("ws://a", clock=clock) as a:
        async with open_memory_relay("ws://b", clock=clock, faults=Faults(lose_ok=0.3), random=Random(7)) as b:
            connect = network(a, b)
            b.faults.silent = True
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from os import PathLike
from random import Random

import attrs
import orjson
import trio

from protocols.nip01 import (
    ClientAuth,
    ClientEvent,
    ClientReq,
    Event,
    EventInvalid,
    Filter,
    FrameInvalid,
    RelayAuth,
    RelayClosed,
    RelayNotice,
    RelayOk,
    parse_client_frame,
)
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.eventstore import Outcome
from pylon.relays.relay import Limits, Relay, open_relay
from pylon.relays.transport import Connect, Transport, TransportClosed

_CAPACITY = 1_024
_AUTH_KIND = 22242


@attrs.define
class Faults:
    """What is wrong with a relay. May be changed while it runs; chances are 0 to 1, times in seconds."""

    refuse_connections: bool = False
    silent: bool = False
    """Half-open: connections stand, but no frame passes in either direction and no ping is answered."""
    drop_after: int | None = None
    """Each connection breaks when the relay has sent this many frames on it."""
    delay: tuple[float, float] = (0.0, 0.0)
    """Every frame, and half of a ping, takes a time from this range; frames stay in order."""
    duplicate: float = 0.0
    """Chance that an EVENT is delivered twice."""
    reorder: float = 0.0
    """Chance that an EVENT is held back by up to ``reorder_by``, and overtaken by what follows."""
    reorder_by: float = 1.0
    lose_ok: float = 0.0
    """Chance that an OK is lost on the way: the event was taken, its publisher does not learn it."""
    refuse: str = ""
    """Every EVENT gets ``OK false`` with this message, and is not kept."""
    refuse_kinds: frozenset[int] = frozenset()
    """If there are any, ``refuse`` concerns these kinds only."""
    closed: str = ""
    """Every REQ gets CLOSED with this message."""
    notice: str = ""
    """A NOTICE with this text comes before the answer to every frame."""
    auth: bool = False
    """NIP-42: events and subscriptions are ``auth-required`` until the client has authenticated."""


class _Wire:
    """One direction of a connection: frames in flight, each with the time of its arrival."""

    def __init__(self) -> None:
        self.open = True
        self._flying: list[tuple[float, int, str]] = []
        self._count = 0
        self._last_arrival = 0.0
        self._changed = trio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def put(self, text: str, delay: float, held_back: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        while self.open and len(self._flying) >= _CAPACITY:
            await self._changed.wait()
        if not self.open:
            raise TransportClosed("the connection is closed")
        arrival = trio.current_time() + delay
        if not held_back:
            arrival = self._last_arrival = max(self._last_arrival, arrival)
        self._count += 1
        heapq.heappush(self._flying, (arrival, self._count, text))
        self._wake()

    async def get(self) -> str:
        await trio.lowlevel.checkpoint()
        while True:
            changed = self._changed
            if self._flying:
                wait = self._flying[0][0] - trio.current_time()
                if wait <= 0:
                    text = heapq.heappop(self._flying)[2]
                    self._wake()
                    return text
                with trio.move_on_after(wait):
                    await changed.wait()
            elif not self.open:
                raise TransportClosed("the connection is closed")
            else:
                await changed.wait()

    def close(self, *, lose: bool) -> None:
        self.open = False
        if lose:
            self._flying.clear()
        self._wake()

    async def wait_closed(self) -> None:
        while self.open:
            await self._changed.wait()


class _Connection:
    """Two wires, and what the relay's faults do to them."""

    def __init__(self, relay: MemoryRelay) -> None:
        self.relay = relay
        self.up = _Wire()
        self.down = _Wire()
        self.sent = 0
        self.challenge = f"challenge-{relay.connections_made}"
        self.authenticated = False

    def cut(self, *, lose: bool = True) -> None:
        self.up.close(lose=lose)
        self.down.close(lose=lose)

    async def round_trip(self) -> None:
        """A ping and its pong."""
        await trio.lowlevel.checkpoint()
        if not self.down.open:
            raise TransportClosed("the connection is closed")
        with trio.move_on_after(self.relay.draw_delay() + self.relay.draw_delay()):
            await self.down.wait_closed()
        if self.relay.faults.silent:
            await self.down.wait_closed()
        if not self.down.open:
            raise TransportClosed("the connection is closed")

    async def to_client(self, text: str) -> None:
        faults, relay = self.relay.faults, self.relay
        if faults.silent or (text.startswith('["OK"') and relay.happens(faults.lose_ok)):
            await trio.lowlevel.checkpoint()
            return
        copies, held_back = 1, 0.0
        if text.startswith('["EVENT"'):
            copies += relay.happens(faults.duplicate)
            held_back = relay.random.uniform(0, faults.reorder_by) if relay.happens(faults.reorder) else 0.0
        for _ in range(copies):
            await self.down.put(text, relay.draw_delay() + held_back, held_back=bool(held_back))
        self.sent += 1
        if faults.drop_after is not None and self.sent >= faults.drop_after:
            # What is on its way still arrives; what comes after it never does.
            self.cut(lose=False)


class _ClientEnd:
    """A ``Transport``."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def send(self, text: str) -> None:
        if self._connection.relay.faults.silent:
            await trio.lowlevel.checkpoint()
            return
        await self._connection.up.put(text, self._connection.relay.draw_delay())

    async def receive(self) -> str:
        return await self._connection.down.get()

    async def ping(self) -> None:
        await self._connection.round_trip()

    async def aclose(self) -> None:
        self._connection.up.close(lose=False)
        self._connection.down.close(lose=True)
        await trio.lowlevel.checkpoint()


class _RelayEnd:
    """A ``ClientLink``, with the relay's bad manners."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def receive(self) -> str:
        while True:
            text = await self._connection.up.get()
            if not await self._intercept(text):
                return text

    async def send_many(self, frames: Sequence[str]) -> None:
        for frame in frames:
            await self._connection.to_client(frame)

    async def ping(self) -> None:
        await self._connection.round_trip()

    async def _intercept(self, text: str) -> bool:
        """Answer in the relay's stead where its faults say so."""
        connection, faults = self._connection, self._connection.relay.faults
        if faults.notice:
            await connection.to_client(RelayNotice(faults.notice).encode())
        try:
            frame = parse_client_frame(text)
        except FrameInvalid:
            return False
        if faults.auth and isinstance(frame, ClientAuth):
            connection.authenticated = _answers(frame.event, connection.challenge)
            message = "" if connection.authenticated else "invalid: wrong challenge"
            await connection.to_client(RelayOk(frame.event.id, connection.authenticated, message).encode())
            return True
        closed, refuse = faults.closed, faults.refuse
        if isinstance(frame, ClientEvent) and faults.refuse_kinds and frame.event.kind not in faults.refuse_kinds:
            refuse = ""
        if faults.auth and not connection.authenticated:
            closed = refuse = "auth-required: this relay wants to know you"
        if isinstance(frame, ClientEvent) and refuse:
            await connection.to_client(RelayOk(frame.event.id, False, refuse).encode())
            return True
        if isinstance(frame, ClientReq) and closed:
            await connection.to_client(RelayClosed(frame.subscription_id, closed).encode())
            return True
        return False


def _answers(event: Event, challenge: str) -> bool:
    try:
        event.check()
    except EventInvalid:
        return False
    return event.kind == _AUTH_KIND and event.tag("challenge") == challenge


class MemoryRelay:
    """A relay reached by ``connect``, which is a ``pylon.relays.transport.Connect``. Made by ``open_memory_relay``."""

    def __init__(self, url: str, core: Relay, faults: Faults, random: Random) -> None:
        self.url = url
        self.core = core
        self.faults = faults
        self.random = random
        self.connections_made = 0
        self._connections: dict[_Connection, None] = {}
        self._parsed: dict[str, Event] = {}
        """What ``events`` has shown before: whoever polls it looks at the same ones over and over."""

    @asynccontextmanager
    async def connect(self, url: str) -> AsyncIterator[Transport]:
        """Open a connection. Raises ``RelayError`` for another relay's URL, or if this one refuses."""
        await trio.sleep(self.draw_delay())
        if url.rstrip("/") != self.url.rstrip("/") or self.faults.refuse_connections:
            raise RelayError(f"{url}: connection refused")
        self.connections_made += 1
        connection = _Connection(self)
        self._connections[connection] = None
        # The relay's half lives with the relay: a client that ends only disconnects.
        self.core.nursery.start_soon(self._serve, connection)
        client_end = _ClientEnd(connection)
        try:
            yield client_end
        finally:
            connection.up.close(lose=False)
            connection.down.close(lose=True)

    async def _serve(self, connection: _Connection) -> None:
        try:
            if self.faults.auth:
                await connection.to_client(RelayAuth(connection.challenge).encode())
            await self.core.serve(_RelayEnd(connection))
        except TransportClosed:
            pass
        finally:
            del self._connections[connection]
            connection.cut(lose=False)

    def draw_delay(self) -> float:
        shortest, longest = self.faults.delay
        return self.random.uniform(shortest, longest) if longest > 0 else 0.0

    def happens(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    def publish(self, event: Event) -> Outcome:
        """Have the relay take an event, checked, as if a client had sent it."""
        return self.core.publish(event)

    def events(self, *filters: Filter) -> list[Event]:
        """What a client asking for ``filters`` (default: everything) would be shown, newest first."""
        self.core.flush()
        stored = self.core.store.query(filters or (Filter(),), self.core.now(), limit=1_000_000)
        return [self._parse(text) for text in stored]

    def _parse(self, text: str) -> Event:
        event = self._parsed.get(text)
        if event is None:
            event = self._parsed[text] = Event.parse(orjson.loads(text))
        return event

    async def send_raw(self, text: str) -> None:
        """Send any text to every client: a forged event, an EOSE for nobody, half a frame."""
        for connection in list(self._connections):
            await connection.to_client(text)

    async def notice(self, message: str) -> None:
        """Send a NOTICE to every client."""
        await self.send_raw(RelayNotice(message).encode())

    def close_subscriptions(self, message: str = "error: shutting down idle subscription") -> int:
        """End every live subscription by a CLOSED, and say how many there were."""
        return self.core.close_subscriptions(message)

    def disconnect_all(self) -> None:
        """Break every connection; frames in flight are lost."""
        for connection in list(self._connections):
            connection.cut()


@asynccontextmanager
async def open_memory_relay(
    url: str = "ws://relay.test",
    *,
    clock: Clock,
    limits: Limits | None = None,
    path: str | PathLike[str] = ":memory:",
    faults: Faults | None = None,
    random: Random | None = None,
) -> AsyncIterator[MemoryRelay]:
    """A relay in memory. One with a ``path`` finds its events again when it is opened anew."""
    async with open_relay(path, clock=clock, limits=limits) as core:
        yield MemoryRelay(url, core, faults or Faults(), random or Random(0))


def network(*relays: MemoryRelay) -> Connect:
    """One ``Connect`` that reaches each of ``relays`` by its URL, and nothing else."""
    by_url = {relay.url.rstrip("/"): relay for relay in relays}

    def connect(url: str) -> AbstractAsyncContextManager[Transport]:
        relay = by_url.get(url.rstrip("/"))
        return _nowhere(url) if relay is None else relay.connect(url)

    return connect


@asynccontextmanager
async def _nowhere(url: str) -> AsyncIterator[Transport]:
    await trio.lowlevel.checkpoint()
    raise RelayError(f"{url}: no such relay")
    yield  # pragma: no cover
