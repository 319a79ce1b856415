"""One relay, for ever: connect, subscribe, listen, publish; again after every end.

A connection is cut when a frame cannot be written within 10 s, when nothing at all has come for 90 s (pings go out
every 30 s), or when the relay talks nonsense. Reconnects back off from 1 s to 60 s, jittered; the wait starts over
only after an uptime of five times the next one. After a reconnect every subscription is asked again, from the newest
event seen on it minus an overlap.

What the relay says that it will not take (NIP-11) it is not sent: subscriptions beyond its number wait for a place,
and an event that is too long or too old is refused here.

One task writes, from a queue: whoever is cancelled while its frame goes out cancels nothing for the others.
"""

from __future__ import annotations

import enum
import logging
import math
import random
from collections import deque
from collections.abc import Callable

import attrs
import trio

from protocols import session as wire
from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter, sign_event
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.information import Inform
from pylon.relays.limits import RelayLimits
from pylon.relays.request import FULL_PAGE, UNANSWERED_SECONDS, Request, Unanswered
from pylon.relays.subscription import Subscription
from pylon.relays.transport import Connect, Transport, TransportClosed

log = logging.getLogger(__name__)

PING_SECONDS = 30.0
SILENCE_SECONDS = 90.0
WRITE_SECONDS = 10.0
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
CONNECT_SECONDS = 20.0
"""For a transport that has no deadline of its own."""
MAX_NONSENSE = 100
"""Malformed, unasked or forged frames in one connection before it is cut."""

_AUTH = 22242
_AUTH_SECONDS = 5.0
"""How long a refused event waits for an authentication that is under way."""
_MAX_CHALLENGES = 10
_LONGEST_CHALLENGE = 1_024
_MAX_UNSENT = 10_000
_INFORM_SECONDS = 2.0
"""How long a first connection waits for what the relay says of itself, before it is asked for anything."""
_INFORM_AGAIN = 3_600.0
_INFORM_RETRY = 300.0


