"""``pylon events``, and ``pylon status --watch`` by the same feed: against a daemon that says what a test wants."""

from __future__ import annotations

import json
import socket
import threading
import time
from functools import partial

import pytest

from pylon.cli import events as module
from pylon.cli import status, watch
from pylon.errors import ControlError

LOST = {"seq": 7, "mark": "ab-7", "at": 0.0, "kind": "relay.lost", "relay": "wss://r.example"}
TICK = {
    "seq": 8, "mark": "ab-8", "at": 0.0, "kind": "agent.tick", "agent": "aa" * 32, "tick": "aa:1", "cause": "asked",
    "from_state": "acting", "to_state": "done", "done": 1, "failed": 0, "open": 0, "cost_msats": 1_500,
    "name": "al\x1bice",
}  # fmt: skip


def event(told):
    return {"method": "event", "params": told}


@pytest.fixture
def shown(pylon):
    return partial(pylon, "events")


def test_what_has_happened(shown, daemon):
    with daemon(event(LOST), event(TICK), {"result": {"mark": "ab-8"}}) as asked:
        code, out, err = shown("-n", "5", "--agent", "alice", "--kind", "relay", "--kind", "agent.tick")
    assert (code, err) == (0, "")
    assert asked[0]["params"] == {
        "kinds": ["relay", "agent.tick"], "limit": 5, "follow": False, "alive": 15.0, "agent": "alice"
    }  # fmt: skip
    first, second = out.splitlines()
    assert first.endswith("  relay.lost: relay wss://r.example")
    assert second.endswith("agent.tick of al�ice: acting -> done, tick aa:1, cause asked, done 1, failed 0, open 0,"
                           " cost 1.5 sat")  # fmt: skip
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0)) in first


def test_in_json_one_object_a_line(shown, daemon):
    with daemon(event(LOST), {"method": "gap", "params": {"missed": 3}}, event(TICK), {"result": {}}):
        code, out, _ = shown("--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [LOST, {"kind": "gap", "missed": 3}, TICK]


def test_what_was_missed_is_said(shown, daemon):
    gaps = [{"method": "gap", "params": {"missed": missed}} for missed in (3_000, None)]
    with daemon(*gaps, {"result": {}}):
        code, out, err = shown()
    assert (code, out) == (0, "")
    assert err == "note: 3,000 events were missed\nnote: some events were missed\n"


def test_without_a_daemon(shown):
    code, out, err = shown("-f", "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"]["code"] == "not_running"


def test_a_daemon_that_hangs_up_or_refuses(shown, daemon):
    with daemon(event(LOST), None):
        code, out, err = shown()
    assert code == 1
    assert "relay.lost" in out
    assert "hung up" in err
    data = {"code": "usage", "message": "there is no event 'sail'", "hint": "did you mean sale?", "exit_code": 2}
    with daemon({"error": {"code": -32000, "message": "", "data": data}}):
        code, _, err = shown("--kind", "sail")
    assert (code, "did you mean sale?" in err) == (2, True)


def test_who_is_cut_off_goes_on_where_it_was(shown, daemon, monkeypatch):
    monkeypatch.setattr(module, "_AGAIN", 0.01)
    results, ended = [], threading.Event()

    def follow():
        results.append(shown("-f"))
        ended.set()

    with daemon({"method": "alive", "params": {}}, event(LOST), event(TICK), None) as asked:
        thread = threading.Thread(target=follow)
        thread.start()
        while len(asked) < 2:
            time.sleep(0.01)
    assert ended.wait(10), "it ends with the daemon"
    thread.join()
    assert [call["params"].get("mark") for call in asked[:2]] == [None, "ab-8"]
    code, out, err = results[0]
    assert code == 3
    assert "relay.lost" in out
    assert "hung up" in err


# --- the feed of ``status --watch`` -------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch):
    for name, seconds in (("_GATHER", 0.01), ("_REST", 0.02)):
        monkeypatch.setattr(watch, name, seconds)


@pytest.fixture
def looks(monkeypatch):
    """When one has looked; at the third time it is enough."""
    looks = []

    def ask(home):
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise KeyboardInterrupt
        return {**status.stopped(), "daemon": {"running": True, "pid": 1, "uptime_secs": 5}}

    monkeypatch.setattr(status, "ask", ask)
    return looks


def test_one_looks_when_something_happens_and_not_before(home, daemon, fast, looks):
    shown = []

    def show(report, feed):
        shown.append((report["daemon"]["uptime_secs"], list(feed.lately)))
        if len(looks) == 2:
            raise KeyboardInterrupt

    alive = {"method": "alive", "params": {}}
    with daemon(event(LOST), alive, alive, alive, event(TICK), ...), pytest.raises(KeyboardInterrupt):
        watch.watch(home, 5.0, show, moving=True)
    assert len(looks) == 2, "what only lives is not looked at"
    assert len(shown) == 4, "but its clocks move"
    assert [len(lately) for _, lately in shown] == [1, 1, 1, 2]


@pytest.fixture
def alive(monkeypatch):
    """A daemon that says that it lives, and nothing else."""
    said = []

    def wait(feed, seconds):
        said.append(seconds)
        assert len(said) < 50, "nobody looks any more"
        return "alive"

    monkeypatch.setattr(watch.Feed, "wait", wait)


def test_what_no_event_tells_is_looked_at_after_a_while(home, monkeypatch, looks, alive):
    monkeypatch.setattr(watch, "_LOOK_AGAIN", 0.0)
    with pytest.raises(KeyboardInterrupt):
        watch.watch(home, 5.0, lambda report, feed: None)


def test_one_that_lives_and_does_not_answer_is_asked_again(home, monkeypatch, alive):
    asked = []

    def ask(home):
        asked.append(home)
        if len(asked) == 3:
            raise KeyboardInterrupt
        raise ControlError("the daemon has not answered")

    monkeypatch.setattr(status, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        watch.watch(home, 5.0, lambda report, feed: None)


def test_one_that_says_nothing_is_looked_at(home, daemon, monkeypatch, fast, looks):
    monkeypatch.setattr(status, "TIMEOUT", 0.1)
    with daemon({"method": "alive", "params": {}}, ...), pytest.raises(KeyboardInterrupt):
        watch.watch(home, 0.1, lambda report, feed: None)


def test_a_daemon_without_events_is_watched_by_the_clock(home, daemon, fast, looks):
    refused = {"error": {"code": -32601, "message": "there is no method 'events'"}}
    with daemon(refused) as asked, pytest.raises(KeyboardInterrupt):
        watch.watch(home, 0.05, lambda report, feed: None)
    assert len(asked) == 3
    assert looks[2] - looks[0] >= 0.1


def test_a_daemon_that_does_not_even_take_a_question_is_not_one_that_hung_up(home):
    from pylon.cli.client import ControlClient

    home.prepare()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()
        with ControlClient(home.socket, timeout=0.1) as client:
            for ask in (client.call, client.begin):
                with pytest.raises(ControlError, match=r"has not answered 'events' within 0\.1 s"):
                    ask("events", {"kinds": ["x" * (8 << 20)]})


def test_a_line_that_comes_in_pieces_is_read_whole(home, daemon):
    """Between two deadlines, too."""
    from pylon.cli.client import ControlClient

    with daemon({"method": "event", "params": LOST}, ...), ControlClient(home.socket) as client:
        client.begin("events")
        whole = client.told(5)
        assert whole == ("event", LOST)
        client._buffer = b'{"method": "ev'
        assert client.told(0.02) is None
        client._buffer += b'ent", "params": {}}\n'
        assert client.told(0.02) == ("event", {})
