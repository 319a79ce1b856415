"""Ollama: each quirk by its name, against a server of recorded shape on a real socket."""

import json

import attrs
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, ConfigError, InferenceError, ModelMissing
from pylon.inference.ollama import LEAST_CONTEXT, Ollama
from pylon.inference.ollama_chat import OllamaChat
from pylon.inference.port import Chunk, Completion, Deadlines, InferenceRequest, Message, Usage
from pylon.testing.backends import Manners, OllamaServer
from tests.pylon.inference.test_openai import Pieces

PROMPT = "the prompt that nobody else may read"
MODEL = "llama3.2:latest"
REQUEST = InferenceRequest(MODEL, (Message("user", PROMPT),))
TOKENS = len(PROMPT.split())
QUICK = Deadlines(connect=2, first_token=0.4, between_tokens=0.4, total=5)


@pytest.fixture
async def server():
    fake = OllamaServer()
    async with fake.running():
        yield fake


@pytest.fixture
async def ollama(server):
    backend = Ollama("ollama", server.http.address)
    yield backend
    await backend.aclose()


def scripted(answer, **options):
    """An Ollama whose every POST is answered by ``answer``, and whose other paths by ``gets``."""

    async def handle(request):
        if request.method == "POST":
            return httpx.Response(200, stream=answer if isinstance(answer, Pieces) else Pieces(answer))
        return httpx.Response(404)

    return Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle), **options)


def line(**fields):
    return json.dumps(fields).encode() + b"\n"


def said(content, **fields):
    return line(model="m", message={"role": "assistant", "content": content}, done=False, **fields)


