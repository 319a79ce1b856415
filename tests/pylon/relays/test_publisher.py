"""What stands in the outbox reaches every relay, whatever happens to the answers."""

from __future__ import annotations

import random
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import orjson
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.nip01 import Filter
from pylon import crashpoints
from pylon.errors import StoreError
from pylon.relays import publisher as rules
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.store import outbox
from pylon.store.database import open_store
from pylon.store.outbox import DeliveryState
from pylon.store.vault import Vault
from pylon.testing.relay import Faults, network, open_memory_relay
from tests.pylon.relays.scripted import ALICE, EPOCH, URL, Script, clock, note, settle, until

ACCEPTED, REFUSED, PENDING = DeliveryState.ACCEPTED, DeliveryState.REFUSED, DeliveryState.PENDING
EVERYTHING = Filter()


class Shop:
    """A store, a pool and a publisher."""

    def __init__(self, store, pool) -> None:
        self.store = store
        self.pool = pool

    async def add(self, *events, effect="", relays=None, **more):
        urls = relays or self.pool.urls
        for event in events:
            await self.store.write(
                lambda tx, event=event: outbox.add(tx, event, urls, effect, "s1", at=self.store.clock.now(), **more)
            )

    def state(self, event, relay=None):
        return outbox.progress(self.store, event.id)[relay or self.pool.urls[0]].state

    def attempts(self, event):
        return outbox.progress(self.store, event.id)[self.pool.urls[0]].attempts

    async def all_done(self, seconds=5000.0):
        with trio.move_on_after(seconds):
            await until(lambda: outbox.pending_count(self.store) == 0, 0.5)
        assert outbox.pending_count(self.store) == 0


@asynccontextmanager
async def shop(path, connect, urls, *, signer=None, seed=1):
    vault = Vault(bytes(range(32)))
    wall = clock()
    async with open_store(path / "pylon.db", vault=vault, clock=wall, executor="inline", durable=False) as store:
        pool = RelayPool(urls, connect=connect, clock=wall, rng=random.Random(seed), signer=signer)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            nursery.start_soon(Publisher(pool, store, wall, random.Random(seed)).run)
            await settle(0.1)
            yield Shop(store, pool)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory(count=1, seed=1, faults=()):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_memory_relay(
                    f"ws://{index}",
                    clock=clock(),
                    random=random.Random(seed + index),
                    faults=faults[index] if index < len(faults) else None,
                )
            )
            for index in range(count)
        ]


# --- one relay that does as it is told ------------------------------------------------------------------------


async def test_an_event_goes_out_byte_for_byte_until_it_is_acknowledged(autojump_clock, tmp_path):
    script, event = Script(), note("ünï \u2028 code", tags=[["a", "\x7f"], []])
    async with shop(tmp_path, script.connect, [URL]) as home:
        raw = []
        await home.add(event)
        for _ in range(3):
            await until(lambda: script.link.of("EVENT"))
            raw.append(orjson.dumps(script.link.of("EVENT")[0]))
            count = len(script.links)
            script.link.drop()
            await until(lambda count=count: len(script.links) > count)
        await until(lambda: script.link.of("EVENT"))
        raw.append(orjson.dumps(script.link.of("EVENT")[0]))
        assert raw == [orjson.dumps(["EVENT", orjson.loads(event.to_json())])] * 4
        script.link.say("OK", event.id, True, "")
        await settle(0.1)
        assert home.state(event) is ACCEPTED
        await trio.sleep(3600)
        assert len(script.link.of("EVENT")) == 1


async def test_a_lost_answer_is_asked_for_again_ever_slower(autojump_clock, tmp_path):
    script, event = Script(), note()
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(event)
        await trio.sleep(3600)
        # 10 to 60 s for each answer, and 5, 10, 20 ... 900 s between.
        count = len(script.link.of("EVENT"))
        assert 7 <= count <= 11
        await until(lambda: len(script.link.of("EVENT")) > count)
        script.link.say("OK", event.id, False, "duplicate: have it")
        await settle(0.1)
        assert home.state(event) is ACCEPTED


