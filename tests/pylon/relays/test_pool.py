"""The pool over relays in memory, with every fault that they can have."""

from __future__ import annotations

import contextlib
import random
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.nip01 import Filter, RelayEvent, RelayNotice
from pylon.errors import RelayError
from pylon.relays.pool import RelayPool
from pylon.relays.relay import Limits
from pylon.relays.transport import TransportClosed
from pylon.testing.relay import Faults, network, open_memory_relay
from tests.pylon.relays.scripted import ALICE, EPOCH, clock, note, settle, until

NOTES = Filter(kinds=[1])


@asynccontextmanager
async def market(count=1, *, seed=1, signer=None, limits=None, faults=()):
    """So many relays and a pool on all of them; yields (pool, relays). Nothing is left of it afterwards."""
    async with AsyncExitStack() as stack:
        relays = []
        for index in range(count):
            relay = open_memory_relay(
                f"ws://{index}",
                clock=clock(),
                limits=limits,
                random=random.Random(seed + index),
                faults=faults[index] if index < len(faults) else None,
            )
            relays.append(await stack.enter_async_context(relay))
        urls = [relay.url for relay in relays]
        pool = RelayPool(urls, connect=network(*relays), clock=clock(), rng=random.Random(seed), signer=signer)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            yield pool, relays
            nursery.cancel_scope.cancel()
        # A relay behind a slow network learns it late.
        await trio.sleep(100)
        assert [relay.connections for relay in relays] == [0] * count


async def blurt(relay, text):
    """Send any text; to nobody, if the connection is just ending."""
    with contextlib.suppress(TransportClosed):
        await relay.send_raw(text)


async def take(subscription, count, seconds=100.0):
    with trio.fail_after(seconds):
        return [(await anext(subscription)).event.content for _ in range(count)]


# --- reading --------------------------------------------------------------------------------------------------


async def test_five_relays_one_verification_one_delivery(autojump_clock):
    events = [note(str(n), at=-n) for n in range(100)]
    async with market(5, faults=[Faults(delay=(0.0, 0.3), duplicate=0.3, reorder=0.3) for _ in range(5)]) as (
        pool,
        relays,
    ):
        await pool.connected(5)
        async with pool.subscribe([NOTES]) as one, pool.subscribe([NOTES]) as other:
            for event in events:
                for relay in relays:
                    relay.publish(event)
            wanted = sorted(event.content for event in events)
            assert sorted(await take(one, 100)) == sorted(await take(other, 100)) == wanted
            await trio.sleep(10)
            assert one.drain() == other.drain() == []
        assert pool.verifications == 100
        assert sum(status.nonsense_received for status in pool.statuses()) == 0


async def test_events_come_stored_and_live_and_from_the_relay_that_was_first(autojump_clock):
    async with market(2) as (pool, relays):
        relays[1].publish(note("stored"))
        await pool.connected(2)
        async with pool.subscribe([NOTES]) as notes:
            received = await anext(notes)
            assert (received.event.content, received.relay) == ("stored", "ws://1")
            relays[0].publish(note("live"))
            assert (await anext(notes)).relay == "ws://0"
            relays[0].publish(note("another kind", kind=2))
            await trio.sleep(5)
            assert notes.drain() == []


async def test_a_subscription_may_ask_some_relays_only(autojump_clock):
    async with market(2) as (pool, relays):
        await pool.connected(2)
        async with pool.subscribe([NOTES], relays=["ws://1"]) as notes:
            await settle()
            relays[0].publish(note("no"))
            relays[1].publish(note("yes"))
            await trio.sleep(5)
            assert [event.content for event in notes.drain()] == ["yes"]


async def test_subscriptions_made_before_the_pool_runs_or_during_an_outage_are_asked(autojump_clock):
    async with open_memory_relay("ws://0", clock=clock()) as relay:
        relay.publish(note("early"))
        pool = RelayPool(["ws://0"], connect=network(relay), clock=clock(), rng=random.Random(1))
        async with pool.subscribe([NOTES]) as notes, trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            assert await take(notes, 1) == ["early"]
            relay.faults.refuse_connections = True
            relay.disconnect_all()
            await trio.sleep(100)
            relay.publish(note("meanwhile"))
            relay.faults.refuse_connections = False
            assert await take(notes, 1) == ["meanwhile"]
            nursery.cancel_scope.cancel()


async def test_an_iteration_ends_with_its_subscription(autojump_clock):
    async with market() as (pool, _), trio.open_nursery() as nursery:
        ended = trio.Event()

        async def read(notes):
            async for _ in notes:
                raise AssertionError
            ended.set()

        async with pool.subscribe([NOTES]) as notes:
            nursery.start_soon(read, notes)
            await settle()
        await ended.wait()


