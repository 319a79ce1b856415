"""The embedded relay: what a Nostr relay does, whatever carries its frames.

``open_relay`` gives a ``Relay``; ``Relay.serve`` looks after one client for as long as it is connected. The order of
things is what a client may rely on:

* An event is checked (id, signature, age), kept, committed, and only then answered with ``OK true`` and passed on.
  Events that arrive together share a commit.
* A REQ is answered with what is committed, then EOSE; from there on every event committed later, none twice.
* Nobody waits for a slow client. What it has not read is buffered up to a bound; beyond that it is cut off, and may
  come back and ask again.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from typing import Protocol

import attrs
import orjson
import trio

from protocols.nip01 import (
    ClientClose,
    ClientEvent,
    ClientReq,
    Event,
    EventInvalid,
    Filter,
    FrameInvalid,
    RelayClosed,
    RelayEose,
    RelayNotice,
    RelayOk,
    parse_client_frame,
    peek_event_id,
)
from pylon.clock import Clock
from pylon.errors import StoreError, brief
from pylon.relays.eventstore import EventStore, Outcome
from pylon.relays.fanout import SubscriptionIndex
from pylon.relays.transport import TransportClosed

log = logging.getLogger(__name__)

_GROUP_LIMIT = 256
_REPLY_WATER = 1_048_576

_ANSWERS: dict[Outcome, tuple[bool, str]] = {
    Outcome.STORED: (True, ""),
    Outcome.REPLACED: (True, ""),
    Outcome.EPHEMERAL: (True, ""),
    Outcome.DUPLICATE: (True, "duplicate: this event is stored already"),
    Outcome.OLDER: (False, "duplicate: a newer version is stored"),
    Outcome.EXPIRED: (False, "invalid: the event has expired"),
    Outcome.DELETED: (False, "blocked: its author has deleted this event"),
}
_NEWS = frozenset({Outcome.STORED, Outcome.REPLACED, Outcome.EPHEMERAL})


@attrs.frozen
class Limits:
    """What one client may ask for. Lengths in bytes of UTF-8, times in seconds."""

    max_message_length: int = 262_144
    max_subscriptions: int = 1_000
    max_subid_length: int = 64
    max_filters: int = 20
    max_filter_values: int = 5_000
    """Ids, authors, kinds and tag values of one filter together."""
    max_limit: int = 500
    created_at_upper_limit: int = 900
    max_buffered: int = 8_388_608
    """What a client may leave unread before it is cut off."""
    ping_interval: float = 30.0
    ping_timeout: float = 20.0


class ClientLink(Protocol):
    """A client's connection as the relay sees it. All raise ``TransportClosed`` once it is gone.

    Whoever opened it closes it, when ``Relay.serve`` has returned.
    """

    async def receive(self) -> str:
        """The next text frame."""
        ...

    async def send_many(self, frames: Sequence[str]) -> None:
        """Hand over text frames in order; blocks while the client does not read."""
        ...

    async def ping(self) -> None:
        """Return when the client's pong has come."""
        ...


@attrs.define
class Counters:
    """What a relay has done since it started."""

    clients: int = 0
    accepted: int = 0
    refused: int = 0
    delivered: int = 0
    cut_off: int = 0


