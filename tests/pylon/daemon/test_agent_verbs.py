"""The agents' verbs: whatever callers say, they get an answer or an error with a hint, and an error changes nothing."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon.errors import PylonError
from pylon.money import MAX_MSAT
from tests.pylon.daemon.agent_home import everything, furnish, open_verbs

LIFECYCLE = {"low_balance_days": 7.0, "assumed_daily_burn_sats": 10, "hibernate_threshold_sats": 5, "reserve_sats": 0,
             "low_balance_factor": 2}  # fmt: skip
SCHEDULE = {"jitter": 0.1, "late": 60.0, "catch_up": 300.0, "min_gap": 60.0, "debounce": 5.0, "patience": 30.0,
            "triggered_per_hour": 12, "stranger_budget_sats": 100}  # fmt: skip
GRANT = {"action": "zap", "each_sats": 21, "day_sats": 100, "per_day": 3, "strangers": False}
CHOSEN = {"about": "a friend", "model": "any", "autonomy": "bounded", "heartbeat": 900, "publish": True,
          "relays": ["wss://relay.example"], "trusted": ["aa" * 32], "triggers": ["mention", "kind:7"],
          "grants": [GRANT], "lifecycle": LIFECYCLE, "schedule": SCHEDULE, "reserve_sats": 5, "budget_day_sats": 100,
          "budget_tick_sats": 10, "stranger_budget_sats": 10, "max_steps": 3, "thought_tokens": 100}  # fmt: skip
A = {"agent": "alice"}
VERBS: dict[str, dict[str, Any]] = {
    "agent.list": {},
    "agent.info": A,
    "agent.spawn": {"name": "carol", "network": "simnet", "goals": ["sing"], **CHOSEN},
    "agent.delete": {**A, "name": "alice"},
    "agent.pause": A,
    "agent.stop": A,
    "agent.resume": A,
    "agent.start": A,
    "agent.fund": {**A, "amount_msats": 5_000, "source": "faucet"},
    "agent.invoice": {**A, "amount_msats": 5_000, "description": "for bread"},
    "agent.withdraw": {**A, "amount_msats": 5_000, "to": None},
    "agent.reveal": A,
    "agent.tick": A,
    "agent.ticks": {**A, "limit": 5, "quiet": True},
    "agent.goals": A,
    "agent.goal_add": {**A, "description": "dance", "priority": 3},
    "agent.goal_set": {**A, "id": "g1", "status": "paused", "progress": 0.5, "priority": 2},
    "agent.memory": {**A, "limit": 5},
    "agent.memory_add": {**A, "text": "roses are red"},
    "agent.memory_forget": {**A, "id": "?"},
    "agent.approvals": A,
    "agent.approve": {"id": "?"},
    "agent.deny": {"id": "?", "reason": "no"},
    "agent.set": {**A, "name": "alice", **CHOSEN},
    "agent.grant": {**A, **GRANT},
    "agent.revoke": {**A, "action": "pay_invoice"},
    "agent.export": {**A, "form": "phrase", "passphrase": "correct horse battery"},
    "agent.import": {"mnemonic": "x", "bundle": None, "passphrase": "x", "name": "dave", "relays": []},
}

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 10**400, -(10**400), MAX_MSAT, MAX_MSAT + 1, 2**63, 2**64, 10**16]),
    st.floats(allow_nan=True, allow_infinity=True),
)
words = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", " ", "\0", "\ud800", "a" * 100_000, "é" * 40_000, "npub1" + "q" * 58, "00" * 32, "ff" * 32,
                     "aabbccdd", "lnsb1", "kind:" + "9" * 5_000, "kind:٣", "ws://", "wss://" + "a" * 9_000, "alice",
                     "bob", "g", "%", "'; DROP TABLE agents; --", "../../etc/passwd"]),
)  # fmt: skip
scalars = st.none() | st.booleans() | numbers | words
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=6
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A verb, and parameters of which some are replaced, left out, added, or changed inside."""
    verb = draw(st.sampled_from(sorted(VERBS)))
    params = json.loads(json.dumps(VERBS[verb]))
    names = st.sampled_from(sorted(params) or ["agent"])
    for name in dict.fromkeys(draw(st.lists(names, min_size=1, max_size=3))):
        value = params.get(name)
        if isinstance(value, dict) and draw(st.booleans()):
            value[draw(st.sampled_from(sorted(value)))] = draw(anything)
        elif isinstance(value, list) and value and draw(st.booleans()):
            if isinstance(value[0], dict) and draw(st.booleans()):
                value[0][draw(st.sampled_from(sorted(value[0])))] = draw(anything)
            else:
                value[0] = draw(anything)
        elif draw(st.integers(0, 9)) == 0:
            params.pop(name, None)
        else:
            params[name] = draw(anything)
    if draw(st.integers(0, 9)) == 0:
        params[draw(words)] = draw(anything)
    return verb, params


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    return trio.run(furnish, tmp_path_factory.mktemp("home") / "home")


@settings(max_examples=400)
@given(calls())
def test_whatever_is_asked(furnished, call):
    """An answer that JSON can hold, or an error of ours with a hint, after which all is as it was."""
    verb, params = call

    async def run() -> None:
        async with open_verbs(copy) as opened:
            if params.get("id") == "?":
                params["id"] = await known_id(opened, verb)
            before = everything(copy)
            try:
                answer = await opened.call(verb, params)
            except PylonError as refused:
                error = refused
            else:
                event(f"{verb}: answered")
                json.dumps(answer, allow_nan=False)
                return
            event(f"{verb}: {error.code}")
            assert 0 < len(error.message) < 1_000
            assert error.hint, f"{verb} says no without a hint: {error.message}"
            assert everything(copy) == before, "who says no changes nothing"

    copy = furnished.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(furnished, copy)
    trio.run(run)


async def known_id(opened, verb: str) -> str:
    if verb == "agent.memory_forget":
        return str((await opened.ask("agent.memory", agent="alice"))["memories"][0]["id"])
    return str((await opened.ask("agent.approvals"))["approvals"][0]["id"])
