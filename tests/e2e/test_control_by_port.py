"""Control by a loopback port, as where there are no Unix sockets; and the whole daemon without what Windows lacks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.e2e.homes import PORTS_OF_ITS_OWN, Daemon, environment

pytestmark = pytest.mark.e2e

BY_PORT = {"PYLON_CONTROL": "tcp"}
FORGETFUL = """
import os, signal, socket, sys
import asyncio, subprocess, ssl, trio, filelock, hypercorn  # what of others wants them has them by now
pair, unix = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda *arguments: pair(unix)  # Trio's and Python's own
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in {
    socket: ["AF_UNIX"], signal: ["SIGHUP", "SIGKILL", "pidfd_send_signal"],
    os: ["O_DIRECTORY", "getuid", "pidfd_open", "fork"],
}.items():
    for name in names:
        delattr(module, name)
from pylon.cli.main import main
main(sys.argv[1:])
"""
"""The command in a Python that has lost what Windows has not; that other things are there is no proof that it runs."""


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


def test_commands_find_a_daemon_by_its_port(node):
    daemon = node.start("host", more=BY_PORT)
    assert not (node.root / "control.sock").exists()
    cookie = node.root / "control.cookie"
    assert cookie.stat().st_mode & 0o077 == 0
    secret = cookie.read_text().split()[1]
    assert node.json("status")["daemon"]["pid"] == daemon.pid
    assert node.json("config", "reload")["applied"] == []
    assert node.run("start", "-m", "host").returncode == 1
    daemon.process.send_signal(signal.SIGSTOP)
    silent = node.run("status", "--json")
    daemon.process.send_signal(signal.SIGCONT)
    assert silent.returncode == 1
    assert (
        json.loads(silent.stdout)["daemon"] | {"running": True, "pid": daemon.pid}
        == json.loads(silent.stdout)["daemon"]
    )
    assert secret not in node.home.log.read_text() + daemon.said()
    # One that dies leaves it; the next one listens on a socket again, and is found there.
    daemon.kill()
    assert cookie.exists()
    assert node.run("status").returncode == 3
    assert [row["detail"] for row in node.json("doctor")["checks"] if row["check"] == "daemon"] == [
        "none runs, and one that died has left control.cookie and pylon.pid"
    ]
    node.start("host")
    assert node.json("status")["daemon"]["pid"] == node.daemon.pid
    node.stop()


def test_without_what_windows_lacks(world, node):
    """No locks of records, no Unix sockets, no hang-up, no modes: it starts, is asked, and ends."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", FORGETFUL, "--home", str(node.root), *arguments],
            capture_output=True, text=True, timeout=60, check=False, env=environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip

    assert run("config", "set", "log.level", "warning").returncode == 0
    arguments = [sys.executable, "-c", FORGETFUL, "--home", str(node.root), "start", "-m", "host"]
    daemon = Daemon(arguments, world.directory / "forgetful.out")
    world.daemons.append(daemon)
    daemon.ready()
    found = run("status", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["daemon"]["pid"] == daemon.pid
    assert run("agent", "spawn", "ada", "--json").returncode == 0
    assert run("wallet", "fund", "-a", "10", "--json").returncode == 0
    assert run("doctor", "--json").returncode == 0
    second = run("start", "-m", "host")
    assert second.returncode == 1
    assert "at work" in second.stderr
    stopped = run("stop", "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert daemon.process.wait(20) == 0, daemon.said()
    assert not (node.root / "control.cookie").exists()
    assert run("status").returncode == 3
    assert run("books", "--check").returncode == 0
