"""``pylon stop`` where the kernel names no holder; real daemons are in ``tests/e2e/test_background.py``."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import contextmanager
from functools import partial

import pytest


@pytest.fixture
def home(home):
    home.prepare()
    return home


@pytest.fixture
def stop(pylon):
    return partial(pylon, "stop")


@contextmanager
def unseen(home, *, ends=True):
    """Something that answers on the control socket, and holds no lock."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home.socket))
    listener.listen()
    asked, over = [], threading.Event()

    def serve():
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                line = connection.recv(65_536)
                if not line:
                    continue  # only a look
                asked.append(json.loads(line)["method"])
                connection.sendall(b'{"jsonrpc": "2.0", "id": 1, "result": {"stopping": true}}\n')
                if ends:
                    listener.close()
                    os.unlink(home.socket)
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        if home.socket.exists():
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(home.socket))
        thread.join()
        listener.close()


def test_nobody(stop):
    code, out, err = stop()
    assert (code, out) == (3, "")
    assert "pylon start" in err
    assert json.loads(stop("--json", "-f")[2])["error"]["code"] == "not_running"


def test_one_that_cannot_be_seen_is_asked(stop, home):
    with unseen(home) as asked:
        code, out, _ = stop("--json")
    assert (code, asked) == (0, ["stop"])
    assert json.loads(out)["pid"] is None


def test_and_nothing_more(stop, home):
    with unseen(home, ends=False):
        code, out, err = stop("-f", "-t", "0.3")
    assert (code, out) == (1, "")
    assert "has heard, and has not ended" in err


@pytest.mark.parametrize("arguments", [("-t", "-1"), ("-t", "soon"), ("now",)])
def test_usage(stop, arguments):
    assert stop(*arguments)[0] == 2
