"""``pylon agent``: the group, and the commands for an agent's life. Money, mind, leave and keys have their own modules.

All of them are thin: they ask a verb (``pylon.daemon.agents``) of the daemon, or run it here if there is none, and say
what it answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from pylon.cli import agent_views as views
from pylon.cli.agent_keys import export, import_agent, reveal
from pylon.cli.agent_leave import approvals, approve, deny, grant, revoke
from pylon.cli.agent_mind import goals, memory, tick, ticks
from pylon.cli.agent_money import fund, withdraw
from pylon.cli.agent_options import (
    DAY_BUDGET,
    NETWORKS,
    GrantSpec,
    daemon_note,
    given,
    name_argument,
    on_terminal,
    read_phrase,
    settings_of,
    settings_options,
)
from pylon.cli.client import is_running
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, in_sats, json_option, note, pass_state, plain
from pylon.errors import PylonError, UsageError


class Sections(click.Group):
    """A group whose help shows its commands under headings, in the order of ``sections``."""

    def __init__(self, *arguments: Any, sections: Mapping[str, tuple[click.Command, ...]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sections = sections
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.commands)
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{command.name:<{width}}", command.get_short_help_str(90)) for command in commands]
                )


# --- looking --------------------------------------------------------------------------------------------------


@click.command("list")
@json_option
@pass_state
def list_agents(state: State) -> None:
    """List the agents of this home."""
    report = run_verb(state, "agent.list")
    found = report["agents"]
    emit(state, report, lambda: views.table(found, time.time()) if found else views.NO_AGENTS)
    if not found and not state.json:
        note("hint: pylon agent spawn --name NAME")


@click.command()
@name_argument
@json_option
@pass_state
def info(state: State, name: str) -> None:
    """Show one agent: state, balance, schedule, budgets, grants, goals."""
    report = run_verb(state, "agent.info", {"agent": name})
    emit(state, report, lambda: views.details(report, time.time()))


# --- beginning and end ----------------------------------------------------------------------------------------


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("-n", "--name", "name_option", metavar="NAME", help="How it is called here: a-z, 0-9, '.', '_', '-'.")
@click.option("--network", type=click.Choice(NETWORKS), help="Must be the home's, which is the default.")
@click.option("--goal", "goals", multiple=True, metavar="TEXT", help="What it is to strive for; repeat for several.")
@settings_options(spawning=True)
@click.option(
    "--grant",
    "grants",
    multiple=True,
    type=GrantSpec(),
    metavar="ACTION[:EACH[:DAY]]",
    help="Leave for an action, with the most sats for each one and for any 24 hours: zap:21:100 lets it zap at most "
    "21 sat at a time and 100 sat a day; without DAY, its budget of a day is the limit. What spends sats (zap, "
    "pay_invoice) is never done without a grant. Repeat for several; pylon agent grant has more limits.",
)
@click.option("--no-publish", is_flag=True, help="Publish neither ticks nor state nor schedule; only what it posts.")
@click.option("--mnemonic-stdin", is_flag=True, help="Read its BIP-39 seed phrase from stdin, instead of a new one.")
@json_option
@pass_state
def spawn(
    state: State,
    /,
    name: str | None,
    name_option: str | None,
    network: str | None,
    goals: tuple[str, ...],
    grants: tuple[dict[str, Any], ...],
    no_publish: bool,
    mnemonic_stdin: bool,
    **options: Any,
) -> None:
    """Make an agent: an identity, a wallet and a schedule of its own.

    It begins with nothing, and ticks once it is funded. Its seed phrase is shown here, once: whoever has it has the
    agent and its money.
    """
    called = _one_name(name, name_option)
    params = {
        **settings_of(options),
        **given(
            name=called,
            network=network,
            goals=list(goals) or None,
            grants=_one_each(grants, options["budget_day"]) or None,
            publish=False if no_publish else None,
        ),
    }
    if mnemonic_stdin:
        params["mnemonic"] = read_phrase(f"pylon agent spawn --name {called} --mnemonic-stdin < FILE")
    report = run_verb(state, "agent.spawn", params)
    emit(state, report, lambda: _spawned(report, new=not mnemonic_stdin))
    if not state.json:
        daemon_note(is_running(state.home), "it runs")


def _one_name(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"two names: {argument} and {option}", "give one")
    name = option if option is not None else argument
    if name is None:
        raise UsageError("an agent wants a name", "pylon agent spawn --name NAME")
    return name


def _one_each(grants: tuple[dict[str, Any], ...], budget_day: int | None) -> list[dict[str, Any]]:
    """The grants, none twice. Where sats are spent and no limit for a day is named, the budget of a day is it."""
    actions = [entry["action"] for entry in grants]
    twice = next((action for action in actions if actions.count(action) > 1), None)
    if twice is not None:
        raise UsageError(f"two grants for {twice}", "give one, with the limits that shall hold")
    day = DAY_BUDGET if budget_day is None else budget_day
    return [{"day_sats": day, **entry} if "each_sats" in entry else entry for entry in grants]


def _spawned(report: dict[str, Any], *, new: bool) -> str:
    name, simnet = report["name"], report["network"] == "simnet"
    lines = [
        f"{name} is here.",
        *views.labelled(
            [
                ("npub", report["npub"]),
                ("state", f"{report['state']}" + (" (waiting for funds)" if report["state"] == "spawning" else "")),
                ("network", report["network"] + (f" ({views.NOT_MONEY})" if simnet else "")),
            ]
        ),
    ]
    if new:
        lines += [
            "",
            f"Write these words down, in this order. Whoever has them has {name} and its money;",
            "they are shown once.",
            "",
            f"    {report['mnemonic']}",
            "",
        ]
    return "\n".join([*lines, f"Next: pylon agent fund {name}" + ("" if simnet else " AMOUNT --invoice")])


@click.command("set")
@name_argument
@click.option("-n", "--name", "new_name", metavar="NAME", help="Call it so from now on.")
@settings_options(spawning=False)
@click.option("--any-model", is_flag=True, help="Buy its thoughts from whatever model is cheapest.")
@click.option(
    "--publish/--no-publish",
    default=None,
    help="Publish ticks, state and schedule, or (--no-publish) only what it posts.",
)
@json_option
@pass_state
def settings(
    state: State, /, name: str, new_name: str | None, any_model: bool, publish: bool | None, **options: Any
) -> None:
    """Change an agent's settings; what is not named stays as it is."""
    params = {**settings_of(options), **given(name=new_name, publish=publish)}
    if any_model:
        if "model" in params:
            raise UsageError("--model and --any-model exclude each other", "give one of them")
        params["model"] = ""
    if not params:
        raise UsageError("nothing to set", "see pylon agent set --help; grants have commands of their own")
    report = run_verb(state, "agent.set", {"agent": name, **params})
    emit(state, report, lambda: views.details(report, time.time()))


