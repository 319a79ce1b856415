"""``pylon earnings``: what the provider has earned."""

from __future__ import annotations

import sys
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state
from pylon.cli.times import SINCE, utc

WIDTH = 40
"""Characters of the longest bar."""
MOST_BARS = 31
_EIGHTHS = " ▏▎▍▌▋▊▉"


@click.command()
@click.option("--by", type=click.Choice(["model", "customer"]), help="What each model or each customer has brought in.")
@click.option("--since", type=SINCE, metavar="TIME", help="Since a day in UTC (2026-01-31), or in this time: 24h, 7d.")
@click.option("-l", "--limit", type=click.IntRange(0, 10_000), default=10, show_default=True, help="How many entries.")
@click.option("--csv", "csv_wanted", is_flag=True, help="The entries as CSV, amounts in millisatoshi, times in UTC.")
@json_option
@pass_state
def earnings(state: State, by: str | None, since: float | None, limit: int, csv_wanted: bool) -> None:
    """What the provider has earned: today (UTC), the last seven days, in all; on a terminal with a chart."""
    if csv_wanted and state.json:
        raise click.UsageError("--csv and --json exclude each other")
    asked = {"limit": limit, "since": since, "by": by}
    report = run_verb(state, "earnings", {name: value for name, value in asked.items() if value is not None})
    if csv_wanted:
        click.echo(_csv(report), nl=False)
        return
    emit(state, report, lambda: _text(report, chart=sys.stdout.isatty()))


def _text(report: dict[str, Any], chart: bool) -> str:
    summary, period = report["summary"], report.get("since")
    lines = [
        f"Today:     {in_sats(summary['today_msats'])}",
        f"This week: {in_sats(summary['week_msats'])}",
        f"Total:     {in_sats(summary['total_msats'])} for {_jobs(summary['job_count'])}",
    ]
    if period is not None:
        earned = f"{in_sats(period['amount_msats'])} for {_jobs(period['job_count'])}"
        lines.append(f"Since {utc(period['at'], '%Y-%m-%d %H:%M')} UTC: {earned}")
    if summary["owed_msats"]:
        lines.append(f"Owed to customers: {in_sats(summary['owed_msats'])}")
    if summary["unearned_msats"]:
        lines.append(f"Paid for, in the works: {in_sats(summary['unearned_msats'])}")
    if chart:
        lines += bars(report.get("days", []))
    if "groups" in report:
        return "\n".join([*lines, *(_group(report["by"], group) for group in report["groups"])])
    return "\n".join([*lines, *map(_entry, report["recent"])])


def _jobs(count: int) -> str:
    return f"{count:,} job{'' if count == 1 else 's'}"


def _group(by: str, group: dict[str, Any]) -> str:
    name = group[by] or "unknown"
    return f"  {in_sats(group['amount_msats']):>14}  {_jobs(group['job_count']):>10}  {name[:64]}"


def _entry(row: dict[str, Any]) -> str:
    return f"  {utc(row['earned_at'], '%Y-%m-%d %H:%M')}  {in_sats(row['amount_msats']):>12}  {row['job_id'][:16]}"


def bars(days: list[dict[str, Any]]) -> list[str]:
    """A line for each day, the latest ``MOST_BARS``; nothing where nothing was earned."""
    shown = days[-MOST_BARS:]
    most = max((day["amount_msats"] for day in shown), default=0)
    if most <= 0:
        return []
    return [
        f"  {utc(day['day'], '%m-%d')}  {_bar(day['amount_msats'], most)} {in_sats(day['amount_msats'])}"
        for day in shown
    ]


def _bar(amount: int, most: int) -> str:
    """In eighths of a character; whatever is above nothing is seen."""
    eighths = 0 if amount <= 0 else max(1, amount * WIDTH * 8 // most)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(WIDTH)


def _csv(report: dict[str, Any]) -> str:
    from pylon.cli.csv_output import as_csv

    if "groups" in report:
        return as_csv((report["by"], "job_count", "amount_msats"), report["groups"])
    rows = ({**row, "time": utc(row["earned_at"], "%Y-%m-%dT%H:%M:%SZ")} for row in report["recent"])
    return as_csv(("time", "job_id", "model", "customer", "amount_msats"), rows)
