"""What is observed of providers fades, and orders them without excluding anybody."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import trio
import trio.lowlevel
from hypothesis import given

from protocols.nip90 import FeedbackStatus
from pylon.compute.experience import gather
from pylon.compute.purchase import PurchaseState
from pylon.compute.ranking import MOST_STRANGERS
from pylon.compute.standing import (
    HALF_LIFE,
    KEPT_SECONDS,
    LONGEST_SECONDS,
    REST_SECONDS,
    UNKNOWN,
    Standing,
    note_answer,
    note_failure,
    standing,
    standings,
)
from pylon.store.database import open_store
from pylon.store.vault import Vault
from tests.pylon.compute.test_buyer import BID, bought
from tests.pylon.market import open_actor, open_home, until

NOW = 1_800_000_000.0
observations = st.lists(
    st.tuples(st.sampled_from(["answer", "failure", "owed"]), st.floats(0, 2_000), st.floats(-1_000, 10**7)),
    max_size=30,
)


@given(observations, st.floats(-1_000, 10**8))
def test_no_history_leaves_the_bounds(history, later):
    known, now = UNKNOWN, NOW
    for what, seconds, passed in history:
        now += passed
        match what:
            case "answer":
                known = known.answered(seconds, now)
                assert not known.failed_at
            case "failure":
                known = known.failed(now, owes=False)
                assert known.rests(now)
            case _:
                known = known.failed(now, owes=True)
        assert 0 < known.reliability < 1
        assert 0 < known.latency <= LONGEST_SECONDS
        assert known.good + known.bad <= len(history)
    faded = known.decayed(now + later)
    assert faded.good <= known.good
    assert faded.bad <= known.bad
    assert known.decayed(known.at + 20 * HALF_LIFE).reliability == pytest.approx(UNKNOWN.reliability, abs=0.01)
    assert not known.decayed(known.at + 20 * HALF_LIFE).rests(known.at + 20 * HALF_LIFE)


def test_a_week_halves_what_was_observed():
    known = Standing(good=8.0, bad=4.0, seconds=16.0, at=NOW).decayed(NOW + HALF_LIFE)
    assert (known.good, known.bad, known.seconds) == (4.0, 2.0, 8.0)


def test_one_failure_is_forgiven_soon_and_three_are_not():
    once = UNKNOWN.failed(NOW, owes=False)
    assert once.rests(NOW + REST_SECONDS - 1)
    assert not once.rests(NOW + REST_SECONDS)
    thrice = once.failed(NOW, owes=False).failed(NOW, owes=False)
    assert thrice.rests(NOW + 10 * REST_SECONDS)
    assert not thrice.decayed(NOW + 3 * HALF_LIFE).rests(NOW + 3 * HALF_LIFE)
    assert UNKNOWN.reliability > once.reliability
    assert UNKNOWN.answered(1.0, NOW).reliability > UNKNOWN.reliability


async def test_it_is_kept_over_a_restart_and_forgotten_in_the_end(tmp_path):
    from pylon.clock import SystemClock

    async with open_store(tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=SystemClock(), durable=False) as store:
        await store.write(lambda tx: note_answer(tx, "aa", 4.0, NOW))
        await store.write(lambda tx: note_failure(tx, "aa", NOW + HALF_LIFE))
        known = standing(store, "aa")
        assert (known.good, known.bad, known.seconds) == (0.5, 1.0, 2.0)
        assert standings(store, NOW + 2 * HALF_LIFE)["aa"].bad == 0.5
        await store.write(lambda tx: note_answer(tx, "bb", 4.0, NOW + HALF_LIFE + KEPT_SECONDS + 1))
        assert standings(store, NOW).keys() == {"bb"}


async def test_each_end_of_a_purchase_teaches_what_it_ought_to(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()

    async def end(act, **changes):
        before = standing(store, seller.hex)
        purchase = await buyer.buy("think", bid=BID, max_tokens=16, provider=seller.hex)
        await until(lambda: buyer.records.load(store, purchase.id).request_id)
        request_id = buyer.records.load(store, purchase.id).request_id
        request = await until(lambda: next((e for e in market.events(5050) if e.id == request_id), None))
        await act(request, purchase)
        await bought(buyer, purchase)
        after = standing(store, seller.hex)
        return round(after.good - before.good, 2), round(after.bad - before.bad, 2), after.failed_at > before.failed_at

    async def answers(request, purchase):
        await trio.sleep(4)
        seller.answer(request)

    async def refuses(request, purchase):
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="no")

    async def says_nothing(request, purchase):
        await trio.lowlevel.checkpoint()

    async def asks_too_much(request, purchase):
        await seller.quote(request, BID * 2)

    async def keeps_the_money(request, purchase):
        await seller.quote(request)

    async def owes(request, purchase):
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="sorry", credit_msats=10**9)

    async def is_not_wanted(request, purchase):
        await buyer.give_up(purchase.id, "enough")

    async with home.buying(answer_seconds=30.0) as (buyer, store):
        assert await end(answers) == (1.0, 0.0, False)
        assert 3.9 < standing(store, seller.hex).seconds < 5
        for act in (refuses, says_nothing, asks_too_much, keeps_the_money):
            assert await end(act) == (0.0, 1.0, True), act
        assert await end(owes) == (0.0, 1.0, False)
        assert await end(is_not_wanted) == (0.0, 0.0, False)
        assert seller.hex in gather(store, "", market.clock.now()).distrusted


async def test_who_was_silent_is_asked_behind_the_others_and_asked_again_later(autojump_clock, market):
    home = await open_home(market)
    cheap, dear = await open_actor(market, "cheap"), await open_actor(market, "dear")
    cheap.announce(price=1_000)
    dear.announce(price=9_000)

    async def first_asked():
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        await until(lambda: buyer.records.load(store, purchase.id).provider)
        first = buyer.records.load(store, purchase.id).provider
        seen = set()
        while buyer.records.load(store, purchase.id).state is not PurchaseState.ANSWERED:
            for event in market.events(5050):
                if event.tag("p") == dear.hex and event.id not in seen:
                    seen.add(event.id)
                    dear.answer(event)
            await trio.sleep(0.5)
        return first

    async with home.buying() as (buyer, store):
        assert await first_asked() == cheap.hex
        assert await first_asked() == dear.hex, "the silent one rests"
        await trio.sleep(REST_SECONDS)
        assert await first_asked() == cheap.hex, "and not for ever"


async def test_a_crowd_of_cheap_names_keeps_nobody_from_whoever_serves_it(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce(price=9_000)
    async with home.buying() as (buyer, _store):
        first = await buyer.buy("first", bid=BID, max_tokens=16)
        seller.answer(await seller.request())
        await bought(buyer, first)
        for number in range(20):
            (await open_actor(market, f"sybil{number}", funds=0)).announce(price=1)
        await trio.sleep(1)
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        theirs = await until(
            lambda: next((e for e in market.events(5050, home.secret.public.hex) if _is_second(e, seller, first)), None)
        )
        seller.answer(theirs, "words")
        record = await bought(buyer, second)
        assert record.text == "words"
        assert len(record.tried) == MOST_STRANGERS + 1


def _is_second(event, seller, first):
    return event.tag("p") == seller.hex and event.created_at > first.created_at + 1
