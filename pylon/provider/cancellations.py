"""Customers that want a job no more (NIP-90: a kind 5 event that names the request).

It names no provider, so everybody's are heard: one that is not of a customer of ours costs a look, and leaves no row.
It may overtake the request that it is about, from another relay, and is remembered for a while.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from protocols import nip09
from protocols.nip01 import Event, Filter
from protocols.nip90 import JOB_TEXT
from pylon.driver import Driver
from pylon.errors import brief
from pylon.provider import sale as machine
from pylon.provider.sale import Sale
from pylon.store.database import Store

log = logging.getLogger(__name__)

FILTER = Filter(kinds=[nip09.KIND], tags={"k": [str(JOB_TEXT)]})
_MOST_IDS = 100
"""In one request."""
_REMEMBERED = 10_000


class Cancellations:
    """Ends what its customer wants no more."""

    def __init__(self, *, store: Store, driver: Driver[Sale]) -> None:
        self._store = store
        self._driver = driver
        self._heard: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Request and author, as they were said; the latest last."""

    def concern(self, event: Event) -> bool:
        """Remember what is wanted no more; whether any of it has come already, so that there is something to take."""
        try:
            deletion = nip09.parse_deletion(event)
        except nip09.DeletionInvalid:
            return False
        requests = sorted(deletion.ids)[:_MOST_IDS]
        for request_id in requests:
            self._remember(request_id, deletion.author)
        return any(self._is_of(request_id, deletion.author) for request_id in requests)

    async def take(self, event: Event) -> None:
        """End what its author wants no more. Saying it again changes nothing; what fails here is said in the log."""
        try:
            for request_id in sorted(nip09.parse_deletion(event).ids)[:_MOST_IDS]:
                if self._is_of(request_id, event.pubkey):
                    ended = await self._driver.advance(request_id, machine.Cancelled())
                    if ended is not None:
                        log.info("sale %s: cancelled by its customer", request_id[:16])
        except Exception as error:
            log.warning("a cancellation could not be heeded: %s", brief(error))

    def unwanted(self, request: Event) -> bool:
        """Whether its author has said already that it is not wanted."""
        return (request.id, request.pubkey) in self._heard

    def _is_of(self, request_id: str, customer: str) -> bool:
        row = self._store.one("SELECT customer FROM sales WHERE id = ?", (request_id,))
        return row is not None and row["customer"] == customer

    def _remember(self, request_id: str, author: str) -> None:
        self._heard[request_id, author] = None
        self._heard.move_to_end((request_id, author))
        if len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)
