"""The freeze: one mark in the store, and while it is there nobody of this home reserves or sends anything.

It is read in the transaction that reserves, and again before a wallet is called. What is on its way already cannot be
called back: it is still asked about, and booked. A mark that does not read counts: whoever set it meant to stop.
"""

from __future__ import annotations

import json

import attrs

from pylon.errors import WalletFrozen
from pylon.store import settings
from pylon.store.database import Reads, Tx

KEY = "frozen"
"""In ``pylon.store.settings``: a JSON object with ``reason`` and ``at``."""
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
    """Freeze. The first freeze stands: another one on top changes neither its reason nor its time."""
    there = mark(tx)
    if there is not None:
        return there
    settings.put(tx, KEY, json.dumps({"reason": reason[:_LONGEST_REASON], "at": at}))
    return Frozen(reason[:_LONGEST_REASON], at)


def thaw(tx: Tx) -> Frozen | None:
    """Let spending go on; returns the freeze that has ended, if there was one."""
    there = mark(tx)
    tx.execute("DELETE FROM settings WHERE key = ?", (KEY,))
    tx.touch(f"settings:{KEY}")
    return there
