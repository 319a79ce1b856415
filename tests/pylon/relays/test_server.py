"""The embedded relay over real sockets, met by clients that Pylon did not write."""

from __future__ import annotations

import asyncio
import datetime
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import nostr_sdk
import orjson
import pytest
import trio
from trio_websocket import ConnectionClosed, connect_websocket_url, open_websocket_url

from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from pylon import __version__
from pylon.clock import SystemClock
from pylon.errors import RelayError
from pylon.relays.relay import Limits, open_relay
from pylon.relays.server import PortTaken, serve_relay

ALICE = SecretKey(b"\x01" * 32)
NIP11 = {"Accept": "application/nostr+json"}


def now() -> int:
    return int(SystemClock().now())


def note(content="hello", *, kind=1, tags=(), at=0) -> Event:
    return sign_event(ALICE, kind=kind, content=content, tags=tags, created_at=now() + at)


@asynccontextmanager
async def served(limits: Limits | None = None):
    """A relay on a free port; yields (relay, host:port)."""
    async with open_relay(clock=SystemClock(), limits=limits) as relay, trio.open_nursery() as nursery:
        ((host, port),) = await nursery.start(serve_relay, relay, "127.0.0.1", 0)
        yield relay, f"{host}:{port}"
        nursery.cancel_scope.cancel()


def wire(event: Event) -> dict:
    """The event as it is read from JSON."""
    return orjson.loads(event.to_json())


class Client:
    def __init__(self, websocket) -> None:
        self.websocket = websocket

    async def send(self, *frame) -> None:
        await self.websocket.send_message(orjson.dumps(frame).decode())

    async def next(self):
        with trio.fail_after(5):
            return orjson.loads(await self.websocket.get_message())

    async def publish(self, event: Event):
        await self.send("EVENT", wire(event))
        while (frame := await self.next())[0] != "OK":
            pass
        return frame

    async def query(self, *filters):
        await self.send("REQ", "q", *filters)
        found = []
        while (frame := await self.next())[0] == "EVENT":
            found.append(frame[2])
        assert frame == ["EOSE", "q"]
        await self.send("CLOSE", "q")
        return found


async def close_socket(websocket) -> None:
    """trio-websocket leaves a client's socket open when the server has closed first."""
    await websocket._stream.aclose()


@asynccontextmanager
async def served_clients(count: int, limits: Limits | None = None):
    async with AsyncExitStack() as stack:
        relay, address = await stack.enter_async_context(served(limits))
        clients = [
            Client(await stack.enter_async_context(open_websocket_url(f"ws://{address}/"))) for _ in range(count)
        ]
        yield relay, *clients


async def test_publish_query_and_live_over_a_socket() -> None:
    async with served_clients(2) as (_, alice, bob):
        first, second = note("first", tags=[("t", "x")], at=-5), note('\U0001f600 \n"\\ \u2028')
        assert await alice.publish(first) == ["OK", first.id, True, ""]
        await bob.send("REQ", "live", {"kinds": [1], "since": now() - 10})
        assert await bob.next() == ["EVENT", "live", wire(first)]
        assert await bob.next() == ["EOSE", "live"]
        await alice.publish(second)
        assert await bob.next() == ["EVENT", "live", wire(second)]
        assert await alice.query({"#t": ["x"]}) == [wire(first)]
        assert await alice.query({"ids": [second.id]}, {"ids": [first.id]}) == [wire(second), wire(first)]


async def test_many_events_at_once_in_both_directions() -> None:
    async with served_clients(2) as (_, alice, bob):
        events = [note(str(n), at=-n) for n in range(200)]
        await bob.send("REQ", "live", {"kinds": [1]})
        assert (await bob.next())[0] == "EOSE"

        async def publish() -> None:
            for event in events:
                await alice.send("EVENT", wire(event))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            assert {(await alice.next())[1] for _ in events} == {event.id for event in events}
            assert {(await bob.next())[2]["id"] for _ in events} == {event.id for event in events}
        assert [event["content"] for event in await alice.query({"limit": 200})] == [str(n) for n in range(200)]


async def test_large_events_pass_and_larger_ones_are_refused_politely() -> None:
    async with served_clients(2) as (_, alice, bob):
        big = note("x" * 60_000)
        assert (await alice.publish(big))[2]
        assert await bob.query({"ids": [big.id]}) == [wire(big)]
        bigger = note("x" * 300_000)
        answer = await alice.publish(bigger)
        assert answer[:3] == ["OK", bigger.id, False]
        assert answer[3].startswith("invalid: ")
        assert (await alice.publish(note()))[2]


async def test_a_message_beyond_all_bounds_closes_that_connection_only() -> None:
    async with served_clients(2) as (_, alice, bob):
        await alice.send("EVENT", note("x" * 3_000_000).to_dict())
        with pytest.raises(ConnectionClosed) as caught:
            await alice.next()
        assert caught.value.reason.code == 1009
        await close_socket(alice.websocket)
        assert (await bob.publish(note()))[2]


