"""Who sells on the relays, for people to see: everybody who announces, and what was last heard of each.

Nothing is bought here and nobody is passed over: ``pylon.compute.discovery`` judges for a purchase, this shows.
"""

from __future__ import annotations

import enum
import math

import attrs
import trio

from protocols import heartbeat, nip89
from protocols.keys import PublicKey
from protocols.nip01 import Event, Filter
from protocols.nip19 import encode_npub
from protocols.nip89 import Announcement, AnnouncementInvalid, parse_announcement
from protocols.nip90 import JOB_TEXT
from pylon.clock import Clock
from pylon.compute.board import AHEAD_SECONDS
from pylon.relays.connection import ConnectionState
from pylon.relays.pool import RelayPool

MOST = 500
"""Announcements that are looked at, the newest."""
_CONNECT_SHARE = 0.5
"""Of the whole time, for relays to be connected: those that are not by then are not asked."""


class Pulse(enum.StrEnum):
    """What a provider's silence means."""

    ALIVE = "alive"
    """It was heard within three beats."""
    SILENT = "silent"
    """It has beaten, and does so no more: nobody buys from it."""
    UNKNOWN = "unknown"
    """It never beats, and its announcement is old: it may be there or not."""


@attrs.frozen
class Seller:
    """One announcement, and what was heard of whoever made it. Times are Unix seconds."""

    announcement: Announcement
    last_heard: int
    pulse: Pulse

    @property
    def npub(self) -> str:
        return encode_npub(PublicKey.from_hex(self.announcement.provider))


@attrs.frozen
class Swarm:
    """What the relays say.

    ``relays``: those that were asked, and whether each answered in time; where none did, nothing is known.
    """

    sellers: tuple[Seller, ...]
    relays: dict[str, bool]


async def look(pool: RelayPool, clock: Clock, *, seconds: float) -> Swarm:
    """Everybody who announces to serve kind 5050, those who are alive first, then the cheapest. At most ``seconds``.

    An announcement without a price comes after those that name one.
    """
    end = trio.current_time() + seconds
    with trio.move_on_at(trio.current_time() + seconds * _CONNECT_SHARE):
        while any(status.state is ConnectionState.CONNECTING for status in pool.statuses()):
            await pool.wait_changed()
    asked = {url: pool.is_connected(url) for url in pool.urls}
    if not any(asked.values()):
        return Swarm((), asked)
    # Half of what is left: the beats are asked for afterwards, and come from the same relays.
    wanted = [Filter(kinds=[nip89.KIND], tags={"k": [str(JOB_TEXT)]}, limit=MOST)]
    announced = _read(await pool.fetch(wanted, timeout=(end - trio.current_time()) / 2))
    beats: dict[str, int] = {}
    if announced:
        keys = sorted({announcement.provider for announcement in announced})
        beating = [Filter(kinds=[heartbeat.KIND], authors=keys)]
        for event in await pool.fetch(beating, timeout=max(end - trio.current_time(), 0.0)):
            beats[event.pubkey] = max(event.created_at, beats.get(event.pubkey, 0))
    now = clock.now()
    sellers = [judge(announcement, beats.get(announcement.provider), now) for announcement in announced]
    return Swarm(tuple(sorted(sellers, key=_order)), asked)


def judge(announcement: Announcement, beat: int | None, now: float) -> Seller:
    """How it stands with a provider, by its announcement and its last beat."""
    heard = [at for at in (announcement.created_at, beat) if at is not None and at <= now + AHEAD_SECONDS]
    last = max(heard, default=0)
    return Seller(announcement, last, _pulse(last >= now - heartbeat.SILENT_SECONDS, beat))


def _pulse(heard: bool, beat: int | None) -> Pulse:
    if heard:
        return Pulse.ALIVE
    return Pulse.UNKNOWN if beat is None else Pulse.SILENT


def _read(events: list[Event]) -> list[Announcement]:
    found = []
    for event in events[:MOST]:
        try:
            found.append(parse_announcement(event))
        except AnnouncementInvalid:
            continue
    return found


_RANKS = {Pulse.ALIVE: 0, Pulse.UNKNOWN: 1, Pulse.SILENT: 2}


def _order(seller: Seller) -> tuple[int, float, int, str]:
    said = seller.announcement
    price = math.inf if said.price_msats is None else said.price_msats
    return _RANKS[seller.pulse], price, -seller.last_heard, said.provider
