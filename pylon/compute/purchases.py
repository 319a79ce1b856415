"""The table of purchases: which columns a record has beside itself, to be asked by."""

from __future__ import annotations

from pylon.compute.purchase import PURCHASE, Purchase, PurchaseState
from pylon.store.aside import Snapshots
from pylon.store.records import RecordTable

HOLD_GRACE = 60.0
"""Seconds for which a provider may hold a payment beyond the time that it named: clocks and wallets differ."""


def purchase_records(store: Snapshots) -> RecordTable[Purchase]:
    """The table of purchases."""
    return RecordTable(
        PURCHASE,
        Purchase,
        "purchases",
        store.vault,
        lambda record: {
            "provider": record.provider,
            "request_id": record.request_id,
            "payment_hash": record.payment_hash,
            "paid_msats": record.paid,
            "fee_msats": record.fee,
            "deadline": due(record),
            "owner": record.owner,
            "credit_msats": record.credit,
            "credit_used_msats": record.credit_used,
        },
    )


def due(record: Purchase) -> float | None:
    """When it needs attention by itself, Unix seconds; ``None``: it does not."""
    match record.state:
        case PurchaseState.REQUESTED | PurchaseState.COLLECTING:
            return record.quote_by
        case PurchaseState.PAYING if record.hold_until is not None and not record.hold_overdue:
            return record.hold_until + HOLD_GRACE
        case PurchaseState.PAID:
            return record.answer_by
        case _:
            return None