@attrs.define(eq=False)
class _Client:
    link: ClientLink
    scope: trio.CancelScope
    max_buffered: int
    subscriptions: dict[str, str] = attrs.field(factory=dict)
    """Subscription id -> how a frame of it begins."""
    cut_off: bool = False
    _frames: deque[str] = attrs.field(factory=deque)
    _buffered: int = 0
    _filled: trio.Event = attrs.field(factory=trio.Event)
    _drained: trio.Event = attrs.field(factory=trio.Event)

    def push(self, frame: str) -> None:
        """Queue a frame; never blocks. A client that has left too much unread is cut off."""
        if self.cut_off:
            return
        self._frames.append(frame)
        self._buffered += len(frame)
        self._filled.set()
        if self._buffered > self.max_buffered:
            self.cut_off = True
            self._frames.clear()
            self.scope.cancel()

    async def room(self) -> None:
        """Wait until the client has read most of what it was sent, so that a long answer goes at its pace."""
        while self._buffered > min(_REPLY_WATER, self.max_buffered // 2):
            await self._drained.wait()

    async def write(self) -> None:
        """Send what is queued, for ever."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            frames = list(self._frames)
            self._frames.clear()
            await self.link.send_many(frames)
            self._buffered -= sum(map(len, frames))
            self._drained.set()
            self._drained = trio.Event()


class Relay:
    """One relay: its events, its clients, their subscriptions. Made by ``open_relay``."""

    def __init__(self, store: EventStore, clock: Clock, limits: Limits, nursery: trio.Nursery) -> None:
        self.store = store
        self.limits = limits
        self.counters = Counters()
        self.nursery = nursery
        """Ends with the relay; a listener or an in-memory connection may keep its tasks here."""
        self._clock = clock
        self._subscriptions: SubscriptionIndex[tuple[_Client, str]] = SubscriptionIndex()
        self._group: list[tuple[_Client | None, Event, Outcome]] = []
        self._grouped = trio.Event()

    # --- clients ----------------------------------------------------------------------------------------------

    async def serve(self, link: ClientLink) -> None:
        """Look after one client until it leaves, is cut off, or the relay ends. Raises nothing but cancellation."""
        with trio.CancelScope() as scope:
            client = _Client(link, scope, self.limits.max_buffered)
            self.counters.clients += 1
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_closed, client, client.write)
                    nursery.start_soon(self._until_closed, client, lambda: self._watch(client))
                    await self._until_closed(client, lambda: self._read(client))
            finally:
                self.counters.clients -= 1
                for subscription_id in client.subscriptions:
                    self._subscriptions.remove((client, subscription_id))
        if client.cut_off:
            self.counters.cut_off += 1
            log.info("a relay client that left %d bytes unread was cut off", self.limits.max_buffered)

    async def _until_closed(self, client: _Client, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of a client's tasks; when the connection is gone, or the task fails, all of them end."""
        try:
            await work()
        except TransportClosed:
            pass
        except Exception as error:
            # A fault in the service of one client must not take the others down.
            log.error("the service of a relay client failed: %s", brief(error))
        client.scope.cancel()

    async def _watch(self, client: _Client) -> None:
        """Find out about a client that vanished without a word."""
        while True:
            await trio.sleep(self.limits.ping_interval)
            with trio.move_on_after(self.limits.ping_timeout) as patience:
                await client.link.ping()
            if patience.cancelled_caught:
                return

    async def _read(self, client: _Client) -> None:
        while True:
            text = await client.link.receive()
            try:
                frame = parse_client_frame(text, max_bytes=self.limits.max_message_length)
            except FrameInvalid as error:
                self._malformed(client, text, error)
                continue
            if isinstance(frame, ClientEvent):
                self._take(client, frame.event)
            elif isinstance(frame, ClientReq):
                await self._answer(client, frame)
            elif isinstance(frame, ClientClose):
                self._unsubscribe(client, frame.subscription_id)
            else:
                client.push(RelayNotice("error: this relay asks nobody to authenticate").encode())

    def _malformed(self, client: _Client, text: str, error: FrameInvalid) -> None:
        event_id = peek_event_id(text) if text.lstrip()[:8].startswith('["EVENT"') else None
        if event_id is None:
            client.push(RelayNotice(f"invalid: {error}").encode())
        else:
            self.counters.refused += 1
            client.push(RelayOk(event_id, False, f"invalid: {error}").encode())

    # --- events -----------------------------------------------------------------------------------------------

    def publish(self, event: Event) -> Outcome:
        """Take an event from within the process, checked like a stranger's; it is committed on return.

        Raises ``EventInvalid`` or ``StoreError``.
        """
        refusal = self._refusal(event)
        if refusal:
            raise EventInvalid(refusal)
        try:
            outcome = self.store.add(event, self.now())
        except StoreError as error:
            self._lose_group(error)
            raise
        self._group.append((None, event, outcome))
        if not self.flush():
            raise StoreError("the relay could not commit an event")
        return outcome

    def _take(self, client: _Client, event: Event) -> None:
        refusal = self._refusal(event)
        if refusal:
            self.counters.refused += 1
            client.push(RelayOk(event.id, False, refusal).encode())
            return
        try:
            outcome = self.store.add(event, self.now())
        except StoreError as error:
            self._group.append((client, event, Outcome.STORED))
            self._lose_group(error)
            return
        self._group.append((client, event, outcome))
        self._grouped.set()

    def _refusal(self, event: Event) -> str:
        if event.created_at > self.now() + self.limits.created_at_upper_limit:
            return "invalid: created_at is too far in the future"
        # An id says nothing about the signature beside it: only the same event, whole, counts as checked.
        held = self.store.get(event.id)
        if held is not None and held == event.to_json():
            return ""
        try:
            event.check()
        except EventInvalid as error:
            return f"invalid: {error}"
        return ""

    async def commit_groups(self) -> None:
        """The relay's own task: commit what arrives, together as far as it arrives together."""
        while True:
            await self._grouped.wait()
            self._grouped = trio.Event()
            size = 0
            while size < len(self._group) < _GROUP_LIMIT:
                size = len(self._group)
                # Two rounds of the scheduler: one for a websocket to hand on its next frame, one for us to take it.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            self.flush()

    def flush(self) -> bool:
        """Commit the open group; then, and only then, answer its publishers and pass its events on.

        Whether that worked; if not, its publishers have been told.
        """
        try:
            self.store.commit()
        except StoreError as error:
            self._lose_group(error)
            return False
        group, self._group = self._group, []
        for client, event, outcome in group:
            accepted, message = _ANSWERS[outcome]
            if client is not None:
                client.push(RelayOk(event.id, accepted, message).encode())
            if not accepted:
                self.counters.refused += 1
                continue
            self.counters.accepted += 1
            if outcome in _NEWS:
                self._pass_on(event)
        try:
            self.store.purge(self.now())
        except StoreError as error:
            log.error("%s", error.message)
        return True

    def _lose_group(self, error: StoreError) -> None:
        log.error("%s; events not stored: %d", error.message, len(self._group))
        group, self._group = self._group, []
        for client, event, _ in group:
            self.counters.refused += 1
            if client is not None:
                client.push(RelayOk(event.id, False, "error: the event could not be stored").encode())

    def _pass_on(self, event: Event) -> None:
        tail = ""
        for client, subscription_id in list(self._subscriptions.wanting(event)):
            tail = tail or event.to_json() + "]"
            client.push(client.subscriptions[subscription_id] + tail)
            self.counters.delivered += 1

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def _answer(self, client: _Client, request: ClientReq) -> None:
        subscription_id, filters = request.subscription_id, tuple(request.filters)
        # A REQ under a used id replaces that subscription, also if the new one is refused.
        self._unsubscribe(client, subscription_id)
        refusal = self._no_subscription(client, subscription_id, filters)
        if refusal:
            client.push(RelayClosed(subscription_id, refusal).encode())
            return
        # Committed first: what the answer shows is safe, and nothing in it comes again as news.
        self.flush()
        try:
            answer = self.store.query(filters, self.now(), self.limits.max_limit)
        except StoreError as error:
            log.error("%s", error.message)
            client.push(RelayClosed(subscription_id, "error: the events could not be read").encode())
            return
        head = '["EVENT",' + orjson.dumps(subscription_id).decode() + ","
        client.subscriptions[subscription_id] = head
        self._subscriptions.add((client, subscription_id), filters)
        for text in answer:
            await client.room()
            client.push(head + text + "]")
        client.push(RelayEose(subscription_id).encode())

    def _no_subscription(self, client: _Client, subscription_id: str, filters: Sequence[Filter]) -> str:
        limits = self.limits
        if len(subscription_id) > limits.max_subid_length:
            return f"invalid: a subscription id has at most {limits.max_subid_length} characters"
        if len(client.subscriptions) >= limits.max_subscriptions:
            return f"blocked: at most {limits.max_subscriptions} subscriptions on one connection"
        if len(filters) > limits.max_filters:
            return f"blocked: at most {limits.max_filters} filters in one subscription"
        if max(map(_values, filters), default=0) > limits.max_filter_values:
            return f"blocked: at most {limits.max_filter_values} values in one filter"
        return ""

    def close_subscriptions(self, message: str) -> int:
        """End every live subscription by a CLOSED with this message, and say how many there were."""
        keys = list(self._subscriptions)
        for client, subscription_id in keys:
            self._unsubscribe(client, subscription_id)
            client.push(RelayClosed(subscription_id, message).encode())
        return len(keys)

    def _unsubscribe(self, client: _Client, subscription_id: str) -> None:
        if client.subscriptions.pop(subscription_id, None) is not None:
            self._subscriptions.remove((client, subscription_id))

    def now(self) -> int:
        """The relay's wall clock, whole Unix seconds."""
        return math.floor(self._clock.now())


def _values(wanted: Filter) -> int:
    lists = (wanted.ids, wanted.authors, wanted.kinds, *wanted.tags.values())
    return sum(len(values) for values in lists if values is not None)


@asynccontextmanager
async def open_relay(
    path: str | PathLike[str] = ":memory:", *, clock: Clock, limits: Limits | None = None
) -> AsyncIterator[Relay]:
    """A relay over the events at ``path``. Leaving the block disconnects every client and closes the file.

    Raises ``StoreError`` if the file cannot be opened.
    """
    store = EventStore(path)
    failed = None
    try:
        async with trio.open_nursery() as nursery:
            relay = Relay(store, clock, limits or Limits(), nursery)
            nursery.start_soon(relay.commit_groups)
            try:
                yield relay
            except Exception as error:
                # Kept out of the nursery, which would wrap the caller's own exception in a group.
                failed = error
            nursery.cancel_scope.cancel()
    finally:
        store.close()
    if failed is not None:
        raise failed
