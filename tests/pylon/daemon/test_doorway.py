"""Control over loopback TCP: only who can read the cookie is heard, and a stranger on the port learns nothing."""

from __future__ import annotations

import json
import socket
import stat
import threading
from contextlib import closing, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.cli.client import ControlClient, call, is_running
from pylon.daemon import doorway
from pylon.errors import AlreadyRunning, ControlError, NotFound, NotRunning
from tests.pylon.daemon.test_control import blocking, home, request, server

__all__ = ["home"]


@pytest.fixture(autouse=True)
def by_tcp(monkeypatch):
    monkeypatch.setenv("PYLON_CONTROL", "tcp")


def port_of(home):
    known = doorway.read_cookie(home.cookie)
    assert known is not None
    return known[0]


def raw(home):
    client = socket.create_connection(("127.0.0.1", port_of(home)), timeout=5)
    client.settimeout(5)
    return client


def all_that_comes(client):
    got = b""
    with closing(client):
        try:
            while chunk := client.recv(65_536):
                got += chunk
        except ConnectionError:
            pass
    return got


async def test_the_client_finds_its_way(home):
    async with server(home):
        assert not home.socket.exists()
        assert home.may_answer
        assert stat.S_IMODE(home.cookie.stat().st_mode) == 0o600
        assert await blocking(call, home, "echo", {"a": 1}) == {"a": 1}
        assert await blocking(is_running, home)
        with pytest.raises(NotFound):
            await blocking(call, home, "wrapped", {})
    assert not home.may_answer
    with pytest.raises(NotRunning):
        await blocking(call, home, "echo")


async def test_many_calls_and_progress_on_one_connection(home):
    def talk():
        seen = []
        with ControlClient(home.socket, timeout=10) as client:
            answers = [client.call("echo", {"n": n}) for n in range(20)]
            client.call("count", {"to": 3}, on_progress=lambda method, params: seen.append(params["number"]))
            return answers, seen, len(client.call("big"))

    async with server(home):
        assert await blocking(talk) == ([{"n": n} for n in range(20)], [0, 1, 2], 8_000_000)


async def test_a_socket_that_was_left_does_not_hide_it(home):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.socket))
    async with server(home):
        assert await blocking(call, home, "echo", {"a": 1}) == {"a": 1}


async def test_a_second_daemon_is_refused(home):
    async with server(home):
        before = home.cookie.read_text()
        with pytest.raises(ExceptionGroup) as refused:
            async with server(home):
                pass
        assert refused.group_contains(AlreadyRunning)
        assert home.cookie.read_text() == before
        assert await blocking(call, home, "echo") == {}


async def test_each_start_has_a_secret_of_its_own(home):
    found = set()
    for _ in range(3):
        async with server(home):
            found.add(doorway.read_cookie(home.cookie)[1])
    assert len(found) == 3


# --- strangers at our door --------------------------------------------------------------------------------------------

HELLO = f"{doorway.GREETING} {'ab' * 32}\n".encode()


@pytest.mark.parametrize(
    "said",
    [
        request(), b"\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000, HELLO + request(),
        HELLO + b"00" * 32 + b"\n" + request(), HELLO.replace(b"1 ", b"2 "),
        HELLO.replace(b"abab", b"ab"), HELLO.replace(b"\n", b" 1\n"), "ä\n".encode(),
    ],
)  # fmt: skip
async def test_who_does_not_know_the_secret_is_not_heard(home, said):
    def knock():
        client = raw(home)
        with suppress(OSError):  # it may have hung up by now
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
        return all_that_comes(client)

    async with server(home):
        got = await blocking(knock)
        assert b"jsonrpc" not in got
        assert got.count(b"\n") == said.startswith(HELLO), "only a whole greeting is answered"
        assert await blocking(call, home, "echo") == {}


def greet(home, client, hello, more=b""):
    """By hand, the rest of ``HELLO`` being ``hello``. Returns the proof."""
    _, cookie = doorway.read_cookie(home.cookie)
    client.sendall(hello)
    theirs, shown = client.makefile("rb", buffering=0).readline().split()
    ours, theirs = bytes.fromhex("ab" * 32), bytes.fromhex(theirs.decode())
    assert shown.decode() == doorway.proof(cookie, "daemon", ours, theirs)
    proof = doorway.proof(cookie, "client", ours, theirs).encode() + b"\n"
    client.sendall(proof + more)
    return proof


