"""``pylon agent``: the group, and an agent's life: what is asked of the daemon, what is said, with which exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.nip_sa import Autonomy
from pylon.cli.agent import SECTIONS
from pylon.cli.agent import agent as group
from pylon.cli.agent_options import (
    ACTIONS,
    AUTONOMIES,
    DAY_BUDGET,
    DEFAULTS,
    MONEY,
    NETWORKS,
    GrantSpec,
    Trigger,
    settings_of,
)
from pylon.cli.times import DURATION
from pylon.config import NETWORKS as KNOWN_NETWORKS
from pylon.host import settings as host
from tests.pylon.cli.agent_json import EVIL, KEY, NPUB, PHRASE, agent, goal, refusal
from tests.pylon.cli.test_imports import HEAVY, PROBE

# --- the group --------------------------------------------------------------------------------------------------------


def test_help_shows_every_command_below_its_heading(pylon):
    code, out, _ = pylon("agent", "--help")
    assert code == 0
    places = [out.index(f"\n{title}:\n") for title in SECTIONS]
    assert places == sorted(places)
    for title, commands in SECTIONS.items():
        part = out.split(f"\n{title}:\n")[1].split("\n\n")[0]
        listed = [line.split()[0] for line in part.splitlines() if line.startswith("  ") and line[2] != " "]
        assert listed == [command.name for command in commands]
    assert "npub" in out


def test_the_seed_and_the_predecessor_have_their_commands():
    assert {"list", "info", "spawn", "delete"} <= set(group.commands)
    names = {name for param in group.commands["spawn"].params for name in (*param.opts, *param.secondary_opts)}
    assert {"--name", "-n", "--network", "--heartbeat", "--relay", "--mnemonic-stdin", "--json"} <= names
    assert "--mnemonic" not in names, "a phrase on a command line is seen by every process"


@pytest.mark.parametrize("name", group.commands)
def test_every_command_helps_and_costs_nothing(name):
    done = subprocess.run(
        [sys.executable, "-c", PROBE % (HEAVY,), "agent", name, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[] 0"
    assert f"Usage: pylon agent {name}" in done.stdout


def test_a_command_that_is_none(pylon):
    code, _, err = pylon("agent", "spwan")
    assert code == 2
    assert "spawn" in err
    assert "see pylon agent --help" in err


def test_what_this_side_knows_by_heart_is_what_the_host_says():
    """The modules of the command do not import the host's, for their weight."""
    assert set(ACTIONS) == {kind.value for kind in host.ActionKind} - {"nothing"}
    assert set(MONEY) == {kind.value for kind in host.MONEY}
    assert set(AUTONOMIES) == {level.value for level in Autonomy}
    assert tuple(KNOWN_NETWORKS) == NETWORKS
    made = host.AgentSettings(name="a")
    assert DURATION.convert(DEFAULTS["heartbeat"], None, None) == made.heartbeat
    assert (made.mentions, made.dms, made.zaps, made.kinds) == (True, True, True, ())
    assert made.trusted == ()
    assert (made.model, made.relays, made.autonomy) == (None, (), Autonomy.BOUNDED)
    told = {name: text.replace(",", "") for name, text in DEFAULTS.items()}
    assert int(told["budget-day"]) == DAY_BUDGET == made.budget_day_sats
    assert int(told["budget-tick"]) == made.budget_tick_sats
    assert int(told["stranger-budget"]) == made.schedule.stranger_budget_sats
    assert int(told["reserve"]) == made.lifecycle.reserve_sats
    assert float(told["low-balance-days"]) == made.lifecycle.low_balance_days
    assert int(told["hibernate-below"]) == made.lifecycle.hibernate_threshold_sats
    assert int(told["assumed-burn"]) == made.lifecycle.assumed_daily_burn_sats


