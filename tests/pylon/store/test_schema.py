from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from pylon.errors import StoreError
from pylon.store.schema import APPLICATION_ID, MIGRATIONS, Migration, migrate


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def tables(connection):
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_a_new_database_gets_everything(connection):
    migrate(connection, "x.db")
    expected = "inbox cursors outbox deliveries entries intents claims sales purchases purchase_requests transitions"
    assert {*expected.split(), "settings", "zap_invoices"} <= tables(connection)
    assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID


def test_every_table_is_strict(connection):
    migrate(connection, "x.db")
    loose = {row[1] for row in connection.execute("PRAGMA table_list") if row[2] == "table" and not row[5]}
    assert {name for name in loose if not name.startswith("sqlite_")} == {"_sqlite_migrations"}


def test_migrating_again_changes_nothing(connection):
    migrate(connection, "x.db")
    before = connection.total_changes
    migrate(connection, "x.db")
    assert connection.total_changes == before


def test_a_later_migration_is_added(connection, monkeypatch):
    migrate(connection, "x.db")
    connection.execute("INSERT INTO settings VALUES ('a', 'b')")
    later = Migration("m999_later", ("CREATE TABLE later (x TEXT) STRICT",))
    monkeypatch.setattr("pylon.store.schema.MIGRATIONS", (*MIGRATIONS, later))
    migrate(connection, "x.db")
    assert "later" in tables(connection)
    assert connection.execute("SELECT value FROM settings").fetchone() == ("b",)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer Pylon") as caught:
        migrate(connection, "x.db")
    assert "upgrade" in caught.value.hint


def test_what_belonged_to_the_home_still_does(connection, monkeypatch):
    """A database from before money had owners keeps every row of it, and then takes others' beside them."""
    monkeypatch.setattr("pylon.store.schema.MIGRATIONS", MIGRATIONS[:1])
    migrate(connection, "x.db")
    entries = [
        (3, 1.5, "d1", "deposit", "wallet", "outside", 1_000),
        (7, 2.5, "p1", "purchase:" + "aa" * 32, "spent", "wallet", 300),
        (8, 2.5, "p1", "purchase_fee:" + "aa" * 32, "fees", "wallet", 2),
    ]
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", entries)
    intents = [
        ("i1", "p1", "aa" * 32, "settled", 300, 9, 2, "k1", b"x", b"y", None, 2.0, 2.5),
        ("i2", "p2", "bb" * 32, "failed", 300, 9, None, "k2", b"x", None, "no", 2.0, 2.5),
        ("i3", "p2", "cc" * 32, "pending", 300, 9, None, "k3", b"x", None, None, 2.0, 2.5),
    ]
    connection.executemany(f"INSERT INTO intents VALUES ({', '.join('?' * 13)})", intents)
    purchases = [("p1", "answered", "dd" * 32, "ee" * 32, "aa" * 32, 300, 2, None, 2.0, 2.5, b"sealed")]
    connection.executemany(f"INSERT INTO purchases VALUES ({', '.join('?' * 11)})", purchases)
    monkeypatch.undo()

    migrate(connection, "x.db")
    columns = "id, at, cause, kind, debit, credit, msats"
    assert connection.execute(f"SELECT {columns} FROM entries ORDER BY id").fetchall() == entries
    assert [row[:13] for row in connection.execute("SELECT * FROM intents ORDER BY id")] == intents
    assert [row[:11] for row in connection.execute("SELECT * FROM purchases")] == purchases
    for table in ("entries", "intents", "purchases"):
        assert {row[0] for row in connection.execute(f"SELECT owner FROM {table}")} == {""}
    assert {tuple(row) for row in connection.execute("SELECT scope, purpose FROM intents")} == {("", "purchase")}

    insert = (
        "INSERT INTO entries (at, owner, cause, kind, debit, credit, msats)"
        " VALUES (1, ?, 'd1', 'deposit', 'wallet', 'outside', 5)"
    )
    connection.execute(insert, ("ff" * 32,))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(insert, ("",))
    assert connection.execute("SELECT MAX(id) FROM entries").fetchone() == (9,)
    again = (
        "INSERT INTO intents (id, owner, cause, payment_hash, state, amount_msats, max_fee_msats, idempotency_key,"
        " invoice, created_at, updated_at) VALUES (?, ?, 'p2', ?, 'pending', 1, 1, ?, x'00', 1, 1)"
    )
    connection.execute(again, ("i4", "ff" * 32, "dd" * 32, "k4"))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(again, ("i5", "", "ee" * 32, "k5"))


def test_a_migration_that_fails_leaves_nothing(connection, monkeypatch):
    broken = Migration("m999_broken", ("CREATE TABLE half (x TEXT) STRICT", "CREATE NONSENSE"))
    monkeypatch.setattr("pylon.store.schema.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StoreError, match="it is as it was"):
        migrate(connection, "x.db")
    assert tables(connection) == set()
    assert not connection.in_transaction


def test_somebody_elses_database_is_left_alone(connection):
    connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreError, match="not one of Pylon's"):
        migrate(connection, "x.db")
    assert tables(connection) == {"theirs"}


def test_a_lost_list_of_migrations_is_damage(connection):
    migrate(connection, "x.db")
    connection.execute("DROP TABLE _sqlite_migrations")
    with pytest.raises(StoreError, match="damaged"):
        migrate(connection, "x.db")


def test_an_open_database_does_not_need_sqlite_utils(tmp_path):
    """Its import takes a quarter of a second; every command that opens the store would pay."""
    code = (
        "import sqlite3, sys\n"
        "from pylon.store.schema import migrate\n"
        f"c = sqlite3.connect({str(tmp_path / 'x.db')!r}, isolation_level=None)\n"
        "migrate(c, 'x.db')\n"
        "print('sqlite_utils' in sys.modules)\n"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entries (at, cause, kind, debit, credit, msats) VALUES (1, 'c', 'k', 'wallet', 'outside', 0)",
        "INSERT INTO entries (at, cause, kind, debit, credit, msats) VALUES (1, 'c', 'k', 'wallet', 'wallet', 5)",
        "INSERT INTO entries (at, cause, kind, debit, credit, msats) VALUES (1, 'c', 'k', 'wallet', 'outside', 1.5)",
        "INSERT INTO claims VALUES ('w', 'p', 'h', 's', 0, NULL, 1)",
        "INSERT INTO intents (id, cause, payment_hash, state, amount_msats, max_fee_msats, idempotency_key, invoice,"
        " created_at, updated_at, purpose) VALUES ('i', 'c', 'h', 'pending', 1, 0, 'k', x'00', 1, 1, 'fun')",
        "INSERT INTO zap_invoices VALUES ('h', 'a', 0, x'00', NULL, NULL, 1, 2, NULL, NULL)",
        "INSERT INTO zap_invoices VALUES ('h', 'a', 1, x'00', x'00', NULL, 1, 2, NULL, 'receipt')",
        "INSERT INTO deliveries VALUES ('nobody', 'wss://r', 'pending', 0, 0, '', NULL)",
    ],
)
def test_the_schema_itself_refuses(connection, statement):
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection, "x.db")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
