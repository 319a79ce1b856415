"""What is owed is told, and paid out once, whatever the wallet does; never more than that."""

from __future__ import annotations

import contextlib

import pytest
import trio

from protocols import bolt11
from protocols.keys import PublicKey
from protocols.nip19 import encode_npub
from pylon.daemon import books, provider_money
from pylon.daemon.hosting import HOME_NAME
from pylon.daemon.provider_money import ProviderMoney
from pylon.daemon.reconciler import Reconciler
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import (
    AlreadyPaid,
    BudgetExceeded,
    InvoiceInvalid,
    PaymentFailed,
    PaymentUnknown,
    UsageError,
    WalletFrozen,
)
from pylon.host.zaps import Payee, PayService
from pylon.money import Msat
from pylon.provider.sale import SaleState
from pylon.store import credits, freeze, intents, ledger
from pylon.testing.backend import EMPTY, ScriptedBackend
from pylon.wallets.port import PaymentState
from pylon.wallets.purse import Purse
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.api.serving import serving
from tests.pylon.market import PRICE, open_actor, open_home, until


async def nobody(method, data):
    return None


@contextlib.asynccontextmanager
async def owing(market, debts=2):
    """A provider that owes a customer for some jobs; its verbs."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(EMPTY)) as (provider, store):
        requests = [customer.ask(home.secret, prompt=f"debt {number}") for number in range(debts)]
        for request in requests:
            await customer.pay(await customer.told(request, "payment-required"))
            await until(lambda asked=request: provider.records.load(store, asked.id).state is SaleState.OWED, 400)
        purse, withdrawals = Purse(home.wallet, store, market.clock), Withdrawals(store, market.clock)
        await books.book_deposits(store, home.wallet, market.clock.now())
        yield home, customer, store, ProviderMoney(store, market.clock, purse, withdrawals, simnet=True)


async def pay(verbs, customer, target, **params):
    return await verbs.table()["provider.payout"]({"customer": customer.hex, "target": target, **params}, nobody)


async def sound(home, store):
    report = await books.audit(store, home.wallet, store.clock)
    assert report.problems == ()


async def test_who_is_owed_what_and_for_what(autojump_clock, market):
    async with owing(market) as (home, customer, _, verbs):
        told = await verbs.table()["provider.credits"]({}, nobody)
        (entry,) = told["credits"]
        assert (told["total_msats"], entry["owed_msats"], entry["paying_msats"]) == (2 * PRICE, 2 * PRICE, 0)
        assert entry["npub"] == encode_npub(PublicKey.from_hex(customer.hex))
        assert [job["owed_msats"] for job in entry["jobs"]] == [PRICE, PRICE]
        assert entry["since"] <= market.clock.now()
        for name in (customer.hex, entry["npub"]):
            assert await verbs.table()["provider.credits"]({"customer": name}, nobody) == told
        other = await verbs.table()["provider.credits"]({"customer": home.secret.public.hex}, nobody)
        assert other == {"total_msats": 0, "credits": []}
        with pytest.raises(UsageError):
            await verbs.table()["provider.credits"]({"customer": "nobody"}, nobody)


async def test_an_invoice_is_paid_out_once(autojump_clock, market):
    async with owing(market) as (home, customer, store, verbs):
        before = (await customer.wallet.balance()).settled
        invoice = await customer.invoice(PRICE, key="out")
        told = await pay(verbs, customer, f"lightning:{invoice}")
        assert (told["paid_out_msats"], told["owed_msats"]) == (PRICE, PRICE)
        assert told["fee_msats"] > 0, "which is ours"
        assert (await customer.wallet.balance()).settled == before + PRICE
        with pytest.raises(AlreadyPaid):
            await pay(verbs, customer, invoice)
        balances = ledger.balances(store)
        assert (balances["owed"], balances["paid_out"], balances["refunds"]) == (PRICE, PRICE, PRICE)
        assert balances["fees"] == told["fee_msats"]
        await sound(home, store)


async def test_an_address_gets_all_of_it(autojump_clock, market):
    async with owing(market) as (home, customer, store, verbs):
        address = (await customer.wallet.addresses()).spark
        assert (await pay(verbs, customer, address, amount_msats=1_000))["owed_msats"] == 2 * PRICE - 1_000
        assert (await pay(verbs, customer, address))["owed_msats"] == 0
        with pytest.raises(BudgetExceeded, match="nothing is owed"):
            await pay(verbs, customer, address)
        assert credits.listed(store) == []
        await sound(home, store)


async def test_never_more_than_is_owed(autojump_clock, market):
    async with owing(market) as (home, customer, store, verbs):
        more = await customer.invoice(2 * PRICE + 1, key="more")
        address = (await customer.wallet.addresses()).spark
        with pytest.raises(BudgetExceeded):
            await pay(verbs, customer, more)
        with pytest.raises(BudgetExceeded):
            await pay(verbs, customer, address, amount_msats=2 * PRICE + 1)
        with pytest.raises(InvoiceInvalid):
            await pay(verbs, customer, more, amount_msats=PRICE)
        stranger = await open_actor(market, "stranger")
        with pytest.raises(BudgetExceeded):
            await pay(verbs, stranger, await stranger.invoice(1_000, key="s"))
        assert credits.owed(store, customer.hex) == 2 * PRICE
        await sound(home, store)


async def test_of_many_at_once_no_more_goes_out_than_is_owed(autojump_clock, market):
    async with owing(market) as (home, customer, store, verbs):
        before, outcomes = (await customer.wallet.balance()).settled, []

        async def one(number):
            try:
                outcomes.append(await pay(verbs, customer, await customer.invoice(PRICE, key=f"at once {number}")))
            except BudgetExceeded:
                outcomes.append(None)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number)
        assert sum(outcome is not None for outcome in outcomes) == 2
        assert (await customer.wallet.balance()).settled == before + 2 * PRICE
        await sound(home, store)


@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
async def test_what_is_not_known_stays_reserved_until_the_wallet_knows(autojump_clock, market, ends):
    async with owing(market) as (home, customer, store, verbs):
        market.ledger.inject(Fault(FaultKind.TIMEOUT, seconds=100.0, ends=ends), wallet=home.wallet)
        with pytest.raises(PaymentUnknown):
            await pay(verbs, customer, await customer.invoice(2 * PRICE, key="out"))
        assert (credits.owed(store, customer.hex), credits.available(store, customer.hex)) == (2 * PRICE, 0)
        with pytest.raises(BudgetExceeded, match="is being paid out"):
            await pay(verbs, customer, await customer.invoice(PRICE, key="again"))
        await sound(home, store)
        await trio.sleep(200)
        purse = Purse(home.wallet, store, market.clock)
        await Reconciler(store, market.clock).settle(lambda owner: purse)
        paid = ends is PaymentState.SETTLED
        assert credits.owed(store, customer.hex) == (0 if paid else 2 * PRICE)
        assert ledger.balances(store)["paid_out"] == (2 * PRICE if paid else 0)
        await sound(home, store)
        if not paid:
            await pay(verbs, customer, await customer.invoice(2 * PRICE, key="third"))
            await sound(home, store)


async def test_what_failed_can_be_paid_out_again(autojump_clock, market):
    async with owing(market) as (home, customer, store, verbs):
        address = (await customer.wallet.addresses()).spark
        for _ in range(2):
            market.ledger.inject(Fault(FaultKind.FAIL), wallet=home.wallet)
            with pytest.raises(PaymentFailed):
                await pay(verbs, customer, address)
        assert (await pay(verbs, customer, address))["owed_msats"] == 0
        await sound(home, store)


async def test_what_settles_after_it_failed_is_a_loss_where_the_credit_was_used(autojump_clock, market):
    """The wallet changes its mind; the customer has used the credit meanwhile. The books say so, and add up."""
    async with owing(market) as (home, customer, store, verbs):
        market.ledger.inject(Fault(FaultKind.TIMEOUT, seconds=100.0), wallet=home.wallet)
        with pytest.raises(PaymentUnknown):
            await pay(verbs, customer, await customer.invoice(2 * PRICE, key="out"))
        (intent,) = intents.pending(store, "")
        await store.write(lambda tx: intents.fail(tx, intent.id, error="it says", at=market.clock.now()))
        assert (await pay(verbs, customer, await customer.invoice(PRICE, key="instead")))["owed_msats"] == PRICE
        await trio.sleep(200)
        await Reconciler(store, market.clock).doubt(lambda owner: verbs.purse)
        balances = ledger.balances(store)
        assert (balances["owed"], balances["paid_out"], balances["refunds"]) == (0, 2 * PRICE, 3 * PRICE)
        await sound(home, store)


async def test_a_freeze_stops_it(autojump_clock, market):
    async with owing(market) as (_, customer, store, verbs):
        await store.write(lambda tx: freeze.freeze(tx, "test", at=0.0))
        with pytest.raises(WalletFrozen):
            await pay(verbs, customer, await customer.invoice(PRICE, key="out"))


async def test_a_lightning_address_is_asked_for_an_invoice(autojump_clock, market, monkeypatch):
    async with owing(market) as (home, customer, store, verbs):
        asked = []

        async def invoice(self, address, amount):
            asked.append((address, amount))
            return await customer.invoice(amount, key="by address")

        monkeypatch.setattr(provider_money.ProviderMoney, "_invoice", invoice)
        assert (await pay(verbs, customer, "me@example.com"))["owed_msats"] == 0
        assert asked == [("me@example.com", Msat(2 * PRICE))]
        with pytest.raises(BudgetExceeded):
            await pay(verbs, customer, "me@example.com")
        assert len(asked) == 1
        await sound(home, store)


async def test_without_a_wallet_it_is_told_and_not_paid(autojump_clock, market):
    async with owing(market, debts=1) as (_, customer, store, _verbs):
        bare = ProviderMoney(store, market.clock)
        assert (await bare.table()["provider.credits"]({}, nobody))["total_msats"] == PRICE
        with pytest.raises(UsageError):
            await pay(bare, customer, "lnsb1")


async def test_an_invoice_of_a_lightning_address_that_is_really_served(market):
    """By the very service that this home's own customers zap; in real time, over HTTP."""
    customer = await open_home(market, "served")
    async with customer.opened() as (store, _):
        payee = Payee(customer.secret.public.hex, HOME_NAME, "about", lambda: customer.wallet)

        class Payees:
            def named(self, name):
                return payee if name == HOME_NAME else None

            keyed = named

        pay_service = PayService(Payees(), signer=customer.secret, store=store, relays=lambda: [], clock=market.clock)
        async with serving(pay_service) as served:
            pay_service.address = str(served.bound)
            verbs = ProviderMoney(store, market.clock, simnet=True)
            address = f"{HOME_NAME}@{served.bound}"
            text = await verbs._invoice(address, PRICE)
            assert bolt11.decode(text).amount_msats == PRICE
            assert (await customer.wallet.lookup_invoice(bolt11.decode(text).payment_hash)).bolt11 == text
            for wrong, amount in ((address, Msat(1)), (f"nobody@{served.bound}", PRICE), ("nobody@", PRICE)):
                with pytest.raises(InvoiceInvalid):
                    await verbs._invoice(wrong, amount)
            with pytest.raises(InvoiceInvalid):
                await ProviderMoney(store, market.clock)._invoice(address, PRICE)
