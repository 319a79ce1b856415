"""What a quote must satisfy before a single millisatoshi moves. Pure.

The caller has made sure that the feedback is signed by the chosen provider (of an open request: by anybody) and names
the current request; here the invoice itself is held against quote, announced price, bid, network and time. What the
provider takes off for a debt counts as if it were paid: amount and debt together are the price.
"""

from __future__ import annotations

from protocols import bolt11
from protocols.nip90 import Feedback
from pylon.compute.purchase import Offered, Purchase, Quote, Quoted, TurnedAway
from pylon.money import Msat, format_msat

MINIMUM_INVOICE_LIFE = 5.0
"""Seconds an invoice must still live when we start to pay it."""
MAX_CLOCK_SKEW = 600.0
"""Seconds that a provider's clock may be ahead of ours."""
MAX_FINAL_CLTV = 1_008
"""Blocks (a week) for which a payee may make us hold a payment open."""
MAX_HOLD_SECONDS = 2 * 3_600.0
"""How long a provider may hold our payment before it delivers."""


def check_quote(
    purchase: Purchase,
    feedback: Feedback,
    *,
    now: float,
    network_prefix: str,
    own_payee: str,
    answer_seconds: float,
    can_hold: bool = False,
) -> Quoted | TurnedAway:
    """The quote as something payable, or why we turn to another provider.

    :param can_hold: a hold invoice was asked for.
    """
    found = _read(purchase, feedback, now=now, network_prefix=network_prefix, own_payee=own_payee, can_hold=can_hold)
    if isinstance(found, str):
        return TurnedAway(request_id=feedback.request_id, reason=f"bad quote: {found}")
    return Quoted(
        request_id=feedback.request_id,
        bolt11=found.bolt11,
        payment_hash=found.payment_hash,
        amount=found.amount,
        answer_by=now + answer_seconds,
        credit_used=found.credit_used,
        hold_until=found.hold_until,
    )


def check_offer(
    purchase: Purchase, feedback: Feedback, *, now: float, network_prefix: str, own_payee: str, can_hold: bool
) -> Offered | str:
    """A quote for an open request as something payable, or what is wrong with it."""
    found = _read(purchase, feedback, now=now, network_prefix=network_prefix, own_payee=own_payee, can_hold=can_hold)
    return found if isinstance(found, str) else Offered(feedback.request_id, found)


def is_payable(quote: Quote, now: float) -> bool:
    """Whether a quote that was good when it came still is."""
    invoice = bolt11.decode(quote.bolt11)
    if quote.hold_until is not None and quote.hold_until - now < MINIMUM_INVOICE_LIFE:
        return False
    return invoice.expires_at - now >= MINIMUM_INVOICE_LIFE


def _read(
    purchase: Purchase, feedback: Feedback, *, now: float, network_prefix: str, own_payee: str, can_hold: bool
) -> Quote | str:
    """The quote, or what is wrong with it, in words."""
    if feedback.bolt11 is None:
        return "it carries no invoice"
    try:
        invoice = bolt11.decode(feedback.bolt11)
    except bolt11.Bolt11Invalid as error:
        return f"its invoice does not decode ({error})"
    if invoice.prefix != network_prefix:
        return f"its invoice is for {invoice.network}"
    if invoice.amount_msats is None or invoice.amount_msats <= 0:
        return "its invoice names no amount"
    amount = Msat(invoice.amount_msats)
    if feedback.amount_msats is not None and feedback.amount_msats != amount:
        return f"its amount tag says {format_msat(Msat(feedback.amount_msats))}, its invoice {format_msat(amount)}"
    used = Msat(feedback.credit_used_msats or 0)
    if amount + used > purchase.ceiling:
        debt = f" and {format_msat(used)} of its debts" if used else ""
        return f"it asks {format_msat(amount)}{debt}, at most {format_msat(purchase.ceiling)} was announced or bid"
    if invoice.expires_at - now < MINIMUM_INVOICE_LIFE:
        return "its invoice has expired"
    if invoice.timestamp > now + MAX_CLOCK_SKEW:
        return "its invoice was made in the future"
    if invoice.min_final_cltv > MAX_FINAL_CLTV:
        return f"its invoice may hold the payment for {invoice.min_final_cltv} blocks"
    if invoice.payee == own_payee:
        return "its invoice would pay this very wallet"
    hold_until = feedback.hold_until
    if hold_until is not None:
        if not can_hold:
            return "it would hold the payment, which was not asked for"
        if not now < hold_until <= now + MAX_HOLD_SECONDS:
            return f"it would hold the payment until {hold_until}, at most {MAX_HOLD_SECONDS / 60:.0f} min are borne"
    return Quote(
        provider=feedback.provider,
        bolt11=feedback.bolt11,
        payment_hash=invoice.payment_hash,
        amount=amount,
        credit_used=used,
        hold_until=None if hold_until is None else float(hold_until),
    )
