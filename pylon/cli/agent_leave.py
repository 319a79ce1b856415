"""What an agent may do: ``pylon agent grant`` and ``revoke``, and the actions that wait for its operator's word."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli import agent_views as views
from pylon.cli.agent_options import ACTIONS, MONEY, daemon_note, given, name_argument
from pylon.cli.amounts import SATS
from pylon.cli.client import is_running
from pylon.cli.completion import complete_agents
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, json_option, note, pass_state
from pylon.errors import UsageError

action_argument = click.argument("action", type=click.Choice(ACTIONS, case_sensitive=False), metavar="ACTION")
DOING = 120.0
"""Seconds for an approved action, which may be a payment."""


@click.command()
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_agents)
@json_option
@pass_state
def approvals(state: State, name: str | None) -> None:
    """List the actions that wait for their operator, of one agent or of all."""
    report = run_verb(state, "agent.approvals", given(agent=name))
    waiting = report["approvals"]
    emit(
        state,
        report,
        lambda: (
            "\n".join(views.approval_text(entry, time.time()) for entry in waiting) if waiting else "Nothing waits."
        ),
    )
    if waiting and not state.json:
        note("hint: pylon agent approve ID, or pylon agent deny ID")


@click.command()
@click.argument("ident", metavar="ID")
@json_option
@pass_state
@click.pass_context
def approve(context: click.Context, state: State, ident: str) -> None:
    """Let a waiting action be done. ID is that of pylon agent approvals, or its beginning.

    Exit code 1 if it was tried and failed.
    """
    report = run_verb(state, "agent.approve", {"id": ident}, timeout=DOING)
    emit(state, report, lambda: _decided(report))
    reached = report["approval"]["state"]
    if reached in ("failed", "refused", "expired"):
        context.exit(1)
    if reached != "done" and not state.json:
        daemon_note(is_running(state.home), "it goes on")


@click.command()
@click.argument("ident", metavar="ID")
@click.option("--reason", metavar="TEXT", help="Why not; the agent is told.")
@json_option
@pass_state
def deny(state: State, ident: str, reason: str | None) -> None:
    """Have a waiting action dropped."""
    report = run_verb(state, "agent.deny", given(id=ident, reason=reason))
    emit(state, report, lambda: _decided(report))


def _decided(report: dict[str, Any]) -> str:
    approval = report["approval"]
    outcome = f": {views.line(approval['outcome'], 200)}" if approval["outcome"] else ""
    return f"{approval['id']} is {approval['state']}{outcome}"


@click.command()
@name_argument
@action_argument
@click.option("--each", type=SATS, metavar="SATS", help="The most that one may cost, its fee not included.")
@click.option("--day", type=SATS, metavar="SATS", help="The most for any 24 hours, fees included.")
@click.option("--per-day", type=click.IntRange(0, 100_000), metavar="N", help="How many in any 24 hours; 0: none.")
@click.option("--strangers", is_flag=True, help="Also in ticks that strangers had a word in.")
@json_option
@pass_state
def grant(
    state: State, name: str, action: str, each: int | None, day: int | None, per_day: int | None, strangers: bool
) -> None:
    """Give an agent leave for an action. A grant for the same action is replaced.

    ACTION is post, reply, react, dm or request_payment, which others notice; zap or pay_invoice, which spend sats, and
    need --each and --day; or update_goal, add_memory or set_heartbeat, which concern the agent alone.
    """
    if action in MONEY and (each is None or day is None):
        raise UsageError(
            f"{action} spends sats: say how many", f"pylon agent grant {name} {action} --each 21 --day 100"
        )
    if action not in MONEY and (each is not None or day is not None):
        raise UsageError(f"{action} spends no sats", "leave out --each and --day; --per-day limits it")
    params = given(each_sats=each, day_sats=day, per_day=per_day, strangers=strangers or None)
    report = run_verb(state, "agent.grant", {"agent": name, "action": action, **params})
    emit(state, report, lambda: _grants(report))


@click.command()
@name_argument
@action_argument
@json_option
@pass_state
def revoke(state: State, name: str, action: str) -> None:
    """Take the leave for an action back."""
    report = run_verb(state, "agent.revoke", {"agent": name, "action": action})
    emit(state, report, lambda: _grants(report))


def _grants(report: dict[str, Any]) -> str:
    rows = [f"  {views.grant_words(entry)}" for entry in report["grants"]]
    return "\n".join([f"{report['name']} has leave for", *rows] if rows else [f"{report['name']} has no grants."])
