"""NIP-SA: sovereign agents. Profile, schedule, triggers, public goals, ticks; kinds 39200 to 39231.

Two more files belong to it: ``nip_sa_state`` (39201) and ``nip_sa_trajectory`` (39230, 39231).

By NIP-01 every one of these kinds is addressable, whatever NIP-SA calls it: of two events without a ``d``, relays keep
one. So a tick has ``d`` = ``<first 16 hex digits of the agent>:<n>`` here, and expires after 7 days; all the tags that
NIP-SA wants are there too. Reading is lenient, also of what the first implementation wrote; writing is strict. Amounts
in these events are whole sats, as the NIP has it; times are Unix seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from protocols import nip44
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import MAX_KIND, Event, sign_event
from protocols.nip65 import is_relay_url

PROFILE = 39_200
STATE = 39_201
SCHEDULE = 39_202
"""Of the schedule (``d`` = ``schedule``) and of the triggers (``d`` = ``triggers``)."""
PUBLIC_GOALS = 39_203
TICK_REQUEST = 39_210
TICK_RESULT = 39_211
APPROVAL_REQUEST = 39_212
APPROVAL = 39_213
SKILL_LICENSE = 39_220
SKILL_DELIVERY = 39_221
TRAJECTORY = 39_230
TRAJECTORY_EVENT = 39_231

TICK_LIFE_SECONDS = 7 * 86_400
MAX_SATS = 21_000_000 * 100_000_000
MAX_SUMMARY_BYTES = 65_535
MAX_TEXT_CHARS = 2_000
MAX_ENTRIES = 100

_MAX_DIGITS = 16


class AgentEventInvalid(ValueError):
    """What is no such event of an agent, or cannot be made into one."""


class Autonomy(enum.StrEnum):
    SUPERVISED = "supervised"
    """Asks before it acts."""
    BOUNDED = "bounded"
    """Acts within constraints."""
    AUTONOMOUS = "autonomous"


class Trigger(enum.StrEnum):
    """What wakes an agent. ``KIND`` comes with a number."""

    MENTION = "mention"
    DM = "dm"
    ZAP = "zap"
    KIND = "kind"


class TickStatus(enum.StrEnum):
    SUCCESS = "success"
    ERROR = "error"
    PARTIAL = "partial"


@attrs.frozen
class Profile:
    """Who an agent is: kind 39200."""

    agent: str
    name: str
    about: str = ""
    picture: str = ""
    capabilities: tuple[str, ...] = ()
    autonomy: Autonomy = Autonomy.SUPERVISED
    version: str = ""
    operator: str | None = None
    """Public key of the human who deployed it."""
    threshold: tuple[int, int] = (1, 1)
    """Shares that sign, of shares that exist."""
    signers: tuple[str, ...] = ()
    lud16: str | None = None
    created_at: int = 0


@attrs.frozen
class Schedule:
    """When an agent thinks: kind 39202, ``d`` = ``schedule``."""

    agent: str
    heartbeat_seconds: int | None
    """``None``: not said."""
    next_tick: int | None = None
    active: bool = True
    created_at: int = 0


@attrs.frozen
class Triggers:
    """What wakes an agent beside its schedule: kind 39202, ``d`` = ``triggers``."""

    agent: str
    named: frozenset[Trigger] = frozenset()
    """Without ``Trigger.KIND``: that is what ``kinds`` is for."""
    kinds: frozenset[int] = frozenset()
    created_at: int = 0


@attrs.frozen
class PublicGoal:
    """A goal that an agent shows."""

    description: str
    id: str = ""
    status: str = "active"
    progress: float = 0.0
    """From 0 to 1."""
    priority: int = 0


@attrs.frozen
class TickRequest:
    """A runner's claim of a tick: kind 39210."""

    id: str
    runner: str
    agent: str
    d: str
    trigger: str
    n: int | None = None
    """The tick's number, if ``d`` tells it and is this agent's."""
    trigger_event: str | None = None
    trigger_relay: str = ""
    max_steps: int | None = None
    budget_sats: int | None = None
    created_at: int = 0


