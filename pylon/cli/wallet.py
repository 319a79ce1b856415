"""``pylon wallet``: what the home has."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state


@click.group()
def wallet() -> None:
    """Balance, invoices and payments."""


def _text(report: dict[str, Any]) -> str:
    lines = [f"Balance: {in_sats(report['settled_msats'])}"]
    if report["pending_msats"]:
        lines.append(f"On its way out: {in_sats(report['pending_msats'])}")
    if report["network"] == "simnet":
        lines.append("Network: simnet (these sats are not money)")
    elif report.get("note"):
        lines.append(f"Network: {report['network']} ({report['note']})")
    return "\n".join(lines)


@wallet.command()
@json_option
@pass_state
def balance(state: State) -> None:
    """Show the balance."""
    report = run_verb(state, "wallet.balance", timeout=90.0)
    emit(state, report, lambda: _text(report))


@wallet.command()
@click.option(
    "-a",
    "--amount",
    type=AMOUNT,
    help="How many sats (25, 25sat, 1500msat); unless named 100,000 on simnet, 50,000 on Spark's regtest.",
)
@json_option
@pass_state
def fund(state: State, amount: int | None) -> None:
    """Get test sats: on simnet from nowhere, at once; on Spark's regtest from its faucet (50,000 sat at most)."""
    report = run_verb(state, "wallet.fund", {} if amount is None else {"amount_msats": amount}, timeout=60.0)
    emit(state, report, lambda: _funded(report))


def _funded(report: dict[str, Any]) -> str:
    given = in_sats(report["funded_msats"])
    if report.get("state", "settled") == "settled":
        return f"funded with {given}\n{_text(report)}"
    return f"the faucet sends {given}: they are in the wallet after the next blocks\ntransaction: {report['payment']}"
