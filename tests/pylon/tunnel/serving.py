"""A tunnel server on a free port of the loopback, and ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import httpx
import orjson
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from pylon.api.token import ApiToken
from pylon.clock import SystemClock
from pylon.config_values import Bind
from pylon.tunnel.messages import TunnelConnected, write
from pylon.tunnel.server import Registration, TunnelServer

OWNER = ApiToken("sesame-opens-the-tunnel")
SECRET = b"what the tickets are made with"
HELLO = write(TunnelConnected("0.1.0"))


class SetClock(SystemClock):
    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@attrs.define
class End:
    """One end of a session, by a client that Pylon did not write."""

    websocket: WebSocketConnection

    async def say(self, text: str) -> None:
        await self.websocket.send_message(text)

    async def hear(self, seconds: float = 10.0) -> dict:
        with trio.fail_after(seconds):
            return orjson.loads(await self.websocket.get_message())

    async def closed(self, seconds: float = 10.0) -> int:
        """The code with which the server ended it; whatever it said before is passed over."""
        with trio.fail_after(seconds):
            while True:
                try:
                    await self.websocket.get_message()
                except ConnectionClosed as error:
                    return error.reason.code


@attrs.define
class Served:
    server: TunnelServer
    url: str
    clock: SetClock
    scope: trio.CancelScope
    """Cancelled, it ends the server."""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    @asynccontextmanager
    async def client(self, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20) as client:
            yield client

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", int(self.host.rpartition(":")[2]))

    async def says(self, raw: bytes, seconds: float = 10.0) -> bytes:
        """All that comes back for these bytes, until the server closes."""
        async with await self.connect() as stream:
            got = bytearray()
            with trio.fail_after(seconds):
                try:
                    await stream.send_all(raw)
                    async for data in stream:
                        got += data
                except trio.BrokenResourceError:
                    pass
            return bytes(got)

    def moved(self, made: Registration) -> Registration:
        """The same tickets, at this server's address."""
        old = made.browser_url.partition("//")[2].partition("/")[0]
        return Registration(
            **{
                name: value.replace(old, self.host) if isinstance(value, str) else value
                for name, value in attrs.asdict(made).items()
            }
        )

    def path(self, url: str) -> str:
        """Of a URL of this server's, what stands in the request."""
        return url.partition(self.host)[2]

    @asynccontextmanager
    async def machine(self, made: Registration, *, greets: bool = True) -> AsyncIterator[End]:
        async with _open(made.tunnel_url) as websocket:
            if greets:
                await websocket.send_message(HELLO)
            yield End(websocket)

    @asynccontextmanager
    async def page(self, made: Registration, token: str | None = None) -> AsyncIterator[End]:
        async with self.stranger(made) as page:
            await page.say(browser_auth(made.browser_token if token is None else token))
            yield page

    @asynccontextmanager
    async def stranger(self, made: Registration) -> AsyncIterator[End]:
        """A page that has said nothing yet."""
        async with _open(made.browser_url) as websocket:
            yield End(websocket)


def browser_auth(token: str) -> str:
    return orjson.dumps({"type": "browser_auth", "token": token}).decode()


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[WebSocketConnection]:
    """On a stream of ours: trio-websocket leaves its own open where the server closes first."""
    parts = urlsplit(url)
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream, trio.open_nursery() as nursery:
        websocket = await wrap_client_stream(
            nursery,
            stream,
            parts.netloc,
            f"{parts.path}?{parts.query}",
            message_queue_size=100,
            max_message_size=1 << 21,
        )
        yield websocket
        await websocket.aclose()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(**options) -> AsyncIterator[Served]:
    clock = SetClock()
    server = TunnelServer(OWNER, options.pop("secret", SECRET), clock=clock, **options)
    async with trio.open_nursery() as nursery:
        await server.listen(Bind("127.0.0.1", 0))
        nursery.start_soon(server.serve)
        yield Served(server, f"http://{server.bound}", clock, nursery.cancel_scope)
        nursery.cancel_scope.cancel()
