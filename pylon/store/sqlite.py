"""SQLite as the store wants it: connections that are opened in one way, and its complaints in our words."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylon.errors import StoreError
from pylon.files import draft_prefix, publish
from pylon.store import remedy
from pylon.store.damage import expect_sound
from pylon.store.schema import migrate

BUSY_SECONDS = 5.0
"""How long another process may hold the database before a write gives up."""


def connect(path: str, durable: bool) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """One to write, that waits for no other process by itself, and one to read; the database is made or upgraded first.

    ``durable``: what is committed is on the disk. Raises ``StoreError``.
    """
    with contextlib.ExitStack() as undo, translated(path):
        expect_sound(path)
        if not os.path.lexists(path):
            _create(Path(path), durable)
        writer = open_connection(path)
        undo.callback(writer.close)
        mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"the database {path} cannot keep a write-ahead log", "put it on a local disk")
        writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        writer.execute(f"PRAGMA fullfsync = {'ON' if durable else 'OFF'}")
        writer.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        migrate(writer, path)
        # From here on the store waits, and lets the loop go on meanwhile.
        writer.execute("PRAGMA busy_timeout = 0")
        reader = open_connection(path)
        undo.callback(reader.close)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        undo.pop_all()
    return writer, reader


def _create(path: Path, durable: bool) -> None:
    """Make a whole database beside ``path``, then give it its name: so one that is empty is never ours.

    Made by us and not by SQLite, so that no other user can read it, whatever the umask.
    """
    draft = path.with_name(f"{draft_prefix(path)}{secrets.token_hex(8)}")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(open_connection(str(draft))) as connection:
            # Before the first table. Pages that are not used any more can be given back without writing all anew.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            migrate(connection, str(path))
        with contextlib.suppress(FileExistsError):  # somebody else was faster: theirs is as good
            publish(draft, path)
    except OSError as error:
        raise StoreError(
            f"the database {path} cannot be opened: {error.strerror}", "check the directory and its permissions"
        ) from error
    finally:
        for name in (draft, draft.with_name(draft.name + "-journal")):
            with contextlib.suppress(FileNotFoundError):
                name.unlink()


def open_connection(path: str) -> sqlite3.Connection:
    """One more to a database that is there. Raises ``sqlite3.Error``."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


# --- errors -------------------------------------------------------------------------------------------------------

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MEANING: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; no paid work is taken meanwhile"),
    sqlite3.SQLITE_BUSY: ("another process holds the database", "stop the other program that writes to it"),
    sqlite3.SQLITE_LOCKED: ("another process holds the database", "stop the other program that writes to it"),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", ""),
    sqlite3.SQLITE_NOTADB: ("the file is no database, or a damaged one", ""),
    sqlite3.SQLITE_READONLY: ("the database is read-only", "check the permissions and the mount of its directory"),
    sqlite3.SQLITE_CANTOPEN: ("the database cannot be opened", "check the directory and its permissions"),
    sqlite3.SQLITE_PERM: ("the database may not be opened", "check the directory and its permissions"),
    sqlite3.SQLITE_IOERR: ("the disk failed", "check the disk, then restart Pylon"),
}


def primary_code(error: BaseException | None) -> int | None:
    """SQLite's result code (https://www.sqlite.org/rescode.html) without what extends it; ``None``: another's error."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def translate(error: Exception, path: str) -> StoreError:
    """SQLite's complaint in our words. SQLite names tables and columns in its texts, never values."""
    if isinstance(error, sqlite3.Error):
        code = primary_code(error)
        said, hint = _MEANING.get(code or -1, ("", ""))
        hint = remedy.restore(path) if code in DAMAGE else hint
        text = f"{path}: {said} ({error})" if said else f"{path}: {error}"
    else:
        text, hint = f"{path}: a value cannot be stored ({type(error).__name__})", ""
    told = StoreError(text, hint)
    told.__cause__ = shown_cause(error)
    return told


TRANSLATED = (sqlite3.Error, UnicodeError, OverflowError)
"""What a statement raises and callers see as ``StoreError``. Statements catch it in place: there are fifty
to a job, and a context manager costs as much as a short statement."""


def shown_cause(error: Exception) -> sqlite3.Error | None:
    """What may be shown as the cause. The texts of the other errors quote the value, which may be a secret."""
    return error if isinstance(error, sqlite3.Error) else None


@contextmanager
def translated(path: str) -> Iterator[None]:
    """What fails inside is a ``StoreError``."""
    try:
        yield
    except TRANSLATED as error:
        raise translate(error, path) from shown_cause(error)
