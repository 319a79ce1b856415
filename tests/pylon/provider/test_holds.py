"""Pay on delivery: what is held is taken for a stored result, and given back for all else, however the wallet is."""

from __future__ import annotations

import contextlib

import attrs
import pytest
import trio

from protocols import bolt11
from protocols.nip90 import FEEDBACK, JOB_TEXT, parse_feedback
from pylon.daemon import books
from pylon.errors import PaymentFailed, PaymentUnknown, WalletError
from pylon.money import Msat, sats
from pylon.provider import sale as machine
from pylon.provider.holds import Holds
from pylon.provider.payments import HOLD_DOUBT
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, SaleEffect, SaleState
from pylon.store import ledger
from pylon.testing.backend import EMPTY, HANG, Reply, ScriptedBackend
from pylon.wallets.port import Can, IssuedInvoice, PaymentState
from tests.pylon.market import PRICE, open_actor, open_home, until

RESULT = JOB_TEXT + 1_000
ON_DELIVERY = [("pay_on_delivery", "true")]


class Silent:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        return None

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.sleep_forever()


def ask(customer, home, **changes):
    return customer.ask(home.secret, params=ON_DELIVERY, **changes)


async def ended(provider, store, request, seconds=4_000.0):
    def look():
        sale = provider.records.load(store, request.id)
        return sale if sale is not None and sale.state in SALE.final else None

    return await until(look, seconds)


async def in_state(provider, store, request, *states):
    def look():
        sale = provider.records.load(store, request.id)
        return sale if sale is not None and sale.state in states else None

    return await until(look, 600)


async def pay(customer, request):
    """Pay the quote; returns its invoice."""
    quote = await customer.told(request, "payment-required")
    with contextlib.suppress(PaymentFailed):
        await customer.pay(quote)
    return bolt11.decode(parse_feedback(quote).bolt11)


async def became(customer, invoice):
    return (await customer.wallet.lookup_payment(invoice.payment_hash)).state


async def sound(home, store):
    assert books.report(store, await home.wallet.balance()).problems == ()


async def nothing_was_paid(home, customer, store, invoice):
    assert await became(customer, invoice) is PaymentState.FAILED
    assert (await home.wallet.balance()).settled == 0
    assert not any(ledger.balances(store).values())
    await sound(home, store)


async def test_it_is_paid_once_the_result_is_stored(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply("an answer", first=20.0))
    async with home.selling(backend) as (provider, store):
        request = ask(customer, home)
        quote = parse_feedback(await customer.told(request, "payment-required"))
        invoice = await pay(customer, request)
        assert quote.amount_msats == PRICE
        assert quote.hold_until > invoice.expires_at
        await customer.told(request, "processing")
        await trio.sleep(5)
        assert await became(customer, invoice) is PaymentState.PENDING
        assert not any(ledger.balances(store).values()), "nothing is booked before it is settled"
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.earned, sale.owed) == (SaleState.DELIVERED, PRICE, PRICE, 0)
        assert await became(customer, invoice) is PaymentState.SETTLED
        assert (await home.wallet.balance()).settled == PRICE
        assert len(market.events(RESULT)) == 1
        await sound(home, store)


@pytest.mark.parametrize("answer", [EMPTY, Reply("", error=WalletError("broken"))], ids=["empty", "broken"])
async def test_what_fails_is_given_back(autojump_clock, market, answer):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(answer)) as (provider, store):
        request = ask(customer, home)
        invoice = await pay(customer, request)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.owed) == (SaleState.FAILED, 0, 0)
        assert (await customer.told(request, "error")).tags_named("credit") == ()
        await nothing_was_paid(home, customer, store, invoice)


async def test_what_is_too_late_is_given_back_and_no_longer_thought_about(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    backend = ScriptedBackend(HANG)
    terms = Terms(PRICE, invoice_seconds=60, hold_seconds=40)
    async with home.selling(backend, terms=terms) as (provider, store):
        request = ask(customer, home)
        invoice = await pay(customer, request)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.reason) == (SaleState.FAILED, "it was not done in time")
        assert market.clock.now() <= sale.held_until + 10
        assert backend.active == 0
        await nothing_was_paid(home, customer, store, invoice)


