from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocols.nip01 import Event
from pylon.clock import VirtualClock
from pylon.store.database import Tx, open_store
from pylon.store.schema import migrate
from pylon.store.vault import Vault

NOW = 1_800_000_000.0
ALICE = "a1" * 32


class StoppedClock(VirtualClock):
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.at = NOW

    def now(self) -> float:
        return self.at


@pytest.fixture
def vault() -> Vault:
    return Vault(bytes(range(32)))


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def opened(tmp_path, vault, clock):
    """Open a store in the test's directory: ``async with opened() as store``; the same file each time."""

    def open_it(name: str = "pylon.db", **changes):
        settings = {"vault": vault, "clock": clock, "executor": "inline", "durable": False, **changes}
        return open_store(tmp_path / name, **settings)

    return open_it


@pytest.fixture
async def store(opened):
    async with opened() as store:
        yield store


def make_event(kind: int = 1, created_at: int = int(NOW), content: str = "", tags=(), author: str = ALICE) -> Event:
    """An event with an id of its own; nothing here looks at signatures."""
    tags = tuple(tuple(tag) for tag in tags)
    ident = hashlib.sha256(repr((kind, created_at, content, tags, author)).encode()).hexdigest()
    return Event(id=ident, pubkey=author, created_at=created_at, kind=kind, tags=tags, content=content, sig="00" * 64)


_connection: sqlite3.Connection | None = None


@contextmanager
def transaction(clock: StoppedClock | None = None) -> Iterator[Tx]:
    """A transaction over an empty database in memory, undone at its end: fast enough for many examples."""
    global _connection
    if _connection is None:
        _connection = sqlite3.connect(":memory:", isolation_level=None)
        _connection.row_factory = sqlite3.Row
        _connection.execute("PRAGMA foreign_keys = ON")
        migrate(_connection, ":memory:")
    _connection.execute("BEGIN")
    try:
        yield Tx(_connection, ":memory:", Vault(bytes(range(32))), clock or StoppedClock())
    finally:
        _connection.execute("ROLLBACK")
