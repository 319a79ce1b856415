"""Who of a home expects replies, and since when those matter.

Replies to an owner are listened for only while it has something to expect, and from before its request goes out. What
ended ``lost`` within a day is remembered then, too. To the home one always listens.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from pylon.clock import Clock
from pylon.compute.account import Account, Accounts
from pylon.compute.purchase import PURCHASE, PurchaseState
from pylon.compute.replies import Replies
from pylon.errors import StoreError, brief
from pylon.relays.pool import Received, RelayPool
from pylon.relays.subscription import OVERLAP
from pylon.store import cursors
from pylon.store.database import Store

log = logging.getLogger(__name__)

HOPE = 86_400.0
"""Seconds for which what was lost is listened for."""
_UNFINISHED = tuple(state.value for state in PURCHASE.states() if state not in PURCHASE.final)
_IS_UNFINISHED = f"state IN ({','.join('?' * len(_UNFINISHED))})"


class Listening:
    """See the module. ``run`` must be running.

    :param consumer: whose cursor says how far the home's replies were read.
    :param take: handles a reply.
    """

    def __init__(
        self,
        accounts: Accounts,
        store: Store,
        pool: RelayPool,
        clock: Clock,
        consumer: str,
        take: Callable[[Received], Awaitable[None]],
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._consumer = consumer
        self._replies = Replies(pool, take)
        self._listening: dict[str, str] = {}
        """Owners that expect something, and their keys."""
        self._ended: set[str] = set()
        """Owners of which a purchase has ended."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for all who were waiting when this home went down, and then for those that begin to."""
        self._listening.clear()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._replies.run)
            await self._listen_again()
            await nursery.start(self._leave_in_time)
            task_status.started()

    def since(self, owner: str) -> int:
        """From when on replies to an owner matter: its oldest purchase that is unfinished, or was lost just now."""
        now = self._clock.now()
        row = self._store.one(
            f"SELECT MIN(created_at) AS at FROM purchases WHERE owner = ? AND ({_IS_UNFINISHED}"
            " OR (state = ? AND updated_at > ?))",
            (owner, *_UNFINISHED, PurchaseState.LOST.value, now - HOPE),
        )
        oldest = now if row is None or row["at"] is None else min(row["at"], now)
        since = max(int(oldest) - OVERLAP, 0)
        read = None if owner else cursors.since(self._store, self._consumer, OVERLAP)
        return since if read is None else min(since, read)

    async def listen(self, account: Account) -> None:
        """See to it that replies to an owner are heard."""
        if account.owner:
            key = self._listening[account.owner] = account.secret.public.hex
            await self._replies.listen(key, account.relays or None, self.since(account.owner))

    def ended(self, owner: str) -> None:
        """A purchase of this owner has ended; it may expect nothing more."""
        if owner:
            self._ended.add(owner)

    async def _listen_again(self) -> None:
        waiting = self._store.read(
            f"SELECT DISTINCT owner FROM purchases WHERE owner <> '' AND {_IS_UNFINISHED}", _UNFINISHED
        )
        async with trio.open_nursery() as nursery:
            for row in waiting:
                try:
                    nursery.start_soon(self.listen, self._accounts(row["owner"]))
                except Exception as error:
                    log.warning("nobody listens for %s: %s", row["owner"][:16], brief(error))

    async def _leave_in_time(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stop listening for those that expect nothing any more."""
        with self._store.listen("purchases") as changed:
            task_status.started()
            while True:
                await changed.receive()
                try:
                    for owner in self._ended & self._listening.keys():
                        if not self._expects(owner):
                            self._replies.leave(self._listening.pop(owner))
                    self._ended.clear()
                except StoreError as error:
                    log.error("cannot tell who still expects a reply: %s", error.message)

    def _expects(self, owner: str) -> bool:
        return (
            self._store.one(
                f"SELECT 1 FROM purchases WHERE owner = ? AND {_IS_UNFINISHED} LIMIT 1", (owner, *_UNFINISHED)
            )
            is not None
        )
