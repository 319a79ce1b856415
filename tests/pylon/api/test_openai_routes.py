"""OpenAI's own package against the API, answered by a scripted backend."""

from __future__ import annotations

import json

import httpx
import openai
import orjson
import pytest
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon.api import openai_routes, server
from pylon.api.app import build_app
from pylon.api.guard import MAX_BODY_BYTES
from pylon.api.openai_routes import OpenAIApi
from pylon.clock import SystemClock
from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, InferenceError, ModelMissing
from pylon.testing.backend import Reply, ScriptedBackend
from tests.pylon.api.openai_client import local, open_client
from tests.pylon.api.serving import BEARER, TOKEN
from tests.pylon.api.test_openai_shapes import bodies, good_messages, texts
from tests.pylon.market import until

WORDS = "it is not known why, and never was"


def joined(pieces) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def raw(body: dict) -> bytes:
    """A request as bytes, for who is no proper client."""
    sent = orjson.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n"
    return f"{head}Authorization: {BEARER['Authorization']}\r\n\r\n".encode() + sent


STREAM = raw({"messages": [{"role": "user", "content": "why?"}], "stream": True, "max_tokens": 900_000})


async def raised(client, kind, call):
    with pytest.raises(kind) as info:
        await client.run(call)
    return info.value


def ask(**options):
    said = {"model": "scripted-1", "messages": [{"role": "user", "content": "why?"}], **options}
    return lambda client: client.chat.completions.create(**said)


async def test_a_chat():
    backend = ScriptedBackend(WORDS)
    async with open_client(local(backend)) as client:
        answer = await client.chat(
            "why is it so?", temperature=0.5, top_p=0.9, seed=7, max_completion_tokens=50, stop=["never mind"]
        )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "scripted-1"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", WORDS, "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 8, 12)
    (request,) = backend.requests
    assert [(message.role, message.content) for message in request.messages] == [("user", "why is it so?")]
    assert (request.temperature, request.top_p, request.seed, request.max_tokens) == (0.5, 0.9, 7, 50)
    assert request.stop == ("never mind",)


async def test_a_chat_of_many_turns_and_parts():
    backend = ScriptedBackend(WORDS)
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "name": "bob", "content": "three"},
    ]
    async with open_client(local(backend)) as client:
        await client.chat(messages=turns)
    said = [(message.role, message.content) for message in backend.requests[0].messages]
    assert said == [("system", "be brief"), ("user", "one\ntwo"), ("assistant", ""), ("user", "three")]


async def test_a_streamed_chat():
    async with open_client(local(ScriptedBackend(WORDS))) as client:
        pieces = await client.pieces(stream_options={"include_usage": True})
        plain = await client.pieces()
        answer = await client.chat()
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"}
    assert len({(piece.id, piece.created, piece.model) for piece in pieces}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"
    assert joined(pieces) == joined(plain) == answer.choices[0].message.content == WORDS
    assert [piece.choices[0].finish_reason for piece in plain if piece.choices[0].finish_reason] == ["stop"]
    assert plain[-1].choices[0].finish_reason == "stop"
    assert all(piece.usage is None for piece in [*plain, *pieces[:-1]])
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == 8
    assert len([piece for piece in plain if piece.choices[0].delta.content]) == 8, "word by word"


async def test_the_stream_helper_of_the_package():
    def call(client):
        with client.chat.completions.stream(
            model="scripted-1", messages=[{"role": "user", "content": "why?"}]
        ) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion()

    async with open_client(local(ScriptedBackend(WORDS))) as client:
        answer = await client.run(call)
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["why?", ["why?"]])
async def test_a_text_completion(prompt):
    backend = ScriptedBackend(WORDS)
    async with open_client(local(backend)) as client:
        answer = await client.run(
            lambda client: client.completions.create(model="scripted-1", prompt=prompt, max_tokens=3)
        )
        pieces = await client.run(
            lambda client: list(
                client.completions.create(
                    model="scripted-1", prompt=prompt, stream=True, stream_options={"include_usage": True}
                )
            )
        )
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion", "it is not", "length",
    )  # fmt: skip
    assert answer.usage.completion_tokens == 3
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == WORDS
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "stop"
    assert pieces[-1].usage.total_tokens == 9
    assert backend.requests[0].messages[0].content == "why?"


