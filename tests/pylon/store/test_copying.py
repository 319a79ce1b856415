"""A database in one file, as of one moment."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing

import pytest

from pylon.store.copying import copied


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("CREATE TABLE t (n)")
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (2)")
        yield path


def test_what_is_committed_is_in_one_file_and_what_is_not_is_not(database):
    with copied(database) as (copy, said):
        assert said == "ok"
        assert (copy.parent, stat.S_IMODE(copy.stat().st_mode)) == (database.parent, 0o600)
        assert copy.read_bytes()[18:20] == b"\1\1", "a log of its own would be a second file"
        with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as db:
            assert db.execute("SELECT n FROM t").fetchall() == [(1,)]
        assert not list(copy.parent.glob(f"{copy.name}-*"))
    assert not copy.exists()


def test_nothing_is_left_of_one_that_cannot_be_made(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(sqlite3.Error), copied(path):
        raise AssertionError("there is no copy")
    assert list(tmp_path.iterdir()) == [path]
