"""A relay connection over trio-websocket, with its traps closed.

* A Ping that arrives while we are closing makes trio-websocket's reader raise out of its nursery, as a bare
  ``Cancelled`` in the end. Such a Ping needs no answer; ``answer_pings_until_closing`` gives none.
* Its reader also raises what goes wrong in a handshake, wrapped in groups by the nursery; so we run the reader
  ourselves and keep what it raises.
* A connection whose messages are not read stops answering pings and closes; so messages are read as they come, by a
  task of ours into a queue of ours, and a queue that stays full ends the connection instead of stalling it.
"""

from __future__ import annotations

import ssl
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import wsproto
import wsproto.events
import wsproto.utilities
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from pylon.errors import RelayError
from pylon.relays.transport import Transport, TransportClosed

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
MAX_MESSAGE_BYTES = 1 << 20
QUEUED_MESSAGES = 4_096
QUEUED_CHARACTERS = 16 << 20
"""What may wait unread; the last message before the bound may exceed it."""
_LIBRARY_QUEUE = 16
_RECEIVE_BYTES = 65_536
_FULL_SECONDS = 10.0
_LONGEST_URL = 100

_Broken = (
    ConnectionClosed,
    wsproto.utilities.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
)


def answer_pings_until_closing() -> None:
    """Close the first trap, for every trio-websocket connection of this process; repeating it is harmless."""
    original = WebSocketConnection._handle_ping_event
    if getattr(original, "stops_when_closing", False):
        return

    async def handle(self: WebSocketConnection, event: wsproto.events.Ping) -> None:
        try:
            await original(self, event)
        except wsproto.utilities.LocalProtocolError:
            pass  # our close frame has gone out: nothing may follow it, not even a pong

    handle.stops_when_closing = True  # type: ignore[attr-defined]
    WebSocketConnection._handle_ping_event = handle  # type: ignore[method-assign]


answer_pings_until_closing()


class Rejected(RelayError):
    """The server answered the handshake with another HTTP status than 101."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


@asynccontextmanager
async def connect(
    url: str,
    *,
    connect_timeout: float = CONNECT_SECONDS,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    ssl_context: ssl.SSLContext | None = None,
    named: str | None = None,
) -> AsyncIterator[Transport]:
    """Connect to a relay (``pylon.relays.transport.Connect``). Raises ``RelayError`` naming the relay.

    ``ssl_context`` is for ``wss://``; by default the system's authorities are trusted. ``named``: what errors call it,
    where the URL itself holds a secret.
    """
    address = _Address.of(url, named)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            transport = await _open(nursery, address, connect_timeout, max_message_bytes, ssl_context)
            try:
                yield transport
            finally:
                await transport.aclose()
        except Exception as error:
            # Kept out of the nursery, which would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@attrs.frozen
class _Address:
    url: str
    """As it is named in errors."""
    tls: bool
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str, named: str | None = None) -> _Address:
        named = url[:_LONGEST_URL] if named is None else named
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise RelayError(f"{named}: no such address ({error})", "ws:// or wss://, host and port") from None
        if parts.scheme not in ("ws", "wss") or not host:
            raise RelayError(f"{named}: no relay's address", "ws:// or wss://, host and port")
        tls = parts.scheme == "wss"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(named, tls, host, port or (443 if tls else 80), target)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (80, 443) else f"{host}:{self.port}"


async def _open(
    nursery: trio.Nursery,
    address: _Address,
    timeout: float,
    max_message_bytes: int,
    ssl_context: ssl.SSLContext | None,
) -> _WebSocketTransport:
    stream: trio.abc.Stream | None = None
    transport: _WebSocketTransport | None = None
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(address.host, address.port)
            if address.tls:
                context = ssl_context or ssl.create_default_context()
                stream = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
                await stream.do_handshake()
            transport = _WebSocketTransport(_client(stream, address, max_message_bytes), stream)
            nursery.start_soon(transport.run)
            await transport.opened()
    except BaseException as error:
        if stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
        if transport is not None:
            transport.stop()
        refusal = _refusal(address.url, error, timeout)
        if refusal is None:
            raise
        raise refusal from None
    nursery.start_soon(transport.read)
    return transport


def _client(stream: trio.abc.Stream, address: _Address, max_message_bytes: int) -> WebSocketConnection:
    return WebSocketConnection(
        stream,
        wsproto.WSConnection(wsproto.ConnectionType.CLIENT),
        host=address.host_header,
        path=address.target,
        message_queue_size=_LIBRARY_QUEUE,
        max_message_size=max_message_bytes,
        receive_buffer_size=_RECEIVE_BYTES,
    )


def _refusal(url: str, error: BaseException, timeout: float) -> RelayError | None:
    """What to say of a connection that did not come about; ``None`` for what is no fault of the relay's."""
    reason = error if isinstance(error, ssl.SSLError) else error.__cause__
    match error:
        case trio.TooSlowError():
            return RelayError(f"{url}: no connection within {timeout:g} s", "is the relay up?")
        case ConnectionRejected():
            status = error.status_code
            return Rejected(f"{url}: refused with HTTP status {status}", "is it a Nostr relay?", status)
        case ConnectionClosed() | wsproto.utilities.ProtocolError():
            return RelayError(f"{url}: the WebSocket handshake failed", "is it a Nostr relay?")
        case _ if isinstance(reason, ssl.SSLError | ssl.CertificateError):
            return RelayError(f"{url}: no TLS ({reason.reason or reason})", "is it a wss:// relay?")
        case OSError() | trio.BrokenResourceError() | trio.ClosedResourceError() | UnicodeError():
            return RelayError(f"{url}: no connection ({str(error) or 'it broke'})", "is the relay up?")
        case ValueError():
            return RelayError(f"{url}: no such address ({error})", "ws:// or wss://, host and port")
    return None


