"""The one clock: wall time and monotonic time, virtual together in simulations.

Nothing in Pylon calls ``time.time()`` directly; it is handed a ``Clock``.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio


class Clock(Protocol):
    """What whoever needs the time is given."""

    def now(self) -> float:
        """Wall time: seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow; the timescale of Trio's deadlines."""
        ...


class SystemClock:
    """The real one. Its monotonic time is Trio's, and wants a Trio run."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return trio.current_time()


class VirtualClock:
    """Wall time derived from Trio's clock, so that a ``MockClock`` moves both.

    ``skew`` lets a test jump the wall clock alone, as an NTP correction does.
    """

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        self.epoch = epoch
        self.skew = 0.0

    def now(self) -> float:
        return self.epoch + self.skew + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()
