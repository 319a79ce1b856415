"""``pylon earnings``: what the provider has earned."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state


@click.command()
@click.option("-l", "--limit", type=click.IntRange(0, 10_000), default=10, show_default=True, help="How many entries.")
@json_option
@pass_state
def earnings(state: State, limit: int) -> None:
    """What the provider has earned: today (UTC), the last seven days, in all."""
    report = run_verb(state, "earnings", {"limit": limit})
    emit(state, report, lambda: _text(report))


def _text(report: dict[str, Any]) -> str:
    summary = report["summary"]
    lines = [
        f"Today:     {in_sats(summary['today_msats'])}",
        f"This week: {in_sats(summary['week_msats'])}",
        f"Total:     {in_sats(summary['total_msats'])} for {summary['job_count']} jobs",
    ]
    if summary["owed_msats"]:
        lines.append(f"Owed to customers: {in_sats(summary['owed_msats'])}")
    if summary["unearned_msats"]:
        lines.append(f"Paid for, in the works: {in_sats(summary['unearned_msats'])}")
    lines += [
        f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(row['earned_at']))}  {in_sats(row['amount_msats']):>12}"
        f"  {row['job_id'][:16]}"
        for row in report["recent"]
    ]
    return "\n".join(lines)
