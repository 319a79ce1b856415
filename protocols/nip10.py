"""NIP-10: threads of text notes, kind 1. Marked ``e`` tags are written; positional ones are read too."""

from __future__ import annotations

import attrs

from protocols.keys import is_hex
from protocols.nip01 import Event

KIND = 1
MAX_PARTICIPANTS = 100
"""People that a reply tells of itself: lists of thousands are spam that an answer must not repeat."""

_MARKERS = ("root", "reply", "mention")


class ReplyInvalid(ValueError):
    """What is to be answered is not a text note: other kinds are answered by comments (NIP-22)."""


@attrs.frozen
class Reference:
    """An event that a note refers to."""

    id: str
    relay: str = ""
    """Where it may be found; empty: not said."""
    author: str | None = None


@attrs.frozen
class Thread:
    """Where a note stands."""

    root: Reference | None
    """The note that began the thread; ``None`` for a note that answers none."""
    reply_to: Reference | None
    """The note that it answers: the root itself, for a direct reply."""
    mentions: tuple[Reference, ...] = ()
    """Other events that it cites (``e`` without a part in the thread, and ``q``)."""
    participants: tuple[str, ...] = ()
    """Public keys of its ``p`` tags, hex."""


def parse_thread(event: Event) -> Thread:
    """Lenient: tags that are none are passed over, and nothing is raised."""
    entries = [(_reference(tag), _marker(tag)) for tag in event.tags_named("e") if len(tag) > 1 and is_hex(tag[1], 64)]
    quotes = [_reference(tag) for tag in event.tags_named("q") if len(tag) > 1 and is_hex(tag[1], 64)]
    root: Reference | None = None
    reply_to: Reference | None = None
    if any(marker in ("root", "reply") for _, marker in entries):
        root = next((found for found, marker in entries if marker == "root"), None)
        reply_to = next((found for found, marker in entries if marker == "reply"), None)
        root, reply_to = root or reply_to, reply_to or root
        others = [found for found, _ in entries if found not in (root, reply_to)]
    else:
        positional = [found for found, marker in entries if marker != "mention"]
        if positional:
            root, reply_to = positional[0], positional[-1]
        others = [found for found, _ in entries if found not in (root, reply_to)]
    people = (tag[1] for tag in event.tags_named("p") if len(tag) > 1 and is_hex(tag[1], 64))
    return Thread(root, reply_to, tuple(dict.fromkeys([*others, *quotes])), tuple(dict.fromkeys(people)))


def build_reply(event: Event, *, relay: str = "", me: str | None = None) -> list[list[str]]:
    """The tags of a kind 1 note that answers ``event``: root and reply, then everybody involved.

    ``relay``: where ``event`` was found. ``me``: one's own public key, which is not told of one's own reply. Raises
    ``ReplyInvalid`` for an event that is no text note.
    """
    if event.kind != KIND:
        raise ReplyInvalid(f"kind {event.kind} is answered by a comment (NIP-22), not by a text note")
    thread = parse_thread(event)
    if thread.root is None:
        tags = [["e", event.id, relay, "root", event.pubkey]]
    else:
        root = thread.root
        tags = [["e", root.id, root.relay, "root", *([root.author] if root.author else [])]]
        tags.append(["e", event.id, relay, "reply", event.pubkey])
    people = dict.fromkeys([event.pubkey, *thread.participants[:MAX_PARTICIPANTS]])
    return tags + [["p", key] for key in people if key != me]


def mentions(event: Event, pubkey: str) -> bool:
    """Whether a ``p`` tag names ``pubkey``."""
    return any(len(tag) > 1 and tag[1] == pubkey for tag in event.tags_named("p"))


def _marker(tag: tuple[str, ...]) -> str:
    return tag[3] if len(tag) > 3 and tag[0] == "e" and tag[3] in _MARKERS else ""


def _reference(tag: tuple[str, ...]) -> Reference:
    """The author stands last, also where a client left the marker out."""
    author = next((entry for entry in tag[3:5] if is_hex(entry, 64)), None)
    return Reference(tag[1], tag[2] if len(tag) > 2 and tag[2].startswith(("ws://", "wss://")) else "", author)
