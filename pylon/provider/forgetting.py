"""Forgets sales that came to nothing before their month is over, where there are more of them than anybody reads.

What is paid is never forgotten (``pylon.daemon.retention``). Of an unpaid sale the wallet was asked after the end of
its invoice, when it expired; of one that ended sooner it is asked before it is forgotten, and where it cannot tell, the
sale stays. With it goes all that its request has left, once that is too old to be taken again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable

import trio

from pylon.clock import Clock
from pylon.errors import brief
from pylon.provider import customers
from pylon.provider.desk import CONSUMER
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, SaleState
from pylon.store.database import Store, Tx

log = logging.getLogger(__name__)

KEEP = 5_000
"""Sales in each of the states below that are kept, the newest ones: ``[retention] unpaid_requests``."""
_EVERY = 300.0
_FIRST = 900.0
"""Seconds after a start: what was paid while we were away is found before anything is forgotten."""
_LATE = 3_600.0
"""Seconds after the end of its invoice, or of itself, for which a sale is kept in any case."""
_BATCH = 200
"""Deleted in one transaction: a bound on how long the loop is kept from everything else."""
_NOTHING = (SaleState.REFUSED, SaleState.EXPIRED, SaleState.CANCELLED, SaleState.FAILED)


Ask = Callable[[str], Awaitable[object]]
"""Asks the wallet about the invoice of a sale, by the sale's id, and claims what was paid. Raises where it cannot."""


async def keep_few(store: Store, clock: Clock, terms: Callable[[], Terms], ask: Ask | None, keep: int = KEEP) -> None:
    """Until cancelled."""
    await trio.sleep(_FIRST)
    while True:
        try:
            await forget(store, clock.now(), terms(), ask, keep)
        except Exception as error:
            log.warning("cannot forget old requests: %s", brief(error))
        await trio.sleep(_EVERY)


async def forget(store: Store, now: float, terms: Terms, ask: Ask | None, keep: int = KEEP) -> int:
    """Once; how many sales were forgotten. Without ``ask`` none that may have been paid."""
    forgotten = 0
    # Its request was dated at most ``max_ahead`` after we took it: by then it is too old to be taken again.
    before = now - max(_LATE, terms.max_age + terms.max_ahead)
    for state in _NOTHING:
        oldest_kept = store.one(
            "SELECT created_at FROM sales WHERE state = ? ORDER BY created_at DESC LIMIT 1 OFFSET ?",
            (state.value, keep),
        )
        while oldest_kept is not None:
            rows = store.read(
                "SELECT id, expires_at IS NOT NULL AND updated_at < expires_at AS unasked FROM sales WHERE state = ?"
                " AND created_at <= ? AND paid_msats = 0 AND updated_at < ? AND COALESCE(expires_at, 0) < ?"
                " ORDER BY created_at LIMIT ?",
                (state.value, oldest_kept["created_at"], before, before, _BATCH),
            )
            ready = [row["id"] for row in rows if not row["unasked"] or await _is_asked(ask, row["id"])]
            forgotten += await store.write(functools.partial(_forget, state=state, ids=ready))
            if len(rows) < _BATCH or not ready:
                break
    await store.write(lambda tx: customers.forget_allowances(tx, now))
    return forgotten


async def _is_asked(ask: Ask | None, sale_id: str) -> bool:
    if ask is None:
        return False
    try:
        await ask(sale_id)
    except Exception as error:
        log.debug("sale %s is kept, for the wallet cannot tell: %s", sale_id[:16], brief(error))
        return False
    return True


def _forget(tx: Tx, *, state: SaleState, ids: list[str]) -> int:
    """Those that are as they were; how many."""
    count = 0
    for sale_id in ids:
        done = tx.execute("DELETE FROM sales WHERE id = ? AND state = ? AND paid_msats = 0", (sale_id, state.value))
        if done.rowcount:
            tx.execute("DELETE FROM transitions WHERE machine = ? AND subject = ?", (SALE.name, sale_id))
            tx.execute("DELETE FROM outbox WHERE subject = ?", (sale_id,))
            tx.execute("DELETE FROM inbox WHERE consumer = ? AND event_id = ?", (CONSUMER, sale_id))
            count += 1
    return count
