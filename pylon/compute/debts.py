"""What providers owe to a customer, as its own purchases know it.

Rules
-----
1. A provider that failed after it was paid says what it owes (``Credited``); that purchase's credit is a debt to the
   owner of the purchase, never more than what was paid.
2. A debt is used before anything is paid: its provider takes it off the next price, and says how much
   (``credit_used``). What a purchase has used is gone for good only with the purchase: one that fails, or is credited
   in its turn, gives it back.
3. What is said to be used counts up to what is known to be owed, in the transaction that writes it down: no debt is
   used twice. More than that is the provider's own loss: a debt that we have never heard of (an old backup, a relay
   that forgot) is no reason not to take it.
"""

from __future__ import annotations

from pylon.compute.purchase import PurchaseState
from pylon.money import Msat
from pylon.store.database import Reads

_OWED = (
    f"SUM(CASE state WHEN '{PurchaseState.CREDITED.value}' THEN credit_msats"
    f" WHEN '{PurchaseState.FAILED.value}' THEN 0 ELSE -credit_used_msats END)"
)
_TOUCHED = "(credit_msats > 0 OR credit_used_msats > 0)"


def owed_to(source: Reads, owner: str) -> dict[str, Msat]:
    """What is owed to an owner, by provider (hex); nothing of those that owe nothing."""
    rows = source.read(
        f"SELECT provider, {_OWED} AS owed FROM purchases WHERE owner = ? AND {_TOUCHED} AND provider IS NOT NULL"
        " GROUP BY provider HAVING owed > 0",
        (owner,),
    )
    return {row["provider"]: Msat(row["owed"]) for row in rows}


def owed_by(source: Reads, owner: str, provider: str, *, but: str = "") -> Msat:
    """What one provider owes to an owner, whatever the purchase ``but`` has used or earned of it."""
    row = source.one(
        f"SELECT {_OWED} AS owed FROM purchases WHERE owner = ? AND provider = ? AND {_TOUCHED} AND id <> ?",
        (owner, provider, but),
    )
    return Msat(max(0, 0 if row is None or row["owed"] is None else int(row["owed"])))
