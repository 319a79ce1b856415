"""The table of purchases: which columns a record has beside itself, to be asked by."""

from __future__ import annotations

from pylon.compute.purchase import PURCHASE, Purchase, PurchaseState
from pylon.store.database import Store
from pylon.store.records import RecordTable


def purchase_records(store: Store) -> RecordTable[Purchase]:
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
        },
    )


def due(record: Purchase) -> float | None:
    """When it needs attention by itself, Unix seconds; ``None``: it does not."""
    if record.state is PurchaseState.REQUESTED:
        return record.quote_by
    return record.answer_by if record.state is PurchaseState.PAID else None
