"""What purchases teach of providers, as ``m007_purchases`` makes it.

The conventions are those of ``pylon.store.schema``. A provider's standing is what was observed of it, as it weighed at
``at`` (``pylon.compute.standing``).
"""

from __future__ import annotations

PURCHASES = (
    # What a provider promised to make good, and what it has taken off a price for that.
    "ALTER TABLE purchases ADD COLUMN credit_msats INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE purchases ADD COLUMN credit_used_msats INTEGER NOT NULL DEFAULT 0",
    # A credit counted only if it covered what was paid, and for no more.
    "UPDATE purchases SET credit_msats = paid_msats WHERE state = 'credited'",
    "CREATE INDEX purchases_credit ON purchases (owner, provider) WHERE credit_msats > 0 OR credit_used_msats > 0",
    "CREATE INDEX purchases_lost ON purchases (updated_at) WHERE state = 'lost'",
    """
    CREATE TABLE observed_providers (
        provider TEXT PRIMARY KEY, good REAL NOT NULL, bad REAL NOT NULL, seconds REAL NOT NULL,
        failed_at REAL NOT NULL, at REAL NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # Debts of before `at` count no more: their provider was to take them off its price, and has not.
    """
    CREATE TABLE disowned_debts (
        owner TEXT NOT NULL, provider TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, provider)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX observed_providers_at ON observed_providers (at)",
)
