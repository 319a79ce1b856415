"""What an agent does and knows: its ticks, its goals, its memory."""

from __future__ import annotations

import time
from typing import Any

import click

from pylon.cli import agent_views as views
from pylon.cli.agent_options import given, name_argument
from pylon.cli.client import is_running
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, json_option, note, pass_state
from pylon.errors import UsageError
from pylon.groups import cause

STATUSES = ("active", "paused", "completed", "cancelled")


class Listing(click.Group):
    """A group whose first word may be an agent's name: ``goals alice`` is ``goals list alice``.

    An agent that is called like one of the commands is reached by the long form.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


# --- ticks ----------------------------------------------------------------------------------------------------


@click.command()
@name_argument
@json_option
@pass_state
@click.pass_context
def tick(context: click.Context, state: State, name: str) -> None:
    """Have an agent tick now, and show what it does.

    Without a running daemon the command itself runs the tick. Exit code 1 if the tick fails.
    """
    runs = is_running(state.home)
    seen: list[dict[str, Any]] = []

    def progress(method: str, data: Any) -> None:
        if method == "tick":
            if not state.json:
                for step in views.tick_steps(seen[-1] if seen else None, data):
                    note(step)
            seen[:] = [data]

    try:
        report = run_verb(
            state, "agent.tick", {"agent": name, "wait": True}, online=True, on_progress=progress, timeout=None
        )
    except BaseException as raised:
        if seen and runs and isinstance(cause(raised), KeyboardInterrupt):
            note(f"the tick goes on in the daemon: pylon agent ticks {name}")
        raise
    done = report["tick"]
    emit(state, report, lambda: views.tick_text(done))
    if done["status"] in ("error", "abandoned"):
        context.exit(1)


@click.command()
@name_argument
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many ticks.")
@click.option("--quiet", is_flag=True, help="Also the quiet ones, in which nothing was due and nothing bought.")
@json_option
@pass_state
def ticks(state: State, name: str, limit: int, quiet: bool) -> None:
    """List an agent's ticks, newest first, with what they cost."""
    report = run_verb(state, "agent.ticks", {"agent": name, "limit": limit, "quiet": quiet})
    emit(state, report, lambda: _ticks(report, quiet))


def _ticks(report: dict[str, Any], quiet: bool) -> str:
    now = time.time()
    if not report["total"]:
        return "No ticks yet."
    rows = views.columns([views.tick_row(entry, now) for entry in report["ticks"]], right=(0, 4))
    hidden = "" if quiet or not report["quiet"] else " (--quiet shows them too)"
    return "\n".join([*rows, f"{report['total']:,} in all, {report['quiet']:,} of them quiet{hidden}"])


# --- goals ----------------------------------------------------------------------------------------------------


@click.group(cls=Listing)
def goals() -> None:
    """Show an agent's goals, add one, or change one.

    pylon agent goals NAME is short for pylon agent goals list NAME.
    """


@goals.command("list")
@name_argument
@json_option
@pass_state
def list_goals(state: State, name: str) -> None:
    """Show an agent's goals."""
    report = run_verb(state, "agent.goals", {"agent": name})
    now = time.time()
    emit(
        state,
        report,
        lambda: "\n".join(views.goals(report["goals"], now)) or f"{name} has no goals.",
    )
    if not report["goals"] and not state.json:
        note(f'hint: pylon agent goals add {name} "what it is to strive for"')


_priority = click.option(
    "--priority", type=click.IntRange(-1_000, 1_000), metavar="N", help="The larger, the more important."
)


@goals.command("add")
@name_argument
@click.argument("description")
@_priority
@json_option
@pass_state
def add_goal(state: State, name: str, description: str, priority: int | None) -> None:
    """Give an agent a goal; its next tick looks at it."""
    report = run_verb(state, "agent.goal_add", given(agent=name, description=description, priority=priority))
    emit(state, report, lambda: "  ".join(views.goal_row(report["goal"], time.time())))


@goals.command("set")
@name_argument
@click.argument("ident", metavar="ID")
@click.option("--status", type=click.Choice(STATUSES), help="Where it stands.")
@click.option("--progress", type=click.IntRange(0, 100), metavar="PERCENT", help="How much of it is done.")
@_priority
@json_option
@pass_state
def set_goal(
    state: State, name: str, ident: str, status: str | None, progress: int | None, priority: int | None
) -> None:
    """Change a goal. ID is that of pylon agent goals NAME, or its beginning."""
    part = None if progress is None else progress / 100
    changes = given(status=status, progress=part, priority=priority)
    if not changes:
        raise UsageError("nothing to change", "name --status, --progress or --priority")
    report = run_verb(state, "agent.goal_set", {"agent": name, "id": ident, **changes})
    emit(state, report, lambda: "  ".join(views.goal_row(report["goal"], time.time())))


# --- memory ---------------------------------------------------------------------------------------------------


@click.group(cls=Listing)
def memory() -> None:
    """Show what an agent remembers, add to it, or have it forget.

    pylon agent memory NAME is short for pylon agent memory list NAME.
    """


@memory.command("list")
@name_argument
@click.option("-l", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many.")
@json_option
@pass_state
def list_memory(state: State, name: str, limit: int) -> None:
    """Show what an agent remembers."""
    report = run_verb(state, "agent.memory", {"agent": name, "limit": limit})
    emit(state, report, lambda: views.memories(report, time.time()))


@memory.command("add")
@name_argument
@click.argument("text")
@json_option
@pass_state
def add_memory(state: State, name: str, text: str) -> None:
    """Have an agent remember TEXT, as its operator's word."""
    report = run_verb(state, "agent.memory_add", {"agent": name, "text": text})
    emit(state, report, lambda: f"{report['memory']['id']}  {views.line(report['memory']['content'], 200)}")


@memory.command("forget")
@name_argument
@click.argument("ident", metavar="ID")
@json_option
@pass_state
def forget(state: State, name: str, ident: str) -> None:
    """Have an agent forget one memory; ID is that of pylon agent memory NAME."""
    report = run_verb(state, "agent.memory_forget", {"agent": name, "id": ident})
    emit(state, report, lambda: f"{name} has forgotten {ident}")
