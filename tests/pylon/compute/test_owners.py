"""The buyer of a home whose agents buy too: each with its own key, purse, budgets and relays."""

from __future__ import annotations

import attrs
import pytest
import trio

from protocols.keys import SecretKey
from protocols.nip90 import JOB_TEXT, FeedbackStatus, parse_request
from pylon.compute.purchase import PurchaseState
from pylon.daemon import books
from pylon.errors import NotFound, WalletFrozen
from pylon.money import Msat, max_fee, sats
from pylon.store import approvals, freeze, intents, ledger
from pylon.testing.backend import ScriptedBackend
from pylon.testing.relay import open_memory_relay
from pylon.wallets.purse import Budget
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.market import PRICE, RELAY, Actor, open_actor, open_agent, open_home, until

BID = sats(20)
OTHER = "ws://other.test"
ASK = {"bid": BID, "max_tokens": 16}


def bounded(**bounds):
    budget = Budget(**{"per_scope": None, "per_day": None, **bounds})
    return lambda source, spend: budget


async def bought(buyer, purchase):
    with trio.fail_after(5_000):
        return await buyer.finished(purchase.id)


async def in_state(buyer, store, purchase, state):
    return await until(lambda: buyer.records.load(store, purchase.id).state is state)


def requests(market, author):
    return [event for event in market.events(JOB_TEXT) if event.pubkey == author]


@pytest.fixture
async def parties(market):
    home = await open_home(market)
    return home, await open_agent(home, "alice"), await open_actor(market, "seller")


async def test_an_agent_buys_with_its_own_key_and_money(autojump_clock, market, parties):
    home, alice, seller = parties
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=alice.hex, scope="tick 1", params=[("json_schema", '{"a":1}')])
        request = await seller.request()
        assert request.pubkey == alice.hex
        assert parse_request(request, seller.secret).params["json_schema"] == '{"a":1}'
        await seller.quote(request)
        await in_state(buyer, store, purchase, PurchaseState.PAID)
        seller.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.text, record.paid, record.owner, record.scope) == ("words", PRICE, alice.hex, "tick 1")
        intent = intents.by_hash(store, record.payment_hash)
        assert (intent.owner, intent.scope, intent.purpose) == (alice.hex, "tick 1", "purchase")
        assert intents.spent_in(store, "tick 1") == record.paid + record.fee
        assert ledger.held(store, alice.hex) == -(record.paid + record.fee)
        assert ledger.held(store, "") == 0
        assert (await home.wallet.balance()).settled == sats(1_000)
        assert (await alice.wallet.balance()).settled == sats(1_000) - record.paid - record.fee
        assert books.report(store, None).problems == ()
        assert "json_schema" not in repr(record)


async def test_ten_at_once_against_a_budget_for_one(autojump_clock, market, parties):
    home, _, seller = parties
    eve = await open_agent(home, "eve", limits=bounded(per_scope=Msat(PRICE + max_fee(PRICE))))
    seller.announce()
    async with home.buying(quote_seconds=60.0) as (buyer, store):
        purchases = [await buyer.buy(f"thought {n}", **ASK, owner=eve.hex, scope="tick") for n in range(10)]
        asked = await until(lambda: len(requests(market, eve.hex)) == 10 and requests(market, eve.hex))
        async with trio.open_nursery() as nursery:
            for request in asked:
                nursery.start_soon(seller.quote, request)
        for request in asked:
            seller.answer(request)
        records = [await bought(buyer, purchase) for purchase in purchases]
        paid = [record for record in records if record.paid]
        assert len(paid) == 1
        assert sum(payment.amount for payment in await seller.wallet.payments() if not payment.outside) == PRICE
        assert intents.spent_in(store, "tick") == paid[0].paid + paid[0].fee


async def test_what_is_over_the_budget_costs_nothing_and_is_said(autojump_clock, market, parties):
    home, _, seller = parties
    eve = await open_agent(home, "eve", limits=bounded(per_day=Msat(0)))
    seller.announce()
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK, owner=eve.hex)
        await seller.quote(await seller.request())
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "the budget of 24 hours leaves: 0 sat" in record.reason


async def test_the_next_provider_may_fit_the_budget(autojump_clock, market, parties):
    home, _, dear = parties
    eve = await open_agent(home, "eve", limits=bounded(each=sats(5)))
    cheap = await open_actor(market, "cheap")
    dear.announce(price=sats(6))
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=eve.hex)
        request = await dear.request()
        cheap.announce(price=sats(3))
        await dear.quote(request, sats(6))
        second = await cheap.request()
        await cheap.quote(second, sats(3))
        await in_state(buyer, store, purchase, PurchaseState.PAID)
        cheap.answer(second)
        record = await bought(buyer, purchase)
        assert (record.paid, record.tried) == (sats(3), (dear.hex, cheap.hex))


