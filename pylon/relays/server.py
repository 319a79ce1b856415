"""The embedded relay on a TCP port: websockets, and its NIP-11 document by plain HTTP on the same port.

``python -m pylon.relays.server --port 0 [--path relay.db]`` runs one alone and prints where it listens.
"""

from __future__ import annotations

import argparse
import email.utils
import errno
import logging
import signal
import sys
from collections.abc import Sequence

import h11
import trio
import trio_websocket

from protocols.nip11 import MEDIA_TYPE, Limitation, RelayInformation
from pylon import __version__
from pylon.clock import SystemClock
from pylon.errors import PylonError, RelayError
from pylon.relays.relay import Limits, Relay, open_relay
from pylon.relays.transport import TransportClosed

log = logging.getLogger(__name__)

SOFTWARE = "pylon"
"""The ``software`` of the NIP-11 document, by which another home knows this relay for a Pylon.

NIP-11 suggests the address of a homepage; a name is the same wherever the code is kept."""

SUPPORTED_NIPS = (1, 9, 11, 40)

_HEAD_BYTES = 16_384
_HANDSHAKE_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
_RECEIVE_BYTES = 65_536
_QUEUED_MESSAGES = 64
_CORS = [
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Headers", b"*"),
    (b"Access-Control-Allow-Methods", b"GET, HEAD, OPTIONS"),
]


class PortTaken(RelayError):
    """Somebody else listens on the relay's port."""

    code = "port_taken"


async def serve_relay(
    relay: Relay,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``relay`` on a TCP port until cancelled; 0 takes a free one.

    Started with the addresses that are bound, as (host, port). Raises ``PortTaken``, or ``RelayError`` for any other
    reason not to listen there.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        kind = PortTaken if error.errno == errno.EADDRINUSE else RelayError
        raise kind(
            f"the relay cannot listen on {host}:{port}: {error.strerror or error}",
            "set another address in config.toml: [relay] bind",
        ) from error

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await _handle(relay, stream)
        except Exception as error:
            # Whatever a stranger sends may end this connection, never the listener. (trio-websocket answers some
            # protocol errors by an exception in its reader task: a ping after our close, for one.)
            log.debug("a relay connection failed: %r", error)
        finally:
            await trio.aclose_forcefully(stream)

    addresses = [listener.socket.getsockname()[:2] for listener in listeners]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, listeners)
        task_status.started(addresses)


def relay_information(limits: Limits) -> RelayInformation:
    """The NIP-11 document of a relay with these limits."""
    return RelayInformation(
        name="Pylon",
        description="The relay inside a Pylon: it serves the agents and the provider of its own home.",
        supported_nips=SUPPORTED_NIPS,
        software=SOFTWARE,
        version=__version__,
        limitation=Limitation(
            max_message_length=limits.max_message_length,
            max_subscriptions=limits.max_subscriptions,
            max_limit=limits.max_limit,
            default_limit=limits.max_limit,
            max_subid_length=limits.max_subid_length,
            created_at_upper_limit=limits.created_at_upper_limit,
            auth_required=False,
            payment_required=False,
            restricted_writes=False,
        ),
    )


async def _handle(relay: Relay, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
    upgraded = None
    with trio.move_on_after(_HANDSHAKE_SECONDS):
        try:
            request, received = await _read_head(connection, stream)
        except h11.RemoteProtocolError as error:
            await _respond(connection, stream, error.error_status_hint, b"this is no HTTP request\n")
            return
        if request is not None and _is_upgrade(request):
            upgraded = _SharedStream(stream, received)
        elif request is not None:
            await _answer(relay, request, connection, stream)
    if upgraded is not None:
        await _serve_websocket(relay, upgraded)


async def _read_head(connection: h11.Connection, stream: trio.SocketStream) -> tuple[h11.Request | None, bytes]:
    """The request, and all bytes read so far: a websocket library wants to read them again."""
    received = bytearray()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event, bytes(received)
        if event is not h11.NEED_DATA:
            return None, bytes(received)
        data = await stream.receive_some(_RECEIVE_BYTES)
        received += data
        connection.receive_data(data)


def _header(request: h11.Request, name: bytes) -> bytes:
    return b",".join(value for key, value in request.headers if key == name)


def _is_upgrade(request: h11.Request) -> bool:
    return b"websocket" in [token.strip().lower() for token in _header(request, b"upgrade").split(b",")]


async def _answer(relay: Relay, request: h11.Request, connection: h11.Connection, stream: trio.SocketStream) -> None:
    if request.method == b"OPTIONS":
        await _respond(connection, stream, 204, b"")
    elif request.method in (b"GET", b"HEAD"):
        document = relay_information(relay.limits).to_json().encode()
        bodiless = request.method == b"HEAD"
        await _respond(connection, stream, 200, document, content_type=MEDIA_TYPE.encode(), bodiless=bodiless)
    else:
        await _respond(connection, stream, 405, b"GET this address, or open a websocket\n")


async def _respond(
    connection: h11.Connection,
    stream: trio.SocketStream,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"text/plain; charset=utf-8",
    bodiless: bool = False,
) -> None:
    headers = [*_CORS, (b"Connection", b"close"), (b"Date", email.utils.formatdate(usegmt=True).encode())]
    if status != 204:
        headers += [(b"Content-Type", content_type), (b"Content-Length", str(len(body)).encode())]
    if status == 405:
        headers.append((b"Allow", b"GET, HEAD, OPTIONS"))
    parts = [connection.send(h11.Response(status_code=status, headers=headers))]
    if body and not bodiless:
        parts.append(connection.send(h11.Data(data=body)))
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part for part in parts if part))
    await _finish(stream)


