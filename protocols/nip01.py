"""NIP-01: events, filters, and the frames between clients and relays.

Everything from the network is parsed with limits and refused with ``EventInvalid`` or ``FrameInvalid``, whose messages
name what is wrong and quote nothing. Structure is checked by parsing, id and signature by ``Event.check``: so that a
duplicate can be recognised before it costs a verification.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex

MAX_EVENT_BYTES = 262_144
MAX_FRAME_BYTES = 524_288
MAX_TAGS = 5_000
MAX_KIND = 65_535
MAX_TIME = 2**53
"""Unix seconds: beyond it, a float and JSON of other languages lose the second."""
MAX_SUBSCRIPTION_ID = 64
"""Characters (NIP-01)."""


class EventInvalid(ValueError):
    """What claims to be an event is none, or was not signed by its author."""


class FrameInvalid(ValueError):
    """What came over the wire is no frame of NIP-01."""


class KindClass(enum.Enum):
    """How relays keep a kind."""

    REGULAR = "regular"
    REPLACEABLE = "replaceable"
    """The newest per author and kind."""
    EPHEMERAL = "ephemeral"
    """Passed on, never kept."""
    ADDRESSABLE = "addressable"
    """The newest per author, kind and ``d`` tag."""


def kind_class(kind: int) -> KindClass:
    """By the ranges of NIP-01."""
    if kind in (0, 3) or 10_000 <= kind < 20_000:
        return KindClass.REPLACEABLE
    if 20_000 <= kind < 30_000:
        return KindClass.EPHEMERAL
    return KindClass.ADDRESSABLE if 30_000 <= kind < 40_000 else KindClass.REGULAR


Tag = tuple[str, ...]


@attrs.frozen
class Event:
    """An event; from ``parse`` its structure is right, after ``check`` it is its author's."""

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: tuple[Tag, ...]
    content: str
    sig: str

    @classmethod
    def parse(cls, value: object) -> Event:
        """An event from decoded JSON. Unknown fields are ignored. Raises ``EventInvalid``."""
        if not isinstance(value, Mapping):
            raise EventInvalid("an event is a JSON object")
        get = value.get
        event_id, pubkey, sig, content = get("id"), get("pubkey"), get("sig"), get("content")
        created_at, kind = get("created_at"), get("kind")
        if not is_hex(event_id, 64):
            raise EventInvalid("id: 64 lower-case hex digits are wanted")
        if not is_hex(pubkey, 64):
            raise EventInvalid("pubkey: 64 lower-case hex digits are wanted")
        if not is_hex(sig, 128):
            raise EventInvalid("sig: 128 lower-case hex digits are wanted")
        if type(kind) is not int or not 0 <= kind <= MAX_KIND:
            raise EventInvalid(f"kind: a whole number from 0 to {MAX_KIND} is wanted")
        if type(created_at) is not int or not 0 <= created_at <= MAX_TIME:
            raise EventInvalid("created_at: seconds since 1970 are wanted")
        if not isinstance(content, str):
            raise EventInvalid("content: a string is wanted")
        return cls(event_id, pubkey, created_at, kind, _tags(get("tags")), content, sig)

    @classmethod
    def from_json(cls, text: str | bytes, max_bytes: int = MAX_EVENT_BYTES) -> Event:
        """An event from its JSON. Raises ``EventInvalid``, also for more than ``max_bytes``."""
        if len(text) > max_bytes:
            raise EventInvalid(f"an event has at most {max_bytes} bytes")
        try:
            return cls.parse(orjson.loads(text))
        except orjson.JSONDecodeError:
            raise EventInvalid("not JSON") from None

    def check(self) -> None:
        """Id and signature. Raises ``EventInvalid``."""
        if self.id != event_id(self.pubkey, self.created_at, self.kind, self.tags, self.content):
            raise EventInvalid("the id is not the hash of the event")
        try:
            author = PublicKey.from_hex(self.pubkey)
        except KeyInvalid:
            raise EventInvalid("the author's key is not a point of the curve") from None
        if not author.verify(bytes.fromhex(self.id), bytes.fromhex(self.sig)):
            raise EventInvalid("the signature is not the author's")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "pubkey": self.pubkey,
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": self.tags,
            "content": self.content,
            "sig": self.sig,
        }

    def to_json(self) -> str:
        """Compact JSON."""
        return orjson.dumps(self.to_dict()).decode()

    def tag(self, name: str) -> str | None:
        """The value of the first tag called ``name`` that has one."""
        return next((tag[1] for tag in self.tags if len(tag) > 1 and tag[0] == name), None)

    def tags_named(self, name: str) -> tuple[Tag, ...]:
        """All tags called ``name``, whole, in their order."""
        return tuple(tag for tag in self.tags if tag and tag[0] == name)

    @property
    def d(self) -> str:
        """The identifier of an addressable event; a missing one is empty."""
        return next((tag[1] if len(tag) > 1 else "" for tag in self.tags if tag and tag[0] == "d"), "")

    @property
    def address(self) -> str | None:
        """``kind:pubkey:d`` of a replaceable (``d`` empty) or addressable event, else ``None``."""
        match kind_class(self.kind):
            case KindClass.REPLACEABLE:
                return f"{self.kind}:{self.pubkey}:"
            case KindClass.ADDRESSABLE:
                return f"{self.kind}:{self.pubkey}:{self.d}"
            case _:
                return None


