"""Looking at one relay: each thing that can be wrong with it is told, and none takes longer than it may."""

from __future__ import annotations

import contextlib
import functools
import random

import pytest
import trio

from protocols.nip01 import Event
from protocols.nip11 import Limitation, RelayInformation
from pylon.clock import SystemClock, VirtualClock
from pylon.errors import RelayError
from pylon.relays.information import Answered, fetch_information, http_address
from pylon.relays.probe import Auth, by_http, probe, probe_all
from pylon.relays.relay import open_relay
from pylon.relays.server import serve_relay
from pylon.relays.websocket import connect
from pylon.testing.relay import Faults, open_memory_relay
from tests.pylon.relays.scripted import ALICE, EPOCH, URL, Script, clock, settle
from tests.pylon.relays.test_websocket import RELAYS, running

KNOWN = Answered(RelayInformation(name="Test", limitation=Limitation(max_limit=7)), -3.0)


async def says(url, seconds):
    await trio.lowlevel.checkpoint()
    return KNOWN


async def look(relay, *, signer=ALICE, ask=says, url="ws://a", seconds=10.0):
    began = trio.current_time()
    found = await probe(url, connect=relay.connect, ask=ask, clock=clock(), signer=signer, seconds=seconds)
    assert trio.current_time() - began <= seconds + 0.1
    return found


@pytest.fixture
async def relay():
    async with open_memory_relay(
        "ws://a", clock=VirtualClock(float(EPOCH)), faults=Faults(), random=random.Random(1)
    ) as relay:
        yield relay


async def test_a_relay_that_works(autojump_clock, relay):
    relay.faults.delay = (0.05, 0.05)
    found = await look(relay)
    assert found.ok
    assert found.connect.seconds == pytest.approx(0.05)
    assert found.latency == pytest.approx(0.1)
    assert found.read.seconds == pytest.approx(0.1, abs=0.02)
    assert found.write.seconds == pytest.approx(0.1, abs=0.02)
    assert (found.auth, found.information.name, found.clock_ahead) == (Auth.NOT_ASKED, "Test", -3.0)
    assert relay.events() == [], "nothing is kept"
    await settle()
    assert relay.connections == 0


@pytest.mark.parametrize(
    ("faults", "part", "word"),
    [
        ({"refuse": "blocked: not on the white list"}, "write", "white list"),
        ({"closed": "restricted: pay first"}, "read", "pay first"),
        ({"refuse_connections": True}, "connect", "refused"),
        ({"lose_ok": 1.0}, "write", "did not say"),
        ({"drop_after": 1}, "write", "closed"),
    ],
)
async def test_what_is_wrong_is_told_for_itself(autojump_clock, relay, faults, part, word):
    for name, value in faults.items():
        setattr(relay.faults, name, value)
    found = await look(relay)
    assert not found.ok
    step = getattr(found, part)
    assert not step.ok
    assert word in step.detail
    others = {"connect", "read", "write"} - {part}
    if part != "connect":
        assert all(getattr(found, other) is None or getattr(found, other).ok for other in others)


async def test_silence_ends_in_time(autojump_clock, relay):
    relay.faults.silent = True
    found = await look(relay, seconds=4.0)
    assert found.connect.ok
    assert found.latency is None
    assert not found.read.ok, "what is connected and could not be tried is not told of as if it could"
    found = await look(relay)
    assert not found.read.ok
    assert "in time" in found.read.detail


async def test_a_connection_that_hangs_ends_in_time(autojump_clock):
    found = await look(Script("hang"), url=URL)
    assert (found.connect.ok, found.connect.detail) == (False, "no connection in time")
    assert found.information is KNOWN.information


async def test_a_fault_of_ours_is_the_reason_and_no_crash(autojump_clock):
    found = await look(Script("bug"), url=URL)
    assert "ZeroDivisionError" in found.connect.detail


async def test_who_asks_is_answered_with_the_key_that_was_given(autojump_clock, relay):
    relay.faults.auth = True
    found = await look(relay)
    assert found.ok
    assert found.auth is Auth.ACCEPTED
    found = await look(relay, signer=None)
    assert (found.ok, found.auth) == (False, Auth.NO_KEY)
    assert "auth-required" in found.read.detail


async def test_an_answer_that_is_refused(autojump_clock):
    script = Script()

    async def play():
        while not script.links or not script.link.reqs():
            await settle()
        link = script.link
        link.say("CLOSED", link.reqs()[0][1], "auth-required: who are you?")
        link.say("AUTH", "challenge")
        while not link.of("AUTH"):
            await settle()
        signed = Event.parse(link.of("AUTH")[0][1])
        signed.check()
        assert (signed.tag("challenge"), signed.tag("relay"), signed.pubkey) == ("challenge", URL, ALICE.public.hex)
        link.say("OK", signed.id, False, "restricted: nobody knows you")
        while not link.of("EVENT"):
            await settle()
        link.say("OK", link.of("EVENT")[0][1]["id"], False, "restricted: nobody knows you")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        found = await look(script, url=URL)
    assert (found.auth, found.read.ok, found.write.ok) == (Auth.REFUSED, False, False)


