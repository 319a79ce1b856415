"""``/v1/models``, ``/v1/completions``, ``/v1/chat/completions`` and ``/metrics``, as routes for ``build_app``.

Rules
-----
1. A call is answered by its ``Answerer``; which one that is may be decided after the routes are served.
2. Nothing is sent before the first words are there, so that what goes wrong by then has a status of its own. What goes
   wrong later ends a stream with an error event, and without ``[DONE]``.
3. A client that leaves ends the generation, in the middle of a word.
4. No more than so many completions run at a time; one more is told to come again (429).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from protocols import entropy
from protocols.job_price import estimate_tokens
from pylon.api import openai_shapes as shapes
from pylon.api.answerer import Answer, Answerer, as_api_error, told
from pylon.api.guard import Receive, Scope, Send
from pylon.api.metrics import CONTENT_TYPE, Metrics
from pylon.api.openai_shapes import ApiError, Call, Form, StopCutter, Writer
from pylon.clock import Clock
from pylon.inference.port import Usage

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""After so long a silence a stream says nothing, aloud."""
BUSY_SECONDS = 1
"""What a client is told to wait where too many run."""
_LEFT = 499
"""What metrics call the status of a call whose client left before it had one."""
_PATHS = {Form.CHAT: "/v1/chat/completions", Form.TEXT: "/v1/completions"}


class OpenAIApi:
    """The routes, and what they share.

    :param answerer: who answers; ``None``: nobody yet. May be set later.
    :param concurrency: completions at a time.
    """

    def __init__(
        self, clock: Clock, *, answerer: Answerer | None = None, metrics: Metrics | None = None, concurrency: int = 16
    ) -> None:
        self.answerer = answerer
        self.metrics = metrics or Metrics()
        self.concurrency = concurrency
        self.running = 0
        self._clock = clock
        self._born = int(clock.now())

    def routes(self) -> list[BaseRoute]:
        from starlette.routing import Route

        return [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route(_PATHS[Form.CHAT], self._completion(Form.CHAT), methods=["POST"]),
            Route(_PATHS[Form.TEXT], self._completion(Form.TEXT), methods=["POST"]),
            Route("/metrics", self._metrics),
        ]

    def now(self) -> int:
        return int(self._clock.now())

    def answering(self) -> Answerer:
        """Raises ``ApiError`` where nobody answers."""
        if self.answerer is None:
            raise ApiError(
                503,
                "Nobody answers here: this daemon runs no backend, and [api] market is not set.",
                "backend_unavailable",
                kind="server_error",
            )
        return self.answerer

    async def _models(self, request: Request) -> Response:
        try:
            value = shapes.models_json(await self.answering().models(), self._born)
        except Exception as error:
            return self._failed("/v1/models", error)
        return self._answered("/v1/models", value)

    async def _model(self, request: Request) -> Response:
        wanted = request.path_params["model"]
        try:
            found = {model.id: model for model in reversed(await self.answering().models())}
            if wanted not in found:
                raise shapes.model_not_found(wanted)
        except Exception as error:
            return self._failed("/v1/models", error)
        return self._answered("/v1/models", shapes.model_json(found[wanted], self._born))

    async def _metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _completion(self, form: Form) -> Callable[[Request], object]:
        async def completion(request: Request) -> object:
            return _Completion(self, form, await request.body(), request.headers.get("idempotency-key", ""))

        return completion

    def _answered(self, path: str, value: Mapping[str, object]) -> Response:
        from starlette.responses import Response

        self.count(path, 200)
        return Response(shapes.dumps(value), media_type="application/json")

    def _failed(self, path: str, error: Exception) -> Response:
        from starlette.responses import Response

        problem = as_api_error(error)
        self.count(path, problem.status)
        log.info("%s: %s", path, told(error))
        return Response(problem.body(), problem.status, headers=dict(problem.headers), media_type="application/json")

    def count(self, path: str, status: int) -> None:
        self.metrics.requests.labels(path, str(status)).inc()