def _tags(value: object) -> tuple[Tag, ...]:
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        raise EventInvalid(f"tags: a list of at most {MAX_TAGS} is wanted")
    for tag in value:
        if not isinstance(tag, list) or not all(isinstance(entry, str) for entry in tag):
            raise EventInvalid("tags: each is a list of strings")
    return tuple(map(tuple, value))


def event_id(pubkey: str, created_at: int, kind: int, tags: Sequence[Sequence[str]], content: str) -> str:
    """SHA-256 over the canonical JSON array, hex. Raises ``EventInvalid`` for what cannot be UTF-8."""
    try:
        return hashlib.sha256(orjson.dumps([0, pubkey, created_at, kind, tags, content])).hexdigest()
    except (orjson.JSONEncodeError, TypeError):
        raise EventInvalid("the event cannot be written as UTF-8 JSON") from None


def sign_event(
    secret: SecretKey, *, kind: int, content: str = "", tags: Iterable[Sequence[str]] = (), created_at: int
) -> Event:
    """A signed event. ``created_at`` in Unix seconds."""
    frozen = tuple(tuple(tag) for tag in tags)
    pubkey = secret.public.hex
    name = event_id(pubkey, created_at, kind, frozen, content)
    return Event(name, pubkey, created_at, kind, frozen, content, secret.sign(bytes.fromhex(name)).hex())


def newer(one: Event, other: Event) -> Event:
    """Which of two versions of an address counts: the later one, of two in one second the lower id."""
    return min(one, other, key=lambda event: (-event.created_at, event.id))


_ID_IN_FRAME = re.compile(r'"id"\s*:\s*"([0-9a-f]{64})"')


def peek_event_id(frame: str) -> str | None:
    """The id that an event in a frame claims, without parsing the frame; ``None`` where it is not plain to see.

    A claim only: content may hold something that looks like one. Good for recognising what was verified before.
    """
    found = _ID_IN_FRAME.findall(frame)
    return found[0] if len(found) == 1 else None


# --- filters --------------------------------------------------------------------------------------------------


