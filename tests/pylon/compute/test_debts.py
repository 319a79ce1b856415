"""Debts of providers: used before anything is paid, never twice, and a lie about them costs its teller alone."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings

from protocols.nip90 import JOB_TEXT, FeedbackStatus, build_result
from pylon.compute import debts
from pylon.compute import purchase as m
from pylon.compute.purchase import PurchaseState
from pylon.compute.purchases import purchase_records
from pylon.daemon import books
from pylon.money import Msat, sats
from pylon.store.database import open_store
from pylon.store.vault import Vault
from tests.pylon.compute.test_buyer import BID, bought
from tests.pylon.market import PRICE, open_actor, open_agent, open_home, until

PROVIDER = "aa" * 32


async def owing(market, seller, buyer, store, owner="", amount=PRICE):
    """A purchase that was paid, and credited."""
    purchase = await buyer.buy("first", bid=BID, max_tokens=16, owner=owner, provider=seller.hex)
    request = await new_request(market, seller)
    await seller.quote(request, amount)
    await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
    seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="sorry", credit_msats=amount)
    assert (await bought(buyer, purchase)).state is PurchaseState.CREDITED
    seen(market).add(request.id)


_seen: dict[int, set[str]] = {}


def seen(market):
    return _seen.setdefault(id(market), set())


async def new_request(market, seller):
    """The newest request to this provider that no test has had yet."""

    def fresh():
        found = [e for e in market.events(JOB_TEXT) if e.tag("p") == seller.hex and e.id not in seen(market)]
        return found[0] if found else None

    request = await until(fresh)
    seen(market).add(request.id)
    return request


async def test_a_debt_is_used_before_another_provider_is_paid(autojump_clock, market):
    home = await open_home(market)
    debtor, cheaper = await open_actor(market, "debtor"), await open_actor(market, "cheaper")
    debtor.announce()
    async with home.buying() as (buyer, store):
        await owing(market, debtor, buyer, store)
        cheaper.announce(price=sats(1))
        await trio.sleep(1)
        assert debts.owed_to(store, "") == {debtor.hex: PRICE}
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        request = await new_request(market, debtor)
        debtor.feedback(request.id, request.pubkey, FeedbackStatus.PROCESSING, credit_used_msats=PRICE)
        await trio.sleep(30)  # longer than a quote may take: it is being worked on
        assert debts.owed_to(store, "") == {}, "it is in use"
        debtor.answer(request, "for what you owe")
        record = await bought(buyer, second)
        assert (record.state, record.paid, record.credit_used) == (PurchaseState.ANSWERED, 0, PRICE)
        assert debts.owed_to(store, "") == {}
        third = await buyer.buy("third", bid=BID, max_tokens=16)
        await until(lambda: buyer.records.load(store, third.id).provider == cheaper.hex)
        assert books.report(store, None).problems == ()


async def test_a_part_is_taken_off_and_the_rest_is_paid(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store, amount=sats(2))
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        request = await new_request(market, seller)
        await seller.quote(request, sats(3), credit_used_msats=sats(2))
        await until(lambda: buyer.records.load(store, second.id).state is PurchaseState.PAID)
        seller.answer(request)
        record = await bought(buyer, second)
        assert (record.paid, record.credit_used) == (sats(3), sats(2))
        assert debts.owed_to(store, "") == {}


@pytest.mark.parametrize(("amount", "used"), [(sats(5), sats(1)), (sats(1), sats(5)), (1, 10**17)])
async def test_debt_and_amount_together_are_the_price(autojump_clock, market, amount, used):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store)
        second = await buyer.buy("second", bid=BID, max_tokens=16, provider=seller.hex)
        await seller.quote(await new_request(market, seller), amount, credit_used_msats=used)
        record = await bought(buyer, second)
        assert (record.state, record.paid, record.credit_used) == (PurchaseState.FAILED, 0, 0)
        assert "of its debts" in record.reason
        assert debts.owed_to(store, "") == {seller.hex: PRICE}


async def test_a_debt_that_we_have_never_heard_of_is_taken_and_not_booked(autojump_clock, market):
    """As after a restored backup: an honest provider that owes us more than we know must not be turned away."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await new_request(market, seller)
        await seller.quote(request, sats(1), credit_used_msats=sats(4))
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.answer(request)
        record = await bought(buyer, purchase)
        assert (record.paid, record.credit_used) == (sats(1), 0)
        assert debts.owed_by(store, "", seller.hex) == 0


async def test_of_two_that_use_the_same_debt_one_does(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying(quote_seconds=100.0) as (buyer, store):
        await owing(market, seller, buyer, store, amount=sats(4))
        bought_ones = [await buyer.buy(f"number {n}", bid=BID, max_tokens=16, provider=seller.hex) for n in range(2)]
        requests = [await new_request(market, seller) for _ in bought_ones]
        for request in requests:
            await seller.quote(request, sats(1), credit_used_msats=sats(4))
        await until(lambda: all(buyer.records.load(store, p.id).state is PurchaseState.PAID for p in bought_ones))
        used = sorted(buyer.records.load(store, purchase.id).credit_used for purchase in bought_ones)
        assert used == [0, sats(4)], "what is taken off twice is the provider's own loss"
        assert debts.owed_to(store, "") == {}


async def test_what_fails_gives_its_debt_back(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store)
        second = await buyer.buy("second", bid=BID, max_tokens=16, provider=seller.hex)
        request = await new_request(market, seller)
        seller.feedback(request.id, request.pubkey, FeedbackStatus.PROCESSING, credit_used_msats=PRICE)
        await until(lambda: buyer.records.load(store, second.id).served)
        assert debts.owed_to(store, "") == {}
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="sorry", credit_msats=PRICE)
        record = await bought(buyer, second)
        assert (record.state, record.credit_used) == (PurchaseState.FAILED, 0)
        assert debts.owed_to(store, "") == {seller.hex: PRICE}