@attrs.frozen
class TickResult:
    """How a tick ended: kind 39211."""

    id: str
    runner: str
    agent: str
    d: str
    request_id: str | None
    status: TickStatus
    n: int | None = None
    actions: int = 0
    cost_sats: int | None = None
    duration_ms: int | None = None
    summary: Mapping[str, Any] | None = attrs.field(default=None, repr=False, hash=False)
    """``None`` where it was not, or could not be, opened."""
    created_at: int = 0


def tick_d(agent: str, n: int) -> str:
    """The ``d`` of the agent's ``n``-th tick. Raises ``AgentEventInvalid``."""
    return f"{key_hex(agent)[:16]}:{number(n)}"


def tick_number(d: str, agent: str) -> int | None:
    """The number in a ``d`` of ``tick_d``; ``None`` for any other text, or another agent's."""
    head, _, tail = d.partition(":")
    n = read_number(tail)
    return n if n is not None and head == agent[:16] and tail == str(n) else None


# --- profile --------------------------------------------------------------------------------------------------


def build_profile(
    secret: SecretKey,
    *,
    name: str,
    created_at: int,
    about: str = "",
    picture: str = "",
    capabilities: Sequence[str] = (),
    autonomy: Autonomy = Autonomy.SUPERVISED,
    version: str = "1",
    operator: str | None = None,
    threshold: tuple[int, int] = (1, 1),
    signers: Sequence[str] = (),
    lud16: str | None = None,
) -> Event:
    """A kind 39200 event. Raises ``AgentEventInvalid``."""
    if not name.strip():
        raise AgentEventInvalid("an agent has a name")
    if not 0 < threshold[0] <= threshold[1]:
        raise AgentEventInvalid("a threshold is t of n, 1 or more of n or more")
    tags = [["d", "profile"], ["threshold", *map(str, threshold)]]
    tags += [["signer", key_hex(signer)] for signer in signers]
    tags += [["operator", key_hex(operator)]] if operator is not None else []
    tags += [["lud16", lud16]] if lud16 else []
    content = {
        "name": name,
        "about": about,
        "picture": picture,
        "capabilities": list(capabilities),
        "autonomy_level": autonomy.value,
        "version": version,
    }
    return sign_event(secret, kind=PROFILE, content=to_json(content), tags=tags, created_at=created_at)


def parse_profile(event: Event) -> Profile:
    """From a verified event. An unknown level of autonomy is taken for the least. Raises ``AgentEventInvalid``."""
    _expect(event, PROFILE, "profile")
    content = to_object(event.content)
    level, listed = content.get("autonomy_level"), content.get("capabilities")
    threshold = next((tag[1:3] for tag in event.tags_named("threshold") if len(tag) > 2), ())
    shares = [read_number(entry) for entry in threshold]
    operator = event.tag("operator")
    return Profile(
        agent=event.pubkey,
        name=text_of(content.get("name")),
        about=text_of(content.get("about")),
        picture=text_of(content.get("picture")),
        capabilities=tuple(text_of(entry) for entry in list_of(listed) if isinstance(entry, str) and entry),
        autonomy=Autonomy(level) if isinstance(level, str) and level in set(Autonomy) else Autonomy.SUPERVISED,
        version=text_of(content.get("version")),
        operator=operator if is_hex(operator, 64) else None,
        threshold=_shares(shares),
        signers=tuple(tag[1] for tag in event.tags_named("signer") if len(tag) > 1 and is_hex(tag[1], 64)),
        lud16=(event.tag("lud16") or "")[:MAX_TEXT_CHARS] or None,
        created_at=event.created_at,
    )


def _shares(shares: Sequence[int | None]) -> tuple[int, int]:
    match shares:
        case [int(needed), int(existing)] if 0 < needed <= existing:
            return needed, existing
        case _:
            return 1, 1


# --- schedule and triggers ------------------------------------------------------------------------------------