async def test_a_relay_that_is_always_slow_is_waited_for_in_the_end(autojump_clock, tmp_path):
    script, event = Script(), note()
    async with shop(tmp_path, script.connect, [URL]) as home, trio.open_nursery() as nursery:

        async def answer():
            await trio.sleep(12)
            script.link.say("OK", event.id, True, "")

        await home.add(event)
        for count in (1, 2):
            await until(lambda count=count: len(script.link.of("EVENT")) >= count)
            nursery.start_soon(answer)
        await trio.sleep(30)
        assert home.state(event) is ACCEPTED


@pytest.mark.parametrize("words", ["rate-limited: slow down", "auth-required: who are you", "error: disk"])
async def test_a_refusal_that_may_pass_is_retried(autojump_clock, tmp_path, words):
    script, event = Script(), note()
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(event)
        for count in (1, 2, 3):
            await until(lambda count=count: len(script.link.of("EVENT")) == count)
            script.link.say("OK", event.id, False, words)
            await settle(0.1)
            assert home.state(event) is PENDING
        await until(lambda: len(script.link.of("EVENT")) == 4)
        script.link.say("OK", event.id, True, "")
        await settle(0.1)
        assert home.state(event) is ACCEPTED


@pytest.mark.parametrize("words", ["blocked: go away", "invalid: no", "pow: 30", "", "no colon"])
async def test_any_other_refusal_is_final(autojump_clock, tmp_path, words):
    script, event = Script(), note()
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(event)
        await settle(0.1)
        script.link.say("OK", event.id, False, words)
        await trio.sleep(10_000)
        assert home.state(event) is REFUSED
        assert len(script.link.of("EVENT")) == 1


async def test_many_events_are_in_flight_but_not_all(autojump_clock, tmp_path):
    script, events = Script(), [note(str(n)) for n in range(100)]
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(*events)
        await settle(0.1)
        assert [frame[1]["content"] for frame in script.link.of("EVENT")] == [str(n) for n in range(rules.IN_FLIGHT)]
        for event in reversed(events[: rules.IN_FLIGHT]):
            script.link.say("OK", event.id, True, "")
        await settle(0.1)
        assert len(script.link.of("EVENT")) == 2 * rules.IN_FLIGHT
        assert {home.state(event) for event in events[: rules.IN_FLIGHT]} == {ACCEPTED}


async def test_events_without_an_answer_do_not_hold_up_what_is_due(autojump_clock, tmp_path):
    script, mute, slow = Script(), note("mute"), note("slow")
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(slow)
        await settle(0.1)
        script.link.say("OK", slow.id, False, "rate-limited: later")
        await settle(0.1)
        await home.add(mute)
        at = trio.current_time()
        await until(lambda: len(script.link.of("EVENT")) == 3)
        assert trio.current_time() - at < 7, "due after 5 s, though another is in flight for 10"


async def test_an_event_that_cannot_be_sent_stops_no_other(autojump_clock, tmp_path):
    script, huge, small = Script(), note("x" * 300_000), note("small")
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(huge, small)
        await settle(0.1)
        assert home.state(huge) is REFUSED
        assert [frame[1]["content"] for frame in script.link.of("EVENT")] == ["small"]


async def test_an_event_past_its_end_is_not_sent(autojump_clock, tmp_path):
    script, event = Script("refuse"), note()
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(event, expires_at=EPOCH + 50.0)
        await trio.sleep(60)
        script.mood = "accept"
        await trio.sleep(300)
        assert script.link.of("EVENT") == []


async def test_crash_points_are_passed_before_and_after_the_effect(autojump_clock, tmp_path):
    script, event, silent = Script(), note(), note("no effect")
    passed = []
    async with shop(tmp_path, script.connect, [URL]) as home:

        def hook(name):
            passed.append((name, len(script.link.of("EVENT")), home.state(event)))

        crashpoints.install_hook(hook)
        try:
            await home.add(event, effect="sale.publish_result")
            await settle(0.1)
            script.link.say("OK", event.id, True, "")
            await settle(0.1)
            await home.add(silent)
            await settle(0.1)
        finally:
            crashpoints.install_hook(None)
    assert passed == [("sale.publish_result.before", 0, PENDING), ("sale.publish_result.after", 1, PENDING)]


