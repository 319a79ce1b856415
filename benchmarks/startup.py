"""How long a command takes that does next to nothing, beside what importing click alone takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import as_installed
from benchmarks.report import Table

ROUNDS = 15
_PYLON = Path(sys.executable).with_name("pylon")


def run() -> Table:
    table = Table(f"Starting: median of {ROUNDS} runs each, in turn")
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as home:
        pylon = [str(_PYLON)] if _PYLON.exists() else [sys.executable, "-m", "pylon"]
        environment = as_installed()
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import click'": [sys.executable, "-c", "import click"],
            "pylon --help": [*pylon, "--help"],
            "pylon --version": [*pylon, "--version"],
            "pylon status (no daemon)": [*pylon, "--home", f"{home}/none", "status"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(ROUNDS + 1):
            for name, command in commands.items():
                took = _time(command, environment)
                if round_number:  # the first fills the caches
                    seconds[name].append(took)
    medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    click = medians["python -c 'import click'"]
    for name, median in medians.items():
        beside = f"{median / click:.2f} x click (goal: at most 1.5)" if name.startswith("pylon") else ""
        table.add(name, median, "ms", beside)
    return table


def _time(command: Sequence[str], environment: Mapping[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began