async def test_whoever_says_that_it_works_on_it_may_say_so_once(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying(answer_seconds=50.0) as (buyer, _store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await new_request(market, seller)
        began = market.clock.now()

        async def say_so():
            while True:
                seller.feedback(request.id, request.pubkey, FeedbackStatus.PROCESSING, message=str(market.clock.now()))
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_so)
            record = await bought(buyer, purchase)
            nursery.cancel_scope.cancel()
        assert record.state is PurchaseState.FAILED
        assert "no answer in time" in record.reason
        assert market.clock.now() - began < 80


async def test_who_does_not_take_off_what_it_owes_gains_nothing_by_owing(autojump_clock, market):
    """Else a thief that owes would come first for ever, at its full price."""
    home = await open_home(market)
    thief, cheaper = await open_actor(market, "thief"), await open_actor(market, "cheaper")
    thief.announce(price=sats(8))
    async with home.buying() as (buyer, store):
        await owing(market, thief, buyer, store, amount=sats(8))
        cheaper.announce(price=sats(7))
        await trio.sleep(1)
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        request = await new_request(market, thief)
        await thief.quote(request, sats(8))
        await until(lambda: buyer.records.load(store, second.id).state is PurchaseState.PAID)
        assert debts.owed_to(store, "") == {}
        thief.answer(request)
        await bought(buyer, second)
        third = await buyer.buy("third", bid=BID, max_tokens=16)
        await until(lambda: buyer.records.load(store, third.id).provider == cheaper.hex)
        # What it owes from now on counts again.
        await buyer.give_up(third.id, "enough")
        await owing(market, thief, buyer, store, amount=sats(8))
        assert debts.owed_to(store, "") == {thief.hex: sats(8)}


async def test_what_cannot_be_invoiced_is_not_disowned(autojump_clock, market):
    """A wallet that settles whole sats leaves a fraction of a debt for later."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store, amount=2_500)
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        await seller.quote(await new_request(market, seller), sats(3), credit_used_msats=sats(2))
        await until(lambda: buyer.records.load(store, second.id).state is PurchaseState.PAID)
        assert debts.owed_to(store, "") == {seller.hex: 500}


async def test_debts_are_their_owners_own(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    agent = await open_agent(home)
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store, owner=agent.hex)
        assert debts.owed_to(store, agent.hex) == {seller.hex: PRICE}
        assert debts.owed_to(store, "") == {}
        assert debts.owed_by(store, "", seller.hex) == 0


async def test_a_result_may_be_the_first_word_of_a_debt(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        await owing(market, seller, buyer, store)
        second = await buyer.buy("second", bid=BID, max_tokens=16, provider=seller.hex)
        request = await new_request(market, seller)
        market.relay.publish(
            build_result(
                seller.secret,
                request=request.id,
                request_kind=JOB_TEXT,
                customer=request.pubkey,
                text="words",
                encrypt=True,
                created_at=market.now,
                credit_used_msats=10**17,
            )
        )
        record = await bought(buyer, second)
        assert (record.text, record.credit_used) == ("words", PRICE)
        assert debts.owed_to(store, "") == {}


STATES = [s for s in PurchaseState if s is not PurchaseState.NEW]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(STATES), st.integers(0, 50), st.integers(0, 50), st.sampled_from(["", "b" * 64])),
        max_size=12,
    )
)
def test_the_sums_are_what_they_say(tmp_path_factory, rows):
    """Against the same said in Python. There is always a debt to begin with, or little would ever be left."""
    rows = [(PurchaseState.CREDITED, 100, 0, owner) for owner in ("", "b" * 64)] + rows
    path = tmp_path_factory.mktemp("debts") / "pylon.db"

    async def main():
        from pylon.clock import SystemClock

        clock = SystemClock()
        async with open_store(path, vault=Vault(bytes(32)), clock=clock, executor="inline", durable=False) as store:
            table = purchase_records(store)
            for number, (state, credit, used, owner) in enumerate(rows):
                record = m.Purchase(
                    id=f"{number:032x}",
                    created_at=0.0,
                    prompt="",
                    max_tokens=1,
                    bid=BID,
                    owner=owner,
                    provider=PROVIDER,
                    credit=Msat(credit),
                    credit_used=Msat(used),
                )

                def write(tx, record=record, state=state):
                    step = table.begin(tx, record, m.Begun(), 0.0)
                    import attrs

                    table.amend(tx, attrs.evolve(step.after, state=state), 0.0)

                await store.write(write)
            for owner in ("", "b" * 64):
                mine = [(s, c, u) for s, c, u, o in rows if o == owner]
                given_ = sum(c for s, c, _ in mine if s is PurchaseState.CREDITED)
                gone = sum(u for s, _, u in mine if s not in (PurchaseState.CREDITED, PurchaseState.FAILED))
                left = given_ - gone
                assert debts.owed_by(store, owner, PROVIDER) == max(left, 0)
                assert debts.owed_to(store, owner) == ({PROVIDER: left} if left > 0 else {})

    trio.run(main)
