"""What OpenAI's API says and hears, as values: requests read and checked, answers and errors in its shape. Pure.

Rules
-----
1. Requests are read leniently: unknown fields are ignored, ``null`` is the same as absent, whole numbers may come as
   ``128.0``. What is understood and cannot be done is refused by name, and not ignored: more than one choice,
   pictures, tools that must be called.
2. Whatever bytes come, reading them gives a call or raises ``ApiError``.
3. A text is cut before the first of its stop sequences, however it came in pieces (``StopCutter``); where several end
   at the same character, before the longest.
4. The pieces of a stream, joined, are what the answer in one piece would have been.

Source: the OpenAI API reference (chat completions, completions, models, errors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import attrs
import orjson

from pylon.inference.port import InferenceRequest, Message, ModelInfo, Usage

MAX_MESSAGES = 2_000
MAX_STOPS = 16
MAX_STOP_CHARS = 1_000
MAX_MODEL_CHARS = 300
MAX_TOKENS = 1_000_000
FALLBACK = "stop"
"""What an answer ends with whose backend names a reason that the API does not know."""
_REASONS = ("stop", "length", "content_filter")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class ApiError(Exception):
    """An answer that ends a request, in the shape of OpenAI's errors.

    :param status: of HTTP.
    :param code: short and stable; clients branch on it.
    :param kind: OpenAI's ``type``.
    :param param: the field that is at fault.
    :param retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = (*headers, *([("retry-after", str(retry_after))] if retry_after is not None else []))

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return orjson.dumps(self.to_json())


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        f"The model {model[:MAX_MODEL_CHARS]!r} is not served here: GET /v1/models.",
        "model_not_found",
        param="model",
    )


class Form(Enum):
    """Which of the two ways of asking."""

    CHAT = "chat"
    TEXT = "text"


