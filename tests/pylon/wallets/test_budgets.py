"""Budgets: against a model that keeps every payment in a list and adds up, whatever is asked in whatever order."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylon.errors import BudgetExceeded, NotFound, SealError, StoreError, WalletError
from pylon.money import Msat, format_msat, max_fee, sats
from pylon.store import intents, ledger
from pylon.store.intents import WITHDRAWAL
from pylon.wallets.purse import DAY, Budget, Failed, Purse, Settled, Spend, Unknown
from tests.pylon.store.conftest import StoppedClock, transaction

OWNERS = ["", "aa" * 32, "bb" * 32]
MANY = Msat(10**12)


def hash_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def purse_of(tx, clock, owner="", limits=None):
    return Purse(None, SimpleNamespace(vault=tx.vault), clock, owner, limits)


FIVE = sats(5)


def reserve(purse, tx, name="h", amount=FIVE, **changes):
    wanted = {
        "cause": f"cause of {name}",
        "bolt11": "lnsb1",
        "payment_hash": hash_of(name),
        "amount": amount,
        **changes,
    }
    return purse.reserve(tx, **wanted)


def bounded(tx, clock, owner="", **bounds):
    """A purse with a budget that stays as it is."""
    budget = Budget(**{"per_scope": None, "per_day": None, **bounds})
    return purse_of(tx, clock, owner, lambda source, spend: budget)


@attrs.define
class Paid:
    """What the model knows of one payment."""

    owner: str
    scope: str
    purpose: str
    amount: int
    state: str = "pending"
    fee: int = 0
    settled_at: float = 0.0
    late: bool = False
    """Settled after it was reported as failed."""

    @property
    def takes(self) -> int:
        if self.state == "failed":
            return 0
        return self.amount + (self.fee if self.state == "settled" else max_fee(Msat(self.amount)))

    def counts(self, now: float) -> bool:
        return self.state == "pending" or (self.state == "settled" and self.settled_at > now - DAY)


bounds = st.sampled_from([None, None, None, 0, 7_000, 12_000, 30_000, 100_000])
budgets = st.builds(
    Budget,
    per_scope=bounds,
    per_day=bounds,
    reserve=st.sampled_from([0, 0, 0, 0, 0, 1, 5_000, 40_000]),
    each=bounds,
    purpose_day=bounds,
)
purposes = st.sampled_from(intents.PURPOSES)
scopes = st.sampled_from(["", "tick 1", "tick 2"])
amounts = st.sampled_from([1, 999, 4_999, 5_000, 5_001, 10_000, 29_999]) | st.integers(1, 40_000)


class Budgets(RuleBasedStateMachine):
    @initialize(chosen=st.lists(budgets, min_size=len(OWNERS), max_size=len(OWNERS)))
    def begin(self, chosen):
        self.clock = StoppedClock()
        self.context = transaction(self.clock)
        self.tx = self.context.__enter__()
        self.budgets = dict(zip(OWNERS, chosen, strict=True))
        self.paid: dict[str, Paid] = {}
        self.put_in = dict.fromkeys(OWNERS, 0)
        self.purses = {owner: purse_of(self.tx, self.clock, owner, self.limits) for owner in OWNERS}

    def limits(self, source, spend):
        assert source is self.tx
        return self.budgets[spend.owner]

    def teardown(self):
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    # --- the model --------------------------------------------------------------------------------------------

    def holds(self, owner):
        gone = sum(paid.takes for paid in self.paid.values() if paid.owner == owner and paid.state == "settled")
        return self.put_in[owner] - gone

    def carries(self, owner, scope, purpose, amount):
        """Whether the budgets of an owner carry one more payment: rule by rule, as ``Budget`` has them."""
        budget, now = self.budgets[owner], self.clock.now()
        if purpose == WITHDRAWAL:
            return True
        most = amount + max_fee(Msat(amount))
        mine = [paid for paid in self.paid.values() if paid.owner == owner]
        bounded = [paid for paid in mine if paid.purpose != WITHDRAWAL]
        in_scope = sum(paid.takes for paid in bounded if scope and paid.scope == scope)
        in_day = sum(paid.takes for paid in bounded if paid.counts(now))
        in_purpose = sum(paid.takes for paid in bounded if paid.counts(now) and paid.purpose == purpose)
        reserved = sum(paid.takes for paid in mine if paid.state == "pending")
        return (
            (budget.each is None or amount <= budget.each)
            and (budget.per_scope is None or in_scope + most <= budget.per_scope)
            and (budget.per_day is None or in_day + most <= budget.per_day)
            and (budget.purpose_day is None or in_purpose + most <= budget.purpose_day)
            and (budget.reserve == 0 or self.holds(owner) - reserved - most >= budget.reserve)
        )

    # --- what happens -----------------------------------------------------------------------------------------

    @rule(owner=st.sampled_from(OWNERS), amount=st.sampled_from([1, 10_000, 60_000]))
    def deposit(self, owner, amount):
        ledger.deposit(self.tx, f"deposit {len(self.put_in)} {self.put_in[owner]}", amount, self.clock.now(), owner)
        self.put_in[owner] += amount

    @rule(owner=st.sampled_from(OWNERS), budget=budgets)
    def decide(self, owner, budget):
        self.budgets[owner] = budget

    @rule(seconds=st.sampled_from([1.0, DAY / 2, DAY / 2, DAY - 1.0, DAY, DAY]))
    def pass_time(self, seconds):
        self.clock.at += seconds

    @rule(owner=st.sampled_from(OWNERS), scope=scopes, purpose=purposes, amount=amounts)
    def pay(self, owner, scope, purpose, amount):
        # Scopes are an owner's own, as ticks are.
        name, scope = f"payment {len(self.paid)}", scope and f"{owner[:2]} {scope}"
        fits = self.carries(owner, scope, purpose, amount)
        try:
            intent = reserve(self.purses[owner], self.tx, name, Msat(amount), scope=scope, purpose=purpose)
        except BudgetExceeded:
            intent = None
        assert (intent is not None) == fits
        assert (intents.find(self.tx, hash_of(name)) is not None) == fits
        if intent is not None:
            assert (intent.owner, intent.scope, intent.purpose) == (owner, scope, purpose)
            self.paid[name] = Paid(owner, scope, purpose, amount)

    @rule(data=st.data())
    def pay_again(self, data):
        """The same again takes nothing, whatever has become of the budget; another owner's is another's."""
        if not self.paid:
            return
        name = data.draw(st.sampled_from(sorted(self.paid)))
        paid = self.paid[name]
        before = intents.find(self.tx, hash_of(name))
        ask = {"scope": paid.scope, "purpose": paid.purpose}
        if paid.state == "failed" or paid.late:
            with pytest.raises(WalletError):
                reserve(self.purses[paid.owner], self.tx, name, Msat(paid.amount), **ask)
            return
        assert reserve(self.purses[paid.owner], self.tx, name, Msat(paid.amount), **ask) == before
        for owner in OWNERS:
            if owner != paid.owner:
                with pytest.raises(WalletError):
                    reserve(self.purses[owner], self.tx, name, Msat(paid.amount), **ask)

    @rule(data=st.data(), outcome=st.sampled_from(["settled", "failed", "unknown"]), share=st.integers(0, 100))
    def learn(self, data, outcome, share):
        """Early, late, twice, or after the wallet has first said otherwise."""
        if not self.paid:
            return
        name = data.draw(st.sampled_from(sorted(self.paid)))
        paid, now = self.paid[name], self.clock.now()
        intent, purse = intents.by_hash(self.tx, hash_of(name)), self.purses[paid.owner]
        fee = max_fee(Msat(paid.amount)) * share // 100
        if outcome == "unknown":
            purse.record(self.tx, intent, Unknown("silence"))
        elif outcome == "settled":
            purse.record(self.tx, intent, Settled(Msat(paid.amount), Msat(fee), None))
            if paid.state != "settled":
                paid.late = paid.state == "failed"
                paid.state, paid.fee, paid.settled_at = "settled", fee, now
        elif paid.state == "settled":
            with pytest.raises(StoreError):
                purse.record(self.tx, intent, Failed("no route"))
        else:
            purse.record(self.tx, intent, Failed("no route"))
            paid.state = "failed"

    @rule(owner=st.sampled_from(OWNERS), scope=scopes, purpose=purposes, spendable=st.just(MANY) | amounts)
    def ask_how_much(self, owner, scope, purpose, spendable):
        scope = scope and f"{owner[:2]} {scope}"
        most = self.purses[owner].affordable(self.tx, scope=scope, purpose=purpose, spendable=Msat(spendable))

        def fits(price):
            return price + max_fee(Msat(price)) <= spendable and self.carries(owner, scope, purpose, price)

        assert most == 0 or fits(most)
        assert not fits(most + 1)

    # --- what holds -------------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_knows_what_everybody_holds(self):
        if not hasattr(self, "paid"):
            return
        held = ledger.held_by_owner(self.tx)
        for owner in OWNERS:
            mine = [paid for paid in self.paid.values() if paid.owner == owner]
            assert ledger.held(self.tx, owner) == held.get(owner, 0) == self.holds(owner)
            balances = ledger.balances(self.tx, owner)
            settled = [paid for paid in mine if paid.state == "settled"]
            assert balances["spent"] == sum(paid.amount for paid in settled if paid.purpose != WITHDRAWAL)
            drawn = sum(paid.amount for paid in settled if paid.purpose == WITHDRAWAL)
            assert balances["outside"] == self.put_in[owner] - drawn
            assert balances["fees"] == sum(paid.fee for paid in settled)
            assert intents.reserved(self.tx, owner) == sum(paid.takes for paid in mine if paid.state == "pending")


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


# --- one at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["per_scope", "per_day", "each", "purpose_day"])
def test_a_budget_of_nothing_refuses_the_smallest_payment(bound):
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), **{bound: Msat(0)})
        with pytest.raises(BudgetExceeded):
            reserve(purse, tx, amount=Msat(1), scope="tick")
        assert purse.affordable(tx, scope="tick", spendable=MANY) == 0


@pytest.mark.parametrize("bound", ["per_scope", "per_day", "purpose_day"])
def test_a_budget_bounds_the_highest_fee_too(bound):
    amount = sats(5)
    most = amount + max_fee(amount)
    with transaction() as tx:
        with pytest.raises(BudgetExceeded, match="leaves"):
            reserve(bounded(tx, StoppedClock(), **{bound: Msat(most - 1)}), tx, amount=amount, scope="tick")
        reserve(bounded(tx, StoppedClock(), **{bound: Msat(most)}), tx, amount=amount, scope="tick")


def test_each_bounds_the_amount_and_not_the_fee():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), each=sats(5))
        reserve(purse, tx, "one", sats(5))
        with pytest.raises(BudgetExceeded, match=r"5.001 sat are more than the 5 sat that one purchase may cost"):
            reserve(purse, tx, "two", Msat(5_001))


def test_a_rolling_day_ends_after_24_hours():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, per_day=sats(10))
        intent = reserve(purse, tx, "one", sats(5))
        clock.at += 3 * DAY  # however old: it is pending
        with pytest.raises(BudgetExceeded, match="24 hours"):
            reserve(purse, tx, "two", sats(5))
        purse.record(tx, intent, Settled(sats(5), Msat(0), None))
        clock.at += DAY - 0.001
        with pytest.raises(BudgetExceeded):
            reserve(purse, tx, "two", sats(5))
        clock.at += 0.001
        reserve(purse, tx, "two", sats(5))


def test_a_clock_that_was_set_back_forgives_nothing():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, per_day=sats(10))
        purse.record(tx, reserve(purse, tx, "one", sats(5)), Settled(sats(5), Msat(0), None))
        clock.at -= 30 * DAY
        with pytest.raises(BudgetExceeded):
            reserve(purse, tx, "two", sats(5))


def test_asking_again_takes_nothing_from_a_budget():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, per_scope=sats(7), per_day=sats(7), purpose_day=sats(7))
        intent = reserve(purse, tx, scope="tick")
        assert reserve(purse, tx, scope="tick") == intent
        purse.record(tx, intent, Settled(FIVE, sats(2), None))
        assert reserve(purse, tx, scope="tick").state is intents.IntentState.SETTLED
        assert intents.spent_in(tx, "tick") == sats(7)
        nothing = bounded(tx, clock, per_scope=Msat(0), each=Msat(0))
        assert reserve(nothing, tx, scope="tick").id == intent.id


def test_payments_of_no_scope_share_none():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), per_scope=sats(8))
        for name in range(5):
            reserve(purse, tx, name, sats(5))
        reserve(purse, tx, "in a tick", sats(5), scope="tick")
        with pytest.raises(BudgetExceeded, match="this tick"):
            reserve(purse, tx, "once more", sats(5), scope="tick")


def test_a_reserve_stays_in_the_wallet():
    clock = StoppedClock()
    with transaction(clock) as tx:
        purse = bounded(tx, clock, "aa", reserve=sats(10))
        with pytest.raises(BudgetExceeded, match="the reserve of 10 sat leaves: 0 sat"):
            reserve(purse, tx)
        ledger.deposit(tx, "d", sats(17), clock.now(), "aa")
        ledger.deposit(tx, "d", sats(1_000), clock.now(), "somebody else")
        assert purse.affordable(tx, spendable=MANY) == sats(5)
        intent = reserve(purse, tx, amount=sats(5))
        with pytest.raises(BudgetExceeded):
            reserve(purse, tx, "another", Msat(1))
        purse.record(tx, intent, Failed("no route"))
        reserve(purse, tx, "another", sats(5))


def test_a_withdrawal_is_the_operators_own():
    clock = StoppedClock()

    def never(source, spend):
        raise AssertionError("no budget is asked")

    with transaction(clock) as tx:
        withdrawn = reserve(purse_of(tx, clock, "aa", never), tx, "w", sats(100), purpose=WITHDRAWAL)
        assert purse_of(tx, clock, "aa", never).affordable(tx, purpose=WITHDRAWAL, spendable=sats(102)) == sats(100)
        purse = bounded(tx, clock, "aa", per_day=sats(7), per_scope=sats(7), purpose_day=sats(7))
        purse.record(tx, withdrawn, Settled(sats(100), Msat(9), None))
        reserve(purse, tx, amount=sats(5), scope="tick")
        assert ledger.balances(tx, "aa")["outside"] == -sats(100)


class Wreck(BaseException):
    """What no ``except Exception`` takes for an answer."""


@pytest.mark.parametrize(
    ("limits", "raises"),
    [
        (RuntimeError("canary"), BudgetExceeded),
        (NotFound("there is no such agent"), BudgetExceeded),
        (KeyError("canary"), BudgetExceeded),
        (SealError("the settings do not open"), BudgetExceeded),
        (StoreError("the disk failed"), StoreError),
        (BudgetExceeded("no grant"), BudgetExceeded),
        (Wreck(), Wreck),
        (None, BudgetExceeded),
        (10**9, BudgetExceeded),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_refuses(limits, raises):
    def ask(source, spend):
        if isinstance(limits, BaseException):
            raise limits
        return limits

    with transaction() as tx:
        purse = purse_of(tx, StoppedClock(), "aa", ask)
        with pytest.raises(raises) as caught:
            reserve(purse, tx)
        assert "canary" not in str(caught.value)
        assert intents.find(tx, hash_of("h")) is None
        if raises is BudgetExceeded:
            assert purse.affordable(tx, spendable=MANY) == 0
        else:
            with pytest.raises(raises):
                purse.affordable(tx, spendable=MANY)


def test_a_ledger_that_cannot_be_read_refuses():
    with transaction() as tx:
        purse = bounded(tx, StoppedClock(), "aa", reserve=Msat(1), per_day=MANY)
        tx.execute("ALTER TABLE entries RENAME TO gone")
        with pytest.raises(StoreError):
            reserve(purse, tx)
        assert intents.find(tx, hash_of("h")) is None


def test_a_budget_sees_what_it_bounds():
    seen: list[Spend] = []

    def look(source, spend):
        seen.append(spend)
        return Budget(None, None)

    with transaction() as tx:
        purse = purse_of(tx, StoppedClock(), "aa", look)
        reserve(purse, tx, "zap", sats(5), scope="tick", purpose="zap")
        purse.affordable(tx, scope="tick", purpose="invoice", spendable=MANY)
    assert seen == [
        Spend("aa", "cause of zap", "tick", "zap", sats(5), sats(2)),
        Spend("aa", "", "tick", "invoice", Msat(0), Msat(0)),
    ]
    assert seen[0].most == sats(7)


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), "7", True])
def test_a_bound_is_an_amount(value):
    for name in ("per_scope", "per_day", "reserve", "each", "purpose_day"):
        with pytest.raises(ValueError, match="whole number"):
            Budget(**{"per_scope": None, "per_day": None, name: value})
    with pytest.raises(ValueError, match="a reserve"):
        Budget(None, None, None)


@given(st.integers(-5, 10**7) | st.integers(10**14, 10**15))
def test_the_highest_price_is_the_highest(spendable):
    with transaction() as tx:
        price = purse_of(tx, StoppedClock()).affordable(tx, spendable=Msat(spendable))
    assert price == 0 or price + max_fee(price) <= spendable
    assert price + 1 + max_fee(Msat(price + 1)) > spendable, format_msat(price)
