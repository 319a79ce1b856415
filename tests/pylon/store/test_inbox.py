from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pylon.store import claims, cursors, inbox, settings
from tests.pylon.store.conftest import NOW, StoppedClock, transaction

names = st.sampled_from(["provider", "buyer"])
ids = st.sampled_from(["aa", "bb", "cc"])


@given(st.lists(st.tuples(names, ids)))
def test_each_consumer_takes_an_event_once(attempts):
    taken = set()
    with transaction() as tx:
        for consumer, event_id in attempts:
            assert inbox.seen(tx, consumer, event_id) == ((consumer, event_id) in taken)
            assert inbox.take(tx, consumer, event_id, NOW) == ((consumer, event_id) not in taken)
            taken.add((consumer, event_id))


@given(st.lists(st.floats(0, 100), unique=True), st.floats(0, 100))
def test_pruning_forgets_what_is_old(times, before):
    with transaction() as tx:
        for at in times:
            inbox.take(tx, "c", str(at), at)
        assert inbox.prune(tx, before) == sum(at < before for at in times)
        assert all(inbox.seen(tx, "c", str(at)) == (at >= before) for at in times)


async def test_taken_and_done_together(store):
    """Where what the event causes fails, the event was not taken."""

    def job(tx):
        assert inbox.take(tx, "c", "aa", NOW)
        raise LookupError

    try:
        await store.write(job)
    except LookupError:
        pass
    assert not inbox.seen(store, "c", "aa")


@given(st.lists(st.integers(-(2**70), int(NOW)), min_size=1), st.integers(0, 10_000))
def test_a_cursor_is_the_newest_that_was_taken(seen, overlap):
    with transaction() as tx:
        for created_at in seen:
            cursors.advance(tx, "c", created_at)
        assert cursors.since(tx, "c", overlap) == max(0, max(seen) - overlap)


@given(st.integers(int(NOW) + 1, 2**80))
def test_an_event_from_the_future_does_not_move_it_beyond_now(created_at):
    with transaction() as tx:
        cursors.advance(tx, "c", created_at)
        assert cursors.since(tx, "c", 900) == int(NOW) - 900


def test_a_clock_that_steps_back_does_not_move_it_back():
    clock = StoppedClock()
    with transaction(clock) as tx:
        cursors.advance(tx, "c", int(NOW))
        clock.at -= 86_400
        cursors.advance(tx, "c", int(NOW))
        assert cursors.since(tx, "c", 0) == int(NOW)


def test_no_cursor():
    with transaction() as tx:
        assert cursors.since(tx, "c", 900) is None


@given(st.lists(st.tuples(st.sampled_from(["spark", "nwc"]), ids, st.integers(1, 10)), min_size=1))
def test_a_payment_is_claimed_once(attempts):
    first = {}
    with transaction() as tx:
        for wallet, payment_id, amount in attempts:
            claim = {"payment_hash": payment_id, "sale_id": "s", "amount": amount, "at": NOW, "preimage": "00" * 32}
            fresh = claims.take(tx, wallet=wallet, payment_id=payment_id, **claim)
            assert fresh == ((wallet, payment_id) not in first)
            first.setdefault((wallet, payment_id), amount)
        kept = {(row["wallet"], row["payment_id"]): row["amount_msats"] for row in tx.all("SELECT * FROM claims")}
    assert kept == first


@given(st.lists(st.tuples(names, st.text(st.characters(exclude_categories=["Cs"])))))
def test_settings_are_a_dictionary(writes):
    with transaction() as tx:
        for key, value in writes:
            settings.put(tx, key, value)
        assert all(settings.get(tx, key) == value for key, value in dict(writes).items())
        assert settings.get(tx, "never") is None
