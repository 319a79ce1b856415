"""Nothing from the network is taken twice: one key for each consumer and event.

The key is written in the transaction of what the event causes, so that both happen or neither. The pool may deliver
an event as often as it likes.
"""

from __future__ import annotations

from pylon.store.database import Reads, Tx


def take(tx: Tx, consumer: str, event_id: str, at: float) -> bool:
    """True the first time that ``consumer`` takes this event; then go on. False ever after."""
    done = tx.execute(
        "INSERT INTO inbox (consumer, event_id, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (consumer, event_id, at)
    )
    return done.rowcount == 1


def seen(source: Reads, consumer: str, event_id: str) -> bool:
    """A cheap look before the work; ``take`` decides."""
    row = source.one("SELECT 1 FROM inbox WHERE consumer = ? AND event_id = ?", (consumer, event_id))
    return row is not None


def prune(tx: Tx, before: float) -> int:
    """Forget what was taken before this time; returns how many. Keep more than any subscription looks back."""
    return tx.execute("DELETE FROM inbox WHERE at < ?", (before,)).rowcount
