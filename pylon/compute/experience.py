"""What the purchases of a home have taught: read for a choice, and written with each step of a purchase."""

from __future__ import annotations

from pylon.compute import debts
from pylon.compute.purchase import Purchase, PurchaseEffect, PurchaseState
from pylon.compute.ranking import Experience
from pylon.compute.standing import note_answer, note_failure, standings
from pylon.store.database import Reads, Tx
from pylon.store.records import Step

DISTRUST = 7 * 86_400.0
"""Seconds for which a provider that kept our money is asked last."""


def gather(source: Reads, owner: str, now: float) -> Experience:
    """What an owner knows: its own debts, and what was observed by all of its home."""
    kept = source.read(
        "SELECT DISTINCT provider FROM purchases WHERE state = ? AND updated_at > ?",
        (PurchaseState.LOST.value, now - DISTRUST),
    )
    return Experience(
        standings=standings(source, now),
        debts=debts.owed_to(source, owner),
        distrusted=frozenset(row["provider"] for row in kept),
        now=now,
    )


def learn(tx: Tx, step: Step[Purchase], now: float) -> None:
    """Write down what a step of a purchase says of its provider."""
    before, after = step.before.state, step.after.state
    provider = step.before.provider or step.after.provider
    if provider is None:
        return
    if after is PurchaseState.ANSWERED and before is not PurchaseState.ANSWERED:
        note_answer(tx, provider, now - _asked_at(tx, step.after, now), now)
    elif after is PurchaseState.CREDITED and before is not PurchaseState.CREDITED:
        note_failure(tx, provider, now, owes=True)
    elif _has_failed(step):
        note_failure(tx, provider, now)


def _has_failed(step: Step[Purchase]) -> bool:
    """Whether the provider let us down, and owes nothing for it."""
    before, after = step.before, step.after
    match before.state, after.state:
        case ((PurchaseState.REQUESTED | PurchaseState.PAYING), (PurchaseState.SEEKING | PurchaseState.COLLECTING)):
            return not before.unwanted
        case PurchaseState.REQUESTED, PurchaseState.FAILED:
            # Unless it was given up.
            return PurchaseEffect.PUBLISH_CANCELLATION not in step.effects
        case PurchaseState.PAYING, PurchaseState.PAYING:
            return after.hold_overdue and not before.hold_overdue
        case _, PurchaseState.LOST:
            return before.state is not PurchaseState.LOST
        case _:
            return False


def _asked_at(tx: Tx, record: Purchase, now: float) -> float:
    row = tx.one("SELECT created_at FROM purchase_requests WHERE request_id = ?", (record.request_id,))
    return now if row is None else float(row["created_at"])
