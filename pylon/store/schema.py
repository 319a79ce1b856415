"""The tables of ``pylon.db`` and how they came about. Migrations are kept for ever; a new one is added at the end.

Amounts are millisatoshi, times are wall time in Unix seconds, ids and hashes are lowercase hex. Columns of type BLOB
are sealed (``pylon.store.vault``).
"""

from __future__ import annotations

import logging
import sqlite3

import attrs

from pylon.errors import StoreError
from pylon.store import upgrade_copies
from pylon.store.schema_agents import AGENTS
from pylon.store.schema_credits import CREDITS
from pylon.store.schema_desk import DESK
from pylon.store.schema_nwc import NWC
from pylon.store.schema_purchases import PURCHASES
from pylon.store.schema_purse import PURSE
from pylon.store.schema_sale_zaps import SALE_ZAPS
from pylon.store.schema_tunnel import TUNNEL
from pylon.store.schema_zaps import ZAPS

log = logging.getLogger(__name__)

APPLICATION_ID = 0x50594C4E
"""``PRAGMA application_id`` of a Pylon database: "PYLN"."""

_SET = "pylon"
_OLDEST_SQLITE = (3, 37, 0)
"""The first with STRICT tables."""

_FIRST = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    # What has been taken from the network: one key a consumer.
    """
    CREATE TABLE inbox (
        consumer TEXT NOT NULL, event_id TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (consumer, event_id)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX inbox_at ON inbox (at)",
    "CREATE TABLE cursors (name TEXT PRIMARY KEY, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    # What goes to relays: the signed event once, a delivery for each relay.
    """
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, kind INTEGER NOT NULL,
        address TEXT, created_at INTEGER NOT NULL, effect TEXT NOT NULL, subject TEXT NOT NULL,
        queued_at REAL NOT NULL, expires_at REAL
    ) STRICT
    """,
    "CREATE INDEX outbox_address ON outbox (address, created_at) WHERE address IS NOT NULL",
    "CREATE INDEX outbox_subject ON outbox (subject, effect)",
    "CREATE INDEX outbox_expires ON outbox (expires_at) WHERE expires_at IS NOT NULL",
    """
    CREATE TABLE deliveries (
        event_id TEXT NOT NULL REFERENCES outbox (event_id) ON DELETE CASCADE, relay TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'accepted', 'refused', 'cancelled', 'expired')),
        attempts INTEGER NOT NULL, next_at REAL NOT NULL, message TEXT NOT NULL, done_at REAL,
        PRIMARY KEY (event_id, relay)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX deliveries_due ON deliveries (relay, next_at) WHERE state = 'pending'",
    # The ledger: double entry.
    """
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, cause TEXT NOT NULL, kind TEXT NOT NULL,
        debit TEXT NOT NULL, credit TEXT NOT NULL, msats INTEGER NOT NULL CHECK (msats > 0),
        UNIQUE (cause, kind), CHECK (debit <> credit)
    ) STRICT
    """,
    "CREATE INDEX entries_at ON entries (at)",
    # What is to be paid: committed before a wallet is called.
    """
    CREATE TABLE intents (
        id TEXT PRIMARY KEY, cause TEXT NOT NULL, payment_hash TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('pending', 'settled', 'failed')),
        amount_msats INTEGER NOT NULL CHECK (amount_msats > 0),
        max_fee_msats INTEGER NOT NULL CHECK (max_fee_msats >= 0),
        fee_msats INTEGER CHECK (fee_msats >= 0),
        idempotency_key TEXT NOT NULL UNIQUE, invoice BLOB NOT NULL, preimage BLOB, error TEXT,
        created_at REAL NOT NULL, updated_at REAL NOT NULL
    ) STRICT
    """,
    "CREATE UNIQUE INDEX intents_one_open ON intents (cause) WHERE state <> 'failed'",
    "CREATE INDEX intents_cause ON intents (cause)",
    "CREATE INDEX intents_state ON intents (state, updated_at)",
    # What was received, each payment once.
    """
    CREATE TABLE claims (
        wallet TEXT NOT NULL, payment_id TEXT NOT NULL, payment_hash TEXT NOT NULL, sale_id TEXT NOT NULL,
        amount_msats INTEGER NOT NULL CHECK (amount_msats > 0), preimage BLOB, at REAL NOT NULL,
        PRIMARY KEY (wallet, payment_id)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX claims_sale ON claims (sale_id)",
    # The machines' records, and the history of their states.
    """
    CREATE TABLE sales (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, customer TEXT NOT NULL, model TEXT NOT NULL,
        price_msats INTEGER NOT NULL, payment_hash TEXT UNIQUE, expires_at REAL, attempts INTEGER NOT NULL,
        created_at REAL NOT NULL, updated_at REAL NOT NULL, record BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX sales_state ON sales (state, created_at)",
    "CREATE INDEX sales_customer ON sales (customer)",
    """
    CREATE TABLE purchases (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, provider TEXT, request_id TEXT, payment_hash TEXT,
        paid_msats INTEGER NOT NULL, fee_msats INTEGER NOT NULL, deadline REAL,
        created_at REAL NOT NULL, updated_at REAL NOT NULL, record BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX purchases_state ON purchases (state, created_at)",
    """
    CREATE TABLE purchase_requests (
        request_id TEXT PRIMARY KEY, purchase_id TEXT NOT NULL, provider TEXT NOT NULL, created_at REAL NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX purchase_requests_purchase ON purchase_requests (purchase_id)",
    """
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY, machine TEXT NOT NULL, subject TEXT NOT NULL, at REAL NOT NULL,
        from_state TEXT NOT NULL, input TEXT NOT NULL, to_state TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX transitions_subject ON transitions (subject, id)",
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
)

_SECOND = (
    # Whose money it is: '' is the home itself, else an agent's public key. Causes are the owner's own.
    "ALTER TABLE intents ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE intents ADD COLUMN scope TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE intents ADD COLUMN purpose TEXT NOT NULL DEFAULT 'purchase'"
    " CHECK (purpose IN ('purchase', 'zap', 'invoice', 'withdrawal'))",
    "DROP INDEX intents_one_open",
    "DROP INDEX intents_state",
    "CREATE UNIQUE INDEX intents_one_open ON intents (owner, cause) WHERE state <> 'failed'",
    "CREATE INDEX intents_state ON intents (owner, state, updated_at)",
    "CREATE INDEX intents_pending ON intents (owner, created_at) WHERE state = 'pending'",
    "CREATE INDEX intents_scope ON intents (scope) WHERE scope <> ''",
    "ALTER TABLE purchases ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX purchases_owner ON purchases (owner, state, created_at)",
    # SQLite changes no constraint of a table that is there: the rows move to another one.
    """
    CREATE TABLE owned_entries (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, owner TEXT NOT NULL DEFAULT '', cause TEXT NOT NULL,
        kind TEXT NOT NULL, debit TEXT NOT NULL, credit TEXT NOT NULL, msats INTEGER NOT NULL CHECK (msats > 0),
        UNIQUE (owner, cause, kind), CHECK (debit <> credit)
    ) STRICT
    """,
    "INSERT INTO owned_entries (id, at, cause, kind, debit, credit, msats)"
    " SELECT id, at, cause, kind, debit, credit, msats FROM entries ORDER BY id",
    "DROP TABLE entries",
    "ALTER TABLE owned_entries RENAME TO entries",
    "CREATE INDEX entries_at ON entries (at)",
    # All that a balance needs, so that it is read from the index alone.
    "CREATE INDEX entries_owner ON entries (owner, debit, credit, msats)",
)


@attrs.frozen
class Migration:
    """One step of the schema. ``name`` is what the database remembers: never change it, nor what it does."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration("m001_the_store", _FIRST),
    Migration("m002_owners", _SECOND),
    Migration("m003_agents", AGENTS),
    Migration("m004_zaps", ZAPS),
    Migration("m005_purse", PURSE),
    Migration("m006_wallet_connect", NWC),
    Migration("m007_purchases", PURCHASES),
    Migration("m008_credits", CREDITS),
    Migration("m009_desk", DESK),
    Migration("m010_sale_zaps", SALE_ZAPS),
    Migration("m011_tunnel", TUNNEL),
)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the database up to date, in one transaction: all of it, or nothing, also if the process dies meanwhile.

    What is there already is copied first (``pylon.store.upgrade_copies``). Raises ``StoreError`` for a database that we
    do not understand, that cannot be copied, or that a migration does not fit; then it is as it was.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old: Pylon needs {'.'.join(map(str, _OLDEST_SQLITE))}",
            "use a Python that is built with a newer SQLite",
        )
    if _is_current(_applied(connection, path), path):
        return
    # Imported here: it takes a quarter of a second, which only a new database or an upgrade needs to spend.
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    migrations = Migrations(_SET)
    for migration in MIGRATIONS:
        migrations(name=migration.name)(_Apply(migration))
    # One write transaction around the lot: two processes that start at once do not both migrate.
    connection.execute("BEGIN IMMEDIATE")
    try:
        before = _applied(connection, path)
        if _is_current(before, path):
            connection.execute("ROLLBACK")
            return
        kept = upgrade_copies.keep(path, _version(before)) if before else None
        if before:
            log.warning(
                "the database is brought from %s to %s; as it was, it is kept as %s",
                _version(before), MIGRATIONS[-1].name, kept,
            )  # fmt: skip
        try:
            migrations.apply(Database(connection, recursive_triggers=False, execute_plugins=False))
            connection.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            raise _unfit(path, error) from error
        except sqlite3.OperationalError as error:
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) != sqlite3.SQLITE_ERROR:
                raise  # the disk's fault, or another program's, and said as such
            raise _unfit(path, error) from error
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _unfit(path: str, error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"the database {path} cannot be brought to this version ({error}); it is as it was",
        "go on with the version of Pylon before, and report this",
    )


