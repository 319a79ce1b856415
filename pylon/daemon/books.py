"""Do ledger, records, events and wallet agree? ``pylon books --check`` in one place; also run at every start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from pylon.clock import Clock
from pylon.compute.buyer import purchase_records
from pylon.compute.purchase import PurchaseState
from pylon.errors import SealError, StoreError
from pylon.money import Msat, format_msat
from pylon.provider.sale import SaleState
from pylon.provider.server import sale_records
from pylon.store import books, ledger
from pylon.store.database import Store, Tx
from pylon.wallets.port import Balance, Direction, Payment, PaymentState, Wallet

_PAGE = 1_000
_LOOKS = 5
"""How often the wallet is asked anew where its balance moved while it was asked."""


@attrs.frozen
class Report:
    """The books in msats, and what is wrong with them in words."""

    balances: dict[str, int]
    wallet_msats: int | None
    problems: tuple[str, ...]


async def audit(store: Store, wallet: Wallet | None, clock: Clock) -> Report:
    """Book deposits, ask the wallet, and report; a payment that is under way meanwhile is no false alarm."""
    if wallet is None:
        return report(store, None)
    for _ in range(_LOOKS):
        before = await wallet.balance()
        payments = await all_payments(wallet)
        await _book_deposits(store, payments, clock.now())
        balance = await wallet.balance()
        if balance.settled == before.settled:
            break
    return report(store, balance, payments)


def report(store: Store, wallet: Balance | None, payments: Sequence[Payment] = ()) -> Report:
    """Check everything that can be checked without the network, all as of one moment.

    :param wallet: the wallet's balance, where the wallet is Pylon's alone and could be asked.
    :param payments: the wallet's history, which explains what is settled there and not booked yet.
    """
    with store.snapshot():
        problems = [str(problem) for problem in books.check(store)]
        try:
            balances = dict(ledger.balances(store))
        except StoreError:  # named among the problems; nothing else can be said of such a ledger
            return Report({}, None if wallet is None else wallet.settled, tuple(problems))
        problems.extend(_sales(store))
        problems.extend(_purchases(store))
        if wallet is not None:
            expected = balances.get("wallet", 0) + _under_way(store, payments)
            if expected != wallet.settled:
                problems.append(
                    f"the ledger has {format_msat(Msat(expected))} in the wallet,"
                    f" the wallet itself {format_msat(wallet.settled)}"
                )
    return Report(balances, None if wallet is None else wallet.settled, tuple(problems))


def _under_way(store: Store, payments: Sequence[Payment]) -> int:
    """What has settled in the wallet for a sale or an intent of ours, and waits to be booked."""
    waiting = 0
    for payment in payments:
        if payment.state is not PaymentState.SETTLED or payment.outside:
            continue
        params = (payment.payment_hash,)
        if payment.direction is Direction.SENT:
            if store.one("SELECT 1 FROM intents WHERE payment_hash = ? AND state = 'pending'", params):
                waiting -= payment.amount + payment.fee
        elif store.one("SELECT 1 FROM sales WHERE payment_hash = ?", params) and not store.one(
            "SELECT 1 FROM claims WHERE payment_hash = ?", params
        ):
            waiting += payment.amount
    return waiting


async def all_payments(wallet: Wallet) -> list[Payment]:
    """The wallet's whole history, oldest first, however many pages it takes."""
    found: dict[str, Payment] = {}
    since, limit = 0.0, _PAGE
    while True:
        page = await wallet.payments(since=since, limit=limit)
        known = len(found)
        found.update((payment.payment_id, payment) for payment in page)
        if len(page) < limit:
            return list(found.values())
        # More payments of one moment than fit into a page want a bigger page.
        limit = limit if len(found) > known else 2 * limit
        since = page[-1].created_at


async def book_deposits(store: Store, wallet: Wallet, now: float) -> None:
    """Book what reached the wallet from outside and is not booked yet; each payment once."""
    await _book_deposits(store, await all_payments(wallet), now)


async def _book_deposits(store: Store, payments: Sequence[Payment], now: float) -> None:
    known = {row["cause"] for row in store.read("SELECT cause FROM entries WHERE kind = 'deposit'")}
    fresh = [payment for payment in payments if payment.outside and payment.payment_id not in known]
    if fresh:

        def job(tx: Tx) -> None:
            for payment in fresh:
                ledger.deposit(tx, cause=payment.payment_id, msats=payment.amount, at=now)

        await store.write(job)


def _sales(store: Store) -> Iterator[str]:
    damaged: list[str] = []
    for sale in sale_records(store).where(store, "1 = 1", damaged=_note(damaged, "sale")):
        booked = ledger.sale_totals(store, sale.id)
        if (booked.paid, booked.earned, booked.owed) != (sale.paid, sale.earned, sale.owed):
            yield f"sale {sale.id[:16]}: record and ledger disagree"
        claimed = store.one("SELECT COALESCE(SUM(amount_msats), 0) AS n FROM claims WHERE sale_id = ?", (sale.id,))
        if claimed is None or claimed["n"] != sale.paid:
            yield f"sale {sale.id[:16]}: claimed payments and record disagree"
        if sale.state in (SaleState.SERVED, SaleState.DELIVERED) and not sale.result:
            yield f"sale {sale.id[:16]}: {sale.state.value} without a result"
        if sale.state is SaleState.OWED and sale.owed == 0:
            yield f"sale {sale.id[:16]}: owed, but nothing is"
    yield from damaged


def _purchases(store: Store) -> Iterator[str]:
    damaged: list[str] = []
    for purchase in purchase_records(store).where(store, "1 = 1", damaged=_note(damaged, "purchase")):
        row = store.one(
            "SELECT COALESCE(SUM(amount_msats), 0) AS paid, COALESCE(SUM(fee_msats), 0) AS fee, COUNT(*) AS n"
            " FROM intents WHERE cause = ? AND state = 'settled'",
            (purchase.id,),
        )
        if row is None or (row["paid"], row["fee"]) != (purchase.paid, purchase.fee):
            yield f"purchase {purchase.id[:16]}: intents and record disagree"
        if row is not None and row["n"] > 1:
            yield f"purchase {purchase.id[:16]}: paid {row['n']} times"
        if purchase.state is PurchaseState.ANSWERED and not purchase.text:
            yield f"purchase {purchase.id[:16]}: answered without words"
        under_way = store.one("SELECT 1 FROM intents WHERE cause = ? AND state = 'pending'", (purchase.id,))
        if (purchase.state is PurchaseState.PAYING) != (under_way is not None):
            yield f"purchase {purchase.id[:16]}: {purchase.state.value}, and its payment is not"
    yield from damaged


def _note(damaged: list[str], what: str) -> Callable[[str, SealError], None]:
    return lambda record_id, error: damaged.append(f"{what} {record_id[:16]}: {error.message}")
