"""What makes an agent itself: showing its seed phrase, taking it away, bringing it here.

Phrases and passphrases come by stdin, by a file descriptor or from a terminal; a bundle is written to a new file that
nobody else may read. stdout gets a secret only where the command is named for it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from pylon.cli import agent_views as views
from pylon.cli.agent_options import (
    confirm,
    daemon_note,
    given,
    name_argument,
    passphrase,
    passphrase_option,
    read_phrase,
)
from pylon.cli.client import is_running
from pylon.cli.local import run_verb
from pylon.cli.output import State, emit, json_option, note, pass_state
from pylon.errors import PylonError, UsageError

SEALING = 60.0
"""Seconds for a bundle, whose passphrase is stretched on purpose."""

MAX_BUNDLE_BYTES = 24 << 20
"""More than a bundle has (``pylon.host.bundle``)."""
MAX_SENT_BYTES = 900_000
"""What certainly fits into a line to the daemon; a command that runs the verb itself knows no such end."""


@click.command()
@name_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal.")
@json_option
@pass_state
def reveal(state: State, name: str, yes: bool) -> None:
    """Print an agent's seed phrase. Whoever has it has the agent and its money."""
    confirm(
        lambda: f"Whoever sees the seed phrase of {name} has {name} and its money. Show it here?",
        yes=yes,
        otherwise="nothing was shown",
    )
    report = run_verb(state, "agent.reveal", {"agent": name})
    emit(state, report, lambda: report["mnemonic"])


@click.command()
@name_argument
@click.option("--phrase", is_flag=True, help="Print the seed phrase: enough, where the agent publishes its state.")
@click.option(
    "--bundle", metavar="FILE", help="Write everything, sealed with a passphrase, to the new FILE; - is stdout."
)
@passphrase_option
@json_option
@pass_state
def export(state: State, name: str, phrase: bool, bundle: str | None, passphrase_fd: int | None) -> None:
    """Take an agent to another home.

    By its seed phrase alone, or as a sealed bundle with all that it has here. Once it runs in the other home, it is
    parked in this one.
    """
    _one_form(phrase, bundle, "export")
    if bundle is None:
        if passphrase_fd is not None:
            raise UsageError("--passphrase-fd is for bundles", "leave it out")
        report = run_verb(state, "agent.export", {"agent": name, "form": "phrase"})
        emit(state, report, lambda: report["mnemonic"])
        if not state.json:
            note("hint: in the other home: pylon agent import --phrase, and give it these words on stdin")
        return
    if bundle != "-":
        _expect_new(bundle)
    words = passphrase(passphrase_fd, new=True)
    report = run_verb(state, "agent.export", {"agent": name, "form": "bundle", "passphrase": words}, timeout=SEALING)
    if bundle == "-":
        emit(state, report, lambda: str(report["bundle"]).rstrip("\n"))
        return
    path = _write_new(bundle, report["bundle"])
    told = {key: value for key, value in report.items() if key != "bundle"} | {"path": path}
    emit(state, told, lambda: path)
    if not state.json:
        note(f"hint: in the other home: pylon agent import --bundle {Path(path).name}")


@click.command("import")
@click.option("--phrase", is_flag=True, help="Read a seed phrase from stdin, and find the rest on the relays.")
@click.option("--bundle", metavar="FILE", help="Read a sealed bundle; - is stdin.")
@passphrase_option
@click.option("-n", "--name", metavar="NAME", help="How it is called here. Default: as before.")
@click.option("--relay", "relays", multiple=True, metavar="URL", help="Where to look for it; repeat for several.")
@json_option
@pass_state
def import_agent(
    state: State, phrase: bool, bundle: str | None, passphrase_fd: int | None, name: str | None, relays: tuple[str, ...]
) -> None:
    """Bring an agent here, from its phrase or a bundle.

    It runs here from now on; the home that it came from parks it as soon as it hears of that.
    """
    from pylon.host.migration import is_backup

    _one_form(phrase, bundle, "import")
    params = given(name=name, relays=list(relays) or None)
    if bundle is None:
        if passphrase_fd is not None:
            raise UsageError("--passphrase-fd is for bundles", "leave it out")
        params["mnemonic"] = read_phrase("pylon agent import --phrase < FILE, or type it when asked")
    else:
        if bundle == "-" and passphrase_fd == 0:
            raise UsageError("bundle and passphrase cannot both come from stdin", "--passphrase-fd 3 3< FILE")
        params["bundle"] = _read_bundle(bundle)
        if len(params["bundle"]) > MAX_SENT_BYTES and is_running(state.home):
            raise UsageError(
                f"{bundle} has more than {MAX_SENT_BYTES:,} bytes, which a running daemon does not take",
                "stop it, and import then",
            )
        if not is_backup(params["bundle"]):
            params["passphrase"] = passphrase(passphrase_fd, new=False)
        elif passphrase_fd is not None:
            raise UsageError(
                "this is a backup of a deleted agent: it opens in its home, without a passphrase",
                "leave out --passphrase-fd",
            )

    def progress(method: str, data: Any) -> None:
        if method == "import" and not state.json:
            note(views.line(data["text"], 200))

    report = run_verb(state, "agent.import", params, online=True, on_progress=progress, timeout=None)
    emit(state, report, lambda: _imported(report))
    if not state.json:
        daemon_note(is_running(state.home), "it runs")


def _imported(report: dict[str, Any]) -> str:
    found = [name for name, there in report["found"].items() if there]
    missing = [name for name, there in report["found"].items() if not there]
    lines = [f"{report['name']} is here, in epoch {report['epoch']}."]
    lines.append(f"found: {', '.join(found) or 'nothing'}" + (f"; not found: {', '.join(missing)}" if missing else ""))
    return "\n".join([*lines, views.brief(report, time.time())])


def _one_form(phrase: bool, bundle: str | None, verb: str) -> None:
    if phrase and bundle is not None:
        raise UsageError("--phrase and --bundle exclude each other", "give one of them")
    if not phrase and bundle is None:
        raise UsageError(f"{verb} what?", f"see pylon agent {verb} --help: --phrase or --bundle FILE")


# --- files ----------------------------------------------------------------------------------------------------


def _expect_new(name: str) -> None:
    """Before a passphrase is asked for: whether the file can be made."""
    path = Path(name)
    if os.path.lexists(path):
        raise UsageError(f"{name} is there already, and is not overwritten", "name a new file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {path.absolute().parent}", "make it first, or name another")


def _write_new(name: str, text: str) -> str:
    """Write a new file, 0600; half of one is not left behind. Returns its absolute path."""
    from pylon.files import write_private

    path = Path(name).absolute()
    try:
        write_private(path, text.encode())
    except FileExistsError:
        raise UsageError(f"{name} is there already, and is not overwritten", "name a new file") from None
    except OSError as error:
        path.unlink(missing_ok=True)
        raise PylonError(f"cannot write {name}: {error.strerror or error}", "name another file") from None
    return str(path)


def _read_bundle(name: str) -> str:
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror or error}", "name a bundle's file") from None
    if len(raw) > MAX_BUNDLE_BYTES:
        raise UsageError(f"{name} is no bundle: it has more than {MAX_BUNDLE_BYTES:,} bytes", "name a bundle's file")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is no bundle: it is no text", "name a bundle's file") from None