async def test_the_information_document_names_pylon_while_websockets_run() -> None:
    async with served(Limits(max_limit=123)) as (_, address), open_websocket_url(f"ws://{address}") as websocket:
        async with httpx.AsyncClient() as http:
            for headers in (NIP11, {}):
                answer = await http.get(f"http://{address}/", headers=headers)
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "application/nostr+json"
                assert answer.headers["access-control-allow-origin"] == "*"
                document = answer.json()
                assert (document["software"], document["version"]) == ("pylon", __version__)
                assert {1, 9, 11, 40} <= set(document["supported_nips"])
                assert document["limitation"]["max_limit"] == 123
                assert document["limitation"]["created_at_upper_limit"] == 900
            head = await http.head(f"http://{address}/", headers=NIP11)
            assert (head.status_code, head.content) == (200, b"")
            preflight = await http.options(f"http://{address}/")
            assert preflight.headers["access-control-allow-methods"].startswith("GET")
            refused = await http.post(f"http://{address}/", content=b"x" * 100_000)
            assert refused.status_code == 405
            assert refused.headers["allow"].startswith("GET")
        assert (await Client(websocket).publish(note()))[2]


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000, b"HTTP/1.1 4"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
        (b"", b""),
    ],
)
async def test_strange_requests_are_answered_and_leave_nothing_behind(sent, answer) -> None:
    async with served() as (relay, address):
        received = b""
        async with await dial(address) as stream:
            await stream.send_all(sent)
            await stream.send_eof()
            with trio.fail_after(5):
                while data := await stream.receive_some():
                    received += data
        assert received.startswith(answer)
        assert relay.counters.clients == 0
        async with open_websocket_url(f"ws://{address}") as websocket:
            assert (await Client(websocket).publish(note()))[2]


async def dial(address: str) -> trio.SocketStream:
    host, port = address.split(":")
    return await trio.open_tcp_stream(host, int(port))


@pytest.mark.parametrize(
    "frames",
    [
        b"\x88\x80\0\0\0\0\x89\x80\0\0\0\0",  # close, then a ping
        b"\x89\x80\0\0\0\0" * 100,
        b"\x81\x02{}",  # not masked
        b"\x8f\x80\0\0\0\0",  # no such opcode
        b"\x81\x82\0\0\0\0\xff\xff",  # no UTF-8
        b"\x82\x82\0\0\0\0\xff\xff",  # bytes
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # 9 exabytes
        b"\x01\x81\0\0\0\0[" * 2,  # a message within a message
        b"\x81",
    ],
)
async def test_strange_frames_end_at_most_their_own_connection(frames) -> None:
    async with served() as (relay, address):
        async with await dial(address) as stream:
            await stream.send_all(handshake(address))
            while not (await stream.receive_some()).endswith(b"\r\n\r\n"):
                pass
            await stream.send_all(frames)
            await stream.send_eof()
            with trio.fail_after(5):
                while await stream.receive_some():
                    pass
        async with open_websocket_url(f"ws://{address}") as websocket:
            assert (await Client(websocket).publish(note()))[2]
            assert relay.counters.clients == 1


