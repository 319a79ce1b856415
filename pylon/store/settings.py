"""Small things that this home has to remember: a key, a value, both text and no secrets."""

from __future__ import annotations

from pylon.store.database import Reads, Tx


def get(source: Reads, key: str) -> str | None:
    """The value, or ``None``."""
    row = source.one("SELECT value FROM settings WHERE key = ?", (key,))
    return None if row is None else str(row["value"])


def put(tx: Tx, key: str, value: str) -> None:
    """Set or replace; wakes the listeners of ``settings:<key>``."""
    tx.execute(
        "INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )
    tx.touch(f"settings:{key}")
