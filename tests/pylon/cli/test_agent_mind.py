"""What an agent does and knows: ``pylon agent tick``, ``ticks``, ``goals``, ``memory``."""

from __future__ import annotations

import json

import pytest

from pylon.cli import agent_mind as module
from tests.pylon.cli.agent_json import EVIL, action, goal, memory, tick

BEGUN = {"method": "tick", "params": tick(status="running", provider=None, thought="", actions=[], cost_msats=0)}
THOUGHT = {"method": "tick", "params": tick(status="running", actions=[action(state="new")])}


# --- a tick now -------------------------------------------------------------------------------------------------------


def test_a_tick_is_told_on_stderr_and_shown_on_stdout(pylon, daemon):
    with daemon(BEGUN, THOUGHT, {"result": {"tick": tick()}}) as asked:
        code, out, err = pylon("agent", "tick", "alice")
    assert (asked[0]["method"], asked[0]["params"]) == ("agent.tick", {"agent": "alice", "wait": True})
    assert code == 0
    assert err.splitlines() == [
        "tick 7 begins (mention, zap)", f"asks {'bb' * 8} for a thought", "thinks: somebody asks for a haiku",
        "post: new  an old pond",
    ]  # fmt: skip
    assert out.splitlines() == [
        "tick 7 (mention, zap): success, 3.2 sat, 4s", "thought: somebody asks for a haiku",
        "  post: done  an old pond",
    ]  # fmt: skip


def test_a_tick_in_json_is_one_value_and_silence(pylon, daemon):
    with daemon(BEGUN, THOUGHT, {"result": {"tick": tick()}}):
        code, out, err = pylon("--json", "agent", "tick", "alice")
    assert (code, json.loads(out), err) == (0, {"tick": tick()}, "")


def test_other_notifications_are_passed_over(pylon, daemon):
    with daemon({"method": "job", "params": {"id": "x"}}, {"result": {"tick": tick()}}):
        assert pylon("agent", "tick", "alice")[2] == ""


@pytest.mark.parametrize(
    ("status", "code"), [("success", 0), ("partial", 0), ("quiet", 0), ("running", 0), ("error", 1), ("abandoned", 1)]
)
def test_a_tick_that_failed_is_shown_and_exits_with_1(pylon, daemon, status, code):
    with daemon({"result": {"tick": tick(status=status, reason="because", actions=[])}}):
        got, out, _ = pylon("agent", "tick", "alice")
    assert got == code
    assert f": {status}, 3.2 sat" in out
    assert "reason: because" in out


def test_an_interrupted_tick_goes_on_in_the_daemon(pylon, daemon, monkeypatch):
    def interrupted(*_, on_progress, **__):
        on_progress("tick", BEGUN["params"])
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])

    monkeypatch.setattr(module, "run_verb", interrupted)
    with daemon({"result": {}}):
        code, _, err = pylon("agent", "tick", "alice")
    assert code == 130
    assert "the tick goes on in the daemon: pylon agent ticks alice" in err
    code, _, err = pylon("agent", "tick", "alice")
    assert (code, "goes on" in err) == (130, False)


def test_without_a_daemon_the_command_needs_relays_itself(pylon, monkeypatch):
    calls = []

    def run_verb(state, verb, params, **options):
        calls.append((verb, options["online"], options["timeout"]))
        return {"tick": tick()}

    monkeypatch.setattr(module, "run_verb", run_verb)
    assert pylon("agent", "tick", "alice")[0] == 0
    assert calls == [("agent.tick", True, None)]


def test_what_a_model_thinks_commands_no_terminal(pylon, daemon):
    evil = tick(thought=EVIL, reason=EVIL, trigger=EVIL, actions=[action(text=EVIL, outcome=EVIL)])
    with daemon(
        {"method": "tick", "params": evil}, {"result": {"tick": evil, "ticks": [evil], "quiet": 0, "total": 1}}
    ):
        for command in ("tick", "ticks"):
            code, out, err = pylon("agent", command, "alice")
            assert code == 0
            assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"} & set(out + err)
            assert not any(line.startswith("alice") for line in (out + err).splitlines())


# --- ticks ------------------------------------------------------------------------------------------------------------


def test_ticks(asked_once):
    rows = [
        tick(n=12),
        tick(n=9, status="error", reason="no provider", actions=[], cost_msats=0, trigger="heartbeat"),
        tick(n=8, actions=[action(), action(1, kind="zap", state="waiting")], cost_msats=12_000_000),
    ]
    call, out, err = asked_once("ticks", "alice", "-l", "3", ticks=rows, quiet=30, total=37)
    assert call == ("agent.ticks", {"agent": "alice", "limit": 3, "quiet": False})
    assert out.splitlines() == [
        "#12  1m ago  success  mention, zap     3.2 sat  post",
        " #9  1m ago  error    heartbeat          0 sat  no provider",
        " #8  1m ago  success  mention, zap  12,000 sat  post, zap (waiting)",
        "37 in all, 30 of them quiet (--quiet shows them too)",
    ]
    assert err == ""
    _, out, _ = asked_once("ticks", "alice", "--json", ticks=rows, quiet=30, total=37)
    assert json.loads(out) == {"ticks": rows, "quiet": 30, "total": 37}