ALL = [
    ("list",), ("info", "x"), ("spawn", "x"), ("set", "x", "--model", "m"), ("delete", "x", "-f"), ("start", "x"),
    ("stop", "x"), ("pause", "x"), ("resume", "x"), ("tick", "x"), ("ticks", "x"), ("fund", "x"),
    ("withdraw", "x", "--all"), ("goals", "x"), ("goals", "add", "x", "y"),
    ("goals", "set", "x", "y", "--priority", "1"),
    ("memory", "x"), ("memory", "add", "x", "y"), ("memory", "forget", "x", "y"), ("approvals",), ("approve", "x"),
    ("deny", "x"), ("grant", "x", "post"), ("revoke", "x", "post"), ("reveal", "x"), ("export", "x", "--phrase"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", ALL)
def test_a_refusal_of_the_daemon_keeps_its_class(pylon, daemon, arguments):
    with daemon(refusal("not_found", "there is no agent 'x'", "pylon agent list")):
        code, out, err = pylon("--json", "agent", *arguments)
        assert (code, out) == (1, "")
        assert json.loads(err)["error"] == {
            "code": "not_found", "message": "there is no agent 'x'", "hint": "pylon agent list"
        }  # fmt: skip
        assert pylon("agent", *arguments)[2].endswith("error: there is no agent 'x'\nhint: pylon agent list\n")
    with daemon(refusal("over_budget", "no", exit_code=4)):
        assert pylon("agent", *arguments)[0] == 4


@pytest.mark.parametrize("arguments", ALL)
def test_a_home_that_is_none_is_left_alone(pylon, home, arguments):
    code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out) == (1, "")
    assert json.loads(err)["error"]["code"] == "identity"
    assert not home.root.exists()


@pytest.mark.usefixtures("offline")
def test_agents_live_on_other_networks_too(pylon):
    """Spark's regtest, offline: the balance is unknown, and not zero."""
    pylon("init", "--network", "regtest")
    code, out, _ = pylon("--json", "agent", "spawn", "x")
    assert code == 0
    assert json.loads(out)["balance_msats"] is None
    (shown,) = json.loads(pylon("--json", "agent", "list")[1])["agents"]
    assert (shown["name"], shown["network"], shown["balance_msats"]) == ("x", "regtest", None)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("info",), ("info", "a", "b"), ("spawn",), ("spawn", "a", "--name", "b"),
        ("spawn", "a", "--heartbeat", "soon"), ("spawn", "a", "--trigger", "reply"),
        ("spawn", "a", "--trigger", "kind:70000"), ("spawn", "a", "--trigger", "kind:x"),
        ("spawn", "a", "--trigger", "none", "--trigger", "dm"), ("set", "a", "--trusted", "none", "--trusted", NPUB),
        ("spawn", "a", "--autonomy", "full"),
        ("spawn", "a", "--network", "lightning"), ("spawn", "a", "--budget-day", "-1"),
        ("spawn", "a", "--reserve", "1500msat"),
        ("spawn", "a", "--low-balance-days", "-1"), ("spawn", "a", "--low-balance-days", "nan"),
        ("spawn", "a", "--grant", "fly"), ("spawn", "a", "--grant", "zap:1:2:3"), ("spawn", "a", "--grant", "zap:x"),
        ("spawn", "a", "--grant", "post:21"), ("spawn", "a", "--grant", "zap"),
        ("spawn", "a", "--grant", "zap:1:2", "--grant", "zap:3:4"), ("spawn", "a", "--mnemonic", PHRASE),
        ("set", "a"), ("set", "a", "--model", "m", "--any-model"), ("set",), ("set", "a", "--network", "simnet"),
        ("delete",), ("delete", "a"), ("pause",), ("nonsense",),
    ],
)  # fmt: skip
def test_usage(pylon, daemon, arguments):
    with daemon({"result": agent()}) as asked:
        code, out, err = pylon("--json", "agent", *arguments)
    assert (code, out) == (2, "")
    error = json.loads(err.splitlines()[-1])["error"]
    assert error["code"] == "usage"
    assert error["hint"]
    assert PHRASE not in err
    assert [call["method"] for call in asked] in ([], ["agent.info"])


# --- looking ----------------------------------------------------------------------------------------------------------


def test_list(asked_once):
    found = [agent(), agent(name="bob", state="dormant", balance_msats=0, runway_days=0.0, next_tick=None)]
    call, out, err = asked_once("list", agents=found)
    assert (call, err) == (("agent.list", {}), "")
    head, alice, bob = out.splitlines()
    assert head.split() == ["NAME", "STATE", "BALANCE", "RUNWAY", "NEXT", "TICK", "NPUB"]
    assert alice.split()[:2] == ["alice", "active"]
    assert "12,345 sat" in alice
    assert "in 12m" in alice
    assert bob.split() == ["bob", "dormant", "0", "sat", "0", "days", "on", "funds", NPUB]


