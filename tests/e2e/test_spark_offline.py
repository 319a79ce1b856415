"""A home as `pylon init` makes it, on Spark's regtest, on a machine without internet: it starts, says so, and ends."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from pylon import identity

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("offline")]


@pytest.fixture
def node(world):
    return world.node("home").configure(network="testnet", more='[relay]\nbind = "127.0.0.1:0"\n')


def test_it_starts_knows_no_balance_and_ends_at_once(node):
    daemon = node.start()
    assert "this is its regtest, whose sats are not money" in daemon.said()
    wallet = node.json("status")["wallet"]
    assert [wallet[name] for name in ("settled_msats", "pending_msats", "known_at")] == [None, None, None]
    for arguments in (("wallet", "balance"), ("wallet", "fund")):
        refused = node.run("--json", *arguments, timeout=60)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Spark's servers" in json.loads(refused.stderr)["error"]["message"]
    assert psutil.Process(daemon.pid).num_threads() < 60
    began = time.monotonic()
    node.stop()
    assert time.monotonic() - began < 8
    said = daemon.said() + (node.root / "logs" / "pylon.log").read_text()
    assert identity.load(node.home).reveal_phrase() not in said
    # Nothing that others may read.
    for path in (node.root / "spark").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_without_a_daemon_it_says_so_in_time(node):
    for arguments in (("wallet", "balance"), ("wallet", "fund"), ("wallet", "invoice", "100")):
        began = time.monotonic()
        refused = node.run("--json", *arguments, timeout=60)
        assert time.monotonic() - began < 20
        assert refused.returncode == 1
        assert json.loads(refused.stderr)["error"]["code"] == "wallet_unreachable"
    assert node.json("books", "--check")["clean"], "what cannot be compared is no fault"
    spawned = node.json("agent", "spawn", "alice")
    assert spawned["balance_msats"] is None