async def test_a_hold_that_nobody_pays_expires(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = ask(customer, home)
        assert (await ended(provider, store, request)).state is SaleState.EXPIRED


@pytest.mark.parametrize("asked", [True, False])
async def test_it_is_offered_where_both_sides_can(autojump_clock, market, asked):
    home, customer = await open_home(market), await open_actor(market, "customer")
    info = await home.wallet.info()

    class Plain(type(info)):
        can = frozenset(Can) - {Can.HOLD}

    async def plain():
        return Plain(info.name, info.network, info.kind, info.node_pubkey)

    home.wallet.info = plain
    async with home.selling():
        request = ask(customer, home) if asked else customer.ask(home.secret)
        quote = parse_feedback(await customer.told(request, "payment-required"))
        assert quote.hold_until is None
    del home.wallet.info
    async with home.selling(terms=Terms(PRICE, pay_on_delivery=False)):
        quote = parse_feedback(await customer.told(ask(customer, home, prompt="other"), "payment-required"))
        assert quote.hold_until is None
    async with home.selling():
        request = ask(customer, home, prompt="third") if asked else customer.ask(home.secret, prompt="third")
        quote = parse_feedback(await customer.told(request, "payment-required"))
        assert (quote.hold_until is not None) == asked


@pytest.mark.parametrize("settles", [True, False])
async def test_a_settlement_of_which_nothing_is_known_is_asked_for_again(autojump_clock, market, settles):
    """The wallet breaks off; whether or not the money is there then, it is there in the end, and earned once."""
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    settle, moods = home.wallet.settle, [PaymentUnknown("no answer"), WalletError("away"), OSError("broken")]

    async def shaky(preimage):
        if moods:
            if settles:
                await settle(preimage)
            raise moods.pop(0)
        await settle(preimage)

    home.wallet.settle = shaky
    async with home.selling() as (provider, store):
        request = ask(customer, home)
        invoice = await pay(customer, request)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.DELIVERED, PRICE, 0)
        assert await became(customer, invoice) is PaymentState.SETTLED
        await sound(home, store)


async def test_a_hold_that_lapsed_while_the_provider_was_away(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(HANG)) as (provider, store):
        request = ask(customer, home)
        invoice = await pay(customer, request)
        await in_state(provider, store, request, SaleState.HELD)
    await home.wallet.cancel(invoice.payment_hash)
    async with home.selling(ScriptedBackend(Reply("late", first=100.0))) as (provider, store):
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.owed) == (SaleState.FAILED, 0, 0)
        await nothing_was_paid(home, customer, store, invoice)
        assert market.events(RESULT) == []


@pytest.mark.parametrize("seconds", [5.0, 200.0])
async def test_a_wallet_that_is_behind_with_what_it_says_is_given_time(autojump_clock, market, seconds):
    """It has settled, says that nothing is held, and knows of the money a little later, or much later."""
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    settle, lookup, settled = home.wallet.settle, home.wallet.lookup_invoice, []

    async def settles(preimage):
        if settled:
            raise PaymentFailed("nothing is held")
        settled.append(market.clock.now())
        await settle(preimage)
        raise PaymentFailed("nothing is held")

    async def behind(payment_hash):
        issued = await lookup(payment_hash)
        if settled and market.clock.now() < settled[0] + seconds:
            return attrs.evolve(issued, received=Msat(0), held=Msat(0), settled_at=None)
        return issued

    home.wallet.settle, home.wallet.lookup_invoice = settles, behind
    home.wallet.events = Silent
    async with home.selling() as (provider, store):
        request = ask(customer, home)
        await pay(customer, request)
        sale = await until(lambda: (s := provider.records.load(store, request.id)).paid and s, 1_000)
        # Too late for the result it is the customer's money all the same.
        wanted = (SaleState.DELIVERED, PRICE, 0) if seconds < 20 else (SaleState.OWED, 0, PRICE)
        assert (await ended(provider, store, request)).paid == sale.paid == PRICE
        sale = provider.records.load(store, request.id)
        assert (sale.state, sale.earned, sale.owed) == wanted
        await sound(home, store)


