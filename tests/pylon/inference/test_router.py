"""Which backend serves which model."""

import pytest
import trio

from pylon.errors import BackendUnavailable
from pylon.inference.port import Health, InferenceRequest, Message
from pylon.inference.router import Router
from pylon.testing.backend import Reply, ScriptedBackend


def fake(name, *models, script=None, up=True):
    backend = ScriptedBackend(script or f"I am {name}", name=name, models=models)
    backend.up = up
    return backend


def ask(model):
    return InferenceRequest(model, (Message("user", "who?"),))


async def where(router, model):
    route = await router.resolve(model)
    return route.backend.name, route.model, route.substituted


class Starting(ScriptedBackend):
    async def health(self):
        return Health(False, "starting")


class BlackHole(ScriptedBackend):
    looks = 0

    async def health(self):
        self.looks += 1
        await trio.sleep_forever()


async def test_the_first_that_has_it():
    router = Router([fake("a", "x"), fake("b", "x", "y"), fake("c", "llama3.2:latest")])
    assert await where(router, "x") == ("a", "x", False)
    assert await where(router, "y") == ("b", "y", False)
    assert await where(router, "llama3.2") == ("c", "llama3.2:latest", False)
    assert [model.id for model in await router.models()] == ["x", "x", "y", "llama3.2:latest"]


async def test_preference_comes_before_the_order_given():
    router = Router([fake("a", "x"), fake("b", "x"), fake("c", "x")], preference=("c", "nobody", "b", "c"))
    assert [backend.name for backend in router.backends] == ["c", "b", "a"]
    assert (await where(router, "x"))[0] == "c"


async def test_a_model_that_is_not_there_said_once(caplog):
    router = Router([fake("down", "z", up=False), fake("empty"), fake("a", "x", "y")])
    caplog.clear()
    for _ in range(3):
        assert await where(router, "gpt-9") == ("a", "x", True)
    assert caplog.text.count("gpt-9") == 1
    assert router.substitutions["gpt-9"].model == "x"
    done = await router.complete(ask("gpt-9"))
    assert (done.text, done.model) == ("I am a", "x")


async def test_no_model_asked_is_no_substitution(caplog):
    backends = [fake("a", "x"), fake("b", "y")]
    caplog.clear()
    assert await where(Router(backends), "") == ("a", "x", False)
    assert await where(Router(backends, default_model="y"), "") == ("b", "y", False)
    assert caplog.text == ""


async def test_nothing_up():
    router = Router([fake("a", "x", up=False), fake("b", "x", up=False)])
    with pytest.raises(BackendUnavailable, match=r"a: .*down; b: .*down") as caught:
        await router.resolve("x")
    assert caught.value.hint
    assert not (await router.health()).ok
    with pytest.raises(BackendUnavailable, match="none is configured"):
        await Router([]).resolve("x")


async def test_a_healthy_one_before_a_starting_one():
    starting = Starting("x", name="starting", models=("x", "only"))
    router = Router([starting, fake("a", "x")])
    assert (await where(router, "x"))[0] == "a"
    assert (await where(router, "only"))[0] == "starting"
    assert await where(router, "other") == ("a", "x", True)
    assert await where(Router([starting]), "") == ("starting", "x", False)


async def test_one_that_failed_is_looked_at_again_at_once():
    failing = fake("a", "x", script=Reply("one two", error=BackendUnavailable("died"), fail_after=1))
    router = Router([failing, fake("b", "x")])
    with pytest.raises(BackendUnavailable, match="died"):
        await router.complete(ask("x"))
    failing.up = False
    assert (await router.complete(ask("x"))).text == "I am b"


async def test_one_that_comes_back_is_noticed(autojump_clock):
    first = fake("a", "x", up=False)
    router = Router([first, fake("b", "x")])
    assert (await where(router, "x"))[0] == "b"
    first.up = True
    await trio.sleep(4)
    assert (await where(router, "x"))[0] == "a"


async def test_a_black_hole_delays_few_requests(autojump_clock):
    hole = BlackHole("x", name="hole", models=("x",))
    router = Router([hole, fake("b", "x")])
    for _ in range(50):
        assert (await where(router, "x"))[0] == "b"
        await trio.sleep(1)
    assert hole.looks == 1
    assert trio.current_time() < 55


async def test_leaving_a_stream_reaches_the_backend(autojump_clock):
    backend = fake("a", "x", script=Reply("a b c", pace=5))
    async with Router([backend]).stream(ask("x")) as chunks:
        async for _ in chunks:
            break
    assert (backend.active, backend.stopped) == (0, 1)
