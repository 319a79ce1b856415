"""``pylon config``: what holds in a home, why, and changing it. Wants no identity."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.output import State, emit, json_option, note, pass_state, warn
from pylon.errors import ConfigError, NotRunning, PylonError, UsageError

if TYPE_CHECKING:
    from pylon.config import KeyPath, Loaded
    from pylon.config_edit import Edited

RELOAD_SECONDS = 10.0
_MOST_SECRET = 4_096


@click.group()
def config() -> None:
    """Show, check and change the configuration of a home."""


@config.command()
@json_option
@pass_state
def path(state: State) -> None:
    """Where the configuration is, whether it is there or not."""
    file = state.home.config
    emit(state, {"path": str(file), "exists": file.exists()}, str(file))


@config.command()
@click.option("--changed", is_flag=True, help="Only what is not at its default.")
@click.option("--running", is_flag=True, help="What the running daemon works by, its own variables and flags included.")
@json_option
@pass_state
def show(state: State, changed: bool, running: bool) -> None:
    """Every key with its value, and where that comes from.

    It is what a daemon that starts now would have: the defaults, the file, and the variables of this shell. Secrets are
    not shown.
    """
    from pylon import config as configuration

    if running:
        from pylon.cli.client import call

        told: dict[str, Any] = call(state.home, "config", timeout=RELOAD_SECONDS)
        told["keys"] = {key: row for key, row in told["keys"].items() if not changed or row["source"] != "default"}
        emit(state, told, lambda: _text(told))
        return
    loaded = _load(state)
    rows = {
        ".".join(key): _row(loaded, key)
        for key in configuration.known_keys()
        if not changed or loaded.source(key).kind != "default"
    }
    report = {"path": str(state.home.config), "exists": state.home.config.exists(), "keys": rows}
    emit(state, report, lambda: _text(report))


@config.command()
@click.argument("key", shell_complete=lambda _context, _param, typed: complete_keys(typed))
@json_option
@pass_state
def get(state: State, key: str) -> None:
    """The value of KEY, such as relay.bind; a list has a line for each entry. A secret is not shown."""
    from pylon.config_edit import key_path

    name = key_path(key)
    row = _row(_load(state), name)
    emit(state, {"key": ".".join(name), **row}, lambda: _value_text(row))


@config.command()
@json_option
@pass_state
def check(state: State) -> None:
    """Whether a daemon could start with the configuration: file, variables and all.

    What is wrong is an error with its line and what is allowed; what is unwise or means nothing, a warning.
    """
    file = state.home.config
    loaded = _load(state)
    report = {
        "path": str(file),
        "exists": file.exists(),
        "warnings": list(loaded.warnings),
        "network": loaded.config.network,
    }
    told = "is in order" if file.exists() else "is not there: the defaults hold"
    emit(state, report, f"{file} {told}; the network is {loaded.config.network}")


@config.command(name="set")
@click.argument("key", shell_complete=lambda _context, _param, typed: complete_keys(typed))
@click.argument("values", metavar="VALUE...", nargs=-1, required=True)
@click.option("--no-reload", is_flag=True, help="Do not tell a running daemon.")
@json_option
@pass_state
def set_(state: State, key: str, values: tuple[str, ...], no_reload: bool) -> None:
    """Set KEY to VALUE in the file, whose comments stay.

    A list takes several values. A secret, such as spark.api_key, is read from stdin: its VALUE is -. A running daemon
    takes over what it can at once; the output says what wants a restart.
    """
    from pylon import config_edit as edit

    name = edit.key_path(key)
    words = _secret_from_stdin(name, values)
    value = edit.read_value(name, words)
    if name == ("data_dir",):
        value = str(value)
        note("warning: what is in the home now stays where it is: move it by hand, while no daemon runs")
    report_change(state, name, edit.set_value(state.home.config, name, value), reload=not no_reload)


@config.command()
@click.argument("key", shell_complete=lambda _context, _param, typed: complete_keys(typed))
@click.option("--no-reload", is_flag=True, help="Do not tell a running daemon.")
@json_option
@pass_state
def unset(state: State, key: str, no_reload: bool) -> None:
    """Take KEY out of the file, so that its default holds again."""
    from pylon import config_edit as edit

    name = tuple(key.split("."))
    if not edit.has(state.home.config, name):
        name = edit.key_path(key)
    report_change(state, name, edit.unset_value(state.home.config, name), reload=not no_reload)


@config.command()
@json_option
@pass_state
def reload(state: State) -> None:
    """Have the running daemon read its configuration again.

    Relays, prices, budgets and the log's level change at once; what cannot change while it runs is named.
    """
    report = ask_reload(state)
    if report is None:
        from pylon.cli.client import not_running

        raise not_running(state.home.data)
    emit(state, report, lambda: "\n".join(reload_text(report)))


# --- the daemon -------------------------------------------------------------------------------------------------------


def ask_reload(state: State) -> dict[str, Any] | None:
    """What the running daemon says to ``reload``; ``None`` where none runs."""
    if not state.home.may_answer:
        return None
    from pylon.cli.client import call

    try:
        report: dict[str, Any] = call(state.home, "reload", timeout=RELOAD_SECONDS)
    except NotRunning:
        return None
    return report


def reload_text(report: dict[str, Any]) -> list[str]:
    """The daemon's answer for people."""
    lines = [f"in force: {name}" for name in report["applied"]]
    if report["restart"]:
        lines.append(f"restart to change {', '.join(report['restart'])}")
    return lines or ["nothing has changed"]


