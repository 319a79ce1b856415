"""NIP-SA: an agent's state, kind 39201: one JSON object, sealed by the agent for itself (NIP-44).

Beside what the NIP names it carries ``instance`` and ``epoch``: which runner wrote it, and how often the agent has
moved. A runner that reads a higher epoch than its own has been replaced, and parks. Secrets of skills have no place in
it: whoever caches them defeats their revocation.

Reading is tolerant: entries that are none are left out, numbers are cut to what is possible, fields of another version
are kept in ``extra`` and written back. No number in it is to be trusted with money: the wallet knows the balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from protocols import nip44
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip_sa import (
    MAX_SATS,
    STATE,
    AgentEventInvalid,
    fraction_of,
    list_of,
    open_sealed,
    text_of,
    to_json,
    to_object,
    whole_of,
)

SCHEMA_VERSION = 1
MAX_STATE_BYTES = 65_535
"""Of JSON. What does not fit must be forgotten first."""
MAX_GOALS = 200
MAX_MEMORIES = 2_000
MAX_TASKS = 200
MAX_CONTENT_CHARS = 16_000


def _plain(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(value or {})


def _extra() -> Any:
    return attrs.field(factory=dict, converter=_plain, hash=False, repr=False)


@attrs.frozen(kw_only=True)
class Goal:
    id: str
    description: str = attrs.field(repr=False)
    priority: int = 0
    created_at: int = 0
    status: str = "active"
    """``active``, ``paused``, ``completed`` or ``cancelled``; others are kept."""
    progress: float = 0.0
    """From 0 to 1."""
    extra: Mapping[str, Any] = _extra()
    """What else it has: ``type`` (``metric``, ``recurring``), ``target``, ``current``, ``frequency`` …"""


@attrs.frozen(kw_only=True)
class Memory:
    type: str
    """``observation``, ``action_result`` …"""
    content: str = attrs.field(repr=False)
    timestamp: int = 0
    id: str = ""
    relevance: float = 1.0
    """From 0 to 1."""
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Budget:
    """What the agent was told of its means, whole sats. Told, not held: budgets are kept outside the agent."""

    balance: int = 0
    daily_limit: int = 0
    per_tick_limit: int = 0
    reserved: int = 0
    daily_spent: int = 0
    last_reset: int = 0


@attrs.frozen(kw_only=True)
class TickStats:
    total_ticks: int = 0
    successful_ticks: int = 0
    total_actions: int = 0
    total_cost: int = 0
    """Whole sats."""


@attrs.frozen(kw_only=True)
class AgentState:
    """All that an agent knows of itself."""

    instance: str = ""
    """Name of the runner that wrote it; empty: not said."""
    epoch: int = 0
    goals: tuple[Goal, ...] = attrs.field(default=())
    memory: tuple[Memory, ...] = attrs.field(default=())
    pending_tasks: tuple[Any, ...] = attrs.field(default=(), hash=False, repr=False)
    """Any JSON."""
    beliefs: Mapping[str, Any] = attrs.field(factory=dict, converter=_plain, hash=False, repr=False)
    wallet_balance: int = 0
    """Whole sats, as last seen."""
    last_tick: int = 0
    """Unix seconds."""
    tick_count: int = 0
    budget: Budget = Budget()
    tick_stats: TickStats = TickStats()
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = _extra()

    def to_json(self) -> str:
        """Raises ``AgentEventInvalid`` for what JSON cannot hold."""
        content = {
            **self.extra,
            "schema_version": self.schema_version,
            "instance": self.instance,
            "epoch": self.epoch,
            "goals": [_flat(goal) for goal in self.goals],
            "memory": [_flat(memory) for memory in self.memory],
            "pending_tasks": list(self.pending_tasks),
            "beliefs": self.beliefs,
            "wallet_balance": self.wallet_balance,
            "last_tick": self.last_tick,
            "tick_count": self.tick_count,
            "wallet": attrs.asdict(self.budget),
            "tick_stats": attrs.asdict(self.tick_stats),
        }
        return to_json(content)

    @classmethod
    def from_json(cls, text: str) -> AgentState:
        """Raises ``AgentEventInvalid`` for what is too long or no JSON object."""
        if len(text) > MAX_STATE_BYTES:
            raise AgentEventInvalid(f"a state has at most {MAX_STATE_BYTES} bytes")
        rest = to_object(text)
        take = rest.pop
        old_balance = take("wallet_balance_sats", None)  # as the first implementation called it
        return cls(
            schema_version=max(0, whole_of(take("schema_version", None), SCHEMA_VERSION)),
            instance=text_of(take("instance", None)),
            epoch=_count(take("epoch", None)),
            goals=tuple(_goal(entry) for entry in list_of(take("goals", None), MAX_GOALS) if _is_entry(entry, "id")),
            memory=tuple(
                _memory(entry) for entry in list_of(take("memory", None), MAX_MEMORIES) if _is_entry(entry, "content")
            ),
            pending_tasks=tuple(list_of(take("pending_tasks", None), MAX_TASKS)),
            beliefs=_object(take("beliefs", None)),
            wallet_balance=_sats(take("wallet_balance", old_balance)),
            last_tick=_count(take("last_tick", None)),
            tick_count=_count(take("tick_count", None)),
            budget=_numbers(Budget, take("wallet", None)),
            tick_stats=_numbers(TickStats, take("tick_stats", None)),
            extra=rest,
        )


def supersedes(one: AgentState, other: AgentState) -> bool:
    """Whether ``one`` is further than ``other``: a later epoch, and within one epoch more ticks."""
    return (one.epoch, one.tick_count) > (other.epoch, other.tick_count)


def build_state(secret: SecretKey, state: AgentState, *, created_at: int) -> Event:
    """A kind 39201 event of the agent's. Raises ``AgentEventInvalid`` for more than ``MAX_STATE_BYTES``."""
    text = state.to_json()
    if len(text.encode()) > MAX_STATE_BYTES:
        raise AgentEventInvalid(f"a state has at most {MAX_STATE_BYTES} bytes: something must be forgotten")
    tags = [["d", "state"], ["encrypted"], ["state_version", str(state.schema_version)]]
    content = nip44.encrypt(text, nip44.conversation_key(secret, secret.public))
    return sign_event(secret, kind=STATE, content=content, tags=tags, created_at=created_at)


