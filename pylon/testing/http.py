"""``HttpServer``: an HTTP/1.1 server for tests, on 127.0.0.1 and a free port, that may misbehave as servers do.

What it answers is a function of the request and an ``Exchange``, which can send a response in pieces, as late as it
likes, break off in the middle, or say nothing at all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio


@attrs.frozen
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """The other half of a request: how it is answered."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection

    async def start(self, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        """The head of a response whose body comes in pieces."""
        fields = [("content-type", content_type), ("connection", "close"), *headers.items()]
        await self._send(h11.Response(status_code=status, headers=[(name.replace("_", "-"), v) for name, v in fields]))

    async def send(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        await self._send(h11.EndOfMessage())

    async def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        """A whole response: JSON, or text as it is."""
        text = body if isinstance(body, str) else json.dumps(body)
        await self.start(status, "text/plain" if isinstance(body, str) else "application/json", **headers)
        await self.send(text.encode())
        await self.finish()

    async def hang(self) -> None:
        """Say nothing more, until the client leaves."""
        while await self._stream.receive_some(4096):
            pass
        raise trio.BrokenResourceError

    async def crash(self) -> None:
        """Hang up without another word."""
        raise trio.BrokenResourceError

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.send_all(data)


Answer = Callable[[Asked, Exchange], Awaitable[None]]


class HttpServer:
    """See the module.

    ``asked``: every request so far. ``left``: those that did not come to their end; ``gone``: there is one.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[Asked] = []
        self.left: list[Asked] = []
        self.gone = trio.Event()
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve for as long as the block lasts; the address is ``http://127.0.0.1:PORT``."""
        async with trio.open_nursery() as nursery:
            serve = functools.partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            self.address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            yield self.address
            nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        asked: Asked | None = None
        async with stream:
            connection = h11.Connection(h11.SERVER)
            try:
                asked = await _receive(stream, connection)
                if asked is None:
                    return
                self.asked.append(asked)
                await self._answer(asked, Exchange(stream, connection))
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
                if asked is not None:
                    self.left.append(asked)
                    self.gone.set()


async def _receive(stream: trio.SocketStream, connection: h11.Connection) -> Asked | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode().lower(): value.decode() for name, value in head.headers}
            return Asked(head.method.decode(), head.target.decode(), headers, bytes(body))
        else:
            return None
