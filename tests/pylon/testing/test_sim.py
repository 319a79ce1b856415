"""The simulated market: 80 seeds, replay, and whether it would notice.

Each planted bug is one that a real system of this kind has had. The seeds that find them are few on purpose: if a
change makes the simulation blind, this is where it shows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import attrs
import pytest
import trio

from pylon.compute import buyer, paying, purchase, purchases, understanding
from pylon.machine import Arrow, Machine
from pylon.money import Msat
from pylon.provider import credits as credit_use
from pylon.provider import holds, payments, sale, sales, server
from pylon.store import ledger
from pylon.testing.sim import foreigner, invariants, world
from pylon.testing.sim.world import simulate
from pylon.wallets import purse

SEEDS = 80
CHUNK = 10


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_invariant_holds(first):
    _hold(range(first, first + CHUNK))


def _hold(seeds: range) -> None:
    for seed in seeds:
        told = simulate(seed)
        assert told.ok, f"make sim SEED={seed}: {told.broken}"


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("first", range(0, 5_000, 100))
def test_every_invariant_holds_over_five_thousand_seeds(first):
    _hold(range(first, first + 100))


def test_a_seed_is_replayed_exactly():
    one, other = simulate(7), simulate(7)
    assert one == other
    assert one.purchases > 0


def test_the_seeds_do_see_trouble():
    told = [simulate(seed) for seed in range(20)]
    assert sum(len(entry.deaths) for entry in told) > 20
    assert any("sale." in death for entry in told for death in entry.deaths)
    assert any("purchase." in death for entry in told for death in entry.deaths)
    assert sum(entry.answered for entry in told) > 15
    assert sum(entry.credited for entry in told) > 0
    assert sum(entry.failed for entry in told) > 0


def _replaced(machine: Machine, state, message, **changes) -> Machine:
    """``machine`` with one row changed."""
    table = dict(machine.table)
    table[state, message] = [attrs.evolve(arrow, **changes) for arrow in table[state, message]]
    return attrs.evolve(machine, table=table)


def _first_broken(limit: int = 60, first: int = 0) -> tuple[int, list[str]]:
    for seed in range(first, limit):
        try:
            told = simulate(seed)
        except Exception as error:
            return seed, [f"{type(error).__name__}: {error}"]
        if not told.ok:
            return seed, told.broken
    pytest.fail(f"no seed below {limit} notices")


def test_a_sale_that_keeps_the_money_of_a_failed_job_is_noticed(monkeypatch):
    table = dict(sale.SALE.table)
    for message in (sale.AttemptFailed, sale.Answered):
        table[sale.SaleState.WORKING, message] = [
            attrs.evolve(arrow, update=lambda record, _: record) if arrow.to is sale.SaleState.OWED else arrow
            for arrow in table[sale.SaleState.WORKING, message]
        ]
    bad = attrs.evolve(sale.SALE, table=table)
    monkeypatch.setattr(sales, "SALE", bad)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("result_or_debt", "books")) for problem in broken)


def test_a_sale_that_forgets_paid_jobs_at_a_restart_is_noticed(monkeypatch):
    resume = {state: effects for state, effects in sale.SALE.resume.items() if state is not sale.SaleState.WORKING}
    monkeypatch.setattr(sales, "SALE", attrs.evolve(sale.SALE, resume=resume))
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("moves_on", "result_or_debt")) for problem in broken)


def test_a_purchase_that_takes_unknown_for_failed_is_noticed(monkeypatch):
    """The classic: a payment that timed out is taken for failed, and the next provider is paid too."""
    real = paying.Purse.send

    async def send(self, intent):
        outcome = await real(self, intent)
        return paying.Failed(outcome.reason) if isinstance(outcome, paying.Unknown) else outcome

    monkeypatch.setattr(paying.Purse, "send", send)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("charged_once") for problem in broken)


def test_a_purchase_that_pays_above_the_ceiling_is_noticed(monkeypatch):
    """The guard of ``Quoted`` is the last line: without it, and with a provider that asks more, money is lost."""
    rows = purchase.PURCHASE.table[purchase.PurchaseState.REQUESTED, purchase.Quoted]
    assert isinstance(rows[0], Arrow)
    bad = _replaced(purchase.PURCHASE, purchase.PurchaseState.REQUESTED, purchase.Quoted, guard=lambda *_: True)
    monkeypatch.setattr(purchases, "PURCHASE", bad)
    monkeypatch.setattr(understanding, "check_quote", _careless)
    monkeypatch.setattr(server.Provider, "_mint", _mint_double)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("budget") for problem in broken)


def _careless(record, feedback, *, now, answer_seconds, **_):
    from protocols import bolt11

    invoice = bolt11.decode(feedback.bolt11)
    return purchase.Quoted(
        feedback.request_id, feedback.bolt11, invoice.payment_hash, invoice.amount_msats, now + answer_seconds
    )


async def _mint_double(self, record):
    invoice = await self._wallet.receive(record.price * 2, "dearer", 120, key=record.id)
    return sale.Minted(invoice.bolt11, invoice.payment_hash, invoice.expires_at)


def test_a_purse_that_forgets_what_is_pending_is_noticed(monkeypatch):
    """The other classic: budgets count what was spent, and not what is being spent just now."""
    spent = "SELECT SUM(amount_msats + fee_msats) AS n FROM intents WHERE state = 'settled' AND "

    def settled_alone(source, scope):
        return source.one(f"{spent} scope = ?", (scope,))["n"] or 0

    def settled_in_a_day(source, owner, *, since, purpose=None):
        return source.one(f"{spent} owner = ? AND updated_at > ?", (owner, since))["n"] or 0

    monkeypatch.setattr(purse.intents, "spent_in", settled_alone)
    monkeypatch.setattr(purse.intents, "committed", settled_in_a_day)
    seed, broken = _first_broken(200)
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("budget") for problem in broken)


def test_a_debt_that_is_used_beyond_what_is_owed_is_noticed(monkeypatch):
    """Providers that say that they take off what they do not owe: what a buyer books must not follow them."""
    monkeypatch.setattr(foreigner, "_LIES", 1.0)
    monkeypatch.setattr(buyer.Buyer, "_use_debt", lambda self, tx, step: None)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("debts") for problem in broken)


def test_a_hold_that_is_given_up_for_another_provider_is_noticed(monkeypatch):
    """What is held for too long may still be taken: whoever pays another one meanwhile pays twice."""
    turn = Arrow(purchase.PurchaseState.SEEKING, (purchase.PurchaseEffect.DISCOVER,), lambda record, _: record)
    table = {**purchase.PURCHASE.table, (purchase.PurchaseState.PAYING, purchase.HoldOverdue): [turn]}
    monkeypatch.setattr(purchases, "PURCHASE", attrs.evolve(purchase.PURCHASE, table=table))
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("charged_once", "books", "AlreadyPaid", "fell")) for problem in broken), broken


def test_an_owner_that_pays_from_another_purse_is_noticed(monkeypatch):
    real = buyer.Buyer.__init__

    def init(self, *, accounts, **others):
        real(self, accounts=lambda owner: attrs.evolve(accounts(owner), purse=accounts("").purse), **others)

    monkeypatch.setattr(buyer.Buyer, "__init__", init)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("charged_once") for problem in broken)


def test_an_answer_from_a_stranger_would_be_noticed(monkeypatch):
    async def take(self, event):
        row = self._store.one(
            "SELECT purchase_id, provider FROM purchase_requests WHERE request_id = ?", (event.tag("e"),)
        )
        record = row and self.records.load(self._store, row["purchase_id"])
        message = record and self._understand(record, event)
        if message is not None:
            await self._driver.advance(record.id, message)

    monkeypatch.setattr(buyer.Buyer, "_take", take)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("answered_truly", "strangers_unpaid", "both_sides")) for problem in broken)


def _sells(monkeypatch, state, message, change) -> tuple[int, list[str]]:
    """The first seed that notices this change of every arrow of a pair."""
    table = dict(sale.SALE.table)
    table[state, message] = [change(arrow) for arrow in table[state, message]]
    monkeypatch.setattr(sales, "SALE", attrs.evolve(sale.SALE, table=table))
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    return seed, broken


def test_a_hold_that_a_failure_does_not_give_back_is_noticed(monkeypatch):
    """The payer's money stands still for hours, for nothing: unless we look again at what has failed."""
    monkeypatch.setattr(payments.Payments, "_claim_all_paid", _ask_nothing)

    def forget(arrow):
        gone = arrow.to is sale.SaleState.CANCELLING
        return attrs.evolve(arrow, to=sale.SaleState.FAILED, effects=()) if gone else arrow

    _, broken = _sells(monkeypatch, sale.SaleState.HELD, sale.Cancelled, forget)
    assert any(problem.startswith(("held_ends", "result_or_debt")) for problem in broken)


