"""The mailroom over relays in memory: many agents, few subscriptions, and nobody waits for anybody."""

from __future__ import annotations

import hashlib
import random
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import orjson
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from pylon.clock import VirtualClock
from pylon.host import mailroom as m
from pylon.host.mailroom import Mailroom, Wanted
from pylon.relays.pool import RelayPool
from pylon.relays.relay import Limits
from pylon.testing.relay import Faults, network, open_memory_relay

EPOCH = 1_800_000_000
DAY = 86_400
SENDER = SecretKey(b"\x05" * 32)
KINDS = (1, 4, 9735)


def name(n: int) -> str:
    """An agent that is only written to: any 64 hex digits will do."""
    return hashlib.sha256(f"agent {n}".encode()).hexdigest()


def mail(*names, text="hello", kind=1, at=0, secret=SENDER):
    """``at``: seconds from the epoch of the virtual clock."""
    tags = [["p", each] for each in names]
    return sign_event(secret, kind=kind, content=text, tags=tags, created_at=EPOCH + int(at))


def state(secret, text="state", at=0):
    return sign_event(secret, kind=39201, content=text, tags=[["d", "state"]], created_at=EPOCH + int(at))


def wanted(agent, *, kinds=KINDS, wraps=True, relays=None, since=0):
    """``since``: seconds from the epoch."""
    return Wanted(agent if isinstance(agent, str) else name(agent), kinds, wraps, relays, EPOCH + since)


@attrs.define
class Tap:
    """What clients have sent to a relay."""

    relay: object
    reqs: list = attrs.field(factory=list)
    open: set = attrs.field(factory=set)
    most: int = 0
    """Subscriptions that were open at one time."""

    @asynccontextmanager
    async def connect(self, url):
        async with self.relay.connect(url) as transport:
            self.open.clear()
            yield _Tapped(transport, self)

    def asked(self, kind):
        """Filters that were asked for this kind, of each REQ, newest last."""
        return [filters for filters in (req[2:] for req in self.reqs) if kind in filters[0]["kinds"]]


class _Tapped:
    def __init__(self, transport, tap):
        self._transport, self._tap = transport, tap

    def __getattr__(self, name):
        return getattr(self._transport, name)

    async def send(self, text):
        frame = orjson.loads(text)
        if frame[0] == "REQ":
            self._tap.reqs.append(frame)
            self._tap.open.add(frame[1])
            self._tap.most = max(self._tap.most, len(self._tap.open))
        elif frame[0] == "CLOSE":
            self._tap.open.discard(frame[1])
        await self._transport.send(text)


@attrs.define
class Office:
    mailroom: Mailroom
    pool: RelayPool
    relays: list
    taps: list
    clock: VirtualClock
    nursery: trio.Nursery

    @property
    def reqs(self):
        return sum(len(tap.reqs) for tap in self.taps)


@asynccontextmanager
async def office(count=1, *, seed=1, limits=None, faults=(), run=True):
    """So many relays, a pool on all of them, a mailroom."""
    clock = VirtualClock(float(EPOCH))
    async with AsyncExitStack() as stack:
        relays = []
        for index in range(count):
            opened = open_memory_relay(
                f"ws://{index}",
                clock=clock,
                limits=limits,
                random=random.Random(seed + index),
                faults=faults[index] if index < len(faults) else None,
            )
            relays.append(await stack.enter_async_context(opened))
        taps = [Tap(relay) for relay in relays]
        inner = {tap.relay.url: tap.connect for tap in taps}
        reach = network(*relays)
        pool = RelayPool(
            [relay.url for relay in relays],
            connect=lambda url: inner[url](url) if url in inner else reach(url),
            clock=clock,
            rng=random.Random(seed),
        )
        mailroom = Mailroom(pool, clock, random.Random(seed))
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            if run:
                await nursery.start(mailroom.run)
            yield Office(mailroom, pool, relays, taps, clock, nursery)
            nursery.cancel_scope.cancel()
    assert (mailroom.boxes, mailroom.groups) == (0, 0)


async def take(box, count, seconds=100.0):
    """Texts of the next events, in no order."""
    with trio.fail_after(seconds):
        return sorted([(await anext(box)).event.content for _ in range(count)])


async def nothing(box, seconds=30.0):
    with trio.move_on_after(seconds):
        received = await anext(box)
        raise AssertionError(f"something came: {received.event.content}")


async def collect(box, into, pause=0.0):
    async for received in box:
        into.append(received.event.content)
        if pause:
            await trio.sleep(pause)


# --- stored and live ------------------------------------------------------------------------------------------


async def test_mail_comes_stored_and_live_to_whom_it_is_for(autojump_clock):
    async with office() as it, it.mailroom.box(wanted(1)) as one, it.mailroom.box(wanted(2, wraps=False)) as two:
        (relay,) = it.relays
        relay.publish(mail(name(1), text="stored", at=-10))
        received = await anext(one)
        assert (received.event.content, received.relay) == ("stored", "ws://0")
        relay.publish(mail(name(1), name(2), name(3), text="both"))
        relay.publish(mail(name(2), name(2), text="one of them, named twice"))
        relay.publish(mail(name(1), name(2), text="unwanted kind", kind=7))
        relay.publish(mail(name(1), name(2), text="wrapped", kind=1059, at=-2 * DAY))
        relay.publish(mail(name(3), text="somebody else's"))
        relay.publish(mail(text="nobody's"))
        assert await take(one, 2) == ["both", "wrapped"]
        assert await take(two, 2) == ["both", "one of them, named twice"]
        await nothing(one)
        await nothing(two)


