from __future__ import annotations

import io
import json
import socket
import sys
import threading
from contextlib import contextmanager, suppress

import pytest

from pylon.cli.main import run
from pylon.paths import Home
from tests.pylon.cli.agent_json import NOW


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("PYLON_HOME", "PYLON_NETWORK", "PYLON_DEBUG", "PYLON_SIMNET_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "home")


@pytest.fixture(autouse=True)
def now_of_the_stand_in(request, monkeypatch):
    """For tests of agents it is the moment that the stand-in's answers speak of, however long the run takes."""
    if request.module.__name__.rpartition(".")[2].startswith("test_agent"):
        monkeypatch.setattr("time.time", lambda: NOW)


@pytest.fixture
def pylon(home, capsys):
    """Run ``pylon --home ...``: exit code, stdout, stderr."""

    def pylon(*arguments: str):
        code = run(["--home", str(home.root), *arguments])
        return code, *capsys.readouterr()

    return pylon


@pytest.fixture
def simnet(pylon):
    """``pylon``, in a home on simnet."""
    assert pylon("init", "--network", "simnet")[0] == 0
    return pylon


@pytest.fixture
def daemon(home):
    """Stand in for the daemon: ``with daemon(*lines) as asked`` answers every call with ``lines``.

    A line is ``{"method", "params"}`` (a notification), ``{"result"}`` or ``{"error"}``; after ``None`` it hangs up,
    after ``...`` it is silent to its end.
    """

    @contextmanager
    def daemon(*lines):
        home.prepare()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(home.socket))
        listener.listen()
        asked, over = [], threading.Event()

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    answer(connection)

        def answer(connection):
            received = b""
            while not received.endswith(b"\n"):
                if not (more := connection.recv(65536)):
                    return
                received += more
            asked.append(json.loads(received))
            for line in lines:
                if line is None:
                    return
                if line is ...:
                    over.wait(10)
                    return
                own = {} if "method" in line else {"id": asked[-1]["id"]}
                connection.sendall(json.dumps({"jsonrpc": "2.0", **own, **line}).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(5)
            home.socket.unlink()

    return daemon


@pytest.fixture
def terminal(monkeypatch):
    """Somebody sits there, and types these lines."""

    def terminal(*lines):
        stdin = io.StringIO("".join(f"{line}\n" for line in lines))
        stdin.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stdin)

    return terminal


@pytest.fixture
def asked_once(pylon, daemon):
    """Run ``pylon agent ...`` against a daemon that answers ``result``: what was asked, stdout, stderr."""

    def asked_once(*arguments, **result):
        with daemon({"result": result}) as asked:
            code, out, err = pylon("agent", *arguments)
        assert code == 0, err
        return (asked[0]["method"], asked[0]["params"]), out, err

    return asked_once
