"""NIP-40: events that expire."""

from __future__ import annotations

from protocols.nip01 import Event

_MOST_DIGITS = 15


def expiration(event: Event) -> int | None:
    """When the event asks to be forgotten, Unix seconds; ``None`` for never, or for a tag that is no number."""
    text = event.tag("expiration")
    if text is None or not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        return None
    return int(text)


def is_expired(event: Event, now: float) -> bool:
    """Whether its time has come."""
    at = expiration(event)
    return at is not None and at <= now
