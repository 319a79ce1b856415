"""The events over HTTP, read as a browser reads them: who listens hears each once, also after it was cut off."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
import trio

from pylon import events
from pylon.api import event_routes, server
from pylon.api.event_routes import EventApi
from pylon.errors import NotFound
from pylon.events import EventStream, Wanted
from tests.pylon.api.serving import BEARER, serving
from tests.pylon.market import until

ALICE = "aa" * 32


def wanted(kinds, agent):
    if agent not in (None, "alice"):
        raise NotFound(f"there is no agent {agent!r}")
    return Wanted.of(kinds, ALICE if agent else None)


class Reader:
    """A browser's ``EventSource``, as the standard has it: fields of an event, comments, and the last id."""

    def __init__(self, stream):
        self._stream = stream
        self._lines = self._read()
        self.head = b""
        self.last_id = ""

    async def next(self):
        """An event, or a comment."""
        kind, data = "message", []
        with trio.fail_after(10):
            while True:
                line = await anext(self._lines)
                field, _, value = line.partition(": ")
                if not line and data:
                    return kind, json.loads("\n".join(data))
                if not field and line:
                    return "comment", value
                if field == "event":
                    kind = value
                elif field == "data":
                    data.append(value)
                elif field == "id":
                    self.last_id = value

    async def _read(self):
        """The lines of the body, out of its chunks."""
        received, text = b"", b""
        while b"\r\n\r\n" not in received:
            received += await self._stream.receive_some()
        self.head, _, received = received.partition(b"\r\n\r\n")
        assert b" 200 " in self.head.splitlines()[0]
        assert b"content-type: text/event-stream" in self.head.lower()
        while True:
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                yield line.decode()
            while b"\r\n" not in received:
                received += await self._stream.receive_some()
            size, _, received = received.partition(b"\r\n")
            while len(received) < int(size, 16) + 2:
                received += await self._stream.receive_some()
            text, received = text + received[: int(size, 16)], received[int(size, 16) + 2 :]


@asynccontextmanager
async def listening(served, query="", **headers):
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **BEARER, **headers}.items())
    async with await served.connect() as stream:
        await stream.send_all(f"GET /v1/events{query} HTTP/1.1\r\n{head}\r\n".encode())
        reader = Reader(stream)
        async with aclosing(reader._lines):
            yield reader


@pytest.fixture
def stream():
    return EventStream(lambda: 5.0, kept=8, name_of=lambda agent: "alice")


@pytest.fixture
def api(stream):
    return EventApi(stream, wanted)


async def test_recent_ones_then_those_that_come_then_those_that_were_missed(stream, api):
    for number in range(3):
        stream.publish(events.DaemonStall(seconds=number))
    async with serving(routes=api.routes()) as served:
        async with listening(served, "?limit=2") as reader:
            assert [(await reader.next())[1]["seq"] for _ in range(2)] == [2, 3]
            stream.publish(events.AgentHeld(agent=ALICE, held="paused"))
            kind, told = await reader.next()
            assert (kind, told["seq"], told["name"], told["held"]) == ("agent.held", 4, "alice", "paused")
            assert reader.last_id == told["mark"]
        for number in range(10):
            stream.publish(events.DaemonStall(seconds=number))
        async with listening(served, **{"Last-Event-ID": reader.last_id}) as again:
            assert await again.next() == ("gap", {"missed": 2})
            assert [(await again.next())[1]["seq"] for _ in range(8)] == list(range(7, 15))
            assert again.last_id == f"{stream.run}-14"
        async with listening(served, "?mark=ffffffff-3") as other_run:
            assert await other_run.next() == ("gap", {"missed": None})


async def test_kinds_and_an_agent(stream, api):
    async with (
        serving(routes=api.routes()) as served,
        listening(served, "?kind=agent&kind=disk.well") as some,
        listening(served, "?agent=alice") as hers,
    ):
        await until(lambda: api.listeners == 2)
        stream.publish(events.DiskTrouble())
        stream.publish(events.DiskWell())
        stream.publish(events.AgentHeld(agent=ALICE, held="stopped"))
        assert [(await some.next())[0] for _ in range(2)] == ["disk.well", "agent.held"]
        assert (await hers.next())[0] == "agent.held"


async def test_it_is_behind_the_token_and_says_what_it_cannot(stream, api):
    async with serving(routes=api.routes()) as served:
        async with served.client() as nobody:
            assert (await nobody.get("/v1/events")).status_code == 401
        async with served.client(**BEARER) as client:
            for query, code in (
                ("?kind=sail", "usage"), ("?agent=bob", "not_found"), ("?mark=x", "usage"),
                ("?limit=-1", "invalid_limit"), ("?limit=1001", "invalid_limit"), ("?limit=x", "invalid_limit"),
            ):  # fmt: skip
                answer = await client.get(f"/v1/events{query}")
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
            assert (await client.head("/v1/events")).status_code == 200
            assert (await client.post("/v1/events")).status_code == 405
    assert api.listeners == 0


async def test_so_many_may_listen_and_who_leaves_makes_room(stream, api, monkeypatch):
    monkeypatch.setattr(event_routes, "MOST_LISTENERS", 1)
    async with serving(routes=api.routes()) as served, served.client(**BEARER) as client:
        async with listening(served):
            await until(lambda: api.listeners == 1)
            assert (await client.get("/v1/events")).status_code == 429
        await until(lambda: api.listeners == 0)
        async with listening(served):
            pass


async def test_of_those_that_come_at_the_same_moment_no_more_may_listen(api, monkeypatch):
    """The server may take its time with the head of each answer."""
    monkeypatch.setattr(event_routes, "MOST_LISTENERS", 2)
    statuses, head = [], trio.Event()

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            await head.wait()

    async def come():
        response = event_routes._Listening(api, api._stream.listen(), [], False)
        await response({"type": "http"}, trio.sleep_forever, send)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(come)
        await until(lambda: len(statuses) == 5)
        head.set()
        await until(lambda: api.listeners == 2)
        nursery.cancel_scope.cancel()
    assert sorted(statuses) == [200, 200, 429, 429, 429]
    assert api.listeners == 0


async def test_silence_is_said_aloud(stream, api, monkeypatch):
    monkeypatch.setattr(event_routes, "KEEP_ALIVE_SECONDS", 0.05)
    async with serving(routes=api.routes()) as served, listening(served) as reader:
        assert (await reader.next())[0] == "comment"


async def test_who_takes_nothing_any_more_is_cut_off_and_nobody_waits_for_it(stream, api, monkeypatch):
    monkeypatch.setattr(server, "SEND_SECONDS", 0.3)
    async with serving(routes=api.routes()) as served, listening(served):
        await until(lambda: api.listeners == 1)
        while api.listeners:
            for _ in range(8):
                stream.publish(events.DaemonReload(applied=("x" * 60_000,)))
            await trio.sleep(0.01)


async def test_a_server_that_ends_waits_for_no_listener(api):
    with trio.fail_after(5):
        async with AsyncExitStack() as clients:
            async with serving(routes=api.routes()) as served:
                await clients.enter_async_context(listening(served))
                await until(lambda: api.listeners == 1)
            assert api.listeners == 0
