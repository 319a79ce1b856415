"""The real transport over real sockets; pool and publisher against relays in processes of their own."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, serve_websocket

from protocols.nip01 import Filter, sign_event
from pylon.clock import SystemClock
from pylon.errors import RelayError
from pylon.relays import websocket as rules
from pylon.relays.pool import RelayPool
from pylon.relays.publisher import Publisher
from pylon.relays.transport import TransportClosed
from pylon.relays.websocket import connect
from pylon.store import outbox
from pylon.store.database import open_store
from pylon.store.vault import Vault
from tests.pylon.relays.scripted import ALICE, until

LOCAL_RELAY = """
import asyncio, signal, sys
import nostr_sdk as n

async def main():
    n.uniffi_set_event_loop(asyncio.get_running_loop())
    builder = n.LocalRelayBuilder().addr("127.0.0.1")
    builder = builder.rate_limit(n.RateLimit(max_reqs=1_000_000, notes_per_minute=1_000_000))
    if "auth" in sys.argv:
        builder = builder.nip42(n.LocalRelayBuilderNip42(mode=n.LocalRelayBuilderNip42Mode.BOTH))
    relay = builder.build()
    await relay.run()
    print("listening", await relay.url(), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    relay.shutdown()

asyncio.run(main())
"""


@asynccontextmanager
async def peer(handler):
    """A WebSocket server that does with each connection what ``handler`` does; yields its URL."""
    async with trio.open_nursery() as nursery:

        async def serve(request):
            websocket = await request.accept()
            with contextlib.suppress(ConnectionClosed):
                await handler(websocket)

        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        yield f"ws://127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def plain(handler):
    """A TCP server; yields its port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(websocket):
    while True:
        await websocket.send_message(await websocket.get_message())


# --- a good peer ----------------------------------------------------------------------------------------------


async def test_frames_go_both_ways_whole_and_in_order():
    texts = [str(n) * (n % 7 * 1000 + 1) for n in range(300)] + ["ü" * 200_000]
    with trio.fail_after(10):
        async with peer(echo) as url, connect(url) as transport, trio.open_nursery() as nursery:

            async def say():
                for text in texts:
                    await transport.send(text)

            nursery.start_soon(say)
            assert [await transport.receive() for _ in texts] == texts
            await transport.ping()


async def test_what_came_before_the_end_can_be_read_after_it():
    async def handler(websocket):
        for n in range(50):
            await websocket.send_message(str(n))
        await websocket.aclose(4000, "enough")

    with trio.fail_after(5):
        async with peer(handler) as url, connect(url) as transport:
            await trio.sleep(0.1)
            assert [await transport.receive() for _ in range(50)] == [str(n) for n in range(50)]
            with pytest.raises(TransportClosed, match="4000 enough"):
                await transport.receive()
            with pytest.raises(TransportClosed):
                await transport.send("x")
            with pytest.raises(TransportClosed):
                await transport.ping()


async def test_a_ping_that_waits_ends_with_the_connection():
    async def handler(stream):
        await handshake(stream)
        await trio.sleep(0.1)
        await stream.aclose()

    with trio.fail_after(5):
        async with plain(handler) as port, connect(f"ws://127.0.0.1:{port}") as transport:
            with pytest.raises(TransportClosed):
                await transport.ping()


async def test_a_transport_closed_in_the_block_comes_out_as_itself():
    async def handler(websocket):
        await websocket.aclose()

    async with peer(handler) as url:
        with pytest.raises(TransportClosed):
            async with connect(url) as transport:
                await transport.receive()
        with pytest.raises(KeyError):
            async with connect(url):
                raise KeyError


async def test_a_message_that_is_too_big_ends_the_connection():
    async def handler(websocket):
        await websocket.send_message("x" * (rules.MAX_MESSAGE_BYTES + 1))
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with peer(handler) as url, connect(url) as transport:
            with pytest.raises(TransportClosed, match="1009"):
                await transport.receive()


async def test_text_in_binary_frames_is_read_leniently():
    async def handler(websocket):
        await websocket.send_message(b"\xff[]")
        await trio.sleep_forever()

    async with peer(handler) as url, connect(url) as transport:
        assert await transport.receive() == "\ufffd[]"


# --- the traps ------------------------------------------------------------------------------------------------


async def test_a_peer_that_pings_while_we_close():
    """trio-websocket issue 184: it ended in a bare ``Cancelled``."""

    async def handler(websocket):
        async def ping(task_status=trio.TASK_STATUS_IGNORED):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await websocket.ping()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ping)

    async def once(url):
        async with connect(url) as transport:
            await transport.send("hello")
            await trio.sleep(0.002)

    with trio.fail_after(15):
        async with peer(handler) as url:
            for _ in range(20):
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(once, url)