async def test_a_hold_that_is_gone_when_it_is_settled(autojump_clock, market):
    """The result was made for nothing, and is not given away."""
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    settle = home.wallet.settle

    async def gone(preimage):
        await home.wallet.cancel(invoice.payment_hash)
        await settle(preimage)

    async with home.selling(ScriptedBackend(Reply("words", first=5.0))) as (provider, store):
        home.wallet.settle = gone
        request = ask(customer, home)
        invoice = await pay(customer, request)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.paid, sale.owed) == (SaleState.FAILED, 0, 0)
        await nothing_was_paid(home, customer, store, invoice)
        assert market.events(RESULT) == []


@pytest.mark.parametrize("state", [SaleState.PRICED, SaleState.QUOTED, SaleState.HELD, SaleState.SETTLING])
@pytest.mark.parametrize("paid_while_down", [True, False])
async def test_it_dies_and_lives_again(autojump_clock, market, state, paid_while_down):
    """Whatever it was doing, the same invoice is settled, once, and the result delivered, once."""
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    backend = ScriptedBackend(HANG) if state is SaleState.HELD else ScriptedBackend("an answer")
    hold, settle = home.wallet.hold, home.wallet.settle

    async def never(*args):
        await trio.sleep_forever()

    if state is SaleState.PRICED:

        async def made_and_forgotten(*args):
            await hold(*args)
            await trio.sleep_forever()

        home.wallet.hold = made_and_forgotten
    if state is SaleState.SETTLING:
        home.wallet.settle = never
    quoted = state is not SaleState.PRICED
    later = paid_while_down and state in (SaleState.PRICED, SaleState.QUOTED)
    async with home.selling(backend) as (provider, store):
        request = ask(customer, home)
        if quoted and not later:
            await pay(customer, request)
        sale = await in_state(provider, store, request, state, *([SaleState.HELD] if state is SaleState.QUOTED else []))
        first = sale.preimage
    home.wallet.hold, home.wallet.settle = hold, settle
    if later and quoted:
        await pay(customer, request)
    async with home.selling() as (provider, store):
        if not quoted:
            await pay(customer, request)
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned, sale.owed, sale.preimage) == (SaleState.DELIVERED, PRICE, 0, first)
        assert len(market.events(RESULT)) == 1
        assert (await home.wallet.balance()).settled == PRICE
        await sound(home, store)


async def test_what_is_held_for_a_job_that_is_over_is_given_back(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(EMPTY)) as (provider, _):
        request = ask(customer, home)
        quote = await customer.told(request, "payment-required")
        # It ends otherwise, and the invoice is still there.
        await provider._driver.advance(request.id, machine.Paid(sats(1)))
        invoice = await pay(customer, request)
        await trio.sleep(60)
        assert await became(customer, invoice) is PaymentState.FAILED
        assert parse_feedback(quote).bolt11


