from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import StoreError
from pylon.money import MAX_MSAT
from pylon.store import ledger
from pylon.store.ledger import Account, AccountType, balances, post, sale_totals
from tests.pylon.store.conftest import NOW, transaction

amounts = st.integers(1, 10_000)
accounts = st.sampled_from(Account)
causes = st.sampled_from(["s1", "s2", "p1"])


def sides(found):
    """Sum of the accounts that grow by debits, and of the others."""
    debit = sum(found[account.value] for account in Account if account.type.grows_by_debit)
    return debit, sum(found.values()) - debit


# --- posting --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(causes, st.sampled_from("abc"), accounts, accounts, st.integers(1, 3))))
def test_debits_equal_credits_and_a_name_is_used_once(entries):
    model = {}
    with transaction() as tx:
        for cause, kind, debit, credit, msats in entries:
            if debit is credit:
                with pytest.raises(ValueError):
                    post(tx, cause, kind, debit, credit, msats, NOW)
                continue
            there = model.setdefault((cause, kind), (debit, credit, msats))
            if there == (debit, credit, msats):
                count = tx.one("SELECT COUNT(*) AS n FROM entries")["n"]
                assert post(tx, cause, kind, debit, credit, msats, NOW) == (count < len(model))
            else:
                with pytest.raises(StoreError, match="booked already"):
                    post(tx, cause, kind, debit, credit, msats, NOW)
        found = balances(tx)
    assert sides(found)[0] == sides(found)[1]
    for account in Account:
        moved = sum(m * ((d is account) - (c is account)) for d, c, m in model.values())
        assert found[account.value] == (moved if account.type.grows_by_debit else -moved)


@pytest.mark.parametrize("msats", [0, -1, MAX_MSAT + 1])
def test_amounts_that_cannot_be(msats):
    with transaction() as tx, pytest.raises(ValueError):
        ledger.deposit(tx, "s1", msats, NOW)


def test_every_account_has_a_type_and_a_balance():
    assert all(isinstance(account.type, AccountType) for account in Account)
    with transaction() as tx:
        assert balances(tx) == dict.fromkeys((account.value for account in Account), 0)


def test_balances_until():
    with transaction() as tx:
        ledger.deposit(tx, "d1", 5, NOW)
        ledger.deposit(tx, "d2", 7, NOW + 10)
        assert balances(tx, until=NOW + 10)["wallet"] == 5
        assert balances(tx)["wallet"] == 12


def test_an_unknown_account_is_said():
    with transaction() as tx:
        tx.execute("INSERT INTO entries (at, cause, kind, debit, credit, msats) VALUES (1, 'c', 'k', 'wallet', 'x', 1)")
        with pytest.raises(StoreError, match="unknown account"):
            balances(tx)


# --- what happens ---------------------------------------------------------------------------------------------------


def test_one_of_everything():
    with transaction() as tx:
        ledger.brought_forward(tx, "import", 1_000, NOW)
        ledger.deposit(tx, "d1", 100, NOW)
        ledger.sale_moved(tx, cause="s1", paid=(0, 50), earned=(0, 50), owed=(0, 0), at=NOW)
        ledger.sale_moved(tx, cause="s2", paid=(0, 30), earned=(0, 0), owed=(0, 30), at=NOW)
        ledger.debt_paid_out(tx, "o1", "h1", 20, 1, NOW)
        ledger.payment_settled(tx, cause="p1", payment_hash="h2", amount=40, fee=2, at=NOW)
        ledger.withdrawal(tx, "w1", 60, 3, NOW)
        found = balances(tx)
        totals = sale_totals(tx)
    assert found["wallet"] == 1_000 + 100 + 50 + 30 - 20 - 1 - 40 - 2 - 60 - 3
    assert found | {"wallet": 0} == {
        "wallet": 0,
        "unearned": 0,
        "owed": 10,
        "earned": 50,
        "paid_out": 20,
        "refunds": 20,
        "spent": 40,
        "fees": 6,
        "outside": 40,
        "brought_forward": 1_000,
    }
    assert totals == ledger.SaleTotals(80, 50, 10, 20, 0)
    assert totals.balanced


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "aa", "bb"]),
            st.sampled_from(["deposit", "withdrawal", "purchase", "zap", "invoice", "drawn"]),
            st.integers(0, 3),
            st.integers(1, 500),
            st.integers(0, 9),
        )
    )
)
def test_everybody_has_books_of_their_own(moves):
    """The same causes with every owner: what one does changes nothing with another."""
    model: dict[tuple[str, str, int], tuple[int, int]] = {}
    with transaction() as tx:
        for owner, what, cause, msats, fee in moves:
            if (owner, what, cause) in model:
                continue
            model[owner, what, cause] = (msats, 0 if what == "deposit" else fee)
            if what == "deposit":
                assert ledger.deposit(tx, f"c{cause}", msats, NOW, owner)
            elif what == "withdrawal":
                assert ledger.withdrawal(tx, f"c{cause}", msats, fee, NOW, owner)
            else:
                purpose = "withdrawal" if what == "drawn" else what
                assert ledger.payment_settled(
                    tx, owner=owner, purpose=purpose, cause=f"c{cause}", payment_hash=f"h{cause}{what}", amount=msats,
                    fee=fee, at=NOW,
                )  # fmt: skip
        everything, by_owner = balances(tx), ledger.balances_by_owner(tx)
        for owner in ("", "aa", "bb"):
            mine = {key: value for key, value in model.items() if key[0] == owner}
            found = balances(tx, owner)
            assert found == by_owner.get(owner, ledger.no_balances())
            deposits = sum(value[0] for key, value in mine.items() if key[1] == "deposit")
            outside = sum(value[0] for key, value in mine.items() if key[1] in ("withdrawal", "drawn"))
            spent = sum(value[0] for key, value in mine.items() if key[1] in ("purchase", "zap", "invoice"))
            fees = sum(value[1] for value in mine.values())
            assert found["spent"] == spent
            assert found["fees"] == fees
            assert found["outside"] == deposits - outside
            assert found["wallet"] == ledger.held(tx, owner) == deposits - outside - spent - fees
            assert ledger.held_by_owner(tx).get(owner, 0) == found["wallet"]
    for account in Account:
        assert everything[account.value] == sum(found[account.value] for found in by_owner.values())


