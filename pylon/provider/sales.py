"""The table of sales: which columns a record has beside itself, to be asked by, and when it needs attention."""

from __future__ import annotations

from pylon.provider.sale import SALE, Sale, SaleState
from pylon.store.aside import Snapshots
from pylon.store.records import RecordTable

LATE_PAYMENT = 86_400.0
"""Seconds after its expiry for which an invoice is asked about at a start: it may have been paid in its last moment."""
_EXPIRY_GRACE = 5.0
"""Seconds after an invoice's expiry before it is given up: a payment may have been under way."""
_UNDELIVERED = 86_400.0
"""Seconds for which relays may take a result, before its price is owed; a late payment's time is added."""


def sale_records(store: Snapshots) -> RecordTable[Sale]:
    """The table of sales."""
    return RecordTable(
        SALE,
        Sale,
        "sales",
        store.vault,
        lambda sale: {
            "customer": sale.customer,
            "model": sale.model,
            "price_msats": sale.price,
            "paid_msats": sale.paid,
            "payment_hash": sale.payment_hash,
            "expires_at": sale.expires_at,
            "held_until": sale.held_until,
            "attempts": sale.attempts,
        },
    )


def due(sale: Sale) -> float | None:
    """When it needs attention by itself, Unix seconds; ``None``: it does not."""
    if sale.state is SaleState.QUOTED and sale.expires_at is not None:
        return sale.expires_at + _EXPIRY_GRACE
    if sale.state is SaleState.HELD:
        return sale.held_until
    if sale.state is SaleState.SERVED:
        return sale.created_at + LATE_PAYMENT + _UNDELIVERED
    return None
