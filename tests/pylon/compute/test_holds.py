"""Pay on delivery: the payment is held until its provider delivers, or lets go of it."""

from __future__ import annotations

import hashlib

import pytest
import trio

from protocols.nip90 import FeedbackStatus, parse_request
from pylon.compute.experience import gather
from pylon.compute.purchase import PurchaseState
from pylon.daemon import books
from pylon.daemon.jobs import Cancelling
from pylon.errors import PaymentFailed
from pylon.money import Msat, sats
from pylon.store import intents
from pylon.wallets.port import Can
from pylon.wallets.purse import Budget
from tests.pylon.compute.test_buyer import BID, bought
from tests.pylon.compute.test_debts import new_request
from tests.pylon.market import PRICE, open_actor, open_agent, open_home, until


class Held:
    """A hold invoice of an actor's for one request."""

    def __init__(self, actor, request):
        self.actor, self.request = actor, request
        self.preimage = hashlib.sha256(request.id.encode()).hexdigest()
        self.hash = hashlib.sha256(bytes.fromhex(self.preimage)).hexdigest()

    async def quote(self, amount=PRICE, seconds=600, **changes):
        wallet, market = self.actor.wallet, self.actor.market
        issued = await wallet.hold(Msat(amount), "job", 600, self.request.id, self.hash)
        said = {"amount_msats": amount, "bolt11": issued.bolt11, "hold_until": market.now + seconds, **changes}
        self.actor.feedback(self.request.id, self.request.pubkey, FeedbackStatus.PAYMENT_REQUIRED, **said)

    async def arrived(self):
        with trio.fail_after(60):
            async with self.actor.wallet.ledger.changes() as changes:
                while True:
                    found = await self.actor.wallet.lookup_invoice(self.hash)
                    if found is not None and found.held > 0:
                        return
                    await changes.__anext__()

    async def settle(self):
        await self.actor.wallet.settle(self.preimage)

    async def cancel(self):
        await self.actor.wallet.cancel(self.hash)


@pytest.fixture
async def parties(market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    return home, seller


async def test_what_is_delivered_is_paid(autojump_clock, market, parties):
    home, seller = parties
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        assert parse_request(request, seller.secret).params["pay_on_delivery"] == "true"
        held = Held(seller, request)
        await held.quote()
        await held.arrived()
        await trio.sleep(100)
        record = buyer.records.load(store, purchase.id)
        assert (record.state, record.paid) == (PurchaseState.PAYING, 0)
        assert books.report(store, None).problems == ()
        began = trio.current_time()
        await held.settle()
        seller.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.state, record.text, record.paid) == (PurchaseState.ANSWERED, "words", PRICE)
        assert record.preimage == held.preimage
        assert trio.current_time() - began < 2, "the result has the wallet asked at once"
        assert gather(store, "", market.clock.now()).of(seller.hex).proven
        assert books.report(store, None).problems == ()


async def test_a_hold_that_is_cancelled_costs_nothing_and_the_next_one_is_asked(autojump_clock, market, parties):
    home, seller = parties
    other = await open_actor(market, "other")
    other.announce(price=sats(9))
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        held = Held(seller, await seller.request())
        await held.quote()
        await held.arrived()
        assert intents.reserved(store, "") >= PRICE
        await held.cancel()
        seller.feedback(held.request.id, held.request.pubkey, FeedbackStatus.ERROR, message="it failed")
        began = trio.current_time()
        request = await other.request()
        assert trio.current_time() - began < 2, "what its provider says has the wallet asked at once"
        assert intents.reserved(store, "") == 0
        assert gather(store, "", market.clock.now()).tier(seller.hex) == (False, True, False)
        second = Held(other, request)
        await second.quote(sats(9))
        await second.arrived()
        await second.settle()
        other.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.provider, record.paid) == (other.hex, sats(9))
        assert books.report(store, None).problems == ()


async def test_what_is_held_counts_against_the_budget(autojump_clock, market):
    home = await open_home(market)
    agent = await open_agent(home, limits=lambda source, spend: Budget(None, sats(8)))
    seller = await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, _store):
        await buyer.buy("first", bid=BID, max_tokens=16, owner=agent.hex)
        held = Held(seller, await new_request(market, seller))
        await held.quote()
        await held.arrived()
        second = await buyer.buy("second", bid=BID, max_tokens=16, owner=agent.hex)
        await Held(seller, await new_request(market, seller)).quote()
        record = await bought(buyer, second)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "budget" in record.reason