def test_quiet_ticks(asked_once):
    call, out, _ = asked_once("ticks", "alice", "--quiet", ticks=[], quiet=30, total=30)
    assert call[1] == {"agent": "alice", "limit": 20, "quiet": True}
    assert out == "30 in all, 30 of them quiet\n"
    assert asked_once("ticks", "alice", ticks=[], quiet=0, total=0)[1] == "No ticks yet.\n"


# --- goals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("goals", "alice"), ("goals", "list", "alice"), ("goals", "alice", "--json"), ("goals", "--json", "alice")],
)
def test_goals_of_one(asked_once, arguments):
    found = [goal(), goal(status="completed", progress=1.0, priority=0)]
    call, out, err = asked_once(*arguments, goals=found)
    assert (call, err) == (("agent.goals", {"agent": "alice"}), "")
    if "--json" in arguments:
        assert json.loads(out) == {"goals": found}
    else:
        assert out.splitlines() == [
            f"{'9a' * 8}  active      25 %  priority 1  post a haiku a day",
            f"{'9a' * 8}  completed  100 %  priority 0  post a haiku a day",
        ]


@pytest.mark.parametrize("name", ["add", "set", "list"])
def test_an_agent_that_is_called_like_a_command(asked_once, name):
    assert asked_once("goals", "list", name, goals=[])[0] == ("agent.goals", {"agent": name})


def test_no_goals(asked_once):
    _, out, err = asked_once("goals", "alice", goals=[])
    assert out == "alice has no goals.\n"
    assert "pylon agent goals add alice" in err


def test_a_new_goal(asked_once):
    call, out, _ = asked_once("goals", "add", "alice", "post a haiku a day", "--priority", "3", goal=goal())
    assert call == (
        "agent.goal_add", {"agent": "alice", "description": "post a haiku a day", "priority": 3}
    )  # fmt: skip
    assert out.endswith("post a haiku a day\n")
    assert asked_once("goals", "add", "alice", "x", goal=goal())[0][1] == {"agent": "alice", "description": "x"}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (("--status", "completed"), {"status": "completed"}),
        (("--progress", "0"), {"progress": 0.0}),
        (("--progress", "40", "--priority", "-2"), {"progress": 0.4, "priority": -2}),
    ],
)
def test_a_goal_is_changed(asked_once, options, changes):
    call, out, _ = asked_once("goals", "set", "alice", "9a9a", *options, goal=goal())
    assert call == ("agent.goal_set", {"agent": "alice", "id": "9a9a", **changes})
    assert out.startswith("9a" * 8)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(("memory", "alice"), 50), (("memory", "list", "alice", "-l", "5"), 5), (("memory", "-l", "5", "alice"), 5)],
)
def test_memory_of_one(asked_once, arguments, limit):
    report = {"memories": [memory(), memory(content=EVIL)], "bytes": 1_024, "budget_bytes": 40_000}
    call, out, _ = asked_once(*arguments, **report)
    assert call == ("agent.memory", {"agent": "alice", "limit": limit})
    first, second, last = out.splitlines()
    assert first == f"{'5e' * 8}  2h ago  observation, stranger  bob likes haiku"
    assert "\x1b" not in second
    assert last == "1,024 of 40,000 bytes"
    _, out, _ = asked_once(*arguments, "--json", **report)
    assert json.loads(out) == report


def test_remember_and_forget(asked_once):
    call, out, _ = asked_once("memory", "add", "alice", "bob likes haiku", memory=memory())
    assert call == ("agent.memory_add", {"agent": "alice", "text": "bob likes haiku"})
    assert out == f"{'5e' * 8}  bob likes haiku\n"
    call, out, _ = asked_once("memory", "forget", "alice", "5e5e", forgotten=1)
    assert call == ("agent.memory_forget", {"agent": "alice", "id": "5e5e"})
    assert out == "alice has forgotten 5e5e\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("tick",), ("tick", "a", "b"), ("ticks",), ("ticks", "a", "-l", "0"), ("ticks", "a", "--limit", "many"),
        ("goals",), ("goals", "a", "b"), ("goals", "--nonsense", "a"), ("goals", "add", "a"), ("goals", "add"),
        ("goals", "set", "a", "9a"), ("goals", "set", "a", "9a", "--progress", "101"),
        ("goals", "set", "a", "9a", "--progress", "0.4"), ("goals", "set", "a", "9a", "--status", "done"),
        ("goals", "set", "a"), ("goals", "add", "a", "b", "--priority", "high"), ("memory",), ("memory", "add", "a"),
        ("memory", "forget", "a"), ("memory", "a", "-l", "0"),
    ],
)  # fmt: skip
def test_usage(pylon, daemon, arguments):
    with daemon({"result": {}}) as asked:
        code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out, asked) == (2, "", [])
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"]


@pytest.mark.parametrize("group", ["goals", "memory"])
def test_help(pylon, group):
    for option in ("--help", "-h"):
        code, out, _ = pylon("agent", group, option)
        assert code == 0
        assert f"pylon agent {group} NAME is short for pylon agent {group} list NAME" in " ".join(out.split())
