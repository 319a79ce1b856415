"""A wall clock that is off, and may jump while a real process runs."""

from __future__ import annotations

import time
from pathlib import Path

import trio


class JumpingClock:
    """The system's, off by the seconds that ``file`` holds whenever it is asked; no file, or nonsense: not at all.

    Its monotonic time does not jump, as that of an operating system does not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> float:
        try:
            return time.time() + float(self._file.read_text())
        except (OSError, ValueError):
            return time.time()

    def monotonic(self) -> float:
        return trio.current_time()
