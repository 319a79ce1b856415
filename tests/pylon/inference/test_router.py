"""Which backend serves which model."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.errors import BackendBusy, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.breaker import FAILURES, FIRST_WAIT
from pylon.inference.deadlines import enforce
from pylon.inference.port import DEFAULT_DEADLINES, Chunk, Deadlines, Health, InferenceRequest, Message
from pylon.inference.router import Place, Router
from pylon.testing.backend import EMPTY, HANG, NO_CONNECTION, Reply, ScriptedBackend


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


# --- another backend, before the first word ---------------------------------------------------------------------------

DOWN = BackendUnavailable("died")


@pytest.mark.parametrize(
    "reply",
    [
        Reply("", error=DOWN),
        Reply("one", error=BackendBusy("full")),
        Reply("one", error=ModelMissing("gone")),
        Reply("one", error=InferenceError("refused the API key")),
        HANG,
        NO_CONNECTION,
    ],
    ids=["crashing", "busy", "without its model", "refusing", "hanging", "black hole"],
)
async def test_one_that_fails_before_its_first_word_is_not_the_end(autojump_clock, reply):
    router = Router([fake("a", "x", script=reply), fake("b", "x")])
    done = await router.complete(ask("x"))
    assert (done.text, done.model) == ("I am b", "x")


async def test_half_an_answer_is_not_begun_anew(autojump_clock):
    backup = fake("b", "x")
    router = Router([fake("a", "x", script=Reply("one two", error=DOWN, fail_after=1)), backup])
    heard = []

    async def listen():
        async with router.stream(ask("x")) as chunks:
            async for chunk in chunks:
                heard.append(chunk.text)  # noqa: PERF401 - what was heard before the error counts

    with pytest.raises(BackendUnavailable, match="died"):
        await listen()
    assert heard == ["one"]
    assert backup.requests == []


async def test_signs_of_life_are_no_words():
    class Thinking(ScriptedBackend):
        def stream(self, request, deadlines=DEFAULT_DEADLINES):
            async def generate(accepted):
                accepted()
                yield Chunk("")
                raise DOWN

            return enforce(self.name, deadlines, generate)

    router = Router([Thinking("", name="a", models=("x",)), fake("b", "x")])
    assert (await router.complete(ask("x"))).text == "I am b"


async def test_an_empty_answer_is_an_answer():
    router = Router([fake("a", "x", script=EMPTY), fake("b", "x")])
    assert (await router.complete(ask("x"))).text == ""


async def test_another_model_is_no_other_backend():
    router = Router([fake("a", "x", script=Reply(error=DOWN)), fake("b", "y")])
    with pytest.raises(BackendUnavailable, match="died"):
        await router.complete(ask("x"))


async def test_what_the_best_one_said_is_told():
    router = Router(
        [
            Place(fake("full", "x", script=Reply(error=BackendBusy("full"))), 0),
            Place(fake("a", "x", script=Reply(error=BackendUnavailable("first"))), 1),
            Place(fake("b", "x", script=Reply(error=BackendUnavailable("second"))), 2),
        ]
    )
    with pytest.raises(BackendUnavailable, match="first"):
        await router.complete(ask("x"))


async def test_one_that_fails_again_and_again_is_left_alone(autojump_clock):
    broken, backup = fake("a", "x", script=HANG), fake("b", "x")
    router = Router([broken, backup])
    began = trio.current_time()
    for _ in range(20):
        assert (await router.complete(ask("x"), Deadlines(first_token=1))).text == "I am b"
    assert len(broken.requests) == FAILURES
    assert trio.current_time() - began < 4
    assert [model.id for model in await router.models()] == ["x"]
    assert "left alone" not in (await router.health()).detail
    assert "failed 3 times" in (await router.health()).detail
    broken._script = "I am a"
    await trio.sleep(FIRST_WAIT)
    assert (await router.complete(ask("x"))).text == "I am a"


async def test_an_answer_that_is_complete_counts_whoever_leaves(autojump_clock):
    """A customer may stop listening at the last chunk: three failures with answers between them are not in a row."""
    lines = [Reply(error=DOWN), "fine"] * 6
    router = Router([fake("a", "x", script=lines)])
    for _ in range(6):
        with pytest.raises(BackendUnavailable, match="died"):
            await router.complete(ask("x"))
        async with router.stream(ask("x")) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason:
                    break


async def test_the_only_one_left_alone(autojump_clock):
    router = Router([fake("a", "x", script=Reply(error=DOWN))])
    for _ in range(FAILURES):
        with pytest.raises(BackendUnavailable, match="died"):
            await router.complete(ask("x"))
    with pytest.raises(BackendUnavailable, match="no backend can answer: a: it failed 3 times"):
        await router.complete(ask("x"))
    assert not (await router.health()).ok
    assert await router.models() == []


# --- several of a kind, and places ------------------------------------------------------------------------------------


async def test_equals_share_the_work(autojump_clock):
    gpus = [fake(name, "x", script=Reply("done", first=1)) for name in ("a", "b", "c")]
    router = Router([Place(gpu, 0, most=1) for gpu in gpus])
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(router.complete, ask("x"))
            await trio.sleep(0.01)
    assert [len(gpu.requests) for gpu in gpus] == [2, 2, 2]
    assert trio.current_time() < 2.5


async def test_a_better_one_is_waited_for_until_it_is_full(autojump_clock):
    good, worse = (fake(name, "x", script=Reply(name, first=1)) for name in ("good", "worse"))
    router = Router([Place(good, 0, most=1, queue=1), Place(worse, 1, most=1, queue=1)])
    answers, refused = [], []

    async def buy():
        try:
            answers.append((await router.complete(ask("x"))).text)
        except BackendBusy as error:
            refused.append(error.message)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(buy)
            await trio.sleep(0.01)
    assert sorted(answers) == ["good", "good", "worse", "worse"]
    assert refused == ["good is busy: 1 answers under way, 1 requests waiting"]


async def test_too_busy_to_say_anything_is_not_dead(autojump_clock):
    class Deaf(ScriptedBackend):
        """One thread: while it answers, it says nothing of itself."""

        async def health(self):
            if self.active:
                await trio.sleep_forever()
            return await super().health()

    deaf = Deaf(Reply(" ".join("word" for _ in range(100)), pace=1), name="deaf", models=("x",))
    router = Router([deaf])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.complete, ask("x"), Deadlines(total=1_000))
        await trio.sleep(50)
        assert deaf.active == 1
        assert [model.id for model in await router.models(healthy=True)] == ["x"]
        assert (await router.health()).ok
        standing = (await router.standings())[0]
        assert (standing.active, standing.health.ok) == (1, True)


async def test_standings_wait_for_nobody(autojump_clock):
    hole = BlackHole("x", name="hole", models=("x",))
    router = Router([hole, Place(fake("hidden", up=False), expected=False), fake("b", "y")])
    began = trio.current_time()
    standings = await router.standings()
    assert trio.current_time() - began <= 1
    assert [(s.name, s.health.ok) for s in standings] == [("hole", False), ("b", True)]
    assert "hidden" in [s.name for s in await router.standings(everyone=True)]


async def test_those_that_may_still_come_up_are_not_healthy():
    router = Router([Starting("x", name="starting", models=("x",)), fake("b", "y")])
    assert [model.id for model in await router.models()] == ["x", "y"]
    assert [model.id for model in await router.models(healthy=True)] == ["y"]


@given(st.data())
def test_whoever_is_asked_has_the_model_and_comes_first(data):
    """Whatever is up, has what, and is preferred: the route is the first in order that can serve."""
    names = st.sampled_from(["x", "y", "z"])
    kinds = data.draw(st.lists(st.tuples(st.integers(0, 3), st.lists(names, unique=True), st.booleans()), max_size=5))
    model = data.draw(st.sampled_from(["", "x", "y", "q"]))
    default = data.draw(st.sampled_from(["", "z"]))
    places = [Place(fake(f"b{i}", *models, up=up), rank) for i, (rank, models, up) in enumerate(kinds)]
    router = Router(places, default_model=default)
    wanted = model or default
    order = sorted(range(len(kinds)), key=lambda i: kinds[i][0])
    able = [i for i in order if kinds[i][2] and wanted and wanted in kinds[i][1]]
    other = [i for i in order if kinds[i][2] and kinds[i][1]]

    async def main():
        if not (able or other):
            with pytest.raises(BackendUnavailable):
                await router.resolve(model)
            return
        expected = (able or other)[0]
        route = await router.resolve(model)
        assert route.backend.name == f"b{expected}"
        assert route.model == (wanted if able else kinds[expected][1][0])
        assert route.substituted is bool(wanted and not able)
        assert (await router.complete(ask(model))).text == f"I am b{expected}"

    trio.run(main)


async def test_what_strangers_ask_for_is_not_remembered_for_ever(caplog):
    router = Router([fake("a", "x")])
    for number in range(1_000):
        await router.resolve(f"model-{number}")
    assert len(router.substitutions) == 100
    assert "model-999" in router.substitutions


def test_slots():
    assert Router([Place(fake("a"), most=3), Place(fake("b"), most=1), fake("c")]).slots == 5
    assert Router([]).slots == 0


@st.composite
def replies(draw):
    """What a backend may do with one request."""
    kind = draw(st.sampled_from(["good", "good", "down", "busy", "hang", "half", "empty"]))
    return {
        "good": Reply("all of it", first=draw(st.integers(0, 3)), pace=1),
        "down": Reply("", error=DOWN),
        "busy": Reply("", error=BackendBusy("full")),
        "hang": HANG,
        "half": Reply("all of it", error=DOWN, fail_after=1),
        "empty": EMPTY,
    }[kind]


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(st.tuples(st.integers(1, 2), st.lists(replies(), min_size=1, max_size=8)), min_size=1, max_size=3),
    starts=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    good=st.booleans(),
)
def test_whatever_goes_wrong(scripts, starts, good):
    """Every request ends: in one whole answer of one backend, or in an error; and with a good backend in an answer.

    No backend is ever asked for more than it takes at a time, and none while it is left alone.
    """

    class Watched(ScriptedBackend):
        peak = 0

        def stream(self, request, deadlines=DEFAULT_DEADLINES):
            self.peak = max(self.peak, self.active + 1)
            return super().stream(request, deadlines)

    def script(lines):
        left = list(lines)
        return lambda request: left.pop(0) if left else Reply("all of it")

    flaky = [
        (Watched(script(lines), name=f"b{index}", models=("x",)), most) for index, (most, lines) in enumerate(scripts)
    ]
    places = [Place(backend, rank, most) for rank, (backend, most) in enumerate(flaky)]
    if good:
        places.append(Place(ScriptedBackend("all of it", name="good", models=("x",)), 99))
    router, ended = Router(places), []

    async def buy(start):
        await trio.sleep(start)
        heard = []
        try:
            async with router.stream(ask("x"), Deadlines(first_token=5, between_tokens=5)) as chunks:
                async for chunk in chunks:
                    heard.append(chunk.text)  # noqa: PERF401 - what was heard before the error counts
        except InferenceError as error:
            ended.append(("".join(heard), error))
        else:
            ended.append(("".join(heard), None))

    async def main():
        async with trio.open_nursery() as nursery:
            for start in starts:
                nursery.start_soon(buy, start)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(ended) == len(starts)
    for text, error in ended:
        assert text in (("all of it", "") if error is None else ("", "all"))
        assert not (good and error is not None and text == ""), "somebody could have answered"
    for backend, most in flaky:
        assert backend.peak <= most
        assert backend.active == 0
