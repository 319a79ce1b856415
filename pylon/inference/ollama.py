"""Ollama, by its own API: ``/api/chat``, ``/api/tags``, ``/api/ps``, ``/api/version``.

Its OpenAI-compatible face would do for answers, but it can neither set the context nor refuse to shorten a prompt, and
says nothing of what is going on. Source: Ollama's ``docs/api.md``, ``docs/api/errors.mdx``, and ``api/types.go`` for
``truncate``, ``shift`` and ``context_length``, which the docs leave out.

What is particular to it:

- **A prompt that is too long is shortened silently**, and the answer is to a question that nobody asked. ``truncate``
  and ``shift`` set to false make it an error; versions that do not know them go on as before. What a model can hold is
  what ``/api/ps`` says of a loaded one; before that, ``context``, or the least that Ollama gives.
- **A busy or loading Ollama is silent**: the request waits, without a header, and without a word. As long as
  ``/api/ps`` shows that the model is not loaded yet, the clock of ``first_token`` does not run. A model being loaded is
  listed there already, with an ``expires_at`` that moves from look to look; that of a loaded one stands.
- ``/api/tags`` lists models that cannot chat (embeddings), and some that run on Ollama's own servers
  (``remote_host``): what a customer asks would leave the machine, so those are served only if named.
- Thinking counts towards ``num_predict``, and an answer that was all thought is empty: it is asked not to think.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import httpx
import orjson
import trio

from pylon.errors import BackendTimeout, InferenceError
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
from pylon.inference.ollama_chat import ModelTooBig, OllamaChat, dislikes_format, dislikes_thinking, failure
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
)

log = logging.getLogger(__name__)

LEAST_CONTEXT = 4096
"""Tokens that Ollama gives a model for which nobody says anything else, on a machine with little memory."""

_WATCH = 5.0
"""Seconds between two looks at what a silent Ollama is doing."""

_TOO_BIG = 300.0
"""Seconds for which a model that did not fit into the memory is not offered."""

_EMBEDDING_FAMILIES = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "xlm-roberta"})
"""Families that cannot chat, for versions that do not list ``capabilities``."""


class Ollama:
    """One Ollama server.

    :param name: what errors, log and ``ModelInfo.backend`` call it.
    :param base: its address: ``http://127.0.0.1:11434``; one that ends in ``/v1`` means the same server.
    :param models: serve only these; empty: all that can chat and run here.
    :param context: ``num_ctx`` of every request, tokens; ``None``: as Ollama has it.
    :param keep_alive: how long a model stays loaded, as Ollama writes it (``10m``); empty: as Ollama has it.
    :param api_key: sent as bearer token, for an Ollama behind a proxy; seen nowhere else.
    :param transport: replaces the network in tests.

    Raises ``ConfigError`` for an address or a key that cannot be.
    """

    def __init__(
        self,
        name: str,
        base: str,
        *,
        models: Collection[str] = (),
        context: int | None = None,
        keep_alive: str = "",
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name = name
        url = parse_url(name, base)
        self.address = plain_address(url).removesuffix("/v1")
        self._only = tuple(models)
        self._context = context
        self._keep_alive = keep_alive
        self._client = open_client(name, url, api_key=api_key, transport=transport)
        self._contexts: dict[str, int] = {}
        self._too_big: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Ollama({self._name!r}, {self.address!r})"

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> list[ModelInfo]:
        """Those that can chat, and fit. Raises ``BackendUnavailable``, ``BackendTimeout``, ``InferenceError``."""
        rows = _rows(await self._get("/api/tags"))
        if rows is None:
            raise InferenceError(f"{self._name} sent no list of models", "is Ollama at this address?")
        self._learn_contexts(await self._loaded() or {})
        now = trio.current_time()
        return [
            ModelInfo(name, self._name, self._context_of(name))
            for row in rows
            if (name := _model_name(row)) and self._is_offered(name, row) and self._too_big.get(name, 0.0) <= now
        ]

    async def health(self) -> Health:
        """What it says of itself: version, models, and which of them are loaded."""
        try:
            version = await self._get("/api/version")
            rows = _rows(await self._get("/api/tags"))
            loaded = await self._loaded()
        except InferenceError as error:
            return Health(False, error.message)
        if rows is None:
            return Health(False, f"what answers at {self.address} is no Ollama")
        number = version.get("version") if isinstance(version, dict) else None
        parts = [f"version {number}"] if isinstance(number, str) and len(number) <= 32 and number.isprintable() else []
        count = len(rows)
        parts.append(f"{count} model{'' if count == 1 else 's'}")
        if loaded:
            parts.append(f"loaded: {', '.join(sorted(loaded))}")
        return Health(True, ", ".join(parts))

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        return enforce(self._name, deadlines, lambda accepted: self._generate(request, accepted))

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        return await collect(self.stream(request, deadlines), request.model)

    async def aclose(self) -> None:
        await self._client.aclose()

    # --- answers ----------------------------------------------------------------------------------------------

    async def _generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        body = self._body(request)
        while True:
            chat = OllamaChat(self._name, request.model)
            response: httpx.Response | None = None
            try:
                response = await self._post(body, request.model, accepted)
                accepted()
                if response.status_code == httpx.codes.OK:
                    async with aclosing(_chunks(response, chat)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                status, refusal = response.status_code, loads(await read_body(response, MAX_ERROR))
            except BROKEN as error:
                raise unreachable(self._name, self.address, error) from None
            finally:
                if response is not None:
                    await _close(response)
            if "format" in body and dislikes_format(status, refusal):
                # A reply that may be wrong is worth more than none: whoever wanted a shape checks it in any case.
                log.warning("%s does not enforce the JSON schema of a request, and answers without it", self._name)
                del body["format"]
                continue
            if "think" in body and dislikes_thinking(status, refusal):
                del body["think"]
                continue
            problem = failure(self._name, request.model, status, refusal)
            if isinstance(problem, ModelTooBig):
                self._too_big[request.model] = trio.current_time() + _TOO_BIG
            raise problem

    async def _post(self, body: dict[str, Any], model: str, accepted: Accepted) -> httpx.Response:
        """The response, as soon as it has headers: Ollama sends them with the first token. Meanwhile, watch it."""
        request = self._client.build_request(
            "POST",
            f"{self.address}/api/chat",
            content=orjson.dumps(body),
            headers={"Content-Type": "application/json", "Accept": "application/x-ndjson"},
            extensions={"trace": when_sent(accepted)},
        )
        response: httpx.Response | None = None
        failed: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, model, accepted)
                try:
                    response = await self._client.send(request, stream=True)
                except Exception as error:
                    failed = error  # raised below, where no nursery wraps it into a group
                nursery.cancel_scope.cancel()
        except BaseException:
            if response is not None:
                await _close(response)
            raise
        if failed is not None:
            raise failed
        assert response is not None
        return response

    async def _watch(self, model: str, accepted: Accepted) -> None:
        """Tell ``accepted`` as long as Ollama says that the model is on its way. Silence of Ollama tells nothing."""
        seen: object = None
        while True:
            await trio.sleep(_WATCH)
            try:
                loaded = await self._loaded()
            except InferenceError:
                continue
            if loaded is None:
                return
            row = loaded.get(model) or loaded.get(f"{model}:latest")
            until = None if row is None else row.get("expires_at")
            if until is None or (seen is not None and until != seen):
                accepted(busy=True)
            seen = until

    def _body(self, request: InferenceRequest) -> dict[str, Any]:
        options: dict[str, Any] = {"num_predict": request.max_tokens}
        for key in ("temperature", "top_p", "seed"):
            value = getattr(request, key)
            if value is not None:
                options[key] = value
        if request.stop:
            options["stop"] = list(request.stop)
        if self._context is not None:
            options["num_ctx"] = self._context
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "options": options,
            "truncate": False,
            "shift": False,
            "think": False,
        }
        if self._keep_alive:
            body["keep_alive"] = self._keep_alive
        if request.json_schema is not None:
            body["format"] = request.json_schema
        return body

    # --- what it says of itself -------------------------------------------------------------------------------

    async def _get(self, path: str) -> Any:
        """What a GET answers; ``None`` where this Ollama has no such path."""
        with trio.move_on_after(PROBE):
            try:
                async with self._client.stream("GET", f"{self.address}{path}") as response:
                    status, body = response.status_code, await read_body(response, MAX_BODY)
            except BROKEN as error:
                raise unreachable(self._name, self.address, error) from None
            if status == httpx.codes.NOT_FOUND:
                return None
            if status != httpx.codes.OK:
                raise failure(self._name, "", status, loads(body))
            return loads(body)
        raise BackendTimeout(f"{self._name} did not answer {path} within {PROBE:g} s (deadline connect)")

    async def _loaded(self) -> dict[str, dict[str, Any]] | None:
        """The models in memory, and those on their way there. ``None``: an old Ollama that does not say."""
        rows = _rows(await self._get("/api/ps"))
        return None if rows is None else {name: row for row in rows if (name := _model_name(row))}

    def _learn_contexts(self, loaded: dict[str, dict[str, Any]]) -> None:
        for name, row in loaded.items():
            length = row.get("context_length")
            if type(length) is int and 0 < length < 1 << 31:
                self._contexts[name] = length

    def _context_of(self, name: str) -> int:
        """A configured context may be more than the model was trained for: what was seen is then less."""
        seen = self._contexts.get(name)
        if self._context is not None:
            return self._context if seen is None else min(seen, self._context)
        return seen or LEAST_CONTEXT

    def _is_offered(self, name: str, row: dict[str, Any]) -> bool:
        if self._only:
            return name in self._only or name.removesuffix(":latest") in self._only
        if row.get("remote_host") or row.get("remote_model"):
            return False
        capabilities = row.get("capabilities")
        if isinstance(capabilities, list) and capabilities:
            return "completion" in capabilities
        details = row.get("details")
        family = details.get("family") if isinstance(details, dict) else None
        return family not in _EMBEDDING_FAMILIES


async def _close(response: httpx.Response) -> None:
    """At once, whatever is under way."""
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await response.aclose()


async def _chunks(response: httpx.Response, chat: OllamaChat) -> AsyncGenerator[Chunk, None]:
    async with pieces_of(response) as pieces:
        while not chat.done:
            piece = await anext(pieces, None)
            if piece is None:
                break
            for chunk in chat.feed(piece):
                yield chunk
    for chunk in chat.close():
        yield chunk


def _rows(body: object) -> list[dict[str, Any]] | None:
    """``{"models": [...]}``; an Ollama without any says ``null``."""
    if not isinstance(body, dict) or "models" not in body:
        return None
    rows = body["models"]
    if rows is None:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else None


def _model_name(row: dict[str, Any]) -> str:
    name = row.get("model") or row.get("name")
    return name if isinstance(name, str) and 0 < len(name) <= 256 else ""
