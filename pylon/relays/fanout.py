"""Which live subscriptions want an event, without asking all of them.

Each filter is filed under one condition that an event must meet to match it: the one that fewest events meet. An
event then asks only the filters filed under its own id, tag values, author and kind, and those without a condition.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from protocols.nip01 import Event, Filter

K = TypeVar("K", bound=Hashable)

_Place = tuple[str, str | int]
_ANYTHING: _Place = ("", "")


class SubscriptionIndex(Generic[K]):
    """Subscriptions by key, each with its filters; a subscription is wanted where any of its filters matches."""

    def __init__(self) -> None:
        self._filters: dict[K, tuple[Filter, ...]] = {}
        # Dictionaries instead of sets keep the order of subscribing, so that a simulation can be replayed.
        self._places: dict[_Place, dict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._filters)

    def __iter__(self) -> Iterator[K]:
        return iter(self._filters)

    def __contains__(self, key: K) -> bool:
        return key in self._filters

    def add(self, key: K, filters: Iterable[Filter]) -> None:
        """File a subscription; one with the same key is replaced."""
        self.remove(key)
        self._filters[key] = tuple(filters)
        for place in self._places_of(key):
            self._places.setdefault(place, {})[key] = None

    def remove(self, key: K) -> None:
        """Forget a subscription; harmless if there is none."""
        if key not in self._filters:
            return
        for place in self._places_of(key):
            keys = self._places[place]
            del keys[key]
            if not keys:
                del self._places[place]
        del self._filters[key]

    def wanting(self, event: Event) -> Iterator[K]:
        """The keys of the subscriptions that ``event`` goes to, each once."""
        asked: dict[K, None] = {}
        for place in _places_met(event):
            asked.update(self._places.get(place, {}))
        for key in asked:
            if any(wanted.matches(event) for wanted in self._filters[key]):
                yield key

    def _places_of(self, key: K) -> Iterable[_Place]:
        return dict.fromkeys(place for wanted in self._filters[key] for place in _filed_under(wanted))


def _filed_under(wanted: Filter) -> list[_Place]:
    if wanted.ids is not None:
        return [("id", value) for value in wanted.ids]
    for letter in sorted(wanted.tags, key=lambda name: (name != "e", len(wanted.tags[name]), name)):
        return [("#" + letter, value) for value in wanted.tags[letter]]
    if wanted.authors is not None:
        return [("author", value) for value in wanted.authors]
    if wanted.kinds is not None:
        return [("kind", value) for value in wanted.kinds]
    return [_ANYTHING]


def _places_met(event: Event) -> Iterable[_Place]:
    places: dict[_Place, None] = {("id", event.id): None, ("author", event.pubkey): None, ("kind", event.kind): None}
    for tag in event.tags:
        if len(tag) > 1 and len(tag[0]) == 1:
            places["#" + tag[0], tag[1]] = None
    places[_ANYTHING] = None
    return places
