"""Apple's on-device model, through its HTTP bridge (``foundation-bridge``, port 11435): macOS on Apple silicon only.

The bridge is OpenAI-shaped (``/v1/models``, ``/v1/chat/completions``), and so is what stands here. Source: the bridge's
``Types.swift``, ``ChatHandler.swift``, ``StreamHandler.swift``. What is particular to it:

- ``/health`` answers 200 whether or not there is a model: only ``model_available`` says so, with a reason (Apple
  Intelligence switched off, a device that cannot, a model still being fetched).
- The model holds 4,096 tokens, prompt and answer together, and the bridge does not say so.
- The first bridges do not stream: the answer comes as one object, with an estimated usage; in a stream there is none.
- ``max_tokens`` is passed over, and a JSON schema is a hint at best: what comes back is checked by whoever wanted it.
- A second request at the same time is refused (``concurrent_requests``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import attrs
import httpx
import trio

from pylon.errors import BackendUnavailable
from pylon.inference.http import BROKEN, MAX_ERROR, PROBE, loads, open_client, parse_url, plain_address, read_body
from pylon.inference.openai import OpenAICompatible
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
)

CONTEXT = 4096
"""Tokens of the on-device model (Apple's documentation of ``LanguageModelSession``)."""

_REASONS = {
    "apple_intelligence_not_enabled": "Apple Intelligence is switched off in the settings",
    "device_not_eligible": "this machine cannot run Apple Intelligence",
    "model_not_ready": "the model is still being fetched",
}


class AppleFm:
    """The bridge at ``base`` (``http://127.0.0.1:11435``; one that ends in ``/v1`` means the same).

    Raises ``ConfigError`` for an address that cannot be.
    """

    def __init__(self, name: str, base: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._name = name
        url = parse_url(name, base)
        self.address = plain_address(url).removesuffix("/v1")
        root = str(url).rstrip("/").removesuffix("/v1")
        self._openai = OpenAICompatible(name, f"{root}/v1", transport=transport)
        self._client = open_client(name, url, transport=transport)

    def __repr__(self) -> str:
        return f"AppleFm({self._name!r}, {self.address!r})"

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> list[ModelInfo]:
        """The model, if it is available. Raises ``InferenceError``."""
        health = await self.health()
        if not health.ok:
            raise BackendUnavailable(f"{self._name}: {health.detail}", "System Settings, Apple Intelligence & Siri")
        return [
            attrs.evolve(model, context_length=model.context_length or CONTEXT) for model in await self._openai.models()
        ]

    async def health(self) -> Health:
        """What ``/health`` says of the model."""
        body = None
        with trio.move_on_after(PROBE) as scope:
            try:
                async with self._client.stream("GET", f"{self.address}/health") as response:
                    body = loads(await read_body(response, MAX_ERROR))
            except BROKEN:
                return Health(False, f"{self._name} does not answer at {self.address}")
        if scope.cancelled_caught:
            return Health(False, f"{self._name} did not answer /health within {PROBE:g} s")
        if not isinstance(body, dict) or not isinstance(body.get("status"), str):
            return Health(False, f"what answers at {self.address} is no FM bridge")
        # The first bridges do not say more than that they are there.
        if body.get("model_available", body["status"] in ("ok", "healthy")) is True:
            return Health(True, "the model is available")
        return Health(False, _REASONS.get(str(body.get("unavailable_reason")), "the model is not available"))

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        return self._openai.stream(request, deadlines)

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        return await self._openai.complete(request, deadlines)

    async def aclose(self) -> None:
        await self._openai.aclose()
        await self._client.aclose()
