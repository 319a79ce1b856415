"""The bridge to Apple's on-device model, against a server of recorded shape."""

import attrs
import httpx
import pytest
import trio

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, ConfigError, InferenceError
from pylon.inference.apple_fm import CONTEXT, AppleFm
from pylon.inference.port import Completion, InferenceRequest, Message, Usage
from pylon.testing.backends import AppleFmServer, Manners
from tests.pylon.inference.test_ollama import QUICK

PROMPT = "the prompt that nobody else may read"
MODEL = "apple-foundation-model"
REQUEST = InferenceRequest(MODEL, (Message("user", PROMPT),))


@pytest.fixture
async def server():
    fake = AppleFmServer()
    async with fake.running():
        yield fake


@pytest.fixture
async def bridge(server):
    backend = AppleFm("apple_fm", server.http.address)
    yield backend
    await backend.aclose()


async def test_an_answer_in_a_stream_has_no_usage(bridge):
    assert await bridge.complete(REQUEST) == Completion("Paris is the capital", "stop", None, MODEL)


async def test_the_first_bridges_answer_in_one_piece(server, bridge):
    server.streams = False
    assert await bridge.complete(REQUEST) == Completion("Paris is the capital", "stop", Usage(4, 5), MODEL)


async def test_max_tokens_is_passed_over(server, bridge):
    assert (await bridge.complete(attrs.evolve(REQUEST, max_tokens=1))).text == "Paris is the capital"
    assert server.prompts[0]["max_tokens"] == 1


async def test_its_model_with_the_context_that_it_does_not_tell(bridge):
    (model,) = await bridge.models()
    assert (model.id, model.backend, model.context_length) == (MODEL, "apple_fm", CONTEXT)
    assert (await bridge.health()).ok


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("apple_intelligence_not_enabled", "switched off"),
        ("device_not_eligible", "cannot run"),
        ("model_not_ready", "being fetched"),
        ("unknown", "not available"),
    ],
)
async def test_a_bridge_without_a_model_is_not_healthy(server, bridge, reason, words):
    server.reason = reason
    health = await bridge.health()
    assert not health.ok
    assert words in health.detail
    with pytest.raises(BackendUnavailable):
        await bridge.models()
    with pytest.raises(BackendUnavailable):
        await bridge.complete(REQUEST)


async def test_one_thing_at_a_time(server, bridge):
    server.manners = Manners.BUSY
    with pytest.raises(BackendBusy):
        await bridge.complete(REQUEST)


@pytest.mark.parametrize(
    ("manners", "expected"),
    [
        (Manners.FAILING, BackendUnavailable),
        (Manners.HANGING, BackendTimeout),
        (Manners.STALLING, BackendTimeout),
        (Manners.CRASHING, BackendUnavailable),
        (Manners.BREAKING, BackendUnavailable),
        (Manners.ERRING, InferenceError),
        (Manners.LYING, BackendUnavailable),
    ],
)
async def test_troubles(server, bridge, manners, expected):
    server.manners = manners
    with pytest.raises(expected) as caught:
        await bridge.complete(REQUEST, QUICK)
    assert type(caught.value) is expected
    assert PROMPT not in caught.value.message


async def test_the_first_bridges_say_only_that_they_are_there():
    async def handle(request):
        return httpx.Response(200, json={"status": "healthy"})

    bridge = AppleFm("apple_fm", "http://127.0.0.1:1/v1", transport=httpx.MockTransport(handle))
    assert bridge.address == "http://127.0.0.1:1"
    assert (await bridge.health()).ok


@pytest.mark.parametrize("body", [b"", b"7", b'{"status": 1}', b"{}", b'{"status": "ok", "model_available": "yes"}'])
async def test_what_is_no_bridge(body):
    async def handle(request):
        return httpx.Response(200, content=body)

    bridge = AppleFm("apple_fm", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
    assert not (await bridge.health()).ok


async def test_one_that_never_answers(autojump_clock):
    async def handle(request):
        await trio.sleep_forever()

    bridge = AppleFm("apple_fm", "http://127.0.0.1:1", transport=httpx.MockTransport(handle))
    assert "within" in (await bridge.health()).detail


def test_no_address():
    with pytest.raises(ConfigError):
        AppleFm("apple_fm", "11435")