class _Completion:
    """One call and its answer, as an ASGI application: it sees its client leave."""

    def __init__(self, api: OpenAIApi, form: Form, body: bytes, key: str = "") -> None:
        self._api = api
        self._form = form
        self._body = body
        self._key = key
        self._status = 0
        """What was sent; 0: nothing yet."""
        self._sent = 0.0
        """When something was sent last."""
        self._ended = False
        """The answer was sent to its end, or is just being."""
        self._lock = trio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = self._api
        busy = api.running >= api.concurrency
        api.running += not busy
        api.metrics.running.set(api.running)
        began = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                try:
                    if busy:
                        raise ApiError(
                            429,
                            f"{api.concurrency} completions run already: come again in a moment.",
                            "too_many_requests",
                            kind="requests",
                            retry_after=BUSY_SECONDS,
                        )
                    await self._answer(send, began, nursery)
                except Exception as error:
                    await self._fail(send, error)
                nursery.cancel_scope.cancel()
        finally:
            api.running -= not busy
            api.metrics.running.set(api.running)
            api.metrics.seconds.observe(trio.current_time() - began)
            api.count(_PATHS[self._form], self._status or _LEFT)

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Servers say so too when the answer has been sent whole.
                self._api.metrics.left.inc(0 if self._ended else 1)
                scope.cancel()
                return

    async def _answer(self, send: Send, began: float, nursery: trio.Nursery) -> None:
        answerer = self._api.answering()
        call = shapes.read_call(self._form, self._body, default_tokens=answerer.default_tokens)
        async with answerer.stream(call.request, whole=not call.stream, key=self._key) as answer:
            words = _Words(call, answer)
            first = await words.next()
            self._api.metrics.first_seconds.observe(trio.current_time() - began)
            identity = shapes.answer_id(self._form, entropy.random_bytes(12))
            writer = Writer(call, identity, self._api.now(), answer.model)
            if call.stream:
                await self._stream(send, writer, words, first, nursery)
            else:
                while first is not None:
                    first = await words.next()
                body = writer.whole(words.text, words.finish_reason, words.usage())
                self._count_tokens(words.usage())
                await self._start(send, 200, "application/json", {**answer.headers, "content-length": str(len(body))})
                await self._say(send, body, more=False)

    async def _stream(
        self, send: Send, writer: Writer, words: _Words, first: str | None, nursery: trio.Nursery
    ) -> None:
        self._api.metrics.streams.inc()
        try:
            await self._start(send, 200, "text/event-stream; charset=utf-8", words.answer.headers)
            nursery.start_soon(self._keep_alive, send)
            await self._say(send, b"".join(writer.first()))
            piece = first
            while piece is not None:
                if piece:
                    await self._say(send, writer.piece(piece))
                piece = await words.next()
            self._count_tokens(words.usage())
            await self._say(send, b"".join(writer.last(words.finish_reason, words.usage())), more=False)
        finally:
            self._api.metrics.streams.dec()

    async def _start(self, send: Send, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self._status = status
        held = [("content-type", kind), *headers.items()]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in held]
        await send({"type": "http.response.start", "status": status, "headers": raw})

    async def _say(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with self._lock:
            if self._ended:
                return
            self._ended = not more
            self._sent = trio.current_time()
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await trio.sleep_until(self._sent + KEEP_ALIVE_SECONDS)
            if trio.current_time() >= self._sent + KEEP_ALIVE_SECONDS:
                await self._say(send, shapes.KEEP_ALIVE)

    async def _fail(self, send: Send, error: Exception) -> None:
        """Tell what went wrong: by a status, or at the end of a stream."""
        problem = as_api_error(error)
        level = logging.WARNING if problem.status >= 500 else logging.INFO
        log.log(level, "%s: %s", _PATHS[self._form], told(error))
        if self._status:
            await self._say(send, shapes.error_event(problem), more=False)
            return
        body = problem.body()
        headers = {**dict(problem.headers), "content-length": str(len(body))}
        await self._start(send, problem.status, "application/json", headers)
        await self._say(send, body, more=False)

    def _count_tokens(self, usage: Usage) -> None:
        self._api.metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self._api.metrics.tokens.labels("completion").inc(usage.completion_tokens)


class _Words:
    """The words of an answer, cleaned, and cut before a stop sequence."""

    def __init__(self, call: Call, answer: Answer) -> None:
        self.answer = answer
        self.text = ""
        self.finish_reason: str | None = None
        self._call = call
        self._cutter = StopCutter(call.request.stop)
        self._usage: Usage | None = None
        self._over = False

    async def next(self) -> str | None:
        """The next words, perhaps none; ``None``: that was all."""
        if self._over:
            return None
        try:
            chunk = await anext(self.answer.chunks)
        except StopAsyncIteration:
            self._over = True
            return self._take(self._cutter.close())
        self._usage = chunk.usage or self._usage
        self.finish_reason = chunk.finish_reason or self.finish_reason
        words = self._cutter.feed(shapes.clean(chunk.text))
        if self._cutter.stopped:
            self._over, self.finish_reason = True, "stop"
        return self._take(words)

    def usage(self) -> Usage:
        """As the backend counts; where it did not, or was cut short, about so many."""
        if self._usage is not None:
            return self._usage
        asked = sum(estimate_tokens(message.content) for message in self._call.request.messages)
        return Usage(max(asked, 1), max(estimate_tokens(self.text), 1 if self.text else 0))

    def _take(self, words: str) -> str:
        self.text += words
        return words
