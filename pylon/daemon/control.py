"""The control socket: JSON-RPC 2.0, one object a line.

Whoever can connect is the home's owner: on a Unix socket by its mode, elsewhere by what he knows (``listening``). A
connection is a task of its own with deadlines, so that a silent, slow, huge or vanishing client harms nobody.
Calls of one connection are answered in their order. Notifications of a method (its progress) precede its response.

Errors: the numbers of the specification for what is malformed; ``-32000`` for a ``PylonError``, whose ``data`` is
``{"code", "message", "hint", "exit_code"}``. Batches are not served.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import orjson
import trio

from pylon.daemon.doorway import uses_tcp
from pylon.daemon.listening import Door, listening
from pylon.errors import PylonError
from pylon.paths import Home

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
PYLON_ERROR = -32000

Notify = Callable[[str, Any], Awaitable[Any]]
"""``await notify(method, params)`` sends a notification to the caller. The answer is false once the caller has gone:
whether to go on without it is the method's choice."""

Method = Callable[[dict[str, Any], Notify], Awaitable[Any]]
"""``async method(params, notify)`` returns what JSON can say, or raises a ``PylonError``."""


async def to_nobody(method: str, params: Any) -> bool:
    """``Notify`` where nobody listens, and the method goes on nevertheless."""
    return True


OnError = Callable[[str, BaseException], None]
"""Told of a method's name and of an exception of it that is no ``PylonError``."""


@attrs.frozen
class Limits:
    """Seconds, bytes, and how many."""

    first_request: float = 30.0
    """From the connection to the end of its first line."""
    next_request: float = 600.0
    """From an answer to the end of the next line."""
    write: float = 10.0
    """For a client to take what it is sent."""
    max_line: int = 1 << 20
    max_connections: int = 64


