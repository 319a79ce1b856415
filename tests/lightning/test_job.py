"""A whole job of the market, settled over real Lightning: asked, quoted, paid through channels, answered.

Relay, wallet services and Lightning nodes are other people's work; homes, wallets and events are Pylon's.
"""

from __future__ import annotations

import hashlib
import json
import sys

import bolt11
import pytest
import trio

from protocols.nip90 import FEEDBACK, JOB_TEXT, result_kind
from pylon.compute.purchase import PurchaseState
from pylon.daemon.books import audit
from pylon.money import max_fee, sats
from pylon.provider.sale import SaleState
from pylon.store import intents
from tests.e2e.homes import fetch
from tests.lightning.buyer_process import home_in
from tests.lightning.market import BACKEND_SAYS, PREFIX, PRICE, Home
from tests.lightning.processes import Process, channel_msats

pytestmark = [pytest.mark.deep, pytest.mark.lightning]

BID = sats(20)
FORWARDING_FEE = 1_000 + PRICE // 1_000_000
"""What an Electrum asks for: a sat, and a millionth."""
ENDS_WITHIN = 90.0


async def until(look, seconds, what):
    """What ``look`` returns as soon as it is true. It may block."""
    with trio.move_on_after(seconds):
        while True:
            if found := await trio.to_thread.run_sync(look):
                return found
            await trio.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


async def audited(store, home):
    """What the books say. The wallet is not theirs alone: it had its channels before."""
    report = await audit(store, None, home.clock)
    assert report.problems == ()
    return report.balances


class Channels:
    """What everybody has in channels, before and after."""

    def __init__(self, lightning):
        self.daemons = (lightning.distant, lightning.payer, lightning.payee)
        self.before = channel_msats(*self.daemons)

    async def moved(self, **msats):
        """Wait until exactly this has moved."""
        expected = [held + msats.get(daemon.name, 0) for held, daemon in zip(self.before, self.daemons, strict=True)]
        await until(lambda: channel_msats(*self.daemons) == expected, 15, f"{msats} moved")


async def delivered(provider, store, request_id):
    """The sale, when its result is with a relay."""
    with trio.fail_after(15):
        while True:
            sale = provider.records.load(store, request_id)
            if sale is not None and sale.state is SaleState.DELIVERED:
                return sale
            await trio.sleep(0.1)


@pytest.mark.parametrize(("who", "fee"), [("payer", 0), ("distant", FORWARDING_FEE)])
async def test_a_paid_job_settles_over_channels(lightning, connect, relay, tmp_path, who, fee):
    customer, channels = getattr(lightning, who), Channels(lightning)
    home = Home(tmp_path, "home", relay, connect(customer).connection)
    shop = Home(tmp_path, "shop", relay, connect(lightning.payee).connection)
    async with shop.selling() as (provider, sales), home.buying() as (buyer, purchases):
        begun = await buyer.buy("What does it cost?", bid=BID, max_tokens=32)
        with trio.fail_after(ENDS_WITHIN):
            bought = await buyer.finished(begun.id)
        sold = await delivered(provider, sales, bought.request_id)
        spent, earned = await audited(purchases, home), await audited(sales, shop)

    assert (bought.state, bought.text, bought.provider) == (PurchaseState.ANSWERED, BACKEND_SAYS, shop.hex)
    invoice = bolt11.decode(bought.bolt11)
    assert (invoice.currency, invoice.payee, invoice.amount_msat) == (PREFIX, lightning.payee.node, PRICE)
    assert invoice.payment_hash == bought.payment_hash == sold.payment_hash
    assert hashlib.sha256(bytes.fromhex(bought.preimage)).hexdigest() == invoice.payment_hash
    assert (bought.paid, bought.fee, sold.paid) == (PRICE, fee, PRICE)

    # Books and channels agree to the millisatoshi, and it was paid once.
    await channels.moved(**{"payer": fee, who: -PRICE - fee, "payee": PRICE})
    assert (spent["spent"], spent["fees"], spent["wallet"]) == (PRICE, fee, -PRICE - fee)
    assert (earned["earned"], earned["wallet"]) == (PRICE, PRICE)
    for daemon, sent in ((customer, -PRICE - fee), (lightning.payee, PRICE)):
        assert daemon.history()[invoice.payment_hash]["amount_msat"] == sent

    # What the relay saw: one request, one quote with that invoice, one result.
    (request,) = fetch(relay, kinds=[JOB_TEXT])
    (quote,) = [event for event in fetch(relay, kinds=[FEEDBACK]) if event.tag("status") == "payment-required"]
    (result,) = fetch(relay, kinds=[result_kind(JOB_TEXT)])
    assert (request.pubkey, quote.pubkey, result.pubkey) == (home.hex, shop.hex, shop.hex)
    assert ["amount", str(PRICE), bought.bolt11] in [list(tag) for tag in quote.tags]
    assert quote.tag("e") == result.tag("e") == request.id == bought.request_id


