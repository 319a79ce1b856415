"""The bridge to asyncio: results, exceptions, cancellation both ways, events, an end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest
import trio
import trio.testing

from pylon.wallets.bridge import AsyncioBridge, InlineBridge


@pytest.fixture
def bridge():
    made = AsyncioBridge()
    yield made
    made.stop()
    assert not made._thread.is_alive()


async def add(one: int, other: int) -> int:
    await asyncio.sleep(0)
    return one + other


async def test_results_come_back(bridge):
    assert await bridge.run(add, 20, 22) == 42
    assert await bridge.outlast(add, 20, 22) == 42


async def test_it_runs_in_one_other_thread_with_one_loop(bridge):
    async def where():
        return threading.current_thread(), asyncio.get_running_loop()

    first, second = await bridge.run(where), await bridge.outlast(where)
    assert first == second
    assert first[0] is not threading.current_thread()


@pytest.mark.parametrize("how", ["run", "outlast"])
async def test_exceptions_come_back(bridge, how):
    async def fail():
        await asyncio.sleep(0.01)
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await getattr(bridge, how)(fail)


async def test_what_is_no_coroutine_function_raises_too(bridge):
    def fail():
        raise LookupError("at once")

    with pytest.raises(LookupError):
        await bridge.run(fail)


async def test_three_hundred_at_once(bridge):
    got = set()

    async def slow(number):
        await asyncio.sleep(0.05)
        return number

    async def one(number):
        got.add(await bridge.run(slow, number))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    assert got == set(range(300))
    assert time.perf_counter() - began < 5


async def test_a_deadline_cancels_and_waits_for_the_other_side(bridge):
    unwound = []

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            unwound.append(True)

    began = time.perf_counter()
    with trio.move_on_after(0.2) as scope:
        await bridge.run(slow)
    assert scope.cancelled_caught
    assert unwound == [True]
    assert 0.25 < time.perf_counter() - began < 5


async def test_what_finishes_in_spite_of_the_cancellation_is_returned(bridge):
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"

    with trio.move_on_after(0.1) as scope:
        assert await bridge.run(stubborn) == "done all the same"
    assert not scope.cancelled_caught


async def test_a_cancelled_caller_calls_nothing(bridge):
    called = []

    async def call():
        called.append(True)

    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.run(call)
    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.outlast(call)
    assert called == []


async def test_a_call_cancelled_at_once_never_hangs(bridge):
    async def slow():
        await asyncio.sleep(60)

    for _ in range(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, slow)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_cancelled_on_its_own_side_is_an_error_and_no_cancellation_of_ours(bridge):
    async def gives_up():
        raise asyncio.CancelledError

    with pytest.raises(concurrent.futures.CancelledError):
        await bridge.run(gives_up)


async def test_what_outlasts_its_caller_goes_on(bridge):
    done = threading.Event()

    async def slow():
        await asyncio.sleep(0.3)
        done.set()

    with trio.move_on_after(0.05) as scope:
        await bridge.outlast(slow)
    assert scope.cancelled_caught
    assert not done.is_set()
    assert await trio.to_thread.run_sync(done.wait, 5)


async def test_the_end_waits_for_what_was_left_behind(bridge):
    async def slow():
        await asyncio.sleep(0.3)

    with trio.move_on_after(0.05):
        await bridge.outlast(slow)
    assert bridge._calls
    began = time.perf_counter()
    await trio.to_thread.run_sync(bridge.drain)
    assert not bridge._calls
    assert 0.1 < time.perf_counter() - began < 5
    with trio.move_on_after(0.05):
        await bridge.outlast(asyncio.sleep, 60)
    await trio.to_thread.run_sync(bridge.drain, 0.1)
    assert bridge._calls, "not for ever"


async def test_events_come_in_order(bridge):
    heard, last, post = [], trio.Event(), bridge.poster()

    async def tell():
        for number in range(100):
            post(heard.append, number)
        post(last.set)

    await bridge.run(tell)
    with trio.fail_after(5):
        await last.wait()
    assert heard == list(range(100))


def test_events_after_the_run_are_dropped(bridge):
    kept = []

    async def main():
        kept.append(bridge.poster())

    trio.run(main)
    kept[0](print, "nobody hears")


def test_several_trio_runs_share_one_loop(monkeypatch):
    # Libraries may have seen the loop of the real one already.
    monkeypatch.setattr(AsyncioBridge, "_shared", None)

    async def loop():
        return asyncio.get_running_loop()

    async def main():
        return await AsyncioBridge.shared().run(loop)

    first = trio.run(main)
    assert trio.run(main) is first
    AsyncioBridge.shared().stop()
    assert trio.run(main) is not first, "one that was stopped is replaced"
    AsyncioBridge.shared().stop()


async def test_stopping_cancels_what_runs_and_says_so_afterwards():
    made = AsyncioBridge()

    async def slow():
        await asyncio.sleep(60)

    async def wait():
        with pytest.raises(concurrent.futures.CancelledError):
            await made.run(slow)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(made.stop)
    with pytest.raises(RuntimeError, match="stopped"):
        await made.run(add, 1, 1)
    made.stop()


async def test_inline_is_the_same_without_a_thread(autojump_clock):
    bridge, done = InlineBridge(), []

    async def slow(value):
        await trio.sleep(10)
        done.append(value)
        if isinstance(value, Exception):
            raise value
        return value

    assert await bridge.run(slow, 1) == 1
    assert await bridge.outlast(slow, 2) == 2
    with pytest.raises(LookupError):
        await bridge.outlast(slow, LookupError())
    done.clear()
    with trio.move_on_after(5) as scope:
        await bridge.run(slow, 3)
    await trio.sleep(20)
    assert scope.cancelled_caught
    assert done == []
    with trio.move_on_after(5) as scope:
        await bridge.outlast(slow, 4)
    await trio.sleep(20)
    assert scope.cancelled_caught
    assert done == [4]
