"""The words so far of a job, as kind 7000 ``partial`` (NIP-90): what relays bear, and no more.

A partial repeats all words so far, so that who misses one misses nothing; the longer they are the rarer it is. It is
kept nowhere, and nothing depends on it. All jobs together share one rate, and words that are too many for the smallest
relay's limit are told by the result alone. While the payment for them is only held, nothing is told: whoever has the
words could take the money back.
"""

from __future__ import annotations

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import EventInvalid
from protocols.nip90 import JobInvalid
from pylon.clock import Clock
from pylon.provider.replies import compose_partial
from pylon.provider.sale import Sale, SaleState
from pylon.relays.pool import RelayPool

_SECONDS = 0.5
"""Between two partials of a job, at least: what the limits of public relays bear."""
_CHARS_A_SECOND = 4_000
"""Of all words so far: with more of them the time between two partials grows."""
_LONGEST = 12_000
"""Bytes of words that fit into 16 KiB, sealed: the smallest limit of a message that relays are known to have."""
_A_SECOND = 10.0
_BURST = 20.0
"""Of all jobs together."""


@attrs.define
class Rate:
    """A bucket that leaks; seconds of any one clock."""

    _level: float = 0.0
    _at: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether one more may go out now; it is counted then."""
        level = max(0.0, self._level - (now - self._at) * _A_SECOND)
        if level > _BURST - 1.0:
            return False
        self._level, self._at = level + 1.0, now
        return True


class Partials:
    """Tells the words so far of all jobs."""

    def __init__(self, *, secret: SecretKey, pool: RelayPool, clock: Clock) -> None:
        self._secret = secret
        self._pool = pool
        self._clock = clock
        self._rate = Rate()

    def of(self, sale: Sale) -> Telling:
        """Those of one attempt at a job."""
        return Telling(self, sale)

    async def _send(self, sale: Sale, text: str) -> None:
        try:
            partial = compose_partial(self._secret, sale, text, int(self._clock.now()))
        except (JobInvalid, EventInvalid):
            return
        await self._pool.send_ephemeral(partial)


class Telling:
    """The words so far of one attempt."""

    def __init__(self, partials: Partials, sale: Sale) -> None:
        self._partials = partials
        self._sale = sale
        self._silent = sale.state is SaleState.HELD
        self._next = trio.current_time() + _SECONDS

    async def tell(self, text: str) -> None:
        """Send them on, if it is time. ``text`` is all of them."""
        if self._silent:
            return
        now = trio.current_time()
        size = len(text.encode("utf-8", "replace"))
        if now < self._next or not text or size > _LONGEST or not self._partials._rate.allows(now):
            return
        self._next = now + max(_SECONDS, size / _CHARS_A_SECOND)
        await self._partials._send(self._sale, text)
