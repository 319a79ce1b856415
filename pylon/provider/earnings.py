"""What the provider has earned, read from the ledger."""

from __future__ import annotations

import attrs

from pylon.money import Msat
from pylon.store.database import Store

_DAY = 86_400.0


@attrs.frozen
class Earnings:
    """Millisatoshi; ``today`` since midnight UTC, ``week`` the last seven days."""

    today: Msat
    week: Msat
    total: Msat
    jobs: int
    owed: Msat
    unearned: Msat


def earnings(store: Store, now: float) -> Earnings:
    midnight = now - now % _DAY

    def moved(account: str, since: float = 0.0) -> Msat:
        row = store.one(
            "SELECT COALESCE(SUM(CASE WHEN credit = ?1 THEN msats ELSE -msats END), 0) AS total FROM entries"
            " WHERE (credit = ?1 OR debit = ?1) AND at >= ?2",
            (account, since),
        )
        return Msat(row["total"] if row is not None else 0)

    jobs = store.one("SELECT COUNT(DISTINCT cause) AS n FROM entries WHERE credit = 'earned'", ())
    return Earnings(
        today=moved("earned", midnight),
        week=moved("earned", now - 7 * _DAY),
        total=moved("earned"),
        jobs=jobs["n"] if jobs is not None else 0,
        owed=moved("owed"),
        unearned=moved("unearned"),
    )


def recent(store: Store, limit: int) -> list[dict[str, object]]:
    """The latest earnings, newest first."""
    rows = store.read(
        "SELECT cause AS job_id, msats AS amount_msats, at AS earned_at FROM entries"
        " WHERE credit = 'earned' ORDER BY at DESC, id DESC LIMIT ?",
        (limit,),
    )
    return [dict(row) for row in rows]
