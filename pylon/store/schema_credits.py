"""What is owed to each customer, and what is held for sales, as ``m008_credits`` makes it.

The conventions are those of ``pylon.store.schema``. The entries of the ledger tell the same (``credits.derived``), and
the audit compares; a row is here to be read, and bounded, at every request.
"""

from __future__ import annotations

CREDITS = (
    # Of a sale that is paid on delivery: when what is held for it is answered at the latest.
    "ALTER TABLE sales ADD COLUMN held_until REAL",
    """
    CREATE TABLE credits (
        customer TEXT PRIMARY KEY, msats INTEGER NOT NULL CHECK (msats >= 0), since REAL NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX credits_owed ON credits (msats) WHERE msats > 0",
    "INSERT INTO credits (customer, msats, since)"
    " SELECT s.customer, SUM(CASE WHEN e.credit = 'owed' THEN e.msats ELSE -e.msats END) AS owed, MIN(e.at)"
    " FROM entries e JOIN sales s ON s.id = e.cause WHERE e.owner = '' AND (e.credit = 'owed' OR e.debit = 'owed')"
    " GROUP BY s.customer HAVING owed > 0",
)