@click.command()
@name_argument
@click.option("-f", "--force", is_flag=True, help="Do not ask for the name.")
@json_option
@pass_state
def delete(state: State, name: str, force: bool) -> None:
    """Delete an agent. A sealed backup is kept; what is in its wallet stays there.

    Its name is asked for. Where there is no terminal to ask on, --force stands for it.
    """
    found = run_verb(state, "agent.info", {"agent": name})
    called = str(found["name"])
    left = found["balance_msats"]
    if left is None:
        note(f"warning: what is in the wallet of {called} is not known now")
    elif left:
        note(f"warning: {in_sats(left)} are in the wallet of {called}: pylon agent withdraw {called} --all")
    if force:
        typed = called
    elif on_terminal():
        note(f"{called} ({found['npub']}) is to be deleted.")
        typed = str(
            click.prompt(plain(f"Type its name ({called}) to delete it"), err=True, default="", show_default=False)
        )
        if typed.strip() != called:
            raise PylonError("nothing was deleted: that is not its name", f"pylon agent delete {called}")
    else:
        raise UsageError("there is no terminal to ask for the name on", f"pylon agent delete {called} --force")
    report = run_verb(state, "agent.delete", {"agent": found["pubkey"], "name": typed.strip()})
    emit(state, report, lambda: _deleted(report))


def _deleted(report: dict[str, Any]) -> str:
    lines = [f"{report['name']} is deleted.", f"backup: {report['backup']} (sealed with this home's data key)"]
    if report["remaining_msats"]:
        lines.append(
            f"{in_sats(report['remaining_msats'])} are left in its wallet: its seed phrase, or this backup, still "
            "reaches them."
        )
    return "\n".join(lines)


# --- running --------------------------------------------------------------------------------------------------


def _switch(verb: str, text: str) -> Callable[[State, str], None]:
    def switch(state: State, name: str) -> None:
        report = run_verb(state, f"agent.{verb}", {"agent": name})
        emit(state, report, lambda: views.brief(report, time.time()))
        if not state.json and verb in ("start", "resume"):
            daemon_note(is_running(state.home), "it runs")

    switch.__doc__ = text
    return switch


def _command(verb: str, text: str) -> click.Command:
    return click.command(verb)(name_argument(json_option(pass_state(_switch(verb, text)))))


start = _command("start", "Let an agent run that was stopped or paused.")
stop = _command(
    "stop",
    "Stop an agent at once, a tick under way included.\n\nIt stays so over restarts, until it is started.",
)
pause = _command(
    "pause",
    "Let no more ticks begin; one under way ends.\n\nIt stays so over restarts, until it is resumed.",
)
resume = _command("resume", "Let a paused agent go on; the same as start.")


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Agents": (list_agents, info, spawn, settings, delete),
    "Running": (start, stop, pause, resume, tick, ticks),
    "Money": (fund, withdraw),
    "Mind": (goals, memory),
    "What it may do": (approvals, approve, deny, grant, revoke),
    "Keys": (reveal, export, import_agent),
}
"""Headings of ``pylon agent --help``, and what stands below each."""


@click.group(cls=Sections, sections=SECTIONS)
def agent() -> None:
    """Spawn, fund, watch and steer agents.

    NAME is an agent's name, its npub, or the first 8 or more digits of its public key.
    """
