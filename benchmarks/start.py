"""How long ``pylon start -d`` takes until the daemon is ready, and until all its agents are awake.

Simnet, no model, homes with and without agents (their rows as ``benchmarks.agent_rows`` writes them), in turn. The wall
clock is what somebody waits for; the CPU seconds are what a loaded machine changes less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psutil
import trio

from benchmarks.agent_rows import write_home
from benchmarks.processes import as_installed, child, free_port
from benchmarks.report import Table
from pylon.paths import Home

AGENTS = 1_000
ROUNDS = 5
_MONTH = 30 * 86_400
_IMPORTS = (
    "import gc; gc.disable()\n"
    "import pylon.cli.start, pylon.cli.detach, pylon.cli.unlock, pylon.daemon.serve, pylon.config"
)
"""What the daemon's process imports before it does anything."""


@attrs.frozen
class _Start:
    """One of a daemon."""

    ready: float
    """Seconds until the command returned."""
    command_cpu: float
    daemon_cpu: float
    """CPU seconds of each, by then."""


def run(*, agents: int = AGENTS, rounds: int = ROUNDS, warm_up: bool = True) -> Table:
    """``warm_up``: a round that does not count, which fills the caches."""
    table = Table(f"Starting the daemon: median of {rounds} runs each, in turn; simnet, no model")
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        directory = Path(name)
        environment = as_installed() | {
            "PYLON_MODELS": str(directory / "models"),
            "PYLON_LOCKS": str(directory / "locks"),
        }
        port = free_port()
        homes = {count: _home(directory, count, port) for count in (0, agents)}
        found: dict[int, list[_Start]] = {count: [] for count in homes}
        imports: list[float] = []
        awake: list[Any] = []
        for number in range(not warm_up, rounds + 1):
            for count, home in homes.items():
                start = _start(home, environment)
                if number:
                    found[count].append(start)
            if number:
                imports.append(_cpu_of([sys.executable, "-c", _IMPORTS], environment))
                awake.append(_awake(homes[agents], agents, port, environment))
    for count, goal in ((0, 1.5), (agents, 5.0)):
        what = f"start -d to ready, {count:,} agents" if count else "start -d to ready"
        table.add(what, _median(start.ready for start in found[count]), "s", f"goal: {goal:g}")
        table.add(f"{what}, CPU", _median(start.command_cpu + start.daemon_cpu for start in found[count]), "s")
    table.add(f"all {agents:,} awake and caught up", _median(one["ready"] for one in awake), "s", "after its imports")
    table.add(f"all {agents:,} awake and caught up, CPU", _median(one["cpu"] for one in awake), "s", "imports and all")
    cpu = {count: _median(start.daemon_cpu for start in starts) for count, starts in found.items()}
    table.details.append((
        ("where the CPU seconds go", "s"),
        [
            ("the command that waits", _median(start.command_cpu for start in found[0])),
            ("what the daemon imports", _median(imports)),
            ("what else it does, without agents", cpu[0] - _median(imports)),
            (f"{agents:,} agents, until it is ready", cpu[agents] - cpu[0]),
        ],
    ))  # fmt: skip
    return table


def _home(directory: Path, count: int, port: int) -> Home:
    url = f"ws://127.0.0.1:{port}"
    home = trio.run(partial(write_home, directory / f"home-{count}", count, relay=url, heartbeat=_MONTH))
    home.config.write_text(f'network = "simnet"\n\n[relay]\nbind = "127.0.0.1:{port}"\n\n[api]\nbind = "127.0.0.1:0"\n')
    return home


def _start(home: Home, environment: Mapping[str, str]) -> _Start:
    pylon = [sys.executable, "-m", "pylon", "--home", str(home.root)]
    began, before = time.perf_counter(), _children_cpu()
    done = subprocess.run(
        [*pylon, "start", "-d", "-m", "host", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    ready, command_cpu = time.perf_counter() - began, _children_cpu() - before
    if done.returncode:
        raise RuntimeError(f"it did not start: {done.stderr}")
    daemon = psutil.Process(json.loads(done.stdout)["pid"])
    times = daemon.cpu_times()
    subprocess.run([*pylon, "stop", "--json"], env=environment, stdout=subprocess.DEVNULL, check=True)
    daemon.wait(30)
    return _Start(ready, command_cpu, times.user + times.system)


def _awake(home: Home, agents: int, port: int, environment: Mapping[str, str]) -> Any:
    """The same runtime in a process that tells when all have heard what their relay had for them."""
    settings = {"directory": str(home.root), "agents": agents, "port": port}
    with child(["-m", "benchmarks.agent_home", json.dumps(settings)], environment) as process:
        return json.loads(process.line())


def _cpu_of(command: Sequence[str], environment: Mapping[str, str]) -> float:
    before = _children_cpu()
    subprocess.run(command, env=environment, check=True)
    return _children_cpu() - before


def _children_cpu() -> float:
    """CPU seconds of the processes of ours that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _median(values: Any) -> float:
    return statistics.median(values)
