"""One job's life, as its buyer and as its seller tell it."""

from __future__ import annotations

import pytest

from pylon.config import Config
from pylon.daemon.verbs import Verbs
from pylon.errors import NotFound, UsageError
from pylon.money import sats
from pylon.provider.sale import Free, Sale
from pylon.provider.sales import sale_records
from tests.pylon.market import PRICE, RELAY, open_home, until

ASK = {"prompt": "a secret question", "bid_msats": sats(20), "max_tokens": 16}


async def unheard(method: str, params: dict) -> None:
    """Nobody listens to the notifications."""


async def call(verbs, name, **params):
    return await verbs.table()[name](params, unheard)


@pytest.fixture
async def both(autojump_clock, market):
    """A home that has bought an answer, one that has sold it, and the job."""
    home, shop = await open_home(market), await open_home(market, "shop", funds=0)
    config = Config(network="simnet")
    async with shop.selling() as (_, sold), home.buying() as (buyer, bought):
        mine, theirs = Verbs(config, market.clock, bought, home.wallet, buyer), Verbs(config, market.clock, sold)
        job = await call(mine, "job.submit", **ASK, provider=shop.secret.public.hex, wait=True)
        assert job["state"] == "answered", job
        await until(lambda: sold.one("SELECT 1 FROM sales WHERE state = 'delivered'"))
        yield mine, theirs, job


async def test_a_purchase(autojump_clock, both):
    mine, _, job = both
    told = await call(mine, "trace", id=job["id"])
    (record,) = told["records"]
    assert (told["id"], record["machine"], record["state"]) == (job["id"], "purchase", "answered")
    assert [step["to_state"] for step in record["history"]] == ["seeking", "requested", "paying", "paying", "answered"]
    assert sum(step["ms"] for step in record["history"]) == pytest.approx(record["ms"], abs=5)
    assert all(step["ms"] >= 0 for step in record["history"])
    (request,) = record["events"]
    assert (request["kind"], request["event_id"]) == (5050, job["request"])
    assert [(relay["relay"], relay["state"]) for relay in request["relays"]] == [(RELAY, "accepted")]
    assert request["relays"][0]["ms"] >= 0
    (payment,) = record["payments"]
    assert record["hold_until"] > record["created_at"], "both wallets can hold"
    assert record["credit_used_msats"] == 0
    assert (payment["state"], payment["amount_msats"], payment["fee_msats"]) == ("settled", PRICE, job["fee_msats"])
    assert [entry["request_id"] for entry in record["requests"]] == [job["request"]]
    for ident in (job["id"][:8].upper(), job["request"][:8], job["result"], job["result"][:10]):
        assert await call(mine, "trace", id=ident) == told


async def test_a_sale(autojump_clock, both):
    _, theirs, job = both
    told = await call(theirs, "trace", id=job["request"])
    (record,) = told["records"]
    assert (told["id"], record["machine"], record["state"]) == (job["request"], "sale", "delivered")
    assert (record["price_msats"], record["paid_msats"], record["earned_msats"]) == (PRICE, PRICE, PRICE)
    assert [payment["amount_msats"] for payment in record["payments"]] == [PRICE]
    assert record["held_until"] > record["created_at"]
    assert (record["on_trust"], record["credit_used_msats"]) == (False, 0)
    kinds = [event["kind"] for event in record["events"]]
    assert (kinds.count(7000), kinds.count(6050)) == (2, 1)
    result = record["events"][-1]["event_id"]
    assert result == job["result"]
    assert await call(theirs, "trace", id=result[:12]) == told


async def test_neither_question_nor_answer_is_told(autojump_clock, both):
    mine, theirs, job = both
    for verbs in (mine, theirs):
        told = repr(await call(verbs, "trace", id=job["request"]))
        assert "secret question" not in told
        assert job["text"] not in told


async def test_what_is_bought_and_sold_here_is_one_job(autojump_clock, both, market):
    """As when an agent buys from the home that it lives in: both records are in one store."""
    mine, _, job = both

    def job_of_both(tx):
        sale = Sale(id=job["request"], customer="c" * 64, kind=5050, created_at=market.clock.now())
        sale_records(mine.store).begin(tx, sale, Free(), market.clock.now())

    await mine.store.write(job_of_both)
    for ident in (job["id"], job["request"]):
        told = await call(mine, "trace", id=ident)
        assert told["id"] == job["id"]
        assert [record["machine"] for record in told["records"]] == ["purchase", "sale"]


async def test_an_id_that_is_ambiguous_or_none(autojump_clock, both):
    mine, _, _ = both

    def requests(tx):
        for digit in "12":
            tx.execute(
                "INSERT INTO purchase_requests (request_id, purchase_id, provider, created_at) VALUES (?, ?, '', 0)",
                ("abcd" + digit * 60, digit * 32),
            )

    await mine.store.write(requests)
    for ident, kind in (
        ("abcd", NotFound),
        ("abc", UsageError),
        ("f" * 64, NotFound),
        (None, UsageError),
        ("ab_d", UsageError),
    ):
        with pytest.raises(kind):
            await call(mine, "trace", id=ident)
