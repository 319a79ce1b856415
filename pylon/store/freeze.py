"""The freeze: one mark in the store, and while it is there nobody of this home reserves or sends anything.

It is read in the transaction that reserves, and again before a wallet is called. What is on its way already cannot be
called back: it is still asked about, and booked. A mark that does not read counts: whoever set it meant to stop.

One that a restore has set ends by itself, when everything is reconciled (``pylon.daemon.thawing``); one that the
operator has set does not, also where it came on top of that.
"""

from __future__ import annotations

import json

import attrs

from pylon.errors import WalletFrozen
from pylon.store import settings
from pylon.store.database import Reads, Tx

KEY = "frozen"
"""In ``pylon.store.settings``: a JSON object with ``reason`` and ``at``."""
UNTIL = "frozen_until_reconciled"
"""The same: Unix seconds of the restore whose freeze ends by itself."""
REMEDY = "pylon wallet thaw"
_LONGEST_REASON = 300


@attrs.frozen
class Frozen:
    """Who may not spend is everybody; this is why, and since when."""

    reason: str
    at: float | None
    """Unix seconds; ``None`` where the mark does not say."""

    @property
    def words(self) -> str:
        return f"spending is frozen: {self.reason}" if self.reason else "spending is frozen"


def mark(source: Reads) -> Frozen | None:
    """The freeze as it stands; ``None``: there is none. Raises ``StoreError`` where the store cannot tell."""
    text = settings.get(source, KEY)
    if text is None:
        return None
    try:
        found = json.loads(text)
        reason, at = found["reason"], found.get("at")
        if isinstance(reason, str):
            known = isinstance(at, int | float) and not isinstance(at, bool)
            return Frozen(reason, float(at) if known else None)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        pass
    return Frozen("its mark does not read", None)


def check(source: Reads) -> None:
    """Raises ``WalletFrozen`` while there is a freeze."""
    frozen = mark(source)
    if frozen is not None:
        raise WalletFrozen(frozen.words, REMEDY)


def freeze(tx: Tx, reason: str, at: float) -> Frozen:
    """Freeze. The first freeze stands: another one on top changes neither its reason nor its time, but for one that
    would have ended by itself."""
    there = mark(tx)
    ends = tx.execute("DELETE FROM settings WHERE key = ?", (UNTIL,)).rowcount
    if there is not None and not ends:
        return there
    settings.put(tx, KEY, json.dumps({"reason": reason[:_LONGEST_REASON], "at": at}))
    return Frozen(reason[:_LONGEST_REASON], at)


def freeze_until_reconciled(tx: Tx, reason: str, at: float) -> Frozen:
    """Freeze until everything is known again; one that the operator had set is left as it was."""
    if (there := mark(tx)) is not None and settings.get(tx, UNTIL) is None:
        return there
    frozen = freeze(tx, reason, at)
    settings.put(tx, UNTIL, str(at))
    return frozen


def ends_when_reconciled(source: Reads) -> bool:
    """Whether there is a freeze that ends by itself."""
    return settings.get(source, UNTIL) is not None and mark(source) is not None


def thaw(tx: Tx) -> Frozen | None:
    """Let spending go on; returns the freeze that has ended, if there was one."""
    there = mark(tx)
    tx.execute("DELETE FROM settings WHERE key IN (?, ?)", (KEY, UNTIL))
    tx.touch(f"settings:{KEY}")
    return there
