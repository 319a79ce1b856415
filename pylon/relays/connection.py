"""One relay, for ever: connect, subscribe, listen, publish; again after every end.

A connection is cut when a frame cannot be written within 10 s, when nothing at all has come for 90 s (pings go out
every 30 s), or when the relay talks nonsense. Reconnects back off from 1 s to 60 s, jittered; the wait starts over
only after an uptime of five times the last one. After a reconnect every subscription is asked again, from the newest
event seen on it minus an overlap.
"""

from __future__ import annotations

import enum
import logging
import random
from collections.abc import Callable

import attrs
import trio

from protocols import session as wire
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.subscription import Subscription
from pylon.relays.transport import Connect, Transport, TransportClosed

log = logging.getLogger(__name__)

PING_SECONDS = 30.0
SILENCE_SECONDS = 90.0
WRITE_SECONDS = 10.0
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
MAX_NONSENSE = 100
"""Malformed, unasked or forged frames in one connection before it is cut."""

_AUTH = 22242


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
    ) -> None:
        self.url = url
        self._connect = connect
        self._clock = clock
        self._rng = rng
        self._subscriptions = subscriptions
        self._admit = admit
        self._changed = changed
        self._signer = signer
        self._session = wire.ClientSession()
        self._transport: Transport | None = None
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._heard = 0.0
        self._nonsense = 0
        self._waiting: dict[str, tuple[trio.Event, list[Verdict]]] = {}
        self._unauthorised: set[str] = set()
        self._auth_id = ""
        self.status = RelayStatus(url, ConnectionState.CONNECTING, clock.now(), "", None, 0, 0)

    @property
    def connected(self) -> bool:
        return self._transport is not None

    async def run(self) -> None:
        """Until cancelled."""
        backoff = FIRST_BACKOFF
        while True:
            self._set(ConnectionState.CONNECTING)
            began = trio.current_time()
            try:
                async with self._connect(self.url) as transport:
                    await self._live(transport)
                why = "the connection ended"
            except RelayError as error:
                why = error.message
            except TransportClosed as error:
                why = str(error)
            except BaseExceptionGroup as group:
                _, other = group.split((RelayError, TransportClosed, OSError))
                if other is not None:
                    raise
                why = str(group.exceptions[0])
            finally:
                self._gone()
            if trio.current_time() - began >= 5 * backoff:
                backoff = FIRST_BACKOFF
            wait = backoff * self._rng.uniform(0.75, 1.25)
            self._set(ConnectionState.WAITING, why)
            log.info("%s: %s; again in %.1f s", self.url, why, wait)
            await trio.sleep(wait)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    async def _live(self, transport: Transport) -> None:
        self._heard = trio.current_time()
        self._nonsense = 0
        self._session = wire.ClientSession()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._listen, transport)
                self._nursery.start_soon(self._keep_alive, transport)
                self._transport = transport
                for subscription in self._subscriptions():
                    await self.ask(subscription)
                self._set(ConnectionState.CONNECTED)

    def _gone(self) -> None:
        self._transport = None
        self._nursery = None
        self._auth_id = ""
        self._unauthorised.clear()
        for done, _ in self._waiting.values():
            done.set()
        for subscription in self._subscriptions():
            subscription.relay_gone(self.url)
        self._changed()

    def cut(self, why: str) -> None:
        """End this connection; ``run`` makes the next one."""
        log.info("%s: cut: %s", self.url, why)
        self.status = attrs.evolve(self.status, last_error=why)
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

    async def send(self, frame: str) -> None:
        """Raises ``RelayError`` without a connection, or if it did not take the frame in time."""
        transport = self._transport
        if transport is None:
            raise RelayError(f"{self.url}: not connected")
        try:
            with trio.fail_after(WRITE_SECONDS):
                await transport.send(frame)
        except trio.TooSlowError:
            self.cut("it does not read")
            raise RelayError(f"{self.url}: does not read") from None
        except TransportClosed as error:
            self._scope.cancel()
            raise RelayError(f"{self.url}: {error}") from None
        except BaseException:
            # A frame may have gone out in part.
            self._scope.cancel()
            raise

    async def ask(self, subscription: Subscription) -> None:
        """Send the REQ; quietly not if the connection is just ending, for the next one will ask."""
        try:
            await self.send(self._session.subscribe(subscription.id, *subscription.filters_for(self.url)))
        except RelayError:
            pass

    async def forget(self, subscription: Subscription) -> None:
        frame = self._session.unsubscribe(subscription.id)
        if frame is not None and self._transport is not None:
            try:
                await self.send(frame)
            except RelayError:
                pass

    async def publish(self, event: Event, timeout: float) -> Verdict:
        """Send an event and wait for the relay's OK. Raises ``RelayError`` where none came."""
        done, verdicts = trio.Event(), list[Verdict]()
        self._waiting[event.id] = (done, verdicts)
        try:
            await self.send(self._session.publish(event))
            with trio.move_on_after(timeout):
                await done.wait()
        finally:
            self._waiting.pop(event.id, None)
        if not verdicts:
            raise RelayError(f"{self.url}: did not say whether it has the event")
        return verdicts[0]

    async def _keep_alive(self, transport: Transport) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            began = trio.current_time()
            with trio.move_on_after(self._heard + SILENCE_SECONDS - began) as patience:
                await transport.ping()
                self._heard = trio.current_time()
                self.status = attrs.evolve(self.status, latency=self._heard - began)
            if patience.cancelled_caught and trio.current_time() - self._heard >= SILENCE_SECONDS:
                self.cut(f"silent for {SILENCE_SECONDS:.0f} s")
                return

    # --- what we hear -----------------------------------------------------------------------------------------

    async def _listen(self, transport: Transport) -> None:
        by_id = {subscription.id: subscription for subscription in self._subscriptions()}
        while True:
            frame = await transport.receive()
            self._heard = trio.current_time()
            peeked = self._session.peek(frame)
            if peeked is not None:
                known = by_id.get(peeked[0])
                if known is not None and known.had(peeked[1]):
                    continue  # most of what several relays send is known: it costs no parsing
            happening = self._session.feed(frame)
            if isinstance(happening, wire.EventReceived | wire.Stored | wire.Closed):
                subscription = by_id.get(happening.subscription_id)
                if subscription is None or subscription.ended:
                    by_id = {entry.id: entry for entry in self._subscriptions()}
                    subscription = by_id.get(happening.subscription_id)
                await self._about(subscription, happening)
            else:
                await self._handle(happening)

    async def _about(
        self, subscription: Subscription | None, happening: wire.EventReceived | wire.Stored | wire.Closed
    ) -> None:
        if subscription is None:
            return  # the end of a subscription that we have closed
        match happening:
            case wire.EventReceived(_, event):
                if subscription.had(event.id):
                    return
                if not self._admit(event):
                    self._count_nonsense("a forged event")
                    return
                self.status = attrs.evolve(self.status, events_received=self.status.events_received + 1)
                if not await subscription.deliver(event, self.url):
                    self.cut("a subscriber does not keep up; what is missed is asked for again")
            case wire.Stored():
                subscription.relay_done(self.url)
            case wire.Closed(subscription_id, reason, message):
                self._session.unsubscribe(subscription_id)
                subscription.relay_done(self.url)
                log.info("%s: closed a subscription: %s", self.url, message[:200])
                if reason == "auth-required":
                    self._unauthorised.add(subscription_id)
                elif reason != "restricted" and self._nursery is not None:
                    self._nursery.start_soon(self._ask_again, subscription)

    async def _handle(self, happening: wire.Happening) -> None:
        match happening:
            case wire.Published(event_id, accepted, reason, message):
                if event_id == self._auth_id and accepted:
                    await self._authorised()
                waiting = self._waiting.get(event_id)
                if waiting is not None:
                    waiting[1].append(Verdict(accepted, reason, message))
                    waiting[0].set()
            case wire.Challenge(challenge) if self._signer is not None:
                tags = [["relay", self.url], ["challenge", challenge]]
                answer = sign_event(self._signer, kind=_AUTH, tags=tags, created_at=int(self._clock.now()))
                self._auth_id = answer.id
                await self.send(self._session.authenticate(answer))
            case wire.Notice(message):
                log.info("%s says: %s", self.url, message[:200])
            case wire.Malformed(reason):
                self._count_nonsense(reason)
            case wire.Unasked():
                self._count_nonsense("an event that nobody asked for")
            case _:
                pass

    async def _authorised(self) -> None:
        for subscription in self._subscriptions():
            if subscription.id in self._unauthorised:
                await self.ask(subscription)
        self._unauthorised.clear()

    async def _ask_again(self, subscription: Subscription) -> None:
        """After a CLOSED: once more, ever slower while the relay goes on closing."""
        await trio.sleep(subscription.closed_backoff(self.url) * self._rng.uniform(0.75, 1.25))
        if not subscription.ended:
            await self.ask(subscription)

    def _count_nonsense(self, what: str) -> None:
        self._nonsense += 1
        self.status = attrs.evolve(self.status, nonsense_received=self.status.nonsense_received + 1)
        log.warning("%s sent %s", self.url, what)
        if self._nonsense >= MAX_NONSENSE:
            self.cut("too much nonsense")
