"""One wallet seed runs once on one machine.

A seed that two daemons run pays twice and believes neither balance, and epochs on relays tell it only later. So each
daemon of a user holds a lock per wallet: one byte of one file that all of them share, at an offset drawn from a hash of
the wallet's public id. Ten thousand wallets need one descriptor, and the kernel takes the locks of a process back when
it ends, however it ends.

Rules
-----
1. Two processes exclude each other. Within one process, all ``SeedLocks`` on one file share: whoever asks has the
   lock, and the last to release it lets it go. A process knows itself what it runs; and a simulation with an old home
   and a new one is not two machines.
2. POSIX record locks belong to the process, and all of them fall when it closes *any* descriptor of the file. So a
   file is opened once in a process, known by device and inode, whatever its name; nothing else may open it.
3. A forked child has none of its parent's locks. A ``SeedLocks`` that comes along by a fork refuses to work.
4. Who cleans the user's cache may delete the file. Then the next ``acquire`` of each process takes what it holds over
   to the new file. In between the two do not see each other; the epoch in the agents' state is what remains.

Where there is no ``fcntl`` (Windows), each wallet has a file of its own beside ``path``, locked by ``filelock``: the
same rules, but a descriptor per wallet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import filelock

from pylon.errors import ConfigError
from pylon.inference.models import models_directory

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None  # type: ignore[assignment]

FILE_NAME = "seeds.lock"
_ELSEWHERE = "set PYLON_LOCKS to a directory of your own on a local disk"
_OFFSET_BITS = 62


def locks_path(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The file in which the daemons of a user meet: in ``PYLON_LOCKS``, a directory, else in the user's cache."""
    if chosen := environ.get("PYLON_LOCKS"):
        return Path(os.path.abspath(os.path.expanduser(chosen))) / FILE_NAME
    others = {name: value for name, value in environ.items() if name != "PYLON_MODELS"}
    return models_directory(others, platform).with_name("locks") / FILE_NAME


def offset_of(wallet_id: str) -> int:
    """The byte of the file that stands for a wallet: below 2^62, so that every ``off_t`` of 64 bits holds it."""
    digest = hashlib.sha256(b"pylon wallet seed:" + wallet_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _OFFSET_BITS)


