"""Sends what stands in the outbox, to each relay until that relay has answered.

A retry is byte-identical, so that relays recognise it. Nothing here is remembered but in rows: what was sent and not
acknowledged is sent again after a restart.

While the store cannot be written (a full disk, say) the answers wait here, and little more is sent; all goes on by
itself when the store is back.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import deque
from collections.abc import Callable

import attrs
import trio

from protocols.nip01 import EventInvalid, event_frame
from pylon.clock import Clock
from pylon.crashpoints import crash_point
from pylon.errors import RelayError, StoreError
from pylon.relays.pool import RelayPool
from pylon.store import outbox
from pylon.store.database import Store, Tx
from pylon.store.outbox import Delivery

log = logging.getLogger(__name__)

IN_FLIGHT = 32
"""Events sent to one relay and not yet answered."""
UNRECORDED = 128
"""Events sent to one relay of which no answer is recorded yet."""

_ANSWER_SECONDS = 10.0
_MOST_PATIENCE = 6
_LONGEST_NAP = 60.0
_GATHER_SECONDS = 0.05
"""For which an answer waits for others, to be recorded with them. Nothing waits for the record but another attempt."""
_MOST_AT_ONCE = 256
_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0


class Publisher:
    """One task a relay, over the outbox of one store."""

    def __init__(self, pool: RelayPool, store: Store, clock: Clock, rng: random.Random) -> None:
        self._pool = pool
        self._store = store
        self._clock = clock
        self._rng = rng

    async def run(self) -> None:
        """Until cancelled; relays that join the pool later are served too."""
        served: set[str] = set()
        recorder = _Recorder(self._store, self._rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            while True:
                for url in self._pool.urls:
                    if url not in served:
                        served.add(url)
                        queue = _RelayQueue(url, self._pool, self._store, self._clock, self._rng, recorder)
                        nursery.start_soon(queue.run)
                await self._pool.wait_changed()


class _Trouble:
    """A store that fails: said once, and once that it is over."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._backoff = 0.0

    @property
    def lasts(self) -> bool:
        return self._backoff > 0.0

    def met(self, error: StoreError) -> float:
        """Returns the seconds to wait."""
        if not self.lasts:
            log.error("what relays answer cannot be recorded, waiting for the store: %s", error.message)
        self._backoff = min(max(2 * self._backoff, _FIRST_BACKOFF), _LONGEST_BACKOFF)
        return self._backoff * self._rng.uniform(0.75, 1.25)

    def over(self) -> None:
        if self.lasts:
            log.warning("the store is back; what relays answered is recorded")
            self._backoff = 0.0


@attrs.define(eq=False)
class _Entry:
    write: Callable[[Tx], object]
    done: trio.Event = attrs.field(factory=trio.Event)


def _write_all(batch: list[_Entry], tx: Tx) -> None:
    for entry in batch:
        entry.write(tx)


