"""NIP-SA: trajectories: what an agent did, step by step. A session (kind 39230) and its events (kind 39231).

Each event has ``d`` = ``<session>:<seq>`` here, because relays would keep but one otherwise, and expires after 7 days.

NIP-SA asks for a hash of all events without saying of which bytes. Here it is SHA-256 over the events' ids, 32 raw
bytes each, in the order of ``seq`` from 0 without a gap: an id commits to everything in its event.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from protocols.keys import SecretKey, is_hex
from protocols.nip01 import Event, sign_event
from protocols.nip_sa import (
    TICK_LIFE_SECONDS,
    TRAJECTORY,
    TRAJECTORY_EVENT,
    AgentEventInvalid,
    key_hex,
    number,
    read_number,
    text_of,
    to_json,
    to_object,
    whole_of,
)

LIFE_SECONDS = TICK_LIFE_SECONDS
MAX_SESSION_CHARS = 128
MAX_CONTENT_BYTES = 65_535

TYPES = frozenset(
    (
        *("user", "agent", "tool", "tool_start", "tool_progress", "observation"),
        *("thinking", "subagent", "question", "todos", "phase", "session_end"),
    )
)
"""The types of steps that NIP-SA names; others are read and written too."""

_OWN = ("type", "content", "step", "ts", "tokens_in", "tokens_out")


@attrs.frozen
class Session:
    """One run of an agent: kind 39230."""

    id: str
    """Of the event."""
    agent: str
    session: str
    """Its ``d``."""
    model: str = ""
    started_at: int | None = None
    group: str = ""
    participants: tuple[str, ...] = ()
    repo: str = ""
    sha: str = ""
    created_at: int = 0


@attrs.frozen
class Step:
    """One event of a run: kind 39231."""

    id: str
    author: str
    session: str
    """From ``d``; empty where that does not tell."""
    seq: int
    type: str
    content: str = attrs.field(default="", repr=False)
    ts: str = ""
    """ISO 8601."""
    step: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    root: str | None = None
    """Id of the session's event."""
    previous: str | None = None
    fields: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)
    """What belongs to its type: ``name``, ``call_id``, ``result`` …"""
    created_at: int = 0


def build_session(
    secret: SecretKey,
    *,
    session: str,
    model: str,
    started_at: int,
    created_at: int,
    group: str = "",
    participants: Sequence[str] = (),
    repo: str = "",
    sha: str = "",
) -> Event:
    """A kind 39230 event of the agent's. ``session`` is its ``d``, without a colon. Raises ``AgentEventInvalid``."""
    tags = [["d", _session(session)], ["model", model], ["started_at", number(started_at)]]
    tags += [["h", group]] if group else []
    tags += [["p", key_hex(key)] for key in participants]
    tags += [[name, value] for name, value in (("repo", repo), ("sha", sha)) if value]
    return sign_event(secret, kind=TRAJECTORY, tags=[*tags, _expiring(created_at)], created_at=created_at)


def parse_session(event: Event) -> Session:
    """From a verified event. Raises ``AgentEventInvalid`` for another kind, or one without ``d``."""
    if event.kind != TRAJECTORY or not event.d:
        raise AgentEventInvalid("no session of a trajectory")
    return Session(
        id=event.id,
        agent=event.pubkey,
        session=event.d[:MAX_SESSION_CHARS],
        model=text_of(event.tag("model")),
        started_at=read_number(event.tag("started_at")),
        group=text_of(event.tag("h")),
        participants=tuple(tag[1] for tag in event.tags_named("p") if len(tag) > 1 and is_hex(tag[1], 64)),
        repo=text_of(event.tag("repo")),
        sha=text_of(event.tag("sha")),
        created_at=event.created_at,
    )


