"""What a provider's event means to a purchase. Whether it may mean anything (who signed it), the caller knows."""

from __future__ import annotations

import logging

from protocols.nip01 import Event
from protocols.nip90 import FEEDBACK, Feedback, FeedbackStatus, JobInvalid, parse_feedback, parse_result
from pylon.compute import purchase as machine
from pylon.compute.account import Account, BuyerSettings
from pylon.compute.purchase import Purchase, PurchaseState
from pylon.compute.quotes import check_offer, check_quote
from pylon.money import Msat

log = logging.getLogger(__name__)

Reply = machine.Answered | machine.Quoted | machine.Offered | machine.Served | machine.TurnedAway | machine.Credited
"""What a provider's event may mean to a purchase."""


def understand(
    record: Purchase, event: Event, account: Account, settings: BuyerSettings, now: float
) -> Reply | Feedback | None:
    """The input that a reply is; a ``Feedback`` for a partial result; ``None`` for what means nothing."""
    try:
        if event.kind != FEEDBACK:
            result = parse_result(event, account.secret)
            return machine.Answered(result.request_id, event.id, result.text, Msat(result.credit_used_msats or 0))
        feedback = parse_feedback(event, account.secret)
    except JobInvalid as error:
        log.warning("purchase %s: unreadable reply: %s", record.id[:16], error)
        return None
    if record.state is PurchaseState.COLLECTING:
        return _offer(record, feedback, account, settings, now)
    return _reply(record, feedback, account, settings, now)


def _offer(
    record: Purchase, feedback: Feedback, account: Account, settings: BuyerSettings, now: float
) -> machine.Offered | None:
    """A quote for an open request; all else that strangers say of it means nothing."""
    if feedback.status is not FeedbackStatus.PAYMENT_REQUIRED or feedback.provider == account.secret.public.hex:
        return None
    found = check_offer(
        record,
        feedback,
        now=now,
        network_prefix=settings.invoice_prefix,
        own_payee=account.wallet.node_pubkey,
        can_hold=not record.upfront and settings.holds(account.wallet),
    )
    if isinstance(found, str):
        log.info("purchase %s: a quote that cannot be taken: %s", record.id[:16], found)
        return None
    return found


def _reply(
    record: Purchase, feedback: Feedback, account: Account, settings: BuyerSettings, now: float
) -> Reply | Feedback | None:
    match feedback.status:
        case FeedbackStatus.PAYMENT_REQUIRED if record.state is PurchaseState.REQUESTED:
            return check_quote(
                record,
                feedback,
                now=now,
                network_prefix=settings.invoice_prefix,
                own_payee=account.wallet.node_pubkey,
                answer_seconds=settings.answer_seconds,
                can_hold=not record.upfront and settings.holds(account.wallet),
            )
        case FeedbackStatus.PROCESSING if record.state is PurchaseState.REQUESTED:
            by = now + settings.answer_seconds
            return machine.Served(feedback.request_id, by, Msat(feedback.credit_used_msats or 0))
        case FeedbackStatus.PARTIAL:
            return feedback
        case FeedbackStatus.ERROR if feedback.credit_msats and record.state is not PurchaseState.REQUESTED:
            return machine.Credited(feedback.request_id, Msat(feedback.credit_msats), printable(feedback.message))
        case FeedbackStatus.ERROR:
            return machine.TurnedAway(feedback.request_id, printable(feedback.message) or "refused")
        case _:
            return None


def printable(words: str) -> str:
    """A stranger's words, fit for a terminal: without control and direction characters, and cut."""
    return "".join(char if char.isprintable() else " " for char in words[:300]).strip()
