"""A loop that does not turn is seen from outside: a thread says where it hangs, while it hangs.

Everything in the daemon waits for one thread. What computes or blocks in it for more than a second keeps relays,
wallets and people waiting, and no task can tell, for none runs. The stack is told as files, lines and functions: no
value of ours is ever in a log.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import trio

from pylon import events

log = logging.getLogger(__name__)

LIMIT = 1.0
"""Seconds without a turn that are told."""
_EVERY = 0.5
_FRAMES = 12
"""Of the stack, the innermost."""


class StallWatch:
    """See the module. One instance a loop; ``limit`` and ``every`` in seconds.

    ``publish`` is told when the loop turns again: while it hangs, only the log can be.
    """

    def __init__(
        self,
        limit: float = LIMIT,
        every: float = _EVERY,
        publish: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        self._limit = limit
        self._every = every
        self._publish = publish
        self._told = 0
        self._turned = time.monotonic()
        self._over = threading.Event()
        self.stalls = 0

    async def run(self) -> None:
        """Until cancelled."""
        loop = threading.get_ident()
        self._turned = time.monotonic()
        thread = threading.Thread(target=self._watch, args=(loop,), name="stalls", daemon=True)
        thread.start()
        try:
            while True:
                await trio.sleep(self._every)
                hung, self._turned = time.monotonic() - self._turned, time.monotonic()
                if self.stalls > self._told:
                    # Counted by the thread, which knows a loop that hangs from a machine that slept.
                    self._told = self.stalls
                    self._publish(events.DaemonStall(seconds=round(hung, 1)))
        finally:
            self._over.set()

    def _watch(self, loop: int) -> None:
        told: float | None = None
        looked = time.monotonic()
        while not self._over.wait(self._every):
            now, turned = time.monotonic(), self._turned
            if now - looked > self._every + self._limit:
                # This thread was not run either: the whole process, or the machine, was stopped. That is no stall.
                self._turned = now
            elif told is not None and turned != told:
                log.warning("the loop turns again after %.1f s", turned - told)
                told = None
            elif told is None and now - turned > self._limit + self._every:
                told = turned
                self.stalls += 1
                log.error("the loop has not turned for %.1f s, in: %s", now - turned, _where(loop))
            looked = now


def _where(thread: int) -> str:
    frame: FrameType | None = sys._current_frames().get(thread)
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(found)
