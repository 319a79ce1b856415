"""The mailroom: how all awake agents of a home hear, over few subscriptions.

Each agent has a *box*; what its relays hold for it comes there. Relays are not asked for each agent but for *groups*
of them, and groups cost nothing while nothing comes: no timer, no polling.

Rules
-----
1. What concerns an agent comes in three *sorts*: mail (events that name it in a ``p`` tag), wraps (kind 1059, whose
   times lie by up to two days) and state (its own kind 39201, which tells of another runner). They are subscribed to
   apart, and each relay apart, so that neither a sort nor a relay spoils the ``since`` of another.
2. Who comes waits about a second for others; together they make a group, which takes in those up to some times its
   size. So there are few groups, for public relays bear about twenty subscriptions on a connection, and an agent is
   asked for anew a few times in its life. Who leaves is passed over until more than half of a group have left.
3. A new group asks from what its members still need: a newcomer from its own ``since``, the others from when their
   relay was last known to be heard, all minus the overlap of the sort. Members that look far back have a filter of
   their own.
4. An event goes to the boxes that it is for, and to no others; never one older than the box has asked for. Nothing is
   deduplicated for good: the consumer's inbox row decides.
5. A box holds so much and no more, and waiting for its reader holds up nobody else. What does not fit is forgotten
   but for its time, and asked for again when the box has been read. State is held apart, and read first: no flood of
   mail keeps an agent from seeing that it was replaced.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import attrs
import trio

from protocols.nip01 import Event
from protocols.nip59 import GIFT_WRAP
from protocols.nip_sa import STATE
from pylon.backoff import Backoff
from pylon.clock import Clock
from pylon.host.mailroom_groups import GROUP, OVERLAPS, Group, Line, Seat, Sort, filter_for, filters_for, portions
from pylon.host.triggers import EARLY_SECONDS
from pylon.relays.pool import Received, RelayPool, Subscription

TAKEN_IN = 8
"""Groups up to this many times as large as what comes are taken in: three small groups at most, mostly one."""
DEBOUNCE = 1.0
"""Seconds that joining waits for others to join, about."""
STALL = 30.0
"""A wake-up later than this (seconds): the process stood still, and its connections may be dead without knowing."""

HELD = 200
HELD_CHARACTERS = 1 << 18
"""What a box holds of mail and wraps; the last event before the bound may exceed it."""
HELD_STATES = 16
REMEMBERED = 256
"""Ids that a box has seen last: what several relays send."""

REFILLS = 8
"""Boxes that ask for what they missed at one time."""
REFILL_PATIENCE = 60.0
"""Seconds without progress, of the relay or of the reader, after which such a question is put off."""


@attrs.frozen
class Wanted:
    """What an agent listens for."""

    agent: str
    """Public key, hex."""
    kinds: tuple[int, ...]
    """Of events that name it in a ``p`` tag. Kind 1059 comes by ``wraps`` alone."""
    wraps: bool
    """Whether kind 1059 is wanted."""
    relays: tuple[str, ...] | None
    """``None``: all relays of the pool, those added later too."""
    since: int
    """Unix seconds up to which it has heard all. The mailroom itself asks for the overlaps before it."""


class Mailroom:
    """See the module. ``run`` must be running for anything to come; it may be run again after it has ended."""

    def __init__(self, pool: RelayPool, clock: Clock, rng: random.Random) -> None:
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._boxes: dict[str, dict[Box, None]] = {}
        self._asking: dict[Box, None] = {}
        self._lines: dict[tuple[str, Sort], Line] = {}
        self._urls: list[str] = []
        self._due = trio.Event()
        self._refills = trio.Semaphore(REFILLS)
        self._nursery: trio.Nursery | None = None

    @property
    def boxes(self) -> int:
        return len(self._all_boxes())

    @property
    def groups(self) -> int:
        """Subscriptions at relays."""
        return sum(len(line.groups) for line in self._lines.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for all boxes until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._follow_relays)
                for box in self._all_boxes():
                    self._refill_soon(box)
                task_status.started()
                while True:
                    await self._due.wait()
                    await self._debounce()
                    self._due = trio.Event()
                    for line in list(self._lines.values()):
                        self._arrange(line)
        finally:
            self._nursery = None
            for line in self._lines.values():
                for group in list(line.groups):
                    line.waiting.update(self._dissolve(line, group))
            self._due.set()

    @asynccontextmanager
    async def box(self, wanted: Wanted) -> AsyncIterator[Box]:
        """A box that fills as long as the block lasts."""
        box = Box(self, wanted)
        self._boxes.setdefault(wanted.agent, {})[box] = None
        self._seat(box)
        try:
            yield box
        finally:
            for seat in list(box.seats.values()):
                self._leave(seat)
            boxes = self._boxes[wanted.agent]
            del boxes[box]
            if not boxes:
                del self._boxes[wanted.agent]
            box._end()

    # --- who sits where ---------------------------------------------------------------------------------------

    def _seat(self, box: Box) -> None:
        """Give a box its seats: one for each relay and sort. Those of relays that are gone are taken away."""
        wanted = box.wanted
        urls = dict.fromkeys(self._pool.urls if wanted.relays is None else wanted.relays)
        for seat in list(box.seats.values()):
            if seat.line.url not in urls:
                self._leave(seat)
        mail = tuple(sorted(set(wanted.kinds) - {GIFT_WRAP}))
        sorts = {Sort.MAIL: mail, Sort.WRAPS: (GIFT_WRAP,) if wanted.wraps else (), Sort.STATE: (STATE,)}
        for url in urls:
            for sort, kinds in sorts.items():
                place = (url, sort)
                if kinds and place not in box.seats:
                    line = self._lines.setdefault(place, Line(url, sort))
                    # After a clock was set back, what was heard last may lie in the future.
                    heard = 0 if sort is Sort.STATE else min(wanted.since, int(self._clock.now()))
                    since = max(0, heard - OVERLAPS[sort])
                    seat = box.seats[place] = Seat(box, line, kinds, floor=since, since=since)
                    line.waiting[seat] = None
                    self._due.set()

    def _leave(self, seat: Seat) -> None:
        del seat.box.seats[seat.line.url, seat.line.sort]
        seat.left = True
        seat.box._gapped.pop(seat, None)
        seat.line.waiting.pop(seat, None)
        if seat.group is not None:
            del seat.group.seats[seat]
            if seat.group.thin:
                self._due.set()

    def _all_boxes(self) -> list[Box]:
        return [box for boxes in self._boxes.values() for box in boxes]

    async def _follow_relays(self) -> None:
        """Relays are added to the pool, and removed; and whether a box has all depends on which are connected."""
        while True:
            urls = self._pool.urls
            if urls != self._urls:
                self._urls = urls
                for box in self._all_boxes():
                    if box.wanted.relays is None:
                        self._seat(box)
            for box in list(self._asking):
                box._tell()
            await self._pool.wait_changed()

    # --- groups -----------------------------------------------------------------------------------------------

    async def _debounce(self) -> None:
        late = True
        while late:
            began = trio.current_time()
            await trio.sleep(DEBOUNCE * self._rng.uniform(0.75, 1.25))
            # What has died while the process stood still is found out in the meantime.
            late = trio.current_time() - began > STALL

    def _arrange(self, line: Line) -> None:
        """Make groups of those who wait, and of what is left of thin ones; small groups are taken in."""
        coming, line.waiting = line.waiting, {}
        replaced = []
        for group in sorted(line.groups, key=lambda group: len(group.seats)):
            rest = len(coming) % GROUP
            if group.thin or len(group.seats) <= min(TAKEN_IN * rest, GROUP - rest):
                coming.update(self._dissolve(line, group))
                replaced.append(group)
        for seats in portions(coming):
            self._begin(line, seats, replaced)
        if not (line.groups or line.waiting):
            del self._lines[line.url, line.sort]

    def _begin(self, line: Line, seats: list[Seat], replaced: list[Group]) -> None:
        group = Group(line, dict.fromkeys(seats), len(seats), replaced)
        for seat in seats:
            seat.group = group
        line.groups[group] = None
        assert self._nursery is not None
        self._nursery.start_soon(self._listen, group)

    def _dissolve(self, line: Line, group: Group) -> dict[Seat, None]:
        """End a group; returns who sat there, with what they need from now on."""
        del line.groups[group]
        heard = group.heard(self._clock)
        for seat in group.seats:
            seat.since = seat.needs(heard)
            seat.group = None
        seats, group.seats = group.seats, {}
        group.scope.cancel()
        return seats

    async def _listen(self, group: Group) -> None:
        line = group.line
        try:
            with group.scope:
                for old in group.replaced:
                    # Never both at once, for relays bound how many there are. What comes in between is asked for.
                    await old.ended.wait()
                group.replaced = []
                if not group.seats:
                    return
                filters = filters_for(line.sort, group.seats, int(self._clock.now()))
                async with self._pool.subscribe(filters, relays=[line.url]) as subscription:
                    while True:
                        progress = subscription.progress
                        for event in subscription.drain():
                            self._route(line, event)
                        self._note_progress(group, subscription)
                        await progress.wait()
        finally:
            group.ended.set()

    def _note_progress(self, group: Group, subscription: Subscription) -> None:
        url = group.line.url
        live = self._pool.is_connected(url) and _has_all(subscription, url)
        if live and group.live is None:
            group.live = (self._clock.now(), self._clock.monotonic())
        elif not live and group.live is not None:
            group.lost = group.heard(self._clock)
            group.live = None
        if not group.done and subscription.stored_from(url):
            group.done = True
            for seat in group.seats:
                seat.done = True
                seat.box._tell()

    def _route(self, line: Line, event: Event) -> None:
        now = int(self._clock.now())
        if line.sort is Sort.STATE or event.pubkey not in self._boxes:
            # Ours say nothing about our clock.
            line.newest = max(event.created_at, line.newest or 0)
        if line.sort is Sort.STATE:
            names: Iterable[str] = (event.pubkey,)
        elif event.created_at > now + EARLY_SECONDS:
            return  # not remembered either: if it is our clock that is behind, it will be asked for again, and taken
        else:
            names = dict.fromkeys(tag[1] for tag in event.tags if len(tag) > 1 and tag[0] == "p")
        # The latest that a floor can be; one above it was reckoned before a clock was set back.
        latest = now - OVERLAPS[line.sort]
        for name in names:
            for box in self._boxes.get(name, ()):
                seat = box.seats.get((line.url, line.sort))
                if seat is not None and event.kind in seat.kinds and event.created_at >= min(seat.floor, latest):
                    box._offer(seat, event)

    # --- what did not fit -------------------------------------------------------------------------------------

    def _refill_soon(self, box: Box) -> None:
        if box._refill is None and self._nursery is not None and any(map(box._roomy, box._gapped)):
            box._refill = trio.CancelScope()
            self._nursery.start_soon(self._refill, box, box._refill)

    async def _refill(self, box: Box, scope: trio.CancelScope) -> None:
        """Bring what did not fit, as long as the box is read. Ends with the box."""
        backoff = Backoff(self._rng)
        try:
            with scope:
                while (seat := next(filter(box._roomy, box._gapped), None)) is not None:
                    async with self._refills:
                        complete = await self._ask_again(seat)
                    if not complete:
                        await trio.sleep(backoff.wait(0.0))
        finally:
            box._refill = None

    async def _ask_again(self, seat: Seat) -> bool:
        """Pour what a relay has of what did not fit into the box, at the reader's pace; whether that was all."""
        seat.begin_filling()
        complete = False
        try:
            if self._pool.is_connected(seat.line.url):
                wanted = filter_for(seat.line.sort, seat.kinds, [seat], *seat.filling)
                async with self._pool.subscribe([wanted], relays=[seat.line.url]) as subscription:
                    complete = await self._pour(subscription, seat)
        finally:
            seat.end_filling(complete)
        return complete

    async def _pour(self, subscription: Subscription, seat: Seat) -> bool:
        box = seat.box
        while True:
            # Looked at before what has come is read: more may come while the reader keeps us waiting.
            progress, all_here = subscription.progress, _has_all(subscription, seat.line.url)
            for event in subscription.drain():
                with trio.move_on_after(REFILL_PATIENCE) as patience:
                    while not box._roomy(seat):
                        await box._wait()
                if patience.cancelled_caught:
                    return False
                box._offer(seat, event)
            if all_here:
                return True
            with trio.move_on_after(REFILL_PATIENCE) as patience:
                await progress.wait()
            if patience.cancelled_caught:
                return False


