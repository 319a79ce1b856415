"""A page and its server, in memory or over a real WebSocket, as tests of the machine's end want them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio_websocket import ConnectionClosed, serve_websocket

from pylon.errors import RelayError
from pylon.relays.transport import TransportClosed
from pylon.tunnel import messages as m
from pylon.tunnel.address import TunnelAddress

PATIENCE = 20.0


class Page:
    """What the page and its server see and say. ``heard``: every message of the machine, in order."""

    def __init__(self) -> None:
        self.heard: list = []
        self.connections = 0
        self.send_text: Callable[[str], None] | None = None
        self._changed = trio.Event()

    def hear(self, text: str) -> None:
        received = m.read(text)
        assert not received.ignored
        self.heard.append(received.message)
        self.tell()

    def tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def send(self, *messages) -> None:
        for message in messages:
            self.send_text(message if isinstance(message, str) else m.write(message))

    def of(self, kind, session: str | None = None) -> list:
        return [x for x in self.heard if isinstance(x, kind) and session in (None, getattr(x, "session_id", None))]

    async def until(self, condition: Callable[[], object]):
        """What the condition finds, once it does."""
        with trio.move_on_after(PATIENCE):
            while not (found := condition()):
                await self._changed.wait()
            return found
        raise AssertionError("it did not come about; heard: " + "\n".join(map(repr, self.heard[-20:])))

    async def wait_for(self, kind, session: str | None = None, count: int = 1):
        """The ``count``-th message of a kind."""
        await self.until(lambda: len(self.of(kind, session)) >= count)
        return self.of(kind, session)[count - 1]

    async def state(self, state: str, session: str = "s"):
        return await self.until(lambda: next((x for x in self.of(m.SessionState, session) if x.state == state), None))

    async def done(self, count: int = 1, session: str = "s"):
        return await self.until(lambda: (self.chunks("done", session)[count - 1 :] or [None])[0])

    def chunks(self, chunk_type: str, session: str = "s") -> list[m.ChunkBody]:
        return [x.chunk for x in self.of(m.Chunk, session) if x.chunk.chunk_type == chunk_type]

    def text(self, session: str = "s") -> str:
        return "".join(chunk.delta for chunk in self.chunks("text", session))

    def errors(self, session: str = "s") -> list[str]:
        return [x.error for x in self.of(m.SessionError, session)]


class _MemoryTransport:
    def __init__(self, page: Page, incoming: trio.MemoryReceiveChannel) -> None:
        self.page = page
        self.incoming = incoming
        self.gate = trio.Event()
        self.gate.set()
        self.closed = False

    async def send(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        await self.gate.wait()
        if self.closed:
            raise TransportClosed("the connection broke")
        self.page.hear(text)

    async def receive(self) -> str:
        try:
            return await self.incoming.receive()
        except trio.EndOfChannel:
            raise TransportClosed("the connection broke") from None

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True


class MemoryServer:
    """Connections without sockets. ``refuse``: what the next ones are refused with."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.refuse: list[RelayError] = []
        self.transport: _MemoryTransport | None = None
        self._outgoing: trio.MemorySendChannel | None = None

    @asynccontextmanager
    async def dial(self, address: TunnelAddress):
        await trio.lowlevel.checkpoint()
        if self.refuse:
            raise self.refuse.pop(0)
        self._outgoing, incoming = trio.open_memory_channel(10_000)
        self.transport = _MemoryTransport(self.page, incoming)
        self.page.send_text = self._outgoing.send_nowait
        self.page.connections += 1
        self.page.tell()
        yield self.transport

    def hang_up(self) -> None:
        self.transport.closed = True
        self._outgoing.close()


async def serve_page(page: Page, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
    """A server on 127.0.0.1. Reports its URL, without the token, which is ``good``; the newest connection is used."""

    async def serve(request):
        if "token=good" not in request.path:
            await request.reject(401)
            return
        connection = await request.accept()
        page.connection = connection
        page.connections += 1
        outgoing, queue = trio.open_memory_channel(10_000)
        page.send_text = outgoing.send_nowait
        page.tell()

        async def write():
            async for text in queue:
                await connection.send_message(text)

        async with trio.open_nursery() as within:
            within.start_soon(write)
            try:
                while True:
                    page.hear(await connection.get_message())
            except ConnectionClosed:
                within.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        served = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        task_status.started(f"ws://127.0.0.1:{served.port}/ws/tunnel?session_id=x&token=")