async def test_a_payment_on_its_way_counts_is_not_repeated_and_settles_late(lightning, connect, relay, tmp_path):
    channels = Channels(lightning)
    home = Home(tmp_path, "home", relay, connect(lightning.payer).connection)
    shop = Home(tmp_path, "shop", relay, connect(lightning.payee).connection)
    lightning.payee.settle(False)
    try:
        async with shop.selling() as (provider, sales), home.buying() as (buyer, purchases):
            begun = await buyer.buy("Are you slow?", bid=BID, max_tokens=32)
            await until(lightning.payer.unsettled_sats, 30, "a payment is on its way")
            await trio.sleep(5)  # long enough for a look at the invoice
            paying = buyer.records.load(purchases, begun.id)
            assert paying.state is PurchaseState.PAYING
            assert intents.committed(purchases, "", since=0.0) == PRICE + max_fee(PRICE)
            assert lightning.payer.unsettled_sats() == PRICE // 1_000
            sale = provider.records.load(sales, paying.request_id)
            assert (sale.state, sale.paid) == (SaleState.QUOTED, 0)
            await channels.moved()
            lightning.payee.settle(True)
            with trio.fail_after(ENDS_WITHIN):
                bought = await buyer.finished(begun.id)
            sold = await delivered(provider, sales, bought.request_id)
            spent, earned = await audited(purchases, home), await audited(sales, shop)
            assert intents.committed(purchases, "", since=0.0) == PRICE
    finally:
        lightning.payee.settle(True)
    assert (bought.state, bought.text) == (PurchaseState.ANSWERED, BACKEND_SAYS)
    assert hashlib.sha256(bytes.fromhex(bought.preimage)).hexdigest() == bought.payment_hash == sold.payment_hash
    assert (spent["spent"], spent["fees"], earned["earned"]) == (PRICE, 0, PRICE)
    await channels.moved(payer=-PRICE, payee=PRICE)


@pytest.mark.parametrize("lost", [["pay_invoice"], ["pay_invoice", "payment_sent"]], ids=len)
async def test_an_answer_of_the_wallet_that_is_lost_costs_nothing_twice(lightning, connect, relay, tmp_path, lost):
    """Then a notification tells, and without one a look at the invoice does."""
    channels = Channels(lightning)
    home = Home(tmp_path, "home", relay, connect(lightning.payer, **dict.fromkeys(lost, 1)).connection)
    shop = Home(tmp_path, "shop", relay, connect(lightning.payee).connection)
    async with shop.selling() as (provider, sales), home.buying() as (buyer, purchases):
        begun = await buyer.buy("Did you hear?", bid=BID, max_tokens=32)
        with trio.fail_after(ENDS_WITHIN):
            bought = await buyer.finished(begun.id)
        await delivered(provider, sales, bought.request_id)
        spent = await audited(purchases, home)
    assert (bought.state, bought.paid, bought.fee) == (PurchaseState.ANSWERED, PRICE, 0)
    assert (spent["spent"], spent["fees"]) == (PRICE, 0)
    await channels.moved(payer=-PRICE, payee=PRICE)


async def test_a_payment_that_fails_moves_nothing(lightning, connect, relay, tmp_path):
    channels = Channels(lightning)
    home = Home(tmp_path, "home", relay, connect(lightning.payer).connection)
    shop = Home(tmp_path, "shop", relay, connect(lightning.payee).connection)
    lightning.payee.fail(True)
    try:
        async with shop.selling() as (provider, sales), home.buying() as (buyer, purchases):
            begun = await buyer.buy("Will you take it?", bid=BID, max_tokens=32)
            with trio.fail_after(ENDS_WITHIN):
                ended = await buyer.finished(begun.id)
            spent = await audited(purchases, home)
            (sale,) = provider.records.where(sales, "1 = 1", ())
    finally:
        lightning.payee.fail(False)
        lightning.payer.forget_failures()
    assert (ended.state, ended.paid, ended.preimage) == (PurchaseState.FAILED, 0, None)
    assert (sale.state, sale.paid) == (SaleState.QUOTED, 0)
    assert spent["spent"] == spent["fees"] == spent["wallet"] == 0
    assert lightning.payer.unsettled_sats() == 0
    await channels.moved()


async def test_a_buyer_killed_while_it_pays_pays_once(lightning, connect, relay, tmp_path):
    channels = Channels(lightning)
    settings = {"relay": relay, "connection": connect(lightning.payer).connection}
    (tmp_path / "home.json").write_text(json.dumps(settings))
    shop = Home(tmp_path, "shop", relay, connect(lightning.payee).connection)
    command = [sys.executable, "-m", "tests.lightning.buyer_process", str(tmp_path)]
    lightning.payee.settle(False)
    try:
        async with shop.selling() as (provider, sales):
            for life in range(2):
                with Process(command, tmp_path / f"life-{life}.out") as buyer:
                    await trio.to_thread.run_sync(buyer.line, "running")
                    await until(lightning.payer.unsettled_sats, 30, "a payment is on its way")
                    await trio.sleep(1)
                    buyer.process.kill()
            assert lightning.payer.unsettled_sats() == PRICE // 1_000
            lightning.payee.settle(True)
            with Process(command, tmp_path / "life-2.out") as buyer:
                await trio.to_thread.run_sync(buyer.line, "ended")
                assert buyer.line("ended") == PurchaseState.ANSWERED, buyer.said()
            (sale,) = provider.records.where(sales, "1 = 1", ())
            await delivered(provider, sales, sale.id)
    finally:
        lightning.payee.settle(True)
    await channels.moved(payer=-PRICE, payee=PRICE)
    home = home_in(tmp_path)
    async with home.opened() as (purchases, _, _):
        spent = await audited(purchases, home)
        assert (spent["spent"], spent["fees"]) == (PRICE, 0)
        assert intents.committed(purchases, "", since=0.0) == PRICE
