"""Replies to many, on few subscriptions: everybody hears all that is theirs while they listen."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from pylon.clock import VirtualClock
from pylon.compute import replies as module
from pylon.compute.replies import MOST_SMALL, MOST_TOGETHER, Replies
from pylon.relays.pool import RelayPool
from pylon.testing.relay import network, open_memory_relay

ONE, OTHER = "ws://one.test", "ws://other.test"
PROVIDER = SecretKey((7).to_bytes(32, "big"))


def key(number: int) -> str:
    return f"{number:064x}"


class Place:
    """Two relays, a pool, and what was heard."""

    def __init__(self, relays, pool, clock):
        self.relays = relays
        self.pool = pool
        self.clock = clock
        self.heard: list[Event] = []
        self.busy = 0.0
        self.done = 0
        self.replies = Replies(pool, self._take)

    async def _take(self, received):
        self.heard.append(received.event)
        await trio.sleep(self.busy)
        self.done += 1

    def say(self, to: str, words: str = "", url: str = ONE, kind: int = 7000, ago: int = 0) -> str:
        at = int(self.clock.now()) - ago
        event = sign_event(PROVIDER, kind=kind, tags=[["p", to]], content=words, created_at=at)
        self.relays[url].publish(event)
        return event.id

    def ids(self) -> set[str]:
        return {event.id for event in self.heard}

    @property
    def now(self) -> int:
        return int(self.clock.now())


@asynccontextmanager
async def placed():
    clock = VirtualClock()
    async with open_memory_relay(ONE, clock=clock) as one, open_memory_relay(OTHER, clock=clock) as other:
        pool = RelayPool([ONE, OTHER], connect=network(one, other), clock=clock, rng=random.Random(0))
        place = Place({ONE: one, OTHER: other}, pool, clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            await pool.connected(2)
            await nursery.start(place.replies.run)
            yield place
            nursery.cancel_scope.cancel()


async def test_one_hears_what_is_addressed_to_it_and_nothing_else(autojump_clock):
    async with placed() as place:
        await place.replies.listen(key(1), None, place.now)
        mine = {place.say(key(1)), place.say(key(1), "a result", kind=6050), place.say(key(1), url=OTHER)}
        place.say(key(2))
        place.say(key(1), kind=1)
        await trio.sleep(1)
        assert place.ids() == mine
        place.replies.leave(key(1))
        place.say(key(1), "too late")
        await trio.sleep(1)
        assert place.ids() == mine
        assert place.replies.subscriptions() == len(place.pool._subscriptions) == 0


async def test_what_was_said_before_is_heard_from_since_on(autojump_clock):
    async with placed() as place:
        old, young = place.say(key(1), "old", ago=100), place.say(key(1), "young", ago=10)
        await place.replies.listen(key(1), None, place.now - 50)
        await trio.sleep(1)
        assert place.ids() == {young} != {old}


async def test_of_those_who_share_each_hears_from_its_own_since_on(autojump_clock):
    async with placed() as place:
        old, older = place.say(key(1), "old", ago=100), place.say(key(2), "older", ago=1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.replies.listen, key(1), None, place.now - 200)
            nursery.start_soon(place.replies.listen, key(2), None, place.now - 2_000)
        await trio.sleep(1)
        assert place.replies.subscriptions() == 1
        assert place.ids() == {old, older}


async def test_listening_again_changes_nothing(autojump_clock):
    async with placed() as place:
        for _ in range(3):
            await place.replies.listen(key(1), None, place.now)
        assert len(place.pool._subscriptions) == 1
        place.replies.leave(key(2))
        place.replies.leave(key(1))
        place.replies.leave(key(1))
        await trio.sleep(1)
        assert len(place.pool._subscriptions) == 0


async def test_relays_of_ones_own(autojump_clock):
    async with placed() as place:
        await place.replies.listen(key(1), [OTHER], place.now)
        place.say(key(1), "where it does not listen")
        there = place.say(key(1), "where it does", url=OTHER)
        await trio.sleep(1)
        assert place.ids() == {there}
        # It has moved since.
        await place.replies.listen(key(1), [ONE], place.now)
        here = place.say(key(1), "where it does now")
        place.say(key(1), "and not any more", url=OTHER)
        await trio.sleep(1)
        assert place.ids() >= {there, here}
        assert "and not any more" not in {event.content for event in place.heard}
        assert place.replies.subscriptions() == 1


async def test_a_thousand_at_once_are_few_subscriptions(autojump_clock):
    """As after a restart with many purchases under way."""
    async with placed() as place, trio.open_nursery() as nursery:
        for number in range(1_000):
            nursery.start_soon(place.replies.listen, key(number), None, place.now)
        await trio.sleep(1)
        assert place.replies.subscriptions() == len(place.pool._subscriptions) == 1_000 // MOST_TOGETHER
        mine = {place.say(key(number)) for number in range(0, 1_000, 100)}
        await trio.sleep(1)
        assert place.ids() == mine


async def test_one_after_the_other_are_few_too(autojump_clock):
    async with placed() as place:
        most = 0
        for number in range(500):
            await place.replies.listen(key(number), None, place.now)
            await trio.sleep(0.1)
            most = max(most, len(place.pool._subscriptions))
        assert most <= 2 * MOST_SMALL + 500 // (MOST_TOGETHER // 2)
        mine = {place.say(key(number)) for number in range(0, 500, 50)}
        await trio.sleep(1)
        assert place.ids() == mine
        for number in range(500):
            place.replies.leave(key(number))
        await trio.sleep(1)
        assert len(place.pool._subscriptions) == 0


async def test_who_leaves_while_it_is_being_let_in_is_not_kept(autojump_clock):
    async with placed() as place:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.replies.listen, key(1), None, place.now)
            nursery.start_soon(place.replies.listen, key(2), None, place.now)
            while key(1) not in place.replies._wanted:
                await trio.lowlevel.checkpoint()
            place.replies.leave(key(1))
        await trio.sleep(1)
        assert place.replies.subscriptions() == 1
        place.replies.leave(key(2))
        await trio.sleep(1)
        assert len(place.pool._subscriptions) == 0


async def test_what_is_in_hand_is_handled_to_its_end(autojump_clock):
    """An answer that is being taken when its owner leaves, or when subscriptions are made into one."""
    async with placed() as place:
        place.busy = 5.0
        await place.replies.listen(key(1), None, place.now)
        place.say(key(1))
        await trio.sleep(1)
        place.replies.leave(key(1))
        await trio.sleep(10)
        assert place.done == len(place.heard) == 1


async def test_it_runs_again_from_nothing(autojump_clock):
    async with placed() as place:
        replies = Replies(place.pool, place._take)
        for number in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(replies.run)
                await replies.listen(key(1), None, place.now)
                place.say(key(1), str(number))
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
        assert {event.content for event in place.heard} == {"0", "1"}
        assert len(place.pool._subscriptions) == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "join elsewhere", "leave", "say", "say", "wait", "cut", "all join"]),
        st.integers(0, 11),
    ),
    max_size=40,
)


@given(steps, st.sampled_from([1, 2, 6]), st.sampled_from([2, 5, 200]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everybody_hears_all_that_is_theirs(monkeypatch, actions, small, together):
    """Joins, leaves, messages and broken connections in any order, whatever the subscriptions are made into."""
    monkeypatch.setattr(module, "MOST_SMALL", small)
    monkeypatch.setattr(module, "MOST_TOGETHER", together)
    trio.run(_play, actions, clock=MockClock(autojump_threshold=0))


async def _play(actions) -> None:
    async with placed() as place:
        listening: dict[str, str] = {}
        due: dict[str, str] = {}
        """What must be heard, and by whom it is meant."""
        for number, (what, who) in enumerate(actions):
            name = key(who)
            match what:
                case "join" | "join elsewhere":
                    url = OTHER if what == "join elsewhere" else ONE
                    await trio.sleep(0.5)  # who moves has heard what was said to it before
                    await place.replies.listen(name, [url], place.now)
                    listening[name] = url
                case "all join":
                    await trio.sleep(0.5)
                    async with trio.open_nursery() as nursery:
                        for other in range(who):
                            nursery.start_soon(place.replies.listen, key(other), [ONE], place.now)
                            listening[key(other)] = ONE
                case "leave":
                    await trio.sleep(0.5)
                    place.replies.leave(name)
                    listening.pop(name, None)
                case "say":
                    url = listening.get(name, ONE)
                    event = place.say(name, str(number), url=url)
                    if name in listening:
                        due[event] = name
                case "wait":
                    await trio.sleep(who)
                case "cut":
                    # A message that meets a broken connection is there when it is asked for again.
                    place.relays[ONE].disconnect_all()
                    await trio.sleep(20.0)
        await trio.sleep(30.0)
        assert due.keys() <= place.ids()
        live = len(set(listening.values()))
        assert (place.replies.subscriptions() == 0) == (not listening)
        assert len(place.pool._subscriptions) == place.replies.subscriptions()
        assert live == 0 or place.replies.subscriptions() <= 40


def test_the_bounds_are_those_of_public_relays():
    assert MOST_SMALL * 2 <= 20
    assert MOST_TOGETHER <= 500


@pytest.mark.parametrize("relays", [None, [ONE]])
async def test_listening_while_nothing_runs_is_a_mistake(autojump_clock, relays):
    async with placed() as place:
        with pytest.raises(AssertionError):
            await Replies(place.pool, place._take).listen(key(1), relays, 0)
