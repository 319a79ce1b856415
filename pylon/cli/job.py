"""``pylon job``: buy inference on the market, and see what became of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from pylon.cli.amounts import AMOUNT
from pylon.cli.client import is_running
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state, plain
from pylon.cli.times import DURATION, SINCE
from pylon.errors import ControlError, MarketError, NotRunning, PylonError, UsageError, WalletError
from pylon.groups import cause

MAX_STDIN_BYTES = 1 << 20
"""More than any prompt that is sent."""

LONG = 16_000
"""Characters from which on a prompt is looked at before the daemon is asked, whose lines have an end."""

ENDS = ("answered", "failed", "credited", "lost")
"""States in which a job is over; the command itself says what came of it."""

STATES = ("seeking", "requested", "collecting", "paying", "paid", *ENDS)
"""All of ``PurchaseState``, which would import too much for a help page."""


class Parameter(click.ParamType[tuple[str, str]]):
    """``temperature=0.5`` -> ("temperature", "0.5")."""

    name = "parameter"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, sign, said = str(value).partition("=")
        if not sign or not key.strip():
            self.fail(f"{str(value)[:80]!r} is no parameter: write NAME=VALUE", param, ctx)
        return key.strip(), said


@click.group()
def job() -> None:
    """Buy inference on the market."""


@job.command(short_help="Buy an answer to PROMPT.")
@click.argument("prompt", required=False)
@click.option("--model", help="Only providers that serve this model.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    metavar="N",
    help="The longest answer, in tokens.",
)
@click.option(
    "--bid",
    type=AMOUNT,
    default="100",
    show_default=True,
    help="The most to pay for the answer, in sats (25, 25sat, 1500msat); the network's fee comes on top.",
)
@click.option("--provider", metavar="NPUB", help="Only this provider, by npub or hex, even if it announces nothing.")
@click.option("--open", "everybody", is_flag=True, help="Ask everybody, in public, and pay the best quote.")
@click.option(
    "--param",
    "parameters",
    type=Parameter(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What else the request asks for, as in temperature=0.5, top_p=0.9, seed=7; may be given often.",
)
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Wait for the answer and print it, or print the job's id at once. Default: wait where no daemon runs.",
)
@click.option("--timeout", type=DURATION, metavar="TIME", help="Wait so long at most (90s, 5m); the job goes on.")
@json_option
@pass_state
def submit(
    state: State,
    prompt: str | None,
    model: str | None,
    max_tokens: int,
    bid: int,
    provider: str | None,
    everybody: bool,
    parameters: tuple[tuple[str, str], ...],
    wait: bool | None,
    timeout: int | None,
) -> None:
    """Buy an answer to PROMPT ("-", or none, reads it from stdin) from the cheapest provider that fits.

    Without a running daemon the command itself stays until the answer is there.
    """
    if wait is False and timeout is not None:
        raise click.UsageError("--timeout is for waiting, and --no-wait is for not waiting")
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", 'pylon job submit "why is the sky blue?", or pipe one in')
    if prompt in (None, "-"):
        prompt = sys.stdin.buffer.read(MAX_STDIN_BYTES).decode("utf-8", "surrogateescape")
    if len(prompt) > LONG or not prompt.strip():
        from pylon.daemon.verbs import check_prompt

        check_prompt(prompt)
    runs = is_running(state.home)
    if wait is False and not runs and state.home.mnemonic.exists():
        raise NotRunning("no daemon is running that would see to the job", "pylon start, or leave out --no-wait")
    waits = wait or timeout is not None or not runs
    params = {
        "prompt": prompt,
        "model": model,
        "max_tokens": max_tokens,
        "bid_msats": bid,
        "provider": provider,
        "wait": waits,
        **({"params": [list(pair) for pair in parameters]} if parameters else {}),
        **({} if timeout is None else {"wait_seconds": timeout}),
    }
    if everybody:
        params["open"] = True

    words = Words()
    begun: list[str] = []

    def progress(method: str, data: Any) -> None:
        if method == "job" and not begun:
            begun.append(data["id"])
        if state.json:
            return
        if method == "job" and data["state"] not in ENDS:
            note(_line(data))
        elif method == "partial" and sys.stdout.isatty():
            words.show(data["text"])

    try:
        done = run_verb(state, "job.submit", params, online=True, on_progress=progress, timeout=None)
    except BaseException as raised:
        if begun:
            tell_what_goes_on(cause(raised), begun[0], runs)
        raise
    if waits and done["state"] not in ENDS:
        where = "in the daemon" if runs else "when a daemon runs here again: pylon start"
        raise MarketError(
            f"job {done['id'][:16]} is {done['state']} after {timeout} s: there is no answer yet",
            f"it goes on {where}; pylon job results {done['id'][:16]}",
        )
    if waits and done["state"] != "answered":
        raise _failure(done)
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
            click.echo(plain(text[len(self.shown) :]), nl=False)
            self.shown = text

    def finish(self, text: str) -> None:
        """The answer itself. Words that it did not keep (a second attempt may differ) stand above it."""
        if not text.startswith(self.shown):
            click.echo()
            self.shown = ""
        self.show(text)
        click.echo()


def tell_what_goes_on(error: BaseException, ident: str, daemon: bool) -> None:
    """The job is written down: whatever ended this command has not ended it."""
    if isinstance(error, KeyboardInterrupt) and daemon:
        note(f"job {ident[:16]} goes on in the daemon: pylon job status {ident[:16]}")
    elif isinstance(error, (KeyboardInterrupt, ControlError)):
        note(f"job {ident[:16]} goes on when a daemon runs here again: pylon start")


def _failure(done: dict[str, Any]) -> PylonError:
    """Why a job ended without an answer, and what to do; money refused by our own wallet has its own exit code."""
    ident = done["id"][:16]
    message = f"job {ident} {done['state']}: {done['reason'] or 'no reason given'}"
    if any(step["input"] == "PaymentRefused" for step in done.get("history", ())):
        return WalletError(message, "look at pylon wallet balance; on simnet pylon wallet fund gives more")
    if done["state"] == "lost":
        return MarketError(message, f"it was paid; a late answer is still accepted: pylon job status {ident}")
    if done["state"] == "credited":
        return MarketError(message, "the provider owes it to you and says so on the relays")
    return MarketError(
        message,
        "raise --bid, leave out --model and --provider, or start a provider in another home, for none buys from "
        "itself: pylon --home DIR start -m provider",
    )


def _line(data: dict[str, Any]) -> str:
    match data["state"]:
        case "seeking":
            return "looking for a provider" + (f" ({data['reason']})" if data["reason"] else "")
        case "requested":
            return f"requested {data['request'][:16]} from {data['provider'][:16]}"
        case "collecting":
            return f"asked everybody by {data['request'][:16]}; collecting quotes"
        case "paying" if data.get("hold_until"):
            return f"quoted {in_sats(data['invoice_msats'])}, paid on delivery"
        case "paying":
            return f"quoted {in_sats(data['invoice_msats'])}, paying"
        case "paid":
            return f"paid {in_sats(data['paid_msats'])} + {in_sats(data['fee_msats'])} fee; waiting for the answer"
        case _:
            return str(data["state"])


@job.command("list")
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many jobs.")
@click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Only these; may be given often.")
@click.option("--since", type=SINCE, metavar="TIME", help="Since a day in UTC (2026-01-31), or in this time: 24h, 7d.")
@click.option("--provider", metavar="NPUB", help="Only what this provider was asked for last, by npub or hex.")
@click.option("--agents", is_flag=True, help="The thoughts of agents, too.")
@json_option
@pass_state
def list_jobs(
    state: State, limit: int, states: tuple[str, ...], since: float | None, provider: str | None, agents: bool
) -> None:
    """The jobs that this home has bought, newest first."""
    given = {"states": list(states) or None, "since": since, "provider": provider, "agents": agents or None}
    rows = run_verb(
        state, "job.list", {"limit": limit, **{name: value for name, value in given.items() if value is not None}}
    )
    nothing = "no jobs like that" if any(value is not None for value in given.values()) else "no jobs yet"
    emit(state, rows, lambda: "\n".join(_row(row) for row in rows) if rows else nothing)


def _row(row: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
    paid = in_sats(row["paid_msats"] + row["fee_msats"])
    words = " ".join((row["text"] or row["reason"] or "").split())
    return f"{row['id'][:16]}  {when}  {row['state']:<9}  {paid:>12}  {words[:60]}"


@job.command(short_help="Show one job and its history.")
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
        f"request:  {row['request'] or 'none'}",
        f"provider: {row['provider'] or 'none'}",
        f"quoted:   {in_sats(row['invoice_msats'])} of a bid of {in_sats(row['bid_msats'])}",
        f"paid:     {in_sats(row['paid_msats'])} + {in_sats(row['fee_msats'])} fee"
        + (f", {in_sats(row.get('credit_used_msats'))} of what it owed" if row.get("credit_used_msats") else ""),
        f"result:   {row['result'] or 'none'}",
    ]
    lines += [
        f"  {time.strftime('%H:%M:%S', time.localtime(step['at']))}  {step['from_state']} -> {step['to_state']}"
        for step in row["history"]
    ]
    return "\n".join([*lines, "", str(row["text"] or "")]).rstrip()


@job.command()
@click.argument("job_id")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Wait so long at most for it (90s, 5m).")
@json_option
@pass_state
def results(state: State, job_id: str, timeout: int | None) -> None:
    """The answer to a job, and nothing else; exit code 1 while there is none."""
    # Where no daemon runs, nothing would change meanwhile.
    waits = timeout if timeout is not None and is_running(state.home) else None
    asked = {"id": job_id} if waits is None else {"id": job_id, "wait_seconds": waits}
    row = run_verb(state, "job.status", asked, timeout=10.0 + (waits or 0))
    if row["text"] is None or row["state"] != "answered":
        if row["state"] in ENDS:
            raise _failure(row)
        ident = row["id"][:16]
        raise MarketError(f"job {ident} is {row['state']}: there is no answer yet", f"pylon job status {ident}")
    emit(state, row, lambda: row["text"])


@job.command()
@click.argument("job_id")
@json_option
@pass_state
def cancel(state: State, job_id: str) -> None:
    """Give up a job that is not being paid yet, and tell its provider; what is paid cannot be cancelled (exit code 4).

    A job that has failed or was cancelled before stays as it is.
    """
    runs = is_running(state.home)
    row = run_verb(state, "job.cancel", {"id": job_id, "wait": not runs}, online=True, timeout=None)
    emit(state, row, lambda: f"job {row['id'][:16]} {row['state']}: {row['reason']}")
