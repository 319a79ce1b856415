"""The store: one SQLite database with one writer, and commits that many writes share.

A write is a function of a transaction. Writes queue; the writer task runs all that have gathered inline, each in a
savepoint of its own, within one transaction. Only the COMMIT, which waits for the disk, goes to a thread; what is
written meanwhile gathers for the next commit. So a busy store makes few commits, and an idle one answers at once.

WAL, ``synchronous=FULL``: what ``write`` has returned for survives a power cut (on macOS by ``F_FULLFSYNC``).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import attrs
import trio

from pylon.clock import Clock
from pylon.errors import StoreError
from pylon.store.sqlite import (
    BUSY_SECONDS,
    DAMAGE,
    TRANSLATED,
    connect,
    primary_code,
    shown_cause,
    translate,
    translated,
)
from pylon.store.vault import Vault

log = logging.getLogger(__name__)

T = TypeVar("T")
Params: TypeAlias = Sequence[Any] | Mapping[str, Any]

GROUP_LIMIT = 256
"""The most writes in one commit: a bound on how long the loop is kept from everything else."""

RECORD_SECONDS = 30.0
"""How long a record is waited for, under a shield, once what it records has happened outside."""


class Reads(Protocol):
    """What can be asked: a ``Store`` answers from what is committed, a ``Tx`` with its own changes too."""

    def read(self, sql: str, params: Params = ()) -> list[sqlite3.Row]: ...

    def one(self, sql: str, params: Params = ()) -> sqlite3.Row | None: ...


@attrs.frozen
class Executed:
    """What a statement without rows has done."""

    rowcount: int
    """Rows inserted, changed or deleted."""
    lastrowid: int | None


class Tx:
    """A transaction, as the function given to ``Store.write`` sees it. Of no use after that function has returned."""

    __slots__ = ("_connection", "_path", "_told", "_topics", "clock", "vault")

    def __init__(self, connection: sqlite3.Connection, path: str, vault: Vault, clock: Clock) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._path = path
        self._topics: dict[str, None] = {}
        self._told: list[object] = []
        self.vault = vault
        self.clock = clock

    def execute(self, sql: str, params: Params = ()) -> Executed:
        """Run a statement that returns no rows."""
        cursor = self._run(sql, params)
        return Executed(cursor.rowcount, cursor.lastrowid)

    def all(self, sql: str, params: Params = ()) -> list[sqlite3.Row]:
        """All rows, with what this transaction has written."""
        cursor = self._run(sql, params)
        try:
            return cursor.fetchall()
        except TRANSLATED as error:
            raise translate(error, self._path) from shown_cause(error)

    read = all

    def one(self, sql: str, params: Params = ()) -> sqlite3.Row | None:
        """The first row, or ``None``."""
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def touch(self, topic: str) -> None:
        """Wake the listeners of ``topic``, after the commit and only then."""
        self._topics[topic] = None

    def tell(self, fact: object) -> None:
        """Have ``Store.on_fact`` told what this transaction has brought about: after the commit and only then."""
        self._told.append(fact)

    def _run(self, sql: str, params: Params) -> sqlite3.Cursor:
        if self._connection is None:
            raise StoreError("a transaction was used after its end")
        try:
            return self._connection.execute(sql, params)
        except TRANSLATED as error:
            raise translate(error, self._path) from shown_cause(error)

    def _end(self) -> None:
        self._connection = None


class _Job(Generic[T]):
    """One queued write and what became of it."""

    __slots__ = ("done", "error", "fn", "result", "told", "topics")

    def __init__(self, fn: Callable[[Tx], T]) -> None:
        self.fn = fn
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.result: T | None = None
        self.topics: dict[str, None] = {}
        self.told: list[object] = []

    def fail(self, error: BaseException) -> None:
        if not self.done.is_set():
            self.error = self.error or error
            self.done.set()


class Store:
    """An open database. Made by ``open_store``."""

    def __init__(
        self,
        path: str,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        vault: Vault,
        clock: Clock,
        threaded: bool,
    ) -> None:
        self.path = path
        self.vault = vault
        self.clock = clock
        self.commits = 0
        """Commits so far."""
        self.writes = 0
        """Writes so far that were committed."""
        self.failures = 0
        """Times so far that nothing could be committed: the disk is full, or somebody else holds the database."""
        self.on_fact: Callable[[object], None] | None = None
        """Told what transactions tell (``Tx.tell``), in the order of the commits. Must not raise, nor wait."""
        self.damaged: StoreError | None = None
        """Why nothing is written any more: the database was found to be damaged. What still reads can be read."""
        self._writer = writer
        self._reader = reader
        self._limiter = trio.CapacityLimiter(1) if threaded else None
        self._queue: deque[_Job[Any]] = deque()
        self._group: list[_Job[Any]] = []
        self._wake = trio.Event()
        self._ending = False
        self._dead: StoreError | None = None
        self._busy = False
        self._finished = trio.Event()
        self._listeners: dict[str, list[trio.MemorySendChannel[None]]] = {}
        self._snapshots = 0

    @property
    def threaded(self) -> bool:
        """Whether what takes long may go to a thread; in virtual time nothing does."""
        return self._limiter is not None

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, sql: str, params: Params = ()) -> list[sqlite3.Row]:
        """All rows of a query over what is committed. Synchronous: keep it to what an index answers."""
        self._require_alive()
        try:
            return self._reader.execute(sql, params).fetchall()
        except TRANSLATED as error:
            raise self._translate(error) from shown_cause(error)

    def one(self, sql: str, params: Params = ()) -> sqlite3.Row | None:
        """The first row of a query over what is committed, or ``None``."""
        self._require_alive()
        try:
            cursor = self._reader.execute(sql, params)
            try:
                return cast("sqlite3.Row | None", cursor.fetchone())
            finally:
                cursor.close()
        except TRANSLATED as error:
            raise self._translate(error) from shown_cause(error)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside see one moment, whatever is committed meanwhile. Nothing may be awaited inside."""
        self._require_alive()
        if self._snapshots == 0:
            with translated(self.path):
                self._reader.execute("BEGIN")
        self._snapshots += 1
        try:
            yield
        finally:
            self._snapshots -= 1
            if self._snapshots == 0 and self._dead is None:
                self._reader.execute("ROLLBACK")

    # --- writing --------------------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run ``fn`` in a transaction; returns its result once that is committed.

        ``fn`` runs in the writer task and must not await. If it raises, its changes are undone and the exception
        arrives here, and nowhere else. Raises ``StoreError`` where the commit fails: then nothing was written.

        Cancellation never tears a write: a caller that is cancelled before the call leaves nothing behind; one that
        is cancelled while it waits has written already or will have, as if it had not been cancelled.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._require_alive()
        if self._ending:
            raise StoreError("the store is being closed", "nothing more can be written")
        job = _Job(fn)
        self._queue.append(job)
        self._wake.set()
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    @contextmanager
    def listen(self, topic: str) -> Iterator[trio.MemoryReceiveChannel[None]]:
        """Wake-ups for ``topic``: one waits in the channel if any write has touched it since the last was received.

        The channel ends when the store is closed.
        """
        self._require_alive()
        send, receive = trio.open_memory_channel[None](1)
        self._listeners.setdefault(topic, []).append(send)
        try:
            yield receive
        finally:
            listening = self._listeners.get(topic, [])
            if send in listening:
                listening.remove(send)
            if not listening:
                self._listeners.pop(topic, None)
            send.close()
            receive.close()

    def condemn(self, why: StoreError) -> None:
        """Write nothing any more, for the database is damaged: what was built on it could not be believed."""
        if self.damaged is None:
            self.damaged = why
            log.critical("nothing is written any more, sold or spent: %s (%s)", why.message, why.hint)

    def _translate(self, error: Exception) -> StoreError:
        told = translate(error, self.path)
        if primary_code(error) in DAMAGE:
            self.condemn(told)
        return told

    def kill(self) -> None:
        """Die as in a power cut, for simulations: what is not committed is gone, and every later call raises.

        A commit that a thread has begun cannot be called back: it happens or not, as in a real one.
        """
        if self._dead is None:
            self._die(StoreError("the store was killed"))

    # --- the writer task ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """A system task: neither cancellation nor Ctrl-C may stop it between a statement and its commit."""
        try:
            while self._dead is None:
                if self._queue:
                    await self._commit_group()
                    await trio.lowlevel.checkpoint()
                elif self._ending:
                    break
                else:
                    self._wake = trio.Event()
                    await self._wake.wait()
        except BaseException as error:
            self._busy = False
            broken = StoreError(f"the store's writer broke: {type(error).__name__}", "this is a bug; restart Pylon")
            broken.__cause__ = error
            self._die(broken)
            if not isinstance(error, Exception):
                raise
        finally:
            self._finished.set()

    async def _commit_group(self) -> None:
        if self.damaged is not None:
            while self._queue:
                self._queue.popleft().fail(_copy(self.damaged))
            return
        try:
            await self._begin()
        except sqlite3.Error as error:
            self.failures += 1
            while self._queue:
                self._queue.popleft().fail(self._translate(error))
            return
        if self._dead is not None:
            return
        self._busy = True
        group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_LIMIT))]
        self._group = group
        try:
            for job in group:
                self._attempt(job)
                if self._dead is not None:
                    break
                if not self._writer.in_transaction:
                    # A full disk can end the whole transaction by itself, and what the others wrote with it.
                    raise _copy(job.error)
            if self.damaged is not None:
                raise _copy(self.damaged)
            if self._dead is None:
                await self._commit()
        except (sqlite3.Error, StoreError) as error:
            self.failures += 1
            self._roll_back()
            for job in group:
                job.fail(self._translate(error) if isinstance(error, sqlite3.Error) else _copy(error))
        finally:
            self._busy = False
            self._group = []
        if self._dead is not None:
            self._close_connections()
            return
        self._announce(group)

    async def _begin(self) -> None:
        """Take the write lock. Waits for another process by sleeping, not by keeping the loop from running."""
        deadline = trio.current_time() + BUSY_SECONDS
        while self._dead is None:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or trio.current_time() >= deadline:
                    raise
            await trio.sleep(0.01)

    def _attempt(self, job: _Job[Any]) -> None:
        """Run one write in its savepoint. Its own exceptions stay with it; SQLite's about savepoints go up."""
        tx = Tx(self._writer, self.path, self.vault, self.clock)
        self._writer.execute("SAVEPOINT job")
        try:
            result = job.fn(tx)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("a write must be a plain function: it cannot await inside a transaction")
        except BaseException as error:
            job.error = error
            if isinstance(error, StoreError) and primary_code(error.__cause__) in DAMAGE:
                self.condemn(_copy(error))
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK TO job")
                self._writer.execute("RELEASE job")
        else:
            if self._writer.in_transaction:
                self._writer.execute("RELEASE job")
            job.result = result
            job.topics = tx._topics
            job.told = tx._told
        finally:
            tx._end()

    async def _commit(self) -> None:
        if self._limiter is None:
            self._writer.execute("COMMIT")
        else:
            await trio.to_thread.run_sync(self._commit_in_thread, limiter=self._limiter)
        self.commits += 1

    def _commit_in_thread(self) -> None:
        self._writer.execute("COMMIT")

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _announce(self, group: list[_Job[Any]]) -> None:
        """Tell listeners and callers."""
        for job in group:
            if job.error is None:
                self.writes += 1
                if self.on_fact is not None:
                    for fact in job.told:
                        self.on_fact(fact)
                for topic in job.topics:
                    for send in self._listeners.get(topic, ()):
                        with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                            send.send_nowait(None)
            job.done.set()

    # --- the end --------------------------------------------------------------------------------------------------

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise _copy(self._dead)

    def _die(self, why: StoreError) -> None:
        self._dead = why
        for job in (*self._group, *self._queue):
            job.fail(_copy(why))
        self._queue.clear()
        self._wake.set()
        for listening in self._listeners.values():
            for send in listening:
                send.close()
        if not self._busy:
            self._close_connections()

    def _close_connections(self) -> None:
        for connection in (self._reader, self._writer):
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.rollback()
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _checkpoint(self) -> None:
        """Bring the write-ahead log home. A failure loses nothing: the log stays, and is read at the next start."""
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    async def _aclose(self) -> None:
        self._ending = True
        self._wake.set()
        await self._finished.wait()
        if self._dead is not None:
            return
        if self.damaged is not None:
            pass  # what is there is evidence
        elif self._limiter is None:
            self._checkpoint()
        else:
            await trio.to_thread.run_sync(self._checkpoint, limiter=self._limiter)
        if self._dead is None:
            self._die(StoreError("the store is closed"))


def _copy(error: BaseException | None) -> StoreError:
    """The same failure for another caller: an exception that is raised twice grows the tracebacks of both."""
    if not isinstance(error, StoreError):
        return StoreError("another write of the same commit ended the transaction", "this is a bug; restart Pylon")
    copy = type(error)(error.message, error.hint)
    copy.__cause__ = error.__cause__
    return copy


@asynccontextmanager
async def open_store(
    path: str | os.PathLike[str],
    *,
    vault: Vault,
    clock: Clock,
    executor: Literal["thread", "inline"] = "thread",
    durable: bool = True,
) -> AsyncIterator[Store]:
    """Open the database at ``path``; it is made (mode 0600) and brought to the current schema where needed.

    :param executor: ``inline`` commits without a thread, for virtual time.
    :param durable: ``False`` leaves the disk to itself (``synchronous=OFF``): for tests.

    Leaving the context finishes what is queued, even if cancelled. Raises ``StoreError``.
    """
    name = os.fspath(path)
    writer, reader = connect(name, durable)
    store = Store(name, writer, reader, vault, clock, executor == "thread")
    trio.lowlevel.spawn_system_task(store._run, name=f"writer of {name}")
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store._aclose()
