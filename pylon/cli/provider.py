"""``pylon provider``: what is sold, to whom, and what is owed."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import ago

_PAYING = 120.0
"""Seconds that a payment may take."""


@click.group()
def provider() -> None:
    """What this home sells, to whom, and what it owes."""


@provider.command(short_help="Who is owed what.")
@click.option("--customer", metavar="KEY", help="Of this customer alone, npub or hex.")
@json_option
@pass_state
def credits(state: State, customer: str | None) -> None:
    """Show what is owed to customers for jobs that were paid and failed.

    It pays for their next jobs by itself; pylon provider payout gives it back.
    """
    report = run_verb(state, "provider.credits", {} if customer is None else {"customer": customer})
    emit(state, report, lambda: _credits_text(report))
    if report["credits"] and not state.json:
        note("hint: it pays for their next jobs; pylon provider payout CUSTOMER TARGET gives it back")


def _credits_text(report: dict[str, Any]) -> str:
    if not report["credits"]:
        return "Nothing is owed."
    now = time.time()
    lines = []
    for entry in report["credits"]:
        under_way = f", {in_sats(entry['paying_msats'])} of it being paid out" if entry["paying_msats"] else ""
        jobs = len(entry["jobs"])
        lines.append(
            f"{in_sats(entry['owed_msats']):>12}  {entry['npub'] or entry['customer']}  {ago(entry['since'], now)},"
            f" {jobs:,} job{'' if jobs == 1 else 's'}{under_way}"
        )
    return "\n".join([*lines, f"{in_sats(report['total_msats']):>12}  in all"])


@provider.command(short_help="Pay a customer what is owed.")
@click.argument("customer")
@click.argument("target")
@click.option("--amount", type=AMOUNT, help="Not all that is owed, but this much: sats, or with msat.")
@json_option
@pass_state
def payout(state: State, customer: str, target: str, amount: int | None) -> None:
    """Pay CUSTOMER (npub or hex) what is owed.

    TARGET is an invoice of the customer's, a lightning address, or an address of the wallet's own network.

    Never more than is owed. The fee is yours. What is not known to have arrived stays reserved until the wallet knows.
    """
    params: dict[str, Any] = {"customer": customer, "target": target}
    if amount is not None:
        params["amount_msats"] = amount
    report = run_verb(state, "provider.payout", params, timeout=_PAYING)
    emit(
        state,
        report,
        lambda: (
            f"paid out {in_sats(report['paid_out_msats'])}, fee {in_sats(report['fee_msats'])};"
            f" {in_sats(report['owed_msats'])} is still owed"
        ),
    )
