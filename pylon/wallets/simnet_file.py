"""The file of a simnet ledger: its schema, how it is made, opened and brought up from earlier versions.

The rules are in ``pylon.wallets.simnet_ledger``; here is what any SQLite file shared by processes wants.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pylon.errors import StoreError

APPLICATION_ID = 0x50795349
"""``PRAGMA application_id`` of a simnet ledger."""
BUSY_SECONDS = 10.0

_SCHEMA_1 = """
CREATE TABLE accounts (
    account TEXT PRIMARY KEY, name TEXT NOT NULL, label TEXT NOT NULL, opened_at REAL NOT NULL,
    msats INTEGER NOT NULL, CHECK (msats >= 0 OR account = 'outside')
) STRICT, WITHOUT ROWID;
CREATE TABLE invoices (
    payment_hash TEXT PRIMARY KEY, wallet TEXT NOT NULL REFERENCES accounts, key TEXT NOT NULL,
    bolt11 TEXT NOT NULL, preimage TEXT NOT NULL, msats INTEGER NOT NULL CHECK (msats > 0),
    description TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
    received_msats INTEGER NOT NULL DEFAULT 0, settled_at REAL, UNIQUE (wallet, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL REFERENCES accounts, direction TEXT NOT NULL,
    state TEXT NOT NULL, payment_hash TEXT NOT NULL, key TEXT, msats INTEGER NOT NULL, fee_msats INTEGER NOT NULL,
    created_at REAL NOT NULL, settled_at REAL, preimage TEXT, bolt11 TEXT, description TEXT NOT NULL,
    outside INTEGER NOT NULL DEFAULT 0, waits INTEGER NOT NULL DEFAULT 0, resolves_at REAL, resolves_to TEXT,
    CHECK ((state = 'settled') = (settled_at IS NOT NULL)), CHECK ((state = 'pending') = (resolves_at IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX payments_once ON payments (payment_hash) WHERE direction = 'sent' AND state <> 'failed';
CREATE UNIQUE INDEX payments_key ON payments (wallet, key) WHERE direction = 'sent';
CREATE INDEX payments_time ON payments (wallet, created_at, id);
CREATE INDEX payments_due ON payments (resolves_at) WHERE state = 'pending';
CREATE TABLE news (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL, payment INTEGER NOT NULL REFERENCES payments
) STRICT;
CREATE INDEX news_wallet ON news (wallet, seq);
CREATE TABLE faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT, side TEXT NOT NULL, kind TEXT NOT NULL,
    seconds REAL NOT NULL, jitter REAL NOT NULL, ends TEXT NOT NULL, remaining INTEGER NOT NULL
) STRICT;
CREATE TABLE fee_model (base_msats INTEGER NOT NULL, parts_per_million INTEGER NOT NULL) STRICT;
INSERT INTO fee_model VALUES (0, 5000);
INSERT INTO accounts VALUES ('fees', 'fees', '', 0, 0), ('outside', 'outside', '', 0, 0);
"""

_SCHEMA_2 = """
CREATE TABLE invoices_with_holds (
    payment_hash TEXT PRIMARY KEY, wallet TEXT NOT NULL REFERENCES accounts, key TEXT NOT NULL,
    bolt11 TEXT NOT NULL, preimage TEXT, msats INTEGER NOT NULL CHECK (msats >= 0),
    description TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
    received_msats INTEGER NOT NULL DEFAULT 0, settled_at REAL,
    hold INTEGER NOT NULL DEFAULT 0, held_msats INTEGER NOT NULL DEFAULT 0, cancelled_at REAL, UNIQUE (wallet, key),
    CHECK (preimage IS NOT NULL OR (hold AND settled_at IS NULL)), CHECK (settled_at IS NULL OR cancelled_at IS NULL),
    CHECK (held_msats = 0 OR (hold AND settled_at IS NULL AND cancelled_at IS NULL))
) STRICT, WITHOUT ROWID;
INSERT INTO invoices_with_holds SELECT payment_hash, wallet, key, bolt11, preimage, msats, description, created_at,
    expires_at, received_msats, settled_at, 0, 0, NULL FROM invoices;
DROP TABLE invoices;
ALTER TABLE invoices_with_holds RENAME TO invoices;
ALTER TABLE payments ADD COLUMN payee TEXT;
ALTER TABLE payments ADD COLUMN held INTEGER NOT NULL DEFAULT 0 CHECK (NOT held OR state = 'pending');
DROP INDEX payments_once;
CREATE UNIQUE INDEX payments_once ON payments (payment_hash)
    WHERE direction = 'sent' AND state <> 'failed' AND payment_hash <> '';
"""
"""Invoices: 0 msats is any amount; the preimage of a hold invoice is known once it is settled, and what it holds is
``held_msats``. Payments: ``payee`` is the account that gets it (null for those of version 1: their invoice says it);
``held`` has arrived at a hold invoice. One to an address has no hash, and there may be many of them."""

SCHEMAS = (_SCHEMA_1, _SCHEMA_2)
SCHEMA_VERSION = len(SCHEMAS)


class LedgerConnection:
    """An open file. Raises ``StoreError`` for one that is no ledger, and where SQLite does.

    ``on_commit`` is called after each change made through this object.
    """

    def __init__(self, path: Path, *, durable: bool, on_commit: Callable[[], None]) -> None:
        self.path = path
        self._on_commit = on_commit
        try:
            if not path.exists():
                _create(path)
            # `rw`: should the file vanish meanwhile, no empty one takes its place.
            uri = f"{path.absolute().as_uri()}?mode=rw"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the simnet ledger {path}: {error}") from error
        try:
            with self._errors():
                self._check_kind()
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
                self._migrate()
                self._seen = self._data_version()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def changed_elsewhere(self) -> bool:
        """Has another connection committed since this was asked last? Costs microseconds."""
        with self._errors():
            version = self._data_version()
        changed, self._seen = version != self._seen, version
        return changed

    def _check_kind(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is not a simnet ledger", "name another file in [simnet] ledger")
        version = self._version()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the simnet ledger {self.path} has schema version {version}, this Pylon reads {SCHEMA_VERSION}",
                "run the Pylon that made it, or move the file away: it holds no real money",
            )

    def _migrate(self) -> None:
        """Bring a ledger of an earlier version up, in one transaction; another process may be at it too."""
        if self._version() == SCHEMA_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._check_kind()
            for schema in SCHEMAS[self._version() :]:
                for statement in schema.split(";\n"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._on_commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"simnet ledger {self.path}: {error}") from error


def _create(path: Path) -> None:
    """Make a whole ledger beside ``path``, then link it there: whoever opens the path sees all of it or nothing.

    That also spares two processes, starting at once, the switch to WAL mode, which waits for no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        with closing(sqlite3.connect(beside, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(
                f"BEGIN; {''.join(SCHEMAS)} PRAGMA application_id = {APPLICATION_ID};"
                f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(beside)
