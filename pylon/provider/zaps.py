"""The other rail (NIP-90): a customer may zap its request, or our quote of it, instead of paying the quote's invoice.

A zap of this home whose request (NIP-57, kind 9734) names either as its ``e`` is for that sale; its payment is claimed
like that of the sale's own invoice, once. A zap that names anything else is a gift.
"""

from __future__ import annotations

from protocols import nip57
from pylon.provider.sale import SALE, SaleEffect
from pylon.store.database import Reads, Tx

_QUOTE = f"{SALE.name}.{SaleEffect.PUBLISH_QUOTE.value}"
_KEEP = 30 * 86_400.0
"""Seconds after its expiry for which an unpaid one is remembered."""


def sale_of(source: Reads, event_id: str) -> str | None:
    """The sale that an event is about: its request, or our quote."""
    if source.one("SELECT 1 FROM sales WHERE id = ?", (event_id,)) is not None:
        return event_id
    row = source.one("SELECT subject FROM outbox WHERE event_id = ? AND effect = ?", (event_id, _QUOTE))
    if row is None or source.one("SELECT 1 FROM sales WHERE id = ?", (row["subject"],)) is None:
        return None
    return str(row["subject"])


def note(tx: Tx, payment_hash: str, zap_request: str, *, at: float, expires_at: float) -> None:
    """An invoice of the home's is about to be handed out for this zap request: remember which sale it pays for."""
    try:
        event_id = nip57.check_request(zap_request).event_id
    except nip57.ZapInvalid:
        return
    sale = None if event_id is None else sale_of(tx, event_id)
    if sale is not None:
        tx.execute("DELETE FROM sale_zaps WHERE expires_at < ? AND NOT EXISTS (" + _CLAIMED + ")", (at - _KEEP,))
        tx.execute(
            "INSERT INTO sale_zaps (payment_hash, sale_id, created_at, expires_at) VALUES (?, ?, ?, ?)",
            (payment_hash, sale, at, expires_at),
        )


_CLAIMED = "SELECT 1 FROM claims WHERE claims.payment_hash = sale_zaps.payment_hash"


def unpaid(source: Reads, since: float) -> list[str]:
    """Payment hashes of zaps for sales that are not paid, as far as we know, and expire at ``since`` or later."""
    rows = source.read(
        f"SELECT payment_hash FROM sale_zaps WHERE expires_at >= ? AND NOT EXISTS ({_CLAIMED}) ORDER BY expires_at",
        (since,),
    )
    return [row["payment_hash"] for row in rows]
