"""``pylon trace``: one job's whole life on this machine."""

from __future__ import annotations

import datetime
from typing import Any

import click

from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, pass_state


@click.command()
@click.argument("job_id")
@json_option
@pass_state
def trace(state: State, job_id: str) -> None:
    """States, milliseconds, sats, events and relays of one job, bought or sold here.

    JOB_ID is a job's id, its request's, or that of an event of it; the first digits will do.
    """
    report = run_verb(state, "trace", {"id": job_id})
    emit(state, report, lambda: "\n\n".join(map(_record, report["records"])))


def _record(record: dict[str, Any]) -> str:
    reason = f" ({record['reason']})" if record["reason"] else ""
    lines = [
        f"{record['machine']} {record['id']}",
        f"{record['state']}{reason} after {record['ms']:,} ms",
        *(_bought(record) if record["machine"] == "purchase" else _sold(record)),
    ]
    lines += [
        f"  {_clock(step['at'])}  {step['ms']:>9,} ms  {step['from_state']} -> {step['to_state']}  {step['input']}"
        for step in record["history"]
    ]
    for event in record["events"]:
        name = event["effect"].partition(".")[2].replace("_", " ")
        lines.append(f"  {_clock(event['queued_at'])}  kind {event['kind']}  {event['event_id']}  {name}")
        lines += [f"      {_relay(relay)}" for relay in event["relays"]]
    return "\n".join(lines)


def _bought(record: dict[str, Any]) -> list[str]:
    lines = [f"bid {in_sats(record['bid_msats'])}, quoted {in_sats(record['invoice_msats'])}"]
    if record["hold_until"] is not None:
        lines.append(f"paid on delivery, held until {_clock(record['hold_until'])} at the latest")
    if record["credit_used_msats"]:
        lines.append(f"{in_sats(record['credit_used_msats'])} taken off, of what the provider owed")
    if record["credit_msats"]:
        lines.append(f"credited {in_sats(record['credit_msats'])}")
    lines += [f"request {entry['request_id']} to {entry['provider']}" for entry in record["requests"]]
    lines += [_payment(payment) for payment in record["payments"]]
    return lines + ([f"result {record['result']}"] if record["result"] else [])


def _payment(payment: dict[str, Any]) -> str:
    """A fee is known, and owed, once the payment has settled."""
    ending = f", {in_sats(payment['fee_msats'])} fee" if payment["state"] == "settled" else ""
    error = f": {payment['error']}" if payment["error"] else ""
    return f"payment {payment['payment_hash']}: {in_sats(payment['amount_msats'])}, {payment['state']}{ending}{error}"


def _sold(record: dict[str, Any]) -> list[str]:
    paid, earned, owed = (in_sats(record[f"{name}_msats"]) for name in ("paid", "earned", "owed"))
    lines = [
        f"for {record['customer']}",
        f"price {in_sats(record['price_msats'])}, paid {paid}, earned {earned}, owed {owed}",
    ]
    if record["held_until"] is not None:
        held = f"{in_sats(record['held_msats'])} held, " if record["held_msats"] else ""
        lines.append(f"paid on delivery: {held}until {_clock(record['held_until'])} at the latest")
    if record["on_trust"]:
        lines.append("served on trust, and paid afterwards")
    if record["credit_used_msats"]:
        lines.append(f"{in_sats(record['credit_used_msats'])} of it paid by what was owed to the customer")
    if record["completion_tokens"] is not None:
        lines.append(f"{record['prompt_tokens']:,} tokens asked, {record['completion_tokens']:,} answered")
    return lines + [
        f"payment {payment['payment_hash']}: {in_sats(payment['amount_msats'])} at {_clock(payment['at'])}"
        for payment in record["payments"]
    ]


def _relay(relay: dict[str, Any]) -> str:
    took = "" if relay["ms"] is None else f" after {relay['ms']:,} ms"
    attempts = f", {relay['attempts']} attempts" if relay["attempts"] > 1 else ""
    said = f": {relay['message']}" if relay["message"] else ""
    return f"{relay['state']} {relay['relay']}{took}{attempts}{said}"


def _clock(at: float) -> str:
    """UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