def test_an_empty_list_says_how_to_begin(asked_once):
    _, out, err = asked_once("list", agents=[])
    assert out == "No agents.\n"
    assert err == "hint: pylon agent spawn --name NAME\n"
    _, out, err = asked_once("list", "--json", agents=[])
    assert (json.loads(out), err) == ({"agents": []}, "")


@pytest.mark.parametrize("name", ["alice", NPUB, KEY[:8]])
def test_info(asked_once, name):
    view = agent(goal_list=[goal()], about="a poet", settings={})
    call, out, _ = asked_once("info", name, **view)
    assert call == ("agent.info", {"agent": name})
    assert out.splitlines()[:3] == ["name:      alice", f"npub:      {NPUB}", "about:     a poet"]
    _, out, err = asked_once("info", name, "--json", **view)
    assert (json.loads(out), err) == (view, "")


def test_what_others_write_commands_no_terminal(asked_once):
    _, out, _ = asked_once("info", "alice", **agent(last_error=EVIL, about=EVIL, goal_list=[goal(description=EVIL)]))
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"} & set(out)
    assert out.count("evil") == 3
    assert not any(line.startswith("alice") for line in out.splitlines())


# --- spawning ---------------------------------------------------------------------------------------------------------

SPAWNED = agent(state="spawning", balance_msats=0, runway_days=0.0, next_tick=None, mnemonic=PHRASE)


def test_spawn(asked_once):
    call, out, err = asked_once("spawn", "--name", "alice", **SPAWNED)
    assert call == ("agent.spawn", {"name": "alice"})
    assert out.splitlines() == [
        "alice is here.",
        f"npub:    {NPUB}",
        "state:   spawning (waiting for funds)",
        "network: simnet (simnet sats are not money)",
        "",
        "Write these words down, in this order. Whoever has them has alice and its money;",
        "they are shown once.",
        "",
        f"    {PHRASE}",
        "",
        "Next: pylon agent fund alice",
    ]
    assert err == ""


@pytest.mark.parametrize("arguments", [("alice",), ("-n", "alice"), ("alice", "--name", "alice")])
def test_the_name_of_a_new_one(asked_once, arguments):
    assert asked_once("spawn", *arguments, **SPAWNED)[0] == ("agent.spawn", {"name": "alice"})


def test_spawn_in_json_has_the_phrase(asked_once):
    _, out, err = asked_once("spawn", "alice", "--json", **SPAWNED)
    assert (json.loads(out), err) == (SPAWNED, "")


def test_on_another_network_funds_come_by_an_invoice(asked_once):
    _, out, _ = asked_once("spawn", "alice", **{**SPAWNED, "network": "regtest"})
    assert out.endswith("Next: pylon agent fund alice AMOUNT --invoice\n")
    assert "not money" not in out


def test_spawn_with_everything(asked_once):
    call, _, _ = asked_once(
        "spawn", "-n", "alice", "--network", "simnet", "--heartbeat", "1h", "--relay", "wss://a.example",
        "--relay", "wss://b.example", "--relay", "wss://a.example", "--goal", "post", "--goal", "answer",
        "--model", "m", "--autonomy", "supervised", "--trusted", NPUB,
        "--trigger", "dm", "--trigger", "kind:30023", "--trigger", "dm",
        "--budget-day", "2,000", "--budget-tick", "50sat", "--reserve", "0", "--stranger-budget", "7",
        "--about", "a poet", "--grant", "zap:21:100", "--grant", "post", "--grant", "pay-invoice:5:6", "--no-publish",
        "--low-balance-days", "3.5", "--hibernate-below", "0", "--assumed-burn", "30", **SPAWNED,
    )  # fmt: skip
    assert call[1] == {
        "name": "alice", "network": "simnet", "heartbeat": 3_600, "relays": ["wss://a.example", "wss://b.example"],
        "goals": ["post", "answer"], "model": "m", "autonomy": "supervised", "trusted": [NPUB],
        "triggers": ["dm", "kind:30023"],
        "budget_day_sats": 2_000, "budget_tick_sats": 50, "reserve_sats": 0, "stranger_budget_sats": 7,
        "about": "a poet",
        "grants": [
            {"action": "zap", "each_sats": 21, "day_sats": 100}, {"action": "post"},
            {"action": "pay_invoice", "each_sats": 5, "day_sats": 6},
        ],
        "publish": False,
        "lifecycle": {
            "low_balance_days": 3.5, "hibernate_threshold_sats": 0, "assumed_daily_burn_sats": 30
        },
    }  # fmt: skip


