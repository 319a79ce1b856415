"""Which zap invoices pay for which sale, as ``m010_sale_zaps`` makes it.

The conventions are those of ``pylon.store.schema``. A row is written with that of ``zap_invoices``, before the invoice
is handed out: so what comes in for a sale is never taken for a gift.
"""

from __future__ import annotations

SALE_ZAPS = (
    """
    CREATE TABLE sale_zaps (
        payment_hash TEXT PRIMARY KEY, sale_id TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX sale_zaps_expires ON sale_zaps (expires_at)",
    "CREATE INDEX claims_hash ON claims (payment_hash)",
)
