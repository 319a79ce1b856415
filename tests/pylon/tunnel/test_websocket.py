"""The server's end of a WebSocket, against frames that no decent client would send."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong

from pylon.tunnel import websocket as module
from pylon.tunnel.websocket import ServerSocket, SocketClosed

TEXT, CONTINUATION, BINARY, CLOSE, PING = 0x81, 0x00, 0x82, 0x88, 0x89
MORE = 0x01
"""A text of which more comes."""


def frame(first: int, payload: bytes = b"", *, mask: bool = True, said: int | None = None) -> bytes:
    """A client's frame (RFC 6455, 5.2). ``said``: another length than it has."""
    size = len(payload) if said is None else said
    flag = 0x80 if mask else 0
    if size < 126:
        head = bytes([first, flag | size])
    elif size < 1 << 16:
        head = bytes([first, flag | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, flag | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if mask else b"") + payload


class Peer:
    """The client's end, in bytes."""

    def __init__(self, *, max_bytes: int = 1_000, received: bytes = b"") -> None:
        self.stream, theirs = trio.testing.memory_stream_pair()
        self.socket = ServerSocket(theirs, received, max_bytes)
        self.connection = Connection(ConnectionType.CLIENT)

    async def heard(self):
        """All that the server says until it ends."""
        while data := await self.stream.receive_some():
            self.connection.receive_data(data)
        return list(self.connection.events())

    async def code(self):
        """With what it ended the socket; ``None``: with no word."""
        return next((event.code for event in await self.heard() if isinstance(event, CloseConnection)), None)


async def received(raw: bytes, **options):
    """What the server makes of these bytes and then the end: its texts, and the code with which it closed."""
    peer = Peer(**options)
    texts: list[str] = []

    async def serve():
        try:
            while True:
                texts.append(await peer.socket.receive())
        except SocketClosed:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await peer.stream.send_all(raw)
        await peer.stream.send_eof()
        return texts, await peer.code()


async def test_texts_and_bytes_and_pieces():
    raw = (
        frame(TEXT, b"one")
        + frame(BINARY, "zwei ⚡".encode())
        + frame(MORE, b"th")
        + frame(PING, b"between")
        + frame(CONTINUATION)
        + frame(0x80, b"ree")
        + frame(TEXT)
    )
    assert await received(raw) == (["one", "zwei ⚡", "three", ""], None)
    assert await received(raw[3:], received=raw[:3]) == (["one", "zwei ⚡", "three", ""], None)


@given(st.lists(st.integers(1, 40)), st.lists(st.text(max_size=60), max_size=8))
def test_however_it_is_cut(cuts, texts):
    raw = b"".join(frame(TEXT, text.encode()) for text in texts)

    async def main():
        peer, got = Peer(), []

        async def send():
            rest = raw
            for cut in cuts:
                await peer.stream.send_all(rest[:cut] or b"")
                rest = rest[cut:]
                await trio.testing.wait_all_tasks_blocked()
            await peer.stream.send_all(rest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(got) < len(texts):
                got.append(await peer.socket.receive())
        assert got == texts

    trio.run(main)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frame(TEXT, b"x" * 1_001), 1009),
        (frame(BINARY, b"x" * 900, said=1 << 40), None),  # it says that much will come, and is taken at what has come
        (frame(BINARY, b"x" * 1_001, said=1 << 62), 1009),
        (frame(MORE, b"x" * 600) + frame(0x80, b"x" * 600), 1009),
        (frame(MORE, b"x") * 2, 1002),
        (frame(0x80, b"x"), 1002),
        (frame(TEXT, b"x", mask=False), 1002),
        (frame(0xC1, b"x"), 1002),  # compressed
        (frame(0x83, b"x"), 1002),  # no known kind
        (frame(PING, b"x" * 126), 1002),
        (frame(0x09, b"x"), 1002),  # a ping in pieces
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, b"\xff"), 1007),
        (frame(MORE, b"\xe2") + frame(0x80, b"x"), 1007),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (1000).to_bytes(2, "big")), 1000),
        (frame(CLOSE), 1000),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
