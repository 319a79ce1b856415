"""What the verbs of agents answer, for the stand-in daemon."""

from __future__ import annotations

import time

NOW = time.time()
"""The tests' now: half a minute is left to each time that is said in minutes."""

EVIL = "\x1b]0;title\x07 \x1b[2J\x9b1m\x7f evil\nalice  active  \u202efake"
"""Words that would command a terminal, or pass for a row of ours."""

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NPUB = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"
KEY = "17162c921dc4d2518f9a101db33695df1afb56ab82f5ff3e5da6eec3ca5cd917"


def agent(**changes):
    """An ``AgentView``."""
    view = {
        "name": "alice", "npub": NPUB, "pubkey": KEY, "state": "active", "reason": "", "network": "simnet",
        "relays": [], "created_at": NOW - 86_430, "paused": "", "moved": "", "epoch": 1, "instance": "ab" * 8,
        "autonomy": "bounded", "model": None, "balance_msats": 12_345_000, "pending_msats": 0, "known_at": NOW,
        "burn_msats": 1_000_000, "runway_days": 12.345,
        "schedule": {"heartbeat_seconds": 900, "interval_seconds": 900, "triggers": ["mention", "dm", "kind:30023"]},
        "next_tick": NOW + 750, "last_tick": NOW - 200, "ticks": 1_234,
        "budgets": {
            "tick_msats": 100_000, "day_msats": 1_000_000, "spent_day_msats": 37_500, "stranger_day_msats": 100_000,
            "reserve_msats": 0,
        },
        "grants": [], "goals": 1, "approvals": 0, "lud16": None, "last_error": None, "children": [],
        "db_stats": {"balance_sats": 12_345, "tick_count": 1_234, "last_tick_at": NOW - 200},
    }  # fmt: skip
    assert set(changes) <= {*view, "goal_list", "about", "settings", "mnemonic", "found", "backup", "remaining_msats"}
    return {**view, **changes}


def goal(**changes):
    return {
        "id": "9a" * 8, "description": "post a haiku a day", "priority": 1, "status": "active", "progress": 0.25,
        "review_at": None, **changes,
    }  # fmt: skip


def action(number=0, **changes):
    return {
        "id": f"{KEY[:16]}:7:{number}", "kind": "post", "state": "done", "text": "an old pond", "cost_msats": 0,
        "outcome": "", **changes,
    }  # fmt: skip


def tick(**changes):
    return {
        "id": f"{KEY[:16]}:7", "n": 7, "cause": "trigger", "trigger": "mention, zap", "state": "active",
        "status": "success", "cost_msats": 3_200, "started_at": NOW - 64.5, "ended_at": NOW - 60, "provider": "bb" * 32,
        "purchase": "cc" * 16, "thought": "somebody asks for a haiku", "reason": "", "actions": [action()],
        "events": ["dd" * 32], **changes,
    }  # fmt: skip


def approval(**changes):
    return {
        "id": f"{KEY[:16]}:7:0", "agent": "alice", "tick": f"{KEY[:16]}:7", "kind": "zap",
        "text": "zap bob 21 sat", "cost_msats": 21_000, "at": NOW - 630, "expires_at": NOW + 7_290, **changes,
    }  # fmt: skip


def memory(**changes):
    return {
        "id": "5e" * 8, "type": "observation", "content": "bob likes haiku", "relevance": 0.5,
        "timestamp": NOW - 7_230, "origin": "stranger", **changes,
    }  # fmt: skip


def refusal(code, message, hint="", exit_code=1):
    """How the daemon says no."""
    data = {"code": code, "message": message, "hint": hint, "exit_code": exit_code}
    return {"error": {"code": -32000, "message": message, "data": data}}
