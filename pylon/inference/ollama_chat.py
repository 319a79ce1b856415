"""Ollama's streamed answers as bytes: one JSON object a line in, chunks out. Sans-IO.

Source: Ollama's ``docs/api.md`` (generate a chat completion, streaming responses) and ``docs/api/errors.mdx``.
What is read leniently, because versions differ:

- an error in the middle of a stream is a line ``{"error": "..."}``; the status has long been 200;
- ``done_reason`` is missing (before 0.3) or empty (the runner hung up: that is a break, not an end);
- counts of zero are left out, so ``prompt_eval_count`` is missing where all of a prompt was cached;
- thoughts come in ``message.thinking`` and are no part of the answer, but whoever thinks does not hang;
- a proxy in between may send the whole answer as one object without a line end.

How the bytes were cut on their way changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from pylon.errors import BackendBusy, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.port import Chunk, Usage

MAX_LINE = 1 << 20
"""Bytes of one line; no token is that long."""

MAX_STREAM = 16 << 20
"""Bytes of a whole answer with all its wrapping."""

_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class ModelTooBig(ModelMissing):
    """Ollama has the model and cannot load it."""


class OllamaChat:
    """The bytes of one streamed answer of ``/api/chat`` into its chunks.

    ``name`` and ``model`` are for the errors. ``done``: nothing more will come.
    """

    def __init__(self, name: str, model: str) -> None:
        self._name = name
        self._model = model
        self._line = bytearray()
        self._total = 0
        self.done = False

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks in ``data``. Raises what an error in the stream says."""
        position = 0
        while position < len(data) and not self.done:
            found = data.find(b"\n", position)
            end = found if found >= 0 else len(data)
            self._total += end - position
            if len(self._line) + end - position > MAX_LINE or self._total > MAX_STREAM:
                raise InferenceError(f"{self._name} sent an answer without end", "is this Ollama?")
            self._line += data[position:end]
            if found < 0:
                return
            position = end + 1
            yield from self._take_line()

    def close(self) -> Iterator[Chunk]:
        """What is left when the bytes have ended. Raises ``BackendUnavailable`` if the answer had not."""
        if not self.done and self._line:
            yield from self._take_line()
        if not self.done:
            raise BackendUnavailable(f"{self._name} broke off in the middle of an answer", "see Ollama's log")

    def _take_line(self) -> Iterator[Chunk]:
        line = bytes(self._line)
        self._line.clear()
        value = _parse(line)
        if not isinstance(value, dict):
            return
        if value.get("error"):
            raise failure(self._name, self._model, None, value)
        message = value.get("message")
        said = message if isinstance(message, dict) else {}
        text = _text(said.get("content"))
        if text:
            yield Chunk(text)
        elif said.get("thinking"):
            yield Chunk("")
        if value.get("done") is True:
            reason = value.get("done_reason", "stop")
            if reason == "":
                raise BackendUnavailable(f"{self._name} broke off in the middle of an answer", "see Ollama's log")
            self.done = True
            yield Chunk("", reason if isinstance(reason, str) and _CODE.match(reason) else "stop", _usage(value))


def failure(name: str, model: str, status: int | None, body: object) -> InferenceError:
    """The error that an HTTP status, ``{"error": "..."}``, or both, mean.

    Ollama's errors are sentences. They are understood but not repeated, for some quote what was asked.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message")
    said = error.lower() if isinstance(error, str) else ""
    shown = str(status) if status else "in its answer"
    if "server busy" in said or "maximum pending requests" in said or status == 429:
        return BackendBusy(f"{name} has too many requests waiting ({shown})", "try again later")
    if "not found" in said and "model" in said:
        return ModelMissing(f"{name} has no model {model!r}", f"ollama pull {model}")
    if "more system memory" in said or "unable to load" in said or "out of memory" in said:
        return ModelTooBig(f"{name} cannot load {model!r}: this machine has not the memory for it", "a smaller model")
    if "longer than the context" in said or "exceeds the available context" in said or "input length exceeds" in said:
        return InferenceError(
            f"the prompt is too long for {model!r} of {name} ({shown})", "a shorter prompt, or a larger context for it"
        )
    if "does not support" in said:
        return ModelMissing(f"{name} cannot chat with {model!r} ({shown})", "name a model for chats")
    if status in (401, 403):
        return InferenceError(f"{name} refused the API key ({shown})", "set the key of this backend")
    if status == 404:
        return InferenceError(f"{name} knows no /api/chat ({shown})", "is Ollama at this address?")
    if status is None or status >= 500 or status in (408, 425):
        return BackendUnavailable(f"{name} failed ({shown})", "see Ollama's log")
    return InferenceError(f"{name} refused the request ({shown})", "see Ollama's log")


def dislikes_format(status: int, body: object) -> bool:
    """Whether it is the schema that Ollama does not take: a shape that its grammars do not know, or an old version."""
    return status in (400, 422, 500, 501) and _mentions(body, ("format", "grammar", "schema"))


def dislikes_thinking(status: int, body: object) -> bool:
    """Whether Ollama takes offence at being told whether to think."""
    return status == 400 and _mentions(body, ("think",))


def _mentions(body: object, words: tuple[str, ...]) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, str) and any(word in error.lower() for word in words)


def _parse(line: bytes) -> Any:
    text = line.decode("utf-8", "replace").strip()
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        # Half of a surrogate pair, which only the stdlib reads.
        return json.loads(text) if "\\u" in text else None
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def _usage(value: dict[str, Any]) -> Usage | None:
    """Without ``prompt_eval_count`` there is no telling what the prompt was: no usage is better than a wrong one."""
    prompt, answer = value.get("prompt_eval_count"), value.get("eval_count", 0)
    if type(prompt) is int and type(answer) is int and 0 <= prompt < 1 << 53 and 0 <= answer < 1 << 53:
        return Usage(prompt, answer)
    return None
