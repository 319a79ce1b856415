"""The stream parser: any cutting of the same bytes, every server's habits, hostile text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pylon.errors import BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.port import Chunk, Usage
from pylon.inference.sse import MAX_EVENT, MAX_STREAM, ChatStream, EventStream, failure


def read(*pieces: bytes) -> tuple[list[Chunk], tuple[type, str] | None]:
    """Chunks, and class and message of the error that ended them."""
    chat = ChatStream("server", "m")
    chunks: list[Chunk] = []
    try:
        for piece in pieces:
            for chunk in chat.feed(piece):
                chunks.append(chunk)  # noqa: PERF402 - an error must not lose those before it
        for chunk in chat.close():
            chunks.append(chunk)  # noqa: PERF402
    except InferenceError as error:
        return chunks, (type(error), error.message)
    return chunks, None


def said(content):
    return {"role": "assistant", "content": content}


def delta(content=None, finish=None, **more):
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}],
        **more,
    }


def data(*values, end="\n\n") -> bytes:
    return b"".join(b"data: " + (v if isinstance(v, str) else json.dumps(v)).encode() + end.encode() for v in values)


USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}

# What the servers really send, as recorded; shortened.
LLAMACPP = data(
    {"choices": [{"finish_reason": None, "index": 0, "delta": said(None)}], "created": 1},
    delta("Par"),
    delta("is"),
    {"choices": [{"finish_reason": "length", "index": 0, "delta": {}}]},
    {"choices": [], **USAGE, "timings": {"predicted_per_second": 122.5}},
    "[DONE]",
)
OLLAMA = data(
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "delta": said("Par"), "finish_reason": None}],
    },
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "delta": said("is"), "finish_reason": None}],
    },
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "delta": said(""), "finish_reason": "stop"}],
    },
    {"id": "chatcmpl-1", "choices": [], **USAGE},
    "[DONE]",
)
OPENAI = data(
    {
        "choices": [{"index": 0, "delta": said(""), "finish_reason": None}],
        "usage": None,
    },
    delta("Par", usage=None),
    delta("is", usage=None),
    {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], "usage": None},
    {"choices": [], **USAGE},
    "[DONE]",
)
PINGED = b": OPENROUTER PROCESSING\n\nevent: message\nid: 7\nretry: 10\n" + OPENAI.replace(b"\n", b"\r\n")
PARIS = [Chunk("Par"), Chunk("is")]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [(LLAMACPP, "length"), (OLLAMA, "stop"), (OPENAI, "stop"), (PINGED, "stop"), (b"\xef\xbb\xbf" + OLLAMA, "stop")],
)
def test_recorded_streams(stream, reason):
    assert read(stream) == ([*PARIS, Chunk("", reason, Usage(3, 2))], None)


@pytest.mark.parametrize(
    "stream",
    [
        data(delta("Par"), delta("is", "stop")),
        data(delta("Par"), delta("is", "stop"), "[DONE]"),
        data(delta("Par"), delta("is", "stop"))[:-2],
        data(delta("Par"), delta("is", "stop"), end="\n"),
        data(delta("Par"), delta("is", "stop"), end="\r"),
        data(delta("Par"), delta("is"), "[DONE]", delta("after"), {"error": "after"}),
        data(delta("Par"), "no json", '{"choices": 7}', "[]", '"x"', delta("is"), "[DONE]"),
        data(delta("Par"), delta(), delta([{"type": "text", "text": "is"}, 3]), "[DONE]"),
        data(delta("Par"), {"choices": [{"index": 1, "delta": {"content": "other"}}]}, delta("is"), "[DONE]"),
        data({"choices": [{"text": "Par"}]}, {"choices": [{"text": "is", "finish_reason": "stop"}]}),
        data(delta("Par"), delta("is", "stop", usage={"prompt_tokens": True, "completion_tokens": -1})),
        data(delta("Par"), delta("is", 'a "reason" nobody knows'), "[DONE]"),
    ],
)
def test_what_is_forgiven(stream):
    assert read(stream) == ([*PARIS, Chunk("", "stop")], None)


def test_a_last_chunk_with_text_keeps_it():
    assert read(data(delta("all of it", "stop", **USAGE)))[0] == [Chunk("all of it"), Chunk("", "stop", Usage(3, 2))]


def test_thinking_is_a_sign_of_life_and_no_text():
    stream = data({"choices": [{"delta": {"reasoning_content": "hm"}}]}, delta("Paris", "stop"))
    assert read(stream)[0] == [Chunk(""), Chunk("Paris"), Chunk("", "stop")]


@pytest.mark.parametrize("cut", ["", "data: [DO", "data: {"])
def test_an_answer_that_breaks_off_is_no_answer(cut):
    chunks, error = read(data(delta("Par")) + cut.encode())
    assert chunks == [Chunk("Par")]
    assert error is not None
    assert error[0] is BackendUnavailable


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (data({"error": {"message": "slot was lost", "type": "server_error", "code": 500}}), BackendUnavailable),
        (b'error: {"code": 503, "message": "Loading model"}\n\n', BackendUnavailable),
        (data({"object": "error", "message": "no", "code": 400}), InferenceError),
        (data({"error": "overloaded"}), InferenceError),
        (data({"error": {"code": "model_not_found"}}), ModelMissing),
        (b"event: error\n" + data({"error": {"code": 429}}), BackendUnavailable),
    ],
)
def test_errors_in_the_middle(event, expected):
    chunks, error = read(data(delta("Par")) + event + data(delta("is"), "[DONE]"))
    assert chunks == [Chunk("Par")]
    assert error is not None
    assert issubclass(error[0], expected)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "error", "usage", "index"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
_EVENT = st.one_of(
    st.builds(
        lambda text, reason: json.dumps(delta(text, reason), ensure_ascii=False),
        st.text(max_size=6),
        st.sampled_from([None, "stop"]),
    ),
    _JSON.map(json.dumps),
    st.just("[DONE]"),
    st.just(json.dumps({"error": {"code": 500}})),
    st.just(json.dumps({"choices": [], **USAGE})),
    st.just('{"choices":[{"delta":{"content":"\\ud83d"}}]}'),
    st.just('{"choices":[{"delta":{"content":' + "[" * 3000 + "]" * 3000 + "}}]}"),
    st.text(max_size=8),
)
_LINE = st.one_of(
    _EVENT.map("data: {}".format), _EVENT.map("data:{}".format), st.sampled_from([": ping", "event: x", "", "junk"])
)
_STREAM = st.lists(
    st.tuples(_LINE, st.sampled_from(["\n", "\n\n", "\r\n\r\n", "\r", "\r\r", "\r\n"])), max_size=10
).map(lambda lines: "".join(line + end for line, end in lines).encode("utf-8", "surrogatepass"))


@given(_STREAM | st.binary(max_size=60), st.data())
@example(OLLAMA, None)
@example(PINGED, None)
def test_the_cutting_changes_nothing(stream, draw):
    whole = read(stream)
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == whole
    if draw is not None:
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        assert read(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))) == whole


_LINES = st.lists(st.sampled_from(["data: {", "data:}", "data", "", ": c", "event: e", "data: é"]), max_size=12)


@given(_LINES, st.sampled_from(["\n", "\r", "\r\n"]), st.booleans())
def test_events_are_the_same_with_any_line_ending_and_cutting(lines, end, last):
    def events(*pieces):
        stream = EventStream()
        return [event for piece in pieces for event in stream.feed(piece)] + list(stream.close())

    stream = (end.join(lines) + end * last).encode()
    whole = events(stream)
    assert events(*(stream[i : i + 1] for i in range(len(stream)))) == whole
    assert events("\n".join(lines).encode()) == whole


@given(_STREAM)
def test_texts_can_be_written_down(stream):
    for chunk in read(stream)[0]:
        chunk.text.encode()


@given(_STREAM)
def test_only_the_last_chunk_has_a_reason(stream):
    chunks, error = read(stream)
    assert [bool(chunk.finish_reason) for chunk in chunks] == [False] * (len(chunks) - 1) + [error is None] * bool(
        chunks
    )
    assert error is not None or chunks


@pytest.mark.parametrize("size", [1, 4096])
def test_an_event_without_end_is_cut(size):
    stream = EventStream()
    for _ in range(MAX_EVENT // size):
        list(stream.feed(b"x" * size))
    with pytest.raises(InferenceError):
        list(stream.feed(b"x" * size))


def test_a_stream_without_end_is_cut():
    stream = EventStream()
    line = b": " + b"x" * (1 << 19) + b"\n\n"
    for _ in range(MAX_STREAM // len(line)):
        list(stream.feed(line))
    with pytest.raises(InferenceError):
        list(stream.feed(line * 2))


@given(_JSON, st.none() | st.integers(100, 599))
def test_every_error_body_is_some_error(body, status):
    assert isinstance(failure("server", "m", status, body), InferenceError)


def test_an_error_repeats_no_sentence_of_the_server():
    body = {
        "error": {
            "message": "Incorrect API key provided: sk-123",
            "type": "invalid request: secret",
            "code": "invalid_api_key",
        }
    }
    error = failure("server", "m", 401, body)
    assert "sk-123" not in str(error.to_json())
    assert "secret" not in str(error.to_json())
    assert "invalid_api_key" in error.message
