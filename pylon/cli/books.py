"""``pylon books``: the double-entry ledger, and whether everything agrees with it."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state
from pylon.cli.times import DURATION

PURPOSES = {
    "purchase": "thoughts and answers",
    "zap": "zaps",
    "invoice": "invoices",
    "withdrawal": "taken out",
    "refund": "given back to customers",
}


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 if ledger, records, events and wallet do not agree.")
@click.option("--since", type=DURATION, metavar="TIME", help="What moved in this time only: 90s, 15m, 24h, 7d.")
@click.option("--causes", is_flag=True, help="What was spent by cause: each purchase, action or withdrawal.")
@json_option
@pass_state
@click.pass_context
def books(context: click.Context, state: State, check: bool, since: int | None, causes: bool) -> None:
    """What the home and its agents have, have earned, owe and have spent."""
    params = {"causes": causes} | ({} if since is None else {"since": time.time() - since})
    report = run_verb(state, "books", params)
    emit(state, report, lambda: _text(report))
    if check and not report["clean"]:
        context.exit(1)


def _text(report: dict[str, Any]) -> str:
    moved = report.get("moved")
    accounts = report["accounts"] if moved is None else moved
    lines = [] if moved is None else ["In this time:"]
    lines += [f"{name.removesuffix('_msats'):<16} {in_sats(amount):>16}" for name, amount in accounts.items()]
    if report["wallet_msats"] is not None and moved is None:
        lines.append(f"{'(wallet says)':<16} {in_sats(report['wallet_msats']):>16}")
    if report.get("spent"):
        lines += ["What left the wallets:", *(f"  {_spent(entry)}" for entry in report["spent"])]
    lines += [f"NOTE: {remark}" for remark in report.get("remarks", ())]
    lines += [f"PROBLEM: {problem}" for problem in report["problems"]] or ["the books are clean"]
    return "\n".join(lines)


def _spent(entry: dict[str, Any]) -> str:
    """``alice: thoughts and answers, 12 payments, 34 sat and 2 sat fees``."""
    payments = f"{entry['payments']:,} payment{'' if entry['payments'] == 1 else 's'}"
    what = PURPOSES.get(entry["purpose"], entry["purpose"])
    if entry.get("cause"):
        what += f" ({entry['cause'][:40]})"
    costs = f"{in_sats(entry['amount_msats'])} and {in_sats(entry['fee_msats'])} fees"
    return f"{entry['name'] or 'this home'}: {what}, {payments}, {costs}"