async def serve_control(
    home: Home,
    methods: Mapping[str, Method],
    *,
    limits: Limits | None = None,
    on_error: OnError | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then the socket is removed, if it is still ours.

    Reports started when clients can connect. Raises ``AlreadyRunning`` if somebody answers there already, and
    ``ControlError`` where nobody can be listened to; what a dead daemon has left is replaced.
    """
    async with listening(home, tcp=uses_tcp()) as door:
        server = _Server(methods, limits or Limits(), on_error, door)
        async with trio.open_nursery() as nursery:
            task_status.started()
            await server.accept(nursery)


@attrs.define(eq=False)
class _Connection:
    stream: trio.SocketStream
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    busy: bool = False
    gone: bool = False
    buffer: bytearray = attrs.field(factory=bytearray)


class _LineTooLong(Exception):
    """More than ``Limits.max_line`` bytes without an end."""


class _Server:
    def __init__(self, methods: Mapping[str, Method], limits: Limits, on_error: OnError | None, door: Door) -> None:
        self._door = door
        self._methods = methods
        self._limits = limits
        self._on_error = on_error
        self._connections: dict[_Connection, None] = {}

    async def accept(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                accepted, _ = await self._door.listener.accept()
            except OSError:
                # Out of descriptors, or the client has gone again: both pass.
                await trio.sleep(0.1)
                continue
            connection = _Connection(trio.SocketStream(accepted))
            if len(self._connections) >= self._limits.max_connections:
                idle = next((known for known in self._connections if not known.busy), None)
                if idle is None:
                    await trio.aclose_forcefully(connection.stream)
                    continue
                # The one that has been silent longest makes room, so that silent clients cannot lock others out.
                del self._connections[idle]
                idle.scope.cancel()
            self._connections[connection] = None
            nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: _Connection) -> None:
        try:
            with connection.scope:
                try:
                    if await self._is_welcome(connection):
                        await self._talk(connection)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        finally:
            self._connections.pop(connection, None)
            await trio.aclose_forcefully(connection.stream)

    async def _is_welcome(self, connection: _Connection) -> bool:
        with trio.move_on_after(self._limits.first_request):
            return await self._door.admits(connection.stream)
        return False

    async def _talk(self, connection: _Connection) -> None:
        wait = self._limits.first_request
        while not connection.gone:
            try:
                with trio.fail_after(wait):
                    line = await self._line(connection)
            except trio.TooSlowError:
                return
            except _LineTooLong:
                message = f"a request has at most {self._limits.max_line} bytes"
                await self._send(connection, _error(None, INVALID_REQUEST, message))
                return
            if line is None:
                return
            if not line.strip():
                continue
            connection.busy = True
            response = await self._answer(connection, line)
            if response is not None:
                await self._send(connection, response)
            connection.busy = False
            # Answered: the youngest of the idle ones now.
            if connection in self._connections:
                del self._connections[connection]
                self._connections[connection] = None
            wait = self._limits.next_request

    async def _line(self, connection: _Connection) -> bytes | None:
        """The next line without its end; ``None`` at the end of the stream."""
        searched = 0
        while True:
            end = connection.buffer.find(b"\n", searched)
            if end > self._limits.max_line or (end < 0 and len(connection.buffer) > self._limits.max_line):
                raise _LineTooLong
            if end >= 0:
                line = bytes(connection.buffer[:end])
                del connection.buffer[: end + 1]
                return line
            searched = len(connection.buffer)
            received = await connection.stream.receive_some(65_536)
            if not received:
                return None
            connection.buffer += received

    async def _answer(self, connection: _Connection, line: bytes) -> bytes | None:
        """The response to one line; ``None`` to a notification."""
        try:
            request = orjson.loads(line)
        except ValueError:
            return _error(None, PARSE_ERROR, "not JSON")
        if isinstance(request, list):
            return _error(None, INVALID_REQUEST, "batches are not served; send one object a line")
        if not isinstance(request, dict):
            return _error(None, INVALID_REQUEST, "not an object")
        known = request.get("id")
        if isinstance(known, bool) or not (known is None or isinstance(known, (str, int, float))):
            return _error(None, INVALID_REQUEST, "id must be a text or a number")
        name, params = request.get("method"), request.get("params", {})
        if request.get("jsonrpc") != "2.0" or not isinstance(name, str):
            return _error(known, INVALID_REQUEST, 'not JSON-RPC: wants "jsonrpc": "2.0" and a method')
        response = await self._call(connection, known, name, params)
        return response if "id" in request else None

    async def _call(self, connection: _Connection, known: Any, name: str, params: Any) -> bytes:
        method = self._methods.get(name)
        if method is None:
            return _error(known, METHOD_NOT_FOUND, f"there is no method {name[:100]!r}")
        if not isinstance(params, dict):
            return _error(known, INVALID_PARAMS, "params are given by name")

        async def notify(method: str, params: Any) -> bool:
            if not connection.gone:
                try:
                    await self._send(connection, _encode({"jsonrpc": "2.0", "method": method, "params": params}))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    connection.gone = True
            return not connection.gone

        try:
            return _encode({"jsonrpc": "2.0", "id": known, "result": await method(params, notify)})
        except Exception as group:
            error = _only(group)
            if isinstance(error, PylonError):
                data = {**error.to_json()["error"], "exit_code": error.exit_code}
                return _error(known, PYLON_ERROR, error.message, data)
            if self._on_error is not None:
                self._on_error(name, group)
            return _error(known, INTERNAL_ERROR, f"internal error in {name}: {type(error).__name__}")

    async def _send(self, connection: _Connection, line: bytes) -> None:
        with trio.move_on_after(self._limits.write) as scope:
            await connection.stream.send_all(line)
        if scope.cancelled_caught:
            # Half of a line may be out: nothing more can be said here.
            connection.gone = True
            raise trio.BrokenResourceError


def _encode(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def _error(known: Any, code: int, message: str, data: Any = None) -> bytes:
    error = {"code": code, "message": message} if data is None else {"code": code, "message": message, "data": data}
    # The standard library's encoder, for it escapes what a file name may have smuggled into a message.
    return json.dumps({"jsonrpc": "2.0", "id": known, "error": error}).encode() + b"\n"


def _only(error: Exception) -> Exception:
    """The one exception within the groups that a method's nurseries have wrapped around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
