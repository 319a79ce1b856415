"""The embedded engine within our own process, by ``llama-cpp-python`` (the extra ``pylon-runtime[llamacpp]``).

For machines that ``xllamacpp`` has no wheel for. A child process is better where there is one: what crashes there
crashes alone. Here a model that makes llama.cpp abort takes the daemon with it.

Rules
-----
1. Everything that computes runs in a thread, one at a time; the loop is never blocked, for llama.cpp lets go of the
   interpreter meanwhile.
2. A generation is stopped between two evaluations: between two tokens of an answer, and within a prompt after at most
   ``_BATCH`` tokens, which takes a quarter of a second on one core. (Its abort callback would be asked in Python some
   600 times a token, which makes it six times slower.)
3. A thread that does not come back in time is given up, and no other request begins until it is back: its model is
   in use.
4. Nothing of a request is reused for the next, so that the same question gets the same answer, and the time that an
   answer takes tells one customer nothing about another.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import attrs
import trio

from pylon.backoff import Backoff
from pylon.errors import BackendUnavailable, InferenceError
from pylon.inference.deadlines import Accepted
from pylon.inference.engine import default_threads
from pylon.inference.local_engine import LocalEngine
from pylon.inference.models import ModelFile
from pylon.inference.port import Chunk, Health, InferenceRequest, Usage

log = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH = 64
"""Prompt tokens between two looks at whether somebody still waits. As fast as 256 on two cores."""
_STOPPING = 2.0
"""Seconds for a thread to notice that it is to stop."""


class InProcessLlama(LocalEngine[Any]):
    """A backend with one model, in this process; used like ``EmbeddedLlama``.

    :param threads: for computing; ``None``: ``engine.default_threads()``.
    :param context: tokens of prompt and answer together, at most.
    :param rng: for the jitter between two attempts to load.

    ``async with engine.running():`` loads the model; ``await nursery.start(engine.run)`` only begins to. ``health``
    says ``starting``, ``ready``, ``stuck in an earlier request``, ``restarting: <why>`` or ``stopped``.
    """

    called = "the engine in this process"
    see = "see the log"

    def __init__(
        self,
        model: ModelFile,
        *,
        threads: int | None = None,
        context: int = 4096,
        rng: random.Random | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(model, slots=1, context=context, rng=rng, backoff=backoff)
        self._threads = threads or default_threads()
        self._stuck = False
        self._turn = trio.Lock()
        # One that computes, and one that has just been given up.
        self._threads_of_ours = trio.CapacityLimiter(2)

    async def health(self) -> Health:
        return Health(False, "stuck in an earlier request") if self._stuck else await super().health()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the model, and keep it until cancelled. What does not load is tried again: a file may be put right."""
        self._say("starting", loading=True)
        task_status.started()
        llama = None
        try:
            while llama is None:
                try:
                    llama = await self._in_thread(self._load)
                except Exception as error:
                    reason = f"the model did not load ({type(error).__name__})"
                    log.warning("the engine in this process: %s", reason)
                    self._say(f"restarting: {reason}")
                    await trio.sleep(self._backoff.wait(0.0))
                    self._say(f"restarting: {reason}", loading=True)
            self._say("ready", llama)
            await trio.sleep_forever()
        finally:
            self._say("stopped")
            if llama is not None:
                await self._unload(llama)

    def _load(self) -> Any:
        llama_cpp = _import()
        gpu = bool(llama_cpp.llama_supports_gpu_offload())
        return llama_cpp.Llama(
            model_path=str(self.model.path),
            n_ctx=self.context,
            n_batch=_BATCH,
            n_threads=self._threads,
            n_threads_batch=self._threads,
            n_gpu_layers=-1 if gpu else 0,
            flash_attn=not gpu,  # as the server has it, whose answers it then gives
            verbose=False,
        )

    async def _unload(self, llama: Any) -> None:
        """Give its memory back, unless a thread is still computing with it."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOPPING):
            async with self._turn:
                if not self._stuck:
                    await trio.to_thread.run_sync(llama.close)

    async def _when_ready(self) -> Any:
        llama = await super()._when_ready()
        if self._stuck:
            raise BackendUnavailable("the engine in this process is stuck in an earlier request", "start it anew")
        return llama

    async def _generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        request = self._asked(request)
        await self._when_ready()
        accepted()
        async with self._turn:
            turn = _Turn(await self._when_ready(), request)
            try:
                while True:
                    chunk = await self._in_thread(turn.step, turn.stop)
                    if chunk is None:
                        break
                    yield chunk
                if not turn.over:
                    raise BackendUnavailable("the engine in this process broke off in the middle of an answer")
            except InferenceError:
                raise
            except Exception as error:
                raise self._failed(error) from None
            finally:
                turn.close()

    def _failed(self, error: Exception) -> InferenceError:
        """In our own words: the library's may quote the prompt."""
        if isinstance(error, ValueError) and "context window" in str(error):
            return InferenceError(
                f"the prompt is longer than the {self.context:,} tokens that the engine holds", "send a shorter prompt"
            )
        return BackendUnavailable(f"the engine in this process failed ({type(error).__name__})", "see the log")

    async def _in_thread(self, work: Callable[[], T], stop: threading.Event | None = None) -> T:
        """``work``, in a thread. Cancelled, it is told to ``stop``, and waited for a moment."""
        await trio.lowlevel.checkpoint_if_cancelled()
        token, back = trio.lowlevel.current_trio_token(), trio.Event()

        def returned() -> None:
            back.set()
            if stop is not None:
                self._stuck = False

        def run() -> T:
            try:
                return work()
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(returned)

        try:
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads_of_ours)
        except trio.Cancelled:
            if stop is not None:
                stop.set()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOPPING):
                    await back.wait()
                if not back.is_set():
                    self._stuck = True
                    log.error("the engine in this process does not stop; nothing is asked of it until it does")
            raise


