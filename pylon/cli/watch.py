"""``pylon status --watch``: the report, live. What happens is shown at once; nothing is asked while nothing happens.

The daemon's events say when to look again. One that says nothing at all is looked at, too: it may have ended, or hang.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from pylon.cli import status
from pylon.cli.client import ControlClient
from pylon.cli.output import State, emit, plain
from pylon.errors import PylonError
from pylon.paths import Home

_GATHER = 0.2
"""Seconds for what happens together to come together."""
_REST = 1.0
"""At least so long between two looks for the sake of events: a busy home shall not be busy with us."""
_LOOK_AGAIN = 30.0
"""What no event tells (a model that is gone, the age of a balance) is seen within this time."""
_LATELY = 5


def watch_status(state: State, interval: float) -> NoReturn:
    """Until interrupted. A daemon that ends, hangs, or comes back within ``interval`` seconds is shown too."""
    if state.json or not sys.stdout.isatty():
        watch(state.home, interval, lambda report, feed: emit(state, report, lambda: _text(report) + "\n"))
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:

        def show(report: dict[str, Any], feed: Feed) -> None:
            lately = "".join(f"\n  {each}" for each in feed.lately)
            shown = f"{_text(report)}{f'{chr(10)}Lately:{lately}' if lately else ''}"
            lines = plain(shown).splitlines()[: max(1, console.height - 2)]
            text = "\n".join([*lines, "", f"{time.strftime('%H:%M:%S')}; Ctrl-C ends"])
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

        watch(state.home, interval, show, moving=True)


def watch(
    home: Home, interval: float, show: Callable[[dict[str, Any], Feed], None], *, moving: bool = False
) -> NoReturn:
    """Show a report whenever there is another one; with ``moving``, whenever a clock on it has moved, too."""
    with contextlib.closing(Feed(home, interval)) as feed:
        while True:
            looked = time.monotonic()
            feed.open()
            report = _look(home)
            show(report, feed)
            well = report["daemon"].get("running") and not report.get("silent")
            while feed.wait(interval) == "alive" and well and time.monotonic() - looked < _LOOK_AGAIN:
                if moving:
                    show(_aged(report, time.monotonic() - looked), feed)
            if feed.is_open:
                feed.gather(max(_GATHER, looked + _REST - time.monotonic()))


class Feed:
    """The events of the daemon, over a connection of their own. Without a daemon, or with one that has none, it is
    silent: then one looks by the clock.
    """

    def __init__(self, home: Home, alive: float) -> None:
        self.lately: deque[str] = deque(maxlen=_LATELY)
        """The youngest events in words."""
        self._home = home
        self._alive = min(max(alive / 2, 0.2), 60.0)
        self._client: ControlClient | None = None

    @property
    def is_open(self) -> bool:
        return self._client is not None

    def open(self) -> None:
        if self._client is not None:
            return
        try:
            self._client = ControlClient(self._home.socket, timeout=status.TIMEOUT)
            limit = 0 if self.lately else _LATELY
            self._client.begin("events", {"follow": True, "alive": self._alive, "limit": limit})
            # Answered before anybody looks: what happens after the look is told for certain.
            while (told := self._client.told(status.TIMEOUT)) is not None and told[0] == "event":
                self._note(told)
            if told is None or told[0] == "":
                self.close()
        except PylonError:
            self.close()

    def wait(self, seconds: float) -> str:
        """``event`` as soon as one comes; ``alive`` where the daemon says so; else, in the end, ``silence``."""
        if self._client is None:
            time.sleep(seconds)
            return "silence"
        told = self._told(seconds)
        if told is None:
            return "silence"
        return "alive" if told == "alive" else "event"

    def gather(self, seconds: float) -> None:
        """Take down what else comes within this time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._client is None:
                time.sleep(left)
            else:
                self._told(left)

    def _told(self, seconds: float) -> str | None:
        assert self._client is not None
        try:
            told = self._client.told(seconds)
        except PylonError:
            self.close()
            return None
        if told is None:
            return None
        if told[0] == "":
            self.close()
            return None
        self._note(told)
        return told[0]

    def _note(self, told: tuple[str, Any]) -> None:
        if told[0] == "event" and isinstance(told[1], dict):
            from pylon.cli.events import line

            self.lately.append(line(told[1]))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _aged(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The same, so much later."""
    daemon = report["daemon"]
    if not isinstance(daemon.get("uptime_secs"), (int, float)):
        return report
    return {**report, "daemon": {**daemon, "uptime_secs": int(daemon["uptime_secs"] + seconds)}}


def _look(home: Home) -> dict[str, Any]:
    try:
        report = status.ask(home)
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
