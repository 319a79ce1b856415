"""One connection between a client and a relay, as two machines without I/O: frames in, happenings out.

``ClientSession`` is the client's end: it remembers what it has subscribed to, so that a reconnected client can ask
again, and sorts what the relay says. ``RelaySession`` is the relay's end. Neither knows a clock or a socket, and
neither raises for anything that the other end sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from protocols.nip01 import (
    MAX_FRAME_BYTES,
    MAX_SUBSCRIPTION_ID,
    ClientAuth,
    ClientClose,
    ClientEvent,
    ClientReq,
    Event,
    Filter,
    FrameInvalid,
    RelayAuth,
    RelayClosed,
    RelayEose,
    RelayEvent,
    RelayNotice,
    RelayOk,
    parse_client_frame,
    parse_relay_frame,
    peek_event_id,
)

# --- what happens at the client's end -------------------------------------------------------------------------


@attrs.frozen
class EventReceived:
    """An event within the filters of an open subscription. Its signature is not checked yet."""

    subscription_id: str
    event: Event


@attrs.frozen
class Stored:
    """EOSE: what was stored has been sent."""

    subscription_id: str


@attrs.frozen
class Closed:
    """The relay ended a subscription; ``reason`` is the machine-readable prefix, empty without one."""

    subscription_id: str
    reason: str
    message: str


@attrs.frozen
class Published:
    """OK for an event of ours."""

    event_id: str
    accepted: bool
    reason: str
    message: str


@attrs.frozen
class Notice:
    message: str


@attrs.frozen
class Challenge:
    """NIP-42."""

    challenge: str


@attrs.frozen
class Unasked:
    """An event for no subscription of ours, or outside the filters of one."""

    event_id: str


@attrs.frozen
class Late:
    """An event for a subscription that has just ended: it was on its way."""

    event_id: str


@attrs.frozen
class Malformed:
    reason: str


_ENDED_REMEMBERED = 1_000

Happening = EventReceived | Stored | Closed | Published | Notice | Challenge | Unasked | Late | Malformed


def reason_of(message: str) -> str:
    """The prefix of an OK or CLOSED message before its colon: ``rate-limited`` of ``rate-limited: slow down``."""
    prefix, colon, _ = message.partition(":")
    return prefix if colon and prefix and " " not in prefix else ""


def narrowed(filters: tuple[Filter, ...], since: int | None) -> tuple[Filter, ...]:
    """The filters, for nothing older than ``since`` (Unix seconds)."""
    if since is None:
        return filters
    return tuple(attrs.evolve(wanted, since=max(since, wanted.since or 0)) for wanted in filters)


class ClientSession:
    """The client's end of one connection, or of one after the other: subscriptions outlive a reconnect."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, tuple[Filter, ...]] = {}
        self._ended: dict[str, None] = {}

    @property
    def subscriptions(self) -> Mapping[str, tuple[Filter, ...]]:
        return self._open

    def subscribe(self, subscription_id: str, *filters: Filter, since: int | None = None) -> str:
        """The REQ frame. The same id again replaces the subscription.

        ``since`` narrows what the relay is asked for, not what counts as asked for: an answer to an earlier REQ under
        the same id may still be on its way.
        """
        if not 0 < len(subscription_id) <= MAX_SUBSCRIPTION_ID:
            raise ValueError(f"a subscription id has 1 to {MAX_SUBSCRIPTION_ID} characters")
        self._ended.pop(subscription_id, None)
        self._open[subscription_id] = filters
        return ClientReq(subscription_id, narrowed(filters, since)).encode()

    def unsubscribe(self, subscription_id: str) -> str | None:
        """The CLOSE frame, or ``None`` if nothing is open under this id."""
        if self._open.pop(subscription_id, None) is None:
            return None
        self._ended[subscription_id] = None
        if len(self._ended) > _ENDED_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        return ClientClose(subscription_id).encode()

    def publish(self, event: Event) -> str:
        return ClientEvent(event).encode()

    def authenticate(self, event: Event) -> str:
        """The answer to a ``Challenge``: a signed kind 22242 event."""
        return ClientAuth(event).encode()

    def resubscribe(self, since: Mapping[str, int] | None = None) -> list[str]:
        """The REQ frames for a fresh connection; ``since`` by subscription id narrows what is stored."""
        frames = []
        for subscription_id, filters in self._open.items():
            start = (since or {}).get(subscription_id)
            frames.append(ClientReq(subscription_id, narrowed(filters, start)).encode())
        return frames

    def peek(self, frame: str) -> tuple[str, str] | None:
        """Subscription and event id of an EVENT frame that is plain to read, before it is parsed."""
        if not frame.startswith('["EVENT","'):
            return None
        subscription_id, quote, _ = frame[10 : 12 + MAX_SUBSCRIPTION_ID].partition('"')
        event_id = peek_event_id(frame) if quote and subscription_id in self._open else None
        return None if event_id is None else (subscription_id, event_id)

    def feed(self, frame: str | bytes) -> Happening:
        """What a frame from the relay means."""
        try:
            parsed = parse_relay_frame(frame, self._max_bytes)
        except FrameInvalid as error:
            return Malformed(str(error))
        match parsed:
            case RelayEvent(subscription_id, event):
                filters = self._open.get(subscription_id, ())
                if any(wanted.matches(event) for wanted in filters):
                    return EventReceived(subscription_id, event)
                return Late(event.id) if subscription_id in self._ended else Unasked(event.id)
            case RelayEose(subscription_id):
                return Stored(subscription_id)
            case RelayClosed(subscription_id, message):
                return Closed(subscription_id, reason_of(message), message)
            case RelayOk(event_id, accepted, message):
                return Published(event_id, accepted, reason_of(message), message)
            case RelayNotice(message):
                return Notice(message)
            case RelayAuth(challenge):
                return Challenge(challenge)


