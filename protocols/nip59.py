"""NIP-59: gift wraps. A rumor (unsigned event) in a seal (kind 13, its author's) in a wrap (kind 1059, nobody's).

The time that counts is the rumor's. Seal and wrap carry times up to two days in the past, drawn independently; an
ephemeral wrap (kind 21059) carries the present, because relays refuse ephemeral events that are old.

Tags of a seal must be empty, says the NIP; NIP-17 wants an ``expiration`` there for messages that disappear. So that
tag alone is accepted, and none is written unless an expiration is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import attrs
import orjson

from protocols import nip44
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import MAX_KIND, MAX_TIME, Event, EventInvalid, Tag, event_id, sign_event

SEAL = 13
GIFT_WRAP = 1059
EPHEMERAL_GIFT_WRAP = 21059

MAX_RUMOR_BYTES = 65_535
MAX_SEAL_BYTES = 131_072
MAX_SHIFT = 2 * 86_400
"""Seconds by which the times of seal and wrap may lie in the past."""

_NO_SIGNATURE = "0" * 128


class GiftWrapInvalid(ValueError):
    """A wrap that cannot be opened, whose seal is not its author's, or a rumor that cannot be wrapped."""


@attrs.frozen
class Rumor:
    """An event without a signature. From ``unwrap`` it is of the author that it names."""

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: tuple[Tag, ...] = attrs.field(repr=False)
    content: str = attrs.field(repr=False)

    def to_json(self) -> str:
        """Compact JSON, no ``sig``."""
        fields = ("id", "pubkey", "created_at", "kind", "tags", "content")
        try:
            return orjson.dumps({name: getattr(self, name) for name in fields}).decode()
        except orjson.JSONEncodeError:
            raise GiftWrapInvalid("the rumor cannot be written as UTF-8 JSON") from None

    def tag(self, name: str) -> str | None:
        """The value of the first tag called ``name`` that has one."""
        return next((tag[1] for tag in self.tags if len(tag) > 1 and tag[0] == name), None)

    def tags_named(self, name: str) -> tuple[Tag, ...]:
        return tuple(tag for tag in self.tags if tag and tag[0] == name)


def build_rumor(
    author: PublicKey, *, kind: int, content: str = "", tags: Iterable[Sequence[str]] = (), created_at: int
) -> Rumor:
    """A rumor of ``author``'s. ``created_at``, Unix seconds, is the true time. Raises ``GiftWrapInvalid``."""
    frozen = tuple(tuple(tag) for tag in tags)
    if not 0 <= kind <= MAX_KIND or not 0 <= created_at <= MAX_TIME:
        raise GiftWrapInvalid("kind or time out of bounds")
    try:
        name = event_id(author.hex, created_at, kind, frozen, content)
    except EventInvalid as error:
        raise GiftWrapInvalid(str(error)) from None
    return Rumor(name, author.hex, created_at, kind, frozen, content)


def seal(
    rumor: Rumor, secret: SecretKey, receiver: PublicKey, *, created_at: int, expiration: int | None = None
) -> Event:
    """The seal of a rumor, kind 13. Raises ``GiftWrapInvalid`` for somebody else's rumor, or one that is too long."""
    if rumor.pubkey != secret.public.hex:
        raise GiftWrapInvalid("the rumor is not of the key that is to seal it")
    text = rumor.to_json()
    if len(text.encode()) > MAX_RUMOR_BYTES:
        raise GiftWrapInvalid(f"a rumor has at most {MAX_RUMOR_BYTES} bytes")
    content = nip44.encrypt(text, nip44.conversation_key(secret, receiver))
    return sign_event(secret, kind=SEAL, content=content, tags=_expiring(expiration), created_at=created_at)


def wrap(
    rumor: Rumor,
    secret: SecretKey,
    receiver: PublicKey,
    *,
    now: int,
    random: Random,
    ephemeral: bool = False,
    relay: str = "",
    expiration: int | None = None,
) -> Event:
    """A gift for ``receiver``, signed by a key that is used once and forgotten.

    ``now`` in Unix seconds; ``random`` draws how far the times lie before it. ``relay``: where the receiver reads.
    ``expiration`` (Unix seconds, NIP-40) goes on wrap and seal. Raises ``GiftWrapInvalid``.
    """
    inner = seal(rumor, secret, receiver, created_at=_shifted(now, random), expiration=expiration)
    once = SecretKey.generate()
    return sign_event(
        once,
        kind=EPHEMERAL_GIFT_WRAP if ephemeral else GIFT_WRAP,
        content=nip44.encrypt(inner.to_json(), nip44.conversation_key(once, receiver)),
        tags=[["p", receiver.hex, *([relay] if relay else [])], *_expiring(expiration)],
        created_at=now if ephemeral else _shifted(now, random),
    )


def unwrap(event: Event, secret: SecretKey, *, max_bytes: int = MAX_RUMOR_BYTES) -> Rumor:
    """The rumor in a verified wrap for ``secret``, of at most ``max_bytes``; the seal is verified here.

    Raises ``GiftWrapInvalid``, also where the rumor claims another author than the one who sealed it.
    """
    if event.kind not in (GIFT_WRAP, EPHEMERAL_GIFT_WRAP):
        raise GiftWrapInvalid("not a gift wrap")
    try:
        inner = Event.from_json(_open(event.content, secret, event.pubkey, MAX_SEAL_BYTES), MAX_SEAL_BYTES)
        if inner.kind != SEAL:
            raise GiftWrapInvalid("what is wrapped is no seal")
        if any(tag[:1] != ("expiration",) for tag in inner.tags):
            raise GiftWrapInvalid("the seal has tags")
        inner.check()
    except EventInvalid as error:
        raise GiftWrapInvalid(f"the seal: {error}") from None
    rumor = _parse_rumor(_open(inner.content, secret, inner.pubkey, max_bytes))
    if rumor.pubkey != inner.pubkey:
        raise GiftWrapInvalid("the rumor claims another author than the one who sealed it")
    return rumor


def _parse_rumor(text: str) -> Rumor:
    """Its id may be missing, but must not be wrong; a signature is passed over."""
    try:
        value = orjson.loads(text)
        if not isinstance(value, dict):
            raise GiftWrapInvalid("the rumor is not a JSON object")
        # Structure is that of an event but for the signature, and an id that stands for itself.
        event = Event.parse({**value, "id": value.get("id") or "0" * 64, "sig": _NO_SIGNATURE})
        name = event_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
    except orjson.JSONDecodeError:
        raise GiftWrapInvalid("the rumor is not JSON") from None
    except EventInvalid as error:
        raise GiftWrapInvalid(f"the rumor: {error}") from None
    if value.get("id") and event.id != name:
        raise GiftWrapInvalid("the rumor's id is not its hash")
    return Rumor(name, event.pubkey, event.created_at, event.kind, event.tags, event.content)


def _open(payload: str, secret: SecretKey, author: str, max_bytes: int) -> str:
    try:
        key = nip44.conversation_key(secret, PublicKey.from_hex(author))
        return nip44.decrypt(payload, key, max_bytes=max_bytes)
    except (KeyInvalid, nip44.Nip44Error) as error:
        raise GiftWrapInvalid(str(error)) from None


def _shifted(now: int, random: Random) -> int:
    return max(0, now - random.randint(0, MAX_SHIFT))


def _expiring(expiration: int | None) -> list[list[str]]:
    return [] if expiration is None else [["expiration", str(expiration)]]


def receiver_of(event: Event) -> str | None:
    """Whom a wrap is for (its ``p`` tag, hex); ``None`` where it does not say."""
    name = event.tag("p")
    return name if is_hex(name, 64) else None
