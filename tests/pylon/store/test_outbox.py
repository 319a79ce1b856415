from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.nip01 import Event
from pylon.store import outbox
from pylon.store.outbox import DeliveryState
from tests.pylon.store.conftest import ALICE, NOW, StoppedClock, make_event, transaction

A, B, C = "wss://a.example", "wss://b.example", "wss://c.example"
FAR = NOW + 1e9


def queue(tx, event, relays=(A,), at=NOW, **more):
    return outbox.add(tx, event, relays, at=at, **more)


def states(tx, event):
    return {relay: status.state.value for relay, status in outbox.progress(tx, event.id).items()}


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
events = st.builds(
    make_event,
    kind=st.integers(0, 65_535),
    created_at=st.integers(0, 2**40),
    content=_text,
    tags=st.lists(st.lists(_text, min_size=1, max_size=3) | st.tuples(st.just("expiration"), _text), max_size=3),
)


# --- what goes out --------------------------------------------------------------------------------------------------


@given(event=events, tries=st.integers(1, 4))
def test_the_same_bytes_every_time(event, tries):
    with transaction() as tx:
        queue(tx, event, at=0.0)
        for n in range(tries):
            found = outbox.due(tx, A, now=1e6 * n)
            if not found:  # it asked to expire
                return
            assert found[0].event == event.to_json()
            assert Event.from_json(found[0].event) == event
            outbox.postpone(tx, event.id, A, "no answer", 1e6 * n)
            # Adding again, even under another name, does not touch what was signed.
            queue(tx, event, effect="other", at=0.0)


def test_an_event_that_is_there_gets_the_relays_it_lacks():
    with transaction() as tx:
        event = make_event()
        assert queue(tx, event, (A, B, A), effect="sale.publish_result", subject="s1") == 2
        outbox.acknowledge(tx, event.id, A, True, "", NOW)
        assert queue(tx, event, (A, B, C), effect="x", subject="y") == 1
        assert states(tx, event) == {A: "accepted", B: "pending", C: "pending"}
        assert outbox.acknowledge(tx, event.id, C, True, "", NOW) == ("sale.publish_result", "s1")


def test_in_the_order_of_queueing():
    with transaction() as tx:
        made = [make_event(content=str(n)) for n in range(5)]
        for event in made:
            queue(tx, event, (A, B))
        assert [delivery.event_id for delivery in outbox.due(tx, A, 3)] == [event.id for event in made[:3]]
        assert outbox.due(tx, C) == []
        assert outbox.pending_count(tx) == 10
        assert outbox.pending_count(tx, A) == 5
        assert sorted(outbox.relays_waited_for(tx)) == [A, B]


def test_what_is_under_way_is_left_out():
    with transaction() as tx:
        made = [make_event(content=str(n)) for n in range(3)]
        for number, event in enumerate(made):
            queue(tx, event, at=NOW - 3 + number)
        besides = {made[0].id}
        assert [delivery.event_id for delivery in outbox.due(tx, A, 1, besides=besides)] == [made[1].id]
        assert outbox.next_due(tx, A, besides=besides) == NOW - 2
        assert outbox.next_due(tx, A, besides={event.id for event in made}) is None


def test_what_waited_longest_goes_first_and_a_relay_that_is_back_gets_all_in_order():
    clock = StoppedClock()
    with transaction(clock) as tx:
        made = [make_event(content=str(n)) for n in range(4)]
        for event in made:
            queue(tx, event, at=clock.at)
            clock.at += 1
        for event in (made[2], made[0]):
            outbox.postpone(tx, event.id, A, "no answer", clock.at)
        assert [delivery.event_id for delivery in outbox.due(tx, A)] == [made[1].id, made[3].id]
        outbox.hurry(tx, A, clock.at)
        assert [delivery.event_id for delivery in outbox.due(tx, A)] == [event.id for event in made]