async def test_pings_are_answered_while_nobody_reads(monkeypatch):
    answered = trio.Event()

    async def handler(websocket):
        for n in range(1000):
            await websocket.send_message(str(n))
        await websocket.ping()
        answered.set()
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with peer(handler) as url, connect(url) as transport:
            await answered.wait()
            assert await transport.receive() == "0"


@pytest.mark.parametrize(
    ("bound", "value", "size"), [("QUEUED_MESSAGES", 10, 1), ("QUEUED_CHARACTERS", 100_000, 9_000)]
)
async def test_a_queue_that_stays_full_ends_the_connection(monkeypatch, bound, value, size):
    monkeypatch.setattr(rules, bound, value)
    monkeypatch.setattr(rules, "_FULL_SECONDS", 0.2)

    async def handler(websocket):
        while True:
            await websocket.send_message("x" * size)

    with trio.fail_after(5):
        async with peer(handler) as url, connect(url) as transport:
            await trio.sleep(0.8)
            got = 0
            with pytest.raises(TransportClosed):  # noqa: PT012
                while True:
                    await transport.receive()
                    got += 1
            assert 10 <= got <= 12


async def test_closing_a_peer_that_reads_nothing_takes_a_second(autojump_clock):
    """The peer's window is full: our close frame does not go out."""
    ours, theirs = trio.testing.memory_stream_pair()
    del theirs

    async def never(data):
        await trio.sleep_forever()

    ours.send_all = never
    websocket = rules._client(ours, rules._Address.of("ws://x"), 1000)
    transport = rules._WebSocketTransport(websocket, ours)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.run)
        await transport.aclose()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began <= 2.5


# --- no connection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay",
        "http://127.0.0.1",
        "ws://",
        "ws://127.0.0.1:99999",
        "ws://[::1",
        "ws://127.0.0.1:x",
        "ws://a\udcffb",
        "ws://" + "a" * 300,
    ],
)
async def test_a_wrong_address_is_named(url):
    with trio.fail_after(5), pytest.raises(RelayError) as caught:
        async with connect(url):
            raise AssertionError
    assert caught.value.message.startswith(url[:100])


