"""From a configuration to backends: who is looked for, where, in which order, and with what they are trusted."""

import contextlib
import logging

import attrs
import pytest
import trio

from pylon.config import Config
from pylon.config_backends import DEFAULT_URLS, check_backends
from pylon.errors import BackendTimeout, BackendUnavailable, ConfigError, InferenceError, ModelMissing
from pylon.inference.backends import NAME_THE_MODELS, find_backends, is_llamacpp
from pylon.inference.breaker import FAILURES
from pylon.inference.port import InferenceRequest, Message
from pylon.testing.backends import AppleFmServer, Manners, OllamaServer, OpenAIServer
from tests.pylon.inference.test_ollama import QUICK

SECRET = "sk-very-secret"
GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(100)


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    directory = tmp_path / "models"
    directory.mkdir()
    monkeypatch.setenv("PYLON_MODELS", str(directory))
    return directory


@pytest.fixture(scope="module")
def nobody():
    """Addresses at which nobody listens."""
    return {kind: "http://127.0.0.1:1" + ("/v1" if kind in ("llamacpp", "openai") else "") for kind in DEFAULT_URLS}


def ask(model=""):
    return InferenceRequest(model, (Message("user", "What is the capital of France?"),))


def config(**changes):
    tables = check_backends(changes.pop("backends", []))
    return attrs.evolve(Config(), backends=tables, **changes)


@contextlib.asynccontextmanager
async def found(config, urls, environ=None):
    backends = await find_backends(config, environ=environ or {}, default_urls=urls)
    try:
        yield backends
    finally:
        await backends.router.aclose()


def names(backends):
    return [place.backend.name for place in backends.router.places]


class TestWhoIsLookedFor:
    async def test_the_default_preference(self, nobody):
        async with found(config(), nobody) as backends:
            assert names(backends) == ["ollama", "apple_fm"]
            assert backends.engine is None
            with pytest.raises(ModelMissing, match="no backend answers, and no model is installed"):
                await backends.check()

    async def test_ollama_before_the_embedded_engine(self, nobody, models):
        (models / "alpha.gguf").write_bytes(GGUF)
        ollama = OllamaServer()
        async with ollama.running() as url, found(config(), {**nobody, "ollama": url}) as backends:
            assert names(backends) == ["ollama", "llamacpp", "apple_fm"]
            assert backends.engine.model.name == "alpha"
            await backends.check()
            done = await backends.router.complete(ask())
            assert (done.text, done.model) == ("Paris is the capital", "llama3.2:latest")

    async def test_the_preference_is_honoured(self, nobody):
        ollama, apple = OllamaServer("I am Ollama"), AppleFmServer("I am Apple")
        async with ollama.running() as first, apple.running() as second:
            urls = {**nobody, "ollama": first, "apple_fm": second}
            for order, words in (
                (("ollama", "apple_fm"), "I am Ollama"),
                (("apple_fm", "ollama"), "I am Apple"),
                (("apple_fm",), "I am Apple"),
            ):
                asked = config(backend_preference=order, default_model="anything")
                async with found(asked, urls) as backends:
                    assert (await backends.router.complete(ask())).text == words
                    assert names(backends) == list(order)

    async def test_what_comes_later_is_used_from_then_on(self, nobody, mock_clock):
        ollama = OllamaServer()
        async with ollama.running() as url, found(config(), {**nobody, "ollama": url}) as backends:
            models, ollama.models = ollama.models, []
            with pytest.raises(BackendUnavailable):
                await backends.router.resolve("")
            ollama.models = models
            mock_clock.jump(31)
            assert (await backends.router.resolve("")).backend.name == "ollama"

    async def test_a_named_one_is_counted_on_although_it_is_down(self, nobody):
        asked = config(backends=[{"kind": "ollama", "name": "gpu", "url": "http://127.0.0.1:1"}])
        async with found(asked, nobody) as backends:
            await backends.check()
            assert names(backends) == ["gpu", "apple_fm"]
            assert [standing.name for standing in await backends.router.standings()] == ["gpu"]


