"""The tables of the agents, as ``m003_agents`` makes them; the conventions are those of ``pylon.store.schema``.

An agent is named by its public key. What it remembers, wants, hears and says is sealed; what decides when it runs is
plain, for that is what queries need.
"""

from __future__ import annotations

AGENTS = (
    # Who there is. `wallet` is the public id of the agent's wallet; `keys` are the derived ones, so that nothing needs
    # the phrase but its backup. `beat` is when its next heartbeat is due.
    """
    CREATE TABLE agents (
        id TEXT PRIMARY KEY, name TEXT UNIQUE, created_at REAL NOT NULL, wallet TEXT NOT NULL UNIQUE,
        epoch INTEGER NOT NULL, instance TEXT NOT NULL, paused TEXT NOT NULL DEFAULT '', moved TEXT NOT NULL DEFAULT '',
        deleted_at REAL, ticks INTEGER NOT NULL DEFAULT 0, quiet INTEGER NOT NULL DEFAULT 0, beat REAL,
        last_error TEXT NOT NULL DEFAULT '', settings TEXT NOT NULL, burn TEXT NOT NULL,
        keys BLOB NOT NULL, phrase BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE lifecycles (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, balance_msats INTEGER NOT NULL, burn_msats INTEGER NOT NULL,
        created_at REAL NOT NULL, updated_at REAL NOT NULL, record BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX lifecycles_state ON lifecycles (state)",
    # Rows with texts in them are kept by number: a tree of them by name would be as wide as a row is long.
    # `goals` is how many are active.
    """
    CREATE TABLE agent_states (
        agent TEXT PRIMARY KEY, updated_at REAL NOT NULL, goals INTEGER NOT NULL, state BLOB NOT NULL
    ) STRICT
    """,
    # What woke them, or is to. `tick` is the one that took it.
    """
    CREATE TABLE triggers (
        agent TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL, stranger INTEGER NOT NULL,
        tick TEXT, heard BLOB NOT NULL, PRIMARY KEY (agent, id)
    ) STRICT
    """,
    "CREATE INDEX triggers_waiting ON triggers (agent, at) WHERE tick IS NULL",
    "CREATE INDEX triggers_taken ON triggers (at) WHERE tick IS NOT NULL",
    # What they thought. `allowance_msats` bounds a tick that strangers alone have caused; NULL: no such bound. Most
    # ticks are quiet: what is asked at every turn has an index without them.
    """
    CREATE TABLE ticks (
        id TEXT PRIMARY KEY, agent TEXT NOT NULL, n INTEGER NOT NULL, state TEXT NOT NULL, cause TEXT NOT NULL,
        strangers INTEGER NOT NULL, allowance_msats INTEGER, created_at REAL NOT NULL, updated_at REAL NOT NULL,
        record BLOB NOT NULL, UNIQUE (agent, n)
    ) STRICT
    """,
    "CREATE INDEX ticks_open ON ticks (agent, n) WHERE state NOT IN ('done', 'failed', 'quiet')",
    "CREATE INDEX ticks_thought ON ticks (agent, created_at) WHERE state <> 'quiet'",
    "CREATE INDEX ticks_triggered ON ticks (agent, created_at) WHERE cause = 'trigger'",
    "CREATE INDEX ticks_strangers ON ticks (agent, created_at) WHERE allowance_msats IS NOT NULL",
    "CREATE INDEX ticks_state ON ticks (state, created_at)",
    # What they did, or wait to be allowed to. `due` is when a question to the operator lapses.
    """
    CREATE TABLE actions (
        id TEXT PRIMARY KEY, agent TEXT NOT NULL, tick TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
        state TEXT NOT NULL, due REAL, created_at REAL NOT NULL, updated_at REAL NOT NULL, record BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX actions_agent ON actions (agent, created_at)",
    "CREATE INDEX actions_tick ON actions (tick, seq)",
    "CREATE INDEX actions_state ON actions (state, created_at)",
    "CREATE INDEX actions_waiting ON actions (agent) WHERE state = 'waiting'",
)
