"""The table of invoices that LNURL-pay has handed out, as ``m004_zaps`` makes it.

The conventions are those of ``pylon.store.schema``. A row is committed before its invoice is handed out; what the
invoice, the zap request and the comment say is sealed.
"""

from __future__ import annotations

ZAPS = (
    # `request` is the zap request (NIP-57) as it came; NULL: a payment that is no zap. `receipt_id` is the receipt's.
    """
    CREATE TABLE zap_invoices (
        payment_hash TEXT PRIMARY KEY, agent TEXT NOT NULL, amount_msats INTEGER NOT NULL CHECK (amount_msats > 0),
        invoice BLOB NOT NULL, request BLOB, comment BLOB, created_at REAL NOT NULL, expires_at REAL NOT NULL,
        paid_at REAL, receipt_id TEXT, CHECK (receipt_id IS NULL OR (request IS NOT NULL AND paid_at IS NOT NULL))
    ) STRICT
    """,
    "CREATE INDEX zap_invoices_unpaid ON zap_invoices (expires_at, agent) WHERE paid_at IS NULL",
)
