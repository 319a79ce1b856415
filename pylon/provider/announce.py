"""Tells the network what is sold here: one kind 31990 event (NIP-89), addressable, its ``d`` stable per instance."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import trio

from protocols import entropy
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip89 import build_announcement
from protocols.nip90 import JOB_TEXT
from pylon.clock import Clock
from pylon.errors import PylonError
from pylon.inference.router import Router
from pylon.money import Msat
from pylon.provider.pricing import Terms
from pylon.relays.pool import RelayPool
from pylon.store import outbox, settings
from pylon.store.database import Store, Tx

log = logging.getLogger(__name__)

_LOOK_AGAIN = 15.0
"""Seconds between two looks at what the backends have."""
_CLOCK_JUMP = 900.0
"""Seconds: a date further ahead is refused by relays (NIP-11, ``created_at_upper_limit``)."""
_DELETION = 5
"""NIP-09."""


@attrs.frozen
class Profile:
    name: str
    about: str
    network: str


class Announcer:
    """Publishes what is sold, anew whenever it has changed. Nothing is announced while no model is there.

    Relays keep the version with the latest date. One that was written while our clock was far ahead would keep every
    other out until then, and relays would refuse any that was dated later still: so it is deleted by its id (NIP-09),
    and said again with today's date.
    """

    def __init__(
        self,
        *,
        secret: SecretKey,
        store: Store,
        pool: RelayPool,
        router: Router,
        clock: Clock,
        terms: Terms,
        profile: Profile,
    ) -> None:
        self._secret = secret
        self._store = store
        self._pool = pool
        self._router = router
        self._clock = clock
        self._terms = terms
        self._profile = profile
        self._said: tuple[Sequence[str], Msat, Sequence[str]] | None = None
        self._said_at = 0.0

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except PylonError as error:
                log.warning("cannot announce: %s", error.message)
            await trio.sleep(_LOOK_AGAIN if self._said else 1.0)

    async def look(self) -> bool:
        """Announce if there is something new to say; whether there was."""
        models = sorted({model.id for model in await self._router.models(healthy=True)})
        price = self._terms.price if self._terms.payments else Msat(0)
        say = (models, price, sorted(self._pool.urls))
        # When this process began, by the wall: it moves only when the clock is set.
        began = self._clock.now() - self._clock.monotonic()
        if not models or (say == self._said and abs(began - self._said_at) < _CLOCK_JUMP):
            return False
        instance = await self._store.write(_instance)
        await self._store.write(lambda tx: self._publish(tx, instance, models, price))
        self._said, self._said_at = say, began
        log.info("announced %s at %d msats a job", ", ".join(models), price)
        return True

    def _publish(self, tx: Tx, instance: str, models: Sequence[str], price: Msat) -> Event:
        address = f"31990:{self._secret.public.hex}:{instance}"
        now = self._clock.now()
        ahead = outbox.withdraw(tx, address, after=now + _CLOCK_JUMP)
        if ahead:
            log.warning("the clock has gone back: what was announced with a later date is deleted")
            tags = [*(("e", event_id) for event_id in ahead), ("k", "31990")]
            deletion = sign_event(self._secret, kind=_DELETION, tags=tags, created_at=int(now))
            outbox.add(tx, deletion, self._pool.urls, effect="", subject="announcement", at=now)
        event = build_announcement(
            self._secret,
            d=instance,
            kinds=(JOB_TEXT,),
            models=tuple(models),
            price_msats=price,
            network=self._profile.network,
            name=self._profile.name,
            about=self._profile.about,
            created_at=max(int(now), outbox.last_created_at(tx, address) + 1),
        )
        outbox.add(tx, event, self._pool.urls, effect="", subject="announcement", at=now)
        return event


def _instance(tx: Tx) -> str:
    """A name for this instance, made once and kept."""
    known = settings.get(tx, "instance")
    if known is None:
        known = f"pylon-{entropy.random_bytes(8).hex()}"
        settings.put(tx, "instance", known)
    return known