def parse_state(event: Event, secret: SecretKey) -> AgentState:
    """From a verified event of the agent whose key ``secret`` is. Raises ``AgentEventInvalid``."""
    if event.kind != STATE or event.d not in ("state", ""):
        raise AgentEventInvalid("another kind of event, or another d")
    if event.pubkey != secret.public.hex:
        raise AgentEventInvalid("another agent's state")
    return AgentState.from_json(open_sealed(event.content, secret, event.pubkey, MAX_STATE_BYTES))


def _flat(value: Goal | Memory) -> dict[str, Any]:
    fields = attrs.asdict(value, recurse=False)
    return {**fields.pop("extra"), **fields}


def _is_entry(value: object, name: str) -> bool:
    return isinstance(value, dict) and bool(text_of(value.get(name)))


def _goal(value: dict[str, Any]) -> Goal:
    rest = dict(value)
    return Goal(
        id=text_of(rest.pop("id")),
        description=text_of(rest.pop("description", None), MAX_CONTENT_CHARS),
        priority=whole_of(rest.pop("priority", None)),
        created_at=_count(rest.pop("created_at", None)),
        status=text_of(rest.pop("status", None)) or "active",
        progress=fraction_of(rest.pop("progress", None)),
        extra=rest,
    )


def _memory(value: dict[str, Any]) -> Memory:
    rest = dict(value)
    return Memory(
        type=text_of(rest.pop("type", None)) or "observation",
        content=text_of(rest.pop("content"), MAX_CONTENT_CHARS),
        timestamp=_count(rest.pop("timestamp", None)),
        id=text_of(rest.pop("id", None)),
        relevance=fraction_of(rest.pop("relevance", 1.0)),
        extra=rest,
    )


def _numbers(kind: type[Any], value: object) -> Any:
    found = _object(value)
    return kind(**{field.name: _count(found.get(field.name)) for field in attrs.fields(kind)})


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return max(0, whole_of(value))


def _sats(value: object) -> int:
    return min(_count(value), MAX_SATS)