def report_change(state: State, name: KeyPath, edited: Edited, *, reload: bool) -> None:
    """Say what was written, whether it holds, and whether a running daemon has it."""
    key = ".".join(name)
    for problem in edited.left:
        note(f"warning: still wrong: {problem}")
    report: dict[str, Any] = {"key": key, "path": str(edited.path), "changed": edited.changed}
    lines = [f"{edited.path}: {key}" + (" was changed" if edited.changed else " is as it was")]
    if not edited.left:
        from pylon import config as configuration

        loaded = _load(state)
        if name in configuration.known_keys():
            row = _row(loaded, name)
            report |= row
            if row["source"] == "environment":
                note(f"warning: {row['where']} wins over the file")
                lines.append(f"{key} is {_line(row)} by {row['where']}, whatever the file says")
            else:
                lines = [f"{key} = {_line(row)}" + (f"  ({row['source']})" if row["source"] == "default" else "")]
    report |= {"in_force": None, "restart": []}
    if reload:
        report |= _in_force(state, key, lines)
    emit(state, report, "\n".join(lines))


def _in_force(state: State, key: str, lines: list[str]) -> dict[str, Any]:
    """Tell a running daemon. ``in_force``: whether it works by this key's value; ``None`` where no daemon runs."""
    try:
        answer = ask_reload(state)
    except PylonError as error:
        note(f"warning: the running daemon has not taken it over: {error.message}")
        return {"in_force": False, "restart": []}
    if answer is None:
        lines.append("no daemon runs: it holds from the next start on")
        return {"in_force": None, "restart": []}
    if answer["path"] != str(state.home.config):
        lines.append(f"the running daemon was started with {answer['path']}, not with this file")
        return {"in_force": False, "restart": []}
    if key in answer["overridden"]:
        lines.append(f"the running daemon has its value from {answer['overridden'][key]}, whatever the file says")
        return {"in_force": False, "restart": answer["restart"]}
    waits = key in answer["restart"]
    lines.append(
        f"the running daemon has its old value: restart to change {key}" if waits else "in force in the running daemon"
    )
    return {"in_force": not waits, "restart": answer["restart"]}


# --- values -----------------------------------------------------------------------------------------------------------


def complete_keys(typed: str) -> list[str]:
    """The keys that begin so, for a shell."""
    from pylon import config as configuration

    return [name for key in configuration.known_keys() if (name := ".".join(key)).startswith(typed)]


def _load(state: State) -> Loaded:
    from pylon import config as configuration

    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)
    return loaded


def _row(loaded: Loaded, key: KeyPath) -> dict[str, Any]:
    from pylon import config as configuration
    from pylon.config_edit import row_of

    return row_of(key, configuration.value_at(loaded.config, key), loaded.source(key))


def _secret_from_stdin(name: KeyPath, values: tuple[str, ...]) -> tuple[str, ...]:
    """What a secret is: a line of stdin, never a word of the command line, which others on the machine can read."""
    from pylon import config as configuration

    if not configuration.kind_of(name).secret or name == ("backends",):
        return values
    key = ".".join(name)
    if values != ("-",):
        raise UsageError(f"{key} is a secret: it does not belong on a command line", f"pylon config set {key} - < FILE")
    asked = sys.stdin.isatty()
    value = click.prompt(key, hide_input=True, err=True) if asked else sys.stdin.readline(_MOST_SECRET)
    if not value.strip():
        raise ConfigError(f"nothing came for {key}", f"pylon config unset {key} takes it away")
    return (value.strip(),)


def _line(row: dict[str, Any]) -> str:
    """A value as the file has it."""
    from pylon.config_edit import as_toml

    if "set" in row:
        return "(set, not shown)" if row["set"] else "(not set)"
    return "(not set)" if row["value"] is None else as_toml(row["value"])


def _value_text(row: dict[str, Any]) -> str:
    value = row["value"]
    if "set" in row or value is None:
        return _line(row)
    if isinstance(value, list):
        return "\n".join(
            entry if isinstance(entry, str) else "\n".join(["[[backends]]", *_table(entry)]) for entry in value
        )
    return value if isinstance(value, str) else _line(row)


def _table(table: dict[str, Any]) -> list[str]:
    return [f"{name} = {_line({'value': value})}" for name, value in table.items() if value not in (None, "", [])]


def _text(report: dict[str, Any]) -> str:
    """All keys as a file with their sources behind them."""
    lines = [f"# {report['path']}" + ("" if report["exists"] else " (not there)")]
    section, width = (
        "",
        max((len(_assignment(key, row)) for key, row in report["keys"].items() if key != "backends"), default=0),
    )
    for key, row in report["keys"].items():
        of = key.rpartition(".")[0]
        if of != section:
            section = of
            lines += ["", f"[{section}]"]
        if key == "backends" and row["value"]:
            continue
        lines.append(f"{_assignment(key, row):<{min(width, 60)}}  # {_where(report, row)}")
    backends = report["keys"].get("backends", {"value": []})
    for table in backends["value"]:
        lines += ["", f"[[backends]]  # {_where(report, backends)}", *_table(table)]
    return "\n".join(lines)


def _where(report: dict[str, Any], row: dict[str, Any]) -> str:
    where: str = row["where"] or row["source"]
    return where.replace(f"{report['path']}:", "line ")


def _assignment(key: str, row: dict[str, Any]) -> str:
    name = key.rpartition(".")[2]
    unset = ("set" in row) or row["value"] is None
    return f"# {name} {_line(row)}" if unset else f"{name} = {_line(row)}"
