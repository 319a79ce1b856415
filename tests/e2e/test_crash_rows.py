"""The four ways to die in which a provider of the same trade takes the money and loses the job, on ours.

nostr-dvm 1.1.8 keeps its jobs in memory and hears nothing of what was published while it was down: killed right after
payment it answered 0 of 5, paid while down 0 of 5, and kept the sats of all ten; requested while down it never saw.
Both sides are the installed command, killed with SIGKILL; the relay is not ours. Each row with payments that are kept
at once (*paid*), and with such as are held until the work is done (*held*).
"""

import random
import time

import pytest

from pylon.testing.provider_process import answer
from pylon.wallets.simnet_ledger import Fault, FaultKind
from tests.e2e.homes import BEFOREHAND, PRICE_MSATS, PURCHASE_ENDS, SALE_ENDS, check_paid, fetch, until
from tests.e2e.http_backend import http_backend

pytestmark = pytest.mark.e2e

THINKS = 0.4
DOWN = 0.3
"""Seconds for which it is gone, beside the time that a start takes."""
SETTLES = 2.0
"""Seconds until a payment that is begun before the death is settled: in time to die first."""
A_BATCH = 4
"""Jobs that meet one death, where that is not the job's own."""


class Row:
    def __init__(self, world, relay, backend, holds):
        self.world, self.relay, self.backend = world, relay, backend
        self.provider, self.buyer = world.market(relay, selling="" if holds else BEFOREHAND, more=backend.table)
        backend.seconds = THINKS
        self.rng = random.Random(1)
        self.deaths = self.too_late = 0
        self.asked = {}

    def open(self):
        self.provider.start("provider", wait=False)
        self.buyer.start()
        self.provider.daemon.ready()
        self.buyer.fund()

    def ask(self, count):
        for _ in range(count):
            prompt = f"Question {len(self.asked) + 1}: what if you die just now?"
            job = self.buyer.ask(
                "job.submit", prompt=prompt, bid_msats=2 * PRICE_MSATS, max_tokens=64, provider=self.provider.npub
            )
            self.asked[job["id"]] = prompt

    def kill(self):
        self.provider.daemon.kill()
        self.deaths += 1

    def rise(self):
        time.sleep(DOWN)
        self.provider.start("provider")

    def paid(self):
        """Payments that have arrived: to be kept, or held until the work is done."""
        held = {row["payment_hash"] for row in self.buyer.held()}
        return sum(row["state"] == "settled" or row["payment_hash"] in held for row in self.buyer.charges())

    def wait_for_answers(self):
        def over():
            ended = [row for row in self.buyer.purchases() if row["state"] in PURCHASE_ENDS]
            return len(ended) == len(self.asked)

        until(over, 60, lambda: f"an end of {self.buyer.purchases()}")
        until(lambda: all(row["state"] in SALE_ENDS for row in self.provider.sales()), 20, "an end of all sales")


def no_kill(row, count):
    row.ask(count)


def killed_right_after_payment(row, count):
    """Each job meets a death of its own, between the payment and the last word of the backend."""
    for number in range(1, count + 1):
        row.ask(1)
        until(lambda number=number: row.paid() == number, 20, "a payment")
        time.sleep(row.rng.uniform(0.0, THINKS / 2))
        row.kill()
        row.too_late += row.provider.sales()[-1]["state"] in SALE_ENDS
        row.rise()
    assert row.too_late < count, "it never died in time"


def paid_while_down(row, count):
    """Payments that are on their way when it dies, and settle while it is gone."""
    for already in range(0, count, A_BATCH):
        batch = min(A_BATCH, count - already)
        row.world.inject(Fault(FaultKind.PENDING, SETTLES), row.buyer, batch)
        row.ask(batch)
        until(lambda upto=already + batch: len(row.buyer.charges()) == upto, 20, "payments under way")
        row.kill()
        assert row.paid() == already, "it was to die before it was paid"
        until(lambda upto=already + batch: row.paid() == upto, 20, "payments while it is down")
        row.rise()


def requested_while_down(row, count):
    for already in range(0, count, A_BATCH):
        row.kill()
        row.ask(min(A_BATCH, count - already))
        wanted = len(row.asked)
        until(
            lambda wanted=wanted: len(fetch(row.relay, kinds=[5050], authors=[row.buyer.pubkey])) == wanted,
            10,
            "requests while it is down",
        )
        assert len(row.buyer.charges()) == already
        row.rise()
        row.wait_for_answers()


MONEY_IS_UNDER_WAY = ("killed right after payment", "paid while down")
PLAYS = {
    "no kill (control)": no_kill,
    "killed right after payment": killed_right_after_payment,
    "paid while down": paid_while_down,
    "requested while down": requested_while_down,
}


def rows():
    """``make e2e`` has those in which a payment meets a death with and without holding it, and a few jobs each."""
    for name in PLAYS:
        for holds in (False, True):
            deep = () if not holds or name in MONEY_IS_UNDER_WAY else pytest.mark.deep
            called = f"{name}-{'held' if holds else 'paid'}"
            yield pytest.param(name, holds, 4, id=f"{called}-4", marks=deep)
            yield pytest.param(name, holds, 20, id=f"{called}-20", marks=pytest.mark.deep)


@pytest.mark.parametrize(("name", "holds", "jobs"), [*rows()])
def test_row(name, holds, jobs, world, figures):
    began = time.monotonic()
    relay = world.relay()
    with http_backend() as backend:
        row = Row(world, relay, backend, holds)
        row.open()
        PLAYS[name](row, jobs)
        row.wait_for_answers()
        check(row, jobs, jobs if holds else 0)
        row.provider.stop()
        row.buyer.stop()
    deaths = row.deaths - row.too_late
    figures(
        f"{name:<28} {'held' if holds else 'paid'} {jobs:>3} jobs, {deaths:>2} deaths: {jobs}/{jobs} results, one each;"
        f" {jobs * PRICE_MSATS // 1000} sats paid and earned, none owed; {time.monotonic() - began:.0f} s"
    )


def check(row, jobs, held):
    """Delivered, once, paid once; both sides to the millisatoshi."""
    purchases = row.buyer.purchases()
    assert [purchase["state"] for purchase in purchases] == ["answered"] * jobs
    assert [sale["state"] for sale in row.provider.sales()] == ["delivered"] * jobs
    found = row.provider.rows("SELECT COUNT(DISTINCT subject) AS n FROM transitions WHERE to_state = 'held'")
    assert found[0]["n"] == held
    for purchase in purchases:
        assert len(fetch(row.relay, kinds=[6050], tags={"e": [purchase["request_id"]]})) == 1
        feedback = fetch(row.relay, kinds=[7000], tags={"e": [purchase["request_id"]]})
        assert sum(event.tag("status") == "payment-required" for event in feedback) == 1
        assert not any(event.tag("credit") for event in feedback)
        text = row.buyer.ask("job.status", id=purchase["id"])["text"]
        assert text == answer(row.asked[purchase["id"]])
    check_paid(row.provider, row.buyer, jobs)
    accounts = row.provider.check_books()["accounts"]
    total = jobs * PRICE_MSATS
    assert (accounts["earned_msats"], accounts["owed_msats"], accounts["unearned_msats"]) == (total, 0, 0)
