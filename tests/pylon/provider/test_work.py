"""The thinking of a sale: which backend, in whose turn, and what counts as a try."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from protocols.nip01 import Filter
from protocols.nip90 import FEEDBACK, JOB_TEXT, parse_feedback, parse_result
from pylon.errors import BackendUnavailable, InferenceError
from pylon.inference.router import Place
from pylon.money import Msat, sats
from pylon.provider import work
from pylon.provider.partials import Rate
from pylon.provider.pricing import Standing, Terms
from pylon.provider.sale import SaleState
from pylon.provider.server import Provider
from pylon.store.database import Store
from pylon.testing.backend import Reply, ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home, until

RESULT = JOB_TEXT + 1_000


@attrs.define
class Selling:
    """A provider with several backends, and what one asks of it."""

    provider: Provider
    store: Store

    @property
    def pool(self):
        return self.provider._pool

    def sale(self, request):
        return self.provider.records.load(self.store, request.id)

    async def comes_to(self, request, state, seconds=600.0):
        return await until(lambda: s if (s := self.sale(request)) and s.state is state else None, seconds)


@asynccontextmanager
async def selling_with(home, *places, terms=None):
    async with home.selling(list(places), terms=terms) as (provider, store):
        yield Selling(provider, store)


async def buy(home, customer, **changes):
    request = customer.ask(home.secret, **changes)
    await customer.pay(await customer.told(request, "payment-required"))
    return request


@pytest.mark.parametrize("error", [InferenceError("out of memory"), BackendUnavailable("refused"), KeyError("slot")])
async def test_another_backend_answers_where_one_fails_and_no_attempt_is_lost(autojump_clock, market, error):
    home, customer = await open_home(market), await open_actor(market, "customer")
    broken, good = ScriptedBackend(Reply("a", error=error), name="broken"), ScriptedBackend("words", name="good")
    async with selling_with(home, broken, good) as selling:
        sale = await selling.comes_to(await buy(home, customer), SaleState.DELIVERED, 10)
        assert sale.attempts == 0
        assert (len(broken.requests), len(good.requests)) == (1, 1)


async def test_an_engine_that_restarts_costs_a_paid_job_no_attempt(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend("words")
    async with selling_with(home, backend) as selling:
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        backend.up = False
        await customer.pay(quote)
        await trio.sleep(120)
        assert selling.sale(request).attempts == 0
        backend.up = True
        assert (await selling.comes_to(request, SaleState.DELIVERED, 60)).attempts == 0


async def test_an_engine_that_is_gone_for_good_ends_in_a_debt_in_bounded_time(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend("words")
    async with selling_with(home, backend) as selling:
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        backend.up = False
        await customer.pay(quote)
        began = trio.current_time()
        sale = await selling.comes_to(request, SaleState.OWED, 1_000)
        assert work.PATIENCE < trio.current_time() - began < work.PATIENCE + 120
        assert sale.owed == PRICE


async def test_a_backend_that_really_fails_has_five_attempts(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply("a b c", error=BackendUnavailable("died"), fail_after=2))
    async with selling_with(home, backend) as selling:
        sale = await selling.comes_to(await buy(home, customer), SaleState.OWED)
        assert (sale.attempts, len(backend.requests)) == (5, 5)


async def test_each_backend_has_its_own_room(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer", funds=sats(10_000))
    slow, fast = [ScriptedBackend(Reply("words", first=10.0), name=name, models=(name,)) for name in ("slow", "fast")]
    places = Place(slow, 0, most=2), Place(fast, 0, most=1)
    async with selling_with(home, *places) as selling:
        for number in range(5):
            await buy(home, customer, model="slow", prompt=f"{number}")
        await trio.sleep(2)
        assert slow.active == 2
        request = await buy(home, customer, model="fast")
        await selling.comes_to(request, SaleState.DELIVERED, 15)
        assert slow.active > 0


async def test_two_that_have_the_model_share_the_work(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer", funds=sats(10_000))
    pair = [ScriptedBackend(Reply("words", first=10.0), name=f"n{number}") for number in range(2)]
    async with selling_with(home, *(Place(backend, 0, most=1) for backend in pair)) as selling:
        requests = [await buy(home, customer, prompt=f"{number}") for number in range(6)]
        for request in requests:
            await selling.comes_to(request, SaleState.DELIVERED, 40)
        assert sorted(len(backend.requests) for backend in pair) == [3, 3]


async def test_paid_jobs_come_before_free_ones_and_customers_take_turns(autojump_clock, market):
    home, guest = await open_home(market), await open_actor(market, "guest")
    many, few = [await open_actor(market, name, funds=sats(10_000)) for name in ("many", "few")]
    backend = ScriptedBackend(lambda asked: Reply("words", first=10.0))
    terms = Terms(PRICE, standings={guest.hex: Standing.FREE})
    async with selling_with(home, backend, terms=terms) as selling:
        for number in range(5):
            guest.ask(home.secret, prompt=f"guest {number}")
        paid = []
        for name, actor, count in (("many", many, 8), ("few", few, 3)):
            paid += [await buy(home, actor, prompt=f"{name} {number}") for number in range(count)]
        for request in paid:
            await selling.comes_to(request, SaleState.DELIVERED, 1_000)
        order = [asked.messages[0].content.split()[0] for asked in backend.requests]
        assert order[0] == "guest"
        assert order[1:12].count("guest") == 0, "none of the guest's while a paid one waits"
        assert order[1:8].count("few") == 3


# --- the words so far -----------------------------------------------------------------------------------------


async def hear(pool, heard):
    """Everything that is told, as it arrives at the relay."""
    async with pool.subscribe([Filter(kinds=[FEEDBACK, RESULT])], since=0) as told:
        async for received in told:
            heard.append(received.event)


async def test_partials_come_before_the_result_and_carry_all_words_so_far(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply(" ".join(str(n) for n in range(100)), pace=0.1))
    heard = []
    async with selling_with(home, backend) as selling, trio.open_nursery() as nursery:
        nursery.start_soon(hear, selling.pool, heard)
        await selling.comes_to(await buy(home, customer, max_tokens=200), SaleState.DELIVERED)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert heard[-1].kind == RESULT, "nothing after the result"
    words = [parse_feedback(e, customer.secret).content for e in heard if e.tag("status") == "partial"]
    final = parse_result(heard[-1], customer.secret).text
    assert words == sorted(words, key=len)
    assert 10 <= len(words) <= 20
    assert all(final.startswith(text) for text in words)


async def test_many_jobs_share_one_rate_of_partials(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer", funds=sats(10_000))
    backend = ScriptedBackend(Reply("word " * 200, pace=0.1))
    async with selling_with(home, Place(backend, 0, most=50), terms=Terms(Msat(0))):
        for number in range(40):
            customer.ask(home.secret, prompt=f"{number}", max_tokens=200)
        await trio.sleep(15)
        assert backend.active == 40
    partials = [e for e in market.events(FEEDBACK) if e.tag("status") == "partial"]
    assert 100 <= len(partials) <= 20 + 10 * 15


async def test_words_that_no_small_relay_takes_are_told_by_the_result_alone(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply(" ".join(["x" * 500] * 60), pace=0.4))
    async with selling_with(home, backend) as selling:
        await selling.comes_to(await buy(home, customer, max_tokens=60), SaleState.DELIVERED)
    partials = [e for e in market.events(FEEDBACK) if e.tag("status") == "partial"]
    assert partials
    assert max(len(e.to_json()) for e in partials) <= 20_000
    sizes = [len(parse_feedback(e, customer.secret).content) for e in partials]
    assert len(sizes) < 24, "the longer, the rarer"


@given(st.lists(st.floats(0, 3), min_size=1, max_size=100))
def test_the_rate_holds_over_any_time(pauses):
    rate, now, sent = Rate(), 0.0, []
    for pause in pauses:
        now += pause
        sent.extend(now for _ in range(7) if rate.allows(now))
    for start in sent:
        for span in (1.0, 5.0):
            assert sum(start <= at <= start + span for at in sent) <= 20 + 10 * span + 1