@attrs.frozen
class Call:
    """A request that was understood. An empty ``request.model`` asks for whatever answers by default."""

    form: Form
    request: InferenceRequest
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with a piece that tells the usage."""


# --- reading ----------------------------------------------------------------------------------------------------------


def read_call(form: Form, body: bytes, *, default_tokens: int) -> Call:
    """The call in a request's body. Raises ``ApiError``.

    :param default_tokens: the longest answer where none is named.
    """
    try:
        value = orjson.loads(body)
    except ValueError:
        raise ApiError(400, "The body of the request is not JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body of the request is not a JSON object.", "invalid_json")
    fields = {name: held for name, held in value.items() if held is not None}
    for name in ("n", "best_of"):
        if _whole(fields, name, 1, 1 << 31, 1) != 1:
            raise _refused(name, "only one choice is made: n must be 1")
    if form is Form.CHAT:
        messages = _messages(fields.get("messages"))
        _refuse_tools(fields)
        limit = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    else:
        messages = (Message("user", _prompt(fields.get("prompt"))),)
        for name in ("suffix", "echo"):
            if fields.get(name):
                raise _refused(name, f"{name} is not supported")
        limit = "max_tokens"
    options = fields.get("stream_options", {})
    return Call(
        form,
        InferenceRequest(
            model=_model(fields),
            messages=messages,
            max_tokens=_whole(fields, limit, 1, MAX_TOKENS, default_tokens),
            temperature=_number(fields, "temperature", 0, 2),
            top_p=_number(fields, "top_p", 0, 1),
            seed=_whole(fields, "seed", -(1 << 63), (1 << 63) - 1, None),
            stop=_stops(fields.get("stop")),
            json_schema=_schema(fields.get("response_format")),
        ),
        stream=_flag(fields, "stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _refused(param: str, message: str, code: str = "unsupported_value") -> ApiError:
    return ApiError(400, f"{message[:1].upper()}{message[1:]}.", code, param=param)


def _model(fields: dict[str, Any]) -> str:
    model = fields.get("model", "")
    if not isinstance(model, str) or len(model) > MAX_MODEL_CHARS:
        raise _refused("model", f"model must be a text of at most {MAX_MODEL_CHARS} characters", "invalid_type")
    return model.strip()


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise _refused(name, f"{name} must be true or false", "invalid_type")
    return value


def _whole(fields: dict[str, Any], name: str, least: int, most: int, default: Any) -> Any:
    value = fields.get(name, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
        raise _refused(name, f"{name} must be a whole number from {least} to {most}", "invalid_value")
    return value


def _number(fields: dict[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refused(name, f"{name} must be a number", "invalid_type")
    if not least <= value <= most:
        raise _refused(name, f"{name} must be from {least:g} to {most:g}", "invalid_value")
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise _refused("stop", f"stop must be a text or a list of at most {MAX_STOPS} texts", "invalid_type")
    if any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise _refused("stop", f"a stop sequence has at most {MAX_STOP_CHARS} characters", "invalid_value")
    return tuple(dict.fromkeys(stop for stop in stops if stop))


def _schema(value: Any) -> dict[str, Any] | None:
    """The JSON schema that ``response_format`` asks for."""
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return dict(_ANY_OBJECT)
    if kind == "json_schema":
        named = value.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise _refused("response_format", "response_format.json_schema.schema must be an object", "invalid_type")
        try:
            orjson.dumps(schema)  # what cannot be written again is nested too deep for whoever reads it next
        except TypeError:
            raise _refused("response_format", "the schema is nested too deep", "invalid_value") from None
        return schema
    raise _refused("response_format", "response_format must be of type text, json_object or json_schema")


def _refuse_tools(fields: dict[str, Any]) -> None:
    """Tools that may be called are ignored: the model calls none. Those that must be cannot be."""
    choice = fields.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise _refused("tool_choice", "tools cannot be called here")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _refused("messages", "messages must be a list of one message or more", "invalid_type")
    if len(value) > MAX_MESSAGES:
        raise _refused("messages", f"at most {MAX_MESSAGES:,} messages are read", "invalid_value")
    return tuple(_message(f"messages.[{index}]", message) for index, message in enumerate(value))


def _message(place: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise _refused(place, f"{place} must be an object", "invalid_type")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _refused(f"{place}.role", f"{place}.role must be one of {', '.join(_ROLES)}")
    content = value.get("content")
    if content is None and role == "assistant":
        return Message("assistant", "")
    return Message(_ROLES[role], _content(f"{place}.content", content))


def _content(place: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _refused(place, f"{place} must be a text or a list of parts", "invalid_type")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _refused(place, f"{place} may have parts of type text only")
        texts.append(part["text"])
    return "\n".join(texts)


def _prompt(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise _refused("prompt", "prompt must be one text", "invalid_type")
    return value


# --- writing ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Writer:
    """The answer to one call. ``id`` and ``created`` (Unix seconds) are the same in all its pieces."""

    call: Call
    id: str
    created: int
    model: str
    """The one that answers."""

    def whole(self, text: str, finish_reason: str | None, usage: Usage) -> bytes:
        """The answer in one piece."""
        if self.call.form is Form.CHAT:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            said = {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish(finish_reason)}
        return orjson.dumps({**self._head(streamed=False), "choices": [choice], "usage": usage_json(usage)})

    def first(self) -> list[bytes]:
        """What a stream begins with."""
        return [self._piece({"delta": {"role": "assistant", "content": ""}})] if self.call.form is Form.CHAT else []

    def piece(self, text: str) -> bytes:
        return self._piece({"delta": {"content": text}} if self.call.form is Form.CHAT else {"text": text})

    def last(self, finish_reason: str | None, usage: Usage) -> list[bytes]:
        """What a stream ends with, ``[DONE]`` included."""
        said: dict[str, Any] = {"delta": {}} if self.call.form is Form.CHAT else {"text": ""}
        pieces = [self._piece(said, finish(finish_reason))]
        if self.call.include_usage:
            pieces.append(_event({**self._head(streamed=True), "choices": [], "usage": usage_json(usage)}))
        return [*pieces, b"data: [DONE]\n\n"]

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        kind = "text_completion" if self.call.form is Form.TEXT else f"chat.completion{'.chunk' if streamed else ''}"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}

    def _piece(self, said: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self.call.include_usage else {}
        return _event({**self._head(streamed=True), "choices": [choice], **usage})


def answer_id(form: Form, random: bytes) -> str:
    return f"{'chatcmpl' if form is Form.CHAT else 'cmpl'}-{random.hex()}"


def finish(reason: str | None) -> str:
    return reason if reason in _REASONS else FALLBACK


def usage_json(usage: Usage) -> dict[str, int]:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def models_json(models: Sequence[ModelInfo], created: int) -> dict[str, Any]:
    """``GET /v1/models``: a model that several serve stands there once."""
    first = {model.id: model for model in reversed(models)}
    names = dict.fromkeys(model.id for model in models)
    return {"object": "list", "data": [model_json(first[name], created) for name in names]}


def model_json(model: ModelInfo, created: int) -> dict[str, Any]:
    known = {} if model.context_length is None else {"context_length": model.context_length}
    return {"id": model.id, "object": "model", "created": created, "owned_by": model.backend, **known}


def dumps(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value)


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream, which ends it without ``[DONE]``."""
    return _event(error.to_json())


KEEP_ALIVE = b": keep-alive\n\n"
"""Nothing, said so that nobody between takes the silence for the end."""


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


# --- stop sequences ---------------------------------------------------------------------------------------------------


class StopCutter:
    """Cuts a text that comes in pieces before its first stop sequence.

    ``stopped``: it was cut, and nothing more is wanted.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        """What may be the beginning of a stop sequence."""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What can be said for sure now."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many characters at the end of ``text`` begin ``stop``."""
        for size in range(min(len(text), len(stop) - 1), 0, -1):
            if stop.startswith(text[-size:]):
                return size
        return 0


# --- one prompt of many turns -----------------------------------------------------------------------------------------

_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}


def flatten(messages: Sequence[Message]) -> str:
    """A conversation as one prompt, for the market, where a request has no turns.

    A single question goes as it is; more turns are written out by their roles, and end with the assistant's.
    """
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    turns = [f"{_LABELS[message.role]}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """``text`` as JSON can carry it: engines that cut in the middle of a character leave halves of it."""
    return _SURROGATES.sub("\ufffd", text)