async def test_limits_that_cannot_be_read_pay_nothing(autojump_clock, market, parties):
    home, _, seller = parties

    def unreadable(source, spend):
        raise RuntimeError("canary")

    eve = await open_agent(home, "eve", limits=unreadable)
    seller.announce()
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK, owner=eve.hex)
        await seller.quote(await seller.request())
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "cannot be read" in record.reason
        assert "canary" not in record.reason
        assert await eve.wallet.payments() == [payment for payment in await eve.wallet.payments() if payment.outside]


async def test_one_id_is_one_purchase(autojump_clock, market, parties):
    home, alice, seller = parties
    bob = await open_agent(home, "bob")
    seller.announce()
    async with home.buying() as (buyer, store):
        again = {**ASK, "owner": alice.hex, "purchase_id": "ab" * 16}
        begun = []

        async def buy():
            begun.append(await buyer.buy("think", **again))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(buy)
        assert {purchase.id for purchase in begun} == {"ab" * 16}
        request = await seller.request()
        seller.answer(request)
        record = await bought(buyer, begun[0])
        assert await buyer.buy("another prompt", **again) == record
        assert len(store.read("SELECT 1 FROM purchases")) == len(requests(market, alice.hex)) == 1
        with pytest.raises(ValueError, match="another owner"):
            await buyer.buy("think", **{**again, "owner": bob.hex})
        with pytest.raises(NotFound):
            await buyer.buy("think", **{**again, "owner": "00" * 32})


async def test_nobody_buys_from_itself_but_an_agent_may_from_its_home(autojump_clock, market, parties):
    home, alice, _ = parties
    own = Actor(market, alice.secret, alice.wallet)
    own.announce(price=sats(1))
    async with home.buying(patience_seconds=1.0) as (buyer, _):
        record = await bought(buyer, await buyer.buy("think", **ASK, owner=alice.hex))
        assert (record.state, record.tried) == (PurchaseState.FAILED, ())
        record = await bought(buyer, await buyer.buy("think", **ASK, owner=alice.hex, provider=alice.hex))
        assert "nobody buys from itself" in record.reason
        house = Actor(market, home.secret, home.wallet)
        house.announce(price=sats(2))
        await trio.sleep(1)
        purchase = await buyer.buy("think", **ASK, owner=alice.hex)
        request = await house.request()
        house.answer(request, "from the house")
        assert (await bought(buyer, purchase)).text == "from the house"


async def test_an_invoice_that_would_pay_its_own_wallet_is_refused(autojump_clock, market, parties):
    home, alice, _ = parties
    mallory = Actor(market, SecretKey(market.key()), alice.wallet)
    mallory.announce()
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK, owner=alice.hex)
        await mallory.quote(await mallory.request())
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "this very wallet" in record.reason


async def test_relays_of_its_own_and_no_others(autojump_clock, market, parties):
    home, _, seller = parties
    eve = await open_agent(home, "eve", relays=(OTHER,))
    seller.announce()
    async with open_memory_relay(OTHER, clock=market.clock) as other:
        market.others, home.relays = (other,), [RELAY, OTHER]
        there = Actor(attrs.evolve(market, relay=other), seller.secret, seller.wallet)
        async with home.buying() as (buyer, store):
            purchase = await buyer.buy("think", **ASK, owner=eve.hex)
            request = await there.request()
            assert parse_request(request, seller.secret).relays == (OTHER,)
            await there.quote(request)
            await in_state(buyer, store, purchase, PurchaseState.PAID)
            there.answer(request, "words")
            assert (await bought(buyer, purchase)).text == "words"
        assert requests(market, eve.hex) == []


async def test_one_listens_only_while_something_is_expected(autojump_clock, market, parties):
    home, alice, seller = parties
    seller.announce()
    async with home.buying() as (buyer, _):

        def heard():
            return buyer._listening._replies.subscriptions()

        assert heard() == 0
        first = await buyer.buy("one", **ASK, owner=alice.hex)
        second = await buyer.buy("two", **ASK, owner=alice.hex)
        one, two = await until(lambda: len(requests(market, alice.hex)) == 2 and requests(market, alice.hex))
        assert heard() >= 1
        seller.answer(one)
        seller.answer(two)
        await bought(buyer, first)
        await bought(buyer, second)
        await trio.sleep(1)
        assert heard() == 0
        await buyer.buy("three", **ASK)
        await seller.request()
        assert heard() == 0, "the home has a subscription of its own"


