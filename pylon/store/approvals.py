"""Payments that wait for the operator's yes: intents like any other, which are not sent before it is given.

One that waits is reserved: it counts against every budget, so that a yes never overdraws one. It lapses with its
invoice, at the latest after a day. What an agent *does* is approved elsewhere (``pylon.host.deeds``); what such an
action then pays does not wait a second time.
"""

from __future__ import annotations

from pylon.errors import NotFound, UsageError
from pylon.store import intents
from pylon.store.database import Reads, Tx
from pylon.store.intents import Approval, Intent, IntentState

DECIDED = "approvals"
"""The topic that a yes or a no touches (``Store.listen``)."""
_LIST = "pylon wallet approvals"


def waiting(source: Reads, owner: str | None = None) -> list[Intent]:
    """What waits for a yes or a no, oldest first: of one owner, or of all."""
    return [intent for intent in intents.pending(source, owner) if intent.waits]


def named(source: Reads, beginning: str) -> Intent:
    """The one payment that waits and whose id begins so. Raises ``NotFound``, ``UsageError``."""
    found = [intent for intent in waiting(source) if beginning and intent.id.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"more than one payment has an id that begins with {beginning[:40]}", "give more digits of it")
    raise NotFound(f"no payment that waits has an id that begins with {beginning[:40]!r}", _LIST)


def approve(tx: Tx, intent_id: str, at: float) -> Intent:
    """Yes: whoever drives it sends it now. Again: nothing changes. Raises ``UsageError``, ``NotFound``."""
    intent = intents.get(tx, intent_id)
    if intent.approval is Approval.GIVEN and intent.state is not IntentState.FAILED:
        return intent
    if not intent.waits:
        raise UsageError(f"payment {intent_id[:8]} does not wait any more: it is {_words(intent)}", _LIST)
    if intent.lapsed(at):
        raise UsageError(f"payment {intent_id[:8]} has lapsed: its invoice or its day is over", _LIST)
    return _decide(tx, intent, Approval.GIVEN, at)


def deny(tx: Tx, intent_id: str, reason: str, at: float) -> Intent:
    """No: it has failed, and nothing was sent. Again: nothing changes. Raises ``UsageError``, ``NotFound``."""
    intent = intents.get(tx, intent_id)
    if intent.approval is Approval.DENIED:
        return intent
    if not intent.waits:
        raise UsageError(f"payment {intent_id[:8]} does not wait any more: it is {_words(intent)}", _LIST)
    _decide(tx, intent, Approval.DENIED, at)
    return intents.fail(tx, intent_id, error=reason or "the operator said no", at=at)


def _decide(tx: Tx, intent: Intent, approval: Approval, at: float) -> Intent:
    tx.execute("UPDATE intents SET approval = ?, updated_at = ? WHERE id = ?", (approval.value, at, intent.id))
    intents.touch(tx, intent)
    tx.touch(DECIDED)
    return intents.get(tx, intent.id)


def _words(intent: Intent) -> str:
    return "approved" if intent.approval is Approval.GIVEN else intent.state.value
