"""Grants and approvals: ``pylon agent grant``, ``revoke``, ``approvals``, ``approve``, ``deny``."""

from __future__ import annotations

import json

import pytest

from pylon.cli import agent_leave as module
from pylon.cli.agent_options import ACTIONS, MONEY
from tests.pylon.cli.agent_json import EVIL, agent, approval

ID = approval()["id"]
ZAP = {"action": "zap", "each_msats": 21_000, "day_msats": 100_000, "per_day": None, "strangers": False}
POST = {"action": "post", "each_msats": 0, "day_msats": 0, "per_day": 3, "strangers": True}


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        (("zap", "--each", "21", "--day", "100sat"), {"action": "zap", "each_sats": 21, "day_sats": 100}),
        (("zap", "--each", "0", "--day", "0"), {"action": "zap", "each_sats": 0, "day_sats": 0}),
        (("ZAP", "--each", "1", "--day", "1", "--per-day", "5", "--strangers"),
         {"action": "zap", "each_sats": 1, "day_sats": 1, "per_day": 5, "strangers": True}),
        (("post", "--per-day", "0"), {"action": "post", "per_day": 0}),
        (("dm",), {"action": "dm"}),
    ],
)  # fmt: skip
def test_grant(asked_once, arguments, params):
    view = agent(grants=[ZAP, POST])
    call, out, err = asked_once("grant", "alice", *arguments, **view)
    assert call == ("agent.grant", {"agent": "alice", **params})
    assert out.splitlines() == [
        "alice has leave for",
        "  zap: at most 21 sat each, 100 sat a day",
        "  post: at most 3 a day, also where strangers had a word",
    ]
    assert err == ""
    _, out, _ = asked_once("grant", "alice", "--json", *arguments, **view)
    assert json.loads(out) == view


def test_revoke(asked_once):
    call, out, _ = asked_once("revoke", "alice", "zap", **agent())
    assert call == ("agent.revoke", {"agent": "alice", "action": "zap"})
    assert out == "alice has no grants.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("grant",), ("grant", "alice"), ("grant", "alice", "fly"), ("grant", "alice", "nothing"),
        ("grant", "alice", "zap"), ("grant", "alice", "zap", "--each", "21"),
        ("grant", "alice", "pay_invoice", "--day", "21"),
        ("grant", "alice", "post", "--each", "21"), ("grant", "alice", "post", "--day", "21"),
        ("grant", "alice", "post", "--per-day", "-1"), ("grant", "alice", "post", "--per-day", "many"),
        ("revoke", "alice"), ("revoke", "alice", "fly"), ("approvals", "a", "b"), ("approve",), ("approve", "a", "b"),
        ("deny",),
    ],
)  # fmt: skip
def test_usage(pylon, daemon, arguments):
    with daemon({"result": agent()}) as asked:
        code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out, asked) == (2, "", [])
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"]


def test_every_action_is_explained(pylon):
    out = pylon("agent", "grant", "--help")[1]
    assert all(action in out for action in (*ACTIONS, *MONEY))


# --- what waits -------------------------------------------------------------------------------------------------------


def test_nothing_waits(asked_once):
    call, out, err = asked_once("approvals", approvals=[])
    assert (call, out, err) == (("agent.approvals", {}), "Nothing waits.\n", "")


def test_what_waits_is_shown_in_full_and_how_to_decide(asked_once):
    waiting = [approval(), approval(id="0" * 16 + ":1:0", kind="post", text="one\ntwo", cost_msats=None)]
    call, out, err = asked_once("approvals", "alice", approvals=waiting)
    assert call == ("agent.approvals", {"agent": "alice"})
    assert out.splitlines() == [
        f"{ID}  alice  zap, 21 sat  10m ago, lapses in 2h 1m", "    zap bob 21 sat",
        "0000000000000000:1:0  alice  post  10m ago, lapses in 2h 1m", "    one", "    two",
    ]  # fmt: skip
    assert err == "hint: pylon agent approve ID, or pylon agent deny ID\n"
    _, out, err = asked_once("approvals", "--json", approvals=waiting)
    assert (json.loads(out), err) == ({"approvals": waiting}, "")


def test_what_an_agent_would_say_commands_no_terminal(asked_once):
    _, out, _ = asked_once("approvals", approvals=[approval(text=EVIL)])
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"} & set(out)
    assert [line for line in out.splitlines() if not line.startswith("    ")] == [out.splitlines()[0]]


def test_approve(asked_once):
    decided = {"approval": {"id": ID, "state": "done", "outcome": f"paid 21 sat {EVIL}"}}
    call, out, err = asked_once("approve", ID[:12], **decided)
    assert call == ("agent.approve", {"id": ID[:12]})
    assert out.startswith(f"{ID} is done: paid 21 sat")
    assert len(out.splitlines()) == 1
    assert "\x1b" not in out
    assert err == ""
    _, out, _ = asked_once("approve", ID, "--json", **decided)
    assert json.loads(out) == decided


@pytest.mark.parametrize(
    ("state", "code"),
    [("done", 0), ("approved", 0), ("preparing", 0), ("paying", 0), ("failed", 1), ("refused", 1), ("expired", 1)],
)
def test_an_approved_action_that_failed_exits_with_1(pylon, daemon, state, code):
    with daemon({"result": {"approval": {"id": ID, "state": state, "outcome": ""}}}):
        got, out, err = pylon("agent", "approve", ID)
    assert (got, out, err) == (code, f"{ID} is {state}\n", "")


def test_what_is_approved_without_a_daemon_goes_on_with_one(pylon, monkeypatch):
    for reached, words in (("preparing", "it goes on once there is one (pylon start)"), ("done", "")):
        decided = {"approval": {"id": ID, "state": reached, "outcome": ""}}
        monkeypatch.setattr(module, "run_verb", lambda *_, decided=decided, **__: decided)
        code, _, err = pylon("agent", "approve", ID)
        assert code == 0
        assert words in err
        assert bool(err) is bool(words)


def test_deny(asked_once):
    denied = {"approval": {"id": ID, "state": "denied", "outcome": "too much"}}
    call, out, _ = asked_once("deny", ID, "--reason", "too much", **denied)
    assert call == ("agent.deny", {"id": ID, "reason": "too much"})
    assert out == f"{ID} is denied: too much\n"
    assert asked_once("deny", ID, **denied)[0] == ("agent.deny", {"id": ID})
