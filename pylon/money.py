"""Amounts. ``Msat`` is the one type of amount inside Pylon: a whole number of millisatoshi.

NIP-90 speaks millisatoshi, people and budgets speak sats, Lightning wallets may settle whole sats only.
The unit is always printed.
"""

from __future__ import annotations

from typing import NewType

Msat = NewType("Msat", int)

MSATS_PER_SAT = 1_000
MAX_MSAT = Msat(21_000_000 * 100_000_000 * MSATS_PER_SAT)
"""More millisatoshi than this do not exist."""


def sats(amount: int) -> Msat:
    """Whole sats as millisatoshi."""
    return Msat(amount * MSATS_PER_SAT)


def ceil_to_sat(amount: Msat) -> Msat:
    """Round up to whole sats: what a wallet that settles sats must charge for ``amount``."""
    return Msat(-(-amount // MSATS_PER_SAT) * MSATS_PER_SAT)


def max_fee(amount: Msat) -> Msat:
    """The fee we are ready to pay for sending ``amount``: 1 %, at least 2 sat."""
    return Msat(max(2 * MSATS_PER_SAT, ceil_to_sat(Msat(-(-amount // 100)))))


def format_msat(amount: Msat) -> str:
    """``12,345 sat``; with the fraction only where there is one: ``1.5 sat``."""
    whole, rest = divmod(abs(amount), MSATS_PER_SAT)
    sign = "-" if amount < 0 else ""
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{sign}{whole:,}{fraction} sat"
