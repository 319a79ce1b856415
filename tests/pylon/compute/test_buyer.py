"""The buyer against providers, strangers and relays that mean it ill."""

from __future__ import annotations

import pytest
import trio

from protocols.nip90 import FeedbackStatus
from pylon.compute.purchase import PurchaseState
from pylon.daemon import books
from pylon.money import Msat, sats
from pylon.store import cursors
from pylon.wallets.simnet import Fault, FaultKind
from tests.pylon.market import PRICE, open_actor, open_home, until

BID = sats(20)


async def bought(buyer, purchase):
    with trio.fail_after(2_000):
        return await buyer.finished(purchase.id)


async def test_a_thought_is_bought(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.answer(request, "words")
        record = await bought(buyer, purchase)
        assert (record.state, record.text, record.paid) == (PurchaseState.ANSWERED, "words", PRICE)
        assert books.report(store, None).problems == ()
        # After a restart the relays are asked from here on, not for everything they have.
        assert market.now - 60 <= cursors.since(store, "buyer", 0) <= market.now


async def test_a_payment_that_was_pending_for_long_still_leaves_time_for_the_answer(autojump_clock, market):
    """The deadline of the answer runs from the settlement, not from the quote."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    market.ledger.inject(Fault(FaultKind.TIMEOUT, seconds=300.0))
    async with home.buying(answer_seconds=100.0) as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        await seller.quote(await seller.request())
        await until(lambda: buyer.records.load(store, purchase.id).paid, 500.0)
        await trio.sleep(20.0)
        assert buyer.records.load(store, purchase.id).state is PurchaseState.PAID


async def test_a_token_credit_does_not_end_a_purchase(autojump_clock, market):
    """One msat of "credit" for what was paid is no credit: the provider is waited for, and the purchase lost."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying(answer_seconds=100.0) as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="ha", credit_msats=1)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.LOST


async def test_a_credit_out_of_nothing_is_no_more_than_was_paid(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="rich", credit_msats=10**18)
        record = await bought(buyer, purchase)
        assert (record.state, record.credit) == (PurchaseState.CREDITED, PRICE)


async def test_whoever_kept_our_money_is_asked_last(autojump_clock, market):
    home = await open_home(market)
    thief, honest = await open_actor(market, "thief"), await open_actor(market, "honest")
    thief.announce(price=sats(1))
    async with home.buying(answer_seconds=30.0) as (buyer, _):
        purchase = await buyer.buy("first", bid=BID, max_tokens=16)
        await thief.quote(await thief.request(), sats(1))
        assert (await bought(buyer, purchase)).state is PurchaseState.LOST
        honest.announce(price=sats(9))
        second = await buyer.buy("second", bid=BID, max_tokens=16)
        request = await honest.request()
        honest.answer(request, "for nothing")
        record = await bought(buyer, second)
        assert (record.provider, record.text) == (honest.hex, "for nothing")


async def test_a_crowd_of_silent_providers_ends(autojump_clock, market):
    """Announcing is free: a purchase must not ask a thousand names, ten seconds each, and show each its prompt."""
    home = await open_home(market)
    for number in range(40):
        (await open_actor(market, f"sybil{number}", funds=0)).announce(price=sats(1))
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.FAILED
        assert len(record.tried) <= 10
        assert market.clock.now() - record.created_at < 200


async def test_strangers_quotes_answers_and_credits_mean_nothing(autojump_clock, market):
    home, seller, stranger = [await make(market, name) for make, name in _CAST]
    seller.announce()
    async with home.buying(answer_seconds=50.0) as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await stranger.quote(request, sats(1))
        stranger.answer(request, "No worky")
        stranger.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message="no", credit_msats=5)
        await trio.sleep(2)
        assert buyer.records.load(store, purchase.id).state is PurchaseState.REQUESTED
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        stranger.answer(request, "No worky")
        record = await bought(buyer, purchase)
        assert (record.state, record.text) == (PurchaseState.LOST, None)
        assert (await stranger.wallet.balance()).settled == sats(1_000)


_CAST = [(open_home, "home"), (open_actor, "seller"), (open_actor, "stranger")]


async def test_of_two_quotes_one_is_paid(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, _store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        for number in range(5):
            bolt11 = await seller.invoice(PRICE, key=f"quote {number}")
            seller.feedback(
                request.id, request.pubkey, FeedbackStatus.PAYMENT_REQUIRED, amount_msats=PRICE, bolt11=bolt11
            )
        await trio.sleep(5)
        seller.answer(request)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.ANSWERED
        received = [entry for entry in await seller.wallet.payments() if not entry.outside]
        assert [entry.amount for entry in received] == [PRICE]


async def test_an_invoice_of_another_purchase_is_not_paid_again(autojump_clock, market):
    home, seller, other = [await make(market, name) for make, name in _CAST]
    seller.announce(price=sats(1))
    async with home.buying(answer_seconds=20.0, quote_seconds=3.0) as (buyer, _store):
        first = await buyer.buy("first", bid=BID, max_tokens=16, provider=seller.hex)
        bolt11 = await seller.quote(await seller.request(), sats(1))
        await bought(buyer, first)
        second = await buyer.buy("second", bid=BID, max_tokens=16, provider=other.hex)
        request = await other.request()
        other.feedback(request.id, request.pubkey, FeedbackStatus.PAYMENT_REQUIRED, bolt11=bolt11)
        record = await bought(buyer, second)
        assert record.state is PurchaseState.FAILED
        assert record.paid == 0


async def test_a_free_answer_beats_our_own_empty_wallet(autojump_clock, market):
    """An answer that came while the payment was refused by our own wallet is an answer."""
    home, seller = await open_home(market, funds=0), await open_actor(market, "seller")
    seller.announce()
    original, release = home.wallet.pay, trio.Event()

    async def slow(*args, **kwargs):
        await release.wait()
        return await original(*args, **kwargs)

    home.wallet.pay = slow
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAYING)
        seller.answer(request, "gift")
        await until(lambda: buyer.records.load(store, purchase.id).text)
        release.set()
        record = await bought(buyer, purchase)
        assert (record.state, record.text, record.paid) == (PurchaseState.ANSWERED, "gift", 0)