async def test_what_was_answered_while_we_were_down_is_heard(autojump_clock, market, parties):
    home, alice, seller = parties
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=alice.hex)
        request = await seller.request()
        await seller.quote(request)
        await in_state(buyer, store, purchase, PurchaseState.PAID)
    seller.answer(request, "words")
    await trio.sleep(3_600)
    async with home.buying() as (buyer, store):
        record = await bought(buyer, purchase)
        assert (record.state, record.text, record.owner) == (PurchaseState.ANSWERED, "words", alice.hex)


@pytest.mark.parametrize(("later", "heard"), [(3_600.0, True), (90_000.0, False)])
async def test_a_late_answer_is_heard_the_next_time(autojump_clock, market, parties, later, heard):
    """Lost, and then answered: whoever listens again within a day finds it."""
    home, alice, seller = parties
    seller.announce()
    async with home.buying(answer_seconds=30.0) as (buyer, store):
        lost = await buyer.buy("first", **ASK, owner=alice.hex)
        request = await seller.request()
        await seller.quote(request)
        assert (await bought(buyer, lost)).state is PurchaseState.LOST
        await trio.sleep(1)
        assert buyer._listening._replies.subscriptions() == 0
        seller.answer(request, "sorry, it took a while")
        await trio.sleep(later)
        seller.announce()
        await buyer.buy("second", **ASK, owner=alice.hex, provider=seller.hex)
        await trio.sleep(2)
        record = buyer.records.load(store, lost.id)
        assert (record.state is PurchaseState.ANSWERED) == heard
        assert (record.text is not None) == heard
        assert record.paid == PRICE


async def test_a_late_credit_counts_too(autojump_clock, market, parties):
    home, alice, seller = parties
    seller.announce()
    async with home.buying(answer_seconds=30.0) as (buyer, store):
        lost = await buyer.buy("first", **ASK, owner=alice.hex)
        request = await seller.request()
        await seller.quote(request)
        await bought(buyer, lost)
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="sorry", credit_msats=PRICE)
        await trio.sleep(60)
        await buyer.buy("second", **ASK, owner=alice.hex, provider=seller.hex)
        await in_state(buyer, store, lost, PurchaseState.CREDITED)


async def test_who_keeps_one_owners_money_is_distrusted_by_all(autojump_clock, market, parties):
    home, alice, thief = parties
    bob, honest = await open_agent(home, "bob"), await open_actor(market, "honest")
    thief.announce(price=sats(1))
    async with home.buying(answer_seconds=30.0) as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=alice.hex)
        await thief.quote(await thief.request(), sats(1))
        assert (await bought(buyer, purchase)).state is PurchaseState.LOST
        honest.announce(price=sats(9))
        for owner in (bob.hex, ""):
            purchase = await buyer.buy("think", **ASK, owner=owner)
            record = await in_state(buyer, store, purchase, PurchaseState.REQUESTED)
            assert buyer.records.load(store, purchase.id).provider == honest.hex, record


async def test_an_agent_that_is_gone_breaks_nothing(autojump_clock, market, parties):
    home, alice, seller = parties
    bob = await open_agent(home, "bob")
    seller.announce()
    market.ledger.inject(Fault(FaultKind.PENDING, 200.0), wallet=alice.wallet)
    async with home.buying() as (buyer, store):
        paying = await buyer.buy("think", **ASK, owner=alice.hex)
        request = await seller.request()
        await seller.quote(request)
        await in_state(buyer, store, paying, PurchaseState.PAYING)
        await trio.sleep(1)
        home.gone.add(alice.hex)
    asked = await _asked_while_down(market, home, alice)
    async with home.buying(answer_seconds=50_000.0) as (buyer, store):
        with pytest.raises(NotFound):
            await buyer.buy("think", **ASK, owner=alice.hex)
        good = await buyer.buy("think", **ASK, owner=bob.hex)
        theirs = await until(lambda: requests(market, bob.hex))
        seller.answer(theirs[0], "words")
        assert (await bought(buyer, good)).text == "words"
        # What it pays stays pending, whatever the wallet may have done; what it sought is given up.
        await trio.sleep(600)
        assert buyer.records.load(store, paying.id).state is PurchaseState.PAYING
        assert [intent.owner for intent in intents.pending(store)] == [alice.hex]
        record = buyer.records.load(store, asked.id)
        assert (record.state, record.reason) == (PurchaseState.FAILED, f"there is no agent {alice.hex[:16]}")
        home.gone.clear()
        await in_state(buyer, store, paying, PurchaseState.PAID)
        assert intents.pending(store) == []


