from __future__ import annotations

import json
import os
import socket
import stat
import threading
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.cli.client import ControlClient, call
from pylon.daemon.control import Limits, serve_control
from pylon.errors import AlreadyRunning, ControlError, InsufficientFunds, NotFound, NotRunning, PylonError
from pylon.paths import Home


class Strange(PylonError):
    """An error of a newer daemon, unknown to the client."""

    code = "strange"
    exit_code = 4


async def echo(params, notify):
    return params


async def refuse(params, notify):
    raise InsufficientFunds(5_000, 1_000)


async def strange(params, notify):
    raise Strange("odd", "look")


async def crash(params, notify):
    raise RuntimeError("secret words")


async def wrapped(params, notify):
    async with trio.open_nursery():
        raise NotFound("no such job \udcff", "pylon job list")


async def unsayable(params, notify):
    return object()


async def count(params, notify):
    for number in range(params["to"]):
        await notify("progress", {"number": number})
    return "done"


async def slow(params, notify):
    await trio.sleep(params.get("seconds", 0.3))
    return "late"


async def big(params, notify):
    return "x" * 8_000_000


METHODS = {f.__name__: f for f in (echo, refuse, strange, crash, wrapped, unsayable, count, slow, big)}


@asynccontextmanager
async def server(home: Home, *, methods=METHODS, **kwargs):
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve_control(home, methods, task_status=task_status, **kwargs))
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    return home


async def connect(home: Home) -> trio.SocketStream:
    return await trio.open_unix_socket(str(home.socket))


async def ask(stream: trio.SocketStream, raw: bytes) -> dict:
    await stream.send_all(raw)
    return json.loads(await read_line(stream))


async def read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    with trio.fail_after(5):
        while not line.endswith(b"\n"):
            received = await stream.receive_some(65536)
            if not received:
                return line
            line += received
    return line


def request(method="echo", params=None, id=1, **more) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}, **more}).encode() + b"\n"


async def blocking(function, *args, **kwargs):
    return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), abandon_on_cancel=True)


async def still_serves(home: Home) -> None:
    assert await blocking(call, home, "echo", {"ok": 1}, timeout=5.0) == {"ok": 1}


# --- client and server ------------------------------------------------------------------------------------------------


async def test_a_call_and_its_answer(home):
    async with server(home):
        assert await blocking(call, home, "echo", {"a": [1, "zwei", None]}) == {"a": [1, "zwei", None]}


async def test_socket_is_closed_to_others_whatever_the_umask(home):
    old = os.umask(0)
    try:
        async with server(home):
            assert stat.S_IMODE(home.socket.lstat().st_mode) == 0o600
            assert [name for name in os.listdir(home.data) if name.startswith(".s")] == []
    finally:
        os.umask(old)


async def test_many_calls_on_one_connection_in_order(home):
    def talk():
        with ControlClient(home.socket) as client:
            return [client.call("echo", {"n": n}) for n in range(50)]

    async with server(home):
        assert await blocking(talk) == [{"n": n} for n in range(50)]


async def test_progress_precedes_the_result(home):
    seen = []
    async with server(home):
        result = await blocking(
            call, home, "count", {"to": 3}, on_progress=lambda method, params: seen.append((method, params))
        )
    assert result == "done"
    assert seen == [("progress", {"number": n}) for n in range(3)]


async def test_an_error_of_pylon_is_itself_on_the_other_side(home):
    async with server(home):
        with pytest.raises(InsufficientFunds) as caught:
            await blocking(call, home, "refuse")
        assert caught.value.exit_code == 4
        assert "4.000" in caught.value.message or "5.000" in caught.value.message
        assert caught.value.hint == "fund the wallet: pylon wallet fund"
        with pytest.raises(PylonError, match="odd") as caught:
            await blocking(call, home, "strange")
        assert (caught.value.code, caught.value.exit_code, caught.value.hint) == ("strange", 4, "look")
        with pytest.raises(NotFound, match="no such job"):
            await blocking(call, home, "wrapped")


@pytest.mark.parametrize("method", ["crash", "unsayable"])
async def test_a_method_that_breaks_harms_only_its_call(home, method):
    seen = []
    async with server(home, on_error=lambda name, error: seen.append(name)):
        with pytest.raises(ControlError) as caught:
            await blocking(call, home, method)
        assert "secret" not in str(caught.value)
        await still_serves(home)
    assert seen == [method]


async def test_a_large_answer_arrives_whole(home):
    async with server(home):
        assert len(await blocking(call, home, "big", timeout=10.0)) == 8_000_000


async def test_a_home_far_down(tmp_path):
    home = Home(tmp_path / ("d" * 100) / ("e" * 100))
    home.prepare()
    async with server(home):
        await still_serves(home)
    assert not home.socket.exists()


