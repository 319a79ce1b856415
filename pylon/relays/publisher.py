"""Sends what stands in the outbox, to each relay until that relay has answered.

A retry is byte-identical, so that relays recognise it. Nothing here is remembered but in rows: what was sent and not
acknowledged is sent again after a restart.
"""

from __future__ import annotations

import logging
import random

import trio

from protocols.nip01 import Event, EventInvalid
from pylon.clock import Clock
from pylon.crashpoints import crash_point
from pylon.errors import RelayError
from pylon.relays.pool import RelayPool
from pylon.store import outbox
from pylon.store.database import Store
from pylon.store.outbox import Delivery

log = logging.getLogger(__name__)

IN_FLIGHT = 32
"""Events sent to one relay and not yet answered."""

_ANSWER_SECONDS = 10.0
_MOST_PATIENCE = 6
_LONGEST_NAP = 60.0
_NAP_IN_FLIGHT = 1.0


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
        async with trio.open_nursery() as nursery:
            while True:
                for url in self._pool.urls:
                    if url not in served:
                        served.add(url)
                        nursery.start_soon(_RelayQueue(url, self._pool, self._store, self._clock, self._rng).run)
                await self._pool.wait_changed()


class _RelayQueue:
    def __init__(self, url: str, pool: RelayPool, store: Store, clock: Clock, rng: random.Random) -> None:
        self._url = url
        self._pool = pool
        self._store = store
        self._clock = clock
        self._rng = rng
        self._in_flight: set[str] = set()
        self._wake = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_store)
            nursery.start_soon(self._watch_pool)
            while True:
                self._wake = trio.Event()
                nap = await self._start_what_is_due(nursery)
                with trio.move_on_after(nap):
                    await self._wake.wait()

    async def _start_what_is_due(self, nursery: trio.Nursery) -> float:
        """Start deliveries; returns how long to sleep unless woken."""
        room = IN_FLIGHT - len(self._in_flight)
        if room <= 0 or not self._pool.is_connected(self._url):
            return _LONGEST_NAP
        for delivery in outbox.due(self._store, self._url, limit=IN_FLIGHT + len(self._in_flight)):
            if room and delivery.event_id not in self._in_flight:
                room -= 1
                self._in_flight.add(delivery.event_id)
                nursery.start_soon(self._deliver, delivery)
                # Tasks started together run in any order; one at a time, events go out in the order of the queue.
                await trio.lowlevel.checkpoint()
        if self._in_flight:
            return _NAP_IN_FLIGHT  # the earliest row may be one of them, so the time of the next is not known
        at = outbox.next_due(self._store, self._url)
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
            await self._store.write(lambda tx: outbox.hurry(tx, self._url, self._clock.now()))
            self._wake.set()
            while self._pool.is_connected(self._url):
                await self._pool.wait_changed()

    async def _deliver(self, delivery: Delivery) -> None:
        await self._try(delivery)
        # Not if that failed: nothing may go out any more while this publisher ends.
        self._in_flight.discard(delivery.event_id)
        self._wake.set()

    async def _try(self, delivery: Delivery) -> None:
        now = self._clock.now
        if delivery.effect:
            crash_point(f"{delivery.effect}.before")
        try:
            event = Event.from_json(delivery.event)
            # A relay that is always slow must be waited for long enough in the end.
            patience = _ANSWER_SECONDS * min(delivery.attempts + 1, _MOST_PATIENCE) * self._rng.uniform(0.9, 1.1)
            verdict = await self._pool.publish(self._url, event, patience)
        except EventInvalid as error:
            # Too big, or a damaged row: it will be no better next time, and nothing else may wait for it.
            why = f"invalid: {error}"
            log.error("%s: cannot be published: %s", delivery.event_id[:16], error)
            await self._store.write(lambda tx: outbox.acknowledge(tx, delivery.event_id, self._url, False, why, now()))
            return
        except RelayError as error:
            why = error.message
            await self._store.write(lambda tx: outbox.postpone(tx, delivery.event_id, self._url, why, now()))
            return
        if delivery.effect:
            crash_point(f"{delivery.effect}.after")
        if not verdict.accepted:
            log.warning("%s refused %s (%s): %s", self._url, delivery.event_id[:16], delivery.effect, verdict.message)
        await self._store.write(
            lambda tx: outbox.acknowledge(tx, delivery.event_id, self._url, verdict.accepted, verdict.message, now())
        )
