"""The server's end of one WebSocket (RFC 6455) on a Trio stream, with bounds on everything that the peer decides.

Messages are texts; a binary message is read as the UTF-8 of one. No extension is spoken: a compressed message could
unpack to a thousand times its size. Nothing is read ahead: who does not call ``receive`` lets the peer wait.
"""

from __future__ import annotations

from collections import deque

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

SEND_SECONDS = 30.0
"""For the peer to take one message."""
PING_SECONDS = 20.0
SILENT_SECONDS = 60.0
"""A peer that was not heard for so long, pongs included, is gone."""
_CLOSE_SECONDS = 1.0
_RECEIVE_BYTES = 65_536


class SocketClosed(Exception):
    """The WebSocket has ended: by the peer, by us, or by the network."""


class ServerSocket:
    """After the handshake. Any task may send or close; one task receives.

    :param received: bytes that came behind the request.
    :param max_bytes: of one message of the peer; it may be changed. More ends the socket (1009).
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, received: bytes, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.close_code: int | None = None
        """What we have said when we ended it."""
        self._stream = stream
        self._unread = received
        self._connection = Connection(ConnectionType.SERVER)
        self._events: deque[Event] = deque()
        self._sending = trio.Lock()
        self._parts: list[bytes] = []
        self._size = 0
        self._heard = trio.current_time()
        self._ended = False
        self._gone = trio.Event()

    async def receive(self) -> str:
        """The next message. Raises ``SocketClosed``."""
        while True:
            while self._events:
                text = await self._handle(self._events.popleft())
                if text is not None and self.close_code is None:
                    return text
            await self._read()

    async def send(self, text: str) -> None:
        """Raises ``SocketClosed``, also where the peer does not take it within ``SEND_SECONDS``."""
        await self._send(TextMessage(text))

    async def close(self, code: int, reason: str = "") -> None:
        """Say why, wait a moment for the peer to have read it, and end it for all tasks. Raises nothing."""
        if self._ended or self.close_code is not None:
            return
        self.close_code = code
        with trio.move_on_after(_CLOSE_SECONDS):
            try:
                await self._send(CloseConnection(code, reason))
                while True:  # a close with input unread would reset the connection, and our last words with it
                    while self._events:
                        await self._handle(self._events.popleft())
                    await self._read()
            except trio.BusyResourceError:
                await self._gone.wait()  # another task receives, and sees the peer's answer
            except (SocketClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self._abort()

    async def keep_alive(self) -> None:
        """Ping the peer for ever; returns when it is gone."""
        while not self._ended:
            await trio.sleep(PING_SECONDS)
            if trio.current_time() - self._heard > SILENT_SECONDS:
                await self._abort()
                return
            try:
                await self._send(Ping())
            except SocketClosed:
                return

    async def _handle(self, event: Event) -> str | None:
        if isinstance(event, Message):
            data = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            if self.close_code is not None:
                return None  # whatever it says now comes too late
            self._size += len(data)
            if self._size > self.max_bytes:
                await self._refuse(1009, f"a message has at most {self.max_bytes} bytes")
            if data:
                self._parts.append(data)
            if event.message_finished:
                whole = b"".join(self._parts)
                self._parts, self._size = [], 0
                try:
                    return whole.decode()
                except UnicodeDecodeError:
                    await self._refuse(1007, "a message is UTF-8")
        elif isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):
            if self._connection.state is ConnectionState.OPEN:  # so wsproto tells what is no frame at all
                await self._refuse(event.code, "this is no WebSocket")
            if self._connection.state is ConnectionState.REMOTE_CLOSING:
                await self._send(event.response())
            await self._abort()
            raise SocketClosed("the peer has closed it")
        return None

    async def _read(self) -> None:
        """Put what has arrived among the events."""
        if self._unread:
            data, self._unread = self._unread, b""
        else:
            try:
                data = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
        if not data or self._ended:
            await self._abort()
            raise SocketClosed("the connection has ended")
        self._heard = trio.current_time()
        try:
            self._connection.receive_data(data)
            self._events.extend(self._connection.events())
        except LocalProtocolError:
            await self._abort()
            raise SocketClosed("it has ended") from None

    async def _refuse(self, code: int, reason: str) -> None:
        await self.close(code, reason)
        raise SocketClosed(reason)

    async def _send(self, event: Event) -> None:
        async with self._sending:
            if self._ended:
                raise SocketClosed("it has ended")
            try:
                data = self._connection.send(event)
            except LocalProtocolError:
                raise SocketClosed("it is about to end") from None
            whole = False
            try:
                with trio.move_on_after(SEND_SECONDS):
                    await self._stream.send_all(data)
                    whole = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                if not whole:  # half a message may be out, and nothing can follow it
                    self._ended = True
        if not whole:
            await self._abort()
            raise SocketClosed("the peer does not read")

    async def _abort(self) -> None:
        self._ended = True
        self._gone.set()
        await trio.aclose_forcefully(self._stream)
