"""What stands between the API and whoever answers: the ``Answerer`` port, and this machine's own backends behind it.

The other implementation buys its answers (``pylon.api.gateway``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import attrs
import trio

from pylon.api.openai_shapes import ApiError, model_not_found
from pylon.errors import BackendUnavailable, InferenceError, brief
from pylon.groups import cause
from pylon.inference.port import DEFAULT_DEADLINES, Chunk, Deadlines, InferenceRequest, ModelInfo
from pylon.inference.router import Route, Router

PAID_HEADER, FEE_HEADER, JOB_HEADER = "x-pylon-paid-msats", "x-pylon-fee-msats", "x-pylon-job"
"""What an answer has cost, where it was bought, and its job."""
PRICE_HEADER = "x-pylon-price-msats"
"""What it costs once it is whole, where the first words come before it is paid."""
STARTING_SECONDS = 15.0
"""For a backend that says that it is starting."""
RETRY_SECONDS = 5
"""What a client is told to wait for a backend that is away."""


@attrs.define(eq=False)
class Answer:
    """One answer on its way. ``model`` and ``headers`` are known once the first chunk is."""

    chunks: AsyncIterator[Chunk]
    model: str
    """The one that answers."""
    headers: dict[str, str] = attrs.field(factory=dict)
    """What else the caller is told: what it has cost."""


class Answerer(Protocol):
    @property
    def default_tokens(self) -> int:
        """The longest answer where a call names none."""
        ...

    async def models(self) -> list[ModelInfo]:
        """What it answers with. Raises ``PylonError``."""
        ...

    def stream(
        self, request: InferenceRequest, *, whole: bool = False, key: str = ""
    ) -> AbstractAsyncContextManager[Answer]:
        """``async with answerer.stream(request) as answer: async for chunk in answer.chunks``.

        :param whole: nobody reads before the end, so that words need not come before they are final.
        :param key: what was asked with it before is not paid for again; empty: it is asked anew.

        An empty model asks for whatever answers by default. Leaving the block ends the generation, where it can be
        ended. Raises ``ApiError`` and ``PylonError``.
        """
        ...


class LocalAnswerer:
    """The backends of this machine."""

    default_tokens = 1_024

    def __init__(self, router: Router, deadlines: Deadlines = DEFAULT_DEADLINES) -> None:
        self._router = router
        self._deadlines = deadlines

    async def models(self) -> list[ModelInfo]:
        return await self._router.models()

    @asynccontextmanager
    async def stream(self, request: InferenceRequest, *, whole: bool = False, key: str = "") -> AsyncIterator[Answer]:
        """A model that was named and is not there is an error: whoever names one branches on it."""
        route = await self._route(request.model)
        async with self._router.stream(attrs.evolve(request, model=route.model), self._deadlines) as chunks:
            yield Answer(chunks, route.model)

    async def _route(self, model: str) -> Route:
        """Where it goes. A backend that is just starting is waited for."""
        end = trio.current_time() + STARTING_SECONDS
        while True:
            try:
                if model:
                    await self._expect(model)
                return await self._router.resolve(model)
            except BackendUnavailable:
                health = await self._router.health()
                if "starting" not in health.detail or trio.current_time() >= end:
                    raise
            await trio.sleep(0.5)

    async def _expect(self, model: str) -> None:
        """Raises what a missing model means. The router is not asked for it, as it remembers what it had to replace."""
        names = {info.id for info in await self._router.models()}
        if names.isdisjoint((model, f"{model}:latest")):
            health = await self._router.health()
            if not health.ok:
                raise BackendUnavailable(f"no backend can answer: {health.detail}")
            raise model_not_found(model)


_STATUS: Mapping[str, tuple[int, str]] = {
    "model_missing": (404, "model_not_found"),
    "backend_busy": (429, "backend_busy"),
    "backend_unavailable": (503, "backend_unavailable"),
    "backend_timeout": (503, "backend_timeout"),
}
"""By the codes of our errors: the status, and OpenAI's code or ours. Any other error of a backend is a 500."""


def as_api_error(error: BaseException) -> ApiError:
    """What a caller is told of whatever went wrong: our own words, never a stranger's."""
    found = cause(error)
    if isinstance(found, ApiError):
        return found
    if not isinstance(found, InferenceError):
        return ApiError(500, "The server had an error.", "server_error", kind="server_error")
    status, code = _STATUS.get(found.code, (500, "inference_failed"))
    later = RETRY_SECONDS if status in (429, 503) else None
    return ApiError(status, said(found), code, kind="server_error", retry_after=later)


def said(error: InferenceError) -> str:
    return f"{error.message[:1].upper()}{error.message[1:]}" + (f" ({error.hint})" if error.hint else "")


def told(error: BaseException) -> str:
    """The same for the log."""
    found = cause(error)
    return found.message if isinstance(found, ApiError) else brief(found)
