"""Who is there, as the relays tell it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from protocols.heartbeat import build_heartbeat
from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip09 import build_deletion
from pylon.compute.board import MOST_PROVIDERS
from pylon.compute.discovery import ANNOUNCEMENT, Market
from pylon.money import sats
from tests.pylon.market import Actor, Home, open_actor, open_home


async def test_nonsense_announcements_are_left_out(autojump_clock, market):
    seller, other = await open_actor(market, "seller"), await open_actor(market, "other")
    seller.announce(price=sats(3))
    for tags in ([["d", "x"], ["k", "5050"], ["price", "9" * 400]], [["d", "y"], ["k", "5050", "x"], ["price"]]):
        market.relay.publish(
            sign_event(other.secret, kind=ANNOUNCEMENT, content="[[[", tags=tags, created_at=market.now)
        )
    home: Home = await open_home(market)
    async with home.opened() as (_store, pool):
        found = await Market(pool, market.clock, 5050, 3.0).ask()
    assert {entry.price_msats for entry in found} == {sats(3), None}


def beat(actor):
    actor.market.relay.publish(build_heartbeat(actor.secret, d="it", created_at=actor.market.now))


async def test_who_beats_no_more_is_passed_over_and_who_never_did_is_believed(autojump_clock, market):
    beating, quiet = await open_actor(market, "beating"), await open_actor(market, "quiet")
    home = await open_home(market)
    async with home.opened() as (_store, pool):
        buyers = Market(pool, market.clock, 5050, 3.0)

        async def sellers():
            await trio.sleep(6.0)
            return {entry.provider for entry in await buyers.ask()}

        both = {beating.hex, quiet.hex}
        beating.announce()
        quiet.announce()
        beat(beating)
        await trio.sleep(500)
        beat(beating)
        await trio.sleep(880)
        assert await sellers() == both, "the last beat counts, not the announcement"
        await trio.sleep(20)
        assert await sellers() == {quiet.hex}
        assert {entry.provider for entry in await Market(pool, market.clock, 5050, 3.0).ask()} == {quiet.hex}
        buyers.heard(beating.hex, market.now)
        assert await sellers() == both, "a reply is a sign of life"
        await trio.sleep(900)
        assert await sellers() == {quiet.hex}
        beating.announce()
        assert await sellers() == both, "so is an announcement"
        await trio.sleep(900)
        beat(beating)
        assert await sellers() == both
        await trio.sleep(2 * 86_400)
        assert await sellers() == {quiet.hex}, "what beat once is not forgotten when relays drop the beat"


async def test_nobody_beats_for_another(autojump_clock, market):
    gone, other = await open_actor(market, "gone"), await open_actor(market, "other")
    home = await open_home(market)
    gone.announce()
    beat(gone)
    await trio.sleep(1_000)
    beat(other)
    async with home.opened() as (_store, pool):
        assert await Market(pool, market.clock, 5050, 3.0).ask() == []


# --- kept live --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def living(home):
    """A market that is kept live, and its pool; ``fetched`` counts the questions put to relays."""
    async with home.opened() as (_store, pool), trio.open_nursery() as nursery:
        await pool.connected()
        original, fetched = pool.fetch, []

        async def fetch(filters, timeout, relays=None):
            fetched.append(filters)
            return await original(filters, timeout, relays)

        pool.fetch = fetch
        market = Market(pool, home.market.clock, 5050, 3.0)
        await nursery.start(market.run)
        yield market, pool, fetched
        nursery.cancel_scope.cancel()


def names(found):
    return {entry.provider for entry in found}


async def test_while_somebody_buys_nothing_need_be_asked(autojump_clock, market):
    one, other = await open_actor(market, "one"), await open_actor(market, "other")
    home = await open_home(market)
    one.announce()
    async with living(home) as (buyers, pool, fetched):
        assert buyers.remembered() == []
        assert names(await buyers.ask()) == {one.hex}
        assert fetched == [], "the subscription has brought it"
        other.announce()
        await trio.sleep(0.1)
        assert names(buyers.remembered()) == {one.hex, other.hex}
        other.announce(price=sats(2), created_at=market.now + 1)
        await trio.sleep(0.1)
        assert sats(2) in {entry.price_msats for entry in buyers.remembered()}
        taken_back(one)
        await trio.sleep(0.1)
        assert names(buyers.remembered()) == {other.hex}
        await trio.sleep(500)
        assert names(buyers.remembered()) == {other.hex}
        assert fetched == []
        assert len(pool._subscriptions) == 1
        await trio.sleep(200)
        assert len(pool._subscriptions) == 0, "nobody buys any more"
        assert buyers.remembered() == []
        assert names(await buyers.ask()) == {other.hex}
        assert len(pool._subscriptions) == 1


def taken_back(actor):
    place = f"{ANNOUNCEMENT}:{actor.hex}:it"
    actor.market.relay.publish(build_deletion(actor.secret, addresses=[place], created_at=actor.market.now + 1))


async def test_beats_are_heard_as_they_come_and_missed_as_they_do_not(autojump_clock, market):
    beating, quiet = await open_actor(market, "beating"), await open_actor(market, "quiet")
    home = await open_home(market)
    beating.announce()
    quiet.announce()
    beat(beating)
    async with living(home) as (buyers, _pool, fetched):
        await buyers.ask()
        for _ in range(6):
            await trio.sleep(300)
            beat(beating)
            buyers.want()
        await trio.sleep(0.1)
        assert names(buyers.remembered()) == {beating.hex, quiet.hex}
        assert len(fetched) == 1, "once it was asked whether the quiet one has ever beaten"
        for _ in range(4):
            await trio.sleep(300)
            buyers.want()
        assert names(buyers.remembered()) == {quiet.hex}
        beat(beating)
        await trio.sleep(0.1)
        assert names(buyers.remembered()) == {beating.hex, quiet.hex}
        assert len(fetched) == 1


async def test_a_relay_that_goes_away_is_not_taken_for_the_present(autojump_clock, market):
    seller = await open_actor(market, "seller")
    home = await open_home(market)
    seller.announce()
    async with living(home) as (buyers, _pool, _fetched):
        await buyers.ask()
        assert buyers.remembered()
        market.relay.faults.refuse_connections = True
        market.relay.disconnect_all()
        await trio.sleep(10)
        assert buyers.remembered() == []
        market.relay.faults.refuse_connections = False
        await trio.sleep(120)
        assert names(buyers.remembered()) == {seller.hex}


async def test_where_nothing_is_known_the_relays_are_asked_afresh(autojump_clock, market):
    """A relay that forgets to tell us what is new: the question finds it."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    async with living(home) as (buyers, pool, fetched):
        assert await buyers.ask() == []
        for subscription in list(pool._subscriptions.values()):
            subscription.deliver = lambda *_: True
        seller.announce()
        await trio.sleep(1)
        assert buyers.remembered() == []
        assert names(await buyers.ask()) == {seller.hex}
        assert len(fetched) == 1


