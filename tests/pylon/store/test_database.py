from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing

import pytest
import trio
import trio.lowlevel
import trio.testing

from pylon.clock import VirtualClock
from pylon.errors import StoreError
from pylon.store.database import GROUP_LIMIT, open_store


def put(key, value="x"):
    return lambda tx: tx.execute("INSERT INTO settings (key, value) VALUES (?, ?)", (str(key), value))


def keys(store):
    return {row["key"] for row in store.read("SELECT key FROM settings")}


@pytest.fixture(params=["inline", "thread"])
def either(opened, request):
    return lambda **changes: opened(executor=request.param, **changes)


# --- writing and reading --------------------------------------------------------------------------------------------


async def test_a_write_is_read_after_its_return_and_after_a_restart(either):
    async with either() as store:
        assert await store.write(lambda tx: (put("a")(tx), tx.one("SELECT COUNT(*) AS n FROM settings")["n"])[1]) == 1
        assert keys(store) == {"a"}
        assert store.one("SELECT value FROM settings WHERE key = ?", ("a",))["value"] == "x"
        assert store.one("SELECT 1 FROM settings WHERE key = 'b'") is None
    async with either() as store:
        assert keys(store) == {"a"}


async def test_a_reader_never_sees_what_is_not_committed(store):
    def job(tx):
        put("a")(tx)
        assert keys(store) == set()
        return [row["key"] for row in tx.all("SELECT key FROM settings")]

    assert await store.write(job) == ["a"]


async def test_the_reader_cannot_write(store):
    with pytest.raises(StoreError):
        store.read("INSERT INTO settings VALUES ('a', 'b') RETURNING key")


async def test_concurrent_writes_share_commits(either):
    async with either() as store:
        async with trio.open_nursery() as nursery:
            for key in range(50):
                nursery.start_soon(store.write, put(key))
        assert store.writes == 50
        assert store.commits <= 3
        assert len(keys(store)) == 50


async def test_writes_gather_while_a_commit_waits_for_the_disk(opened, monkeypatch):
    async with opened(executor="thread") as store:
        slow, commit = threading.Event(), store._commit_in_thread

        def commit_slowly():
            slow.wait(5)
            commit()

        monkeypatch.setattr(store, "_commit_in_thread", commit_slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, put("first"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            for key in range(49):
                nursery.start_soon(store.write, put(key))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert store.commits == 0
            assert keys(store) == set()  # the loop runs, and a reader sees nothing yet
            slow.set()
        assert store.commits == 2
        assert len(keys(store)) == 50


async def test_a_group_is_bounded(store):
    async with trio.open_nursery() as nursery:
        for key in range(3 * GROUP_LIMIT):
            nursery.start_soon(store.write, put(key))
    assert store.commits >= 3
    assert store.writes == 3 * GROUP_LIMIT


async def test_an_exception_undoes_its_own_write_only(either):
    outcomes = {}

    async def attempt(store, key):
        def job(tx):
            put(key)(tx)
            if key % 3 == 0:
                raise LookupError(key)
            return key

        try:
            outcomes[key] = await store.write(job)
        except LookupError as error:
            outcomes[key] = error.args

    async with either() as store:
        async with trio.open_nursery() as nursery:
            for key in range(30):
                nursery.start_soon(attempt, store, key)
        assert keys(store) == {str(key) for key in range(30) if key % 3}
    assert outcomes == {key: key if key % 3 else (key,) for key in range(30)}


async def test_a_failed_statement_is_a_store_error_without_the_value(store):
    await store.write(put("canary"))
    with pytest.raises(StoreError, match="UNIQUE") as caught:
        await store.write(put("canary"))
    assert "canary" not in caught.value.message


@pytest.mark.parametrize("value", ["canary\ud800", 2**70, object()])
async def test_a_value_that_sqlite_cannot_keep(store, value):
    with pytest.raises(StoreError) as caught:
        await store.write(lambda tx: tx.execute("INSERT INTO settings VALUES ('k', ?)", (value,)))
    assert "canary" not in caught.value.message
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, sqlite3.Error)
    await store.write(put("after"))


async def test_a_transaction_cannot_be_kept(store):
    kept = await store.write(lambda tx: tx)
    with pytest.raises(StoreError, match="after its end"):
        kept.execute("SELECT 1")


async def test_a_write_cannot_await(store):
    async def job(tx):
        await trio.lowlevel.checkpoint()

    with pytest.raises(TypeError, match="plain function"):
        await store.write(job)


async def test_foreign_keys_hold(store):
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        await store.write(
            lambda tx: tx.execute("INSERT INTO deliveries VALUES ('none', 'r', 'pending', 0, 0, '', NULL)")
        )


async def test_a_snapshot_is_one_moment(opened):
    async with opened() as store, opened() as other:
        with store.snapshot():
            assert keys(store) == set()
            await other.write(put("a"))  # another process, in effect
            assert keys(store) == set()
        assert keys(store) == {"a"}


# --- failing commits ------------------------------------------------------------------------------------------------


async def test_a_failing_commit_fails_everybody_in_it(either, monkeypatch):
    errors = []

    async def attempt(store, key):
        try:
            await store.write(put(key))
        except StoreError as error:
            errors.append(error)

    async with either() as store:
        await store.write(put("before"))
        store._writer.execute("PRAGMA max_page_count = 1")  # the disk is full from now on
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages}")
        async with trio.open_nursery() as nursery:
            for key in range(5):
                nursery.start_soon(attempt, store, f"{key}" + "long" * 50_000)
        assert len(errors) == 5
        assert all("disk is full" in error.message and "free some space" in error.hint for error in errors)
        assert keys(store) == {"before"}
        store._writer.execute("PRAGMA max_page_count = 1000000")
        await store.write(put("after"))
        assert keys(store) == {"before", "after"}


