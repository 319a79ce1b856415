"""What is owed to a customer pays first, once, and comes back with what fails; and jobs that are done on trust."""

from __future__ import annotations

import contextlib

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from protocols.nip90 import JOB_TEXT, build_request, parse_feedback, parse_result
from pylon.daemon import books
from pylon.errors import PaymentFailed
from pylon.money import Msat
from pylon.provider.credits import usable
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, SaleState
from pylon.store import credits, ledger
from pylon.testing.backend import EMPTY, ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home, until

RESULT = JOB_TEXT + 1_000


@given(st.integers(0, 10_000), st.integers(1, 5_000), st.sampled_from([1, 1_000]))
def test_what_is_left_to_pay_can_be_invoiced(credit, units, unit):
    price = units * unit
    used = usable(Msat(credit), Msat(price), Msat(unit))
    assert 0 <= used <= min(credit, price)
    assert (price - used) % unit == 0
    assert used > min(credit, price) - unit


async def ended(provider, store, request, seconds=2_000.0):
    def look():
        sale = provider.records.load(store, request.id)
        return sale if sale is not None and sale.state in SALE.final else None

    return await until(look, seconds)


async def sound(home, store):
    assert books.report(store, await home.wallet.balance()).problems == ()


@contextlib.asynccontextmanager
async def indebted(market, *, terms=None, debts=1, **changes):
    """A provider that owes a customer ``debts`` times its price."""
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(EMPTY)) as (provider, store):
        for number in range(debts):
            request = customer.ask(home.secret, prompt=f"debt {number}")
            await customer.pay(await customer.told(request, "payment-required"))
            assert (await ended(provider, store, request)).state is SaleState.OWED
    async with home.selling(ScriptedBackend("an answer"), terms=terms or Terms(PRICE), **changes) as (provider, store):
        assert credits.owed(store, customer.hex) == debts * PRICE
        yield home, customer, provider, store


async def test_a_debt_carries_the_next_job(autojump_clock, market):
    async with indebted(market) as (home, customer, provider, store):
        request = customer.ask(home.secret, prompt="again")
        told = parse_feedback(await customer.told(request, "processing"))
        assert told.credit_used_msats == PRICE
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.credit_used, sale.earned) == (SaleState.DELIVERED, 0, PRICE, PRICE)
        result = parse_result(market.events(RESULT)[0], customer.secret)
        assert (result.text, result.credit_used_msats, result.bolt11) == ("an answer", PRICE, None)
        assert credits.owed(store, customer.hex) == 0
        assert credits.listed(store) == []
        balances = ledger.balances(store)
        assert (balances["owed"], balances["unearned"], balances["earned"]) == (0, 0, PRICE)
        await sound(home, store)
        third = customer.ask(home.secret, prompt="third")
        assert parse_feedback(await customer.told(third, "payment-required")).amount_msats == PRICE


@pytest.mark.parametrize("hold", [True, False])
async def test_a_debt_is_taken_off_a_higher_price(autojump_clock, market, hold):
    dearer = Terms(Msat(3 * PRICE))
    async with indebted(market, terms=dearer) as (home, customer, provider, store):
        request = customer.ask(home.secret, prompt="again", params=[("pay_on_delivery", "true")] if hold else [])
        event = await customer.told(request, "payment-required")
        quote = parse_feedback(event)
        assert (quote.amount_msats, quote.credit_used_msats) == (2 * PRICE, PRICE)
        assert (quote.hold_until is not None) == hold
        assert credits.owed(store, customer.hex) == 0, "it is reserved"
        await customer.pay(event)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.DELIVERED, 3 * PRICE, 0)
        await sound(home, store)


async def test_of_many_requests_at_once_one_gets_the_credit(autojump_clock, market):
    async with indebted(market) as (home, customer, provider, store):
        requests = [customer.ask(home.secret, prompt=f"at once {number}") for number in range(5)]
        await until(lambda: all(provider.records.load(store, request.id) for request in requests))
        await trio.sleep(5)
        sales = [provider.records.load(store, request.id) for request in requests]
        assert sorted(sale.credit_used for sale in sales) == [0, 0, 0, 0, PRICE]
        await sound(home, store)


async def test_another_customer_has_none_of_it(autojump_clock, market):
    async with indebted(market) as (home, _customer, _provider, store):
        other = await open_actor(market, "other")
        request = other.ask(home.secret)
        assert parse_feedback(await other.told(request, "payment-required")).credit_used_msats is None
        await sound(home, store)


async def test_none_of_it_is_reserved_by_an_offer_to_everybody(autojump_clock, market):
    async with indebted(market) as (_, customer, _, store):
        request = build_request(
            customer.secret, prompt="think aloud", provider=None, created_at=market.now, encrypt=False
        )
        market.relay.publish(request)
        quote = await customer.told(request, "payment-required")
        assert (quote.tag("amount"), quote.tag("credit_used")) == (str(PRICE), None)
        assert credits.owed(store, customer.hex) == PRICE


