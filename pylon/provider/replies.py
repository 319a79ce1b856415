"""What a provider signs for a sale: quote, progress, words so far, result, debt, refusal (NIP-90). No I/O."""

from __future__ import annotations

import functools
from typing import TypedDict

from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip90 import FeedbackStatus, build_feedback, build_result
from pylon.machine import Effect
from pylon.provider.sale import Sale, SaleEffect, SaleState

_PARTIAL_LIFE = 60
_PROCESSING_LIFE = 900
_REFUSAL_LIFE = 86_400
"""Seconds after which feedback asks to be forgotten (NIP-40), and is sent to no relay any more."""
_QUOTE_GRACE = 600
"""Seconds that a quote outlives its invoice: a relay whose clock is ahead must not refuse it."""


class _Bill(TypedDict, total=False):
    amount_msats: int
    bolt11: str


def compose(secret: SecretKey, sale: Sale, effect: Effect, now: int) -> Event:
    """The event of an outbox effect. What is owed is never forgotten, and neither is a result.

    Raises ``JobInvalid`` or ``EventInvalid`` for a result that cannot be written.
    """
    feedback = functools.partial(build_feedback, secret, request=sale.id, customer=sale.customer, created_at=now)
    match effect:
        case SaleEffect.PUBLISH_QUOTE:
            return feedback(
                status=FeedbackStatus.PAYMENT_REQUIRED,
                amount_msats=sale.asked,
                bolt11=sale.bolt11,
                credit_used_msats=sale.credit_used or None,
                hold_until=None if sale.preimage is None else int(sale.held_until or now),
                expiration=int(sale.expires_at or now) + _QUOTE_GRACE,
            )
        case SaleEffect.PUBLISH_PROCESSING:
            return feedback(
                status=FeedbackStatus.PROCESSING,
                credit_used_msats=sale.credit_used or None,
                expiration=now + _PROCESSING_LIFE,
            )
        case SaleEffect.PUBLISH_DEBT:
            return feedback(status=FeedbackStatus.ERROR, message=public_reason(sale), credit_msats=sale.owed)
        case SaleEffect.PUBLISH_REFUSAL:
            return feedback(status=FeedbackStatus.ERROR, message=public_reason(sale), expiration=now + _REFUSAL_LIFE)
        case SaleEffect.PUBLISH_RESULT:
            return build_result(
                secret,
                request=Event.from_json(sale.request) if sale.request else sale.id,
                request_kind=sale.kind,
                customer=sale.customer,
                text=sale.result or "",
                encrypt=sale.encrypted,
                scheme=sale.scheme,
                created_at=now,
                **_bill(sale),
                credit_used_msats=sale.credit_used or None,
            )
    raise ValueError(f"{effect} publishes nothing")


def _bill(sale: Sale) -> _Bill:
    """What a result that is not paid for asks for."""
    if not sale.on_trust or sale.bolt11 is None or sale.paid >= sale.asked:
        return {}
    return {"amount_msats": sale.asked, "bolt11": sale.bolt11}


def compose_partial(secret: SecretKey, sale: Sale, text: str, now: int) -> Event:
    """All words so far. Raises as ``compose`` does."""
    return build_feedback(
        secret,
        request=sale.id,
        customer=sale.customer,
        status=FeedbackStatus.PARTIAL,
        content=text,
        encrypt=sale.encrypted,
        scheme=sale.scheme,
        created_at=now,
        expiration=now + _PARTIAL_LIFE,
    )


def public_reason(sale: Sale) -> str:
    """Why, for strangers. What a backend or a wallet said may name files, addresses and other people's prompts."""
    if sale.state is SaleState.REFUSED:
        return sale.reason if sale.price == 0 else "no invoice can be made at the moment"
    if sale.state in (SaleState.SERVED, SaleState.DELIVERED):
        return "more was paid than the job costs"
    if sale.state is SaleState.OWED and sale.attempts == 0 and sale.result is None and sale.paid < sale.price:
        return "less was paid than the job costs"
    return "the job failed"