@pytest.mark.parametrize("stop", ["never", ["xyz", " never", "was"], [" and never", "never"]])
async def test_stop_cuts_also_for_a_backend_that_does_not(stop):
    backend = ScriptedBackend(WORDS)
    async with open_client(local(backend)) as client:
        answer = await client.chat(stop=stop)
        pieces = await client.pieces(stop=stop, stream_options={"include_usage": True})
    first = min([stop] if isinstance(stop, str) else stop, key=lambda s: WORDS.find(s) if s in WORDS else 99)
    whole = WORDS[: WORDS.index(first)]
    assert answer.choices[0].message.content == joined(pieces) == whole
    assert answer.choices[0].finish_reason == "stop"
    assert pieces[-1].usage.completion_tokens > 0
    assert (backend.active, backend.stopped) == (0, 2), "nobody generates what nobody reads"


async def test_models():
    first = ScriptedBackend("x", name="one", models=("small", "org/big"))
    second = ScriptedBackend("x", name="two", models=("small",))
    async with open_client(local(first, second)) as client:
        models = list(await client.run(lambda client: client.models.list()))
        assert [(model.id, model.object, model.owned_by) for model in models] == [
            ("small", "model", "one"),
            ("org/big", "model", "one"),
        ]
        assert (await client.run(lambda client: client.models.retrieve("org/big"))).owned_by == "one"
        error = await raised(client, openai.NotFoundError, lambda client: client.models.retrieve("gpt"))
        assert error.code == "model_not_found"


async def test_response_format():
    backend = ScriptedBackend('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    named = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}
    async with open_client(local(backend)) as client:
        for wanted in ({"type": "text"}, {"type": "json_object"}, named):
            await client.chat(response_format=wanted)
    assert [request.json_schema for request in backend.requests] == [None, {"type": "object"}, schema]


async def test_errors_by_name():
    async with open_client(local(ScriptedBackend(WORDS))) as client:
        cases = [
            (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-9"}),
            (openai.BadRequestError, "unsupported_value", "n", {"n": 2}),
            (openai.BadRequestError, "invalid_value", "temperature", {"temperature": 3}),
            (openai.BadRequestError, "invalid_value", "max_tokens", {"max_tokens": 0}),
            (openai.BadRequestError, "invalid_type", "messages", {"messages": []}),
            (openai.BadRequestError, "unsupported_value", "tool_choice", {"tool_choice": "required"}),
            (
                openai.BadRequestError,
                "unsupported_value",
                "messages.[0].content",
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            ),
        ]
        for kind, code, param, options in cases:
            for stream in (False, True):
                error = await raised(client, kind, ask(stream=stream, **options))
                assert (error.code, error.param) == (code, param)
                assert error.body["message"]
        other = client.another("wrong")
        with pytest.raises(openai.AuthenticationError) as info, other:
            await trio.to_thread.run_sync(ask(), other)
        assert info.value.code == "invalid_api_key"
        big = [{"role": "user", "content": "x" * (MAX_BODY_BYTES + 1)}]
        error = await raised(client, openai.APIStatusError, ask(messages=big))
        assert (error.status_code, error.code) == (413, "request_too_large")


STATUS = {"backend_busy": 429, "model_not_found": 404, "backend_unavailable": 503, "backend_timeout": 503}


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (BackendBusy("full"), openai.RateLimitError, "backend_busy"),
        (ModelMissing("gone"), openai.NotFoundError, "model_not_found"),
        (BackendUnavailable("down", "start it"), openai.InternalServerError, "backend_unavailable"),
        (BackendTimeout("slow"), openai.InternalServerError, "backend_timeout"),
        (InferenceError("broke"), openai.InternalServerError, "inference_failed"),
        (ZeroDivisionError("the secret is 1234"), openai.InternalServerError, "server_error"),
    ],
)
async def test_a_backend_that_fails(error, kind, code, caplog):
    early, late = Reply(WORDS, error=error), Reply(WORDS, error=error, fail_after=3)
    # A backend that fails three times in a row is left alone for a while.
    async with open_client(local(ScriptedBackend([early, early]))) as client:
        for stream in (False, True):
            found = await raised(client, kind, ask(stream=stream))
            assert found.code == code
            assert found.status_code == STATUS.get(code, 500)
            assert ("retry-after" in found.response.headers) == (found.status_code in (429, 503))
            assert "1234" not in str(found.body)
    async with open_client(local(ScriptedBackend([late, late]))) as client:
        assert (await raised(client, kind, ask())).code == code, "no half of an answer where it is wanted whole"

        got = []

        def call(client):
            got.extend(ask(stream=True)(client))

        found = await raised(client, openai.APIError, call)
        assert found.code == code
        assert joined(got) == "it is not"
    assert "1234" not in caplog.text


