"""Nothing from the network is taken twice: one key for each consumer and event.

The key is written in the transaction of what the event causes, so that both happen or neither. The pool may deliver
an event as often as it likes.

An event that breaks its consumer is put aside after a few tries: else it would come again at each restart, and break
it each time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from pylon.errors import StoreError, brief
from pylon.store.database import Reads, Store, Tx

log = logging.getLogger(__name__)

TRIES = 3
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 60.0


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


def prune(tx: Tx, before: float, limit: int = -1) -> int:
    """Forget what was taken before this time, at most ``limit`` of it; returns how many.

    Keep more than any subscription looks back.
    """
    return tx.execute(
        "DELETE FROM inbox WHERE (consumer, event_id) IN (SELECT consumer, event_id FROM inbox WHERE at < ? LIMIT ?)",
        (before, limit),
    ).rowcount


async def deliver(store: Store, consumer: str, event_id: str, handle: Callable[[], Awaitable[None]]) -> None:
    """Have ``handle`` take an event, whatever that raises.

    After ``TRIES`` failures the event is noted as taken, and goes. Where not even that can be written, it is not the
    event's fault: a full disk, say. Then nothing else is taken either, until this event was.
    """
    tries, wait = 0, _FIRST_WAIT
    while True:
        try:
            await handle()
            return
        except Exception as error:
            tries += 1
            log.error("%s cannot take event %s (try %d): %s", consumer, event_id[:16], tries, brief(error))
        if tries >= TRIES:
            try:
                await store.write(lambda tx: take(tx, consumer, event_id, tx.clock.now()))
                log.error("%s has put event %s aside", consumer, event_id[:16])
                return
            except StoreError as error:
                log.error("%s waits for the store: %s", consumer, error.message)
        await trio.sleep(wait)
        wait = min(wait * 4, _LONGEST_WAIT)
