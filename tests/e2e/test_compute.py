"""``pylon compute`` as installed: who sells on an independent relay, for a stranger and for a home that has bought."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.e2e.homes import PRICE_MSATS, command, environment, until

pytestmark = pytest.mark.e2e


def test_who_sells_is_seen_comes_and_goes(world, tmp_path):
    relay = world.relay()
    provider, buyer = world.market(relay, selling='name = "The cellar"')
    environ = {"PYLON_RELAYS": relay, "PYLON_RELAY_BIND": "127.0.0.1:0", "PYLON_NETWORK": "simnet"}

    def stranger(*options: str) -> subprocess.CompletedProcess:
        """Somebody without a home, who is nobody to the relay."""
        began = time.monotonic()
        done = subprocess.run(
            [command(), "--home", str(tmp_path / "nowhere"), "compute", *options],
            capture_output=True, text=True, timeout=60, check=True, env=environment(environ),
        )  # fmt: skip
        assert time.monotonic() - began < 20
        return done

    assert json.loads(stranger("--json").stdout)["swarm_providers"] == []
    provider.start("provider", fake=True)
    (seller,) = until(lambda: json.loads(stranger("--json").stdout)["swarm_providers"], 30, "an announcement")
    assert (seller["npub"], seller["name"], seller["price_msats"]) == (provider.npub, "The cellar", PRICE_MSATS)
    assert (seller["health"], seller["payable"], seller["own"]) == ("alive", True, None)
    assert seller["models"]
    text = stranger().stdout
    assert f"[OK] The cellar ({provider.npub[:16]}…)  10 sat  heard " in text
    assert not (tmp_path / "nowhere").exists()

    buyer.fund()
    buyer.start()
    assert buyer.json("job", "submit", "Why?", "--wait")["state"] == "answered"
    (known,) = buyer.json("compute")["swarm_providers"]
    assert known["own"] is False
    assert known["observed"]["reliability"] > 0.8
    (own,) = provider.json("compute")["swarm_providers"]
    assert own["own"] is True
    provider.stop()
    until(lambda: buyer.json("compute")["swarm_providers"] == [], 30, "that the announcement is taken back")
    buyer.stop()
    world.daemons[0].kill()
    report = json.loads(stranger("--json").stdout)
    assert report["swarm_relays"] == [{"url": relay, "connected": False}]
    assert "Swarm providers: unknown, no relay answers" in stranger().stdout
