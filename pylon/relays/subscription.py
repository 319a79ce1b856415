"""What one consumer has asked of all relays."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

import attrs
import trio

from protocols.nip01 import Event, Filter
from pylon.clock import Clock

OVERLAP = 900
"""Seconds before the newest seen event from which a reconnected relay is asked again: clocks and relays differ."""
OVERLAP_WRAPPED = 3 * 86_400
"""The same for gift wraps (kind 1059), whose timestamps lie by up to two days."""

BUFFERED = 2_000
BUFFERED_CHARACTERS = 16 << 20
"""What may wait for the consumer; the last event before the bound may exceed it."""
_REMEMBERED = 20_000
_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0


@attrs.frozen
class Received:
    """A verified event, and the relay that it came from first."""

    event: Event
    relay: str


class Subscription:
    """Filters on all relays of a pool, and the bounded queue that their events go into.

    The same event from five relays is delivered once while it is remembered here. That is a saving, no promise: after
    a restart it comes again, and the consumer's inbox row decides. What finds the queue of a slow consumer full is
    dropped and remembered as missed; when the consumer has caught up, the relay is asked again from there. So a slow
    consumer waits for itself alone.
    """

    def __init__(
        self,
        name: str,
        filters: list[Filter],
        since: int | None,
        relays: set[str] | None,
        clock: Clock,
        resume: Callable[[Subscription, list[str]], None],
    ) -> None:
        """``resume`` is told which relays to ask again."""
        self.id = name
        self.relays = relays
        self.ended = False
        self.fleeting = False
        """Whether it ends when what is stored has come. It goes before those that stay, where places are few."""
        self._clock = clock
        self._resume = resume
        self._overlap = OVERLAP_WRAPPED if any(1059 in (f.kinds or ()) for f in filters) else OVERLAP
        self.filters = tuple(
            wanted if since is None else attrs.evolve(wanted, since=max(since, wanted.since or 0)) for wanted in filters
        )
        self._ask_from(int(clock.now()))
        self._had: OrderedDict[str, int] = OrderedDict()
        # By relay. A relay shows what it has stored newest first: what is newest counts only when all of it has come.
        self._newest: dict[str, int] = {}
        self._coming: dict[str, int] = {}
        self._caught_up: set[str] = set()
        self._missed: dict[str, int] = {}
        self._lagging: set[str] = set()
        self._stored: set[str] = set()
        self._backoffs: dict[str, float] = {}
        self._queue: deque[Received] = deque()
        self._queued = 0
        self.progress = trio.Event()
        """Set, and replaced, when something has arrived or a relay has come, gone, or sent all that it had stored."""

    def _ask_from(self, latest: int) -> None:
        """Have no filter begin later than this: of what is dated before its ``since``, a relay tells nothing."""
        begin = max(latest - self._overlap, 0)
        self.filters = tuple(
            attrs.evolve(wanted, since=begin) if (wanted.since or 0) > latest else wanted for wanted in self.filters
        )

    def clock_jumped(self, by: float) -> None:
        """The clock was set, by so many seconds, and relays are to be asked again.

        It may have been wrong before or be so now: what it would say, if nobody had touched it, is the other time that
        counts. What relays show once more is delivered once more, for a consumer may have refused it for its date.
        """
        latest = int(self._clock.now() - max(by, 0.0))
        self._ask_from(latest)
        for marks in (self._newest, self._coming):
            marks.update({url: min(at, latest) for url, at in marks.items()})
        self._had.clear()

    def wants(self, url: str) -> bool:
        return self.relays is None or url in self.relays

    # --- what a relay's connection tells ----------------------------------------------------------------------

    def asked(self, url: str) -> int | None:
        """The relay is being asked; returns the ``since`` to ask it with: where it left off, minus the overlap."""
        self._lagging.discard(url)
        self._caught_up.discard(url)
        newest = self._newest.get(url)
        return None if newest is None else max(min(newest - self._overlap, self._missed.get(url, newest)), 0)

    def had(self, event_id: str) -> int | None:
        """``created_at`` of an event that was delivered already."""
        return self._had.get(event_id)

    def saw(self, url: str, created_at: int) -> None:
        """The relay has shown an event of this time."""
        # A timestamp from the future must not make us skip the present.
        seen = min(created_at, int(self._clock.now()))
        marks = self._newest if url in self._caught_up else self._coming
        marks[url] = max(seen, marks.get(url, 0))

    def deliver(self, event: Event, url: str) -> bool:
        """Queue an event for the consumer; false if there was no room, and it has to be asked for again."""
        if self.ended:
            return True
        if len(self._queue) >= BUFFERED or self._queued >= BUFFERED_CHARACTERS:
            self._missed[url] = min(event.created_at, self._missed.get(url, event.created_at))
            self._lagging.add(url)
            self._caught_up.discard(url)
            return False
        self._queue.append(Received(event, url))
        self._queued += _size(event)
        self._had[event.id] = event.created_at
        if len(self._had) > _REMEMBERED:
            self._had.popitem(last=False)
        self.saw(url, event.created_at)
        self.tell()
        return True

    def lags(self, url: str) -> bool:
        """Whether something from this relay was dropped that it was not asked for again."""
        return url in self._lagging

    def caught_up(self, url: str) -> None:
        """The relay has sent all that it had stored."""
        if url not in self._lagging:
            self._missed.pop(url, None)
            coming = self._coming.pop(url, None)
            if coming is not None:
                self._newest[url] = max(coming, self._newest.get(url, 0))
            self._caught_up.add(url)
        self.relay_done(url)

    def relay_done(self, url: str) -> None:
        """The relay will send nothing stored any more: it has sent all, or refused to."""
        self._stored.add(url)
        self.tell()

    def stored_from(self, url: str) -> bool:
        return url in self._stored

    def closed_backoff(self, url: str, lasted: float) -> float:
        """Seconds to wait before this relay, which closed the subscription after ``lasted`` seconds, is asked again."""
        last = self._backoffs.get(url)
        wait = _FIRST_BACKOFF if last is None or lasted >= 5 * last else min(2 * last, _LONGEST_BACKOFF)
        self._backoffs[url] = wait
        return wait

    def tell(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    # --- what the consumer does -------------------------------------------------------------------------------

    def _take(self) -> Received:
        received = self._queue.popleft()
        self._queued -= _size(received.event)
        if self._lagging and len(self._queue) <= BUFFERED // 2 and self._queued <= BUFFERED_CHARACTERS // 2:
            self._resume(self, sorted(self._lagging))
        return received

    def drain(self) -> list[Event]:
        """Everything that has arrived and was not read."""
        return [self._take().event for _ in range(len(self._queue))]

    def end(self) -> None:
        self.ended = True
        self._queue.clear()
        self.tell()

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self.ended:
                raise StopAsyncIteration
            await self.progress.wait()
        return self._take()


def _size(event: Event) -> int:
    return len(event.content) + sum(len(entry) for tag in event.tags for entry in tag)