async def test_a_commit_that_fails_writes_nothing(opened, monkeypatch):
    async with opened(executor="thread") as store:

        def fail():
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(store, "_commit_in_thread", fail)
            with pytest.raises(StoreError, match="I/O"):
                await store.write(put("lost"))
        await store.write(put("kept"))
        assert keys(store) == {"kept"}


async def test_a_write_that_ends_the_transaction_cannot_fake_a_commit(store):
    async def attempt(fn, outcomes):
        try:
            outcomes.append(await store.write(fn))
        except StoreError as error:
            outcomes.append(error)

    outcomes = []
    async with trio.open_nursery() as nursery:
        for fn in (lambda tx: tx.execute("ROLLBACK"), put("a"), put("b")):
            nursery.start_soon(attempt, fn, outcomes)
    assert sum(isinstance(outcome, StoreError) for outcome in outcomes) >= 1
    assert len(keys(store)) == sum(not isinstance(outcome, StoreError) for outcome in outcomes)
    await store.write(put("after"))


async def test_another_process_holds_the_database(tmp_path, vault):
    """The loop goes on meanwhile; the wait is on Trio's clock, and ends."""
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main():
        async with open_store(tmp_path / "x.db", vault=vault, clock=VirtualClock(), executor="inline") as store:
            other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="another process") as caught:
                await store.write(put("a"))
            assert caught.value.hint
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, put("b"))
                await trio.sleep(1)
                other.execute("ROLLBACK")
            other.close()
            assert keys(store) == {"b"}

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


# --- cancellation ---------------------------------------------------------------------------------------------------


async def test_cancelled_before_the_call_leaves_nothing(store):
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.write(put("a"))
    assert scope.cancelled_caught
    await store.write(put("b"))
    assert keys(store) == {"b"}


