"""An HTTP service that a test scripts, on a free port of the loopback: honest, rude, slow or endless."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import parse_qs, urlsplit

import attrs
import orjson
import trio

Handler = Callable[["Call"], Awaitable[None]]


@attrs.define
class Call:
    """One request, and how to answer it."""

    stream: trio.abc.Stream
    head: str
    port: int

    @property
    def target(self) -> str:
        return self.head.split(" ")[1]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    async def answer(self, body: bytes | dict, status: str = "200 OK", *headers: str) -> None:
        body = body if isinstance(body, bytes) else orjson.dumps(body)
        head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
        await self.stream.send_all(f"{head}\r\n\r\n".encode() + body)


@attrs.define
class Service:
    port: int
    calls: list[str] = attrs.Factory(list)
    """Heads of the requests so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def open_service(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Service]:
    async def handle(stream: trio.abc.Stream) -> None:
        try:
            if context is not None:
                stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(65_536)
                if not data:
                    return
                head += data
            text = head.partition(b"\r\n\r\n")[0].decode("latin-1")
            service.calls.append(text)
            await handler(Call(stream, text, service.port))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        service = Service(listener.socket.getsockname()[1])
        yield service
        nursery.cancel_scope.cancel()
