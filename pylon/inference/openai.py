"""Any server that speaks OpenAI's chat completions: Ollama, llama.cpp, vLLM, OpenAI itself.

``POST {base}/chat/completions`` with ``stream: true``, and ``GET {base}/models``.
Source: the OpenAI API reference, chat completions and models.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import trio

from pylon.errors import BackendTimeout, BackendUnavailable, ConfigError, InferenceError
from pylon.inference.deadlines import Accepted, collect, enforce
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

_PROBE = 5.0
"""Seconds for the list of models, which costs a server nothing."""

_TAIL = 2.0
"""Seconds that a finished answer waits for its usage and ``[DONE]``; some servers never send them."""

_MAX_BODY = 4 << 20
_MAX_ERROR = 64 << 10
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
        url = _url(name, base)
        self.address = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}".rstrip("/")
        headers = {"User-Agent": "pylon", "Accept-Encoding": "identity", "Connection": "close"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
                raise ConfigError(f"the API key of {name} has characters that no key has", "paste it again")
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            auth=httpx.BasicAuth(url.username, url.password) if url.username and not api_key else None,
            timeout=None,  # the deadlines of the port do it
            # A server may close a kept connection at the moment when the next prompt goes out on it, and nobody
            # can tell whether the prompt was read. A new one costs nothing beside an answer.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            transport=transport,
            trust_env=not _is_loopback(url.host),  # a proxy in the environment is not meant for this machine
        )

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._name!r}, {self.address!r})"

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> list[ModelInfo]:
        """What the server says it serves. Raises ``BackendUnavailable``, ``BackendTimeout``, ``InferenceError``."""
        with trio.move_on_after(_PROBE):
            try:
                async with self._client.stream("GET", f"{self.address}/models") as response:
                    status, body = response.status_code, await _read(response, _MAX_BODY)
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise self._unreachable(error) from None
            if status != httpx.codes.OK:
                raise failure(self._name, "", status, _loads(body))
            return self._parse_models(_loads(body))
        raise BackendTimeout(f"{self._name} did not list its models within {_PROBE:g} s (deadline connect)")

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
                    extensions={"trace": _when_sent(accepted)},
                ) as response:
                    accepted()
                    if response.status_code == httpx.codes.OK:
                        async with aclosing(_chunks(response, chat)) as chunks:
                            async for chunk in chunks:
                                yield chunk
                        return
                    refusal = _loads(await _read(response, _MAX_ERROR))
                    status = response.status_code
            except (httpx.HTTPError, httpx.StreamError) as error:
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
        if isinstance(error, httpx.ConnectError):
            return BackendUnavailable(f"{self._name} does not answer at {self.address}", "is it running?")
        return BackendUnavailable(
            f"the connection to {self._name} at {self.address} broke ({type(error).__name__})", "see the backend's log"
        )

    def _parse_models(self, body: object) -> list[ModelInfo]:
        rows = body.get("data") if isinstance(body, dict) else body
        if rows is None and isinstance(body, dict):
            rows = []  # Ollama without models: {"object": "list", "data": null}
        if not isinstance(rows, list):
            raise InferenceError(f"{self._name} sent no list of models", "does its address end in /v1?")
        return [
            ModelInfo(row["id"], self._name, _context_length(row))
            for row in rows
            if isinstance(row, dict) and isinstance(row.get("id"), str) and 0 < len(row["id"]) <= 256
        ]


async def _chunks(response: httpx.Response, chat: ChatStream) -> AsyncGenerator[Chunk, None]:
    if response.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        for chunk in chat.whole(await _read(response, _MAX_BODY)):
            yield chunk
        return
    async with _pieces(response) as pieces:
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


def _when_sent(accepted: Accepted) -> Any:
    """The server has the request long before it answers: models load, prompts are read. httpcore says when."""

    async def trace(event: str, info: Any) -> None:
        if event.endswith(".send_request_body.complete"):
            accepted()

    return trace


@asynccontextmanager
async def _pieces(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body, which may be left before its end.

    Under ``aiter_bytes`` httpx has a stack of async generators, and whoever stops in the middle leaves all but the
    outermost to the garbage collector. A cancellation that runs through them ends every one, in order, at once.
    """
    pieces = response.aiter_bytes()
    try:
        yield pieces
    finally:
        with trio.CancelScope(shield=True) as scope:
            scope.cancel()
            with suppress(httpx.HTTPError, httpx.StreamError):
                while await anext(pieces, None) is not None:
                    pass


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async with _pieces(response) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > limit:
                break
    return bytes(body[:limit])


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


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


def _url(name: str, base: str) -> httpx.URL:
    try:
        urlsplit(base).port  # noqa: B018 - finds what httpx lets pass: half brackets, ports beyond 65535
        url = httpx.URL(base)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"the address of {name} is no http or https URL", "write it like http://127.0.0.1:11434/v1")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
