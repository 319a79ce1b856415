"""The embedded relay's memory: signed events in one SQLite file, with the rules that NIP-01 sets for keeping them.

What is kept: regular events for good, replaceable and addressable ones in their newest version only (NIP-01; of two
of the same second the lower id wins), ephemeral ones never; an event with an ``expiration`` until then (NIP-40);
nothing that its author has asked to delete, whether the request came before or after it (NIP-09).

Writes are grouped: ``add`` opens a transaction if none is open, ``commit`` ends it, so that events which arrive
together share one commit. Whoever promises storage to a client commits first. The file is ``synchronous=NORMAL``:
it survives the death of the process; the last moments may be missing after a power cut, and publishers send again.

Everything is synchronous and meant for the one Trio thread: a row costs tens of microseconds, a thread hop ten times
as much.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
import itertools
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath

import orjson

from protocols import nip40
from protocols.nip01 import Event, Filter, KindClass, kind_class
from pylon.errors import StoreError

DELETION_KIND = 5
"""NIP-09."""

_VERSION = 1
_PURGE_EVERY = 60
_PURGE_BATCH = 1_000
_JOBS_BATCH = 200
_LONG_VALUE = 128
_MAX_SCANS = 128
_MAX_INTEGER = 2**63 - 1
_HEX32 = re.compile("[0-9a-f]{64}")

# `id` stands in every index because results are ordered by (created_at DESC, id), and a limit may cut within a second.
# Tag values are kept for single letters only (NIP-01); `slot` is the address of a replaceable event.
_SCHEMA = """
CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    pubkey BLOB NOT NULL,
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    slot ANY,
    json TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_time ON event (created_at DESC, id);
