"""``books.report``: what was bought and sold is clean, and everything that is then planted is named."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import SimpleNamespace

import attrs
import pytest
import trio

from protocols.keys import SecretKey
from pylon.clock import SystemClock
from pylon.compute.purchase import PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.daemon import books
from pylon.errors import NotFound
from pylon.money import Msat, sats
from pylon.provider.sale import SaleState
from pylon.provider.sales import sale_records
from pylon.store import ledger
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import FeeModel
from tests.pylon.market import PRICE, Agent, open_actor, open_agent, open_home, until


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


async def test_an_audit_of_a_year_keeps_nobody_waiting(tmp_path, monkeypatch):
    threads = []

    def check(source):
        threads.append(threading.get_ident())
        return []

    monkeypatch.setattr(books.books, "check", check)
    async with open_store(tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=SystemClock(), durable=False) as store:
        assert (await books.audit(store, None, store.clock)).problems == ()
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


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


async def test_an_invoice_that_is_no_sales_is_a_deposit(market):
    home, friend = await open_home(market), await open_actor(market, "friend")
    issued = await home.wallet.receive(sats(7), "for lunch", 600, "lunch")
    await friend.wallet.pay(issued.bolt11, max_fee=sats(2), idempotency_key="lunch")
    async with home.opened() as (store, _):
        for _ in range(2):
            found = await books.audit(store, home.wallet, market.clock)
            assert found.problems == ()
            assert found.balances["outside"] == found.wallet_msats == sats(1_007)


# --- agents -------------------------------------------------------------------------------------------------------


class CountingKeeper(SimnetKeeper):
    looks = 0

    async def balances(self, ids=None):
        self.looks += 1
        return await super().balances(ids)


@attrs.define
class Opener:
    """An agent's wallet, and how often it was opened."""

    agent: Agent
    opened: int = 0
    began: float = 0.0
    fails: Exception | None = None

    @property
    def owned(self) -> books.Owned:
        return books.Owned(self.agent.wallet.node_pubkey, self.open, self.began)

    @asynccontextmanager
    async def open(self):
        self.opened += 1
        if self.fails is not None:
            raise self.fails
        yield self.agent.wallet


@asynccontextmanager
async def hosting(market, count=3):
    """A home with agents, and how the audit reaches them."""
    home = await open_home(market)
    openers = [Opener(await open_agent(home, f"agent{number}", sats(100 + number))) for number in range(count)]
    keeper = CountingKeeper(market.ledger)

    async with home.opened() as (store, _):

        async def audit(**options):
            agents = {opener.agent.hex: opener.owned for opener in openers}
            return await books.audit(store, home.wallet, market.clock, keeper=keeper, agents=agents, **options)

        yield store, openers, audit, keeper


async def test_only_wallets_that_disagree_are_opened(autojump_clock, market):
    async with hosting(market) as (store, openers, audit, keeper):
        first = await audit()
        assert first.problems == ()
        assert first.wallet_msats == first.balances["wallet"] == sats(1_303)
        assert first.owners is None
        assert [opener.opened for opener in openers] == [1, 1, 1]
        await audit()
        assert [opener.opened for opener in openers] == [1, 1, 1]
        assert keeper.looks == 2, "all balances in one question"
        await openers[1].agent.wallet.fund(sats(5))
        assert (await audit()).problems == ()
        assert [opener.opened for opener in openers] == [1, 2, 1]
        assert ledger.held(store, openers[1].agent.hex) == sats(106)


async def test_each_owners_accounts_where_asked(autojump_clock, market):
    async with hosting(market) as (_store, openers, audit, _):
        found = (await audit(owners=True)).owners
        assert found.keys() == {"", *(opener.agent.hex for opener in openers)}
        assert [found[opener.agent.hex].wallet_msats for opener in openers] == [sats(100), sats(101), sats(102)]
        assert found[""].balances["outside"] == found[""].wallet_msats == sats(1_000)


async def test_money_that_an_agent_did_not_spend_by_us_is_named(autojump_clock, market):
    other = await open_actor(market, "other")
    async with hosting(market) as (_store, openers, audit, _):
        await audit()
        thief = openers[2].agent
        await thief.wallet.pay(await other.invoice(), max_fee=sats(10), idempotency_key="behind our back")
        (problem,) = (await audit()).problems
        assert problem.startswith(f"agent {thief.hex[:16]}: the ledger has 102 sat in the wallet, the wallet itself")
        # Had it been spent before we took it over, it would be none of our doing.
        openers[2].began = market.clock.now() + 1
        assert (await audit()).problems == ()


async def test_a_payment_under_way_is_no_false_alarm(autojump_clock, market):
    """Settled in the wallet, and its outcome not recorded yet."""
    shop = await open_actor(market, "shop")
    async with hosting(market) as (store, openers, audit, _):
        await audit()
        agent = openers[0].agent
        purse = Purse(agent.wallet, store, market.clock, agent.hex)
        issued = await shop.wallet.receive(sats(5), "", 600, "k")
        ask = {"cause": "p", "bolt11": issued.bolt11, "payment_hash": issued.payment_hash, "amount": sats(5)}
        intent = await store.write(partial(purse.reserve, **ask))
        assert (await audit()).problems == ()
        outcome = await purse.send(intent)
        assert (await audit()).problems == ()
        assert ledger.held(store, agent.hex) == sats(100)
        await store.write(partial(purse.record, intent=intent, outcome=outcome))
        assert (await audit()).problems == ()


