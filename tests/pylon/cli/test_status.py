from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest

from pylon.cli import status as module

REPORT = {
    "daemon": {"running": True, "pid": 77, "uptime_secs": 3725, "provider_active": True, "host_active": False},
    "network": "simnet",
    "stats": {"jobs_completed": 3, "earnings_msats": 3_500},
    "backends": [{"name": "llamacpp", "ok": True}, "ollama"],
    "default_backend": "llamacpp",
    "relays": [{"url": "ws://127.0.0.1:7777", "state": "open"}, {"url": "wss://gone.example", "connected": False}],
    "agents": [{"name": "alice", "state": "active", "balance_msats": None}],
    "wallet": {"settled_msats": 21_000, "pending_msats": 2_000, "known_at": 5.0},
    "children": [
        {"name": "buyer", "state": "running", "last_error": "OSError: old news"},
        {"name": "engine", "state": "quarantined", "last_error": "OSError: no luck"},
    ],
}


@pytest.fixture
def home(home):
    home.prepare()
    return home


@pytest.fixture
def status(pylon):
    return partial(pylon, "status")


def test_without_a_daemon(status, home):
    code, out, err = status()
    assert code == 3
    assert "stopped" in out
    assert "not initialized" in out
    assert "pylon init" in err
    home.mnemonic.write_text("")
    assert "pylon start" in status()[2]


def test_without_a_daemon_in_json(status):
    code, out, err = status("--json")
    assert (code, err) == (3, "")
    report = json.loads(out)
    assert report["daemon"] == {
        "running": False, "pid": None, "uptime_secs": None, "provider_active": None, "host_active": None
    }  # fmt: skip
    assert report["wallet"] == {"settled_msats": None, "pending_msats": None, "known_at": None}
    assert {"stats", "backends", "default_backend", "relays", "agents"} <= set(report)


def test_a_stale_socket_is_no_daemon(status, home):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(home.socket))
    left.close()
    assert status("--json")[0] == 3


def test_json_is_what_the_daemon_said(status, home, daemon):
    with daemon({"result": REPORT}) as asked:
        code, out, err = status("--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == REPORT
    assert asked[0]["method"] == "status"


def test_text(status, home, daemon):
    with daemon({"result": REPORT}):
        code, out, _ = status()
    assert code == 0
    for text in (
        "running (pid 77)", "1h 2m 5s", "provider\n", "not money", "21 sat, 2 sat on its way out", "ago)",
        "3 completed, 3.5 sat earned", "llamacpp (default), ollama", "ws://127.0.0.1:7777  open",
        "wss://gone.example  not connected", "alice  active  unknown", "engine  quarantined: OSError: no luck",
    ):  # fmt: skip
        assert text in out
    assert "old news" not in out


def test_unknown_is_not_zero():
    text = module.render(module.stopped())
    assert "unknown" in text
    assert "0 sat" not in text


@pytest.mark.parametrize("report", [{}, {"daemon": 3, "relays": "x", "agents": [None], "wallet": [], "children": [7]}])
def test_a_report_of_another_version_is_still_shown(report):
    assert "running" in module.render(report)


def test_a_daemon_that_hangs_is_not_called_stopped(status, home, monkeypatch, daemon):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    with daemon(...):
        code, out, err = status("--json")
    assert code == 1
    assert json.loads(out)["daemon"]["running"] is True
    assert "0.1 s" in json.loads(out)["silent"]
    assert json.loads(err)["error"]["code"] == "control"
    with daemon(...):
        code, out, err = status()
    assert code == 1
    assert out.startswith("Daemon:   running (its pid is not known), and silent: ")


def test_an_error_of_the_daemon_is_told(status, home, daemon):
    data = {"code": "store", "message": "disk full", "hint": "make room", "exit_code": 1}
    with daemon({"error": {"code": -32000, "message": "disk full", "data": data}}):
        code, _, err = status()
    assert code == 1
    assert err == "error: disk full\nhint: make room\n"


NEVER = {"name": "alice", "state": "active", "balance_msats": 890_000}


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (NEVER, "alice  active  890 sat"),
        (
            {**NEVER, "runway_days": 0.89, "next_tick": 725.5},
            "alice  active  890 sat  runway 0.9 days  next tick in 12m",
        ),
        (
            {**NEVER, "next_tick": -5.0, "paused": "", "moved": "", "last_error": None},
            "alice  active  890 sat  next tick due now",
        ),
        ({**NEVER, "next_tick": 9.0, "paused": "paused"}, "alice  active, paused  890 sat"),
        ({**NEVER, "next_tick": 9.0, "paused": "stopped", "moved": "another runs it"}, "alice  active, moved  890 sat"),
        (
            {**NEVER, "last_error": "no\nbob  active  21 sat"},
            "alice  active  890 sat  last error: no bob active 21 sat",
        ),
        ({"name": "alice", "runway_days": "x", "next_tick": [], "last_error": {}}, "alice  unknown  unknown"),
        (
            {**NEVER, "runway_days": float("inf"), "next_tick": float("nan")},
            "alice  active  890 sat  runway unlimited  next tick in 0s",
        ),
    ],
)
def test_agents(monkeypatch, agent, line):
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    shown = module.render({"agents": [agent]}).splitlines()
    assert shown[-2:] == ["Agents:", f"  {line}"]


