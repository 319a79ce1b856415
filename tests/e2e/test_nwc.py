"""Nostr Wallet Connect in real processes, over a relay that is not ours: whoever has a connection string can pay."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from protocols import bolt11
from protocols.nip47 import ConnectionUri, Encryption, read_info
from pylon.clock import SystemClock
from pylon.errors import BudgetExceeded
from pylon.money import Msat, max_fee
from pylon.relays.websocket import connect
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.nwc import open_nwc
from pylon.wallets.port import PaymentState
from tests.e2e.homes import FEE_MSATS, FUNDS_SATS, PRICE_MSATS, environment, fetch

pytestmark = pytest.mark.e2e

BUDGET_SATS = 40


class Sdk:
    """nostr-sdk's client with a connection string."""

    def __init__(self, process):
        self._process = process

    def say(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, name, **params):
        self.say(json.dumps([name, params]))
        return self.hear()

    def hear(self):
        line = self._process.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    def ok(self, name, **params):
        answer = self.ask(name, **params)
        assert "ok" in answer, answer
        return answer["ok"]


@contextmanager
def sdk(uri):
    script = str(Path(__file__).with_name("nwc_sdk_client.py"))
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        client = Sdk(process)
        client.say(uri)
        yield client
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture
def relay(world):
    return world.relay()


@pytest.fixture
def bank(world, relay):
    """A home with money that lets others use it."""
    node = world.node("bank").configure(relays=[relay])
    node.fund()
    node.start()
    return node


@pytest.fixture
def shop(world, relay):
    """A home that is paid."""
    node = world.node("shop").configure(relays=[relay])
    node.start()
    return node


def connected(node, name="app", *options):
    return node.json("wallet", "connect", name, "--budget-day", str(BUDGET_SATS), *options)


def test_another_librarys_client_uses_our_wallet(world, relay, bank, shop):
    made = connected(bank)
    till = connected(shop, "till")
    secret = ConnectionUri.parse(made["uri"]).secret.reveal().hex()
    with sdk(made["uri"]) as app, sdk(till["uri"]) as seller:
        info = app.ok("get_info")
        assert info["network"] == "simnet"
        assert app.ok("get_balance") == {"balance": BUDGET_SATS * 1_000}
        bill = seller.ok("make_invoice", amount=PRICE_MSATS, description="tea", expiry=600)
        invoice, payment_hash = bill["invoice"], bolt11.decode(bill["invoice"]).payment_hash
        assert seller.ok("lookup_invoice", hash=payment_hash)["settled_at"] is None
        paid = app.ok("pay_invoice", invoice=invoice)
        assert paid["fees_paid"] == FEE_MSATS
        assert hashlib.sha256(bytes.fromhex(paid["preimage"])).hexdigest() == payment_hash
        # Asked again, it is the same payment.
        assert app.ok("pay_invoice", invoice=invoice) == paid
        left = BUDGET_SATS * 1_000 - PRICE_MSATS - FEE_MSATS
        assert app.ok("get_balance") == {"balance": left}
        assert app.ok("lookup_invoice", hash=payment_hash)["preimage"] == paid["preimage"]
        assert seller.ok("lookup_invoice", hash=payment_hash)["settled_at"] is not None
        (sent,) = app.ok("list_transactions")
        assert (sent["payment_hash"], sent["amount"], sent["fees_paid"]) == (payment_hash, PRICE_MSATS, FEE_MSATS)
        more = seller.ok("make_invoice", amount=left, description="too much")["invoice"]
        assert "[QuotaExceeded]" in app.ask("pay_invoice", invoice=more)["error"]
        bank.json("wallet", "disconnect", "app")
        assert "error" in app.ask("get_balance")
    assert bank.wallet_msats() == FUNDS_SATS * 1_000 - PRICE_MSATS - FEE_MSATS
    assert shop.wallet_msats() == PRICE_MSATS
    assert len(bank.charges()) == 1
    for node in (bank, shop):
        node.check_books()
        node.stop()
        said = node.daemon.said() + (node.home.logs / "pylon.log").read_text()
        assert secret not in said
        assert secret.encode() not in node.home.database.read_bytes()
    (event,) = fetch(relay, kinds=[13194], authors=[ConnectionUri.parse(till["uri"]).wallet.hex])
    assert read_info(event).encryptions == frozenset(Encryption)


