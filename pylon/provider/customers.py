"""Who is who among the customers: what the owner has said of their keys, and what they have had free of charge.

What was said by a command stands in the store and wins over the configuration, at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from pylon.provider.pricing import Standing
from pylon.store.database import Reads, Tx

DAY = 86_400


def standing_of(source: Reads, customer: str, configured: Mapping[str, Standing]) -> Standing:
    """``customer`` is a public key, hex."""
    row = source.one("SELECT standing FROM standings WHERE customer = ?", (customer,))
    return configured.get(customer, Standing.STRANGER) if row is None else Standing(row["standing"])


def set_standing(tx: Tx, customer: str, standing: Standing, at: float) -> None:
    tx.execute(
        "INSERT INTO standings (customer, standing, at) VALUES (?, ?, ?)"
        " ON CONFLICT (customer) DO UPDATE SET standing = excluded.standing, at = excluded.at",
        (customer, standing.value, at),
    )


def standings(source: Reads, configured: Mapping[str, Standing]) -> dict[str, Standing]:
    """Of everybody of whom something was said, strangers left out."""
    said = {
        row["customer"]: Standing(row["standing"]) for row in source.read("SELECT customer, standing FROM standings")
    }
    return {key: standing for key, standing in {**configured, **said}.items() if standing is not Standing.STRANGER}


def has_paid(source: Reads, customer: str) -> bool:
    """Ever, for anything."""
    return source.one("SELECT 1 FROM sales WHERE customer = ? AND paid_msats > 0 LIMIT 1", (customer,)) is not None


def free_left(source: Reads, customer: str, allowance: int, now: float) -> int:
    """Jobs that this key may still have free today."""
    if allowance <= 0:
        return 0
    row = source.one("SELECT used FROM allowances WHERE day = ? AND customer = ?", (int(now) // DAY, customer))
    return allowance if row is None else max(0, allowance - row["used"])


def take_free(tx: Tx, customer: str, allowance: int, now: float) -> bool:
    """Use one of today's free jobs, in the transaction that begins the sale; ``False``: there is none left."""
    if free_left(tx, customer, allowance, now) <= 0:
        return False
    tx.execute(
        "INSERT INTO allowances (day, customer, used) VALUES (?, ?, 1)"
        " ON CONFLICT (day, customer) DO UPDATE SET used = used + 1",
        (int(now) // DAY, customer),
    )
    return True


def open_sales(source: Reads, customer: str) -> tuple[int, int]:
    """Sales that are quoted or worked on and for which nothing was paid: in all, and of one customer."""
    rows = source.read("SELECT customer, sales FROM quote_book WHERE customer IN ('', ?)", (customer,))
    counts = {row["customer"]: int(row["sales"]) for row in rows}
    return counts.get("", 0), counts.get(customer, 0)


def oldest_unpaid(source: Reads, before: float) -> str | None:
    """The oldest quote made before this time whose customer has never paid for anything; ``None`` if there is none."""
    row = source.one(
        "SELECT id FROM sales WHERE state = 'quoted' AND created_at < ? AND NOT EXISTS"
        " (SELECT 1 FROM sales p WHERE p.customer = sales.customer AND p.paid_msats > 0) ORDER BY created_at LIMIT 1",
        (before,),
    )
    return None if row is None else str(row["id"])


def forget_allowances(tx: Tx, now: float) -> None:
    """Those of past days."""
    tx.execute("DELETE FROM allowances WHERE day < ?", (int(now) // DAY,))
