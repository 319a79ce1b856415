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
4. A provider that asks for money and leaves a sat or more of its debt aside has *disowned* it: it has paid it out, used
   it for an answer that we did not wait for, or means to keep it. What it owed until then attracts us no more. In the
   open market it need not take it off: who asks everybody may take another's quote.
"""

from __future__ import annotations

from pylon.compute.purchase import Purchase, PurchaseState
from pylon.money import MSATS_PER_SAT, Msat
from pylon.store.database import Reads, Tx

_OWED = (
    f"SUM(CASE WHEN state = '{PurchaseState.CREDITED.value}' THEN iif(updated_at > since, credit_msats, 0)"
    f" WHEN state = '{PurchaseState.FAILED.value}' THEN 0 ELSE iif(created_at > since, -credit_used_msats, 0) END)"
)
_PURCHASES = (
    "(SELECT p.*, COALESCE(d.at, -1) AS since FROM purchases p LEFT JOIN disowned_debts d"
    " ON d.owner = p.owner AND d.provider = p.provider"
    " WHERE p.owner = ? AND (p.credit_msats > 0 OR p.credit_used_msats > 0))"
)


def owed_to(source: Reads, owner: str) -> dict[str, Msat]:
    """What is owed to an owner, by provider (hex); nothing of those that owe nothing."""
    rows = source.read(
        f"SELECT provider, {_OWED} AS owed FROM {_PURCHASES} WHERE provider IS NOT NULL"
        " GROUP BY provider HAVING owed > 0",
        (owner,),
    )
    return {row["provider"]: Msat(row["owed"]) for row in rows}


def owed_by(source: Reads, owner: str, provider: str, *, but: str = "") -> Msat:
    """What one provider owes to an owner, whatever the purchase ``but`` has used or earned of it."""
    row = source.one(
        f"SELECT {_OWED} AS owed FROM {_PURCHASES} WHERE provider = ? AND id <> ?",
        (owner, provider, but),
    )
    return Msat(max(0, 0 if row is None or row["owed"] is None else int(row["owed"])))


def use(tx: Tx, before: Purchase, after: Purchase, now: float) -> Msat:
    """What of a debt counts as used with this step: rules 3 and 4. To be written into the record."""
    provider = after.provider
    asks = after.state is PurchaseState.PAYING and before.state is not PurchaseState.PAYING
    if provider is None or not (asks or after.credit_used > before.credit_used):
        return after.credit_used
    owed = owed_by(tx, after.owner, provider, but=after.id)
    if asks and not after.open and owed - after.credit_used >= MSATS_PER_SAT:
        tx.execute(
            "INSERT OR REPLACE INTO disowned_debts (owner, provider, at) VALUES (?, ?, ?)", (after.owner, provider, now)
        )
    return min(after.credit_used, owed)