async def test_a_purchase_finds_its_provider_without_asking(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        first = await buyer.buy("first", bid=sats(20), max_tokens=16)
        seller.answer(await seller.request(), "words")
        await buyer.finished(first.id)
        await trio.sleep(60)
        market.relay.faults.delay = (1.0, 1.0)
        await trio.sleep(3)

        async def never(*_args, **_changes):
            raise AssertionError("a relay is asked")

        buyer._pool.fetch = never
        began = trio.current_time()
        second = await buyer.buy("second", bid=sats(20), max_tokens=16)
        with store.listen(f"purchases:{second.id}") as changed:
            while buyer.records.load(store, second.id).provider is None:
                await changed.receive()
        assert trio.current_time() - began < 0.1


async def test_a_flood_of_strangers_hides_nobody_and_stays_bounded(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with living(home) as (buyers, _pool, _fetched):
        await buyers.ask()
        for number in range(MOST_PROVIDERS + 100):
            secret = SecretKey((10_000 + number).to_bytes(32, "big"))
            market.relay.publish(build_heartbeat(secret, d="it", created_at=market.now))
            Actor(market, secret, seller.wallet).announce(price=1)
            if number % 50 == 0:
                await trio.sleep(0.1)
        await trio.sleep(1)
        found = buyers.remembered()
        assert len(found) == MOST_PROVIDERS
        assert seller.hex in names(found)
