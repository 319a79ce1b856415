"""Who announces to sell, as a stream of events tells it: announcements, heartbeats, and what is taken back. No I/O.

Rules
-----
1. An announcement (kind 31990) outlives who made it. A provider that has beaten (kind 11998) is passed over once its
   last sign of life is 900 s old: an announcement, a beat, or a reply to a request of ours. One that never beats is
   believed; of one of which neither is known, it must be asked first (``doubtful``).
2. What its author takes back (kind 5) is gone, whichever relay still shows it.
3. Announcing costs nothing, and this is kept in memory: at most ``MOST_PROVIDERS`` with ``MOST_INSTANCES`` each, and
   of each as much as ranking needs. When it is full, a newcomer takes the place of one that is silent. Those that have
   answered us (``favour``) always find a place, so that no crowd can push them out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

import attrs

from protocols import heartbeat, nip09, nip89
from protocols.nip01 import Event
from protocols.nip89 import Announcement, AnnouncementInvalid, parse_announcement

MOST_PROVIDERS = 500
MOST_INSTANCES = 4
MOST_CHARACTERS = 4_096
"""Of the names of one announcement's models; the first ones are kept."""
AHEAD_SECONDS = 900.0
"""An announcement or a beat from later than this is no sign of life."""
_MOST_TAKEN_BACK = 2_000
_MOST_BEATS = 2 * MOST_PROVIDERS
_FULL_SECONDS = 10.0
"""How long a full board looks for no silent one again."""


@attrs.frozen
class _Entry:
    """An announcement, and the event that it came in."""

    announcement: Announcement
    event_id: str

    def newer_than(self, other: _Entry) -> bool:
        """As relays decide (NIP-01): of the same second, the lower id counts."""
        mine, its = self.announcement.created_at, other.announcement.created_at
        return mine > its or (mine == its and self.event_id < other.event_id)


