from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from unittest import mock

import attrs
import orjson
import pytest
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, EventInvalid, Filter, sign_event
from pylon.clock import VirtualClock
from pylon.errors import RelayError, StoreError
from pylon.relays.eventstore import Outcome
from pylon.relays.fanout import SubscriptionIndex
from pylon.relays.relay import Limits, open_relay
from pylon.relays.transport import TransportClosed
from pylon.testing.relay import Faults, network, open_memory_relay

ALICE, BOB = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)
EPOCH = 1_800_000_000
URL = "ws://relay.test"


def note(secret=ALICE, *, kind=1, content="hello", tags=(), at=0) -> Event:
    return sign_event(secret, kind=kind, content=content, tags=tags, created_at=EPOCH + at)


def wire(event: Event) -> dict:
    """The event as it is read from JSON."""
    return orjson.loads(event.to_json())


class Client:
    """A client that speaks plain frames, so that the relay's own reading of them is not trusted."""

    def __init__(self, transport) -> None:
        self.transport = transport

    async def send(self, *frame) -> None:
        await self.transport.send(orjson.dumps(frame).decode())

    async def next(self, seconds: float = 5):
        with trio.fail_after(seconds):
            return orjson.loads(await self.transport.receive())

    async def quiet(self, seconds: float = 1) -> bool:
        with trio.move_on_after(seconds):
            return not await self.transport.receive()
        return True

    async def publish(self, event: Event | dict):
        await self.send("EVENT", event if isinstance(event, dict) else wire(event))
        while (frame := await self.next())[0] != "OK":
            pass
        return frame

    async def subscribe(self, subscription_id: str, *filters: dict) -> list[dict]:
        await self.send("REQ", subscription_id, *filters)
        found = []
        while (frame := await self.next())[0] != "EOSE":
            assert frame[:2] == ["EVENT", subscription_id], frame
            found.append(frame[2])
        assert frame == ["EOSE", subscription_id]
        return found


async def until_closed(client: Client) -> None:
    while True:
        await client.transport.receive()


@asynccontextmanager
async def relay_and_clients(count: int = 1, **options):
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(open_memory_relay(URL, clock=VirtualClock(EPOCH), **options))
        clients = [Client(await stack.enter_async_context(relay.connect(URL))) for _ in range(count)]
        yield relay, *clients


async def test_a_published_event_is_acknowledged_found_and_passed_on(autojump_clock) -> None:
    async with relay_and_clients(2) as (relay, alice, bob):
        before, after = note(content="before", at=-5), note(content="after \U0001f600")
        assert await alice.publish(before) == ["OK", before.id, True, ""]
        assert await bob.subscribe("s", {"kinds": [1]}) == [wire(before)]
        assert await alice.publish(after) == ["OK", after.id, True, ""]
        assert await bob.next() == ["EVENT", "s", wire(after)]
        assert relay.events() == [after, before]
        assert relay.events(Filter(ids=[before.id])) == [before]


async def test_publishers_get_their_own_events_and_only_what_they_asked_for(autojump_clock) -> None:
    async with relay_and_clients() as (_, client):
        await client.subscribe("mine", {"authors": [ALICE.public.hex]})
        await client.subscribe("jobs", {"kinds": [5050]}, {"#p": [BOB.public.hex]})
        await client.send("EVENT", note(kind=5050, tags=[("p", BOB.public.hex)]).to_dict())
        frames = [await client.next() for _ in range(3)]
        assert frames[0][0] == "OK"
        assert sorted(frame[1] for frame in frames[1:]) == ["jobs", "mine"]
        await client.send("CLOSE", "mine")
        assert (await client.publish(note()))[2]
        assert await client.quiet()


async def test_a_subscription_under_a_used_id_replaces_the_first(autojump_clock) -> None:
    async with relay_and_clients() as (_, client):
        await client.subscribe("s", {"kinds": [1]})
        await client.subscribe("s", {"kinds": [7]})
        await client.publish(note())
        assert await client.quiet()
        await client.send("EVENT", note(kind=7).to_dict())
        assert [(await client.next())[0] for _ in range(2)] == ["OK", "EVENT"]


