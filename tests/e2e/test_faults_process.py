"""What can go wrong around the process, by real ones: strangers, leftovers, rivals, and clients of every kind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import psutil
import pytest

from pylon.daemon import holder
from tests.e2e.homes import PORTS_OF_ITS_OWN, command, environment, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


@contextmanager
def process(*arguments):
    """A process of ours, which ends with the block."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.fixture
def stranger():
    with process(sys.executable, "-c", "import time; time.sleep(600)") as started:
        yield started


def usable(node):
    """It starts, answers, and ends well."""
    node.start("host")
    assert node.json("status")["daemon"]["pid"] == node.daemon.pid
    node.stop()
    node.check_books()


# --- what is left behind, and strangers -------------------------------------------------------------------------------


def test_a_pid_file_is_no_proof(node, stranger):
    """Neither ``stop`` nor ``status`` believes a number, and ``stop -f`` kills nobody for it."""
    node.start("host").kill()
    for pid in (stranger.pid, node.daemon.pid, 1, -1, "nonsense"):
        (node.root / "pylon.pid").write_text(f"{pid}\n")
        for arguments in (("stop", "-f", "-t", "0"), ("status",)):
            done = node.run(*arguments)
            assert done.returncode == 3, (arguments, done.stderr)
        assert stranger.poll() is None
    (node.root / "pylon.pid").write_text(f"{stranger.pid}\n")
    usable(node)
    assert stranger.poll() is None


