from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylon.errors import AlreadyPaid, InvoiceInvalid, NotFound, PaymentFailed, StoreError, WalletError
from pylon.money import Msat
from pylon.store import intents
from pylon.store.intents import IntentState
from tests.pylon.store.conftest import NOW, transaction

PREIMAGE = "11" * 32


def hash_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def reserve(tx, cause="p1", name="h1", amount=1_000, max_fee=10, at=NOW, **changes):
    return intents.reserve(
        tx, tx.vault, cause=cause, payment_hash=hash_of(name), invoice="lnsb1canary", amount=Msat(amount),
        max_fee=Msat(max_fee), at=at, **changes,
    )  # fmt: skip


def settle(tx, intent, amount=1_000, fee=3, preimage=PREIMAGE, at=NOW):
    return intents.settle(tx, tx.vault, intent.id, amount=Msat(amount), fee=Msat(fee), preimage=preimage, at=at)


OWNERS = st.sampled_from(["", "aa"])


class Life(RuleBasedStateMachine):
    """Any order of any calls, against a dictionary."""

    @initialize()
    def begin(self):
        self.context = transaction()
        self.tx = self.context.__enter__()
        self.model: dict[str, tuple[str, str]] = {}

    def teardown(self):
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    @rule(owner=OWNERS, cause=st.sampled_from(["p1", "p2"]), name=st.sampled_from(["h1", "h2", "h3"]))
    def reserve(self, owner, cause, name):
        there = self.model.get(name)
        # A cause is its owner's own.
        cause, named = (owner, cause), cause
        busy = any(c == cause and state != "failed" for c, state in self.model.values())
        try:
            intent = reserve(self.tx, named, name, owner=owner)
        except WalletError:
            assert busy or (there is not None and (there[0] != cause or there[1] == "failed"))
        else:
            assert not (there is None and busy)
            assert there is None or (there[0] == cause and there[1] != "failed")
            assert intent == intents.by_hash(self.tx, hash_of(name))
            self.model.setdefault(name, (cause, "pending"))

    @rule(name=st.sampled_from(["h1", "h2", "h3"]), fee=st.integers(0, 10))
    def settle(self, name, fee):
        intent = intents.find(self.tx, hash_of(name))
        if intent is None:
            return
        whose = (intent.owner, intent.cause)
        settled = settle(self.tx, intent, fee=fee)
        if intent.state is IntentState.FAILED:
            # What it was for may be paid by another meanwhile: it has a cause of its own.
            assert settled.cause.startswith(f"{intent.cause}:late:")
            assert settled.error is not None
            whose = (intent.owner, settled.cause)
        assert settled.fee_msats == (intent.fee_msats if intent.state is IntentState.SETTLED else fee)
        self.model[name] = (whose, "settled")

    @rule(name=st.sampled_from(["h1", "h2", "h3"]))
    def fail(self, name):
        intent = intents.find(self.tx, hash_of(name))
        if intent is None:
            return
        if intent.state is IntentState.SETTLED:
            with pytest.raises(StoreError, match="cannot fail"):
                intents.fail(self.tx, intent.id, error="no route", at=NOW)
            return
        assert intents.fail(self.tx, intent.id, error="no route", at=NOW).state is IntentState.FAILED
        self.model[name] = ((intent.owner, intent.cause), "failed")

    @rule(name=st.sampled_from(["h1", "h2", "h3"]))
    def lose_sight(self, name):
        intent = intents.find(self.tx, hash_of(name))
        if intent is not None:
            assert intents.mark_unknown(self.tx, intent.id, error="timeout", at=NOW).state is intent.state

    @invariant()
    def agrees(self):
        if not hasattr(self, "model"):
            return
        rows = {row["payment_hash"]: row for row in self.tx.all("SELECT * FROM intents")}
        assert {h: ((row["owner"], row["cause"]), row["state"]) for h, row in rows.items()} == {
            hash_of(name): value for name, value in self.model.items()
        }
        taken = [cause for cause, state in self.model.values() if state != "failed"]
        assert len(taken) == len(set(taken))
        found = [intents.by_hash(self.tx, payment_hash) for payment_hash in rows]
        for owner in ("", "aa"):
            mine = [intent for intent in found if intent.owner == owner]
            assert intents.committed(self.tx, owner, since=0.0) == sum(intent.reserved for intent in mine)
            pending = [intent for intent in mine if intent.state is IntentState.PENDING]
            assert intents.reserved(self.tx, owner) == sum(intent.reserved for intent in pending)
            assert {i.id for i in intents.pending(self.tx, owner)} == {i.id for i in pending}
        assert len(intents.pending(self.tx)) == sum(intent.state is IntentState.PENDING for intent in found)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_reserving_again_gives_the_same():
    with transaction() as tx:
        first = reserve(tx)
        assert reserve(tx, at=NOW + 5) == first
        assert settle(tx, first).state is IntentState.SETTLED
        assert reserve(tx).state is IntentState.SETTLED


@pytest.mark.parametrize(
    ("prepare", "again", "error", "words"),
    [
        (lambda tx: reserve(tx), {"name": "h2"}, AlreadyPaid, "under way"),
        (lambda tx: settle(tx, reserve(tx)), {"name": "h2"}, AlreadyPaid, "paid for already"),
        (lambda tx: reserve(tx), {"cause": "p2"}, InvoiceInvalid, "offered already"),
        (lambda tx: settle(tx, reserve(tx)), {"cause": "p2"}, AlreadyPaid, "paid already"),
        (lambda tx: reserve(tx), {"amount": 999}, InvoiceInvalid, "another amount"),
        (lambda tx: intents.fail(tx, reserve(tx).id, error="x", at=NOW), {}, PaymentFailed, "for good"),
        (lambda tx: intents.fail(tx, reserve(tx).id, error="x", at=NOW), {"cause": "p2"}, InvoiceInvalid, "offered"),
        (lambda tx: None, {"amount": 0}, InvoiceInvalid, "cannot be paid"),
        (lambda tx: None, {"max_fee": -1}, InvoiceInvalid, "cannot be paid"),
    ],
)
def test_refusals(prepare, again, error, words):
    with transaction() as tx:
        prepare(tx)
        with pytest.raises(error, match=words):
            reserve(tx, **again)