async def test_a_hold_that_outlasts_its_time_is_said_and_waited_for(autojump_clock, market, parties):
    home, seller = parties
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        held = Held(seller, await seller.request())
        await held.quote(seconds=300)
        await held.arrived()
        await trio.sleep(400)
        record = buyer.records.load(store, purchase.id)
        assert (record.state, record.hold_overdue) == (PurchaseState.PAYING, True)
        assert "holds the payment for longer" in record.reason
        assert gather(store, "", market.clock.now()).tier(seller.hex) == (False, True, False)
    # Over a restart, too; and the wallet gives it back after six hours.
    async with home.buying() as (buyer, store):
        await trio.sleep(5 * 3_600)
        assert buyer.records.load(store, purchase.id).state is PurchaseState.PAYING
        with trio.fail_after(20_000):
            record = await buyer.finished(purchase.id)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert intents.reserved(store, "") == 0
        with pytest.raises(PaymentFailed):
            await held.settle()


async def test_a_hold_settled_late_is_paid_all_the_same(autojump_clock, market, parties):
    home, seller = parties
    async with home.buying() as (buyer, _store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        held = Held(seller, await seller.request())
        await held.quote(seconds=100)
        await held.arrived()
        await trio.sleep(500)
        await held.settle()
        seller.answer(held.request, "late words")
        record = await bought(buyer, purchase)
        assert (record.state, record.paid, record.reason) == (PurchaseState.ANSWERED, PRICE, "")


async def test_what_is_held_can_be_given_up_and_nobody_else_is_asked(autojump_clock, market, parties):
    home, seller = parties
    (await open_actor(market, "other")).announce(price=sats(9))
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        held = Held(seller, await seller.request())
        await held.quote()
        await held.arrived()
        assert not await buyer.give_up(purchase.id, "enough"), "it has not ended yet"
        cancelled = await Cancelling(store, buyer).cancel({"id": purchase.id}, notify=None)
        assert (cancelled.state, cancelled.reason) == (PurchaseState.PAYING, "enough"), "which is no error"
        told = await until(lambda: market.events(5))
        assert told[0].tag("e") == held.request.id
        await held.cancel()
        record = await bought(buyer, purchase)
        assert (record.state, record.reason, record.paid) == (PurchaseState.FAILED, "enough", 0)
        assert gather(store, "", market.clock.now()).of(seller.hex).bad == 0, "it did as it was told"
        assert not await buyer.give_up(purchase.id, "enough")


@pytest.mark.parametrize("seconds", [-5, 0, 3 * 3_600, 10**9])
async def test_for_how_long_a_payment_may_be_held(autojump_clock, market, parties, seconds):
    home, seller = parties
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        await Held(seller, await seller.request()).quote(seconds=seconds)
        record = await bought(buyer, purchase)
        assert (record.state, record.paid) == (PurchaseState.FAILED, 0)
        assert "would hold the payment" in record.reason


async def test_a_wallet_without_holds_asks_for_none_and_takes_none(autojump_clock, market, parties):
    home, seller = parties
    info = await home.wallet.info()

    async def plain():
        import attrs

        return attrs.evolve(info, can=info.can - {Can.HOLD})

    home.wallet.info = plain
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        assert "pay_on_delivery" not in parse_request(request, seller.secret).params
        await Held(seller, request).quote()
        record = await bought(buyer, purchase)
        assert "was not asked for" in record.reason


async def test_a_buyer_that_went_down_while_it_was_held_hears_how_it_ended(autojump_clock, market, parties):
    home, seller = parties
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        held = Held(seller, await seller.request())
        await held.quote()
        await held.arrived()
    await held.settle()
    seller.answer(held.request, "words")
    async with home.buying() as (buyer, store):
        record = await bought(buyer, purchase)
        assert (record.state, record.paid, record.text) == (PurchaseState.ANSWERED, PRICE, "words")
        assert books.report(store, None).problems == ()