@pytest.mark.parametrize("fee", [0, 2])
def test_a_settled_purchase_is_booked_once(fee):
    with transaction() as tx:
        again = {"cause": "p1", "payment_hash": "h1", "amount": 40, "fee": fee, "at": NOW}
        assert ledger.payment_settled(tx, **again)
        assert not ledger.payment_settled(tx, **again)
        for changed in ({"fee": fee + 1}, {"amount": 41}):
            with pytest.raises(StoreError, match="booked already"):
                ledger.payment_settled(tx, **{**again, **changed})
        assert balances(tx)["wallet"] == -40 - fee


def test_two_payments_for_one_cause_are_two():
    with transaction() as tx:
        for payment_hash in ("h1", "h2"):
            ledger.payment_settled(tx, cause="p1", payment_hash=payment_hash, amount=40, fee=0, at=NOW)
        assert balances(tx)["spent"] == 80


@st.composite
def histories(draw):
    """Steps of one sale: (paid, earned, owed) after each, as its machine may move them."""
    paid = earned = owed = 0
    steps = [(0, 0, 0)]
    for _ in range(draw(st.integers(1, 8))):
        paid += draw(st.integers(0, 500))
        earned = draw(st.integers(0, paid))
        owed = draw(st.integers(0, paid - earned))
        steps.append((paid, earned, owed))
    return steps


def book(tx, cause, before, after):
    pairs = dict(zip(("paid", "earned", "owed"), zip(before, after, strict=True), strict=True))
    ledger.sale_moved(tx, cause=cause, at=NOW, **pairs)


@given(st.dictionaries(st.sampled_from(["s1", "s2"]), histories()))
def test_the_ledger_follows_a_sale_or_says_that_it_does_not(sales):
    with transaction() as tx:
        for cause, steps in sales.items():
            for before, after in itertools.pairwise(steps):
                try:
                    book(tx, cause, before, after)
                except StoreError:
                    # The very same move twice, with nothing in between to tell them apart, is taken for one.
                    moves = [(a[i], b[i]) for a, b in itertools.pairwise(steps) for i in (1, 2) if a[i] != b[i]]
                    assert len(moves) != len(set(moves))
                    return
                totals = sale_totals(tx, cause)
                assert (totals.paid, totals.earned, totals.owed) == after
                assert totals.balanced
        assert sale_totals(tx).balanced
        debit, credit = sides(balances(tx))
        assert debit == credit


def test_the_way_of_a_sale_that_nobody_could_deliver():
    with transaction() as tx:
        for before, after in [
            ((0, 0, 0), (0, 0, 0)),
            ((0, 0, 0), (50, 0, 0)),
            ((50, 0, 0), (50, 50, 0)),
            ((50, 50, 0), (50, 0, 50)),
            ((50, 0, 50), (80, 0, 80)),
        ]:
            book(tx, "s1", before, after)
        book(tx, "s1", (50, 0, 50), (80, 0, 80))  # again: nothing
        assert sale_totals(tx, "s1") == ledger.SaleTotals(80, 0, 80, 0, 0)
        with pytest.raises(StoreError, match="does not follow"):
            book(tx, "s1", (50, 0, 50), (50, 0, 50))
        with pytest.raises(StoreError, match="cannot become less"):
            book(tx, "s1", (80, 0, 80), (50, 0, 50))


async def test_earnings_wake_a_listener(store):
    with store.listen("ledger") as news:
        await store.write(lambda tx: ledger.deposit(tx, "d1", 5, NOW))
        await news.receive()