@pytest.mark.parametrize(("options", "day"), [((), 1_000), (("--budget-day", "50"), 50), (("--budget-day", "0"), 0)])
def test_without_a_limit_for_a_day_the_budget_of_a_day_is_it(asked_once, options, day):
    call, _, _ = asked_once("spawn", "alice", "--grant", "zap:21", *options, **SPAWNED)
    assert call[1]["grants"] == [{"action": "zap", "each_sats": 21, "day_sats": day}]


def test_no_triggers(asked_once):
    assert asked_once("spawn", "alice", "--trigger", "none", **SPAWNED)[0][1] == {"name": "alice", "triggers": []}


def test_a_phrase_of_ones_own_comes_by_stdin_and_is_not_shown(asked_once, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"  {PHRASE}\nmore\n"))
    call, out, err = asked_once("spawn", "alice", "--mnemonic-stdin", **SPAWNED)
    assert call[1] == {"name": "alice", "mnemonic": PHRASE}
    assert PHRASE not in out + err
    assert "Write" not in out


def test_a_phrase_is_asked_for_on_a_terminal(asked_once, terminal, monkeypatch):
    terminal()
    monkeypatch.setattr(click.termui, "hidden_prompt_func", lambda text: PHRASE)
    call, out, _ = asked_once("spawn", "alice", "--mnemonic-stdin", **SPAWNED)
    assert call[1]["mnemonic"] == PHRASE
    assert PHRASE not in out


