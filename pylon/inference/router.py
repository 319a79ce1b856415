"""Which backend serves which model.

The backends stand in the order of preference; those of one rank are equals, of which the one with the least to do
comes first. A model belongs to the first healthy backend that has it; failing that, to the first that has it and may
still come up. A model that nobody has is served by the first model of the first healthy backend, which is said once in
the log and remembered. With no healthy backend there is nothing to fall back on.

A backend that fails before its first word is not the end: the next that has the model is asked, as long as there is
one. After the first word there is no other, for half an answer has gone out.

Each backend stands behind a ``Gate``: what is full refuses, and what has failed again and again is left alone for a
while. Health is what a backend says of itself; one that is too busy to say anything, but whose answers keep coming, is
not dead.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import attrs
import trio

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.deadlines import collect
from pylon.inference.gate import Gate
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Backend,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
)

log = logging.getLogger(__name__)

_PROBE = 3.0
"""Seconds that a backend has to say what it serves."""

_FRESH = 30.0
"""Seconds that a good answer is believed."""

_FRESH_FAILURE = 3.0
"""Seconds that a failure is believed that came at once."""

_WORTH = 20
"""A failure is believed at least this many times as long as it took: a backend in a black hole delays few requests."""

_SUBSTITUTIONS = 100
"""How many are remembered: anybody may ask for any name."""

_BUSY = Health(True, "busy: its answers keep coming")


@attrs.frozen
class Place:
    """A backend and what is known of it beforehand.

    :param rank: the lower, the better; ``None``: after all that have one, each by itself.
    :param most: answers at the same time; ``None``: any number.
    :param queue: requests that may wait.
    :param expected: whether somebody counts on it; one that is not, and does not answer, is not spoken of.
    """

    backend: Backend
    rank: int | None = None
    most: int | None = None
    queue: int = 64
    expected: bool = True
    kind: str = ""
    address: str = ""


@attrs.frozen
class Route:
    """Where a request goes. ``model`` is the backend's own id, and not ``asked`` where that is not there."""

    backend: Backend
    model: str
    asked: str
    substituted: bool = False


@attrs.frozen
class Standing:
    """How one backend stands, for people."""

    place: Place
    health: Health
    models: tuple[ModelInfo, ...]
    active: int
    waiting: int

    @property
    def name(self) -> str:
        return self.place.backend.name


@attrs.frozen
class _Look:
    models: tuple[ModelInfo, ...]
    health: Health
    until: float


@attrs.frozen
class _Seat:
    place: Place
    gate: Gate
    rank: tuple[int, int]

    @property
    def backend(self) -> Backend:
        return self.place.backend


