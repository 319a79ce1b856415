from __future__ import annotations

import itertools
import os
import socket

import pytest
import trio

from pylon.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path):
    """The socket of a service manager, and where it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(2)
        yield receiver, str(tmp_path / "notify")


def test_what_it_tells(manager):
    receiver, address = manager
    notifier = Notifier(address)
    notifier.ready("both,\nsimnet")
    assert receiver.recv(4096).decode().splitlines() == [
        "READY=1", "STATUS=both, simnet", f"MAINPID={os.getpid()}"
    ]  # fmt: skip
    notifier.reloading()
    first, second = receiver.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping()
    assert receiver.recv(4096).startswith(b"STOPPING=1\n")


@pytest.mark.skipif(not os.path.exists("/proc"), reason="abstract sockets are Linux's")
def test_an_abstract_address():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0pylon-test-{os.getpid()}")
        assert Notifier(f"@pylon-test-{os.getpid()}").tell("READY=1")
        assert receiver.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "relative"])
def test_nobody_listens(address):
    assert Notifier(address).tell("READY=1") is False


def test_a_manager_that_does_not_read_is_not_waited_for(manager):
    _, address = manager
    notifier = Notifier(address)
    for _ in range(100_000):
        if not notifier.tell("STATUS=" + "x" * 1_000):
            break
    else:
        raise AssertionError("it never got full")


@pytest.mark.parametrize(
    ("environ", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_environment_is_taken(environ, watchdog):
    left = {**environ, "OTHER": "1"}
    assert Notifier.taken(left).watchdog == watchdog
    assert left == {"OTHER": "1"}


async def test_it_beats_in_time(autojump_clock, monkeypatch):
    notifier, told = Notifier("/x", watchdog=3.0), []
    monkeypatch.setattr(notifier, "tell", lambda *lines: told.append((trio.current_time(), lines)))
    began = trio.current_time()
    with trio.move_on_after(29.5):
        await notifier.beat()
    assert {lines for _, lines in told} == {("WATCHDOG=1",)}
    times = [at - began for at, _ in told]
    assert times[0] == 0
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) <= 1.5, "one may be lost"
    assert len(times) == 30


async def test_without_a_watchdog_it_is_silent(manager):
    await Notifier(manager[1]).beat()
    await Notifier("", watchdog=1.0).beat()
