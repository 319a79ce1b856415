"""What the provider has earned, read from the ledger.

Amounts are net: what was earned and then given back, for it could not be delivered, is earned no more.
"""

from __future__ import annotations

import attrs

from pylon.money import Msat
from pylon.store.database import Store

DAY = 86_400.0
GROUPS = {"model": "model", "customer": "customer"}
"""By what earnings can be told apart -> the column of a sale."""

_NET = "SUM(CASE WHEN e.credit = 'earned' THEN e.msats ELSE -e.msats END)"
_MOVED = "(e.credit = 'earned' OR e.debit = 'earned') AND e.at >= ?"


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
    midnight = now - now % DAY

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
        week=moved("earned", now - 7 * DAY),
        total=moved("earned"),
        jobs=jobs["n"] if jobs is not None else 0,
        owed=moved("owed"),
        unearned=moved("unearned"),
    )


def recent(store: Store, limit: int, since: float = 0.0) -> list[dict[str, object]]:
    """The latest earnings, newest first; ``model`` and ``customer`` are ``None`` where the sale is not known any more.

    ``amount_msats`` is what was booked then, and not net.
    """
    rows = store.read(
        "SELECT e.cause AS job_id, e.msats AS amount_msats, e.at AS earned_at, s.model AS model, s.customer AS customer"
        " FROM entries e LEFT JOIN sales s ON s.id = e.cause WHERE e.credit = 'earned' AND e.at >= ?"
        " ORDER BY e.at DESC, e.id DESC LIMIT ?",
        (since, limit),
    )
    return [dict(row) for row in rows]


def grouped(store: Store, by: str, limit: int, since: float = 0.0) -> list[dict[str, object]]:
    """What each model or customer (``by``, one of ``GROUPS``) has brought in, the most first."""
    name = GROUPS[by]
    rows = store.read(
        f"SELECT s.{name} AS {name}, {_NET} AS amount_msats, COUNT(DISTINCT e.cause) AS job_count"
        f" FROM entries e LEFT JOIN sales s ON s.id = e.cause WHERE {_MOVED}"
        f" GROUP BY s.{name} HAVING amount_msats <> 0 ORDER BY amount_msats DESC, s.{name} LIMIT ?",
        (since, limit),
    )
    return [dict(row) for row in rows]


def daily(store: Store, since: float, now: float) -> list[dict[str, object]]:
    """Each day (UTC) from that of ``since`` to today, also those on which nothing was earned; ``day`` is its midnight.

    The first day is whole, also if ``since`` is in its midst.
    """
    first, today = int(since // DAY), int(now // DAY)
    rows = store.read(
        f"SELECT CAST(e.at / {DAY} AS INTEGER) AS day, {_NET} AS amount_msats FROM entries e"
        f" WHERE {_MOVED} GROUP BY day",
        (first * DAY,),
    )
    earned = {row["day"]: row["amount_msats"] for row in rows}
    return [{"day": day * DAY, "amount_msats": earned.get(day, 0)} for day in range(first, today + 1)]


def since_then(store: Store, since: float) -> tuple[Msat, int]:
    """What was earned since, and by how many jobs."""
    row = store.one(
        f"SELECT COALESCE({_NET}, 0) AS msats, COUNT(DISTINCT e.cause) AS jobs FROM entries e WHERE {_MOVED}", (since,)
    )
    return (Msat(0), 0) if row is None else (Msat(row["msats"]), row["jobs"])
