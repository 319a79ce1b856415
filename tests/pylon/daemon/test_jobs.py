"""Jobs by their ids: what is cancelled, who is told, and what cannot be."""

from __future__ import annotations

import pytest
import trio

from protocols import nip09
from protocols.nip90 import FeedbackStatus
from pylon.config import Config
from pylon.daemon import books
from pylon.daemon.verbs import Verbs
from pylon.errors import AlreadyPaid, MarketError, NotFound, UsageError
from pylon.money import sats
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.market import open_actor, open_home, until

ASK = {"prompt": "think", "bid_msats": sats(20), "max_tokens": 16}


async def unheard(method: str, params: dict) -> None:
    """Nobody listens to the notifications."""


@pytest.fixture
async def home(market):
    return await open_home(market)


@pytest.fixture
async def verbs(home):
    async with home.buying(discovery_seconds=0.5, patience_seconds=20.0) as (buyer, store):
        yield Verbs(Config(network="simnet"), home.market.clock, store, home.wallet, buyer)


async def call(verbs, name, **params):
    return await verbs.table()[name](params, unheard)


def state_of(verbs, job):
    return verbs.store.one("SELECT state FROM purchases WHERE id = ?", (job["id"],))["state"]


async def reached(verbs, job, state):
    await until(lambda: state_of(verbs, job) == state)


async def test_what_is_still_sought_is_given_up_and_nobody_is_told(autojump_clock, market, verbs, home):
    job = await call(verbs, "job.submit", **ASK)
    done = await call(verbs, "job.cancel", id=job["id"][:8], wait=True)
    assert (done["state"], done["reason"]) == ("failed", "cancelled by its owner")
    seller = await open_actor(market, "seller")
    seller.announce()
    await trio.sleep(30)
    assert state_of(verbs, job) == "failed"
    assert market.events(5050) == market.events(nip09.KIND) == []


async def test_a_request_is_deleted_and_a_late_quote_is_not_paid(autojump_clock, market, verbs, home):
    seller = await open_actor(market, "seller")
    seller.announce()
    job = await call(verbs, "job.submit", **ASK)
    request = await seller.request()
    await call(verbs, "job.cancel", id=request.id, wait=True)
    (event,) = market.events(nip09.KIND, home.secret.public.hex)
    assert nip09.parse_deletion(event).covers(request)
    assert event.tag("k") == "5050"
    await seller.quote(request)
    await trio.sleep(5)
    assert state_of(verbs, job) == "failed"
    assert (await home.wallet.balance()).settled == sats(1_000)
    # Once more changes nothing.
    again = await call(verbs, "job.cancel", id=job["id"], wait=True)
    assert again["state"] == "failed"
    assert len(market.events(nip09.KIND)) == 1
    assert books.report(verbs.store, None).problems == ()


async def test_a_request_that_no_relay_has_acknowledged_is_sent_no_more(autojump_clock, market, verbs):
    seller = await open_actor(market, "seller")
    seller.announce()
    market.relay.faults.lose_ok = 1.0
    job = await call(verbs, "job.submit", **ASK)
    request = await seller.request()

    def states():
        rows = verbs.store.read("SELECT state FROM deliveries WHERE event_id = ?", (request.id,))
        return [row["state"] for row in rows]

    assert states() == ["pending"]
    await call(verbs, "job.cancel", id=job["id"])
    assert states() == ["cancelled"]


async def test_what_is_being_paid_or_paid_takes_its_course(autojump_clock, market, verbs):
    seller = await open_actor(market, "seller")
    seller.announce()
    market.ledger.inject(Fault(FaultKind.TIMEOUT, seconds=30.0))
    job = await call(verbs, "job.submit", **ASK)
    request = await seller.request()
    await seller.quote(request)
    await reached(verbs, job, "paying")
    with pytest.raises(AlreadyPaid, match="being paid") as caught:
        await call(verbs, "job.cancel", id=job["id"])
    assert caught.value.exit_code == 4
    await reached(verbs, job, "paid")
    with pytest.raises(AlreadyPaid, match="was paid with 5 sat"):
        await call(verbs, "job.cancel", id=job["id"])
    seller.answer(request, "words")
    await reached(verbs, job, "answered")
    with pytest.raises(AlreadyPaid, match="was paid"):
        await call(verbs, "job.cancel", id=job["id"])
    assert market.events(nip09.KIND) == []


async def test_an_answer_for_nothing_is_no_money_refused(autojump_clock, market, verbs):
    seller = await open_actor(market, "seller")
    seller.announce()
    job = await call(verbs, "job.submit", **ASK)
    seller.answer(await seller.request(), "words")
    await reached(verbs, job, "answered")
    with pytest.raises(MarketError, match="is answered"):
        await call(verbs, "job.cancel", id=job["id"])


async def test_a_job_that_was_refused_stays_as_it_is(autojump_clock, market, verbs):
    seller = await open_actor(market, "seller")
    seller.announce()
    job = await call(verbs, "job.submit", **ASK)
    request = await seller.request()
    seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="no")
    await reached(verbs, job, "failed")
    done = await call(verbs, "job.cancel", id=job["id"])
    assert "no" in done["reason"]
    assert market.events(nip09.KIND) == []


async def test_ids_that_are_none(verbs):
    for ident, kind in (("abcd", NotFound), ("zz", UsageError), (None, UsageError)):
        with pytest.raises(kind):
            await call(verbs, "job.cancel", id=ident)
