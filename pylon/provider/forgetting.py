"""Forgets sales that came to nothing before their month is over, where there are more of them than anybody reads.

What is paid is never forgotten (``pylon.daemon.housekeeping``). An unpaid sale stays until its invoice has been invalid
for so long that a payment of it would have been heard of; a request stays known until it is too old to be taken again.
"""

from __future__ import annotations

import functools
import logging

import trio

from pylon.clock import Clock
from pylon.errors import brief
from pylon.provider import customers
from pylon.provider.desk import CONSUMER
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, SaleState
from pylon.provider.sales import LATE_PAYMENT
from pylon.store.database import Store, Tx

log = logging.getLogger(__name__)

KEEP = 20_000
"""Sales in each of the states below that are kept, the newest ones."""
_EVERY = 300.0
_FIRST = 900.0
"""Seconds after a start: what was paid while we were away is found before anything is forgotten."""
_BATCH = 200
"""Deleted in one transaction: a bound on how long the loop is kept from everything else."""
_NOTHING = (SaleState.REFUSED, SaleState.EXPIRED, SaleState.CANCELLED, SaleState.FAILED)


async def keep_few(store: Store, clock: Clock, terms: Terms, keep: int = KEEP) -> None:
    """Until cancelled."""
    await trio.sleep(_FIRST)
    while True:
        try:
            await forget(store, clock.now(), terms, keep)
        except Exception as error:
            log.warning("cannot forget old requests: %s", brief(error))
        await trio.sleep(_EVERY)


async def forget(store: Store, now: float, terms: Terms, keep: int = KEEP) -> int:
    """Once; how many sales were forgotten."""
    forgotten = 0
    for state in _NOTHING:
        oldest_kept = store.one(
            "SELECT created_at FROM sales WHERE state = ? ORDER BY created_at DESC LIMIT 1 OFFSET ?",
            (state.value, keep),
        )
        while oldest_kept is not None:
            before = float(oldest_kept["created_at"])
            done = await store.write(functools.partial(_forget, state=state, before=before, now=now))
            forgotten += done
            if done < _BATCH:
                break
    # A request is of no age any more to be taken: its date was at most ``max_ahead`` after we took it.
    too_old = now - 2 * (terms.max_age + terms.max_ahead)

    def others(tx: Tx) -> int:
        customers.forget_allowances(tx, now)
        return tx.execute(
            "DELETE FROM inbox WHERE (consumer, event_id) IN (SELECT consumer, event_id FROM inbox WHERE at < ?"
            " AND consumer = ? AND NOT EXISTS (SELECT 1 FROM sales WHERE id = event_id) ORDER BY at LIMIT ?)",
            (too_old, CONSUMER, _BATCH),
        ).rowcount

    while await store.write(others) == _BATCH:
        pass
    return forgotten


def _forget(tx: Tx, *, state: SaleState, before: float, now: float) -> int:
    rows = tx.all(
        "SELECT id FROM sales WHERE state = ? AND created_at <= ? AND paid_msats = 0 AND updated_at < ?"
        " AND COALESCE(expires_at, 0) < ? ORDER BY created_at LIMIT ?",
        (state.value, before, now - LATE_PAYMENT, now - LATE_PAYMENT, _BATCH),
    )
    for row in rows:
        tx.execute("DELETE FROM transitions WHERE machine = ? AND subject = ?", (SALE.name, row["id"]))
        tx.execute("DELETE FROM outbox WHERE subject = ?", (row["id"],))
        tx.execute("DELETE FROM sales WHERE id = ?", (row["id"],))
    return len(rows)
