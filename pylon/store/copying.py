"""A copy of a database as of one moment, whoever writes to it meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pylon.files import draft_prefix

_BUSY_SECONDS = 30.0


@contextlib.contextmanager
def copied(database: Path, check: str = "quick_check") -> Iterator[tuple[Path, str]]:
    """The copy, 0600, whole and in one file beside ``database``, for the block; and what SQLite's ``check`` says of it.

    Raises ``OSError``, ``sqlite3.Error``.
    """
    copy = database.with_name(f"{draft_prefix(database)}{secrets.token_hex(8)}")
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        uri = f"{database.absolute().as_uri()}?mode=rw"
        with (
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            # All pages in one step: a writer meanwhile neither waits nor makes it begin anew.
            source.backup(target, pages=-1)
            # The copy's own journal would be a second file.
            target.execute("PRAGMA journal_mode = DELETE").fetchone()
            said = str(target.execute(f"PRAGMA {check}(1)").fetchone()[0])
        yield copy, said
    finally:
        for path in (copy, copy.with_name(copy.name + "-journal")):
            path.unlink(missing_ok=True)