async def test_what_somebody_else_has_shown_opens_nothing(home):
    """A proof holds for one conversation: the daemon's number is new in each."""

    def overhear():
        with closing(raw(home)) as client:
            spoken = HELLO + greet(home, client, HELLO)
            client.sendall(request())
            assert b"result" in client.makefile("rb").readline()
        client = raw(home)
        with suppress(OSError):
            client.sendall(spoken + request())
            client.shutdown(socket.SHUT_WR)
        return all_that_comes(client)

    async with server(home):
        assert b"jsonrpc" not in await blocking(overhear)


async def test_a_proof_byte_by_byte_is_one_too(home):
    def slowly():
        with closing(raw(home)) as client:
            for byte in HELLO[:-1]:
                client.send(bytes([byte]))
            greet(home, client, b"\n", request(params={"x": 1}))
            return json.loads(client.makefile("rb").readline())

    async with server(home):
        assert (await blocking(slowly))["result"] == {"x": 1}


# --- a stranger on the port that ours had -----------------------------------------------------------------------------


@contextmanager
def stranger(answer):
    """Listens, answers the first words with its own, and remembers whatever it is told."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def listen():
            client, _ = listener.accept()
            with closing(client):
                client.settimeout(0.3)
                heard.append(client.recv(4_096))
                client.sendall(answer)
                try:
                    while chunk := client.recv(4_096):
                        heard.append(chunk)
                except (TimeoutError, ConnectionError):
                    pass

        thread = threading.Thread(target=listen)
        thread.start()
        yield listener.getsockname()[1], heard
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"ab" * 32 + b" " + b"00" * 32 + b"\n", b"ab " * 100, b"\xff\n"],
)
def test_a_stranger_on_the_port_learns_a_random_number(home, answer):
    secret = b"\x11" * 32
    with stranger(answer) as (port, heard):
        home.cookie.write_text(f"{port} {secret.hex()}\n")
        with pytest.raises(NotRunning):
            call(home, "echo", {"canary": "do not tell"})
    said = b"".join(heard)
    assert said.count(b"\n") == 1, "one line, and no proof"
    assert said.startswith(doorway.GREETING.encode())
    assert b"canary" not in said
    assert secret.hex().encode() not in said


def test_who_is_silent_is_given_up(home):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        home.cookie.write_text(f"{listener.getsockname()[1]} {'11' * 32}\n")
        with pytest.raises(ControlError, match="does not greet"):
            ControlClient(home.socket, timeout=0.2)


def test_nobody_waits_for_ever_for_a_greeting(home, monkeypatch):
    """Who would wait for ever for an answer (a backup) does not wait so for a stranger who has the port by now."""
    monkeypatch.setattr(doorway, "GREETING_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        home.cookie.write_text(f"{listener.getsockname()[1]} {'11' * 32}\n")
        with pytest.raises(ControlError, match=r"does not greet within 0\.2 s"):
            ControlClient(home.socket, timeout=None)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.one_of(st.binary(max_size=200), st.sampled_from([b"", b"1 2", b"70000 " + b"11" * 32, b"1 \xff"])))
def test_whatever_stands_in_the_cookie(tmp_path_factory, content):
    home = tmp_path_factory.getbasetemp() / "cookies"
    home.mkdir(exist_ok=True)
    (home / "control.cookie").write_bytes(content)
    known = doorway.read_cookie(home / "control.cookie")
    assert known is None or len(known[1]) == 32
    if known is None:
        with pytest.raises(NotRunning):
            ControlClient(home / "control.sock", timeout=0.1)


async def test_a_cookie_of_a_dead_daemon_is_replaced_and_a_new_ones_is_left(home):
    home.cookie.write_text(f"1 {'11' * 32}\n")
    async with server(home):
        assert await blocking(call, home, "echo") == {}
        home.cookie.write_text(f"2 {'22' * 32}\n")
    assert home.cookie.read_text().startswith("2 ")
