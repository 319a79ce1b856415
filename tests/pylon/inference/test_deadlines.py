"""The shared wrapper: which deadline cuts when, and that a block that is left stops its generation."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import BackendTimeout, BackendUnavailable, InferenceError, ModelMissing
from pylon.inference.deadlines import enforce
from pylon.inference.port import Chunk, Deadlines, InferenceRequest, Message, Usage
from pylon.testing.backend import EMPTY, HANG, NO_CONNECTION, Reply, ScriptedBackend

REQUEST = InferenceRequest("scripted-1", (Message("user", "say it"),))
DEADLINES = Deadlines(connect=5, first_token=60, between_tokens=30, total=300)


async def take(backend, deadlines=DEADLINES, request=REQUEST):
    """The chunks until the end or the error, and the error."""
    chunks = []
    try:
        async with backend.stream(request, deadlines) as stream:
            async for chunk in stream:
                chunks.append(chunk)  # noqa: PERF401 - an error must not lose those before it
    except InferenceError as error:
        return chunks, error
    return chunks, None


@pytest.mark.parametrize(
    ("reply", "deadline", "seconds", "tokens"),
    [
        (NO_CONNECTION, "connect", 5, 0),
        (HANG, "first_token", 60, 0),
        (Reply("a b", connect=4, first=float("inf")), "first_token", 64, 0),
        (Reply("a b c", hang_after=2), "between_tokens", 30, 2),
        (Reply("a " * 100, first=5, pace=29), "total", 300, 11),
        (Reply("a b", first=59, pace=29), None, 59 + 2 * 29, 2),
    ],
)
async def test_each_deadline_cuts_and_is_named(autojump_clock, reply, deadline, seconds, tokens):
    backend = ScriptedBackend(reply)
    began = trio.current_time()
    chunks, error = await take(backend)
    assert trio.current_time() - began == pytest.approx(seconds)
    assert sum(bool(chunk.text) for chunk in chunks) == tokens
    if deadline is None:
        assert error is None
        return
    assert isinstance(error, BackendTimeout)
    assert f"(deadline {deadline})" in error.message
    assert "scripted-fake" in error.message
    assert error.hint
    assert backend.active == 0


async def test_total_cuts_even_before_the_first_token(autojump_clock):
    _, error = await take(ScriptedBackend(HANG), Deadlines(first_token=60, total=7))
    assert isinstance(error, BackendTimeout)
    assert "(deadline total)" in error.message
    assert trio.current_time() == pytest.approx(7)


async def test_a_slow_reader_does_not_make_the_backend_late(autojump_clock):
    words = []
    async with ScriptedBackend(Reply("a b c", pace=1)).stream(REQUEST, Deadlines(between_tokens=2)) as chunks:
        async for chunk in chunks:
            words.append(chunk.text)
            await trio.sleep(50)
    assert words == ["a", " b", " c", ""]


async def test_but_total_counts_for_everybody(autojump_clock):
    async with ScriptedBackend(Reply("a b c", pace=1)).stream(REQUEST, Deadlines(total=10)) as chunks:
        assert (await anext(chunks)).text == "a"
        await trio.sleep(50)
        with pytest.raises(BackendTimeout, match="deadline total"):
            await anext(chunks)


async def test_leaving_the_block_frees_the_slot(autojump_clock):
    backend = ScriptedBackend(Reply("a b c d", pace=10), slots=1)
    async with backend.stream(REQUEST) as chunks:
        async for _ in chunks:
            assert backend.active == 1
            break
    assert (backend.active, backend.stopped) == (0, 1)
    assert (await backend.complete(REQUEST)).text == "a b c d"


@pytest.mark.parametrize("leave", ["raise", "cancel"])
async def test_however_it_is_left(autojump_clock, leave):
    backend = ScriptedBackend(Reply("a b c d", pace=10), slots=1)
    with trio.CancelScope() as scope:
        try:
            async with backend.stream(REQUEST) as chunks:
                async for _ in chunks:
                    if leave == "raise":
                        raise ValueError("mine")
                    scope.cancel()
        except ValueError as error:
            assert str(error) == "mine"  # noqa: PT017
    assert scope.cancelled_caught == (leave == "cancel")
    assert (backend.active, backend.stopped) == (0, 1)


async def test_a_generation_that_will_not_stop_cannot_keep_us(autojump_clock):
    async def stubborn(accepted):
        try:
            yield Chunk("a")
            yield Chunk("b")
        finally:
            await trio.sleep_forever()

    async with enforce("stubborn", DEADLINES, stubborn) as chunks:
        async for _ in chunks:
            break
    assert trio.current_time() < 10


async def test_the_block_may_hold_a_nursery_across_chunks(autojump_clock):
    seen = []

    async def note(text):
        await trio.sleep(1)
        seen.append(text)

    async with ScriptedBackend(Reply("a b", pace=3)).stream(REQUEST) as chunks, trio.open_nursery() as nursery:
        async for chunk in chunks:
            nursery.start_soon(note, chunk.text)
    assert seen == ["a", " b", ""]


async def test_waiting_for_a_slot_is_waiting_for_the_first_token(autojump_clock):
    backend = ScriptedBackend(Reply("a b", first=20), slots=1)
    results = []

    async def ask(first_token):
        results.append((await take(backend, Deadlines(connect=1, first_token=first_token)))[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 25)
        await trio.sleep(1)
        nursery.start_soon(ask, 10)
    error, served = results
    assert isinstance(error, BackendTimeout)
    assert "first_token" in error.message
    assert served is None


@given(
    st.lists(st.text("ab \n", max_size=6), max_size=4).map("".join),
    st.integers(1, 8),
)
async def test_a_reply_arrives_whole_and_ends_with_its_reason(text, max_tokens):
    words = len(text.split()) + (text != "" and (text[-1] in " \n"))
    backend = ScriptedBackend(Reply(text))
    request = InferenceRequest("scripted-1", (Message("user", "x y"),), max_tokens=max_tokens)
    chunks, error = await take(backend, request=request)
    assert error is None
    *said, last = chunks
    assert all(chunk.finish_reason is None for chunk in said)
    assert last.finish_reason == ("length" if words > max_tokens else "stop")
    assert last.usage == Usage(2, len(said))
    joined = "".join(chunk.text for chunk in said)
    assert joined == text if words <= max_tokens else text.startswith(joined)


class TestScript:
    async def test_it_says_that_it_is_a_fake(self, caplog):
        backend = ScriptedBackend("x")
        assert "FAKE" in caplog.text
        assert "fake" in backend.name
        assert "FAKE" in (await backend.health()).detail

    async def test_answers_in_order_then_an_error(self):
        backend = ScriptedBackend(["one", Reply("two"), EMPTY])
        texts = [(await backend.complete(REQUEST)).text for _ in range(3)]
        assert texts == ["one", "two", ""]
        with pytest.raises(InferenceError, match="at its end"):
            await backend.complete(REQUEST)

    async def test_a_function_of_the_request(self):
        backend = ScriptedBackend(lambda request: request.messages[-1].content.upper())
        assert (await backend.complete(REQUEST)).text == "SAY IT"
        assert backend.requests == [REQUEST]

    async def test_failures(self):
        chunks, error = await take(ScriptedBackend(Reply("a b c", error=BackendUnavailable("gone"), fail_after=2)))
        assert [chunk.text for chunk in chunks] == ["a", " b"]
        assert isinstance(error, BackendUnavailable)

    async def test_down_and_missing(self):
        backend = ScriptedBackend("x")
        with pytest.raises(ModelMissing):
            await backend.complete(InferenceRequest("other", ()))
        backend.up = False
        assert not (await backend.health()).ok
        with pytest.raises(BackendUnavailable):
            await backend.models()
        with pytest.raises(BackendUnavailable):
            await backend.complete(REQUEST)


async def test_a_backend_that_says_it_is_busy_has_its_first_token_waited_for(autojump_clock):
    async def loading(accepted):
        accepted()
        for _ in range(4):
            await trio.sleep(50)
            accepted(busy=True)
        await trio.sleep(59)
        yield Chunk("ready", "stop")

    async with enforce("b", DEADLINES, loading) as chunks:
        assert [chunk.text async for chunk in chunks] == ["ready"]
    assert trio.current_time() == pytest.approx(259)


async def test_after_the_first_token_being_busy_is_no_excuse(autojump_clock):
    async def stalling(accepted):
        accepted()
        yield Chunk("one")
        while True:
            await trio.sleep(20)
            accepted(busy=True)

    async def listen():
        async with enforce("b", DEADLINES, stalling) as chunks:
            async for _ in chunks:
                pass

    with pytest.raises(BackendTimeout, match="deadline between_tokens"):
        await listen()
    assert trio.current_time() == pytest.approx(30)