async def test_cancelled_while_waiting_is_written_whole(opened, monkeypatch):
    async with opened(executor="thread") as store:
        slow, commit = threading.Event(), store._commit_in_thread
        monkeypatch.setattr(store, "_commit_in_thread", lambda: (slow.wait(5), commit()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, put("a"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(store.write, put("b"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        slow.set()
        await store.write(put("c"))
        assert keys(store) == {"a", "b", "c"}


async def test_leaving_finishes_what_is_queued_even_when_cancelled(opened, monkeypatch):
    with trio.CancelScope() as scope:
        async with opened(executor="thread") as store, trio.open_nursery() as nursery:
            slow, commit = threading.Event(), store._commit_in_thread
            monkeypatch.setattr(store, "_commit_in_thread", lambda: (slow.wait(5), commit()))
            for key in range(10):
                nursery.start_soon(store.write, put(key))
            await trio.testing.wait_all_tasks_blocked(0.01)
            threading.Timer(0.05, slow.set).start()
            scope.cancel()
    assert scope.cancelled_caught
    async with opened() as store:
        assert len(keys(store)) == 10


async def test_exceptions_leave_the_context_as_they_are(either):
    with pytest.raises(LookupError):
        async with either():
            raise LookupError


# --- listening ------------------------------------------------------------------------------------------------------


async def test_listeners_are_woken_after_the_commit(store):
    def job(tx):
        put("a")(tx)
        tx.touch("news")
        with pytest.raises(trio.WouldBlock):
            news.receive_nowait()

    with store.listen("news") as news, store.listen("other") as other:
        await store.write(job)
        await news.receive()
        assert keys(store) == {"a"}
        with pytest.raises(trio.WouldBlock):
            other.receive_nowait()


async def test_wake_ups_are_conflated(store):
    with store.listen("news") as news:
        for _ in range(5):
            await store.write(lambda tx: tx.touch("news"))
        await news.receive()
        with pytest.raises(trio.WouldBlock):
            news.receive_nowait()


async def test_a_write_that_was_undone_wakes_nobody(store):
    def job(tx):
        tx.touch("news")
        raise LookupError

    with store.listen("news") as news:
        with pytest.raises(LookupError):
            await store.write(job)
        with pytest.raises(trio.WouldBlock):
            news.receive_nowait()


async def test_a_listener_that_left_is_forgotten(store):
    with store.listen("news"):
        pass
    await store.write(lambda tx: tx.touch("news"))
    assert store._listeners == {}


async def test_listening_ends_with_the_store(opened):
    async with opened() as store:
        listening = store.listen("news")
        news = listening.__enter__()
    with pytest.raises(trio.EndOfChannel):
        await news.receive()
    listening.__exit__(None, None, None)


# --- the end --------------------------------------------------------------------------------------------------------


async def test_after_the_end_every_call_says_so(either):
    async with either() as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.write(put("a"))
    with pytest.raises(StoreError, match="closed"):
        store.read("SELECT 1")
    with pytest.raises(StoreError, match="closed"), store.listen("x"):
        pass


async def test_closing_leaves_one_file(tmp_path, either):
    async with either() as store:
        await store.write(put("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["pylon.db"]


async def test_kill_loses_what_is_not_committed_and_nothing_else(opened):
    errors = []

    async def attempt(store):
        try:
            await store.write(put("late"))
        except StoreError as error:
            errors.append(error)

    async with opened() as store:
        await store.write(put("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, store)
            await trio.lowlevel.checkpoint()
            store.kill()
            store.kill()
        for call in (lambda: store.read("SELECT 1"), lambda: store.one("SELECT 1")):
            with pytest.raises(StoreError, match="killed"):
                call()
        with pytest.raises(StoreError, match="killed"):
            await store.write(put("b"))
        async with opened() as again:  # before the old context is left, as a simulation does
            assert keys(again) in ({"a"}, {"a", "late"})
            assert ("late" in keys(again)) == (errors == [])


async def test_kill_inside_a_write(opened):
    async with opened() as store:
        await store.write(put("a"))

        def job(tx):
            put("b")(tx)
            store.kill()

        with pytest.raises(StoreError, match="killed"):
            await store.write(job)
    async with opened() as store:
        assert keys(store) == {"a"}


async def test_kill_while_a_thread_commits(opened, monkeypatch):
    async with opened(executor="thread") as store:
        slow, commit = threading.Event(), store._commit_in_thread
        monkeypatch.setattr(store, "_commit_in_thread", lambda: (slow.wait(5), commit()))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def write():
                with pytest.raises(StoreError, match="killed"):
                    await store.write(put("a"))

            await trio.testing.wait_all_tasks_blocked(0.01)
            store.kill()
            slow.set()
    async with opened() as store:
        assert keys(store) <= {"a"}


SIGKILLED = """
    import os, sys, trio
    from pylon.clock import SystemClock
    from pylon.store.database import open_store
    from pylon.store.vault import Vault

    async def write(store, worker):
        n = 0
        while True:
            key = f"{worker}-{n}"
            await store.write(lambda tx: tx.execute("INSERT INTO settings VALUES (?, ?)", (key, "x" * 300)))
            os.write(1, (key + "\\n").encode())
            n += 1

    async def main():
        async with open_store(sys.argv[1], vault=Vault(bytes(32)), clock=SystemClock()) as store:
            async with trio.open_nursery() as nursery:
                for worker in range(8):
                    nursery.start_soon(write, store, worker)

    trio.run(main)
"""


def run_and_kill(path, lines):
    """Let a process write until it has said so many lines; all that it said before it died."""
    command = [sys.executable, "-c", textwrap.dedent(SIGKILLED), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        return said + process.stdout.readlines()


@pytest.mark.parametrize("lines", [1, 200, 777])
async def test_sigkill_keeps_every_acknowledged_row(tmp_path, vault, clock, lines):
    path = tmp_path / "pylon.db"
    said = run_and_kill(path, lines)
    acknowledged = {line.strip() for line in said if line.endswith("\n")}
    async with open_store(path, vault=vault, clock=clock) as store:
        assert store.one("PRAGMA integrity_check")[0] == "ok"
        found = keys(store)
        # At most one write of each of the 8 workers was committed and not yet said.
        assert acknowledged <= found
        assert len(found - acknowledged) <= 8
        await store.write(put("again"))


# --- opening --------------------------------------------------------------------------------------------------------


async def test_only_the_owner_can_read_it(tmp_path, opened):
    old = os.umask(0)
    try:
        async with opened() as store:
            await store.write(put("a"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"pylon.db": 0o600, "pylon.db-wal": 0o600, "pylon.db-shm": 0o600}


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 0)])
async def test_pragmas(opened, durable, level):
    async with opened(durable=durable) as store:
        ask = store._writer.execute
        assert ask("PRAGMA synchronous").fetchone()[0] == level
        assert ask("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert ask("PRAGMA foreign_keys").fetchone()[0] == 1


async def test_no_directory(tmp_path, opened):
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        async with opened("missing/pylon.db"):
            pass
    assert "directory" in caught.value.hint


async def test_a_file_that_is_no_database(tmp_path, opened):
    (tmp_path / "pylon.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database") as caught:
        async with opened():
            pass
    assert "restore a backup" in caught.value.hint


def damage_settings(path):
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'settings'").fetchone()[0]
    content[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(content)


async def test_a_damaged_page_is_said_at_the_start_and_nothing_is_changed(tmp_path, opened):
    async with opened() as store:
        for key in range(300):
            await store.write(put(key, "x" * 500))
    path = tmp_path / "pylon.db"
    damage_settings(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="damaged") as caught:
        async with opened():
            pass
    assert str(path) in caught.value.message
    assert "pylon restore" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["read", "write"])
async def test_damage_that_is_met_later_ends_all_writing(tmp_path, either, how, monkeypatch):
    """What was written in the same commit is undone, too; what still reads can be read."""
    async with either() as store:
        for key in range(300):
            await store.write(put(key, "x" * 500))
    path = tmp_path / "pylon.db"
    async with either() as store:
        damage_settings(path)
        errors, begin = [], store._begin

        async def begin_late():
            await trio.sleep(0.05)  # until both are there
            await begin()

        monkeypatch.setattr(store, "_begin", begin_late)

        async def attempt(job):
            try:
                await store.write(job)
            except StoreError as error:
                errors.append(error)

        if how == "read":
            with pytest.raises(StoreError, match="damaged"):
                store.read("SELECT * FROM settings")
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, lambda tx: tx.execute("INSERT INTO cursors VALUES ('x', 1)"))
                nursery.start_soon(attempt, lambda tx: tx.all("SELECT * FROM settings"))
            assert len(errors) == 2
        await attempt(lambda tx: tx.execute("INSERT INTO cursors VALUES ('y', 1)"))
        assert "damaged" in errors[-1].message
        assert "pylon restore" in errors[-1].hint
        assert store.damaged is not None
        assert store.read("SELECT * FROM cursors") == []


async def test_an_empty_file_is_no_new_database(tmp_path, opened):
    (tmp_path / "pylon.db").touch()
    with pytest.raises(StoreError, match="empty"):
        async with opened():
            pass
    assert (tmp_path / "pylon.db").stat().st_size == 0


async def test_a_log_without_its_database_is_no_new_database(tmp_path, opened):
    (tmp_path / "pylon.db-wal").write_bytes(b"x" * 5_000)
    with pytest.raises(StoreError, match="gone"):
        async with opened():
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["pylon.db-wal"]


async def test_a_database_has_its_name_once_it_is_whole(tmp_path, opened, monkeypatch):
    def die(connection, path):
        assert not (tmp_path / "pylon.db").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pylon.store.sqlite.migrate", die)
        with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
            async with opened():
                pass
    assert list(tmp_path.iterdir()) == []


async def test_a_newer_schema_is_said(opened):
    async with opened() as store:
        await store.write(
            lambda tx: tx.execute("INSERT INTO _sqlite_migrations VALUES (99, 'pylon', 'm999_future', 'then')")
        )
    with pytest.raises(StoreError, match="newer Pylon"):
        async with opened():
            pass


def test_under_a_mock_clock_without_threads(tmp_path, vault, monkeypatch):
    def no_threads(*args, **kwargs):
        raise AssertionError("a thread in virtual time")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_threads)
    clock = VirtualClock()

    async def main():
        async with open_store(tmp_path / "x.db", vault=vault, clock=clock, executor="inline", durable=False) as store:

            async def ticker(name):
                for n in range(100):
                    await trio.sleep(3600)
                    await store.write(put(f"{name}-{n}", str(clock.now())))

            async with trio.open_nursery() as nursery:
                for name in range(5):
                    nursery.start_soon(ticker, name)
            return len(keys(store)), trio.current_time()

    count, elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert count == 500
    assert elapsed == pytest.approx(360_000)


async def test_a_database_that_is_locked_is_waited_for_and_then_said(tmp_path, opened, monkeypatch):
    async with opened():
        pass
    for name in (
        "pylon.store.database.BUSY_SECONDS",
        "pylon.store.sqlite.BUSY_SECONDS",
        "pylon.store.damage._BUSY_SECONDS",
    ):
        monkeypatch.setattr(name, 0.3)
    with closing(sqlite3.connect(tmp_path / "pylon.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("INSERT INTO settings VALUES ('theirs', 'x')")
        began = time.monotonic()
        with pytest.raises(StoreError, match="another process holds the database") as caught:
            async with opened():
                pass
        assert time.monotonic() - began > 0.25
        assert "other program" in caught.value.hint
        other.execute("ROLLBACK")
    async with opened() as store:
        assert keys(store) == set()
