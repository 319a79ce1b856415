"""A home with a passphrase, by real processes: typed on a terminal, by a descriptor, by systemd's credential."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from tests.e2e.homes import PASSPHRASE, PORTS_OF_ITS_OWN, Daemon, command, environment, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


def start(node, more):
    daemon = Daemon(
        [command(), "--home", str(node.root), "start", "-m", "host"], node.world.directory / "home.out", more
    )
    node.world.daemons.append(daemon)
    return daemon


def test_unattended_starts_and_a_kill(node, passphrase_file, tmp_path):
    phrase = json.loads(node.run("identity", "reveal", "--json").stdout)["mnemonic"]
    assert node.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    for more, words in (({}, "is protected by a passphrase"), ({"PYLON_PASSPHRASE_FILE": "/nowhere"}, "/nowhere")):
        refused = start(node, more)
        assert refused.process.wait(20) == 1
        assert words in refused.said()
        assert "hint:" in refused.said()
    wrong = tmp_path / "wrong"
    wrong.write_text("three words here")
    refused = start(node, {"PYLON_PASSPHRASE_FILE": str(wrong)})
    assert refused.process.wait(20) == 1
    assert "another passphrase" in refused.said()
    assert "three words" not in refused.said()
    assert not (node.root / "control.sock").exists()

    daemon = start(node, {"PYLON_PASSPHRASE_FILE": str(passphrase_file)})
    daemon.ready()
    # With a daemon, commands want no passphrase: it has the key.
    agent = json.loads(node.run("agent", "spawn", "--name", "ada", "--json").stdout)
    busy = node.run("identity", "passphrase", "--remove", "--yes", "--json")
    assert (busy.returncode, json.loads(busy.stderr)["error"]["code"]) == (1, "already_running")
    daemon.kill()

    daemon = start(node, {"CREDENTIALS_DIRECTORY": str(passphrase_file.parent)})
    daemon.ready()
    assert json.loads(node.run("agent", "reveal", "ada", "--json").stdout)["mnemonic"] == agent["mnemonic"]
    assert daemon.terminate() == 0
    assert node.run("agent", "list").returncode == 1
    assert (
        node.run_with(passphrase_file, "identity", "passphrase", "--remove", "--yes", "--passphrase-fd").returncode == 0
    )
    assert json.loads(node.run("agent", "list", "--json").stdout)["agents"][0]["name"] == "ada"
    assert (node.root / "identity.mnemonic").read_text() == phrase + "\n"


def test_start_with_a_descriptor(node, passphrase_file):
    assert node.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    with (node.world.directory / "started.out").open("wb") as output, passphrase_file.open("rb") as words:
        process = subprocess.Popen(
            [command(), "--home", str(node.root), "start", "-m", "host", "--passphrase-fd", str(words.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(words.fileno(),),
            env=environment(),
        )
    try:
        until(lambda: node.run("status").returncode == 0, 30, "it runs")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_typed_on_a_terminal_and_not_shown(node, passphrase_file):
    assert node.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [command(), "--home", str(node.root), "wallet", "balance", "--json"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        start_new_session=True,
        env=environment(),
    )
    os.close(follower)
    shown = b""
    try:
        while b"Passphrase of this home" not in shown:
            shown += os.read(leader, 1_000)
        os.write(leader, PASSPHRASE.encode() + b"\n")
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, shown
        assert json.loads(out)["settled_msats"] == 0
        os.set_blocking(leader, False)
        try:
            shown += os.read(leader, 10_000)
        except OSError:
            pass
        assert PASSPHRASE.encode() not in shown
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)
