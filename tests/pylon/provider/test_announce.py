"""What is announced, and when again."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from protocols.nip89 import parse_announcement
from pylon.inference.port import Health
from pylon.inference.router import Router
from pylon.money import Msat
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.store import outbox
from pylon.testing.backend import ScriptedBackend
from tests.pylon.market import open_home


@asynccontextmanager
async def announcing(home, backend, terms=None, clean=False):
    async with home.opened() as (store, pool), trio.open_nursery() as nursery:
        announcer = Announcer(
            secret=home.secret,
            store=store,
            pool=pool,
            router=Router([backend]),
            clock=home.market.clock,
            terms=terms or Terms(Msat(5_000)),
            profile=Profile("name", "about", "simnet"),
        )
        nursery.start_soon(announcer.run)
        yield store
        if clean:
            await announcer.farewell()
        nursery.cancel_scope.cancel()


def sent(store):
    rows = store.read("SELECT created_at FROM outbox WHERE kind = 31990 ORDER BY id")
    return [row["created_at"] for row in rows]


async def test_models_and_price_are_told(autojump_clock, market):
    home = await open_home(market)
    async with announcing(home, ScriptedBackend("a", models=("b", "a"))):
        await trio.sleep(5)
    found = parse_announcement(market.events(31990)[0])
    assert (found.models, found.price_msats, found.network) == (("a", "b"), 5_000, "simnet")
    assert found.kinds == (5050,)


@pytest.mark.parametrize(
    "names",
    [[f"m{n}" for n in range(5_000)], ["ä" * 250 + str(n) for n in range(300)], ["x" * 20_000], ["b", "a", "b"]],
    ids=["many", "long", "one that is no name", "few"],
)
async def test_a_backend_that_claims_everything(autojump_clock, market, names):
    """What is told of it fits into an event that relays take; the best backend's models first."""
    home = await open_home(market)
    async with announcing(home, ScriptedBackend("a", models=names)):
        await trio.sleep(5)
    found = market.events(31990)
    if names == ["x" * 20_000]:
        assert found == []
        return
    assert len(found[0].to_json()) < 32_000
    models = parse_announcement(found[0]).models
    assert set(models) <= set(names[:256])
    assert len(models) == min(256, len(set(names))) or len("".join(models).encode()) > 11_000


async def test_what_may_still_come_up_is_not_announced_yet(autojump_clock, market):
    """An engine that loads its model knows what it will serve."""

    class Starting(ScriptedBackend):
        ready = False

        async def health(self):
            return Health(self.ready, "starting")

    home, backend = await open_home(market), Starting("a")
    async with announcing(home, backend):
        await trio.sleep(100)
        assert market.events(31990) == []
        backend.ready = True
        await trio.sleep(100)
        assert len(market.events(31990)) == 1


