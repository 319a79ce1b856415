"""``pylon logs``: the daemon's log for people, and for programs. Reads files only: it works without a daemon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pylon.cli.output import State, json_option, pass_state, plain
from pylon.errors import NotFound

LEVELS = ("debug", "info", "warning", "error", "critical")
_OUTSIDE = "stderr"
"""The logger of a line that is no record: what a library, or the interpreter itself, wrote."""
_LOOK_EVERY = 0.25
_BLOCK = 1 << 16


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 1_000_000), default=50, show_default=True, help="How many to begin with."
)
@click.option("--agent", metavar="NAME", help="Only what concerns this agent.")
@click.option("--level", type=click.Choice(LEVELS), help="Only this level and what is worse.")
@json_option
@pass_state
def logs(state: State, follow: bool, lines: int, agent: str | None, level: str | None) -> None:
    """Show the daemon's log, the older files of its rotation too.

    With --json, one JSON object a line: timestamp (UTC), level, logger, event, and where there are any, agent and
    exception. What pylon events shows, too, has its kind, seq and data.
    """
    path = state.home.log
    if not path.exists() and not follow:
        raise NotFound(f"there is no log yet: {path}", "pylon start -d")
    wanted = _Wanted(agent, LEVELS.index(level) if level else 0)
    show = _as_json if state.json else _as_text
    try:
        with _Follower(path) as follower:
            for record in _last(path, follower.start(), lines, wanted):
                click.echo(show(record))
            while follow:
                for line in follower.more():
                    if (found := _record(line)) is not None and wanted.takes(found):
                        click.echo(show(found))
                time.sleep(_LOOK_EVERY)
    except BrokenPipeError:
        # Whoever read has enough. What is still buffered goes nowhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Wanted:
    def __init__(self, agent: str | None, level: int) -> None:
        self._agent = agent
        self._level = level

    def takes(self, record: dict[str, Any]) -> bool:
        if _rank(record) < self._level:
            return False
        return self._agent is None or self._agent == record.get("agent") or self._named(str(record.get("event", "")))

    def _named(self, event: str) -> bool:
        """What is said of an agent outside of its nursery begins so."""
        return event.startswith((f"agent {self._agent}:", f"agent {self._agent} "))


def _rank(record: dict[str, Any]) -> int:
    level = str(record.get("level", ""))
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("error")


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the log; ``None`` for an empty one."""
    text = line.decode("utf-8", "replace").rstrip()
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"level": "error", "logger": _OUTSIDE, "event": text}


def _as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _as_text(record: dict[str, Any]) -> str:
    if record.get("logger") == _OUTSIDE:
        return plain(f"{'':21}{record['event']}")
    at = str(record.get("timestamp", ""))[:19].replace("T", " ")
    whose = f"[{record['agent']}] " if record.get("agent") else ""
    level = str(record.get("level", "")).upper()
    event = str(record.get("event", "")).replace("\n", "\n    ")
    text = f"{at}Z {level:<8} {record.get('logger', '')}: {whose}{event}"
    if record.get("exception"):
        text += "\n    " + str(record["exception"]).replace("\n", "\n    ")
    return plain(text)


# --- backwards ----------------------------------------------------------------------------------------------------


def _last(path: Path, size: int, count: int, wanted: _Wanted) -> list[dict[str, Any]]:
    """The last ``count`` records that are wanted, of the first ``size`` bytes of the log and of the files before it."""
    found: list[dict[str, Any]] = []
    if count:
        for line in _backwards(path, size):
            record = _record(line)
            if record is not None and wanted.takes(record):
                found.append(record)
                if len(found) == count:
                    break
    found.reverse()
    return found


def _backwards(path: Path, size: int) -> Iterator[bytes]:
    yield from _lines_backwards(path, size)
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        yield from _lines_backwards(older, None)
        number += 1


def _lines_backwards(path: Path, size: int | None) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        at = os.fstat(file.fileno()).st_size if size is None else size
        rest = b""
        while at > 0:
            start = max(0, at - _BLOCK)
            file.seek(start)
            first, *lines = (file.read(at - start) + rest).split(b"\n")
            at, rest = start, first
            yield from reversed(lines)
        yield rest


# --- forwards -----------------------------------------------------------------------------------------------------


class _Follower:
    """What is appended to the log from now on, through its rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._rest = b""

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def start(self) -> int:
        """Begin behind the last whole line that is there; its end, in bytes from the beginning."""
        if not self._open():
            return 0
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        while size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            size -= 1
        os.lseek(self._descriptor, size, os.SEEK_SET)
        return size

    def more(self) -> Iterator[bytes]:
        """The whole lines that have come."""
        while True:
            if self._descriptor is None and not self._open():
                return
            yield from self._read()
            if not self._replaced():
                return
            yield from self._read()  # what came between the reading and the rename
            assert self._descriptor is not None
            os.close(self._descriptor)
            self._descriptor = None
            if self._rest:
                yield self._rest
                self._rest = b""

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        return True

    def _read(self) -> Iterator[bytes]:
        assert self._descriptor is not None
        if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # somebody has emptied it
            self._rest = b""
        while data := os.read(self._descriptor, _BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _replaced(self) -> bool:
        """Whether the log's name is another file's now."""
        assert self._descriptor is not None
        try:
            now = os.stat(self._path)
        except OSError:
            return False  # just being rotated
        mine = os.fstat(self._descriptor)
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)
