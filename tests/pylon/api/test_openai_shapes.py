"""What OpenAI's API says and hears: whatever comes is a call or an error of its shape; pieces joined are the whole."""

from __future__ import annotations

import json
import math

import orjson
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from protocols.strategies_agents import hostile_json
from pylon.api.openai_shapes import (
    MAX_MESSAGES,
    ApiError,
    Call,
    Form,
    StopCutter,
    Writer,
    clean,
    finish,
    flatten,
    models_json,
    read_call,
)
from pylon.inference.port import InferenceRequest, Message, ModelInfo, Usage

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": texts | trees})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", 5]), "content": texts}
) | st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(parts | trees, max_size=3) | trees})
good_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    min_size=1,
    max_size=4,
)
FIELDS = {
    "model": texts | trees,
    "n": st.sampled_from([1, 1.0, None, 2, 0, "1", True]),
    "max_tokens": st.integers(-2, 2_000_000) | scalars,
    "max_completion_tokens": st.integers(1, 100) | scalars,
    "temperature": st.floats(0, 2) | scalars,
    "top_p": st.floats(0, 1) | scalars,
    "seed": st.integers() | scalars,
    "stop": texts | st.lists(texts, max_size=20) | trees,
    "stream": st.booleans() | scalars,
    "stream_options": st.just({"include_usage": True}) | trees,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}])
    | st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": st.dictionaries(texts, trees) | trees})
    | trees,
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function"}]) | trees,
    "tools": trees,
    "suffix": scalars,
    "echo": scalars,
    "logit_bias": trees,
}
bodies = st.fixed_dictionaries(
    {},
    optional={
        "messages": good_messages | st.lists(messages, max_size=4) | trees,
        "prompt": texts | st.lists(texts, max_size=2) | trees,
        **FIELDS,
    },
)


def written(value) -> bytes:
    return json.dumps(value).encode()


def check(form: Form, body: bytes) -> Call | None:
    call, error = None, None
    try:
        call = read_call(form, body, default_tokens=77)
    except ApiError as raised:
        error = raised
    event("refused" if call is None else "understood")
    if error is not None:
        said = json.loads(error.body())["error"]
        assert set(said) == {"message", "type", "param", "code"}
        assert said["message"]
        assert said["code"]
        assert error.status == 400
        return None
    request = call.request
    assert request.messages
    assert all(message.role in ("system", "user", "assistant") for message in request.messages)
    assert 1 <= request.max_tokens <= 1_000_000
    assert type(request.max_tokens) is int
    for value, most in ((request.temperature, 2), (request.top_p, 1)):
        assert value is None or (math.isfinite(value) and 0 <= value <= most)
    assert all(request.stop)
    assert request.json_schema is None or orjson.dumps(request.json_schema)
    assert type(call.stream) is type(call.include_usage) is bool
    return call


@given(st.sampled_from(Form), bodies)
def test_whatever_is_asked_is_a_call_or_an_error(form, value):
    check(form, written(value))


