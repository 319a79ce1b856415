"""The waiting room: turns, ranks and bounds."""

from __future__ import annotations

import hypothesis.strategies as st
import trio
from hypothesis import given

from pylon.provider.waiting import WaitingRoom
from pylon.testing.backend import ScriptedBackend
from pylon.together import AT_ONCE
from tests.pylon.market import open_actor, open_home, until


def room(known=(), most=100):
    return WaitingRoom(lambda customer: customer in known, most)


async def drain(waiting):
    return [await anext(waiting) for _ in range(len(waiting))]


async def test_customers_take_turns():
    waiting = room()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert waiting.put(item[0], item)
    assert await drain(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_who_has_paid_before_goes_first():
    waiting = room(known="z")
    for item in ("a1", "b1", "z1", "z2"):
        assert waiting.put(item[0], item)
    assert await anext(waiting) == "z1"
    assert waiting.put("z", "z3")
    assert await drain(waiting) == ["z2", "z3", "a1", "b1"]


async def test_a_thousand_strangers_do_not_keep_one_out_who_has_paid():
    waiting = room(known="z")
    let_in = [waiting.put(f"s{number % 1_000}", number) for number in range(10_000)]
    assert sum(let_in) == len(waiting) == 100
    assert waiting.put("z", "paid")
    assert await anext(waiting) == "paid"


async def test_from_half_full_on_a_customer_has_one_request_waiting():
    waiting = room()
    assert [waiting.put("a", number) for number in range(60)] == [True] * 50 + [False] * 10
    assert waiting.put("b", "first")
    assert not waiting.put("b", "second")
    assert (await drain(waiting))[1] == "first"


async def test_it_waits_while_nothing_does(autojump_clock):
    waiting, began = room(), trio.current_time()

    async def come_late():
        await trio.sleep(5)
        waiting.put("a", "late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_late)
        assert await anext(waiting) == "late"
    assert trio.current_time() == began + 5


@given(st.lists(st.tuples(st.sampled_from("abcz"), st.booleans()), max_size=300))
def test_bounds_and_order_whatever_comes(steps):
    """Of each customer in the order in which it came; never more than the bounds; nothing twice, nothing lost."""

    async def play():
        waiting, let_in, out = room(known="z", most=20), {}, {}
        for number, (customer, takes) in enumerate(steps):
            if takes and len(waiting):
                who, item = await anext(waiting)
                assert who == "z" or not len(let_in.get("z", [])) - len(out.get("z", []))
                out.setdefault(who, []).append(item)
            elif waiting.put(customer, (customer, number)):
                let_in.setdefault(customer, []).append(number)
            assert len(waiting) <= 40
        for who, item in await drain(waiting):
            out.setdefault(who, []).append(item)
        assert out == let_in

    trio.run(play)


class SlowToSay(ScriptedBackend):
    """Takes its time to say what it serves, which every request needs."""

    async def models(self):
        await trio.sleep(1)
        return await super().models()


async def test_who_has_paid_overtakes_a_queue_of_strangers(autojump_clock, market):
    """At a provider: the requests of all lie on the relay when it comes up, newest first, as relays show them."""
    home, payer = await open_home(market, funds=0), await open_actor(market, "payer")
    strangers = [await open_actor(market, f"s{number}", funds=0) for number in range(60)]
    async with home.selling():
        await payer.pay(await payer.told(payer.ask(home.secret), "payment-required"))
        await until(lambda: market.events(6050))
    again = payer.ask(home.secret)
    await trio.sleep(2)
    for stranger in strangers:
        stranger.ask(home.secret)
    async with home.selling(SlowToSay("an answer")) as (_, store):
        await until(lambda: store.one("SELECT COUNT(*) AS n FROM sales")["n"] == 62)
        rows = store.read("SELECT subject FROM transitions WHERE input = 'Priced' ORDER BY id")
    assert [row["subject"] for row in rows].index(again.id) <= 2 + AT_ONCE
