"""What a quote must satisfy before a single millisatoshi moves. Pure.

The caller has made sure that the feedback is signed by the chosen provider and names the current request; here the
invoice itself is held against quote, announced price, bid, network and time.
"""

from __future__ import annotations

from protocols import bolt11
from protocols.nip90 import Feedback
from pylon.compute.purchase import Purchase, Quoted, TurnedAway
from pylon.money import Msat, format_msat

MINIMUM_INVOICE_LIFE = 5.0
"""Seconds an invoice must still live when we start to pay it."""
MAX_CLOCK_SKEW = 600.0
"""Seconds that a provider's clock may be ahead of ours."""
MAX_FINAL_CLTV = 1_008
"""Blocks (a week) for which a payee may make us hold a payment open."""


def check_quote(
    purchase: Purchase,
    feedback: Feedback,
    *,
    now: float,
    network_prefix: str,
    own_payee: str,
    answer_seconds: float,
) -> Quoted | TurnedAway:
    """The quote as something payable, or why we turn to another provider."""

    def away(reason: str) -> TurnedAway:
        return TurnedAway(request_id=feedback.request_id, reason=f"bad quote: {reason}")

    if feedback.bolt11 is None:
        return away("it carries no invoice")
    try:
        invoice = bolt11.decode(feedback.bolt11)
    except bolt11.Bolt11Invalid as error:
        return away(f"its invoice does not decode ({error})")
    if invoice.prefix != network_prefix:
        return away(f"its invoice is for {invoice.network}")
    if invoice.amount_msats is None or invoice.amount_msats <= 0:
        return away("its invoice names no amount")
    amount = Msat(invoice.amount_msats)
    if feedback.amount_msats is not None and feedback.amount_msats != amount:
        return away(
            f"its amount tag says {format_msat(Msat(feedback.amount_msats))}, its invoice {format_msat(amount)}"
        )
    if amount > purchase.ceiling:
        return away(f"it asks {format_msat(amount)}, at most {format_msat(purchase.ceiling)} was announced or bid")
    if invoice.expires_at - now < MINIMUM_INVOICE_LIFE:
        return away("its invoice has expired")
    if invoice.timestamp > now + MAX_CLOCK_SKEW:
        return away("its invoice was made in the future")
    if invoice.min_final_cltv > MAX_FINAL_CLTV:
        return away(f"its invoice may hold the payment for {invoice.min_final_cltv} blocks")
    if invoice.payee == own_payee:
        return away("its invoice would pay this very wallet")
    return Quoted(
        request_id=feedback.request_id,
        bolt11=feedback.bolt11,
        payment_hash=invoice.payment_hash,
        amount=amount,
        answer_by=now + answer_seconds,
    )
