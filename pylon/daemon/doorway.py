"""Where a command knocks: the control socket of a home; or, where there are no Unix sockets, loopback TCP and a cookie.

A Unix socket is closed to others by its mode. A TCP port of this machine is open to whoever is on it, so both ends
prove first that they can read ``control.cookie`` (0600, made anew at each start: the port, and 32 random bytes), and
neither says it: a number in a file may be another program's port by now. One line each::

    client   pylon-control 1 <32 random bytes>
    daemon   <32 random bytes> <HMAC-SHA256(cookie, "daemon" + both)>
    client   <HMAC-SHA256(cookie, "client" + both)>

all in hexadecimal; then the same JSON-RPC as on the socket. The scheme is Tor's SAFECOOKIE (control-spec, 3.24).

Only the standard library, for ``pylon status`` pays for it; and of that only what the way at hand needs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from pylon.errors import ControlError, NotRunning
from pylon.paths import short_directory

VARIABLE = "PYLON_CONTROL"
"""``tcp`` has a daemon listen there, also where there are Unix sockets."""
GREETING = "pylon-control 1"
MAX_HELLO = 256
"""Bytes of a line before both know each other."""
GREETING_SECONDS = 10.0
"""At most, also for whoever waits for ever for an answer: whoever has the port now may be a stranger."""
NONCE_BYTES = 32
HOST = "127.0.0.1"


def uses_tcp(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a daemon of this machine listens on TCP."""
    return not hasattr(socket, "AF_UNIX") or environ.get(VARIABLE, "").lower() == "tcp"


def connect(path: Path, timeout: float | None) -> socket.socket:
    """A connection to the daemon whose socket is ``path``, with both ends known to each other; it blocks.

    Raises ``NotRunning`` where nobody listens, or somebody else does, ``ControlError`` where it cannot be reached, and
    ``TimeoutError`` where it does not greet within ``timeout`` seconds, or ``GREETING_SECONDS``.
    """
    cookie = path.with_name("control.cookie")
    if hasattr(socket, "AF_UNIX"):
        try:
            return _by_socket(path, timeout)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            if not cookie.exists():
                raise _not_running(path) from None
        except OSError as error:
            raise ControlError(f"cannot reach the daemon at {path}: {error}", "pylon start") from None
    known = read_cookie(cookie)
    if known is None:
        raise _not_running(path)
    return _by_tcp(path, *known, timeout)


def _not_running(path: Path) -> NotRunning:
    return NotRunning(f"no daemon is running in {path.parent}", "pylon start")


def _by_socket(path: Path, timeout: float | None) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        with short_directory(path.parent, len(path.name)) as directory:
            client.connect(str(directory / path.name))
    except BaseException:
        client.close()
        raise
    return client


def _by_tcp(path: Path, port: int, cookie: bytes, timeout: float | None) -> socket.socket:
    import hmac
    import secrets

    patience = GREETING_SECONDS if timeout is None else timeout
    deadline = time.monotonic() + patience
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        client.settimeout(patience)
        client.connect((HOST, port))
        ours = secrets.token_bytes(NONCE_BYTES)
        client.sendall(f"{GREETING} {ours.hex()}\n".encode())
        said = _hello(client, deadline).split()
        theirs = bytes.fromhex(said[0])
        if len(theirs) != NONCE_BYTES or not hmac.compare_digest(said[1], proof(cookie, "daemon", ours, theirs)):
            raise ValueError
        client.sendall(proof(cookie, "client", ours, theirs).encode() + b"\n")
    except TimeoutError:
        client.close()
        raise TimeoutError(f"the daemon does not greet within {patience:g} s") from None
    except (OSError, ValueError, IndexError):
        # Nobody, or a stranger who has the port now: he has learnt nothing but a random number.
        client.close()
        raise _not_running(path) from None
    except BaseException:
        client.close()
        raise
    return client


def _hello(client: socket.socket, deadline: float) -> str:
    """One line, and not a byte of what follows it."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        client.settimeout(left)
        byte = client.recv(1)
        if not byte or len(line) >= MAX_HELLO:
            raise ValueError
        line += byte
    return line.decode("ascii")


def proof(cookie: bytes, who: str, client: bytes, daemon: bytes) -> str:
    """What one end shows: ``who`` is ``client`` or ``daemon``, followed by the random bytes of both."""
    import hashlib
    import hmac

    return hmac.new(cookie, who.encode() + client + daemon, hashlib.sha256).hexdigest()


def read_cookie(path: Path) -> tuple[int, bytes] | None:
    """The port and the secret; ``None`` where there is no such file, or half of one."""
    with contextlib.suppress(OSError, ValueError):
        port, secret = path.read_text(encoding="ascii").split()
        cookie = bytes.fromhex(secret)
        if 0 < int(port) < 65_536 and len(cookie) == 32:
            return int(port), cookie
    return None
