from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from unittest import mock

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.nip01 import Event, Filter, KindClass, kind_class
from pylon.errors import StoreError
from pylon.relays import eventstore
from pylon.relays.eventstore import EventStore, Outcome

ALICE, BOB, CAROL = (name.encode().hex() * 16 for name in ("al", "bo", "ca"))
ALICE, BOB, CAROL = ALICE[:64], BOB[:64], CAROL[:64]
LONG = "long " * 100


def make(kind=1, author=ALICE, created_at=100, tags=(), content="") -> Event:
    """An event with an id of its own; the store leaves signatures to the relay."""
    tags = tuple(tuple(tag) for tag in tags)
    ident = hashlib.sha256(repr((kind, author, created_at, tags, content)).encode()).hexdigest()
    return Event(id=ident, pubkey=author, created_at=created_at, kind=kind, tags=tags, content=content, sig="00" * 64)


def ids(texts: list[str]) -> list[str]:
    return [orjson.loads(text)["id"] for text in texts]


@pytest.fixture
def store():
    store = EventStore()
    yield store
    store.close()


class Model:
    """What NIP-01, 09 and 40 say, over plain lists."""

    def __init__(self) -> None:
        self.held: dict[str, Event] = {}
        self.deleted: set[tuple[str, str]] = set()
        self.deleted_until: dict[tuple[str, str], int] = {}

    @staticmethod
    def expires(event: Event) -> float:
        return next((int(tag[1]) for tag in event.tags if tag[0] == "expiration"), float("inf"))

    @staticmethod
    def address(event: Event) -> str | None:
        match kind_class(event.kind):
            case KindClass.REPLACEABLE:
                return f"{event.kind}:{event.pubkey}:"
            case KindClass.ADDRESSABLE:
                d = next(((*tag, "")[1] for tag in event.tags if tag[0] == "d"), "")
                return f"{event.kind}:{event.pubkey}:{d}"
        return None

    def add(self, event: Event, now: int) -> str:
        self.held = {key: kept for key, kept in self.held.items() if self.expires(kept) > now}
        if self.expires(event) <= now:
            return "expired"
        if 20_000 <= event.kind < 30_000:
            return "ephemeral"
        if event.id in self.held:
            return "duplicate"
        address = self.address(event)
        if event.kind != 5 and (
            (event.pubkey, event.id) in self.deleted
            or self.deleted_until.get((event.pubkey, address), -1) >= event.created_at
        ):
            return "deleted"
        outcome = "stored"
        if address is not None:
            for other in [kept for kept in self.held.values() if self.address(kept) == address]:
                if (-other.created_at, other.id) < (-event.created_at, event.id):
                    return "older"
                del self.held[other.id]
                outcome = "replaced"
        self.held[event.id] = event
        if event.kind == 5:
            for name, value, *_ in (tag for tag in event.tags if len(tag) > 1):
                if name == "e":
                    self.deleted.add((event.pubkey, value))
                    victim = self.held.get(value)
                    if victim and victim.pubkey == event.pubkey and victim.kind != 5:
                        del self.held[value]
                elif name == "a" and value.split(":")[1] == event.pubkey:
                    key = (event.pubkey, value)
                    self.deleted_until[key] = max(self.deleted_until.get(key, -1), event.created_at)
                    for victim in list(self.held.values()):
                        if self.address(victim) == value and victim.created_at <= event.created_at:
                            del self.held[victim.id]
        return outcome

    def query(self, filters, now: int, limit: int) -> list[str]:
        found = {}
        for wanted in filters:
            matching = [e for e in self.held.values() if wanted.matches(e) and self.expires(e) > now]
            matching.sort(key=lambda e: (-e.created_at, e.id))
            room = limit if wanted.limit is None else min(limit, wanted.limit)
            found.update((e.id, e) for e in matching[:room])
        return [e.id for e in sorted(found.values(), key=lambda e: (-e.created_at, e.id))]


authors = st.sampled_from([ALICE, BOB, CAROL])
kinds = st.sampled_from([0, 1, 7, 10_002, 20_001, 30_023, 31_990])
times = st.integers(90, 100)
words = st.sampled_from(["", "x", "y", LONG, LONG + "!", "a\x00b", "é"])
plain_tags = st.one_of(
    st.tuples(st.sampled_from("tdTp"), words),
    st.tuples(st.sampled_from(["t", "d", "title"])),
    st.tuples(st.just("title"), words),
    st.tuples(st.just("t"), words, words),
)


@st.composite
def events(draw, earlier: list[Event]) -> Event:
    tags = draw(st.lists(plain_tags, max_size=3))
    if draw(st.integers(0, 4)) == 0:
        tags.append(("expiration", str(draw(st.integers(98, 110)))))
    kind = draw(kinds)
    if earlier and draw(st.integers(0, 5)) == 0:
        kind = 5
        aims = [("e", e.id) for e in earlier] + [("a", Model.address(e)) for e in earlier if Model.address(e)]
        tags += draw(st.lists(st.sampled_from(aims), min_size=1, max_size=3))
    return make(kind, draw(authors), draw(times), tags, draw(st.sampled_from(["", "1"])))


