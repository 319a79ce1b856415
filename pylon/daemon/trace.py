"""The verb ``trace``: one job's whole life on this machine, as its buyer, as its seller, or as both.

Told are states, times, money, ids and relays, and neither question nor answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from pylon.compute.purchase import PURCHASE, Purchase
from pylon.compute.purchases import purchase_records
from pylon.daemon.control import Notify
from pylon.daemon.jobs import BEGINS, hex_prefix
from pylon.errors import NotFound
from pylon.provider.sale import SALE, Sale
from pylon.provider.sales import sale_records
from pylon.store.database import Store
from pylon.store.records import RecordTable

R = TypeVar("R", bound=Purchase | Sale)

RESULTS_LOOKED_AT = 1_000
"""A result's id stands in sealed records only: the latest purchases that are opened to find it."""

_SUBJECTS = (
    "SELECT 'purchase' AS machine, id FROM purchases WHERE " + BEGINS.format("id") + " UNION"
    " SELECT 'purchase', purchase_id FROM purchase_requests WHERE " + BEGINS.format("request_id") + " UNION"
    " SELECT 'sale', id FROM sales WHERE " + BEGINS.format("id") + " UNION"
    " SELECT substr(effect, 1, instr(effect, '.') - 1), subject FROM outbox WHERE "
    + BEGINS.format("event_id")
    + " AND (effect LIKE 'purchase.%' OR effect LIKE 'sale.%') LIMIT 100"
)


@attrs.frozen
class Tracing:
    """See the module."""

    store: Store

    async def trace(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """``id``: of a job, a request or an event of it, or how that begins. Raises ``NotFound``, ``UsageError``."""
        wanted = hex_prefix(params.get("id"))
        with self.store.snapshot():
            purchase, sales = self._job(wanted)
            told = [] if purchase is None else [self._purchase(purchase)]
            return {"id": purchase or sales[0], "records": [*told, *map(self._sale, sales)]}

    def _job(self, wanted: str) -> tuple[str | None, list[str]]:
        """The purchase, and the sales of its requests: a home sells to its own agents, too."""
        rows = self.store.read(_SUBJECTS, (wanted,))
        purchases = {row["id"] for row in rows if row["machine"] == PURCHASE.name}
        sales = {row["id"] for row in rows if row["machine"] == SALE.name}
        if not rows:
            purchases = self._by_result(wanted)
        for sale in list(sales):
            bought = self.store.one("SELECT purchase_id FROM purchase_requests WHERE request_id = ?", (sale,))
            if bought is not None:
                purchases.add(bought["purchase_id"])
                sales.discard(sale)
        if len(purchases) + len(sales) > 1:
            raise NotFound(f"more than one job has an id that begins with {wanted}", "give more digits of it")
        if not purchases and not sales:
            raise NotFound(f"no job has an id that begins with {wanted}", "pylon job list")
        if not purchases:
            return None, list(sales)
        (purchase,) = purchases
        found = self.store.read(
            "SELECT s.id FROM purchase_requests r JOIN sales s ON s.id = r.request_id WHERE r.purchase_id = ?"
            " ORDER BY s.created_at",
            (purchase,),
        )
        return purchase, [row["id"] for row in found]

    def _by_result(self, wanted: str) -> set[str]:
        latest = purchase_records(self.store).where(
            self.store, "state = 'answered' ORDER BY created_at DESC LIMIT ?", (RESULTS_LOOKED_AT,)
        )
        return {record.id for record in latest if (record.result_id or "").startswith(wanted)}

    def _purchase(self, ident: str) -> dict[str, Any]:
        record = self._record(purchase_records(self.store), ident, "job")
        return {
            **_head(PURCHASE.name, record),
            "bid_msats": record.bid,
            "invoice_msats": record.quoted,
            "paid_msats": record.paid,
            "fee_msats": record.fee,
            "credit_msats": record.credit,
            "credit_used_msats": record.credit_used,
            "hold_until": record.hold_until,
            "result": record.result_id,
            "requests": self._rows(
                "SELECT request_id, provider, created_at FROM purchase_requests WHERE purchase_id = ?"
                " ORDER BY created_at",
                ident,
            ),
            "payments": self._rows(
                "SELECT payment_hash, state, amount_msats, max_fee_msats, fee_msats, error, created_at, updated_at"
                " FROM intents WHERE cause = ? ORDER BY created_at",
                ident,
            ),
            **self._life(PURCHASE.name, ident, record.created_at),
        }

    def _sale(self, ident: str) -> dict[str, Any]:
        record = self._record(sale_records(self.store), ident, "sale")
        return {
            **_head(SALE.name, record),
            "customer": record.customer,
            "attempts": record.attempts,
            "price_msats": record.price,
            "paid_msats": record.paid,
            "earned_msats": record.earned,
            "owed_msats": record.owed,
            "credit_used_msats": record.credit_used,
            "held_msats": record.held,
            "held_until": record.held_until,
            "on_trust": record.on_trust,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "payment_hash": record.payment_hash,
            "payments": self._rows(
                "SELECT payment_hash, amount_msats, at FROM claims WHERE sale_id = ? ORDER BY at", ident
            ),
            **self._life(SALE.name, ident, record.created_at),
        }

    def _record(self, records: RecordTable[R], ident: str, what: str) -> R:
        record = records.load(self.store, ident)
        if record is None:
            raise NotFound(f"{what} {ident[:16]} has no record any more", "pylon job list")
        return record

    def _life(self, machine: str, subject: str, begun: float) -> dict[str, Any]:
        """``ms`` of a step: since the step before, of the first since the beginning; of a relay: since the queueing."""
        history = self._rows(
            "SELECT at, from_state, input, to_state FROM transitions WHERE subject = ? AND machine = ? ORDER BY id",
            subject,
            machine,
        )
        times = [begun, *(step["at"] for step in history)]
        for step, before in zip(history, times, strict=False):
            step["ms"] = _milliseconds(before, step["at"])
        events = self._rows(
            "SELECT event_id, kind, effect, queued_at FROM outbox WHERE subject = ? AND effect LIKE ? ORDER BY id",
            subject,
            f"{machine}.%",
        )
        for event in events:
            event["relays"] = self._rows(
                "SELECT relay, state, attempts, message, done_at FROM deliveries WHERE event_id = ? ORDER BY relay",
                event["event_id"],
            )
            for relay in event["relays"]:
                relay["ms"] = None if relay["done_at"] is None else _milliseconds(event["queued_at"], relay["done_at"])
        return {"history": history, "ms": _milliseconds(begun, times[-1]), "events": events}

    def _rows(self, sql: str, *params: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self.store.read(sql, params)]


def _head(machine: str, record: Purchase | Sale) -> dict[str, Any]:
    """What is told of either side of a job."""
    return {
        "machine": machine,
        "id": record.id,
        "state": record.state.value,
        "reason": record.reason,
        "created_at": record.created_at,
        "model": record.model,
    }


def _milliseconds(start: float, end: float) -> int:
    """A wall clock may go back; no step takes less than no time."""
    return max(0, round((end - start) * 1_000))
