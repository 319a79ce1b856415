"""Two real daemons, each with a wallet that is not ours, a relay that is not ours, and Lightning between them."""

from __future__ import annotations

import hashlib
import json

import bolt11
import pytest

from pylon.testing.provider_process import answer
from tests.e2e.homes import World, fetch, until
from tests.lightning.processes import channel_msats

pytestmark = [pytest.mark.deep, pytest.mark.lightning]

PRICE = 21_000
TOP = f"min_price_msats = {PRICE}"
MORE = '[wallet]\nkind = "nwc"\n[api]\nbind = "127.0.0.1:0"'


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as world:
        yield world


def home_over(world, name, relay, connection):
    """A home whose wallet is the one of this connection string."""
    node = world.node(name).configure(relays=[relay], network="regtest", top=TOP, more=MORE)
    secret = node.root / "keys" / "wallet.nwc"
    secret.touch(0o600)
    secret.write_text(connection)
    return node


def test_two_daemons_trade_over_lightning(lightning, connect, relay, world):
    before = channel_msats(lightning.distant, lightning.payer, lightning.payee)
    connections = [connect(daemon).connection for daemon in (lightning.payee, lightning.distant)]
    shop = home_over(world, "shop", relay, connections[0])
    shop.start("provider", fake=True)
    home = home_over(world, "home", relay, connections[1])
    home.start()
    until(lambda: fetch(relay, kinds=[31990], authors=[shop.pubkey]), 15, "an announcement")
    job = home.json("job", "submit", "-", "--wait", stdin="What do you sell?", timeout=90)
    assert (job["state"], job["provider"], job["text"]) == ("answered", shop.pubkey, answer("What do you sell?"))
    shop.sale_ended()

    fee = 1_000 + PRICE // 1_000_000
    (purchase,) = home.purchases()
    assert (purchase["paid_msats"], purchase["fee_msats"]) == (PRICE, fee)
    spent, earned = home.balances(), shop.balances()  # credits less debits
    assert (spent["spent"], spent["fees"], spent["wallet"]) == (-PRICE, -fee, PRICE + fee)
    assert (earned["earned"], earned["wallet"]) == (PRICE, -PRICE)
    expected = [before[0] - PRICE - fee, before[1] + fee, before[2] + PRICE]
    daemons = (lightning.distant, lightning.payer, lightning.payee)
    until(lambda: channel_msats(*daemons) == expected, 15, "the channels say the same")

    (quote,) = [event for event in fetch(relay, kinds=[7000]) if event.tag("status") == "payment-required"]
    (amount,) = [tag for tag in quote.tags if tag[0] == "amount"]
    invoice = bolt11.decode(amount[2])
    assert (invoice.amount_msat, invoice.payee) == (PRICE, lightning.payee.node)
    for daemon, sent in ((lightning.distant, -PRICE - fee), (lightning.payee, PRICE)):
        payment = daemon.history()[invoice.payment_hash]
        assert payment["amount_msat"] == sent
        assert hashlib.sha256(bytes.fromhex(payment["preimage"])).hexdigest() == invoice.payment_hash
    balance = json.loads(home.run("wallet", "balance", "--json").stdout)
    assert balance["settled_msats"] == channel_msats(lightning.distant)[0]
    assert home.check_books()["accounts"]["spent_msats"] == PRICE
    assert shop.check_books()["accounts"]["earned_msats"] == PRICE
    home.stop()
    shop.stop()


def test_a_daemon_killed_while_it_pays_pays_once(lightning, connect, relay, world):
    before = channel_msats(lightning.payer, lightning.payee)
    shop = home_over(world, "shop", relay, connect(lightning.payee).connection)
    shop.start("provider", fake=True)
    home = home_over(world, "home", relay, connect(lightning.payer).connection)
    home.start()
    lightning.payee.settle(False)
    try:
        home.submit("Are you still there?")
        until(lightning.payer.unsettled_sats, 30, "a payment is on its way")
        home.daemon.kill()
        lightning.payee.settle(True)
        until(lambda: channel_msats(lightning.payee) == [before[1] + PRICE], 15, "it settles while nobody looks")
    finally:
        lightning.payee.settle(True)
    shop.sale_ended()
    home.start()
    assert home.purchase_ended(within=90)["state"] == "answered"
    assert channel_msats(lightning.payer, lightning.payee) == [before[0] - PRICE, before[1] + PRICE]
    assert home.check_books()["accounts"]["spent_msats"] == PRICE
    home.stop()
    shop.stop()
