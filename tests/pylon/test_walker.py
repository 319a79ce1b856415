"""The walker: one record through its machine, effect after effect, resumable at any await."""

from __future__ import annotations

import itertools
import random
from contextlib import asynccontextmanager

import pytest
import trio

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from pylon import crashpoints
from pylon.clock import VirtualClock
from pylon.host import ticking
from pylon.host.tick import tick_records
from pylon.host.ticking import TickEffect, TickRecord, TickState
from pylon.money import Msat
from pylon.store import outbox
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.walker import TRIES, Walker

KEY = SecretKey(bytes(31) + b"\x01")
RECORD = TickRecord("ab:1", "ab" * 32, 1, 1.0, "heartbeat", triggers=("t",))


class Stage:
    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self.done, self.booked = [], []
        self.think, self.act = self.thought, self.acted
        self.walker = Walker(
            tick_records(store),
            store,
            clock,
            random.Random(1),
            handlers={
                TickEffect.THINK: lambda tick: self.think(tick),
                TickEffect.ACT: lambda tick: self.act(tick),
            },
            compose=lambda tx, tick, effect: [
                sign_event(KEY, kind=1, content=f"{effect} {part}", created_at=1) for part in range(2)
            ],
            book=lambda tx, step: self.booked.append((step.before.state, step.after.state)),
            give_up=lambda tick, error: ticking.Failed(type(error).__name__),
            relays=lambda tick: ["ws://a"],
        )

    async def thought(self, tick):
        self.done.append("think")
        await trio.sleep(1)
        return ticking.Thought(None, "hm", ())

    async def acted(self, tick):
        self.done.append("act")
        return ticking.Acted(1, 0, 0, Msat(5), 2.0)

    def stored(self):
        return self.walker.records.load(self.store, RECORD.id)


@asynccontextmanager
async def staged(tmp_path):
    clock = VirtualClock()
    vault = Vault(bytes(32))
    async with open_store(tmp_path / "w.db", vault=vault, clock=clock, executor="inline", durable=False) as store:
        yield Stage(store, clock)


async def test_it_walks_to_the_end_and_tells_of_each_step_in_its_transaction(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        begun = await stage.walker.begin(RECORD, ticking.Begun())
        assert outbox.pending_count(stage.store) == 2, "the claim, as it begins"
        ended = await stage.walker.walk(begun)
        assert (ended.state, stage.done) == (TickState.DONE, ["think", "act"])
        assert stage.stored() == ended
        assert [after for _, after in stage.booked] == [TickState.THINKING, TickState.ACTING, TickState.DONE]
        rows = stage.store.read("SELECT effect, subject FROM outbox ORDER BY id")
        told = [row["effect"] for row in rows]
        assert told == [
            f"tick.{e}"
            for e in ("publish_claim", "publish_state", "publish_trajectory", "publish_result")
            for _ in range(2)
        ]
        assert {row["subject"] for row in rows} == {RECORD.id}


async def test_who_may_not_begin_leaves_nothing(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        assert await stage.walker.begin(RECORD, ticking.Begun(), lambda tx: False) is None
        assert stage.stored() is None
        assert not stage.booked


async def test_a_walk_that_was_cancelled_is_taken_up_again(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        begun = await stage.walker.begin(RECORD, ticking.Begun())
        with trio.move_on_after(0.5):
            await stage.walker.walk(begun)
        assert stage.stored().state is TickState.THINKING
        ended = await stage.walker.walk(stage.stored())
        assert (ended.state, stage.done) == (TickState.DONE, ["think", "think", "act"])


async def test_what_fails_is_tried_again_and_given_up_in_the_end(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        tries = []

        async def broken(tick):
            tries.append(trio.current_time())
            raise OSError("the disk is gone")

        stage.think = broken
        ended = await stage.walker.walk(await stage.walker.begin(RECORD, ticking.Begun()))
        assert (ended.state, ended.reason, len(tries)) == (TickState.FAILED, "OSError", TRIES)
        waits = [later - sooner for sooner, later in itertools.pairwise(tries)]
        assert waits == sorted(waits)


async def test_somebody_else_has_moved_it_meanwhile(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        begun = await stage.walker.begin(RECORD, ticking.Begun())

        async def overtaken(tick):
            await stage.store.write(
                lambda tx: stage.walker.records.step(tx, RECORD.id, ticking.Failed("elsewhere"), 1.0)
            )
            return ticking.Thought(None, "late", ())

        stage.think = overtaken
        ended = await stage.walker.walk(begun)
        assert (ended.state, ended.reason, stage.done) == (TickState.FAILED, "elsewhere", [])


async def test_it_passes_the_crash_points_of_its_effects(autojump_clock, tmp_path):
    passed = []
    crashpoints.install_hook(passed.append)
    try:
        async with staged(tmp_path) as stage:
            await stage.walker.walk(await stage.walker.begin(RECORD, ticking.Begun()))
    finally:
        crashpoints.install_hook(None)
    assert passed == ["tick.think.before", "tick.think.after", "tick.act.before", "tick.act.after"]


async def test_an_outcome_that_means_nothing_is_a_mistake_of_ours(autojump_clock, tmp_path):
    async with staged(tmp_path) as stage:
        begun = await stage.walker.begin(RECORD, ticking.Begun())

        async def nonsense(tick):
            return ticking.Acted(0, 0, 0, Msat(0), 0.0)

        stage.think = nonsense
        with pytest.raises(RuntimeError, match="Acted means nothing to a thinking record"):
            await stage.walker.walk(begun)
