"""A daemon dies by SIGKILL at every crash point of both machines, is started again, and nobody loses a millisatoshi.

The points are derived from the machines' tables. Each is reached by the scenario that passes it: a paid job; a refused
bid (``publish_refusal``); a result that the only relay turns away (``publish_debt``); a restart while a payment is
still under way (``reconcile``); a job that its owner cancels (``publish_cancellation``); a model that fails while the
money is held (``cancel_hold``). An effect that a table gains
is reached by a paid job, or fails here until it has a scenario of its own. ``make e2e`` takes a sample of the points,
``make deep`` all of them.
"""

import time

import pytest

from protocols.keys import PublicKey, SecretKey
from protocols.nip90 import FEEDBACK, build_request
from pylon.compute.purchase import PURCHASE
from pylon.provider.sale import SALE
from pylon.testing.provider_process import answer
from pylon.wallets.simnet_ledger import Fault, FaultKind
from tests.e2e.homes import FEE_MSATS, FUNDS_SATS, PRICE_MSATS, Stranger, fetch, stop, until

pytestmark = pytest.mark.e2e

PROMPT = "What happens if you die just now?"
PENDING_SECONDS = 3.0

SCENARIOS = {
    "publish_refusal": "refused",
    "publish_debt": "undelivered",
    "reconcile": "pending",
    "publish_cancellation": "cancelled",
    "cancel_hold": "given back",
}
"""What else than a paid job is needed to pass an effect."""


BOTH_SIDES = {"pay", "reconcile", "infer", "settle_hold"}
"""Effects in which money moves or is earned: the sample has them before and after. Of the others it has one side."""


def points():
    """All of them; those that are not in the sample are ``deep``."""
    for machine in (SALE, PURCHASE):
        for number, effect in enumerate(machine.effects()):
            for turn, side in enumerate(("before", "after")):
                sampled = effect.value in BOTH_SIDES or turn == number % 2
                yield pytest.param(f"{machine.name}.{effect.value}.{side}", marks=() if sampled else pytest.mark.deep)


def test_every_point_is_named():
    assert [param.values[0] for param in points()] == [*SALE.crash_points(), *PURCHASE.crash_points()]


def scenario_of(point):
    return SCENARIOS.get(point.split(".")[1], "paid")


class Market:
    def __init__(self, world, relay, point):
        self.world, self.relay, self.point = world, relay, point
        self.provider, self.buyer = world.market(relay)
        self.seller_dies = point.startswith(SALE.name + ".")

    def start(self, *options, armed=True):
        """``options`` are the provider's."""
        point = self.point if armed else None
        seller, customer = (point, None) if self.seller_dies else (None, point)
        daemons = [
            self.provider.start("provider", *options, fake=True, crash_at=seller, wait=False),
            self.buyer.start(crash_at=customer, wait=False),
        ]
        for daemon in daemons:
            daemon.ready()
        self.buyer.fund()

    def submit(self, *options):
        """The daemon may die before it has answered; the job is written down all the same."""
        self.buyer.run("job", "submit", "-", "--provider", self.provider.npub, *options, "--json", stdin=PROMPT)
        assert len(self.buyer.purchases()) == 1

    def die_and_restart(self):
        victim = self.provider if self.seller_dies else self.buyer
        victim.daemon.killed()
        if self.seller_dies:
            victim.start("provider", fake=True)
        else:
            victim.start()

    def ended(self):
        return self.buyer.purchase_ended(within=40), self.provider.sale_ended()

    def results(self, request):
        return fetch(self.relay, kinds=[6050], tags={"e": [request]})

    def feedback(self, request, status):
        found = fetch(self.relay, kinds=[FEEDBACK], tags={"e": [request]})
        return [event for event in found if event.tag("status") == status]

    def check_paid_once(self):
        charges = [(row["state"], row["msats"], row["fee_msats"]) for row in self.buyer.charges()]
        assert charges == [("settled", PRICE_MSATS, FEE_MSATS)]
        assert self.buyer.wallet_msats() == FUNDS_SATS * 1000 - PRICE_MSATS - FEE_MSATS
        assert self.provider.wallet_msats() == PRICE_MSATS
        assert self.buyer.check_books()["accounts"]["spent_msats"] == PRICE_MSATS

    def check_answered(self):
        purchase, sale = self.ended()
        assert (purchase["state"], sale["state"]) == ("answered", "delivered")
        self.check_paid_once()
        books = self.provider.check_books()["accounts"]
        assert (books["earned_msats"], books["owed_msats"]) == (PRICE_MSATS, 0)
        assert len(self.results(sale["id"])) == 1
        assert len(self.feedback(sale["id"], "payment-required")) == 1
        assert self.buyer.json("job", "status", purchase["id"])["text"] == answer(PROMPT)
        return "paid once, answered once"


