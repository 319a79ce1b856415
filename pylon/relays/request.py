"""One REQ on one relay: how much of what is stored it has brought, and what is further back.

Relays cap an answer, each filter alone, and do not say so: an answer of some size may be only the newest part.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from protocols.nip01 import MAX_TIME, Event, Filter
from pylon.relays.subscription import Subscription

FULL_PAGE = 100
"""Relays cap an answer, at 500 events or so. After one of at least this size there may be more: ask further back."""
_MAX_PAGES = 1_000
UNANSWERED_SECONDS = 60.0
"""After which a REQ that a relay has answered by nothing at all is put again; twice as long each time."""


@attrs.define(eq=False)
class Request:
    """One REQ, and how much of what is stored it has brought."""

    subscription: Subscription
    filters: tuple[Filter, ...]
    """As they went over the wire."""
    at: float
    page: int = 0
    full_page: int = FULL_PAGE
    """Events from which on an answer may have been capped."""
    stored: bool = False
    counts: list[int] = attrs.field(init=False)
    oldest: list[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * len(self.filters)
        self.oldest = [MAX_TIME] * len(self.filters)

    @property
    def skims(self) -> bool:
        """Whether the time of a known event is all that matters of it."""
        return self.stored or len(self.filters) == 1

    def count(self, index: int, created_at: int) -> None:
        self.counts[index] += 1
        self.oldest[index] = min(self.oldest[index], created_at)

    def count_event(self, event: Event) -> None:
        for index, wanted in enumerate(self.filters):
            if wanted.matches(event):
                self.count(index, event.created_at)

    def further_back(self) -> tuple[Filter, ...]:
        """What to ask for next, given that an answer is capped for each filter alone; nothing if all has come."""
        rest = []
        for wanted, count, oldest in zip(self.filters, self.counts, self.oldest, strict=True):
            if wanted.limit is None and count >= self.full_page and self.page < _MAX_PAGES:
                # The second that was cut in two is asked for whole, unless it fills an answer alone.
                until = oldest if wanted.until is None or oldest < wanted.until else oldest - 1
                if until >= (wanted.since or 0):
                    rest.append(attrs.evolve(wanted, until=until))
        return tuple(rest)


class Unanswered:
    """Relays that have too much to do drop a REQ and say nothing of it: neither events, nor an end, nor a refusal."""

    def __init__(self) -> None:
        self._waits: dict[str, float] = {}
        """Seconds that each subscription still goes without an answer."""

    def due(self, requests: Iterable[Request], now: float) -> list[Request]:
        """Those to put again. Pages are not: what they would have shown is asked for by the next connection."""
        waiting = [request for request in requests if not (request.stored or request.page or any(request.counts))]
        names = [request.subscription.id for request in waiting]
        self._waits = {name: self._waits.get(name, UNANSWERED_SECONDS) for name in names}
        due = [request for request in waiting if now - request.at >= self._waits[request.subscription.id]]
        for request in due:
            self._waits[request.subscription.id] *= 2
        return due
