"""What a relay says that it will not take (NIP-11) it is not sent."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols.nip01 import Filter, event_frame
from protocols.nip11 import Limitation, RelayInformation
from pylon.errors import RelayError
from pylon.relays.limits import RelayLimits
from pylon.relays.pool import RelayPool
from pylon.relays.relay import Limits
from pylon.testing.relay import open_memory_relay
from tests.pylon.relays.scripted import EPOCH, URL, Script, clock, note, settle, until


def informs(**limits):
    document = RelayInformation(limitation=Limitation(**limits))

    async def inform(url):
        await trio.lowlevel.checkpoint()
        return document

    return inform


@asynccontextmanager
async def pooled(script, inform, url=URL):
    pool = RelayPool([url], connect=script.connect, clock=clock(), rng=random.Random(1), inform=inform)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        await settle()
        yield pool
        nursery.cancel_scope.cancel()


def notes(number):
    return Filter(kinds=[number])


def standing(link):
    """Names of the subscriptions that the relay has."""
    names = []
    for frame in link.sent:
        if frame[0] == "REQ" and frame[1] not in names:
            names.append(frame[1])
        elif frame[0] == "CLOSE" and frame[1] in names:
            names.remove(frame[1])
    return names


async def test_subscriptions_beyond_its_number_wait_for_a_place(autojump_clock):
    script = Script()
    async with pooled(script, informs(max_subscriptions=4)) as pool, trio.open_nursery() as nursery:
        leave = {}

        async def hold(number):
            leave[number] = trio.Event()
            async with pool.subscribe([notes(number)]):
                await leave[number].wait()

        for number in range(1, 8):
            nursery.start_soon(hold, number)
            await settle()
        assert len(standing(script.link)) == 3, "one place is kept for asking further back"
        for number in range(1, 8):
            leave[number].set()
            await settle()
            assert len(standing(script.link)) <= 3
        assert standing(script.link) == []
        asked = {frame[2]["kinds"][0] for frame in script.link.reqs()}
        assert asked == set(range(1, 8)), "each had its turn"


async def test_a_closed_one_makes_room_and_a_new_connection_asks_in_the_same_bounds(autojump_clock):
    script = Script()
    async with pooled(script, informs(max_subscriptions=3)) as pool:
        async with pool.subscribe([notes(1)]), pool.subscribe([notes(2)]), pool.subscribe([notes(3)]):
            await settle()
            first, second = standing(script.link)
            script.link.say("CLOSED", first, "restricted: no")
            await settle()
            assert [frame[2]["kinds"] for frame in script.link.reqs()] == [[1], [2], [3]]
            script.link.drop()
            await until(lambda: len(script.links) == 2)
            await settle()
            assert len(standing(script.link)) == 2
            assert second in standing(script.link)


async def test_even_one_place_serves_one_after_the_other(autojump_clock):
    script = Script()
    async with pooled(script, informs(max_subscriptions=1)) as pool:
        for number in (1, 2):
            async with pool.subscribe([notes(number)]):
                await settle()
                assert len(standing(script.link)) == 1


async def test_all_that_is_stored_comes_where_an_answer_is_short(autojump_clock):
    """A relay that shows 10 at a time: an answer of 10 is no sign that it has no more."""
    async with open_memory_relay("ws://a", clock=clock(), limits=Limits(max_limit=10)) as relay:
        for number in range(57):
            relay.publish(note(str(number), at=-number))
        async with pooled(relay, informs(max_limit=10, max_subscriptions=2), url="ws://a") as pool:
            await pool.connected()
            found = await pool.fetch([Filter(kinds=[1])], timeout=60)
    assert [event.content for event in found] == [str(number) for number in range(57)]


async def test_what_is_looked_up_finds_a_place_beside_those_that_stay(autojump_clock):
    async with open_memory_relay("ws://a", clock=clock(), limits=Limits(max_subscriptions=4)) as relay:
        relay.publish(note("here"))
        async with pooled(relay, informs(max_subscriptions=4), url="ws://a") as pool, AsyncExitStack() as stack:
            await pool.connected()
            for number in range(20, 30):
                await stack.enter_async_context(pool.subscribe([notes(number)]))
            for _ in range(5):
                began = trio.current_time()
                assert [event.content for event in await pool.fetch([notes(1)], timeout=60)] == ["here"]
                assert trio.current_time() - began < 1


async def test_never_more_than_its_number_at_once(autojump_clock):
    script = Script()
    async with pooled(script, informs(max_subscriptions=4)) as pool, trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(pool.fetch, [notes(number)], 50)
        async with pool.subscribe([notes(8)]), pool.subscribe([notes(9)]):
            for _ in range(20):
                await trio.sleep(1)
                assert len(standing(script.link)) <= 4
                script.link.say("EOSE", standing(script.link)[-1])
            asked = {frame[2]["kinds"][0] for frame in script.link.reqs()}
            assert asked == {1, 2, 3, 4, 5, 8, 9}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["left", "dropped"])
async def test_what_lies_further_back_is_not_asked_for_whom_nobody_hears_any_more(autojump_clock, how):
    script = Script()
    async with pooled(script, informs(max_subscriptions=2, max_limit=1)) as pool, trio.open_nursery() as nursery:
        async with pool.subscribe([notes(1)]):
            nursery.start_soon(pool.fetch, [notes(2)], 50)
            await settle()
            first, second = standing(script.link)
            script.link.show(first, note("one"))
            script.link.say("EOSE", first)
            await settle()
            assert standing(script.link) == [first, second], "there is no place for a page"
            if how == "dropped":
                script.link.drop()
                await until(lambda: len(script.links) == 2)
                await settle()
                script.link.say("EOSE", second)
                await settle()
                assert standing(script.link) == [first], "the new connection has not shown anything yet"
        await settle()
        assert {frame[1] for link in script.links for frame in link.reqs()} == {first, second}
        nursery.cancel_scope.cancel()


async def test_what_is_too_long_is_refused_here(autojump_clock):
    script = Script()
    async with pooled(script, informs(max_message_length=600)) as pool:
        verdict = await pool.publish(URL, note("x" * 600))
        assert (verdict.accepted, verdict.reason, "600 bytes" in verdict.message) == (False, "invalid", True)
        await pool.send_ephemeral(note("é" * 200, kind=20_001))
        await settle()
        assert script.link.of("EVENT") == []
        await pool.send_ephemeral(note("x", kind=20_001))
        async with pool.subscribe([Filter(ids=["0" * 64] * 1, authors=[f"{n:064x}" for n in range(20)])]) as long:
            await settle()
            assert script.link.reqs() == []
            assert long.stored_from(URL), "nobody waits for what was not asked"
        assert len(script.link.of("EVENT")) == 1


async def test_what_is_too_old_is_refused_and_what_is_too_early_waits(autojump_clock):
    script = Script()
    async with pooled(script, informs(created_at_lower_limit=1_000, created_at_upper_limit=60)) as pool:
        old = await pool.publish(URL, note("old", at=-1_100))
        assert (old.accepted, "1000 s" in old.message) == (False, True)
        with pytest.raises(RelayError, match="60 s ahead"):
            await pool.publish(URL, note("early", at=400))
        await trio.sleep(400)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.publish, URL, note("early", at=400))
            await settle()
            (sent,) = script.link.of("EVENT")
            script.link.say("OK", sent[1]["id"], True, "")


async def test_a_relay_that_says_nothing_is_waited_for_shortly(autojump_clock):
    script = Script()

    async def silent(url):
        await trio.sleep_forever()

    async with pooled(script, silent) as pool:
        began = trio.current_time()
        await pool.connected(timeout=10)
        assert trio.current_time() - began <= 2.1
        async with pool.subscribe([notes(1)]):
            await settle()
            assert len(script.link.reqs()) == 1


async def test_it_is_asked_again_later(autojump_clock):
    script, asked = Script(), []

    async def inform(url):
        asked.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return None if len(asked) == 1 else RelayInformation(limitation=Limitation(max_subscriptions=9))

    async with pooled(script, inform) as pool:
        await trio.sleep(4_000)
        assert len(asked) == 3
        assert pool._connections[URL].limits.max_subscriptions == 9


@given(st.builds(Limitation, *[st.none() | st.integers(-5, 2**40)] * 12))
def test_nonsense_is_not_said(told):
    limits = RelayLimits.of(told)
    for value in (limits.max_message_length, limits.max_subscriptions, limits.page, limits.oldest, limits.ahead):
        assert value is None or value > 0
    assert limits.subscriptions is None or 1 <= limits.subscriptions <= max(1, limits.max_subscriptions)
    assert limits.oldest is None or limits.oldest < EPOCH


@given(st.text(), st.integers(0, 2**33), st.text())
def test_the_date_of_an_event_is_its_own(content, created_at, tag):
    event = note(content + '","created_at":5,"', at=created_at - EPOCH, tags=[["t", '"created_at": 7' + tag]])
    frame = event_frame(event.to_json(), event.id)
    limits = RelayLimits(oldest=100, ahead=100)
    now = 1_000_000_000
    assert limits.too_old(frame, now) == (created_at < now - 100)
    assert limits.too_early(frame, now) == (created_at > now + 100)


@given(st.text(max_size=40), st.integers(1, 130))
def test_lengths_are_bytes(text, most):
    assert RelayLimits(max_message_length=most).too_long(text) == (len(text.encode("utf-8", "replace")) > most)
