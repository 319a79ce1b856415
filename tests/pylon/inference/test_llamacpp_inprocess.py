"""The engine in this process, over a package of recorded shape: it stops when it should, and blocks nobody."""

from __future__ import annotations

import random
import sys
import threading

import pytest
import trio

from pylon.backoff import Backoff
from pylon.config import Config
from pylon.errors import BackendTimeout, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference import backends, llamacpp_inprocess
from pylon.inference.backends import find_backends
from pylon.inference.llamacpp_inprocess import InProcessLlama
from pylon.inference.models import CATALOGUE, DEFAULT_MODEL, ModelFile
from pylon.inference.port import Deadlines, InferenceRequest, Message, Usage
from pylon.inference.router import Router
from tests.pylon.inference.fake_llama import Manners, installed

ANSWER = "the capital is Paris"


@pytest.fixture
def manners(monkeypatch):
    with installed(Manners(), monkeypatch) as manners:
        yield manners


def engine(tmp_path, *, name="m", source="file", **options) -> InProcessLlama:
    backoff = Backoff(random.Random(1), first=0.05)
    return InProcessLlama(ModelFile(name, tmp_path / "m.gguf", 1, None, source), threads=1, backoff=backoff, **options)


def ask(content="what is the capital", model="m", **more):
    return InferenceRequest(model, (Message("user", content),), **more)