async def test_silent_without_models_and_announced_when_they_come(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a")
    backend.up = False
    async with announcing(home, backend):
        await trio.sleep(100)
        assert market.events(31990) == []
        backend.up = True
        await trio.sleep(100)
        assert len(market.events(31990)) == 1


async def test_announced_again_only_on_a_change_and_under_one_name(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a", models=("one",))
    async with announcing(home, backend) as store:
        await trio.sleep(500)
        assert len(sent(store)) == 1
        backend.model_ids = ("one", "two")
        await trio.sleep(100)
        assert len(sent(store)) == 2
    async with announcing(home, backend) as store:
        await trio.sleep(5)
        assert len(sent(store)) == 3
    found = market.events(31990)
    assert len(found) == 1, "one address for one instance"
    assert parse_announcement(found[0]).models == ("one", "two")


async def test_created_at_grows_even_when_the_clock_does_not(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a", models=("m0",))
    async with announcing(home, backend) as store:
        for number in range(1, 6):
            await trio.sleep(100)
            market.clock.skew -= 250
            backend.model_ids = (f"m{number}",)
        await trio.sleep(100)
        times = sent(store)
    assert times == sorted(set(times))
    assert len(times) == 6


@pytest.mark.parametrize("limit", [900, 10**9], ids=["relays that refuse the future", "relays that take it"])
@pytest.mark.parametrize("restart", [True, False])
async def test_a_clock_that_was_far_ahead_hides_nobody(autojump_clock, market, limit, restart):
    market.relay.core.limits = attrs.evolve(market.relay.core.limits, created_at_upper_limit=limit)
    true_time = market.clock.now
    market.relay.core.now = lambda: int(true_time() - market.clock.skew)
    home, backend = await open_home(market), ScriptedBackend("a", models=("old",))
    market.clock.skew = 30 * 86_400.0
    async with announcing(home, backend) as store:
        await trio.sleep(100)
        backend.model_ids = ("older",)
        await trio.sleep(100)
        if not restart:
            market.clock.skew = 0.0
            await trio.sleep(100)
    market.clock.skew = 0.0
    backend.model_ids = ("new",)
    async with announcing(home, backend) as store:
        await trio.sleep(100)
        assert outbox.pending_count(store) == 0
        assert sent(store)[-1] <= market.now
    found = market.events(31990)
    assert [parse_announcement(event).models for event in found] == [("new",)]


async def test_a_clock_that_was_far_behind_is_noticed(autojump_clock, market):
    home = await open_home(market)
    market.clock.skew = -30 * 86_400.0
    async with announcing(home, ScriptedBackend("a")) as store:
        await trio.sleep(100)
        market.clock.skew = 0.0
        await trio.sleep(100)
        assert len(sent(store)) == 2
    found = market.events(31990)
    assert [event.created_at >= market.now - 200 for event in found] == [True]


async def test_a_free_provider_says_so(autojump_clock, market):
    home = await open_home(market)
    async with announcing(home, ScriptedBackend("a"), Terms(Msat(5_000), payments=False)):
        await trio.sleep(5)
    assert parse_announcement(market.events(31990)[0]).price_msats == 0


async def test_it_beats_while_it_can_answer(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a")
    beats = set()
    async with announcing(home, backend):
        for _ in range(100):
            await trio.sleep(15)
            beats |= {event.created_at for event in market.events(11998)}
        (beat,) = market.events(11998)
        assert beat.tag("d") == market.events(31990)[0].d
        backend.up = False
        await trio.sleep(45)
        assert market.events(31990), "an engine that restarts is not gone"
        await trio.sleep(600)
        assert market.events(31990) == market.events(11998) == []
        backend.up = True
        await trio.sleep(30)
        assert len(market.events(31990)) == len(market.events(11998)) == 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(beats))]
    assert len(gaps) >= 4
    assert all(300 <= gap <= 316 for gap in gaps)


async def test_a_clean_end_leaves_no_announcement_and_a_new_start_has_one(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a", models=("one",))
    for _ in range(3):
        async with announcing(home, backend, clean=True):
            await trio.sleep(1)
            backend.model_ids = ("one", "two")
            await trio.sleep(20)
            assert len(market.events(31990)) == len(market.events(11998)) == 1
        assert market.events(31990) == market.events(11998) == []


async def test_a_clean_end_in_a_time_that_is_wrong_hides_no_later_announcement(autojump_clock, market):
    home = await open_home(market)
    market.clock.skew = 30 * 86_400.0
    async with announcing(home, ScriptedBackend("a"), clean=True):
        await trio.sleep(20)
    market.clock.skew = 0.0
    async with announcing(home, ScriptedBackend("a")):
        await trio.sleep(20)
        assert len(market.events(31990)) == len(market.events(11998)) == 1


async def test_what_an_earlier_life_has_announced_is_taken_back_where_nothing_is_served(autojump_clock, market):
    home, backend = await open_home(market), ScriptedBackend("a")
    async with announcing(home, backend):
        await trio.sleep(20)
    assert market.events(31990)
    backend.up = False
    async with announcing(home, backend):
        await trio.sleep(100)
        assert market.events(31990) == []


async def test_relays_that_do_not_answer_hold_no_end_up(autojump_clock, market):
    home = await open_home(market)
    home.relays = [*home.relays, "ws://nowhere.test"]
    async with announcing(home, ScriptedBackend("a"), clean=True):
        await trio.sleep(20)
        began = trio.current_time()
    assert trio.current_time() - began < 3
    assert market.events(31990) == []
