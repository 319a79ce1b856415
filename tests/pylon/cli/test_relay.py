"""``pylon relay`` on the command line."""

from __future__ import annotations

import json
import threading

import pytest
import trio

from pylon.clock import SystemClock
from pylon.config import known_keys, load, variable
from pylon.relays.relay import open_relay
from pylon.relays.server import serve_relay


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for path in known_keys():
        monkeypatch.delenv(variable(path), raising=False)


@pytest.fixture
def relay_url():
    """A real relay, in a thread of its own."""
    started, ended, told = threading.Event(), trio.Event(), []

    async def serve():
        token = trio.lowlevel.current_trio_token()
        async with open_relay(clock=SystemClock()) as core, trio.open_nursery() as nursery:
            ((host, port),) = await nursery.start(serve_relay, core, "127.0.0.1", 0)
            told.extend([f"ws://{host}:{port}", token])
            started.set()
            await ended.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    yield told[0]
    told[1].run_sync_soon(ended.set)
    thread.join(10)


def relays(home):
    return load(home.config, environ={}).config.relays


def test_add_and_remove_edit_the_configuration(simnet, home):
    assert simnet("relay", "add", "wss://a.example", "wss://b.example/")[0] == 0
    assert relays(home) == ("wss://a.example", "wss://b.example/")
    code, out, _ = simnet("relay", "add", "wss://A.example/", "wss://b.example", "--json")
    assert (code, json.loads(out)["changed"]) == (0, False)
    assert simnet("relay", "remove", "wss://b.example")[0] == 0
    assert relays(home) == ("wss://a.example",)
    code, _, err = simnet("relay", "remove", "wss://b.example")
    assert (code, "pylon relay list" in err) == (1, True)
    assert "# Pylon's configuration." in home.config.read_text()
    code, _, err = simnet("relay", "add", "https://a.example")
    assert (code, "wss://" in err) == (2, True)


def test_the_first_one_that_is_added_stands_beside_the_defaults(pylon, home):
    assert pylon("relay", "add", "wss://a.example")[0] == 0
    assert relays(home) == ("wss://relay.damus.io", "wss://nos.lol", "wss://relay.nostr.band", "wss://a.example")
    assert pylon("relay", "remove", "wss://nos.lol", "wss://relay.damus.io", "wss://relay.nostr.band")[0] == 0
    assert relays(home) == ("wss://a.example",)


def test_list_without_a_daemon_and_with_one(simnet, home, daemon):
    simnet("relay", "add", "wss://a.example")
    code, out, _ = simnet("relay", "list", "--json")
    report = json.loads(out)
    assert (code, report["running"]) == (0, False)
    assert [(row["url"], row["source"]) for row in report["relays"]] == [
        ("ws://127.0.0.1:7777", "embedded"),
        ("wss://a.example", "config"),
    ]
    live = [
        {"url": "ws://127.0.0.1:7777", "state": "connected", "latency": 0.02, "last_error": ""},
        {"url": "wss://agent.example", "state": "waiting", "latency": None, "last_error": "no connection"},
    ]
    with daemon({"result": {"relays": live}}):
        code, out, _ = simnet("relay", "list")
    assert code == 0
    assert "ws://127.0.0.1:7777  (embedded)  connected  20 ms" in out
    assert "wss://agent.example  (agents and apps)  waiting  no connection" in out
    assert "wss://a.example  (config)" in out


def test_check_looks_without_an_identity_and_fails_if_one_is_away(pylon, relay_url, home):
    code, out, _ = pylon("relay", "check", relay_url, "--json")
    (row,) = json.loads(out)["relays"]
    assert (code, row["ok"], row["auth"], row["information"]["software"]) == (0, True, "not asked", "pylon")
    code, out, _ = pylon("relay", "check", "ws://127.0.0.1:1", relay_url)
    assert code == 1
    assert "[--] ws://127.0.0.1:1" in out
    assert "connect FAILED" in out
    assert f"[OK] {relay_url}  Pylon (pylon" in out
    assert "limits: " in out


def test_check_asks_the_daemon(simnet, home, daemon):
    row = {
        "url": "wss://a.example",
        "ok": False,
        "connect": {"ok": True, "seconds": 0.1, "detail": ""},
        "latency": 0.05,
        "read": {"ok": True, "seconds": 0.1, "detail": ""},
        "write": {"ok": False, "seconds": None, "detail": "blocked: \x1b[31mno"},
        "auth": "refused",
        "information": {
            "name": "A",
            "limitation": {"payment_required": True, "auth_required": False, "max_limit": 5000},
        },
        "information_error": "",
        "clock_ahead": -3600.2,
    }
    with daemon({"result": {"relays": [row]}}) as asked:
        code, out, _ = simnet("relay", "check", "wss://a.example")
    assert asked[0]["params"] == {"relays": ["wss://a.example"]}
    assert code == 1
    assert "write FAILED: blocked: \ufffd[31mno" in out
    assert "auth: refused" in out
    assert "limits: payment required, max limit 5,000" in out
    assert "clock: 3,600 s behind ours" in out
