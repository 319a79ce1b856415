"""What a benchmark found, as a plain table or as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import psutil


@attrs.define
class Figure:
    name: str
    value: float
    unit: str
    beside: str = ""
    """What it is to be compared with, in words."""


@attrs.define
class Table:
    """One benchmark's outcome. ``details`` are tables of their own: a heading and rows of cells."""

    title: str
    figures: list[Figure] = attrs.field(factory=list)
    details: list[tuple[Sequence[str], list[Sequence[Any]]]] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)

    def add(self, name: str, value: float, unit: str, beside: str = "") -> None:
        self.figures.append(Figure(name, value, unit, beside))


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def machine_line() -> str:
    """Cores, processor, Python: what the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    memory = psutil.virtual_memory().total / 2**30
    load = psutil.getloadavg()[0]
    return (
        f"{psutil.cpu_count()} cores, {model}, {memory:.0f} GiB, Python {platform.python_version()};"
        f" load average {load:.1f} (an idle machine's figures are the ones to compare)"
    )


def as_text(tables: Sequence[Table]) -> str:
    lines = [machine_line()]
    for table in tables:
        lines += ["", table.title, "-" * len(table.title)]
        cells = [(figure.name, number(figure.value), figure.unit, figure.beside) for figure in table.figures]
        lines += _columns(cells)
        for heading, rows in table.details:
            lines += ["", *_columns([heading, *([_cell(cell) for cell in row] for row in rows)])]
        lines += [f"  {note}" for note in table.notes]
    return "\n".join(lines)


def as_json(tables: Sequence[Table]) -> str:
    return json.dumps({"machine": machine_line(), "benchmarks": [attrs.asdict(table) for table in tables]}, indent=1)


def number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(cell: Any) -> str:
    return number(cell) if isinstance(cell, int | float) else str(cell)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned; numbers to the right."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if place and cell.replace(",", "").replace(".", "").isdigit() else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
