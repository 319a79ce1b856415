"""``pylon completion``: the script that makes a shell complete ``pylon``; and what it asks for beyond click's own."""

from __future__ import annotations

import contextlib

import click

from pylon.cli.output import State, emit, json_option, pass_state
from pylon.errors import PylonError

SHELLS = ("bash", "zsh", "fish")
_MOST_NAMES = 500
_WAIT_SECONDS = 0.2
"""For the database: whoever has pressed Tab does not wait longer."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@pass_state
def completion(state: State, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: pylon completion bash > ~/.local/share/bash-completion/completions/pylon
    zsh:  pylon completion zsh > ~/.zfunc/_pylon      (with fpath+=~/.zfunc before compinit in ~/.zshrc)
    fish: pylon completion fish > ~/.config/fish/completions/pylon.fish

    It completes commands, options and their values, keys of the configuration, and names of agents.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from pylon.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    # Not the method of bash's own class, which starts a bash to learn its version: the script may be for elsewhere.
    script = ShellComplete.source(kind(cli, {}, "pylon", "_PYLON_COMPLETE"))
    emit(state, {"shell": shell, "script": script}, script)


def complete_agents(context: click.Context, param: click.Parameter, typed: str) -> list[str]:
    """Names of this home's agents that begin so. Nothing where they cannot be had at once."""
    import sqlite3

    from pylon.paths import find_home

    try:
        path = find_home(context.find_root().params.get("home")).database
        address = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS)) as database:
            rows = database.execute(
                "SELECT name FROM agents WHERE name IS NOT NULL AND substr(name, 1, ?) = ? ORDER BY name LIMIT ?",
                (len(typed), typed, _MOST_NAMES),
            ).fetchall()
    except (sqlite3.Error, OSError, PylonError, ValueError):
        return []
    return [row[0] for row in rows]
