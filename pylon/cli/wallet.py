"""``pylon wallet``: what the home has, or with ``--agent`` one of its agents."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pylon.cli.agent_options import given
from pylon.cli.amounts import AMOUNT, SATS
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state
from pylon.cli.times import DURATION, ago, until, utc
from pylon.cli.wallet_connect import COMMANDS as CONNECT
from pylon.cli.wallet_guard import COMMANDS as GUARD

F = TypeVar("F", bound=Callable[..., Any])

PAYING = 120.0
"""Seconds for a payment: longer than any that a wallet has not given up."""
ASKING = 90.0
"""Seconds for what a wallet may have to ask its network for."""


@click.group()
def wallet() -> None:
    """Balance, invoices and payments."""


for command in (*GUARD, *CONNECT):
    wallet.add_command(command)


def agent_option(command: F) -> F:
    return click.option("--agent", metavar="NAME", help="The wallet of this agent, instead of the home's own.")(command)


def _network(report: dict[str, Any]) -> list[str]:
    note_of = f" ({report['note']})" if report["note"] else ""
    return [f"Network: {report['network']}{note_of}"]


def _balance(report: dict[str, Any]) -> list[str]:
    lines = [f"Balance: {in_sats(report['settled_msats'])}"]
    if report["pending_msats"]:
        lines.append(f"On its way out: {in_sats(report['pending_msats'])}")
    return lines


def _addresses(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, what in (("spark_address", "Spark address"), ("bitcoin_address", "Bitcoin address")):
        missing = "unknown: its network does not answer" if name in report["can"] else "none: it has no such address"
        lines.append(f"{what}: {report[name] or missing}")
    return lines


def _text(report: dict[str, Any]) -> str:
    return "\n".join([*_balance(report), *_addresses(report), *_network(report)])


@wallet.command()
@agent_option
@json_option
@pass_state
def balance(state: State, agent: str | None) -> None:
    """Show the balance, and the addresses to pay to."""
    report = run_verb(state, "wallet.balance", given(agent=agent), timeout=ASKING)
    emit(state, report, lambda: _text(report))


@wallet.command()
@agent_option
@json_option
@pass_state
def status(state: State, agent: str | None) -> None:
    """Show what the wallet is, and whether it answers."""
    report = run_verb(state, "wallet.status", given(agent=agent), timeout=ASKING)
    emit(state, report, lambda: _status(report, time.time()))


def _status(report: dict[str, Any], now: float) -> str:
    answers = f"yes, in {report['answered_in_ms']} ms" if report["reachable"] else f"no: {report['problem']}"
    lines = [
        f"Wallet: {report['wallet']} ({report['kind_of_wallet']})",
        *_network(report),
        f"Answers: {answers}",
        *_balance(report),
    ]
    if report["known_at"] is not None:
        lines.append(f"Known: {ago(report['known_at'], now)}")
    if report["open_payments"]:
        lines.append(f"Open payments: {report['open_payments']}, at most {in_sats(report['reserved_msats'])}")
    if report["frozen"]:
        lines.append(f"{report['frozen']}; it goes on with: pylon wallet thaw")
    lines.append(f"Can: {', '.join(['pay', 'invoice', *report['can']])}")
    return "\n".join(lines)


@wallet.command()
@agent_option
@json_option
@pass_state
def address(state: State, agent: str | None) -> None:
    """Show the addresses to pay to."""
    report = run_verb(state, "wallet.address", given(agent=agent), timeout=ASKING)
    emit(state, report, lambda: "\n".join(_addresses(report)))
    if not state.json and report["note"]:
        note(report["note"])


@wallet.command()
@click.argument("amount", type=AMOUNT)
@click.option("-d", "--description", metavar="TEXT", help="What it is for; the payer sees it.")
@click.option("--expires", type=DURATION, metavar="TIME", default="1d", show_default=True, help="15m, 1h, 2d.")
@click.option("--qr/--no-qr", default=None, help="Show a QR code (default: on a terminal).")
@agent_option
@json_option
@pass_state
def invoice(
    state: State, amount: int, description: str | None, expires: int, qr: bool | None, agent: str | None
) -> None:
    """Make an invoice for AMOUNT that anybody can pay."""
    params = given(agent=agent, amount_msats=amount, description=description, expiry_seconds=expires)
    report = run_verb(state, "wallet.invoice", params, timeout=ASKING)
    emit(state, report, lambda: report["bolt11"])
    if state.json:
        return
    if qr or (qr is None and sys.stdout.isatty()):
        _show_qr(report["bolt11"])
    note(f"an invoice for {in_sats(report['amount_msats'])}; it expires {until(report['expires_at'], time.time())}")
    if report["note"]:
        note(report["note"])


def _show_qr(text: str) -> None:
    """On stderr, for stdout is the invoice."""
    import io

    import segno

    drawn = io.StringIO()
    # In capitals it is a smaller code, and the same invoice.
    segno.make(f"LIGHTNING:{text.upper()}", micro=False, error="l").terminal(out=drawn, compact=True, border=2)
    click.echo(drawn.getvalue(), err=True)


@wallet.command()
@click.argument("target")
@click.option("-a", "--amount", type=AMOUNT, help="How much, where the target does not say it.")
@click.option("--max-fee", type=SATS, metavar="SATS", help="The highest fee to pay (default: 1 %, at least 2 sat).")
@click.option("--dry-run", is_flag=True, help="Show what it would be and cost; send nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal.")
@agent_option
@json_option
@pass_state
def pay(
    state: State, target: str, amount: int | None, max_fee: int | None, dry_run: bool, yes: bool, agent: str | None
) -> None:
    """Pay TARGET: a Lightning invoice or a Spark address."""
    import uuid

    from pylon.cli.agent_options import confirm

    most = None if max_fee is None else max_fee * 1_000
    params = given(agent=agent, target=target, amount_msats=amount, max_fee_msats=most)
    quoted = run_verb(state, "wallet.quote", params, timeout=ASKING)
    if dry_run:
        emit(state, {**quoted, "dry_run": True}, lambda: _quoted(quoted))
        if not state.json:
            note("nothing was sent")
        return
    if not state.json:
        note(_quoted(quoted))
    confirm(functools.partial(_question, quoted), yes=yes, otherwise="nothing was paid")
    with _unsure():
        report = run_verb(state, "wallet.pay", {**params, "key": str(uuid.uuid4())}, timeout=PAYING)
    emit(state, report, lambda: _paid(report))


def _question(quoted: dict[str, Any]) -> str:
    return f"Pay {in_sats(quoted['amount_msats'])}, and {in_sats(quoted['fee_msats'])} of fees?"


def _quoted(quoted: dict[str, Any]) -> str:
    what = "an invoice" if quoted["kind"] == "bolt11" else "a Spark address"
    lines = [
        f"{what} of {quoted['payee'] or 'somebody'}",
        f"Amount: {in_sats(quoted['amount_msats'])}",
        f"Fee: {in_sats(quoted['fee_msats'])} (at most {in_sats(quoted['max_fee_msats'])})",
        f"In all: {in_sats(quoted['total_msats'])} of {in_sats(quoted['spendable_msats'])}",
    ]
    if quoted["description"]:
        lines.insert(1, f"For: {quoted['description']}")
    if quoted["expires_at"] is not None:
        due = until(quoted["expires_at"], time.time())
        lines.append("It has expired" if due == "due now" else f"It expires {due}")
    return "\n".join([*lines, *_network(quoted)])


def _paid(report: dict[str, Any]) -> str:
    fee = in_sats(report["fee_msats"])
    return f"paid {in_sats(report['paid_msats'])}, {fee} fee; {in_sats(report['spendable_msats'])} left"


class _unsure:
    """Whatever ended the command while a payment was under way has not ended the payment."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        from pylon.errors import ControlError

        if kind is not None and issubclass(kind, ControlError | KeyboardInterrupt):
            note("the payment may still settle; before you try again: pylon wallet history")


