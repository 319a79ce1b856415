"""All relays of a home as one: subscriptions multiplexed over one connection each, every event verified once.

An id counts as verified only after its signature was checked, and then the same signature is not checked again; the id
itself is recomputed each time, so that nobody can pass off other content under a known id. Delivery is never
deduplicated between consumers: each has its own key in the inbox.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, EventInvalid, Filter, event_id, newer
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.connection import Connection, ConnectionState, RelayStatus, Verdict
from pylon.relays.information import Inform
from pylon.relays.subscription import Received, Subscription
from pylon.relays.transport import Connect

__all__ = ["Received", "RelayPool", "Subscription"]

_VERIFIED = 50_000
_FETCHED = 50_000
"""Where ``fetch`` stops, whatever more there is."""
PUBLISH_SECONDS = 10.0
CLOCK_SECONDS = 60.0
"""Between two looks at the wall clock."""
CLOCK_JUMP = 60.0
"""Seconds by which it has been set, and not just drifted."""

log = logging.getLogger(__name__)


class RelayPool:
    """See the module. ``run`` must be running for anything to happen."""

    def __init__(
        self,
        urls: Iterable[str],
        *,
        connect: Connect,
        clock: Clock,
        rng: random.Random,
        signer: SecretKey | None = None,
        inform: Inform | None = None,
        on_turn: Callable[[str, bool], None] = lambda url, connected: None,
    ) -> None:
        """``inform`` brings the NIP-11 documents, whose limits are held; without it none are known.

        ``on_turn`` is told which relay has come, or is gone; it must not wait.
        """
        self._connect = connect
        self._inform = inform
        self._clock = clock
        self._rng = rng
        self._signer = signer
        self._subscriptions: dict[str, Subscription] = {}
        self._names = 0
        self._verified: OrderedDict[str, str] = OrderedDict()
        self.verifications = 0
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[str, trio.CancelScope] = {}
        self._changed = trio.Event()
        self._on_turn = on_turn
        self._there: set[str] = set()
        """The relays of which ``on_turn`` was told that they are connected."""
        self._connections = {url: self._connection(url) for url in dict.fromkeys(urls)}

    @property
    def urls(self) -> list[str]:
        return list(self._connections)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all connections until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for connection in self._connections.values():
                    self._start(connection)
                task_status.started()
                await self._watch_clock()
        finally:
            self._nursery = None
            self._scopes.clear()

    def add_relay(self, url: str) -> None:
        if url not in self._connections:
            self._connections[url] = self._connection(url)
            self._start(self._connections[url])
            self._tell()

    def remove_relay(self, url: str) -> None:
        self._connections.pop(url, None)
        scope = self._scopes.pop(url, None)
        if scope is not None:
            scope.cancel()
        self._turn(url, False)
        self._tell()

    def statuses(self) -> list[RelayStatus]:
        return [connection.status for connection in self._connections.values()]

    async def connected(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until ``count`` relays are connected. Raises ``RelayError`` after ``timeout`` seconds."""
        with trio.move_on_after(timeout):
            while sum(connection.connected for connection in self._connections.values()) < count:
                await self._changed.wait()
            return
        raise RelayError(
            f"no connection to {count} of {len(self._connections)} relays within {timeout:g} s", "pylon status"
        )

    async def wait_changed(self) -> None:
        """Until a connection comes or goes."""
        await self._changed.wait()

    def is_connected(self, url: str) -> bool:
        connection = self._connections.get(url)
        return connection is not None and connection.connected

    def any_connected(self) -> bool:
        return any(connection.connected for connection in self._connections.values())

    # --- reading ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self,
        filters: Sequence[Filter],
        *,
        since: int | None = None,
        relays: Iterable[str] | None = None,
        fleeting: bool = False,
    ) -> AsyncIterator[Subscription]:
        """Verified events that match, stored ones from ``since`` on (Unix seconds) and live ones, from every relay.

        ``fleeting``: it ends when what is stored has come.
        """
        self._names += 1
        wanted = None if relays is None else set(relays)
        subscription = Subscription(f"p{self._names}", list(filters), since, wanted, self._clock, self._resume)
        subscription.fleeting = fleeting
        self._subscriptions[subscription.id] = subscription
        try:
            for url, connection in self._connections.items():
                if subscription.wants(url):
                    connection.ask(subscription)
            yield subscription
        finally:
            del self._subscriptions[subscription.id]
            subscription.end()
            for connection in self._connections.values():
                connection.forget(subscription)

    async def fetch(
        self, filters: Sequence[Filter], timeout: float, relays: Iterable[str] | None = None
    ) -> list[Event]:
        """What the connected relays have stored, newest version of each address only, newest first.

        Waits for every connected relay, at most ``timeout`` seconds; while none is connected, for the first one.
        """
        kept: dict[str, Event] = {}
        async with self.subscribe(filters, relays=relays, fleeting=True) as subscription:
            with trio.move_on_after(timeout):
                # Read as it comes: what waits in the subscription is bounded, what a relay has stored is not.
                while not self.all_stored(subscription) and len(kept) < _FETCHED:
                    await subscription.progress.wait()
                    _merge(kept, subscription.drain())
            _merge(kept, subscription.drain())
        return sorted(kept.values(), key=lambda event: (-event.created_at, event.id))

    def all_stored(self, subscription: Subscription) -> bool:
        """Whether all connected relays have sent what they had stored for it; not while none is connected."""
        asked = [
            url for url, connection in self._connections.items() if connection.connected and subscription.wants(url)
        ]
        return bool(asked) and all(subscription.stored_from(url) for url in asked)

    # --- writing ----------------------------------------------------------------------------------------------

    async def publish(self, url: str, event: Event, timeout: float = PUBLISH_SECONDS) -> Verdict:
        """Hand an event to one relay and return its answer. Raises ``RelayError`` where there was none."""
        return await self._named(url).publish(event, timeout)

    async def publish_frame(self, url: str, event_id: str, frame: str, timeout: float = PUBLISH_SECONDS) -> Verdict:
        """``publish`` for an event that is encoded already."""
        return await self._named(url).publish_frame(event_id, frame, timeout)

    async def send_ephemeral(self, event: Event) -> None:
        """Hand an event to every connected relay, without waiting for anybody's answer."""
        await trio.lowlevel.checkpoint()
        for connection in self._connections.values():
            if connection.connected:
                connection.send_event_soon(event)

    # --- within -----------------------------------------------------------------------------------------------

    def _named(self, url: str) -> Connection:
        connection = self._connections.get(url)
        if connection is None:
            raise RelayError(f"{url}: not a relay of this pool")
        return connection

    def _connection(self, url: str) -> Connection:
        return Connection(
            url,
            connect=self._connect,
            clock=self._clock,
            rng=self._rng,
            subscriptions=lambda: [entry for entry in self._subscriptions.values() if entry.wants(url)],
            admit=self._admit,
            changed=lambda: self._moved(url),
            signer=self._signer,
            inform=self._inform,
        )

    def _start(self, connection: Connection) -> None:
        if self._nursery is not None:
            # Made here and not in the task, so that a relay can be removed before its task has begun.
            scope = self._scopes[connection.url] = trio.CancelScope()
            self._nursery.start_soon(self._keep, connection, scope)

    async def _keep(self, connection: Connection, scope: trio.CancelScope) -> None:
        with scope:
            await connection.run()

    def _resume(self, subscription: Subscription, urls: list[str]) -> None:
        for url in urls:
            if url in self._connections:
                self._connections[url].ask(subscription)

    def _moved(self, url: str) -> None:
        connection = self._connections.get(url)
        ending = trio.current_effective_deadline() == float("-inf")  # we go, and not the relay
        if connection is not None and not ending:
            self._turn(url, connection.connected and connection.status.state is ConnectionState.CONNECTED)
        self._tell()

    def _turn(self, url: str, connected: bool) -> None:
        if connected and url not in self._there:
            self._there.add(url)
            self._on_turn(url, True)
        elif not connected and url in self._there:
            self._there.discard(url)
            self._on_turn(url, False)

    async def _watch_clock(self) -> None:
        """When the wall clock was set, forwards or back, ask for everything again: what a relay was asked for, and
        what it is silent about, was reckoned from a time that was wrong."""
        before = self._clock.now() - self._clock.monotonic()
        while True:
            await trio.sleep(CLOCK_SECONDS)
            offset = self._clock.now() - self._clock.monotonic()
            if abs(offset - before) >= CLOCK_JUMP:
                log.warning("the clock was set by %+.0f s: relays are asked again", offset - before)
                for subscription in self._subscriptions.values():
                    subscription.clock_jumped(offset - before)
                    self._resume(subscription, [url for url in self._connections if subscription.wants(url)])
            before = offset

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for subscription in self._subscriptions.values():
            subscription.tell()

    def _admit(self, event: Event) -> bool:
        try:
            if self._verified.get(event.id) == event.sig:
                return event.id == event_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
            self.verifications += 1
            event.check()
        except EventInvalid:
            return False
        self._verified[event.id] = event.sig
        if len(self._verified) > _VERIFIED:
            self._verified.popitem(last=False)
        return True


def _merge(kept: dict[str, Event], events: list[Event]) -> None:
    """Add events, of each address only the version that counts."""
    for event in events:
        key = event.address or event.id
        kept[key] = newer(kept[key], event) if key in kept else event
