"""What bounds a payment beside time and scope: payee, fee, approval, freeze; and a word at 80 %."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pylon
from protocols import bolt11
from pylon import events
from pylon.config import ApiConfig, WalletConfig
from pylon.errors import AlreadyPaid, BudgetExceeded, InvoiceInvalid, WalletFrozen
from pylon.money import Msat, max_fee, sats
from pylon.store import freeze, intents
from pylon.store.intents import INVOICE, PURCHASE, WITHDRAWAL, Approval, TargetForm
from pylon.wallets import budgets
from pylon.wallets.limits import home_limits
from pylon.wallets.purse import DAY, Failed, Settled, Spend, Unknown
from tests.pylon.store.conftest import StoppedClock, transaction
from tests.pylon.wallets.fickle import PAYEES, invoice
from tests.pylon.wallets.test_budgets import bounded, hash_of, purse_of

FIVE = sats(5)


def ask(purse, tx, name, amount=FIVE, payee=0, **changes):
    text = invoice(str(name), amount, purse._clock.now(), payee)
    wanted = {"cause": f"cause of {name}", "bolt11": text, "payment_hash": hash_of(name), "amount": amount, **changes}
    return purse.reserve(tx, **wanted)


# --- the payee ----------------------------------------------------------------------------------------------------


def test_one_payee_has_its_own_day():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, payee_day=sats(14))
        first = ask(purse, tx, 1)
        assert first.payee == bolt11.node_public_key(PAYEES[0]).hex()
        ask(purse, tx, 2)
        with pytest.raises(BudgetExceeded, match="this payee leaves: 0 sat"):
            ask(purse, tx, 3, Msat(1))
        ask(purse, tx, 4, payee=1)
        purse.record(tx, first, Settled(FIVE, Msat(0), None))
        clock.at += DAY
        with pytest.raises(BudgetExceeded):
            ask(purse, tx, 5, sats(8))
        ask(purse, tx, 6)


def test_a_payee_that_cannot_be_told_has_no_budget():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), payee_day=sats(1_000))
        with pytest.raises(BudgetExceeded, match="cannot be told"):
            purse.reserve(tx, cause="c", bolt11="lnsb1", payment_hash=hash_of(1), amount=FIVE)


def test_an_address_is_a_payee():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), payee_day=sats(8))
        made = purse.reserve(tx, cause="c", bolt11="spsb1friend", amount=FIVE)
        assert (made.payee, made.target) == ("spsb1friend", TargetForm.ADDRESS)
        with pytest.raises(BudgetExceeded):
            purse.reserve(tx, cause="d", bolt11="spsb1friend", amount=FIVE)
        purse.reserve(tx, cause="e", bolt11="spsb1other", amount=FIVE)


# --- targets ------------------------------------------------------------------------------------------------------


def test_an_address_is_paid_once_for_a_cause():
    with transaction() as tx:
        purse = purse_of(tx, StoppedClock())
        made = purse.reserve(tx, cause="c", bolt11="spsb1friend", amount=FIVE)
        assert made.payment_hash == intents.hash_of_key(made.idempotency_key)
        assert purse.reserve(tx, cause="c", bolt11="spsb1friend", amount=FIVE) == made
        with pytest.raises(InvoiceInvalid, match="another amount"):
            purse.reserve(tx, cause="c", bolt11="spsb1friend", amount=sats(6))
        with pytest.raises(AlreadyPaid, match="under way"):
            purse.reserve(tx, cause="c", bolt11="spsb1other", amount=FIVE)
        assert purse.reserve(tx, cause="d", bolt11="spsb1friend", amount=FIVE).payment_hash != made.payment_hash
        other = purse_of(tx, StoppedClock(), "aa").reserve(tx, cause="c", bolt11="spsb1friend", amount=FIVE)
        assert other.idempotency_key != made.idempotency_key


def test_what_is_said_of_an_invoice_is_held_against_it():
    with transaction() as tx:
        purse = purse_of(tx, StoppedClock())
        assert ask(purse, tx, 1).target is TargetForm.INVOICE
        with pytest.raises(InvoiceInvalid, match="another payment hash"):
            ask(purse, tx, 2, payment_hash=hash_of(3))
        with pytest.raises(InvoiceInvalid, match="another amount"):
            ask(purse, tx, 4, bolt11=invoice("4", sats(6), 0))
        with pytest.raises(InvoiceInvalid, match="another payment hash"):
            ask(purse, tx, 5, payment_hash=None)
        opened = ask(purse, tx, 6, bolt11=invoice("6", None, purse._clock.now()))
        assert (opened.target, opened.amount_msats) == (TargetForm.OPEN, FIVE)


# --- the fee ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "own", "fee"),
    [(None, None, 2_000), (500, None, 500), (9_000, None, 2_000), (500, 300, 300), (0, None, 0)],
)
def test_the_highest_fee(bound, own, fee):
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), max_fee=bound, per_day=Msat(FIVE + fee))
        assert purse.affordable(tx, spendable=sats(100)) == (FIVE if own is None else Msat(FIVE + fee - bound))
        assert ask(purse, tx, 1, highest_fee=own).max_fee_msats == fee


def test_the_operator_may_pay_a_higher_fee_and_a_program_not():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), max_fee=Msat(500))
        assert ask(purse, tx, 1, highest_fee=sats(50), purpose=WITHDRAWAL).max_fee_msats == sats(50)
        assert ask(purse, tx, 2, highest_fee=sats(50)).max_fee_msats == 500


# --- the yes ------------------------------------------------------------------------------------------------------


def test_a_larger_payment_waits():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, approve_above=FIVE, per_day=sats(20))
        assert not ask(purse, tx, 1).waits
        waiting = ask(purse, tx, 2, Msat(5_001))
        assert (waiting.waits, waiting.approval) == (True, Approval.WAITING)
        assert waiting.lapses_at == int(clock.now()) + 3_600 - 5, "its invoice lives for an hour"
        with pytest.raises(BudgetExceeded):
            ask(purse, tx, 3, sats(8))
        assert not ask(purse, tx, 4, sats(500), purpose=WITHDRAWAL).waits


def test_an_address_is_asked_about_for_a_day():
    with transaction() as tx:
        purse = bounded(tx, clock := StoppedClock(), approve_above=Msat(0))
        assert purse.reserve(tx, cause="c", bolt11="spsb1x", amount=Msat(1)).lapses_at == clock.now() + DAY


# --- the freeze ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", intents.PURPOSES)
@pytest.mark.parametrize("owner", ["", "aa"])
def test_nobody_reserves_while_it_is_frozen(purpose, owner):
    with transaction() as tx:
        purse = purse_of(tx, StoppedClock(), owner)
        there, paid = ask(purse, tx, 1, purpose=purpose), ask(purse, tx, 2, purpose=purpose)
        purse.record(tx, paid, Settled(FIVE, Msat(0), None))
        freeze.freeze(tx, "strange things", 1.0)
        for name in (1, 3):
            with pytest.raises(WalletFrozen, match="strange things"):
                ask(purse, tx, name, purpose=purpose)
        assert ask(purse, tx, 2, purpose=purpose).id == paid.id, "what is paid is paid"
        with pytest.raises(WalletFrozen):
            purse.affordable(tx, purpose=purpose, spendable=sats(100))
        freeze.thaw(tx)
        assert ask(purse, tx, 1, purpose=purpose) == there
        ask(purse, tx, 3, purpose=purpose)


# --- a word at 80 % -----------------------------------------------------------------------------------------------


def test_a_budget_that_is_nearly_gone_is_told_once_a_crossing():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, "aa", per_day=sats(100))

        def told():
            found = budgets.warnings(tx, clock.now(), "aa").get("aa", [])
            return [(warned.budget, warned.used) for warned in found], len(low())

        def low():
            return [fact for fact in tx._told if isinstance(fact, events.BudgetLow)]

        paid = [ask(purse, tx, number, sats(10)) for number in range(6)]  # 72 of 100 with fees
        assert told() == ([], 0)
        paid.append(ask(purse, tx, 6, sats(6)))
        assert told() == ([("day", sats(80))], 1)
        assert low() == [events.BudgetLow(agent="aa", budget="day", used_msats=sats(80), bound_msats=sats(100))]
        ask(purse, tx, 7, sats(5))
        assert told()[1] == 1
        # Fees that were reserved and not charged bring it back below, and up again: no news.
        for intent in paid:
            purse.record(tx, intent, Settled(intent.amount_msats, Msat(0), None))
        ask(purse, tx, 8, sats(8))
        assert told()[1] == 1
        clock.at += DAY / 2
        ask(purse, tx, 9, sats(1))
        clock.at += DAY / 2 + 1
        assert told()[0] == [], "a day later it is no news any more"
        ask(purse, tx, 10, sats(60))
        assert told() == ([("day", sats(82))], 2)


def test_a_tick_and_a_payee_are_told_of_by_name():
    with transaction() as tx:
        purse = bounded(tx, clock := StoppedClock(), per_scope=sats(7), payee_day=sats(14), purpose_day=sats(1_000))
        ask(purse, tx, 1, scope="tick 1")
        ask(purse, tx, 2, scope="tick 2")
        ask(purse, tx, 3, payee=1)
        (found,) = budgets.warnings(tx, clock.now()).values()
        assert sorted(warned.budget.split()[0] for warned in found) == ["payee", "tick"]


def test_a_budget_of_nothing_does_not_warn():
    with transaction() as tx:
        purse = bounded(tx, clock := StoppedClock(), per_day=Msat(0))
        with pytest.raises(BudgetExceeded):
            ask(purse, tx, 1)
        assert budgets.warnings(tx, clock.now()) == {}


# --- the home's own -----------------------------------------------------------------------------------------------


def test_the_home_is_bounded_where_programs_buy():
    limits = home_limits(WalletConfig(budget_day_sats=20, budget_each_sats=10, approve_above_sats=6, reserve_sats=3))
    with transaction() as tx:
        by_hand = Spend("", "c", "", PURCHASE, sats(5_000), Msat(0))
        assert limits(tx, by_hand) == budgets.UNBOUNDED
        for scope, purpose in (("api", PURCHASE), ("", INVOICE), ("connection", INVOICE)):
            found = limits(tx, Spend("", "c", scope, purpose, sats(1), Msat(0)))
            assert (found.per_day, found.each, found.approve_above) == (sats(20), sats(10), sats(6))
            assert (found.reserve, found.payee_day, found.max_fee) == (sats(3), None, None)
    assert home_limits(WalletConfig())(tx, Spend("", "c", "api", PURCHASE, sats(1), Msat(0))) == budgets.UNBOUNDED


def test_what_the_api_buys_is_bounded_beside():
    wallet = WalletConfig(budget_each_sats=10, reserve_sats=3)
    api = ApiConfig(budget_day_msats=Msat(20_500), budget_each_msats=Msat(12_000))
    with transaction() as tx:
        for scope, each, day in (("api", sats(10), Msat(20_500)), ("connection", sats(10), None)):
            found = home_limits(wallet, api)(tx, Spend("", "c", scope, PURCHASE, sats(1), Msat(0)))
            assert (found.each, found.scope_day, found.reserve) == (each, day, sats(3))
        found = home_limits(WalletConfig(), api)(tx, Spend("", "c", "api", PURCHASE, sats(1), Msat(0)))
        assert (found.each, found.per_day) == (Msat(12_000), None)


def test_the_day_of_a_scope_counts_that_scope_alone():
    day = 2 * (FIVE + max_fee(FIVE))
    with transaction() as tx:
        purse = bounded(tx, clock := StoppedClock(), scope_day=Msat(day))
        ask(purse, tx, 1, scope="other")
        ask(purse, tx, 2, scope="api")
        ask(purse, tx, 3, scope="api")
        for number in (4, 5):
            with pytest.raises(BudgetExceeded, match="24 hours for api"):
                ask(purse, tx, number, scope="api")
        ask(purse, tx, 6, scope="other")
        told = [warned.budget for warned in budgets.warnings(tx, clock.now())[""]]
        assert sorted(told) == ["api", "other"]


def test_what_a_budget_leaves_is_what_a_failed_payment_gives_back():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), payee_day=Msat(FIVE + max_fee(FIVE)))
        intent = ask(purse, tx, 1)
        for outcome in (Unknown("silence"), Unknown("silence")):
            purse.record(tx, intent, outcome)
            with pytest.raises(BudgetExceeded):
                ask(purse, tx, 2)
        purse.record(tx, intent, Failed("no route"))
        ask(purse, tx, 2)


# --- nobody pays around it ----------------------------------------------------------------------------------------


def test_only_the_purse_asks_a_wallet_to_pay():
    """Read from the code: a call of ``pay`` with an idempotency key, anywhere else but in wallets and their fakes."""
    root = Path(pylon.__file__).parent
    paying = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "pay"
        and any(word.arg == "idempotency_key" for word in node.keywords)
    }
    paying = {path for path in paying if not path.startswith("testing/")}
    # The witness of a connection hands on what its purse asks, to note what the wallet answers.
    assert paying == {"wallets/purse.py", "wallets/nwc_guests.py"}