@given(st.text().filter(lambda text: len(text) != 64))
def test_a_hash_is_a_hash(text):
    with transaction() as tx, pytest.raises(InvoiceInvalid):
        intents.reserve(
            tx, tx.vault, cause="p", payment_hash=text, invoice="x", amount=Msat(1), max_fee=Msat(0), at=NOW
        )


def test_the_key_is_made_of_cause_and_hash_alone():
    keys = []
    for at, name in [(NOW, "h1"), (NOW + 99, "h1"), (NOW, "h2")]:
        with transaction() as tx:
            keys.append(reserve(tx, name=name, at=at).idempotency_key)
    assert keys[0] == keys[1] != keys[2]


def test_the_first_word_about_a_settlement_counts():
    with transaction() as tx:
        intent = reserve(tx)
        settle(tx, intent, amount=1_001, fee=3, preimage=None)
        assert intents.preimage(tx, tx.vault, intent.id) is None
        again = settle(tx, intent, amount=1_000, fee=9, preimage=PREIMAGE)
        assert (again.amount_msats, again.fee_msats) == (1_001, 3)
        assert intents.preimage(tx, tx.vault, intent.id) == PREIMAGE
        settle(tx, intent, preimage="22" * 32)
        assert intents.preimage(tx, tx.vault, intent.id) == PREIMAGE
        assert intents.invoice(tx, tx.vault, intent.id) == "lnsb1canary"


def test_a_rolling_budget_counts_what_is_pending_however_old():
    with transaction() as tx:
        reserve(tx, "p1", "h1", at=NOW - 1_000_000)
        settle(tx, reserve(tx, "p2", "h2"), at=NOW - 100)
        settle(tx, reserve(tx, "p3", "h3"), at=NOW)
        assert intents.committed(tx, "", since=NOW - 50) == 1_010 + 1_003


def test_a_scope_adds_up_whoever_pays():
    with transaction() as tx:
        reserve(tx, "p1", "h1", scope="tick", owner="aa")
        settle(tx, reserve(tx, "p2", "h2", scope="tick", owner="aa", purpose="zap"))
        intents.fail(tx, reserve(tx, "p3", "h3", scope="tick", owner="aa").id, error="no", at=NOW)
        reserve(tx, "p4", "h4", scope="tick", owner="aa", purpose="withdrawal")
        reserve(tx, "p5", "h5", scope="another tick", owner="aa")
        reserve(tx, "p6", "h6", owner="aa")
        assert intents.spent_in(tx, "tick") == 1_010 + 1_003
        assert intents.spent_in(tx, "") == intents.spent_in(tx, "no tick") == 0


def test_a_day_counts_by_owner_and_purpose():
    with transaction() as tx:
        reserve(tx, "p1", "h1", owner="aa")
        settle(tx, reserve(tx, "p2", "h2", owner="aa", purpose="zap"), fee=1)
        settle(tx, reserve(tx, "p3", "h3", owner="aa", purpose="zap"), fee=2, at=NOW - 100)
        settle(tx, reserve(tx, "p4", "h4", owner="aa", purpose="withdrawal"), fee=3)
        reserve(tx, "p5", "h5", owner="bb")
        assert intents.committed(tx, "aa", since=NOW - 100) == 1_010 + 1_001
        assert intents.committed(tx, "aa", since=NOW - 101, purpose="zap") == 1_001 + 1_002
        assert intents.committed(tx, "aa", since=NOW - 100, purpose="zap") == 1_001
        assert intents.committed(tx, "aa", since=NOW - 1, purpose="withdrawal") == 1_003
        assert intents.committed(tx, "", since=0.0) == 0


@pytest.mark.parametrize("what", ["settled", "pending", "spent in a scope"])
def test_what_an_owner_has_paid_in_years_costs_no_time(what):
    asks = {
        "settled": lambda tx: intents.committed(tx, "aa", since=NOW),
        "pending": lambda tx: intents.reserved(tx, "aa"),
        "spent in a scope": lambda tx: intents.spent_in(tx, "tick"),
    }

    class Explaining:
        def __init__(self, tx):
            self.tx = tx

        def one(self, sql, params):
            plan = " ".join(row["detail"] for row in self.tx.all(f"EXPLAIN QUERY PLAN {sql}", params))
            assert "SCAN" not in plan
            assert "(owner=?)" not in plan or "intents_pending" in plan
            return self.tx.one(sql, params)

    with transaction() as tx:
        assert asks[what](Explaining(tx)) == 0


def test_nothing_secret_in_an_intents_repr_and_long_errors_are_cut():
    with transaction() as tx:
        intent = reserve(tx)
        assert "canary" not in repr(intent)
        assert len(intents.fail(tx, intent.id, error="x" * 10_000, at=NOW).error) == 500


def test_what_is_not_there():
    with transaction() as tx:
        assert intents.find(tx, hash_of("h1")) is None
        for ask in (
            lambda: intents.by_hash(tx, hash_of("h1")),
            lambda: intents.get(tx, "x"),
            lambda: intents.invoice(tx, tx.vault, "x"),
            lambda: intents.preimage(tx, tx.vault, "x"),
            lambda: intents.fail(tx, "x", error="", at=NOW),
        ):
            with pytest.raises(NotFound):
                ask()