def test_a_command_at_work_is_not_taken_for_the_daemon(node, stranger):
    """It holds the home, and an old pid file names a stranger."""
    (node.root / "pylon.pid").write_text(f"{stranger.pid}\n")
    code = (
        "import sys\nfrom pylon.daemon.process import *\n"
        "with hold_home(Home(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with process(sys.executable, "-c", code, str(node.root)) as busy:
        assert busy.stdout.readline() == "held\n"
        refused = node.run("start", "-m", "host")
        assert refused.returncode == 1
        assert "another pylon command is at work" in refused.stderr
        assert str(stranger.pid) not in refused.stderr
        assert node.run("stop", "-f").returncode == 3
        assert busy.poll() is None
    assert stranger.poll() is None
    usable(node)


def test_a_socket_that_was_left(node):
    node.start("host").kill()
    assert (node.root / "control.sock").is_socket()
    assert node.run("status").returncode == 3
    assert node.run("stop").returncode == 3
    usable(node)


@pytest.mark.parametrize("kind", ["file", "directory", "link to nothing"])
def test_something_else_in_the_sockets_place(node, kind):
    path = node.root / "control.sock"
    if kind == "file":
        path.write_text("x")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    done = node.run("status")
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    if kind == "directory":
        refused = node.run("start", "-m", "host")
        assert refused.returncode == 1
        assert "control.sock" in refused.stderr
        path.rmdir()
    usable(node)


def test_somebody_else_listens_on_the_socket(node):
    """It is not taken from who uses it."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(node.root / "control.sock"))
        other.listen()
        refused = node.run("start", "-m", "host")
        assert refused.returncode == 1
        assert "control.sock" in refused.stderr
    usable(node)


# --- rivals -----------------------------------------------------------------------------------------------------------


def test_of_four_that_start_at_once_one_runs(node):
    daemons = [node.start("host", wait=False) for _ in range(4)]
    until(lambda: sum(each.process.poll() is None for each in daemons) == 1, 60, "three refused")
    (winner,) = [each for each in daemons if each.process.poll() is None]
    until(lambda: node.run("status").returncode == 0, 40, "it is ready")
    assert node.json("status")["daemon"]["pid"] == winner.pid
    assert sorted(each.process.returncode for each in daemons if each is not winner) == [1, 1, 1]
    node.daemon = winner
    node.stop()
    node.check_books()


def test_one_phrase_runs_once(world, node):
    """In two homes: the second one says so, and may run when the first one has ended."""
    twin = world.node("twin")
    shutil.copytree(node.root, twin.root, dirs_exist_ok=True)
    node.start("host")
    for arguments in (("start", "-m", "host"), ("start", "-m", "provider"), ("start", "-d")):
        refused = twin.run(*arguments, "--json")
        assert refused.returncode == 1
        assert json.loads(refused.stderr.splitlines()[-1])["error"]["code"] == "already_running"
    assert node.json("status")["daemon"]["pid"] == node.daemon.pid
    node.stop()
    usable(twin)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_hanging_up_reads_the_configuration_again(node):
    """It does not end it; what is wrong changes nothing, and is said."""
    daemon = node.start("host")
    config = node.home.config.read_text()

    def hang_up(words):
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: any(words in record["event"] for record in node.json_lines("logs")), 10, words)

    node.home.config.write_text(config.replace("relays = []", 'relays = ["ws://127.0.0.1:9"]'))
    hang_up("in force: relays")
    assert "ws://127.0.0.1:9" in [relay["url"] for relay in node.ask("status")["relays"]]
    node.home.config.write_text("relays = 3")
    hang_up("the configuration was not taken over")
    node.home.log.rename(node.home.logs / "moved")
    node.home.config.write_text(config)
    hang_up("in force: relays")
    assert node.json("status")["daemon"]["pid"] == daemon.pid
    assert node.home.log.exists(), "the log was opened anew"
    node.stop()


@pytest.mark.parametrize("way", ["start", "start -d"])
def test_a_kill_leaves_no_orphan(model, node, way):
    """The model's process, too, ends with the daemon, however that ends."""
    if way == "start":
        pid = node.start("both", "--model-file", str(model.path)).pid
    else:
        done = node.start_detached("--model-file", str(model.path), "--json", timeout=90)
        assert done.returncode == 0, done.stderr
        pid = json.loads(done.stdout)["pid"]
    children = until(lambda: psutil.Process(pid).children(recursive=True), 60, "an engine")
    with holder.find(node.home.pid) as running:
        running.signal(signal.SIGKILL)
    until(
        lambda: not [each for each in children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE],
        10,
        "the end of its children",
    )


# --- clients of the control socket ------------------------------------------------------------------------------------


def connection(node):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(str(node.root / "control.sock"))
    return client


def test_silent_slow_and_huge_clients_keep_nobody_waiting(node):
    daemon = node.start("host")
    before = psutil.Process(daemon.pid).memory_info().rss
    over = threading.Event()

    def slow():
        with connection(node) as client:
            for byte in b'{"jsonrpc": "2.0", "id": 1, "method": "status"}' * 20:
                try:
                    client.send(bytes([byte]))
                except OSError:
                    return
                if over.wait(0.05):
                    return

    def huge():
        """Endless lines, again and again."""
        while not over.is_set():
            with connection(node) as client:
                try:
                    while not over.is_set():
                        client.sendall(b"x" * 65_536)
                except OSError:
                    continue

    def deaf():
        """Asks and asks, and never reads an answer."""
        with connection(node) as client:
            client.settimeout(0.5)
            try:
                while not over.is_set():
                    client.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n' * 50)
            except OSError:
                over.wait(20)

    with ExitStack() as stack:
        silent = [stack.enter_context(connection(node)) for _ in range(100)]
        threads = [threading.Thread(target=kind) for kind in (slow, slow, huge, deaf, deaf)]
        for thread in threads:
            thread.start()
        try:
            took = []
            for _ in range(8):
                began = time.monotonic()
                done = node.run("status", "--json")
                took.append(time.monotonic() - began)
                assert done.returncode == 0, done.stderr
                assert json.loads(done.stdout)["daemon"]["pid"] == daemon.pid
            grown = psutil.Process(daemon.pid).memory_info().rss - before
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert len(silent) == 100
    assert grown < 64 << 20, f"it has grown by {grown >> 20} MiB"
    assert sorted(took)[4] < 2.0, took
    node.stop()


def test_nonsense_of_every_kind(node):
    daemon = node.start("host")
    rng = random.Random(7)
    lines = [
        b"\0" * 100, b"[]", b"{}", b'{"jsonrpc":"2.0","id":[],"method":"status"}', b'"status"', b"null", b"1e999",
        b'{"jsonrpc":"2.0","id":1,"method":"status","params":[1]}', b"[" * 100_000, b'{"a":' * 10_000,
        b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * 10_000 + b'"}', rng.randbytes(5_000).replace(b"\n", b""),
    ]  # fmt: skip
    for line in lines:
        with connection(node) as client:
            client.sendall(line + b"\n")
            answer = json.loads(client.makefile("rb").readline())
            assert "error" in answer, line[:50]
    assert node.json("status")["daemon"]["pid"] == daemon.pid
    assert node.json_lines("logs", "--level", "error") == []
    node.stop()


def test_status_answers_in_time_when_the_daemon_does_not(node):
    daemon = node.start("host")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = node.run("status", "--json")
        took = time.monotonic() - began
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    assert took < 6, "two seconds, and what a command costs on a busy machine"
    told = json.loads(done.stdout)
    assert (told["daemon"]["running"], told["daemon"]["pid"]) == (True, daemon.pid)
    assert "has not answered" in told["silent"]
    assert json.loads(done.stderr)["error"]["code"] == "control"
    until(lambda: node.run("status").returncode == 0, 20, "it answers again")
    node.stop()


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no database", "header", "middle"])
def test_a_damaged_database_is_said_and_left_alone(node, damage):
    node.start("host")
    node.stop()
    path = node.home.database
    content = bytearray(path.read_bytes())
    if damage == "no database":
        content[:] = b"these are not the bytes of a database\n" * 200
    elif damage == "header":
        content[:32] = bytes(32)
    else:
        content[4_096:] = os.urandom(len(content) - 4_096)
    path.write_bytes(content)
    for arguments in (("start", "-m", "host"), ("start", "-d", "-m", "host")):
        done = node.run(*arguments)
        assert done.returncode == 1, done.stderr
        assert "pylon.db" in done.stderr
        assert "restore a backup" in done.stderr
        assert "Traceback" not in done.stderr
    assert path.read_bytes() == bytes(content)
    assert node.run("status").returncode == 3


def test_a_database_that_another_program_holds(world):
    """No paid work meanwhile; afterwards it goes on."""
    relay = world.relay()
    node = world.node("held").configure(relays=[relay])
    node.start("provider", fake=True)
    with closing(sqlite3.connect(node.home.database, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = node.run("wallet", "freeze", "--json")
        assert "another process holds the database" in json.loads(refused.stderr)["error"]["message"]
        status = until(lambda: node.ask("status")["provider"]["closed"], 30, "it is closed")
        assert "another process holds the database" in status
        other.execute("ROLLBACK")
    until(lambda: not node.ask("status")["provider"]["closed"], 30, "it is open again")
    node.stop()
    node.check_books()


def test_the_command_that_was_given_up(node):
    """Ctrl-C while ``start -d`` waits ends what it started."""
    node.world.detached.append(node.home)
    waiting = subprocess.Popen(
        [command(), "--home", str(node.root), "start", "-d", "-m", "host"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    until(lambda: holder.find(node.home.pid), 20, "it holds the home")
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=20)
    if waiting.returncode == 130:
        until(lambda: holder.find(node.home.pid) is None, 20, "nothing is left")
    else:
        assert waiting.returncode == 0, "it was ready before"
        assert node.run("stop").returncode == 0
    usable(node)
