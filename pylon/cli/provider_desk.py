"""``pylon provider``, continued: ``status``, ``jobs``, and whom one trusts or does not hear."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state
from pylon.cli.provider import provider
from pylon.cli.times import ago

__all__ = ["provider"]

_STATES = [
    "priced",
    "quoted",
    "held",
    "settling",
    "cancelling",
    "working",
    "billing",
    "served",
    "delivered",
    "expired",
    "refused",
    "cancelled",
    "failed",
    "owed",
]
_WORDS = {
    "stranger": "a stranger again",
    "trusted": "trusted: no cap holds it back",
    "free": "trusted, and served free",
    "blocked": "not heard any more",
}


@provider.command(short_help="Prices, what is open, and of whom something was said.")
@json_option
@pass_state
def status(state: State) -> None:
    """Show what is sold at which price, what is open, and which customers are trusted or blocked."""
    report = run_verb(state, "provider.status")
    emit(state, report, lambda: _status_text(report))


@provider.command(short_help="The jobs that were asked for.")
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--state", "wanted", type=click.Choice(_STATES), help="In this state alone.")
@click.option("--customer", metavar="KEY", help="Of this customer alone, npub or hex.")
@json_option
@pass_state
def jobs(state: State, limit: int, wanted: str | None, customer: str | None) -> None:
    """List the newest jobs that were asked for, and what became of them. pylon trace ID tells all of one."""
    params: dict[str, Any] = {"limit": limit}
    if wanted is not None:
        params["state"] = wanted
    if customer is not None:
        params["customer"] = customer
    report = run_verb(state, "provider.jobs", params)
    emit(state, report, lambda: _jobs_text(report["jobs"]))


def _about_customer(verb: str, short_help: str, text: str, *options: click.Option) -> None:
    """One more command: it says of CUSTOMER what the verb of its name says."""

    @provider.command(verb, short_help=short_help, help=text)
    @click.argument("customer")
    @json_option
    @pass_state
    def command(state: State, /, **params: Any) -> None:
        report = run_verb(state, f"provider.{verb}", params)
        emit(state, report, lambda: f"{report['npub']} is {_WORDS[report['standing']]}")

    command.params[1:1] = options


_about_customer(
    "trust",
    "Hold a customer back by no cap.",
    "Trust CUSTOMER (npub or hex): however many of its jobs are open, one more is heard. At once.",
    click.Option(["--free"], is_flag=True, help="And serve it free of charge."),
)
_about_customer(
    "untrust",
    "Treat a customer like any other again.",
    "Trust CUSTOMER (npub or hex) no more, whatever the configuration says.",
)
_about_customer(
    "block",
    "Hear a customer no more.",
    "Hear CUSTOMER (npub or hex) no more: it gets no answer. What it has paid is done nevertheless.",
)
_about_customer(
    "unblock",
    "Hear a customer again.",
    "Hear CUSTOMER (npub or hex) again, whatever the configuration says.",
)


def _status_text(report: dict[str, Any]) -> str:
    prices = report["prices"]
    lines = [f"Selling:   {', '.join(report['models']) or 'no model is there'}"]
    if not report["selling"]:
        lines = [f"Selling:   nothing ({report['why_not'] or 'this daemon does not sell'})"]
    if not prices["payments"]:
        lines.append("Price:     free, whatever is asked for")
    else:
        lines.append(f"Price:     {in_sats(prices['min_price_msats'])} at least")
        for words, key in (("of prompt", "price_in_msats"), ("of answer", "price_out_msats")):
            if prices[key]:
                lines.append(f"           {in_sats(prices[key])} for 1,000 tokens {words}")
        lines += [f"           x {times:g} for {model}" for model, times in prices["multipliers"].items()]
        if prices["free_per_day"]:
            lines.append(f"           {prices['free_per_day']:,} a day free for each key")
    counts = ", ".join(f"{count:,} {name}" for name, count in report["jobs"].items() if count)
    lines.append(f"Open:      {counts or 'nothing'}; unpaid {report['unpaid']:,} of {report['unpaid_most']:,}")
    if report["waiting"]:
        lines.append(f"Waiting:   {report['waiting']:,} for their turn")
    lines.append(f"Earned:    {in_sats(report['earned_today_msats'])} today; owed {in_sats(report['owed_msats'])}")
    lines += [f"Customer:  {entry['npub']}  {entry['standing']}" for entry in report["customers"]]
    return "\n".join(lines)


def _jobs_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No job was asked for."
    now = time.time()
    return "\n".join(
        f"{row['id'][:16]}  {row['state']:<10}  {in_sats(row['paid_msats']):>10} of {in_sats(row['price_msats']):<10}"
        f"  {row['npub'][:16]}  {ago(row['created_at'], now)}  {row['model'][:40]}"
        for row in rows
    )
