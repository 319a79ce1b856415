"""Two homes, two processes, and a relay that is not ours between them."""

import time

import pytest

from protocols.nip90 import FEEDBACK
from pylon.testing.provider_process import answer
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet_ledger import Fault, FaultKind
from tests.e2e.homes import BEFOREHAND, FEE_MSATS, FUNDS_SATS, PRICE_MSATS, check_paid, fetch, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def relay(world):
    return world.relay()


@pytest.fixture
def market(world, relay):
    return world.market(relay)


def announced(relay, provider):
    until(lambda: fetch(relay, kinds=[31990], authors=[provider.pubkey]), 10, "an announcement")


def check_one_trade(relay, provider, buyer):
    check_paid(provider, buyer)
    assert provider.check_books()["accounts"]["earned_msats"] == PRICE_MSATS
    (request,) = fetch(relay, kinds=[5050], authors=[buyer.pubkey])
    assert len(fetch(relay, kinds=[6050], tags={"e": [request.id]})) == 1


def test_a_trade_over_a_foreign_relay(relay, market):
    provider, buyer = market
    provider.start("provider", fake=True)
    buyer.start()
    buyer.fund()
    announced(relay, provider)
    job = buyer.json("job", "submit", "-", "--wait", stdin="What is a relay?")
    assert (job["state"], job["provider"]) == ("answered", provider.pubkey)
    assert job["text"] == answer("What is a relay?")
    provider.sale_ended()
    check_one_trade(relay, provider, buyer)
    assert provider.json("earnings")["summary"]["job_count"] == 1
    provider.stop()
    buyer.stop()
    check_one_trade(relay, provider, buyer)


def test_without_a_daemon_the_command_buys_by_itself(relay, market):
    provider, buyer = market
    provider.start("provider", fake=True)
    announced(relay, provider)
    buyer.fund()
    done = buyer.run("job", "submit", "-", stdin="Who asks?")
    assert (done.returncode, done.stdout) == (0, answer("Who asks?") + "\n")
    provider.sale_ended()
    check_one_trade(relay, provider, buyer)


def test_a_request_published_while_the_provider_was_down_is_served(relay, market):
    provider, buyer = market
    provider.start("provider", fake=True)
    announced(relay, provider)
    provider.daemon.kill()
    buyer.start()
    buyer.fund()
    buyer.submit("Are you there?")
    until(lambda: fetch(relay, kinds=[5050], authors=[buyer.pubkey]), 5, "the request")
    provider.start("provider", fake=True)
    assert buyer.purchase_ended()["state"] == "answered"
    provider.sale_ended()
    check_one_trade(relay, provider, buyer)


def test_a_quote_that_comes_too_late_is_not_paid(relay, market):
    provider, buyer = market
    provider.start("provider", fake=True)
    announced(relay, provider)
    provider.daemon.kill()
    buyer.start()
    buyer.fund()
    buyer.submit("Are you there?")
    ended = buyer.purchase_ended()
    assert ended["state"] == "failed"
    assert "no quote in time" in buyer.json("job", "status", ended["id"])["reason"]
    provider.start("provider", fake=True)
    quoted = until(lambda: fetch(relay, kinds=[FEEDBACK], authors=[provider.pubkey]), 10, "the late quote")
    assert [event.tag("status") for event in quoted] == ["payment-required"]
    time.sleep(0.5)  # a quote that means nothing any more leaves no trace: the buyer gets its time to be wrong
    assert buyer.purchase_ended()["state"] == "failed"
    assert [sale["state"] for sale in provider.sales()] == ["quoted"]
    assert buyer.charges() == []
    assert provider.check_books()["accounts"]["owed_msats"] == 0
    assert buyer.wallet_msats() == FUNDS_SATS * 1000
    buyer.check_books()


def test_a_backend_that_always_fails_ends_in_a_debt(world, relay):
    provider, buyer = world.market(relay, selling=BEFOREHAND)
    provider.start("provider", "--fails", fake=True)
    buyer.start()
    buyer.fund()
    announced(relay, provider)
    done = buyer.run("job", "submit", "-", "--wait", stdin="Is it hopeless?", timeout=60)
    assert done.returncode == 1
    assert "credited" in done.stderr
    (sale,) = provider.sales()
    assert (sale["state"], sale["attempts"]) == ("owed", 5)
    assert provider.check_books()["accounts"]["owed_msats"] == PRICE_MSATS
    buyer.check_books()
    (request,) = fetch(relay, kinds=[5050], authors=[buyer.pubkey])
    assert fetch(relay, kinds=[6050], tags={"e": [request.id]}) == []
    (debt,) = [event for event in fetch(relay, kinds=[FEEDBACK], tags={"e": [request.id]}) if event.tag("credit")]
    assert debt.tags_named("credit") == (("credit", str(PRICE_MSATS), request.id),)
    assert len(buyer.charges()) == 1


@pytest.mark.parametrize("kind", [FaultKind.TIMEOUT, FaultKind.PENDING])
@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
def test_a_payment_of_which_nobody_knows(kind, ends, world, relay, market):
    """While it may still settle nothing else is done; then it is either paid once, or not at all."""
    provider, buyer = market
    provider.start("provider", fake=True)
    buyer.start()
    buyer.fund()
    world.inject(Fault(kind, 3.0, ends), buyer)
    buyer.submit("Was it paid?", "--provider", provider.npub)
    until(lambda: [row["state"] for row in buyer.purchases()] == ["paying"], 20, "a payment under way")
    assert buyer.json("wallet", "balance")["pending_msats"] == PRICE_MSATS + FEE_MSATS
    ended = buyer.purchase_ended()
    if ends is PaymentState.SETTLED:
        assert ended["state"] == "answered"
        provider.sale_ended()
        check_one_trade(relay, provider, buyer)
    else:
        assert ended["state"] == "failed"
        assert buyer.charges() == []
        assert buyer.wallet_msats() == FUNDS_SATS * 1000
        assert provider.check_books()["accounts"]["unearned_msats"] == 0
        buyer.check_books()