async def test_relays_close_what_they_are_told_to(autojump_clock):
    async with market() as (pool, (relay,)):
        await pool.connected()
        async with pool.subscribe([NOTES]):
            await settle()
            assert relay.close_subscriptions() == 1
            await trio.sleep(2)
        await settle()
        assert relay.close_subscriptions() == 0


async def test_nothing_is_lost_to_a_slow_consumer(autojump_clock):
    """Neither what was stored beyond a relay's cap, nor what came while it slept."""
    stored = [note(f"stored {n}", at=-n // 3) for n in range(4_000)]
    async with market(limits=Limits(max_limit=500)) as (pool, (relay,)):
        for event in stored:
            relay.publish(event)
        await pool.connected()
        async with pool.subscribe([NOTES]) as notes:
            await trio.sleep(60)
            assert len(notes._queue) == 2_000
            for n in range(300):
                relay.publish(note(f"live {n}", at=60))
            got = set()
            with trio.fail_after(600):
                while len(got) < 4_300:
                    got.add((await anext(notes)).event.content)
            assert relay.connections_made == 1


# --- fetch ----------------------------------------------------------------------------------------------------


async def test_fetch_takes_the_newest_version_of_each_address_from_all_relays(autojump_clock):
    versions = [note(f"v{n}", kind=30_000, at=n, tags=[["d", "x"]]) for n in range(3)]
    other = note("other", kind=30_000, at=1, tags=[["d", "y"]])
    async with market(3, faults=[Faults(delay=(0.1, 1.0))] * 3) as (pool, relays):
        for version, relay in zip((versions[1], versions[2], versions[0]), relays, strict=True):
            relay.publish(version)
            relay.publish(other)
        await pool.connected(3)
        began = trio.current_time()
        found = await pool.fetch([Filter(kinds=[30_000])], 30)
        assert [event.content for event in found] == ["v2", "other"]
        assert trio.current_time() - began < 5


async def test_fetch_waits_for_a_silent_relay_no_longer_than_told(autojump_clock):
    async with market(2) as (pool, relays):
        relays[0].publish(note())
        await pool.connected(2)
        relays[1].faults.silent = True
        began = trio.current_time()
        assert len(await pool.fetch([NOTES], 7)) == 1
        assert trio.current_time() - began == pytest.approx(7, abs=0.1)


async def test_fetch_works_while_a_relay_connects(autojump_clock):
    async with market(faults=[Faults(delay=(3.0, 3.0))]) as (pool, (relay,)):
        relay.publish(note())
        assert len(await pool.fetch([NOTES], 20)) == 1
        assert await pool.fetch([Filter(kinds=[7])], 20) == []


async def test_fetch_from_relays_that_drop_or_refuse_ends(autojump_clock):
    async with market(2, faults=[Faults(closed="error: no"), Faults(drop_after=1)]) as (pool, relays):
        relays[1].publish(note())
        relays[1].publish(note("2"))
        await pool.connected(2)
        began = trio.current_time()
        await pool.fetch([NOTES], 30)
        assert trio.current_time() - began < 2


async def test_fetch_brings_more_than_a_relay_tells_at_once(autojump_clock):
    async with market(limits=Limits(max_limit=500)) as (pool, (relay,)):
        for n in range(2_600):
            relay.publish(note(str(n), at=-n))
        await pool.connected()
        assert len(await pool.fetch([NOTES], 30)) == 2_600
        assert len(await pool.fetch([Filter(kinds=[1], limit=300)], 30)) == 300


# --- relays come and go ---------------------------------------------------------------------------------------


async def test_relays_are_added_and_removed(autojump_clock):
    async with market(2) as (pool, relays):
        pool.remove_relay("ws://1")
        await pool.connected(1)
        async with pool.subscribe([NOTES]) as notes:
            assert pool.urls == ["ws://0"]
            await trio.sleep(5)
            assert [relay.connections for relay in relays] == [1, 0]
            relays[1].publish(note("there"))
            pool.add_relay("ws://1")
            pool.add_relay("ws://1")
            assert await take(notes, 1) == ["there"]
            pool.remove_relay("ws://1")
            pool.add_relay("ws://1")
            pool.remove_relay("ws://1")
            await trio.sleep(100)
            assert [relay.connections for relay in relays] == [1, 0]
            assert not pool.is_connected("ws://1")
            with pytest.raises(RelayError, match="ws://1"):
                await pool.publish("ws://1", note())


async def test_connected_waits_and_says_what_is_missing(autojump_clock):
    async with market(2, faults=[Faults(), Faults(refuse_connections=True)]) as (pool, relays):
        await pool.connected()
        with pytest.raises(RelayError, match="2 of 2"):
            await pool.connected(2)
        relays[1].faults.refuse_connections = False
        changed = pool.wait_changed()
        await changed
        await pool.connected(2)


async def test_ephemeral_events_go_to_all_that_are_there(autojump_clock):
    async with market(3, faults=[Faults(), Faults(silent=True), Faults(refuse_connections=True)]) as (pool, _):
        await pool.connected(2)
        async with pool.subscribe([Filter(kinds=[20_001])]) as heard:
            await settle()
            began = trio.current_time()
            await pool.send_ephemeral(note("now", kind=20_001))
            assert trio.current_time() == began
            assert await take(heard, 1) == ["now"]


async def test_publishing_one_event_twice_at_once_answers_both(autojump_clock):
    async with market(faults=[Faults(delay=(0.1, 0.5))]) as (pool, (relay,)):
        await pool.connected()
        event, verdicts = note(), []

        async def publish():
            verdicts.append(await pool.publish(relay.url, event))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(publish)
        assert [verdict.accepted for verdict in verdicts] == [True] * 3


async def test_a_relay_that_wants_to_know_us(autojump_clock):
    async with market(faults=[Faults(auth=True)], signer=ALICE) as (pool, (relay,)):
        await pool.connected()
        async with pool.subscribe([NOTES]) as notes:
            assert (await pool.publish(relay.url, note("me"))).accepted
            assert await take(notes, 1) == ["me"]
        assert len(await pool.fetch([NOTES], 10)) == 1
    async with market(faults=[Faults(auth=True)]) as (pool, (relay,)):
        await pool.connected()
        assert (await pool.publish(relay.url, note("me"))).reason == "auth-required"
        assert await pool.fetch([NOTES], 10) == []


async def test_strangers_frames_kill_nothing(autojump_clock):
    good = note("good")
    async with market(2) as (pool, relays):
        await pool.connected(2)
        async with pool.subscribe([NOTES]) as notes:
            await settle()
            for text in (
                "",
                "[]",
                "[1]",
                '["EVENT"]',
                "\x00",
                '["OK",1,2]',
                RelayEvent(notes.id, attrs.evolve(good, content="x")).encode(),
            ):
                for _ in range(40):
                    await blurt(relays[0], text)
            await blurt(relays[0], RelayNotice("you are bad").encode())
            relays[1].publish(good)
            assert await take(notes, 1) == ["good"]
            await trio.sleep(10)
            await pool.connected(2)
            assert pool.statuses()[0].nonsense_received >= 100


# --- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", range(0, 120, 3))
async def test_cancelled_at_any_moment_nothing_is_left(autojump_clock, moment):
    async with open_memory_relay(
        "ws://0", clock=clock(), faults=Faults(delay=(0.0, 0.02)), random=random.Random(moment)
    ) as relay:
        relay.publish(note())

        async def publish(pool):
            with contextlib.suppress(RelayError):
                await pool.publish("ws://0", note("again"))

        async def live():
            pool = RelayPool(["ws://0"], connect=relay.connect, clock=clock(), rng=random.Random(1), signer=ALICE)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                await pool.connected()
                async with pool.subscribe([NOTES]) as notes:
                    nursery.start_soon(pool.fetch, [NOTES], 5)
                    nursery.start_soon(publish, pool)
                    async for _ in notes:
                        pool.remove_relay("ws://0")
                        pool.add_relay("ws://0")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            for _ in range(moment):
                await trio.sleep(0.0005 * moment)
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert relay.connections == 0


# --- any schedule of faults -----------------------------------------------------------------------------------


@st.composite
def schedules(draw):
    """What happens, in order: (seconds to wait, what, on which relay)."""
    what = st.sampled_from(
        ["publish", "publish", "publish", "disconnect", "closed", "silent", "refuse", "mend", "nonsense"]
    )
    return draw(st.lists(st.tuples(st.floats(0, 40), what, st.integers(0, 1)), min_size=1, max_size=25))


def mend(relay):
    if relay.faults.silent:
        # A connection that has lost frames never carries others after them.
        relay.disconnect_all()
    relay.faults.silent = relay.faults.refuse_connections = False


async def survive(schedule, seed):
    faults = [Faults(delay=(0.0, 0.8), duplicate=0.2, reorder=0.3, lose_ok=0.2) for _ in range(2)]
    async with market(2, seed=seed, faults=faults) as (pool, relays), trio.open_nursery() as nursery:
        inbox, published = [set(), set()], []

        async def consume(index, notes):
            async for received in notes:
                inbox[index].add(received.event.id)
                await trio.sleep(0.1 * index)

        async with (
            pool.subscribe([NOTES]) as one,
            pool.subscribe([NOTES, Filter(kinds=[1, 2])], since=EPOCH - 5) as other,
        ):
            nursery.start_soon(consume, 0, one)
            nursery.start_soon(consume, 1, other)
            for wait, what, index in schedule:
                await trio.sleep(wait)
                relay = relays[index]
                match what:
                    case "publish":
                        published.append(note(str(len(published)), at=int(trio.current_time())))
                        relay.publish(published[-1])
                    case "disconnect":
                        relay.disconnect_all()
                    case "closed":
                        relay.close_subscriptions()
                    case "silent":
                        relay.faults.silent = True
                    case "refuse":
                        relay.faults.refuse_connections = True
                        relay.disconnect_all()
                    case "nonsense":
                        await blurt(relay, "?")
                    case "mend":
                        mend(relay)
            for relay in relays:
                mend(relay)
            with trio.move_on_after(400):
                await until(lambda: all(len(seen) >= len(published) for seen in inbox), 1.0)
            wanted = {event.id for event in published}
            assert inbox == [wanted, wanted]
            assert pool.verifications == len(wanted)
        nursery.cancel_scope.cancel()


@settings(max_examples=40, deadline=None)
@given(schedules(), st.integers(0, 2**16))
def test_every_subscriber_gets_every_event_whatever_happens(schedule, seed):
    trio.run(survive, schedule, seed, clock=trio.testing.MockClock(autojump_threshold=0))


# --- a clock that is set --------------------------------------------------------------------------------------


async def test_a_clock_that_was_ahead_at_the_start_leaves_nobody_deaf(autojump_clock):
    """What was asked for from a time in the future is asked for again from the present."""
    ours = clock()
    ours.skew = 3_600.0
    async with open_memory_relay("ws://0", clock=clock()) as relay, trio.open_nursery() as nursery:
        pool = RelayPool([relay.url], connect=network(relay), clock=ours, rng=random.Random(1))
        await nursery.start(pool.run)
        async with pool.subscribe([NOTES], since=EPOCH + 3_600 - 900) as subscription:
            await settle(1.0)
            ours.skew = 0.0
            relay.publish(note("right away", at=2))
            assert await take(subscription, 1, seconds=80) == ["right away"]
            relay.publish(note("later", at=85))
            assert await take(subscription, 1) == ["later"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("jump", [3_600.0, -3_600.0, 864_000.0, -864_000.0])
async def test_a_clock_that_is_set_makes_nobody_deaf(jump, autojump_clock):
    """Either way, there and back: to those whose clocks are right, at the latest when ours is, too."""
    ours = clock()
    async with open_memory_relay("ws://0", clock=clock()) as relay, trio.open_nursery() as nursery:
        relay.core.now = lambda: 2 * EPOCH  # it takes any date
        pool = RelayPool([relay.url], connect=network(relay), clock=ours, rng=random.Random(1))
        await nursery.start(pool.run)
        async with pool.subscribe([NOTES], since=EPOCH - 900) as subscription:
            for skew in (0.0, jump, 0.0, -jump, 0.0):
                ours.skew = skew
                await trio.sleep(70)
                subscription.drain()
                for _ in range(2):
                    at = int(trio.current_time())
                    relay.publish(note(f"true {at}", at=at))
                    assert await take(subscription, 1) == [f"true {at}"]
                    relay.disconnect_all()
                    await trio.sleep(70)
                # Something dated by our own clock: while that is ahead, it makes us skip the present.
                relay.publish(note("ours", at=at + int(skew)))
                relay.disconnect_all()
                await trio.sleep(70)
                subscription.drain()
        nursery.cancel_scope.cancel()


async def test_a_clock_that_drifts_asks_for_nothing(autojump_clock):
    ours = clock()
    async with open_memory_relay("ws://0", clock=clock()) as relay, trio.open_nursery() as nursery:
        pool = RelayPool([relay.url], connect=network(relay), clock=ours, rng=random.Random(1))
        await nursery.start(pool.run)
        async with pool.subscribe([NOTES], since=EPOCH - 900) as subscription:
            relay.publish(note("once", at=1))
            assert await take(subscription, 1) == ["once"]
            for _ in range(50):
                ours.skew -= 25.0
                await trio.sleep(60)
            assert subscription.drain() == []
        nursery.cancel_scope.cancel()