@pytest.mark.parametrize("point", ["nwc.pay.before", "nwc.pay.after"])
def test_the_wallet_dies_while_it_pays(world, relay, shop, point):
    """Whoever asked is answered by the next life, with the proof; paid is it once."""
    bank = world.node("bank").configure(relays=[relay])
    bank.fund()
    made = connected(bank, "app", "--relay", relay)
    bank.start(crash_at=point)
    till = connected(shop, "till")
    with sdk(made["uri"]) as app, sdk(till["uri"]) as seller:
        bill = seller.ok("make_invoice", amount=PRICE_MSATS, description="tea")
        app.say(json.dumps(["pay_invoice", {"invoice": bill["invoice"]}]))
        bank.daemon.killed()
        bank.start()
        answer = app.hear()
        assert "ok" in answer, answer
        payment_hash = bolt11.decode(bill["invoice"]).payment_hash
        assert hashlib.sha256(bytes.fromhex(answer["ok"]["preimage"])).hexdigest() == payment_hash
    assert [row["payment_hash"] for row in bank.charges()] == [payment_hash]
    assert bank.wallet_msats() == FUNDS_SATS * 1_000 - PRICE_MSATS - FEE_MSATS
    bank.check_books()
    bank.stop()
    shop.stop()


def test_our_client_uses_our_wallet(tmp_path, relay, bank, shop):
    uri, till = (ConnectionUri.parse(connected(node)["uri"]) for node in (bank, shop))

    async def trade():
        clock, rng = SystemClock(), random.Random(1)
        async with open_store(tmp_path / "client.db", vault=Vault(bytes(32)), clock=clock) as store:
            opened = {"store": store, "connect": connect, "clock": clock, "rng": rng}
            async with open_nwc(uri, **opened) as payer, open_nwc(till, **opened) as payee:
                issued = await payee.receive(Msat(PRICE_MSATS), "tea", 600, "tea")
                with trio.fail_after(30):
                    async with payee.events() as received, payer.events() as sent:
                        cap = max_fee(Msat(PRICE_MSATS))
                        paid = await payer.pay(issued.bolt11, max_fee=cap, idempotency_key="1")
                        assert await anext(aiter(sent)) == paid
                        heard = await anext(aiter(received))
                assert (paid.state, paid.fee) == (PaymentState.SETTLED, FEE_MSATS)
                assert (heard.payment_hash, heard.amount) == (issued.payment_hash, PRICE_MSATS)
                assert await payer.payments() == [paid]
                left = (await payer.balance()).spendable
                assert left == BUDGET_SATS * 1_000 - PRICE_MSATS - FEE_MSATS
                more = await payee.receive(Msat(left), "too much", 600, "more")
                with pytest.raises(BudgetExceeded):
                    await payer.pay(more.bolt11, max_fee=max_fee(left), idempotency_key="2")

    trio.run(trade)
    assert bank.wallet_msats() == FUNDS_SATS * 1_000 - PRICE_MSATS - FEE_MSATS
    bank.check_books()
    (shown,) = bank.json("wallet", "connections")["connections"]
    assert (shown["payments"], shown["spent_msats"]) == (1, PRICE_MSATS + FEE_MSATS)
    bank.stop()
    shop.stop()


def test_a_homes_own_wallet_is_somebody_elses(world, relay, bank):
    """What it has is what its connection leaves it; it buys nothing here, and its string is nowhere but in its file."""
    made = connected(bank)
    guest = world.node("guest").configure(relays=[relay], more='[wallet]\nkind = "nwc"')
    refused = guest.run("wallet", "balance")
    assert refused.returncode == 1
    assert "wallet.nwc" in refused.stderr
    place = guest.home.keys / "wallet.nwc"
    place.write_text(made["uri"] + "\n")
    place.chmod(0o644)
    assert "chmod 600" in guest.run("wallet", "balance").stderr
    place.chmod(0o600)
    assert guest.json("wallet", "balance")["settled_msats"] == BUDGET_SATS * 1_000
    guest.start()
    assert guest.json("wallet", "balance")["spendable_msats"] == BUDGET_SATS * 1_000
    guest.check_books()
    bank.stop()
    # Its wallet is away: it starts all the same, and says that it does not know.
    guest.stop()
    guest.start()
    assert guest.json("status")["wallet"]["settled_msats"] is None
    guest.stop()
    secret = ConnectionUri.parse(made["uri"]).secret.reveal().hex()
    assert secret not in guest.daemon.said() + (guest.home.logs / "pylon.log").read_text()
    assert secret.encode() not in guest.home.database.read_bytes()