class SeedLocks:
    """The locks of one home. ``path`` is the file, by default ``locks_path()``; its directory is made (0700).

    Raises ``ConfigError`` where the file cannot be made or is another user's. Works on one machine, in one thread or
    in several; never waits.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._pid = os.getpid()
        self._held: set[str] = set()
        with _guard:
            self._shared: _Shared | None = _Shared.at(Path(os.path.abspath(path if path is not None else locks_path())))
            self._shared.users += 1

    def __enter__(self) -> SeedLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def acquire(self, wallet_id: str) -> bool:
        """Whether the wallet is this process's to run now. Asking again for what is held changes nothing.

        Raises ``ConfigError`` where the system cannot lock at all.
        """
        with _guard:
            shared = self._working()
            if wallet_id not in self._held:
                if not shared.acquire(wallet_id):
                    return False
                self._held.add(wallet_id)
            return True

    def release(self, wallet_id: str) -> None:
        """Let the wallet go; nothing where it is not held."""
        with _guard:
            shared = self._working()
            if wallet_id in self._held:
                self._held.discard(wallet_id)
                shared.release(wallet_id)

    def close(self) -> None:
        """Let everything go. May be called twice."""
        with _guard:
            shared, self._shared = self._shared, None
            if shared is None or self._pid != os.getpid():
                return
            shared.users -= 1
            if not shared.users:
                shared.close()  # and all fall at once
                return
            for wallet_id in self._held:
                shared.release(wallet_id)

    def _working(self) -> _Shared:
        if self._pid != os.getpid():
            raise RuntimeError("these locks belong to the process that this one was forked from")
        if self._shared is None:
            raise RuntimeError("these locks are closed")
        return self._shared


# --- what all of a process share --------------------------------------------------------------------------------------

_guard = threading.Lock()
_open: dict[object, _Shared] = {}
"""By what a path leads to, not by its name."""


class _Shared:
    """One file of locks in this process, and how many of its ``SeedLocks`` hold each wallet."""

    def __init__(self, locker: _Locker) -> None:
        self.users = 0
        self._locker = locker
        self._holders: dict[str, int] = {}

    @classmethod
    def at(cls, path: Path) -> _Shared:
        try:
            _prepare(path.parent, path.name)
            known = _open.get(_Bytes.identity_of(path) if _fcntl else path.resolve())
            if known is not None:
                return known
            shared = cls(_Bytes(path) if _fcntl else _Files(path))
        except OSError as error:
            raise _cannot(path, error) from None
        _open[shared._locker.identity] = shared
        return shared

    def acquire(self, wallet_id: str) -> bool:
        self._follow()
        if wallet_id not in self._holders and not self._locker.lock(wallet_id):
            return False
        self._holders[wallet_id] = self._holders.get(wallet_id, 0) + 1
        return True

    def release(self, wallet_id: str) -> None:
        self._holders[wallet_id] -= 1
        if not self._holders[wallet_id]:
            del self._holders[wallet_id]
            self._locker.unlock(wallet_id)

    def close(self) -> None:
        del _open[self._locker.identity]
        self._locker.close()

    def _follow(self) -> None:
        """Take what is held over to the file that is at the path now, if ours was deleted (rule 4)."""
        path, old = self._locker.path, self._locker
        if not isinstance(old, _Bytes) or _Bytes.identity_of(path) in (old.identity, *_open):
            return
        try:
            _prepare(path.parent, path.name)
            new = _Bytes(path)
        except OSError as error:
            raise _cannot(path, error) from None
        for wallet_id in self._holders:
            with contextlib.suppress(ConfigError):
                new.lock(wallet_id)  # where somebody was faster, both run it: nothing here can end that
        del _open[old.identity]
        _open[new.identity] = self
        self._locker = new
        old.close()


class _Locker(Protocol):
    path: Path
    identity: object

    def lock(self, wallet_id: str) -> bool: ...

    def unlock(self, wallet_id: str) -> None: ...

    def close(self) -> None: ...


class _Bytes:
    """POSIX record locks on bytes of one file. What is locked need not exist: the file stays empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A name that another user has put here leads nowhere; without O_NONBLOCK a pipe would keep us waiting.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        status = os.fstat(self._descriptor)
        self.identity: object = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            self.close()
            raise ConfigError(f"{path} is not a file of this user's", _ELSEWHERE)
        os.fchmod(self._descriptor, 0o600)

    @staticmethod
    def identity_of(path: Path) -> object:
        """Of the file there, without opening it; ``None`` where there is none."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def lock(self, wallet_id: str) -> bool:
        try:
            _fcntl.lockf(self._descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB, 1, offset_of(wallet_id))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise _cannot(self.path, error) from None
        return True

    def unlock(self, wallet_id: str) -> None:
        _fcntl.lockf(self._descriptor, _fcntl.LOCK_UN, 1, offset_of(wallet_id))

    def close(self) -> None:
        os.close(self._descriptor)


class _Files:
    """A file per wallet, in a directory beside ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: object = path.resolve()
        self._directory = path.with_name(f"{path.name}.d")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._locks: dict[str, filelock.BaseFileLock] = {}

    def lock(self, wallet_id: str) -> bool:
        name = f"{offset_of(wallet_id):016x}"
        lock = filelock.FileLock(self._directory / name, mode=0o600, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        except OSError as error:
            raise _cannot(self.path, error) from None
        self._locks[wallet_id] = lock
        return True

    def unlock(self, wallet_id: str) -> None:
        self._locks.pop(wallet_id).release()

    def close(self) -> None:
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()


def _prepare(directory: Path, name: str) -> None:
    """Have the directory, closed to others: one that is new, or that holds nothing but locks."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        # Somebody's own directory full of other things keeps its mode: the file in it is closed anyway.
        if directory.stat().st_mode & 0o077 and set(os.listdir(directory)) <= {name, f"{name}.d"}:
            directory.chmod(0o700)


def _cannot(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot lock in {path}: {error.strerror or error}", _ELSEWHERE)


def _forget_parent() -> None:
    """In a forked child: the parent's locks are not ours, and closing our copies of its descriptors harms none."""
    global _guard
    _guard = threading.Lock()  # a thread of the parent may have held it
    for shared in _open.values():
        if isinstance(shared._locker, _Bytes):
            with contextlib.suppress(OSError):
                shared._locker.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
