"""Two daemons that trade all the time, each killed with SIGKILL at random moments; then the books are held together."""

import random
import time

import pytest

from protocols.nip90 import FEEDBACK
from pylon.store.outbox import DeliveryState
from tests.e2e.homes import FEE_MSATS, PRICE_MSATS, PURCHASE_ENDS, SALE_ENDS, check_paid, fetch, until

pytestmark = pytest.mark.e2e

KILLS = 10
ORDERS_AFTER_A_KILL = 2


class Trade:
    def __init__(self, world, relay, seed):
        self.rng = random.Random(seed)
        self.relay = relay
        self.provider, self.buyer = world.market(relay)
        self.orders = 0

    def start(self, node, *, wait=True):
        if node is self.provider:
            node.start("provider", "--seconds", "0.15", fake=True, wait=wait)
        else:
            node.start(wait=wait)

    def order(self):
        """Straight through the control socket; the daemon is up."""
        self.orders += 1
        self.buyer.ask(
            "job.submit",
            prompt=f"Question {self.orders} of somebody who is in danger",
            bid_msats=2 * PRICE_MSATS,
            max_tokens=64,
            provider=self.provider.npub,
        )

    def kill_somebody(self):
        """At a random moment of the trades that have just begun."""
        for _ in range(ORDERS_AFTER_A_KILL):
            self.order()
        time.sleep(self.rng.uniform(0.0, 0.5))
        victim = self.rng.choice([self.provider, self.buyer])
        victim.daemon.kill()
        time.sleep(self.rng.uniform(0.0, 0.3))
        self.start(victim)
        return victim.name

    def open_purchases(self):
        return [row for row in self.buyer.purchases() if row["state"] not in PURCHASE_ENDS]

    def open_sales(self):
        """Sold and not ended; a quote that nobody has paid is open for as long as its invoice lives."""
        return [row for row in self.provider.sales() if row["state"] not in (*SALE_ENDS, "quoted")]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_random_kills(seed, world):
    began = time.monotonic()
    relay = world.relay()
    trade = Trade(world, relay, seed)
    trade.start(trade.provider, wait=False)
    trade.start(trade.buyer)
    trade.provider.daemon.ready()
    trade.buyer.fund()
    victims = [trade.kill_somebody() for _ in range(KILLS)]
    until(lambda: not trade.open_purchases(), 60, lambda: f"an end of {trade.open_purchases()}")
    until(lambda: not trade.open_sales(), 30, lambda: f"an end of {trade.open_sales()}")

    purchases, sales = trade.buyer.purchases(), {row["id"]: row for row in trade.provider.sales()}
    assert len(purchases) == trade.orders
    charges = trade.buyer.charges()
    intents = trade.buyer.rows("SELECT cause, payment_hash FROM intents WHERE state = 'settled'")
    assert sorted(row["payment_hash"] for row in intents) == sorted(row["payment_hash"] for row in charges)

    paid = [row for row in purchases if row["paid_msats"]]
    # One charge a purchase, of what was agreed.
    assert sorted(row["cause"] for row in intents) == sorted(row["id"] for row in paid)
    assert {(row["paid_msats"], row["fee_msats"]) for row in paid} <= {(PRICE_MSATS, FEE_MSATS)}
    # Whoever has paid has an answer: no answer is lost, for nothing failed but processes.
    assert [row["state"] for row in paid] == ["answered"] * len(paid)
    assert {row["state"] for row in purchases if not row["paid_msats"]} <= {"failed"}

    for row in paid:
        assert sales[row["request_id"]]["state"] == "delivered"
        results = fetch(relay, kinds=[6050], tags={"e": [row["request_id"]]})
        feedback = fetch(relay, kinds=[FEEDBACK], tags={"e": [row["request_id"]]})
        assert len(results) == 1
        assert [event for event in feedback if event.tag("credit")] == []
    served = {row["request_id"] for row in paid}
    assert {sale["state"] for key, sale in sales.items() if key not in served} <= {"quoted", "expired", "refused"}

    # Both sides to the millisatoshi, by three accounts: wallets, records, ledgers.
    total = PRICE_MSATS * len(paid)
    check_paid(trade.provider, trade.buyer, len(paid))
    earned = trade.provider.check_books()["accounts"]
    assert (earned["earned_msats"], earned["owed_msats"]) == (total, 0)
    for node in (trade.provider, trade.buyer):
        states = {row["state"] for row in node.rows("SELECT DISTINCT state FROM deliveries")}
        assert states <= {DeliveryState.ACCEPTED.value, DeliveryState.CANCELLED.value}
        node.stop()
        node.check_books()
    print(
        f"seed {seed}: {len(paid)} of {trade.orders} purchases answered, the provider killed"
        f" {victims.count('provider')} times, the customer {victims.count('buyer')}, {time.monotonic() - began:.0f} s"
    )