def handshake(address: str) -> bytes:
    return (
        f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def test_a_handshake_and_a_frame_byte_by_byte() -> None:
    async with served() as (_, address), await dial(address) as stream:
        received = b""
        request = b'["REQ","s",{}]'
        with trio.fail_after(5):
            for byte in handshake(address):
                await stream.send_all(bytes([byte]))
            while not received.endswith(b"\r\n\r\n"):
                received += await stream.receive_some()
            for byte in bytes([0x81, 0x80 | len(request), 0, 0, 0, 0]) + request:
                await stream.send_all(bytes([byte]))
            while not received.endswith(b'["EOSE","s"]'):
                received += await stream.receive_some()
        assert received.startswith(b"HTTP/1.1 101")


async def test_a_client_that_answers_no_ping_is_cut() -> None:
    limits = Limits(ping_interval=0.1, ping_timeout=0.2)
    async with served(limits) as (_, address):
        async with (
            open_websocket_url(f"ws://{address}") as polite,
            await dial(address) as silent,
        ):
            await silent.send_all(handshake(address))
            with trio.fail_after(5):
                while await silent.receive_some():
                    pass
            await trio.sleep(0.3)
            assert (await Client(polite).publish(note()))[2]


async def test_packets_are_not_held_back() -> None:
    """Without TCP_NODELAY a reply of several frames waits 40 ms for the client's delayed acknowledgement."""
    async with served_clients(1) as (_, client):
        for n in range(20):
            await client.publish(note(str(n), at=-n))
        started = trio.current_time()
        for _ in range(20):
            assert len(await client.query({"kinds": [1], "limit": 20})) == 20
        assert trio.current_time() - started < 20 * 0.040
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with await trio.open_tcp_stream(*listener.socket.getsockname()), await listener.accept() as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await listener.aclose()


async def test_a_taken_port_says_so() -> None:
    async with served() as (relay, address):
        port = int(address.split(":")[1])
        with pytest.raises(PortTaken, match=address) as caught:
            await serve_relay(relay, "127.0.0.1", port)
        assert "[relay] bind" in caught.value.hint
        with pytest.raises(RelayError):
            await serve_relay(relay, "203.0.113.1", 1)


async def test_cancelling_closes_sockets_soon() -> None:
    async with open_relay(clock=SystemClock()) as relay, trio.open_nursery() as client_nursery:
        async with trio.open_nursery() as nursery:
            ((host, port),) = await nursery.start(serve_relay, relay, "127.0.0.1", 0)
            websocket = await connect_websocket_url(client_nursery, f"ws://{host}:{port}")
            await Client(websocket).query({})
            nursery.cancel_scope.cancel()
        with pytest.raises(ConnectionClosed):
            await Client(websocket).next()
        assert relay.counters.clients == 0
        await close_socket(websocket)


# rust-nostr's client


async def run_asyncio(work, *arguments):
    return await trio.to_thread.run_sync(lambda: asyncio.run(asyncio.wait_for(work(*arguments), 30)))


async def independent_client(url: str) -> dict:
    """Publish, subscribe and fetch by nostr-sdk; nothing of Pylon is involved."""
    nostr = nostr_sdk
    keys = nostr.Keys.generate()
    client = nostr.ClientBuilder().build()
    await client.add_relay(nostr.RelayUrl.parse(url))
    await client.connect()
    results: dict = {}

    def kind(number: int):
        return nostr.Filter().kinds([nostr.Kind(number)])

    async def fetch(*filters):
        found = await client.fetch_events(nostr.ReqTarget.auto(list(filters)), timeout=datetime.timedelta(seconds=5))
        return list(found)

    async def publish(number: int, content: str, tags=(), at=0):
        builder = nostr.EventBuilder(nostr.Kind(number), content).tags([nostr.Tag.parse(list(tag)) for tag in tags])
        stamp = nostr.Timestamp.from_secs(nostr.Timestamp.now().as_secs() + at)
        event = builder.custom_created_at(stamp).finalize(keys)
        output = await client.send_event(event)
        return event, bool(output.success)

    onlooker = nostr.ClientBuilder().build()
    await onlooker.add_relay(nostr.RelayUrl.parse(url))
    await onlooker.connect()
    stream = onlooker.notifications()
    await onlooker.subscribe(nostr.ReqTarget.auto([kind(5050)]))
    while "EndOfStoredEvents" not in str(await asyncio.wait_for(stream.next(), 5)):
        pass
    job, results["job accepted"] = await publish(5050, "job é \n", [["i", "prompt", "text"], ["t", "x"]])
    notification = await asyncio.wait_for(stream.next(), 5)
    results["live"] = notification.is_new_event() and notification.event.as_json() == job.as_json()
    await onlooker.shutdown()
    results["fetched"] = [event.as_json() == job.as_json() for event in await fetch(kind(5050))]
    results["valid"] = [event.verify() for event in await fetch(kind(5050))]

    await publish(0, '{"name":"old"}', at=-10)
    await publish(0, '{"name":"new"}', at=-5)
    results["replaceable"] = [event.content() for event in await fetch(kind(0))]
    for d, content, at in (("1", "a", -10), ("1", "b", -5), ("2", "c", -5)):
        await publish(31990, content, [["d", d]], at)
    results["addressable"] = sorted(event.content() for event in await fetch(kind(31990)))
    await publish(20001, "blink")
    results["ephemeral"] = len(await fetch(kind(20001)))
    _, results["expired accepted"] = await publish(1, "late", [["expiration", "1000"]])
    doomed, _ = await publish(1, "doomed")
    await publish(5, "", [["e", doomed.id().to_hex()]])
    results["deleted"] = len(await fetch(kind(1)))
    for n in range(5):
        await publish(7000, str(n), at=-n)
    results["limit"] = [event.content() for event in await fetch(kind(7000).limit(2))]
    await client.shutdown()
    return results


async def test_an_independent_client_finds_a_proper_relay() -> None:
    async with served() as (_, address):
        results = await run_asyncio(independent_client, f"ws://{address}")
    assert results == {
        "job accepted": True,
        "live": True,
        "fetched": [True],
        "valid": [True],
        "replaceable": ['{"name":"new"}'],
        "addressable": ["b", "c"],
        "ephemeral": 0,
        "expired accepted": False,
        "deleted": 0,
        "limit": ["0", "1"],
    }


# The relay by itself


def test_the_module_runs_alone_and_keeps_its_events(tmp_path) -> None:
    command = [sys.executable, "-m", "pylon.relays.server", "--port", "0", "--path", str(tmp_path / "relay.db")]
    event = note()

    async def publish(url: str) -> None:
        async with open_websocket_url(url) as websocket:
            assert (await Client(websocket).publish(event))[2]

    async def query(url: str) -> None:
        async with open_websocket_url(url) as websocket:
            assert await Client(websocket).query({}) == [wire(event)]

    for work, ending, code in ((publish, signal.SIGKILL, -9), (query, signal.SIGTERM, 0)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            word, url = process.stdout.readline().split()
            assert word == "listening"
            trio.run(work, url)
            process.send_signal(ending)
            assert process.wait(10) == code