class _Recorder:
    """Writes what comes together in one transaction, for as long as it takes to have it written."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self._store = store
        self._trouble = _Trouble(rng)
        self._waiting: deque[_Entry] = deque()
        self._filled = trio.Event()

    async def record(self, write: Callable[[Tx], object]) -> None:
        """Returns once ``write`` is committed."""
        entry = _Entry(write)
        self._waiting.append(entry)
        self._filled.set()
        await entry.done.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._waiting:
                self._filled = trio.Event()
                await self._filled.wait()
            await trio.sleep(_GATHER_SECONDS)
            # In trouble one at a time: if one of them cannot be written, the others still are.
            count = 1 if self._trouble.lasts else min(len(self._waiting), _MOST_AT_ONCE)
            batch = [self._waiting.popleft() for _ in range(count)]
            try:
                await self._store.write(functools.partial(_write_all, batch))
            except StoreError as error:
                self._waiting.extend(batch)
                await trio.sleep(self._trouble.met(error))
            else:
                self._trouble.over()
                for entry in batch:
                    entry.done.set()


class _RelayQueue:
    def __init__(
        self, url: str, pool: RelayPool, store: Store, clock: Clock, rng: random.Random, recorder: _Recorder
    ) -> None:
        self._url = url
        self._pool = pool
        self._store = store
        self._clock = clock
        self._rng = rng
        self._record = recorder.record
        self._trouble = _Trouble(rng)
        self._in_flight: set[str] = set()
        self._unanswered = 0
        self._wake = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_store)
            nursery.start_soon(self._watch_pool)
            while True:
                self._wake = trio.Event()
                try:
                    nap = await self._start_what_is_due(nursery)
                except StoreError as error:
                    await trio.sleep(self._trouble.met(error))
                    continue
                self._trouble.over()
                with trio.move_on_after(nap):
                    await self._wake.wait()

    async def _start_what_is_due(self, nursery: trio.Nursery) -> float:
        """Start deliveries; returns how long to sleep unless woken."""
        room = min(IN_FLIGHT - self._unanswered, UNRECORDED - len(self._in_flight))
        if room <= 0 or not self._pool.is_connected(self._url):
            return _LONGEST_NAP
        found = outbox.due(self._store, self._url, limit=room, besides=self._in_flight)
        for delivery in found:
            self._in_flight.add(delivery.event_id)
            self._unanswered += 1
            nursery.start_soon(self._deliver, delivery)
            # Tasks started together run in any order; one at a time, events go out in the order of the queue.
            await trio.lowlevel.checkpoint()
        if len(found) == room:
            return _LONGEST_NAP  # woken by the next answer
        at = outbox.next_due(self._store, self._url, besides=self._in_flight)
        return _LONGEST_NAP if at is None else min(max(at - self._clock.now(), 0.01), _LONGEST_NAP)

    async def _watch_store(self) -> None:
        with self._store.listen(f"outbox:{self._url}") as touched:
            async for _ in touched:
                self._wake.set()

    async def _watch_pool(self) -> None:
        """A relay that is back gets at once what waits for it."""
        while True:
            while not self._pool.is_connected(self._url):
                await self._pool.wait_changed()
            await self._record(functools.partial(outbox.hurry, relay=self._url, at=self._clock.now()))
            self._wake.set()
            while self._pool.is_connected(self._url):
                await self._pool.wait_changed()

    async def _deliver(self, delivery: Delivery) -> None:
        write = await self._try(delivery)
        self._unanswered -= 1
        if self._unanswered == IN_FLIGHT // 2:
            self._wake.set()
        await self._record(write)
        # Not if that failed: nothing may go out any more while this publisher ends.
        self._in_flight.discard(delivery.event_id)
        self._wake.set()

    async def _try(self, delivery: Delivery) -> Callable[[Tx], object]:
        """One attempt; returns the write that records it."""
        event_id, url = delivery.event_id, self._url
        if delivery.effect:
            crash_point(f"{delivery.effect}.before")
        try:
            frame = event_frame(delivery.event, event_id)
            # A relay that is always slow must be waited for long enough in the end.
            patience = _ANSWER_SECONDS * min(delivery.attempts + 1, _MOST_PATIENCE) * self._rng.uniform(0.9, 1.1)
            verdict = await self._pool.publish_frame(url, event_id, frame, patience)
        except EventInvalid as error:
            # Too big, or a damaged row: it will be no better next time, and nothing else may wait for it.
            why, now = f"invalid: {error}", self._clock.now()
            log.error("%s: cannot be published: %s", event_id[:16], error)
            return lambda tx: outbox.acknowledge(tx, event_id, url, False, why, now)
        except RelayError as error:
            why, now = error.message, self._clock.now()
            return lambda tx: outbox.postpone(tx, event_id, url, why, now)
        if delivery.effect:
            crash_point(f"{delivery.effect}.after")
        if not verdict.accepted:
            log.warning("%s refused %s (%s): %s", url, event_id[:16], delivery.effect, verdict.message)
        now = self._clock.now()
        return lambda tx: outbox.acknowledge(tx, event_id, url, verdict.accepted, verdict.message, now)