def test_a_hold_that_is_taken_for_nothing_is_noticed(monkeypatch):
    """Settled where it should have been given back: what was taken is owed, or it is a theft."""

    def keep(arrow):
        return attrs.evolve(arrow, update=lambda record, message: attrs.evolve(record, paid=message.amount))

    def take(arrow):
        gone = arrow.to is sale.SaleState.CANCELLING
        return (
            attrs.evolve(arrow, to=sale.SaleState.SETTLING, effects=(sale.SaleEffect.SETTLE_HOLD,)) if gone else arrow
        )

    table = dict(sale.SALE.table)
    for message in (sale.Cancelled, sale.AttemptFailed, sale.HoldOverdue):
        table[sale.SaleState.HELD, message] = [take(arrow) for arrow in table[sale.SaleState.HELD, message]]
    row = table[sale.SaleState.SETTLING, sale.Paid]
    table[sale.SaleState.SETTLING, sale.Paid] = [keep(arrow) for arrow in row]
    monkeypatch.setattr(sales, "SALE", attrs.evolve(sale.SALE, table=table))
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("result_or_debt", "books", "held_ends")) for problem in broken)


def test_a_settlement_that_a_restart_forgets_is_noticed(monkeypatch):
    resume = {state: effects for state, effects in sale.SALE.resume.items() if state is not sale.SaleState.SETTLING}
    monkeypatch.setattr(sales, "SALE", attrs.evolve(sale.SALE, resume=resume))
    real = world.World._plan

    def plan(self):
        real(self)
        for seller in self.sellers:
            seller.plan["sale.settle_hold.before"] = 1

    monkeypatch.setattr(world.World, "_plan", plan)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("moves_on", "held_ends")) for problem in broken)