def test_the_clock_went_back_while_a_relay_was_away():
    with transaction() as tx:
        queue(tx, make_event(), at=FAR)
        outbox.hurry(tx, A, NOW)
        assert outbox.due(tx, A)


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "message", "state"),
    [
        (True, "", "accepted"),
        (True, "duplicate: have it", "accepted"),
        (False, "duplicate: have it", "accepted"),
        (False, "blocked: you", "refused"),
        (False, "invalid: sig", "refused"),
        (False, "pow: 20 bits", "refused"),
        (False, "restricted: members", "refused"),
        (False, "", "refused"),
        (False, "error", "refused"),
        (False, "error: disk", "pending"),
        (False, "rate-limited: slow down", "pending"),
        (False, "auth-required: who", "pending"),
    ],
)
def test_what_an_answer_means(accepted, message, state):
    with transaction() as tx:
        event = make_event()
        queue(tx, event, (A, B), effect="e", subject="s")
        told = outbox.acknowledge(tx, event.id, A, accepted, message, NOW)
        assert states(tx, event) == {A: state, B: "pending"}
        assert told == (None if state == "pending" else ("e", "s"))
        assert outbox.progress(tx, event.id)[A].attempts == 1
        assert outbox.progress(tx, event.id)[A].message == message
        assert ("delivered" in tx._topics) == (state != "pending")


def test_an_answer_to_what_was_never_asked():
    with transaction() as tx:
        assert outbox.acknowledge(tx, "ff" * 32, A, True, "", NOW) is None
        outbox.postpone(tx, "ff" * 32, A, "", NOW)
        assert "delivered" not in tx._topics


@pytest.mark.parametrize("message", ["x" * 10_000, "lone \ud800 surrogate", "nul \x00"])
def test_a_relays_words_are_a_strangers(message):
    with transaction() as tx:
        queue(tx, make_event())
        outbox.acknowledge(tx, make_event().id, A, False, message, NOW)
        assert len(outbox.progress(tx, make_event().id)[A].message) <= 500


@pytest.mark.parametrize("ending", ["cancel", "refuse", "expire"])
def test_a_late_acceptance_counts(ending):
    with transaction() as tx:
        event = make_event()
        queue(tx, event, effect="e", subject="s", expires_at=NOW + 5)
        if ending == "cancel":
            assert outbox.cancel(tx, event.id, NOW) == 1
        elif ending == "expire":
            assert outbox.expire(tx, NOW + 5) == 1
        else:
            outbox.acknowledge(tx, event.id, A, False, "blocked:", NOW)
        assert outbox.acknowledge(tx, event.id, A, False, "blocked:", NOW) is None
        assert outbox.acknowledge(tx, event.id, A, True, "", NOW) == ("e", "s")
        assert states(tx, event) == {A: "accepted"}
        assert outbox.acknowledge(tx, event.id, A, True, "", NOW) is None


# --- when -----------------------------------------------------------------------------------------------------------


def test_backoff_grows_to_its_limit():
    waits = [outbox.backoff(n) for n in range(1, 12)]
    assert waits[:4] == [5, 10, 20, 40]
    assert waits == sorted(waits)
    assert waits[-1] == outbox.backoff(10**9) == 900


def test_retries_wait_longer_each_time():
    clock = StoppedClock()
    with transaction(clock) as tx:
        event = make_event()
        queue(tx, event)
        for wait in (5, 10, 20):
            assert outbox.due(tx, A)
            outbox.postpone(tx, event.id, A, "no answer", clock.at)
            assert outbox.next_due(tx, A) == clock.at + wait
            clock.at += wait - 0.5
            assert not outbox.due(tx, A)
            clock.at += 0.5
        assert outbox.due(tx, A)[0].attempts == 3


def test_a_relay_that_is_back_gets_everything_at_once():
    with transaction() as tx:
        event = make_event()
        queue(tx, event, (A, B))
        for relay in (A, B):
            outbox.postpone(tx, event.id, relay, "gone", NOW)
        tx._topics.clear()
        assert outbox.hurry(tx, A, NOW) == 1
        assert list(tx._topics) == [f"outbox:{A}"]
        assert [len(outbox.due(tx, relay)) for relay in (A, B)] == [1, 0]


