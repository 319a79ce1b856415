"""Configuration, relays and doctor of a daemon that really runs, by the installed command."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.e2e.homes import PORTS_OF_ITS_OWN, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


@pytest.fixture
def other(world):
    """Another home, whose embedded relay is a relay of somebody else to the first."""
    node = world.node("other").configure(more=PORTS_OF_ITS_OWN)
    node.start()
    (relay,) = node.json("relay", "list")["relays"]
    yield relay["url"]
    node.stop()


def state_of(node, url):
    return {row["url"]: row["state"] for row in node.json("relay", "list")["relays"]}.get(url)


def test_a_running_daemon_takes_over_what_it_can(node, other):
    node.start()
    report = node.json("config", "set", "wallet.budget_day_sats", "50")
    assert (report["in_force"], report["restart"]) == (True, [])
    report = node.json("config", "set", "network", "mainnet")
    assert (report["in_force"], report["restart"]) == (False, ["network"])
    assert node.json("status")["network"] == "simnet"
    assert node.json("config", "set", "network", "simnet")["in_force"] is True

    assert node.json("relay", "add", other)["in_force"] is True
    until(lambda: state_of(node, other) == "connected", 10, "the relay that was added is connected")
    rows = {row["url"]: row for row in node.json("relay", "check")["relays"]}
    assert len(rows) == 2
    assert all(row["ok"] for row in rows.values())
    assert rows[other]["information"]["software"] == "pylon"
    assert node.json("relay", "remove", other)["in_force"] is True
    assert state_of(node, other) is None

    before = node.home.config.read_text()
    wrong = node.run("config", "set", "relay.bind", "everywhere")
    assert (wrong.returncode, node.home.config.read_text()) == (1, before)
    node.home.config.write_text(before.replace('"simnet"', '"bitcoin"'))
    refused = node.run("config", "reload", "--json")
    assert refused.returncode == 1
    assert '"simnet"' in json.loads(refused.stderr)["error"]["message"]
    node.home.config.write_text(before)
    assert node.json("config", "reload")["applied"] == []
    node.stop()


def test_doctor_with_a_daemon_without_one_and_after_a_kill(node):
    daemon = node.start()
    report = node.json("doctor")
    assert (report["ok"], report["running"], report["counts"]["fail"]) == (True, True, 0)
    assert {row["check"] for row in report["checks"] if row["status"] == "pass"} >= {
        *("config", "identity", "permissions", "disk", "daemon", "database"),
        *("books", "wallet", "agents", "relays", "clock", "ports"),
    }

    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        done = node.run("doctor", "--json", timeout=40)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    (silent,) = [row for row in report["checks"] if row["check"] == "daemon"]
    assert silent["status"] == "fail"
    assert "does not answer" in silent["detail"]
    assert str(daemon.pid) in silent["remedy"]

    daemon.kill()
    report = node.json("doctor")
    (left,) = [row for row in report["checks"] if row["check"] == "daemon"]
    assert (left["status"], left["fixable"]) == ("warn", True)
    assert node.json("doctor", "--fix")["fixed"] == [left["detail"]]
    assert not node.home.pid.exists()
    node.start()
    node.stop()
