"""The open market: everybody is asked, one is chosen, and for the others it is over."""

from __future__ import annotations

import pytest
import trio

from protocols.nip90 import JOB_TEXT, FeedbackStatus
from pylon.compute import debts
from pylon.compute.purchase import MAX_QUOTES, PurchaseState
from pylon.daemon import books
from pylon.errors import PaymentFailed
from pylon.money import sats
from pylon.wallets.purse import Budget
from tests.pylon.compute.test_buyer import BID, bought
from tests.pylon.compute.test_debts import owing
from tests.pylon.market import PRICE, open_actor, open_agent, open_home, until

ASK = {"bid": BID, "max_tokens": 16, "open_market": True}


async def the_request(market):
    return await until(lambda: next((e for e in market.events(JOB_TEXT) if e.tag("p") is None), None))


async def test_the_cheapest_is_paid_and_everybody_else_is_ignored(autojump_clock, market):
    home = await open_home(market)
    dear, cheap, late = [await open_actor(market, name) for name in ("dear", "cheap", "late")]
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think aloud", **ASK)
        request = await the_request(market)
        assert request.tags_named("i")[0][1] == "think aloud"
        assert request.tag("encrypted") is None
        await dear.quote(request, sats(9))
        await trio.sleep(1)
        await cheap.quote(request, sats(4))
        dear.answer(request, "No worky", encrypt=False)
        cheap.answer(request, "too early, and unpaid", encrypt=False)
        await trio.sleep(1)
        record = buyer.records.load(store, purchase.id)
        assert (record.state, len(record.quotes), record.text) == (PurchaseState.COLLECTING, 2, None)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        await late.quote(request, sats(1))
        dear.answer(request, "No worky", encrypt=False)
        dear.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="no", credit_msats=10**6)
        await trio.sleep(2)
        record = buyer.records.load(store, purchase.id)
        assert (record.state, record.provider, record.text) == (PurchaseState.PAID, cheap.hex, None)
        cheap.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.state, record.text, record.paid) == (PurchaseState.ANSWERED, "words", sats(4))
        for actor in (dear, late):
            assert not [entry for entry in await actor.wallet.payments() if not entry.outside]
        assert books.report(store, None).problems == ()


async def test_wrong_quotes_are_no_quotes(autojump_clock, market):
    home = await open_home(market)
    actors = [await open_actor(market, f"actor{n}") for n in range(4)]
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await actors[0].quote(request, BID + 1)
        await actors[1].quote(request, sats(4), amount_msats=sats(3))
        actors[2].feedback(request.id, request.pubkey, FeedbackStatus.PAYMENT_REQUIRED, bolt11="lnbc1")
        await actors[3].quote(request, sats(4), credit_used_msats=BID)
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert record.reason == "nobody has offered anything"
        told = await until(lambda: market.events(5))
        assert told[0].tag("e") == request.id, "who would answer hears that nobody waits"


async def test_the_first_quote_of_each_counts_and_only_so_many_are_kept(autojump_clock, market):
    home = await open_home(market)
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        first = await open_actor(market, "first")
        await first.quote(request, sats(5))
        await trio.sleep(0.1)
        first.feedback(
            request.id,
            request.pubkey,
            FeedbackStatus.PAYMENT_REQUIRED,
            bolt11=await first.invoice(sats(2), key="another"),
        )
        for number in range(MAX_QUOTES + 5):
            await (await open_actor(market, f"actor{number}", funds=0)).quote(request, sats(3) + number)
        await trio.sleep(1)
        quotes = buyer.records.load(store, purchase.id).quotes
        assert len(quotes) == MAX_QUOTES
        assert [quote.amount for quote in quotes] == [sats(3) + number for number in range(MAX_QUOTES)]