@pytest.mark.parametrize(
    ("kind", "tags", "expires_at", "lives"),
    [
        (1, (), None, None),
        (1, (), NOW + 60, 60),
        (1, (("expiration", str(int(NOW) + 50)),), None, 50),
        (1, (("expiration", str(int(NOW) + 50)),), NOW + 60, 50),
        (1, (("expiration", str(int(NOW) + 70)),), NOW + 60, 60),
        (1, (("expiration", "9" * 15),), NOW + 60, 60),
        (1, (("expiration", "9" * 400),), None, None),
        (20_001, (), None, 30),
        (20_001, (("expiration", str(int(NOW) + 10)),), None, 10),
        (39_200, (("d", "x"), ("expiration", str(int(NOW) + 10))), None, 10),
    ],
)
def test_how_long_an_event_is_sent(kind, tags, expires_at, lives):
    with transaction() as tx:
        event = make_event(kind=kind, tags=tags)
        queue(tx, event, expires_at=expires_at)
        end = FAR if lives is None else NOW + lives
        assert outbox.due(tx, A, now=end - 1)
        if lives is not None:
            assert not outbox.due(tx, A, now=end)
            assert outbox.next_due(tx, A, now=end) is None
            assert outbox.expire(tx, end - 1) == 0
            assert outbox.expire(tx, end) == 1
            assert states(tx, event) == {A: "expired"}


# --- versions -------------------------------------------------------------------------------------------------------


def version(created_at, content="", kind=31_990, d="pylon"):
    return make_event(kind=kind, created_at=created_at, content=content, tags=(("d", d),))


def test_a_newer_version_cancels_the_older_ones_everywhere():
    with transaction() as tx:
        old, new, other = version(100), version(101), version(50, d="another")
        queue(tx, old, (A, B, C))
        outbox.acknowledge(tx, old.id, C, True, "", NOW)
        queue(tx, other)
        assert queue(tx, new, (A,)) == 1
        assert states(tx, old) == {A: "cancelled", B: "cancelled", C: "accepted"}
        assert states(tx, new) == states(tx, other) == {A: "pending"}


def test_an_older_version_that_comes_later_is_not_sent():
    with transaction() as tx:
        queue(tx, version(101))
        tx._topics.clear()
        assert queue(tx, version(100), (A, B)) == 0
        assert states(tx, version(100)) == {A: "cancelled", B: "cancelled"}
        assert f"outbox:{A}" not in tx._topics


@given(st.permutations([(created_at, text) for created_at in (100, 101) for text in "abc"]))
def test_whatever_the_order_the_newest_is_what_goes_out(order):
    """NIP-01: the highest created_at, then the lowest id."""
    with transaction() as tx:
        made = [version(created_at, text) for created_at, text in order]
        for event in made:
            queue(tx, event, (A, B))
        winner = min(made, key=lambda event: (-event.created_at, event.id))
        for relay in (A, B):
            assert [delivery.event_id for delivery in outbox.due(tx, relay)] == [winner.id]


def test_regular_events_are_all_sent():
    with transaction() as tx:
        for n in range(3):
            queue(tx, make_event(kind=1, created_at=n))
        assert len(outbox.due(tx, A)) == 3


def test_created_at_never_goes_back():
    with transaction() as tx:
        address = version(1).address
        assert outbox.last_created_at(tx, address) == 0
        for n in (5, 9, 7):
            queue(tx, version(n))
        assert outbox.last_created_at(tx, address) == 9
        for n in (5, 9, 7):
            outbox.acknowledge(tx, version(n).id, A, True, "", NOW)
        outbox.prune(tx, FAR)
        assert outbox.last_created_at(tx, address) == 9


def test_what_is_withdrawn_never_was():
    with transaction() as tx:
        right, later, other = version(100), version(10_000), version(10_000, d="another")
        for event in (right, later, other):
            queue(tx, event)
        assert outbox.withdraw(tx, later.address, after=200) == [later.id]
        assert outbox.withdraw(tx, later.address, after=200) == []
        assert outbox.last_created_at(tx, later.address) == 100
        assert queue(tx, version(150)) == 1
        assert [d.event_id for d in outbox.due(tx, A)] == [other.id, version(150).id]
        assert outbox.acknowledge(tx, later.id, A, True, "", NOW) is None


def test_pruning_keeps_what_is_pending_or_recent():
    with transaction() as tx:
        done, recent, waiting = (make_event(content=text) for text in ("done", "recent", "waiting"))
        for event in (done, recent, waiting):
            queue(tx, event, (A, B))
        for event, relays, at in ((done, (A, B), NOW), (recent, (A, B), NOW + 100), (waiting, (A,), NOW)):
            for relay in relays:
                outbox.acknowledge(tx, event.id, relay, True, "", at)
        assert outbox.prune(tx, NOW + 50) == 1
        left = {row["event_id"] for row in tx.all("SELECT event_id FROM outbox")}
        assert left == {recent.id, waiting.id}
        assert tx.one("SELECT COUNT(*) AS n FROM deliveries")["n"] == 4