async def test_an_agent_that_is_gone_and_one_that_breaks_harm_no_other(autojump_clock, market):
    async with hosting(market) as (_store, openers, audit, _):
        openers[0].fails, openers[1].fails = NotFound("there is no such agent"), OSError("canary")
        (problem,) = (await audit()).problems
        assert problem.startswith(f"agent {openers[1].agent.hex[:16]}: its wallet and the ledger disagree")
        assert "canary" not in problem
        assert openers[2].opened == 1


async def test_a_wallet_that_nobody_knows_is_not_an_empty_one(autojump_clock, market):
    async with hosting(market, 1) as (store, openers, audit, _):
        await audit()
        openers.append(Opener(attrs.evolve(openers[0].agent, secret=SecretKey(market.key()))))
        openers[1].agent.wallet = SimpleNamespace(node_pubkey="00" * 33)
        await store.write(lambda tx: ledger.deposit(tx, "d", 5, 1.0, openers[1].agent.hex))
        found = await audit()
        assert found.problems == ()
        (unknown,) = found.unknown
        assert unknown.startswith(f"agent {openers[1].agent.hex[:16]}: its wallet does not say what it holds")


async def test_a_wallet_that_never_stands_still_is_not_known(autojump_clock, market):
    async with AsyncExitStack() as stack:
        store, wallet = await busy_home(market, stack, turns=40)
        assert "money moved" in (await books.audit(store, wallet, market.clock)).unknown[0]
        assert (await books.audit(store, wallet.wallet, market.clock)).unknown == ()


async def test_agents_that_pay_while_the_others_are_looked_into(autojump_clock, market):
    """A look at many wallets takes a while, and life goes on: only what is wrong at one moment is wrong."""
    shop = await open_actor(market, "shop")
    async with hosting(market, 8) as (store, openers, audit, _):
        await audit()

        async def spend(opener):
            agent = opener.agent
            purse = Purse(agent.wallet, store, market.clock, agent.hex)
            for number in range(5):
                issued = await shop.wallet.receive(sats(1), "", 600, f"{agent.hex} {number}")
                ask = {"cause": f"{number}", "bolt11": issued.bolt11, "payment_hash": issued.payment_hash}
                intent = await store.write(partial(purse.reserve, **ask, amount=sats(1)))
                outcome = await purse.send(intent)
                await store.write(partial(purse.record, intent=intent, outcome=outcome))
                await agent.wallet.fund(sats(1))

        async with trio.open_nursery() as nursery:
            for opener in openers:
                nursery.start_soon(spend, opener)
            for _ in range(30):
                assert (await audit()).problems == ()
        assert (await audit()).problems == ()


class Restless:
    """A wallet that lives while it is asked: ``moves`` is awaited after each answer of ``payments``, and again."""

    def __init__(self, wallet, moves):
        self.wallet, self.moves = wallet, moves

    def __getattr__(self, name):
        return getattr(self.wallet, name)

    async def payments(self, **page):
        found = await self.wallet.payments(**page)
        await self.moves()
        return found


async def busy_home(market, stack, *, turns):
    """A home that pays and is funded with the same, so often, whenever its history is asked for."""
    home, shop = await open_home(market), await open_actor(market, "shop")
    market.ledger.set_fees(FeeModel(Msat(0), 0))
    store, _ = await stack.enter_async_context(home.opened())
    purse, left = Purse(home.wallet, store, market.clock), list(range(turns))

    async def move():
        if not left:
            return
        issued = await shop.wallet.receive(sats(3), "", 600, f"move {left.pop()}")
        ask = {"cause": f"p{len(left)}", "bolt11": issued.bolt11, "payment_hash": issued.payment_hash}
        intent = await store.write(partial(purse.reserve, **ask, amount=sats(3)))
        outcome = await purse.send(intent)
        await store.write(partial(purse.record, intent=intent, outcome=outcome))
        await home.wallet.fund(sats(3))

    await books.audit(store, home.wallet, market.clock)
    return store, Restless(home.wallet, move)


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 40])
async def test_money_that_goes_and_comes_while_the_wallet_is_asked(autojump_clock, market, turns):
    """The balance is the same before and after, and the history is of a moment in between."""
    async with AsyncExitStack() as stack:
        store, wallet = await busy_home(market, stack, turns=turns)
        assert (await books.audit(store, wallet, market.clock)).problems == ()


async def test_what_is_gone_is_named_also_where_life_goes_on(autojump_clock, market):
    async with AsyncExitStack() as stack:
        store, wallet = await busy_home(market, stack, turns=3)
        await store.write(lambda tx: ledger.deposit(tx, "a dream", sats(1), 1.0))
        (problem,) = (await books.audit(store, wallet, market.clock)).problems
        assert "the ledger has" in problem


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
                " idempotency_key, invoice, error, created_at, updated_at)"
                " SELECT id || 'x', cause, payment_hash || 'x', state, amount_msats, max_fee_msats, fee_msats,"
                " idempotency_key || 'x', invoice, error, created_at, updated_at FROM intents"
            )

        await bought.write(job)
        problems = books.report(bought, None).problems
        assert any("paid 2 times" in problem for problem in problems), problems