async def _asked_while_down(market, home, alice):
    """A purchase that was written and not begun when its owner went."""
    home.gone.clear()
    async with home.buying() as (buyer, store):
        buyer._driver._nursery = None
        asked = await buyer.buy("another", **ASK, owner=alice.hex)
        assert buyer.records.load(store, asked.id).state is PurchaseState.SEEKING
    home.gone.add(alice.hex)
    return asked


async def test_twenty_agents_and_a_real_provider(autojump_clock, market):
    seller, home = await open_home(market, "seller", funds=0), await open_home(market)
    announcer = await open_actor(market, "announcer", funds=0)
    attrs.evolve(announcer, secret=seller.secret).announce()
    agents = [await open_agent(home, f"agent{number}", sats(100)) for number in range(20)]
    async with seller.selling(ScriptedBackend("an answer")), home.buying(quote_seconds=300.0) as (buyer, store):
        for agent in agents:
            await books.book_deposits(store, agent.wallet, market.clock.now(), agent.hex)
        purchases = [
            await buyer.buy("think", **ASK, owner=agent.hex, scope=agent.hex) for agent in agents for _ in "ab"
        ]
        records = [await bought(buyer, purchase) for purchase in purchases]
        assert {record.state for record in records} == {PurchaseState.ANSWERED}
        for agent in agents:
            spent = sum(record.paid + record.fee for record in records if record.owner == agent.hex)
            assert (await agent.wallet.balance()).settled == ledger.held(store, agent.hex) == sats(100) - spent
            assert intents.spent_in(store, agent.hex) == spent
        assert books.report(store, None).problems == ()
        await trio.sleep(1)
        assert buyer._listening._replies.subscriptions() == 0


# --- the operator's hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["home", "alice"])
async def test_nobody_buys_while_spending_is_frozen(autojump_clock, market, parties, owner):
    home, alice, seller = parties
    who = "" if owner == "home" else alice.hex
    seller.announce()
    async with home.buying(quote_seconds=60.0) as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=who)
        request = await seller.request()
        await store.write(lambda tx: freeze.freeze(tx, "strange things", market.clock.now()))
        with pytest.raises(WalletFrozen):
            await buyer.buy("think again", **ASK, owner=who)
        await seller.quote(request)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.FAILED
        assert "frozen: strange things" in record.reason
        assert len(requests(market, request.pubkey)) == 1, "nobody else sees the prompt"
        assert intents.pending(store) == []
        await store.write(freeze.thaw)
        await buyer.buy("and again", **ASK, owner=who)
        await until(lambda: len(requests(market, request.pubkey)) == 2)
    assert (await seller.wallet.balance()).settled == sats(1_000)


@pytest.mark.parametrize("yes", [True, False])
async def test_a_thought_that_wants_a_yes(autojump_clock, market, parties, yes):
    home, _, seller = parties
    eve = await open_agent(home, "eve", limits=bounded(approve_above=Msat(PRICE - 1)))
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=eve.hex)
        request = await seller.request()
        await seller.quote(request)
        (waiting,) = await until(lambda: approvals.waiting(store))
        await trio.sleep(100.0)
        assert (waiting.owner, waiting.payee) == (eve.hex, seller.wallet.node_pubkey)
        assert (await seller.wallet.balance()).settled == sats(1_000)
        if yes:
            await store.write(lambda tx: approvals.approve(tx, waiting.id, market.clock.now()))
            await in_state(buyer, store, purchase, PurchaseState.PAID)
            seller.answer(request, "words")
            assert (await bought(buyer, purchase)).text == "words"
        else:
            await store.write(lambda tx: approvals.deny(tx, waiting.id, "too dear", market.clock.now()))
            record = await bought(buyer, purchase)
            assert (record.state, record.reason, record.paid) == (PurchaseState.FAILED, "too dear", 0)
            assert len(requests(market, eve.hex)) == 1, "a no is a no to the next provider, too"
        assert books.report(store, None).problems == ()


async def test_a_yes_that_was_given_while_nobody_ran(autojump_clock, market, parties):
    home, _, seller = parties
    eve = await open_agent(home, "eve", limits=bounded(approve_above=Msat(0)))
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK, owner=eve.hex)
        request = await seller.request()
        await seller.quote(request)
        (waiting,) = await until(lambda: approvals.waiting(store))
    async with home.opened() as (store, _):
        await store.write(lambda tx: approvals.approve(tx, waiting.id, market.clock.now()))
    async with home.buying() as (buyer, store):
        await in_state(buyer, store, purchase, PurchaseState.PAID)
        seller.answer(request, "words")
        assert (await bought(buyer, purchase)).text == "words"
