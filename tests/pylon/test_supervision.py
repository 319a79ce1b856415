from __future__ import annotations

import functools
import gc
import random
import weakref
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from pylon.supervision import ChildSpec, ChildState, Policy, Supervisor


def virtual(function: Callable, *args):
    """Run in virtual time: sleeping costs nothing."""
    return trio.run(function, *args, clock=MockClock(autojump_threshold=0))


@attrs.define
class Scripted:
    """A child that lives and ends as told: ``(uptime, outcome)``, the last one for ever after."""

    script: list[tuple[float, str]]
    starts: list[float] = attrs.field(factory=list)
    ends: list[float] = attrs.field(factory=list)

    async def run(self) -> None:
        uptime, outcome = self.script[min(len(self.starts), len(self.script) - 1)]
        self.starts.append(trio.current_time())
        try:
            await trio.sleep(uptime)
        finally:
            self.ends.append(trio.current_time())
        if outcome == "raise":
            raise OSError("no luck")
        if outcome == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise)
                nursery.start_soon(trio.sleep_forever)
        if outcome == "leak":
            await _leak_cancelled()


async def _raise() -> None:
    raise ValueError("deep  down\nhere")


async def _leak_cancelled() -> None:
    """What a library with a bug does: a Cancelled that belongs to nobody."""
    caught = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            caught = error
            raise
    assert caught is not None
    raise caught


async def supervised(
    children: dict[str, Scripted], seconds: float, policy: Policy | None = None, seed: int = 0, **kwargs
):
    failures = []
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(
            nursery,
            rng=random.Random(seed),
            policy=policy,
            on_failure=lambda status, error: failures.append((status, error)),
        )
        for name, child in children.items():
            supervisor.start(ChildSpec(name, child.run, **kwargs))
        await trio.sleep(seconds)
        statuses = {status.name: status for status in supervisor.statuses()}
        nursery.cancel_scope.cancel()
    return statuses, failures


STILL = Policy(jitter=0.0)


def test_waits_double_up_to_the_longest():
    child = Scripted([(0, "raise")])
    virtual(supervised, {"a": child}, 300, STILL)
    assert child.starts == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_clean_exits_wait_too():
    child = Scripted([(0, "return")])
    virtual(supervised, {"a": child}, 10, STILL)
    assert child.starts == [0, 1, 3, 7]


def test_the_wait_starts_over_only_after_five_times_the_last_wait():
    # Waits 1, 2, 4; then up for just under 20 s: 8; then up for 40 s: 1 again.
    script = [(0, "raise"), (0, "raise"), (0, "raise"), (19.5, "raise"), (40, "raise"), (500, "raise")]
    child = Scripted(script)
    virtual(supervised, {"a": child}, 200, STILL)
    waits = [start - end for start, end in zip(child.starts[1:], child.ends, strict=False)]
    assert waits == [1, 2, 4, 8, 1]


def test_too_many_restarts_end_in_quarantine_with_the_last_error():
    child = Scripted([(0, "raise")])
    statuses, failures = virtual(supervised, {"a": child}, 100_000, STILL)
    assert statuses["a"].state is ChildState.QUARANTINED
    assert statuses["a"].last_error.startswith("OSError at ")
    assert "no luck" not in statuses["a"].last_error, "words of others may quote a secret"
    assert len(child.starts) == statuses["a"].starts == 1 + STILL.intensity
    assert failures[-1][0].state is ChildState.QUARANTINED
    assert isinstance(failures[-1][1], OSError)


def test_a_child_that_flaps_slowly_is_never_quarantined():
    child = Scripted([(300, "raise")])
    statuses, _ = virtual(supervised, {"a": child}, 100_000)
    assert statuses["a"].state in (ChildState.RUNNING, ChildState.WAITING)
    assert len(child.starts) > 300


def test_siblings_never_notice():
    good = Scripted([(10_000, "return")])
    bad = [Scripted([(0, outcome)]) for outcome in ("raise", "group", "leak", "return")]
    children = {"good": good, **{str(number): child for number, child in enumerate(bad)}}
    statuses, _ = virtual(supervised, children, 5_000)
    assert good.starts == [0]
    assert statuses["good"].state is ChildState.RUNNING
    assert all(statuses[str(number)].state is ChildState.QUARANTINED for number in range(len(bad)))
    assert statuses["1"].last_error.startswith("ValueError at ")
    assert statuses["2"].last_error.startswith("Cancelled")
    assert statuses["3"].last_error is None


def test_a_temporary_child_may_end_but_not_fail():
    child = Scripted([(1, "raise"), (1, "return")])

    async def main():
        return await supervised({"a": child}, 50, STILL, temporary=True)

    statuses, failures = virtual(main)
    assert child.starts == [0, 2]
    assert statuses["a"].state is ChildState.FINISHED
    assert len(failures) == 1


def test_while_waiting_the_status_tells_when():
    statuses, _ = virtual(supervised, {"a": Scripted([(0, "raise")])}, 2, STILL)
    status = statuses["a"]
    assert (status.state, status.retry_at, status.since, status.starts) == (ChildState.WAITING, 3.0, 1.0, 2)