async def test_a_crash_before_the_record_sends_the_same_again(autojump_clock, tmp_path):
    class Died(BaseException):
        pass

    def hook(name):
        if name.endswith(".after"):
            raise Died

    script, event = Script(), note()
    crashpoints.install_hook(hook)
    try:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
            async with shop(tmp_path, script.connect, [URL]) as home:
                await home.add(event, effect="sale.publish_result")
                await settle(0.1)
                script.link.say("OK", event.id, True, "")
                await trio.sleep(10)
        assert caught.group_contains(Died)
    finally:
        crashpoints.install_hook(None)
    assert script.open == 0
    async with shop(tmp_path, script.connect, [URL]) as home:
        await settle(0.1)
        assert script.links[0].of("EVENT") == script.link.of("EVENT")
        assert len(script.links) == 2
        assert len(script.link.of("EVENT")) == 1
        script.link.say("OK", event.id, True, "duplicate: have it")
        await settle(0.1)
        assert home.state(event) is ACCEPTED


# --- a store with faults --------------------------------------------------------------------------------------


class Full:
    """Makes a store's disk full, or its file locked, and as it was again."""

    def __init__(self, store, *, reads=False) -> None:
        self.store, self.tries = store, 0
        self.write, self.read = store.write, store.read
        store.write = self._write
        if reads:
            store.read = self._read

    async def _write(self, fn):
        await trio.lowlevel.checkpoint()
        self.tries += 1
        raise StoreError("the disk is full")

    def _read(self, *args):
        self.tries += 1
        raise StoreError("another process holds the database")

    def mend(self):
        self.store.write, self.store.read = self.write, self.read


@pytest.mark.parametrize("answer", ["accept", "say nothing", "refuse"])
async def test_a_full_disk_is_waited_for_and_nothing_is_sent_twice(autojump_clock, tmp_path, caplog, answer):
    script, event, later = Script(), note(), note("later")
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(event)
        await settle(0.1)
        disk = Full(home.store)
        if answer != "say nothing":
            script.link.say("OK", event.id, answer == "accept", "blocked: no" if answer == "refuse" else "")
        await trio.sleep(600)
        assert home.state(event) is PENDING
        assert len(script.link.of("EVENT")) == 1, "its answer is known, and waits for the disk"
        assert 10 <= disk.tries <= 30
        disk.mend()
        await home.add(later)
        await until(lambda: len(script.link.of("EVENT")) == 2 + (answer == "say nothing"))
        await trio.sleep(70)
        assert home.state(event) is {"accept": ACCEPTED, "say nothing": PENDING, "refuse": REFUSED}[answer]
    told = [record.getMessage() for record in caplog.records if record.name == rules.__name__]
    assert len([text for text in told if "the disk is full" in text]) == 1
    assert len([text for text in told if "is back" in text]) == 1


async def test_a_full_disk_bounds_what_is_sent(autojump_clock, tmp_path):
    async with memory(1) as (relay,):
        async with shop(tmp_path, relay.connect, [relay.url]) as home:
            events = [note(str(n)) for n in range(300)]
            await home.store.write(lambda tx: [outbox.add(tx, event, home.pool.urls, at=0.0) for event in events])
            disk = Full(home.store)
            await trio.sleep(600)
            assert len(relay.events(EVERYTHING)) == rules.UNRECORDED
            disk.mend()
            await home.all_done(200)


async def test_a_store_that_cannot_be_read_is_asked_again(autojump_clock, tmp_path, caplog):
    async with memory(1) as (relay,):
        async with shop(tmp_path, relay.connect, [relay.url]) as home:
            event = note()
            disk = Full(home.store, reads=True)
            relay.disconnect_all()
            await trio.sleep(600)
            assert disk.tries > 10
            disk.mend()
            await home.add(event)
            await trio.sleep(70)
            assert home.state(event) is ACCEPTED
    told = [record.getMessage() for record in caplog.records if record.name == rules.__name__]
    assert len([text for text in told if "holds the database" in text]) == 1