def test_nobody_listens(home):
    with pytest.raises(NotRunning) as caught:
        call(home, "status")
    assert caught.value.exit_code == 3
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(home.socket))
    left.close()
    with pytest.raises(NotRunning):
        call(home, "status")
    with pytest.raises(NotRunning):
        call(Home(home.root / "no" / "where"), "status")


async def test_a_slow_daemon_is_not_waited_for_longer_than_asked(home):
    async with server(home):
        with pytest.raises(ControlError, match=r"within 0\.05 s"):
            await blocking(call, home, "slow", timeout=0.05)
        await still_serves(home)


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\n", b"[]\n", b'{"jsonrpc":"2.0","id":99,"result":1}\n', b'{"id":1}\n', b"[" * 100_000 + b"\n"],
)
def test_a_daemon_that_speaks_nonsense(home, answer):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home.socket))
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ControlError):
        call(home, "status")
    thread.join()
    listener.close()


# --- the wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "code", "known"),
    [
        (b"not json\n", -32700, None),
        (b"\xff\xfe\n", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":NaN}\n', -32700, None),
        (b"[" * 5_000 + b"\n", -32700, None),
        (b"3\n", -32600, None),
        (b"[]\n", -32600, None),
        (b"[" + request().strip() + b"]\n", -32600, None),
        (b'{"id":7,"method":"echo"}\n', -32600, 7),
        (b'{"jsonrpc":"1.0","id":7,"method":"echo"}\n', -32600, 7),
        (b'{"jsonrpc":"2.0","id":7}\n', -32600, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":8}\n', -32600, 7),
        (b'{"jsonrpc":"2.0","id":{},"method":"echo"}\n', -32600, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"echo"}\n', -32600, None),
        (request("nothing", id="x"), -32601, "x"),
        (b'{"jsonrpc":"2.0","id":7,"method":"echo","params":[1]}\n', -32602, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":"echo","params":null}\n', -32602, 7),
    ],
)
async def test_malformed_requests_have_their_numbers(home, raw, code, known):
    async with server(home), await connect(home) as stream:
        answer = await ask(stream, raw)
        assert (answer["error"]["code"], answer["id"]) == (code, known)
        assert answer["jsonrpc"] == "2.0"
        assert (await ask(stream, request()))["result"] == {}, "the connection goes on"


async def test_a_pylon_error_carries_its_data(home):
    async with server(home), await connect(home) as stream:
        error = (await ask(stream, request("refuse")))["error"]
    assert error["code"] == -32000
    assert error["data"] == {
        "code": "insufficient_funds",
        "message": error["message"],
        "hint": "fund the wallet: pylon wallet fund",
        "exit_code": 4,
    }


async def test_notifications_and_blank_lines_are_not_answered(home):
    async with server(home), await connect(home) as stream:
        quiet = b'\n \n{"jsonrpc":"2.0","method":"echo"}\n{"jsonrpc":"2.0","method":"nothing"}\n'
        assert (await ask(stream, quiet + request(id=5)))["id"] == 5


async def test_params_may_be_left_out_and_bytes_may_trickle(home):
    async with server(home), await connect(home) as stream:
        raw = b'{"jsonrpc":"2.0","id":1,"method":"echo"}\n'
        for position in range(len(raw)):
            await stream.send_all(raw[position : position + 1])
        assert json.loads(await read_line(stream))["result"] == {}


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(st.binary(max_size=60) | st.sampled_from([request(), b'{"jsonrpc":"2.0",', b"{}"]), max_size=6))
def test_any_bytes_leave_the_server_serving(tmp_path_factory, lines):
    home = Home(tmp_path_factory.mktemp("any"))

    async def main():
        async with server(home):
            async with await connect(home) as stream:
                for line in lines:
                    await stream.send_all(line + b"\n")
                answer = await ask_last(stream, request(id="last"))
                assert answer["result"] == {}

    trio.run(main)


async def ask_last(stream, raw):
    await stream.send_all(raw)
    received = b""
    with trio.fail_after(5):
        while b'"last"' not in received or not received.endswith(b"\n"):
            received += await stream.receive_some(65536)
    return json.loads(received.splitlines()[-1])


# --- bad neighbours ---------------------------------------------------------------------------------------------------


async def flood(stream: trio.SocketStream, raw: bytes, pause: float = 0.0) -> None:
    while True:
        await stream.send_all(raw)
        await trio.sleep(pause)


async def test_a_silent_client_is_dropped(home):
    async with server(home, limits=Limits(first_request=0.1)), await connect(home) as stream:
        with trio.fail_after(2):
            assert await stream.receive_some(1) == b""
        await still_serves(home)


async def test_a_client_that_trickles_is_dropped_as_well(home):
    async with server(home, limits=Limits(first_request=0.2)), await connect(home) as stream:
        with trio.fail_after(2), pytest.raises(trio.BrokenResourceError):
            await flood(stream, b"{", pause=0.02)
        await still_serves(home)


async def test_a_client_may_be_idle_longer_after_its_first_request(home):
    async with server(home, limits=Limits(first_request=0.1, next_request=5)), await connect(home) as stream:
        await ask(stream, request())
        await trio.sleep(0.3)
        assert (await ask(stream, request(id=2)))["id"] == 2


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_huge_line_is_refused_and_not_kept(home, end):
    async with server(home, limits=Limits(max_line=1000)), await connect(home) as stream:
        with trio.fail_after(2), pytest.raises(trio.BrokenResourceError):
            await flood(stream, b"x" * 100_000 + end)
        await still_serves(home)


async def test_a_line_of_the_longest_length_is_served(home):
    raw = request(params={"pad": ""})
    limit = len(raw) + 1_000
    longest = request(params={"pad": "x" * 1_001})
    async with server(home, limits=Limits(max_line=limit)), await connect(home) as stream:
        assert len(longest) == limit + 1
        assert len((await ask(stream, longest))["result"]["pad"]) == 1_001
        answer = await ask(stream, request(params={"pad": "x" * 1_002}))
        assert answer["error"]["code"] == -32600
        assert await stream.receive_some(1) == b""


async def test_a_client_that_does_not_read_is_dropped(home):
    async with server(home, limits=Limits(write=0.2)):
        async with await connect(home) as stream:
            await stream.send_all(request("big") * 3)
            await trio.sleep(0.5)
            await still_serves(home)
            received = 0
            with trio.fail_after(5):
                while part := await stream.receive_some(1 << 20):
                    received += len(part)
            assert received < 8_000_000


async def test_a_vanishing_client_does_not_break_its_method(home):
    told = []
    finished = trio.Event()

    async def watched(params, notify):
        told.append(await notify("progress", {}))
        await trio.sleep(0.1)
        while await notify("progress", {"pad": "x" * 10_000}):
            await trio.lowlevel.checkpoint()
        told.append(await notify("progress", {}))
        finished.set()

    async with server(home, methods={**METHODS, "watched": watched}):
        stream = await connect(home)
        await stream.send_all(request("watched"))
        await read_line(stream)
        await stream.aclose()
        with trio.fail_after(5):
            await finished.wait()
        await still_serves(home)
    assert told == [True, False]


async def test_vanishing_in_the_middle_of_a_line_or_a_call(home):
    async with server(home):
        for raw in (b'{"jsonrpc"', request("slow"), request("big"), b""):
            stream = await connect(home)
            await stream.send_all(raw) if raw else None
            await stream.aclose()
        await still_serves(home)


async def test_silent_crowds_lock_nobody_out(home):
    async with server(home, limits=Limits(max_connections=4)):
        crowd = [await connect(home) for _ in range(20)]
        await still_serves(home)
        with trio.fail_after(2):
            for stream in crowd[:16]:
                assert await stream.receive_some(1) == b"", "the oldest ones have made room"
        for stream in crowd:
            await stream.aclose()


async def test_a_crowd_never_ends_a_call_in_progress(home):
    async with server(home, limits=Limits(max_connections=2)):
        async with await connect(home) as working, await connect(home) as other:
            await working.send_all(request("slow", {"seconds": 0.4}))
            await other.send_all(request("slow", {"seconds": 0.4}))
            await trio.sleep(0.1)
            refused = await connect(home)
            with trio.fail_after(2):
                assert await refused.receive_some(1) == b""
            await refused.aclose()
            assert json.loads(await read_line(working))["result"] == "late"
            assert json.loads(await read_line(other))["result"] == "late"
        await still_serves(home)


async def test_one_slow_call_does_not_hold_up_the_others(home):
    async with server(home), await connect(home) as stream:
        await stream.send_all(request("slow", {"seconds": 30}))
        await still_serves(home)


# --- the socket file --------------------------------------------------------------------------------------------------


async def test_a_stale_socket_is_replaced(home):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(home.socket))
    left.close()
    async with server(home):
        await still_serves(home)
    assert not home.socket.exists()


async def test_a_socket_that_somebody_serves_is_left_alone(home):
    async with server(home):
        with pytest.raises(AlreadyRunning):
            await serve_control(home, METHODS)
        await still_serves(home)


async def test_a_socket_of_another_is_not_removed(home):
    async with server(home):
        home.socket.unlink()
        home.socket.write_text("somebody else's")
    assert home.socket.read_text() == "somebody else's"


async def test_no_directory(tmp_path):
    with pytest.raises(ControlError, match=r"control\.sock"):
        await serve_control(Home(tmp_path / "none"), METHODS)