@st.composite
def filters(draw, known: list[Event]) -> Filter:
    def maybe(strategy):
        return draw(st.none() | st.frozensets(strategy, max_size=3))

    letters = draw(st.lists(st.sampled_from("tdTp"), unique=True, max_size=2))
    return Filter(
        ids=maybe(st.sampled_from([e.id for e in known])) if draw(st.integers(0, 4)) == 0 else None,
        authors=maybe(authors),
        kinds=maybe(kinds | st.just(5)),
        since=draw(st.none() | times | st.sampled_from([-(2**70), 2**70])),
        until=draw(st.none() | times | st.sampled_from([-(2**70), 2**70])),
        limit=draw(st.none() | st.integers(0, 5)),
        tags={letter: draw(st.frozensets(words, max_size=3)) for letter in letters},
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_store_agrees_with_a_model_made_of_lists(data) -> None:
    store, model, seen, now = EventStore(), Model(), [], 98
    with closing(store):
        few = data.draw(st.sampled_from([0, 1, 2, 128]))
        for _ in range(data.draw(st.integers(1, 14))):
            again = seen and data.draw(st.integers(0, 4)) == 0
            event = data.draw(st.sampled_from(seen) if again else events(seen))
            seen.append(event)
            assert store.add(event, now).value == model.add(event, now)
            step = data.draw(st.integers(0, 9))
            if step < 3:
                store.commit()
            elif step < 5:
                now += 1
            elif step == 5:
                store._purged_at = 0
                store.purge(now)
        for _ in range(4):
            wanted = data.draw(st.lists(filters(seen), min_size=1, max_size=3))
            limit = data.draw(st.sampled_from([2, 500]))
            with mock.patch.object(eventstore, "_MAX_SCANS", few):
                assert ids(store.query(wanted, now, limit)) == model.query(wanted, now, limit), wanted


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_query_finds_what_the_filter_matches_newest_first(data) -> None:
    store, model = EventStore(), Model()
    with closing(store):
        seen = [data.draw(events([])) for _ in range(data.draw(st.integers(1, 25)))]
        for event in seen:
            store.add(event, 50)
            model.add(event, 50)
        wanted = [data.draw(filters(seen))]
        assert ids(store.query(wanted, 50)) == model.query(wanted, 50, 500)


def test_what_comes_back_is_the_event_as_it_was(store) -> None:
    event = make(tags=[("t", "x"), ("alt", 'ü\n"q"', "", "z")], content="\x00\u2028 \U0001f600")
    assert store.add(event, 100) is Outcome.STORED
    assert [Event.from_json(text) for text in store.query([Filter()], 100)] == [event]
    assert store.get(event.id) == event.to_json()
    assert store.get("nonsense") is None


def test_of_two_versions_of_one_second_the_lowest_id_stays_whatever_came_first() -> None:
    versions = sorted((make(10_002, content=str(n)) for n in range(6)), key=lambda event: event.id)
    for order in (versions, versions[::-1], versions[3:] + versions[:3]):
        store = EventStore()
        for event in order:
            store.add(event, 100)
        assert ids(store.query([Filter()], 100)) == [versions[0].id]
        store.close()


def test_a_deletion_works_on_later_arrivals_and_for_the_author_only(store) -> None:
    mine, hers = make(), make(author=BOB)
    newer = make(30_023, created_at=150, tags=[("d", "x")])
    request = make(5, created_at=120, tags=[("e", mine.id), ("e", hers.id), ("a", f"30023:{ALICE}:x"), ("e", "junk")])
    store.add(request, 100)
    assert store.add(mine, 100) is Outcome.DELETED
    assert store.add(hers, 100) is Outcome.STORED
    assert store.add(make(30_023, tags=[("d", "x")]), 100) is Outcome.DELETED
    assert store.add(newer, 100) is Outcome.STORED
    assert store.add(make(5, author=BOB, tags=[("a", f"30023:{ALICE}:x"), ("e", request.id)]), 100) is Outcome.STORED
    assert store.add(make(5, created_at=130, tags=[("e", request.id)]), 100) is Outcome.STORED
    assert {newer.id, hers.id, request.id} <= set(ids(store.query([Filter()], 100)))


def test_expired_events_leave_the_file(store) -> None:
    for n in range(10):
        store.add(make(content=str(n), tags=[("expiration", "200"), ("t", "x")]), 100)
    store.add(make(content="stays"), 100)
    assert store.purge(199) == 0
    assert len(store) == 11
    assert store.purge(200) == 0, "asked too often"
    assert store.purge(300) == 10
    assert len(store) == 1
    assert store._db.execute("SELECT count(*) FROM tag").fetchone() == (0,)


def test_a_clock_set_back_does_not_stop_the_purge(store) -> None:
    store.purge(10_000)
    store.add(make(tags=[("expiration", "120")]), 100)
    assert store.purge(130) == 1


def test_nothing_lasts_that_was_not_committed(tmp_path) -> None:
    path = tmp_path / "relay.db"
    store = EventStore(path)
    kept, lost = make(content="kept"), make(content="lost")
    store.add(kept, 100)
    store.commit()
    store.add(lost, 100)
    store.rollback()
    assert store.add(lost, 100) is Outcome.STORED
    onlooker = sqlite3.connect(path)
    assert onlooker.execute("SELECT count(*) FROM event").fetchone() == (1,)
    onlooker.close()
    store.rollback()
    store.close()
    store = EventStore(path)
    assert ids(store.query([Filter()], 100)) == [kept.id]
    store.close()


def test_a_full_disk_is_an_error_and_not_the_end(tmp_path) -> None:
    store = EventStore(tmp_path / "relay.db")
    store.add(make(content="first"), 100)
    store.commit()
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="full"):
        store.add(make(content="x" * 100_000), 100)
    store._db.execute("PRAGMA max_page_count=100000")
    assert store.add(make(content="x" * 100_000), 100) is Outcome.STORED
    store.commit()
    assert len(store) == 2
    store.close()


