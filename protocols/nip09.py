"""NIP-09: deletion requests, kind 5.

Who asks may ask for what is its own: an id says nothing of its author, so ``Deletion.covers`` looks at the event. An
address covers its versions up to the request's time, not later ones. Asking to delete a deletion has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from protocols.keys import SecretKey, is_hex
from protocols.nip01 import MAX_KIND, Event, KindClass, kind_class, sign_event

KIND = 5
MAX_REASON_CHARS = 2_000

_GIFT_WRAP = 1059


class DeletionInvalid(ValueError):
    """An event that asks for no deletion, or a request that cannot be made."""


@attrs.frozen
class Deletion:
    """What one author asks to be deleted."""

    author: str
    created_at: int
    ids: frozenset[str]
    """Of events, perhaps of other authors': those it does not concern."""
    addresses: frozenset[str]
    """``kind:pubkey:d``, the author's own only."""
    kinds: frozenset[int] = frozenset()
    """As the request tells (``k`` tags); it may be wrong or missing."""
    reason: str = ""

    def covers(self, event: Event) -> bool:
        """Whether it asks, with right, for ``event`` to be deleted."""
        if event.kind == KIND:
            return False
        if event.pubkey != self.author:
            # A gift wrap is signed by nobody's key: its receiver may have it deleted (NIP-59).
            return event.kind == _GIFT_WRAP and event.tag("p") == self.author and event.id in self.ids
        if event.id in self.ids:
            return True
        address = event.address
        return address is not None and address in self.addresses and event.created_at <= self.created_at


def build_deletion(
    secret: SecretKey,
    *,
    events: Iterable[Event] = (),
    ids: Iterable[str] = (),
    addresses: Iterable[str] = (),
    kinds: Iterable[int] = (),
    reason: str = "",
    created_at: int,
) -> Event:
    """A kind 5 event that asks for ``events`` (own ones; an addressable one by its address), ``ids`` and ``addresses``.

    ``kinds`` of the events that are named by id only. Raises ``DeletionInvalid`` for an empty request, one for
    somebody else's event, or one for a deletion.
    """
    me = secret.public.hex
    named, places, numbers = list(ids), list(addresses), list(kinds)
    for event in events:
        if event.pubkey != me or event.kind == KIND:
            raise DeletionInvalid("only one's own events can be deleted, and no deletions")
        address = event.address
        if address is None:
            named.append(event.id)
        else:
            places.append(address)
        numbers.append(event.kind)
    if not all(is_hex(name, 64) for name in named):
        raise DeletionInvalid("an id has 64 lower-case hex digits")
    for place in places:
        if own_address(place, me) != place:
            raise DeletionInvalid("an address is kind:pubkey:d, of a replaceable kind and one's own key")
        numbers.append(int(place.partition(":")[0]))
    if not named and not places:
        raise DeletionInvalid("a deletion request names at least one event")
    tags = [["e", name] for name in dict.fromkeys(named)] + [["a", place] for place in dict.fromkeys(places)]
    tags += [["k", str(number)] for number in dict.fromkeys(numbers)]
    return sign_event(secret, kind=KIND, content=reason, tags=tags, created_at=created_at)


def parse_deletion(event: Event) -> Deletion:
    """From a verified event; entries that are none, or not its author's addresses, are left out.

    Raises ``DeletionInvalid`` for another kind of event.
    """
    if event.kind != KIND:
        raise DeletionInvalid("another kind of event")
    places = (own_address(tag[1], event.pubkey) for tag in event.tags_named("a") if len(tag) > 1)
    return Deletion(
        author=event.pubkey,
        created_at=event.created_at,
        ids=frozenset(tag[1] for tag in event.tags_named("e") if len(tag) > 1 and is_hex(tag[1], 64)),
        addresses=frozenset(place for place in places if place is not None),
        kinds=frozenset(int(tag[1]) for tag in event.tags_named("k") if len(tag) > 1 and _is_kind(tag[1])),
        reason=event.content[:MAX_REASON_CHARS],
    )


def own_address(text: str, pubkey: str) -> str | None:
    """``text`` as the address of something of ``pubkey``'s that relays replace, as events write it; else ``None``."""
    kind, _, rest = text.partition(":")
    author, _, d = rest.partition(":")
    if author != pubkey or not _is_kind(kind):
        return None
    match kind_class(int(kind)):
        case KindClass.ADDRESSABLE:
            return f"{int(kind)}:{pubkey}:{d}"
        case KindClass.REPLACEABLE:
            return f"{int(kind)}:{pubkey}:" if not d else None
        case _:
            return None


def _is_kind(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_KIND
