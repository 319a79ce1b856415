"""The engine's process dies in the middle of a paid answer: the answer comes all the same, or what was paid is owed."""

import os
import signal

import psutil
import pytest

from tests.e2e.homes import BEFOREHAND, PRICE_MSATS, fetch, until

pytestmark = pytest.mark.e2e


def engine_of(daemon):
    """The engine is the daemon's only child."""
    children = psutil.Process(daemon.pid).children()
    assert len(children) <= 1, children
    return children[0] if children else None


def test_an_engine_killed_in_the_middle_of_a_paid_answer(model, world):
    relay = world.relay()
    provider, buyer = world.market(relay, selling=BEFOREHAND)
    provider.start("provider", "--model-file", str(model.path))
    buyer.start()
    buyer.fund()
    until(lambda: fetch(relay, kinds=[31990], authors=[provider.pubkey]), 30, "an announcement")
    until(lambda: provider.ask("status")["backends"][0]["ok"], 60, "a loaded model")
    first = engine_of(provider.daemon)
    before = first.cpu_times().user
    buyer.submit("Tell a very long story about a lighthouse.", "--max-tokens", "256")
    until(lambda: [row["state"] for row in provider.sales()] == ["working"], 20, "paid work")
    until(lambda: first.cpu_times().user > before + 0.4, 20, "an answer under way")
    assert [row["state"] for row in provider.sales()] == ["working"]
    os.kill(first.pid, signal.SIGKILL)

    purchase, sale = buyer.purchase_ended(within=90), provider.sale_ended()
    assert len(buyer.charges()) == 1
    books = provider.check_books()["accounts"]
    results = fetch(relay, kinds=[6050], tags={"e": [sale["id"]]})
    if purchase["state"] == "answered":
        assert sale["state"] == "delivered"
        assert sale["attempts"] >= 1
        assert len(results) == 1
        assert buyer.ask("job.status", id=purchase["id"])["text"].strip()
        assert (books["earned_msats"], books["owed_msats"]) == (PRICE_MSATS, 0)
    else:
        assert (purchase["state"], sale["state"]) == ("credited", "owed")
        assert results == []
        assert (books["earned_msats"], books["owed_msats"]) == (0, PRICE_MSATS)
    buyer.check_books()
    second = until(lambda: engine_of(provider.daemon), 30, "another engine")
    assert second.pid != first.pid
    provider.stop()
    until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE, 10, "its end with the daemon")
    buyer.stop()
