"""How many quotes are open at a time, and whose: the rules of the quote book. Pure.

Rules
-----
1. A quote costs us an invoice, a few rows and an event; a stranger's key costs nothing. So the book has an end
   (``most``), and so has what one customer may hold of it (``each``).
2. The fuller the book, the less a stranger may hold: from half full on ever fewer, in the end one; and long requests
   are not heard. So many keys that ask much leave room for one that asks little.
3. Strangers are heard at a bounded rate. Above it a stranger who holds a quote already gets no other; far above it
   all of them wait for their turn.
4. A full book makes room for a newcomer by giving up its oldest quote, if that had its time (``young``) to be paid:
   never a fresh one, never one that is paid. It is refusing a newcomer or giving up on somebody who has not paid for a
   minute, and who loses nothing: an invoice that was pushed out can be paid as long as it is valid, and is served.
5. Whoever has ever paid is no stranger: held back by ``each`` alone, and never pushed out. Who is trusted is held back
   by nothing.

What is not heard gets no answer and leaves no trace, else a flood of requests would leave one.
"""

from __future__ import annotations

import attrs

_STRANGERS_A_SECOND = 30.0
_BURST = 300.0
"""Strangers' requests that may come at once before they are rationed."""
_FAR_ABOVE = 4
"""With so many times that, strangers wait."""
_LONG = 8_192
"""Characters of a request that are too many from a stranger when the book is half full."""


@attrs.frozen
class Book:
    """The rules with their numbers. ``most`` and ``each`` are sales for which nothing was paid yet."""

    most: int
    each: int
    young: float = 60.0
    """Seconds in which a quote is never pushed out."""

    def share(self, total: int) -> int:
        """How many a stranger may hold, while ``total`` are open."""
        if 2 * total <= self.most:
            return self.each
        return max(1, self.each * 2 * (self.most - total) // self.most)

    def hears(self, *, total: int, mine: int, size: int = 0, known: bool = False, rationed: bool = False) -> bool:
        """Whether there is room for one more, ``mine`` being those of its customer.

        A full book hears a stranger nevertheless; it must then push one out, or not take the request.
        """
        if known:
            return mine < self.each
        if 2 * total > self.most and size > _LONG:
            return False
        return mine < (1 if rationed else self.share(total))

    def is_full(self, total: int) -> bool:
        return total >= self.most


@attrs.define
class Ration:
    """The rate at which strangers are heard: a bucket that leaks. Times in seconds, of any one clock."""

    _level: float = 0.0
    _at: float = float("-inf")

    def level(self, now: float) -> float:
        return max(0.0, self._level - max(0.0, now - self._at) * _STRANGERS_A_SECOND) if self._level else 0.0

    def is_short(self, now: float) -> bool:
        """Strangers are rationed."""
        return self.level(now) >= _BURST

    def wait(self, now: float) -> float:
        """Seconds that a stranger is to wait before it is heard."""
        return max(0.0, self.level(now) - _FAR_ABOVE * _BURST) / _STRANGERS_A_SECOND

    def take(self, now: float) -> None:
        """A stranger was heard."""
        self._level, self._at = self.level(now) + 1.0, now