async def test_a_box_begins_where_its_agent_left_off(autojump_clock):
    """An overlap of 900 s, for wraps three days; nothing older, though another member of the group asks for it."""
    async with office() as it:
        ages = {"now": 0, "overlap": 950, "old": 1_100, "older": 2 * DAY, "oldest": 4 * DAY}
        for text, age in ages.items():
            it.relays[0].publish(mail(name(1), name(2), text=text, at=-age))
            it.relays[0].publish(mail(name(1), name(2), text=f"wrapped {text}", at=-age, kind=1059))
        async with it.mailroom.box(wanted(1, since=-100)) as one, it.mailroom.box(wanted(2, since=-5 * DAY)) as two:
            wraps = ["wrapped now", "wrapped old", "wrapped older", "wrapped overlap"]
            assert await take(one, 6) == ["now", "overlap", *wraps]
            assert len(await take(two, 10)) == 10
            await nothing(one)


async def test_what_was_heard_last_may_lie_in_the_future(autojump_clock):
    """The clock was set back since."""
    async with office() as it, it.mailroom.box(wanted(1, since=DAY)) as box:
        it.relays[0].publish(mail(name(1), text="now"))
        assert await take(box, 1) == ["now"]


async def test_kinds_are_each_agents_own(autojump_clock):
    choices = [(1,), (4, 1), (7,), (30_023, 1059), (), (9735, 9735), (1, 7, 30_023), *((1, n) for n in range(9, 15))]
    async with office() as it, AsyncExitStack() as stack:
        boxes = [
            await stack.enter_async_context(it.mailroom.box(wanted(n, kinds=kinds, wraps=False)))
            for n, kinds in enumerate(choices)
        ]
        everybody = [name(n) for n in range(len(choices))]
        for kind in (1, 4, 7, *range(9, 15), 9735, 30_023, 1059):
            it.relays[0].publish(mail(*everybody, kind=kind, text=str(kind)))
        await trio.sleep(10)
        for box, kinds in zip(boxes, choices, strict=True):
            expected = sorted(str(kind) for kind in set(kinds) - {1059})
            assert await take(box, len(expected)) == expected
            await nothing(box, 1)
        assert all(len(filters) <= 10 for tap in it.taps for _, _, *filters in tap.reqs)


async def test_the_same_event_of_many_relays_comes_once_while_it_is_remembered(autojump_clock):
    async with office(5) as it, it.mailroom.box(wanted(1)) as box:
        for event in [mail(name(1), text=str(n)) for n in range(50)]:
            for relay in it.relays:
                relay.publish(event)
        assert len(await take(box, 50)) == 50
        await nothing(box)
        assert it.pool.verifications == 50


async def test_an_iteration_ends_with_its_box(autojump_clock):
    async with office() as it, trio.open_nursery() as nursery:
        got = []
        async with it.mailroom.box(wanted(1)) as box:
            nursery.start_soon(collect, box, got)
            nursery.start_soon(box.caught_up)
            it.relays[0].publish(mail(name(1), text="read"))
            await trio.sleep(5)
            it.relays[0].disconnect_all()
        with pytest.raises(StopAsyncIteration):
            await anext(box)
        assert got == ["read"]


async def test_two_boxes_of_one_agent_both_fill(autojump_clock):
    """A listener that is restarted may overlap with itself."""
    async with office() as it, it.mailroom.box(wanted(1)) as one, it.mailroom.box(wanted(1)) as other:
        it.relays[0].publish(mail(name(1), text="both"))
        assert await take(one, 1) == await take(other, 1) == ["both"]


# --- state ----------------------------------------------------------------------------------------------------


async def test_an_agents_own_state_comes_however_old_it_is(autojump_clock):
    agents = [SecretKey(bytes([n]) * 32) for n in (1, 2)]
    async with office(2) as it, AsyncExitStack() as stack:
        it.relays[0].publish(state(agents[0], "a year old", at=-365 * DAY))
        it.relays[1].publish(state(agents[1], "another's"))
        boxes = [
            await stack.enter_async_context(it.mailroom.box(wanted(agent.public.hex, kinds=(), wraps=False)))
            for agent in agents
        ]
        assert await take(boxes[0], 1) == ["a year old"]
        assert await take(boxes[1], 1) == ["another's"]
        it.relays[1].publish(state(agents[0], "live"))
        it.relays[1].publish(mail(agents[0].public.hex, kind=39201, text="names it", at=1))
        assert await take(boxes[0], 1) == ["live"]
        await nothing(boxes[0])
        await nothing(boxes[1])


async def test_no_flood_of_mail_hides_that_an_agent_was_replaced(autojump_clock):
    agent = SecretKey(b"\x01" * 32)
    async with office() as it:
        for n in range(m.HELD + 50):
            it.relays[0].publish(mail(agent.public.hex, text=str(n)))
        async with it.mailroom.box(wanted(agent.public.hex)) as box:
            with trio.fail_after(10):
                await box.caught_up()
            it.relays[0].publish(state(agent, "elsewhere"))
            await trio.sleep(1)
            assert (await anext(box)).event.content == "elsewhere"


async def test_more_states_than_a_box_holds_come_later(autojump_clock):
    agent = SecretKey(b"\x01" * 32)
    async with office(2) as it, it.mailroom.box(wanted(agent.public.hex)) as box:
        await box.caught_up()
        for n in range(m.HELD_STATES):
            it.relays[0].publish(state(agent, str(n), at=n))
            await trio.sleep(0.1)
        it.relays[1].publish(state(agent, "the other runner's", at=-100))
        await trio.sleep(10)
        assert "the other runner's" in await take(box, m.HELD_STATES + 1)


