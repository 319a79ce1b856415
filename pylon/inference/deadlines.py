"""The deadlines of the Backend port, enforced in one place for every backend.

A backend writes a plain async generator of chunks, without any deadline of its own. ``enforce`` makes of it what the
port promises: four limits, each with a name that its ``BackendTimeout`` tells, and a generation that stops when the
block is left, however it is left.

Only the time spent waiting for the backend counts: a consumer that is slow with one chunk does not make the backend
late with the next. The one exception is ``total``, which runs from the entry of the block.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from pylon.errors import BackendTimeout
from pylon.inference.port import Chunk, Completion, Deadlines


class Accepted(Protocol):
    """A generator calls it when the backend has the request: here ``connect`` ends and ``first_token`` begins."""

    def __call__(self, *, busy: bool = False) -> None:
        """``busy``: the backend *says* that it is at something else first, such as loading the model.

        ``first_token`` begins anew then, as long as no token has come. ``total`` goes on.
        """
        ...


Generate = Callable[[Accepted], AsyncGenerator[Chunk, None]]

_CLOSING = 3.0
"""Seconds that a generator gets to say goodbye to its engine."""

_WORDS = {
    "connect": "did not take the request",
    "first_token": "gave no first token",
    "between_tokens": "fell silent in the middle of an answer",
    "total": "did not end its answer",
}
_HINTS = {
    "connect": "is it running, and is its address right?",
    "first_token": "the model may still be loading, or be too big for this machine",
    "between_tokens": "the backend may hang; see its log",
    "total": "ask for fewer tokens, or use a faster model",
}


@asynccontextmanager
async def enforce(backend: str, deadlines: Deadlines, generate: Generate) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The chunks of ``generate``, cut by ``deadlines``. ``backend`` is named in the errors.

    Raises ``BackendTimeout`` out of the iteration; its message names the deadline as the field of ``Deadlines``.
    No cancel scope stays open across the ``yield``, so that the block may hold nurseries and scopes of its own.
    """
    chunks = _Chunks(backend, deadlines, generate)
    try:
        yield chunks
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSING):
            await chunks.aclose()


async def collect(stream: AbstractAsyncContextManager[AsyncIterator[Chunk]], model: str) -> Completion:
    """The whole answer of a stream; ``model`` is the one that gave it."""
    texts: list[str] = []
    finish_reason, usage = "stop", None
    async with stream as chunks:
        async for chunk in chunks:
            texts.append(chunk.text)
            finish_reason = chunk.finish_reason or finish_reason
            usage = chunk.usage or usage
    return Completion(text="".join(texts), finish_reason=finish_reason, usage=usage, model=model)


class _Chunks(AsyncIterator[Chunk]):
    def __init__(self, backend: str, deadlines: Deadlines, generate: Generate) -> None:
        self._backend = backend
        self._deadlines = deadlines
        self._ends = trio.current_time() + deadlines.total
        self._phase = "connect"
        self._phase_ends = math.inf
        self._scope: trio.CancelScope | None = None
        self._source = generate(self._accept)

    async def __anext__(self) -> Chunk:
        with trio.CancelScope() as self._scope:
            self._enter(self._phase)
            chunk = await anext(self._source)
        if self._scope.cancelled_caught:
            raise self._cut()
        self._scope = None
        self._phase = "between_tokens"
        return chunk

    async def aclose(self) -> None:
        await self._source.aclose()

    def _accept(self, *, busy: bool = False) -> None:
        if self._phase == "connect" or (busy and self._phase == "first_token"):
            self._enter("first_token")

    def _enter(self, phase: str) -> None:
        """Start the clock of ``phase`` and let the scope, if one is open, end with it."""
        self._phase = phase
        self._phase_ends = trio.current_time() + float(getattr(self._deadlines, phase))
        if self._scope is not None:
            self._scope.deadline = min(self._ends, self._phase_ends)

    def _cut(self) -> BackendTimeout:
        name = "total" if self._ends <= self._phase_ends else self._phase
        seconds = float(getattr(self._deadlines, name))
        return BackendTimeout(f"{self._backend} {_WORDS[name]} within {seconds:g} s (deadline {name})", _HINTS[name])
