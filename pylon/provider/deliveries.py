"""From a stored result to a delivered one: as soon as one relay has it. What no relay takes is taken back."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from protocols.nip01 import Event
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import brief
from pylon.provider import sale as machine
from pylon.provider.sale import SALE, Sale, SaleEffect, SaleState
from pylon.relays.pool import RelayPool
from pylon.store import outbox
from pylon.store.database import Store, Tx
from pylon.store.records import Step

log = logging.getLogger(__name__)

_RESULT = f"{SALE.name}.{SaleEffect.PUBLISH_RESULT.value}"
_LONGEST_WAIT = 60.0


class Deliveries:
    """Watches what becomes of results."""

    def __init__(self, *, store: Store, pool: RelayPool, clock: Clock, driver: Driver[Sale]) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._driver = driver

    async def watch(self) -> None:
        """A result is delivered as soon as one relay has it; the outbox goes on with the others."""
        offered = False
        with self._store.listen("delivered") as changed:
            while True:
                wait = float("inf")
                try:
                    if not offered:
                        await self._store.write(self._offer_again)
                        offered = True
                    await self._note(self._states())
                except Exception as error:
                    log.error("cannot note what was delivered: %s", brief(error))
                    wait = _LONGEST_WAIT
                with trio.move_on_after(wait):
                    await changed.receive()

    async def _note(self, found: Sequence[tuple[str, bool]]) -> None:
        def job(tx: Tx) -> list[Step[Sale] | None]:
            return [
                self._driver.advance_in(tx, sale_id, machine.Delivered() if accepted else machine.Undeliverable())
                for sale_id, accepted in found
            ]

        if found:
            for step in await self._store.write(job):
                self._driver.acted(step)

    def _offer_again(self, tx: Tx) -> None:
        """The relays may be others than when a result was written: offer it to those, too."""
        rows = tx.all(
            "SELECT o.event AS event FROM sales s JOIN outbox o ON o.subject = s.id AND o.effect = ? WHERE s.state = ?",
            (_RESULT, SaleState.SERVED.value),
        )
        for row in rows:
            outbox.add(tx, Event.from_json(row["event"]), self._pool.urls, at=self._clock.now())

    def _states(self) -> list[tuple[str, bool]]:
        rows = self._store.read(
            "SELECT s.id AS id, MAX(d.state = 'accepted') AS accepted, MAX(d.state = 'pending') AS pending"
            " FROM sales s JOIN outbox o ON o.subject = s.id AND o.effect = ?"
            " JOIN deliveries d ON d.event_id = o.event_id WHERE s.state = ? GROUP BY s.id",
            (_RESULT, SaleState.SERVED.value),
        )
        return [(row["id"], bool(row["accepted"])) for row in rows if row["accepted"] or not row["pending"]]


def take_back(tx: Tx, sale_id: str, at: float) -> None:
    """Send the result of this sale to no relay any more."""
    for row in tx.all("SELECT event_id FROM outbox WHERE subject = ? AND effect = ?", (sale_id, _RESULT)):
        outbox.cancel(tx, row["event_id"], at)
