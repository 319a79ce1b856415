"""What the purse keeps beside an intent, as ``m005_purse`` adds it.

The conventions are those of ``pylon.store.schema``.
"""

from __future__ import annotations

PURSE = (
    # Whom it pays: a node key, or an address. Empty: not known (what was written before there was this column).
    "ALTER TABLE intents ADD COLUMN payee TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE intents ADD COLUMN target TEXT NOT NULL DEFAULT 'invoice'"
    " CHECK (target IN ('invoice', 'open', 'address'))",
    # One that waits is pending like any other, and is not sent; `lapses_at` is when the question lapses.
    "ALTER TABLE intents ADD COLUMN approval TEXT NOT NULL DEFAULT ''"
    " CHECK (approval IN ('', 'waiting', 'given', 'denied'))",
    "ALTER TABLE intents ADD COLUMN lapses_at REAL",
    "CREATE INDEX intents_payee ON intents (owner, payee, state, updated_at) WHERE payee <> ''",
    "CREATE INDEX intents_waiting ON intents (created_at) WHERE approval = 'waiting'",
    "CREATE INDEX intents_failed ON intents (updated_at) WHERE state = 'failed'",
    # The last time that a budget was nearly gone; no row: it is not, or nobody was told yet.
    """
    CREATE TABLE budget_warnings (
        owner TEXT NOT NULL, budget TEXT NOT NULL, at REAL NOT NULL, used_msats INTEGER NOT NULL,
        bound_msats INTEGER NOT NULL, PRIMARY KEY (owner, budget)
    ) STRICT, WITHOUT ROWID
    """,
)
