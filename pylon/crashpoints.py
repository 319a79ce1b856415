"""Where a crash may be injected: before and after each effect that leaves the process.

A point is named ``<machine>.<effect>.<before|after>``. *Before*: the row that announces the effect is committed,
nothing has left the process. *After*: the effect has happened, its outcome is not yet recorded. The list of all
points is derived from the machines' effect tables (``Machine.crash_points``), never written by hand.

``PYLON_CRASH_AT=<point>[:n]`` makes a real process kill itself with SIGKILL at the n-th passage (default 1).
The simulation installs a hook of its own instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def crash_point(name: str) -> None:
    """Pass a named point; dies here if this process was told to. Free of cost otherwise."""
    if _hook is not None:
        _hook(name)


def install_hook(hook: Callable[[str], None] | None) -> None:
    """Let ``hook`` see every passage; ``None`` removes it."""
    global _hook
    _hook = hook


def install_from_environment() -> None:
    """Arm the point named by ``PYLON_CRASH_AT``, if any."""
    wanted = os.environ.get("PYLON_CRASH_AT")
    if not wanted:
        return
    name, _, count = wanted.partition(":")
    remaining = int(count or "1")

    def hook(passed: str) -> None:
        nonlocal remaining
        if passed != name:
            return
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    install_hook(hook)
