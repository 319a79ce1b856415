"""Who sells, for people to see: nobody is left out, nobody is made up, and it ends in time."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols import heartbeat
from protocols.nip01 import sign_event
from protocols.nip89 import KIND
from pylon.compute import swarm
from pylon.compute.swarm import Pulse, judge, look
from pylon.relays.pool import RelayPool
from pylon.testing.relay import network, open_memory_relay
from tests.pylon.compute.test_ranking import announced
from tests.pylon.market import RELAY, open_actor

NOW = 1_800_000_000


async def asked(market, *others, urls=(RELAY,), seconds=4.0):
    pool = RelayPool(urls, connect=network(market.relay, *others), clock=market.clock, rng=random.Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        began = trio.current_time()
        found = await look(pool, market.clock, seconds=seconds)
        assert trio.current_time() - began <= seconds + 0.01
        nursery.cancel_scope.cancel()
    return found


async def test_everybody_who_announces(market, autojump_clock):
    dear, cheap, mute, old, gone = [await open_actor(market, name) for name in ("dear", "cheap", "mute", "old", "gone")]
    cheap.announce(1_000, name="Cheap", models=("a", "b"))
    dear.announce(9_000, network="mainnet")
    mute.announce(2_000, created_at=market.now - 5_000)
    old.announce(500, created_at=market.now - 5_000)
    gone.announce(100, created_at=market.now - 5_000)
    market.relay.publish(heartbeat.build_heartbeat(old.secret, d="it", created_at=market.now - 100))
    market.relay.publish(heartbeat.build_heartbeat(gone.secret, d="it", created_at=market.now - 1_000))
    market.relay.publish(sign_event(mute.secret, kind=KIND, content="", tags=[["d", "x"]], created_at=market.now))
    found = await asked(market)
    assert found.relays == {RELAY: True}
    assert [(seller.announcement.provider, seller.pulse) for seller in found.sellers] == [
        (old.hex, Pulse.ALIVE),
        (cheap.hex, Pulse.ALIVE),
        (dear.hex, Pulse.ALIVE),
        (mute.hex, Pulse.UNKNOWN),
        (gone.hex, Pulse.SILENT),
    ]
    assert found.sellers[0].last_heard == market.now - 100
    assert found.sellers[1].announcement.models == ("a", "b")
    assert all(seller.npub.startswith("npub1") for seller in found.sellers)


async def test_nobody_sells(market, autojump_clock):
    assert (await asked(market)).sellers == ()


async def test_where_no_relay_answers_nothing_is_known(market, autojump_clock):
    market.relay.faults.refuse_connections = True
    (await open_actor(market, "seller")).announce()
    began = trio.current_time()
    found = await asked(market)
    assert (found.sellers, found.relays) == ((), {RELAY: False})
    assert trio.current_time() - began < 1, "whoever is refused need not wait"


async def test_a_relay_that_is_silent_keeps_nobody(market, autojump_clock):
    """Neither one that takes the connection and says nothing, nor one that never takes it."""
    (await open_actor(market, "seller")).announce()
    async with open_memory_relay("ws://mute.test", clock=market.clock) as mute:
        mute.faults.silent = True
        found = await asked(market, mute, urls=(RELAY, "ws://mute.test"))
        assert len(found.sellers) == 1
        market.relay.faults.silent = True
        assert (await asked(market, mute, urls=(RELAY, "ws://mute.test"))).sellers == ()


async def test_there_is_a_bound(market, autojump_clock, monkeypatch):
    monkeypatch.setattr(swarm, "MOST", 3)
    for number in range(5):
        (await open_actor(market, f"seller {number}")).announce(created_at=market.now - number)
    found = await asked(market)
    assert sorted(seller.last_heard for seller in found.sellers) == [market.now - 2, market.now - 1, market.now]


@given(
    announced_at=st.integers(0, NOW + 10_000), beat=st.none() | st.integers(0, NOW + 10_000), now=st.just(float(NOW))
)
def test_what_silence_means(announced_at, beat, now):
    seller = judge(announced(created_at=announced_at), beat, now)
    signs = [at for at in (announced_at, beat) if at is not None and at <= NOW + 900]
    assert seller.last_heard == max(signs, default=0)
    assert (seller.pulse is Pulse.ALIVE) == any(at >= NOW - 900 for at in signs)
    assert seller.pulse is not Pulse.SILENT or beat is not None, "who never beats has not stopped"


@pytest.mark.parametrize("clock", [NOW + 901, NOW + 10**9])
def test_a_date_to_come_is_no_sign_of_life(clock):
    assert judge(announced(created_at=NOW - 5_000), clock, NOW).pulse is Pulse.SILENT
