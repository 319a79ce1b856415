"""``pylon job``: buy inference on the market, and see what became of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, json_option, note, pass_state, sats
from pylon.errors import MarketError


@click.group()
def job() -> None:
    """Buy inference on the market."""


@job.command()
@click.argument("prompt")
@click.option("--model", help="Only providers that serve this model.")
@click.option("--max-tokens", type=click.IntRange(1, 1_000_000), default=256, show_default=True, metavar="N")
@click.option(
    "--bid", type=AMOUNT, default="100", show_default=True, help="The most to pay, in sats; fees come on top."
)
@click.option("--provider", metavar="NPUB", help="Only this provider.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@json_option
@pass_state
def submit(
    state: State, prompt: str, model: str | None, max_tokens: int, bid: int, provider: str | None, wait: bool
) -> None:
    """Buy an answer to PROMPT ("-" reads it from stdin) from the cheapest provider that fits.

    Without a running daemon the command itself stays until the answer is there.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    waits = wait or not _daemon_runs(state)
    params = {
        "prompt": prompt,
        "model": model,
        "max_tokens": max_tokens,
        "bid_msats": bid,
        "provider": provider,
        "wait": waits,
    }

    words = Words()

    def progress(method: str, data: Any) -> None:
        if state.json:
            return
        if method == "job" and data["state"] != "answered":
            note(_line(data))
        elif method == "partial" and sys.stdout.isatty():
            words.show(data["text"])

    done = run_verb(state, "job.submit", params, online=True, on_progress=progress, timeout=None)
    if waits and done["state"] != "answered":
        raise MarketError(
            f"job {done['id'][:16]} {done['state']}: {done['reason'] or 'no reason given'}", _remedy(done)
        )
    if waits and words.shown and not state.json:
        words.finish(done["text"])
    else:
        emit(state, done, lambda: done["text"] if waits else done["id"])


class Words:
    """An answer on a terminal, as it grows: each call brings all the words so far."""

    def __init__(self) -> None:
        self.shown = ""

    def show(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            click.echo(text[len(self.shown) :], nl=False)
            self.shown = text

    def finish(self, text: str) -> None:
        """The answer itself. Words that it did not keep (a second attempt may differ) stand above it."""
        if not text.startswith(self.shown):
            click.echo()
            self.shown = ""
        self.show(text)
        click.echo()


def _daemon_runs(state: State) -> bool:
    from pylon.cli.client import ControlClient
    from pylon.errors import PylonError

    try:
        ControlClient(state.home.socket).close()
    except PylonError:
        return False
    return True


def _remedy(done: dict[str, Any]) -> str:
    if done["state"] == "lost":
        return f"it was paid; a late answer is still accepted: pylon job status {done['id'][:16]}"
    if done["state"] == "credited":
        return "the provider owes it to you and says so on the relays"
    return "raise the bid, ask for another model, or start a provider: pylon start -m provider"


def _line(data: dict[str, Any]) -> str:
    match data["state"]:
        case "seeking":
            return "looking for a provider" + (f" ({data['reason']})" if data["reason"] else "")
        case "requested":
            return f"requested {data['request'][:16]} from {data['provider'][:16]}"
        case "paying":
            return f"quoted {sats(data['invoice_msats'])}, paying"
        case "paid":
            return f"paid {sats(data['paid_msats'])} + {sats(data['fee_msats'])} fee; waiting for the answer"
        case _:
            return str(data["state"])


@job.command("list")
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@json_option
@pass_state
def list_jobs(state: State, limit: int) -> None:
    """The jobs that this home has bought, newest first."""
    rows = run_verb(state, "job.list", {"limit": limit})
    emit(state, rows, lambda: "\n".join(_row(row) for row in rows) if rows else "no jobs yet")


def _row(row: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
    paid = sats(row["paid_msats"] + row["fee_msats"])
    words = " ".join((row["text"] or row["reason"] or "").split())
    return f"{row['id'][:16]}  {when}  {row['state']:<9}  {paid:>12}  {words[:60]}"


@job.command()
@click.argument("job_id")
@json_option
@pass_state
def status(state: State, job_id: str) -> None:
    """One job, by its id or its request's, or the first digits of either."""
    row = run_verb(state, "job.status", {"id": job_id})
    emit(state, row, lambda: _details(row))


def _details(row: dict[str, Any]) -> str:
    lines = [
        f"job:      {row['id']}",
        f"state:    {row['state']}" + (f" ({row['reason']})" if row["reason"] else ""),
        f"request:  {row['request']}",
        f"provider: {row['provider']}",
        f"quoted:   {sats(row['invoice_msats'])} of a bid of {sats(row['bid_msats'])}",
        f"paid:     {sats(row['paid_msats'])} + {sats(row['fee_msats'])} fee",
        f"result:   {row['result']}",
    ]
    lines += [
        f"  {time.strftime('%H:%M:%S', time.localtime(step['at']))}  {step['from_state']} -> {step['to_state']}"
        for step in row["history"]
    ]
    return "\n".join([*lines, "", str(row["text"] or "")]).rstrip()
