"""The switchboard alone: who hears what, and what nobody can do to anybody else."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.tunnel import messages, switchboard
from pylon.tunnel.messages import Prompt, SessionError, TunnelConnected, read, write
from pylon.tunnel.switchboard import MAX_PAGES, MAX_SESSIONS, REPLACED, TOO_MUCH, VERSION, Switchboard
from pylon.tunnel.websocket import SocketClosed

S = "0" * 32
HELLO = write(TunnelConnected("0.1.0"))


class Wire:
    """A ``Link`` whose other end is the test."""

    def __init__(self, *, deaf=False):
        self._put, self._get = trio.open_memory_channel(math.inf)
        self.got: list[str] = []
        self.code: int | None = None
        self.deaf = deaf

    async def receive(self):
        try:
            return await self._get.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise SocketClosed from None

    async def send(self, text):
        await trio.lowlevel.checkpoint()
        if self.code is not None:
            raise SocketClosed
        if self.deaf:
            await trio.sleep_forever()
        self.got.append(text)

    async def close(self, code, reason=""):
        await trio.lowlevel.checkpoint()
        self.code = code
        self._put.close()

    # The test's side.

    def say(self, text):
        self._put.send_nowait(text)

    def leave(self):
        self._put.close()

    @property
    def heard(self):
        return [orjson.loads(text)["type"] for text in self.got]


@asynccontextmanager
async def running():
    """A switchboard, and a way to connect: ``machine = connect()``, ``page = connect(page=True)``."""
    board = Switchboard()
    async with trio.open_nursery() as nursery:

        async def connect(wire=None, *, page=False, session=S):
            wire = wire or Wire()
            nursery.start_soon(board.serve_page if page else board.serve_machine, session, wire)
            await settle()
            return wire

        yield board, connect
        nursery.cancel_scope.cancel()


async def settle():
    await trio.testing.wait_all_tasks_blocked()


async def test_both_ways(autojump_clock):
    async with running() as (board, connect):
        early = await connect(page=True)
        assert early.heard == ["tunnel_disconnected"]
        machine = await connect()
        machine.say(HELLO)
        await settle()
        late = await connect(page=True)
        assert early.heard[1:] == late.heard == ["tunnel_connected"]
        assert board.status(S) == {"session_id": S, "tunnel_connected": True, "browsers": 2}

        early.say(write(Prompt("s", "hello")))
        machine.say(write(SessionError("s", "no such session")))
        await settle()
        assert machine.got == [write(Prompt("s", "hello"))]
        assert early.heard[2:] == late.heard[1:] == ["claude_error"]

        machine.leave()
        await settle()
        assert early.heard[-1] == late.heard[-1] == "tunnel_disconnected"
        late.say(write(Prompt("s", "is anybody there?")))
        await settle()
        assert orjson.loads(late.got[-1])["code"] == "no_tunnel"
        early.leave()
        late.leave()
        await settle()
        assert board.status(S)["browsers"] == 0
        assert board._sessions == {}


async def test_sessions_do_not_hear_each_other(autojump_clock):
    async with running() as (_, connect):
        machine, page = await connect(), await connect(page=True)
        other, stranger = await connect(session="1" * 32), await connect(page=True, session="1" * 32)
        machine.say(HELLO)
        other.say(HELLO)
        await settle()
        machine.say(write(SessionError("s", "mine")))
        page.say(write(Prompt("s", "mine")))
        await settle()
        assert stranger.heard[-1] == "tunnel_connected"
        assert other.got == []
        assert page.heard[-1] == "claude_error"


async def test_a_machine_that_comes_again_takes_its_place(autojump_clock):
    async with running() as (_, connect):
        page, half_dead = await connect(page=True), await connect()
        half_dead.say(HELLO)
        await settle()
        again = await connect()
        assert half_dead.code == REPLACED
        half_dead.leave()
        again.say(HELLO)
        await settle()
        page.say(write(Prompt("s", "hello")))
        await settle()
        assert page.heard == ["tunnel_disconnected", "tunnel_connected", "tunnel_connected"]
        assert again.got == [write(Prompt("s", "hello"))]
        assert [orjson.loads(text)["code"] for text in half_dead.got] == ["replaced"]


async def test_what_a_late_page_is_told_of_the_sessions_is_not_old(autojump_clock):
    async with running() as (_, connect):
        machine = await connect()
        info = messages.SessionInfo(session_id="gone", state="running")
        machine.say(write(TunnelConnected("0.1.0", sessions=(info,))))
        await settle()
        page = await connect(page=True)
        assert read(page.got[0]).message == TunnelConnected("0.1.0")


async def test_another_version_is_told_so(autojump_clock):
    async with running() as (board, connect):
        page, machine = await connect(page=True), await connect()
        machine.say(write(TunnelConnected("9.9.9", protocol=2)))
        await settle()
        assert machine.code == VERSION
        assert orjson.loads(machine.got[0])["code"] == "version"
        assert "tunnel_connected" not in page.heard
        assert not board.status(S)["tunnel_connected"]


async def test_nobody_speaks_for_the_server(autojump_clock):
    async with running() as (_, connect):
        machine, page = await connect(), await connect(page=True)
        machine.say(HELLO)
        await settle()
        for text in (HELLO, '{"type":"tunnel_disconnected"}', '{"type":"error","code":"x","message":"y"}'):
            page.say(text)
        machine.say('{"type":"tunnel_disconnected"}')
        for junk in ("", "no json", "[]", "1", '{"type":1}', "{}", '{"type":"claude_prompt"', "[" * 5_000, "\ud800"):
            page.say(junk)
            machine.say(junk)
        await settle()
        assert machine.got == []
        assert page.heard == ["tunnel_disconnected", "tunnel_connected"]
        page.say('{"type":"of tomorrow","x":1}')
        machine.say('{"type":"of tomorrow","x":2}')
        await settle()
        assert machine.got == ['{"type":"of tomorrow","x":1}']
        assert page.got[-1] == '{"type":"of tomorrow","x":2}'


async def test_a_ping_is_answered_here(autojump_clock):
    async with running() as (_, connect):
        machine, page = await connect(), await connect(page=True)
        machine.say(HELLO)
        await settle()
        for end in (machine, page):
            end.say('{"type":"ping","timestamp":7}')
            end.say('{"type":"ping","timestamp":"seven"}')
            end.say('{"type":"pong","timestamp":7}')
            await settle()
            assert end.heard.count("pong") == 1
        assert machine.heard == ["pong"]


async def test_a_slow_page_is_cut_off_and_nobody_waits_for_it(autojump_clock, monkeypatch):
    monkeypatch.setattr(switchboard, "MAX_BACKLOG_BYTES", 10_000)
    async with running() as (board, connect):
        machine, slow, quick = await connect(), await connect(Wire(deaf=True), page=True), await connect(page=True)
        machine.say(HELLO)
        piece = write(SessionError("s", "x" * 900))
        for sent in range(1, 31):
            machine.say(piece)
            await settle()
            assert quick.heard.count("claude_error") == sent
            (backlog,) = [page.waiting_bytes for page in board._sessions[S].pages if page.link is slow] or [0]
            assert backlog <= 10_000
        assert board.status(S)["browsers"] == 1


async def test_a_machine_that_does_not_read_lets_the_pages_wait(autojump_clock):
    async with running() as (board, connect):
        machine, page = await connect(Wire(deaf=True)), await connect(page=True)
        machine.say(HELLO)
        await settle()
        for _ in range(50):
            page.say(write(Prompt("s", "hello")))
        await settle()
        assert page._get.statistics().current_buffer_used == 49  # of which the network holds what it can
        assert board.status(S)["tunnel_connected"]


async def test_a_flood_from_a_page_ends_it(autojump_clock):
    async with running() as (board, connect):
        machine, page, other = await connect(), await connect(page=True), await connect(page=True)
        machine.say(HELLO)
        await settle()
        for _ in range(10_000):
            page.say('{"type":"ping","timestamp":1}')
        await settle()
        assert page.code == TOO_MUCH
        assert page.heard.count("pong") == switchboard.PAGE_MESSAGES_AT_ONCE
        for _ in range(500):  # as much as it may: nobody minds
            other.say('{"type":"ping","timestamp":1}')
            await trio.sleep(1.01 / switchboard.PAGE_MESSAGES_PER_SECOND)
        assert other.heard.count("pong") == 500
        assert board.status(S)["browsers"] == 1


async def test_pages_and_sessions_are_counted(autojump_clock):
    async with running() as (board, connect):
        pages = [await connect(page=True) for _ in range(MAX_PAGES + 1)]
        assert [page.code for page in pages] == [None] * MAX_PAGES + [TOO_MUCH]
        machines = [await connect(session=f"{n:032x}") for n in range(1, MAX_SESSIONS + 1)]
        assert [machine.code for machine in machines] == [None] * (MAX_SESSIONS - 1) + [TOO_MUCH]
        machines[0].leave()
        await settle()
        assert (await connect(session="f" * 32)).code is None
        assert len(board._sessions) == MAX_SESSIONS


@given(st.data())
def test_whoever_comes_and_goes_nothing_is_left(data):
    steps = data.draw(st.lists(st.tuples(st.sampled_from(["machine", "page", "leave", "say"]), st.integers(0, 3))))

    async def main():
        async with running() as (board, connect):
            ends = []
            for what, which in steps:
                if what in ("machine", "page"):
                    ends.append(await connect(page=what == "page", session=f"{which:032x}"))
                elif ends and what == "leave":
                    ends.pop(which % len(ends)).leave()
                elif ends:
                    wire = ends[which % len(ends)]
                    if wire.code is None:
                        wire.say(HELLO)
                await settle()
            for wire in ends:
                wire.leave()
            await settle()
            assert board._sessions == {}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("kind", sorted({"claude_list", "claude_replay", "claude_prompt", "claude_stop"}))
async def test_before_the_machine_has_said_who_it_is_it_hears_nothing(autojump_clock, kind):
    async with running() as (_, connect):
        machine, page = await connect(), await connect(page=True)
        page.say(orjson.dumps({"type": kind}).decode())
        await settle()
        assert machine.got == []
        assert page.heard == ["tunnel_disconnected", "error"]
