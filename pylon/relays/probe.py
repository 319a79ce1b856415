"""Looking at one relay as a client would: connect, ping, read, write, and what it says of itself. Bounded in time.

The write test is an ephemeral event (NIP-01, kinds 20000 to 29999), which relays pass on and do not keep. A relay that
wants to know who asks (NIP-42) is answered, where there is a key to answer with. Each part fails for itself: a relay
that refuses to be written to can still be read.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from protocols import session as wire
from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter, sign_event
from protocols.nip11 import RelayInformation
from pylon.clock import Clock
from pylon.errors import RelayError, brief
from pylon.relays.information import Answered, fetch_information
from pylon.relays.transport import Connect, Transport, TransportClosed

KIND = 21_118
"""Ephemeral, of no meaning to anybody."""
SECONDS = 10.0
AT_ONCE = 16
_AUTH = 22242
_STEP_SECONDS = 5.0
_MOST_MESSAGE = 200


class Auth(enum.StrEnum):
    """How the relay and we came along by NIP-42."""

    NOT_ASKED = "not asked"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    NO_KEY = "asked for, and there is no key here to answer with"


@attrs.frozen
class Step:
    """One thing that was tried."""

    ok: bool
    seconds: float | None = None
    detail: str = ""


@attrs.frozen(kw_only=True)
class Probe:
    """What was found. Times in seconds; ``None``: not known, for it did not come so far."""

    url: str
    connect: Step
    latency: float | None = None
    read: Step | None = None
    write: Step | None = None
    auth: Auth = Auth.NOT_ASKED
    information: RelayInformation | None = None
    information_error: str = ""
    clock_ahead: float | None = None
    """By how much the relay's clock is ahead of ours, to about a second."""

    @property
    def ok(self) -> bool:
        """Whether it can be read from and written to."""
        return all(step is not None and step.ok for step in (self.connect, self.read, self.write))

    def to_json(self) -> dict[str, object]:
        document = None if self.information is None else self.information.to_dict()
        return {
            "url": self.url,
            "ok": self.ok,
            "connect": attrs.asdict(self.connect),
            "latency": self.latency,
            "read": None if self.read is None else attrs.asdict(self.read),
            "write": None if self.write is None else attrs.asdict(self.write),
            "auth": self.auth.value,
            "information": document,
            "information_error": self.information_error,
            "clock_ahead": self.clock_ahead,
        }


Ask = Callable[[str, float], Awaitable[Answered]]
"""``await ask(url, seconds)``: what a relay says of itself, or ``RelayError``."""


def by_http(clock: Clock) -> Ask:
    """The real one."""
    importlib.import_module("httpx")  # now, for the time that it takes is none of a relay's

    async def ask(url: str, seconds: float) -> Answered:
        return await fetch_information(url, clock=clock, timeout=seconds)

    return ask


async def probe_all(
    urls: list[str], *, connect: Connect, ask: Ask, clock: Clock, signer: dict[str, SecretKey], seconds: float = SECONDS
) -> list[Probe]:
    """All at once, in their order; ``signer`` has the key to answer each with, if there is one."""
    found: dict[str, Probe] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def look(url: str) -> None:
        async with limit:
            found[url] = await probe(
                url, connect=connect, ask=ask, clock=clock, signer=signer.get(url), seconds=seconds
            )

    async with trio.open_nursery() as nursery:
        for url in dict.fromkeys(urls):
            nursery.start_soon(look, url)
    return [found[url] for url in dict.fromkeys(urls)]


async def probe(
    url: str, *, connect: Connect, ask: Ask, clock: Clock, signer: SecretKey | None, seconds: float = SECONDS
) -> Probe:
    """Within ``seconds``, whatever the relay does. Raises nothing for it."""
    told: list[Answered | str] = []
    looking = _Looking(url, connect, clock, signer)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_inform, ask, url, min(seconds, _STEP_SECONDS), told)
            await looking.run()
    answer = told[0] if told else f"{url}: it has not answered in time"
    return attrs.evolve(
        looking.probe,
        information=answer.information if isinstance(answer, Answered) else None,
        information_error="" if isinstance(answer, Answered) else answer.removeprefix(f"{url}: "),
        clock_ahead=answer.ahead if isinstance(answer, Answered) else None,
    )


async def _inform(ask: Ask, url: str, seconds: float, told: list[Answered | str]) -> None:
    try:
        told.append(await ask(url, seconds))
    except RelayError as error:
        told.append(error.message)


