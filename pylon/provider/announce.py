"""Tells the network what is sold here: one kind 31990 event (NIP-89), addressable, its ``d`` stable per instance.

While it can answer it says so every 300 s (kind 11998). What can no longer answer takes its announcement back (NIP-09),
and so does what ends cleanly; of what died the heartbeat stops.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import trio

from protocols import entropy, heartbeat, nip89
from protocols.job_price import Tariff
from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip09 import build_deletion
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
_GONE_AFTER = 60.0
"""Seconds without any healthy model before the announcement is taken back: engines restart."""
_FAREWELL = 2.0
"""Seconds that relays have for the deletion at the end. Those that have not answered get it at the next start."""
_LOOK_AT_ANSWERS = 0.02
_SUBJECT = "announcement"
_MOST_VERSIONS = 50
"""In one deletion; relays keep the newest version, and perhaps have missed a few."""


_MOST_MODELS = 256
"""As many as are read of an announcement."""
_MODEL_BYTES = 12_000
"""Their names stand in it twice, and some relays take 64 KiB, some 32."""


@attrs.frozen
class Profile:
    name: str
    about: str
    network: str
    lud16: str = ""
    """Where the provider can be zapped; empty: nowhere."""


@attrs.frozen
class _Say:
    """What an announcement says, besides the profile."""

    models: tuple[str, ...]
    price: Msat
    price_in: Msat
    price_out: Msat
    tariffs: Mapping[str, Tariff] = attrs.field(hash=False)
    relays: tuple[str, ...]


class Announcer:
    """Publishes what is sold, anew whenever it has changed. Nothing is announced while no model is there.

    Relays keep the version with the latest date. One that was written while our clock was far ahead would keep every
    other out until then, and relays would refuse any that was dated later still: so it is deleted by its id (NIP-09),
    and said again with today's date. Deletions name ids and no address, for the same reason: one that is dated far
    ahead would hide every later announcement.
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
        self._said: _Say | None = None
        self._said_at = 0.0
        self._answered = clock.monotonic()
        """When a model was last there."""
        self._stands = True
        """Whether relays may have an announcement: of an earlier life, where it is not of this one."""
        self._beat_at = float("-inf")
        self._over = False

    def sell_by(self, terms: Terms, profile: Profile) -> None:
        """Announce these at the next look."""
        self._terms, self._profile, self._said = terms, profile, None

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except PylonError as error:
                log.warning("cannot announce: %s", error.message)
            await trio.sleep(_LOOK_AGAIN if self._said else 1.0)

    async def look(self) -> bool:
        """Announce if there is something new to say, and beat if it is time; whether there was something new."""
        there = {model.id: None for model in await self._router.models(healthy=True)}
        models = _told(there)
        say = self._say(models)
        monotonic = self._clock.monotonic()
        # When this process began, by the wall: it moves only when the clock is set.
        began = self._clock.now() - monotonic
        if self._over:
            return False
        if not models:
            if self._stands and monotonic - self._answered >= _GONE_AFTER:
                await self._store.write(self._take_back)
                self._stands, self._said, self._beat_at = False, None, float("-inf")
                log.warning("no model is there: what was announced is taken back")
            return False
        self._answered = monotonic
        set_anew = abs(began - self._said_at) >= _CLOCK_JUMP
        new = say != self._said or set_anew
        if new:
            await self._store.write(lambda tx: self._announce(tx, say))
            self._stands, self._said, self._said_at = True, say, began
            if len(models) < len(there):
                log.warning("an announcement holds %d of the %d models that are there", len(models), len(there))
            log.info("announced %s from %d msats a job", ", ".join(models), say.price)
        if set_anew or monotonic - self._beat_at >= heartbeat.EVERY_SECONDS:
            await self._store.write(self._beat)
            self._beat_at = monotonic
        return new

    async def farewell(self) -> None:
        """Take the announcement back, for good. Waits for the connected relays' answers, a moment at most."""
        self._over = True
        try:
            await self._store.write(self._take_back)
        except PylonError as error:
            log.warning("the announcement cannot be taken back: %s", error.message)
            return
        with trio.move_on_after(_FAREWELL):
            while True:
                if not self._awaited():
                    return
                await trio.sleep(_LOOK_AT_ANSWERS)

    def _awaited(self) -> bool:
        rows = self._store.read(
            "SELECT d.relay AS relay FROM deliveries d JOIN outbox o ON o.event_id = d.event_id"
            " WHERE o.subject = ? AND d.state = 'pending'",
            (_SUBJECT,),
        )
        return any(self._pool.is_connected(row["relay"]) for row in rows)

    def _say(self, models: Sequence[str]) -> _Say:
        terms = self._terms
        return _Say(
            models=tuple(models),
            price=terms.cheapest(models),
            price_in=terms.price_in if terms.payments else Msat(0),
            price_out=terms.price_out if terms.payments else Msat(0),
            tariffs={model: terms.tariff(model) for model in models} if terms.multipliers else {},
            relays=tuple(sorted(self._pool.urls)),
        )

    def _announce(self, tx: Tx, say: _Say) -> None:
        instance = _instance(tx)

        def build(created_at: int) -> Event:
            return nip89.build_announcement(
                self._secret,
                d=instance,
                kinds=(JOB_TEXT,),
                models=say.models,
                price_msats=say.price,
                price_in_msats=say.price_in,
                price_out_msats=say.price_out,
                tariffs=say.tariffs,
                lud16=self._profile.lud16,
                network=self._profile.network,
                name=self._profile.name,
                about=self._profile.about,
                created_at=created_at,
            )

        self._replace(tx, self._addresses(tx)[0], nip89.KIND, build)

    def _beat(self, tx: Tx) -> None:
        instance = _instance(tx)

        def build(created_at: int) -> Event:
            return heartbeat.build_heartbeat(self._secret, d=instance, created_at=created_at)

        self._replace(tx, self._addresses(tx)[1], heartbeat.KIND, build)

    def _replace(self, tx: Tx, address: str, kind: int, build: Callable[[int], Event]) -> None:
        """A newer version of what is at ``address``."""
        if self._over:
            return
        now = self._clock.now()
        ahead = outbox.withdraw(tx, address, after=now + _CLOCK_JUMP)
        if ahead:
            log.warning("the clock has gone back: what was announced with a later date is deleted")
            self._delete(tx, ahead, [kind])
        event = build(max(int(now), outbox.last_created_at(tx, address) + 1))
        outbox.add(tx, event, self._pool.urls, effect="", subject=_SUBJECT, at=now)

    def _take_back(self, tx: Tx) -> None:
        """Delete every version that a relay may have, of the announcement and of the heartbeat."""
        rows = tx.all(
            "SELECT event_id FROM outbox WHERE address IN (?, ?) ORDER BY id DESC LIMIT ?",
            (*self._addresses(tx), _MOST_VERSIONS),
        )
        for row in rows:
            outbox.cancel(tx, row["event_id"], self._clock.now())
        if rows:
            self._delete(tx, [row["event_id"] for row in rows], [nip89.KIND, heartbeat.KIND])

    def _delete(self, tx: Tx, ids: Sequence[str], kinds: Sequence[int]) -> None:
        now = self._clock.now()
        deletion = build_deletion(self._secret, ids=ids, kinds=kinds, created_at=int(now))
        outbox.add(tx, deletion, self._pool.urls, effect="", subject=_SUBJECT, at=now)

    def _addresses(self, tx: Tx) -> tuple[str, str]:
        """Of the announcement and of the heartbeat."""
        me = self._secret.public.hex
        return f"{nip89.KIND}:{me}:{_instance(tx)}", f"{heartbeat.KIND}:{me}:"


def _told(names: Iterable[str]) -> list[str]:
    """As many of the models as an announcement holds that relays take; the preferred backends' come first."""
    kept: dict[str, None] = {}
    left = _MODEL_BYTES
    for name in names:
        left -= len(name.encode("utf-8", "replace"))
        if left < 0 or len(kept) == _MOST_MODELS:
            break
        kept[name] = None
    return sorted(kept)


def _instance(tx: Tx) -> str:
    """A name for this instance, made once and kept."""
    known = settings.get(tx, "instance")
    if known is None:
        known = f"pylon-{entropy.random_bytes(8).hex()}"
        settings.put(tx, "instance", known)
    return known
