"""Talking to the daemon: a blocking client of the control socket, of plain ``socket`` and ``json``.

The protocol is JSON-RPC 2.0, one object a line (``pylon.daemon.control`` is the other end). How the two find each other
is ``pylon.daemon.doorway``'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pylon import errors
from pylon.daemon import doorway
from pylon.errors import ControlError, NotRunning, PylonError
from pylon.paths import Home

MAX_REPLY_BYTES = 64 << 20
_SEE_LOG = "see its log: logs/pylon.log"

Progress = Callable[[str, Any], None]
"""Called with the method and the params of each notification that precedes a reply."""


class ControlClient:
    """One connection. ``timeout`` bounds, in seconds, connecting, and each call as a whole; ``None`` waits for ever.

    Raises ``NotRunning`` where nobody listens, ``ControlError`` where the daemon does not answer in time or speaks
    nonsense; an error that the daemon answers with is raised as what it was over there.
    """

    def __init__(self, path: Path, *, timeout: float | None = 2.0) -> None:
        self._timeout = timeout
        self._buffer = b""
        self._calls = 0
        try:
            self._socket = doorway.connect(path, timeout)
        except TimeoutError as error:
            raise ControlError(str(error), _SEE_LOG) from None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> Any:
        """The result of one method."""
        deadline = self._deadline()
        self.begin(method, params)
        try:
            while True:
                reply = self._read(deadline)
                if "id" in reply:
                    break
                if on_progress is not None and isinstance(reply.get("method"), str):
                    on_progress(reply["method"], reply.get("params"))
        except TimeoutError:
            raise self._unanswered(method) from None
        except OSError as error:
            raise _hung_up(error) from None
        if isinstance(reply.get("error"), dict):
            raise remote_error(reply["error"])
        if reply["id"] != self._calls or "result" not in reply:
            raise ControlError("the daemon's answer is no reply", "is another version of pylon running?")
        return reply["result"]

    def begin(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Call a method whose notifications are read one by one, by ``told``."""
        self._calls += 1
        request = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": dict(params or {})}
        try:
            self._wait_until(self._deadline())
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise self._unanswered(method) from None
        except OSError as error:
            raise _hung_up(error) from None

    def told(self, seconds: float) -> tuple[str, Any] | None:
        """The next notification of what was begun, if one comes in time; ``("", result)`` is its end.

        Raises what the method has raised, ``ControlError`` where the daemon hangs up.
        """
        try:
            reply = self._read(time.monotonic() + max(seconds, 0.001))
        except TimeoutError:
            return None
        except OSError as error:
            raise _hung_up(error) from None
        if isinstance(reply.get("error"), dict):
            raise remote_error(reply["error"])
        if "id" in reply:
            return "", reply.get("result")
        return str(reply.get("method")), reply.get("params")

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _unanswered(self, method: str) -> ControlError:
        return ControlError(f"the daemon has not answered {method!r} within {self._timeout:g} s", _SEE_LOG)

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is None:
            self._socket.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _read(self, deadline: float | None) -> dict[str, Any]:
        chunks = [self._buffer]
        size = len(self._buffer)
        try:
            while b"\n" not in chunks[-1]:
                self._wait_until(deadline)
                chunk = self._socket.recv(65536)
                if not chunk:
                    raise ControlError("the daemon hung up before it answered", "pylon status")
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise ControlError(f"the daemon's answer is longer than {MAX_REPLY_BYTES} bytes")
        finally:
            self._buffer = b"".join(chunks)  # of a line that does not end in time, the rest may still come
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise ControlError("the daemon's answer is not JSON", "is another version of pylon running?")
        return reply


def not_running(home: Path) -> NotRunning:
    return NotRunning(f"no daemon is running in {home}", "pylon start")


def is_running(home: Home) -> bool:
    """Whether somebody listens on the control socket."""
    try:
        ControlClient(home.socket).close()
    except PylonError:
        return False
    return True


def call(
    home: Home,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    on_progress: Progress | None = None,
    timeout: float | None = 2.0,
) -> Any:
    """One call on a connection of its own."""
    with ControlClient(home.socket, timeout=timeout) as client:
        return client.call(method, params, on_progress=on_progress)


def _hung_up(error: OSError) -> ControlError:
    return ControlError(f"the daemon hung up: {error.strerror or error}", "pylon status")


def remote_error(error: Mapping[str, Any]) -> PylonError:
    """The exception that a JSON-RPC error object stands for: the class with its code, if we know one."""
    data = error.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("code"), str):
        return ControlError(str(error.get("message", "unknown error")))
    message, hint = str(data.get("message", "")), str(data.get("hint", ""))
    kind = _classes().get(data["code"])
    if kind is None:
        exit_code = data.get("exit_code")
        attributes = {"code": data["code"], "exit_code": exit_code if isinstance(exit_code, int) else 1}
        kind = type("RemoteError", (PylonError,), attributes)
    remade = kind.__new__(kind)
    PylonError.__init__(remade, message, hint)
    return remade


def _classes() -> dict[str, type[PylonError]]:
    return {
        kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PylonError)
    }