async def test_a_damaged_record_harms_nobody_else(autojump_clock, market):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        bad = await buyer.buy("spoilt", bid=BID, max_tokens=16)
        request = await seller.request()
        await store.write(lambda tx: tx.execute("UPDATE purchases SET record = x'0102' WHERE id = ?", (bad.id,)))
        await seller.quote(request)
        await trio.sleep(60)
        good = await buyer.buy("think", bid=BID, max_tokens=16, provider=seller.hex)
        newer = await until(lambda: _other(market, request))
        seller.answer(newer, "words")
        assert (await bought(buyer, good)).text == "words"
        problems = books.report(store, None).problems
        assert any(bad.id[:16] in problem for problem in problems)
    async with home.buying() as (buyer, _):
        await trio.sleep(30)


def _other(market, request):
    return next((event for event in market.events(5050) if event.id != request.id), None)


async def test_a_poison_event_is_put_aside(autojump_clock, market, monkeypatch):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, _store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        understand = buyer._understand

        def brittle(record, event):
            if event.content == "poison":
                raise RuntimeError("cannot")
            return understand(record, event)

        monkeypatch.setattr(buyer, "_understand", brittle)
        seller.answer(request, "poison", encrypt=False)
        await trio.sleep(5)
        seller.answer(request, "words")
        assert (await bought(buyer, purchase)).text == "words"


async def test_a_full_disk_passes(autojump_clock, market, monkeypatch):
    """No result is lost by an error of the store that passes."""
    from pylon.errors import StoreError

    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying(answer_seconds=3_000.0) as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        write = store.write

        async def full(fn):
            await trio.lowlevel.checkpoint()
            raise StoreError("the disk is full")

        monkeypatch.setattr(store, "write", full)
        seller.answer(request, "words")
        await trio.sleep(900)
        monkeypatch.setattr(store, "write", write)
        assert (await bought(buyer, purchase)).text == "words"


@pytest.mark.parametrize("reason", ["\x1b]0;owned\x07", "line\nline", "\u202e drawkcab"])
async def test_a_providers_words_cannot_command_the_terminal(autojump_clock, market, reason):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, _):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        seller.feedback(request.id, request.pubkey, FeedbackStatus.ERROR, message=reason)
        record = await bought(buyer, purchase)
        assert record.state is PurchaseState.FAILED
        assert record.reason.isprintable()


async def test_a_purchase_begun_while_the_buyer_rests_is_not_an_error(autojump_clock, market):
    """Between an end of the buyer and its next start, purchases are written and taken up later."""
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, _store):
        kept = buyer
        async with trio.open_nursery() as nursery:
            await nursery.start(kept.run)
            nursery.cancel_scope.cancel()
        purchase = await kept.buy("think", bid=BID, max_tokens=16)
        async with trio.open_nursery() as nursery:
            await nursery.start(kept.run)
            seller.answer(await seller.request(), "words")
            assert (await bought(kept, purchase)).text == "words"
            nursery.cancel_scope.cancel()


async def test_nothing_secret_stands_in_plain_columns(autojump_clock, market, tmp_path):
    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("the secret canary", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        seller.answer(request, "a whispered reply")
        record = await bought(buyer, purchase)
        assert "canary" not in repr(record)
        assert record.preimage not in repr(record)
    raw = b"".join(path.read_bytes() for path in tmp_path.glob("home.db*"))
    for secret in (b"canary", b"whispered", record.preimage.encode()):
        assert secret not in raw


async def test_amounts_that_cannot_be_are_booked_as_agreed(autojump_clock, market):
    """A wallet that forgets to say how much it paid has paid what the invoice says."""
    import attrs

    home, seller = await open_home(market), await open_actor(market, "seller")
    seller.announce()
    original = home.wallet.pay

    async def vague(*args, **kwargs):
        return attrs.evolve(await original(*args, **kwargs), amount=Msat(0), fee=Msat(-1))

    home.wallet.pay = vague
    async with home.buying() as (buyer, store):
        purchase = await buyer.buy("think", bid=BID, max_tokens=16)
        request = await seller.request()
        await seller.quote(request)
        await until(lambda: buyer.records.load(store, purchase.id).state is PurchaseState.PAID)
        assert buyer.records.load(store, purchase.id).paid == PRICE
        seller.answer(request)
        await bought(buyer, purchase)
        assert books.report(store, None).problems == ()
