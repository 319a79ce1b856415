"""Whether a database may be opened: looked at before SQLite may change anything of it.

SQLite itself takes an empty file for a new database, ends a write-ahead log at the first frame that does not read, and
writes what it has understood home when it closes. So a database is first looked at without a right to write, and its
log by the file format's own rules (https://sqlite.org/fileformat2.html#the_write_ahead_log).

A log whose end is torn is what a power cut leaves: it was never promised. With ``synchronous=FULL`` a transaction is on
the disk before the next one begins, so one that is followed by frames of a later one was promised. Where the log breaks
off before such a one, it was damaged, and reading on would lose what was committed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from pathlib import Path

from pylon.errors import StoreError
from pylon.store import remedy

CHECKED_BYTES = 32 << 20
"""Databases up to this size are checked whole whenever they are opened: a fifth of a second. Larger ones are checked
by the daemon, while it runs (``pylon.daemon.integrity``)."""

_TITLE = b"SQLite format 3\x00"
_WAL_HEAD, _FRAME_HEAD = 32, 24
_MAGIC = 0x377F0682
_BUSY_SECONDS = 5.0


def expect_sound(path: str | os.PathLike[str], *, check_bytes: int = CHECKED_BYTES) -> None:
    """Raises ``StoreError`` that names the file and the way back, for one that must not be used; changes nothing.

    A path at which nothing is, is sound. ``sqlite3.Error`` is raised where another program keeps us from looking.
    """
    database = Path(path)
    log = database.with_name(database.name + "-wal")
    try:
        with database.open("rb") as file:
            size, title = os.fstat(file.fileno()).st_size, file.read(len(_TITLE))
    except FileNotFoundError:
        if _size(log):
            raise damaged(database, f"it is gone, and its write-ahead log {log.name} is still there") from None
        return
    except OSError:
        return  # whoever opens it says what it is
    if size == 0:
        raise damaged(database, "it is empty")
    if title != _TITLE:
        raise damaged(database, "file is not a database")
    if trouble := log_trouble(log):
        raise damaged(database, trouble)
    if trouble := _trouble(database, whole=size <= check_bytes):
        raise damaged(database, trouble)


def damaged(path: str | os.PathLike[str], said: str) -> StoreError:
    """That a database is damaged, and what to do."""
    return StoreError(f"{os.fspath(path)}: the database is damaged ({said})", remedy.restore(os.fspath(path)))


def check(path: str | os.PathLike[str]) -> str:
    """What is wrong with a database of any size; empty: nothing. For a thread. Raises ``sqlite3.Error``."""
    return _trouble(Path(path), whole=True)


def _trouble(database: Path, *, whole: bool) -> str:
    """By a connection that cannot write, and that writes nothing home when it is closed."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            tables = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
            if not whole or not tables:
                return ""
            said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            return "" if said == "ok" else said.splitlines()[-1][:300]
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return str(error)
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return ""  # a directory in which nothing can be written: whoever opens it says so
        raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# --- the write-ahead log ------------------------------------------------------------------------------------------


def log_trouble(log: Path) -> str:
    """What is wrong with a write-ahead log; empty: nothing, or nothing but a torn end.

    Somebody may be writing it: one that was begun anew meanwhile is no evidence, nor what a second look does not see.
    """
    trouble = ""
    for _ in range(2):
        try:
            with log.open("rb") as file:
                content = file.read()
                file.seek(0)
                if content[:_WAL_HEAD] != file.read(_WAL_HEAD):
                    return ""
        except OSError:
            return ""
        trouble = _log_trouble(content)
        if not trouble:
            break
    return trouble


def _log_trouble(log: bytes) -> str:
    if len(log) <= _WAL_HEAD:
        return ""
    magic, _, page_bytes = struct.unpack(">III", log[:12])
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    frame_bytes = _FRAME_HEAD + page_bytes
    head_is_whole = (
        magic in (_MAGIC, _MAGIC | 1)
        and 512 <= page_bytes <= 65_536
        and page_bytes & (page_bytes - 1) == 0
        and _sums(log[:24], magic, (0, 0)) == struct.unpack(">II", log[24:32])
    )
    if not head_is_whole:
        # The head is written before the first frame, and is on the disk before the first commit returns.
        return "the head of its write-ahead log does not read" if any(log[_WAL_HEAD:]) else ""
    salt, sums, broken, committed = log[16:24], struct.unpack(">II", log[24:32]), 0, False
    for number, start in enumerate(range(_WAL_HEAD, len(log) - frame_bytes + 1, frame_bytes), 1):
        head = log[start : start + _FRAME_HEAD]
        page = log[start + _FRAME_HEAD : start + frame_bytes]
        stored = struct.unpack(">II", head[16:24])
        follows = head[8:16] == salt and _sums(page, magic, _sums(head[:8], magic, sums)) == stored
        sums = stored  # also of a broken one: what comes after it goes on from what it says
        if not follows:
            broken, committed = broken or number, False
        elif broken and committed:
            return f"its write-ahead log breaks off at frame {broken}, before what was committed"
        elif broken:
            committed = head[4:8] != bytes(4)  # the size of the database stands in the last frame of a transaction
    return ""


def _sums(data: bytes, magic: int, before: tuple[int, int]) -> tuple[int, int]:
    """The two running sums over ``data``, whose length is a multiple of 8."""
    first, second = before
    words = struct.unpack(f"{'>' if magic & 1 else '<'}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second
