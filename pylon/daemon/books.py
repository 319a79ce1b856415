"""Do ledger, records, events and wallet agree? ``pylon books --check`` in one place; also run at every start."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from pylon.compute.buyer import purchase_records
from pylon.compute.purchase import PurchaseState
from pylon.money import Msat, format_msat
from pylon.provider.sale import SaleState
from pylon.provider.server import sale_records
from pylon.store import books, ledger
from pylon.store.database import Store, Tx
from pylon.wallets.port import Balance, Wallet


@attrs.frozen
class Report:
    """The books in msats, and what is wrong with them in words."""

    balances: dict[str, int]
    wallet_msats: int | None
    problems: tuple[str, ...]


def report(store: Store, wallet: Balance | None) -> Report:
    """Check everything that can be checked without the network.

    ``wallet``: the settled balance, where the wallet is Pylon's alone and could be asked.
    """
    problems = [str(problem) for problem in books.check(store)]
    problems.extend(_sales(store))
    problems.extend(_purchases(store))
    balances = dict(ledger.balances(store))
    if wallet is not None and balances.get("wallet", 0) != wallet.settled:
        problems.append(
            f"the ledger has {format_msat(Msat(balances.get('wallet', 0)))} in the wallet,"
            f" the wallet itself {format_msat(wallet.settled)}"
        )
    return Report(balances, None if wallet is None else wallet.settled, tuple(problems))


async def book_deposits(store: Store, wallet: Wallet, now: float) -> None:
    """Book what reached the wallet from outside and is not booked yet; each payment once."""
    deposits = [payment for payment in await wallet.payments() if payment.outside]
    known = {row["cause"] for row in store.read("SELECT cause FROM entries WHERE kind = 'deposit'")}
    fresh = [payment for payment in deposits if payment.payment_id not in known]
    if fresh:

        def job(tx: Tx) -> None:
            for payment in fresh:
                ledger.deposit(tx, cause=payment.payment_id, msats=payment.amount, at=now)

        await store.write(job)


def _sales(store: Store) -> Iterator[str]:
    for sale in sale_records(store).where(store, "1 = 1"):
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


def _purchases(store: Store) -> Iterator[str]:
    for purchase in purchase_records(store).where(store, "1 = 1"):
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
