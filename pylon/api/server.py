"""HTTP on a TCP port: hypercorn's HTTP/1.1 under Trio, with its traps closed.

* hypercorn's ``serve`` lets whatever breaks in one connection end the whole server (a request for ``/é`` by HTTP/2 is
  enough); so we accept connections ourselves, and what breaks in one of them ends that one.
* It sends under a shield and for ever; a client that stops reading would keep the daemon from stopping. So its stream
  is one of ours: sending has a deadline, and the end of the server closes every socket under it.
* It knows states in which a connection may stay for ever (a websocket that is none, garbage after a greeting of
  HTTP/2), and bounds neither how many there are nor what a client may take for its request. So a connection on which
  no request runs is ended by a watch of ours; bodies and their time are bounded by ``pylon.api.guard``.

Only ``TCPServer`` and what it is made of are used; its version is held in ``pyproject.toml``.
"""

from __future__ import annotations

import errno
import logging
import math
from typing import TYPE_CHECKING

import trio

from pylon.api.guard import Guard, Receive, Scope, Send
from pylon.config_values import Bind
from pylon.errors import ConfigError, brief

if TYPE_CHECKING:
    from hypercorn.config import Config

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
HEAD_SECONDS = 10.0
"""For the head of a request; also how long a connection may idle."""
SEND_SECONDS = 30.0
"""For a client to take one piece of an answer."""
HEAD_BYTES = 65_536
"""A zap request of 16 KiB travels in the query, and grows threefold there."""
REQUESTS_PER_CONNECTION = 1_000
_LAST_SECONDS = 0.5
"""For a connection whose client has said that nothing more will come."""


async def serve_api(
    app: Guard, bind: Bind, *, by_user: bool, task_status: trio.TaskStatus[Bind] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Started with the address that is bound; the first one, where a name has several.

    ``by_user``: the address was set and must be free; else a free port is taken where it is not. Raises
    ``ConfigError``, which names the key.
    """
    listeners = await _listen(bind, by_user)
    host, port = listeners[0].socket.getsockname()[:2]
    server = _Server(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, listeners)
        bound = Bind(host, port)
        log.info("the HTTP API serves http://%s", bound)
        task_status.started(bound)
        try:
            await trio.sleep_forever()
        finally:
            server.abort()


async def _listen(bind: Bind, by_user: bool) -> list[trio.SocketListener]:
    try:
        return await open_listeners(bind)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and not by_user:
            log.info("%s is taken; the HTTP API takes a free port", bind)
            return await _listen(Bind(bind.host, 0), by_user=True)
        raise ConfigError(
            f"the HTTP API cannot listen on {bind}: {error.strerror or error}",
            "set [api] bind in config.toml to another address, or [api] enabled = false",
        ) from None


async def open_listeners(bind: Bind) -> list[trio.SocketListener]:
    """One for each address of a name; for port 0 only the first. Raises ``OSError``."""
    listeners = await trio.open_tcp_listeners(bind.port, host=bind.host)
    if bind.port == 0:
        # Each has a port of its own, and we can only tell one.
        for listener in listeners[1:]:
            await listener.aclose()
        del listeners[1:]
    return listeners


class _Server:
    """The connections that are open."""

    def __init__(self, app: Guard) -> None:
        # Imported here, as a third of a second: whoever serves nothing does not pay for it.
        from hypercorn.trio.tcp_server import TCPServer
        from hypercorn.trio.worker_context import WorkerContext
        from hypercorn.typing import ConnectionState

        self._app = app
        self._config = _config()
        self._context = WorkerContext(None)
        self._state = ConnectionState
        self._server = TCPServer
        self._open: set[trio.SocketStream] = set()

    async def handle(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._open.add(stream)
        connection = _Connection(stream, self._app)
        served = self._server(connection, self._config, self._context, self._state({}), connection)  # type: ignore[arg-type]
        try:
            async with trio.open_nursery() as nursery:
                connection.scope = nursery.cancel_scope
                nursery.start_soon(connection.watch)
                await served.run()
                nursery.cancel_scope.cancel()
        except Exception as error:
            # Whatever a stranger sends may end this connection, never the listener.
            log.debug("an HTTP connection broke: %s", brief(error))
        finally:
            self._open.discard(stream)
            await trio.aclose_forcefully(stream)

    def abort(self) -> None:
        """Close all sockets, so that whoever waits for one, under a shield or not, waits no longer."""
        for stream in self._open:
            stream.socket.close()


class _Connection(trio.abc.HalfCloseableStream):
    """What hypercorn is given: a stream with deadlines, and an application that is seen to run."""

    def __init__(self, stream: trio.SocketStream, app: Guard) -> None:
        self.socket = stream.socket
        self.scope = trio.CancelScope()
        """Cancelled, it ends the connection."""
        self._stream = stream
        self._app = app
        self._running = 0
        self._since = trio.current_time()
        """From when on no request has run."""
        self._patience = HEAD_SECONDS
        self._changed = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, *_: object) -> None:
        """The application. Hypercorn adds ways into and out of threads, which nobody here needs."""
        if scope.get("http_version") == "2":
            # Nobody has said that it is spoken here, and a client can stall each answer of it.
            self.scope.cancel()
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            self._since = trio.current_time()
            self._tell()

    async def watch(self) -> None:
        """End the connection once it has idled too long, whatever hypercorn believes it does meanwhile."""
        while True:
            left = math.inf if self._running else self._since + self._patience - trio.current_time()
            with trio.move_on_after(left) as waiting:
                await self._changed.wait()
            if waiting.cancelled_caught and not self._running:
                self.scope.cancel()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if not data:
            # No more requests; the last one may not have begun to run yet.
            self._patience = _LAST_SECONDS
            self._tell()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(SEND_SECONDS):
            await self._stream.send_all(data)
            return
        self.socket.close()
        raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _config() -> Config:
    from hypercorn.config import Config

    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.h11_max_incomplete_size = HEAD_BYTES
    config.h2_max_header_list_size = HEAD_BYTES
    config.h2_max_concurrent_streams = 1
    config.keep_alive_timeout = HEAD_SECONDS
    config.keep_alive_max_requests = REQUESTS_PER_CONNECTION
    config.websocket_max_message_size = HEAD_BYTES
    return config