async def test_a_forged_event_is_refused_and_seen_by_nobody(autojump_clock) -> None:
    async with relay_and_clients(2) as (relay, alice, bob):
        await bob.subscribe("s", {})
        good = note()
        changed = wire(good) | {"content": "changed"}
        other = note(content="other")
        for forged in (
            changed,
            wire(good) | {"sig": other.sig},
            wire(good) | {"sig": "00" * 64},
            wire(good) | {"pubkey": BOB.public.hex},
            wire(good) | {"pubkey": "ff" * 32},
        ):
            answer = await alice.publish(forged)
            assert answer[:3] == ["OK", good.id, False]
            assert answer[3].startswith("invalid: ")
        assert relay.events() == []
        assert await bob.quiet()


async def test_a_known_id_does_not_vouch_for_another_signature(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        good = note()
        await client.publish(good)
        assert await client.publish(good) == ["OK", good.id, True, "duplicate: this event is stored already"]
        forged = await client.publish(wire(good) | {"sig": note(content="other").sig})
        assert forged[2] is False
        assert forged[3].startswith("invalid: ")
        assert relay.core.counters.accepted == 2


async def test_a_duplicate_costs_no_signature_check(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients() as (_, client):
        good = note()
        await client.publish(good)
        checked = []
        monkeypatch.setattr(Event, "check", lambda event: checked.append(event.id))
        assert (await client.publish(good))[2]
        assert checked == []


@pytest.mark.parametrize(
    ("event", "answer"),
    [
        (note(at=901), "invalid: created_at is too far in the future"),
        (note(tags=[("expiration", str(EPOCH - 1))]), "invalid: the event has expired"),
    ],
)
async def test_refusals_say_why(autojump_clock, event, answer) -> None:
    async with relay_and_clients() as (_, client):
        assert await client.publish(event) == ["OK", event.id, False, answer]


async def test_an_event_slightly_in_the_future_is_welcome(autojump_clock) -> None:
    async with relay_and_clients() as (_, client):
        assert (await client.publish(note(at=899)))[2]


async def test_replaceable_addressable_ephemeral_and_deleted(autojump_clock) -> None:
    async with relay_and_clients(2) as (relay, alice, bob):
        old, new = note(kind=0, content="old", at=-9), note(kind=0, content="new", at=-5)
        assert (await alice.publish(new))[2]
        assert await alice.publish(old) == ["OK", old.id, False, "duplicate: a newer version is stored"]
        here = note(kind=31990, tags=[("d", "1")], at=-9)
        there = note(kind=31990, tags=[("d", "2")], at=-9)
        for event in (here, there, newer := note(kind=31990, content="b", tags=[("d", "1")], at=-5)):
            assert (await alice.publish(event))[2]
        assert {event.id for event in relay.events()} == {new.id, there.id, newer.id}
        await bob.subscribe("s", {"kinds": [20001]})
        blink = note(kind=20001)
        assert (await alice.publish(blink))[2]
        assert (await bob.next())[2] == wire(blink)
        assert relay.events(Filter(ids=[blink.id])) == []
        assert (await alice.publish(note(kind=5, tags=[("e", there.id)])))[2]
        assert await alice.publish(there) == ["OK", there.id, False, "blocked: its author has deleted this event"]
        assert relay.events(Filter(ids=[there.id])) == []


async def test_an_event_disappears_when_it_expires(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        await client.publish(note(tags=[("expiration", str(EPOCH + 10))]))
        assert len(relay.events()) == 1
        await trio.sleep(11)
        assert await client.subscribe("s", {}) == []
        await trio.sleep(100)
        await client.publish(note(content="the next one"))
        assert len(relay.core.store) == 1


async def test_limits(autojump_clock) -> None:
    limits = Limits(max_subscriptions=2, max_filters=2, max_limit=3, max_filter_values=5, max_message_length=2_000)
    async with relay_and_clients(limits=limits) as (_, client):
        for n in range(5):
            await client.publish(note(content=str(n), at=-n))
        assert len(await client.subscribe("a", {"limit": 100})) == 3
        assert [event["content"] for event in await client.subscribe("a", {"limit": 2})] == ["0", "1"]
        assert await client.subscribe("a", {"limit": 0}) == []
        await client.send("REQ", "b", {}, {}, {})
        assert await client.next() == ["CLOSED", "b", "blocked: at most 2 filters in one subscription"]
        await client.send("REQ", "b", {"kinds": list(range(6))})
        assert await client.next() == ["CLOSED", "b", "blocked: at most 5 values in one filter"]
        await client.subscribe("b", {"kinds": [7]})
        await client.send("REQ", "c", {})
        assert await client.next() == ["CLOSED", "c", "blocked: at most 2 subscriptions on one connection"]
        await client.subscribe("b", {"kinds": [8]})
        await client.send("CLOSE", "b")
        await client.subscribe("c", {"kinds": [9]})
        big = note(content="x" * 2_000)
        answer = await client.publish(big)
        assert answer[:3] == ["OK", big.id, False]
        assert answer[3].startswith("invalid: ")
        assert await client.publish(note(content="fine")) != []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "{}",
        "[]",
        "[1]",
        '["EVENT"]',
        '["EVENT", 3]',
        '["EVENT", {}]',
        '["REQ"]',
        '["REQ", 3, {}]',
        '["REQ", "s", 3]',
        '["REQ", "s", {"kinds": "all"}]',
        '["CLOSE"]',
        '["CLOSE", {}]',
        '["SURPRISE", 1]',
        '["COUNT", "s", {}]',
        "[" * 10_000,
        '["REQ", "s", {"since": 1e400}]',
        '["REQ", "' + "s" * 65 + '", {}]',
        '["REQ", "", {}]',
        '["EVENT", {"content": "\\ud800"}]',
    ],
)
async def test_malformed_frames_are_answered_and_harm_nobody(autojump_clock, text) -> None:
    async with relay_and_clients() as (_, client):
        await client.transport.send(text)
        assert (await client.next())[0] in ("NOTICE", "CLOSED", "OK")
        assert (await client.publish(note()))[2]


async def test_an_event_is_acknowledged_only_after_its_commit(autojump_clock, monkeypatch, tmp_path) -> None:
    async with relay_and_clients(2, path=tmp_path / "relay.db") as (relay, alice, bob):
        await bob.subscribe("s", {})
        order = []
        commit = relay.core.store.commit

        def watched() -> None:
            order.append("commit" if relay.core.store._db.in_transaction else "nothing")
            commit()

        monkeypatch.setattr(relay.core.store, "commit", watched)
        await alice.publish(note())
        assert order == ["commit"]


async def test_events_that_arrive_together_share_a_commit(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients(4) as (relay, *clients):
        commits = 0
        commit = relay.core.store.commit

        def counted() -> None:
            nonlocal commits
            commits += relay.core.store._db.in_transaction
            commit()

        monkeypatch.setattr(relay.core.store, "commit", counted)
        for n in range(20):
            for m, client in enumerate(clients):
                await client.send("EVENT", note(content=f"{n} {m}").to_dict())
        for client in clients:
            for _ in range(20):
                assert (await client.next())[2]
        assert 1 <= commits <= 20


async def test_a_failed_commit_is_told_to_every_publisher_of_the_group(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients(2) as (relay, alice, bob):
        await bob.subscribe("s", {})
        commit = relay.core.store.commit

        def fail() -> None:
            relay.core.store.rollback()
            raise StoreError("the disk is full")

        monkeypatch.setattr(relay.core.store, "commit", fail)
        event = note()
        assert await alice.publish(event) == ["OK", event.id, False, "error: the event could not be stored"]
        monkeypatch.setattr(relay.core.store, "commit", commit)
        assert await bob.quiet()
        assert relay.events() == []
        assert (await alice.publish(event))[2:] == [True, ""]


async def test_a_failed_write_or_read_is_told_too(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients() as (relay, client):

        def fail(*_) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(relay.core.store, "add", fail)
            assert (await client.publish(note()))[2:] == [False, "error: the event could not be stored"]
        with monkeypatch.context() as patch:
            patch.setattr(relay.core.store, "query", fail)
            await client.send("REQ", "s", {})
            assert await client.next() == ["CLOSED", "s", "error: the events could not be read"]
        assert (await client.publish(note()))[2]


async def test_no_event_is_missed_or_doubled_around_eose(autojump_clock) -> None:
    async with relay_and_clients(3) as (_, alice, bob, carol):
        events = [note(content=str(n), at=-n) for n in range(60)]
        got = []

        async def publish() -> None:
            for event in events:
                await alice.send("EVENT", wire(event))

        async def subscribe(client) -> None:
            for _ in range(7):
                await trio.lowlevel.checkpoint()
            await client.send("REQ", "s", {"kinds": [1]})
            with trio.move_on_after(5):
                while True:
                    frame = await client.next(10)
                    if frame[0] == "EVENT":
                        got.append(frame[2]["id"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(subscribe, bob)
            nursery.start_soon(subscribe, carol)
        assert sorted(got) == sorted([event.id for event in events] * 2)


async def test_a_client_that_does_not_read_is_cut_off_and_delays_nobody(autojump_clock) -> None:
    limits = Limits(max_buffered=500_000, ping_interval=1e6)
    async with relay_and_clients(3, limits=limits) as (relay, alice, reader, sleeper):
        await reader.subscribe("s", {"kinds": [20001]})
        await sleeper.subscribe("s", {"kinds": [20001]})
        relay_counters = relay.core.counters
        for n in range(1_300):  # more than a connection holds by itself
            event = note(kind=20001, content=str(n) + "x" * 3_000)
            await alice.publish(event)
            assert (await reader.next())[2]["id"] == event.id
        assert relay_counters.cut_off == 1
        assert relay_counters.clients == 2
        with pytest.raises(TransportClosed), trio.fail_after(5):
            await until_closed(sleeper)


async def test_a_long_answer_goes_at_the_pace_of_its_reader(autojump_clock) -> None:
    limits = Limits(max_buffered=100_000)
    async with relay_and_clients(limits=limits) as (relay, client):
        for n in range(300):
            await client.publish(note(content=str(n) + "x" * 3_000))
        assert len(await client.subscribe("s", {})) == 300
        assert relay.core.counters.cut_off == 0


async def test_a_silent_client_is_cut_by_its_missing_pong(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        await client.subscribe("s", {})
        await trio.sleep(300)
        assert relay.connections == 1
        relay.faults.silent = True
        await trio.sleep(51)
        assert relay.connections == 0
        assert len(relay.core._subscriptions) == 0


async def test_leaving_ends_subscriptions(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        await client.subscribe("s", {})
        await client.transport.aclose()
        await trio.sleep(1)
        assert (relay.connections, len(relay.core._subscriptions), relay.core.counters.clients) == (0, 0, 0)


async def test_a_fault_in_one_clients_service_ends_that_client_alone(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients(2) as (relay, alice, bob):
        with monkeypatch.context() as patch:
            patch.setattr(relay.core.store, "query", lambda *_: 1 / 0)
            await alice.send("REQ", "s", {})
            with pytest.raises(TransportClosed):
                await alice.next()
        assert (await bob.publish(note()))[2]


async def test_cancelling_ends_everything(autojump_clock, tmp_path) -> None:
    with trio.move_on_after(5) as scope:
        async with relay_and_clients(3, path=tmp_path / "relay.db") as (_, *clients):
            for client in clients:
                await client.subscribe("s", {})
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_events_survive_the_relay(autojump_clock, tmp_path) -> None:
    event = note()
    async with relay_and_clients(path=tmp_path / "relay.db") as (_, client):
        await client.publish(event)
    async with relay_and_clients(path=tmp_path / "relay.db") as (relay, client):
        assert relay.events() == [event]


async def test_publishing_within_the_process_is_checked_alike(autojump_clock, monkeypatch) -> None:
    async with relay_and_clients() as (relay, client):
        await client.subscribe("s", {})
        assert relay.publish(note()) is Outcome.STORED
        assert relay.publish(note()) is Outcome.DUPLICATE
        assert (await client.next())[0] == "EVENT"
        assert await client.quiet()
        with pytest.raises(EventInvalid):
            relay.publish(attrs.evolve(note(), content="forged"))
        for method in ("add", "commit"):
            with monkeypatch.context() as patch:
                patch.setattr(relay.core.store, method, mock.Mock(side_effect=StoreError("the disk is full")))
                with pytest.raises(StoreError):
                    relay.publish(note(content=method))


# The index of subscriptions


def test_an_event_reaches_exactly_the_subscriptions_that_match() -> None:
    random = Random(5)
    secrets = [SecretKey(bytes([n]) * 32) for n in range(1, 4)]
    authors = [secret.public.hex for secret in secrets]
    events = [
        sign_event(
            random.choice(secrets),
            kind=random.choice([1, 7, 5050]),
            tags=[(random.choice("ept"), random.choice("xyz")) for _ in range(random.randrange(3))],
            created_at=random.randrange(10),
        )
        for _ in range(40)
    ]

    def draw() -> Filter:
        return Filter(
            ids=[random.choice(events).id] if random.random() < 0.2 else None,
            authors=random.sample(authors, 2) if random.random() < 0.3 else None,
            kinds=random.sample([1, 7, 5050], 2) if random.random() < 0.4 else None,
            tags={random.choice("ept"): random.sample("xyz", 2)} if random.random() < 0.4 else {},
            since=random.randrange(10) if random.random() < 0.2 else None,
        )

    index: SubscriptionIndex[int] = SubscriptionIndex()
    model: dict[int, list[Filter]] = {}
    for _ in range(400):
        key = random.randrange(30)
        if random.random() < 0.7:
            model[key] = [draw() for _ in range(random.randrange(1, 3))]
            index.add(key, model[key])
        else:
            model.pop(key, None)
            index.remove(key)
        event = random.choice(events)
        wanting = list(index.wanting(event))
        assert sorted(wanting) == sorted(k for k, fs in model.items() if any(f.matches(event) for f in fs))
    for key in list(model):
        index.remove(key)
    assert index._places == {}


# The faults of a test relay


async def test_fault_lost_oks(autojump_clock) -> None:
    async with relay_and_clients(faults=Faults(lose_ok=1.0)) as (relay, client):
        await client.send("EVENT", note().to_dict())
        assert await client.quiet(10)
        assert len(relay.events()) == 1


async def test_fault_refusals_of_some_kinds(autojump_clock) -> None:
    faults = Faults(refuse="rate-limited: slow down", refuse_kinds=frozenset({7}))
    async with relay_and_clients(faults=faults) as (_, client):
        assert (await client.publish(note(kind=7)))[2:] == [False, "rate-limited: slow down"]
        assert (await client.publish(note()))[2]
        faults.refuse_kinds = frozenset()
        assert not (await client.publish(note(content="2")))[2]


async def test_fault_closed_and_notice(autojump_clock) -> None:
    async with relay_and_clients(faults=Faults(closed="error: no", notice="hm")) as (relay, client):
        await client.send("REQ", "s", {})
        assert [await client.next(), await client.next()] == [["NOTICE", "hm"], ["CLOSED", "s", "error: no"]]
        relay.faults.closed = relay.faults.notice = ""
        await client.subscribe("s", {})
        assert relay.close_subscriptions("error: idle") == 1
        assert await client.next() == ["CLOSED", "s", "error: idle"]
        await client.publish(note())
        assert await client.quiet()
        await relay.notice("bye")
        assert await client.next() == ["NOTICE", "bye"]


async def test_fault_drop_after_a_number_of_frames(autojump_clock) -> None:
    async with relay_and_clients(faults=Faults(drop_after=3)) as (relay, client):
        for n in range(3):
            await client.publish(note(content=str(n)))
        with pytest.raises(TransportClosed):
            await client.next()
        with pytest.raises(TransportClosed):
            await client.send("CLOSE", "s")
        async with relay.connect(URL) as again:
            assert (await Client(again).publish(note()))[2]


async def test_fault_duplicates_and_disorder(autojump_clock) -> None:
    faults = Faults(duplicate=1.0)
    async with relay_and_clients(faults=faults) as (_, client):
        for n in range(20):
            await client.publish(note(content=str(n), at=-n))
        assert len(await client.subscribe("s", {})) == 40
        faults.duplicate, faults.reorder = 0.0, 1.0
        await client.send("REQ", "t", {})
        frames = [await client.next() for _ in range(21)]
        assert frames[0] == ["EOSE", "t"]
        stamps = [frame[2]["created_at"] for frame in frames[1:]]
        assert stamps != sorted(stamps, reverse=True)


async def test_fault_delay_is_drawn_from_the_seed(autojump_clock) -> None:
    async def times(seed: int) -> list[float]:
        found = []
        async with relay_and_clients(faults=Faults(delay=(0.1, 2.0)), random=Random(seed)) as (_, client):
            start = trio.current_time()
            for n in range(5):
                await client.publish(note(content=str(n)))
                found.append(round(trio.current_time() - start, 6))
            await client.transport.ping()
        return found

    assert await times(1) == await times(1) != await times(2)


async def test_fault_half_open(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        relay.faults.silent = True
        await client.send("EVENT", note().to_dict())
        assert await client.quiet(10)
        with pytest.raises(trio.TooSlowError), trio.fail_after(5):
            await client.transport.ping()
        assert relay.events() == []


async def test_fault_refused_connections_and_wrong_addresses(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        relay.faults.refuse_connections = True
        relay.disconnect_all()
        with pytest.raises(TransportClosed):
            await client.next()
        connect = network(relay)
        for url in (URL, "ws://elsewhere"):
            with pytest.raises(RelayError):
                async with connect(url):
                    pass
        relay.faults.refuse_connections = False
        async with connect(URL + "/") as transport:
            await transport.ping()


async def test_fault_authentication_first(autojump_clock) -> None:
    async with relay_and_clients(faults=Faults(auth=True)) as (_, client):
        kind, challenge = await client.next()
        assert kind == "AUTH"
        assert (await client.publish(note()))[3].startswith("auth-required: ")
        await client.send("REQ", "s", {})
        assert (await client.next())[2].startswith("auth-required: ")
        wrong = note(kind=22242, tags=[("challenge", "other")])
        await client.send("AUTH", wire(wrong))
        assert (await client.next())[:3] == ["OK", wrong.id, False]
        right = note(kind=22242, tags=[("relay", URL), ("challenge", challenge)])
        await client.send("AUTH", wire(right))
        assert (await client.next())[:3] == ["OK", right.id, True]
        assert (await client.publish(note()))[2]


async def test_raw_frames_from_a_hostile_relay(autojump_clock) -> None:
    async with relay_and_clients() as (relay, client):
        await relay.send_raw('["EVENT",')
        with trio.fail_after(5):
            assert await client.transport.receive() == '["EVENT",'


async def test_a_relay_needs_its_file(autojump_clock, tmp_path) -> None:
    with pytest.raises(StoreError):
        async with open_relay(tmp_path / "no" / "file", clock=VirtualClock()):
            pass
