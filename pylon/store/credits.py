"""What is owed to each customer's key: debts of failed jobs, less what was used for others or paid out.

Moved by the ledger, in the transaction of the entries that move it; never below zero. What a payout that is under way
has been promised is not there to be used (``available``).
"""

from __future__ import annotations

import attrs

from pylon.errors import StoreError
from pylon.money import Msat
from pylon.store.database import Reads, Tx

_PAYOUT = "payout"
"""Begins the causes of intents that pay debts out."""
_TO_CUSTOMER = "owner = '' AND cause >= ?1 AND cause < ?1 || 'g'"
"""Which intents pay the debts of one customer out, by the beginning of their causes; what follows is hex."""


@attrs.frozen
class Credit:
    """Of one customer."""

    customer: str
    """Public key, hex."""
    owed: Msat
    since: float
    """When the first of it was owed, Unix seconds."""
    paying: Msat
    """What of it is being paid out."""


def owed(source: Reads, customer: str) -> Msat:
    """All that is owed to a customer, in msats."""
    row = source.one("SELECT msats FROM credits WHERE customer = ?", (customer,))
    return Msat(0 if row is None else row["msats"])


def paying(source: Reads, customer: str) -> Msat:
    """What is on its way to a customer, or may be."""
    row = source.one(
        f"SELECT SUM(amount_msats) AS n FROM intents WHERE state = 'pending' AND {_TO_CUSTOMER}",
        (f"{payout_kind(customer)}:",),
    )
    return Msat(0 if row is None or row["n"] is None else row["n"])


def payouts(source: Reads, customer: str) -> int:
    """How many payments to a customer were begun, whatever became of them."""
    row = source.one(f"SELECT COUNT(*) AS n FROM intents WHERE {_TO_CUSTOMER}", (f"{payout_kind(customer)}:",))
    return 0 if row is None else int(row["n"])


def available(source: Reads, customer: str) -> Msat:
    """What a customer can use by now."""
    there = owed(source, customer)
    return Msat(max(0, there - paying(source, customer))) if there else there


def listed(source: Reads, customer: str | None = None) -> list[Credit]:
    """Who is owed something, the most first."""
    which, params = ("", ()) if customer is None else (" AND customer = ?", (customer,))
    rows = source.read(
        f"SELECT customer, msats, since FROM credits WHERE msats > 0{which} ORDER BY msats DESC, customer", params
    )
    return [Credit(row["customer"], Msat(row["msats"]), row["since"], paying(source, row["customer"])) for row in rows]


def move(tx: Tx, customer: str, msats: int, at: float) -> None:
    """More (or, below zero, less) is owed. Raises ``StoreError`` where less than nothing would be."""
    if msats == 0:
        return
    there = owed(tx, customer)
    if there + msats < 0:
        raise StoreError(f"{-msats} msat of credit cannot be used: {there} msat are owed", "run `pylon books --check`")
    tx.execute(
        "INSERT INTO credits (customer, msats, since) VALUES (?1, ?2, ?3) ON CONFLICT (customer) DO UPDATE"
        " SET msats = ?2, since = CASE WHEN msats = 0 THEN ?3 ELSE since END",
        (customer, there + msats, at),
    )
    tx.touch("credits")


def payout_kind(customer: str) -> str:
    """Begins the causes of intents that pay a customer's debts out; a colon follows, and hex that tells them apart."""
    return f"{_PAYOUT}:{customer}"


def customer_of(cause: str) -> str:
    """Whose debt a cause pays out, also where the wallet had first said that it failed; empty: it is not known."""
    kind, _, rest = cause.partition(":")
    return rest.partition(":")[0] if kind == _PAYOUT else ""


def derived(source: Reads) -> dict[str, int]:
    """The same by the entries alone; customers to whom nothing is owed are left out."""
    sums: dict[str, int] = {}
    rows = source.read(
        "SELECT s.customer AS customer, e.cause AS cause,"
        " SUM(CASE WHEN e.credit = 'owed' THEN e.msats ELSE -e.msats END) AS n FROM entries e"
        " LEFT JOIN sales s ON s.id = e.cause WHERE e.owner = '' AND (e.credit = 'owed' OR e.debit = 'owed')"
        " GROUP BY e.cause"
    )
    for row in rows:
        customer = row["customer"] or customer_of(row["cause"])
        sums[customer] = sums.get(customer, 0) + row["n"]
    return {customer: msats for customer, msats in sums.items() if msats}
