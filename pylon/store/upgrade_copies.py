"""A copy of the database as it was before an upgrade, beside it: ``pylon.db.<version>.<time>``, 0600, the newest few.

``<version>`` is the last migration of the database in it. ``pylon restore FILE`` goes back to one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Collection
from pathlib import Path

from pylon.errors import StoreError
from pylon.files import publish
from pylon.store.copying import copied

KEPT = 3
"""Copies that are kept, the newest."""
_NAME = re.compile(r"\.(?P<version>m\d+_\w+)\.(?P<time>\d{8}T\d{6}Z)(-\d+)?")


def keep(path: str, version: str) -> Path | None:
    """Copy the database at ``path``, whoever holds a transaction in it; ``None``: it is in no file.

    Raises ``StoreError`` where it cannot be: then nothing should be changed.
    """
    database = Path(path)
    if not database.exists():
        return None
    try:
        with copied(database) as (draft, said):
            if said != "ok":
                raise StoreError(
                    f"the copy of {path} before the upgrade is damaged: {said}", "check the disk: pylon doctor"
                )
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            kept = _publish(draft, database, version)
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise StoreError(
            f"the database {path} cannot be copied before the upgrade ({why}); it is as it was",
            f"make room for {database.stat().st_size >> 20:,} MiB beside it, and start again",
        ) from None
    # The one just made is the newest, whatever a clock that was ahead has named the others.
    for old in sorted(copies(database), key=lambda copy: copy == kept)[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return kept


def _publish(draft: Path, database: Path, version: str) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 1
    while True:
        target = database.with_name(f"{database.name}.{version}.{stamp}{'' if number == 1 else f'-{number}'}")
        try:
            publish(draft, target)
            return target
        except FileExistsError:
            number += 1


def copies(database: Path) -> list[Path]:
    """All of them, the oldest first."""
    found = [
        (match["time"], path.name, path)
        for path in database.parent.glob(f"{database.name}.m*")
        if (match := _NAME.fullmatch(path.name.removeprefix(database.name)))
    ]
    return [path for _, _, path in sorted(found)]


def newest(path: str, known: Collection[str]) -> Path | None:
    """The newest copy of a version that is known."""
    for copy in reversed(copies(Path(path))):
        match = _NAME.fullmatch(copy.name.removeprefix(Path(path).name))
        if match is not None and match["version"] in known:
            return copy
    return None
