"""``pylon agent fund`` and ``withdraw``: money into an agent's wallet, and out of it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import click

from pylon.cli import agent_views as views
from pylon.cli.agent_options import confirm, daemon_note, name_argument
from pylon.cli.amounts import AMOUNT
from pylon.cli.client import is_running
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import until
from pylon.errors import ControlError, UsageError
from pylon.money import Msat, sats

FAUCET = sats(10_000)
"""What an agent gets on simnet if no amount is named: enough for ten days as they are assumed at first."""

PAYING = 120.0
"""Seconds for a payment: longer than any that a wallet has not given up."""


@click.command()
@name_argument
@click.argument("amount", type=AMOUNT, required=False)
@click.option("--from-wallet", is_flag=True, help="Pay it from the home's own wallet.")
@click.option("--invoice", is_flag=True, help="Print an invoice that anybody can pay, and move nothing.")
@json_option
@pass_state
def fund(state: State, name: str, amount: Msat | None, from_wallet: bool, invoice: bool) -> None:
    """Give an agent money.

    On simnet AMOUNT (default 10,000 sat) comes from nowhere, at once; elsewhere name --from-wallet or --invoice, and
    an AMOUNT.
    """
    if from_wallet and invoice:
        raise UsageError("--from-wallet and --invoice exclude each other", "give one of them")
    if amount is None and (from_wallet or invoice):
        raise UsageError("how much?", f"pylon agent fund NAME AMOUNT {'--invoice' if invoice else '--from-wallet'}")
    if invoice:
        asked = run_verb(state, "agent.invoice", {"agent": name, "amount_msats": amount})
        emit(state, asked, lambda: asked["bolt11"])
        if not state.json:
            due = until(asked["expires_at"], time.time())
            note(f"an invoice for {in_sats(asked['amount_msats'])}; it expires {due}")
        return
    source = "wallet" if from_wallet else "faucet"
    params = {"agent": name, "amount_msats": FAUCET if amount is None else amount, "source": source}
    with _unsure(name):
        report = run_verb(state, "agent.fund", params, timeout=PAYING)
    emit(state, report, lambda: _funded(report))
    if not state.json:
        daemon_note(is_running(state.home), "it runs")


def _funded(report: dict[str, Any]) -> str:
    where = " from the home's wallet" if report["source"] == "wallet" else ""
    fee = f", {in_sats(report['fee_msats'])} fee" if report["fee_msats"] else ""
    return "\n".join(
        [
            f"funded with {in_sats(report['funded_msats'])}{where}{fee}",
            *(f"network: simnet ({views.NOT_MONEY})" for _ in [0] if report["agent"]["network"] == "simnet"),
            views.brief(report["agent"], time.time()),
        ]
    )


@click.command()
@name_argument
@click.argument("amount", type=AMOUNT, required=False)
@click.option("--all", "everything", is_flag=True, help="All that can be sent.")
@click.option("--to", metavar="INVOICE", help="Pay this invoice, instead of the home's own wallet.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal.")
@json_option
@pass_state
def withdraw(state: State, name: str, amount: Msat | None, everything: bool, to: str | None, yes: bool) -> None:
    """Take AMOUNT, or --all, out of an agent's wallet.

    It goes into the home's own wallet, or pays an INVOICE. It is the operator's payment: neither budgets nor the
    reserve hold it up. An agent that has nothing left is dormant, and lives on with the next funds.
    """
    if to is not None and everything:
        raise UsageError("an invoice says itself how much", "leave --all out, or --to")
    if to is None and (amount is None) is not everything:
        raise UsageError(
            "name an amount or --all" if amount is None else "an amount and --all exclude each other",
            f"pylon agent withdraw {name} --all",
        )
    confirm(functools.partial(_question, name, amount, to), yes=yes, otherwise="nothing was withdrawn")
    params: dict[str, Any] = {"agent": name, "amount_msats": amount}
    if to is not None:
        params["to"] = to
    with _unsure(name):
        report = run_verb(state, "agent.withdraw", params, timeout=PAYING)
    emit(state, report, lambda: _withdrawn(report, to is not None))


def _question(name: str, amount: Msat | None, to: str | None) -> str:
    """What is asked on a terminal. Of an invoice that cannot be read the daemon says why it is not paid."""
    if to is None:
        what = "all that it has" if amount is None else in_sats(amount)
        return f"Send {what} from {name} to the wallet of this home?"
    from protocols import bolt11

    try:
        asked = bolt11.decode(to).amount_msats
    except ValueError:
        asked = None
    how_much = "an amount that cannot be read" if asked is None else in_sats(Msat(asked))
    return f"Pay this invoice, of {how_much}, from the wallet of {name}?"


def _withdrawn(report: dict[str, Any], outside: bool) -> str:
    where = "paid that invoice" if outside else "went to the wallet of this home"
    fee = f", {in_sats(report['fee_msats'])} fee" if report["fee_msats"] else ""
    return "\n".join(
        [
            f"{in_sats(report['withdrawn_msats'])} {where}{fee}; {in_sats(report['left_msats'])} left",
            views.brief(report["agent"], time.time()),
        ]
    )


@contextlib.contextmanager
def _unsure(name: str) -> Iterator[None]:
    """Whatever ended the command while a payment was under way has not ended the payment."""
    try:
        yield
    except (ControlError, KeyboardInterrupt):
        note(f"the payment may still settle; before you try again: pylon agent info {name}")
        raise