async def _serve_websocket(relay: Relay, stream: _SharedStream) -> None:
    async with trio.open_nursery() as nursery:
        websocket = None
        with trio.move_on_after(_HANDSHAKE_SECONDS):
            # Somewhat more than the limit, so that a message just too long gets an answer instead of a closed door.
            request = await trio_websocket.wrap_server_stream(
                nursery,
                stream,
                message_queue_size=_QUEUED_MESSAGES,
                max_message_size=2 * relay.limits.max_message_length,
                receive_buffer_size=_RECEIVE_BYTES,
            )
            websocket = await request.accept()
        if websocket is not None:
            await relay.serve(_WebSocketLink(websocket, stream))
            with trio.move_on_after(_CLOSE_SECONDS):
                await websocket.aclose()
                await stream.drain()
        nursery.cancel_scope.cancel()


class _WebSocketLink:
    """A trio-websocket connection as a ``ClientLink``."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, stream: _SharedStream) -> None:
        self._websocket = websocket
        self._stream = stream

    async def receive(self) -> str:
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as error:
            raise TransportClosed(str(error.reason)) from None
        return message if isinstance(message, str) else message.decode("utf-8", "replace")

    async def send_many(self, frames: Sequence[str]) -> None:
        if self._websocket.closed:
            raise TransportClosed(str(self._websocket.closed))
        try:
            await self._stream.send_all(b"".join(map(_text_frame, frames)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TransportClosed("the client is gone") from None

    async def ping(self) -> None:
        try:
            await self._websocket.ping()
        except trio_websocket.ConnectionClosed as error:
            raise TransportClosed(str(error.reason)) from None


def _text_frame(text: str) -> bytes:
    """A server's text frame, whole (RFC 6455, 5.2).

    Written here because trio-websocket takes one message at a time: a system call, and with TCP_NODELAY a packet, for
    each of the twenty frames that answer a REQ.
    """
    payload = text.encode("utf-8", "replace")
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class _SharedStream(trio.abc.Stream):
    """A TCP stream that gives the bytes of the request head once more, and lets several tasks send in turn.

    What trio-websocket sends (the handshake, pings and pongs, the close) and our text frames come from different tasks.
    """

    def __init__(self, stream: trio.SocketStream, received: bytes) -> None:
        self._stream = stream
        self._received = received
        self._sending = trio.Lock()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._received:
            size = len(self._received) if max_bytes is None else max_bytes
            data, self._received = self._received[:size], self._received[size:]
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def drain(self) -> None:
        """Let the peer read our last words: a close with input unread would reset the connection."""
        try:
            await _finish(self._stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _finish(stream: trio.SocketStream) -> None:
    await stream.send_eof()
    while await stream.receive_some(_RECEIVE_BYTES):
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one relay on 127.0.0.1 until SIGTERM or SIGINT; for tests and benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m pylon.relays.server", description="Run Pylon's relay by itself.")
    parser.add_argument("--port", type=int, default=7777, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--path", default=":memory:", help="SQLite file of the events (default: in memory)")
    options = parser.parse_args(arguments)
    try:
        trio.run(_run_alone, options.path, options.port)
    except* PylonError as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        sys.exit(1)


async def _run_alone(path: str, port: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_relay(path, clock=SystemClock()) as relay, trio.open_nursery() as nursery:
            for host, bound in await nursery.start(serve_relay, relay, "127.0.0.1", port):
                print(f"listening ws://{host}:{bound}", flush=True)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