def test_cancellation_passes_even_beside_a_failure():
    async def stubborn():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise RuntimeError("while cleaning up")

    async def main():
        told = []
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(nursery, rng=random.Random(0), on_failure=lambda *failure: told.append(failure))
                supervisor.start(ChildSpec("a", stubborn))
        assert scope.cancelled_caught
        assert told == [], "a shutdown is no failure"

    virtual(main)


def test_a_keyboard_interrupt_passes():
    async def interrupted():
        raise KeyboardInterrupt

    async def main():
        async with trio.open_nursery() as nursery:
            Supervisor(nursery, rng=random.Random(0)).start(ChildSpec("a", interrupted))

    with pytest.raises(BaseExceptionGroup) as caught:
        virtual(main)
    assert caught.group_contains(KeyboardInterrupt)


def test_stop_restart_and_forget():
    async def main():
        bad, good = Scripted([(0, "raise")]), Scripted([(10**9, "return")])
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(nursery, rng=random.Random(0), policy=STILL)
            supervisor.start(ChildSpec("bad", bad.run))
            supervisor.start(ChildSpec("good", good.run))
            with pytest.raises(ValueError, match="good"):
                supervisor.start(ChildSpec("good", good.run))
            await trio.sleep(10_000)
            assert supervisor.statuses()[0].state is ChildState.QUARANTINED
            before = len(bad.starts)
            await supervisor.restart("bad")
            await trio.sleep(0.5)
            assert len(bad.starts) == before + 1
            assert supervisor.statuses()[0].state is ChildState.WAITING
            await supervisor.stop("bad")
            await supervisor.stop("bad")
            await supervisor.stop("nobody")
            supervisor.forget("good")
            assert {s.name: s.state for s in supervisor.statuses()} == {
                "bad": ChildState.STOPPED,
                "good": ChildState.RUNNING,
            }
            supervisor.forget("bad")
            await trio.sleep(1_000)
            assert len(bad.starts) == before + 1
            assert [s.name for s in supervisor.statuses()] == ["good"]
            with pytest.raises(KeyError):
                await supervisor.restart("bad")
            nursery.cancel_scope.cancel()
        assert good.ends == [11_000.5]

    virtual(main)


LONG = 3_000.0625
"""Seconds; no sum of the round numbers below, for Trio wakes tasks of one instant in any order."""

SCRIPTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.9, 4.0, 5.0, 6.0, 59.0, 299.0, 301.0, 5_000.0]) | st.floats(0, 400),
        st.sampled_from(["raise", "return", "group", "leak"]),
    ),
    min_size=1,
    max_size=30,
)
POLICIES = st.builds(
    Policy,
    first_wait=st.sampled_from([0.5, 1.0, 2.0]),
    longest_wait=st.sampled_from([2.0, 60.0]),
    jitter=st.sampled_from([0.0, 0.25]),
    intensity=st.integers(1, 12),
    window=st.sampled_from([10.0, 300.0, 600.0]),
)


@settings(max_examples=60, deadline=None)
@given(script=SCRIPTS, policy=POLICIES, seed=st.integers(0, 100))
def test_no_schedule_of_failures_makes_it_busy_or_spreads(script, policy, seed):
    child, sibling = Scripted(script), Scripted([(10**9, "return")])
    statuses, failures = virtual(supervised, {"child": child, "sibling": sibling}, LONG, policy, seed)
    # Never sooner than the shortest wait, never later than the longest.
    for start, end in zip(child.starts[1:], child.ends, strict=False):
        assert (
            policy.first_wait * (1 - policy.jitter) - 1e-6
            <= start - end
            <= policy.longest_wait * (1 + policy.jitter) + 1e-6
        )
    # Never more restarts in any window than allowed; the bound on all of them follows.
    restarts = child.starts[1:]
    for first, beyond in zip(restarts, restarts[policy.intensity :], strict=False):
        assert beyond - first > policy.window
    assert sibling.starts == [0]
    assert statuses["sibling"].state is ChildState.RUNNING
    quarantined = statuses["child"].state is ChildState.QUARANTINED
    assert quarantined == any(status.state is ChildState.QUARANTINED for status, _ in failures)
    if quarantined:
        assert len(child.starts) == len(child.ends)
    else:
        assert len(child.starts) - len(failures) in (0, 1)
    # The same seed gives the same run.
    again = Scripted(script)
    virtual(supervised, {"child": again, "sibling": Scripted([(10**9, "return")])}, LONG, policy, seed)
    assert again.starts == child.starts


def test_a_child_that_was_stopped_leaves_nothing_for_the_garbage_collector():
    """Ten thousand nurseries must go by their reference counts (``pylon.host.host``)."""

    class Held:
        pass

    async def main() -> bool:
        held = Held()
        gone = weakref.ref(held)

        async def child(held: Held) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(nursery, rng=random.Random(1))
            supervisor.start(ChildSpec("child", functools.partial(child, held)))
            del held
            await trio.sleep(1)
            assert gone() is not None
            assert supervisor.status("child") is not None
            await supervisor.stop("child")
            supervisor.forget("child")
            assert supervisor.status("child") is None
            await trio.sleep(1)
            return gone() is None

    gc.collect()
    gc.disable()
    try:
        assert virtual(main)
    finally:
        gc.enable()
