"""The client's end of Nostr Wallet Connect (NIP-47): questions to a wallet service, and its answers.

Responses are ephemeral: what comes while a relay is away is gone. So a question that may be asked twice is asked again,
as a new request, until it is answered. A request to pay goes out once; what became of it is found out otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from protocols import nip47
from protocols.nip01 import Event, Filter
from protocols.nip47 import ConnectionUri, Encryption, ErrorCode, Failure, Info, Nip47Invalid, Notification
from pylon.clock import Clock
from pylon.errors import RelayError
from pylon.relays.pool import RelayPool

log = logging.getLogger(__name__)

CALL_SECONDS = 24.0
"""For an answer, asked again and again."""
ASK_AGAIN = 8.0
"""Seconds after which a question is asked anew."""
CONNECT_SECONDS = 10.0
"""How long a relay is waited for when none is connected."""
INFO_SECONDS = 5.0
_INFO_KEEPS = 3_600.0
_LOOK_BACK = 900
_BUSY_SECONDS = 3.0
"""After ``RATE_LIMITED``."""
_GRACE = 60
"""Seconds by which a request outlives its asker: clocks differ."""


class NotAsked(Exception):
    """The request has not left: it was handed to no relay. Whatever it was for has not happened."""


class NoAnswer(Exception):
    """Nothing came in time; the request may have been served, or may yet be until it expires.

    Also where every relay refused it: one may say no, and pass it on.
    """


class Refused(Exception):
    """The service answered with an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


