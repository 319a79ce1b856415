"""Servers of recorded shape: fake inference servers that speak as the real ones do, quirks included. **No model.**

``OllamaServer``, ``LlamaCppServer``, ``AppleFmServer`` and ``OpenAIServer`` listen on 127.0.0.1; ``manners`` says how
they behave. Shapes are those of Ollama's ``docs/api.md`` and ``api/types.go``, of the FM bridge's ``Types.swift`` and
handlers, and of llama.cpp's server.
"""

from __future__ import annotations

import abc
import enum
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from pylon.testing.http import Asked, Exchange, HttpServer


class Manners(enum.StrEnum):
    """How a server behaves. Whatever it does with answers, what it says of itself comes at once."""

    FAIR = "fair"
    BUSY = "busy"
    """Refuses: too many requests are waiting."""
    QUEUES = "queues"
    """Takes the request and is silent until ``seconds`` have passed: it works for others."""
    LOADING = "loading"
    """The same, and says that it is loading the model."""
    HANGING = "hanging"
    """Takes the request and never answers."""
    STALLING = "stalling"
    """Falls silent after the first token."""
    CRASHING = "crashing"
    """Hangs up without a word."""
    BREAKING = "breaking"
    """Hangs up after the first token."""
    FAILING = "failing"
    """Says 500."""
    ERRING = "erring"
    """An error in the middle of a stream that began well."""
    LYING = "lying"
    """Healthy, with models, and its answers are no answers."""
    EMPTY = "empty"
    """Answers without a word."""


class FakeServer(abc.ABC):
    """What all have in common.

    :param answer: what it says, a word a token.
    :param seconds: how long it is silent where its manners say so.

    ``prompts``: the bodies of the requests for answers. ``requests``, ``left``: see ``HttpServer``.
    """

    def __init__(self, answer: str, models: Sequence[str], *, seconds: float = 0.0) -> None:
        self.answer = answer
        self.models = list(models)
        self.manners = Manners.FAIR
        self.seconds = seconds
        self.prompts: list[dict[str, Any]] = []
        self.http = HttpServer(self._route)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with self.http.running() as address:
            yield address

    @property
    def words(self) -> list[str]:
        first, *others = self.answer.split(" ")
        return [first, *(f" {word}" for word in others)]

    @abc.abstractmethod
    async def _route(self, asked: Asked, exchange: Exchange) -> None:
        """Answer one request."""


class OllamaServer(FakeServer):
    """An Ollama.

    :param version: what ``/api/version`` says; ``0.1`` has no ``/api/ps``, and leaves out ``done_reason``.

    ``rows`` adds to the rows of ``/api/tags``, by model. ``context``: what a loaded model has. ``loaded``: which are.
    """

    def __init__(
        self,
        answer: str = "Paris is the capital",
        models: Sequence[str] = ("llama3.2:latest",),
        *,
        seconds: float = 0.0,
        version: str = "0.33.2",
    ) -> None:
        super().__init__(answer, models, seconds=seconds)
        self.version = version
        self.rows: dict[str, dict[str, Any]] = {}
        self.context = 4096
        self.loaded: set[str] = set()
        self.loading: set[str] = set()
        self._looks = 0

    async def _route(self, asked: Asked, exchange: Exchange) -> None:
        match asked.method, asked.path:
            case "GET", "/":
                await exchange.reply("Ollama is running")
            case "GET", "/api/version":
                await exchange.reply({"version": self.version})
            case "GET", "/api/tags":
                await exchange.reply({"models": [self._tag(name) for name in self.models] or None})
            case "GET", "/api/ps" if self.version != "0.1":
                await exchange.reply({"models": [self._process(name) for name in self.models if self._is_up(name)]})
            case "POST", "/api/chat":
                await self._chat(asked.json(), exchange)
            case _:
                await exchange.reply("404 page not found", 404)

    def _is_up(self, name: str) -> bool:
        return name in self.loaded or name in self.loading

    def _tag(self, name: str) -> dict[str, Any]:
        details = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "3.2B"}
        return {
            "name": name,
            "model": name,
            "modified_at": "2026-05-04T14:56:49.277302595-07:00",
            "size": 2019393189,
            "digest": "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
            "details": details,
            **self.rows.get(name, {}),
        }

    def _process(self, name: str) -> dict[str, Any]:
        """A model being loaded is listed, and the date of its end moves with each look."""
        self._looks += name in self.loading
        return {
            "name": name,
            "model": name,
            "size": 5137025024,
            "expires_at": f"2026-06-04T14:38:{self._looks % 60:02}.83753-07:00",
            "size_vram": 0 if name in self.loading else 5137025024,
            "context_length": self.context,
        }

    async def _chat(self, body: dict[str, Any], exchange: Exchange) -> None:
        self.prompts.append(body)
        name = body["model"]
        if name not in self.models and f"{name}:latest" not in self.models:
            await exchange.reply({"error": f'model "{name}" not found, try pulling it first'}, 404)
            return
        if isinstance(body.get("format"), dict) and body["format"].get("type") == "unknown":
            await exchange.reply({"error": 'invalid format: expected "json" or a valid JSON Schema object'}, 400)
            return
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        limit = body["options"].get("num_ctx", self.context)
        if prompt >= limit and body.get("shift") is False and self.version != "0.1":
            said = "the prompt is longer than the context length currently available to the model; shorten the prompt"
            await exchange.reply({"error": said}, 400)
            return
        match self.manners:
            case Manners.BUSY:
                said = "server busy, please try again.  maximum pending requests exceeded"
                await exchange.reply({"error": said}, 503)
                return
            case Manners.FAILING:
                await exchange.reply({"error": "llama runner process has terminated: exit status 2"}, 500)
                return
            case Manners.QUEUES:
                await trio.sleep(self.seconds)
            case Manners.LOADING:
                self.loading.add(name)
                await trio.sleep(self.seconds)
                self.loading.discard(name)
            case Manners.HANGING:
                self.loaded.add(name)
                await exchange.hang()
            case Manners.CRASHING:
                await exchange.crash()
        self.loaded.add(name)
        await exchange.start(content_type="application/x-ndjson")
        words = [] if self.manners is Manners.EMPTY else self.words
        spoken, told = words[: body["options"].get("num_predict", len(words))], 0
        for word in spoken:
            await self._line(exchange, name, {"message": {"role": "assistant", "content": word}, "done": False})
            told += 1
            match self.manners:
                case Manners.STALLING:
                    await exchange.hang()
                case Manners.BREAKING:
                    await exchange.crash()
                case Manners.ERRING:
                    await exchange.send(b'{"error":"an error was encountered while running the model"}\n')
                    await exchange.finish()
                    return
                case Manners.LYING:
                    await exchange.finish()
                    return
        end: dict[str, Any] = {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "total_duration": 4883583458,
            "load_duration": 1334875,
            "prompt_eval_count": prompt,
        }
        if self.version != "0.1":
            end["done_reason"] = "length" if told < len(words) else "stop"
        if told:
            end["eval_count"] = told  # a count of zero is left out
        await self._line(exchange, name, end)
        await exchange.finish()

    async def _line(self, exchange: Exchange, model: str, rest: dict[str, Any]) -> None:
        line = {"model": model, "created_at": "2026-08-04T08:52:19.385406455-07:00", **rest}
        await exchange.send(json.dumps(line).encode() + b"\n")