def test_a_file_of_another_version_or_kind_is_refused(tmp_path) -> None:
    path = tmp_path / "relay.db"
    EventStore(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(StoreError, match="version 99"):
        EventStore(path)
    (tmp_path / "text").write_text("this is no database, " * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        EventStore(tmp_path / "text")
    with pytest.raises(StoreError):
        EventStore(tmp_path / "no" / "such" / "place")


def test_an_answer_has_a_bound_in_bytes(store) -> None:
    for n in range(20):
        store.add(make(created_at=n, content="x" * 10_000), 100)
    answer = store.query([Filter(), Filter(kinds=[1])], 100, max_bytes=50_000)
    assert [orjson.loads(text)["created_at"] for text in answer] == [19, 18, 17, 16, 15]


def test_numbers_beyond_sqlite_do_no_harm(store) -> None:
    store.add(make(tags=[("expiration", str(10**30))]), 100)
    assert len(store.query([Filter(since=-(10**30), until=10**30, kinds=[1, 10**30])], 100)) == 1
    with pytest.raises(StoreError):
        store.add(make(created_at=10**30), 100)
    assert store.add(make(content="again"), 100) is Outcome.STORED


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(kinds=[1], authors=[ALICE], limit=20),
        Filter(kinds=[1, 7], authors=[ALICE, BOB], since=50, limit=20),
        Filter(kinds=[1], tags={"t": ["x", "y"]}, limit=20),
        Filter(authors=[ALICE], limit=20),
        Filter(kinds=[1, 7], limit=20),
        Filter(limit=20),
    ],
)
def test_a_limited_query_reads_an_index_in_order_and_sorts_nothing(store, wanted) -> None:
    for sql, values in eventstore._plan(wanted, 100):
        plan = " ".join(row[3] for row in store._db.execute("EXPLAIN QUERY PLAN " + sql, values))
        assert "TEMP B-TREE" not in plan, plan
        assert "INDEX" in plan or "PRIMARY KEY" in plan, plan


def test_an_event_with_two_wanted_tag_values_counts_once_against_the_limit(store) -> None:
    both = [make(created_at=n, tags=[("t", "x"), ("t", "y")]) for n in range(5)]
    for event in both:
        store.add(event, 100)
    assert ids(store.query([Filter(tags={"t": ["x", "y"]}, limit=3)], 100)) == [event.id for event in both[:1:-1]]


def test_an_expired_version_rules_nothing_even_before_it_is_purged(store) -> None:
    old, brief = make(30_023, created_at=90), make(30_023, created_at=95, tags=[("expiration", "150")])
    assert store.add(brief, 100) is Outcome.STORED
    assert store.add(old, 149) is Outcome.OLDER
    assert store.add(old, 150) is Outcome.STORED
    assert len(store) == 1


def test_deleting_an_address_takes_versions_up_to_the_request_and_no_newer(store) -> None:
    address = f"30023:{ALICE}:x"
    for stamp, left in ((99, 0), (100, 0), (101, 1)):
        store.add(make(30_023, created_at=stamp, tags=[("d", "x")]), 200)
        store.add(make(5, created_at=100, content=str(stamp), tags=[("a", address)]), 200)
        assert len(store.query([Filter(kinds=[30_023])], 200)) == left


def test_old_jobs_are_forgotten_and_nothing_else(store) -> None:
    for kind in (1, 4999, 5050, 6050, 7000, 7001, 30_023):
        for at in (1_000, 2_000):
            store.add(make(kind=kind, created_at=at, tags=(("d", str(at)),)), 3_000)
    store.commit()
    assert store.forget_jobs(1_500) == 3
    assert store.forget_jobs(1_500) == 0
    kept = [orjson.loads(text) for text in store.query([Filter()], 3_000)]
    jobs = sorted((event["kind"], event["created_at"]) for event in kept if 5_000 <= event["kind"] <= 7_000)
    assert jobs == [(5_050, 2_000), (6_050, 2_000), (7_000, 2_000)]
    assert len(kept) == 11
