"""The daemon's end of the way in: a Unix socket, or a TCP port of the loopback and a cookie (``doorway``)."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs
import trio

from pylon.daemon import doorway
from pylon.errors import AlreadyRunning, ControlError, PylonError
from pylon.files import put_private
from pylon.paths import Home, short_directory


@attrs.frozen
class Door:
    """Where clients come in."""

    listener: trio.socket.SocketType
    cookie: bytes | None = attrs.field(default=None, repr=False)
    """What a client must know; ``None`` where the kernel lets in nobody else."""

    async def admits(self, stream: trio.SocketStream) -> bool:
        """Whether this client may speak. Raises ``BrokenResourceError`` where it is gone."""
        if self.cookie is None:
            return True
        try:
            words = (await _hello(stream)).split()
            theirs = bytes.fromhex(words[2])
            if " ".join(words[:2]) != doorway.GREETING or len(theirs) != doorway.NONCE_BYTES or len(words) != 3:
                return False
            ours = secrets.token_bytes(doorway.NONCE_BYTES)
            shown = doorway.proof(self.cookie, "daemon", theirs, ours)
            await stream.send_all(f"{ours.hex()} {shown}\n".encode())
            return hmac.compare_digest(await _hello(stream), doorway.proof(self.cookie, "client", theirs, ours))
        except (ValueError, IndexError, TypeError):
            return False


async def _hello(stream: trio.SocketStream) -> str:
    """One line without its end, and not a byte of what follows it. Raises ``ValueError`` for what is none."""
    line = b""
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        if not byte or len(line) >= doorway.MAX_HELLO:
            raise ValueError("no greeting")
        line += byte
    return line[:-1].decode("ascii")


def listening(home: Home, *, tcp: bool) -> AbstractAsyncContextManager[Door]:
    """Listen, for the block; what was made for it is gone afterwards, if it is still ours.

    Raises ``AlreadyRunning`` if somebody answers, ``ControlError`` where it cannot be.
    """
    return _on_tcp(home) if tcp else _on_socket(home.socket)


@contextlib.asynccontextmanager
async def _on_tcp(home: Home) -> AsyncIterator[Door]:
    """Any free port of the loopback; it and the secret are in the cookie."""
    await trio.to_thread.run_sync(_check_alone, home)
    listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: without it, others may bind the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        await listener.bind((doorway.HOST, 0))
        listener.listen(128)
        port, cookie = listener.getsockname()[1], secrets.token_bytes(32)
        content = f"{port} {cookie.hex()}\n"
        put_private(home.cookie, content.encode("ascii"), replace=True)
    except OSError as error:
        listener.close()
        raise ControlError(
            f"cannot listen on {doorway.HOST} by {home.cookie}: {error.strerror or error}", "check the home"
        ) from None
    except BaseException:
        listener.close()
        raise
    try:
        yield Door(listener, cookie)
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            if home.cookie.read_text(encoding="ascii") == content:
                home.cookie.unlink()


def _check_alone(home: Home) -> None:
    try:
        doorway.connect(home.socket, 1.0).close()
    except TimeoutError:
        pass  # whoever has the port now does not speak
    except PylonError:
        return
    else:
        raise AlreadyRunning(f"another process answers for {home.data}", "pylon status")


@contextlib.asynccontextmanager
async def _on_socket(path: Path) -> AsyncIterator[Door]:
    """A listening socket at ``path``, 0600 from the moment that it can be seen.

    It is bound in a private directory beside and then renamed to its place, which also replaces a stale one.
    """
    with short_directory(path.parent) as parent:
        if await _is_served(parent / path.name):
            raise AlreadyRunning(f"another process answers on {path}", "pylon status")
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            private = parent / f".s{secrets.token_hex(4)}"
            try:
                private.mkdir(mode=0o700)
                try:
                    await listener.bind(str(private / "s"))
                    os.chmod(private / "s", 0o600)
                    listener.listen(128)
                    own = os.lstat(private / "s").st_ino
                    os.rename(private / "s", parent / path.name)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        (private / "s").unlink()
                    private.rmdir()
            except OSError as error:
                raise ControlError(f"cannot listen on {path}: {error.strerror or error}", "check the home") from None
        except BaseException:
            listener.close()
            raise
    try:
        yield Door(listener)
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(path).st_ino == own:
                os.unlink(path)


async def _is_served(path: Path) -> bool:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, trio.move_on_after(1):
        try:
            await probe.connect(str(path))
        except OSError:
            return False
        return True
    return True