def _strings(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _numbers(values: Iterable[int] | None) -> frozenset[int] | None:
    return None if values is None else frozenset(values)


def _tag_values(values: Mapping[str, Iterable[str]] | None) -> Mapping[str, frozenset[str]]:
    return {name: frozenset(wanted) for name, wanted in (values or {}).items()}


@attrs.frozen
class Filter:
    """What a subscription asks for. ``None`` means any; an empty set matches nothing.

    ``tags`` maps a letter to wanted values. ``since`` and ``until`` are inclusive; ``limit`` concerns stored events
    only and plays no part in matching.
    """

    ids: frozenset[str] | None = attrs.field(default=None, converter=_strings)
    authors: frozenset[str] | None = attrs.field(default=None, converter=_strings)
    kinds: frozenset[int] | None = attrs.field(default=None, converter=_numbers)
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    tags: Mapping[str, frozenset[str]] = attrs.field(factory=dict, converter=_tag_values, hash=False)

    @classmethod
    def parse(cls, value: object) -> Filter:
        """A filter from decoded JSON; unknown fields are ignored. Raises ``FrameInvalid``."""
        if not isinstance(value, Mapping):
            raise FrameInvalid("a filter is a JSON object")
        tags = {}
        for name, wanted in value.items():
            if len(name) == 2 and name[0] == "#" and name[1].isascii() and name[1].isalpha():
                tags[name[1]] = _list(name, wanted, str)
        return cls(
            ids=_list("ids", value.get("ids"), str),
            authors=_list("authors", value.get("authors"), str),
            kinds=_list("kinds", value.get("kinds"), int),
            since=_number("since", value.get("since")),
            until=_number("until", value.get("until")),
            limit=_number("limit", value.get("limit")),
            tags={name: wanted for name, wanted in tags.items() if wanted is not None},
        )

    def to_dict(self) -> dict[str, Any]:
        """For the wire; sets sorted, so that equal filters are equal text."""
        fields: dict[str, Any] = {}
        for name, values in (("ids", self.ids), ("authors", self.authors), ("kinds", self.kinds)):
            if values is not None:
                fields[name] = sorted(values)
        for name, wanted in sorted(self.tags.items()):
            fields[f"#{name}"] = sorted(wanted)
        numbers = (("since", self.since), ("until", self.until), ("limit", self.limit))
        return fields | {name: number for name, number in numbers if number is not None}

    def matches(self, event: Event) -> bool:
        """Whether ``event`` meets every condition; of a tag's wanted values one is enough."""
        if self.kinds is not None and event.kind not in self.kinds:
            return False
        if self.authors is not None and event.pubkey not in self.authors:
            return False
        if self.ids is not None and event.id not in self.ids:
            return False
        if self.since is not None and event.created_at < self.since:
            return False
        if self.until is not None and event.created_at > self.until:
            return False
        return all(
            any(len(tag) > 1 and tag[0] == name and tag[1] in wanted for tag in event.tags)
            for name, wanted in self.tags.items()
        )


def _list(name: str, value: object, kind: type) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
        raise FrameInvalid(f"filter: {name} is a list of {'strings' if kind is str else 'whole numbers'}")
    return value


def _number(name: str, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise FrameInvalid(f"filter: {name} is a whole number, not negative")
    return value


# --- frames ---------------------------------------------------------------------------------------------------


def _dump(parts: Sequence[object]) -> str:
    return orjson.dumps(parts).decode()


@attrs.frozen
class ClientEvent:
    event: Event

    def encode(self) -> str:
        return _dump(("EVENT", self.event.to_dict()))


def event_frame(text: str, name: str) -> str:
    """The EVENT frame of an event that is JSON already, its text as it is.

    Raises ``EventInvalid`` for what is too long, no JSON, or not the event with the id ``name``; what else a damaged
    text may lack is for the relay to find.
    """
    if len(text) > MAX_EVENT_BYTES:
        raise EventInvalid(f"an event has at most {MAX_EVENT_BYTES} bytes")
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise EventInvalid("not JSON") from None
    if not isinstance(event, dict) or event.get("id") != name:
        raise EventInvalid("it is not the event that it is filed as")
    return f'["EVENT",{text}]'


@attrs.frozen
class ClientReq:
    subscription_id: str
    filters: tuple[Filter, ...]

    def encode(self) -> str:
        return _dump(("REQ", self.subscription_id, *(wanted.to_dict() for wanted in self.filters)))


@attrs.frozen
class ClientClose:
    subscription_id: str

    def encode(self) -> str:
        return _dump(("CLOSE", self.subscription_id))


@attrs.frozen
class ClientAuth:
    """NIP-42."""

    event: Event

    def encode(self) -> str:
        return _dump(("AUTH", self.event.to_dict()))


ClientFrame = ClientEvent | ClientReq | ClientClose | ClientAuth


@attrs.frozen
class RelayEvent:
    subscription_id: str
    event: Event

    def encode(self) -> str:
        return _dump(("EVENT", self.subscription_id, self.event.to_dict()))


@attrs.frozen
class RelayOk:
    event_id: str
    accepted: bool
    message: str = ""

    def encode(self) -> str:
        return _dump(("OK", self.event_id, self.accepted, self.message))


@attrs.frozen
class RelayEose:
    subscription_id: str

    def encode(self) -> str:
        return _dump(("EOSE", self.subscription_id))


@attrs.frozen
class RelayClosed:
    subscription_id: str
    message: str = ""

    def encode(self) -> str:
        return _dump(("CLOSED", self.subscription_id, self.message))


@attrs.frozen
class RelayNotice:
    message: str

    def encode(self) -> str:
        return _dump(("NOTICE", self.message))


@attrs.frozen
class RelayAuth:
    """NIP-42."""

    challenge: str

    def encode(self) -> str:
        return _dump(("AUTH", self.challenge))


RelayFrame = RelayEvent | RelayOk | RelayEose | RelayClosed | RelayNotice | RelayAuth


def _load(text: str | bytes, max_bytes: int) -> list[Any]:
    if len(text) > max_bytes:
        raise FrameInvalid(f"a frame has at most {max_bytes} bytes")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise FrameInvalid("not JSON") from None
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise FrameInvalid("a frame is a JSON array that begins with its verb")
    return value


def _subscription_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SUBSCRIPTION_ID:
        raise FrameInvalid(f"a subscription id has 1 to {MAX_SUBSCRIPTION_ID} characters")
    return value


def _event(value: object) -> Event:
    try:
        return Event.parse(value)
    except EventInvalid as error:
        raise FrameInvalid(str(error)) from None


def parse_client_frame(text: str | bytes, max_bytes: int = MAX_FRAME_BYTES) -> ClientFrame:
    """What a client sent. Raises ``FrameInvalid``."""
    match _load(text, max_bytes):
        case ["EVENT", event]:
            return ClientEvent(_event(event))
        case ["REQ", subscription_id, first, *more]:
            return ClientReq(
                _subscription_id(subscription_id), tuple(Filter.parse(wanted) for wanted in (first, *more))
            )
        case ["CLOSE", subscription_id]:
            return ClientClose(_subscription_id(subscription_id))
        case ["AUTH", event]:
            return ClientAuth(_event(event))
        case _:
            raise FrameInvalid("no such frame from a client")


def parse_relay_frame(text: str | bytes, max_bytes: int = MAX_FRAME_BYTES) -> RelayFrame:
    """What a relay sent; frames may be longer than they should be. Raises ``FrameInvalid``."""
    match _load(text, max_bytes):
        case ["EVENT", str(subscription_id), event, *_]:
            return RelayEvent(subscription_id, _event(event))
        case ["OK", str(name), bool(accepted), *rest] if is_hex(name, 64):
            return RelayOk(name, accepted, _message(rest))
        case ["EOSE", str(subscription_id), *_]:
            return RelayEose(subscription_id)
        case ["CLOSED", str(subscription_id), *rest]:
            return RelayClosed(subscription_id, _message(rest))
        case ["NOTICE", str(message), *_]:
            return RelayNotice(message)
        case ["AUTH", str(challenge), *_]:
            return RelayAuth(challenge)
        case _:
            raise FrameInvalid("no such frame from a relay")


def _message(rest: list[Any]) -> str:
    return rest[0] if rest and isinstance(rest[0], str) else ""