class Pulse:
    """Counts how often the loop comes around, and how long that takes at most."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0

    async def run(self) -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(0.005)
            self.count += 1
            self.longest = max(self.longest, trio.current_time() - before)


async def test_an_answer(tmp_path, manners):
    llama = engine(tmp_path)
    assert (await llama.health()).detail == "stopped"
    with pytest.raises(BackendUnavailable, match="stopped"):
        await llama.complete(ask())
    async with llama.running():
        assert ((await llama.health()).ok, (await llama.health()).detail) == (True, "ready")
        done = await llama.complete(ask(temperature=0.5, seed=7, stop=("x",), json_schema={"type": "object"}))
        assert (done.text, done.finish_reason, done.model) == (ANSWER, "stop", "m")
        assert done.usage == Usage(4, 4)
        cut = await llama.complete(ask(max_tokens=2))
        assert (cut.text, cut.finish_reason, cut.usage) == ("the capital", "length", Usage(4, 2))
        with pytest.raises(ModelMissing, match="only 'm'"):
            await llama.complete(ask(model="other"))
        assert [(model.id, model.backend, model.context_length) for model in await llama.models()] == [
            ("m", "llamacpp", 4096)
        ]
    assert (await llama.health()).detail == "stopped"
    assert manners.closed == 1
    assert manners.loaded == [
        {"model_path": str(tmp_path / "m.gguf"), "n_ctx": 4096, "n_gpu_layers": 0, "verbose": False}
    ]
    assert manners.asked == [
        {
            "messages": [{"role": "user", "content": "what is the capital"}],
            "max_tokens": 256,
            "stop": ["x"],
            "temperature": 0.5,
            "seed": 7,
            "response_format": {"type": "json_object", "schema": {"type": "object"}},
        },
        {"messages": [{"role": "user", "content": "what is the capital"}], "max_tokens": 2, "stop": []},
    ]
    assert threading.get_ident() not in manners.threads


async def test_the_loop_goes_on_meanwhile(tmp_path, manners, nursery):
    manners.seconds = 0.6
    pulse = Pulse()
    async with engine(tmp_path).running() as llama:
        nursery.start_soon(pulse.run)
        assert (await llama.complete(ask(max_tokens=1))).text == "the"
    nursery.cancel_scope.cancel()
    assert pulse.count >= 10, "of more than a hundred"


async def test_who_leaves_stops_it_between_two_tokens(tmp_path, manners):
    manners.words, manners.seconds = ["word"] * 4_000, 0.002
    async with engine(tmp_path).running() as llama:
        async with llama.stream(ask(max_tokens=4_000)) as chunks:
            assert (await anext(chunks)).text == "word"
        evaluated = len(manners.evaluated)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(llama.complete, ask(max_tokens=4_000))
            with trio.fail_after(5):
                while len(manners.evaluated) < evaluated + 3:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        evaluated = len(manners.evaluated)
        assert evaluated < 4_000
        await trio.sleep(0.1)
        assert len(manners.evaluated) == evaluated, "nobody computes any more"
        manners.words = ANSWER.split()
        assert (await llama.complete(ask())).text == ANSWER


async def test_who_leaves_between_two_tokens_leaves_nothing_stuck(tmp_path, manners):
    """No thread is at work then, and none is waited for."""
    manners.words = ["word"] * 100
    async with engine(tmp_path).running() as llama:
        began = trio.current_time()
        with trio.CancelScope() as scope:
            async with llama.stream(ask(max_tokens=100)) as chunks:
                await anext(chunks)
                scope.cancel()
                await anext(chunks)
        assert scope.cancelled_caught
        assert trio.current_time() - began < llamacpp_inprocess._STOPPING
        assert (await llama.complete(ask(max_tokens=1))).text == "word"


async def test_who_leaves_stops_it_in_the_middle_of_a_prompt(tmp_path, manners):
    manners.seconds = 0.05
    async with engine(tmp_path).running() as llama:
        with pytest.raises(BackendTimeout, match="first_token"):
            await llama.complete(ask("word " * 3_000), Deadlines(first_token=0.3))
        assert 1 <= len(manners.evaluated) < 3_000 / llamacpp_inprocess._BATCH / 2
        assert max(manners.evaluated) <= llamacpp_inprocess._BATCH
        manners.seconds = 0.0
        done = await llama.complete(ask("word " * 3_000))
        assert (done.text, done.usage) == (ANSWER, Usage(3_000, 4))


async def test_a_thread_that_does_not_stop_holds_nobody_up(tmp_path, manners, monkeypatch, nursery):
    """It hangs within llama.cpp: its caller goes, the loop goes on, others are refused; when it is back, so are we."""
    monkeypatch.setattr(llamacpp_inprocess, "_STOPPING", 0.1)
    pulse = Pulse()
    nursery.start_soon(pulse.run)
    async with engine(tmp_path).running() as llama:
        manners.stuck = stuck = threading.Event()
        try:
            with pytest.raises(BackendTimeout, match="first_token"):
                await llama.complete(ask(), Deadlines(first_token=0.1))
            assert (await llama.health()).ok is False
            assert (await llama.health()).detail == "stuck in an earlier request"
            with pytest.raises(BackendUnavailable, match="stuck"):
                await llama.complete(ask())
            manners.stuck = None
        finally:
            stuck.set()
        with trio.fail_after(5):
            while not (await llama.health()).ok:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert (await llama.complete(ask())).text == ANSWER
    nursery.cancel_scope.cancel()
    assert pulse.longest < 5, "it would hang for 20 s"
    assert manners.closed == 1


async def test_the_end_does_not_wait_for_what_is_stuck(tmp_path, manners, monkeypatch):
    monkeypatch.setattr(llamacpp_inprocess, "_STOPPING", 0.1)
    manners.stuck = stuck = threading.Event()
    try:
        began = trio.current_time()
        async with engine(tmp_path).running() as llama:
            with pytest.raises(BackendTimeout):
                await llama.complete(ask(), Deadlines(first_token=0.1))
        assert trio.current_time() - began < 2
        assert manners.closed == 0, "its memory is in use"
    finally:
        stuck.set()


async def test_one_at_a_time(tmp_path, manners):
    manners.seconds = 0.01
    texts = []
    async with engine(tmp_path).running() as llama, trio.open_nursery() as nursery:

        async def one():
            texts.append((await llama.complete(ask())).text)

        for _ in range(3):
            nursery.start_soon(one)
    assert texts == [ANSWER] * 3
    assert manners.evaluated == [4, 1, 1, 1, 1] * 3, "a prompt, its words, and then the next one"


@pytest.mark.parametrize(
    "error", [RuntimeError("llama_decode returned 1: what is the capital"), ValueError("what"), KeyError("capital")]
)
async def test_what_fails_quotes_nobody_and_passes(tmp_path, manners, error):
    async with engine(tmp_path).running() as llama:
        manners.eval_errors = [error]
        with pytest.raises(BackendUnavailable, match=type(error).__name__) as caught:
            await llama.complete(ask())
        assert "capital" not in caught.value.message + caught.value.hint
        assert (await llama.complete(ask())).text == ANSWER


@pytest.mark.parametrize("lie", [{}, {"choices": []}, {"choices": [{}]}, 7, {"choices": [{"delta": 1}]}, None])
async def test_what_is_no_chunk(tmp_path, manners, monkeypatch, lie):
    async with engine(tmp_path).running() as llama:
        monkeypatch.setattr(llama._ready, "_said", lambda prompt, most: iter([lie]), raising=False)
        with pytest.raises(BackendUnavailable, match="failed"):
            await llama.complete(ask())
        monkeypatch.undo()


async def test_an_answer_that_breaks_off_is_none(tmp_path, manners, monkeypatch):
    """It ends without having said that it ends."""
    async with engine(tmp_path).running() as llama:
        monkeypatch.setattr(llama._ready, "_said", lambda prompt, most: iter([]), raising=False)
        with pytest.raises(BackendUnavailable, match="broke off"):
            await llama.complete(ask())


async def test_an_empty_answer(tmp_path, manners):
    manners.words = []
    async with engine(tmp_path).running() as llama:
        done = await llama.complete(ask())
    assert (done.text, done.finish_reason, done.usage) == ("", "stop", Usage(4, 0))


async def test_a_prompt_that_is_too_long(tmp_path, manners):
    async with engine(tmp_path, context=512).running() as llama:
        with pytest.raises(InferenceError, match="512 tokens") as caught:
            await llama.complete(ask("word " * 600))
        assert not isinstance(caught.value, BackendUnavailable), "it is not the engine that is at fault"
        assert (await llama.complete(ask())).text == ANSWER


async def test_a_file_that_is_put_right(tmp_path, manners, nursery, caplog):
    manners.load_errors = [ValueError("Failed to load model from file: /secret/place")]
    llama = engine(tmp_path)
    await nursery.start(llama.run)
    assert "starting" in (await llama.health()).detail
    with pytest.raises(BackendUnavailable, match=r"did not load \(ValueError\)"):
        await llama.ready()
    with trio.fail_after(5):
        while not (await llama.health()).ok:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert (await llama.complete(ask())).text == ANSWER
    assert "/secret/place" not in caplog.text
    nursery.cancel_scope.cancel()


async def test_without_the_package(tmp_path, manners, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llamacpp_inprocess._import.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"did not load \((ImportError|ModuleNotFoundError)\)"):
        async with engine(tmp_path).running():
            raise AssertionError("never")


async def test_a_system_message_where_the_model_needs_one(tmp_path, manners):
    async with engine(tmp_path, name=DEFAULT_MODEL, source="catalogue").running() as llama:
        await llama.complete(ask(model=DEFAULT_MODEL))
    assert manners.asked[0]["messages"][0] == {"role": "system", "content": CATALOGUE[DEFAULT_MODEL].system_prompt}


async def test_behind_the_router(tmp_path, manners):
    async with engine(tmp_path).running() as llama:
        assert (await Router([llama]).complete(ask("hi", model=""))).text == ANSWER


@pytest.mark.parametrize(
    ("there", "kind", "address"),
    [
        ({"xllamacpp", "llama_cpp"}, "EmbeddedLlama", "embedded"),
        ({"xllamacpp"}, "EmbeddedLlama", "embedded"),
        ({"llama_cpp"}, "InProcessLlama", "in this process"),
        (set(), None, None),
    ],
)
async def test_it_is_the_last_choice(tmp_path, monkeypatch, there, kind, address):
    """A server on its port, else a child, else this process; without any of them it is said what to install."""
    (tmp_path / "mine.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(100))
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path))
    monkeypatch.setattr(backends, "_is_installed", there.__contains__)
    urls = dict.fromkeys(("ollama", "llamacpp", "apple_fm", "openai"), "http://127.0.0.1:1")
    found = await find_backends(Config(), default_urls=urls)
    try:
        if kind is None:
            assert found.engine is None
            assert "pylon-runtime[llamacpp]" in found.engine_missing.hint
        else:
            assert type(found.engine).__name__ == kind
            assert next(place.address for place in found.router.places if place.backend is found.engine) == address
    finally:
        await found.router.aclose()