def test_a_settlement_that_is_unknown_and_taken_for_failed_is_noticed(monkeypatch):
    """The customer pays, and is told that it failed."""
    real = holds.Holds.settle

    async def settle(self, record):
        await real(self, record) if self._rng.random() < 0.5 else await self._wallet.settle(record.preimage)
        return sale.HoldGone()

    monkeypatch.setattr(holds.Holds, "settle", settle)
    monkeypatch.setattr(payments.Payments, "watch", _hear_nothing)
    monkeypatch.setattr(payments.Payments, "_claim_all_paid", _ask_nothing)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("both_sides", "held_ends", "books")) for problem in broken)


async def _ask_nothing(self, lately, most=None):
    pass


async def _hear_nothing(self, *, task_status=trio.TASK_STATUS_IGNORED):
    task_status.started()
    await trio.sleep_forever()


def test_credit_that_is_used_and_not_taken_is_noticed(monkeypatch):
    """The classic: one debt pays for every next job."""
    monkeypatch.setattr(ledger.credits, "move", lambda tx, customer, msats, at: None)
    monkeypatch.setattr(credit_use.credits, "available", _owed_ever)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith(("credit", "books")) for problem in broken)


def _owed_ever(source, customer):
    row = source.one(
        "SELECT SUM(e.msats) AS n FROM entries e JOIN sales s ON s.id = e.cause"
        " WHERE e.credit = 'owed' AND s.customer = ?",
        (customer,),
    )
    return Msat(row["n"] or 0)


def test_a_zap_that_is_taken_for_a_gift_is_noticed(monkeypatch):
    def by_invoice(source, payment_hash):
        row = source.one("SELECT id FROM sales WHERE payment_hash = ?", (payment_hash,))
        return None if row is None else row["id"]

    monkeypatch.setattr(payments.claims, "sale_of", by_invoice)
    seed, broken = _first_broken()
    print(f"found by seed {seed}: {broken[0]}")
    assert any(problem.startswith("both_sides") for problem in broken)


def test_a_paid_job_that_its_customer_can_cancel_is_noticed(monkeypatch):
    def always(arrow):
        return attrs.evolve(arrow, guard=lambda *_: True)

    _, broken = _sells(monkeypatch, sale.SaleState.WORKING, sale.Cancelled, always)
    assert any(problem.startswith("result_or_debt") for problem in broken)


def test_each_seller_has_an_answer_of_its_own():
    assert invariants.answer_of("a", "x") != invariants.answer_of("b", "x")
