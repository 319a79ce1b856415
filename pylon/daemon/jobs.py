"""One job of this machine by its id, and the end of one that is no longer wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import trio

from pylon.compute.buyer import Buyer
from pylon.compute.purchase import Purchase, PurchaseEffect, PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.daemon.control import Notify
from pylon.errors import AlreadyPaid, MarketError, NotFound, UsageError
from pylon.money import format_msat
from pylon.store.database import Store

CANCELLED = "cancelled by its owner"
_TELL_SECONDS = 5.0
"""How long a command without a daemon waits for a relay to take the cancellation; a daemon sends it later."""
_TOLD = f"purchase.{PurchaseEffect.PUBLISH_CANCELLATION.value}"


BEGINS = "{0} >= ?1 AND {0} < ?1 || 'g'"
"""As LIKE, for hex, by the index."""


def hex_prefix(value: object) -> str:
    """The beginning of an id, in lower case. Raises ``UsageError``."""
    if not isinstance(value, str):
        raise UsageError("id must be a text")
    wanted = value.lower()
    if len(wanted) < 4 or not set(wanted) <= set("0123456789abcdef"):
        raise UsageError(f"{wanted[:80]!r} is no job id", "an id is hex; its first 4 digits or more will do")
    return wanted


def find_purchase(store: Store, value: object) -> Purchase:
    """A purchase by its id, its request's id, or the beginning of either. Raises ``NotFound``, ``UsageError``."""
    wanted = hex_prefix(value)
    rows = store.read(
        f"SELECT id FROM purchases WHERE {BEGINS.format('id')} UNION SELECT purchase_id FROM purchase_requests"
        f" WHERE {BEGINS.format('request_id')} LIMIT 3",
        (wanted,),
    )
    if len(rows) > 1:
        raise NotFound(f"more than one job has an id that begins with {wanted}", "give more digits of it")
    if not rows:
        raise NotFound(f"no job has an id that begins with {wanted}", "pylon job list")
    record = purchase_records(store).load(store, rows[0]["id"])
    assert record is not None, "nothing deletes a purchase"
    return record


@attrs.frozen
class Cancelling:
    """The verb ``job.cancel``."""

    store: Store
    buyer: Buyer | None

    async def cancel(self, params: Mapping[str, Any], notify: Notify) -> Purchase:
        """Give up a job that is not being paid yet; one that has failed already stays as it is.

        ``wait``: until a relay has taken the cancellation, for some seconds. Raises ``AlreadyPaid`` where money is on
        its way or gone, ``MarketError`` for a job that was answered for nothing.
        """
        record = find_purchase(self.store, params.get("id"))
        if record.state is not PurchaseState.FAILED:
            if self.buyer is None:
                raise UsageError("this daemon does not buy", "start it with -m host or -m both")
            await self.buyer.give_up(record.id, CANCELLED)
            record = find_purchase(self.store, record.id)
        _check_over(record)
        if params.get("wait") is True:
            with trio.move_on_after(_TELL_SECONDS):
                await self._told(record.id)
        return record

    async def _told(self, subject: str) -> None:
        with self.store.listen("delivered") as changed:
            while self._untold(subject):
                await changed.receive()

    def _untold(self, subject: str) -> bool:
        """Whether the cancellation waits for all of its relays."""
        row = self.store.one(
            "SELECT COUNT(*) AS n, SUM(d.state = 'pending') AS waiting FROM outbox o"
            " JOIN deliveries d ON d.event_id = o.event_id WHERE o.subject = ? AND o.effect = ?",
            (subject, _TOLD),
        )
        return row is not None and row["n"] > 0 and row["waiting"] == row["n"]


def _check_over(record: Purchase) -> None:
    """What can be said of a job that is not given up."""
    ident, hint = record.id[:16], f"pylon job status {record.id[:16]}"
    if record.state is PurchaseState.FAILED:
        return
    if record.state is PurchaseState.PAYING:
        raise AlreadyPaid(f"job {ident} is being paid, and cannot be cancelled", hint)
    if record.paid:
        raise AlreadyPaid(f"job {ident} was paid with {format_msat(record.paid)}, and cannot be cancelled", hint)
    raise MarketError(f"job {ident} is {record.state.value}, and cannot be cancelled", hint)
