"""What ``pylon demo`` needs: disk when installed and while it runs, and the memory of all its processes together.

The memory is summed over the command, its two daemons and their engines, several times a second. RSS counts what
processes share once for each of them, and so does the goal; PSS divides it by those who share it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import attrs
import psutil
from packaging.requirements import Requirement

from benchmarks.processes import as_installed
from benchmarks.report import Table
from pylon.inference.models import installed, models_directory

DISK, MEMORY = 500e6, 1e9
"""Bytes: what the seed allows."""
_EVERY = 0.1
_PACKAGE = "pylon-runtime"
_ROOT = Path(__file__).resolve().parent.parent


@attrs.define
class Peak:
    rss: int = 0
    pss: int = 0
    processes: int = 0
    """How many there were at the peak of RSS."""


def run(*, ticks: int = 4) -> Table:
    table = Table(f"The demo, {ticks} thoughts")
    runtime = installed_bytes(_PACKAGE)
    model = installed(models_directory())[0].size
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        environment = as_installed() | {"PYLON_MODELS": str(models_directory())}
        seconds, peak, left = _play(Path(name) / "demo", ticks, environment)
    add = table.add
    add("installed: packages", runtime / 1e6, "MB")
    add("installed: model", model / 1e6, "MB")
    add("what it leaves in its homes", left / 1e6, "MB")
    add("disk in all", (runtime + model + left) / 1e6, "MB", f"goal: under {DISK / 1e6:,.0f}")
    add("peak RSS, summed", peak.rss / 1e6, "MB", f"goal: under {MEMORY / 1e6:,.0f}; {peak.processes} processes")
    add("peak PSS, summed", peak.pss / 1e6, "MB")
    add("it took", seconds, "s")
    return table


def _play(directory: Path, ticks: int, environment: Mapping[str, str]) -> tuple[float, Peak, int]:
    """Seconds, memory, and the bytes that it has kept. Raises ``RuntimeError`` where the demo fails."""
    command = [sys.executable, "-m", "pylon", "demo", "--json", "--ticks", str(ticks), "--keep", str(directory)]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, over = Peak(), threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, over))
    watcher.start()
    try:
        told, said = process.communicate(timeout=900)
    finally:
        process.kill()
        over.set()
        watcher.join()
    if process.returncode or not json.loads(told)["books"]["balanced"]:
        raise RuntimeError(f"the demo failed: {said}")
    return time.perf_counter() - began, peak, _bytes_in(directory)


def watch(pid: int, peak: Peak, over: threading.Event) -> None:
    """Have ``peak`` tell the most that a process and its descendants have had together, until it is ``over``."""
    try:
        root = psutil.Process(pid)
        while not over.wait(_EVERY):
            family = [root, *root.children(recursive=True)]
            rss = sum(_memory(member, "rss") for member in family)
            if rss > peak.rss:
                peak.rss, peak.processes = rss, len(family)
            peak.pss = max(peak.pss, sum(_memory(member, "pss") for member in family))
    except psutil.NoSuchProcess:
        return


def _memory(process: psutil.Process, kind: str) -> int:
    try:
        info = process.memory_info() if kind == "rss" else process.memory_full_info()
        return int(getattr(info, kind, 0))
    except psutil.Error:
        return 0  # it has just ended


def installed_bytes(name: str) -> int:
    """A package and all that it requires, on the disk."""
    found: dict[str, Distribution] = {}
    wanted = [name]
    while wanted:
        each = wanted.pop()
        try:
            here = distribution(each)
        except PackageNotFoundError:
            continue  # of another platform
        key = here.metadata["Name"].lower()
        if key in found:
            continue
        found[key] = here
        for line in here.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return sum(_bytes_of(each) for each in found.values())


def _bytes_of(package: Distribution) -> int:
    if package.metadata["Name"] == _PACKAGE:  # which may be installed as a pointer to where it is written
        return sum(_bytes_in(_ROOT / name) for name in ("pylon", "protocols"))
    return _sum(Path(str(file.locate())) for file in package.files or ())


def _bytes_in(directory: Path) -> int:
    return _sum(path for path in directory.rglob("*") if "__pycache__" not in path.parts)


def _sum(paths: Iterable[Path]) -> int:
    return sum(os.lstat(path).st_size for path in paths if os.path.lexists(path) and not path.is_dir())
