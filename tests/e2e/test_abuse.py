"""Many who ask and never pay, and one who pays, at a real daemon over our relay: it is served, and nothing grows on.

``make e2e`` has a tenth of it, on a machine that has other work; ``make deep`` all: 10,000 requests from 1,000 keys in
a minute. In time is before a buyer gives up, or well before, where the machine is quiet.
"""

import json
import subprocess
import sys
import time
from statistics import median

import psutil
import pytest

from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event
from protocols.nip90 import FEEDBACK, build_request, parse_result
from pylon.store.outbox import DeliveryState
from pylon.testing.provider_process import answer
from tests.e2e.homes import PRICE_MSATS, PURCHASE_ENDS, Stranger, environment, until

pytestmark = pytest.mark.e2e

GROWTH = 60e6
"""Bytes that the provider may need more than before, whatever the number of requests."""
HEARD = 0.75
"""The share of such a flood that may be written down at most: strangers are heard at a bounded rate."""
EVERY = 8
"""Jobs of the customer who is known, to one of somebody who is not."""
RESULT = 6050


class Flood:
    """The flooder's process."""

    def __init__(self, relay, provider, requests, keys, seconds):
        arguments = [relay, provider, str(requests), str(keys), str(seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.flooder", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self):
        assert self._process.stdout.readline() == "signed\n"
        return self

    def __exit__(self, *exc):
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(10)
        self._process.stdout.close()

    def flows(self):
        return self._process.poll() is None

    def found(self):
        return json.loads(self._process.stdout.readline())


def count(node, sql, *params):
    return node.rows(f"SELECT COUNT(*) AS n FROM {sql}", *params)[0]["n"]


def buy(buyer, provider, number):
    """One job of the customer who pays; seconds until the answer is there."""
    prompt = f"Question {number} of somebody who pays"
    began = time.monotonic()
    job = buyer.ask("job.submit", prompt=prompt, bid_msats=2 * PRICE_MSATS, max_tokens=64, provider=provider.npub)

    def ended():
        found = buyer.ask("job.status", id=job["id"])
        return found if found["state"] in PURCHASE_ENDS else None

    found = until(ended, 60, lambda: f"an answer; the purchase is {buyer.ask('job.status', id=job['id'])['state']}")
    assert (found["state"], found["text"]) == ("answered", answer(prompt))
    return time.monotonic() - began


def buy_for_the_first_time(relay, provider, purse):
    """Somebody of whom the provider has never heard: seconds to the quote, and from the payment to the answer."""
    customer = SecretKey.generate()
    request = build_request(
        customer,
        prompt="Do you know me?",
        provider=PublicKey.from_hex(provider.pubkey),
        max_tokens=64,
        created_at=int(time.time()),
    )
    with Stranger(relay) as stranger:
        began = time.monotonic()
        stranger.say("REQ", "mine", {"kinds": [FEEDBACK, RESULT], "#p": [customer.public.hex]})
        stranger.say("EVENT", request.to_dict())

        def told(kind, status=None):
            while True:
                frame = stranger.hear()
                if frame[0] == "EVENT" and frame[2]["kind"] == kind:
                    event = Event.parse(frame[2])
                    if event.pubkey == provider.pubkey and status in (None, event.tag("status")):
                        return event

        (amount,) = told(FEEDBACK, "payment-required").tags_named("amount")
        quoted = time.monotonic() - began
        purse.json("wallet", "pay", amount[2], "--yes")
        began = time.monotonic()
        assert parse_result(told(RESULT), customer).text == answer("Do you know me?")
        return quoted, time.monotonic() - began


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("requests", "keys", "seconds", "in_time"),
    [(1_000, 100, 8, 15.0), pytest.param(10_000, 1_000, 60, 5.0, marks=pytest.mark.deep)],
)
def test_ten_thousand_who_do_not_pay(requests, keys, seconds, in_time, world, figures):
    relay = world.our_relay()
    provider, buyer = world.market(relay)
    purse = world.node("purse").configure()
    purse.fund()
    provider.start("provider", fake=True)
    buyer.start()
    buyer.fund()
    quiet = [buy(buyer, provider, number) for number in range(3)]
    process = psutil.Process(provider.daemon.pid)
    memory, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
    among, first = [], []
    with Flood(relay, provider.pubkey, requests, keys, seconds) as flood:
        time.sleep(seconds / 4)
        while flood.flows():
            among.append(buy(buyer, provider, 100 + len(among)))
            time.sleep(0.25)
            if len(among) % EVERY == 1:
                first.append(buy_for_the_first_time(relay, provider, purse))
        found = flood.found()
    assert found["taken"] == requests
    used = sum(process.cpu_times()[:2]) - cpu
    after = [buy(buyer, provider, 1_000 + number) for number in range(3)]
    grown = process.memory_info().rss - memory
    until(
        lambda: count(provider, f"deliveries WHERE state = '{DeliveryState.PENDING.value}'") == 0, 10, "an empty outbox"
    )
    until(lambda: all(row["state"] != "served" for row in provider.sales()), 10, "the last delivery")
    sales = {row["state"]: row["n"] for row in provider.rows("SELECT state, COUNT(*) AS n FROM sales GROUP BY state")}
    rows = {name: count(provider, name) for name in ("sales", "inbox", "outbox", "deliveries", "transitions")}
    said = len(provider.daemon.said().splitlines())
    disk = sum(path.stat().st_size for path in provider.root.glob("pylon.db*"))
    figures(
        f"{requests:,} requests of {keys:,} keys in {found['seconds']:.0f} s; one customer pays {len(among)} times:"
        f" answered after {median(among):.2f} s, at worst {max(among):.2f} (before {median(quiet):.2f}, after"
        f" {median(after):.2f}); {len(first)} customers come for the first time: quoted after"
        f" {median(quote for quote, _ in first):.2f} s, at worst {max(quote for quote, _ in first):.2f}, and once they"
        f" have paid, answered after {max(rest for _, rest in first):.2f}; the provider grew by {grown / 1e6:.0f} MB,"
        f" used {used:.1f} s of a processor; sales {sales}; rows {rows}; {disk / 1e6:.1f} MB on disk; {said} lines said"
    )
    assert max(among) < in_time
    assert max(after) < in_time
    assert max(max(both) for both in first) < in_time
    assert grown < GROWTH
    assert rows["sales"] < HEARD * requests
    assert rows["outbox"] < rows["sales"] + 3 * (sales["delivered"] + 1)
    jobs = len(quiet) + len(among) + len(after) + len(first)
    assert sales["delivered"] == jobs
    assert provider.wallet_msats() == jobs * PRICE_MSATS
    assert provider.check_books()["accounts"]["earned_msats"] == jobs * PRICE_MSATS
    buyer.check_books()
    provider.stop()
    buyer.stop()