# --- many agents, few subscriptions ---------------------------------------------------------------------------


async def test_ten_thousand_that_start_together_make_few_subscriptions(autojump_clock):
    count = 10_000
    async with office() as it, AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(it.mailroom.box(wanted(n))) for n in range(count)]
        await trio.sleep(10)
        assert it.reqs == it.mailroom.groups == len(it.taps[0].open) == 3 * count // m.GROUP == 150
        for n in (0, 4_999, 9_999):
            it.relays[0].publish(mail(name(n), text=str(n)))
            assert await take(boxes[n], 1) == [str(n)]
        sizes = [len(orjson.dumps(req)) for req in it.taps[0].reqs]
        assert max(sizes) < 16_384
        with trio.fail_after(10):
            for box in boxes:
                await box.caught_up()


async def test_those_who_come_one_by_one_are_gathered(autojump_clock):
    count = 400
    async with office() as it, AsyncExitStack() as stack:
        most = small = 0
        for n in range(count):
            await stack.enter_async_context(it.mailroom.box(wanted(n)))
            await trio.sleep(2)
            most = max(most, it.mailroom.groups)
            small = max(small, it.mailroom.groups - 3 * (n // 100))
        assert small <= 3 * 4
        assert it.mailroom.groups <= 3 * (count // 100 + 3)
        assert it.taps[0].most == most
        assert it.reqs == 3 * count
        # What matters is how many agents were asked for: each a few times, and not once for each that came.
        asked = sum(len(wanted["#p"]) for filters in it.taps[0].asked(1) for wanted in filters)
        assert asked <= 16 * count


async def test_who_comes_and_goes_within_a_moment_costs_nothing(autojump_clock):
    async with office() as it:
        for _ in range(20):
            async with AsyncExitStack() as stack:
                for n in range(50):
                    await stack.enter_async_context(it.mailroom.box(wanted(n)))
        await trio.sleep(10)
        assert it.reqs == 0
        assert not it.mailroom._lines


async def test_who_leaves_at_the_moment_of_being_asked_for(autojump_clock, monkeypatch):
    """In whichever order the tasks wake, no relay is asked for nobody's mail."""
    leaving = trio.CancelScope()
    begin = Mailroom._begin

    def begin_and_leave(*parts):
        begin(*parts)
        leaving.cancel()

    monkeypatch.setattr(Mailroom, "_begin", begin_and_leave)
    async with office() as it:
        for n in range(20):
            leaving = trio.CancelScope()
            with leaving:
                async with it.mailroom.box(wanted(n)):
                    await trio.sleep_forever()
        await trio.sleep(10)
        assert it.reqs < 60
        assert all(req[2:] for req in it.taps[0].reqs)
        assert it.taps[0].open == set()
        assert it.mailroom.groups == 0


async def test_who_leaves_is_passed_over_until_most_have_left(autojump_clock):
    async with office() as it, AsyncExitStack() as stack:
        leaving = AsyncExitStack()
        for n in range(40):
            await leaving.enter_async_context(it.mailroom.box(wanted(n)))
        stayed = [await stack.enter_async_context(it.mailroom.box(wanted(n))) for n in range(100, 140)]
        await trio.sleep(10)
        assert it.reqs == 3
        await leaving.aclose()
        await trio.sleep(10)
        assert it.reqs == 3
        async with it.mailroom.box(wanted(0)) as back:
            await trio.sleep(10)
            it.relays[0].publish(mail(name(0), name(1), name(100), text="x"))
            assert await take(back, 1) == await take(stayed[0], 1) == ["x"]
        before = it.reqs
        await stack.aclose()
        await trio.sleep(10)
        assert it.reqs == before
        assert it.taps[0].open == set()


async def test_a_group_that_most_have_left_is_made_anew_without_them(autojump_clock):
    async with office() as it, AsyncExitStack() as stack, AsyncExitStack() as leaving:
        for n in range(60):
            await leaving.enter_async_context(it.mailroom.box(wanted(n)))
        stayed = [await stack.enter_async_context(it.mailroom.box(wanted(n))) for n in range(100, 140)]
        await trio.sleep(10)
        await leaving.aclose()
        await trio.sleep(10)
        assert it.reqs == 6
        assert len(it.taps[0].open) == it.taps[0].most == 3
        assert sorted(it.taps[0].asked(1)[-1][0]["#p"]) == sorted(name(n) for n in range(100, 140))
        it.relays[0].publish(mail(name(100), text="still here"))
        assert await take(stayed[0], 1) == ["still here"]


async def test_a_storm_of_joining_and_leaving_stays_small(autojump_clock):
    """A thousand changes in a minute, of 100 agents: a REQ or so a second for each sort."""
    rng = random.Random(3)
    async with office() as it, trio.open_nursery() as nursery:
        got = {n: [] for n in range(100)}

        async def agent(n):
            while True:
                async with it.mailroom.box(wanted(n)) as box:
                    with trio.move_on_after(rng.uniform(0, 20)):
                        await collect(box, got[n])
                await trio.sleep(rng.uniform(0, 1))

        for n in range(100):
            nursery.start_soon(agent, n)
        await trio.sleep(60)
        assert it.reqs <= 3 * 80
        assert it.mailroom.groups <= 3 * 4
        it.relays[0].publish(mail(*(name(n) for n in range(100)), text="all"))
        await trio.sleep(60)
        assert all("all" in texts for texts in got.values())
        nursery.cancel_scope.cancel()


async def test_idle_agents_cost_no_steps(autojump_clock):
    class Steps(trio.abc.Instrument):
        taken = 0

        def before_task_step(self, task):
            self.taken += "mailroom" in task.coro.cr_code.co_filename

    async with office(2) as it, AsyncExitStack() as stack:
        for n in range(500):
            await stack.enter_async_context(it.mailroom.box(wanted(n)))
        await trio.sleep(10)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(24 * 3_600)
        assert steps.taken == 0
        it.relays[0].publish(mail(name(1)))
        await trio.sleep(1)
        assert 0 < steps.taken < 5


# --- since ----------------------------------------------------------------------------------------------------


async def test_a_group_made_anew_asks_no_further_back_than_its_members_need(autojump_clock):
    async with office() as it, AsyncExitStack() as stack:
        for n in range(5):
            it.relays[0].publish(mail(name(n), text="old", at=-DAY / 2))
        boxes = [await stack.enter_async_context(it.mailroom.box(wanted(n, since=-DAY))) for n in range(5)]
        await boxes[0].caught_up()
        await trio.sleep(DAY)
        for kind in (1, 1059):
            it.relays[0].publish(mail(name(0), text="new", at=DAY, kind=kind))
        await trio.sleep(1)
        received = it.pool.statuses()[0].events_received
        async with it.mailroom.box(wanted(99, since=-10 * DAY)):
            await trio.sleep(10)
            for kind, overlap in ((1, 900), (1059, 3 * DAY)):
                first, second = it.taps[0].asked(kind)
                assert [wanted["since"] for wanted in first] == [EPOCH - DAY - overlap]
                newcomer, settled = sorted(second, key=lambda wanted: len(wanted["#p"]))
                assert newcomer["since"] == EPOCH - 10 * DAY - overlap
                assert newcomer["#p"] == [name(99)]
                assert settled["since"] == pytest.approx(EPOCH + DAY - overlap, abs=5)
        assert it.pool.statuses()[0].events_received == received + 2, "the newest of each sort come again, no others"


async def test_a_clock_that_is_ahead_makes_nobody_deaf(autojump_clock):
    """Relays compare with what the events say: to ask from our own time would leave out everybody who is right."""
    async with office() as it, it.mailroom.box(wanted(1)) as box, it.mailroom.box(wanted(2)) as other:
        it.clock.skew = 10 * DAY
        await box.caught_up()
        await trio.sleep(2 * 3_600)
        it.relays[0].disconnect_all()
        it.relays[0].publish(mail(name(1), text="meanwhile", at=2 * 3_600))
        assert await take(box, 1) == ["meanwhile"]
        async with it.mailroom.box(wanted(3)):
            await trio.sleep(3_600)
            it.relays[0].publish(mail(name(1), name(2), text="later", at=3 * 3_600))
            assert await take(box, 1) == ["later"]
            assert await take(other, 1) == ["later"]
        assert box.since <= EPOCH + 3 * 3_600


async def test_what_our_own_agents_say_does_not_vouch_for_our_clock(autojump_clock):
    one, other = SecretKey(b"\x01" * 32), name(1)
    async with (
        office() as it,
        it.mailroom.box(wanted(one.public.hex)) as speaker,
        it.mailroom.box(wanted(other)) as box,
    ):
        it.clock.skew = 10 * DAY
        await box.caught_up()
        it.relays[0].publish(mail(other, text="from beside it", at=10 * DAY, secret=one))
        assert await take(box, 1) == ["from beside it"]
        async with it.mailroom.box(wanted(3)):
            await trio.sleep(100)
            it.relays[0].publish(mail(other, text="from afar", at=100))
            assert await take(box, 1) == ["from afar"]
        await nothing(speaker)


async def test_a_clock_that_is_behind_loses_nothing(autojump_clock):
    """What seemed to come from the future is refused, and taken when the clock was put right."""
    async with office() as it, it.mailroom.box(wanted(1)) as box:
        it.relays[0].core.now = lambda: EPOCH + int(trio.current_time())
        it.clock.skew = -2 * 3_600
        await box.caught_up()
        it.relays[0].publish(mail(name(1), text="from the present"))
        await trio.sleep(100)
        await nothing(box)
        it.clock.skew = 0.0
        assert await take(box, 1) == ["from the present"]
        await trio.sleep(100)
        await nothing(box)


async def test_an_agent_that_came_while_the_clock_was_ahead_hears_afterwards(autojump_clock):
    async with office() as it:
        it.clock.skew = 2 * 3_600
        async with it.mailroom.box(wanted(1, since=2 * 3_600)) as box:
            await box.caught_up()
            await trio.sleep(70)
            it.clock.skew = 0.0
            it.relays[0].publish(mail(name(1), text="right away", at=71))
            assert await take(box, 1) == ["right away"]


async def test_a_relay_that_is_away_holds_nobody_elses_since_back(autojump_clock):
    async with office(2) as it, AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(it.mailroom.box(wanted(n))) for n in range(3)]
        await trio.sleep(100)
        it.relays[1].publish(mail(name(1), at=100))
        await trio.sleep(1)
        it.relays[1].faults.refuse_connections = True
        it.relays[1].disconnect_all()
        it.relays[1].publish(mail(name(0), text="only there", at=102))
        await trio.sleep(DAY)
        it.relays[0].publish(mail(name(2), at=DAY + 100))
        await trio.sleep(1)
        async with it.mailroom.box(wanted(9, since=DAY)):
            await trio.sleep(10)
            it.relays[1].faults.refuse_connections = False
            await trio.sleep(100)
            sinces = [[min(w["since"] for w in filters) - EPOCH + 900 for filters in tap.asked(1)] for tap in it.taps]
            assert sinces[0] == [0, pytest.approx(DAY, abs=200)]
            assert sinces[1][0] == 0
            assert sinces[1][-1] == pytest.approx(100, abs=5)
            assert await take(boxes[0], 1) == ["only there"]


async def test_a_machine_that_slept_asks_from_before_it_fell_asleep(autojump_clock):
    """Its connections may be dead by then without knowing; wall time has moved, monotonic time has not."""
    async with office() as it, it.mailroom.box(wanted(1)) as box:
        await box.caught_up()
        await trio.sleep(100)
        it.relays[0].faults.silent = True
        it.clock.skew = 8 * 3_600
        it.relays[0].publish(mail(name(1), text="while it slept", at=3_600))
        async with it.mailroom.box(wanted(2, since=8 * 3_600)):
            await trio.sleep(5)
            it.relays[0].disconnect_all()
            it.relays[0].faults.silent = False
            assert await take(box, 1) == ["while it slept"]


async def test_after_a_standstill_nothing_is_arranged_at_once(autojump_clock):
    """The process was stopped for a day: what its connections are worth is found out first."""
    for _ in range(10):  # in whichever order the tasks wake
        async with office() as it, it.mailroom.box(wanted(1)) as box:
            began = trio.current_time()
            await box.caught_up()
            await trio.sleep(100)
            async with it.mailroom.box(wanted(2, since=int(began) + 100)):
                await trio.sleep(0.1)
                autojump_clock.jump(DAY)
                it.relays[0].publish(mail(name(1), text="meanwhile", at=began + 1_000))
                # The relay has given up on us; nobody here has noticed.
                it.relays[0].disconnect_all()
                assert await take(box, 1) == ["meanwhile"]


async def test_what_came_between_leaving_and_coming_back_is_there(autojump_clock):
    async with office() as it, it.mailroom.box(wanted(2)) as other:
        async with it.mailroom.box(wanted(1)) as box:
            it.relays[0].publish(mail(name(1), text="before"))
            assert await take(box, 1) == ["before"]
            await box.caught_up()
            await trio.sleep(2 * 3_600)
            for kind in (1, 1059):
                it.relays[0].publish(mail(name(2), text="other", at=2 * 3_600, kind=kind))
            assert await take(other, 2) == ["other", "other"]
            since = box.since
        assert since == pytest.approx(EPOCH + 2 * 3_600, abs=10)
        it.relays[0].publish(mail(name(1), text="between", at=2 * 3_600 + 10))
        await trio.sleep(3_600)
        async with it.mailroom.box(Wanted(name(1), KINDS, True, None, since)) as box:
            assert await take(box, 1) == ["between"]
            await nothing(box)
        await nothing(other)


async def test_since_tells_what_was_not_read_yet(autojump_clock):
    """Relays show the newest first: whoever crashes half-way must come back for the rest."""
    async with office(limits=Limits(max_limit=120)) as it:
        times = [1 - n * 1_000 for n in range(1_000)]
        for at in times:
            it.relays[0].publish(mail(name(1), text=str(at), at=at))
        begin = -1_000_000
        got, since, rounds = set(), EPOCH + begin, 0
        while since <= EPOCH:
            rounds += 1
            async with it.mailroom.box(Wanted(name(1), KINDS, False, None, since)) as box:
                assert box.since == since
                for _ in range(30 * 2**rounds):
                    with trio.move_on_after(30) as patience:
                        got.add(int((await anext(box)).event.content))
                    missing = [at for at in times if at not in got]
                    assert box.since <= EPOCH + max(missing, default=10**6) + 900
                    if patience.cancelled_caught:
                        break
                since = box.since
        assert rounds > 2
        assert len(got) == len(times)


@pytest.mark.parametrize(("kind", "overlap"), [(1, 900), (1059, 3 * DAY)])
async def test_since_waits_for_the_reader(autojump_clock, kind, overlap):
    async with office() as it, it.mailroom.box(wanted(1, since=-8 * DAY)) as box, it.mailroom.box(wanted(2)):
        it.relays[0].publish(mail(name(1), text="unread", at=-6 * DAY, kind=kind))
        await box.caught_up()
        for other in (1, 1059):
            it.relays[0].publish(mail(name(2), at=100, kind=other))
        await trio.sleep(100)
        assert box.since == EPOCH - 6 * DAY + overlap
        await anext(box)
        assert box.since == pytest.approx(EPOCH + 100, abs=10)


async def test_a_dead_relay_holds_since_back(autojump_clock):
    async with office(2, faults=[Faults(), Faults(refuse_connections=True)]) as it, it.mailroom.box(wanted(1)) as box:
        await trio.sleep(DAY)
        assert box.since == EPOCH


# --- relays come and go ---------------------------------------------------------------------------------------


async def test_mail_of_an_outage_comes_after_it(autojump_clock):
    async with office() as it, it.mailroom.box(wanted(1)) as box:
        await box.caught_up()
        it.relays[0].faults.refuse_connections = True
        it.relays[0].disconnect_all()
        await trio.sleep(3_600)
        it.relays[0].publish(mail(name(1), text="meanwhile", at=1_800))
        it.relays[0].publish(mail(name(1), text="wrapped meanwhile", at=1_800 - 2 * DAY, kind=1059))
        it.relays[0].faults.refuse_connections = False
        assert await take(box, 2) == ["meanwhile", "wrapped meanwhile"]


async def test_agents_hear_on_their_own_relays(autojump_clock):
    async with (
        office(3) as it,
        it.mailroom.box(wanted(1, relays=("ws://0", "ws://1", "ws://0"))) as one,
        it.mailroom.box(wanted(2, relays=("ws://1",))) as two,
        it.mailroom.box(wanted(3)) as three,
        it.mailroom.box(wanted(4, relays=("ws://nowhere",))) as four,
    ):
        await trio.sleep(5)
        for index, relay in enumerate(it.relays):
            relay.publish(mail(name(1), name(2), name(3), name(4), text=str(index)))
        assert await take(one, 2) == ["0", "1"]
        assert await take(two, 1) == ["1"]
        assert await take(three, 3) == ["0", "1", "2"]
        for box in (one, two, three, four):
            await nothing(box, 10)
        assert [len(tap.open) for tap in it.taps] == [3, 3, 3]


async def test_relays_are_added_and_removed(autojump_clock):
    async with office(2) as it:
        it.pool.remove_relay("ws://1")
        async with it.mailroom.box(wanted(1)) as box, it.mailroom.box(wanted(2, relays=("ws://1",))) as other:
            await box.caught_up()
            it.relays[1].publish(mail(name(1), name(2), text="there"))
            await nothing(box)
            it.pool.add_relay("ws://1")
            assert await take(box, 1) == await take(other, 1) == ["there"]
            it.pool.remove_relay("ws://0")
            await trio.sleep(5)
            it.relays[0].publish(mail(name(1), text="gone"))
            await nothing(box)
            assert {url for url, _ in box.seats} == {"ws://1"}


async def test_it_runs_again_after_it_has_ended(autojump_clock):
    async with office(run=False) as it, it.mailroom.box(wanted(1)) as box:
        for n in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(it.mailroom.run)
                it.relays[0].publish(mail(name(1), text=f"live {n}", at=trio.current_time()))
                texts = await take(box, 1 if n == 0 else 2)
                assert texts == [*([] if n == 0 else [f"between {n - 1}"]), f"live {n}"]
                await box.caught_up()
                nursery.cancel_scope.cancel()
            await trio.sleep(6 * 3_600)
            assert it.taps[0].open == set()
            it.relays[0].publish(mail(name(1), text=f"between {n}", at=trio.current_time()))
            await trio.sleep(6 * 3_600)


# --- caught up ------------------------------------------------------------------------------------------------


async def test_caught_up_waits_for_every_relay_that_is_connected(autojump_clock):
    faults = [Faults(), Faults(delay=(3.0, 3.0)), Faults(refuse_connections=True)]
    agent = SecretKey(b"\x01" * 32)
    async with office(3, faults=faults) as it:
        await it.pool.connected(2, 20)
        it.relays[1].publish(state(agent, "of the slow one"))
        async with it.mailroom.box(wanted(agent.public.hex)) as box:
            began = trio.current_time()
            with trio.fail_after(20):
                await box.caught_up()
            assert 5 < trio.current_time() - began < 10
            assert await take(box, 1, 0.1) == ["of the slow one"]
            with trio.fail_after(0.1):
                await box.caught_up()


async def test_caught_up_waits_for_the_first_relay(autojump_clock):
    async with office(faults=[Faults(refuse_connections=True)]) as it, it.mailroom.box(wanted(1)) as box:
        with trio.move_on_after(60) as patience:
            await box.caught_up()
        assert patience.cancelled_caught
        it.relays[0].faults.refuse_connections = False
        with trio.fail_after(100):
            await box.caught_up()


async def test_caught_up_does_not_wait_for_relays_that_refuse_or_leave(autojump_clock):
    async with office(3, faults=[Faults(), Faults(closed="restricted: no"), Faults()]) as it:
        await it.pool.connected(3)
        it.relays[2].faults.silent = True
        async with it.mailroom.box(wanted(1)) as box:
            with trio.move_on_after(10) as patience:
                await box.caught_up()
            assert patience.cancelled_caught
            it.relays[2].faults.refuse_connections = True
            it.relays[2].disconnect_all()
            with trio.fail_after(1):
                await box.caught_up()


async def test_what_a_relay_refused_is_still_wanted_from_it(autojump_clock):
    """That it has refused does not mean that it has nothing."""
    async with office(faults=[Faults(closed="error: not now")]) as it, it.mailroom.box(wanted(1)) as box:
        await box.caught_up()
        await trio.sleep(2 * 3_600)
        it.relays[0].publish(mail(name(1), text="old", at=1_000))
        async with it.mailroom.box(wanted(2, since=2 * 3_600)):
            await trio.sleep(5)
            it.relays[0].faults.closed = ""
            assert await take(box, 1, 1_000) == ["old"]


# --- boxes that are full --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "seconds"), [(490, 1), (1_500, 800)], ids=["of one second", "of many"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "live"])
async def test_nothing_is_lost_to_a_full_box_and_nobody_else_waits(autojump_clock, count, seconds, stored):
    """A relay tells no more of one second than of everything: 500 events."""
    events = [mail(name(1), text=str(n), at=-(n % seconds)) for n in range(count)]
    async with office(limits=Limits(max_limit=500)) as it, AsyncExitStack() as stack:
        if stored:
            for event in events:
                it.relays[0].publish(event)
        slow = await stack.enter_async_context(it.mailroom.box(wanted(1, wraps=False)))
        quick = await stack.enter_async_context(it.mailroom.box(wanted(2)))
        await quick.caught_up()
        if not stored:
            for event in events:
                it.relays[0].publish(event)
        await trio.sleep(60)
        assert len(slow._queue) == m.HELD
        it.relays[0].publish(mail(name(2), text="on time", at=10))
        assert await take(quick, 1, 1) == ["on time"]
        before = it.reqs
        got = set()
        with trio.fail_after(1_000):
            while len(got) < count:
                got.add((await anext(slow)).event.content)
        await nothing(slow)
        # One more question, about this agent alone, and its pages.
        assert it.reqs - before < 10
        assert not slow._gapped
        assert slow.since > EPOCH


async def test_a_box_is_bounded_by_its_size_too(autojump_clock):
    long = "x" * 100_000
    async with office() as it, it.mailroom.box(wanted(1)) as box:
        await box.caught_up()
        for n in range(30):
            it.relays[0].publish(mail(name(1), text=long + str(n)))
        await trio.sleep(10)
        assert len(box._queue) == m.HELD_CHARACTERS // 100_000 + 1
        assert len(set(await take(box, 30))) == 30


async def test_a_reader_that_stops_half_way_holds_no_place_for_ever(autojump_clock):
    """More slow boxes than may ask at one time, and none of them reads; then one does."""
    count = m.REFILLS + 3
    async with office() as it, AsyncExitStack() as stack:
        everybody = [name(n) for n in range(count)]
        for n in range(500):
            it.relays[0].publish(mail(*everybody, text=str(n), at=-n))
        boxes = [await stack.enter_async_context(it.mailroom.box(wanted(n))) for n in range(count)]
        await trio.sleep(10)
        for box in boxes:
            # Enough to be asked for more, not enough for it to fit.
            await take(box, m.HELD // 2 + 10)
        await trio.sleep(200)
        got = set()
        with trio.fail_after(1_000):
            while len(got) < 500 - m.HELD // 2 - 10:
                got.add((await anext(boxes[-1])).event.content)


async def test_what_did_not_fit_is_asked_of_relays_that_answer_first(autojump_clock):
    async with office(2) as it:
        for n in range(400):
            it.relays[0].publish(mail(name(1), text=f"0 {n}"))
            it.relays[1].publish(mail(name(1), text=f"1 {n}"))
        async with it.mailroom.box(wanted(1)) as box:
            await box.caught_up()
            it.relays[0].faults.refuse_connections = True
            it.relays[0].disconnect_all()
            got = set()
            with trio.move_on_after(300):
                while True:
                    got.add((await anext(box)).event.content)
            assert {f"1 {n}" for n in range(400)} <= got
            assert len(got) < 800
            it.relays[0].faults.refuse_connections = False
            with trio.fail_after(1_000):
                while len(got) < 800:
                    got.add((await anext(box)).event.content)


async def test_a_dead_relay_keeps_nobody_from_asking_another(autojump_clock):
    async with office(2) as it, AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(it.mailroom.box(wanted(n, relays=("ws://0",)))) for n in range(m.REFILLS)
        ]
        quick = await stack.enter_async_context(it.mailroom.box(wanted(99, relays=("ws://1",))))
        for n in range(m.HELD + 50):
            it.relays[0].publish(mail(*(name(n) for n in range(m.REFILLS)), text=str(n)))
            it.relays[1].publish(mail(name(99), text=str(n)))
        await trio.sleep(10)
        it.relays[0].faults.refuse_connections = True
        it.relays[0].disconnect_all()
        await trio.sleep(1)
        for box in slow:
            await take(box, m.HELD)
        await trio.sleep(1)
        assert len(set(await take(quick, m.HELD + 50, 10))) == m.HELD + 50


async def test_what_did_not_fit_is_not_asked_for_once_a_box_is_closed(autojump_clock):
    async with office() as it:
        for n in range(m.HELD + 50):
            it.relays[0].publish(mail(name(1), text=str(n)))
        async with it.mailroom.box(wanted(1)) as box:
            await box.caught_up()
            it.relays[0].faults.silent = True
            await take(box, m.HELD)
            await trio.sleep(1)
            assert box._refill is not None
        await trio.sleep(5)
        assert box._refill is None


async def test_a_relay_that_falls_silent_while_it_answers(autojump_clock):
    async with office() as it:
        for n in range(600):
            it.relays[0].publish(mail(name(1), text=str(n), at=-n))
        async with it.mailroom.box(wanted(1)) as box:
            await box.caught_up()
            it.relays[0].faults.silent = True
            got = set()
            with trio.move_on_after(200):
                while True:
                    got.add((await anext(box)).event.content)
            assert len(got) == m.HELD
            it.relays[0].faults.silent = False
            it.relays[0].disconnect_all()
            with trio.fail_after(1_000):
                while len(got) < 600:
                    got.add((await anext(box)).event.content)


async def test_a_relay_that_was_removed_is_not_asked_for_what_it_had(autojump_clock):
    async with office(2) as it:
        for n in range(400):
            it.relays[0].publish(mail(name(1), text=str(n)))
        async with it.mailroom.box(wanted(1)) as box:
            await box.caught_up()
            it.relays[0].faults.silent = True
            await take(box, m.HELD)
            await trio.sleep(1)
            it.pool.remove_relay("ws://0")
            await trio.sleep(1_000)
            assert box._refill is None
            assert not box._gapped


# --- any schedule ---------------------------------------------------------------------------------------------

AGENTS = 6
URLS = ("ws://0", "ws://1")
SECRETS = [SecretKey(bytes([n + 1]) * 32) for n in range(AGENTS)]
steps = st.one_of(
    st.tuples(st.just("join"), st.integers(0, AGENTS - 1), st.sampled_from([None, URLS[:1], URLS[1:], URLS])),
    st.tuples(st.just("leave"), st.integers(0, AGENTS - 1)),
    st.tuples(
        st.just("publish"),
        st.lists(st.integers(0, AGENTS - 1), max_size=4),
        st.sampled_from([1, 4, 1059, 7, 39201]),
        st.integers(0, 1),
        st.sampled_from([0, 600, 2 * DAY]),
    ),
    st.tuples(st.just("flood"), st.integers(0, AGENTS - 1), st.integers(0, 1)),
    st.tuples(st.just("disconnect"), st.integers(0, 1)),
    st.tuples(st.just("outage"), st.integers(0, 1)),
    st.tuples(st.just("mend"), st.integers(0, 1)),
    st.tuples(st.just("restart")),
)
schedules = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 2.0, 700.0, 4_000.0]), steps), min_size=1, max_size=30)


