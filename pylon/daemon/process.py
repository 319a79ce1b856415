"""The process: one at a time in a home, known by its pid file, ended by its signals.

The lock on ``pylon.lock`` decides who runs; the kernel takes it back from a process that dies. The pid file only tells
who it is: a pid alone, perhaps reused by a stranger, is never believed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import trio

from pylon.errors import AlreadyRunning, ConfigError
from pylon.paths import Home

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def hold_home(home: Home, *, pid_file: bool = False) -> Iterator[None]:
    """Be the one process that works in ``home``, for the block; with ``pid_file``, be found as well.

    Raises ``AlreadyRunning`` that names the other one.
    """
    home.prepare()
    lock = filelock.FileLock(home.lock, mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise already_running(home) from None
    except OSError as error:
        raise ConfigError(f"cannot lock {home.lock}: {error.strerror or error}", "check its owner and mode") from None
    try:
        if pid_file:
            _write_pid(home.pid)
        yield
    finally:
        if pid_file and read_pid(home) == os.getpid():
            home.pid.unlink(missing_ok=True)
        lock.release()


def running_pid(home: Home) -> int | None:
    """The pid of the process that holds ``home``; ``None`` if nobody does, or if it has not said its pid."""
    if not home.lock.exists():
        return None
    probe = filelock.FileLock(home.lock, mode=0o600, thread_local=False)
    try:
        with probe.acquire(blocking=False):
            return None
    except filelock.Timeout:
        return read_pid(home)
    except OSError:
        return None


def read_pid(home: Home) -> int | None:
    """What the pid file says: a number, or nothing. Whether that process runs is another question."""
    try:
        text = home.pid.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() and 0 < len(text) <= 10 and int(text) > 0 else None


def already_running(home: Home) -> AlreadyRunning:
    pid = read_pid(home)
    if pid is None:
        return AlreadyRunning(
            f"another pylon command is at work in {home.data} (it has written no pid file)", "try again when it is done"
        )
    return AlreadyRunning(
        f"a pylon is running in {home.data} already (pid {pid})", f"pylon status shows it; kill {pid} ends it"
    )


def _write_pid(path: Path) -> None:
    """Whole or not at all, over whatever a dead process has left."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    os.replace(temporary, path)


async def until_signal(ready: Callable[[], None] = lambda: None) -> signal.Signals:
    """Wait for SIGTERM or SIGINT, and return which. A second one ends the process at once.

    For the main thread. Until it is called, the signals do what they did before; ``ready`` is called once they do not:
    whoever is told that we are ready may send one.
    """
    with trio.open_signal_receiver(*SIGNALS) as received:
        ready()
        number = await anext(aiter(received))
    # From here on the kernel's own action: whatever hangs in the shutdown cannot hold off the second signal.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    return signal.Signals(number)
