"""The relay that homes share: who serves it, who takes over, and who else may sit on the port."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio

from pylon.clock import SystemClock
from pylon.config_values import Bind
from pylon.daemon import embedded_relay
from pylon.daemon.embedded_relay import EmbeddedRelay, software_at
from pylon.errors import ConfigError
from pylon.relays.pool import RelayPool
from pylon.relays.server import SOFTWARE
from pylon.relays.websocket import connect
from tests.pylon.market import until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(embedded_relay, "_TRY_AGAIN", 0.05)
    monkeypatch.setattr(embedded_relay, "_ANSWER_WITHIN", 1.0)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@asynccontextmanager
async def running(relay: EmbeddedRelay):
    """Its URL; it is cancelled at the end of the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(relay.run)
        nursery.cancel_scope.cancel()


def relay(tmp_path, name: str, port: int = 0) -> EmbeddedRelay:
    return EmbeddedRelay(Bind("127.0.0.1", port), tmp_path / f"{name}.db", SystemClock())


async def software(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url.replace("ws:", "http:"), headers={"Accept": "application/nostr+json"})
        return answer.json()["software"]


async def test_it_serves_where_it_says(tmp_path):
    one = relay(tmp_path, "one")
    async with running(one) as url:
        assert one.serving
        assert port_of(url) > 0
        assert await software(url) == SOFTWARE


async def test_a_proxy_of_the_environment_is_not_meant_for_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with running(relay(tmp_path, "one")) as url:
        for host in ("127.0.0.1", "0.0.0.0"):
            assert await software_at(Bind(host, port_of(url)), SystemClock()) == SOFTWARE


async def test_a_pool_connects(tmp_path):
    async with running(relay(tmp_path, "one")) as url, trio.open_nursery() as nursery:
        pool = RelayPool([url], connect=connect, clock=SystemClock(), rng=random.Random(1))
        await nursery.start(pool.run)
        await until(lambda: pool.statuses()[0].state == "connected")
        nursery.cancel_scope.cancel()


async def test_two_homes_share_a_port_and_the_second_takes_over(tmp_path):
    one = relay(tmp_path, "one")
    async with trio.open_nursery() as nursery:
        async with running(one) as url:
            two = relay(tmp_path, "two", port_of(url))
            third = relay(tmp_path, "three", port_of(url))
            assert await nursery.start(two.run) == await nursery.start(third.run) == url
            assert (two.serving, third.serving) == (False, False)
        await until(lambda: two.serving or third.serving)
        assert not (two.serving and third.serving)
        assert await software(url) == SOFTWARE
        nursery.cancel_scope.cancel()


async def _refused(tmp_path, answer: bytes | None):
    """What becomes of a relay whose port is held by something that says ``answer``, or nothing."""

    async def handle(stream):
        if answer is not None:
            await stream.receive_some(4096)
            await stream.send_all(answer)
            await stream.aclose()
        else:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError), flatten_subgroups=True, allow_unwrapped=True) as caught:
            with trio.fail_after(10):
                async with running(relay(tmp_path, "one", port)):
                    raise AssertionError("it has started")
        nursery.cancel_scope.cancel()
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return port, error


NIP11 = b'{"software": "https://elsewhere.example", "name": "another relay"}'


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(NIP11), NIP11),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff[[[",
    ],
    ids=["silence", "hang-up", "no-http", "404", "another-relay", "no-json"],
)
async def test_a_stranger_on_the_port_is_an_error_that_names_the_key(tmp_path, answer):
    port, error = await _refused(tmp_path, answer)
    assert f":{port} is taken" in error.message
    assert "[relay] bind" in error.hint
    assert "[relay] enabled = false" in error.hint