async def handshake(stream):
    import base64
    import hashlib

    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.receive_some()
    key = next(line.split()[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    await stream.send_all(
        b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def saying(data):
    async def handler(stream):
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(data)
            await stream.aclose()

    return handler


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "HTTP status 404"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "HTTP status 503"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "HTTP status 301"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf", "handshake failed"),
        (b"SSH-2.0-OpenSSH\r\n", "handshake failed"),
        (b"\x00\xff" * 100, "handshake failed"),
        (b"", "handshake failed"),
        (
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "handshake failed",
        ),
    ],
)
async def test_a_peer_that_is_no_relay_is_named(data, says):
    with trio.fail_after(5):
        async with plain(saying(data)) as port:
            url = f"ws://127.0.0.1:{port}"
            with pytest.raises(RelayError, match=f"{url}: .*{says}"):
                async with connect(url):
                    raise AssertionError


async def test_a_port_where_nobody_listens():
    async with plain(saying(b"")) as port:
        pass
    with trio.fail_after(5), pytest.raises(RelayError, match=f"ws://127.0.0.1:{port}: no connection"):
        async with connect(f"ws://127.0.0.1:{port}"):
            raise AssertionError


async def test_a_peer_that_says_nothing_is_given_up():
    async def handler(stream):
        await trio.sleep_forever()

    async with plain(handler) as port:
        for scheme in ("ws", "wss"):
            with trio.fail_after(5), pytest.raises(RelayError, match=r"no connection within 0\.2 s"):
                async with connect(f"{scheme}://127.0.0.1:{port}", connect_timeout=0.2):
                    raise AssertionError


async def test_tls_to_a_plain_port_and_to_a_stranger():
    with trio.fail_after(5):
        async with plain(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            with pytest.raises(RelayError, match=f"wss://127.0.0.1:{port}: no TLS"):
                async with connect(f"wss://127.0.0.1:{port}"):
                    raise AssertionError


async def test_frames_that_break_the_protocol_end_the_connection():
    async def handler(stream):
        await handshake(stream)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"\xff" * 50)
            await trio.sleep_forever()

    with trio.fail_after(5):
        async with plain(handler) as port, connect(f"ws://127.0.0.1:{port}") as transport:
            with pytest.raises(TransportClosed):
                await transport.receive()


async def test_cancelled_at_any_moment_nothing_is_left():
    open_now = 0

    async def handler(websocket):
        nonlocal open_now
        open_now += 1
        try:
            await echo(websocket)
        finally:
            open_now -= 1

    async def live(url):
        async with connect(url) as transport:
            while True:
                await transport.send("x" * 10_000)
                await transport.receive()

    async with peer(handler) as url:
        for n in range(60):
            with trio.move_on_after(n / 10_000):
                await live(url)
        await until(lambda: open_now == 0, 0.01)


# --- whole: pool and publisher against relays in processes ----------------------------------------------------


@asynccontextmanager
async def running(*command):
    """A relay as a process; yields its URL."""
    process = await trio.lowlevel.open_process([sys.executable, *command], stdout=subprocess.PIPE)
    try:
        said = b""
        with trio.fail_after(10):
            while not said.endswith(b"\n"):
                said += await process.stdout.receive_some()
        yield said.decode().split()[1]
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(3) as patience:
                await process.wait()
            if patience.cancelled_caught:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


RELAYS = {
    "ours": ("-m", "pylon.relays.server", "--port", "0"),
    "nostr-sdk": ("-c", LOCAL_RELAY),
    "nostr-sdk with NIP-42": ("-c", LOCAL_RELAY, "auth"),
}


@pytest.mark.parametrize("relay", RELAYS)
async def test_publish_and_read_back(relay, tmp_path):
    wall = SystemClock()
    now = int(wall.now())
    events = [sign_event(ALICE, kind=1, content=str(n), created_at=now - n) for n in range(200)]
    vault = Vault(bytes(range(32)))
    with trio.fail_after(20):
        async with running(*RELAYS[relay]) as url, open_store(tmp_path / "pylon.db", vault=vault, clock=wall) as store:
            pool = RelayPool([url], connect=connect, clock=wall, rng=random.Random(1), signer=ALICE)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                nursery.start_soon(Publisher(pool, store, wall, random.Random(1)).run)
                await pool.connected()
                async with pool.subscribe([Filter(kinds=[1])], since=now - 3600) as notes:
                    for batch in (events[:50], events[50:]):
                        await store.write(
                            lambda tx, batch=batch: [outbox.add(tx, event, [url], at=wall.now()) for event in batch]
                        )
                    got = {(await anext(notes)).event.id for _ in events}
                assert got == {event.id for event in events}
                await until(lambda: outbox.pending_count(store) == 0, 0.01)
                states = {outbox.progress(store, event.id)[url].state for event in events}
                assert states == {outbox.DeliveryState.ACCEPTED}
                assert len(await pool.fetch([Filter(kinds=[1])], 5)) == 200
                heard = []
                async with pool.subscribe([Filter(kinds=[20_001])]) as ephemeral:
                    await pool.fetch([Filter(kinds=[1], limit=1)], 5)  # our REQ has been answered when this is
                    await pool.send_ephemeral(sign_event(ALICE, kind=20_001, created_at=now))
                    heard.append((await anext(ephemeral)).event.kind)
                assert heard == [20_001]
                (status,) = pool.statuses()
                assert status.nonsense_received == 0
                nursery.cancel_scope.cancel()
