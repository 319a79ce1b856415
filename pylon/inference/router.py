"""Which backend serves which model.

The backends stand in the order of preference. A model belongs to the first healthy backend that has it; failing that,
to the first that has it and may still come up. A model that nobody has is served by the first model of the first
healthy backend, which is said once in the log and remembered. With no healthy backend there is nothing
to fall back on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from pylon.errors import BackendTimeout, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.deadlines import collect
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


@attrs.frozen
class Route:
    """Where a request goes. ``model`` is the backend's own id, and not ``asked`` where that is not there."""

    backend: Backend
    model: str
    asked: str
    substituted: bool = False


@attrs.frozen
class _Look:
    models: tuple[ModelInfo, ...]
    health: Health
    until: float


class Router:
    """All backends as one ``Backend``.

    :param preference: names of backends, the best first; those not named follow in the order given.
    :param default_model: what an empty model name asks for; empty: the first model of the first healthy backend.

    ``substitutions`` maps every model that was asked for and not there to what was used instead.
    """

    def __init__(self, backends: Sequence[Backend], *, preference: Sequence[str] = (), default_model: str = "") -> None:
        ranks = {name: rank for rank, name in reversed(list(enumerate(preference)))}
        self.backends = tuple(sorted(backends, key=lambda backend: ranks.get(backend.name, len(preference))))
        self.default_model = default_model
        self.substitutions: dict[str, Route] = {}
        self._looks: dict[int, _Look] = {}
        self._looking = trio.Lock()

    @property
    def name(self) -> str:
        return "router"

    async def models(self) -> list[ModelInfo]:
        """Every model of every backend, by preference; a name that two backends have appears twice."""
        return [model for look in await self._look() for model in look.models]

    async def health(self) -> Health:
        """Healthy as soon as one backend is; ``detail`` names each."""
        looks = await self._look()
        return Health(any(look.health.ok for look in looks), self._describe(looks))

    async def resolve(self, model: str) -> Route:
        """The route of ``model``; an empty name asks for the default. Raises ``BackendUnavailable`` without any."""
        model = model or self.default_model
        looks = list(zip(self.backends, await self._look(), strict=True))
        for wanted_health in (True, False):
            for backend, look in looks:
                if look.health.ok is wanted_health and (found := _find(model, look.models)):
                    return Route(backend, found, model)
        for backend, look in looks:
            if look.health.ok and look.models:
                return self._substitute(Route(backend, look.models[0].id, model, substituted=bool(model)))
        if not model:
            for backend, look in looks:
                if look.models:
                    return Route(backend, look.models[0].id, model)
        raise BackendUnavailable(
            f"no backend can answer: {self._describe([look for _, look in looks])}",
            "start Ollama or a llama.cpp server, or pull the embedded model: pylon models pull",
        )

    @asynccontextmanager
    async def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        route = await self.resolve(request.model)
        async with self._guarded(route):
            async with route.backend.stream(attrs.evolve(request, model=route.model), deadlines) as chunks:
                yield chunks

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        """``Completion.model`` is the model that really answered."""
        route = await self.resolve(request.model)
        async with self._guarded(route):
            stream = route.backend.stream(attrs.evolve(request, model=route.model), deadlines)
            return await collect(stream, route.model)

    async def aclose(self) -> None:
        for backend in self.backends:
            await backend.aclose()

    @asynccontextmanager
    async def _guarded(self, route: Route) -> AsyncIterator[None]:
        """A backend that failed is looked at anew before the next request."""
        try:
            yield
        except (BackendUnavailable, BackendTimeout, ModelMissing):
            self._looks.pop(id(route.backend), None)
            raise

    def _substitute(self, route: Route) -> Route:
        if route.substituted:
            known = self.substitutions.get(route.asked)
            if known is None or (known.backend, known.model) != (route.backend, route.model):
                self.substitutions[route.asked] = route
                log.warning("no backend has the model %r: using %r of %s", route.asked, route.model, route.backend.name)
        return route

    async def _look(self) -> list[_Look]:
        async with self._looking:
            now = trio.current_time()
            fresh = {of for of, look in self._looks.items() if look.until > now}
            stale = [backend for backend in self.backends if id(backend) not in fresh]
            if stale:
                async with trio.open_nursery() as nursery:
                    for backend in stale:
                        nursery.start_soon(self._look_at, backend)
            # A backend that fails meanwhile may have been dropped by another task.
            return [self._looks.get(id(b)) or _Look((), Health(False, "just failed"), 0) for b in self.backends]

    async def _look_at(self, backend: Backend) -> None:
        began = trio.current_time()
        models: list[ModelInfo] = []
        health = Health(False, f"no answer within {_PROBE:g} s")
        with trio.move_on_after(_PROBE):
            health = await backend.health()
            try:
                models = await backend.models()
            except InferenceError as error:
                health = Health(False, error.message)
        now = trio.current_time()
        fresh = _FRESH if health.ok else max(_FRESH_FAILURE, _WORTH * (now - began))
        self._looks[id(backend)] = _Look(tuple(models), health, now + fresh)

    def _describe(self, looks: Sequence[_Look]) -> str:
        parts = [
            f"{backend.name}: {'ok' if look.health.ok else look.health.detail or 'down'}"
            for backend, look in zip(self.backends, looks, strict=True)
        ]
        return "; ".join(parts) or "none is configured"


def _find(model: str, models: Sequence[ModelInfo]) -> str | None:
    """The id under which a backend has ``model``. Ollama calls ``llama3.2`` by its full name, ``llama3.2:latest``."""
    ids = [info.id for info in models]
    return next((candidate for candidate in (model, f"{model}:latest") if model and candidate in ids), None)
