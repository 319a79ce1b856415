"""What the engines of our own share: one model, how it stands, and waiting until something answers.

What answers is a client of a child process in one of them, and the model itself in the other. It is there or it is not;
where it is not, it is on its way, or somebody has said why not.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, Generic, Self, TypeVar

import trio

from pylon.backoff import Backoff
from pylon.errors import BackendUnavailable, ModelMissing
from pylon.inference.deadlines import Accepted, collect, enforce
from pylon.inference.models import ModelFile, greeted
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
)

T = TypeVar("T")
"""What answers."""


class LocalEngine(ABC, Generic[T]):
    """A backend with one model that has to be run.

    :param slots: answers at the same time.
    :param context: tokens of prompt and answer together, at most.
    :param rng: for the jitter between two attempts to start.
    :param backoff: the waits between them, instead of those that ``rng`` draws.
    """

    called: ClassVar[str]
    """In errors."""
    see: ClassVar[str]
    """Where more is said about why it is not ready."""

    def __init__(
        self, model: ModelFile, *, slots: int, context: int, rng: random.Random | None, backoff: Backoff | None
    ) -> None:
        self.model = model
        self.slots = slots
        self.context = context
        self._backoff = backoff or Backoff(rng or random.Random())
        self._ready: T | None = None
        self._state = "stopped"
        self._loading = False
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name!r}, {self._state!r})"

    @property
    def name(self) -> str:
        return "llamacpp"

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(self.model.name, self.name, self.context)]

    async def health(self) -> Health:
        return Health(self._ready is not None, self._state)

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        return enforce(self.name, deadlines, lambda accepted: self._generate(request, accepted))

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        return await collect(self.stream(request, deadlines), self.model.name)

    async def aclose(self) -> None:
        """Nothing: what answers ends with ``run`` or ``running``."""

    async def ready(self) -> None:
        """Wait until it answers. Raises ``BackendUnavailable`` if it fails to start, or is not started."""
        await self._when_ready()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """The engine, answering, for as long as the block lasts. Raises ``BackendUnavailable``."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self.run)
            try:
                await self.ready()
                yield self
            except Exception as error:
                failure = error  # raised below, where no nursery wraps it into a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it alive until cancelled. ``started`` means that the first start has begun."""

    @abstractmethod
    def _generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        """The answer, of which the first word may come after ``accepted``. Raises ``InferenceError``."""

    def _asked(self, request: InferenceRequest) -> InferenceRequest:
        """``request`` as the model wants it. Raises ``ModelMissing`` where it is for another one."""
        if request.model != self.model.name:
            raise ModelMissing(
                f"{self.called} has no model {request.model!r}, only {self.model.name!r}",
                "pylon models lists what is there",
            )
        return greeted(self.model, request)

    async def _when_ready(self) -> T:
        while self._ready is None:
            if not self._loading:
                raise BackendUnavailable(f"{self.called} is not ready ({self._state})", self.see)
            await self._changed.wait()
        return self._ready

    def _say(self, state: str, ready: T | None = None, *, loading: bool = False) -> None:
        self._state, self._ready, self._loading = state, ready, loading
        self._changed.set()
        self._changed = trio.Event()
