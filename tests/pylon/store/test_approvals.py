from __future__ import annotations

import pytest

from pylon.errors import NotFound, UsageError
from pylon.money import Msat
from pylon.store import approvals, intents
from pylon.store.intents import Approval, IntentState
from tests.pylon.store.conftest import NOW, transaction
from tests.pylon.store.test_intents import hash_of


def asked(tx, name="h1", owner="", until=NOW + 100, at=NOW):
    return intents.reserve(
        tx, tx.vault, cause=f"cause of {name}", payment_hash=hash_of(name), invoice="lnsb1", amount=Msat(1_000),
        max_fee=Msat(10), at=at, owner=owner, asks_until=until,
    )  # fmt: skip


def test_what_waits_is_listed_and_reserved():
    with transaction() as tx:
        first, second = asked(tx), asked(tx, "h2", "aa", at=NOW + 1)
        intents.reserve(
            tx, tx.vault, cause="c", payment_hash=hash_of("x"), invoice="", amount=Msat(1), max_fee=Msat(0), at=NOW
        )
        assert approvals.waiting(tx) == [first, second]
        assert approvals.waiting(tx, "aa") == [second]
        assert intents.reserved(tx, "aa") == intents.committed(tx, "aa", since=NOW) == 1_010
        assert first.waits
        assert not first.lapsed(NOW + 99)
        assert first.lapsed(NOW + 100)


def test_yes():
    with transaction() as tx:
        intent = asked(tx)
        given = approvals.approve(tx, intent.id, NOW + 99)
        assert (given.approval, given.state, given.waits) == (Approval.GIVEN, IntentState.PENDING, False)
        assert approvals.approve(tx, intent.id, NOW + 200) == given, "again changes nothing"
        assert approvals.waiting(tx) == []
        with pytest.raises(UsageError, match="approved"):
            approvals.deny(tx, intent.id, "", NOW)


def test_no():
    with transaction() as tx:
        intent = asked(tx)
        denied = approvals.deny(tx, intent.id, "too dear", NOW + 500)
        assert (denied.approval, denied.state, denied.error) == (Approval.DENIED, IntentState.FAILED, "too dear")
        assert approvals.deny(tx, intent.id, "", NOW + 501) == denied
        assert intents.reserved(tx, "") == 0
        with pytest.raises(UsageError, match="failed"):
            approvals.approve(tx, intent.id, NOW)


def test_too_late():
    with transaction() as tx:
        intent = asked(tx)
        with pytest.raises(UsageError, match="lapsed"):
            approvals.approve(tx, intent.id, NOW + 100)
        intents.fail(tx, intent.id, error="nobody said anything", at=NOW + 100)
        with pytest.raises(UsageError, match="does not wait"):
            approvals.approve(tx, intent.id, NOW)
        with pytest.raises(UsageError, match="does not wait"):
            approvals.deny(tx, intent.id, "", NOW)


def test_found_by_the_beginning_of_an_id():
    with transaction() as tx:
        made = [asked(tx, f"h{number}") for number in range(30)]
        assert approvals.named(tx, made[3].id) == made[3]
        with pytest.raises(UsageError, match="more than one"):
            approvals.named(tx, min(intent.id for intent in made)[0])
        for nothing in ("", "zz"):
            with pytest.raises(NotFound):
                approvals.named(tx, nothing)
