"""The engine in this process with the real package and a real model (``make deep`` compiles it)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys

import attrs
import openai
import pytest
import trio

from pylon.api.answerer import LocalAnswerer
from pylon.errors import BackendTimeout, InferenceError
from pylon.inference.llamacpp_inprocess import InProcessLlama, _import
from pylon.inference.models import DEFAULT_MODEL, find, models_directory
from pylon.inference.port import Deadlines, InferenceRequest, Message, Usage
from pylon.inference.router import Router
from tests.pylon.api.openai_client import open_client
from tests.pylon.inference import fake_llama

pytestmark = pytest.mark.deep

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def model():
    import llama_cpp  # noqa: F401  (make deep installs it: without it these tests fail, and are not skipped)

    return find(DEFAULT_MODEL, models_directory())


@pytest.fixture
async def llama(model):
    async with InProcessLlama(model, context=2_048).running() as llama:
        yield llama


def ask(content="What is the capital of France?", **more):
    return InferenceRequest(DEFAULT_MODEL, (Message("user", content),), **{"temperature": 0.0, "seed": 1, **more})


async def test_an_answer_and_the_same_one_again(llama):
    first = await llama.complete(ask(max_tokens=32))
    assert "Paris" in first.text
    await llama.complete(ask("Say something else entirely.", max_tokens=16))
    again = await llama.complete(ask(max_tokens=32))
    assert again == first, "nothing of another request is left"


async def test_its_own_count(llama, model):
    """As the package counts in an answer that is not streamed."""
    for tokens in (5, 80):
        done = await llama.complete(ask(max_tokens=tokens))
        messages = [
            {"role": "system", "content": model.entry.system_prompt},
            {"role": "user", "content": "What is the capital of France?"},
        ]

        def whole(tokens=tokens, messages=messages):
            llama._ready.reset()
            return llama._ready.create_chat_completion(messages, max_tokens=tokens, temperature=0.0, seed=1)

        said = await trio.to_thread.run_sync(whole)
        assert done.text == said["choices"][0]["message"]["content"]
        assert done.finish_reason == said["choices"][0]["finish_reason"]
        assert done.usage == Usage(said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"])


async def test_a_schema_is_enforced(llama):
    done = await llama.complete(ask("Name a city.", json_schema=SCHEMA, max_tokens=64))
    assert isinstance(json.loads(done.text)["city"], str)


async def test_who_leaves_frees_it_within_a_token(llama):
    first = await llama.complete(ask(max_tokens=16))
    async with llama.stream(ask("Count to a thousand.", max_tokens=1_000)) as chunks:
        for _ in range(3):
            await anext(chunks)
    began = trio.current_time()
    with trio.move_on_after(0.5):
        await llama.complete(ask("Count to a thousand.", max_tokens=1_000))
    assert trio.current_time() - began < 1.0
    assert await llama.complete(ask(max_tokens=16)) == first


async def test_a_long_prompt_is_left_in_its_middle(llama):
    pulses = []
    first = await llama.complete(ask(max_tokens=16))

    async def pulse():
        while True:
            pulses.append(trio.current_time())
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulse)
        began = trio.current_time()
        with pytest.raises(BackendTimeout, match="first_token"):
            await llama.complete(ask("word " * 1_500), Deadlines(first_token=0.5))
        assert trio.current_time() - began < 2.0
        nursery.cancel_scope.cancel()
    assert max(later - sooner for sooner, later in itertools.pairwise(pulses)) < 0.5
    assert await llama.complete(ask(max_tokens=16)) == first
    with pytest.raises(InferenceError, match="2,048 tokens"):
        await llama.complete(ask("word " * 3_000))


async def test_loading_leaves_stdout_alone(model):
    """The package would turn it to nowhere for everybody."""
    inode = os.fstat(1).st_ino
    seen = []

    async def look():
        while True:
            seen.append((os.fstat(1).st_ino, sys.stdout))
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        async with InProcessLlama(model).running():
            nursery.cancel_scope.cancel()
    assert len(seen) > 1
    assert set(seen) == {(inode, sys.stdout)}


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


async def test_a_file_that_is_none(broken, model):
    with pytest.raises(InferenceError, match=r"did not load \(ValueError\)"):
        async with InProcessLlama(attrs.evolve(model, path=broken)).running():
            raise AssertionError("never")


async def test_the_stand_in_has_its_shape(llama):
    """What the fast tests trust: the same keys, the same evaluations."""

    def said(made, words):
        chunks, sizes, evaluate = [], [], made.eval
        made.reset()
        made.eval = lambda tokens: (sizes.append(len(tokens)), evaluate(tokens))[1]
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        for chunk in made.create_chat_completion(messages, stream=True, max_tokens=words, stop=[]):
            chunks.append((sorted(chunk), sorted(chunk["choices"][0]), sorted(chunk["choices"][0]["delta"])))
        made.__dict__.pop("eval")
        return chunks, len(sizes), chunk["choices"][0]["finish_reason"]

    manners = fake_llama.Manners()
    real = await trio.to_thread.run_sync(said, llama._ready, 3)
    assert real[1:] == (3, "length")
    manners.words = ["word"] * 3
    fake = fake_llama.module(manners)
    fake._internals.suppress_stdout_stderr = lambda disable=True: contextlib.nullcontext()
    made = fake.Llama(
        model_path="",
        n_ctx=512,
        n_batch=1,
        n_threads=1,
        n_threads_batch=1,
        n_gpu_layers=0,
        flash_attn=True,
        verbose=False,
    )
    assert said(made, 3) == real
    assert hasattr(_import()._internals, "suppress_stdout_stderr"), "what is replaced there is still used there"


async def test_openais_package_leaves_it_through_our_api(llama):
    """Whole, in pieces, and in the middle of a prompt: whoever asks next is answered at once."""
    story = [{"role": "user", "content": "Tell a very long story about a lighthouse."}]
    long = [{"role": "user", "content": "word " * 1_500}]
    async with open_client(LocalAnswerer(Router([llama]))) as client:

        def leave_a_stream(sync):
            with sync.chat.completions.create(model="", messages=story, max_tokens=1_500, stream=True) as pieces:
                next(piece for piece in pieces if piece.choices[0].delta.content)

        def leave_the_whole(sync):
            with pytest.raises(openai.APITimeoutError):
                sync.with_options(timeout=1.0).chat.completions.create(model="", messages=story, max_tokens=1_500)

        def leave_a_prompt(sync):
            with pytest.raises(openai.APITimeoutError):
                sync.with_options(timeout=0.5).chat.completions.create(model="", messages=long)

        for leave in (leave_a_stream, leave_the_whole, leave_a_prompt):
            await client.run(leave)
            began = trio.current_time()
            answer = await client.chat("What is the capital of France?", model="", max_tokens=16, temperature=0)
            assert "Paris" in answer.choices[0].message.content
            assert answer.usage.completion_tokens > 3
            assert trio.current_time() - began < 5