@attrs.define
class Agent:
    """What one agent has, over all its boxes, and what it should have."""

    since: int = EPOCH
    scope: trio.CancelScope | None = None
    relays: tuple = ()
    got: set = attrs.field(factory=set)
    owed: set = attrs.field(factory=set)
    allowed: set = attrs.field(factory=set)


async def survive(schedule, seed, pause):
    """Each agent remembers ``box.since``, and nothing else, while it is away."""
    rng = random.Random(seed)
    agents = [Agent() for _ in range(AGENTS)]
    kinds = {n: (1, 4) if n % 2 else (1, 7) for n in range(AGENTS)}
    names = [secret.public.hex for secret in SECRETS]
    published = 0
    async with office(2, seed=seed, faults=[Faults(delay=(0.0, 0.2)) for _ in URLS], run=False) as it:
        mailing = trio.CancelScope()

        async def run_mailroom(task_status):
            with mailing:
                await it.mailroom.run(task_status=task_status)

        async def listen(n, relays, scope):
            agent = agents[n]
            with scope:
                choice = Wanted(names[n], kinds[n], n % 3 != 0, relays, agent.since)
                async with it.mailroom.box(choice) as box:
                    try:
                        async for received in box:
                            agent.got.add(received.event.id)
                            assert received.relay in (relays or URLS)
                            if rng.random() < pause:
                                await trio.sleep(rng.uniform(0, 3))
                    finally:
                        agent.since = box.since

        def publish(index, event):
            it.relays[index].publish(event)
            for n, agent in enumerate(agents):
                mine = event.pubkey == names[n] if event.kind == 39201 else names[n] in [tag[1] for tag in event.tags]
                if mine and event.kind in (*kinds[n], 39201, *((1059,) if n % 3 else ())):
                    agent.allowed.add(event.id)
                    # A state may be replaced before it is read; and who never listened there is owed nothing.
                    if event.kind != 39201 and URLS[index] in agent.relays:
                        agent.owed.add(event.id)

        await it.nursery.start(run_mailroom)
        for wait, step in schedule:
            await trio.sleep(wait)
            at = it.clock.now() - EPOCH
            match step:
                case ("join", n, relays):
                    agent = agents[n]
                    if agent.scope is None:
                        if agent.relays and set(agent.relays) != set(relays or URLS):
                            continue
                        agent.scope, agent.relays = trio.CancelScope(), relays or URLS
                        it.nursery.start_soon(listen, n, relays, agent.scope)
                case ("leave", n):
                    if agents[n].scope is not None:
                        agents[n].scope.cancel()
                        agents[n].scope = None
                        await trio.testing.wait_all_tasks_blocked()
                case ("publish", whom, kind, index, age):
                    published += 1
                    if kind == 39201:
                        for n in whom[:1]:
                            publish(index, state(SECRETS[n], str(published), at=at))
                    else:
                        age = age if kind == 1059 else min(age, 600)
                        publish(index, mail(*(names[n] for n in whom), kind=kind, text=str(published), at=at - age))
                case ("flood", n, index):
                    for _ in range(m.HELD + 30):
                        published += 1
                        publish(index, mail(names[n], text=str(published), at=at - published % 3))
                case ("disconnect", index):
                    it.relays[index].disconnect_all()
                case ("outage", index):
                    it.relays[index].faults.refuse_connections = True
                    it.relays[index].disconnect_all()
                case ("mend", index):
                    it.relays[index].faults.refuse_connections = False
                case ("restart",):
                    mailing.cancel()
                    mailing = trio.CancelScope()
                    await trio.sleep(rng.choice([0.1, 0.1, 3_000]))
                    await it.nursery.start(run_mailroom)
        for relay in it.relays:
            relay.faults.refuse_connections = False
        for n, agent in enumerate(agents):
            if agent.scope is None and agent.relays:
                agent.scope = trio.CancelScope()
                it.nursery.start_soon(listen, n, agent.relays, agent.scope)
        for _ in range(500):
            if all(agent.owed <= agent.got for agent in agents):
                break
            await trio.sleep(10)
        for agent in agents:
            assert agent.owed <= agent.got
            assert agent.got <= agent.allowed
        it.nursery.cancel_scope.cancel()


@settings(max_examples=40)
@given(schedules, st.integers(0, 2**16), st.sampled_from([0.0, 0.05]))
def test_everybody_gets_all_that_is_theirs_and_nothing_else(schedule, seed, pause):
    trio.run(survive, schedule, seed, pause, clock=trio.testing.MockClock(autojump_threshold=0))
