"""Files that are all there or not there at all, and open to nobody else."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

_MOST_OVERWRITTEN = 65_536

NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
"""For whoever opens a file that may be a pipe by now, and must not wait for its writer. Windows has no such thing."""


def others(mode: int) -> int:
    """What a mode lets others do. On Windows it says nothing: a file there has the rights of its directory."""
    return 0 if os.name == "nt" else mode & 0o077


def write_private(path: Path, content: bytes) -> None:
    """A new file, 0600 before its first byte, on disk when this returns. Raises ``FileExistsError``, ``OSError``.

    Write it beside its place, then link or rename it there: so nobody ever finds half of it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power cut, too. Windows opens no directories, and needs no such thing."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_private(path: Path, content: bytes, *, replace: bool) -> None:
    """Write all of ``path``, or nothing: 0600 before the first byte, on disk before it has its name.

    Without ``replace``, a file that is there stays (``FileExistsError``). What is replaced is a secret, too: where no
    other name holds it, its bytes are overwritten. That helps on a plain disk; a flash drive, a file system that
    copies on write, or a snapshot may keep them.
    """
    draft = path.with_name(f"{draft_prefix(path)}{secrets.token_hex(8)}")
    before = None
    try:
        write_private(draft, content)
        if replace:
            with contextlib.suppress(OSError):
                if os.name != "nt":  # where what is open cannot be replaced
                    before = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | NONBLOCK)
            os.replace(draft, path)
            sync_directory(path.parent)
        else:
            publish(draft, path)
        if before is not None:
            _overwrite(before)
    finally:
        if before is not None:
            os.close(before)
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def publish(draft: Path, path: Path) -> None:
    """Give a finished file its name, and never one that is taken (``FileExistsError``).

    A link does that at once. Where the file system knows none, as on a memory stick, the name is taken first.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(draft, path)
    sync_directory(path.parent)


def draft_prefix(path: Path) -> str:
    """How the names of files begin that were to become ``path``: a crash may leave one, whole or not."""
    return f".{path.name}."


def sweep_drafts(path: Path) -> None:
    """Remove what a crash has left of ``put_private``. Only where nobody else writes ``path`` now."""
    if path.parent.is_dir():
        for entry in list(os.scandir(path.parent)):
            if entry.name.startswith(draft_prefix(path)):
                os.unlink(entry.path)


def _overwrite(descriptor: int) -> None:
    """Zeros over a file that no name leads to any more."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
        os.pwrite(descriptor, bytes(min(status.st_size, _MOST_OVERWRITTEN)), 0)
        os.fsync(descriptor)
