"""What a Spark wallet must remember by itself, in a small SQLite file of its own.

The SDK makes a new invoice whenever it is asked, knows no hold invoice before it is paid, and forgets a payment that
it was asked for when the process dies half-way. So each invoice is kept here by the caller's key, and each payment is
written down before the SDK hears of it: what is not in the SDK's history may still be under way.

Functions are synchronous: single rows of a local file, committed to disk (``synchronous=FULL``).
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from pylon.errors import StoreError
from pylon.money import Msat
from pylon.wallets.port import IssuedInvoice

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS issued (
    key TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    bolt11 TEXT NOT NULL,
    msats INTEGER NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    hold INTEGER NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0,
    received INTEGER NOT NULL DEFAULT 0,
    settled_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS sends (
    key TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL,
    target TEXT NOT NULL,
    msats INTEGER NOT NULL,
    most_fee INTEGER NOT NULL,
    created_at REAL NOT NULL,
    stage TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS sends_hash ON sends (hash) WHERE hash <> '';
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class Stage(enum.StrEnum):
    """How far a payment has come, by what was written down."""

    ASKED = "asked"
    """The SDK has not been told to send: if the process is gone, it never was sent."""
    SENT = "sent"
    """The SDK was told: only the network knows."""
    DONE = "done"
    """Settled."""
    FAILED = "failed"
    """For good."""


@attrs.frozen
class Send:
    """A payment as it was asked for."""

    key: str
    id: str
    """The SDK's name of it, which follows from wallet and key."""
    hash: str
    """Of the invoice; empty for an address."""
    target: str
    amount: Msat
    most_fee: Msat
    created_at: float
    stage: Stage


@attrs.frozen
class Issued:
    """An invoice of ours."""

    invoice: IssuedInvoice
    created_at: float
    hold: bool


class Journal:
    """See the module. The file is made, 0600, with its first use; ``durable=False`` gives up fsync. ``StoreError``."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- invoices -----------------------------------------------------------------------------------------------

    def issued_by_key(self, key: str) -> Issued | None:
        return self._issued("key", key)

    def issued_by_hash(self, payment_hash: str) -> Issued | None:
        return self._issued("hash", payment_hash)

    def add_issued(self, key: str, invoice: IssuedInvoice, now: float, *, hold: bool) -> Issued:
        """Keep an invoice; one that the key has already wins."""
        self._write(
            "INSERT INTO issued (key, hash, bolt11, msats, created_at, expires_at, hold) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (key, invoice.payment_hash, invoice.bolt11, invoice.amount, now, invoice.expires_at, int(hold)),
        )
        kept = self.issued_by_key(key)
        if kept is None:
            raise StoreError(f"the hash {invoice.payment_hash[:16]} has an invoice under another key")
        return kept

    def settled(self, payment_hash: str, received: Msat, at: float) -> None:
        """It was paid, and the money is ours: final."""
        self._write(
            "UPDATE issued SET received = ?, settled_at = ? WHERE hash = ? AND settled_at IS NULL",
            (received, at, payment_hash),
        )

    def cancel(self, payment_hash: str) -> None:
        self._write("UPDATE issued SET cancelled = 1 WHERE hash = ? AND settled_at IS NULL", (payment_hash,))

    def issued_hashes(self, hashes: list[str]) -> set[str]:
        """Those of ``hashes`` that are invoices of ours."""
        found: set[str] = set()
        for start in range(0, len(hashes), 500):
            part = hashes[start : start + 500]
            marks = ", ".join("?" * len(part))
            found.update(row["hash"] for row in self._read(f"SELECT hash FROM issued WHERE hash IN ({marks})", part))
        return found

    def _issued(self, column: str, value: str) -> Issued | None:
        for row in self._read(f"SELECT * FROM issued WHERE {column} = ?", (value,)):
            invoice = IssuedInvoice(
                bolt11=row["bolt11"],
                payment_hash=row["hash"],
                amount=Msat(row["msats"]),
                expires_at=row["expires_at"],
                received=Msat(row["received"]),
                settled_at=row["settled_at"],
                cancelled=bool(row["cancelled"]),
            )
            return Issued(invoice, row["created_at"], bool(row["hold"]))
        return None

    # --- payments -----------------------------------------------------------------------------------------------

    def begin(self, send: Send) -> None:
        """Write a payment down before anybody is asked to make it."""
        self._write(
            "INSERT INTO sends (key, id, hash, target, msats, most_fee, created_at, stage)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(send.key, send.id, send.hash, send.target, send.amount, send.most_fee, send.created_at),
                send.stage.value,
            ),
        )

    def mark(self, key: str, stage: Stage) -> None:
        """How far it has come. What is settled stays settled.

        Raises ``StoreError`` for ``SENT`` where no payment waits for that: what is not written down must not be sent.
        """
        if stage is Stage.SENT:
            if not self._write("UPDATE sends SET stage = 'sent' WHERE key = ? AND stage = 'asked'", (key,)):
                raise StoreError("the payment is not in the wallet's journal any more; it was not sent", "pay again")
        else:
            self._write("UPDATE sends SET stage = ? WHERE key = ? AND stage <> 'done'", (stage.value, key))

    def forget(self, key: str) -> None:
        """It was never sent, and leaves no trace: the key may be used again. What is settled stays."""
        self._write("DELETE FROM sends WHERE key = ? AND stage <> 'done'", (key,))

    def send(self, key: str) -> Send | None:
        return next(iter(self._sends("key = ?", (key,))), None)

    def send_of(self, payment_hash: str) -> Send | None:
        """The newest payment of an invoice; one that has not failed before all that have."""
        order = "stage = 'failed', created_at DESC, rowid DESC"
        return next(iter(self._sends(f"hash = ? ORDER BY {order} LIMIT 1", (payment_hash,))), None)

    def under_way(self) -> list[Send]:
        """Payments that were sent and of whose end nothing is written here; the SDK may know."""
        return self._sends("stage = 'sent'", ())

    def keys(self, ids: list[str]) -> dict[str, str]:
        """The callers' keys of payments, by the SDK's names."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ", ".join("?" * len(part))
            rows = self._read(f"SELECT id, key FROM sends WHERE id IN ({marks})", part)
            found.update((row["id"], row["key"]) for row in rows)
        return found

    def _sends(self, where: str, params: tuple[str, ...]) -> list[Send]:
        return [
            Send(
                row["key"],
                row["id"],
                row["hash"],
                row["target"],
                Msat(row["msats"]),
                Msat(row["most_fee"]),
                row["created_at"],
                Stage(row["stage"]),
            )
            for row in self._read(f"SELECT * FROM sends WHERE {where}", params)
        ]

    # --- facts --------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """What was learnt once and does not change, such as an address."""
        return next((row["value"] for row in self._read("SELECT value FROM facts WHERE name = ?", (name,))), None)

    def learn(self, name: str, value: str) -> None:
        self._write(
            "INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    # --- the file -----------------------------------------------------------------------------------------------

    def _read(self, sql: str, params: Sequence[object]) -> list[sqlite3.Row]:
        return self._guarded(lambda db: db.execute(sql, tuple(params)).fetchall())

    def _write(self, sql: str, params: tuple[object, ...]) -> int:
        """Returns how many rows have changed."""

        def job(db: sqlite3.Connection) -> int:
            with db:
                return db.execute(sql, params).rowcount

        return self._guarded(job)

    def _guarded(self, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._db is None:
                self._db = self._open()
            return job(self._db)
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path} cannot be read or written: {error}", "check the disk and its modes"
            ) from None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=5.0)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        db.executescript(_SCHEMA)
        return db
