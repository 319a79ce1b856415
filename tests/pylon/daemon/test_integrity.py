"""The database is read through while it is used; what is found damaged is written to no more."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import trio

from pylon.daemon import integrity
from pylon.errors import StoreError
from pylon.store import damage
from pylon.store.database import open_store
from pylon.store.vault import Vault
from tests.pylon.store.conftest import StoppedClock


@pytest.fixture
async def store(tmp_path):
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=StoppedClock(), executor="inline", durable=False
    ) as store:
        await store.write(lambda tx: [tx.execute("INSERT INTO settings VALUES (?, 'x')", (str(n),)) for n in range(9)])
        yield store


def ruin(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * 20 * 4_096)


async def test_a_sound_one_is_written_on(store):
    assert await integrity.look(store)
    assert store.damaged is None


@pytest.mark.parametrize("how", ["pages", "gone"])
async def test_damage_ends_all_writing(store, tmp_path, how):
    path = tmp_path / "pylon.db"
    ruin(path) if how == "pages" else path.unlink()
    assert await integrity.look(store)
    assert str(path) in store.damaged.message
    assert "pylon restore" in store.damaged.hint
    with pytest.raises(StoreError, match="damaged"):
        await store.write(lambda tx: tx.execute("INSERT INTO settings VALUES ('later', 'x')"))


async def test_a_large_one_is_not_waited_for(store, tmp_path):
    ruin(tmp_path / "pylon.db")
    assert await integrity.look(store, at_most=10_000)
    assert store.damaged is None


async def test_who_cannot_look_tries_again(store, monkeypatch):
    def busy(path):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(damage, "check", busy)
    assert not await integrity.look(store)
    assert store.damaged is None


@pytest.mark.parametrize("checked_at_the_start", [True, False])
async def test_it_is_looked_at_every_day(autojump_clock, store, monkeypatch, checked_at_the_start):
    if not checked_at_the_start:
        monkeypatch.setattr(damage, "CHECKED_BYTES", 1)
    looks = []

    async def look(store):
        looks.append(trio.current_time())
        return len(looks) != 2

    monkeypatch.setattr(integrity, "look", look)
    began = trio.current_time()
    with trio.move_on_after(2.5 * integrity.EVERY):
        await integrity.keep_checking(store)
    hours = [round((at - began) / 3_600) for at in looks]
    assert hours == ([24, 48, 49] if checked_at_the_start else [0, 24, 25, 49])