def build_schedule(
    secret: SecretKey, *, heartbeat_seconds: int, created_at: int, next_tick: int | None = None, active: bool = True
) -> Event:
    """A kind 39202 event, ``d`` = ``schedule``. Raises ``AgentEventInvalid`` for a heartbeat under a second."""
    if heartbeat_seconds < 1:
        raise AgentEventInvalid("a heartbeat is at least a second")
    tags = [["d", "schedule"], ["heartbeat", number(heartbeat_seconds)]]
    tags += [["next_tick", number(next_tick)]] if next_tick is not None else []
    tags.append(["active", "true" if active else "false"])
    return sign_event(secret, kind=SCHEDULE, tags=tags, created_at=created_at)


def parse_schedule(event: Event) -> Schedule:
    """From a verified event; without an ``active`` tag it is. Raises ``AgentEventInvalid``."""
    _expect(event, SCHEDULE, "schedule")
    return Schedule(
        agent=event.pubkey,
        heartbeat_seconds=read_number(event.tag("heartbeat")) or None,
        next_tick=read_number(event.tag("next_tick")),
        active=(event.tag("active") or "true").lower() != "false",
        created_at=event.created_at,
    )


def build_triggers(
    secret: SecretKey, *, named: Iterable[Trigger] = (), kinds: Iterable[int] = (), created_at: int
) -> Event:
    """A kind 39202 event, ``d`` = ``triggers``; none at all means that only the heartbeat wakes the agent."""
    chosen, numbers = set(named), sorted(set(kinds))
    if Trigger.KIND in chosen or not all(0 <= kind <= MAX_KIND for kind in numbers):
        raise AgentEventInvalid("a kind is a number from 0 to 65535")
    tags = [["d", "triggers"], *(["trigger", name.value] for name in Trigger if name in chosen)]
    tags += [["trigger", "kind", str(kind)] for kind in numbers]
    return sign_event(secret, kind=SCHEDULE, tags=tags, created_at=created_at)


def parse_triggers(event: Event) -> Triggers:
    """From a verified event, ``custom:<n>`` read as a kind; unknown triggers are left out.

    Raises ``AgentEventInvalid``. The first implementation put triggers into the schedule: that event is read too.
    """
    if event.d != "schedule":
        _expect(event, SCHEDULE, "triggers")
    elif event.kind != SCHEDULE:
        raise AgentEventInvalid("another kind of event")
    named, kinds = set(), set()
    for tag in event.tags_named("trigger")[:MAX_ENTRIES]:
        name = tag[1].lower() if len(tag) > 1 else ""
        text = tag[2] if name == "kind" and len(tag) > 2 else name.removeprefix("custom:")
        kind = read_number(text)
        if kind is not None and kind <= MAX_KIND and (name == "kind" or name.startswith("custom:")):
            kinds.add(kind)
        elif name in (Trigger.MENTION, Trigger.DM, Trigger.ZAP):
            named.add(Trigger(name))
    return Triggers(event.pubkey, frozenset(named), frozenset(kinds), event.created_at)


# --- public goals ---------------------------------------------------------------------------------------------


def build_public_goals(secret: SecretKey, goals: Iterable[PublicGoal], *, created_at: int) -> Event:
    """A kind 39203 event, ``d`` = ``goals``."""
    content = {"goals": [attrs.asdict(goal) for goal in goals]}
    return sign_event(secret, kind=PUBLIC_GOALS, content=to_json(content), tags=[["d", "goals"]], created_at=created_at)


def parse_public_goals(event: Event) -> tuple[PublicGoal, ...]:
    """From a verified event: a list of goals, or an object that holds one. Raises ``AgentEventInvalid``."""
    _expect(event, PUBLIC_GOALS, "goals")
    value = _load(event.content)
    goals = []
    for entry in list_of(value.get("goals") if isinstance(value, dict) else value):
        if isinstance(entry, str):
            entry = {"description": entry}
        if isinstance(entry, dict) and text_of(entry.get("description")):
            goals.append(
                PublicGoal(
                    description=text_of(entry.get("description")),
                    id=text_of(entry.get("id")),
                    status=text_of(entry.get("status")) or "active",
                    progress=fraction_of(entry.get("progress")),
                    priority=whole_of(entry.get("priority")),
                )
            )
    return tuple(goals)