class TestAnswers:
    async def test_an_answer(self, ollama):
        assert await ollama.complete(REQUEST) == Completion("Paris is the capital", "stop", Usage(TOKENS, 4), MODEL)

    async def test_what_is_sent(self, server):
        schema = {"type": "object"}
        backend = Ollama("ollama", server.http.address + "/v1/", context=8192, keep_alive="10m", api_key="sk-secret")
        request = InferenceRequest(
            MODEL,
            (Message("system", "s"), Message("user", "u")),
            7,
            temperature=0.0,
            top_p=0.5,
            seed=3,
            stop=("x",),
            json_schema=schema,
        )
        await backend.complete(request)
        await backend.aclose()
        (body,) = server.prompts
        assert body == {
            "model": MODEL,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "stream": True,
            "options": {
                "num_predict": 7,
                "temperature": 0.0,
                "top_p": 0.5,
                "seed": 3,
                "stop": ["x"],
                "num_ctx": 8192,
            },
            "truncate": False,
            "shift": False,
            "think": False,
            "keep_alive": "10m",
            "format": schema,
        }
        assert server.http.asked[-1].headers["authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in repr(backend)

    async def test_nothing_is_sent_that_nobody_wanted(self, server, ollama):
        await ollama.complete(REQUEST)
        (body,) = server.prompts
        assert body["options"] == {"num_predict": 256}
        assert not {"format", "keep_alive"} & set(body)

    async def test_cut_at_the_limit(self, ollama):
        done = await ollama.complete(attrs.evolve(REQUEST, max_tokens=2))
        assert (done.text, done.finish_reason, done.usage) == ("Paris is", "length", Usage(TOKENS, 2))

    async def test_an_empty_answer_counts_its_tokens(self, server, ollama):
        server.manners = Manners.EMPTY
        assert await ollama.complete(REQUEST) == Completion("", "stop", Usage(TOKENS, 0), MODEL)

    async def test_an_old_one_that_gives_no_reason(self, server, ollama):
        server.version = "0.1"
        assert (await ollama.complete(REQUEST)).finish_reason == "stop"

    async def test_leaving_closes_the_connection(self, server, ollama):
        server.manners = Manners.STALLING
        async with ollama.stream(REQUEST) as chunks:
            async for chunk in chunks:
                assert chunk.text == "Paris"
                break
        with trio.fail_after(2):
            await server.http.gone.wait()

    async def test_a_cancelled_wait_closes_the_connection(self, server, ollama):
        server.manners = Manners.HANGING
        with trio.move_on_after(0.2):
            await ollama.complete(REQUEST)
        with trio.fail_after(2):
            await server.http.gone.wait()


class TestPrompts:
    async def test_one_that_is_too_long_is_refused_and_not_shortened(self, server, ollama):
        server.context = 4
        with pytest.raises(InferenceError, match="too long") as caught:
            await ollama.complete(REQUEST)
        assert type(caught.value) is InferenceError
        assert PROMPT not in caught.value.message

    async def test_a_schema_that_it_does_not_take_is_left_out(self, server, ollama, caplog):
        done = await ollama.complete(attrs.evolve(REQUEST, json_schema={"type": "unknown"}))
        assert done.text == "Paris is the capital"
        assert ["format" in body for body in server.prompts] == [True, False]
        assert "does not enforce" in caplog.text
        assert PROMPT not in caplog.text

    async def test_one_that_will_not_be_told_about_thinking(self):
        bodies = []

        async def handle(request):
            bodies.append(json.loads(request.content))
            if "think" in bodies[-1]:
                return httpx.Response(400, json={"error": '"m" does not support thinking'})
            return httpx.Response(200, stream=Pieces(said("ok"), line(done=True, done_reason="stop")))

        backend = Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
        assert (await backend.complete(REQUEST)).text == "ok"
        assert ["think" in body for body in bodies] == [True, False]


class TestTroubles:
    @pytest.mark.parametrize(
        ("manners", "expected", "match"),
        [
            (Manners.BUSY, BackendBusy, "too many requests"),
            (Manners.FAILING, BackendUnavailable, r"failed \(500\)"),
            (Manners.HANGING, BackendTimeout, "deadline first_token"),
            (Manners.STALLING, BackendTimeout, "deadline between_tokens"),
            (Manners.CRASHING, BackendUnavailable, "broke"),
            (Manners.BREAKING, BackendUnavailable, "broke"),
            (Manners.ERRING, BackendUnavailable, "failed"),
            (Manners.LYING, BackendUnavailable, "broke off"),
        ],
    )
    async def test_each_by_its_name(self, server, ollama, manners, expected, match):
        server.manners = manners
        with pytest.raises(expected, match=match) as caught:
            await ollama.complete(REQUEST, QUICK)
        assert type(caught.value) is expected
        assert PROMPT not in caught.value.message + caught.value.hint
        assert (await ollama.health()).ok, "what it says of itself is all right"

    async def test_no_such_model(self, ollama):
        with pytest.raises(ModelMissing) as caught:
            await ollama.complete(attrs.evolve(REQUEST, model="gpt-9"))
        assert caught.value.hint == "ollama pull gpt-9"

    async def test_nobody_there(self):
        with trio.socket.socket() as unused:
            await unused.bind(("127.0.0.1", 0))
            backend = Ollama("ollama", f"http://127.0.0.1:{unused.getsockname()[1]}")
            with pytest.raises(BackendUnavailable, match="does not answer at http:"):
                await backend.complete(REQUEST)
            assert not (await backend.health()).ok

    async def test_a_model_that_does_not_fit_is_not_offered_for_a_while(self, autojump_clock):
        async def handle(request):
            if request.url.path == "/api/tags":
                return httpx.Response(200, json={"models": [{"name": MODEL}, {"name": "small:latest"}]})
            if request.url.path == "/api/chat":
                said = "model requires more system memory (5.3 GiB) than is available (3.3 GiB)"
                return httpx.Response(500, json={"error": said})
            return httpx.Response(404)

        backend = Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
        assert len(await backend.models()) == 2
        with pytest.raises(ModelMissing, match="memory"):
            await backend.complete(REQUEST)
        assert [model.id for model in await backend.models()] == ["small:latest"]
        await trio.sleep(301)
        assert len(await backend.models()) == 2

    @pytest.mark.parametrize("base", ["", "127.0.0.1:11434", "ftp://x"])
    def test_no_address(self, base):
        with pytest.raises(ConfigError):
            Ollama("ollama", base)


class TestSilence:
    """A silent Ollama is judged by what it says of itself."""

    def silent(self, ps, answer_after):
        async def handle(request):
            if request.url.path == "/api/ps":
                return ps()
            await request.extensions["trace"]("http11.send_request_body.complete", {})
            await trio.sleep(answer_after)
            return httpx.Response(200, stream=Pieces(said("ok"), line(done=True, done_reason="stop")))

        return Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))

    async def test_loading_is_not_hanging(self, autojump_clock):
        looks = iter(range(1_000))
        moving = lambda: httpx.Response(200, json={"models": [{"model": MODEL, "expires_at": f"t{next(looks)}"}]})  # noqa: E731
        absent = lambda: httpx.Response(200, json={"models": []})  # noqa: E731
        for ps in (moving, absent):
            done = await self.silent(ps, 200).complete(REQUEST, Deadlines(first_token=30, total=300))
            assert done.text == "ok"

    async def test_the_whole_answer_has_its_time_all_the_same(self, autojump_clock):
        absent = lambda: httpx.Response(200, json={"models": []})  # noqa: E731
        with pytest.raises(BackendTimeout, match="deadline total"):
            await self.silent(absent, 500).complete(REQUEST, Deadlines(first_token=30, total=300))

    @pytest.mark.parametrize(
        "ps",
        [
            lambda: httpx.Response(200, json={"models": [{"model": MODEL, "expires_at": "t"}]}),
            lambda: httpx.Response(404),
            lambda: httpx.Response(500),
        ],
        ids=["loaded", "an old Ollama", "a broken one"],
    )
    async def test_loaded_and_silent_is_hanging(self, autojump_clock, ps):
        with pytest.raises(BackendTimeout, match="deadline first_token"):
            await self.silent(ps, 200).complete(REQUEST, Deadlines(first_token=30, total=300))
        assert trio.current_time() < 60

    async def test_thinking_aloud_is_no_answer_but_a_sign_of_life(self, autojump_clock):
        thought = line(message={"role": "assistant", "content": "", "thinking": "hm"}, done=False)
        body = Pieces(*[thought, 20.0] * 5, said("ok"), line(done=True, done_reason="stop"))
        assert (await scripted(body).complete(REQUEST, Deadlines(between_tokens=30))).text == "ok"


