"""The memory of a soak as a picture. Wants matplotlib, which is in the extra ``deep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"both": "#1f77b4", "engine": "#ff7f0e", "neighbour": "#2ca02c", "relay": "#9467bd"}
TITLES = {
    "both": "daemon, both modes",
    "engine": "its model's process",
    "neighbour": "daemon that is never killed",
    "relay": "relay",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Raises ``ImportError`` where there is no matplotlib."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams["svg.hashsalt"] = "pylon"  # the same picture for the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), constrained_layout=True)
    for name, samples in report["memory_mib"].items():
        if samples:
            points = broken(samples)
            axes.plot([at / 60 for at, _ in points], [mib for _, mib in points], color=COLOURS.get(name), lw=1,
                      label=TITLES.get(name, name))  # fmt: skip
    for kill in report["kills"]:
        axes.axvline(kill["at"] / 60, ymax=0.03, color=COLOURS.get(kill["victim"], "grey"), lw=1)
    axes.set_xlabel(f"minutes (marks below: SIGKILL, {len(report['kills'])} of them)")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def broken(samples: list[list[float]]) -> list[tuple[float, float]]:
    """The samples (s, MiB, pid), with a gap where another process begins."""
    points: list[tuple[float, float]] = []
    before = None
    for at, mib, pid in samples:
        if before not in (None, pid):
            points.append((at, float("nan")))
        points.append((at, mib))
        before = pid
    return points