@wallet.command()
@click.option("-l", "--limit", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many.")
@click.option("--completed", is_flag=True, help="Only those that have settled.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV, amounts in millisatoshi, times in UTC.")
@agent_option
@json_option
@pass_state
def history(state: State, limit: int, completed: bool, as_csv: bool, agent: str | None) -> None:
    """List the latest payments, newest first."""
    if as_csv and state.json:
        raise click.UsageError("--csv and --json exclude each other")
    params = given(agent=agent, limit=limit, completed=completed or None)
    report = run_verb(state, "wallet.history", params, timeout=ASKING)
    if as_csv:
        click.echo(_csv(report["payments"]), nl=False)
        return
    emit(state, report, lambda: "\n".join(map(_line, report["payments"])) or "no payments yet")


_CSV = ("time", "direction", "state", "amount_msats", "fee_msats", "purpose", "cause", "payment_hash", "id",
        "description")  # fmt: skip


def _csv(payments: list[dict[str, Any]]) -> str:
    from pylon.cli.csv_output import as_csv

    rows = ({**payment, "time": utc(payment["created_at"], "%Y-%m-%dT%H:%M:%SZ")} for payment in payments)
    return as_csv(_CSV, rows)


_ARROWS = {"sent": "→", "received": "←"}


def _line(payment: dict[str, Any]) -> str:
    fee = f" + {in_sats(payment['fee_msats'])} fee" if payment["fee_msats"] else ""
    words = payment["description"] or payment["purpose"] or ("from outside" if payment["outside"] else "")
    when = utc(payment["created_at"], "%Y-%m-%d %H:%M:%S UTC")
    amount = f"{in_sats(payment['amount_msats'])}{fee}"
    return f"{when}  {_ARROWS[payment['direction']]} {amount:<24} {payment['state']:<8} {words[:60]}".rstrip()


@wallet.command(short_help="Get test sats.")
@click.option(
    "-a",
    "--amount",
    type=AMOUNT,
    help="How many sats (25, 25sat, 1500msat); unless named 100,000 on simnet, 50,000 on Spark's regtest.",
)
@agent_option
@json_option
@pass_state
def fund(state: State, amount: int | None, agent: str | None) -> None:
    """Get test sats: on simnet from nowhere, at once; on Spark's regtest from its faucet (50,000 sat at most)."""
    report = run_verb(state, "wallet.fund", given(agent=agent, amount_msats=amount), timeout=ASKING)
    emit(state, report, lambda: _funded(report))


def _funded(report: dict[str, Any]) -> str:
    given = in_sats(report["funded_msats"])
    if report["state"] == "settled":
        return f"funded with {given}\n{_text(report)}"
    return f"the faucet sends {given}: they are in the wallet after the next blocks\ntransaction: {report['payment']}"
