"""Where the way back is: what is said of a database that cannot be used, in whichever program finds it so.

The newest backup that this home has written is noted beside its database (``NOTE``), for a database that is damaged
cannot tell. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

NOTE = "last-backup.json"
"""In the directory of the database: ``{"at": Unix seconds, "path": …}`` of the last backup that was written."""
_MAX_NOTE = 8_192


def note(path: str, at: float) -> bytes:
    """What stands in ``NOTE``."""
    return json.dumps({"at": at, "path": path}).encode() + b"\n"


def newest(directory: Path) -> tuple[Path, float] | None:
    """The newest backup that is known of, and when it was taken. It may be on a disk that is not here now."""
    try:
        with (directory / NOTE).open("rb") as file:
            found: Any = json.loads(file.read(_MAX_NOTE))
        return Path(str(found["path"])), float(found["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def restore(database: Path | str) -> str:
    """How to come back from a database that is damaged."""
    known = newest(Path(database).parent)
    if known is None:
        return "stop Pylon and restore a backup: pylon restore --force FILE (none is known of here)"
    path, at = known
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    return f"stop Pylon and restore a backup: pylon restore --force {path} (the newest known, of {when})"
