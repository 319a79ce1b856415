"""``pylon wallet``: what the home has."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state
from pylon.cli.wallet_connect import COMMANDS as CONNECT
from pylon.cli.wallet_guard import COMMANDS as GUARD


@click.group()
def wallet() -> None:
    """Balance, invoices and payments."""


for command in (*GUARD, *CONNECT):
    wallet.add_command(command)


def _text(report: dict[str, Any]) -> str:
    lines = [f"Balance: {in_sats(report['settled_msats'])}"]
    if report["pending_msats"]:
        lines.append(f"On its way out: {in_sats(report['pending_msats'])}")
    if report["network"] == "simnet":
        lines.append("Network: simnet (these sats are not money)")
    return "\n".join(lines)


@wallet.command()
@json_option
@pass_state
def balance(state: State) -> None:
    """Show the balance."""
    report = run_verb(state, "wallet.balance")
    emit(state, report, lambda: _text(report))


@wallet.command()
@click.option(
    "-a", "--amount", type=AMOUNT, default="100000", show_default=True, help="How many sats (25, 25sat, 1500msat)."
)
@json_option
@pass_state
def fund(state: State, amount: int) -> None:
    """Get test sats: on simnet from nowhere, at once."""
    report = run_verb(state, "wallet.fund", {"amount_msats": amount})
    emit(state, report, lambda: f"funded with {in_sats(report['funded_msats'])}\n{_text(report)}")
