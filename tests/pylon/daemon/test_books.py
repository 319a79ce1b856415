"""``books.report``: what was bought and sold is clean, and everything that is then planted is named."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest

from pylon.compute.buyer import purchase_records
from pylon.compute.purchase import PurchaseState
from pylon.daemon import books
from pylon.money import Msat, sats
from pylon.provider.sale import SaleState
from pylon.provider.server import sale_records
from pylon.store import ledger
from tests.pylon.market import PRICE, open_actor, open_home, until


@asynccontextmanager
async def traded(market):
    """One job, bought in one home and sold in another: both stores, and the purchase's and the sale's id."""
    seller, buyer = await open_home(market, "seller", funds=0), await open_home(market, "buyer")
    announcer = await open_actor(market, "announcer", funds=0)
    attrs.evolve(announcer, secret=seller.secret).announce()
    async with seller.selling() as (_, sold), buyer.buying() as (buying, bought):
        await books.book_deposits(bought, buyer.wallet, 1.0)
        purchase = await buying.buy("think", bid=sats(20), max_tokens=16)
        record = await buying.finished(purchase.id)
        assert record.state is PurchaseState.ANSWERED, record.reason
        sale = record.request_id
        await until(lambda: sale_records(sold).load(sold, sale).state is SaleState.DELIVERED)
        yield bought, sold, record.id, sale, buyer.wallet, seller.wallet


async def test_a_trade_is_clean_on_both_sides(market):
    async with traded(market) as (bought, sold, _, _, payer, payee):
        mine = books.report(bought, await payer.balance())
        assert mine.problems == ()
        assert mine.balances["spent"] == PRICE
        assert mine.wallet_msats == mine.balances["wallet"] == sats(1_000) - PRICE - mine.balances["fees"]
        theirs = books.report(sold, await payee.balance())
        assert theirs.problems == ()
        assert theirs.balances["earned"] == theirs.wallet_msats == PRICE
        assert books.report(bought, None).wallet_msats is None


async def test_an_empty_store_is_clean(market):
    home = await open_home(market, funds=0)
    async with home.opened() as (store, _):
        assert books.report(store, await home.wallet.balance()).problems == ()


async def test_deposits_are_booked_once(market):
    home = await open_home(market)
    async with home.opened() as (store, _):
        assert books.report(store, await home.wallet.balance()).problems != ()
        for now in (1.0, 2.0):
            await books.book_deposits(store, home.wallet, now)
            assert ledger.balances(store)["outside"] == sats(1_000)
        await home.wallet.fund(Msat(7))
        await books.book_deposits(store, home.wallet, 3.0)
        assert ledger.balances(store)["outside"] == sats(1_000) + 7
        assert books.report(store, await home.wallet.balance()).problems == ()
        assert len(store.read("SELECT 1 FROM entries WHERE kind = 'deposit'")) == 2


async def test_an_audit_books_deposits_and_reports(market):
    home = await open_home(market)
    async with home.opened() as (store, _):
        found = await books.audit(store, home.wallet, market.clock)
        assert (found.problems, found.wallet_msats) == ((), sats(1_000))
        assert (await books.audit(store, None, market.clock)).wallet_msats is None


async def test_a_wallet_that_has_another_sum(market):
    async with traded(market) as (bought, _, _, _, payer, _):
        balance = await payer.balance()
        (problem,) = books.report(bought, attrs.evolve(balance, settled=Msat(balance.settled + 1))).problems
        assert "the ledger has" in problem
        assert "the wallet itself" in problem


SALE, PURCHASE = "sale", "purchase"


@pytest.mark.parametrize(
    ("side", "sql", "words"),
    [
        (SALE, "DELETE FROM entries WHERE credit = 'earned'", "record and ledger disagree"),
        (SALE, "UPDATE entries SET msats = msats + 1 WHERE debit = 'wallet'", "booked"),
        (SALE, "DELETE FROM claims", "claimed payments and record disagree"),
        (SALE, "UPDATE claims SET amount_msats = amount_msats - 1", "claimed payments and record disagree"),
        (SALE, "UPDATE sales SET record = x'00'", "sale "),
        (SALE, "UPDATE entries SET credit = 'nowhere' WHERE credit = 'earned'", "unknown accounts"),
        (PURCHASE, "DELETE FROM intents", "intents and record disagree"),
        (PURCHASE, "UPDATE intents SET amount_msats = amount_msats + 1", "intents and record disagree"),
        (PURCHASE, "UPDATE intents SET fee_msats = fee_msats + 1", "intents and record disagree"),
        (PURCHASE, "UPDATE intents SET state = 'pending'", "intents and record disagree"),
        (PURCHASE, "DELETE FROM entries WHERE debit = 'spent'", "settled with"),
        (PURCHASE, "DELETE FROM entries WHERE debit = 'fees'", "a fee of"),
        (PURCHASE, "UPDATE intents SET preimage = x'00'", "payment "),
        (PURCHASE, "UPDATE purchases SET record = x'00'", "purchase "),
    ],
)
async def test_what_is_planted_is_named(market, side, sql, words):
    async with traded(market) as (bought, sold, *_):
        store = sold if side == SALE else bought
        await store.write(lambda tx: tx.execute(sql))
        problems = books.report(store, None).problems
        assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("side", "changes", "words"),
    [
        (SALE, {"result": None}, "delivered without a result"),
        (SALE, {"earned": Msat(PRICE - 1)}, "record and ledger disagree"),
        (SALE, {"state": SaleState.OWED}, "owed, but nothing is"),
        (PURCHASE, {"text": None}, "answered without words"),
        (PURCHASE, {"paid": Msat(PRICE + 1)}, "intents and record disagree"),
        (PURCHASE, {"fee": Msat(0)}, "intents and record disagree"),
    ],
)
async def test_a_record_that_says_otherwise_is_named(market, side, changes, words):
    async with traded(market) as (bought, sold, purchase, sale, *_):
        store, ident = (sold, sale) if side == SALE else (bought, purchase)
        records = sale_records(store) if side == SALE else purchase_records(store)
        changed = attrs.evolve(records.load(store, ident), **changes)
        sealed = records._seal(changed)
        await store.write(
            lambda tx: tx.execute(f"UPDATE {side}s SET record = ?, state = ?", (sealed, changed.state.value))
        )
        problems = books.report(store, None).problems
        assert any(words in problem and ident[:16] in problem for problem in problems), problems


async def test_a_purchase_that_was_paid_twice(market):
    async with traded(market) as (bought, *_):

        def job(tx):
            tx.execute("DROP INDEX intents_one_open")
            tx.execute(
                "INSERT INTO intents (id, cause, payment_hash, state, amount_msats, max_fee_msats, fee_msats,"
                " idempotency_key, invoice, error, created_at, updated_at) SELECT id || 'x', cause, payment_hash || 'x',"
                " state, amount_msats, max_fee_msats, fee_msats, idempotency_key || 'x', invoice, error, created_at,"
                " updated_at FROM intents"
            )

        await bought.write(job)
        problems = books.report(bought, None).problems
        assert any("paid 2 times" in problem for problem in problems), problems