async def test_an_answer_that_cannot_be_written_holds_up_no_other(autojump_clock, tmp_path, monkeypatch):
    script, cursed, blessed = Script(), note("cursed"), [note(f"blessed {n}") for n in range(5)]
    acknowledge = outbox.acknowledge

    def break_one(tx, event_id, *rest):
        if event_id == cursed.id:
            raise StoreError("a damaged page")
        return acknowledge(tx, event_id, *rest)

    monkeypatch.setattr(outbox, "acknowledge", break_one)
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(cursed, *blessed)
        await settle(0.1)
        for event in (cursed, *blessed):
            script.link.say("OK", event.id, True, "")
        await trio.sleep(60)
        assert {home.state(event) for event in blessed} == {ACCEPTED}
        assert home.state(cursed) is PENDING


async def test_answers_that_come_together_share_one_commit(autojump_clock, tmp_path):
    script, events = Script(), [note(str(n)) for n in range(20)]
    async with shop(tmp_path, script.connect, [URL]) as home:
        await home.add(*events)
        await settle(0.1)
        writes = home.store.writes
        for event in events:
            script.link.say("OK", event.id, True, "")
        await settle(0.1)
        assert {home.state(event) for event in events} == {ACCEPTED}
        assert home.store.writes - writes == 1


async def test_the_outbox_is_asked_only_while_there_is_room(autojump_clock, tmp_path, monkeypatch):
    script, events, asked = Script(), [note(str(n)) for n in range(100)], []
    due = outbox.due

    def counted(*args, **more):
        found = due(*args, **more)
        asked.append(len(found))
        return found

    monkeypatch.setattr(outbox, "due", counted)
    async with shop(tmp_path, script.connect, [URL]) as home:
        asked.clear()
        await home.store.write(lambda tx: [outbox.add(tx, event, home.pool.urls, at=0.0) for event in events])
        await trio.sleep(8)
        assert asked == [rules.IN_FLIGHT]


async def test_a_damaged_row_is_given_up_and_stops_no_other(autojump_clock, tmp_path):
    script, damaged, other, good = Script(), note("damaged"), note("other"), note("good")
    async with shop(tmp_path, script.connect, [URL]) as home:

        def job(tx):
            for event in (damaged, other, good):
                outbox.add(tx, event, [URL], at=0.0)
            tx.execute("UPDATE outbox SET event = substr(event, 1, 50) WHERE event_id = ?", (damaged.id,))
            tx.execute("UPDATE outbox SET event = ? WHERE event_id = ?", (note("not it").to_json(), other.id))

        await home.store.write(job)
        await settle(0.1)
        assert [home.state(event) for event in (damaged, other, good)] == [REFUSED, REFUSED, PENDING]
        assert [frame[1]["content"] for frame in script.link.of("EVENT")] == ["good"]


# --- relays with faults ---------------------------------------------------------------------------------------


async def test_a_relay_that_never_answers_does_not_stop_the_others(autojump_clock, tmp_path):
    faults = [Faults(silent=True), Faults(), Faults(refuse_connections=True)]
    async with memory(3, faults=faults) as relays:
        urls = [relay.url for relay in relays]
        async with shop(tmp_path, network(*relays), urls) as home:
            events = [note(str(n)) for n in range(50)]
            await home.add(*events)
            await trio.sleep(2)
            assert {home.state(event, "ws://1") for event in events} == {ACCEPTED}
            assert {home.state(event, "ws://0") for event in events} == {PENDING}
            relays[2].faults.refuse_connections = False
            relays[0].faults.silent = False
            await home.all_done()
            assert [len(relay.events(EVERYTHING)) for relay in relays] == [50] * 3


