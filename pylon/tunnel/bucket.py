"""How fast something may come: so many at once, and then so many a second (a token bucket)."""

from __future__ import annotations

import attrs
import trio


@attrs.define
class Bucket:
    """Full at first. Time is Trio's."""

    burst: float
    rate: float
    """A second."""
    _left: float = attrs.field(init=False)
    _at: float = attrs.field(init=False, factory=trio.current_time)

    def __attrs_post_init__(self) -> None:
        self._left = self.burst

    def take(self) -> float:
        """Take one; returns the seconds after which it will have been there, 0 if it is."""
        now = trio.current_time()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        self._left -= 1
        return max(0.0, -self._left / self.rate)

    def take_now(self) -> float:
        """Take one if it is there; otherwise none, and returns the seconds until it will be."""
        wait = self.take()
        if wait:
            self._left += 1
        return wait