class TestModels:
    async def test_those_that_can_chat_and_run_here(self, server):
        server.models = ["a", "embed", "bert", "cloud", "chat"]
        server.rows = {
            "embed": {"capabilities": ["embedding"]},
            "bert": {"details": {"family": "nomic-bert"}},
            "cloud": {"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"},
            "chat": {"capabilities": ["completion", "tools"]},
        }
        backend = Ollama("gpu", server.http.address)
        assert [(model.id, model.backend) for model in await backend.models()] == [("a", "gpu"), ("chat", "gpu")]
        named = Ollama("gpu", server.http.address, models=["cloud", "absent"])
        assert [model.id for model in await named.models()] == ["cloud"]

    async def test_a_name_without_its_tag_is_enough(self, server):
        backend = Ollama("gpu", server.http.address, models=["llama3.2"])
        assert [model.id for model in await backend.models()] == [MODEL]

    async def test_none(self, server, ollama):
        server.models = []
        assert await ollama.models() == []
        assert (await ollama.health()).detail == "version 0.33.2, 0 models"

    async def test_the_context_is_what_a_loaded_model_has(self, server, ollama):
        async def context(backend):
            return [model.context_length for model in await backend.models()]

        assert await context(ollama) == [LEAST_CONTEXT]
        server.context = 32_768
        server.loaded = {MODEL}
        assert await context(ollama) == [32_768]
        server.loaded = set()
        assert await context(ollama) == [32_768]
        wished = Ollama("gpu", server.http.address, context=65_536)
        assert await context(wished) == [65_536]
        server.loaded = {MODEL}
        assert await context(wished) == [32_768]

    async def test_health_says_what_it_does(self, server, ollama):
        server.loaded = {MODEL}
        assert (await ollama.health()).detail == f"version 0.33.2, 1 model, loaded: {MODEL}"
        server.version = "0.1"
        assert (await ollama.health()).ok

    @pytest.mark.parametrize("body", [b"", b"<html>", b"7", b"[" * 100_000, b'{"models": 3}', b'{"data": []}'])
    async def test_what_is_no_ollama(self, body):
        async def handle(request):
            return httpx.Response(200, content=body)

        backend = Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
        with pytest.raises(InferenceError):
            await backend.models()
        assert not (await backend.health()).ok

    async def test_one_that_never_answers(self, autojump_clock):
        async def handle(request):
            await trio.sleep_forever()

        backend = Ollama("ollama", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
        with pytest.raises(BackendTimeout):
            await backend.models()
        assert not (await backend.health()).ok


# --- the bytes --------------------------------------------------------------------------------------------------------

END = line(done=True, done_reason="stop", prompt_eval_count=3, eval_count=2)
WHOLE = said("Par") + said("is \N{SNOWMAN}") + END


def outcome(*pieces):
    """What a stream gives, cut as it is: its chunks, then its error."""
    chat, chunks = OllamaChat("o", "m"), []
    try:
        for piece in pieces:
            chunks += chat.feed(piece)
        chunks += chat.close()
    except InferenceError as error:
        return chunks, (type(error), error.message)
    return chunks, None


class TestBytes:
    def test_whole(self):
        text = "Paris \N{SNOWMAN}"
        chunks, error = outcome(WHOLE)
        assert ("".join(chunk.text for chunk in chunks), chunks[-1], error) == (
            text,
            Chunk("", "stop", Usage(3, 2)),
            None,
        )

    @given(st.data())
    def test_the_cutting_changes_nothing(self, data):
        parts = [said("a"), said("b\N{SNOWMAN}"), b"\n", b"nonsense\n", b'{"error":"x"}\n', END, said("late")]
        body = b"".join(data.draw(st.lists(st.sampled_from(parts))))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)))))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert outcome(*pieces) == outcome(body)

    @given(st.binary(max_size=300))
    def test_no_bytes_break_it(self, body):
        chunks, error = outcome(body)
        assert error is not None or chunks[-1].finish_reason is not None

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
    def test_no_value_breaks_it(self, value):
        for where in ("message", "done", "done_reason", "error", "prompt_eval_count", "eval_count"):
            outcome(line(**{"done": True, where: value}))

    @pytest.mark.parametrize(
        ("fields", "usage"),
        [
            ({"prompt_eval_count": 3, "eval_count": 2}, Usage(3, 2)),
            ({"prompt_eval_count": 3}, Usage(3, 0)),
            ({"eval_count": 2}, None),
            ({"prompt_eval_count": True, "eval_count": 2}, None),
            ({"prompt_eval_count": -1, "eval_count": 2}, None),
        ],
    )
    def test_usage(self, fields, usage):
        chunks, _ = outcome(line(done=True, **fields))
        assert chunks == [Chunk("", "stop", usage)]

    def test_one_object_without_a_line_end(self):
        whole = line(message={"role": "assistant", "content": "Paris"}, done=True, done_reason="length").rstrip()
        chunks, error = outcome(whole)
        assert (chunks[0].text, chunks[1].finish_reason, error) == ("Paris", "length", None)

    def test_a_runner_that_hung_up_is_a_break(self):
        assert outcome(said("a") + line(done=True, done_reason=""))[1][0] is BackendUnavailable

    def test_a_line_without_end(self):
        assert outcome(b"x" * (1 << 20), b"x")[1][0] is InferenceError

    def test_nothing_after_the_end(self):
        assert outcome(END + said("late"))[0] == [Chunk("", "stop", Usage(3, 2))]
