"""The agents' things as users see them, in JSON."""

from __future__ import annotations

from typing import Any

from protocols.nip_sa_state import Goal, Memory
from pylon.daemon.agent_params import TRIGGERS
from pylon.host import memory as minds
from pylon.host.acting import Action
from pylon.host.deeds import describe
from pylon.host.settings import AgentSettings, Grant


def triggers_json(chosen: AgentSettings) -> list[str]:
    named = [name for name, field in TRIGGERS.items() if getattr(chosen, field)]
    return named + [f"kind:{kind}" for kind in chosen.kinds]


def grant_json(grant: Grant) -> dict[str, Any]:
    return {
        "action": grant.action.value,
        "each_msats": grant.each,
        "day_msats": grant.day,
        "per_day": grant.per_day,
        "strangers": grant.strangers,
    }


def goal_json(goal: Goal) -> dict[str, Any]:
    return {
        "id": goal.id,
        "description": goal.description,
        "priority": goal.priority,
        "status": goal.status,
        "progress": goal.progress,
        "review_at": goal.extra.get("review_at"),
    }


def memory_json(entry: Memory) -> dict[str, Any]:
    return {
        "id": entry.id,
        "type": entry.type,
        "content": entry.content,
        "relevance": entry.relevance,
        "timestamp": entry.timestamp,
        "origin": minds.origin_of(entry),
    }


def action_json(action: Action) -> dict[str, Any]:
    return {
        "id": action.id,
        "kind": action.kind.value,
        "state": action.state.value,
        "text": describe(action),
        "content": action.wish.text,
        "events": list(action.events),
        "cost_msats": action.paid + action.fee,
        "outcome": action.reason or ", ".join(action.events),
    }


def plain(value: Any) -> Any:
    """Enums and tuples as JSON has them."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.value if hasattr(value, "value") else value
