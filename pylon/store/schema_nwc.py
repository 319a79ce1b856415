"""The tables of Nostr Wallet Connect, as ``m006_wallet_connect`` makes them.

The conventions are those of ``pylon.store.schema``. ``wallet_connections``, ``connection_requests`` and
``connection_invoices`` are of the service, which lets others use our wallet; ``nwc_payments`` and ``nwc_invoices`` of
the client, which uses somebody else's.
"""

from __future__ import annotations

NWC = (
    # Who may use the home's wallet, and for how much. `secret` is the service's own key for this client; the client's
    # secret is shown once and kept nowhere.
    """
    CREATE TABLE wallet_connections (
        client TEXT PRIMARY KEY, service TEXT NOT NULL UNIQUE, name TEXT NOT NULL, secret BLOB NOT NULL,
        relays TEXT NOT NULL, day_msats INTEGER NOT NULL CHECK (day_msats >= 0),
        each_msats INTEGER CHECK (each_msats >= 0), created_at REAL NOT NULL, expires_at REAL, closed_at REAL
    ) STRICT
    """,
    "CREATE UNIQUE INDEX wallet_connections_name ON wallet_connections (name) WHERE closed_at IS NULL",
    # Requests to pay, by event id; `error` is what a refused one was answered (JSON). Unanswered: nobody knows yet.
    """
    CREATE TABLE connection_requests (
        id TEXT PRIMARY KEY, client TEXT NOT NULL REFERENCES wallet_connections (client), payment_hash TEXT,
        encryption TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL, taken_at REAL NOT NULL,
        answered_at REAL, error TEXT
    ) STRICT
    """,
    "CREATE INDEX connection_requests_open ON connection_requests (payment_hash) WHERE answered_at IS NULL",
    "CREATE INDEX connection_requests_taken ON connection_requests (taken_at)",
    # Invoices that a connection asked for. `told` is the last thing that it was notified of.
    """
    CREATE TABLE connection_invoices (
        payment_hash TEXT PRIMARY KEY, client TEXT NOT NULL REFERENCES wallet_connections (client),
        request_id TEXT NOT NULL UNIQUE, amount_msats INTEGER NOT NULL CHECK (amount_msats > 0), invoice BLOB NOT NULL,
        hold INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL, settled_at REAL,
        told TEXT NOT NULL DEFAULT '' CHECK (told IN ('', 'accepted', 'settled'))
    ) STRICT
    """,
    "CREATE INDEX connection_invoices_client ON connection_invoices (client, created_at)",
    "CREATE INDEX connection_invoices_unpaid ON connection_invoices (expires_at) WHERE settled_at IS NULL",
    # What we asked a foreign wallet to pay: written before it was asked. `wallet` is the connection's public key;
    # `asked_until` is when the request lapses by which it was asked last.
    """
    CREATE TABLE nwc_payments (
        wallet TEXT NOT NULL, key TEXT NOT NULL, payment_hash TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'settled', 'failed')),
        amount_msats INTEGER NOT NULL CHECK (amount_msats > 0), fee_msats INTEGER NOT NULL CHECK (fee_msats >= 0),
        invoice BLOB NOT NULL, preimage BLOB, asked_until REAL NOT NULL, created_at REAL NOT NULL, settled_at REAL,
        PRIMARY KEY (wallet, key)
    ) STRICT
    """,
    "CREATE UNIQUE INDEX nwc_payments_hash ON nwc_payments (wallet, payment_hash) WHERE state <> 'failed'",
    "CREATE INDEX nwc_payments_pending ON nwc_payments (wallet, created_at) WHERE state = 'pending'",
    # Invoices that a foreign wallet made for us.
    """
    CREATE TABLE nwc_invoices (
        wallet TEXT NOT NULL, key TEXT NOT NULL, payment_hash TEXT NOT NULL,
        amount_msats INTEGER NOT NULL CHECK (amount_msats > 0), invoice BLOB NOT NULL, hold INTEGER NOT NULL,
        cancelled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL, PRIMARY KEY (wallet, key)
    ) STRICT
    """,
    "CREATE INDEX nwc_invoices_hash ON nwc_invoices (wallet, payment_hash)",
    # What a connection has spent is summed by its scope.
    "CREATE INDEX intents_scope_state ON intents (scope, state, updated_at) WHERE scope <> ''",
)
