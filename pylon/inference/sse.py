"""Streamed chat completions as bytes: Server-Sent Events in, chunks out. Sans-IO.

Source: the event stream format of the HTML standard (section 9.2), and what the OpenAI-compatible servers send in it:
``chat.completion.chunk`` objects, then ``[DONE]``. Read leniently: comments, any line ending, unknown fields, a missing
``[DONE]``, a missing last blank line, an answer that was not streamed at all.

How the bytes were cut on their way changes nothing: the same bytes give the same chunks, then the same error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

import orjson

from pylon.errors import BackendBusy, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.port import Chunk, Usage

MAX_EVENT = 1 << 20
"""Bytes of one event; no token is that long."""

MAX_STREAM = 16 << 20
"""Bytes of a whole answer with all its wrapping."""

_LINE_END = re.compile(rb"[\r\n]")
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class EventStream:
    """Bytes into the ``data`` of events."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._size = 0
        self._total = 0
        self._after_cr = False
        self._first = True

    def feed(self, data: bytes) -> Iterator[str]:
        """The events that ``data`` completes. Raises ``InferenceError`` for an event or a stream without end."""
        position = 0
        while position < len(data):
            if self._after_cr:
                self._after_cr = False
                if data[position] == 0x0A:
                    position += 1
                    continue
            found = _LINE_END.search(data, position)
            end = found.start() if found else len(data)
            self._count(end - position)
            self._line += data[position:end]
            if found is None:
                return
            self._after_cr = data[end] == 0x0D
            position = end + 1
            yield from self._take_line()

    def close(self) -> Iterator[str]:
        """The event that the end of the bytes completes, if one was begun."""
        if self._line:
            yield from self._take_line()
        yield from self._dispatch()

    def _count(self, size: int) -> None:
        # The excess is measured in content, not in reads: where the limit strikes may not depend on the cutting.
        self._size += size
        self._total += size
        if self._size > MAX_EVENT or self._total > MAX_STREAM:
            raise InferenceError("the backend sent an answer without end", "is this an OpenAI-compatible endpoint?")

    def _take_line(self) -> Iterator[str]:
        line = self._line.decode("utf-8", "replace")
        self._line.clear()
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        if not line:
            yield from self._dispatch()
            return
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "error":  # older llama.cpp servers announce a failure in a field of its own
            self._data.append(f'{{"error": {value}}}')

    def _dispatch(self) -> Iterator[str]:
        data, self._data, self._size = self._data, [], 0
        if len(data) > 1 and _parse("\n".join(data)) is None:
            yield from data  # a server that forgets the blank lines between its events
        elif data:
            yield "\n".join(data)


class ChatStream:
    """The bytes of one streamed answer into its chunks.

    ``name`` and ``model`` are for the errors. ``answered``: the finish reason came, only the usage may be missing.
    ``done``: nothing more will come.
    """

    def __init__(self, name: str, model: str) -> None:
        self._name = name
        self._model = model
        self._events = EventStream()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.done = False

    @property
    def answered(self) -> bool:
        return self._finish_reason is not None

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks in ``data``. Raises what an error object in the stream says."""
        for event in self._events.feed(data):
            yield from self._take(event)

    def close(self) -> Iterator[Chunk]:
        """What is left when the bytes have ended: the last chunk.

        Raises ``BackendUnavailable`` if the answer had not come to its end.
        """
        for event in self._events.close():
            yield from self._take(event)
        if self.done:
            return
        if not self.answered:
            raise BackendUnavailable(f"{self._name} broke off in the middle of an answer", "see the backend's log")
        yield from self._end()

    def whole(self, body: bytes) -> Iterator[Chunk]:
        """The chunks of a reply that came as one JSON object instead of a stream."""
        yield from self._take(body.decode("utf-8", "replace"))
        if not self.done and not self.answered:
            raise BackendUnavailable(
                f"{self._name} sent something that is no chat completion", "is this an OpenAI-compatible endpoint?"
            )
        if not self.done:
            yield from self._end()

    def _take(self, event: str) -> Iterator[Chunk]:
        if self.done:
            return
        if event.strip() == "[DONE]":
            yield from self._end()
            return
        value = _parse(event)
        if not isinstance(value, dict):
            return
        if value.get("error") or value.get("object") == "error":
            raise failure(self._name, self._model, None, value)
        self._usage = _usage(value.get("usage")) or self._usage
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                yield from self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> Iterator[Chunk]:
        said = choice.get("delta") or choice.get("message") or {}
        if not isinstance(said, dict):
            said = {}
        text = _text(said.get("content")) or _text(choice.get("text"))
        if text:
            yield Chunk(text)
        elif said.get("reasoning_content") or said.get("reasoning"):
            yield Chunk("")  # thinking aloud is no part of the answer, but whoever thinks does not hang
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish_reason = reason if _CODE.match(reason) else "stop"

    def _end(self) -> Iterator[Chunk]:
        self.done = True
        yield Chunk("", self._finish_reason or "stop", self._usage)


def failure(name: str, model: str, status: int | None, body: object) -> InferenceError:
    """The error that an HTTP status, an error object, or both, mean.

    The server's own sentence is not repeated, for servers quote prompts and keys in them; its short codes are.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, str):
        error = {"message": error}
    details = error if isinstance(error, dict) else {}
    codes = [code for key in ("code", "type") if (code := _code(details.get(key)))]
    numbers = [status, *(int(code) for code in codes if re.fullmatch(r"[45]\d\d", code))]
    number = next((n for n in numbers if n and n >= 400), None)
    words = [code for code in codes if not code.isdigit()]
    said = " ".join([*([str(number)] if number else []), *words]) or "no reason given"

    message = details.get("message")
    speaks_of_model = isinstance(message, str) and "model" in message.lower()
    if "model_not_found" in words or (number == 404 and speaks_of_model):
        return ModelMissing(f"{name} has no model {model!r}", "pylon models lists what is there")
    if number in (401, 403):
        return InferenceError(f"{name} refused the API key ({said})", "set the key of this backend")
    if "concurrent_requests" in words or (number == 429 and "insufficient_quota" not in words):
        return BackendBusy(f"{name} has no room for another request ({said})", "try again later")
    if number in (408, 425, 429, 500, 502, 503, 504, 529):
        return BackendUnavailable(f"{name} cannot answer now ({said})", "try again later, or use another backend")
    if "exceed_context_size_error" in words or "context_length_exceeded" in words:
        return InferenceError(f"the prompt is too long for the model of {name} ({said})", "send a shorter prompt")
    if number == 404:
        return InferenceError(f"{name} knows no chat completions ({said})", "does its address end in /v1?")
    return InferenceError(f"{name} refused the request ({said})", "see the backend's log")


def _code(value: object) -> str | None:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if _CODE.match(text) else None


def _parse(text: str) -> Any:
    """JSON, or ``None``."""
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        # Half of a surrogate pair: a server that cuts its text at UTF-16 units. The stdlib reads it.
        return json.loads(text) if "\\u" in text else None
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    if not isinstance(value, str):
        return ""
    return value.encode("utf-8", "replace").decode("utf-8") if not value.isascii() else value


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt_tokens, completion_tokens = value.get("prompt_tokens"), value.get("completion_tokens")
    if _is_count(prompt_tokens) and _is_count(completion_tokens):
        return Usage(prompt_tokens, completion_tokens)
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 53
