from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import trio

from pylon.daemon.stalls import StallWatch


def compute_for(seconds, secret="a canary"):
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        pass


async def watched(caplog, during):
    caplog.set_level(logging.WARNING)
    told = []
    watch = StallWatch(limit=0.1, every=0.05, publish=told.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await during()
        nursery.cancel_scope.cancel()
    assert [event.kind for event in told] == ["daemon.stall"] * watch.stalls
    assert all(event.seconds >= 0.3 for event in told)
    return watch, [record.getMessage() for record in caplog.records]


async def test_a_loop_that_hangs_is_told_with_its_place_and_no_value(caplog):
    async def hang():
        await trio.sleep(0.1)
        compute_for(0.5)
        await trio.sleep(0.3)

    watch, said = await watched(caplog, hang)
    assert watch.stalls == 1
    first, second = said
    assert "the loop has not turned for" in first
    assert "compute_for" in first
    assert " hang" in first
    assert "canary" not in first
    assert second.startswith("the loop turns again after 0.")


async def test_a_loop_that_turns_is_not_told(caplog):
    async def work():
        for _ in range(20):
            await trio.sleep(0.02)

    watch, said = await watched(caplog, work)
    assert (watch.stalls, said) == (0, [])


def test_a_machine_that_slept_is_no_stall(monkeypatch, caplog):
    times = iter([0.0, 0.0, 10.0, 10.05, 10.1])
    monkeypatch.setattr("pylon.daemon.stalls.time", SimpleNamespace(monotonic=lambda: next(times)))
    watch = StallWatch(limit=0.1, every=0.05)
    waits = iter([False, False, False, True])
    watch._over = SimpleNamespace(wait=lambda seconds: next(waits))
    watch._watch(0)
    assert (watch.stalls, caplog.records) == (0, [])
