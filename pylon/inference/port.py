"""The Backend port: whatever turns a prompt into words.

Deadlines belong to the port, not to the backend: a backend that hangs is cut, and the cut is an error with a name
(``BackendTimeout``), never an endless wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs


@attrs.frozen
class ModelInfo:
    id: str
    backend: str
    context_length: int | None = None


@attrs.frozen
class Usage:
    prompt_tokens: int
    completion_tokens: int


@attrs.frozen
class Message:
    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@attrs.frozen
class InferenceRequest:
    model: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    """A JSON schema that the reply must satisfy; backends that can enforce it as a grammar."""


@attrs.frozen
class Chunk:
    """A piece of an answer. The last one carries ``finish_reason`` and, where the backend counts, ``usage``."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@attrs.frozen
class Completion:
    text: str
    finish_reason: str
    usage: Usage | None
    model: str


@attrs.frozen
class Health:
    ok: bool
    detail: str = ""


@attrs.frozen
class Deadlines:
    """Seconds. ``first_token`` runs from the accepted request, ``between_tokens`` from each chunk to the next."""

    connect: float = 5.0
    first_token: float = 60.0
    between_tokens: float = 30.0
    total: float = 300.0


DEFAULT_DEADLINES = Deadlines()


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    async def models(self) -> list[ModelInfo]: ...

    async def health(self) -> Health:
        """Never raises: what is wrong stands in ``detail``."""
        ...

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """``async with backend.stream(request) as chunks: async for chunk in chunks``.

        Leaving the block stops the generation. Raises ``BackendUnavailable``, ``BackendTimeout``, ``ModelMissing``,
        ``InferenceError``.
        """
        ...

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion: ...

    async def aclose(self) -> None: ...