async def test_a_relay_that_is_back_gets_at_once_what_waits_for_it(autojump_clock, tmp_path):
    async with memory(faults=[Faults(lose_ok=1.0)]) as (relay,):
        async with shop(tmp_path, relay.connect, [relay.url]) as home:
            event = note()
            await home.add(event)
            await until(lambda: home.attempts(event) >= 6)
            relay.faults.lose_ok = 0.0
            relay.disconnect_all()
            await trio.sleep(10)
            assert home.state(event) is ACCEPTED


async def test_a_relay_that_is_added_later_is_served(autojump_clock, tmp_path):
    async with memory(2) as relays:
        async with shop(tmp_path, network(*relays), ["ws://0"]) as home:
            event = note()
            await home.add(event, relays=["ws://0", "ws://1"])
            await trio.sleep(5)
            assert home.state(event, "ws://1") is PENDING
            home.pool.add_relay("ws://1")
            await trio.sleep(5)
            assert home.state(event, "ws://1") is ACCEPTED
            home.pool.remove_relay("ws://1")
            second = note("second")
            await home.add(second, relays=["ws://1"])
            await trio.sleep(5)
            home.pool.add_relay("ws://1")
            await trio.sleep(5)
            assert home.state(second, "ws://1") is ACCEPTED


async def test_a_relay_that_wants_to_know_us_is_answered(autojump_clock, tmp_path):
    async with memory(faults=[Faults(auth=True)]) as (relay,):
        async with shop(tmp_path, relay.connect, [relay.url], signer=ALICE) as home:
            event = note()
            await home.add(event)
            await trio.sleep(1)
            assert home.state(event) is ACCEPTED


# --- any schedule of faults -----------------------------------------------------------------------------------


@st.composite
def schedules(draw):
    what = st.sampled_from(["publish", "publish", "disconnect", "refuse", "silent", "lose", "limit", "mend"])
    return draw(st.lists(st.tuples(st.floats(0, 30), what, st.integers(0, 1)), min_size=1, max_size=20))


def mend(relay):
    if relay.faults.silent:
        relay.disconnect_all()
    relay.faults.silent = relay.faults.refuse_connections = False
    relay.faults.refuse = ""
    relay.faults.lose_ok = 0.2


async def survive(path, schedule, seed):
    faults = [Faults(delay=(0.0, 0.9), lose_ok=0.2, duplicate=0.2, reorder=0.2) for _ in range(2)]
    async with memory(2, seed, faults) as relays:
        async with shop(path, network(*relays), ["ws://0", "ws://1"], seed=seed) as home:
            events = []
            inbox = set()

            async def consume(notes):
                async for received in notes:
                    inbox.add(received.event.id)

            async with home.pool.subscribe([Filter(kinds=[1])]) as notes, trio.open_nursery() as nursery:
                nursery.start_soon(consume, notes)
                for wait, what, index in schedule:
                    await trio.sleep(wait)
                    relay = relays[index]
                    match what:
                        case "publish":
                            events.append(note(str(len(events)), at=int(trio.current_time())))
                            await home.add(events[-1])
                        case "disconnect":
                            relay.disconnect_all()
                        case "refuse":
                            relay.faults.refuse_connections = True
                            relay.disconnect_all()
                        case "silent":
                            relay.faults.silent = True
                        case "lose":
                            relay.faults.lose_ok = 1.0
                        case "limit":
                            relay.faults.refuse = "rate-limited: slow down"
                        case "mend":
                            mend(relay)
                for relay in relays:
                    mend(relay)
                await home.all_done()
                await trio.sleep(100)
                nursery.cancel_scope.cancel()
            for event in events:
                assert {status.state for status in outbox.progress(home.store, event.id).values()} == {ACCEPTED}
            wanted = {event.id for event in events}
            assert [{event.id for event in relay.events(EVERYTHING)} for relay in relays] == [wanted, wanted]
            assert inbox == wanted


@settings(max_examples=25, deadline=None)
@given(schedules(), st.integers(0, 2**16))
def test_every_event_is_accepted_everywhere_whatever_happens(schedule, seed):
    with tempfile.TemporaryDirectory() as path:
        trio.run(survive, Path(path), schedule, seed, clock=trio.testing.MockClock(autojump_threshold=0))
