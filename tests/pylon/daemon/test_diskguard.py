"""Nothing is sold while nothing can be written down; and it is sold again without anybody's help."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from pylon.clock import VirtualClock
from pylon.daemon.diskguard import ENOUGH_BYTES, LOW_BYTES, DiskGuard, free_bytes
from pylon.errors import StoreError
from pylon.supervision import ChildSpec, ChildState, Policy, Supervisor


class FakeStore:
    """Takes writes, or raises."""

    def __init__(self):
        self.writes = 0
        self.failures = 0
        self.probes = 0
        self.error = None
        self.damaged = None

    async def write(self, fn):
        await trio.lowlevel.checkpoint()
        self.probes += 1
        if self.error is not None:
            raise self.error
        self.writes += 1


class Shop:
    def __init__(self):
        self.calls = []

    async def open(self):
        self.calls.append("open")

    async def close(self):
        self.calls.append("close")


class Disk:
    free = 1 << 40

    def __call__(self, directory):
        if isinstance(self.free, OSError):
            raise self.free
        return self.free


@asynccontextmanager
async def guarded(tmp_path):
    shop, store, disk = Shop(), FakeStore(), Disk()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery, rng=random.Random(1), policy=Policy(intensity=0))
        told = []
        guard = DiskGuard(
            store,
            tmp_path,
            VirtualClock(),
            supervisor,
            close=shop.close,
            open=shop.open,
            free=disk,
            publish=lambda event: told.append(event.kind),
        )
        yield guard, shop, store, disk, supervisor
        nursery.cancel_scope.cancel()
    assert told == [{"close": "disk.trouble", "open": "disk.well"}[call] for call in shop.calls]


async def test_a_disk_that_gets_full_and_empty_again(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, shop, _, disk, _):
        await guard.look()
        assert (guard.reason, shop.calls) == ("", [])
        disk.free = LOW_BYTES - 1
        for _ in range(3):
            await guard.look()
        assert str(tmp_path) in guard.reason
        assert "31 MiB left" in guard.reason
        disk.free = ENOUGH_BYTES - 1
        await guard.look()
        assert shop.calls == ["close"], "it does not flap at the edge"
        disk.free = ENOUGH_BYTES
        for _ in range(3):
            await guard.look()
        assert (guard.reason, shop.calls) == ("", ["close", "open"])


@pytest.mark.parametrize("word", ["read-only", "full", "damaged"])
async def test_a_database_that_takes_no_writes(tmp_path, autojump_clock, word):
    async with guarded(tmp_path) as (guard, shop, store, _, _):
        store.error = StoreError(f"pylon.db: the database is {word}")
        await guard.look()
        assert (guard.reason, shop.calls) == (store.error.message, ["close"])
        store.error = None
        await guard.look()
        assert (guard.reason, shop.calls) == ("", ["close", "open"])


async def test_a_disk_that_does_not_answer(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, shop, _, disk, _):
        disk.free = OSError(5, "Input/output error")
        await guard.look()
        assert "Input/output error" in guard.reason
        assert shop.calls == ["close"]


async def test_a_database_that_is_written_to_anyway_is_not_asked(tmp_path, autojump_clock):
    """One write a minute when nothing else happens, and none when something does."""
    async with guarded(tmp_path) as (guard, _, store, _, _):
        for _ in range(60):
            await guard.look()
            await trio.sleep(5)
        assert 4 <= store.probes <= 6
        store.probes = 0
        for _ in range(60):
            store.writes += 1
            await guard.look()
            await trio.sleep(5)
        assert store.probes == 0


async def test_a_write_of_others_that_failed_makes_it_ask_at_once(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, _, store, _, _):
        await guard.look()
        await guard.look()
        assert store.probes == 1
        store.failures += 1
        await guard.look()
        await guard.look()
        assert (store.probes, guard.reason) == (2, "")


async def test_trouble_makes_it_ask_at_once(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, shop, store, _, supervisor):
        await guard.look()
        store.error = StoreError("full")
        await guard.look()
        assert guard.reason == ""

        async def broken():
            raise StoreError("full")

        supervisor.start(ChildSpec("buyer", broken))
        await trio.testing.wait_all_tasks_blocked()
        await guard.look()
        assert (guard.reason, shop.calls) == ("full", ["close"])


async def test_what_was_quarantined_meanwhile_starts_again_and_nothing_else(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, _, store, _, supervisor):
        starts = []

        async def child(name):
            starts.append(name)
            if store.error is not None or name == "old":
                raise StoreError("full")
            await trio.sleep_forever()

        supervisor.start(ChildSpec("old", lambda: child("old")))
        await trio.testing.wait_all_tasks_blocked()
        store.error = StoreError("full")
        await guard.look()
        supervisor.start(ChildSpec("new", lambda: child("new")))
        await trio.testing.wait_all_tasks_blocked()
        assert [each.state for each in supervisor.statuses()] == [ChildState.QUARANTINED] * 2
        store.error = None
        await guard.look()
        await trio.testing.wait_all_tasks_blocked()
        assert starts == ["old", "new", "new"]
        assert [each.state for each in supervisor.statuses()] == [ChildState.QUARANTINED, ChildState.RUNNING]


def test_what_is_free(tmp_path):
    assert free_bytes(tmp_path) > 0
    with pytest.raises(OSError):
        free_bytes(tmp_path / "nowhere")


async def test_a_damaged_database_closes_at_once_and_for_good(tmp_path, autojump_clock):
    async with guarded(tmp_path) as (guard, shop, store, _, _):
        await guard.look()
        store.damaged = StoreError("pylon.db: the database is damaged", "pylon restore")
        await guard.look()
        assert guard.reason == "pylon.db: the database is damaged"
        assert shop.calls == ["close"]
        await guard.look()
        assert shop.calls == ["close"]
