"""``pylon books``: the double-entry ledger, and whether everything agrees with it."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 if ledger, records, events and wallet do not agree.")
@json_option
@pass_state
@click.pass_context
def books(context: click.Context, state: State, check: bool) -> None:
    """What the home has, has earned, owes and has spent."""
    report = run_verb(state, "books")
    emit(state, report, lambda: _text(report))
    if check and not report["clean"]:
        context.exit(1)


def _text(report: dict[str, Any]) -> str:
    lines = [f"{name.removesuffix('_msats'):<16} {in_sats(amount):>16}" for name, amount in report["accounts"].items()]
    if report["wallet_msats"] is not None:
        lines.append(f"{'(wallet says)':<16} {in_sats(report['wallet_msats']):>16}")
    lines += [f"PROBLEM: {problem}" for problem in report["problems"]] or ["the books are clean"]
    return "\n".join(lines)
