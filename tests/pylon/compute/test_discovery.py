"""Who is there, as the relays tell it."""

from __future__ import annotations

import trio

from protocols.heartbeat import build_heartbeat
from protocols.nip01 import sign_event
from pylon.compute.discovery import ANNOUNCEMENT, Market
from pylon.money import sats
from tests.pylon.market import Home, open_actor, open_home


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