CREATE INDEX event_by_kind ON event (kind, created_at DESC, id);
CREATE INDEX event_by_author ON event (pubkey, created_at DESC, id);
CREATE INDEX event_by_author_and_kind ON event (pubkey, kind, created_at DESC, id);
CREATE INDEX event_by_expiration ON event (expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX event_by_slot ON event (slot) WHERE slot IS NOT NULL;
CREATE TABLE tag (
    name TEXT NOT NULL,
    value ANY NOT NULL,
    created_at INTEGER NOT NULL,
    id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (name, value, created_at DESC, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE deleted (
    pubkey BLOB NOT NULL,
    target ANY NOT NULL,
    until INTEGER,
    PRIMARY KEY (pubkey, target)
) STRICT, WITHOUT ROWID;
"""

_Row = tuple[int, bytes, str]
_Scan = tuple[str, list[object]]


class Outcome(enum.StrEnum):
    """What became of an event handed to the store."""

    STORED = "stored"
    REPLACED = "replaced"
    """Stored, in the place of an older version."""
    EPHEMERAL = "ephemeral"
    """Of a kind that is passed on and never kept."""
    DUPLICATE = "duplicate"
    OLDER = "older"
    """A newer version of the same address is here."""
    EXPIRED = "expired"
    DELETED = "deleted"
    """Its author asked for its deletion."""


class EventStore:
    """The events of one relay.

    ``path`` is a file, made if absent, or ``":memory:"``. Times are Unix seconds and always the caller's. Every
    method raises ``StoreError`` where SQLite fails; after a failed ``add`` or ``commit`` the open group is gone.
    """

    def __init__(self, path: str | PathLike[str] = ":memory:") -> None:
        self._purged_at = 0
        try:
            self._db = sqlite3.connect(fspath(path), isolation_level=None, timeout=1.0, cached_statements=512)
        except sqlite3.Error as error:
            raise _cannot_open(path, error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise _cannot_open(path, error) from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA temp_store=MEMORY")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
        elif version != _VERSION:
            self._db.close()
            raise StoreError(
                f"the relay's events are of version {version}, this Pylon knows {_VERSION}",
                "use the Pylon that wrote the file, or move relay.db away: a relay starts empty without it",
            )

    def close(self) -> None:
        """Commit what is open and close the file."""
        try:
            self.commit()
        finally:
            self._db.close()

    # --- writing ----------------------------------------------------------------------------------------------

    def add(self, event: Event, now: int) -> Outcome:
        """Take an event whose id and signature the caller has checked. It lasts from the next ``commit`` on."""
        if nip40.is_expired(event, now):
            return Outcome.EXPIRED
        if kind_class(event.kind) is KindClass.EPHEMERAL:
            return Outcome.EPHEMERAL
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            return self._add(event, now)
        except (sqlite3.Error, OverflowError) as error:
            self.rollback()
            raise StoreError(f"the relay cannot keep an event: {error}") from error

    def _add(self, event: Event, now: int) -> Outcome:
        raw_id, raw_pubkey = bytes.fromhex(event.id), bytes.fromhex(event.pubkey)
        address = event.address
        slot = None if address is None else _key(address)
        held = self._db.execute("SELECT 1 FROM event WHERE id = ?", (raw_id,)).fetchone()
        if held is not None:
            return Outcome.DUPLICATE
        if event.kind != DELETION_KIND and self._deleted(raw_pubkey, raw_id, slot, event.created_at):
            return Outcome.DELETED
        outcome = Outcome.STORED
        if slot is not None:
            held = self._db.execute(
                "SELECT seq, created_at, id, expires_at, json FROM event WHERE slot = ?", (slot,)
            ).fetchone()
            if held is not None:
                seq, created_at, held_id, expires_at, text = held
                # An expired version that was not purged yet must rule as little as one that was.
                if expires_at is None or expires_at > now:
                    if (created_at, event.id) > (event.created_at, held_id.hex()):
                        return Outcome.OLDER
                    outcome = Outcome.REPLACED
                self._remove(seq, text)
        self._insert(event, raw_id, raw_pubkey, slot)
        if event.kind == DELETION_KIND:
            self._delete_for(event, raw_pubkey)
        return outcome

    def _insert(self, event: Event, raw_id: bytes, raw_pubkey: bytes, slot: str | bytes | None) -> None:
        cursor = self._db.execute(
            "INSERT INTO event (id, pubkey, kind, created_at, expires_at, slot, json) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                raw_id,
                raw_pubkey,
                event.kind,
                event.created_at,
                nip40.expiration(event),
                slot,
                event.to_json(),
            ),
        )
        keys = {(tag[0], _key(tag[1])) for tag in event.tags if len(tag) > 1 and _indexed(tag[0])}
        if keys:
            self._db.executemany(
                "INSERT INTO tag (name, value, created_at, id, seq) VALUES (?, ?, ?, ?, ?)",
                [(name, value, event.created_at, raw_id, cursor.lastrowid) for name, value in keys],
            )

    def _remove(self, seq: int, text: str) -> None:
        held = orjson.loads(text)
        raw_id = bytes.fromhex(held["id"])
        keys = {(tag[0], _key(tag[1])) for tag in held["tags"] if len(tag) > 1 and _indexed(tag[0])}
        self._db.executemany(
            "DELETE FROM tag WHERE name = ? AND value = ? AND created_at = ? AND id = ?",
            [(name, value, held["created_at"], raw_id) for name, value in keys],
        )
        self._db.execute("DELETE FROM event WHERE seq = ?", (seq,))

    def _deleted(self, raw_pubkey: bytes, raw_id: bytes, slot: str | bytes | None, created_at: int) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM deleted WHERE pubkey = ? AND (target = ? AND until IS NULL OR target = ? AND until >= ?)",
            (raw_pubkey, raw_id, slot, created_at),
        ).fetchone()
        return row is not None

    def _delete_for(self, request: Event, raw_pubkey: bytes) -> None:
        for name, value, *_ in (tag for tag in request.tags if len(tag) > 1):
            if name == "e" and (raw_id := _raw(value)) is not None:
                target: str | bytes = raw_id
                until = None
                victim = self._db.execute(
                    "SELECT seq, json FROM event WHERE id = ? AND pubkey = ? AND kind != ?",
                    (raw_id, raw_pubkey, DELETION_KIND),
                ).fetchone()
            elif name == "a" and value.split(":", 2)[1:2] == [request.pubkey]:
                target, until = _key(value), request.created_at
                victim = self._db.execute(
                    "SELECT seq, json FROM event WHERE slot = ? AND created_at <= ?", (target, until)
                ).fetchone()
            else:
                continue
            self._db.execute(
                "INSERT INTO deleted (pubkey, target, until) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
                (raw_pubkey, target, until),
            )
            if victim is not None:
                self._remove(*victim)

    def commit(self) -> None:
        """Make every event added so far last."""
        if not self._db.in_transaction:
            return
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self.rollback()
            raise StoreError(f"the relay cannot write its events: {error}") from error

    def rollback(self) -> None:
        """Forget the open group."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreError(f"the relay cannot undo a write: {error}") from error

    def purge(self, now: int) -> int:
        """Remove expired events (at most 1,000 at a time) and say how many. Cheap when called often."""
        if 0 <= now - self._purged_at < _PURGE_EVERY:
            return 0
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            gone = self._db.execute(
                "SELECT seq, json FROM event WHERE expires_at <= ? LIMIT ?", (now, _PURGE_BATCH)
            ).fetchall()
            for seq, text in gone:
                self._remove(seq, text)
        except sqlite3.Error as error:
            self.rollback()
            raise StoreError(f"the relay cannot remove expired events: {error}") from error
        self.commit()
        if len(gone) < _PURGE_BATCH:
            self._purged_at = now
        return len(gone)

    def forget_jobs(self, before: int) -> int:
        """Remove jobs (NIP-90: kinds 5000 to 7000) that were created before this; at most 200, and how many."""
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            gone = self._db.execute(
                "SELECT seq, json FROM event WHERE created_at < ? AND kind BETWEEN 5000 AND 7000 LIMIT ?",
                (before, _JOBS_BATCH),
            ).fetchall()
            for seq, text in gone:
                self._remove(seq, text)
        except sqlite3.Error as error:
            self.rollback()
            raise StoreError(f"the relay cannot remove old jobs: {error}") from error
        self.commit()
        return len(gone)

    # --- reading ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM event").fetchone()
        return int(count)

    def get(self, event_id: str) -> str | None:
        """The JSON of the event with this id, expired or not."""
        raw_id = _raw(event_id)
        row = self._read("SELECT json FROM event WHERE id = ?", [raw_id]).fetchone()
        return None if row is None else str(row[0])

    def query(self, filters: Iterable[Filter], now: int, limit: int = 500, max_bytes: int = 16_777_216) -> list[str]:
        """The JSON of the events that match any of ``filters``, newest first, of one second the lowest id first.

        Each filter yields at most its own ``limit`` and at most ``limit``. The whole answer ends at the first event
        that takes it past ``max_bytes`` characters, so that nobody can ask for more memory than that.
        """
        found: dict[bytes, _Row] = {}
        size = 0
        for wanted in filters:
            if size > max_bytes:
                break
            room = limit if wanted.limit is None else max(0, min(limit, wanted.limit))
            cursors = [self._read(sql, values) for sql, values in _plan(wanted, now)] if room else []
            try:
                for row in itertools.islice(_merge(cursors), room):
                    if row[1] not in found:
                        found[row[1]] = row
                        size += len(row[2])
                        if size > max_bytes:
                            break
            except sqlite3.Error as error:
                raise StoreError(f"the relay cannot read its events: {error}") from error
            finally:
                for cursor in cursors:
                    cursor.close()
        return [text for _, _, text in sorted(found.values(), key=_newest_first)]

    def _read(self, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise StoreError(f"the relay cannot read its events: {error}") from error


def _cannot_open(path: str | PathLike[str], error: sqlite3.Error) -> StoreError:
    return StoreError(f"the relay's events cannot be opened: {fspath(path)}: {error}")


def _newest_first(row: _Row) -> tuple[int, bytes]:
    return -row[0], row[1]


def _merge(cursors: Sequence[Iterable[_Row]]) -> Iterator[_Row]:
    """Rows of all cursors in order, each event once: one with two wanted tag values comes from two cursors."""
    last = None
    for row in heapq.merge(*cursors, key=_newest_first):
        if row[1] != last:
            last = row[1]
            yield row


def _plan(wanted: Filter, now: int) -> list[_Scan]:
    """The scans whose merged rows answer a filter.

    SQLite walks an index in order of time only below a single value of what stands before it; ``kind IN (...)`` would
    sort everything that matches before a limit could help. So each combination of values gets a scan of its own, as
    long as they are few.
    """
    authors = None if wanted.authors is None else _known(wanted.authors)
    kinds = None if wanted.kinds is None else [kind for kind in wanted.kinds if 0 <= kind <= _MAX_INTEGER]
    tags = {name: [_key(value) for value in values] for name, values in wanted.tags.items()}
    if authors == [] or kinds == [] or [] in tags.values():
        return []
    if (wanted.since or 0) > _MAX_INTEGER or (wanted.until or 0) < 0:
        return []
    if wanted.ids is not None:
        ids = _known(wanted.ids)
        return [_scan(wanted, now, tags, authors, kinds, [(_in("e.id", ids), ids)])] if ids else []
    letter = min(tags, key=lambda name: len(tags[name]), default=None)
    if letter is not None and len(tags[letter]) <= _MAX_SCANS:
        values = tags.pop(letter)
        return [_scan(wanted, now, tags, authors, kinds, [], tag=(letter, value)) for value in values]
    if authors and kinds and len(authors) * len(kinds) <= _MAX_SCANS:
        return [
            _scan(wanted, now, tags, None, None, [("pubkey = ?", [author]), ("kind = ?", [kind])])
            for author in authors
            for kind in kinds
        ]
    if authors and len(authors) <= _MAX_SCANS:
        return [_scan(wanted, now, tags, None, kinds, [("pubkey = ?", [author])]) for author in authors]
    if kinds and len(kinds) <= _MAX_SCANS:
        return [_scan(wanted, now, tags, authors, None, [("kind = ?", [kind])]) for kind in kinds]
    return [_scan(wanted, now, tags, authors, kinds, [])]


def _scan(
    wanted: Filter,
    now: int,
    tags: dict[str, list[str | bytes]],
    authors: list[bytes] | None,
    kinds: list[int] | None,
    terms: list[tuple[str, Sequence[object]]],
    tag: tuple[str, str | bytes] | None = None,
) -> _Scan:
    source, walked = "event AS e", "e"
    terms = list(terms)
    if tag is not None:
        source, walked = "tag AS t CROSS JOIN event AS e ON e.seq = t.seq", "t"
        terms += [("t.name = ?", [tag[0]]), ("t.value = ?", [tag[1]])]
    if wanted.since is not None:
        terms.append((f"{walked}.created_at >= ?", [max(wanted.since, 0)]))
    if wanted.until is not None:
        terms.append((f"{walked}.created_at <= ?", [min(wanted.until, _MAX_INTEGER)]))
    if authors is not None:
        terms.append((_in("pubkey", authors), authors))
    if kinds is not None:
        terms.append((_in("kind", kinds), kinds))
    for name, values in tags.items():
        having = f"x.name = ? AND {_in('x.value', values)} AND x.created_at = e.created_at AND x.id = e.id"
        terms.append((f"EXISTS (SELECT 1 FROM tag AS x WHERE {having})", [name, *values]))
    terms.append(("(e.expires_at IS NULL OR e.expires_at > ?)", [now]))
    where = " AND ".join(term for term, _ in terms)
    order = f"{walked}.created_at DESC, {walked}.id"
    sql = f"SELECT e.created_at, e.id, e.json FROM {source} WHERE {where} ORDER BY {order}"
    return sql, [value for _, values in terms for value in values]


def _in(column: str, values: Sequence[object]) -> str:
    return f"{column} = ?" if len(values) == 1 else f"{column} IN ({','.join('?' * len(values))})"


def _known(values: Iterable[str]) -> list[bytes]:
    """Those of ``values`` that an event can have: 64 lowercase hex digits."""
    return [raw for value in values if (raw := _raw(value)) is not None]


def _raw(value: str) -> bytes | None:
    return bytes.fromhex(value) if _HEX32.fullmatch(value) else None


def _indexed(name: str) -> bool:
    return len(name) == 1 and name.isascii() and name.isalpha()


def _key(value: str) -> str | bytes:
    """A tag value as it stands in an index. A long one (a prompt in an ``i`` tag) by its hash: a blob, so that it
    never equals a text."""
    return value if len(value) <= _LONG_VALUE else hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