class _Stopped(Exception):
    """Somebody has set ``stop``."""


class _Turn:
    """One generation, a step at a time, each in whatever thread."""

    def __init__(self, llama: Any, request: InferenceRequest) -> None:
        self.stop = threading.Event()
        self._llama = llama
        self._request = request
        self._chunks: Iterator[Any] | None = None
        self._evaluate: Callable[[Sequence[int]], None] = functools.partial(type(llama).eval, llama)
        self._evaluations = 0
        self._prompt_tokens = 0
        self._working = False
        self.over = False

    def step(self) -> Chunk | None:
        """The next piece of the answer; ``None``: that was all."""
        self._working = True
        try:
            if self.over:
                return None
            if self._chunks is None:
                self._chunks = self._begin()
            for said in self._chunks:
                chunk = self._read(said)
                if chunk is not None:
                    return chunk
            return None
        finally:
            self._working = False

    def close(self) -> None:
        """Let go of the model, unless a thread that was given up still has it."""
        if self._working:
            return
        if isinstance(self._chunks, Generator):
            self._chunks.close()
        self._restore()

    def _begin(self) -> Iterator[Any]:
        llama, request = self._llama, self._request
        llama.reset()
        llama.eval = self._eval
        options = {name: getattr(request, name) for name in ("temperature", "top_p", "seed")}
        chunks: Iterator[Any] = llama.create_chat_completion(
            [attrs.asdict(message) for message in request.messages],
            stream=True,
            max_tokens=request.max_tokens,
            stop=list(request.stop),
            **{name: value for name, value in options.items() if value is not None},
            **({} if request.json_schema is None else {"response_format": _shape(request.json_schema)}),
        )
        return chunks

    def _eval(self, tokens: Sequence[int]) -> None:
        """In the place of ``Llama.eval``: what it does, in pieces between which it can be stopped."""
        self._prompt_tokens = self._prompt_tokens or len(tokens)
        self._evaluations += 1
        for start in range(0, len(tokens), _BATCH):
            if self.stop.is_set():
                raise _Stopped
            self._evaluate(tokens[start : start + _BATCH])

    def _read(self, said: Any) -> Chunk | None:
        (choice,) = said["choices"]
        text, reason = choice["delta"].get("content") or "", choice["finish_reason"]
        if reason is not None:
            self.over = True
            # The last token of an answer that is cut was never evaluated; that of any other said that it is the end.
            words = self._evaluations if reason == "length" else self._evaluations - 1
            return Chunk(text, reason, Usage(self._prompt_tokens, max(words, 0)))
        return Chunk(text) if text else None

    def _restore(self) -> None:
        # Not set to the old one: it was the class's, found through the instance.
        self._llama.__dict__.pop("eval", None)


def _shape(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_object", "schema": schema}


@functools.cache
def _import() -> Any:
    """The package, taught to leave our standard streams alone. Raises ``ImportError``."""
    import llama_cpp

    # While it loads a model in silence it turns the whole process's stdout and stderr to nowhere, whoever else is just
    # speaking there. It logs errors only, in any case.
    for name in ("llama", "_internals"):
        module: Any = getattr(llama_cpp, name, None)
        if hasattr(module, "suppress_stdout_stderr"):
            module.suppress_stdout_stderr = lambda disable=True: contextlib.nullcontext()
    return llama_cpp
