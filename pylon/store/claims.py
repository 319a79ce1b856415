"""A payment received is claimed once, by (wallet, payment id), for one sale."""

from __future__ import annotations

from pylon.money import Msat
from pylon.store.database import Reads, Tx


def take(
    tx: Tx,
    *,
    wallet: str,
    payment_id: str,
    payment_hash: str,
    sale_id: str,
    amount: Msat,
    at: float,
    preimage: str | None = None,
) -> bool:
    """True the first time; then book it in the same transaction. False: somebody has, do nothing.

    ``preimage`` (hex), where the wallet tells it, is kept sealed: it proves the payment.
    """
    sealed = None if preimage is None else tx.vault.seal(preimage, where(wallet, payment_id))
    done = tx.execute(
        "INSERT INTO claims (wallet, payment_id, payment_hash, sale_id, amount_msats, preimage, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (wallet, payment_id) DO NOTHING",
        (wallet, payment_id, payment_hash, sale_id, amount, sealed, at),
    )
    return done.rowcount == 1


def sale_of(source: Reads, payment_hash: str) -> str | None:
    """The sale that a payment is for, claimed or not, by its own invoice or by a zap; ``None``: it is for none."""
    row = source.one(
        "SELECT id FROM sales WHERE payment_hash = ?1 UNION ALL"
        " SELECT sale_id FROM sale_zaps WHERE payment_hash = ?1 AND EXISTS"
        " (SELECT 1 FROM sales WHERE id = sale_id) LIMIT 1",
        (payment_hash,),
    )
    return None if row is None else str(row["id"])


def where(wallet: str, payment_id: str) -> str:
    """The place that a claim's preimage is sealed for."""
    return f"claims.preimage:{wallet}:{payment_id}"
