"""Seats and groups: who hears a relay over which subscription, and from when on it is asked.

The rules are those of ``pylon.host.mailroom``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs
import trio

from protocols.nip01 import Filter
from pylon.clock import Clock
from pylon.relays.subscription import OVERLAP, OVERLAP_WRAPPED

if TYPE_CHECKING:
    from pylon.host.mailroom import Box

GROUP = 200
"""Agents of one subscription. Relays bound the length of a REQ: this is 14 kB."""
FILTER = 100
"""Agents of one filter. Relays, ours too, look up a few tag values one by one, and go through everything for many."""
KIND_SETS = 4
"""Different choices of kinds in one subscription; each is a filter, and relays bound their number, at 10 or so."""
FAR = 86_400
"""Seconds of looking back beyond which a member has a filter of its own."""


class Sort(enum.Enum):
    MAIL = "mail"
    WRAPS = "wraps"
    STATE = "state"


OVERLAPS = {Sort.MAIL: OVERLAP, Sort.WRAPS: OVERLAP_WRAPPED, Sort.STATE: OVERLAP}


@attrs.define(eq=False)
class Line:
    """One sort at one relay: the groups there, and who waits for one."""

    url: str
    sort: Sort
    groups: dict[Group, None] = attrs.field(factory=dict)
    waiting: dict[Seat, None] = attrs.field(factory=dict)
    newest: int | None = None
    """Unix seconds: what the newest event says of itself that came here."""


@attrs.define(eq=False)
class Seat:
    """One box at one line."""

    box: Box
    line: Line
    kinds: tuple[int, ...]
    floor: int
    """What is older was not asked for, and comes because of others."""
    since: int
    """What its relay is to be asked from, the overlap included; 0: everything."""
    group: Group | None = None
    done: bool = False
    """Its relay has sent what it had stored, or refused to."""
    left: bool = False
    gap: tuple[int, ...] = ()
    """Times of the oldest and the newest event that did not fit, if any did not."""
    filling: tuple[int, ...] = ()
    """A gap that is being filled."""

    def needs(self, heard: float | None) -> int:
        """What to ask from, if all up to ``heard`` has come; ``None``: no more than before."""
        return self.since if heard is None else max(self.since, int(heard) - OVERLAPS[self.line.sort])

    def miss(self, *times: int) -> None:
        """Remember that events of these times did not fit."""
        times = (*self.gap, *times)
        if times and not self.left:
            self.gap = min(times), max(times)
            # Behind the others: those whose relay answers come first.
            self.box._gapped.pop(self, None)
            self.box._gapped[self] = None

    def begin_filling(self) -> None:
        self.filling, self.gap = self.gap, ()
        self.box._gapped.pop(self, None)

    def end_filling(self, complete: bool) -> None:
        filling, self.filling = self.filling, ()
        if not complete:
            self.miss(*filling)


@attrs.define(eq=False)
class Group:
    """Seats that share a subscription."""

    line: Line
    seats: dict[Seat, None]
    """Without those who have left, whom the relay is still asked for."""
    asked: int
    replaced: list[Group]
    """Groups that must have ended before."""
    live: tuple[float, float] | None = None
    """Wall and monotonic time from which everything has come, while that is so."""
    lost: float | None = None
    """Wall time up to which everything has come, once it is not so any more."""
    done: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def thin(self) -> bool:
        return 2 * len(self.seats) < self.asked

    def heard(self, clock: Clock) -> float | None:
        """Wall time up to which all that the relay has for its members has come here; ``None``: not all ever did.

        Counted by the monotonic clock, which stands still while the machine sleeps: a connection that slept may have
        died and not know it yet. And never beyond the newest event that came: the clock may be ahead by days, and who
        asks a relay from then on is deaf to everybody else.
        """
        if self.live is None:
            return self.lost
        if self.line.newest is None:
            return None
        wall, monotonic = self.live
        return min(clock.now(), wall + clock.monotonic() - monotonic, float(self.line.newest))


def portions(seats: Iterable[Seat]) -> Iterator[list[Seat]]:
    """Groups for these seats; those that want the same kinds stay together."""
    portion: list[Seat] = []
    kinds: set[tuple[int, ...]] = set()
    for seat in sorted(seats, key=lambda seat: seat.kinds):
        if len(portion) >= GROUP or len(kinds | {seat.kinds}) > KIND_SETS:
            yield portion
            portion, kinds = [], set()
        portion.append(seat)
        kinds.add(seat.kinds)
    if portion:
        yield portion


def filters_for(sort: Sort, seats: Iterable[Seat], now: int) -> list[Filter]:
    alike: dict[tuple[tuple[int, ...], bool], list[Seat]] = {}
    for seat in seats:
        far = seat.since < now - OVERLAPS[sort] - FAR
        alike.setdefault((seat.kinds, far), []).append(seat)
    return [
        filter_for(sort, kinds, part, min(seat.since for seat in part))
        for (kinds, _), members in alike.items()
        for part in (members[begin : begin + FILTER] for begin in range(0, len(members), FILTER))
    ]


def filter_for(sort: Sort, kinds: tuple[int, ...], seats: list[Seat], since: int, until: int | None = None) -> Filter:
    names = [seat.box.wanted.agent for seat in seats]
    if sort is Sort.STATE:
        return Filter(authors=names, kinds=kinds, since=since or None, until=until)
    return Filter(tags={"p": names}, kinds=kinds, since=since or None, until=until)
