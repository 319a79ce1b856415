"""Child processes of a benchmark: started, spoken to line by line, and ended, each by its own id."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

_END_SECONDS = 5.0


class Child:
    """A process that prints where it listens, or answers each line of JSON with one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._meter = psutil.Process(process.pid)

    def line(self) -> str:
        """The next line that it prints. Raises ``RuntimeError`` if it has ended instead."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError(f"a process of the benchmark has ended (exit code {self._process.wait()})")
        return text.strip()

    def ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self.line())

    def cpu_seconds(self) -> float:
        times = self._meter.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(self._meter.memory_info().rss)

    def unshared_bytes(self) -> int:
        """Memory that would be free if this process ended; where the system does not say, all that it has."""
        return int(getattr(self._meter.memory_full_info(), "uss", self.rss_bytes()))

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextlib.contextmanager
def child(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    """``python ARGUMENTS`` for as long as the block lasts; ``environment`` instead of ours."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment,
    )
    started = Child(process)
    try:
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def child_when_ready(arguments: Sequence[str]) -> Iterator[Child]:
    """The same, when it has printed its first line, which says so."""
    with child(arguments) as started:
        started.line()
        yield started


@contextlib.contextmanager
def pylon_relay() -> Iterator[tuple[Child, str]]:
    """Our relay as a process of its own, in memory; its URL."""
    with child(["-m", "pylon.relays.server", "--port", "0"]) as relay:
        yield relay, relay.line().removeprefix("listening ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_installed() -> dict[str, str]:
    """The environment of somebody who has installed Pylon: its modules are compiled once, and not at every start."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    return {name: value for name, value in os.environ.items() if not name.startswith("PYLON_") and name not in dropped}
