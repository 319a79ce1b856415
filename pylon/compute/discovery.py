"""Who sells: announcements (NIP-89, kind 31990) found on the relays, and their ranking. Ranking is pure.

Announcements outlive who made them. A provider that has beaten (kind 11998) is passed over once its last sign of life
is 900 s old: an announcement, a beat, or a reply to a request of ours. One that never beats is believed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import attrs
import trio

from protocols import heartbeat
from protocols.nip01 import Filter
from protocols.nip89 import Announcement, AnnouncementInvalid, parse_announcement
from pylon.clock import Clock
from pylon.money import Msat, format_msat, max_fee
from pylon.relays.pool import RelayPool

ANNOUNCEMENT = 31990
FRESH_SECONDS = 5.0
"""How long announcements are believed. A price that has changed meanwhile is noticed by its quote."""
_MOST_ANNOUNCEMENTS = 500
_LEAST_SECONDS = 1.0
"""For the question about heartbeats, however long that about announcements took."""
_MOST_NAMES = 5
_LONGEST_NAME = 60


@attrs.frozen
class Offer:
    """A provider that fits, with the most that it may ask."""

    provider: str
    ceiling: Msat
    announced: bool


async def announcements(pool: RelayPool, kind: int, seconds: float) -> list[Announcement]:
    """Everybody who announces to serve ``kind``; one entry a provider and instance, the newest."""
    found = await pool.fetch(
        [Filter(kinds=[ANNOUNCEMENT], tags={"k": [str(kind)]}, limit=_MOST_ANNOUNCEMENTS)], timeout=seconds
    )
    parsed = []
    for event in found:
        try:
            parsed.append(parse_announcement(event))
        except AnnouncementInvalid:
            continue
    return parsed


class Market:
    """Who sells, as purchases ask: those that begin together share one question to the relays."""

    def __init__(self, pool: RelayPool, clock: Clock, kind: int, seconds: float) -> None:
        self._pool = pool
        self._clock = clock
        self._kind = kind
        self._seconds = seconds
        self._found: list[Announcement] = []
        self._asked = -math.inf
        self._asking = trio.Lock()
        self._beats: dict[str, int] = {}
        """The last beat of each provider that is announced and has ever beaten, Unix seconds."""
        self._replies: dict[str, int] = {}

    def heard(self, provider: str, created_at: int) -> None:
        """A provider that was asked has replied, whatever it said."""
        self._replies[provider] = max(created_at, self._replies.get(provider, 0))

    def remembered(self) -> list[Announcement]:
        """The last answer, if it is young: enough to begin with, and no reason to give up."""
        return self._found if trio.current_time() - self._asked < FRESH_SECONDS else []

    async def ask(self) -> list[Announcement]:
        """What the relays say now. A question that another purchase puts after this call counts for it as well."""
        called = trio.current_time()
        async with self._asking:
            if self._asked < called:
                asked = trio.current_time()
                found = await announcements(self._pool, self._kind, self._seconds)
                left = self._seconds - (trio.current_time() - asked)
                silent = await self._silent(found, max(left, _LEAST_SECONDS))
                self._found = [announcement for announcement in found if announcement.provider not in silent]
                self._asked = asked
            return self._found

    async def _silent(self, found: list[Announcement], seconds: float) -> set[str]:
        """Those of these providers that beat once, and do so no more."""
        oldest = self._clock.now() - heartbeat.SILENT_SECONDS
        self._replies = {provider: at for provider, at in self._replies.items() if at >= oldest}
        fresh = {announcement.provider for announcement in found if announcement.created_at >= oldest}
        known = {announcement.provider for announcement in found}
        self._beats = {provider: at for provider, at in self._beats.items() if provider in known}
        doubtful = known - fresh - self._replies.keys()
        if not doubtful:
            return set()
        # By their names: nobody else's beats can crowd theirs out.
        asked = Filter(kinds=[heartbeat.KIND], authors=sorted(doubtful))
        for event in await self._pool.fetch([asked], timeout=seconds):
            self._beats[event.pubkey] = max(event.created_at, self._beats.get(event.pubkey, 0))
        return {provider for provider in doubtful if self._beats.get(provider, math.inf) < oldest}


def rank(
    found: Iterable[Announcement],
    *,
    bid: Msat,
    model: str | None,
    network: str,
    excluded: Iterable[str],
    wanted: str | None,
    distrusted: Iterable[str] = (),
) -> list[Offer]:
    """Providers that fit, cheapest first; price and the fee that goes with it count, then the newest announcement.

    An announcement without a price may ask up to the bid and ranks as if it did. A provider that was named
    (``wanted``) is asked even if it announced nothing. Those ``distrusted`` come last, whatever they ask.
    """
    barred, doubtful = set(excluded), set(distrusted)
    best: dict[str, tuple[bool, int, int, str, Offer]] = {}
    heard = False
    for announcement in found:
        provider = announcement.provider
        if provider in barred or (wanted is not None and provider != wanted):
            continue
        heard = True
        if announcement.network and announcement.network != network:
            continue
        if model is not None and model not in announcement.models:
            continue
        price = bid if announcement.price_msats is None else Msat(announcement.price_msats)
        if price > bid:
            continue
        key = (provider in doubtful, price + max_fee(price), -announcement.created_at, provider)
        if provider not in best or key < best[provider][:4]:
            best[provider] = (*key, Offer(provider, price, announced=True))
    if wanted is not None and not heard and wanted not in barred:
        return [Offer(wanted, bid, announced=False)]
    return [entry[4] for entry in sorted(best.values(), key=lambda entry: entry[:4])]


def why_none(
    found: Iterable[Announcement],
    *,
    bid: Msat,
    model: str | None,
    network: str,
    tried: Collection[str],
    own: str,
    wanted: str | None,
) -> str:
    """Why ``rank`` has nobody to offer, in words for the buyer: what would have to be otherwise."""
    theirs = [announcement for announcement in found if announcement.provider != own]
    if wanted is not None:
        if wanted == own:
            return "the provider that was named is the buyer, and nobody buys from itself"
        theirs = [announcement for announcement in theirs if announcement.provider == wanted]
        if not theirs:
            return f"the provider that was named{' was tried, and' if wanted in tried else ''} announces nothing"
    if not theirs:
        return _all_tried(tried) if tried else "no provider announces itself on the relays"
    here = [announcement for announcement in theirs if announcement.network in ("", network)]
    if not here:
        return f"nobody sells on {network} (announced: {_listing(announcement.network for announcement in theirs)})"
    fitting = [announcement for announcement in here if model is None or model in announcement.models]
    if not fitting:
        served = _listing(name for announcement in here for name in announcement.models)
        return f"nobody serves model {model!r} (served: {served or 'none'})"
    fresh = [announcement for announcement in fitting if announcement.provider not in tried]
    prices = [announcement.price_msats for announcement in fresh if announcement.price_msats is not None]
    if not prices:
        return _all_tried(tried)
    asked = (
        f"the cheapest{' other' if tried else ''} asks {format_msat(Msat(min(prices)))}, the bid is {format_msat(bid)}"
    )
    return f"{_all_tried(tried)}; {asked}" if tried else asked


def _all_tried(tried: Collection[str]) -> str:
    return f"all {len(tried)} that fit were tried" if len(tried) > 1 else "the only one that fits was tried"


def _listing(names: Iterable[str]) -> str:
    """A few of these names, which are strangers' words: cut, and with nothing that a terminal obeys."""
    every = sorted(set(names))
    shown = ", ".join(repr(name[:_LONGEST_NAME]) for name in every[:_MOST_NAMES])
    return f"{shown} and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else shown
