"""Whose turn it is at which backend: customers take turns, paid work comes before free work. No I/O.

Each backend has room for so many answers at a time. What waits for it is served by start-time fair queueing: the tag of
a job is one more than that of its customer's job before, or than that of whatever was begun last, whichever is later;
the lowest tag goes first. So somebody who brings a hundred jobs waits for his own, and somebody who brings one waits
for one job of each other customer at most. Free jobs are begun only where no paid one could be.

A job may be done by any of several backends; the first that has room gets it, in the order of preference.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)
"""What backends are told apart by."""

_Entry = tuple[int, int, int, "Ticket[K]"]
_MOST_TAGS = 1_024
"""Customers whose last tag is remembered before those are dropped that mean nothing any more."""


class Ticket(Generic[K]):
    """A place in the queue, kept until ``Turns.leave``."""

    __slots__ = ("at", "entry", "granted", "lane", "rank", "tag")

    def __init__(self, rank: int, tag: int) -> None:
        self.rank = rank
        self.tag = tag
        self.lane: tuple[K, ...] = ()
        self.entry: _Entry[K] | None = None
        self.granted = trio.Event()
        self.at: K | None = None
        """The backend whose turn it has."""


class Turns(Generic[K]):
    """The queue before all backends.

    :param room: for each backend, how many answers it makes at a time.
    """

    def __init__(self, room: Mapping[K, int]) -> None:
        self._free = dict(room)
        self._lanes: dict[tuple[K, ...], list[_Entry[K]]] = {}
        """Who waits, by the backends that could do it."""
        self._tags: dict[tuple[int, str], int] = {}
        self._begun = [0, 0]
        """The tag of what was begun last, of paid and of free work."""
        self._count = 0

    @property
    def waiting(self) -> int:
        return sum(entry[3].entry is entry for lane in self._lanes.values() for entry in lane)

    def enter(self, customer: str, *, first: bool) -> Ticket[K]:
        """Take a place; ``first`` is for work that is paid. Nothing is waited for yet."""
        rank = 0 if first else 1
        tag = max(self._tags.get((rank, customer), 0), self._begun[rank]) + 1
        self._tags[rank, customer] = tag
        if len(self._tags) > _MOST_TAGS:
            self._tags = {key: tag for key, tag in self._tags.items() if tag > self._begun[key[0]]}
        return Ticket(rank, tag)

    async def wait(self, ticket: Ticket[K], able: Sequence[K], seconds: float) -> K | None:
        """The backend whose turn it is; ``None``: not yet, after so many seconds; the place is kept.

        :param able: those that could do it, the best first. It may be another list at each call.
        """
        lane = tuple(able)
        if ticket.at is None and lane != ticket.lane:
            ticket.entry, ticket.lane = None, lane
            free = next((key for key in lane if self._free[key] > 0), None)
            if free is not None:
                self._grant(ticket, free)
            else:
                self._push(ticket)
        if ticket.at is None:
            with trio.move_on_after(seconds):
                await ticket.granted.wait()
        else:
            await trio.lowlevel.checkpoint()
        return ticket.at

    def leave(self, ticket: Ticket[K]) -> None:
        """Give up the place, or the turn if it has come; harmless when repeated."""
        ticket.entry = None
        if ticket.at is not None:
            key, ticket.at = ticket.at, None
            self._free[key] += 1
            self._serve(key)

    def _push(self, ticket: Ticket[K]) -> None:
        self._count += 1
        ticket.entry = (ticket.rank, ticket.tag, self._count, ticket)
        lane = self._lanes.setdefault(ticket.lane, [])
        heapq.heappush(lane, ticket.entry)

    def _serve(self, key: K) -> None:
        """Give the room that this backend has to those who wait for it."""
        while self._free[key] > 0:
            heads = [entry for lane in list(self._lanes) if key in lane and (entry := self._head(lane)) is not None]
            if not heads:
                return
            ticket = min(heads)[3]
            heapq.heappop(self._lanes[ticket.lane])
            self._grant(ticket, key)

    def _head(self, lane: tuple[K, ...]) -> _Entry[K] | None:
        """Who is first there; those who have left are dropped."""
        entries = self._lanes[lane]
        while entries and entries[0][3].entry is not entries[0]:
            heapq.heappop(entries)
        if not entries:
            del self._lanes[lane]
            return None
        return entries[0]

    def _grant(self, ticket: Ticket[K], key: K) -> None:
        self._free[key] -= 1
        self._begun[ticket.rank] = max(self._begun[ticket.rank], ticket.tag)
        ticket.entry, ticket.at = None, key
        ticket.granted.set()
