"""Any server that speaks OpenAI's chat completions: Ollama, llama.cpp, vLLM, OpenAI itself.

``POST {base}/chat/completions`` with ``stream: true``, and ``GET {base}/models``.
Source: the OpenAI API reference, chat completions and models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import httpx
import orjson
import trio

from pylon.errors import BackendTimeout, BackendUnavailable, InferenceError
from pylon.inference.deadlines import Accepted, collect, enforce
from pylon.inference.http import (
    BROKEN,
    MAX_BODY,
    MAX_ERROR,
    PROBE,
    loads,
    open_client,
    parse_url,
    pieces_of,
    plain_address,
    read_body,
    unreachable,
    when_sent,
)
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
)
from pylon.inference.sse import ChatStream, failure

log = logging.getLogger(__name__)

_TAIL = 2.0
"""Seconds that a finished answer waits for its usage and ``[DONE]``; some servers never send them."""

_CONTEXT_KEYS = ("context_length", "max_model_len", "context_window", "n_ctx", "n_ctx_train")


class OpenAICompatible:
    """One endpoint.

    :param name: what the errors, the log and ``ModelInfo.backend`` call it.
    :param base: up to and with the version: ``http://127.0.0.1:11434/v1``.
    :param api_key: sent as bearer token, and seen nowhere else.
    :param transport: replaces the network in tests.

    Raises ``ConfigError`` for an address or a key that cannot be.
    """

    def __init__(
        self,
        name: str,
        base: str,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name = name
        url = parse_url(name, base)
        self.address = plain_address(url)
        self._client = open_client(name, url, api_key=api_key, transport=transport)

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._name!r}, {self.address!r})"

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> list[ModelInfo]:
        """What the server says it serves. Raises ``BackendUnavailable``, ``BackendTimeout``, ``InferenceError``."""
        with trio.move_on_after(PROBE):
            try:
                async with self._client.stream("GET", f"{self.address}/models") as response:
                    status, body = response.status_code, await read_body(response, MAX_BODY)
            except BROKEN as error:
                raise self._unreachable(error) from None
            if status != httpx.codes.OK:
                raise failure(self._name, "", status, loads(body))
            return self._parse_models(loads(body))
        raise BackendTimeout(f"{self._name} did not list its models within {PROBE:g} s (deadline connect)")

    async def health(self) -> Health:
        try:
            models = await self.models()
        except InferenceError as error:
            return Health(False, error.message)
        return Health(True, f"{len(models)} model{'' if len(models) == 1 else 's'}")

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        return enforce(self._name, deadlines, lambda accepted: self.generate(request, accepted))

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        return await collect(self.stream(request, deadlines), request.model)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        """The chunks without any deadline: for ``enforce``, and for backends that stand on this one."""
        body = _body(request)
        while True:
            chat = ChatStream(self._name, request.model)
            try:
                async with self._client.stream(
                    "POST",
                    f"{self.address}/chat/completions",
                    content=orjson.dumps(body),
                    headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
                    extensions={"trace": when_sent(accepted)},
                ) as response:
                    accepted()
                    if response.status_code == httpx.codes.OK:
                        async with aclosing(_chunks(response, chat)) as chunks:
                            async for chunk in chunks:
                                yield chunk
                        return
                    refusal = loads(await read_body(response, MAX_ERROR))
                    status = response.status_code
            except BROKEN as error:
                if not chat.answered:
                    raise self._unreachable(error) from None
                for chunk in chat.close():
                    yield chunk
                return
            if "max_tokens" in body and _dislikes(refusal, "max_tokens"):
                # OpenAI's reasoning models want the limit under its newer name.
                body["max_completion_tokens"] = body.pop("max_tokens")
                continue
            if "response_format" in body and _cannot_enforce(status, refusal):
                # A reply that may be wrong is worth more than none: whoever wanted a shape checks it in any case.
                log.warning("%s does not enforce the JSON schema of a request, and answers without it", self._name)
                del body["response_format"]
                continue
            raise failure(self._name, request.model, status, refusal)

    def _unreachable(self, error: Exception) -> BackendUnavailable:
        return unreachable(self._name, self.address, error)

    def _parse_models(self, body: object) -> list[ModelInfo]:
        rows = body.get("data") if isinstance(body, dict) else body
        if rows is None and isinstance(body, dict):
            rows = []  # Ollama without models: {"object": "list", "data": null}
        if not isinstance(rows, list):
            raise InferenceError(f"{self._name} sent no list of models", "does its address end in /v1?")
        return [
            ModelInfo(row["id"], self._name, _context_length(row))
            for row in rows
            if isinstance(row, dict)
            and isinstance(row.get("id"), str)
            and 0 < len(row["id"]) <= 256
            and row.get("available") is not False
        ]


async def _chunks(response: httpx.Response, chat: ChatStream) -> AsyncGenerator[Chunk, None]:
    if response.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        for chunk in chat.whole(await read_body(response, MAX_BODY)):
            yield chunk
        return
    async with pieces_of(response) as pieces:
        while not chat.done:
            piece = None
            with trio.move_on_after(_TAIL if chat.answered else math.inf):
                piece = await anext(pieces, None)
            if piece is None:
                break
            for chunk in chat.feed(piece):
                yield chunk
    for chunk in chat.close():
        yield chunk


def _body(request: InferenceRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for key in ("temperature", "top_p", "seed"):
        value = getattr(request, key)
        if value is not None:
            body[key] = value
    if request.stop:
        body["stop"] = list(request.stop)
    if request.json_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": request.json_schema},
        }
    return body


def _dislikes(refusal: object, parameter: str) -> bool:
    error = refusal.get("error") if isinstance(refusal, dict) else None
    return (
        isinstance(error, dict)
        and error.get("code") in ("unsupported_parameter", "unsupported_value")
        and error.get("param") == parameter
    )


def _cannot_enforce(status: int, refusal: object) -> bool:
    """Whether it is the schema that the server does not take: its own fault, or the schema's."""
    error = refusal.get("error", refusal) if isinstance(refusal, dict) else refusal
    said = orjson.dumps(error).lower() if isinstance(error, dict | str) else b""
    return status in (400, 422, 501) and any(word in said for word in (b"response_format", b"schema", b"grammar"))


def _context_length(row: dict[str, Any]) -> int | None:
    meta = row.get("meta")
    for source in (row, meta if isinstance(meta, dict) else {}):
        for key in _CONTEXT_KEYS:
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
                return value
    return None
