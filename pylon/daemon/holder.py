"""Who runs a home, by the kernel's word, and signals that reach that process or nobody.

The daemon holds a record lock (fcntl(2), POSIX) on its pid file for as long as it lives. The kernel says who holds it
(``F_GETLK``) and takes it back from a process that dies: so a number in a file, perhaps of a process that has come
since, is never believed. On Linux a pidfd, opened before the lock is asked for once more, is the process itself and
not its number (pidfd_open(2)); elsewhere the lock is asked for directly before each signal.

Only the standard library, for ``pylon status`` pays for it. A record lock is lost as soon as its process closes *any*
descriptor of the file: nothing in the daemon may open the pid file.

Windows has no such locks: there nobody is found here, no process is signalled, and whoever answers the control port is
asked instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOOK_EVERY = 0.02


def lock(descriptor: int) -> bool:
    """Hold the file for this process, until the descriptor is closed. False where the file system knows no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def holder(path: Path) -> int | None:
    """The pid of the process that holds ``path``; ``None``: nobody, or the asking process itself."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _question())
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind, pid = _read(answer)
    # A holder in another pid namespace has no number here.
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


# struct flock: who would stand in the way of a write lock on the whole file?
if sys.platform.startswith("linux"):
    _FLOCK = "hhqqi"  # l_type, l_whence, l_start, l_len, l_pid

    def _question() -> bytes:
        return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

    def _read(answer: bytes) -> tuple[int, int]:
        kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
        return kind, pid
else:
    _FLOCK = "qqihh"  # the BSDs and macOS: l_start, l_len, l_pid, l_type, l_whence

    def _question() -> bytes:
        return struct.pack(_FLOCK, 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)

    def _read(answer: bytes) -> tuple[int, int]:
        _, _, pid, kind, _ = struct.unpack(_FLOCK, answer)
        return kind, pid


class Running:
    """The process that held ``path`` when it was found. Close it, or use it as a context."""

    def __init__(self, path: Path, pid: int, descriptor: int | None) -> None:
        self.path = path
        self.pid = pid
        self._descriptor = descriptor

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def signal(self, number: signal.Signals) -> bool:
        """Send it. False: it has ended. Raises ``PermissionError`` where it is another user's."""
        try:
            if self._descriptor is not None and sys.platform.startswith("linux"):
                signal.pidfd_send_signal(self._descriptor, number)
            elif holder(self.path) == self.pid:
                os.kill(self.pid, number)
            else:
                return False
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Until it has ended; false if it has not within ``seconds``."""
        if self._descriptor is not None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            return bool(poll.poll(max(0.0, seconds) * 1_000))
        deadline = time.monotonic() + seconds
        while holder(self.path) == self.pid:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_EVERY)
        return True


def find(path: Path) -> Running | None:
    """The process that holds ``path``, if one does."""
    pid = holder(path)
    if pid is None:
        return None
    descriptor = None
    if sys.platform.startswith("linux") and hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        except OSError:
            pass  # an old kernel, or a sandbox
    if holder(path) == pid:
        return Running(path, pid, descriptor)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return None