async def test_credit_comes_back_from_a_quote_that_nobody_pays(autojump_clock, market):
    async with indebted(market, terms=Terms(Msat(2 * PRICE))) as (home, customer, provider, store):
        for number in range(3):
            request = customer.ask(home.secret, prompt=f"unpaid {number}")
            quote = parse_feedback(await customer.told(request, "payment-required"))
            assert (quote.amount_msats, quote.credit_used_msats) == (PRICE, PRICE)
            assert (await ended(provider, store, request)).state is SaleState.EXPIRED
            assert credits.owed(store, customer.hex) == PRICE
            await sound(home, store)


async def test_credit_comes_back_from_what_fails(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(EMPTY)) as (provider, store):
        for number, owed in enumerate([PRICE, PRICE, PRICE]):
            request = customer.ask(home.secret, prompt=f"{number}")
            if number == 0:
                await customer.pay(await customer.told(request, "payment-required"))
            sale = await ended(provider, store, request)
            assert sale.state is (SaleState.OWED if number == 0 else SaleState.FAILED)
            assert credits.owed(store, customer.hex) == owed
            await sound(home, store)


async def test_no_more_credit_is_used_than_there_is_whatever_a_record_says(autojump_clock, market):
    """The row, the entries and the records are three: a bug in one is refused by another."""
    async with indebted(market) as (_home, customer, _provider, store):

        def more(tx):
            ledger.sale_moved(
                tx,
                cause="another",
                customer=customer.hex,
                paid=(Msat(0), Msat(0)),
                earned=(Msat(0), Msat(0)),
                owed=(Msat(0), Msat(0)),
                credit=(Msat(0), Msat(PRICE + 1)),
                at=0.0,
            )

        with pytest.raises(Exception, match="of credit cannot be used"):
            await store.write(more)


async def test_the_audit_names_a_credit_that_does_not_follow(autojump_clock, market):
    async with indebted(market) as (_home, customer, _provider, store):
        await store.write(lambda tx: tx.execute("UPDATE credits SET msats = msats + 1"))
        problems = books.report(store, None).problems
        assert any(customer.hex[:16] in problem for problem in problems), problems


# --- on trust -------------------------------------------------------------------------------------------------------


async def test_a_job_on_trust_is_done_at_once_and_may_be_paid(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, on_trust=True)) as (provider, store):
        request = customer.ask(home.secret)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.earned) == (SaleState.DELIVERED, 0, 0)
        event = market.events(RESULT)[0]
        result = parse_result(event, customer.secret)
        assert (result.text, result.amount_msats) == ("an answer", PRICE)
        await customer.pay(event)
        sale = await until(lambda: (s := provider.records.load(store, request.id)).earned and s)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.DELIVERED, PRICE, 0)
        await sound(home, store)


async def test_a_payment_on_trust_that_nobody_told_of_is_found(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, on_trust=True)) as (provider, store):
        request = customer.ask(home.secret)
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED
    await customer.pay(market.events(RESULT)[0])
    async with home.selling(terms=Terms(PRICE, on_trust=True)) as (provider, store):
        assert await until(lambda: provider.records.load(store, request.id).earned == PRICE)
        await sound(home, store)


async def test_who_does_not_pay_owes_nothing_and_is_owed_nothing(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, on_trust=True)) as (provider, store):
        request = customer.ask(home.secret)
        await ended(provider, store, request)
        await trio.sleep(3_000)
        assert not any(ledger.balances(store).values())
        await sound(home, store)


async def test_who_gives_everything_away_needs_no_wallet(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer", funds=0)
    async with attrs.evolve(home, wallet=None).selling(terms=Terms(PRICE, payments=False)) as (provider, store):
        request = customer.ask(home.secret, params=[("pay_on_delivery", "true")])
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED
        result = parse_result(market.events(RESULT)[0], customer.secret)
        assert (result.amount_msats, result.bolt11) == (None, None)


async def test_a_failed_hold_gives_the_credit_back(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(EMPTY)) as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        await ended(provider, store, request)
    async with home.selling(ScriptedBackend(EMPTY), terms=Terms(Msat(2 * PRICE))) as (provider, store):
        request = customer.ask(home.secret, prompt="again", params=[("pay_on_delivery", "true")])
        with contextlib.suppress(PaymentFailed):
            await customer.pay(await customer.told(request, "payment-required"))
        sale = await ended(provider, store, request)
        assert (sale.state, sale.owed, sale.credit_used) == (SaleState.FAILED, 0, 0)
        assert credits.owed(store, customer.hex) == PRICE
        await sound(home, store)