async def test_when_a_payment_fails_another_one_is_chosen(autojump_clock, market):
    home = await open_home(market)
    cheap, dear = await open_actor(market, "cheap"), await open_actor(market, "dear")
    original = home.wallet.pay

    async def pay(target, **changes):
        if (await home.wallet.decode(target)).payee == cheap.wallet.node_pubkey:
            raise PaymentFailed("no way there")
        return await original(target, **changes)

    home.wallet.pay = pay
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await cheap.quote(request, sats(2))
        await dear.quote(request, sats(4))
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        cheap.answer(request, "from the wrong one", encrypt=False)
        await trio.sleep(1)
        dear.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.provider, record.tried, record.text) == (dear.hex, (cheap.hex, dear.hex), "words")


async def test_when_no_quote_is_left_it_fails_and_none_is_paid_twice(autojump_clock, market):
    home = await open_home(market)
    seller = await open_actor(market, "seller")

    async def pay(target, **changes):
        await trio.lowlevel.checkpoint()
        raise PaymentFailed("no way there")

    home.wallet.pay = pay
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK)
        await seller.quote(await the_request(market), sats(2))
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "no way there" in record.reason


async def test_a_budget_refuses_all_quotes_alike(autojump_clock, market):
    home = await open_home(market)
    agent = await open_agent(home, limits=lambda source, spend: Budget(None, sats(1)))
    seller = await open_actor(market, "seller")
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK, owner=agent.hex)
        await seller.quote(await the_request(market), sats(4))
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "budget" in record.reason


async def test_a_restart_while_quotes_come_in_loses_none(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await seller.quote(request, sats(4))
        await until(lambda: buyer.records.load(store, purchase.id).quotes)
    async with home.buying() as (buyer, store):
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.answer(request, "words")
        assert (await bought(buyer, purchase)).text == "words"


async def test_the_first_quote_is_waited_for_longer_than_the_others(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await trio.sleep(6)
        await seller.quote(request, sats(4))
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)


async def test_what_nobody_offers_on_is_over_soon(autojump_clock, market):
    home = await open_home(market)
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.FAILED
        assert market.clock.now() - record.created_at < 20


async def test_it_can_be_given_up(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await seller.quote(request, sats(4))
        assert await buyer.give_up(purchase.id, "enough")
        assert (await until(lambda: market.events(5)))[0].tag("e") == request.id


async def test_nobody_is_shown_a_prompt_that_relays_refuse(autojump_clock, market):
    home = await open_home(market)
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("é" * 600, **ASK)
        record = await bought(buyer, purchase)
        assert (record.state, record.request_id) == (PurchaseState.FAILED, None)
        assert "1,024 bytes" in record.reason
        with pytest.raises(ValueError, match="either"):
            await buyer.buy("think", **ASK, provider="aa" * 32)


async def test_a_debt_makes_a_quote_cheaper_here_too(autojump_clock, market):
    home = await open_home(market)
    debtor, other = await open_actor(market, "debtor"), await open_actor(market, "other")
    debtor.announce()
    async with home.buying() as (buyer, store):
        await owing(market, debtor, buyer, store)
        purchase = await buyer.buy("think", **ASK)
        request = await the_request(market)
        await other.quote(request, sats(3))
        await debtor.quote(request, sats(1), credit_used_msats=sats(4))
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        record = buyer.records.load(store, purchase.id)
        assert (record.provider, record.credit_used, record.paid) == (debtor.hex, sats(4), sats(1))


async def test_a_debt_that_is_left_aside_in_the_open_is_not_disowned(autojump_clock, market):
    """Who offers to everybody need not take off what it owes to one of them."""
    home, debtor = await open_home(market), await open_actor(market, "debtor")
    debtor.announce()
    async with home.buying() as (buyer, store):
        await owing(market, debtor, buyer, store)
        purchase = await buyer.buy("think", **ASK)
        await debtor.quote(await the_request(market), sats(5))
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        assert debts.owed_to(store, "") == {debtor.hex: PRICE}


async def test_nobody_buys_from_itself_in_the_open(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.secret = home.secret
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", **ASK)
        await seller.quote(await the_request(market), PRICE)
        assert (await bought(buyer, purchase)).state is PurchaseState.FAILED