async def test_nobody_answers():
    async with open_client(None) as client:
        for call in (ask(), lambda client: client.models.list()):
            error = await raised(client, openai.InternalServerError, call)
            assert (error.status_code, error.code) == (503, "backend_unavailable")


# --- clients that leave, and too many of them ---------------------------------------------------------------------


async def test_leaving_a_stream_ends_the_generation():
    backend = ScriptedBackend(Reply("word " * 10_000, pace=0.005))

    def call(client):
        with ask(stream=True)(client) as stream:
            for piece in stream:
                if piece.choices[0].delta.content:
                    return

    async with open_client(local(backend)) as client:
        await client.run(call)
        client.sync.close()
        await until(lambda: backend.active == 0, 3)
        assert backend.stopped == 1
        await until(lambda: client.api.running == 0, 3)
        assert "pylon_api_left_total 1.0" in client.api.metrics.text().decode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reply", [Reply("word " * 10_000, pace=0.05), Reply(hang_after=0)])
async def test_leaving_before_the_first_words_ends_the_generation(stream, reply):
    """Also where nothing was sent yet, and nothing would be for long."""
    backend = ScriptedBackend(reply)
    async with open_client(local(backend)) as client, client.served.client(**BEARER) as http:
        body = {"messages": [{"role": "user", "content": "why?"}], "stream": stream}
        with trio.move_on_after(0.5):
            await http.post("/v1/chat/completions", json=body)
        await http.aclose()
        await until(lambda: backend.active == 0 and client.api.running == 0, 3)
        assert (len(backend.requests), backend.stopped) == (1, 1)


@pytest.mark.parametrize("options", [{}, {"stream": True}])
async def test_the_package_itself_leaves_when_its_patience_ends(options):
    """Whole or in pieces, in the middle of an answer."""
    backend = ScriptedBackend(Reply("word " * 10_000, pace=0.01, first=0.7 if options else 0))
    async with open_client(local(backend)) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.run(lambda sync: ask(**options)(sync.with_options(timeout=0.4)))
        await until(lambda: backend.active == 0 and client.api.running == 0, 3)
        assert (len(backend.requests), backend.stopped) == (1, 1)
        assert "pylon_api_left_total 1.0" in client.api.metrics.text().decode()


@pytest.mark.parametrize("where", ["a stream", "the silence before"])
async def test_the_end_of_the_server_ends_what_runs(where):
    backend = ScriptedBackend(Reply("word " * 10_000, pace=0.01, first=0 if where == "a stream" else 60))
    async with open_client(local(backend)) as client:
        stream = await client.served.connect()
        await stream.send_all(STREAM)
        if where == "a stream":
            assert b"200" in await stream.receive_some(100)
        await until(lambda: backend.active, 5)
        began = trio.current_time()
    assert trio.current_time() - began < 3
    assert (backend.active, backend.stopped) == (0, 1)
    await trio.aclose_forcefully(stream)


async def test_who_does_not_read_ends_the_generation(monkeypatch):
    monkeypatch.setattr(server, "SEND_SECONDS", 0.3)
    backend = ScriptedBackend(Reply("word" * 5_000 + " word" * 5_000 + (" " + "w" * 20_000) * 2_000))
    async with open_client(local(backend)) as client:
        async with await client.served.connect() as stream:
            await stream.send_all(STREAM)
            await until(lambda: backend.stopped, 20)
            assert backend.active == 0
            await until(lambda: client.api.running == 0, 3)


async def test_a_model_that_nobody_has_is_not_remembered():
    """Names come from callers; there may be any number of them."""
    backend = ScriptedBackend(WORDS)
    async with open_client(local(backend)) as client:
        for number in range(3):
            await raised(client, openai.NotFoundError, ask(model=f"gpt-{number}"))
        assert client.api.answerer._router.substitutions == {}
        backend.up = False
        client.api.answerer._router._looks.clear()
        error = await raised(client, openai.InternalServerError, ask(model="gpt"))
        assert (error.status_code, error.code) == (503, "backend_unavailable")
        error = await raised(client, openai.InternalServerError, ask(model=""))
        assert (error.status_code, error.code) == (503, "backend_unavailable")


