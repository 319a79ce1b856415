"""The verb ``earnings``: what the provider has earned, in all and in detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pylon.errors import UsageError
from pylon.provider import earnings
from pylon.store.database import Store

LONGEST_CHART = 366
"""Days that are told one by one, the latest."""
_WEEK = 7


def report(store: Store, now: float, params: Mapping[str, Any]) -> dict[str, Any]:
    """``limit``: of how many entries, or groups; ``since``: Unix seconds; ``by``: "model" or "customer".

    ``days`` are the last seven, or those since ``since``. Raises ``UsageError``.
    """
    limit, since, by = params.get("limit", 10), params.get("since"), params.get("by")
    if type(limit) is not int or not 0 <= limit <= 10_000:
        raise UsageError("limit must be a whole number from 0 to 10,000")
    if since is not None and (isinstance(since, bool) or not isinstance(since, int | float) or not 0 <= since <= now):
        raise UsageError("since must be a time in Unix seconds, and not in the future")
    if by is not None and by not in list(earnings.GROUPS):
        raise UsageError(f"by must be one of {', '.join(earnings.GROUPS)}")
    found = earnings.earnings(store, now)
    start = 0.0 if since is None else float(since)
    first_day = now - (_WEEK - 1) * earnings.DAY if since is None else start
    told: dict[str, Any] = {
        "summary": {
            "today_msats": found.today,
            "week_msats": found.week,
            "total_msats": found.total,
            "total_sats": found.total // 1_000,
            "job_count": found.jobs,
            "owed_msats": found.owed,
            "unearned_msats": found.unearned,
        },
        "recent": earnings.recent(store, limit, start),
        "days": earnings.daily(store, max(first_day, now - (LONGEST_CHART - 1) * earnings.DAY, 0.0), now),
    }
    if since is not None:
        msats, jobs = earnings.since_then(store, start)
        told["since"] = {"at": start, "amount_msats": msats, "job_count": jobs}
    if by is not None:
        told |= {"by": by, "groups": earnings.grouped(store, by, limit, start)}
    return told