# --- any order of anything ------------------------------------------------------------------------------------------

_made = [make_event(content=str(n)) for n in range(2)] + [version(n) for n in (100, 101)] + [make_event(kind=20_001)]
chosen = st.sampled_from(_made)
relays = st.sampled_from([A, B])
messages = st.sampled_from(["", "blocked:", "error: x", "duplicate:"])


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.clock = StoppedClock()
        self.context = transaction(self.clock)
        self.tx = self.context.__enter__()
        self.accepted: set[tuple[str, str]] = set()
        self.final: dict[tuple[str, str], str] = {}

    def teardown(self):
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    @rule(event=chosen, to=st.sets(relays))
    def add(self, event, to):
        outbox.add(self.tx, event, sorted(to), effect="e", subject=event.id, at=self.clock.at)

    @rule(
        event=chosen,
        relay=relays,
        message=st.sampled_from(["", "blocked:", "error: x", "duplicate:"]),
        ok=st.booleans(),
    )
    def answer(self, event, relay, message, ok):
        there = relay in outbox.progress(self.tx, event.id)
        told = outbox.acknowledge(self.tx, event.id, relay, ok, message, self.clock.at)
        assert told in (None, ("e", event.id))
        if there and (ok or message == "duplicate:"):
            assert (told is None) == ((event.id, relay) in self.accepted)
            self.accepted.add((event.id, relay))

    @rule(relay=relays)
    def send_and_hear_nothing(self, relay):
        for delivery in outbox.due(self.tx, relay):
            assert (delivery.event_id, relay) not in self.accepted
            outbox.postpone(self.tx, delivery.event_id, relay, "no answer", self.clock.at)
        assert outbox.due(self.tx, relay) == []

    @rule(seconds=st.integers(1, 2_000))
    def wait(self, seconds):
        self.clock.at += seconds

    @rule()
    def sweep(self):
        outbox.expire(self.tx, self.clock.at)

    @precondition(lambda self: hasattr(self, "tx"))
    @invariant()
    def holds(self):
        now = {(e.id, relay): s.state for e in _made for relay, s in outbox.progress(self.tx, e.id).items()}
        assert {key for key, state in now.items() if state is DeliveryState.ACCEPTED} == self.accepted
        for key, state in self.final.items():
            assert now[key] == state or key in self.accepted, "what is settled stays so"
        self.final = {key: state for key, state in now.items() if state is not DeliveryState.PENDING}
        pending = [key for key, state in now.items() if state is DeliveryState.PENDING]
        assert outbox.pending_count(self.tx) == len(pending)
        waiting_versions = {ident for ident, _ in pending} & {_made[2].id, _made[3].id}
        assert len(waiting_versions) <= 1
        for relay in (A, B):
            due = {delivery.event_id for delivery in outbox.due(self.tx, relay)}
            assert due <= {ident for ident, at in pending if at == relay}
            soon = outbox.next_due(self.tx, relay)
            assert bool(due) == (soon is not None and soon <= self.clock.at)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


async def test_the_deliverer_of_a_relay_is_woken(store):
    with store.listen(f"outbox:{A}") as mine, store.listen(f"outbox:{B}") as other, store.listen("outbox") as any_:
        await store.write(lambda tx: outbox.add(tx, make_event(), [A], at=NOW))
        await mine.receive()
        await any_.receive()
        assert other.statistics().current_buffer_used == 0
    assert [delivery.relay for delivery in outbox.due(store, A)] == [A]
    assert ALICE in outbox.due(store, A)[0].event


def test_what_is_urgent_goes_out_before_what_waits():
    with transaction() as tx:
        made = [make_event(content=f"{number}") for number in range(4)]
        for number, event in enumerate(made):
            queue(tx, event, at=NOW + number, urgent=number == 3)
        ids = [event.id for event in made]
        assert [delivery.event_id for delivery in outbox.due(tx, A, now=NOW + 9)] == [ids[3], *ids[:3]]
        # An attempt that came to nothing waits like any other.
        outbox.postpone(tx, ids[3], A, "no answer", NOW + 9)
        assert [delivery.event_id for delivery in outbox.due(tx, A, now=NOW + 9)] == ids[:3]