def test_one_that_starts_is_known_by_its_pid(status, home):
    """It holds the pid file, and does not listen yet."""
    code = "import sys; from pylon.daemon.process import *\nwith hold_home(Home(sys.argv[1]), pid_file=True):\n"
    code += "    print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        code, out, err = status("--json")
        assert code == 1
        assert json.loads(out)["daemon"] == {**module.stopped()["daemon"], "running": True, "pid": process.pid}
        assert "starting, or ending" in json.loads(err)["error"]["message"]
        process.stdin.close()
    assert status("--json")[0] == 3


PROVIDER = {
    "closed": "", "open": {"quoted": 2, "working": 1}, "running": 1, "waiting": 3, "slots": 2,
    "earned_today_msats": 5_000, "earned_week_msats": 9_000, "owed_msats": 0,
}  # fmt: skip


def test_what_is_sold():
    shown = module.render({"provider": PROVIDER})
    assert "open: 2 quoted, 1 working; models: 1 at work of 2, 3 waiting" in shown
    assert "Earned:   5 sat today, 9 sat this week\n" in shown
    assert "CLOSED" not in shown
    shown = module.render({"provider": {**PROVIDER, "closed": "the disk is full", "owed_msats": 7_000, "open": {}}})
    assert "CLOSED:   no paid work is taken: the disk is full" in shown
    assert "7 sat owed to customers" in shown
    assert "open: none" in shown
    assert "Selling:  nothing: no model" in module.render({"daemon": {"provider_off": "no model"}})


def test_relays_with_their_health(monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1_000.0)
    relays = [
        {"url": "ws://a", "state": "connected", "latency": 0.0234, "since": 940.0, "last_error": "old"},
        {"url": "ws://b", "state": "waiting", "latency": 0.5, "since": 700.0, "last_error": "refused\nby peer"},
        {"url": "ws://c", "state": "connected", "latency": None, "since": "x", "last_error": ""},
    ]
    shown = module.render({"relays": relays}).splitlines()
    assert shown[-3:] == [
        "  ws://a  connected  23 ms  for 1m", "  ws://b  waiting  for 5m  refused by peer", "  ws://c  connected"
    ]  # fmt: skip


def test_of_many_agents_it_says_how_many_there_are_more():
    report = {"agents": [{"name": "alice", "state": "active"}], "agent_states": {"active": 900, "dormant": 101}}
    assert (
        module.render(report).splitlines()[-1] == "  and 1,000 more, in all 900 active, 101 dormant: pylon agent list"
    )
    assert "more" not in module.render({**report, "agent_states": {"active": 1}})


def test_trouble():
    report = {
        "quarantined": [
            {"agent": None, "name": "engine", "last_error": "x"},
            {"agent": "alice", "name": "heartbeat", "last_error": "ValueError"},
        ],
        "incomplete": {"wallet": "no answer within 0.8 s"},
    }
    shown = module.render(report)
    assert "alice: heartbeat  quarantined: ValueError" in shown
    assert "engine" not in shown, "it is among the children"
    assert "wallet  not told: no answer within 0.8 s" in shown


def test_an_agent_that_does_not_tick_says_why():
    agent = {"name": "bob", "state": "dormant", "reason": "dormant: 0 sat; wakes on any deposit", "balance_msats": 0}
    assert "bob  dormant: 0 sat; wakes on any deposit  0 sat" in module.render({"agents": [agent]})
    shown = module.render({"agents": [{**agent, "paused": "paused"}]})
    assert "dormant, paused (dormant: 0 sat; wakes on any deposit)" in shown


def test_watching_without_a_terminal(home, daemon):
    """One report after the other, through the end of a daemon and without one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pylon", "--home", str(home.root), "status", "--watch", "-i", "0.1", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert json.loads(process.stdout.readline())["daemon"]["running"] is False
        with daemon({"result": REPORT}):
            while not json.loads(process.stdout.readline())["daemon"]["running"]:
                pass
        while json.loads(process.stdout.readline())["daemon"]["running"]:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()


def test_watching_on_a_terminal(home):
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pylon", "--home", str(home.root), "status", "--watch", "-i", "0.1"],
        stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    try:
        shown = b""
        while shown.count(b"stopped") < 2:
            shown += os.read(leader, 4_096)
        assert b"\x1b[?1049h" in shown
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in shown:
            shown += os.read(leader, 4_096)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(leader)
