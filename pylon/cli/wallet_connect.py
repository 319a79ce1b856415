"""``pylon wallet connect|connections|disconnect``: let an app or an agent elsewhere spend within a budget."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.amounts import AMOUNT, SATS
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import DURATION, ago, until


@click.command(short_help="Hand out a connection string with a budget.")
@click.argument("name")
@click.option(
    "--budget-day", type=SATS, required=True, help="What it may spend in any 24 hours, fees included; 0: nothing."
)
@click.option("--budget-each", type=AMOUNT, help="What one invoice may ask for. Default: no bound but the day's.")
@click.option("--expires", type=DURATION, help="Close it after this time (12h, 30d).")
@click.option("--relay", "relays", multiple=True, metavar="URL", help="Where to meet it; else the home's own relays.")
@json_option
@pass_state
def connect(
    state: State, name: str, budget_day: int, budget_each: int | None, expires: int | None, relays: tuple[str, ...]
) -> None:
    """Hand out a connection string (Nostr Wallet Connect) with a budget.

    Whoever has the string can pay with this home's wallet within the budget, make invoices that are paid into it, and
    see what it did itself. The string is shown this once; the daemon serves it.
    """
    params = {
        "name": name,
        "day_msats": budget_day * 1_000,
        "each_msats": budget_each,
        "expires_seconds": expires,
        "relays": list(relays),
    }
    report = run_verb(state, "wallet.connect", params)
    if not state.json:
        each = "" if report["each_msats"] is None else f", {in_sats(report['each_msats'])} an invoice"
        note(f"{report['name']} may spend {in_sats(report['day_msats'])} in any 24 hours{each}, fees included.")
        note(f"Whoever has this string can. It is not shown again; to close it: pylon wallet disconnect {name}")
    emit(state, report, report["uri"])


@click.command(short_help="Show who may use the wallet.")
@click.option("--closed", is_flag=True, help="Those that were closed, too.")
@json_option
@pass_state
def connections(state: State, closed: bool) -> None:
    """Show who may use the wallet, and what is left of their budgets."""
    report = run_verb(state, "wallet.connections", {"closed": closed})
    now = time.time()
    found = report["connections"]
    emit(state, report, lambda: "\n\n".join(_text(entry, now) for entry in found) or "nobody else uses this wallet")


def _text(entry: dict[str, Any], now: float) -> str:
    state = "open" if entry["open"] else "closed" if entry["closed_at"] else "expired"
    each = "" if entry["each_msats"] is None else f", {in_sats(entry['each_msats'])} an invoice"
    lines = [
        f"{entry['name']} ({state}, made {ago(entry['created_at'], now)})",
        f"  budget: {in_sats(entry['day_msats'])} in 24 hours{each}",
        f"  spent:  {in_sats(entry['spent_msats'])} in 24 hours, {in_sats(entry['left_msats'])} left;"
        f" {entry['payments']} payments in all",
        f"  relays: {' '.join(entry['relays'])}",
    ]
    if entry["open"] and entry["expires_at"] is not None:
        lines.append(f"  closes: {until(entry['expires_at'], now)}")
    return "\n".join(lines)


@click.command()
@click.argument("name")
@json_option
@pass_state
def disconnect(state: State, name: str) -> None:
    """Close a connection: its string is worth nothing from now on. What it is paying already is seen to its end."""
    report = run_verb(state, "wallet.disconnect", {"name": name})
    emit(state, report, lambda: f"{report['name']} cannot use this wallet any more")


COMMANDS = (connect, connections, disconnect)
