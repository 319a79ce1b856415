"""What a relay will not take by its own word (NIP-11, ``limitation``), held before it has to refuse or hang up.

A limit that makes no sense (nothing at all, or a point in time where a span is wanted) counts as not said.
"""

from __future__ import annotations

import re

import attrs

from protocols.nip11 import Limitation

_CREATED_AT = re.compile(r'"created_at":\s*(\d{1,15})')
"""In a frame, quotes within texts are escaped: this is the key itself."""
_LONGEST_SPAN = 10 * 365 * 86_400
"""Seconds; what is more is no span."""


@attrs.frozen
class RelayLimits:
    """``None``: not said."""

    max_message_length: int | None = None
    """Bytes of a frame."""
    max_subscriptions: int | None = None
    page: int | None = None
    """Events that an answer has at most, for a filter that names no limit."""
    oldest: int | None = None
    """Seconds that an event may be old."""
    ahead: int | None = None
    """Seconds by which an event may be dated ahead."""

    @classmethod
    def of(cls, told: Limitation) -> RelayLimits:
        pages = [limit for limit in map(_positive, (told.max_limit, told.default_limit)) if limit is not None]
        return cls(
            max_message_length=_positive(told.max_message_length),
            max_subscriptions=_positive(told.max_subscriptions),
            page=min(pages, default=None),
            oldest=_span(told.created_at_lower_limit),
            ahead=_span(told.created_at_upper_limit),
        )

    @property
    def subscriptions(self) -> int | None:
        """How many may stand; a quarter of the places stays free for what is only looked up."""
        most = self.max_subscriptions
        return None if most is None else max(1, most - max(1, most // 4))

    def too_long(self, frame: str) -> bool:
        if self.max_message_length is None or 4 * len(frame) <= self.max_message_length:
            return False
        return len(frame.encode("utf-8", "replace")) > self.max_message_length

    def too_old(self, frame: str, now: float) -> bool:
        """Whether the event in a frame is older than the relay takes."""
        if self.oldest is None:
            return False
        created_at = _created_at(frame)
        return created_at is not None and created_at < now - self.oldest

    def too_early(self, frame: str, now: float) -> bool:
        """Whether the event in a frame is dated further ahead than the relay takes; later it will be taken."""
        if self.ahead is None:
            return False
        created_at = _created_at(frame)
        return created_at is not None and created_at > now + self.ahead


def _positive(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _span(value: int | None) -> int | None:
    return value if value is not None and 0 < value <= _LONGEST_SPAN else None


def _created_at(frame: str) -> int | None:
    found = _CREATED_AT.search(frame)
    return None if found is None else int(found[1])