# --- ticks ----------------------------------------------------------------------------------------------------


def build_tick_request(
    runner: SecretKey,
    *,
    agent: str,
    n: int,
    trigger: str,
    created_at: int,
    trigger_event: str | None = None,
    trigger_relay: str = "",
    max_steps: int = 10,
    budget_sats: int = 1_000,
) -> Event:
    """A kind 39210 event of the runner's. ``trigger``: ``heartbeat``, ``mention``, ``dm``, ``zap`` or another word.

    Raises ``AgentEventInvalid``.
    """
    if not trigger:
        raise AgentEventInvalid("a tick has a trigger")
    tags = [["d", tick_d(agent, n)], ["p", agent], ["trigger", trigger]]
    if trigger_event is not None:
        tags.append(["e", _id(trigger_event), *([trigger_relay] if trigger_relay else [])])
    tags += [["max_steps", number(max_steps)], ["budget", number(budget_sats, MAX_SATS)]]
    return sign_event(runner, kind=TICK_REQUEST, tags=[*tags, *_expiring(created_at)], created_at=created_at)


def parse_tick_request(event: Event) -> TickRequest:
    """From a verified event. Raises ``AgentEventInvalid`` if it names no agent."""
    if event.kind != TICK_REQUEST:
        raise AgentEventInvalid("another kind of event")
    agent = _agent(event)
    cause = next((tag for tag in event.tags_named("e") if len(tag) > 1 and is_hex(tag[1], 64)), None)
    budget = read_number(event.tag("budget"))
    return TickRequest(
        id=event.id,
        runner=event.pubkey,
        agent=agent,
        d=event.d,
        trigger=(event.tag("trigger") or "")[:MAX_TEXT_CHARS],
        n=tick_number(event.d, agent),
        trigger_event=None if cause is None else cause[1],
        trigger_relay=cause[2] if cause is not None and len(cause) > 2 and is_relay_url(cause[2]) else "",
        max_steps=read_number(event.tag("max_steps")),
        budget_sats=budget if budget is not None and budget <= MAX_SATS else None,
        created_at=event.created_at,
    )


def build_tick_result(
    runner: SecretKey,
    *,
    agent: PublicKey,
    n: int,
    request_id: str,
    status: TickStatus,
    actions: int,
    cost_sats: int,
    duration_ms: int,
    summary: Mapping[str, Any],
    created_at: int,
) -> Event:
    """A kind 39211 event of the runner's, ``summary`` sealed for the agent. Raises ``AgentEventInvalid``."""
    text = to_json(summary)
    if len(text.encode()) > MAX_SUMMARY_BYTES:
        raise AgentEventInvalid(f"a summary has at most {MAX_SUMMARY_BYTES} bytes")
    tags = [
        ["d", tick_d(agent.hex, n)],
        ["p", agent.hex],
        ["e", _id(request_id)],
        ["status", status.value],
        ["actions", number(actions)],
        ["cost", number(cost_sats, MAX_SATS)],
        ["duration", number(duration_ms)],
        *_expiring(created_at),
    ]
    content = nip44.encrypt(text, nip44.conversation_key(runner, agent))
    return sign_event(runner, kind=TICK_RESULT, content=content, tags=tags, created_at=created_at)


def parse_tick_result(event: Event, secret: SecretKey | None = None) -> TickResult:
    """From a verified event; the summary opened if ``secret`` is the agent's or the runner's.

    Raises ``AgentEventInvalid`` if it names no agent, or its summary is not what ``secret`` can open.
    """
    if event.kind != TICK_RESULT:
        raise AgentEventInvalid("another kind of event")
    agent, said = _agent(event), (event.tag("status") or "").lower()
    cost = read_number(event.tag("cost"))
    request_id = event.tag("e")
    return TickResult(
        id=event.id,
        runner=event.pubkey,
        agent=agent,
        d=event.d,
        request_id=request_id if is_hex(request_id, 64) else None,
        status=TickStatus(said) if said in set(TickStatus) else TickStatus.ERROR,
        n=tick_number(event.d, agent),
        actions=read_number(event.tag("actions")) or 0,
        cost_sats=cost if cost is not None and cost <= MAX_SATS else None,
        duration_ms=read_number(event.tag("duration")),
        summary=None if secret is None else _summary(event, agent, secret),
        created_at=event.created_at,
    )


