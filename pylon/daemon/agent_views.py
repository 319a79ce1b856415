"""The agents' things as users see them, in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from protocols.nip_sa_state import Goal, Memory
from pylon.daemon.agent_params import TRIGGERS
from pylon.daemon.wallet_verbs import warning_json
from pylon.host import memory as minds
from pylon.host.acting import Action
from pylon.host.deeds import describe
from pylon.host.lifecycle import Lifecycle, heartbeat_factor, may_tick, reason
from pylon.host.registry import Agent
from pylon.host.settings import AgentSettings, Grant
from pylon.money import Msat, sats
from pylon.supervision import ChildStatus
from pylon.wallets.budgets import Warned
from pylon.wallets.port import Balance


@attrs.frozen
class Facts:
    """What is known of an agent beside its row."""

    lifecycle: Lifecycle
    balance: Balance | None
    last_tick: float | None
    goals: int
    approvals: int
    spent_day: Msat
    payments_waiting: int
    warnings: Sequence[Warned]


def agent_json(
    agent: Agent,
    facts: Facts,
    *,
    network: str,
    relays: Iterable[str],
    address: str | None,
    last_error: str | None,
    children: Sequence[ChildStatus],
) -> dict[str, Any]:
    """An agent as users see it.

    :param address: where it can be zapped, if anywhere.
    :param children: of its nursery, while it has one.
    """
    lifecycle, known, chosen = facts.lifecycle, facts.balance, agent.settings
    runs = agent.may_run and may_tick(lifecycle.state)
    factor = heartbeat_factor(lifecycle.state, chosen.lifecycle)
    burn = agent.burn.per_day(sats(chosen.lifecycle.assumed_daily_burn_sats))
    spendable = None if known is None else known.spendable
    return {
        "name": agent.name,
        "npub": agent.npub,
        "pubkey": agent.id,
        "state": lifecycle.state.value,
        "reason": (agent.moved and f"moved: {agent.moved}") or reason(lifecycle),
        "network": network,
        "wallet": agent.wallet,
        "relays": list(relays),
        "created_at": agent.created_at,
        "paused": agent.paused,
        "moved": agent.moved,
        "epoch": agent.epoch,
        "instance": agent.instance,
        "autonomy": chosen.autonomy.value,
        "model": chosen.model,
        "balance_msats": spendable,
        "pending_msats": None if known is None else known.pending_out,
        "known_at": None if known is None else known.known_at,
        "burn_msats": burn,
        "runway_days": None if spendable is None or burn == 0 else max(spendable, 0) / burn,
        "schedule": {
            "heartbeat_seconds": chosen.heartbeat,
            "interval_seconds": chosen.heartbeat * factor,
            "triggers": triggers_json(chosen),
        },
        "next_tick": agent.beat if runs else None,
        "last_tick": facts.last_tick,
        "ticks": agent.ticks,
        "quiet_ticks": agent.quiet,
        "budgets": {
            "tick_msats": chosen.budget_tick,
            "day_msats": chosen.budget_day,
            "spent_day_msats": facts.spent_day,
            "stranger_day_msats": sats(chosen.schedule.stranger_budget_sats),
            "reserve_msats": sats(chosen.lifecycle.reserve_sats),
            "payee_day_msats": chosen.payee_day,
            "approve_above_msats": chosen.approve_above,
            "warnings": [warning_json(warned) for warned in facts.warnings],
        },
        "grants": [grant_json(grant) for grant in chosen.grants],
        "goals": facts.goals,
        "approvals": facts.approvals,
        "payments_waiting": facts.payments_waiting,
        "lud16": address,
        "last_error": last_error,
        "children": [
            {"name": child.name, "state": child.state, "starts": child.starts, "last_error": child.last_error}
            for child in children
        ],
        "db_stats": {
            "balance_sats": None if spendable is None else spendable // 1_000,
            "tick_count": agent.ticks,
            "last_tick_at": facts.last_tick,
        },
    }


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
