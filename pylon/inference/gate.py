"""The door of one backend: how many are inside, how many may wait, and whether it is open at all.

A backend that is busy is not broken: a full queue refuses (``BackendBusy``) and leaves the breaker as it is.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable
from pylon.inference import breaker as machine
from pylon.inference.breaker import Breaker, State

log = logging.getLogger(__name__)

_ALIVE = 30.0
"""Seconds for which a piece of an answer proves that its backend lives."""


class Visit:
    """One request inside. ``answered``: its answer came to its end, whoever leaves before the block does."""

    def __init__(self) -> None:
        self.answered = False


class Gate:
    """The door of the backend called ``name``.

    :param most: answers at the same time; ``None``: any number.
    :param queue: requests that may wait for their turn, in the order in which they came.
    """

    def __init__(self, name: str, *, most: int | None = None, queue: int = 64) -> None:
        self._name = name
        self._most = math.inf if most is None else most
        self._queue = queue
        self._waiting: deque[trio.Event] = deque()
        self.breaker = Breaker()
        self.active = 0
        self._sign_at = -math.inf

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def load(self) -> float:
        """How many are there for each who may be inside: what equals are compared by."""
        there = self.active + self.waiting
        return there / self._most if self._most < math.inf else there / 1e6

    @property
    def is_open(self) -> bool:
        """Whether the breaker lets anybody through now."""
        return self.breaker.lets_through(trio.current_time())

    @property
    def is_answering(self) -> bool:
        """Whether it has lately said a piece of an answer that is not over."""
        return self.active > 0 and trio.current_time() - self._sign_at <= _ALIVE

    def sign(self) -> None:
        """It has just said something."""
        self._sign_at = trio.current_time()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[Visit]:
        """Inside for as long as the block lasts, which is judged by how it ends.

        Raises ``BackendBusy`` where the queue is full, ``BackendUnavailable`` where the breaker is open.
        """
        self._check_breaker()
        await self._wait_for_turn()
        try:
            self._check_breaker()  # it may have opened while this request waited
            self.breaker, probe = machine.begin(self.breaker, trio.current_time())
            judged, visit = False, Visit()
            try:
                yield visit
                visit.answered = True
            except BackendBusy:
                raise
            except (BackendUnavailable, BackendTimeout):
                self._judge(machine.fail(self.breaker, trio.current_time(), probe=probe))
                judged = True
                raise
            finally:
                if visit.answered and not judged:
                    self._judge(machine.succeed(self.breaker, probe=probe))
                elif not judged:
                    self.breaker = machine.abandon(self.breaker, probe=probe)
        finally:
            self._leave()

    def _check_breaker(self) -> None:
        if not self.is_open:
            raise BackendUnavailable(f"{self._name} is left alone for a while: {self.why()}", "see the backend's log")

    def why(self) -> str:
        """Why the breaker is not closed, in words; empty if it is."""
        if self.breaker.state is State.CLOSED:
            return ""
        if self.breaker.state is State.PROBING:
            return f"it failed {self.breaker.failures} times in a row, and is being tried again"
        left = max(0.0, self.breaker.until - trio.current_time())
        return f"it failed {self.breaker.failures} times in a row; tried again in {left:.0f} s"

    def _judge(self, after: Breaker) -> None:
        before, self.breaker = self.breaker, after
        if after.state is State.OPEN and before.state is not State.OPEN:
            log.warning(
                "%s failed %d times in a row: left alone for %g s", self._name, after.failures, round(after.wait)
            )
        elif after.state is State.CLOSED and before.state is not State.CLOSED:
            log.info("%s answers again", self._name)

    async def _wait_for_turn(self) -> None:
        if self.active < self._most:
            self.active += 1
            return
        if len(self._waiting) >= self._queue:
            raise BackendBusy(
                f"{self._name} is busy: {self.active} answers under way, {self.waiting} requests waiting",
                "try again later",
            )
        turn = trio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._leave()  # the turn came, and its owner went
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        """Hand the place to whoever waits longest, so that nobody slips in between."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self.active -= 1
