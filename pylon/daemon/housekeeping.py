"""Forgets what is of no more use, so that strangers' requests do not fill the disk.

What has to do with money stays for ever: paid sales, purchases, claims, intents and the ledger.
"""

from __future__ import annotations

import logging

import trio

from pylon.clock import Clock
from pylon.errors import brief
from pylon.host import triggers
from pylon.host.ticking import TICK
from pylon.provider.sale import SALE, SaleState
from pylon.store import inbox, outbox, wallet_connections
from pylon.store.database import Store, Tx

log = logging.getLogger(__name__)

EVERY = 3_600.0
KEEP_EVENTS = 7 * 86_400.0
"""Seconds after which an event that every relay has answered is forgotten."""
KEEP_INBOX = 30 * 86_400.0
"""The same for what was taken: far longer than any subscription looks back, or an old request is served."""
KEEP_UNPAID = 30 * 86_400.0
"""The same for sales that came to nothing."""
KEEP_QUIET = 14 * 86_400.0
"""The same for ticks in which nothing was thought; what they count for stands in the agent's row."""
_BATCH = 500
"""Sales deleted in one transaction: a bound on how long the loop is kept from everything else."""

_NOTHING = tuple(state.value for state in (SaleState.REFUSED, SaleState.EXPIRED, SaleState.CANCELLED, SaleState.FAILED))


async def keep_house(store: Store, clock: Clock) -> None:
    """Until cancelled."""
    while True:
        try:
            await sweep(store, clock.now())
        except Exception as error:
            log.warning("cannot tidy up: %s", brief(error))
        await trio.sleep(EVERY)


async def sweep(store: Store, now: float) -> None:
    """Once."""

    def events(tx: Tx) -> None:
        outbox.expire(tx, now)
        outbox.prune(tx, now - KEEP_EVENTS)
        inbox.prune(tx, now - KEEP_INBOX)
        triggers.prune(tx, now - KEEP_INBOX)
        wallet_connections.prune(tx, now - KEEP_INBOX)

    await store.write(events)
    while await store.write(lambda tx: _forget_unpaid(tx, now - KEEP_UNPAID)) == _BATCH:
        pass
    while await store.write(lambda tx: _forget_quiet(tx, now - KEEP_QUIET)) == _BATCH:
        pass


def _forget_unpaid(tx: Tx, before: float) -> int:
    rows = tx.all(
        "SELECT id FROM sales WHERE state IN (?, ?, ?, ?) AND created_at < ? AND updated_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM claims WHERE sale_id = sales.id) LIMIT ?",
        (*_NOTHING, before, before, _BATCH),
    )
    for row in rows:
        tx.execute("DELETE FROM transitions WHERE machine = ? AND subject = ?", (SALE.name, row["id"]))
        tx.execute("DELETE FROM sales WHERE id = ?", (row["id"],))
    return len(rows)


def _forget_quiet(tx: Tx, before: float) -> int:
    rows = tx.all("SELECT id FROM ticks WHERE state = 'quiet' AND created_at < ? LIMIT ?", (before, _BATCH))
    for row in rows:
        tx.execute("DELETE FROM transitions WHERE machine = ? AND subject = ?", (TICK.name, row["id"]))
        tx.execute("DELETE FROM ticks WHERE id = ?", (row["id"],))
    return len(rows)
