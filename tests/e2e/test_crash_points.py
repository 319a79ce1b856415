"""A daemon dies by SIGKILL at every crash point of both machines, is started again, and nobody loses a millisatoshi.

The points are derived from the machines' tables. Each is reached by the scenarios that pass it: a job that is paid at
once or whose payment is held until it is done; a refused bid (``publish_refusal``); a result that the only relay turns
away (``publish_debt``); a restart while a payment is still under way (``reconcile``); a job that its owner cancels
(``publish_cancellation``, ``cancel_hold``), or that fails while its payment is held (``cancel_hold``). An effect that a
table gains is reached by a job, or fails here until it has a scenario of its own. ``make e2e`` takes a sample of it
all, ``make deep`` has everything.
"""

import time

import pytest

from protocols.keys import PublicKey, SecretKey
from protocols.nip09 import build_deletion
from protocols.nip90 import FEEDBACK, build_request
from pylon.compute.purchase import PURCHASE
from pylon.provider.sale import SALE
from pylon.testing.provider_process import answer
from pylon.wallets.simnet_ledger import Fault, FaultKind
from tests.e2e.homes import BEFOREHAND, FUNDS_SATS, PRICE_MSATS, Stranger, check_paid, fetch, stop, until

pytestmark = pytest.mark.e2e

PROMPT = "What happens if you die just now?"
PENDING_SECONDS = 3.0

SCENARIOS = {
    "publish_refusal": ("refused",),
    "publish_debt": ("undelivered", "undelivered, held"),
    "reconcile": ("pending", "pending, held"),
    "publish_cancellation": ("cancelled",),
    "settle_hold": ("held",),
    "cancel_hold": ("withdrawn, held", "failing, held"),
}
"""What else than a job, paid or held, is needed to pass an effect."""
A_JOB = ("paid", "held")
BOTH_SIDES = {"pay", "reconcile", "infer", "settle_hold"}
"""Effects in which money moves or is earned: the sample has them before and after. Of the others it has one side."""


def plays():
    """Every point in each of its scenarios; what is not in the sample is ``deep``."""
    turn = 0
    for machine in (SALE, PURCHASE):
        for effect in machine.effects():
            found = SCENARIOS.get(effect.value, A_JOB)
            turn += 1
            for side_number, side in enumerate(("before", "after")):
                for number, scenario in enumerate(found):
                    # Sides and scenarios alternate, from effect to effect and from side to side.
                    in_turn = number == (turn // 2 + side_number) % len(found)
                    sampled = in_turn and (effect.value in BOTH_SIDES or side_number == turn % 2)
                    marks = () if sampled and scenario != "failing, held" else pytest.mark.deep
                    point = f"{machine.name}.{effect.value}.{side}"
                    yield pytest.param(point, scenario, marks=marks, id=f"{point}-{scenario}")


def test_every_point_has_a_play():
    assert {param.values[0] for param in plays()} == {*SALE.crash_points(), *PURCHASE.crash_points()}


class Market:
    def __init__(self, world, relay, point, scenario):
        self.world, self.relay, self.point = world, relay, point
        self.holds = scenario.endswith("held")
        self.options = ("--fails",) if scenario.startswith("failing") else ()
        self.provider, self.buyer = world.market(relay, selling="" if self.holds else BEFOREHAND)
        self.seller_dies = point.startswith(SALE.name + ".")

    def start(self, *, armed=True):
        point = self.point if armed else None
        seller, customer = (point, None) if self.seller_dies else (None, point)
        daemons = [
            self.provider.start("provider", *self.options, fake=True, crash_at=seller, wait=False),
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
            victim.start("provider", *self.options, fake=True)
        else:
            victim.start()

    def ended(self):
        return self.buyer.purchase_ended(within=40), self.provider.sale_ended()

    def results(self, request):
        return fetch(self.relay, kinds=[6050], tags={"e": [request]})

    def feedback(self, request, status):
        found = fetch(self.relay, kinds=[FEEDBACK], tags={"e": [request]})
        return [event for event in found if event.tag("status") == status]

    def check_nothing_paid(self):
        assert self.buyer.charges() == []
        assert self.buyer.wallet_msats() == FUNDS_SATS * 1000
        assert self.provider.wallet_msats() == 0
        books = self.provider.check_books()["accounts"]
        assert (books["earned_msats"], books["owed_msats"], books["unearned_msats"]) == (0, 0, 0)
        self.buyer.check_books()

    def check_answered(self):
        purchase, sale = self.ended()
        assert (purchase["state"], sale["state"]) == ("answered", "delivered")
        check_paid(self.provider, self.buyer)
        books = self.provider.check_books()["accounts"]
        assert (books["earned_msats"], books["owed_msats"]) == (PRICE_MSATS, 0)
        assert len(self.results(sale["id"])) == 1
        assert len(self.feedback(sale["id"], "payment-required")) == 1
        assert self.buyer.json("job", "status", purchase["id"])["text"] == answer(PROMPT)
        return "paid once, answered once"


def die_in_a_job(market):
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
    check_paid(market.provider, market.buyer)
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


def die_when_a_quote_is_withdrawn(market):
    """A customer who would pay on delivery changes their mind: the invoice that could be held has to end."""
    market.start()
    customer = SecretKey.generate()
    request = build_request(
        customer,
        prompt=PROMPT,
        provider=PublicKey.from_hex(market.provider.pubkey),
        created_at=int(time.time()),
        params=[("pay_on_delivery", "true")],
    )
    with Stranger(market.relay) as stranger:
        stranger.publish(request)
        (quote,) = until(lambda: market.feedback(request.id, "payment-required"), 10, "the quote")
        assert quote.tag("hold")
        deletion = build_deletion(customer, ids=[request.id], kinds=[request.kind], created_at=int(time.time()))
        stranger.publish(deletion)
    market.die_and_restart()
    assert market.provider.sale_ended()["state"] == "cancelled"
    paid = market.buyer.run("wallet", "pay", quote.tags_named("amount")[0][2], "--yes")
    assert paid.returncode != 0
    market.check_nothing_paid()
    return "cancelled once, nothing paid"


def die_when_the_work_fails(market):
    """The payment is held, no attempt comes to an answer, and it goes back to where it came from."""
    market.start()
    market.submit()
    market.die_and_restart()
    purchase, sale = market.ended()
    assert (purchase["state"], sale["state"]) == ("failed", "failed")
    assert market.results(sale["id"]) == []
    market.check_nothing_paid()
    return "given back, nothing paid"


PLAYS = {
    "cancelled": die_in_a_cancellation,
    "paid": die_in_a_job,
    "held": die_in_a_job,
    "pending": die_while_a_payment_is_under_way,
    "undelivered": die_when_the_result_is_turned_away,
    "refused": die_when_the_bid_is_too_low,
    "withdrawn": die_when_a_quote_is_withdrawn,
    "failing": die_when_the_work_fails,
}


@pytest.mark.parametrize(("point", "scenario"), [*plays()])
def test_killed_at(point, scenario, world, shared_relay, figures):
    began = time.monotonic()
    name = scenario.split(",")[0]
    relay = world.relay("--refuse", "6050") if name == "undelivered" else shared_relay
    market = Market(world, relay, point, scenario)
    outcome = PLAYS[name](market)
    stop(market.provider, market.buyer)
    figures(f"{point:<38} {scenario:<18} {outcome:<28} {time.monotonic() - began:5.1f} s")