def build_step(
    secret: SecretKey,
    *,
    session: Event,
    seq: int,
    type: str,
    created_at: int,
    content: str = "",
    previous: Event | None = None,
    tokens_in: int = 0,
    tokens_out: int = 0,
    relay: str = "",
    fields: Mapping[str, Any] | None = None,
) -> Event:
    """A kind 39231 event of whoever acted. ``session`` is the kind 39230 event, ``previous`` the step before.

    ``fields`` are what the type has beside content. Raises ``AgentEventInvalid``.
    """
    head = parse_session(session)
    tags = [["d", step_d(head.session, seq)], ["e", session.id, relay, "root"]]
    tags += [["e", previous.id, relay, "reply"]] if previous is not None else []
    tags.append(["seq", number(seq)])
    tags += [["h", head.group]] if head.group else []
    try:
        moment = datetime.datetime.fromtimestamp(created_at, datetime.UTC)
    except (OverflowError, OSError, ValueError):
        raise AgentEventInvalid("a time that no calendar has") from None
    body = {
        **(fields or {}),
        "type": type,
        "content": content,
        "step": seq,
        "ts": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }
    text = to_json(body)
    if len(text.encode()) > MAX_CONTENT_BYTES:
        raise AgentEventInvalid(f"a step has at most {MAX_CONTENT_BYTES} bytes")
    tags.append(_expiring(created_at))
    return sign_event(secret, kind=TRAJECTORY_EVENT, content=text, tags=tags, created_at=created_at)


def parse_step(event: Event) -> Step:
    """From a verified event. Raises ``AgentEventInvalid`` without a number (``seq``) or without a JSON object."""
    if event.kind != TRAJECTORY_EVENT:
        raise AgentEventInvalid("no event of a trajectory")
    seq = read_number(event.tag("seq"))
    if seq is None:
        raise AgentEventInvalid("an event of a trajectory has a number (seq)")
    body = to_object(event.content)
    session, separator, tail = event.d.rpartition(":")
    return Step(
        id=event.id,
        author=event.pubkey,
        session=session[:MAX_SESSION_CHARS] if separator and tail == str(seq) else "",
        seq=seq,
        type=text_of(body.get("type")) or "observation",
        content=text_of(body.get("content"), MAX_CONTENT_BYTES),
        ts=text_of(body.get("ts"), 40),
        step=max(0, whole_of(body.get("step"))),
        tokens_in=max(0, whole_of(body.get("tokens_in"))),
        tokens_out=max(0, whole_of(body.get("tokens_out"))),
        root=_marked(event, "root"),
        previous=_marked(event, "reply"),
        fields={name: value for name, value in body.items() if name not in _OWN},
        created_at=event.created_at,
    )


def step_d(session: str, seq: int) -> str:
    """The ``d`` of a session's event. Raises ``AgentEventInvalid``."""
    return f"{_session(session)}:{number(seq)}"


def trajectory_hash(events: Iterable[Event]) -> str:
    """The hash of a session's kind 39231 events, in any order, hex.

    Raises ``AgentEventInvalid`` for none, for events of several sessions, and for a number that is missing or there
    twice.
    """
    steps = sorted((parse_step(event) for event in events), key=lambda step: step.seq)
    if not steps:
        raise AgentEventInvalid("a trajectory has at least one event")
    if [step.seq for step in steps] != list(range(len(steps))):
        raise AgentEventInvalid("the events are not numbered from 0 without a gap")
    if len({(step.session, step.root) for step in steps}) != 1:
        raise AgentEventInvalid("events of more than one session")
    return hashlib.sha256(b"".join(bytes.fromhex(step.id) for step in steps)).hexdigest()


def trajectory_tags(session: str, events: Iterable[Event] = (), *, relay: str = "") -> list[list[str]]:
    """The tags by which another event refers to a session, with its hash where ``events`` are given."""
    tags = [["trajectory", _session(session), *([relay] if relay else [])]]
    known = list(events)
    return [*tags, ["trajectory_hash", trajectory_hash(known)]] if known else tags


def _session(text: str) -> str:
    if not 0 < len(text) <= MAX_SESSION_CHARS or ":" in text:
        raise AgentEventInvalid(f"a session's name has 1 to {MAX_SESSION_CHARS} characters, and no colon")
    return text


def _marked(event: Event, marker: str) -> str | None:
    found = (tag[1] for tag in event.tags_named("e") if len(tag) > 3 and tag[3] == marker and is_hex(tag[1], 64))
    return next(found, None)


def _expiring(created_at: int) -> list[str]:
    return ["expiration", str(created_at + LIFE_SECONDS)]
