"""What may be opened: no damage that loses what was committed, and no alarm for what a power cut or a kill leaves."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import StoreError
from pylon.store import remedy
from pylon.store.damage import _log_trouble, check, expect_sound

HEAD, FRAME = 32, 24 + 4096


def write_log(path, sizes, *, rollback=(), spill=False):
    """The log of transactions, each row of so many bytes in one of its own; what it was after each commit."""
    logs = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        if spill:
            db.execute("PRAGMA cache_size = 4")
        db.execute("CREATE TABLE t (x)")
        for number, size in enumerate(sizes):
            db.execute("BEGIN")
            for _ in range(40 if spill and number in rollback else 1):
                db.execute("INSERT INTO t VALUES (?)", (os.urandom(size),))
            db.execute("ROLLBACK" if number in rollback else "COMMIT")
            logs.append(path.with_name(path.name + "-wal").read_bytes())
    return logs


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "a.db", [50, 9_000, 100, 20_000, 50, 4_000, 9_000, 30])


def test_a_whole_log_and_every_beginning_of_it(logs):
    for log in logs:
        assert _log_trouble(log) == ""
    for cut in range(0, len(logs[-1]), 997):
        assert _log_trouble(logs[-1][:cut]) == ""


@given(data=st.data())
def test_no_byte_of_what_was_committed_before_others_can_change(logs, data):
    log, before = logs[-1], logs[-3]
    at = data.draw(st.integers(0, len(before) - 1))
    bad = log[:at] + bytes([log[at] ^ data.draw(st.integers(1, 255))]) + log[at + 1 :]
    # The number of checkpoints, and the version, are of no use to anybody, but the head's sums cover them.
    assert _log_trouble(bad) != ""


@given(data=st.data())
def test_no_alarm_for_a_last_transaction_that_is_torn(logs, data):
    """A power cut writes any of its sectors and not the others."""
    number = data.draw(st.integers(1, len(logs) - 1))
    before, log = logs[number - 1], bytearray(logs[number])
    for start in range(len(before), len(log), 512):
        if data.draw(st.booleans()):
            log[start : start + 512] = bytes(len(log[start : start + 512]))
    assert _log_trouble(bytes(log)) == ""


def test_no_alarm_for_what_was_rolled_back(tmp_path):
    """Frames that a large transaction has spilled, and then took back, stand behind what is committed next."""
    for log in write_log(tmp_path / "a.db", [3_000] * 6, rollback=(1, 3), spill=True):
        assert _log_trouble(log) == ""


def test_no_alarm_for_a_log_that_began_anew(tmp_path):
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        for size in (9_000, 50_000, 100, 30_000):
            db.execute("INSERT INTO t VALUES (?)", (os.urandom(size),))
        db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        db.execute("INSERT INTO t VALUES (?)", (os.urandom(10),))
        log = path.with_name("a.db-wal").read_bytes()
    assert len(log) > 20 * FRAME
    assert _log_trouble(log) == ""


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    """As a killed process leaves it: with a log, and nobody who has it open."""
    path = tmp_path / "pylon.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        db.executemany("INSERT INTO t VALUES (?)", [(os.urandom(2_000),) for _ in range(50)])
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for _ in range(3):
            db.execute("INSERT INTO t VALUES (?)", (os.urandom(2_000),))
        copies = {end: path.with_name(path.name + end).read_bytes() for end in ("", "-wal")}
    for end, content in copies.items():
        path.with_name(path.name + end).write_bytes(content)
    return path


def state(path):
    return {each.name: each.read_bytes() for each in path.parent.iterdir() if not each.name.endswith("-shm")}


def test_a_sound_one_is_not_changed(database):
    before = state(database)
    expect_sound(database)
    assert check(database) == ""
    assert state(database) == before
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT COUNT(*) FROM t").fetchone() == (53,)


@pytest.mark.parametrize("damage", ["truncated", "page", "header", "no database", "empty", "log", "gone", "cut page"])
def test_damage_is_said_with_the_file_and_nothing_is_changed(database, damage):
    log, content = database.with_name("pylon.db-wal"), bytearray(database.read_bytes())
    match damage:
        case "truncated":
            content = content[: 5 * 4_096]
        case "cut page":
            content = content[: 5 * 4_096 + 100]
        case "page":
            content[4_096 : 20 * 4_096] = os.urandom(19 * 4_096)
        case "header":
            content[:32] = bytes(32)
        case "no database":
            content[:] = b"these are not the bytes of a database\n" * 400
        case "empty":
            content = bytearray()
        case "log":
            raw = bytearray(log.read_bytes())
            raw[HEAD + 24 + 100] ^= 1
            log.write_bytes(raw)
    database.write_bytes(content)
    if damage == "gone":
        database.unlink()
    before = state(database)
    with pytest.raises(StoreError) as caught:
        expect_sound(database)
    assert str(database) in caught.value.message
    assert "damaged" in caught.value.message
    assert "pylon restore" in caught.value.hint
    assert state(database) == before


def test_the_newest_backup_is_named(database, tmp_path):
    (tmp_path / remedy.NOTE).write_bytes(remedy.note("/media/usb/pylon.backup", 1_800_000_000.0))
    database.write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        expect_sound(database)
    assert "pylon restore --force /media/usb/pylon.backup" in caught.value.hint
    assert "2027-01-15" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": "x", "path": 1}', b"\xff", b'{"at": 1}'])
def test_a_note_that_does_not_read_names_none(tmp_path, content):
    (tmp_path / remedy.NOTE).write_bytes(content)
    assert "none is known" in remedy.restore(tmp_path / "pylon.db")


def test_nothing_is_sound(tmp_path):
    expect_sound(tmp_path / "pylon.db")
    assert list(tmp_path.iterdir()) == []