class TestLlamaCpp:
    async def test_a_server_on_its_port_before_the_embedded_engine(self, nobody, models):
        (models / "alpha.gguf").write_bytes(GGUF)
        server = OpenAIServer(models=["qwen"])
        async with server.running() as url, found(config(), {**nobody, "llamacpp": f"{url}/v1"}) as backends:
            assert backends.engine is None
            assert (await backends.router.complete(ask("qwen"))).text == "Paris is the capital"

    async def test_one_that_is_loading_is_one(self):
        server = OpenAIServer()
        server.manners = Manners.LOADING
        async with server.running() as url:
            assert await is_llamacpp(f"{url}/v1")

    async def test_one_that_wants_a_key(self, nobody):
        server = OpenAIServer(key=SECRET)
        async with server.running() as url:
            urls = {**nobody, "llamacpp": f"{url}/v1"}
            async with found(config(backend_preference=("llamacpp",)), urls) as backends:
                assert names(backends) == []
            environ = {"LLAMA_API_KEY": SECRET}
            async with found(config(backend_preference=("llamacpp",)), urls, environ) as backends:
                assert (await backends.router.complete(ask())).text == "Paris is the capital"

    async def test_what_is_not_one(self, nobody):
        """Port 8080 is popular: nobody sends it a prompt that has not said what it is."""
        vllm, ollama = OpenAIServer(), OllamaServer()
        vllm.owner = "vllm"
        async with vllm.running() as first, ollama.running() as second:
            for url in (first, second, nobody["llamacpp"]):
                assert not await is_llamacpp(url)

    async def test_whoever_names_a_file_wants_the_embedded_engine(self, nobody, tmp_path):
        mine = tmp_path / "mine.gguf"
        mine.write_bytes(GGUF)
        server = OpenAIServer()
        async with server.running() as url:
            for preference in (("llamacpp",), ("ollama",)):
                asked = config(backend_preference=preference)
                asked = attrs.evolve(asked, provider=attrs.evolve(asked.provider, model_file=mine))
                async with found(asked, {**nobody, "llamacpp": f"{url}/v1"}) as backends:
                    assert backends.engine.model.path == mine
                    assert server.http.asked == []

    async def test_a_file_that_is_not_there(self, nobody, tmp_path):
        asked = config()
        asked = attrs.evolve(asked, provider=attrs.evolve(asked.provider, model_file=tmp_path / "absent.gguf"))
        with pytest.raises(ModelMissing):
            await find_backends(asked, environ={}, default_urls=nobody)


class TestOpenAI:
    """Whatever speaks OpenAI's API: last, and no further than somebody has said."""

    async def test_last_unless_the_preference_says_otherwise(self, nobody):
        tables = [
            {"kind": "openai", "url": "http://127.0.0.1:1/v1"},
            {"kind": "ollama", "url": "http://127.0.0.1:1"},
        ]
        async with found(config(backends=tables, backend_preference=("apple_fm",)), nobody) as backends:
            assert names(backends) == ["apple_fm", "ollama", "openai"]
        async with found(config(backends=tables, backend_preference=("openai",)), nobody) as backends:
            assert names(backends) == ["openai", "ollama"]

    async def test_the_key_comes_from_the_environment_and_is_seen_nowhere(self, nobody, caplog):
        caplog.set_level(logging.DEBUG)
        server = OpenAIServer(models=["gpt-5-mini", "whisper"], key=SECRET)
        table = {"kind": "openai", "name": "service", "key_env": "MY_KEY", "models": ["gpt-5-mini"]}
        async with server.running() as url:
            asked = config(backends=[{**table, "url": f"{url}/v1"}], backend_preference=())
            async with found(asked, nobody, {"MY_KEY": f"{SECRET}\n"}) as backends:
                assert [model.id for model in await backends.router.models()] == ["gpt-5-mini"]
                assert (await backends.router.complete(ask())).text == "Paris is the capital"
                (standing,) = await backends.router.standings()
                assert standing.health.detail == "1 of the 1 models named"
                assert SECRET not in repr((asked, standing, backends, vars(backends.router)))
            async with found(asked, nobody, {"MY_KEY": "sk-wrong"}) as backends:
                assert "refused the API key" in (await backends.router.health()).detail
            async with found(asked, nobody, {}) as backends:
                assert "the variable MY_KEY with its API key is not set" in (await backends.router.health()).detail
        assert SECRET not in caplog.text
        assert "sk-wrong" not in caplog.text

    async def test_a_service_far_away_wants_its_models_named(self, nobody):
        asked = config(backends=[{"kind": "openai", "url": "https://llm.example.com/v1"}], backend_preference=())
        async with found(asked, nobody) as backends:
            (standing,) = await backends.router.standings()
            assert (standing.health.ok, standing.health.detail) == (False, NAME_THE_MODELS)
            assert standing.place.address == "https://llm.example.com/v1"

    async def test_openai_itself_by_preference_alone_says_what_it_wants(self, nobody):
        asked = config(backend_preference=("openai",))
        for environ, words in (({}, "OPENAI_API_KEY"), ({"OPENAI_API_KEY": SECRET}, "name what may be used")):
            async with found(asked, {**nobody, "openai": "https://api.openai.com/v1"}, environ) as backends:
                assert words in (await backends.router.health()).detail

    async def test_the_context_that_it_does_not_tell(self, nobody):
        server = OpenAIServer()
        async with server.running() as url:
            tables = [{"kind": "openai", "url": f"{url}/v1", "context": 2048}]
            async with found(config(backends=tables, backend_preference=()), nobody) as backends:
                assert [model.context_length for model in await backends.router.models()] == [2048]

    async def test_the_bridge_takes_no_key(self, nobody):
        asked = config(backends=[{"kind": "apple_fm", "key_env": "K"}])
        with pytest.raises(ConfigError, match="takes no API key"):
            await find_backends(asked, environ={"K": SECRET}, default_urls=nobody)


