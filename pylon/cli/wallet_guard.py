"""``pylon wallet freeze|thaw|approvals|approve|deny``: the operator's hand on the money."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import ago, until

_SHOWN = 18
"""Characters of an id: payees have a hand in it, and could make a second one that begins like a short piece of it."""
SENDING = "whoever wanted it sends it now; without a daemon, when one runs: pylon start"


@click.command(short_help="Stop all spending at once.")
@click.option("--reason", help="What you want to be reminded of.")
@json_option
@pass_state
def freeze(state: State, reason: str | None) -> None:
    """Stop all spending at once: the home's, its agents', and that of every program.

    What is on its way already cannot be called back; it is still seen to its end. Money can be received all the same.
    """
    report = run_verb(state, "wallet.freeze", {} if reason is None else {"reason": reason})
    emit(state, report, lambda: _freeze_text(report))


def _freeze_text(report: dict[str, Any]) -> str:
    frozen = report["frozen"]
    head = (
        f"spending was frozen already, {ago(frozen['at'], time.time())}" if report["already"] else "spending is frozen"
    )
    return f"{head}{_because(frozen)}\nIt goes on with: pylon wallet thaw"


def _because(frozen: dict[str, Any]) -> str:
    return f" ({frozen['reason']})" if frozen["reason"] else ""


@click.command()
@json_option
@pass_state
def thaw(state: State) -> None:
    """Let spending go on after a freeze. What was decided before it, and is still wanted, goes out then."""
    report = run_verb(state, "wallet.thaw")
    ended = report["ended"]
    words = "spending was not frozen" if ended is None else f"spending goes on; it was frozen{_because(ended)}"
    emit(state, report, words)


@click.command()
@json_option
@pass_state
def approvals(state: State) -> None:
    """Show the payments that wait for your yes. What agents want to do is shown by pylon agent approvals."""
    report = run_verb(state, "wallet.approvals")
    waiting = report["approvals"]
    now = time.time()
    emit(state, report, lambda: "\n".join(_row(entry, now) for entry in waiting) if waiting else "Nothing waits.")
    if waiting and not state.json:
        note("hint: pylon wallet approve ID, or pylon wallet deny ID")


def _row(entry: dict[str, Any], now: float) -> str:
    whose = entry["name"] or "this home"
    cost = f"{in_sats(entry['amount_msats'])} and at most {in_sats(entry['max_fee_msats'])} fee"
    to = f" to {entry['payee'][:20]}" if entry["payee"] else ""
    lapses = "" if entry["expires_at"] is None else f", lapses {until(entry['expires_at'], now)}"
    return f"{entry['id'][:_SHOWN]}  {whose}  {entry['purpose']}  {cost}{to}  {ago(entry['at'], now)}{lapses}"


@click.command()
@click.argument("ident", metavar="ID")
@json_option
@pass_state
def approve(state: State, ident: str) -> None:
    """Let a waiting payment go out. ID is that of pylon wallet approvals, or its beginning."""
    known = [entry for entry in run_verb(state, "wallet.approvals")["approvals"] if entry["id"].startswith(ident)]
    params: dict[str, Any] = {"id": ident}
    if len(known) == 1:
        # The yes is to this payment, whatever may come to be called so.
        params |= {"id": known[0]["id"], "amount_msats": known[0]["amount_msats"], "payee": known[0]["payee"]}
    report = run_verb(state, "wallet.approve", params)
    emit(state, report, lambda: f"{_short(report)} is approved: {SENDING}")


@click.command()
@click.argument("ident", metavar="ID")
@click.option("--reason", help="Kept with the payment.")
@json_option
@pass_state
def deny(state: State, ident: str, reason: str | None) -> None:
    """Refuse a waiting payment. ID is that of pylon wallet approvals, or its beginning."""
    report = run_verb(state, "wallet.deny", {"id": ident} | ({} if reason is None else {"reason": reason}))
    emit(state, report, lambda: f"{_short(report)} is denied: nothing was paid")


def _short(report: dict[str, Any]) -> str:
    return f"payment {report['approval']['id'][:_SHOWN]} of {in_sats(report['approval']['amount_msats'])}"


COMMANDS = (freeze, thaw, approvals, approve, deny)
"""For ``pylon wallet``."""