class Board:
    """See the module.

    :param kind: of the jobs that are looked for.
    """

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._entries: dict[str, dict[str, _Entry]] = {}
        """By provider and instance."""
        self._beats: OrderedDict[str, float] = OrderedDict()
        """The last beat of those that have ever beaten, Unix seconds."""
        self._beatless: set[str] = set()
        """Of those that are here: who was asked about, and has never beaten."""
        self._replies: dict[str, float] = {}
        self._taken_back: OrderedDict[str, float] = OrderedDict()
        """Addresses, with the time up to which they are gone; and ids of events."""
        self._favoured: frozenset[str] = frozenset()
        self._full_until = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def favour(self, providers: Collection[str]) -> None:
        """Whom we have bought from: these always find a place."""
        self._favoured = frozenset(providers)

    def clear(self) -> None:
        """Forget who announces; that some have beaten, and who has replied, is remembered."""
        self._entries.clear()
        self._beatless.clear()
        self._full_until = 0.0

    # --- what is heard ----------------------------------------------------------------------------------------

    def take(self, event: Event, now: float) -> bool:
        """A verified event; whether anything is otherwise by it. What is none of ours changes nothing."""
        match event.kind:
            case nip89.KIND:
                return self._announced(event, now)
            case heartbeat.KIND:
                return self._beaten(event, now)
            case nip09.KIND:
                return self._take_back(event)
            case _:
                return False

    def replied(self, provider: str, at: float, now: float) -> None:
        """A provider that was asked has replied, whatever it said."""
        if at <= now + AHEAD_SECONDS:
            self._replies[provider] = max(at, self._replies.get(provider, 0.0))

    def asked(self, providers: Iterable[str], beats: Iterable[Event], now: float) -> None:
        """Relays were asked for the beats of these providers by name, and have shown these."""
        for event in beats:
            self._beaten(event, now)
        self._beatless.update(name for name in providers if name in self._entries and name not in self._beats)

    def _announced(self, event: Event, now: float) -> bool:
        try:
            announcement = parse_announcement(event)
        except AnnouncementInvalid:
            return False
        if self._kind not in announcement.kinds or self._is_taken_back(event):
            return False
        entry = _Entry(_trimmed(announcement), event.id)
        instances = self._entries.get(event.pubkey)
        if instances is None:
            if len(self._entries) >= MOST_PROVIDERS and not self._make_room(event.pubkey, now):
                return False
            instances = self._entries[event.pubkey] = {}
        there = instances.get(announcement.d)
        if there is not None and not entry.newer_than(there):
            return False
        instances[announcement.d] = entry
        if len(instances) > MOST_INSTANCES:
            del instances[min(instances, key=lambda d: (instances[d].announcement.created_at, d))]
        return True

    def _make_room(self, newcomer: str, now: float) -> bool:
        favoured = newcomer in self._favoured
        if now >= self._full_until or favoured:
            gone = next((name for name in self._entries if self._is_silent(name, now)), None)
            if gone is None and favoured:
                gone = next((name for name in self._entries if name not in self._favoured), None)
            if gone is not None:
                self._drop(gone)
                return True
            self._full_until = now + _FULL_SECONDS
        return False

    def _beaten(self, event: Event, now: float) -> bool:
        name, at = event.pubkey, float(event.created_at)
        if event.kind != heartbeat.KIND or name not in self._entries or at > now + AHEAD_SECONDS:
            return False  # a stranger's
        if at <= self._beats.get(name, -1.0):
            return False
        self._beats[name] = at
        self._beats.move_to_end(name)
        self._beatless.discard(name)
        if len(self._beats) > _MOST_BEATS:
            self._beats.popitem(last=False)
        return True

    def _take_back(self, event: Event) -> bool:
        deletion = nip09.parse_deletion(event)
        for place in deletion.addresses:
            if place.startswith(f"{nip89.KIND}:"):
                self._note_gone(place, float(deletion.created_at))
        instances = self._entries.get(deletion.author, {})
        for entry in instances.values():
            if entry.event_id in deletion.ids:
                self._note_gone(entry.event_id, float("inf"))
        gone = [
            d
            for d, entry in instances.items()
            if self._is_gone(entry.event_id, deletion.author, d, entry.announcement.created_at)
        ]
        for d in gone:
            del instances[d]
        if gone and not instances:
            self._drop(deletion.author)
        return bool(gone)

    def _note_gone(self, key: str, at: float) -> None:
        self._taken_back[key] = max(at, self._taken_back.get(key, 0.0))
        self._taken_back.move_to_end(key)
        if len(self._taken_back) > _MOST_TAKEN_BACK:
            self._taken_back.popitem(last=False)

    def _is_taken_back(self, event: Event) -> bool:
        return self._is_gone(event.id, event.pubkey, event.d, event.created_at)

    def _is_gone(self, event_id: str, provider: str, d: str, created_at: int) -> bool:
        at = self._taken_back.get(f"{nip89.KIND}:{provider}:{d}", -1.0)
        return created_at <= at or event_id in self._taken_back

    def _drop(self, provider: str) -> None:
        self._entries.pop(provider, None)
        self._beatless.discard(provider)

    # --- what is believed -------------------------------------------------------------------------------------

    def announced(self, now: float) -> list[Announcement]:
        """Those that are believed to be there, all instances of each."""
        self._replies = {name: at for name, at in self._replies.items() if self._is_young(at, now)}
        return [
            entry.announcement
            for name, instances in self._entries.items()
            if self._is_alive(name, now) or name in self._beatless
            for entry in instances.values()
        ]

    def doubtful(self, now: float) -> set[str]:
        """Those without a sign of life, of which it is not known whether they ever beat."""
        return {
            name
            for name in self._entries
            if name not in self._beatless and name not in self._beats and not self._is_alive(name, now)
        }

    def silent(self, now: float) -> set[str]:
        """Those that have beaten, and give no sign of life any more, as far as was heard."""
        return {name for name in self._entries if self._is_silent(name, now)}

    def _is_silent(self, name: str, now: float) -> bool:
        return name in self._beats and not self._is_alive(name, now)

    def _is_alive(self, name: str, now: float) -> bool:
        announced = (float(entry.announcement.created_at) for entry in self._entries[name].values())
        signs = (*announced, self._beats.get(name, 0.0), self._replies.get(name, 0.0))
        return any(self._is_young(at, now) for at in signs)

    @staticmethod
    def _is_young(at: float, now: float) -> bool:
        return now - heartbeat.SILENT_SECONDS <= at <= now + AHEAD_SECONDS


def _trimmed(announcement: Announcement) -> Announcement:
    """Without what ranking does not read, and with no more names than are worth keeping."""
    kept, room = [], MOST_CHARACTERS
    for name in announcement.models:
        room -= len(name)
        if room < 0:
            break
        kept.append(name)
    tariffs = {name: announcement.tariffs[name] for name in kept if name in announcement.tariffs}
    return attrs.evolve(announcement, models=tuple(kept), tariffs=tariffs, name=announcement.name[:60], about="")