def test_no_phrase_on_stdin(pylon, daemon, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with daemon({"result": SPAWNED}) as asked:
        code, _, err = pylon("agent", "spawn", "alice", "--mnemonic-stdin")
    assert (code, asked) == (2, [])
    assert "no seed phrase on stdin" in err


@given(st.text())
def test_anything_is_a_trigger_or_refused(text):
    try:
        made = Trigger().convert(text, None, None)
    except click.BadParameter:
        return
    assert made in ("mention", "dm", "zap", "none") or 0 <= int(made.removeprefix("kind:")) <= 65_535


@given(st.text() | st.from_regex(r"(zap|post|pay-invoice):[0-9,]{0,4}(:[0-9]{0,3})?", fullmatch=True))
def test_anything_is_a_grant_or_refused(text):
    try:
        made = GrantSpec().convert(text, None, None)
    except click.BadParameter:
        return
    assert made["action"] in ACTIONS
    assert set(made) <= {"action", "each_sats", "day_sats"}
    assert ("each_sats" in made) is (made["action"] in MONEY)
    assert GrantSpec().convert(":".join(map(str, made.values())), None, None) == made


def test_what_was_not_given_is_not_sent():
    nothing = {name.replace("-", "_"): None for name in DEFAULTS if name not in ("trigger", "relay", "trusted")}
    assert settings_of({**nothing, "about": None, "triggers": (), "relays": (), "trusted": ()}) == {}


# --- changing ---------------------------------------------------------------------------------------------------------


def test_set(asked_once):
    call, out, _ = asked_once(
        "set", "alice", "--heartbeat", "30m", "--budget-day", "0", "--about", "", "--publish", "--trigger", "none",
        "--low-balance-days", "0", **agent(),
    )  # fmt: skip
    assert call == (
        "agent.set",
        {"agent": "alice", "heartbeat": 1_800, "budget_day_sats": 0, "about": "", "publish": True, "triggers": [],
         "lifecycle": {"low_balance_days": 0.0}},
    )  # fmt: skip
    assert "name:      alice" in out
    assert asked_once("set", "alice", "-n", "bob", **agent())[0][1] == {"agent": "alice", "name": "bob"}
    assert asked_once("set", "alice", "--trusted", "none", **agent())[0][1] == {"agent": "alice", "trusted": []}
    assert asked_once("set", "alice", "--no-publish", **agent())[0][1] == {"agent": "alice", "publish": False}
    assert asked_once("set", "alice", "--any-model", **agent())[0][1] == {"agent": "alice", "model": ""}


@pytest.mark.parametrize(
    ("command", "changes", "text"),
    [
        ("pause", {"paused": "paused"}, "alice is paused: no tick begins until pylon agent resume alice.\n"),
        ("stop", {"paused": "stopped"}, "alice is stopped: no tick begins until pylon agent start alice.\n"),
        ("start", {}, "alice is active: 12,345 sat, runway 12 days, next tick in 12m.\n"),
        ("resume", {"state": "dormant", "balance_msats": 0},
         "alice is dormant, with 0 sat: it wakes on funds (pylon agent fund alice).\n"),
    ],
)  # fmt: skip
def test_running(asked_once, command, changes, text):
    view = agent(**changes)
    call, out, err = asked_once(command, "alice", **view)
    assert (call, out, err) == ((f"agent.{command}", {"agent": "alice"}), text, "")
    _, out, err = asked_once(command, "alice", "--json", **view)
    assert (json.loads(out), err) == (view, "")


# --- deleting ---------------------------------------------------------------------------------------------------------

DELETED = agent(backup="/home/keys/alice.backup", remaining_msats=890_000, balance_msats=890_000)
"""Both answers in one: what ``agent.info`` and what ``agent.delete`` says."""


@pytest.fixture
def deleting(pylon, daemon):
    def deleting(*arguments, **changes):
        with daemon({"result": {**DELETED, **changes}}) as asked:
            code, out, err = pylon("agent", "delete", *arguments)
        return code, out, err, [(call["method"], call["params"]) for call in asked]

    return deleting


LOOKED = ("agent.info", {"agent": "alice"})
GONE = ("agent.delete", {"agent": KEY, "name": "alice"})


def test_delete_asks_for_the_name_and_says_what_is_left_before(deleting, terminal):
    terminal("alice")
    code, out, err, calls = deleting("alice")
    assert (code, calls) == (0, [LOOKED, GONE])
    assert out.splitlines() == [
        "alice is deleted.",
        "backup: /home/keys/alice.backup (sealed with this home's data key)",
        "890 sat are left in its wallet: its seed phrase, or this backup, still reaches them.",
    ]
    first, second, *_ = err.splitlines()
    assert first == "warning: 890 sat are in the wallet of alice: pylon agent withdraw alice --all"
    assert second == f"alice ({NPUB}) is to be deleted."
    assert "Type its name (alice)" in err


@pytest.mark.parametrize("typed", ["", "alicia", "y", KEY])
def test_another_name_deletes_nothing(deleting, terminal, typed):
    terminal(typed)
    code, out, err, calls = deleting("alice")
    assert (code, out, calls) == (1, "", [LOOKED])
    assert "nothing was deleted" in err


def test_the_end_of_the_input_deletes_nothing(deleting, terminal):
    terminal()
    code, out, _, calls = deleting("alice")
    assert (code, out, calls) == (1, "", [LOOKED])


def test_without_a_terminal_it_wants_force(deleting, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("alice\n"))
    code, out, err, calls = deleting("alice")
    assert (code, out, calls) == (2, "", [LOOKED])
    assert "pylon agent delete alice --force" in err


def test_force(deleting):
    code, out, err, calls = deleting("alice", "-f", balance_msats=0, remaining_msats=0)
    assert (code, err, calls) == (0, "", [LOOKED, GONE])
    assert "left" not in out
    code, out, err, _ = deleting("alice", "-f", "--json")
    assert json.loads(out) == DELETED
    assert "890 sat are in the wallet" in err


def test_a_balance_that_is_not_known_is_not_nothing(deleting):
    _, _, err, _ = deleting("alice", "-f", balance_msats=None, remaining_msats=None)
    assert err == "warning: what is in the wallet of alice is not known now\n"


# --- without a daemon -------------------------------------------------------------------------------------------------


def test_an_agents_life_without_a_daemon(simnet, tmp_path):
    """The commands against the verbs themselves: what one side sends, the other side reads."""

    def done(*arguments):
        code, out, err = simnet("--json", "agent", *arguments)
        assert (code, err) == (0, ""), arguments
        return json.loads(out)

    born = done(
        "spawn", "alice", "--goal", "post", "--heartbeat", "1h", "--trigger", "dm", "--trigger", "kind:30023",
        "--about", "a poet", "--model", "m", "--autonomy", "supervised", "--budget-day", "50", "--budget-tick", "5",
        "--reserve", "7", "--stranger-budget", "3", "--grant", "zap:21", "--no-publish", "--low-balance-days", "0.5",
        "--hibernate-below", "9", "--assumed-burn", "30", "--relay", "ws://127.0.0.1:7777", "--trusted", NPUB,
        "--network", "simnet",
    )  # fmt: skip
    told = done("info", "alice")
    assert len(born["mnemonic"].split()) == 12
    assert "mnemonic" not in told
    chosen = told["settings"]
    assert (chosen["heartbeat"], chosen["model"], chosen["about"], chosen["publish"]) == (3_600, "m", "a poet", False)
    assert (chosen["autonomy"], chosen["trusted"]) == ("supervised", [KEY])
    assert (chosen["mentions"], chosen["dms"], chosen["zaps"], chosen["kinds"]) == (False, True, False, [30_023])
    assert (chosen["budget_day_sats"], chosen["budget_tick_sats"]) == (50, 5)
    assert chosen["schedule"]["stranger_budget_sats"] == 3
    assert {name: chosen["lifecycle"][name] for name in ("low_balance_days", "hibernate_threshold_sats")} == {
        "low_balance_days": 0.5, "hibernate_threshold_sats": 9
    }  # fmt: skip
    assert (chosen["lifecycle"]["reserve_sats"], chosen["lifecycle"]["assumed_daily_burn_sats"]) == (7, 30)
    assert told["grants"] == [
        {"action": "zap", "each_msats": 21_000, "day_msats": 50_000, "per_day": None, "strangers": False}
    ]
    assert [goal["description"] for goal in told["goal_list"]] == ["post"]

    assert done("fund", "alice", "500")["agent"]["state"] == "active"
    assert done("fund", "alice", "5", "--invoice")["bolt11"].startswith("lnsb")
    assert done("set", "alice", "--any-model", "--name", "carol", "--trusted", "none", "--publish")["name"] == "carol"
    chosen = done("info", "carol")["settings"]
    assert (chosen["model"], chosen["trusted"], chosen["publish"]) == (None, [], True)
    assert done("pause", "carol")["paused"] == "paused"
    assert done("stop", "carol")["paused"] == "stopped"
    assert done("resume", "carol")["paused"] == ""
    goal = done("goals", "add", "carol", "sing", "--priority", "4")["goal"]
    changed = done("goals", "set", "carol", goal["id"], "--progress", "40", "--status", "paused")["goal"]
    assert (changed["progress"], changed["status"], changed["priority"]) == (0.4, "paused", 4)
    known = done("memory", "add", "carol", "the sea is wet")["memory"]
    assert [entry["content"] for entry in done("memory", "carol")["memories"]] == ["the sea is wet"]
    assert done("memory", "forget", "carol", known["id"]) == {"forgotten": 1}
    granted = done("grant", "carol", "pay_invoice", "--each", "5", "--day", "6", "--per-day", "7", "--strangers")
    assert granted["grants"][1] == {
        "action": "pay_invoice", "each_msats": 5_000, "day_msats": 6_000, "per_day": 7, "strangers": True
    }  # fmt: skip
    assert len(done("revoke", "carol", "zap")["grants"]) == 1
    assert done("approvals", "carol") == {"approvals": []}
    assert done("ticks", "carol")["total"] == 0
    assert done("reveal", "carol")["mnemonic"] == done("export", "carol", "--phrase")["mnemonic"] == born["mnemonic"]
    assert simnet("agent", "info", "carol")[0] == simnet("agent", "list")[0] == 0
    assert done("withdraw", "carol", "100")["withdrawn_msats"] == 100_000
    assert done("withdraw", "carol", "--all")["agent"]["state"] == "dormant"
    code, out, _ = simnet("--json", "agent", "delete", "carol", "--force")
    assert (code, json.loads(out)["name"]) == (0, "carol")
    assert done("list")["agents"] == []
