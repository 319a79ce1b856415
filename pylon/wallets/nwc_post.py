"""What a wallet service says: responses, in the cipher of the request, and notifications, in both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import trio

from protocols import nip47
from protocols.keys import PublicKey
from protocols.nip01 import Event
from protocols.nip47 import Encryption, Failure, Nip47Invalid
from protocols.nip47_methods import Transaction
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.pool import RelayPool
from pylon.store import outbox
from pylon.store.database import Tx
from pylon.wallets.nwc_guests import Guest

log = logging.getLogger(__name__)


class Post:
    """See the module. ``nursery`` is set while the service runs."""

    def __init__(self, pool: RelayPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self.nursery: trio.Nursery | None = None

    async def refuse_unread(self, guest: Guest, event: Event, failure: Failure) -> None:
        """Answer a request whose method is not looked at, so far as it can be opened."""
        cipher, method = nip47.asked_encryption(event) or Encryption.NIP44, ""
        try:
            request = nip47.open_request(event, guest.secret)
            cipher, method = request.encryption, request.method
        except Nip47Invalid:
            pass
        self.send(guest, self.response(guest, event.id, method, cipher, failure))

    def notify(self, tx: Tx, guest: Guest, type: str, told: Transaction) -> None:
        now = tx.clock.now()
        if not guest.connection.is_open(now):
            return
        for cipher in Encryption:
            event = nip47.build_notification(
                guest.secret,
                PublicKey.from_hex(guest.connection.client),
                type=type,
                body=told.result(),
                created_at=int(now),
                encryption=cipher,
            )
            outbox.add(tx, event, guest.connection.relays, "nwc.notification", guest.connection.client, at=now)

    def response(
        self, guest: Guest, request: str, method: str, cipher: Encryption, answer: Mapping[str, Any] | Failure
    ) -> Event:
        error = answer if isinstance(answer, Failure) else None
        return nip47.build_response(
            guest.secret,
            PublicKey.from_hex(guest.connection.client),
            request=request,
            method=method,
            result=None if isinstance(answer, Failure) else answer,
            error=error,
            created_at=int(self._clock.now()),
            encryption=cipher,
        )

    def send(self, guest: Guest, event: Event) -> None:
        """To every relay of the connection that is there now; whoever asked can ask again."""
        assert self.nursery is not None
        for url in guest.connection.relays:
            if self._pool.is_connected(url):
                self.nursery.start_soon(self._publish, url, event)

    async def _publish(self, url: str, event: Event) -> None:
        try:
            verdict = await self._pool.publish(url, event)
        except RelayError as error:
            log.debug("an answer did not reach %s: %s", url, error.message)
        else:
            if not verdict.accepted:
                log.warning("%s refused an answer: %s", url, verdict.message)
