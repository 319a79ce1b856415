"""The end of the freeze that a restore has set: once it is known what became of everything that the backup left open.

Known is: of each payment that was open, what the wallet says of it (settled, failed, or that it has never heard of it);
and that books and wallets agree, with what has moved since the backup booked as outside. What is not known yet is told
once, and looked at again. A freeze of the operator's own is none of this module's business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from pylon.daemon.books import Report
from pylon.errors import PylonError, brief
from pylon.store import freeze, intents, settings
from pylon.store.database import Store
from pylon.store.intents import Intent
from pylon.wallets.purse import Outcome, Unknown

log = logging.getLogger(__name__)

_FIRST_LOOK = 2.0
"""Seconds after a start: what drives the payments looks first."""
_LONGEST_PAUSE = 300.0

Look = Callable[[Intent], Awaitable[Outcome | None]]
"""What became of a payment, by its owner's wallet; ``None``: it has never heard of it. Raises ``PylonError``."""
Audit = Callable[[], Awaitable[Report]]


async def thaw_when_reconciled(store: Store, look: Look, audit: Audit) -> None:
    """Until cancelled: look until there is no such freeze, and then no more."""
    pause, told = _FIRST_LOOK, ""
    while freeze.ends_when_reconciled(store):
        await trio.sleep(pause)
        try:
            trouble = await _trouble(store, look, audit)
        except Exception as error:
            trouble = f"it cannot be looked into: {brief(error)}"
        if not trouble:
            ended = await store.write(lambda tx: freeze.thaw(tx) if freeze.ends_when_reconciled(tx) else None)
            if ended is not None:
                log.warning("everything is reconciled since the restore: spending is no longer frozen")
            continue
        if trouble != told:
            log.warning("spending stays frozen after the restore: %s", trouble)
            told = trouble
        pause = min(2 * pause, _LONGEST_PAUSE)
    await trio.sleep_forever()


async def _trouble(store: Store, look: Look, audit: Audit) -> str:
    """What is not known yet; empty: nothing."""
    restored_at = float(settings.get(store, freeze.UNTIL) or 0.0)
    unknown = 0
    for intent in intents.pending(store):
        if intent.created_at > restored_at:
            continue
        try:
            unknown += isinstance(await look(intent), Unknown)
        except PylonError as error:
            log.debug("payment %s: %s", intent.payment_hash[:16], error.message)
            unknown += 1
    if unknown:
        return f"{unknown} payments whose outcome the wallet cannot tell"
    report = await audit()
    if report.problems:
        return f"the books have a problem: {report.problems[0]}"
    return report.unknown[0] if report.unknown else ""
