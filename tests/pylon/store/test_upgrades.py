"""A database of any earlier version becomes one of this version with nothing lost, or stays what it was."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import sys
import textwrap
from contextlib import closing

import pytest
import trio

from pylon.errors import StoreError
from pylon.store import upgrade_copies
from pylon.store.database import open_store
from pylon.store.schema import MIGRATIONS, Migration, migrate

ROWS = 3
WORDS = {
    ("deliveries", "state"): ["pending", "accepted", "expired"],
    ("entries", "debit"): ["wallet", "spent", "wallet"],
    ("entries", "credit"): ["outside", "wallet", "owed"],
    ("intents", "state"): ["pending", "settled", "failed"],
    ("intents", "purpose"): ["purchase", "zap", "withdrawal"],
    ("intents", "target"): ["invoice", "open", "address"],
    ("intents", "approval"): ["", "waiting", "given"],
    ("sales", "state"): ["delivered", "quoted", "owed"],
    ("purchases", "state"): ["answered", "credited", "lost"],
    ("nwc_payments", "state"): ["pending", "settled", "failed"],
    ("connection_invoices", "told"): ["", "accepted", "settled"],
    ("tunnel_acts", "kind"): ["prompt", "allowed", "turn"],
    ("standings", "standing"): ["trusted", "free", "blocked"],
}
"""What a column with a CHECK takes."""
DERIVED = {"quote_book", "_sqlite_migrations"}
"""Kept by triggers, or by the migrations themselves."""


def columns(db):
    """The tables of a database with their columns, name to declared type."""
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid")]
    return {
        name: {row[1]: row[2] for row in db.execute(f"PRAGMA table_info({name})")}
        for name in names
        if name not in DERIVED and not name.startswith("sqlite_")
    }


def fill(db):
    """Some rows in each table; texts of one number are equal, so that what refers finds what it refers to."""
    kinds = {"TEXT": lambda n: f"v{n}", "INTEGER": lambda n: 1_000 + n, "REAL": lambda n: n + 0.5}
    for table, types in columns(db).items():
        for number in range(ROWS):
            values = [
                WORDS[table, name][number]
                if (table, name) in WORDS
                else kinds.get(kind, lambda n: b"sealed %d" % n)(number)
                for name, kind in types.items()
            ]
            db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def content(db, shape):
    return {
        table: sorted(db.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall(), key=repr)
        for table, names in shape.items()
    }


@pytest.fixture
def of_version(tmp_path, monkeypatch):
    """Make a database as version ``n`` left it, with rows: its path, its tables, and what was in them."""

    def make(n):
        path = tmp_path / "pylon.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as db, monkeypatch.context() as patch:
            patch.setattr("pylon.store.schema.MIGRATIONS", MIGRATIONS[:n])
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA synchronous = OFF")
            migrate(db, str(path))
            db.execute("BEGIN")
            fill(db)
            db.execute("COMMIT")
            shape = columns(db)
            return path, shape, content(db, shape)

    return make


def beside(path):
    return upgrade_copies.copies(path)


@pytest.mark.parametrize("n", range(1, len(MIGRATIONS) + 1))
async def test_every_earlier_version_keeps_all_its_rows(of_version, opened, n):
    path, shape, before = of_version(n)
    assert all(len(rows) == ROWS for rows in before.values())
    async with opened() as store:
        store.read("SELECT 1 FROM settings")
    with closing(sqlite3.connect(path)) as db:
        assert content(db, shape) == before
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert len(db.execute("SELECT 1 FROM _sqlite_migrations").fetchall()) == len(MIGRATIONS)
    if n == len(MIGRATIONS):
        assert beside(path) == []
        return
    (copy,) = beside(path)
    assert copy.name.startswith(f"pylon.db.{MIGRATIONS[n - 1].name}.2")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as db:
        assert content(db, shape) == before
        assert len(db.execute("SELECT 1 FROM _sqlite_migrations").fetchall()) == n


async def test_the_copy_just_made_stays_where_a_clock_went_back(of_version, opened):
    path, _, _ = of_version(2)
    for day in range(1, 5):
        (path.parent / f"pylon.db.m001_the_store.2090010{day}T000000Z").write_text("of a clock that was ahead")
    async with opened():
        pass
    assert len(beside(path)) == upgrade_copies.KEPT
    assert [copy for copy in beside(path) if copy.read_bytes().startswith(b"SQLite")]


async def test_copies_are_few_and_the_newest(of_version, opened):
    path, _, _ = of_version(2)
    for year in range(2020, 2025):
        (path.parent / f"pylon.db.m001_the_store.{year}0101T000000Z").write_text("old")
    for name in ("pylon.db.mine", "pylon.db.m001_the_store.backup", "pylon.db-wal.txt"):
        (path.parent / name).write_text("somebody else's")
    async with opened():
        pass
    assert [copy.name[9:28] for copy in beside(path)][:2] == ["m001_the_store.2023", "m001_the_store.2024"]
    assert len(beside(path)) == upgrade_copies.KEPT
    assert (path.parent / "pylon.db.mine").exists()


BROKEN = Migration("m999_broken", ("CREATE TABLE half (x TEXT) STRICT", "DELETE FROM intents", "CREATE NONSENSE"))
UNFIT = Migration("m999_unfit", ("DELETE FROM intents", "INSERT INTO settings VALUES ('v1', 'twice')"))


@pytest.mark.parametrize("last", [BROKEN, UNFIT], ids=["broken", "unfit"])
async def test_a_migration_that_fails_leaves_the_old_database_usable(of_version, opened, monkeypatch, last):
    path, shape, before = of_version(len(MIGRATIONS) - 1)
    with monkeypatch.context() as patch:
        patch.setattr("pylon.store.schema.MIGRATIONS", (*MIGRATIONS, last))
        with pytest.raises(StoreError, match="it is as it was") as caught:
            async with opened():
                pass
    assert "version of Pylon before" in caught.value.hint
    with closing(sqlite3.connect(path)) as db:
        assert content(db, shape) == before
        assert len(db.execute("SELECT 1 FROM _sqlite_migrations").fetchall()) == len(MIGRATIONS) - 1
    async with opened() as store:
        assert len(store.read("SELECT 1 FROM intents")) == ROWS


async def test_without_room_for_the_copy_nothing_is_migrated(of_version, opened, monkeypatch):
    path, _, _ = of_version(3)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pylon.store.upgrade_copies.publish", full)
        with pytest.raises(StoreError, match="No space left") as caught:
            async with opened():
                pass
    assert "make room" in caught.value.hint
    assert beside(path) == []
    assert not list(path.parent.glob(".pylon.db*"))
    with closing(sqlite3.connect(path)) as db:
        assert len(db.execute("SELECT 1 FROM _sqlite_migrations").fetchall()) == 3
    assert len(path.read_bytes()) == len(before)


@pytest.mark.parametrize("n", [1, 5])
async def test_killed_in_the_middle_it_is_done_again(of_version, opened, n):
    path, shape, before = of_version(n)
    code = textwrap.dedent(f"""
        import os, signal, trio
        from pylon.clock import SystemClock
        from pylon.store import schema
        from pylon.store.database import open_store
        from pylon.store.vault import Vault

        last = schema.Migration("m999_last", ("DELETE FROM settings", "DELETE FROM intents"))
        schema.MIGRATIONS = (*schema.MIGRATIONS, last)
        apply = schema._Apply.__call__

        def apply_and_die(self, db):
            db.conn.execute("PRAGMA cache_size = 1")  # so that much of it reaches the disk before the end
            apply(self, db)
            if self.__name__ == "m999_last":
                os.kill(os.getpid(), signal.SIGKILL)

        schema._Apply.__call__ = apply_and_die

        async def main():
            async with open_store({str(path)!r}, vault=Vault(bytes(32)), clock=SystemClock()):
                print("opened")

        trio.run(main)
    """)
    command = [sys.executable, "-c", code]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b""), done.stderr
    assert len(beside(path)) == 1
    async with opened():
        pass
    with closing(sqlite3.connect(path)) as db:
        assert content(db, shape) == before
    assert len(beside(path)) == 2


async def test_of_a_newer_pylon_the_way_back_is_named(of_version, opened, tmp_path, vault, clock):
    path, _, _ = of_version(len(MIGRATIONS) - 1)
    async with opened() as store:
        await store.write(
            lambda tx: tx.execute("INSERT INTO _sqlite_migrations VALUES (99, 'pylon', 'm999_future', 'then')")
        )
    (copy,) = beside(path)
    future = path.with_name("pylon.db.m999_future.20990101T000000Z")
    shutil.copyfile(copy, future)
    with pytest.raises(StoreError, match="newer Pylon") as caught:
        async with opened():
            pass
    assert "upgrade Pylon" in caught.value.hint
    assert f"pylon restore {copy}" in caught.value.hint
    os.remove(copy)
    with pytest.raises(StoreError) as caught:
        async with open_store(path, vault=vault, clock=clock):
            pass
    assert "restore an older backup" in caught.value.hint