@attrs.define(eq=False)
class _Call:
    method: str
    once: bool = False
    ids: set[str] = attrs.field(factory=set)
    took: set[str] = attrs.field(factory=set)
    """Relays that were handed a request, whatever they said of it. None: it has not left."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    result: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    error: Failure | None = None


class NwcClient:
    """See the module. ``run`` must be running; ``heard`` is told of every notification."""

    def __init__(
        self,
        uri: ConnectionUri,
        pool: RelayPool,
        clock: Clock,
        heard: Callable[[Notification], Awaitable[None]],
    ) -> None:
        self._uri = uri
        self._pool = pool
        self._clock = clock
        self._heard = heard
        self._calls: list[_Call] = []
        self._info: Info | None = None
        self._info_at = -1e9
        self._fallback: Encryption | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        wanted = nip47.client_filter(self._uri)
        since = int(self._clock.now()) - _LOOK_BACK
        async with self._pool.subscribe([wanted], since=since) as subscription:
            task_status.started()
            async for received in subscription:
                event = received.event
                if event.kind == nip47.RESPONSE:
                    self._answered(event)
                else:
                    await self._notified(event)

    async def info(self) -> Info | None:
        """The service's info event (13194); ``None`` where no relay has one."""
        if self._info is None or self._clock.monotonic() - self._info_at > _INFO_KEEPS:
            wanted = Filter(kinds=[nip47.INFO], authors=[self._uri.wallet.hex])
            found = await self._pool.fetch([wanted], INFO_SECONDS)
            if found:
                self._info = nip47.read_info(found[0])
                self._info_at = self._clock.monotonic()
        return self._info

    async def ask(self, method: str, params: Mapping[str, Any], seconds: float = CALL_SECONDS) -> Mapping[str, Any]:
        """The result of something that may be asked twice. Raises ``NotAsked``, ``NoAnswer``, ``Refused``."""
        call = _Call(method)
        with trio.move_on_after(seconds):
            async with self._calling(call, seconds) as nursery:
                while call.result is None:
                    await self._send(nursery, call, params, ASK_AGAIN)
                    with trio.move_on_after(ASK_AGAIN):
                        await call.ended.wait()
                    if call.error is None:
                        continue
                    busy = call.error.code is ErrorCode.RATE_LIMITED
                    if not (busy or self._change_cipher(call.error)):
                        break
                    call.ended, call.error = trio.Event(), None
                    await trio.sleep(_BUSY_SECONDS if busy else 0.0)
        return _outcome(call)

    async def ask_once(self, method: str, params: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        """The result of a request that goes out once, and lapses. Raises ``NotAsked``, ``NoAnswer``, ``Refused``."""
        call = _Call(method, once=True)
        with trio.move_on_after(seconds):
            async with self._calling(call, seconds) as nursery:
                await self._send(nursery, call, params, seconds)
                await call.ended.wait()
        return _outcome(call)

    def lapses(self, seconds: float) -> float:
        """When a request lapses that is given so many seconds from now, wall time."""
        return int(self._clock.now() + seconds) + _GRACE

    # --- within -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _calling(self, call: _Call, seconds: float) -> AsyncIterator[trio.Nursery]:
        """A call is listened for as long as the block lasts, once a relay is there. Raises ``NotAsked``."""
        try:
            await self._pool.connected(timeout=min(CONNECT_SECONDS, seconds))
        except RelayError:
            raise NotAsked from None
        self._calls.append(call)
        try:
            async with trio.open_nursery() as nursery:
                yield nursery
                nursery.cancel_scope.cancel()
        finally:
            self._calls.remove(call)

    async def _cipher(self) -> Encryption:
        if self._fallback is not None:
            return self._fallback
        info = await self.info()
        if info is None:
            return Encryption.NIP44
        return info.best or Encryption.NIP44

    def _change_cipher(self, failure: Failure) -> bool:
        """A service that published nothing may speak the old cipher only; tried once."""
        if failure.code is not ErrorCode.UNSUPPORTED_ENCRYPTION or self._fallback is not None:
            return False
        self._fallback = Encryption.NIP04
        return True

    async def _send(self, nursery: trio.Nursery, call: _Call, params: Mapping[str, Any], seconds: float) -> None:
        """Give a new request to every relay that is there."""
        cipher = await self._cipher()
        try:
            event = nip47.build_request(
                self._uri.secret,
                self._uri.wallet,
                method=call.method,
                params=params,
                created_at=int(self._clock.now()),
                encryption=cipher,
                expires_at=int(self.lapses(seconds)),
            )
        except Nip47Invalid as error:
            call.error = Failure(ErrorCode.OTHER, f"the request: {error}")
            call.ended.set()
            return
        call.ids.add(event.id)
        there = [url for url in self._pool.urls if self._pool.is_connected(url)]
        call.took.update(there)
        if not there and call.once:
            call.ended.set()
        for url in there:
            nursery.start_soon(self._publish, url, event)

    async def _publish(self, url: str, event: Event) -> None:
        try:
            verdict = await self._pool.publish(url, event)
        except RelayError as error:
            # It may have arrived all the same.
            log.debug("a request to the wallet: %s", error.message)
            return
        if not verdict.accepted and not verdict.message.startswith("duplicate:"):
            # It may have been passed on all the same: an answer is waited for.
            log.warning("%s refused a request to the wallet: %s", url, verdict.message)

    def _answered(self, event: Event) -> None:
        try:
            response = nip47.open_response(event, self._uri.secret)
        except Nip47Invalid as error:
            log.warning("an answer of the wallet cannot be read: %s", error)
            return
        if response.request is None:
            # Old services do not say what they answer; then it must be plain.
            waiting = [call for call in self._calls if call.method == response.method]
            call = waiting[0] if len(waiting) == 1 else None
        else:
            call = next((call for call in self._calls if response.request in call.ids), None)
        if call is not None and not call.ended.is_set():
            call.result, call.error = response.result, response.error
            call.ended.set()

    async def _notified(self, event: Event) -> None:
        try:
            notification = nip47.open_notification(event, self._uri.secret)
        except Nip47Invalid as error:
            log.warning("a notification of the wallet cannot be read: %s", error)
            return
        await self._heard(notification)


def _outcome(call: _Call) -> Mapping[str, Any]:
    if call.error is not None:
        raise Refused(call.error)
    if call.result is not None:
        return call.result
    if not call.took:
        raise NotAsked
    raise NoAnswer
