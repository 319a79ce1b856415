"""A relay connection over trio-websocket, with its traps closed.

* A Ping that arrives while we are closing makes trio-websocket's reader raise out of its nursery, as a bare
  ``Cancelled`` in the end. Such a Ping needs no answer; ``answer_pings_until_closing`` gives none.
* A connection whose messages are not read stops answering pings and closes; so messages are read as they come, by a
  task of ours into a queue of ours, and a queue that stays full ends the connection instead of stalling it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import wsproto.events
import wsproto.utilities
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    connect_websocket_url,
)

from pylon.errors import RelayError
from pylon.relays.transport import Transport, TransportClosed

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
MAX_MESSAGE_BYTES = 1 << 20
QUEUED_MESSAGES = 4_096
_RECEIVE_BYTES = 65_536
_FULL_SECONDS = 10.0


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


@asynccontextmanager
async def websocket_transport(
    url: str, *, connect_timeout: float = CONNECT_SECONDS, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> AsyncIterator[Transport]:
    """Connect to a relay (``pylon.relays.transport.Connect``). Raises ``RelayError`` naming the relay."""
    async with trio.open_nursery() as nursery:
        websocket = await _open(nursery, url, connect_timeout, max_message_bytes)
        transport = _WebSocketTransport(websocket)
        nursery.start_soon(transport.read)
        try:
            yield transport
        finally:
            await transport.aclose()
            nursery.cancel_scope.cancel()


connect = websocket_transport


async def _open(nursery: trio.Nursery, url: str, timeout: float, max_message_bytes: int) -> WebSocketConnection:
    try:
        with trio.fail_after(timeout):
            return await connect_websocket_url(
                nursery,
                url,
                message_queue_size=QUEUED_MESSAGES,
                max_message_size=max_message_bytes,
                receive_buffer_size=_RECEIVE_BYTES,
            )
    except trio.TooSlowError:
        raise RelayError(f"{url}: no connection within {timeout:g} s", "is the relay up?") from None
    except ConnectionRejected as error:
        raise RelayError(f"{url}: refused with HTTP status {error.status_code}") from None
    except ssl.SSLError as error:
        raise RelayError(f"{url}: no TLS ({error.reason or error})", "is it a wss:// relay?") from None
    except (HandshakeError, ConnectionClosed):
        raise RelayError(f"{url}: the WebSocket handshake failed") from None
    except ValueError as error:
        raise RelayError(f"{url}: no such address ({error})", "ws:// or wss://, host and port") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise RelayError(f"{url}: no connection ({error})", "is the relay up?") from None


class _WebSocketTransport:
    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._put, self._got = trio.open_memory_channel[str](QUEUED_MESSAGES)

    async def read(self) -> None:
        """Move messages into the queue as they come, until the connection ends."""
        with self._put:
            while True:
                try:
                    message: Any = await self._websocket.get_message()
                except ConnectionClosed:
                    return
                text = message if isinstance(message, str) else message.decode("utf-8", "replace")
                with trio.move_on_after(_FULL_SECONDS) as patience:
                    await self._put.send(text)
                if patience.cancelled_caught:
                    await self.aclose()
                    return

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send_message(text)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportClosed(_reason(error)) from None

    async def receive(self) -> str:
        try:
            return await self._got.receive()
        except trio.EndOfChannel:
            raise TransportClosed(_close_reason(self._websocket)) from None

    async def ping(self) -> None:
        try:
            await self._websocket.ping()
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportClosed(_reason(error)) from None

    async def aclose(self) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
            try:
                await self._websocket.aclose()
            except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass
        # A peer that does not read keeps no connection of ours open.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._websocket._stream)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return f"closed ({reason})" if reason is not None else "the connection broke"


def _close_reason(websocket: WebSocketConnection) -> str:
    closed = websocket.closed
    return "the connection broke" if closed is None else f"closed with {closed.code} {closed.reason or ''}".strip()
