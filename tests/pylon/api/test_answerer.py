"""This machine's own backends as an ``Answerer``."""

from __future__ import annotations

import pytest
import trio

from pylon.api.answerer import STARTING_SECONDS
from pylon.api.openai_shapes import ApiError
from pylon.errors import BackendUnavailable
from pylon.inference.port import Health, InferenceRequest, Message
from pylon.testing.backend import ScriptedBackend
from tests.pylon.api.openai_client import local


class Starting(ScriptedBackend):
    """It says so until ``ready``."""

    ready = 0.0

    async def health(self) -> Health:
        await trio.lowlevel.checkpoint()
        return Health(True, "ready") if trio.current_time() >= self.ready else Health(False, "starting")


def asking(model: str) -> InferenceRequest:
    return InferenceRequest(model, (Message("user", "why?"),))


async def ask(answerer, model: str) -> str:
    async with answerer.stream(asking(model)) as answer:
        return "".join([chunk.text async for chunk in answer.chunks])


@pytest.mark.parametrize("model", ["", "scripted-1"])
async def test_a_backend_that_is_starting_is_waited_for(autojump_clock, model):
    backend = Starting("so it is")
    backend.ready = trio.current_time() + 8
    assert await ask(local(backend), model) == "so it is"


async def test_a_model_that_it_will_not_have_is_told_once_it_has_started(autojump_clock):
    backend = Starting("so it is")
    backend.ready = trio.current_time() + 8
    with pytest.raises(ApiError) as info:
        await ask(local(backend), "gpt")
    assert info.value.code == "model_not_found"


async def test_it_is_not_waited_for_ever(autojump_clock):
    backend = Starting("so it is")
    backend.ready = trio.current_time() + 1_000
    began = trio.current_time()
    with pytest.raises(BackendUnavailable):
        await ask(local(backend), "gpt")
    assert STARTING_SECONDS <= trio.current_time() - began < STARTING_SECONDS + 10


async def test_one_that_is_down_is_not_waited_for(autojump_clock):
    backend = ScriptedBackend("so it is")
    backend.up = False
    began = trio.current_time()
    for model in ("", "gpt"):
        with pytest.raises(BackendUnavailable):
            await ask(local(backend), model)
    assert trio.current_time() == began