async def test_one_that_expired_and_is_held_late_is_still_served(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = ask(customer, home)
        quote = await customer.told(request, "payment-required")
        await provider._driver.advance(request.id, machine.InvoiceExpired())
        assert provider.records.load(store, request.id).state is SaleState.EXPIRED
        await customer.pay(quote)
        sale = await until(lambda: (s := provider.records.load(store, request.id)).state is SaleState.DELIVERED and s)
        assert sale.earned == PRICE
        await sound(home, store)


async def test_wallets_that_tell_nothing_are_asked(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")

    home.wallet.events = Silent
    async with home.selling() as (provider, store):
        request = ask(customer, home)
        await pay(customer, request)
        began = trio.current_time()
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED
        assert trio.current_time() - began < 3


async def test_the_preimage_stays_at_home(autojump_clock, market, caplog):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(HANG)) as (provider, store):
        request = ask(customer, home)
        await pay(customer, request)
        sale = await in_state(provider, store, request, SaleState.HELD)
        assert sale.preimage not in repr(sale)
        assert sale.preimage not in repr(machine.Priced(PRICE, preimage=sale.preimage))
        assert sale.preimage not in "".join(event.to_json() for event in market.events(FEEDBACK))
        assert sale.preimage.encode() not in (market.directory / "home.db").read_bytes()
    assert sale.preimage not in caplog.text


def test_each_effect_of_a_hold_is_a_crash_point():
    points = SALE.crash_points()
    for effect in (SaleEffect.SETTLE_HOLD, SaleEffect.CANCEL_HOLD):
        assert f"sale.{effect.value}.before" in points


async def test_no_words_are_told_for_money_that_could_be_taken_back(autojump_clock, market):
    """Whoever has read nearly all of it could cancel, and keep both."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend(Reply("word " * 50, pace=0.1))
    async with home.selling(backend) as (provider, store):
        for params, told in (([], True), (ON_DELIVERY, False)):
            request = customer.ask(home.secret, params=params, max_tokens=100)
            await pay(customer, request)
            assert (await ended(provider, store, request)).state is SaleState.DELIVERED
            partials = [e for e in market.events(FEEDBACK) if e.tags_named("e")[0][1] == request.id]
            assert any(e.tag("status") == "partial" for e in partials) is told


class Says:
    """A wallet, and the payments behind it, that say what they are told to of one hold."""

    def __init__(self, clock, refusal, **invoice):
        self.clock, self.refusal, self.claimed = clock, refusal, []
        self.invoice = IssuedInvoice("", "", PRICE, clock.now() + 60, **invoice) if invoice else None
        holds = Holds(store=None, wallet=self, payments=self, clock=clock, rng=None, driver=None)
        sale = machine.Sale("id", "customer", JOB_TEXT, 0.0, preimage="11" * 32)
        self.settles, self.gives_back = lambda: holds.settle(sale), lambda: holds.give_back(sale)

    async def settle(self, preimage):
        if self.refusal is not None:
            raise self.refusal

    cancel = settle

    async def look(self, payment_hash):
        return self.invoice

    async def claim(self, payment_hash, amount, preimage):
        self.claimed.append(amount)


async def test_what_was_to_be_given_back_and_was_paid_is_claimed(autojump_clock, market):
    says = Says(market.clock, PaymentFailed("no"), received=PRICE)
    assert await says.gives_back() is None
    assert says.claimed == [PRICE]


async def test_a_hold_is_given_back_as_soon_as_the_wallet_has_it_no_more(autojump_clock, market):
    clock = market.clock
    for says in (Says(clock, None), Says(clock, PaymentFailed("no")), Says(clock, PaymentFailed("no"), cancelled=True)):
        assert await says.gives_back() == machine.HoldGone()
    expires = Says(clock, PaymentFailed("no"), held=Msat(0))
    with pytest.raises(PaymentFailed):
        await expires.gives_back()
    await trio.sleep(61)
    assert await expires.gives_back() == machine.HoldGone(), "nobody can pay it any more"
    for says in (Says(clock, PaymentFailed("no"), held=PRICE), Says(clock, PaymentUnknown("?"), cancelled=True)):
        with pytest.raises((PaymentFailed, PaymentUnknown)):
            await says.gives_back()


async def test_a_refusal_to_settle_is_doubted_unless_the_hold_was_cancelled(autojump_clock, market):
    assert await Says(market.clock, PaymentFailed("no"), cancelled=True).settles() == machine.HoldGone()
    doubtful = Says(market.clock, PaymentFailed("no"))
    with pytest.raises(PaymentUnknown):
        await doubtful.settles()
    await trio.sleep(HOLD_DOUBT)
    assert await doubtful.settles() == machine.HoldGone()
    for says in (Says(market.clock, None), Says(market.clock, PaymentFailed("no"), held=PRICE)):
        with pytest.raises(PaymentUnknown):
            await says.settles()
        await trio.sleep(2 * HOLD_DOUBT)
        with pytest.raises(PaymentUnknown):
            await says.settles()