@given(st.sampled_from(Form), st.binary(max_size=200) | hostile_json | st.just(b"[" * 100_000))
def test_whatever_bytes_come(form, body):
    check(form, body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"))


@given(good_messages, st.fixed_dictionaries({}, optional={"x" + name: values for name, values in FIELDS.items()}))
def test_unknown_fields_are_ignored(said, unknown):
    call = check(Form.CHAT, written({**unknown, "messages": said}))
    assert call is not None
    assert call == read_call(Form.CHAT, written({"messages": said}), default_tokens=77)
    assert call.request == InferenceRequest(
        "", tuple(Message(message["role"], message["content"]) for message in said), max_tokens=77
    )


@pytest.mark.parametrize("name", [*FIELDS, "logprobs"])
def test_null_is_absent(name):
    said = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    for form in Form:
        assert read_call(form, written({**said, name: None}), default_tokens=1) == read_call(
            form, written(said), default_tokens=1
        )


def test_what_is_read():
    body = {
        "model": " m ",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 5,
        "max_completion_tokens": 6.0,
        "temperature": 1,
        "seed": -3,
        "stop": ["a", "", "a", "b"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    call = read_call(Form.CHAT, written(body), default_tokens=1)
    request = call.request
    assert (call.stream, call.include_usage, request.model, request.max_tokens) == (True, True, "m", 6)
    assert (request.temperature, request.seed, request.stop) == (1.0, -3, ("a", "b"))


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("form", "body", "param"),
    [
        (Form.CHAT, {}, "messages"),
        (Form.CHAT, {"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)}, "messages"),
        (Form.CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.[0].role"),
        (Form.CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.[0].content"),
        (Form.TEXT, {}, "prompt"),
        (Form.TEXT, {"prompt": [1, 2]}, "prompt"),
        (Form.TEXT, {"prompt": ["a", "b"]}, "prompt"),
        (Form.TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
        (Form.TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (Form.TEXT, {"prompt": "a", "echo": True}, "echo"),
        (Form.TEXT, {"prompt": "a", "stop": ["x"] * 17}, "stop"),
        (Form.TEXT, {"prompt": "a", "max_tokens": True}, "max_tokens"),
        (Form.TEXT, {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        (Form.TEXT, {"prompt": "a", "temperature": False}, "temperature"),
        (Form.TEXT, {"prompt": "a", "seed": 1 << 70}, "seed"),
        (Form.TEXT, {"prompt": "a", "stream": 1}, "stream"),
        (
            Form.TEXT,
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": deep(400)}}},
            "response_format",
        ),
        (Form.TEXT, {"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format"),
        (Form.TEXT, {"prompt": "a", "response_format": {"type": "grammar"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(form, body, param):
    with pytest.raises(ApiError) as info:
        read_call(form, written(body), default_tokens=1)
    assert (info.value.status, info.value.param) == (400, param)


# --- writing ------------------------------------------------------------------------------------------------------


def events(stream: bytes) -> list[dict]:
    lines = stream.decode().split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@given(
    st.sampled_from(Form),
    st.lists(texts, max_size=6),
    st.sampled_from(["stop", "length", "eos", None, "content_filter"]),
    st.booleans(),
    st.integers(0, 1_000),
)
def test_streamed_pieces_joined_are_the_whole(form, pieces, reason, include_usage, tokens):
    call = Call(form, InferenceRequest("m", ()), stream=True, include_usage=include_usage)
    writer = Writer(call, "id-1", 1_700_000_000, "m")
    usage = Usage(tokens, tokens + 1)
    stream = b"".join([*writer.first(), *map(writer.piece, pieces), *writer.last(reason, usage)])
    whole = json.loads(writer.whole("".join(pieces), reason, usage))
    said = events(stream)
    chosen = [piece["choices"][0] for piece in said if piece["choices"]]
    if form is Form.CHAT:
        ChatCompletion.model_validate(whole, strict=False)
        parsed = [ChatCompletionChunk.model_validate(piece) for piece in said]
        assert parsed[0].choices[0].delta.role == "assistant"
        assert "".join(c["delta"].get("content", "") for c in chosen) == whole["choices"][0]["message"]["content"]
    else:
        Completion.model_validate(whole)
        assert "".join(c["text"] for c in chosen) == whole["choices"][0]["text"]
    assert [c["finish_reason"] for c in chosen if c["finish_reason"]] == [whole["choices"][0]["finish_reason"]]
    assert chosen[-1]["finish_reason"] == finish(reason)
    told = [piece["usage"] for piece in said if piece.get("usage")]
    assert told == ([whole["usage"]] if include_usage else [])
    assert whole["usage"]["total_tokens"] == 2 * tokens + 1


def reference_cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop sequence to be complete, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


few = st.text("ab", max_size=12)


@example(["xaba"], ["aba", "b"])
@example(["xaba"], ["ba", "aba"])
@given(st.lists(few, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_is_cut_alike_however_it_came(pieces, stops):
    cutter = StopCutter(stops)
    got = [cutter.feed(piece) for piece in pieces]
    stopped = cutter.stopped
    got.append(cutter.close())
    assert ("".join(got), stopped) == reference_cut("".join(pieces), stops)


@given(st.lists(few, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_more_is_held_back_than_must_be(pieces, stops):
    cutter = StopCutter(stops)
    said, came = "", ""
    for piece in pieces:
        came += piece
        said += cutter.feed(piece)
        held = came[len(said) :]
        assert cutter.stopped or not held or any(stop.startswith(held) and stop != held for stop in stops)


@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20))
def test_a_cleaned_text_can_be_sent(text):
    orjson.dumps(clean(text))
    assert len(clean(text)) == len(text)


def test_a_conversation_as_one_prompt():
    assert flatten([Message("user", "why?")]) == "why?"
    turns = [Message("system", "be brief"), Message("user", "why?"), Message("assistant", "so"), Message("user", "ha")]
    assert flatten(turns) == "System: be brief\n\nUser: why?\n\nAssistant: so\n\nUser: ha\n\nAssistant:"


def test_a_model_of_two_backends_stands_there_once():
    models = [ModelInfo("a", "one", 2_048), ModelInfo("b", "one"), ModelInfo("a", "two")]
    said = models_json(models, 5)
    assert said["object"] == "list"
    assert said["data"] == [
        {"id": "a", "object": "model", "created": 5, "owned_by": "one", "context_length": 2_048},
        {"id": "b", "object": "model", "created": 5, "owned_by": "one"},
    ]
