"""Every kind of server, busy, hanging, crashing and lying: what its trouble is called, and that nobody pays for it.

Ollama's and Apple's own quirks stand in their own modules; here is what is the same for all, over real sockets.
"""

from __future__ import annotations

import pytest
import trio

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, InferenceError
from pylon.inference.apple_fm import AppleFm
from pylon.inference.backends import Selected
from pylon.inference.ollama import Ollama
from pylon.inference.openai import OpenAICompatible
from pylon.inference.port import InferenceRequest, Message
from pylon.inference.router import Router
from pylon.testing.backend import ScriptedBackend
from pylon.testing.backends import AppleFmServer, LlamaCppServer, Manners, OllamaServer, OpenAIServer
from tests.pylon.inference.test_ollama import QUICK

PROMPT = "the prompt that nobody else may read"

KINDS = {
    "ollama": (lambda: OllamaServer(models=["m"]), lambda url: Ollama("it", url)),
    "llamacpp": (LlamaCppServer, lambda url: OpenAICompatible("it", f"{url}/v1")),
    "apple_fm": (AppleFmServer, lambda url: AppleFm("it", url)),
    "openai": (OpenAIServer, lambda url: OpenAICompatible("it", f"{url}/v1")),
}

NAMES = {
    Manners.BUSY: BackendBusy,
    Manners.HANGING: BackendTimeout,
    Manners.STALLING: BackendTimeout,
    Manners.CRASHING: BackendUnavailable,
    Manners.BREAKING: BackendUnavailable,
    Manners.FAILING: BackendUnavailable,
    Manners.ERRING: InferenceError,
    Manners.LYING: BackendUnavailable,
}
SPOKE = (Manners.STALLING, Manners.BREAKING, Manners.ERRING)
"""Those that come after the first word: no other backend can begin anew."""


@pytest.fixture(params=KINDS)
async def server(request):
    make, connect = KINDS[request.param]
    fake = make()
    async with fake.running() as url:
        backend = connect(url)
        yield fake, backend, InferenceRequest(fake.models[0], (Message("user", PROMPT),))
        with trio.CancelScope(shield=True):
            await backend.aclose()


def expected(fake, manners):
    if manners is Manners.BUSY and isinstance(fake, LlamaCppServer):
        return BackendTimeout  # it queues whoever comes, in silence
    if manners is Manners.ERRING and isinstance(fake, OllamaServer):
        return BackendUnavailable
    return NAMES[manners]


@pytest.mark.parametrize("manners", NAMES)
async def test_each_trouble_has_a_name(server, manners):
    fake, backend, request = server
    fake.manners = manners
    began = trio.current_time()
    with pytest.raises(InferenceError) as caught:
        await backend.complete(request, QUICK)
    assert type(caught.value) is expected(fake, manners)
    assert PROMPT not in caught.value.message + caught.value.hint
    assert trio.current_time() - began < 3
    assert (await backend.health()).ok, "what it says of itself is all right"
    fake.manners = Manners.FAIR
    assert (await backend.complete(request, QUICK)).text == "Paris is the capital"


@pytest.mark.parametrize("manners", NAMES)
async def test_before_the_first_word_another_one_answers(server, manners):
    fake, backend, request = server
    fake.manners = manners
    if manners is Manners.LYING and isinstance(fake, OllamaServer):
        fake.answer = ""
    other = ScriptedBackend("the other one", models=fake.models)
    router = Router([backend, other])
    if manners in SPOKE:
        with pytest.raises(expected(fake, manners)):
            await router.complete(request, QUICK)
        assert other.requests == []
    else:
        assert (await router.complete(request, QUICK)).text == "the other one"
        assert [asked.method for asked in fake.http.asked].count("POST") == 1


@pytest.mark.parametrize("manners", [Manners.HANGING, Manners.STALLING])
async def test_who_leaves_closes_the_connection(server, manners):
    fake, backend, request = server
    fake.manners = manners
    with trio.move_on_after(0.2):
        await backend.complete(request)
    with trio.fail_after(2):
        await fake.http.gone.wait()


async def test_an_answer_without_a_word_is_told_as_it_is(server):
    """Whether it is worth anything is not for a backend to say."""
    fake, backend, request = server
    fake.manners = Manners.EMPTY
    done = await backend.complete(request, QUICK)
    assert (done.text, done.finish_reason) == ("", "stop")


class TestLlamaCpp:
    """The quirks of llama.cpp's own server."""

    @pytest.fixture
    async def llama(self):
        fake = LlamaCppServer()
        async with fake.running() as url:
            backend = OpenAICompatible("llamacpp", f"{url}/v1")
            yield fake, backend
            await backend.aclose()

    async def test_while_it_loads_it_is_away_and_not_broken(self, llama):
        fake, backend = llama
        fake.manners = Manners.LOADING
        request = InferenceRequest("m", (Message("user", PROMPT),))
        with pytest.raises(BackendUnavailable, match="unavailable_error"):
            await backend.complete(request, QUICK)
        assert not (await backend.health()).ok
        fake.manners = Manners.FAIR
        assert (await backend.health()).ok

    async def test_a_prompt_that_is_too_long(self, llama):
        fake, backend = llama
        fake.context = 3
        with pytest.raises(InferenceError, match="too long") as caught:
            await backend.complete(InferenceRequest("m", (Message("user", PROMPT),)), QUICK)
        assert type(caught.value) is InferenceError

    async def test_the_context_that_it_runs_with(self, llama):
        """An old one tells only what the model was trained for: then the table's is believed, if it is less."""
        fake, backend = llama
        assert [model.context_length for model in await backend.models()] == [4096]
        fake.old = True
        assert [model.context_length for model in await backend.models()] == [131_072]
        for named, told in ((8_192, 8_192), (200_000, 131_072), (None, 131_072)):
            assert [model.context_length for model in await Selected(backend, (), named).models()] == [told]
        fake.old = False
        assert [model.context_length for model in await Selected(backend, (), 8_192).models()] == [4096]

    async def test_it_counts_what_it_did(self, llama):
        _, backend = llama
        request = InferenceRequest("m", (Message("user", PROMPT),), max_tokens=2)
        done = await backend.complete(request, QUICK)
        assert (done.text, done.finish_reason, done.usage.completion_tokens) == ("Paris is", "length", 2)
