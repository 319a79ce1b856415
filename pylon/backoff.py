"""How long to wait before trying again: ever longer, until what was tried has lasted."""

from __future__ import annotations

import random

import attrs

JITTER = 0.25
RESET_AFTER = 5
"""The waits start over when what was tried has lasted this many times as long as the last wait."""


@attrs.define
class Backoff:
    """The waits, in seconds, of one thing that is tried again and again: doubling from ``first`` to ``longest``.

    Each is jittered by up to ``jitter`` of itself, drawn from ``rng``, so that those who failed together do not all
    come back together.
    """

    rng: random.Random
    first: float = 1.0
    longest: float = 60.0
    jitter: float = JITTER
    _last: float = attrs.field(init=False, default=0.0)

    def wait(self, lasted: float) -> float:
        """Seconds to wait now, after it has lasted ``lasted`` seconds."""
        calm = self._last == 0 or lasted >= RESET_AFTER * self._last
        self._last = self.first if calm else min(self.longest, 2 * self._last)
        return self._last * self.rng.uniform(1 - self.jitter, 1 + self.jitter)
