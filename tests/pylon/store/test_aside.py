"""A long look, in a thread: of one moment, for reading only, and nobody waits for it."""

from __future__ import annotations

import sqlite3
import threading

import pytest
import trio

from pylon.errors import SealError, StoreError
from pylon.store import aside
from pylon.store.aside import look_aside


def put(key):
    return lambda tx: tx.execute("INSERT INTO settings (key, value) VALUES (?, 'x')", (key,))


def keys(source):
    return [row["key"] for row in source.read("SELECT key FROM settings ORDER BY key")]


@pytest.fixture
async def threaded(opened):
    async with opened(executor="thread") as store:
        yield store


async def test_it_sees_one_moment_while_others_write_and_the_loop_goes_on(threaded):
    await threaded.write(put("a"))
    begun, go_on = threading.Event(), threading.Event()
    seen, threads = [], []

    def look(aside):
        threads.append(threading.get_ident())
        with aside.snapshot():
            seen.append(keys(aside))
            begun.set()
            assert go_on.wait(20), "the loop does not go on"
            seen.append(keys(aside))
        return aside.one("SELECT COUNT(*) AS n FROM settings")["n"]

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def write():
            while not begun.is_set():  # noqa: ASYNC110  a thread says so
                await trio.sleep(0.005)
            await threaded.write(put("b"))
            go_on.set()

        assert await look_aside(threaded, look) == 1
    assert seen == [["a"], ["a"]]
    assert threads != [threading.get_ident()]
    assert await look_aside(threaded, keys) == ["a", "b"]


async def test_in_virtual_time_it_is_the_store_itself(store):
    assert await look_aside(store, lambda aside: (aside, threading.get_ident())) == (store, threading.get_ident())


async def test_nothing_can_be_written_aside(threaded):
    tried = []

    def look(aside):
        tried.append(aside)
        return aside.read("INSERT INTO settings VALUES ('a', 'b') RETURNING key")

    with pytest.raises(StoreError, match="readonly"):
        await look_aside(threaded, look)
    assert tried[0] is not threaded
    assert tried[1:] == [threaded], "the store was not asked what that means"
    assert keys(threaded) == []


async def test_what_is_sealed_can_be_opened_aside(threaded):
    sealed = threaded.vault.seal("a secret", "here")
    assert await look_aside(threaded, lambda aside: aside.vault.open(sealed, "here")) == "a secret"
    with pytest.raises(SealError):
        await look_aside(threaded, lambda aside: aside.vault.open(sealed, "there"))


async def test_a_database_that_cannot_be_looked_into_twice(threaded, monkeypatch):
    def none_left(path):
        raise sqlite3.OperationalError("unable to open database file")

    await threaded.write(put("a"))
    monkeypatch.setattr(aside, "open_connection", none_left)
    assert await look_aside(threaded, keys) == ["a"]


async def test_who_is_not_waited_for_ends_with_the_next_read(threaded):
    reads = []

    def look(aside):
        while True:
            keys(aside)
            reads.append(1)

    with trio.fail_after(20):
        with trio.move_on_after(0.1) as scope:
            await look_aside(threaded, look)
        assert scope.cancelled_caught
        assert reads
