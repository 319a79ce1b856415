"""Kind 5 by the customer: what nothing was paid for ends, and what it had in hand is let go."""

from __future__ import annotations

import pytest
import trio

from protocols.nip01 import sign_event
from protocols.nip09 import build_deletion
from protocols.nip90 import FEEDBACK, JOB_TEXT
from pylon.daemon import books
from pylon.money import Msat
from pylon.provider.pricing import Terms
from pylon.provider.sale import SaleState
from pylon.testing.backend import HANG, Reply, ScriptedBackend
from pylon.wallets.port import PaymentState
from tests.pylon.market import PRICE, open_actor, open_home, until

ON_DELIVERY = [("pay_on_delivery", "true")]


def cancel(market, actor, *requests):
    event = build_deletion(
        actor.secret, ids=[request.id for request in requests], kinds=[JOB_TEXT], created_at=market.now
    )
    market.relay.publish(event)
    return event


async def state(provider, store, request, wanted):
    def look():
        sale = provider.records.load(store, request.id)
        return sale if sale is not None and sale.state is wanted else None

    return await until(look)


async def test_a_quote_is_let_go(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        cancel(market, customer, request)
        await state(provider, store, request, SaleState.CANCELLED)
        # Paid all the same: the money is never an error.
        await customer.pay(quote)
        assert (await state(provider, store, request, SaleState.DELIVERED)).earned == PRICE
        assert books.report(store, await home.wallet.balance()).problems == ()


@pytest.mark.parametrize("terms", [Terms(Msat(0)), Terms(PRICE, on_trust=True)], ids=["free", "on trust"])
async def test_what_is_thought_for_nothing_is_thought_no_more(autojump_clock, market, terms):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(HANG)
    async with home.selling(backend, terms=terms) as (provider, store):
        request = customer.ask(home.secret)
        await until(lambda: backend.active == 1)
        cancel(market, customer, request)
        await until(lambda: backend.active == 0, 2)
        assert (await state(provider, store, request, SaleState.CANCELLED)).result is None
        # The place is free for the next one.
        other = customer.ask(home.secret, prompt="other")
        await until(lambda: backend.active == 1)
        assert provider.records.load(store, other.id).state is SaleState.WORKING


async def test_what_is_held_is_given_back_and_thought_about_no_more(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    backend = ScriptedBackend(HANG)
    async with home.selling(backend) as (provider, store):
        request = customer.ask(home.secret, params=ON_DELIVERY)
        await customer.pay(await customer.told(request, "payment-required"))
        sale = await state(provider, store, request, SaleState.HELD)
        await until(lambda: backend.active == 1)
        cancel(market, customer, request)
        await state(provider, store, request, SaleState.CANCELLED)
        assert backend.active == 0
        assert (await customer.wallet.lookup_payment(sale.payment_hash)).state is PaymentState.FAILED
        assert books.report(store, await home.wallet.balance()).problems == ()
        assert [event for event in market.events(FEEDBACK) if event.tag("status") == "error"] == []


async def test_what_was_paid_takes_its_course(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(Reply("words", first=20.0))) as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        await state(provider, store, request, SaleState.WORKING)
        cancel(market, customer, request)
        assert (await state(provider, store, request, SaleState.DELIVERED)).earned == PRICE


async def test_nobody_cancels_what_another_asked_for(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    stranger = await open_actor(market, "stranger")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        cancel(market, stranger, request)
        for tags in ([], [["e", "nonsense"], ["k", "5050"]], [["e", request.id], ["k", "1"]]):
            market.relay.publish(sign_event(customer.secret, kind=5, tags=tags, created_at=market.now))
        await trio.sleep(5)
        assert provider.records.load(store, request.id).state is SaleState.QUOTED


async def test_a_cancellation_may_overtake_its_request(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    stranger = await open_actor(market, "stranger")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret, created_at=market.now - 3_601)  # too old to be heard
        other = customer.ask(home.secret, prompt="other", created_at=market.now - 3_601)
        cancel(market, customer, request)
        cancel(market, stranger, other)
        await until(lambda: len(provider.cancellations._heard) == 2)
        provider.sell_by(Terms(PRICE, max_age=7_200))
        await provider.desk.take(request)
        await provider.desk.take(other)
        assert provider.records.load(store, request.id) is None
        assert provider.records.load(store, other.id) is not None


async def test_a_cancellation_that_comes_again_changes_nothing_and_a_flood_leaves_nothing(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        event = cancel(market, customer, request)
        await state(provider, store, request, SaleState.CANCELLED)
        rows = store.read("SELECT COUNT(*) AS n FROM transitions")[0]["n"]
        await provider.cancellations.take(event)
        for number in range(300):
            flood = build_deletion(
                customer.secret, ids=[f"{number * 100 + n:064x}" for n in range(100)], created_at=market.now
            )
            assert not provider.cancellations.concern(flood)
        assert store.read("SELECT COUNT(*) AS n FROM transitions")[0]["n"] == rows
        assert len(provider.cancellations._heard) == 10_000
