"""``start -d`` and ``stop``, by real processes: ready when it says so, and why not when it says not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pylon.daemon import holder
from tests.e2e.homes import PASSPHRASE, PORTS_OF_ITS_OWN, command, environment, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_returns_when_it_is_ready_and_stop_ends_it(node):
    done = node.start_detached("-m", "host", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for said in ("Pylon runs as npub1", "relay: ws://127.0.0.1:", "no passphrase protects"):
        assert said in done.stderr
    status = node.json("status")  # at once: nobody waits for anything
    assert status["daemon"]["pid"] == told["pid"]
    assert (told["mode"], told["network"], told["home"]) == ("host", "simnet", str(node.root))
    assert told["api"] == status["api"]
    # It is a process of its own, that keeps nothing of ours.
    assert os.getsid(told["pid"]) == told["pid"]
    if sys.platform.startswith("linux"):
        opened = {number: os.readlink(f"/proc/{told['pid']}/fd/{number}") for number in (0, 1, 2)}
        assert opened == {0: "/dev/null", 1: str(node.home.log), 2: str(node.home.log)}
    assert psutil.Process(told["pid"]).cwd() == str(node.root)
    assert node.home.log.stat().st_mode & 0o077 == 0

    again = node.start_detached("--json")
    assert again.returncode == 1
    assert json.loads(again.stderr.splitlines()[-1])["error"]["code"] == "already_running"
    assert node.json("status")["daemon"]["pid"] == told["pid"]

    stopped = node.json("stop")
    assert (stopped["pid"], stopped["how"]) == (told["pid"], "asked")
    assert gone(told["pid"])
    assert not (node.root / "pylon.pid").exists()
    assert not (node.root / "control.sock").exists()
    for arguments in (("stop",), ("stop", "-f")):
        assert node.run(*arguments).returncode == 3
    node.check_books()


@pytest.mark.parametrize(
    ("config", "options", "code", "words"),
    [
        ('network = "simnet"\nrelays = "x"\n', (), "config", "config.toml:2"),
        ('network = "simnet"\nrelays = []\n[relay]\nenabled = false\n', (), "config", "no relay is configured"),
        (None, ("-m", "provider"), "model_missing", "no model is installed"),
        (None, ("--model-file", "nowhere.gguf"), "model_missing", "nowhere.gguf"),
    ],
)
def test_it_says_why_it_cannot_start(node, tmp_path, config, options, code, words):
    if config is not None:
        node.home.config.write_text(config)
    done = node.start_detached(*options, "--json", more={"PYLON_MODELS": str(tmp_path / "empty")})
    assert done.returncode == 1
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert error["hint"]
    assert holder.find(node.home.pid) is None
    assert node.run("status").returncode == 3


def test_what_cannot_be_asked_for(world, node):
    assert node.start_detached("-f").returncode == 2
    assert "there is no configuration" in node.start_detached("-c", "nowhere.toml").stderr
    (node.root / "identity.mnemonic").unlink()
    assert "pylon init" in node.start_detached().stderr


def test_another_configuration_by_a_relative_path_from_anywhere(node, tmp_path):
    """The daemon stands in its home, and the paths of the command stay what they were."""
    (tmp_path / "here").mkdir()
    node.home.config.rename(tmp_path / "here" / "other.toml")
    node.home.config.write_text("relays = 3")
    node.world.detached.append(node.home)
    done = subprocess.run(
        [command(), "start", "-d", "-m", "host", "-c", "other.toml", "--json"],
        cwd=tmp_path / "here",
        env=environment({"PYLON_HOME": "../home"}),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["home"] == str(node.root)
    assert node.json("stop")["how"] == "asked"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_during_the_start(node, number):
    """At several moments of it: it ends, or is ready; nothing is left that keeps the next one from starting."""
    for delay in (0, 250, 450, 700):
        daemon = node.start("host", wait=False)
        time.sleep(delay / 1_000)
        daemon.process.send_signal(number)
        code = daemon.process.wait(20)
        assert code in {0, -number, 130 if number == signal.SIGINT else 0}, (delay, daemon.said())
        assert "Traceback" not in daemon.said(), delay
    node.start("host")
    node.stop()
    node.check_books()


def test_who_waits_is_told_of_a_death_before_it_is_ready(node):
    """Killed while it starts: the command says so, with the log's place."""
    node.world.detached.append(node.home)
    process = subprocess.Popen(
        [command(), "--home", str(node.root), "start", "-d"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    running = until(lambda: holder.find(node.home.pid), 20, "it holds the home")
    with running:
        running.signal(signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert "ended by SIGKILL before it was ready" in err
    assert str(node.home.log) in err


# --- the passphrase ---------------------------------------------------------------------------------------------------


def test_a_passphrase_goes_by_a_descriptor(node, passphrase_file, tmp_path):
    node.world.detached.append(node.home)
    assert node.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    refused = node.start_detached("-m", "host")
    assert refused.returncode == 1
    assert "protected by a passphrase" in refused.stderr
    (tmp_path / "wrong").write_text("another")
    refused = node.run_with(tmp_path / "wrong", "start", "-d", "-m", "host", "--json", "--passphrase-fd")
    assert refused.returncode == 1
    assert json.loads(refused.stderr.splitlines()[-1])["error"]["code"] == "passphrase"

    done = node.run_with(passphrase_file, "start", "-d", "-m", "host", "--json", "--passphrase-fd")
    assert done.returncode == 0, done.stderr
    pid = json.loads(done.stdout)["pid"]
    process = psutil.Process(pid)
    assert PASSPHRASE not in " ".join([*process.cmdline(), *process.environ().values()])
    assert PASSPHRASE not in node.home.log.read_text()
    assert node.json("stop")["how"] == "asked"

    done = node.start_detached("-m", "host", more={"PYLON_PASSPHRASE_FILE": str(passphrase_file)})
    assert done.returncode == 0, done.stderr
    assert node.json("stop")["how"] == "asked"


def test_it_is_asked_for_on_the_terminal_before_the_background(node, passphrase_file):
    node.world.detached.append(node.home)
    assert node.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [command(), "--home", str(node.root), "start", "-d", "-m", "host", "--json"],
        stdin=follower, stdout=subprocess.PIPE, stderr=follower, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while b"Passphrase" not in shown:
        shown += os.read(leader, 1_000)
    os.write(leader, PASSPHRASE.encode() + b"\n")
    out, _ = process.communicate(timeout=40)
    os.close(leader)
    assert process.returncode == 0
    assert node.json("status")["daemon"]["pid"] == json.loads(out)["pid"]
    assert node.json("stop")["how"] == "asked"


# --- stopping what does not want to ------------------------------------------------------------------------------


def test_what_hangs_is_insisted_on(node):
    daemon = node.start("host")
    daemon.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    done = node.run("stop", "-t", "0.2")
    assert done.returncode == 1
    assert "pylon stop -f" in done.stderr
    assert time.monotonic() - began < 10
    assert daemon.process.poll() is None
    forced = node.json("stop", "-f", "-t", "0")
    assert (forced["pid"], forced["how"]) == (daemon.pid, "killed")
    assert daemon.process.wait(5) == -signal.SIGKILL
    assert node.run("stop").returncode == 3
    node.start("host")
    node.stop()
    node.check_books()


def test_a_shutdown_that_hangs_is_terminated(world):
    """A relay that takes the farewell and never answers may hold it up for a moment, and no longer than allowed."""
    node = world.node("slow").configure(more='[relay]\nbind = "127.0.0.1:0"\n')
    daemon = node.start("host")
    done = node.json("stop", "-t", "0")
    assert done["how"] in ("asked", "terminated")
    assert daemon.process.wait(5) in (0, -signal.SIGTERM)
    assert node.run("stop").returncode == 3


def test_what_only_starts_is_asked_too(node):
    daemon = node.start("host", wait=False)
    until(lambda: holder.find(node.home.pid), 20, "it holds the home")
    assert node.json("stop", "-t", "40")["how"] == "asked"
    assert daemon.process.wait(5) == 0, daemon.said()


def test_two_stops_at_once(node):
    daemon = node.start("host")
    arguments = [command(), "--home", str(node.root), "stop"]
    both = [subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=environment()) for _ in range(2)]
    codes = sorted(each.wait(20) for each in both)
    assert codes[0] == 0
    assert codes[1] in (0, 3)
    assert daemon.process.wait(5) == 0


# --- a service manager ------------------------------------------------------------------------------------------------


def test_a_service_manager_is_told_of_readiness_life_and_end(node, tmp_path):
    """As systemd would: Type=notify, WatchdogSec=1."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)

        def heard(*wanted):
            while True:
                lines = manager.recv(4_096).decode().splitlines()
                if lines[0] in wanted:
                    return lines

        more = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "1000000"}
        daemon = node.start("host", wait=False, more=more)
        assert f"MAINPID={daemon.pid}" in heard("READY=1")
        assert node.json("status")["daemon"]["running"] is True
        for _ in range(3):
            heard("WATCHDOG=1")
        # A daemon that hangs is silent: that is what the watchdog is for.
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        manager.setblocking(False)
        while True:
            try:
                manager.recv(4_096)
            except BlockingIOError:
                break
        time.sleep(1)
        with pytest.raises(BlockingIOError):
            manager.recv(4_096)
        daemon.process.send_signal(signal.SIGCONT)
        manager.settimeout(10)
        heard("WATCHDOG=1")
        daemon.process.terminate()
        heard("STOPPING=1")
        assert daemon.process.wait(10) == 0