async def test_too_many_at_a_time():
    backend = ScriptedBackend(Reply(WORDS, first=0.5))
    async with open_client(local(backend), concurrency=2) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client.chat)
            await until(lambda: backend.active == 2, 5)
            error = await raised(client, openai.RateLimitError, ask())
            assert error.code == "too_many_requests"
            assert int(error.response.headers["retry-after"]) >= 1
        assert (await client.chat()).choices[0].message.content == WORDS
    assert len(backend.requests) == 3


async def test_a_silence_in_a_stream_is_said_aloud(monkeypatch):
    monkeypatch.setattr(openai_routes, "KEEP_ALIVE_SECONDS", 0.05)
    backend = ScriptedBackend(Reply("one two", pace=0.25))
    async with open_client(local(backend)) as client, client.served.client(**BEARER) as http:
        body = {"messages": [{"role": "user", "content": "why?"}], "stream": True}
        said = (await http.post("/v1/chat/completions", json=body)).text
        assert said.count(": keep-alive") >= 3
        assert said.endswith("data: [DONE]\n\n")
        assert joined(await client.pieces()) == "one two"


async def test_halves_of_characters_do_not_break_an_answer():
    async with open_client(local(ScriptedBackend("ab\ud83d cd"))) as client:
        assert (await client.chat()).choices[0].message.content == "ab\ufffd cd"
        assert joined(await client.pieces()) == "ab\ufffd cd"


async def test_metrics():
    async with open_client(local(ScriptedBackend(WORDS))) as client, client.served.client() as http:
        await client.chat()
        await client.pieces()
        await raised(client, openai.NotFoundError, ask(model="gpt"))
        assert (await http.get("/metrics")).status_code == 401
        answer = await http.get("/metrics", headers=BEARER)
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'pylon_api_requests_total{path="/v1/chat/completions",status="200"} 2.0' in lines
    assert 'pylon_api_requests_total{path="/v1/chat/completions",status="404"} 1.0' in lines
    assert 'pylon_api_tokens_total{kind="completion"} 16.0' in lines
    assert "pylon_api_open_streams 0.0" in lines
    assert "pylon_api_running 0.0" in lines
    assert "pylon_api_left_total 0.0" in lines
    assert "pylon_api_seconds_count 3.0" in lines


async def test_what_is_no_post():
    async with open_client(local(ScriptedBackend(WORDS))) as client, client.served.client(**BEARER) as http:
        assert (await http.get("/v1/chat/completions")).status_code == 405
        answer = await http.post("/v1/chat/completions", content=b"{")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
        assert isinstance(json.loads(answer.content), dict)
        assert isinstance(answer, httpx.Response)


# --- whatever is posted -------------------------------------------------------------------------------------------


well = st.fixed_dictionaries(
    {"messages": good_messages, "prompt": texts},
    optional={"max_tokens": st.integers(1, 5), "stream_options": st.just({"include_usage": True}), "logprobs": texts},
)


@settings(max_examples=80)
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    well | bodies,
    st.text("ab \ud83d", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_whatever_is_posted_is_answered_alike_whole_and_in_pieces(path, body, words, stops):
    async def post(http, stream):
        return await http.post(path, content=json.dumps({**body, "stop": stops, "stream": stream}))

    async def run():
        api = OpenAIApi(SystemClock(), answerer=local(ScriptedBackend(words)))
        app = build_app(None, token=TOKEN, routes=api.routes())
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", headers=BEARER
        ) as http:
            whole, pieces = await post(http, False), await post(http, True)
        assert whole.status_code == pieces.status_code
        if whole.status_code != 200:
            event(f"refused with {whole.status_code}")
            assert whole.status_code in (400, 404)
            assert whole.json() == pieces.json()
            assert set(whole.json()["error"]) == {"message", "type", "param", "code"}
            return
        event("answered")
        chosen = whole.json()["choices"][0]
        text = chosen["text"] if path == "/v1/completions" else chosen["message"]["content"]
        assert not any(stop in text for stop in stops)
        *events, end = pieces.text.removesuffix("\n\n").split("\n\n")
        assert end == "data: [DONE]"
        parts = [choice for part in map(_load, events) for choice in part["choices"]]
        assert "".join(part.get("text", "") + part.get("delta", {}).get("content", "") for part in parts) == text
        assert parts[-1]["finish_reason"] == chosen["finish_reason"]
        assert api.running == 0

    trio.run(run)


def _load(line: str) -> dict:
    return json.loads(line.removeprefix("data: "))