class OpenAIServer(FakeServer):
    """An OpenAI-compatible server, with the manners of llama.cpp's.

    :param key: the only API key that it takes; ``None``: any, or none.
    """

    owner = "llamacpp"

    def __init__(
        self,
        answer: str = "Paris is the capital",
        models: Sequence[str] = ("m",),
        *,
        seconds: float = 0.0,
        key: str | None = None,
    ) -> None:
        super().__init__(answer, models, seconds=seconds)
        self.key = key

    async def _route(self, asked: Asked, exchange: Exchange) -> None:
        if (
            asked.path != "/health"
            and self.key is not None
            and asked.headers.get("authorization") != f"Bearer {self.key}"
        ):
            said = f"Incorrect API key provided: {asked.headers.get('authorization')}"
            await exchange.reply({"error": {"message": said, "code": "invalid_api_key"}}, 401)
            return
        match asked.method, asked.path:
            case "GET", "/health":
                await self._health(exchange)
            case "GET", "/v1/models":
                await exchange.reply({"object": "list", "data": [self._model(name) for name in self.models]})
            case "POST", "/v1/chat/completions":
                await self._chat(asked.json(), exchange)
            case _:
                await exchange.reply({"error": {"code": 404, "message": "File Not Found", "type": "not_found"}}, 404)

    async def _health(self, exchange: Exchange) -> None:
        if self.manners is Manners.LOADING:
            said = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
            await exchange.reply(said, 503)
        else:
            await exchange.reply({"status": "ok"})

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 1780000000, "owned_by": self.owner}

    async def _chat(self, body: dict[str, Any], exchange: Exchange) -> None:
        self.prompts.append(body)
        match self.manners:
            case Manners.BUSY:
                await exchange.reply({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429)
                return
            case Manners.FAILING:
                await exchange.reply({"error": {"message": "broken", "type": "server_error", "code": 500}}, 500)
                return
            case Manners.QUEUES | Manners.LOADING:
                await trio.sleep(self.seconds)
            case Manners.HANGING:
                await exchange.hang()
            case Manners.CRASHING:
                await exchange.crash()
            case Manners.LYING:
                await exchange.reply({"status": "success", "output": self.answer})
                return
        words = [] if self.manners is Manners.EMPTY else self.words
        said = words[: self._most(body, len(words))]
        await exchange.start(content_type="text/event-stream")
        for word in said:
            await self._event(exchange, {"choices": [{"index": 0, "delta": {"content": word}}]})
            match self.manners:
                case Manners.STALLING:
                    await exchange.hang()
                case Manners.BREAKING:
                    await exchange.crash()
                case Manners.ERRING:
                    await self._event(exchange, {"error": {"message": "it went wrong", "type": "request_failed"}})
                    await exchange.finish()
                    return
        reason = "length" if len(said) < len(words) else "stop"
        await self._event(exchange, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if self._counts():
            usage = {"prompt_tokens": 3, "completion_tokens": len(said), "total_tokens": 3 + len(said)}
            await self._event(exchange, {"choices": [], "usage": usage})
        await exchange.send(b"data: [DONE]\n\n")
        await exchange.finish()

    def _most(self, body: dict[str, Any], count: int) -> int:
        return int(body.get("max_tokens", count))

    def _counts(self) -> bool:
        return True

    async def _event(self, exchange: Exchange, value: dict[str, Any]) -> None:
        await exchange.send(b"data: " + json.dumps({"object": "chat.completion.chunk", **value}).encode() + b"\n\n")


class LlamaCppServer(OpenAIServer):
    """A llama.cpp server (``llama-server``).

    Everything but ``/health`` answers 503 while the model loads. It refuses nobody: with all its slots at work it is
    silent, whoever waits. A prompt that is longer than ``context`` is refused by a code of its own, and what goes wrong
    in the middle of an answer stands in its stream as an ``error`` event. An ``old`` one tells of its context only what
    the model was trained for.
    """

    def __init__(self, answer: str = "Paris is the capital", models: Sequence[str] = ("m",), **options: Any) -> None:
        super().__init__(answer, models, **options)
        self.context = 4096
        self.old = False

    async def _route(self, asked: Asked, exchange: Exchange) -> None:
        if self.manners is Manners.LOADING and asked.path != "/health":
            await self._health(exchange)
            return
        await super()._route(asked, exchange)

    def _model(self, name: str) -> dict[str, Any]:
        meta = {"vocab_type": 2, "n_vocab": 49_152, "n_ctx": self.context, "n_ctx_train": 131_072, "n_embd": 576}
        if self.old:
            del meta["n_ctx"]
        return {**super()._model(name), "meta": meta}

    async def _chat(self, body: dict[str, Any], exchange: Exchange) -> None:
        count = sum(len(message["content"].split()) for message in body["messages"])
        if count > self.context:
            self.prompts.append(body)
            said = f"request ({count} tokens) exceeds the available context size ({self.context} tokens)"
            error = {"code": 400, "message": said, "type": "exceed_context_size_error", "n_prompt_tokens": count}
            await exchange.reply({"error": {**error, "n_ctx": self.context}}, 400)
        elif self.manners is Manners.BUSY:
            self.prompts.append(body)
            await exchange.hang()
        else:
            await super()._chat(body, exchange)


class AppleFmServer(OpenAIServer):
    """The HTTP bridge to Apple's on-device model.

    It takes no heed of ``max_tokens``, tells no usage in a stream, guesses it elsewhere, enforces no schema, and does
    one thing at a time.

    ``reason``: why the model is not available, empty if it is. ``streams``: the first bridges did not.
    """

    owner = "apple"

    def __init__(self, answer: str = "Paris is the capital", *, seconds: float = 0.0, streams: bool = True) -> None:
        super().__init__(answer, ("apple-foundation-model",), seconds=seconds)
        self.reason = ""
        self.streams = streams

    async def _health(self, exchange: Exchange) -> None:
        await exchange.reply(
            {
                "status": "ok" if not self.reason else "unavailable",
                "model_available": not self.reason,
                "version": "1.0.0",
                "platform": "macOS 26.0",
                "availability_message": "Foundation Models is available" if not self.reason else "not available",
                **({"unavailable_reason": self.reason} if self.reason else {}),
            }
        )

    def _model(self, name: str) -> dict[str, Any]:
        return {**super()._model(name), "available": not self.reason, "default_use_case": "general"}

    async def _chat(self, body: dict[str, Any], exchange: Exchange) -> None:
        if self.reason:
            said = {
                "message": "Foundation Models unavailable",
                "type": "model_unavailable",
                "code": "model_unavailable",
            }
            await exchange.reply({"error": said}, 503)
        elif self.manners is Manners.BUSY:
            said = {"message": "busy", "type": "concurrent_requests", "code": "concurrent_requests"}
            await exchange.reply({"error": said}, 409)
        elif not self.streams and self.manners is Manners.FAIR:
            self.prompts.append(body)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": self.answer},
                "finish_reason": "stop",
            }
            usage = {"prompt_tokens": 4, "completion_tokens": len(self.answer) // 4, "total_tokens": 9}
            await exchange.reply({"object": "chat.completion", "choices": [choice], "usage": usage})
        else:
            await super()._chat(body, exchange)

    def _most(self, body: dict[str, Any], count: int) -> int:
        return count

    def _counts(self) -> bool:
        return False