class TestSeveral:
    async def test_of_a_kind_share_the_work(self, nobody):
        one, two = OllamaServer("one"), OllamaServer("two")
        one.manners = two.manners = Manners.QUEUES
        one.seconds = two.seconds = 0.3
        async with one.running() as first, two.running() as second:
            tables = [{"kind": "ollama", "url": first}, {"kind": "ollama", "url": second}]
            async with found(config(backends=tables), nobody) as backends, trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(backends.router.complete, ask())
                    await trio.sleep(0.05)
        assert [len(server.prompts) for server in (one, two)] == [2, 2]

    @pytest.mark.parametrize(
        "manners",
        [Manners.BUSY, Manners.HANGING, Manners.CRASHING, Manners.FAILING, Manners.LYING],
    )
    @pytest.mark.parametrize("kind", ["ollama", "apple_fm", "openai"])
    async def test_trouble_of_one_is_no_trouble_of_the_customer(self, nobody, kind, manners):
        """Whatever the first does before its first word, the second answers; and a broken one is not asked for ever."""
        bad = {"ollama": OllamaServer, "apple_fm": AppleFmServer, "openai": OpenAIServer}[kind]()
        bad.models = ["m"] if kind != "apple_fm" else bad.models
        model = bad.models[0]
        bad.manners = manners
        if kind == "ollama" and manners is Manners.LYING:
            bad.answer = ""  # says that it is done before it has said anything
        good = OpenAIServer("the other one", models=[model])
        async with bad.running() as first, good.running() as second:
            tables = [
                {"kind": kind, "name": "bad", "url": f"{first}/v1"},
                {"kind": "openai", "name": "good", "url": f"{second}/v1"},
            ]
            if kind == "openai":
                tables = [{**tables[0], "kind": "llamacpp"}, tables[1]]
            async with found(config(backends=tables, backend_preference=()), nobody) as backends:
                for _ in range(5):
                    done = await backends.router.complete(ask(model), QUICK)
                    assert done.text in ("the other one", "")
                expected = 5 if manners is Manners.BUSY else FAILURES
                assert len(bad.prompts) <= expected

    async def test_half_an_answer_is_told_as_such(self, nobody):
        for manners, error in (
            (Manners.BREAKING, BackendUnavailable),
            (Manners.STALLING, BackendTimeout),
            (Manners.ERRING, InferenceError),
        ):
            bad, good = OllamaServer(), OllamaServer("the other one")
            bad.manners = manners
            async with bad.running() as first, good.running() as second:
                tables = [{"kind": "ollama", "url": first}, {"kind": "ollama", "url": second}]
                async with found(config(backends=tables), nobody) as backends:
                    with pytest.raises(error):
                        await backends.router.complete(ask(), QUICK)
                    assert good.prompts == []
