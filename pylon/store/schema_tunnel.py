"""The record of the Claude tunnel's sessions, as ``m011_tunnel`` makes it: what was asked, allowed, denied, and paid.

The conventions are those of ``pylon.store.schema``; amounts are millionths of a US dollar. What was said is sealed.
"""

from __future__ import annotations

TUNNEL = (
    # `name` is the page's. `unsettled`: a turn has begun whose cost nobody has told: `cost_usd` is what it is at least.
    """
    CREATE TABLE tunnel_sessions (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, server TEXT NOT NULL, model TEXT NOT NULL, autonomy TEXT NOT NULL,
        cwd BLOB NOT NULL, max_cost_usd INTEGER CHECK (max_cost_usd >= 0),
        cost_usd INTEGER NOT NULL DEFAULT 0 CHECK (cost_usd >= 0), unsettled INTEGER NOT NULL DEFAULT 0,
        turns INTEGER NOT NULL DEFAULT 0, started_at REAL NOT NULL, ended_at REAL, reason TEXT NOT NULL DEFAULT ''
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX tunnel_sessions_started ON tunnel_sessions (started_at)",
    """
    CREATE TABLE tunnel_acts (
        session TEXT NOT NULL REFERENCES tunnel_sessions (id) ON DELETE CASCADE, n INTEGER NOT NULL, at REAL NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN
            ('prompt', 'allowed', 'approved', 'denied', 'refused', 'timed_out', 'withdrawn', 'turn')),
        tool TEXT NOT NULL DEFAULT '', text BLOB, PRIMARY KEY (session, n)
    ) STRICT, WITHOUT ROWID
    """,
)