def die_in_a_paid_job(market):
    market.start()
    market.submit()
    market.die_and_restart()
    return market.check_answered()


def die_while_a_payment_is_under_way(market):
    """The first death leaves a payment pending, so that the restart has to reconcile; it dies doing that."""
    market.world.inject(Fault(FaultKind.PENDING, PENDING_SECONDS), market.buyer)
    market.start(armed=False)
    market.submit()
    until(lambda: [row["state"] for row in market.buyer.charges()] == ["pending"], 20, "a payment under way")
    market.buyer.daemon.kill()
    market.buyer.start(crash_at=market.point, wait=False)
    market.die_and_restart()
    return market.check_answered()


def die_when_the_result_is_turned_away(market):
    market.start()
    market.submit()
    market.die_and_restart()
    purchase, sale = market.ended()
    assert (purchase["state"], sale["state"]) == ("credited", "owed")
    market.check_paid_once()
    books = market.provider.check_books()["accounts"]
    assert (books["earned_msats"], books["owed_msats"]) == (0, PRICE_MSATS)
    assert market.results(sale["id"]) == []
    (debt,) = market.feedback(sale["id"], "error")
    assert debt.tag("credit") == str(PRICE_MSATS)
    assert market.buyer.ask("job.status", id=purchase["id"])["credit_msats"] == PRICE_MSATS
    return "paid once, owed once"


def die_when_the_bid_is_too_low(market):
    """Our own buyer would not even ask at a price below the announced one: a stranger does."""
    market.start()
    customer = SecretKey.generate()
    request = build_request(
        customer,
        prompt=PROMPT,
        provider=PublicKey.from_hex(market.provider.pubkey),
        bid_msats=PRICE_MSATS - 1,
        created_at=int(time.time()),
    )
    with Stranger(market.relay) as stranger:
        stranger.publish(request)
    market.die_and_restart()
    sale = market.provider.sale_ended()
    assert (sale["id"], sale["state"]) == (request.id, "refused")
    (refusal,) = until(lambda: market.feedback(request.id, "error"), 10, "the refusal")
    assert "below the price" in refusal.tags_named("status")[0][2]
    assert fetch(market.relay, kinds=[FEEDBACK, 6050], tags={"e": [request.id]}) == [refusal]
    assert market.provider.wallet_msats() == 0
    accounts = market.provider.check_books()["accounts"]
    assert (accounts["earned_msats"], accounts["owed_msats"]) == (0, 0)
    market.buyer.check_books()
    return "refused once, nothing paid"


def die_in_a_cancellation(market):
    """The provider is gone before it has quoted: so there is time to change one's mind."""
    market.start()
    stop(market.provider)
    market.submit()
    (job,) = until(lambda: [row for row in market.buyer.purchases() if row["state"] == "requested"], 20, "a request")
    market.buyer.run("job", "cancel", job["id"])
    market.die_and_restart()
    until(lambda: fetch(market.relay, kinds=[5], authors=[market.buyer.pubkey]), 20, "the deletion")
    (deletion,) = fetch(market.relay, kinds=[5], authors=[market.buyer.pubkey])
    purchase = market.buyer.json("job", "status", job["id"])
    assert (purchase["state"], deletion.tag("e")) == ("failed", purchase["request"])
    assert market.buyer.charges() == []
    market.buyer.check_books()
    return "told once, nothing paid"


def die_as_a_hold_is_given_back(market):
    """Whatever the model does: what was held for the job is not kept, and not owed."""
    market.start("--fails")
    market.submit()
    market.die_and_restart()
    purchase, sale = market.ended()
    assert (purchase["state"], sale["state"]) == ("failed", "failed")
    assert market.buyer.charges() == []
    assert (market.buyer.wallet_msats(), market.provider.wallet_msats()) == (FUNDS_SATS * 1000, 0)
    books = market.provider.check_books()["accounts"]
    assert (books["earned_msats"], books["owed_msats"]) == (0, 0)
    market.buyer.check_books()
    return "given back, nothing paid"


PLAYS = {
    "given back": die_as_a_hold_is_given_back,
    "cancelled": die_in_a_cancellation,
    "paid": die_in_a_paid_job,
    "pending": die_while_a_payment_is_under_way,
    "undelivered": die_when_the_result_is_turned_away,
    "refused": die_when_the_bid_is_too_low,
}


@pytest.mark.parametrize("point", [*points()])
def test_killed_at(point, world, shared_relay, figures):
    began = time.monotonic()
    scenario = scenario_of(point)
    relay = world.relay("--refuse", "6050") if scenario == "undelivered" else shared_relay
    market = Market(world, relay, point)
    outcome = PLAYS[scenario](market)
    stop(market.provider, market.buyer)
    figures(f"{point:<38} {scenario:<12} {outcome:<28} {time.monotonic() - began:5.1f} s")
