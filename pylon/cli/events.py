"""``pylon events``: what happens in a home, as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

import click

from pylon.cli.client import ControlClient
from pylon.cli.output import State, json_option, note, pass_state, plain
from pylon.errors import ControlError
from pylon.events import describe

_ALIVE = 15.0
"""Seconds after which a daemon that follows says that it is there."""
_AGAIN = 0.5


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 1_000), default=50, show_default=True, help="How many to begin with."
)
@click.option("--agent", metavar="NAME", help="Only what concerns this agent: its name, npub or hex.")
@click.option(
    "--kind",
    "kinds",
    metavar="KIND",
    multiple=True,
    help="Only this kind, as sale.state, or a group of kinds, as sale.",
)
@json_option
@pass_state
def events(state: State, follow: bool, lines: int, agent: str | None, kinds: tuple[str, ...]) -> None:
    """Show what has happened since the daemon was started, and with -f what happens.

    The daemon keeps the last 4,096 events; the log has more. With --json, one JSON object a line: seq, mark, at (Unix
    seconds), kind, and the fields of the kind; where events were missed, kind is "gap". Exit code 3 if no daemon is
    running.
    """
    asked: dict[str, Any] = {"kinds": list(kinds), "limit": lines, "follow": follow, "alive": _ALIVE}
    if agent is not None:
        asked["agent"] = agent
    try:
        _show(state, asked)
        while follow:
            # It was too slow, or the daemon was started anew: what is kept from where it was comes first.
            time.sleep(_AGAIN)
            _show(state, asked)
    except BrokenPipeError:
        # Whoever read has enough. What is still buffered goes nowhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _show(state: State, asked: dict[str, Any]) -> None:
    """Until the daemon has told all that was asked for; one that is followed, until it hangs up."""
    with ControlClient(state.home.socket) as client:
        client.begin("events", asked)
        while True:
            try:
                told = client.told(3 * _ALIVE)
            except ControlError as error:
                if not asked["follow"]:
                    raise
                note(f"note: {error.message}")
                return
            if told is None:
                raise ControlError(f"the daemon has said nothing for {3 * _ALIVE:g} s", "pylon status")
            method, params = told
            if method == "":
                return
            _print(state, method, params)
            if method == "event":
                asked["mark"] = params.get("mark")


def _print(state: State, method: str, params: dict[str, Any]) -> None:
    if method == "gap":
        if state.json:
            click.echo(json.dumps({"kind": "gap", **params}))
        else:
            missed = params.get("missed")
            note(f"note: {'some' if missed is None else f'{missed:,}'} events were missed")
    elif method == "event":
        click.echo(json.dumps(params, ensure_ascii=False) if state.json else plain(line(params)))


def line(told: dict[str, Any]) -> str:
    """An event in one line, with its time (local)."""
    at = ""
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        at = time.strftime("%Y-%m-%d %H:%M:%S  ", time.localtime(float(told["at"])))
    return f"{at}{describe(told)}"
