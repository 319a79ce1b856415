"""Requests to everybody: offered on for money alone, and by whoever can do it."""

from __future__ import annotations

import trio

from protocols.nip90 import FEEDBACK, build_request
from pylon.compute.purchase import PurchaseState
from pylon.money import sats
from pylon.provider.pricing import Terms
from pylon.testing.backend import ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home


async def test_of_two_homes_that_sell_the_cheaper_one_is_bought_from(autojump_clock, market):
    home, one, other = [await open_home(market, name) for name in ("home", "one", "other")]
    dear, cheap = Terms(min_price=sats(9)), Terms(min_price=sats(3))
    async with (
        one.selling(ScriptedBackend("from one"), terms=dear),
        other.selling(ScriptedBackend("from the other"), terms=cheap),
        home.buying() as (buyer, _),
    ):
        purchase = await buyer.buy("think aloud", bid=sats(20), max_tokens=16, open_market=True)
        with trio.fail_after(60):
            record = await buyer.finished(purchase.id)
        assert (record.state, record.text, record.paid) == (PurchaseState.ANSWERED, "from the other", sats(3))
        assert record.hold_until is not None, "and it was paid on delivery"


def ask(actor, **changes):
    said = {"prompt": "think", "created_at": actor.market.now, "encrypt": False, **changes}
    request = build_request(actor.secret, **said)
    actor.market.relay.publish(request)
    return request


async def test_nothing_is_done_free_for_whoever_asks_everybody(autojump_clock, market):
    seller, customer = await open_home(market, "seller"), await open_actor(market, "customer")
    for terms in (Terms(min_price=PRICE, free_per_day=5), Terms(min_price=PRICE, on_trust=True)):
        async with seller.selling(terms=terms):
            quote = await customer.told(ask(customer), "payment-required")
            assert quote.tag("amount") == str(PRICE)
            await trio.sleep(5)
    async with seller.selling(terms=Terms(min_price=PRICE, payments=False)):
        request = ask(customer, model="scripted-1")
        await trio.sleep(5)
        assert not [event for event in market.events(FEEDBACK) if event.tag("e") == request.id]
    assert market.events(6050) == []


async def test_who_cannot_do_it_says_nothing_and_what_others_are_asked_is_not_heard(autojump_clock, market):
    seller, customer = await open_home(market, "seller"), await open_actor(market, "customer")
    stranger = await open_actor(market, "stranger")
    async with seller.selling() as (_, store):
        ask(customer, model="another")
        ask(customer, bid_msats=1)
        ask(customer, params=[("max_tokens", "many")], prompt="")
        ask(customer, provider=stranger.secret.public)
        await trio.sleep(5)
        assert market.events(FEEDBACK) == []
        assert store.one("SELECT COUNT(*) AS n FROM sales")["n"] == 0
        assert store.one("SELECT COUNT(*) AS n FROM inbox")["n"] == 0
