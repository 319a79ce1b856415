"""What Pylon did not cause, booked once by owner and payment."""

from __future__ import annotations

import pytest

from pylon.money import Msat, sats
from pylon.store import intents, ledger
from pylon.wallets.history import all_payments, book_outside, book_outside_in
from pylon.wallets.port import Direction, Payment, PaymentState
from tests.pylon.market import open_actor, open_home

OWNER = "aa" * 32


def payment(number=1, direction=Direction.RECEIVED, state=PaymentState.SETTLED, amount=1_000, **changes):
    said = {"payment_id": str(number), "payment_hash": f"{number:064x}", "fee": Msat(3), "created_at": 100.0, **changes}
    return Payment(direction=direction, state=state, amount=Msat(amount), **said)


@pytest.fixture
async def store(autojump_clock, market):
    home = await open_home(market, funds=0)
    async with home.opened() as (store, _):
        yield store


def plant(store, sql, *params):
    return store.write(lambda tx: tx.execute(sql, params))


def a_sale(store, payment_hash):
    return plant(
        store,
        "INSERT INTO sales (id, state, customer, model, price_msats, payment_hash, attempts, created_at, updated_at,"
        " record) VALUES ('s', 'quoted', 'c', 'm', 1, ?, 0, 1, 1, x'00')",
        payment_hash,
    )


@pytest.mark.parametrize("owner", ["", OWNER])
async def test_a_deposit_is_booked_once_by_owner_and_payment(store, owner):
    received = payment(outside=True), payment(2)
    assert await book_outside(store, received, owner=owner, now=5.0) == list(received)
    assert await book_outside(store, received, owner=owner, now=6.0) == []
    assert ledger.balances(store, owner)["outside"] == ledger.held(store, owner) == 2_000
    other = "bb" * 32
    assert len(await book_outside(store, received, owner=other, now=7.0)) == 2
    assert ledger.held(store, owner) == ledger.held(store, other) == 2_000


@pytest.mark.parametrize(
    "not_yet",
    [payment(state=PaymentState.PENDING), payment(state=PaymentState.FAILED), payment(amount=0)],
    ids=["pending", "failed", "nothing"],
)
async def test_what_has_not_settled_is_not_booked(store, not_yet):
    assert await book_outside(store, [not_yet], now=5.0) == []
    settled = payment()
    assert await book_outside(store, [not_yet, settled], now=5.0) == [settled]


async def test_what_a_customer_pays_is_no_deposit(store):
    received = payment()
    await a_sale(store, received.payment_hash)
    assert await book_outside(store, [received], now=5.0) == []
    # Only the home sells: an agent is paid for something else.
    assert await book_outside(store, [received], owner=OWNER, now=5.0) == [received]


async def test_what_was_sent_before_the_books_began_went_outside(store):
    old, new = payment(1, Direction.SENT), payment(2, Direction.SENT, created_at=200.0)
    assert await book_outside(store, [old, new], owner=OWNER, began=150.0, now=5.0) == [old]
    assert await book_outside(store, [old, new], owner=OWNER, began=150.0, now=5.0) == []
    found = ledger.balances(store, OWNER)
    assert (found["outside"], found["fees"], found["wallet"]) == (-1_000, 3, -1_003)
    assert await book_outside(store, [old], now=5.0) == [], "nobody says that there was anything before"


async def test_what_an_intent_has_sent_is_the_intents(store):
    sent = payment(1, Direction.SENT)
    await store.write(
        lambda tx: intents.reserve(
            tx, tx.vault, cause="p", payment_hash=sent.payment_hash, invoice="x", amount=Msat(1_000), max_fee=Msat(9),
            at=1.0, owner=OWNER,
        )
    )  # fmt: skip
    assert await book_outside(store, [sent], owner=OWNER, began=1e9, now=5.0) == []


async def test_what_follows_is_written_with_it(store):
    received = payment()

    def job(tx):
        return book_outside_in(tx, [received, received], owner=OWNER, now=5.0)

    assert await store.write(job) == [received]
    assert await store.write(job) == []


async def test_a_wallet_with_a_past_is_brought_over(autojump_clock, market):
    """An agent that ran elsewhere: all that its wallet has done comes to what it holds."""
    agent, shop = await open_actor(market, "agent", funds=sats(100)), await open_actor(market, "shop")
    for number in range(3):
        await agent.wallet.pay(await shop.invoice(key=str(number)), max_fee=sats(2), idempotency_key=str(number))
    await shop.wallet.pay(await agent.invoice(key="back"), max_fee=sats(2), idempotency_key="back")
    home = await open_home(market, funds=0)
    async with home.opened() as (store, _):
        history = await all_payments(agent.wallet)
        began = market.clock.now() + 1
        assert len(await book_outside(store, history, owner=agent.hex, began=began, now=began)) == 5
        assert ledger.held(store, agent.hex) == (await agent.wallet.balance()).settled
