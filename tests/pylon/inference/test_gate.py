"""The door of a backend: places, the queue, and the breaker behind it."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.errors import BackendBusy, BackendTimeout, BackendUnavailable, InferenceError
from pylon.inference.breaker import FAILURES, FIRST_WAIT, State
from pylon.inference.gate import Gate


async def fail(gate, error=None):
    with pytest.raises(InferenceError):
        async with gate.entered():
            raise error or BackendUnavailable("down")


async def stay(gate, seconds, log, name, *, task_status=trio.TASK_STATUS_IGNORED):
    task_status.started()
    try:
        async with gate.entered():
            log.append(name)
            await trio.sleep(seconds)
    except BackendBusy:
        log.append(f"{name} refused")


async def test_no_more_than_may_be_inside_and_in_order(autojump_clock):
    gate, log = Gate("b", most=2, queue=10), []
    async with trio.open_nursery() as nursery:
        for number in range(6):
            await nursery.start(stay, gate, 1, log, number)
            await trio.sleep(0.01)
        assert (gate.active, gate.waiting, log) == (2, 4, [0, 1])
    assert log == list(range(6))
    assert (gate.active, gate.waiting) == (0, 0)
    assert trio.current_time() < 3.2


async def test_a_full_queue_refuses_and_does_not_grow(autojump_clock):
    gate, log = Gate("b", most=1, queue=2), []
    async with trio.open_nursery() as nursery:
        for number in range(10):
            await nursery.start(stay, gate, 1, log, number)
            await trio.sleep(0.01)
        assert (gate.active, gate.waiting) == (1, 2)
        assert log == [0, *(f"{number} refused" for number in range(3, 10))]
        assert gate.breaker.state is State.CLOSED, "busy is not broken"


async def test_whoever_leaves_the_queue_leaves_it(autojump_clock):
    gate, log = Gate("b", most=1, queue=5), []
    async with trio.open_nursery() as nursery:
        await nursery.start(stay, gate, 10, log, "inside")
        await trio.sleep(0.01)
        with trio.move_on_after(1):
            await stay(gate, 1, log, "impatient")
        await nursery.start(stay, gate, 1, log, "next")
    assert log == ["inside", "next"]
    assert (gate.active, gate.waiting) == (0, 0)


async def test_a_turn_that_comes_while_its_owner_goes_is_passed_on(autojump_clock):
    gate, log = Gate("b", most=1, queue=5), []
    async with trio.open_nursery() as nursery:
        await nursery.start(stay, gate, 5, log, "inside")
        await trio.sleep(0.01)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                await waiting.start(stay, gate, 1, log, "going")
                await trio.testing.wait_all_tasks_blocked()
                gate._waiting[0].set()  # the turn, and at once the end
                gate._waiting.popleft()
                gate.active += 1
                scope.cancel()
    assert (gate.active, gate.waiting) == (0, 0)


async def test_the_breaker_opens_and_a_probe_closes_it(autojump_clock, caplog):
    gate = Gate("b")
    for _ in range(FAILURES):
        assert gate.is_open
        await fail(gate)
    assert not gate.is_open
    assert caplog.text.count("left alone") == 1
    with pytest.raises(BackendUnavailable, match="left alone for a while: it failed 3 times"):
        async with gate.entered():
            raise AssertionError("nobody gets in")
    await trio.sleep(FIRST_WAIT)
    async with gate.entered():
        assert not gate.is_open, "one probe, and nobody else"
        assert "being tried again" in gate.why()
    assert (gate.is_open, gate.why()) == (True, "")


@pytest.mark.parametrize("error", [BackendBusy("full"), InferenceError("the prompt is too long")])
async def test_what_is_not_its_fault_does_not_open_it(error):
    gate = Gate("b")
    for _ in range(2 * FAILURES):
        await fail(gate, error)
    assert gate.is_open


async def test_silence_is_its_fault():
    gate = Gate("b")
    for _ in range(FAILURES):
        await fail(gate, BackendTimeout("deadline first_token"))
    assert not gate.is_open


async def test_a_probe_whose_customer_leaves_proves_nothing(autojump_clock):
    gate = Gate("b")
    for _ in range(FAILURES):
        await fail(gate)
    await trio.sleep(FIRST_WAIT)
    with trio.move_on_after(1):
        async with gate.entered():
            await trio.sleep_forever()
    assert gate.is_open
    assert gate.breaker.state is State.OPEN


async def test_who_waited_while_it_opened_is_not_let_in(autojump_clock):
    gate = Gate("b", most=1)
    for _ in range(FAILURES - 1):
        await fail(gate)
    entered = []

    async def waiter():
        with pytest.raises(BackendUnavailable):
            async with gate.entered():
                entered.append(1)

    async with trio.open_nursery() as nursery:
        with suppress(BackendUnavailable):
            async with gate.entered():
                nursery.start_soon(waiter)
                await trio.sleep(1)
                raise BackendUnavailable("the last straw")
    assert entered == []
    assert not gate.is_open
    assert (gate.active, gate.waiting) == (0, 0)


async def test_signs_of_life(autojump_clock):
    gate = Gate("b")
    gate.sign()
    assert not gate.is_answering, "nothing is under way"
    async with gate.entered():
        gate.sign()
        assert gate.is_answering
        await trio.sleep(31)
        assert not gate.is_answering


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 3),
    queue=st.integers(0, 3),
    visits=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 5), st.sampled_from(["stays", "leaves", "fails"])), max_size=12
    ),
)
def test_never_more_inside_or_waiting_than_allowed(most, queue, visits):
    gate, inside, seen = Gate("b", most=most, queue=queue), [], []

    async def visit(start, seconds, how):
        await trio.sleep(start)
        with trio.move_on_after(seconds * 0.7 if how == "leaves" else 1_000):
            try:
                async with gate.entered():
                    inside.append(1)
                    try:
                        seen.append((len(inside), gate.waiting))
                        await trio.sleep(seconds)
                        if how == "fails":
                            raise BackendUnavailable("down")
                    finally:
                        inside.pop()
            except InferenceError:
                pass

    async def main():
        async with trio.open_nursery() as nursery:
            for arguments in visits:
                nursery.start_soon(visit, *arguments)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert all(count <= most and waiting <= queue for count, waiting in seen)
    assert (gate.active, gate.waiting, inside) == (0, 0, [])


def test_load_compares_equals():
    one, two = Gate("a", most=1), Gate("b", most=4)
    one.active, two.active = 1, 2
    assert two.load < one.load
    assert Gate("c").load == 0
