"""Paid work only where it can be written down: the disk is watched, and so is whether the database takes writes.

When little space is left, or a write fails, what sells is stopped and its announcement taken back, while there is room
for that; open sales keep their rows, and nothing is quoted. When there is room again, it goes on where it was, and
what has been quarantined meanwhile for want of the disk is started again. All of it is said in the log and in
``pylon status``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from pylon import events
from pylon.clock import Clock
from pylon.errors import StoreError
from pylon.store import settings
from pylon.store.database import Store
from pylon.supervision import ChildState, ChildStatus, Supervisor

log = logging.getLogger(__name__)

LOW_BYTES = 32 << 20
"""Less, and nothing is sold: what is left is for ending what has begun."""
ENOUGH_BYTES = 64 << 20
"""From here on it is sold again: at the edge it shall not flap."""
EVERY = 5.0
"""Seconds between two looks."""
_PROVEN_FOR = 60.0
"""How long a database that took a write counts as one that does."""
_PROBE = "disk.written_at"


class DiskGuard:
    """See the module.

    :param directory: of the database.
    :param close: stop selling; must not raise ``StoreError``.
    :param open: sell again.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        clock: Clock,
        supervisor: Supervisor,
        *,
        close: Callable[[], Awaitable[None]],
        open: Callable[[], Awaitable[None]],
        free: Callable[[Path], int] | None = None,
        publish: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        self._store = store
        self._directory = directory
        self._clock = clock
        self._supervisor = supervisor
        self._close = close
        self._open = open
        self._free = free or free_bytes
        self._publish = publish
        self.reason = ""
        """Why no paid work is taken; empty: it is."""
        self._writes = store.writes
        self._failures = store.failures
        self._proven_at = float("-inf")
        self._quarantined: Sequence[str] = ()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await trio.sleep(EVERY)

    async def look(self) -> None:
        """Look once, and do what follows from it."""
        found = await self._problem()
        if found and not self.reason:
            self.reason = found
            log.error("no paid work is taken: %s", found)
            self._publish(events.DiskTrouble())
            self._quarantined = self._in_quarantine()
            await self._close()
        elif not found and self.reason:
            log.warning("paid work is taken again; before: %s", self.reason)
            self.reason = ""
            self._publish(events.DiskWell())
            for name in set(self._in_quarantine()) - set(self._quarantined):
                await self._supervisor.restart(name)
            await self._open()
        else:
            self.reason = found

    async def _problem(self) -> str:
        if self._store.damaged is not None:
            return self._store.damaged.message
        try:
            free = self._free(self._directory)
        except OSError as error:
            return f"the disk of {self._directory} does not answer: {error.strerror or type(error).__name__}"
        if free < (ENOUGH_BYTES if self.reason else LOW_BYTES):
            wanted = ENOUGH_BYTES if self.reason else LOW_BYTES
            return f"the disk of {self._directory} has {free >> 20} MiB left, {wanted >> 20} are wanted"
        if self._proven():
            return ""
        try:
            await self._store.write(lambda tx: settings.put(tx, _PROBE, str(int(self._clock.now()))))
        except StoreError as error:
            return error.message
        self._writes, self._proven_at = self._store.writes, self._clock.monotonic()
        return ""

    def _proven(self) -> bool:
        """Whether the database has taken a write lately, so that it need not be asked to."""
        now = self._clock.monotonic()
        if self._store.writes != self._writes:
            self._writes, self._proven_at = self._store.writes, now
        failed, self._failures = self._store.failures != self._failures, self._store.failures
        troubled = failed or any(
            child.state in (ChildState.WAITING, ChildState.QUARANTINED) for child in self._statuses()
        )
        return not self.reason and not troubled and now - self._proven_at < _PROVEN_FOR

    def _statuses(self) -> Sequence[ChildStatus]:
        return self._supervisor.statuses()

    def _in_quarantine(self) -> Sequence[str]:
        return [child.name for child in self._statuses() if child.state is ChildState.QUARANTINED]


def free_bytes(directory: Path) -> int:
    """What may still be written there by who we are."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
