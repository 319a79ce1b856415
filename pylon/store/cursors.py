"""How far a subscription has been read: the ``since`` of its filter after a restart."""

from __future__ import annotations

from pylon.store.database import Reads, Tx

_LARGEST = 2**62


def since(source: Reads, name: str, overlap: int) -> int | None:
    """Where to resume: ``overlap`` seconds before the newest event that was taken; ``None`` if none ever was."""
    row = source.one("SELECT created_at FROM cursors WHERE name = ?", (name,))
    return None if row is None else max(0, int(row["created_at"]) - overlap)


def advance(tx: Tx, name: str, created_at: int) -> None:
    """Note an event that was taken. The cursor never goes back, and never beyond now.

    An event may claim any time; one from the far future must not make us skip all that comes before it.
    """
    reached = min(created_at, int(tx.clock.now()), _LARGEST)
    tx.execute(
        "INSERT INTO cursors (name, created_at) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET created_at = MAX(created_at, excluded.created_at)",
        (name, max(reached, 0)),
    )
