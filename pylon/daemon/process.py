"""The process: one at a time in a home, known by its pid file, ended by a signal or by who asks it to.

The lock on ``pylon.lock`` decides who runs; the kernel takes it back from a process that dies. The pid file tells who
it is, by the lock on it (``holder``): a number in a file, perhaps reused by a stranger, is never believed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import filelock
import trio

from pylon.daemon import holder
from pylon.errors import AlreadyRunning, ConfigError
from pylon.paths import Home

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Windows has none."""


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
    descriptor = None
    try:
        if pid_file:
            descriptor = _write_pid(home.pid)
        yield
    finally:
        if pid_file and read_pid(home) == os.getpid():
            with contextlib.suppress(OSError):
                home.pid.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
        lock.release()


def read_pid(home: Home) -> int | None:
    """What the pid file says: a number, or nothing. Whether that process runs is another question."""
    try:
        text = home.pid.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() and 0 < len(text) <= 10 and int(text) > 0 else None


def already_running(home: Home) -> AlreadyRunning:
    pid = holder.holder(home.pid)
    if pid is None:
        return AlreadyRunning(f"another pylon command is at work in {home.data}", "try again when it is done")
    return AlreadyRunning(
        f"a pylon is running in {home.data} already (pid {pid})", "pylon status shows it; pylon stop ends it"
    )


def _write_pid(path: Path) -> int | None:
    """Whole or not at all, over whatever a dead process has left. Returns the descriptor whose lock is the proof."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor: int | None
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
            if not holder.lock(descriptor) and os.name == "nt":
                os.close(descriptor)  # Windows renames, and later removes, no file that is open
                descriptor = None
            os.replace(temporary, path)
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}", "is the disk full?") from None
    return descriptor


async def until_signal(ready: Callable[[], None] = lambda: None) -> signal.Signals:
    """Wait for SIGTERM or SIGINT, and return which. A second one ends the process at once.

    For the main thread. Until it is called, the signals do what they did before; ``ready`` is called once they do not:
    whoever is told that we are ready may send one.
    """
    with trio.open_signal_receiver(*SIGNALS) as received:
        ready()
        number = await anext(aiter(received))
    _end_at_the_next()
    return signal.Signals(number)


def _end_at_the_next() -> None:
    """From here on the kernel's own action: whatever hangs in the shutdown cannot hold off the second signal."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)


@attrs.define(eq=False)
class Life:
    """A process from its start to its end, which a signal brings about, or somebody who asks for it.

    All that is started runs in ``scope``: an end that is asked for before it is ``ready`` cancels that. From then on
    ``over`` returns instead, and what has begun can be brought to a good end. For the main thread.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _ready: bool = False
    _asked: trio.Event = attrs.field(factory=trio.Event)
    _on_terminal: bool = attrs.field(factory=lambda: _sees_terminal())

    async def watch(
        self, hangup: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """End it with SIGTERM, SIGINT, or the SIGHUP of a terminal that is gone. ``hangup`` is done at any other one.

        Reports started once the signals no longer do what they did before.
        """
        with trio.open_signal_receiver(*SIGNALS, *([_HANGUP] if _HANGUP else [])) as received:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for number in received:
                    if number != _HANGUP or (self._on_terminal and not _sees_terminal()):
                        break
                    nursery.start_soon(hangup)  # whatever it waits for, the next signal is heard
                nursery.cancel_scope.cancel()
                self.end()
        if _HANGUP:
            signal.signal(_HANGUP, signal.SIG_IGN)
        _end_at_the_next()

    def end(self) -> None:
        """Begin the end, once. Any signal that comes now ends the process at once."""
        _end_at_the_next()
        self._asked.set()
        if not self._ready:
            self.scope.cancel()

    def ready(self) -> None:
        self._ready = True

    async def over(self) -> None:
        """Until the end is asked for."""
        await self._asked.wait()


def _sees_terminal() -> bool:
    """Whether standard input or error is a terminal, and is still there."""
    return any(os.isatty(descriptor) for descriptor in (0, 2))
