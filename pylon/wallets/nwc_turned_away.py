"""Requests to our wallet that come too fast: taken note of before anybody is told, so that none is paid later on.

Who asks a hundred times a second must not make us write as often. So what came within a second is written at once, as
taken and with no effect, and each connection is told once. What is too much even for that is dropped unwritten: nobody
was told that it is refused, and nobody pays it either while this process remembers it.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from protocols.nip01 import Event
from pylon.errors import StoreError
from pylon.store import inbox
from pylon.store.database import Store, Tx
from pylon.wallets.nwc_guests import Guest

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two tellings of a connection."""
_AT_ONCE = 1_000
_REMEMBERED = 10_000


class TurnedAway:
    """See the module.

    :param consumer: under which taken requests are in the inbox.
    :param tell: one that was refused; called once it is written.
    """

    def __init__(self, store: Store, consumer: str, tell: Callable[[Guest, Event], Awaitable[None]]) -> None:
        self._store = store
        self._consumer = consumer
        self._tell = tell
        self._waiting: list[tuple[Guest, Event]] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._filled = trio.Event()

    def __contains__(self, event_id: str) -> bool:
        """Whether a request was turned away; for long after, the inbox tells."""
        return event_id in self._known

    def add(self, guest: Guest, event: Event) -> None:
        self._known[event.id] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if len(self._waiting) < _AT_ONCE:
            self._waiting.append((guest, event))
            self._filled.set()

    async def run(self) -> None:
        """Write and tell until cancelled."""
        while True:
            await self._filled.wait()
            batch, self._waiting, self._filled = self._waiting, [], trio.Event()
            try:
                await self._store.write(functools.partial(self._take, batch=batch))
            except StoreError as error:
                log.error("requests that came too fast cannot be noted: %s", error.message)
            else:
                for guest, event in {guest.connection.client: (guest, event) for guest, event in batch}.values():
                    await self._tell(guest, event)
            await trio.sleep(EVERY)

    def _take(self, tx: Tx, batch: list[tuple[Guest, Event]]) -> None:
        for _, event in batch:
            inbox.take(tx, self._consumer, event.id, tx.clock.now())