def _summary(event: Event, agent: str, secret: SecretKey) -> Mapping[str, Any]:
    me = secret.public.hex
    if me not in (agent, event.pubkey):
        raise AgentEventInvalid("the summary is for somebody else")
    return to_object(open_sealed(event.content, secret, event.pubkey if me == agent else agent, MAX_SUMMARY_BYTES))


# --- what the files of this NIP share ---------------------------------------------------------------------------


def number(value: int, most: int = 10**_MAX_DIGITS - 1) -> str:
    """``value`` for a tag. Raises ``AgentEventInvalid`` unless it is from 0 to ``most``."""
    if not 0 <= value <= most:
        raise AgentEventInvalid(f"a number from 0 to {most} is wanted")
    return str(value)


def read_number(text: str | None) -> int | None:
    """A whole number in decimal digits, at most 16; anything else is ``None``."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        return None
    return int(text)


def key_hex(text: str) -> str:
    """``text``, if it is a public key in hex. Raises ``AgentEventInvalid``."""
    try:
        return PublicKey.from_hex(text).hex
    except KeyInvalid as error:
        raise AgentEventInvalid(str(error)) from None


def to_json(value: object) -> str:
    """Compact JSON. Raises ``AgentEventInvalid`` for what JSON or UTF-8 cannot hold."""
    try:
        return orjson.dumps(value).decode()
    except (orjson.JSONEncodeError, RecursionError):
        raise AgentEventInvalid("the content cannot be written as UTF-8 JSON") from None


def to_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ``AgentEventInvalid``."""
    value = _load(text)
    if not isinstance(value, dict):
        raise AgentEventInvalid("the content is not a JSON object")
    return value


def open_sealed(payload: str, secret: SecretKey, other: str, max_bytes: int) -> str:
    """NIP-44 content between ``secret`` and ``other`` (hex). Raises ``AgentEventInvalid``."""
    try:
        key = nip44.conversation_key(secret, PublicKey.from_hex(other))
        return nip44.decrypt(payload, key, max_bytes=max_bytes)
    except (KeyInvalid, nip44.Nip44Error) as error:
        raise AgentEventInvalid(f"the content: {error}") from None


def text_of(value: object, most: int = MAX_TEXT_CHARS) -> str:
    """``value`` cut, if it is text; else empty."""
    return value[:most] if isinstance(value, str) else ""


def list_of(value: object, most: int = MAX_ENTRIES) -> list[Any]:
    """The first entries, if it is a list; else none."""
    return value[:most] if isinstance(value, list) else []


def whole_of(value: object, default: int = 0) -> int:
    """A whole number that fits into 53 bits, also where it was written as ``5.0``; else ``default``."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**53 else default


def fraction_of(value: object) -> float:
    """A number from 0 to 1, cut to that; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return 0.0
    return float(min(1, max(0, value)))


def _load(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise AgentEventInvalid("the content is not JSON") from None


def _expect(event: Event, kind: int, d: str) -> None:
    if event.kind != kind or event.d not in (d, ""):
        raise AgentEventInvalid("another kind of event, or another d")


def _agent(event: Event) -> str:
    agent = event.tag("p")
    if agent is None or not is_hex(agent, 64):
        raise AgentEventInvalid("it names no agent")
    return agent


def _id(text: str) -> str:
    if not is_hex(text, 64):
        raise AgentEventInvalid("an id has 64 lower-case hex digits")
    return text


def _expiring(created_at: int) -> list[list[str]]:
    return [["expiration", str(created_at + TICK_LIFE_SECONDS)]]
