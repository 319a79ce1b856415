"""Where replies are listened for: many owners, few subscriptions.

Rules
-----
1. Who expects a reply joins before it asks; ``listen`` returns when the relays were told. It leaves when nothing is
   expected any more.
2. Those that join at the same moment, on the same relays, share a subscription. Where many small ones have gathered,
   they are made into one: public relays bear about twenty on a connection, and no owner may go unheard because of the
   others.
3. The new subscription is there before the old ones go, and what an old one has in hand is handled to its end: an
   effect that follows from it must not be cut off. What comes twice by that is its consumer's business (the inbox).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import attrs
import trio

from protocols.nip01 import Filter
from protocols.nip90 import FEEDBACK, JOB_TEXT, result_kind
from pylon.relays.pool import Received, RelayPool
from pylon.relays.subscription import Subscription
from pylon.together import handle_together

MOST_TOGETHER = 200
"""Owners in one filter; relays bound the size of those."""
MOST_SMALL = 6
"""Small subscriptions on one set of relays; one more, and they become one."""

Relays = frozenset[str] | None
"""Where somebody listens; ``None``: everywhere."""


@attrs.define(eq=False)
class _Group:
    """One subscription, and since when whom it serves."""

    relays: Relays
    members: dict[str, int]
    subscription: Subscription | None = None
    open: trio.Event = attrs.field(factory=trio.Event)


class Replies:
    """See the module. ``run`` must be running.

    :param take: handles an event; what it raises ends ``run``.
    """

    def __init__(self, pool: RelayPool, take: Callable[[Received], Awaitable[None]]) -> None:
        self._pool = pool
        self._take = take
        self._nursery: trio.Nursery | None = None
        self._wanted: dict[str, Relays] = {}
        """Who listens, and where. The rest follows."""
        self._groups: dict[str, _Group] = {}
        """By member: the subscription that serves it."""
        self._joining: dict[Relays, _Group] = {}
        """Those who have joined in this round of the loop."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the subscriptions until cancelled; whoever has joined must join again in the next run."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._wanted.clear()
            self._groups.clear()
            self._joining.clear()

    async def listen(self, key: str, relays: Iterable[str] | None, since: int) -> None:
        """Hear what is addressed to this public key (hex) from ``since`` (Unix seconds) on.

        Who listens on these relays already goes on as it did.
        """
        where = None if relays is None else frozenset(relays)
        self._wanted[key] = where
        there = self._groups.get(key)
        if there is None or there.relays != where:
            assert self._nursery is not None, "nobody listens while nothing runs"
            joining = self._joining.get(where)
            if joining is None:
                joining = self._joining[where] = _Group(where, {})
                self._nursery.start_soon(self._open, joining)
            joining.members[key] = min(since, joining.members.get(key, since))
            there = joining
        await there.open.wait()

    def leave(self, key: str) -> None:
        """Expect nothing for this key any more."""
        self._wanted.pop(key, None)
        self._take_out(key)

    def subscriptions(self) -> int:
        """How many there are now."""
        return len(set(self._groups.values()))

    async def _open(self, joining: _Group) -> None:
        """Serve those who have joined, in as many subscriptions as it takes, together with what is small already."""
        del self._joining[joining.relays]
        members = self._worth_joining(joining.relays) | joining.members
        keys = list(members)
        async with trio.open_nursery() as nursery:
            for start in range(0, len(keys), MOST_TOGETHER):
                chunk = {key: members[key] for key in keys[start : start + MOST_TOGETHER]}
                await nursery.start(self._serve, _Group(joining.relays, chunk))
            joining.open.set()

    def _worth_joining(self, relays: Relays) -> dict[str, int]:
        """The members of the small subscriptions on these relays, if there are too many of those."""
        groups = dict.fromkeys(self._groups.values())
        small = [group for group in groups if group.relays == relays and len(group.members) < MOST_TOGETHER // 2]
        if len(small) < MOST_SMALL:
            return {}
        return {key: since for group in small for key, since in group.members.items()}

    async def _serve(self, group: _Group, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        filters = [Filter(kinds=[FEEDBACK, result_kind(JOB_TEXT)], tags={"p": list(group.members)})]
        since = min(group.members.values())
        async with self._pool.subscribe(filters, since=since, relays=group.relays) as group.subscription:
            for key in list(group.members):
                if key in self._wanted and self._wanted[key] == group.relays:
                    self._take_out(key)
                    self._groups[key] = group
                else:
                    # It has left while this was being made ready.
                    del group.members[key]
            group.open.set()
            task_status.started()
            if group.members:
                await handle_together(group.subscription, self._take)

    def _take_out(self, key: str) -> None:
        group = self._groups.pop(key, None)
        if group is not None:
            del group.members[key]
            if not group.members and group.subscription is not None:
                # Its task handles what it has in hand, and ends.
                group.subscription.end()
