"""The supervisor of the embedded engine, with real processes that only pretend to have a model."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import psutil
import pytest
import trio

from pylon.backoff import Backoff
from pylon.errors import BackendTimeout, BackendUnavailable, ModelMissing
from pylon.inference import llamacpp
from pylon.inference.engine import default_threads
from pylon.inference.llamacpp import EmbeddedLlama
from pylon.inference.models import CATALOGUE, DEFAULT_MODEL, ModelFile
from pylon.inference.port import Deadlines, InferenceRequest, Message

COMMAND = (sys.executable, "-S", str(Path(__file__).with_name("fake_engine.py")))


@pytest.fixture
def engine(tmp_path):
    def make(*, name="m", source="file", **manner):
        path = tmp_path / "manner.json"
        path.write_text(json.dumps(manner))
        return EmbeddedLlama(
            ModelFile(name, path, 1, None, source),
            log_path=tmp_path / "engine.log",
            backoff=Backoff(random.Random(1), first=0.2),
            command=COMMAND,
        )

    return make


def ask(content="hello", model="m", **more):
    return InferenceRequest(model, (Message("user", content),), **more)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(embedded, ok):
    with trio.fail_after(10):
        while (await embedded.health()).ok != ok:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_from_start_to_end(engine, tmp_path):
    embedded = engine()
    assert (await embedded.health()).detail == "stopped"
    with pytest.raises(BackendUnavailable, match="stopped"):
        await embedded.complete(ask())
    async with embedded.running():
        health = await embedded.health()
        assert (health.ok, health.detail) == (True, "ready")
        done = await embedded.complete(ask())
        pid = embedded.pid
        assert done.text.startswith(f"user pid {pid}")
        assert done.model == "m"
        assert [(model.id, model.backend) for model in await embedded.models()] == [("m", "llamacpp")]
        with pytest.raises(ModelMissing, match="only 'm'"):
            await embedded.complete(ask(model="other"))
    assert not is_alive(pid)
    assert (await embedded.health()).detail == "stopped"
    assert "a word to the log" in (tmp_path / "engine.log").read_text()
    assert (tmp_path / "engine.log").stat().st_mode & 0o777 == 0o600


async def test_settings_and_key_are_in_no_command_line_and_no_environment(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    embedded = engine()
    async with embedded.running():
        child = psutil.Process(embedded.pid)
        command, environment = child.cmdline(), child.environ()
    assert command[0] == sys.executable
    assert str(tmp_path / "manner.json") not in " ".join(command)
    assert "sk-other" not in environment.values()
    assert "PATH" in environment


async def test_a_child_that_dies_in_the_middle(engine):
    """The request fails at once, the next child serves the next request with another key."""
    embedded = engine()
    async with embedded.running():
        first = embedded.pid
        key = embedded._ready._client.headers["authorization"]
        with trio.fail_after(2), pytest.raises(BackendUnavailable):
            await embedded.complete(ask("die"))
        await trio.sleep(0.05)
        health = await embedded.health()
        assert not health.ok
        assert health.detail == "restarting: the engine was ended by SIGKILL"
        with pytest.raises(BackendUnavailable, match="restarting"):
            await embedded.complete(ask())
        await until(embedded, ok=True)
        assert embedded.pid != first
        assert embedded._ready._client.headers["authorization"] != key
        assert f"pid {embedded.pid}" in (await embedded.complete(ask())).text


async def test_a_child_that_lies(engine):
    """It says that it is well, and what it sends is no answer."""
    embedded = engine()
    async with embedded.running():
        with pytest.raises(BackendUnavailable, match="broke off"):
            await embedded.complete(ask("lie"))
        assert (await embedded.health()).ok
        assert (await embedded.complete(ask())).text.startswith("user pid")


async def test_all_requests_under_way_fail(engine):
    embedded = engine()
    embedded._turn = trio.Semaphore(3)
    failed = []

    async def wait():
        try:
            await embedded.complete(ask("wait"))
        except BackendUnavailable as error:
            failed.append(error)

    async with embedded.running():
        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                for _ in range(4):  # one of them waits for its turn
                    nursery.start_soon(wait)
                await trio.sleep(0.3)
                os.kill(embedded.pid, signal.SIGKILL)
    assert len(failed) == 4


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ({"die": "loading"}, "ended by SIGSEGV while it loaded the model"),
        ({"die": "at once"}, "ended with exit code 3 while it loaded the model"),
        ({"error": "no such model"}, "no such model"),
    ],
)
async def test_a_child_that_never_gets_ready(engine, manner, reason):
    embedded = engine(**manner)
    with trio.fail_after(5), pytest.raises(BackendUnavailable, match=reason) as caught:
        async with embedded.running():
            raise AssertionError("it is not running")
    assert "engine.log" in caught.value.message
    assert embedded.pid is None


async def test_a_command_that_is_not_there(tmp_path):
    embedded = EmbeddedLlama(ModelFile("m", tmp_path, 1, None, "file"), command=["/nowhere/python"])
    with pytest.raises(BackendUnavailable, match="cannot start the engine: No such file"):
        async with embedded.running():
            pass


async def test_requests_wait_while_it_starts(engine, nursery):
    embedded = engine()
    await nursery.start(embedded.run)
    assert (await embedded.health()).detail == "starting"
    assert (await embedded.complete(ask())).text.startswith("user pid")


async def test_a_child_that_hangs_is_ended(engine, monkeypatch):
    monkeypatch.setattr(llamacpp, "_WATCH", 0.05)
    monkeypatch.setattr("pylon.inference.openai.PROBE", 0.05)
    embedded = engine(hang=True)
    async with embedded.running():
        first = embedded.pid
        await until(embedded, ok=False)
        assert "hung" in (await embedded.health()).detail
        with trio.fail_after(5):
            while is_alive(first):  # noqa: ASYNC110
                await trio.sleep(0.02)


async def test_a_child_that_does_not_want_to_end(engine, monkeypatch):
    monkeypatch.setattr(llamacpp, "_ENDING", 0.2)
    embedded = engine(stubborn=True)
    async with embedded.running():
        pid = embedded.pid
    assert not is_alive(pid)


async def test_one_slot_one_answer_at_a_time(engine):
    embedded = engine()
    async with embedded.running(), trio.open_nursery() as nursery:

        async def hold():
            async with embedded.stream(ask("wait")) as chunks:
                async for _ in chunks:
                    holding.set()

        holding = trio.Event()
        nursery.start_soon(hold)
        await holding.wait()
        with pytest.raises(BackendTimeout, match="deadline first_token"):
            await embedded.complete(ask(), Deadlines(connect=0.1, first_token=0.2))
        nursery.cancel_scope.cancel()
    assert embedded._turn.value == 1


async def test_errors_of_the_block_come_out_as_they_are(engine):
    with pytest.raises(KeyError, match="mine"):
        async with engine().running():
            raise KeyError("mine")


async def test_a_system_message_where_the_model_needs_one(engine):
    embedded = engine(name=DEFAULT_MODEL, source="catalogue")
    assert CATALOGUE[DEFAULT_MODEL].system_prompt
    own = InferenceRequest(DEFAULT_MODEL, (Message("system", "mine"), Message("user", "x")))
    async with embedded.running():
        assert (await embedded.complete(ask(model=DEFAULT_MODEL))).text.startswith("system user pid")
        assert (await embedded.complete(own)).text.startswith("system user pid")


def test_threads():
    assert [default_threads(n) for n in (1, 2, 3, 4, 6, 8, 16)] == [1, 1, 2, 3, 3, 4, 8]
    assert default_threads() >= 1
