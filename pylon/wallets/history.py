"""What came into a wallet, or went out of it, without Pylon: booked against *outside*, each payment once.

* What is received and pays for no sale is a deposit: funding, a faucet, a zap, an invoice of an agent's that was paid.
* What was sent before the books of this home began (an agent that was imported, a wallet with a past) was somebody
  else's doing; so was what was sent between a backup and its restore. What is sent later without an intent is nobody's,
  and stays unbooked: the audit names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from pylon.money import Msat
from pylon.store import claims, intents, ledger, settings
from pylon.store.database import Reads, Store, Tx
from pylon.store.intents import Intent, IntentState
from pylon.wallets.port import Direction, Payment, PaymentState, Wallet
from pylon.wallets.purse import Settled, book_outcome

PAGE = 1_000
RESTORED_AT = "restored_at"
"""The setting that says when this home was last restored from a backup, Unix seconds."""


async def all_payments(wallet: Wallet) -> list[Payment]:
    """The wallet's whole history, oldest first, however many pages it takes."""
    found: dict[str, Payment] = {}
    since, limit = 0.0, PAGE
    while True:
        page = await wallet.payments(since=since, limit=limit)
        known = len(found)
        found.update((payment.payment_id, payment) for payment in page)
        if len(page) < limit:
            return list(found.values())
        # More payments of one moment than fit into a page want a bigger page.
        limit = limit if len(found) > known else 2 * limit
        since = page[-1].created_at


async def book_outside(
    store: Store, payments: Iterable[Payment], *, owner: str = "", began: float = 0.0, now: float
) -> list[Payment]:
    """Book those of an owner's payments that Pylon did not cause; returns those that were not booked before.

    :param began: when this home took the wallet over; what had been sent by then was sent by another.
    """
    fresh = unbooked(store, payments, owner, began)
    return await store.write(lambda tx: book_outside_in(tx, fresh, owner=owner, began=began, now=now)) if fresh else []


def book_outside_in(
    tx: Tx, payments: Iterable[Payment], *, owner: str = "", began: float = 0.0, now: float
) -> list[Payment]:
    """``book_outside`` within the caller's transaction: what follows from a payment is written with it, once."""
    fresh = unbooked(tx, payments, owner, began)
    for payment in fresh:
        if payment.direction is Direction.RECEIVED:
            ledger.deposit(tx, payment.payment_id, payment.amount, now, owner)
        else:
            ledger.withdrawal(tx, payment.payment_id, payment.amount, payment.fee, now, owner)
    return fresh


def intent_hash(payment: Payment) -> str:
    """The hash that the intent for a payment of ours has: an address has none, its idempotency key stands for it."""
    if payment.payment_hash or not payment.key:
        return payment.payment_hash
    return intents.hash_of_key(payment.key)


async def book_late(store: Store, payments: Iterable[Payment], *, now: float) -> list[Intent]:
    """Book what has settled after the wallet had reported it as failed: the money is gone."""

    def late(source: Reads) -> Iterator[tuple[Intent, Payment]]:
        for payment in payments:
            if payment.state is PaymentState.SETTLED and payment.direction is Direction.SENT:
                intent = intents.find(source, intent_hash(payment))
                if intent is not None and intent.state is IntentState.FAILED:
                    yield intent, payment

    def job(tx: Tx) -> list[Intent]:
        booked = []
        for intent, payment in late(tx):
            amount = payment.amount if payment.amount > 0 else intent.amount_msats
            book_outcome(tx, intent, Settled(amount, Msat(max(payment.fee, 0)), payment.preimage), now)
            booked.append(intent)
        return booked

    payments = list(payments)
    return await store.write(job) if any(late(store)) else []


def unbooked(source: Reads, payments: Iterable[Payment], owner: str, began: float) -> list[Payment]:
    """What came from outside, or went there, and is not booked. Parameters as for ``book_outside``."""
    began = max(began, float(settings.get(source, RESTORED_AT) or 0.0))
    settled = {
        payment.payment_id: payment
        for payment in payments
        if payment.state is PaymentState.SETTLED and payment.amount > 0
    }
    rows = source.read(
        "SELECT cause FROM entries WHERE owner = ? AND cause IN (SELECT value FROM json_each(?))"
        " AND kind IN ('deposit', 'withdrawal')",
        (owner, orjson.dumps(list(settled)).decode()),
    )
    known = {row["cause"] for row in rows}
    return [
        payment
        for payment_id, payment in settled.items()
        if payment_id not in known and _is_outside(source, payment, owner, began)
    ]


def _is_outside(source: Reads, payment: Payment, owner: str, began: float) -> bool:
    if payment.direction is Direction.RECEIVED:
        # Only the home sells.
        return bool(owner) or not is_of_a_sale(source, payment)
    return payment.created_at < began and intents.find(source, intent_hash(payment)) is None


def is_of_a_sale(source: Reads, payment: Payment) -> bool:
    """Whether a payment that the home has received was asked for by a sale."""
    if payment.outside or not payment.payment_hash:
        return False
    return claims.sale_of(source, payment.payment_hash) is not None
