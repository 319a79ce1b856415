"""Discovery: the market as this home sees it, kept live while somebody buys.

Rules
-----
1. Whoever buys, or has bought within ``KEPT_SECONDS``, keeps one subscription open: announcements (NIP-89, kind 31990),
   heartbeats (kind 11998) and what is taken back (kind 5). A purchase that finds somebody there asks no relay.
2. Where nothing is known, or nothing fits, the relays are asked afresh; purchases that ask together share one question.
3. Who is believed to be there is the business of ``pylon.compute.board``. Those in doubt are asked about by name, so
   that nobody else's beats can crowd theirs out.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import trio

from protocols import heartbeat, nip09
from protocols.nip01 import Event, Filter
from protocols.nip89 import KIND as ANNOUNCEMENT
from protocols.nip89 import Announcement
from pylon.clock import Clock
from pylon.compute.board import Board
from pylon.relays.pool import RelayPool
from pylon.relays.subscription import Subscription

FRESH_SECONDS = 5.0
"""How long an answer of the relays is believed while there is no subscription."""
KEPT_SECONDS = 600.0
"""How long after a purchase the market is still listened to."""
_MOST_ANNOUNCEMENTS = 500
_TAKEN_BACK_SECONDS = 7 * 86_400
"""How far back deletions are asked for: most relays heed those themselves."""
_LEAST_SECONDS = 1.0
"""For the question about heartbeats, however long that about announcements took."""
_LOOK_SECONDS = 60.0
"""At least so often those that fell silent are asked about."""


class Market:
    """See the module. While ``run`` is running, the market is kept live; without it, each question asks the relays.

    :param kind: of the jobs that are looked for.
    :param seconds: how long a question may take.
    """

    def __init__(self, pool: RelayPool, clock: Clock, kind: int, seconds: float) -> None:
        self._pool = pool
        self._clock = clock
        self._kind = kind
        self._seconds = seconds
        self._board = Board(kind)
        self._asked = -math.inf
        self._asking = trio.Lock()
        self._until = -math.inf
        """How long it is to be kept live, in Trio's time."""
        self._wanted = trio.Event()
        self._running = False
        self._live = False
        """All connected relays have shown what they have, and tell what is new."""
        self._changed = trio.Event()

    # --- the subscription -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the subscription while somebody buys, until cancelled."""
        self._running = True
        try:
            task_status.started()
            while True:
                await self._wanted.wait()
                async with self._pool.subscribe(self._filters()) as subscription:
                    await self._follow(subscription)
                self._forget()
        finally:
            self._running = False
            self._forget()

    def _forget(self) -> None:
        self._live, self._asked = False, -math.inf
        self._board.clear()
        self._tell()

    def want(self) -> None:
        """Somebody buys: keep it live for a while."""
        self._until = trio.current_time() + KEPT_SECONDS
        self._wanted.set()

    async def _follow(self, subscription: Subscription) -> None:
        """Take what comes, as long as it is wanted."""
        while (left := self._until - trio.current_time()) > 0:
            progress = subscription.progress
            changed = self._take(subscription.drain())
            if self._pool.all_stored(subscription):
                if self._board.doubtful(self._clock.now()):
                    await self._resolve(self._board.doubtful(self._clock.now()), _LEAST_SECONDS)
                    continue
                changed = changed or not self._live
                self._live = True
            elif self._live and not self._pool.any_connected():
                self._live = False
            if changed:
                self._tell()
            with trio.move_on_after(min(left, _LOOK_SECONDS)):
                await progress.wait()
        self._wanted = trio.Event()

    def _filters(self) -> list[Filter]:
        now = int(self._clock.now())
        return [
            Filter(kinds=[ANNOUNCEMENT], tags={"k": [str(self._kind)]}, limit=_MOST_ANNOUNCEMENTS),
            Filter(kinds=[heartbeat.KIND], since=now - heartbeat.SILENT_SECONDS, limit=_MOST_ANNOUNCEMENTS),
            Filter(
                kinds=[nip09.KIND],
                tags={"k": [str(ANNOUNCEMENT)]},
                since=now - _TAKEN_BACK_SECONDS,
                limit=_MOST_ANNOUNCEMENTS,
            ),
        ]

    def _take(self, events: Collection[Event]) -> bool:
        now = self._clock.now()
        changed = [self._board.take(event, now) for event in events]
        return any(changed)

    async def _resolve(self, names: Collection[str], seconds: float) -> None:
        """Ask about these by their names. Whoever shows no beat has never beaten."""
        if names:
            asked = Filter(kinds=[heartbeat.KIND], authors=sorted(names))
            self._board.asked(names, await self._pool.fetch([asked], timeout=seconds), self._clock.now())

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what is asked of it ----------------------------------------------------------------------------------

    def favour(self, providers: Collection[str]) -> None:
        """Whom we have bought from: no crowd of others pushes them out."""
        self._board.favour(providers)

    def heard(self, provider: str, created_at: int) -> None:
        """A provider that was asked has replied, whatever it said."""
        self._board.replied(provider, created_at, self._clock.now())

    def remembered(self) -> list[Announcement]:
        """Who sells, as far as it is known without asking anybody: enough to begin with, no reason to give up."""
        if self._live or trio.current_time() - self._asked < FRESH_SECONDS:
            return self._board.announced(self._clock.now())
        return []

    async def ask(self) -> list[Announcement]:
        """What the relays say now. A question that another purchase puts after this call counts for it as well."""
        called = trio.current_time()
        self.want()
        async with self._asking:
            if self._asked < called:
                asked = trio.current_time()
                if self._running and not self._live:
                    # The subscription asks the same.
                    await self._until_live()
                else:
                    found = await self._pool.fetch(self._filters()[:1], timeout=self._seconds)
                    if not self._running:
                        self._board.clear()
                    self._take(found)
                now = self._clock.now()
                left = asked + self._seconds - trio.current_time()
                await self._resolve(self._board.doubtful(now) | self._board.silent(now), max(left, _LEAST_SECONDS))
                self._asked = asked
            return self._board.announced(self._clock.now())

    async def _until_live(self) -> None:
        with trio.move_on_after(self._seconds):
            while not self._live:
                await self._changed.wait()

    async def changed(self) -> None:
        """Until something is otherwise."""
        await self._changed.wait()