def _is_current(applied: set[str], path: str) -> bool:
    """Whether all migrations were applied. Raises ``StoreError`` for a database of a newer Pylon."""
    unknown = sorted(applied - {migration.name for migration in MIGRATIONS})
    if unknown:
        copy = upgrade_copies.newest(path, {migration.name for migration in MIGRATIONS})
        back = f"go back to how it was before the upgrade: pylon restore {copy}" if copy else "restore an older backup"
        raise StoreError(
            f"the database {path} was made by a newer Pylon (it knows {', '.join(unknown)[:200]})",
            f"upgrade Pylon; or {back}",
        )
    return len(applied) == len(MIGRATIONS)


def _version(applied: set[str]) -> str:
    """The name of the last migration that was applied."""
    return next((migration.name for migration in reversed(MIGRATIONS) if migration.name in applied), "nothing")


class _Apply:
    """A migration as sqlite-utils wants it: a function of the database, with a name."""

    def __init__(self, migration: Migration) -> None:
        self.__name__ = migration.name
        self._statements = migration.statements

    def __call__(self, db: object, /) -> None:
        for statement in self._statements:
            db.conn.execute(statement)  # type: ignore[attr-defined]


def _applied(connection: sqlite3.Connection, path: str) -> set[str]:
    """Names of the migrations that the database has seen."""
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    if mark not in (0, APPLICATION_ID) or (mark == 0 and tables - {"_sqlite_migrations"}):
        raise StoreError(f"{path} is a database, but not one of Pylon's", "name another directory as Pylon's home")
    if "_sqlite_migrations" not in tables:
        if tables:
            raise StoreError(f"the database {path} is damaged: its list of migrations is gone", "restore a backup")
        return set()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (_SET,))
    return {row[0] for row in rows}
