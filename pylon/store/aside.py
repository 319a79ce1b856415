"""A long look at the database, in a thread, while the loop goes on.

What a ``Store`` answers keeps the loop for as long as it takes: right for what an index answers, and not for what reads
all that there is, as an audit of the books does at every start. That asks here: through a connection of its own, as of
one moment.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Protocol, TypeVar

import trio

from pylon.errors import StoreError
from pylon.store.database import Params, Reads, Store
from pylon.store.sqlite import open_connection, translated
from pylon.store.vault import Vault

T = TypeVar("T")


class Snapshots(Reads, Protocol):
    """What can be asked for several things of one moment, sealed ones too: a ``Store``, or what lies aside."""

    @property
    def vault(self) -> Vault: ...

    def snapshot(self) -> AbstractContextManager[None]: ...


class _Aside:
    """See the module. For one thread, which ends with a read where nobody waits for it any more."""

    def __init__(self, connection: sqlite3.Connection, path: str, vault: Vault) -> None:
        self._connection = connection
        self._path = path
        self.vault = vault

    def read(self, sql: str, params: Params = ()) -> list[sqlite3.Row]:
        trio.from_thread.check_cancelled()
        with translated(self._path):
            return self._connection.execute(sql, params).fetchall()

    def one(self, sql: str, params: Params = ()) -> sqlite3.Row | None:
        rows = self.read(sql, params)
        return rows[0] if rows else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        yield  # it is one


async def look_aside(store: Store, look: Callable[[Snapshots], T]) -> T:
    """What ``look`` makes of what is committed, all of one moment.

    ``look`` runs in a thread, where it may use what it is handed and nothing else of ours; in virtual time it runs
    inline, on the store. What fails aside is tried there as well: the store knows what a damaged database means.
    """
    if not store.threaded:
        return look(store)

    def aside() -> T:
        with contextlib.ExitStack() as stack:
            with translated(store.path):
                connection = stack.enter_context(closing(open_connection(store.path)))
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
            return look(_Aside(connection, store.path, store.vault))

    try:
        return await trio.to_thread.run_sync(aside)
    except StoreError:
        return look(store)
