"""``pylon status --watch``: the same report again and again; live on a terminal, one after the other elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, NoReturn

from pylon.cli import status
from pylon.cli.output import State, emit, plain
from pylon.errors import PylonError


def watch_status(state: State, interval: float) -> NoReturn:
    """Until interrupted. A daemon that ends, or comes back, is shown too."""
    if state.json or not sys.stdout.isatty():
        while True:
            report = _look(state)
            emit(state, report, "" if state.json else _text(report) + "\n")
            time.sleep(interval)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            shown = f"{_text(_look(state))}\n\n{time.strftime('%H:%M:%S')}, every {interval:g} s; Ctrl-C ends"
            live.update(Text("\n".join(plain(shown).splitlines()[: console.height])), refresh=True)
            time.sleep(interval)


def _look(state: State) -> dict[str, Any]:
    try:
        report = status.ask(state.home)
    except PylonError as error:
        report = {**status.stopped(), "silent": error}
        report["daemon"]["running"] = True
    if report is None:
        return status.stopped()
    if isinstance(silent := report.get("silent"), PylonError):
        return {**report, "silent": silent.message}
    return report


def _text(report: dict[str, Any]) -> str:
    return status.render(report) if report["daemon"].get("running") else "Daemon:   stopped"