# --- what happens at the relay's end --------------------------------------------------------------------------


@attrs.frozen
class Publish:
    event: Event


@attrs.frozen
class Subscribe:
    subscription_id: str
    filters: tuple[Filter, ...]


@attrs.frozen
class Unsubscribe:
    subscription_id: str


@attrs.frozen
class Authenticate:
    event: Event


@attrs.frozen
class Rejected:
    """Nothing to do but to send ``reply``."""

    reply: str


Request = Publish | Subscribe | Unsubscribe | Authenticate | Rejected


class RelaySession:
    """The relay's end: what one client asks for, within limits."""

    def __init__(self, *, max_bytes: int = MAX_FRAME_BYTES, max_subscriptions: int = 64, max_filters: int = 16) -> None:
        self._max_bytes = max_bytes
        self._max_subscriptions = max_subscriptions
        self._max_filters = max_filters
        self._open: dict[str, tuple[Filter, ...]] = {}

    @property
    def subscriptions(self) -> Mapping[str, tuple[Filter, ...]]:
        return self._open

    def feed(self, frame: str | bytes) -> Request:
        """What a frame from the client asks for."""
        try:
            parsed = parse_client_frame(frame, self._max_bytes)
        except FrameInvalid as error:
            text = frame if isinstance(frame, str) else ""
            event_id = peek_event_id(text[: self._max_bytes])
            if text.startswith('["EVENT"') and event_id is not None:
                return Rejected(RelayOk(event_id, False, f"invalid: {error}").encode())
            return Rejected(RelayNotice(f"invalid: {error}").encode())
        match parsed:
            case ClientEvent(event):
                return Publish(event)
            case ClientAuth(event):
                return Authenticate(event)
            case ClientClose(subscription_id):
                self._open.pop(subscription_id, None)
                return Unsubscribe(subscription_id)
            case ClientReq(subscription_id, filters):
                if len(filters) > self._max_filters:
                    return self._refuse(subscription_id, f"at most {self._max_filters} filters")
                if subscription_id not in self._open and len(self._open) >= self._max_subscriptions:
                    return self._refuse(subscription_id, f"at most {self._max_subscriptions} subscriptions")
                self._open[subscription_id] = filters
                return Subscribe(subscription_id, filters)

    def _refuse(self, subscription_id: str, why: str) -> Rejected:
        self._open.pop(subscription_id, None)
        return Rejected(RelayClosed(subscription_id, f"error: {why}").encode())

    def deliver(self, event: Event) -> Iterator[str]:
        """The frames that carry a fresh event to this client: one for each subscription that it matches."""
        for subscription_id, filters in self._open.items():
            if any(wanted.matches(event) for wanted in filters):
                yield RelayEvent(subscription_id, event).encode()
