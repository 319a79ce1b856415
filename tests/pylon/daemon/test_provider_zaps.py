"""A customer may zap its request, or the quote of it: the payment is for the sale, once, whichever rail it came by."""

from __future__ import annotations

import contextlib
import functools

import pytest
import trio

from protocols import bolt11, nip57
from protocols.nip57 import RECEIPT
from pylon import config as configuration
from pylon.config import ApiConfig, Config
from pylon.daemon import books
from pylon.daemon.hosting import HOME_NAME, _Payees, note_sale
from pylon.daemon.reload import profile_of
from pylon.host.zaps import Payee, PayService
from pylon.money import Msat, sats
from pylon.provider.pricing import Terms
from pylon.provider.sale import SaleState
from pylon.store import ledger
from pylon.testing.backend import ScriptedBackend
from tests.pylon.market import PRICE, RELAY, open_actor, open_home, until


class NoAgents:
    store = None


@contextlib.asynccontextmanager
async def zappable(market, home, store):
    """The home's lightning address, as a daemon serves it."""
    own = home.secret.public.hex

    class Payees(_Payees):
        def named(self, name):
            return self._own if name == HOME_NAME else None

    payee = Payee(own, HOME_NAME, "", lambda: home.wallet)
    pay = PayService(
        Payees(NoAgents(), payee),
        signer=home.secret,
        store=store,
        relays=lambda: [RELAY],
        clock=market.clock,
        issued=functools.partial(note_sale, own),
    )
    pay.address = "127.0.0.1:9"
    yield pay


@contextlib.asynccontextmanager
async def selling(market, backend=None, terms=None):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    box = []

    async def received(payment):
        for pay in box:
            await pay.paid(home.secret.public.hex, payment)

    async with home.selling(backend or ScriptedBackend("an answer"), terms=terms, received=received) as (
        provider,
        store,
    ):
        async with zappable(market, home, store) as pay:
            box.append(pay)
            yield home, customer, provider, store, pay


async def zap(market, customer, home, pay, event, amount=PRICE):
    """An invoice for a zap of this event; not paid yet."""
    request = nip57.build_request(
        customer.secret,
        recipient=home.secret.public.hex,
        relays=[RELAY],
        amount_msats=amount,
        created_at=market.now,
        event=event,
    )
    return await pay.invoice(HOME_NAME, amount, request.to_json())


async def pays(customer, invoice):
    await customer.wallet.pay(invoice, max_fee=sats(10), idempotency_key=bolt11.decode(invoice).payment_hash)


async def reached(provider, store, request, state):
    def look():
        sale = provider.records.load(store, request.id)
        return sale if sale is not None and sale.state is state else None

    return await until(look, 400)


async def sound(home, store):
    assert (await books.audit(store, home.wallet, store.clock)).problems == ()


@pytest.mark.parametrize("what", ["request", "quote"])
async def test_a_zap_pays_for_the_job(autojump_clock, market, what):
    async with selling(market) as (home, customer, provider, store, pay):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        await pays(customer, await zap(market, customer, home, pay, request if what == "request" else quote))
        sale = await reached(provider, store, request, SaleState.DELIVERED)
        assert (sale.paid, sale.earned, sale.owed) == (PRICE, PRICE, 0)
        assert await until(lambda: market.events(RECEIPT))
        await sound(home, store)
        assert ledger.balances(store)["outside"] == 0, "it was no gift"


async def test_both_rails_pay_twice_and_the_second_is_owed(autojump_clock, market):
    async with selling(market) as (home, customer, provider, store, pay):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        invoice = await zap(market, customer, home, pay, quote)
        await customer.pay(quote)
        await reached(provider, store, request, SaleState.DELIVERED)
        await pays(customer, invoice)
        sale = await until(lambda: (s := provider.records.load(store, request.id)).owed and s)
        assert (sale.state, sale.paid, sale.earned, sale.owed) == (SaleState.DELIVERED, 2 * PRICE, PRICE, PRICE)
        await sound(home, store)


async def test_a_zap_that_nobody_told_of_is_found_and_never_booked_as_a_gift(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling() as (provider, store), zappable(market, home, store) as pay:
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        invoice = await zap(market, customer, home, pay, request)
    async with home.opened() as (store, _):
        await pays(customer, invoice)
        await sound(home, store)
        assert ledger.balances(store)["wallet"] == 0
    async with home.selling() as (provider, store):
        sale = await reached(provider, store, request, SaleState.DELIVERED)
        assert sale.earned == PRICE
        await sound(home, store)


async def test_too_small_a_zap_is_owed(autojump_clock, market):
    async with selling(market) as (home, customer, provider, store, pay):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        await pays(customer, await zap(market, customer, home, pay, request, Msat(1_000)))
        assert (await reached(provider, store, request, SaleState.OWED)).owed == 1_000
        await sound(home, store)


@pytest.mark.parametrize("what", ["nothing", "another's note"])
async def test_any_other_zap_is_a_gift(autojump_clock, market, what):
    async with selling(market) as (home, customer, provider, store, pay):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        note = None if what == "nothing" else customer.answer(request)
        await pays(customer, await zap(market, customer, home, pay, note))
        await trio.sleep(60)
        assert provider.records.load(store, request.id).paid == 0
        await sound(home, store)
        assert ledger.balances(store)["outside"] == PRICE


async def test_a_hold_that_is_zapped_is_given_back_if_it_is_paid_too(autojump_clock, market):
    async with selling(market, terms=Terms(PRICE)) as (home, customer, provider, store, pay):
        request = customer.ask(home.secret, params=[("pay_on_delivery", "true")])
        quote = await customer.told(request, "payment-required")
        await pays(customer, await zap(market, customer, home, pay, request))
        await reached(provider, store, request, SaleState.DELIVERED)
        await customer.pay(quote)
        await trio.sleep(30)
        sale = provider.records.load(store, request.id)
        assert (sale.paid, sale.earned, sale.owed) == (PRICE, PRICE, 0)
        assert (await customer.wallet.balance()).pending_out == 0
        await sound(home, store)


def test_the_announcement_says_where_to_zap():
    assert profile_of(Config()).lud16 == ""
    public = Config(api=ApiConfig(public_name="example.com"))
    assert profile_of(public).lud16 == f"{HOME_NAME}@example.com"
    assert profile_of(Config(api=public.api, enable_payments=False)).lud16 == ""
    assert ("api", "public_name") in configuration.known_keys()
