"""The server itself: where it listens, and that nothing that one client does is noticed by another."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from starlette.responses import StreamingResponse
from starlette.routing import Route

from pylon.api import server as server_module
from pylon.api.app import build_app
from pylon.api.server import HEAD_BYTES, serve_api
from pylon.config_values import Bind
from pylon.errors import ConfigError
from pylon.groups import cause
from tests.pylon.api.serving import BEARER, TOKEN, everything, serving

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class _Endless:
    """No generator: nobody closes one whose reader has gone."""

    def __aiter__(self):
        return self

    async def __anext__(self):
        return b"x" * 1_000_000


async def _flood(request):
    return StreamingResponse(_Endless())


async def _drip(request):
    async def pieces():
        while True:
            yield b"data: x\n\n"
            await trio.sleep(0.01)

    return StreamingResponse(pieces(), media_type="text/event-stream")


ROUTES = [Route("/v1/flood", _flood), Route("/v1/drip", _drip)]


async def healthy(served) -> bool:
    async with served.client() as client:
        answer = await client.get("/health")
    return answer.status_code == 200 and answer.json() == {"status": "ok"}


# --- where it listens -------------------------------------------------------------------------------------------------


async def started(nursery, bind: Bind, by_user: bool) -> Bind:
    return await nursery.start(partial(serve_api, build_app(None, token=TOKEN), bind, by_user=by_user))


async def test_a_default_port_that_is_taken_gives_way_to_a_free_one():
    async with trio.open_nursery() as nursery:
        first = await started(nursery, Bind("127.0.0.1", 0), True)
        second = await started(nursery, first, False)
        assert first.host == second.host == "127.0.0.1"
        assert first.port != second.port
        nursery.cancel_scope.cancel()


async def test_a_port_that_was_set_and_is_taken_is_an_error_that_names_the_key():
    async with serving() as served:
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError), flatten_subgroups=True) as caught:
            async with trio.open_nursery() as nursery:
                await started(nursery, served.bound, True)
        error = cause(caught.value)
        assert str(served.bound) in error.message
        assert "[api] bind" in error.hint
        assert "[api] enabled = false" in error.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_that_is_not_of_this_machine_is_an_error_too(host):
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await started(nursery, Bind(host, 9899), False)


async def test_a_port_is_free_again_at_once():
    async with serving() as served:
        assert await healthy(served)
    async with trio.open_nursery() as nursery:
        assert await started(nursery, served.bound, True) == served.bound
        nursery.cancel_scope.cancel()


async def test_one_address_is_told_of_a_name_with_several():
    async with trio.open_nursery() as nursery:
        bound = await started(nursery, Bind("localhost", 0), True)
        assert bound.host in ("127.0.0.1", "::1")
        stream = await trio.open_tcp_stream(bound.host, bound.port)
        await stream.aclose()
        nursery.cancel_scope.cancel()


# --- what clients do --------------------------------------------------------------------------------------------------


async def test_no_banner():
    async with serving() as served, served.client() as client:
        answer = await client.get("/health")
        assert "server" not in answer.headers
        assert "hypercorn" not in str(answer.headers).lower()
        assert answer.headers["content-type"] == "application/json"


async def test_a_connection_serves_many_requests():
    async with serving() as served:
        stream = await served.connect()
        async with stream:
            for _ in range(5):
                await stream.send_all(HEALTH)
                got = b""
                while not got.endswith(b'{"status":"ok"}'):
                    got += await stream.receive_some(65_536)
            await stream.send_all(HEALTH * 3)
            await stream.send_eof()
            assert (await everything(stream)).count(b'{"status":"ok"}') == 3


HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


# ":method GET, :path /\xe9, :authority x, :scheme http", as literals that are not indexed.
BAD_PATH = b"\x82\x04\x03/\xc3\xa9\x01\x01x\x86"
HOSTILE = {
    "nothing": b"",
    "no http": b"SSH-2.0-OpenSSH\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "nul": b"\x00" * 10_000,
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two lengths": b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "smuggled": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative": b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "high bytes in the path": "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "high bytes in a header": b"GET /v1 HTTP/1.1\r\nHost: \xff\xfe\r\nOrigin: \xff\r\nAuthorization: \xff\r\n\r\n",
    "bad escapes": b"GET /lnurlp/%ff%00%zz/pay?amount=%ff&nostr=%00%ff HTTP/1.1\r\nHost: a\r\n\r\n",
    "a proxy's request": b"GET http://evil.example/health HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "websocket": b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "no websocket": b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\xff\xff",
    "h2c": b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n",
    "http/2": HTTP_2 + frame(4, 0, 0, b"") + frame(1, 5, 1, BAD_PATH),
    "http/2, garbage": HTTP_2 + b"\xff" * 1_000,
    "http/1.0": b"GET /health HTTP/1.0\r\n\r\n",
    "head too long": b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (2 * HEAD_BYTES),
    "many headers": b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_one_client_sends_the_others_do_not_notice(name, monkeypatch):
    """And nobody keeps a connection by it."""
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    async with serving() as served:
        for ends in (True, False):
            stream = await served.connect()
            async with stream:
                try:
                    await stream.send_all(HOSTILE[name])
                    if ends:
                        await stream.send_eof()
                except trio.BrokenResourceError:
                    pass
                await everything(stream, 5.0)
        assert await healthy(served)


async def test_a_head_has_a_limit_that_a_zap_fits_in():
    async with serving() as served, served.client() as client:
        assert (await client.get("/health", params={"nostr": "x" * (HEAD_BYTES - 5_000)})).status_code == 200
        got = await served.says(b"GET /health?" + b"x" * 2 * HEAD_BYTES)
        assert got.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    async with serving() as served:
        assert await served.says(b"") == b""
        assert await served.says(b"GET /health HTTP/1.1\r\nHost:") == b""
        assert (await served.says(HEALTH)).endswith(b'{"status":"ok"}')


async def test_connections_are_bounded_and_come_free_again(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    async with serving() as served:
        streams = [await served.connect() for _ in range(3)]
        await trio.sleep(0.05)
        assert await served.says(b"") == b""
        await streams.pop().aclose()
        await trio.sleep(1.0)
        assert await healthy(served)
        for stream in streams:
            await stream.aclose()


async def test_a_client_that_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr(server_module, "SEND_SECONDS", 0.3)
    async with serving(routes=ROUTES) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(f"GET /v1/flood HTTP/1.1\r\nHost: localhost\r\n{bearer()}\r\n\r\n".encode())
            await trio.sleep(0.6)
            await everything(stream)
        assert await healthy(served)


async def test_a_client_that_leaves_ends_its_stream():
    ended = trio.Event()

    async def endless(request):
        async def pieces():
            try:
                while True:
                    yield b"x"
                    await trio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(pieces())

    async with serving(routes=[Route("/v1/endless", endless)]) as served:
        stream = await served.connect()
        await stream.send_all(f"GET /v1/endless HTTP/1.1\r\nHost: localhost\r\n{bearer()}\r\n\r\n".encode())
        await stream.receive_some(100)
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()


def bearer() -> str:
    return f"Authorization: {BEARER['Authorization']}"


@pytest.mark.parametrize("path", ["/v1/flood", "/v1/drip", None])
async def test_the_end_waits_for_nobody(path):
    """A reader that has stopped, a stream that goes on, a head that is half there."""
    async with serving(routes=ROUTES) as served:
        streams = [await served.connect() for _ in range(3)]
        for stream in streams:
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{bearer()}\r\n\r\n" if path else "GET / HT"
            await stream.send_all(request.encode())
        await trio.sleep(0.3)
        began = trio.current_time()
    assert trio.current_time() - began < 1.0
    for stream in streams:
        await trio.aclose_forcefully(stream)
