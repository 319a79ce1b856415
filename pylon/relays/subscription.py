"""What one consumer has asked of all relays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator

import attrs
import trio

from protocols.nip01 import Event, Filter
from pylon.clock import Clock

OVERLAP = 900
"""Seconds before the newest seen event from which a reconnected relay is asked again: clocks and relays differ."""
OVERLAP_WRAPPED = 3 * 86_400
"""The same for gift wraps (kind 1059), whose timestamps lie by up to two days."""

_BUFFERED = 2_000
_REMEMBERED = 20_000
_SLOW_SECONDS = 10.0


@attrs.frozen
class Received:
    """A verified event, and the relay that it came from first."""

    event: Event
    relay: str


class Subscription:
    """Filters on all relays of a pool, and the channel that their events go into.

    The same event from five relays is delivered once while it is remembered here. That is a saving, no promise: after
    a restart it comes again, and the consumer's inbox row decides. A consumer that does not keep up with its bounded
    channel makes the relay's reader wait, then gives up that connection; the overlap brings what was missed.
    """

    def __init__(
        self, name: str, filters: list[Filter], since: int | None, relays: set[str] | None, clock: Clock
    ) -> None:
        self.id = name
        self.relays = relays
        self.ended = False
        self._filters = filters
        self._since = since
        self._clock = clock
        self._overlap = OVERLAP_WRAPPED if any(1059 in (f.kinds or ()) for f in filters) else OVERLAP
        self._newest: dict[str, int] = {}
        self._had: OrderedDict[str, None] = OrderedDict()
        self._stored: set[str] = set()
        self._closings: dict[str, int] = {}
        self._put, self._got = trio.open_memory_channel[Received](_BUFFERED)
        self.progress = trio.Event()

    def wants(self, url: str) -> bool:
        return self.relays is None or url in self.relays

    def filters_for(self, url: str) -> list[Filter]:
        """The filters as this relay is to be asked now: from where it left off, minus the overlap."""
        newest = self._newest.get(url)
        since = self._since if newest is None else max(newest - self._overlap, self._since or 0)
        if since is None:
            return self._filters
        return [attrs.evolve(wanted, since=max(since, wanted.since or 0)) for wanted in self._filters]

    def had(self, event_id: str) -> bool:
        return event_id in self._had

    async def deliver(self, event: Event, url: str) -> bool:
        """Whether the consumer took it in time."""
        # A timestamp from the future must not make us skip the present.
        seen = min(event.created_at, int(self._clock.now()))
        try:
            self._put.send_nowait(Received(event, url))
        except trio.WouldBlock:
            with trio.move_on_after(_SLOW_SECONDS) as patience:
                await self._put.send(Received(event, url))
            if patience.cancelled_caught:
                return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True
        self._had[event.id] = None
        if len(self._had) > _REMEMBERED:
            self._had.popitem(last=False)
        self._newest[url] = max(seen, self._newest.get(url, 0))
        self._closings.pop(url, None)
        return True

    def stored_from(self, url: str) -> bool:
        """Whether this relay has sent what it had stored, or refused to."""
        return url in self._stored

    def relay_done(self, url: str) -> None:
        self._stored.add(url)
        self._tell()

    def relay_gone(self, url: str) -> None:
        self._tell()

    def _tell(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    def closed_backoff(self, url: str) -> float:
        """Seconds to wait before this relay, which closed the subscription, is asked again."""
        count = self._closings[url] = self._closings.get(url, 0) + 1
        return float(min(2 ** (count - 1), 60))

    def drain(self) -> list[Event]:
        """Everything that has arrived and was not read."""
        events = []
        while True:
            try:
                events.append(self._got.receive_nowait().event)
            except (trio.WouldBlock, trio.EndOfChannel):
                return events

    def end(self) -> None:
        self.ended = True
        self._put.close()
        self._got.close()

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        try:
            return await self._got.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