class Box:
    """What has come for one agent. Iterate over it; made by ``Mailroom.box``."""

    __slots__ = ("_changed", "_gapped", "_held", "_mailroom", "_queue", "_refill", "_seen", "_states", "closed",
                 "seats", "wanted")  # fmt: skip

    def __init__(self, mailroom: Mailroom, wanted: Wanted) -> None:
        self.wanted = wanted
        self.closed = False
        self.seats: dict[tuple[str, Sort], Seat] = {}
        """By relay and sort. The mailroom's."""
        self._mailroom = mailroom
        self._queue: deque[Received] = deque()
        self._states: deque[Received] = deque()
        self._held = 0
        self._seen: dict[str, None] = {}
        self._gapped: dict[Seat, None] = {}
        self._refill: trio.CancelScope | None = None
        self._changed: trio.Event | None = None

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        await trio.lowlevel.checkpoint()
        while not (self._states or self._queue):
            if self.closed:
                raise StopAsyncIteration
            await self._wait()
        return self._take()

    async def caught_up(self) -> None:
        """Wait until every connected relay has sent what it had stored for this agent, or refused to.

        While none is connected, waits for the first one: the caller brings a deadline. What a relay has sent may have
        found the box full; that comes again, when it is read.
        """
        await trio.lowlevel.checkpoint()
        self._mailroom._asking[self] = None
        try:
            while not (self.closed or self._has_all()):
                await self._wait()
        finally:
            self._mailroom._asking.pop(self, None)

    @property
    def since(self) -> int:
        """What to give as ``Wanted.since`` the next time, so that nothing is lost: all before it has been read here.

        The time of what was read last is no substitute: relays show the newest first. A relay that is away holds this
        back; whoever has no use for old mail may look back less far.
        """
        clock, seats = self._mailroom._clock, [seat for seat in self.seats.values() if seat.line.sort is not Sort.STATE]
        found = [int(clock.now())] if seats else [self.wanted.since]
        for seat in seats:
            heard = None if seat.group is None else seat.group.heard(clock)
            missed = (at for times in (seat.gap, seat.filling) for at in times[:1])
            found.append(min([seat.needs(heard), *missed]) + OVERLAPS[seat.line.sort])
        for received in self._queue:
            sort = Sort.WRAPS if received.event.kind == GIFT_WRAP else Sort.MAIL
            found.append(received.event.created_at + OVERLAPS[sort])
        return min(found)

    def _has_all(self) -> bool:
        pool = self._mailroom._pool
        asked = [seat for seat in self.seats.values() if pool.is_connected(seat.line.url)]
        return bool(asked) and all(seat.done for seat in asked)

    def _offer(self, seat: Seat, event: Event) -> None:
        """Take an event, or remember that it came."""
        if event.id in self._seen:
            return
        state = seat.line.sort is Sort.STATE
        if len(self._states) >= HELD_STATES if state else len(self._queue) >= HELD or self._held >= HELD_CHARACTERS:
            seat.miss(event.created_at)
            return
        (self._states if state else self._queue).append(Received(event, seat.line.url))
        self._held += 0 if state else _size(event)
        self._seen[event.id] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._tell()

    def _take(self) -> Received:
        if self._states:
            received = self._states.popleft()
        else:
            received = self._queue.popleft()
            self._held -= _size(received.event)
        if self._gapped or self._refill is not None:
            self._mailroom._refill_soon(self)
            self._tell()
        return received

    def _roomy(self, seat: Seat) -> bool:
        """Whether what was missed may come: half of the box is kept for what comes by itself."""
        if seat.line.sort is Sort.STATE:
            return len(self._states) < HELD_STATES // 2
        return len(self._queue) < HELD // 2 and self._held < HELD_CHARACTERS // 2

    async def _wait(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _tell(self) -> None:
        # Made by who waits, so that ten thousand boxes in which nothing happens hold no event each.
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _end(self) -> None:
        self.closed = True
        self._queue.clear()
        self._states.clear()
        if self._refill is not None:
            self._refill.cancel()
        self._tell()


def _has_all(subscription: Subscription, url: str) -> bool:
    """Whether the relay has sent all that it had stored; unlike ``stored_from``, not where it has only refused."""
    return url in subscription._caught_up


def _size(event: Event) -> int:
    return len(event.content) + sum(len(entry) for tag in event.tags for entry in tag)