class Router:
    """All backends as one ``Backend``.

    :param backends: as they are, or in their ``Place``.
    :param preference: names of backends, the best first; those not named follow in the order given.
    :param default_model: what an empty model name asks for; empty: the first model of the first healthy backend.

    ``substitutions`` maps models that were asked for and not there to what was used instead.
    """

    def __init__(
        self, backends: Sequence[Backend | Place], *, preference: Sequence[str] = (), default_model: str = ""
    ) -> None:
        ranks = {name: rank for rank, name in reversed(list(enumerate(preference)))}
        places = [backend if isinstance(backend, Place) else Place(backend) for backend in backends]
        seats = []
        for index, place in enumerate(places):
            rank = ranks.get(place.backend.name, place.rank)
            by = (rank, 0) if rank is not None else (1 << 30, index)
            seats.append(_Seat(place, Gate(place.backend.name, most=place.most, queue=place.queue), by))
        self._seats = sorted(seats, key=lambda seat: seat.rank)
        self.backends = tuple(seat.backend for seat in self._seats)
        self.places = tuple(seat.place for seat in self._seats)
        self.default_model = default_model
        self.substitutions: dict[str, Route] = {}
        self._looks: dict[int, _Look] = {}
        self._looking = trio.Lock()

    @property
    def name(self) -> str:
        return "router"

    @property
    def slots(self) -> int:
        """Answers at the same time, of all backends together; one for each that says nothing of it."""
        return sum(place.most or 1 for place in self.places)

    async def models(self, *, healthy: bool = False) -> list[ModelInfo]:
        """Every model of every backend, by preference; a name that two backends have appears twice.

        Backends that are left alone are not among them; ``healthy``: nor those that may still come up.
        """
        return [
            model
            for seat, look in await self._look()
            if seat.gate.is_open and (look.health.ok or not healthy)
            for model in look.models
        ]

    async def health(self) -> Health:
        """Healthy as soon as one backend is; ``detail`` names each."""
        looks = await self._look()
        return Health(any(self._health(seat, look).ok for seat, look in looks), self._describe(looks))

    async def standings(self, patience: float = 1.0, *, everyone: bool = False) -> list[Standing]:
        """How each backend stands, by preference; of those that nobody counts on, only who answers or ``everyone``.

        Nobody is waited for longer than ``patience`` seconds: it is then told what was known last.
        """
        with trio.move_on_after(patience):
            await self._look()
        unknown = _Look((), Health(False, "has not answered yet"), 0)
        looks = [(seat, self._looks.get(id(seat.backend)) or unknown) for seat in self._seats]
        return [
            Standing(seat.place, self._health(seat, look), look.models, seat.gate.active, seat.gate.waiting)
            for seat, look in looks
            if everyone or seat.place.expected or look.health.ok
        ]

    async def resolve(self, model: str) -> Route:
        """The route of ``model``; an empty name asks for the default. Raises ``BackendUnavailable`` without any."""
        return (await self._routes(model))[0][1]

    async def candidates(self, model: str) -> list[Route]:
        """Every route of ``model``, the best first. Raises ``BackendUnavailable`` without any."""
        return [route for _, route in await self._routes(model)]

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES, *, only: Backend | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """``only``: by this backend and no other, for who goes through the ``candidates`` himself."""
        async with aclosing(self._generate(request, deadlines, [], only)) as chunks:
            yield chunks

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        """``Completion.model`` is the model that really answered."""
        used: list[Route] = []
        done = await collect(aclosing(self._generate(request, deadlines, used)), request.model)
        return attrs.evolve(done, model=used[-1].model)

    async def aclose(self) -> None:
        for backend in self.backends:
            await backend.aclose()

    # --- answers ----------------------------------------------------------------------------------------------

    async def _generate(
        self, request: InferenceRequest, deadlines: Deadlines, used: list[Route], only: Backend | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of the first backend that comes to its first word. ``used`` gets the routes tried."""
        first: InferenceError | None = None
        for seat, route in await self._routes(request.model):
            if only is not None and route.backend is not only:
                continue
            used.append(route)
            spoke = False
            try:
                async with seat.gate.entered() as visit:
                    ours = attrs.evolve(request, model=route.model)
                    async with self._judged(seat), route.backend.stream(ours, deadlines) as chunks:
                        async for chunk in chunks:
                            seat.gate.sign()
                            visit.answered = visit.answered or chunk.finish_reason is not None
                            spoke = spoke or bool(chunk.text) or chunk.finish_reason is not None
                            yield chunk
                return
            except InferenceError as error:
                if spoke:
                    raise
                # What the best one said matters; that the others were only full does not.
                if first is None or (isinstance(first, BackendBusy) and not isinstance(error, BackendBusy)):
                    first = error
                log.info("%s did not answer: %s", route.backend.name, error.message)
        raise first or BackendUnavailable("the backend that was chosen cannot answer now", "see pylon compute")

    @asynccontextmanager
    async def _judged(self, seat: _Seat) -> AsyncIterator[None]:
        """A backend that failed is looked at anew before the next request."""
        try:
            yield
        except BackendBusy:
            raise
        except (BackendUnavailable, BackendTimeout, ModelMissing):
            self._looks.pop(id(seat.backend), None)
            raise

    # --- who is asked -----------------------------------------------------------------------------------------

    async def _routes(self, model: str) -> list[tuple[_Seat, Route]]:
        """Those to ask, the best first. Raises ``BackendUnavailable`` without any."""
        model = model or self.default_model
        looks = await self._look()
        # Equals by what they have to do. One that is full refuses, and the next is asked.
        order = sorted(looks, key=lambda pair: (pair[0].rank, pair[0].gate.load))
        able = [(seat, look) for seat, look in order if seat.gate.is_open]
        for candidates in (
            [
                (seat, Route(seat.backend, found, model))
                for well in (True, False)
                for seat, look in able
                if look.health.ok is well and (found := _find(model, look.models))
            ],
            [
                (seat, Route(seat.backend, look.models[0].id, model, substituted=bool(model)))
                for seat, look in able
                if look.health.ok and look.models
            ],
            [(seat, Route(seat.backend, look.models[0].id, model)) for seat, look in able if look.models and not model],
        ):
            if candidates:
                self._remember(candidates[0][1])
                return candidates
        raise BackendUnavailable(
            f"no backend can answer: {self._describe(looks)}",
            "start Ollama or a llama.cpp server, or pull the embedded model: pylon models pull",
        )

    def _remember(self, route: Route) -> None:
        if route.substituted:
            known = self.substitutions.get(route.asked)
            if known is None or (known.backend, known.model) != (route.backend, route.model):
                while len(self.substitutions) >= _SUBSTITUTIONS:
                    self.substitutions.pop(next(iter(self.substitutions)))
                self.substitutions[route.asked] = route
                log.warning("no backend has the model %r: using %r of %s", route.asked, route.model, route.backend.name)

    # --- what they say of themselves --------------------------------------------------------------------------

    async def _look(self) -> list[tuple[_Seat, _Look]]:
        async with self._looking:
            now = trio.current_time()
            fresh = {of for of, look in self._looks.items() if look.until > now}
            stale = [seat for seat in self._seats if id(seat.backend) not in fresh]
            if stale:
                async with trio.open_nursery() as nursery:
                    for seat in stale:
                        nursery.start_soon(self._look_at, seat)
            # A backend that fails meanwhile may have been dropped by another task.
            unknown = _Look((), Health(False, "just failed"), 0)
            return [(seat, self._looks.get(id(seat.backend)) or unknown) for seat in self._seats]

    async def _look_at(self, seat: _Seat) -> None:
        began = trio.current_time()
        models: list[ModelInfo] = []
        health = Health(False, f"no answer within {_PROBE:g} s")
        with trio.move_on_after(_PROBE):
            health = await seat.backend.health()
            try:
                models = await seat.backend.models()
            except InferenceError as error:
                health = Health(False, error.message) if health.ok else health
        before = self._looks.get(id(seat.backend))
        if not health.ok and seat.gate.is_answering and before is not None and before.models:
            health, models = _BUSY, list(before.models)
        now = trio.current_time()
        fresh = _FRESH if health.ok else max(_FRESH_FAILURE, _WORTH * (now - began))
        self._looks[id(seat.backend)] = _Look(tuple(models), health, now + fresh)

    def _health(self, seat: _Seat, look: _Look) -> Health:
        """What a backend says of itself, unless it is left alone."""
        return look.health if seat.gate.is_open else Health(False, seat.gate.why())

    def _describe(self, looks: Sequence[tuple[_Seat, _Look]]) -> str:
        healths = [(seat.backend.name, self._health(seat, look)) for seat, look in looks]
        parts = [f"{name}: {'ok' if health.ok else health.detail or 'down'}" for name, health in healths]
        return "; ".join(parts) or "none is configured"


def _find(model: str, models: Sequence[ModelInfo]) -> str | None:
    """The id under which a backend has ``model``. Ollama calls ``llama3.2`` by its full name, ``llama3.2:latest``."""
    ids = [info.id for info in models]
    return next((candidate for candidate in (model, f"{model}:latest") if model and candidate in ids), None)
