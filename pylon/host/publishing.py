"""What a runner publishes of an agent: NIP-SA's events, signed in the transaction of what they tell.

Profile, schedule, triggers and state are the agent's; claims and results of ticks are the runner's (the home's key).
``created_at`` strictly grows for each address, so that no relay keeps an older version of two written in one second.

A trajectory tells what was done and how it went, not in which words: a thought is redacted to its hash, since
trajectories are public and thoughts quote private messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from protocols import nip17, nip65
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip17 import MAX_RELAYS
from protocols.nip65 import is_relay_url
from protocols.nip_sa import (
    MAX_SUMMARY_BYTES,
    TickStatus,
    Trigger,
    build_profile,
    build_schedule,
    build_tick_request,
    build_tick_result,
    build_triggers,
    to_json,
)
from protocols.nip_sa import PROFILE as PROFILE_KIND
from protocols.nip_sa import SCHEDULE as SCHEDULE_KIND
from protocols.nip_sa import STATE as STATE_KIND
from protocols.nip_sa_state import AgentState, build_state
from protocols.nip_sa_trajectory import build_session, build_step
from pylon import __version__
from pylon.host.acting import Action
from pylon.host.lifecycle import Lifecycle, heartbeat_factor, may_tick
from pylon.host.registry import Agent
from pylon.host.ticking import TickRecord
from pylon.money import MSATS_PER_SAT
from pylon.store import outbox
from pylon.store.database import Reads

METADATA = 0
_REDACTED = "<redacted>"
_LONGEST_REASON = 300


def fresh(source: Reads, kind: int, author: str, d: str, now: float) -> int:
    """A ``created_at`` for the next version of an address: now, or a second after the last one."""
    return max(int(now), outbox.last_created_at(source, f"{kind}:{author}:{d}") + 1)


def profile(
    source: Reads, agent: Agent, secret: SecretKey, *, operator: str, lud16: str | None, now: float
) -> list[Event]:
    settings = agent.settings
    event = build_profile(
        secret,
        name=settings.name,
        about=settings.about,
        picture=settings.picture,
        capabilities=settings.capabilities,
        autonomy=settings.autonomy,
        version=__version__,
        operator=operator,
        signers=(agent.id,),
        lud16=lud16,
        created_at=fresh(source, PROFILE_KIND, agent.id, "profile", now),
    )
    return [event]


def schedule(source: Reads, agent: Agent, secret: SecretKey, lifecycle: Lifecycle, now: float) -> list[Event]:
    """The heartbeat as it is now, slowed or not; ``active`` is whether it ticks at all."""
    interval = agent.settings.heartbeat * heartbeat_factor(lifecycle.state, agent.settings.lifecycle)
    runs = may_tick(lifecycle.state) and agent.may_run
    event = build_schedule(
        secret,
        heartbeat_seconds=interval,
        active=runs,
        next_tick=int(agent.beat) if runs and agent.beat is not None and agent.beat > now else None,
        created_at=fresh(source, SCHEDULE_KIND, agent.id, "schedule", now),
    )
    return [event]


def triggers(source: Reads, agent: Agent, secret: SecretKey, now: float) -> list[Event]:
    settings = agent.settings
    named = {
        trigger
        for trigger, wanted in (
            (Trigger.MENTION, settings.mentions),
            (Trigger.DM, settings.dms),
            (Trigger.ZAP, settings.zaps),
        )
        if wanted
    }
    created_at = fresh(source, SCHEDULE_KIND, agent.id, "triggers", now)
    return [build_triggers(secret, named=named, kinds=settings.kinds, created_at=created_at)]


def state(source: Reads, agent: Agent, secret: SecretKey, mind: AgentState, now: float) -> list[Event]:
    """39201, sealed by the agent for itself."""
    return [build_state(secret, mind, created_at=fresh(source, STATE_KIND, agent.id, "state", now))]


def claim(tick: TickRecord, agent: Agent, runner: SecretKey, trigger_event: str | None) -> Event:
    """39210. Built again from the same tick it has the same id."""
    return build_tick_request(
        runner,
        agent=agent.id,
        n=tick.n,
        trigger=tick.kinds[0] if tick.kinds else tick.cause,
        trigger_event=trigger_event,
        max_steps=agent.settings.max_steps,
        budget_sats=agent.settings.budget_tick_sats,
        created_at=int(tick.created_at),
    )


def result(
    tick: TickRecord, agent: Agent, runner: SecretKey, secret: SecretKey, actions: Sequence[Action], claim_id: str
) -> list[Event]:
    """39211; its summary is sealed for the agent."""
    ended = tick.ended_at if tick.ended_at is not None else tick.created_at
    summary = {
        "thought": tick.thought,
        "reason": tick.reason[:_LONGEST_REASON],
        "provider": tick.provider,
        "cost_msats": tick.cost,
        "actions": [{"do": action.kind.value, "state": action.state.value} for action in actions],
    }
    if len(tick.thought.encode("utf-8", "replace")) > MAX_SUMMARY_BYTES // 4:
        summary["thought"] = tick.thought[: MAX_SUMMARY_BYTES // 16]
    status = {"success": TickStatus.SUCCESS, "partial": TickStatus.PARTIAL}.get(tick.status, TickStatus.ERROR)
    event = build_tick_result(
        runner,
        agent=secret.public,
        n=tick.n,
        request_id=claim_id,
        status=status,
        actions=tick.done,
        cost_sats=-(-tick.cost // MSATS_PER_SAT),
        duration_ms=max(0, int(1_000 * (ended - tick.created_at))),
        summary=summary,
        created_at=max(int(ended), int(tick.created_at)),
    )
    return [event]


def trajectory(tick: TickRecord, agent: Agent, secret: SecretKey, actions: Sequence[Action]) -> list[Event]:
    """39230 and its 39231: the thought redacted, then each action by name and end."""
    begun, ended = int(tick.created_at), int(tick.ended_at or tick.created_at)
    session = build_session(
        secret,
        session=f"tick-{agent.id[:16]}-{tick.n}",
        model=agent.settings.model or "any",
        started_at=begun,
        created_at=ended,
    )
    events = [session]
    if tick.thought:
        digest = hashlib.sha256(tick.thought.encode("utf-8", "surrogatepass")).hexdigest()
        events.append(
            build_step(
                secret,
                session=session,
                seq=0,
                type="thinking",
                content=_REDACTED,
                fields={"sha256": digest},
                created_at=ended,
            )
        )
    for action in actions:
        previous = events[-1] if len(events) > 1 else None
        fields = {"name": action.kind.value, "call_id": action.id, "result": action.state.value}
        step = build_step(
            secret,
            session=session,
            seq=len(events) - 1,
            type="tool",
            fields=fields,
            previous=previous,
            created_at=ended,
        )
        events.append(step)
    return events


def metadata(source: Reads, agent: Agent, secret: SecretKey, *, lud16: str | None, now: float) -> list[Event]:
    """Kind 0, for clients that know nothing of agents: a name, and where its sats go."""
    settings = agent.settings
    content = {"name": settings.name, "about": settings.about, "bot": True}
    content |= {"picture": settings.picture} if settings.picture else {}
    content |= {"lud16": lud16} if lud16 else {}
    created_at = fresh(source, METADATA, agent.id, "", now)
    return [sign_event(secret, kind=METADATA, content=to_json(content), created_at=created_at)]


def relay_lists(source: Reads, agent: Agent, secret: SecretKey, relays: Sequence[str], now: float) -> list[Event]:
    """Where it reads and writes (NIP-65), and where it wants private messages (NIP-17)."""
    urls = [url for url in relays if is_relay_url(url)][:MAX_RELAYS]
    if not urls:
        return []
    listed = fresh(source, nip65.KIND, agent.id, "", now)
    private = fresh(source, nip17.RELAY_LIST, agent.id, "", now)
    return [
        nip65.build_relay_list(secret, both=urls, created_at=listed),
        nip17.build_relay_list(secret, urls, created_at=private),
    ]