async def test_what_ends_it(raw, code, autojump_clock):
    texts, closed = await received(frame(TEXT, b"before") + raw + frame(TEXT, b"after"))
    assert texts == ["before"]
    assert closed in ((code, 1005) if code == 1000 else (code,))


@given(st.binary(max_size=300))
def test_whatever_comes_it_ends_well(raw):
    async def main():
        texts, _ = await received(raw)
        assert all(len(text) <= 1_000 for text in texts)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_empty_pieces_without_end_take_no_room(autojump_clock):
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.socket.receive)
        await peer.stream.send_all(frame(MORE) + frame(CONTINUATION) * 10_000)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.socket._parts == []
        nursery.cancel_scope.cancel()


async def test_pings_are_answered_and_who_reads_no_pong_is_cut_off(autojump_clock):
    peer = Peer()

    async def serve():
        with pytest.raises(SocketClosed):
            await peer.socket.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await peer.stream.send_all(frame(PING, b"are you there?"))
        await trio.testing.wait_all_tasks_blocked()
        peer.connection.receive_data(await peer.stream.receive_some())
        assert [event.payload for event in peer.connection.events() if isinstance(event, Pong)] == [b"are you there?"]
        await peer.stream.aclose()

    one, other = trio.testing.lockstep_stream_pair()  # holds nothing
    deaf = ServerSocket(one, b"", 1_000)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.send_all, frame(PING) * 1_000)
        with pytest.raises(SocketClosed, match="does not read"):
            await deaf.receive()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == module.SEND_SECONDS


async def test_who_does_not_read_is_cut_off_and_holds_nobody_longer(autojump_clock):
    one, _other = trio.testing.lockstep_stream_pair()
    socket = ServerSocket(one, b"", 1_000)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def send():
            with pytest.raises(SocketClosed):
                await socket.send("hello")

        for _ in range(10):
            nursery.start_soon(send)
    assert trio.current_time() - began == module.SEND_SECONDS
    with pytest.raises(SocketClosed):
        await socket.send("again")


async def test_a_close_waits_for_nobody_for_long(autojump_clock):
    one, _other = trio.testing.lockstep_stream_pair()
    socket = ServerSocket(one, b"", 1_000)
    async with trio.open_nursery() as nursery:

        async def receive():
            with pytest.raises(SocketClosed):
                await socket.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(2):
            await socket.close(4401, "no")
    assert socket.close_code == 4401
    with trio.fail_after(0.1):
        await socket.close(1000)


async def test_a_close_is_read_by_the_peer_and_what_it_says_then_by_nobody():
    peer = Peer()

    async def client():
        peer.connection.receive_data(await peer.stream.receive_some())
        (said,) = peer.connection.events()
        await peer.stream.send_all(frame(TEXT, b"x" * 5_000) + frame(PING) + peer.connection.send(said.response()))
        return said

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        with trio.fail_after(0.5):
            await peer.socket.close(4401, "this ticket is none")
        with pytest.raises(SocketClosed):
            await peer.socket.receive()


async def test_a_silent_peer_is_cut_off_and_one_that_answers_is_not(autojump_clock):
    peer, silent = Peer(), Peer()

    async def answer():
        while True:
            peer.connection.receive_data(await peer.stream.receive_some())
            for event in peer.connection.events():
                if isinstance(event, Ping):
                    await peer.stream.send_all(peer.connection.send(event.response()))

    async def receive(socket, ended):
        with pytest.raises(SocketClosed):
            await socket.receive()
        ended.append(trio.current_time())

    ends: dict[str, list[float]] = {"peer": [], "silent": []}
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        for name, each in (("peer", peer), ("silent", silent)):
            nursery.start_soon(each.socket.keep_alive)
            nursery.start_soon(receive, each.socket, ends[name])
        await trio.sleep(600)
        assert ends["peer"] == []
        (ended,) = ends["silent"]
        assert module.SILENT_SECONDS < ended - began <= module.SILENT_SECONDS + module.PING_SECONDS
        nursery.cancel_scope.cancel()