class _Looking:
    """The websocket's part. ``probe`` is what is known so far, for it may be cut short."""

    def __init__(self, url: str, connect: Connect, clock: Clock, signer: SecretKey | None) -> None:
        self._url, self._connect, self._clock, self._signer = url, connect, clock, signer
        self._session = wire.ClientSession()
        self._challenge = ""
        self.probe = Probe(url=url, connect=Step(False, detail="no connection in time"))

    async def run(self) -> None:
        began = trio.current_time()
        try:
            async with self._connect(self._url) as transport:
                self._know(connect=Step(True, trio.current_time() - began))
                await self._talk(transport)
        except RelayError as error:
            if not self.probe.connect.ok:
                self._know(connect=Step(False, detail=error.message.removeprefix(f"{self._url}: ")))
        except (TransportClosed, OSError) as error:
            self._fail(str(error) or "the connection broke")
        except Exception as error:
            # Whatever a relay answers, the others are looked at.
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            self._fail(str(error) if isinstance(error, TransportClosed) else brief(error))

    def _fail(self, why: str) -> None:
        """What was not tried yet has failed for this reason."""
        if not self.probe.connect.ok:
            self._know(connect=Step(False, detail=why))
        elif self.probe.read is None or not self.probe.read.ok:
            self._know(read=Step(False, detail=why))
        else:
            self._know(write=Step(False, detail=why))

    def _know(self, **changes: Any) -> None:
        self.probe = attrs.evolve(self.probe, **changes)

    async def _talk(self, transport: Transport) -> None:
        self._know(read=Step(False, detail="it did not answer in time"))
        began = trio.current_time()
        with trio.move_on_after(_STEP_SECONDS):
            await transport.ping()
            self._know(latency=trio.current_time() - began)
        self._know(read=await self._try(self._read, transport))
        self._know(write=Step(False, detail="it did not say whether it has the event"))
        self._know(write=await self._try(self._write, transport))

    async def _try(self, step: Callable[[Transport], Awaitable[Step]], transport: Transport) -> Step:
        """A step, once more after an authentication if that was what it lacked."""
        taken = await step(transport)
        if not taken.ok and taken.detail.startswith("auth-required"):
            if self._signer is None:
                self._know(auth=Auth.NO_KEY)
                return taken
            if await self._authenticate(transport):
                return await step(transport)
        return taken

    async def _read(self, transport: Transport) -> Step:
        began = trio.current_time()
        name = f"c{int(began * 1_000) % 100_000}"
        await transport.send(self._session.subscribe(name, Filter(kinds=[KIND], limit=1)))
        with trio.move_on_after(_STEP_SECONDS):
            while True:
                match self._hear(await transport.receive()):
                    case wire.Stored(found) if found == name:
                        taken = Step(True, trio.current_time() - began)
                        self._know(read=taken)  # whatever comes of our goodbye
                        frame = self._session.unsubscribe(name)
                        if frame is not None:
                            await transport.send(frame)
                        return taken
                    case wire.Closed(found, _, message) if found == name:
                        return Step(False, detail=message[:_MOST_MESSAGE] or "it closed the subscription")
                    case wire.Notice(message) if "auth" in message.lower():
                        return Step(False, detail=f"auth-required: {message[:_MOST_MESSAGE]}")
        return Step(False, detail="it did not answer in time")

    async def _write(self, transport: Transport) -> Step:
        secret = self._signer or SecretKey.generate()
        event = sign_event(secret, kind=KIND, tags=[], content="", created_at=int(self._clock.now()))
        began = trio.current_time()
        verdict = await self._publish(transport, event, self._session.publish(event))
        if verdict is None:
            return Step(False, detail="it did not say whether it has the event")
        if not verdict.accepted:
            return Step(False, detail=verdict.message[:_MOST_MESSAGE] or "it refused the event")
        return Step(True, trio.current_time() - began)

    async def _publish(self, transport: Transport, event: Event, frame: str) -> wire.Published | None:
        await transport.send(frame)
        with trio.move_on_after(_STEP_SECONDS):
            while True:
                heard = self._hear(await transport.receive())
                if isinstance(heard, wire.Published) and heard.event_id == event.id:
                    return heard
        return None

    async def _authenticate(self, transport: Transport) -> bool:
        assert self._signer is not None, "only with a key"
        with trio.move_on_after(_STEP_SECONDS):
            while not self._challenge:  # it may come after the refusal
                self._hear(await transport.receive())
        if not self._challenge:
            self._know(auth=Auth.REFUSED)
            return False
        tags = [["relay", self._url], ["challenge", self._challenge]]
        event = sign_event(self._signer, kind=_AUTH, tags=tags, created_at=int(self._clock.now()))
        verdict = await self._publish(transport, event, self._session.authenticate(event))
        accepted = verdict is not None and verdict.accepted
        self._know(auth=Auth.ACCEPTED if accepted else Auth.REFUSED)
        return accepted

    def _hear(self, frame: str) -> wire.Happening:
        happening = self._session.feed(frame)
        if isinstance(happening, wire.Challenge):
            self._challenge = happening.challenge
        return happening
