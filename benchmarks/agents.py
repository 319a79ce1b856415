"""Ten thousand agents in one process: memory, idle CPU, how late their heartbeats are, how soon they run again.

Beside it, in the same run: a process for each agent, and the nurseries of those who sleep kept alive. The homes are
real (``benchmarks.agent_rows``), and so is what runs them: the daemon's runtime, its relay, its durable store.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from benchmarks.agent_rows import set_heartbeats, write_home
from benchmarks.processes import Child, child, free_port, pylon_relay
from benchmarks.report import Table, percentile
from pylon.paths import Home

AWAKE, ASLEEP, ALONE = 10_000, 100_000, 10
SECONDS = 20.0
"""For which a home is watched."""
SETTLE = 3.0
"""Seconds for what follows a start."""
TICKS_A_SECOND = 100
_MONTH = 30 * 86_400
_HOUR = 3_600
_TICKED = 60.0
"""Seconds within which all have ticked that are due at once."""


def run(
    *, awake: int = AWAKE, asleep: int = ASLEEP, alone: int = ALONE, seconds: float = SECONDS, settle: float = SETTLE
) -> Table:
    table = Table(
        f"Agents: {awake:,} awake, or {asleep:,} asleep, in one process; a goal and 20 memories each, quiet ticks"
    )
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        _Agents(table, Path(name), seconds, settle).measure(awake, asleep, alone)
    return table


@attrs.frozen
class _Idle:
    """What a home does while it is watched."""

    cpu: float
    """Per cent of a core."""
    late: list[float]
    """Seconds, of each tick."""


class _Agents:
    def __init__(self, table: Table, directory: Path, seconds: float, settle: float) -> None:
        self._table = table
        self._directory = directory
        self._seconds = seconds
        self._settle = settle
        self._port = free_port()

    def measure(self, awake: int, asleep: int, alone: int) -> None:
        base = self._nobody()
        lone = self._processes(alone)
        ready = self._awake(awake, base, lone)
        self._late(awake, 1.5 * ready + self._settle)
        slept = self._asleep(self._home("asleep", asleep, asleep=True), asleep, 0, False)
        kept = self._asleep(self._home("kept", awake, asleep=True), awake, awake, True)
        each, nursery = (slept - base) / asleep, (kept - base) / awake
        self._table.add(f"{asleep:,} asleep, memory in all", slept / 1e6, "MB", "goal: under 1,000")
        self._table.add("each agent asleep", each / 1e3, "kB", f"with its nursery kept alive {nursery / 1e3:.1f}"
                        f" ({nursery / max(each, 1):.0f} x)")  # fmt: skip

    # --- one after the other ----------------------------------------------------------------------------------

    def _nobody(self) -> int:
        """The process without agents; returns its memory."""
        with self._running(self._home("nobody", 0), 0) as (home, _):
            found = self._watch(home)
            self._table.add("memory without agents", home.rss_bytes() / 1e6, "MB")
            self._table.add("idle CPU without agents", found.cpu, "%")
            return home.rss_bytes()

    def _processes(self, count: int) -> _Lone:
        """A process for each agent: some of them, on one relay."""
        homes = [self._home(f"alone-{number}", 1) for number in range(count)]
        with ExitStack() as stack:
            _, url = stack.enter_context(pylon_relay())
            started = [stack.enter_context(self._running(home, 1, relay=url)) for home in homes]
            time.sleep(self._settle)
            cpu = sum(process.cpu_seconds() for process, _ in started)
            time.sleep(self._seconds)
            used = sum(process.cpu_seconds() for process, _ in started) - cpu
            memory = sum(process.unshared_bytes() for process, _ in started)
        return _Lone(memory / count, used / self._seconds / count * 100, cpu / count)

    def _awake(self, count: int, base: int, lone: _Lone) -> float:
        """Those who have nothing to do, and those who beat once an hour; returns how many seconds their start takes."""
        add = self._table.add
        home = self._home("awake", count)
        with self._running(home, count) as (process, ready):
            found = self._watch(process)
            memory = process.rss_bytes()
            each = (memory - base) / count
            add(f"{count:,} awake, memory in all", memory / 1e6, "MB", "goal: under 1,000")
            add("each agent awake", each / 1e3, "kB", f"a process each {lone.memory / 1e3:,.0f}, what it shares with"
                f" others not counted ({lone.memory / max(each, 1):,.0f} x)")  # fmt: skip
            add("idle CPU, nothing due", found.cpu, "%", f"goal: under 5; a process each, for {count:,} (extrapolated):"
                f" {lone.cpu * count:,.0f} ({lone.cpu * count / max(found.cpu, 0.01):,.0f} x)")  # fmt: skip
            add("restart to ready", ready, "s", f"{count / ready:,.0f} agents/s; a process each, for {count:,}"
                f" (extrapolated): {lone.start * count:,.0f} CPU s ({lone.start * count / ready:,.0f} x)")  # fmt: skip
            for verb in ("status", "agent.list"):
                asked = process.ask(do="ask", verb=verb, params={})
                add(f"pylon {verb.replace('.', ' ')}, in the daemon", asked["seconds"] * 1e3, "ms",
                    f"{asked['bytes'] / 1e6:.1f} MB of JSON")  # fmt: skip
        self._heartbeats(home, _HOUR, 0.0, _HOUR)
        with self._running(home, count) as (process, _):
            found = self._watch(process)
            rate = len(found.late) / self._seconds
            add("idle CPU, heartbeats of an hour", found.cpu, "%", f"goal: under 5; {rate:.1f} ticks/s")
        return ready

    def _late(self, count: int, soon: float) -> None:
        """Heartbeats by their phases, and all at one moment, in ``soon`` seconds: when all are there again."""
        add, home = self._table.add, Home(self._directory / "awake")
        interval = max(count // TICKS_A_SECOND, 1)
        self._heartbeats(home, interval, soon, interval)
        began = time.monotonic()
        with self._running(home, count) as (process, _):
            time.sleep(max(began + soon - time.monotonic(), 0.0))
            found = self._watch(process)
            rate = len(found.late) / self._seconds
            add(f"{rate:.0f} ticks/s by their phases, late p50", percentile(found.late, 0.5) * 1e3, "ms")
            add(
                f"{rate:.0f} ticks/s by their phases, late p99",
                percentile(found.late, 0.99) * 1e3,
                "ms",
                "goal: under 250",
            )
            add(f"{rate:.0f} ticks/s by their phases, CPU", found.cpu, "%", f"{found.cpu * 10 / rate:.2f} ms/tick")
        self._heartbeats(home, _MONTH, soon, 0.0)
        began = time.monotonic()
        with self._running(home, count) as (process, _):
            time.sleep(max(began + soon - time.monotonic(), 0.0))
            late = self._all_ticked(process, count)
            add(f"{count:,} due at once, late p50", percentile(late, 0.5) * 1e3, "ms")
            add(
                f"{count:,} due at once, late p99",
                percentile(late, 0.99) * 1e3,
                "ms",
                f"{count / max(late):,.0f} ticks/s",
            )

    def _asleep(self, home: Home, count: int, nurseries: int, kept: bool) -> int:
        """Memory with so many asleep; idle CPU goes into the table."""
        with self._running(home, nurseries, kept=kept) as (process, _):
            found = self._watch(process)
            what = "idle CPU, asleep with their nurseries" if kept else "idle CPU, asleep"
            self._table.add(f"{what}, {count:,}", found.cpu, "%")
            return process.rss_bytes()

    # --- homes and processes ----------------------------------------------------------------------------------

    def _home(self, name: str, count: int, *, asleep: bool = False) -> Home:
        url, began = f"ws://127.0.0.1:{self._port}", time.perf_counter()

        async def write() -> Home:
            return await write_home(self._directory / name, count, relay=url, heartbeat=_MONTH, asleep=asleep)

        home = trio.run(write)
        if count > 1:
            self._table.notes.append(f"the rows of {count:,} agents took {time.perf_counter() - began:.0f} s")
        return home

    def _heartbeats(self, home: Home, heartbeat: int, first: float, spread: float) -> None:
        trio.run(set_heartbeats, home, heartbeat, first, spread)

    @contextmanager
    def _running(self, home: Home, agents: int, **more: Any) -> Iterator[tuple[Child, float]]:
        """The home's process, and how long it took until all its agents ran and listened: from the command on."""
        settings = {"directory": str(home.root), "agents": agents, "port": self._port, **more}
        began = time.perf_counter()
        arguments = ["-m", "benchmarks.agent_home", json.dumps(settings)]
        with child(arguments, {**os.environ, "PYLON_LOCKS": str(self._directory / "locks")}) as process:
            process.line()
            yield process, time.perf_counter() - began

    def _watch(self, process: Child) -> _Idle:
        time.sleep(self._settle)
        process.ask(do="reset")
        began, cpu = time.perf_counter(), process.cpu_seconds()
        time.sleep(self._seconds)
        used, took = process.cpu_seconds() - cpu, time.perf_counter() - began
        return _Idle(used / took * 100, process.ask(do="late"))

    def _all_ticked(self, process: Child, count: int) -> list[float]:
        deadline = time.monotonic() + _TICKED
        while time.monotonic() < deadline:
            late: list[float] = process.ask(do="late")
            if len(late) >= count:
                return late
            time.sleep(0.5)
        raise RuntimeError(f"{len(late):,} of {count:,} agents have ticked within {_TICKED:.0f} s")


@attrs.frozen
class _Lone:
    """A process that runs one agent."""

    memory: float
    """Bytes that it has for itself."""
    cpu: float
    """Per cent of a core, idle."""
    start: float
    """CPU seconds until it runs."""
