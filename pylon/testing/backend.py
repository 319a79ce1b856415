"""``ScriptedBackend``: a fake backend that says what it was told to say, as slowly and as badly as wished.

It runs no model, and says so wherever it can be asked. All its delays are Trio's, so that under a ``MockClock`` they
cost nothing. It passes through the same deadlines as every real backend.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

import attrs
import trio

from pylon.errors import BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.deadlines import Accepted, collect, enforce
from pylon.inference.port import (
    DEFAULT_DEADLINES,
    Chunk,
    Completion,
    Deadlines,
    Health,
    InferenceRequest,
    ModelInfo,
    Usage,
)

log = logging.getLogger(__name__)

_WORD = re.compile(r"\s*\S+|\s+")


@attrs.frozen
class Reply:
    """One answer and everything that may go wrong with it. A token is a word with the space before it.

    :param connect: seconds until the request is taken.
    :param first: seconds from there to the first token.
    :param pace: seconds from each token to the next.
    :param error: raised after ``fail_after`` tokens.
    :param fail_after: 0: before the first token.
    :param hang_after: tokens after which nothing comes any more, for ever.
    """

    text: str = ""
    connect: float = 0.0
    first: float = 0.0
    pace: float = 0.0
    error: Exception | None = None
    fail_after: int = 0
    hang_after: int | None = None
    finish_reason: str = "stop"


EMPTY = Reply()
"""An answer without a single token."""

HANG = Reply(hang_after=0)
"""The request is taken, and then nothing."""

NO_CONNECTION = Reply(connect=float("inf"))
"""The request is not even taken."""

Script = str | Reply | Iterable[str | Reply] | Callable[[InferenceRequest], str | Reply]


class ScriptedBackend:
    """A fake ``Backend``.

    :param script: one answer for all requests; several, given out in order, after which it is an error to ask; or a
        function of the request.
    :param models: the models it claims to have; any other is ``ModelMissing``.
    :param slots: answers at the same time; ``None``: any number. Waiting for one counts as ``first_token``.

    For assertions: ``requests`` as they came, ``active`` generations, ``stopped``: those that did not reach their end.
    ``up`` may be set to ``False``: nothing answers then.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted-fake",
        models: Sequence[str] = ("scripted-1",),
        slots: int | None = None,
    ) -> None:
        self._name = name
        self._script = script
        self._answers = iter(()) if isinstance(script, str | Reply) or callable(script) else iter(script)
        self._slots = None if slots is None else trio.Semaphore(slots)
        self.model_ids = tuple(models)
        self.requests: list[InferenceRequest] = []
        self.active = 0
        self.stopped = 0
        self.up = True
        log.warning("%s is a FAKE backend: its answers come from a script, no model is running", name)

    def __repr__(self) -> str:
        return f"ScriptedBackend({self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> list[ModelInfo]:
        await trio.lowlevel.checkpoint()
        if not self.up:
            raise self._down()
        return [ModelInfo(model, self._name) for model in self.model_ids]

    async def health(self) -> Health:
        await trio.lowlevel.checkpoint()
        return Health(True, "FAKE: answers from a script") if self.up else Health(False, self._down().message)

    def stream(
        self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        return enforce(self._name, deadlines, lambda accepted: self._generate(request, accepted))

    async def complete(self, request: InferenceRequest, deadlines: Deadlines = DEFAULT_DEADLINES) -> Completion:
        return await collect(self.stream(request, deadlines), request.model)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _generate(self, request: InferenceRequest, accepted: Accepted) -> AsyncGenerator[Chunk, None]:
        if not self.up:
            raise self._down()
        if request.model not in self.model_ids:
            raise ModelMissing(f"{self._name} has no model {request.model!r}")
        self.requests.append(request)
        reply = self._reply(request)
        await trio.sleep(reply.connect)
        accepted()
        if self._slots is not None:
            await self._slots.acquire()
        self.active += 1
        complete = False
        try:
            async with aclosing(_speak(reply, request)) as chunks:
                async for chunk in chunks:
                    if not self.up:
                        raise self._down()
                    yield chunk
            complete = True
        finally:
            self.active -= 1
            self.stopped += not complete
            if self._slots is not None:
                self._slots.release()

    def _reply(self, request: InferenceRequest) -> Reply:
        if callable(self._script):
            reply = self._script(request)
        elif isinstance(self._script, str | Reply):
            reply = self._script
        else:
            try:
                reply = next(self._answers)
            except StopIteration:
                raise InferenceError(f"the script of {self._name} is at its end") from None
        return Reply(reply) if isinstance(reply, str) else reply

    def _down(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self._name} (a fake) is down")


async def _speak(reply: Reply, request: InferenceRequest) -> AsyncGenerator[Chunk, None]:
    words = _WORD.findall(reply.text)
    said = words[: request.max_tokens]
    await trio.sleep(reply.first)
    for count in range(len(said) + 1):
        if reply.hang_after == count:
            await trio.sleep_forever()
        if reply.error is not None and reply.fail_after == count:
            raise reply.error
        if count:
            await trio.sleep(reply.pace)
        if count < len(said):
            yield Chunk(said[count])
    prompt_tokens = sum(len(message.content.split()) for message in request.messages)
    finish_reason = "length" if len(said) < len(words) else reply.finish_reason
    yield Chunk("", finish_reason, Usage(prompt_tokens, len(said)))
