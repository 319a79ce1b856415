"""Whose turn it is: nobody waits for another's hundred jobs, and no room is lost or given twice."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from pylon.provider.turns import Turns

JOBS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.booleans(), st.sampled_from([("x",), ("y",), ("x", "y")]), st.floats(0, 5)),
    min_size=1,
    max_size=40,
)


def run(main, *args):
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(main, *args, clock=clock)


@settings(max_examples=60)
@given(JOBS, st.integers(1, 3), st.integers(0, 2**32))
def test_room_is_neither_lost_nor_given_twice(jobs, room, seed):
    """Whoever comes, goes, is cancelled or changes where it could be done."""
    rng = random.Random(seed)
    inside = {"x": 0, "y": 0}
    done = []

    async def one(turns, customer, first, able, length):
        await trio.sleep(rng.random() * 5)
        ticket = turns.enter(customer, first=first)
        with trio.move_on_after(rng.choice([rng.random() * 3, 1_000])):
            try:
                while (key := await turns.wait(ticket, able, 2.0)) is None:
                    if rng.random() < 0.3:
                        able = rng.choice([("x",), ("y",), ("x", "y")])
                assert key in able
                inside[key] += 1
                assert inside[key] <= room
                try:
                    await trio.sleep(length)
                finally:
                    inside[key] -= 1
                done.append(customer)
            finally:
                turns.leave(ticket)
                turns.leave(ticket)

    async def main():
        turns = Turns({"x": room, "y": room})
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(one, turns, *job)
        assert turns._free == {"x": room, "y": room}
        assert turns.waiting == 0
        assert all(turns._head(lane) is None for lane in list(turns._lanes))

    run(main)
    assert done or jobs


async def begun_in_order(arrivals, able=("x",), room=1):
    """In which order they begin: ``arrivals`` (customer, and whether it is paid) are all there before a turn ends."""
    turns = Turns({"x": room, "y": room})
    order = []

    async def one(customer, first, *, task_status=trio.TASK_STATUS_IGNORED):
        ticket = turns.enter(customer, first=first)
        task_status.started()
        while await turns.wait(ticket, able, 5.0) is None:
            pass
        order.append(customer)
        await trio.sleep(1)
        turns.leave(ticket)

    async with trio.open_nursery() as nursery:
        for customer, first in arrivals:
            await nursery.start(one, customer, first)
    return order


async def test_a_hundred_jobs_of_one_do_not_keep_another_waiting(autojump_clock):
    order = await begun_in_order([("many", True)] * 100 + [("few", True)] * 3)
    assert order[:8].count("few") == 3
    assert len(order) == 103


async def test_customers_take_turns(autojump_clock):
    order = await begun_in_order([("a", True)] * 4 + [("b", True)] * 4 + [("c", True)] * 4)
    assert order[0] == "a", "who was there first"
    for end in range(3, 13):
        assert max(map(order[:end].count, "abc")) - min(map(order[:end].count, "abc")) <= 2


async def test_free_work_waits_for_all_paid_work(autojump_clock):
    order = await begun_in_order([("first", True)] + [("guest", False)] * 5 + [("payer", True)] * 5)
    assert order == ["first"] + ["payer"] * 5 + ["guest"] * 5


async def test_an_idle_backend_takes_what_waits_for_any(autojump_clock):
    began = trio.current_time()
    await begun_in_order([("a", True)] * 10, able=("x", "y"), room=1)
    assert trio.current_time() - began == pytest.approx(5)


async def test_tags_of_those_who_are_gone_are_not_kept(autojump_clock):
    turns = Turns({"x": 1})
    for number in range(5_000):
        ticket = turns.enter(f"{number}", first=True)
        await turns.wait(ticket, ("x",), 1)
        turns.leave(ticket)
    assert len(turns._tags) <= 1_025
