"""The client: what goes out, how failures are named, and against a real socket."""

import functools
import json

import httpx
import pytest
import trio

from pylon.errors import BackendTimeout, BackendUnavailable, ConfigError, InferenceError, ModelMissing
from pylon.inference.openai import OpenAICompatible
from pylon.inference.port import Completion, Deadlines, InferenceRequest, Message, Usage
from tests.pylon.inference.test_sse import LLAMACPP, OLLAMA, data, delta

SECRET = "sk-very-secret"
PROMPT = "the prompt that nobody else may read"
REQUEST = InferenceRequest("m", (Message("user", PROMPT),))


class Pieces(httpx.AsyncByteStream):
    """A body in pieces; a number is a pause, an exception is raised, and it knows whether it was closed."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.closed = False
        self.finished = False

    async def __aiter__(self):
        try:
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    yield piece
                elif isinstance(piece, Exception):
                    raise piece
                else:
                    await trio.sleep(piece)
        finally:
            self.finished = True

    async def aclose(self):
        self.closed = True


def backend(answer, **options):
    """A backend whose server is ``answer``: a body, a stream, or a function of the request."""

    async def handle(request):
        if callable(answer):
            return await answer(request)
        if isinstance(answer, httpx.Response):
            return answer
        body = answer if isinstance(answer, Pieces) else Pieces(answer)
        return httpx.Response(
            200,
            headers={"content-type": "text/event-stream"},
            stream=body,
        )

    return OpenAICompatible("srv", "http://127.0.0.1:1/v1", transport=httpx.MockTransport(handle), **options)


async def test_an_answer():
    assert await backend(OLLAMA).complete(REQUEST) == Completion("Paris", "stop", Usage(3, 2), "m")


async def test_what_is_sent():
    seen = []

    async def handle(request):
        seen.append(request)
        return httpx.Response(200, stream=Pieces(OLLAMA))

    schema = {"type": "object"}
    plain = backend(handle)
    await plain.complete(REQUEST)
    full = backend(handle, api_key=SECRET)
    await full.complete(
        InferenceRequest(
            "m",
            (Message("system", "s"), Message("user", "u")),
            7,
            temperature=0.0,
            top_p=0.5,
            seed=3,
            stop=("x",),
            json_schema=schema,
        )
    )
    first, second = seen
    assert (first.method, first.url.path) == ("POST", "/v1/chat/completions")
    assert "authorization" not in first.headers
    assert json.loads(first.content) == {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 256,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert second.headers["authorization"] == f"Bearer {SECRET}"
    body = json.loads(second.content)
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"], body["stop"]) == (
        7,
        0.0,
        0.5,
        3,
        ["x"],
    )
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == schema


async def test_an_answer_in_one_piece():
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "Paris"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    assert await backend(httpx.Response(200, json=whole)).complete(REQUEST) == Completion(
        "Paris", "length", Usage(1, 2), "m"
    )
    with pytest.raises(InferenceError, match="no chat completion"):
        await backend(httpx.Response(200, json={"hello": 1})).complete(REQUEST)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}, InferenceError),
        (404, {"error": {"message": 'model "m" not found, try pulling it first', "type": "api_error"}}, ModelMissing),
        (404, {"error": {"code": "model_not_found"}}, ModelMissing),
        (404, "404 page not found", InferenceError),
        (429, {"error": {"type": "insufficient_quota"}}, BackendUnavailable),
        (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, BackendUnavailable),
        (500, PROMPT, BackendUnavailable),
        (400, {"error": {"message": f"cannot parse {PROMPT}", "type": "exceed_context_size_error"}}, InferenceError),
        (302, "", InferenceError),
    ],
)
async def test_refusals_are_named_and_tell_no_secret(status, body, expected):
    response = httpx.Response(status, json=body) if isinstance(body, dict) else httpx.Response(status, text=body)
    with pytest.raises(expected) as caught:
        await backend(response, api_key=SECRET).complete(REQUEST)
    assert type(caught.value) is expected
    told = caught.value.message + caught.value.hint
    assert SECRET not in told
    assert PROMPT not in told
    assert "srv" in told


async def test_the_newer_name_of_the_limit():
    bodies = []

    async def handle(request):
        bodies.append(json.loads(request.content))
        if "max_tokens" in bodies[-1]:
            return httpx.Response(400, json={"error": {"code": "unsupported_parameter", "param": "max_tokens"}})
        return httpx.Response(200, stream=Pieces(OLLAMA))

    assert (await backend(handle).complete(REQUEST)).text == "Paris"
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 256]


LLAMACPP_REFUSALS = (
    "Failed to initialize samplers: failed to parse grammar",
    "Unable to generate parser for this template. Automatic parser generation failed: JSON schema error at #: "
    "minItems must be a non-negative integer",
)


@pytest.mark.parametrize("said", [*LLAMACPP_REFUSALS, "unknown field: response_format"])
async def test_a_schema_that_a_server_does_not_take_is_left_out(said, caplog):
    bodies = []

    async def handle(request):
        bodies.append(json.loads(request.content))
        if "response_format" in bodies[-1]:
            return httpx.Response(400, json={"error": {"code": 400, "message": said, "type": "invalid_request_error"}})
        return httpx.Response(200, stream=Pieces(OLLAMA))

    request = InferenceRequest("m", REQUEST.messages, json_schema={"type": "array", "minItems": -1})
    assert (await backend(handle).complete(request)).text == "Paris"
    assert ["response_format" in body for body in bodies] == [True, False]
    assert "srv does not enforce" in caplog.text
    assert PROMPT not in caplog.text


async def test_with_a_schema_too_other_refusals_are_final():
    tries = []

    async def handle(request):
        tries.append(request)
        return httpx.Response(400, json={"error": {"message": "too long", "type": "exceed_context_size_error"}})

    with pytest.raises(InferenceError, match="too long"):
        await backend(handle).complete(InferenceRequest("m", REQUEST.messages, json_schema={}))
    assert len(tries) == 1


@pytest.mark.parametrize("error", [httpx.ReadError(""), httpx.RemoteProtocolError(""), httpx.ReadTimeout("")])
async def test_a_connection_that_breaks(error):
    with pytest.raises(BackendUnavailable, match="broke"):
        await backend(Pieces(data(delta("Par")), error)).complete(REQUEST)


async def test_a_connection_that_breaks_when_all_was_said():
    done = await backend(Pieces(data(delta("Par"), delta("is", "stop")), httpx.ReadError(""))).complete(REQUEST)
    assert done == Completion("Paris", "stop", None, "m")


async def test_a_server_that_never_ends_a_finished_answer(autojump_clock):
    done = await backend(Pieces(data(delta("Paris", "stop")), float("inf"))).complete(REQUEST)
    assert done.text == "Paris"
    assert trio.current_time() < 5


async def test_deadlines_hold(autojump_clock):
    deadlines = Deadlines(connect=1, first_token=10, between_tokens=5, total=100)
    for pieces, name in (([float("inf")], "first_token"), ([data(delta("a")), float("inf")], "between_tokens")):
        body = Pieces(*pieces)
        with pytest.raises(BackendTimeout, match=f"deadline {name}"):
            await backend(body).complete(REQUEST, deadlines)
        assert body.closed
        assert body.finished


async def test_keep_alive_comments_are_no_tokens(autojump_clock):
    body = Pieces(*[b": ping\n\n", 1.0] * 50)
    with pytest.raises(BackendTimeout, match="deadline first_token"):
        await backend(body).complete(REQUEST, Deadlines(first_token=10))


async def test_leaving_closes_the_connection():
    body = Pieces(data(delta("a")), data(delta("b")), float("inf"))
    async with backend(body).stream(REQUEST) as chunks:
        async for _ in chunks:
            break
    assert body.closed
    assert body.finished


class TestModels:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"data": [{"id": "a"}, {"id": "b", "max_model_len": 8}]}, [("a", None), ("b", 8)]),
            ({"data": [{"id": "a", "meta": {"n_ctx_train": 4096}}]}, [("a", 4096)]),
            ([{"id": "a", "context_length": True}, {"id": 7}, "x", {"id": ""}, {"id": "y" * 300}], [("a", None)]),
            ({"object": "list", "data": None}, []),
        ],
    )
    async def test_lists(self, body, expected):
        models = await backend(httpx.Response(200, json=body)).models()
        assert [(model.id, model.context_length) for model in models] == expected
        assert {model.backend for model in models} <= {"srv"}

    @pytest.mark.parametrize("body", [b"", b"<html>", b"7", b"[" * 100_000, b'{"data": 3}'])
    async def test_anything_else_is_an_error(self, body):
        server = backend(httpx.Response(200, content=body))
        with pytest.raises(InferenceError):
            await server.models()
        assert not (await server.health()).ok

    async def test_health_never_raises(self, autojump_clock):
        assert (await backend(httpx.Response(200, json={"data": [{"id": "a"}]})).health()).detail == "1 model"
        refused = await backend(httpx.Response(401)).health()
        assert (refused.ok, "API key" in refused.detail) == (False, True)
        hung = await backend(Pieces(float("inf"))).health()
        assert (hung.ok, "deadline connect" in hung.detail) == (False, True)


class TestAddress:
    @pytest.mark.parametrize("base", ["", "127.0.0.1:80", "ftp://x", "http://", "http://[", "http://a:99999999/"])
    def test_no_address(self, base):
        with pytest.raises(ConfigError):
            OpenAICompatible("srv", base)

    @pytest.mark.parametrize("key", ["a\nb", "schlüssel", "a b", "\x00"])
    def test_no_key(self, key):
        with pytest.raises(ConfigError) as caught:
            OpenAICompatible("srv", "http://x/v1", api_key=key)
        assert key not in caught.value.message

    def test_neither_password_nor_key_is_shown(self):
        server = OpenAICompatible("srv", "https://user:pass-word@example.com:8443/v1/", api_key=SECRET)
        assert server.address == "https://example.com:8443/v1"
        assert SECRET not in repr(server)
        assert "pass-word" not in repr(server)


async def listen(nursery, handler):
    [listener] = await nursery.start(functools.partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
    return listener.socket.getsockname()[1]


async def serve(stream, gone, listening):
    """A server of one connection that streams until the client leaves, then sets ``gone``."""
    async with stream:
        received = b""
        while b'"stream_options"' not in received:
            received += await stream.receive_some(4096)
        if listening:
            await trio.sleep_forever()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await stream.send_all(data(delta("tok")))
        assert await stream.receive_some(1) == b""
        gone.set()


async def test_over_a_real_socket(nursery):
    gone = trio.Event()
    port = await listen(nursery, lambda stream: serve(stream, gone, False))
    server = OpenAICompatible("srv", f"http://127.0.0.1:{port}/v1")
    async with server.stream(REQUEST) as chunks:
        async for chunk in chunks:
            assert chunk.text == "tok"
            break
    with trio.fail_after(2):
        await gone.wait()
    await server.aclose()


async def test_a_request_that_was_sent_is_accepted(nursery):
    """A server that reads the request and loads its model before it answers is not slow to connect."""
    port = await listen(nursery, lambda stream: serve(stream, trio.Event(), True))
    server = OpenAICompatible("srv", f"http://127.0.0.1:{port}/v1")
    with pytest.raises(BackendTimeout, match="deadline first_token"):
        await server.complete(REQUEST, Deadlines(connect=0.2, first_token=0.4))
    await server.aclose()


async def test_nobody_there():
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        server = OpenAICompatible("srv", f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        with pytest.raises(BackendUnavailable, match="does not answer at http:"):
            await server.complete(REQUEST)
        assert not (await server.health()).ok


async def test_the_proxy_of_the_environment_is_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert OpenAICompatible("srv", "http://localhost:1/v1")._client.trust_env is False
    assert OpenAICompatible("srv", "http://[::1]:1/v1")._client.trust_env is False
    assert OpenAICompatible("srv", "http://example.com/v1")._client.trust_env is True


async def test_recorded_llamacpp():
    assert await backend(LLAMACPP).complete(REQUEST) == Completion("Paris", "length", Usage(3, 2), "m")