async def test_chatter_and_nonsense_are_passed_over(autojump_clock):
    script = Script()

    async def play():
        while not script.links or not script.link.reqs():
            await settle()
        link = script.link
        for frame in (
            "not json",
            '["EOSE"]',
            '["NOTICE","hello"]',
            '["EOSE","other"]',
            '["OK","aa",true,""]',
            "[]" * 9,
        ):
            link.say(frame)
        link.say("EOSE", link.reqs()[0][1])
        while not link.of("EVENT"):
            await settle()
        event = link.of("EVENT")[0][1]
        assert 20_000 <= event["kind"] < 30_000
        link.say("OK", "00" * 32, False, "another's")
        link.say("OK", event["id"], True, "")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        found = await look(script, url=URL)
    assert found.ok


async def test_without_a_document(autojump_clock, relay):
    async def silent(url, seconds):
        await trio.sleep(seconds)
        raise RelayError(f"{url}: no NIP-11 document within {seconds:g} s")

    found = await look(relay, ask=silent)
    assert found.ok
    assert found.information is None
    assert found.information_error == "no NIP-11 document within 5 s"


async def test_all_are_looked_at_at_once_and_in_their_order(autojump_clock):
    script = Script("hang")
    urls = [f"ws://{number}" for number in range(12)]
    began = trio.current_time()
    found = await probe_all(urls, connect=script.connect, ask=says, clock=clock(), signer={}, seconds=3.0)
    assert trio.current_time() - began <= 3.1
    assert [each.url for each in found] == urls


async def test_a_real_relay_over_sockets():
    async with open_relay(clock=SystemClock()) as core, trio.open_nursery() as nursery:
        ((host, port),) = await nursery.start(serve_relay, core, "127.0.0.1", 0)
        found = await probe(
            f"ws://{host}:{port}", connect=connect, ask=by_http(SystemClock()), clock=SystemClock(), signer=None
        )
        nursery.cancel_scope.cancel()
    assert found.ok
    assert found.information.limitation.max_subscriptions == core.limits.max_subscriptions
    assert abs(found.clock_ahead) < 2


@pytest.mark.parametrize(("relay", "auth"), [("nostr-sdk", Auth.NOT_ASKED), ("nostr-sdk with NIP-42", Auth.ACCEPTED)])
async def test_the_relay_of_another_library(relay, auth):
    with trio.fail_after(20):
        async with running(*RELAYS[relay]) as url:
            wall = SystemClock()
            found = await probe(url, connect=connect, ask=by_http(wall), clock=wall, signer=ALICE)
    assert found.ok
    assert found.auth is auth


async def answering(stream, reply: bytes):
    await stream.receive_some(4096)
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(reply)
    await stream.aclose()


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnot json", "not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "JSON object"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 300_000, "too long"),
        (b"SSH-2.0-OpenSSH\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
async def test_documents_that_are_none(reply, word):
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            functools.partial(trio.serve_tcp, lambda stream: answering(stream, reply), 0, host="127.0.0.1")
        )
        port = listener.socket.getsockname()[1]
        with pytest.raises(RelayError, match=word):
            await fetch_information(f"ws://127.0.0.1:{port}", clock=SystemClock(), timeout=5)
        nursery.cancel_scope.cancel()


async def silent(stream):
    await trio.sleep_forever()


async def test_a_document_that_never_comes():
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        with pytest.raises(RelayError, match=r"within 0\.2 s"):
            await fetch_information(
                f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", clock=SystemClock(), timeout=0.2
            )
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("date", "ahead"), [("Fri, 15 Jan 2027 09:00:00 GMT", 3_600.5), ("yesterday", None), ("", None)]
)
async def test_the_relay_s_clock(date, ahead):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: {date}\r\n\r\n{{}}".encode()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            functools.partial(trio.serve_tcp, lambda stream: answering(stream, head), 0, host="127.0.0.1")
        )
        answered = await fetch_information(
            f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", clock=clock_at(1_800_000_000.0), timeout=5
        )
        nursery.cancel_scope.cancel()
    assert answered.ahead == (None if ahead is None else pytest.approx(ahead, abs=2))


def clock_at(moment):
    class Standing(SystemClock):
        def now(self):
            return moment

    return Standing()


def test_addresses():
    assert http_address("wss://relay.example/path") == "https://relay.example/path"
    assert http_address("ws://127.0.0.1:1") == "http://127.0.0.1:1"
