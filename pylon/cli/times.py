"""Times on the command line: durations in, ages out. Only click and the standard library, as in ``output``."""

from __future__ import annotations

import datetime
import re
import time

import click

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MOST_DIGITS = 12
"""Enough for any time; what is longer is no time, and no work either."""
_LONGEST = 1e12
"""Seconds, and days: what is beyond, or no number, is no time that anybody waits for."""


class Duration(click.ParamType[int]):
    """``900``, ``90s``, ``15m``, ``1h`` or ``2d`` -> whole seconds, more than none."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(rf"([0-9]{{1,{_MOST_DIGITS}}})\s*([smhd]?)", str(value).strip().lower())
        seconds = 0 if match is None else int(match[1]) * _UNITS[match[2] or "s"]
        if seconds == 0:
            self.fail(f"{value!r} is no time: write seconds (900), or 90s, 15m, 1h, 2d", param, ctx)
        return seconds


DURATION = Duration()


class Since(click.ParamType[float]):
    """``2026-01-31`` (midnight UTC), or a duration back from now -> Unix seconds, not in the future."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        now = time.time()
        if isinstance(value, float):
            return value
        text = str(value).strip()
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
            return max(0.0, now - DURATION.convert(value, param, ctx))
        try:
            day = datetime.date.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is no day", param, ctx)
        at = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
        if not 0 <= at <= now:
            self.fail(f"{value!r} is not a day of the past", param, ctx)
        return at


SINCE = Since()


def span(seconds: float) -> str:
    """``45s``, ``12m``, ``3h 20m``, ``2d 3h``: the two largest units, the second only from hours on."""
    left = int(min(max(0.0, seconds), _LONGEST))
    if left < 60:
        return f"{left}s"
    if left < 3_600:
        return f"{left // 60}m"
    large, small = ("h", "m") if left < 86_400 else ("d", "h")
    whole, rest = divmod(left, _UNITS[large])
    part = rest // _UNITS[small]
    return f"{whole}{large} {part}{small}" if part else f"{whole}{large}"


def ago(at: float | None, now: float) -> str:
    """The age of what happened at ``at`` (Unix seconds): ``12m ago``; ``never`` for what has not."""
    if at is None:
        return "never"
    return "just now" if now - at < 1 else f"{span(now - at)} ago"


def until(at: float, now: float) -> str:
    """``in 12m``; what should have begun already is ``due now``."""
    return "due now" if at - now < 1 else f"in {span(at - now)}"


def in_days(days: float) -> str:
    """A runway: ``12 days``, ``0.9 days``."""
    if not days < _LONGEST:
        return "unlimited"
    if days >= 10:
        return f"{int(days):,} days"
    tenths = round(max(0.0, days) * 10)
    if tenths == 0:
        return "0 days" if days <= 0 else "under 0.1 days"
    whole, rest = divmod(tenths, 10)
    if rest == 0:
        return "1 day" if whole == 1 else f"{whole} days"
    return f"{whole}.{rest} days"


def utc(at: float, form: str) -> str:
    """A moment (Unix seconds) in UTC, as ``strftime`` has it."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime(form)