class ConnectionState(enum.StrEnum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"


@attrs.frozen
class RelayStatus:
    """For ``pylon status``. Times are Unix seconds, latency seconds."""

    url: str
    state: ConnectionState
    since: float
    last_error: str
    latency: float | None
    events_received: int
    nonsense_received: int


@attrs.frozen
class Verdict:
    """A relay's OK."""

    accepted: bool
    reason: str
    message: str


@attrs.define(eq=False)
class _Frame:
    text: str
    sent: bool = False
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class _Answer:
    """What somebody who has published waits for."""

    verdict: Verdict | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


class Connection:
    """The client's end of one relay. ``admit`` checks an event's signature, once for all relays."""

    def __init__(
        self,
        url: str,
        *,
        connect: Connect,
        clock: Clock,
        rng: random.Random,
        subscriptions: Callable[[], list[Subscription]],
        admit: Callable[[Event], bool],
        changed: Callable[[], None],
        signer: SecretKey | None,
        inform: Inform | None = None,
    ) -> None:
        self.url = url
        self._connect = connect
        self._clock = clock
        self._rng = rng
        self._subscriptions = subscriptions
        self._admit = admit
        self._changed = changed
        self._signer = signer
        self._inform = inform
        self._informed = trio.Event()
        self.limits = RelayLimits()
        self._queued: dict[str, Subscription] = {}
        self._queued_pages: deque[tuple[Subscription, tuple[Filter, ...], int]] = deque()
        self._session = wire.ClientSession()
        self._transport: Transport | None = None
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._heard = 0.0
        self._connected_at: float | None = None
        self._cut = ""
        self._nonsense = 0
        self._pages = 0
        self._requests: dict[str, Request] = {}
        self._unsent: deque[_Frame] = deque()
        self._filled = trio.Event()
        self._waiting: dict[str, list[_Answer]] = {}
        self._unauthorised: dict[str, Subscription] = {}
        self._auth_settled = trio.Event()
        self._forget_authentication()
        self.status = RelayStatus(url, ConnectionState.CONNECTING, clock.now(), "", None, 0, 0)

    @property
    def connected(self) -> bool:
        return self._transport is not None

    async def run(self) -> None:
        """Until cancelled."""
        if self._inform is None:
            self._informed.set()
            await self._connect_for_ever()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_informed, self._inform)
            await self._connect_for_ever()

    async def _keep_informed(self, inform: Inform) -> None:
        """Ask the relay what it will not take, now and then."""
        while True:
            document = await inform(self.url)
            if document is not None:
                self.limits = RelayLimits.of(document.limitation)
                self._ask_queued()
            self._informed.set()
            await trio.sleep(_INFORM_RETRY if document is None else _INFORM_AGAIN)

    async def _connect_for_ever(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            self._set(ConnectionState.CONNECTING)
            why = await self._once()
            # The time that it took to connect is no uptime.
            if self._connected_at is not None and trio.current_time() - self._connected_at >= 5 * backoff:
                backoff = FIRST_BACKOFF
            wait = backoff * self._rng.uniform(0.75, 1.25)
            self._set(ConnectionState.WAITING, why)
            log.info("%s: %s; again in %.1f s", self.url, why, wait)
            await trio.sleep(wait)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    async def _once(self) -> str:
        """One connection from its beginning to its end; returns why it ended."""
        self._cut = ""
        self._connected_at = None
        ended: BaseException | None = None
        try:
            with trio.CancelScope(deadline=trio.current_time() + CONNECT_SECONDS) as patience:
                async with self._connect(self.url) as transport:
                    patience.deadline = math.inf
                    self._connected_at = trio.current_time()
                    await self._live(transport)
            if patience.cancelled_caught:
                return f"{self.url}: no connection within {CONNECT_SECONDS:g} s"
        except Exception as error:
            ended = error
        except BaseExceptionGroup as group:
            # A connection may break while we are being cancelled: only the cancellation goes on.
            _, rest = group.split(Exception)
            if rest is not None:
                raise rest from None
        finally:
            self._gone()
        while isinstance(ended, ExceptionGroup):
            ended = ended.exceptions[0]
        if self._cut:
            return self._cut
        match ended:
            case None:
                return "the connection ended"
            case RelayError():
                return ended.message
            case TransportClosed() | OSError():
                return str(ended) or "the connection broke"
        # A fault in what we do with one relay must not take the others down.
        log.error("%s: a fault in its connection", self.url, exc_info=ended)
        return f"a fault: {type(ended).__name__}"

    async def _live(self, transport: Transport) -> None:
        self._heard = trio.current_time()
        self._nonsense = 0
        self._session = wire.ClientSession()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write, transport)
                self._nursery.start_soon(self._listen, transport)
                self._nursery.start_soon(self._ping, transport)
                self._nursery.start_soon(self._watch)
                self._nursery.start_soon(self._insist)
                with trio.move_on_after(_INFORM_SECONDS):
                    await self._informed.wait()
                self._transport = transport
                for subscription in self._subscriptions():
                    self.ask(subscription)
                self._set(ConnectionState.CONNECTED)

    def _gone(self) -> None:
        self._transport = None
        self._nursery = None
        self._requests.clear()
        self._queued.clear()
        self._queued_pages.clear()
        self._unauthorised.clear()
        self._forget_authentication()
        for frame in self._unsent:
            frame.done.set()
        self._unsent.clear()
        for answers in self._waiting.values():
            for answer in answers:
                answer.done.set()
        self._changed()

    def _forget_authentication(self) -> None:
        self._auth_settled.set()
        self._auth_id = ""
        self._authenticated = False
        self._auth_settled = trio.Event()
        self._challenges: set[str] = set()

    def cut(self, why: str) -> None:
        """End this connection; ``run`` makes the next one."""
        log.info("%s: cut: %s", self.url, why)
        self._cut = self._cut or why
        self._scope.cancel()

    def _set(self, state: ConnectionState, error: str | None = None) -> None:
        self.status = attrs.evolve(
            self.status,
            state=state,
            since=self._clock.now(),
            last_error=self.status.last_error if error is None else error,
        )
        self._changed()

    # --- what we say ------------------------------------------------------------------------------------------

    def send_soon(self, frame: str) -> _Frame:
        """Queue a frame; nowhere without a connection."""
        queued = _Frame(frame)
        if self._transport is None or len(self._unsent) >= _MAX_UNSENT:
            queued.done.set()
            if self._transport is not None:
                self.cut("it does not read")
        else:
            self._unsent.append(queued)
            self._filled.set()
        return queued

    async def _write(self, transport: Transport) -> None:
        with trio.CancelScope() as patience:
            while True:
                self._filled = trio.Event()
                while self._unsent:
                    patience.deadline = trio.current_time() + WRITE_SECONDS
                    await transport.send(self._unsent[0].text)
                    frame = self._unsent.popleft()
                    frame.sent = True
                    frame.done.set()
                patience.deadline = math.inf
                await self._filled.wait()
        self.cut("it does not read")

    def ask(self, subscription: Subscription) -> None:
        """Send the REQ; not if the connection is just ending, for the next one will ask."""
        if self._transport is None or subscription.ended:
            return
        self._drop(subscription, pages_only=True)
        if subscription.id not in self._requests and not self._has_place(subscription):
            if not self._queued:
                told = "%s: it takes %s subscriptions, and no more: what is asked beyond them waits for a place"
                log.warning(told, self.url, self.limits.max_subscriptions)
            self._queued[subscription.id] = subscription
            return
        self._queued.pop(subscription.id, None)
        since = subscription.asked(self.url)
        self._request(subscription.id, subscription, wire.narrowed(subscription.filters, since), since, 0)

    def _request(
        self, name: str, subscription: Subscription, filters: tuple[Filter, ...], since: int | None, page: int
    ) -> None:
        wanted = filters if page else subscription.filters
        frame = self._session.subscribe(name, *wanted, since=since)
        if self.limits.too_long(frame):
            log.warning("%s: what is asked is longer than it takes (%d bytes)", self.url, len(frame))
            self._session.unsubscribe(name)
            subscription.relay_done(self.url)
            return
        full = min(FULL_PAGE, self.limits.page or FULL_PAGE)
        self._requests[name] = Request(subscription, filters, trio.current_time(), page, full)
        self.send_soon(frame)

    def _has_place(self, subscription: Subscription) -> bool:
        """For one more; some places are kept for what is only looked up."""
        most, standing = self.limits.max_subscriptions, self.limits.subscriptions
        if most is None or standing is None:
            return True
        lasting = sum(not request.page and not request.subscription.fleeting for request in self._requests.values())
        return len(self._requests) < most and (subscription.fleeting or lasting < standing)

    def _ask_queued(self) -> None:
        """What has waited for a place and finds one."""
        if self._transport is None:
            return
        most = self.limits.max_subscriptions
        while self._queued_pages and (most is None or len(self._requests) < max(2, most)):
            subscription, rest, page = self._queued_pages.popleft()
            self._ask_page(subscription, rest, page)
        for subscription in sorted(self._queued.values(), key=lambda each: not each.fleeting):
            if self._has_place(subscription):
                self.ask(self._queued.pop(subscription.id))

    def forget(self, subscription: Subscription) -> None:
        """Send the CLOSE of all that was asked for it."""
        self._queued.pop(subscription.id, None)
        self._drop(subscription, pages_only=False)
        self._unauthorised.pop(subscription.id, None)
        self._ask_queued()

    def _drop(self, subscription: Subscription, *, pages_only: bool) -> None:
        if self._queued_pages:
            self._queued_pages = deque(page for page in self._queued_pages if page[0] is not subscription)
        for name, request in list(self._requests.items()):
            if request.subscription is subscription and (request.page or not pages_only):
                self._close(name)

    def _close(self, name: str) -> None:
        del self._requests[name]
        frame = self._session.unsubscribe(name)
        if frame is not None:
            self.send_soon(frame)

    def send_event_soon(self, event: Event) -> None:
        """Send an event without waiting for the relay's OK."""
        frame = self._session.publish(event)
        if not self.limits.too_long(frame):
            self.send_soon(frame)

    async def publish(self, event: Event, timeout: float) -> Verdict:
        """Send an event and wait for the relay's OK. Raises ``RelayError`` where none came.

        An event that the relay would not take from a stranger goes out once more after an authentication.
        """
        return await self.publish_frame(event.id, self._session.publish(event), timeout)

    async def publish_frame(self, event_id: str, frame: str, timeout: float) -> Verdict:
        """``publish`` for an event that is encoded already."""
        now = self._clock.now()
        if self.limits.too_long(frame):
            return Verdict(False, "invalid", f"invalid: it takes {self.limits.max_message_length} bytes at most")
        if self.limits.too_old(frame, now):
            return Verdict(False, "invalid", f"invalid: it takes nothing older than {self.limits.oldest} s")
        if self.limits.too_early(frame, now):
            raise RelayError(f"{self.url}: it takes nothing dated more than {self.limits.ahead} s ahead")
        verdict = await self._attempt(event_id, frame, timeout)
        if not verdict.accepted and verdict.reason == "auth-required" and self._signer is not None:
            with trio.move_on_after(min(_AUTH_SECONDS, timeout)):
                await self._auth_settled.wait()
            if self._authenticated:
                verdict = await self._attempt(event_id, frame, timeout)
        return verdict

    async def _attempt(self, event_id: str, frame: str, timeout: float) -> Verdict:
        if self._transport is None:
            raise RelayError(f"{self.url}: not connected")
        answer = _Answer()
        self._waiting.setdefault(event_id, []).append(answer)
        queued = self.send_soon(frame)
        try:
            with trio.move_on_after(timeout):
                await answer.done.wait()
            if not answer.done.is_set() and not queued.done.is_set():
                # A slow line, or much before it: the relay's time begins when it has the event.
                with trio.move_on_after(2 * WRITE_SECONDS):
                    await queued.done.wait()
                with trio.move_on_after(timeout):
                    await answer.done.wait()
        finally:
            self._waiting[event_id].remove(answer)
            if not self._waiting[event_id]:
                del self._waiting[event_id]
        if answer.verdict is None:
            failing = "did not say whether it has the event" if queued.sent else "did not take what it was sent"
            raise RelayError(f"{self.url}: {failing}")
        return answer.verdict

    async def _watch(self) -> None:
        """Cut a connection on which nothing comes any more, not even a pong."""
        while True:
            await trio.sleep_until(self._heard + SILENCE_SECONDS)
            if trio.current_time() >= self._heard + SILENCE_SECONDS:
                self.cut(f"silent for {SILENCE_SECONDS:.0f} s")
                return

    async def _insist(self) -> None:
        """Put a REQ again that was answered by nothing."""
        unanswered = Unanswered()
        while True:
            await trio.sleep(UNANSWERED_SECONDS / 2)
            for request in unanswered.due(self._requests.values(), trio.current_time()):
                self.ask(request.subscription)

    async def _ping(self, transport: Transport) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            began = trio.current_time()
            await transport.ping()
            self._heard = trio.current_time()
            self.status = attrs.evolve(self.status, latency=self._heard - began)

    # --- what we hear -----------------------------------------------------------------------------------------

    async def _listen(self, transport: Transport) -> None:
        while True:
            frame = await transport.receive()
            self._heard = trio.current_time()
            if not self._known(frame):
                self._handle(self._session.feed(frame))

    def _known(self, frame: str) -> bool:
        """Most of what several relays send was delivered before: it costs no parsing."""
        peeked = self._session.peek(frame)
        request = None if peeked is None else self._requests.get(peeked[0])
        if peeked is None or request is None or not request.skims:
            return False
        created_at = request.subscription.had(peeked[1])
        if created_at is None:
            return False
        if not request.stored:
            request.count(0, created_at)
        request.subscription.saw(self.url, created_at)
        return True

    def _handle(self, happening: wire.Happening) -> None:
        match happening:
            case wire.EventReceived(name, event):
                request = self._requests.get(name)
                if request is not None:
                    self._event(request, event)
            case wire.Stored(name):
                request = self._requests.get(name)
                if request is not None and not request.stored:
                    self._stored(name, request)
            case wire.Closed(name, reason, message):
                request = self._requests.pop(name, None)
                if request is not None:
                    log.info("%s: closed a subscription: %s", self.url, message[:200])
                    self._session.unsubscribe(name)
                    self._closed(request, reason)
                    self._ask_queued()
            case wire.Published(event_id, accepted, reason, message):
                if event_id == self._auth_id:
                    self._authentication(accepted)
                for answer in self._waiting.get(event_id, ()):
                    answer.verdict = answer.verdict or Verdict(accepted, reason, message)
                    answer.done.set()
            case wire.Challenge(challenge):
                self._challenged(challenge)
            case wire.Notice(message):
                log.info("%s says: %s", self.url, message[:200])
            case wire.Malformed(reason):
                self._count_nonsense(reason)
            case wire.Unasked():
                self._count_nonsense("an event that nobody asked for")
            case wire.Late():
                pass

    def _event(self, request: Request, event: Event) -> None:
        subscription = request.subscription
        if not self._admit(event):
            self._count_nonsense("a forged event")
            return
        if not request.stored:
            request.count_event(event)
        if subscription.had(event.id) is not None:
            subscription.saw(self.url, event.created_at)
            return
        self.status = attrs.evolve(self.status, events_received=self.status.events_received + 1)
        if not subscription.deliver(event, self.url):
            log.debug("%s: a subscriber does not keep up; what it misses is asked for again", self.url)

    def _stored(self, name: str, request: Request) -> None:
        request.stored = True
        subscription = request.subscription
        rest = () if subscription.lags(self.url) else request.further_back()
        if request.page:
            self._close(name)
        if rest:
            self._queued_pages.append((subscription, rest, request.page + 1))
        else:
            subscription.caught_up(self.url)
        self._ask_queued()

    def _ask_page(self, subscription: Subscription, rest: tuple[Filter, ...], page: int) -> None:
        self._pages += 1
        self._request(f"{subscription.id}.{self._pages}", subscription, rest, None, page)

    def _closed(self, request: Request, reason: str) -> None:
        subscription = request.subscription
        if request.page:
            # What it has not shown is asked for by the next connection: the mark has not moved.
            subscription.relay_done(self.url)
        elif reason == "auth-required" and self._signer is not None and not self._authenticated:
            self._unauthorised[subscription.id] = subscription
            if self._auth_settled.is_set():
                subscription.relay_done(self.url)
        else:
            subscription.relay_done(self.url)
            if (reason == "auth-required" and self._signer is None) or reason == "restricted":
                return
            if self._nursery is not None:
                self._nursery.start_soon(self._ask_again, subscription, trio.current_time() - request.at)

    async def _ask_again(self, subscription: Subscription, lasted: float) -> None:
        """After a CLOSED: once more, ever slower while the relay goes on closing."""
        await trio.sleep(subscription.closed_backoff(self.url, lasted) * self._rng.uniform(0.75, 1.25))
        if subscription.id not in self._requests:
            self.ask(subscription)

    def _challenged(self, challenge: str) -> None:
        """NIP-42. Without a signer nobody is told who we are."""
        if len(challenge) > _LONGEST_CHALLENGE or len(self._challenges) >= _MAX_CHALLENGES:
            self._count_nonsense("too many challenges")
        elif self._signer is not None and challenge not in self._challenges:
            self._challenges.add(challenge)
            tags = [["relay", self.url], ["challenge", challenge]]
            answer = sign_event(self._signer, kind=_AUTH, tags=tags, created_at=int(self._clock.now()))
            self._auth_id = answer.id
            if self._auth_settled.is_set():
                self._auth_settled = trio.Event()
            self.send_soon(self._session.authenticate(answer))

    def _authentication(self, accepted: bool) -> None:
        self._authenticated = accepted
        self._auth_settled.set()
        waiting, self._unauthorised = self._unauthorised, {}
        for subscription in waiting.values():
            if accepted:
                self.ask(subscription)
            else:
                subscription.relay_done(self.url)

    def _count_nonsense(self, what: str) -> None:
        self._nonsense += 1
        self.status = attrs.evolve(self.status, nonsense_received=self.status.nonsense_received + 1)
        # Said once a connection: a relay must not be able to fill our log.
        log.log(logging.WARNING if self._nonsense == 1 else logging.DEBUG, "%s sent %s", self.url, what)
        if self._nonsense >= MAX_NONSENSE:
            self.cut("too much nonsense")
