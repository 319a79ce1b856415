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
    """A model that a backend serves."""

    id: str
    """The backend's own name for it."""
    backend: str
    context_length: int | None = None
    """Tokens of prompt and answer together; ``None`` where the backend does not say."""


@attrs.frozen
class Usage:
    """Tokens, as the backend counts them."""

    prompt_tokens: int
    completion_tokens: int


@attrs.frozen
class Message:
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@attrs.frozen
class InferenceRequest:
    """What to answer, and how. ``None``: as the backend has it."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    """The longest answer; one that is cut has the finish reason ``length``."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    """A JSON schema for the reply. Backends that can enforce it do, as a grammar; others answer without it."""


@attrs.frozen
class Chunk:
    """A piece of an answer. The last one carries ``finish_reason`` and, where the backend counts, ``usage``."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@attrs.frozen
class Completion:
    """A whole answer."""

    text: str
    finish_reason: str
    usage: Usage | None
    model: str
    """The one that answered."""


@attrs.frozen
class Health:
    """Whether a backend would answer now."""

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
    def name(self) -> str:
        """What errors, log and configuration call it."""
        ...

    async def models(self) -> list[ModelInfo]:
        """What it serves. Raises ``InferenceError``."""
        ...

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

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        """The whole of what ``stream`` would give. Raises the same."""
        ...

    async def aclose(self) -> None:
        """Let go of what it holds; harmless when repeated."""
        ...