class _WebSocketTransport:
    def __init__(self, websocket: WebSocketConnection, stream: trio.abc.Stream) -> None:
        self._websocket = websocket
        self._stream = stream
        self._error: Exception | None = None
        self._running = trio.CancelScope(shield=True)
        self._ended = trio.Event()
        self._settled = trio.Event()
        self._queue: deque[str] = deque()
        self._queued = 0
        self._read_out = False
        self._moved = trio.Event()

    async def run(self) -> None:
        """The library's reader; whatever it raises is the connection's end, and no more than that.

        It outlives a cancellation until ``aclose``: without it nobody would hear the peer's goodbye.
        """
        try:
            with self._running:
                await self._websocket._reader_task()
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()
            self._settled.set()
            # Its own reader closes this on every path but that of an exception.
            self._websocket._send_channel.close()

    async def opened(self) -> None:
        """Wait for the handshake. Raises ``ConnectionRejected`` or ``ConnectionClosed``."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle)
            await self._settled.wait()
            nursery.cancel_scope.cancel()
        if isinstance(self._error, ConnectionRejected):
            raise self._error
        # What else the libraries raise, for an answer that makes no sense to them, says nothing to a reader.
        if self._ended.is_set() or not self._websocket._open_handshake.is_set():
            raise ConnectionClosed(self._websocket.closed)

    async def _settle(self) -> None:
        await self._websocket._open_handshake.wait()
        self._settled.set()

    async def read(self) -> None:
        """Move messages into the queue as they come, until the connection ends."""
        try:
            while True:
                message: Any = await self._websocket.get_message()
                text = message if isinstance(message, str) else message.decode("utf-8", "replace")
                if not await self._room():
                    await self.aclose()
                    return
                self._queue.append(text)
                self._queued += len(text)
                self._tell()
        except ConnectionClosed:
            pass
        finally:
            self._read_out = True
            self._tell()

    async def _room(self) -> bool:
        if not self._is_full():
            return True
        with trio.move_on_after(_FULL_SECONDS):
            while self._is_full():
                await self._moved.wait()
            return True
        return False

    def _is_full(self) -> bool:
        return len(self._queue) >= QUEUED_MESSAGES or self._queued >= QUEUED_CHARACTERS

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send_message(text)
        except _Broken as error:
            raise TransportClosed(_reason(error)) from None

    async def receive(self) -> str:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._read_out:
                raise TransportClosed(self._close_reason())
            await self._moved.wait()
        text = self._queue.popleft()
        self._queued -= len(text)
        self._tell()
        return text

    async def ping(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_ended, nursery.cancel_scope)
                await self._websocket.ping()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            _, other = group.split(_Broken)
            if other is not None:
                raise other from None
            raise TransportClosed(_reason(group.exceptions[0])) from None
        if self._ended.is_set():
            raise TransportClosed(self._close_reason())

    async def _until_ended(self, scope: trio.CancelScope) -> None:
        """No pong comes once the reader has ended, and the library tells nobody."""
        await self._ended.wait()
        scope.cancel()

    async def aclose(self) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
            if not self._ended.is_set():
                try:
                    await self._websocket.aclose()
                except _Broken:
                    pass
        # A peer that does not read keeps no connection of ours open.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)
        self.stop()

    def stop(self) -> None:
        """End the reader, whatever the state of the connection."""
        self._running.cancel()

    def _close_reason(self) -> str:
        if isinstance(self._error, wsproto.utilities.ProtocolError):
            return "closed: it does not speak WebSocket"
        closed = self._websocket.closed
        return "the connection broke" if closed is None else f"closed with {closed.code} {closed.reason or ''}".strip()


def _reason(error: BaseException) -> str:
    reason = error.reason if isinstance(error, ConnectionClosed) else None
    return "the connection broke" if reason is None else f"closed with {reason.code} {reason.reason or ''}".strip()
