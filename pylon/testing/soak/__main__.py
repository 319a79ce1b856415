"""``python -m pylon.testing.soak --minutes 30``: one soak. Exit code 0: everything was as it must be.

Leaves a report in JSON, and a picture of the memory where matplotlib is installed. Every process that it starts has
ended when it ends, also by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import trio

from pylon.errors import PylonError
from pylon.inference.models import DEFAULT_MODEL, models_directory, pull
from pylon.testing.soak.play import Plan, Soak
from pylon.testing.soak.plot import draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pylon.testing.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of whom is killed when, and the rest (default %(default)s)"
    )
    parser.add_argument("--agents", type=int, default=100, help="(default %(default)s)")
    parser.add_argument("--every", type=float, default=20.0, help="seconds from kill to kill (default %(default)s)")
    parser.add_argument("--report", type=Path, default=Path("soak.json"), help="(default %(default)s)")
    parser.add_argument("--plot", type=Path, default=None, help="an .svg or .png (default: beside the report)")
    parser.add_argument("--keep", type=Path, default=None, help="keep the homes, in this directory, new or empty")
    parser.add_argument("--redraw", action="store_true", help="draw the picture of an old report, and that is all")
    options = parser.parse_args()
    plot = options.plot or options.report.with_suffix(".svg")
    if options.redraw:
        draw(json.loads(options.report.read_text()), plot)
        return 0
    options.report.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    os.nice(5)  # others work on this machine, too
    with _directory(options.keep) as directory:
        try:
            model = trio.run(pull, DEFAULT_MODEL, models_directory()).file.path
            plan = Plan(options.minutes * 60, options.seed, agents=options.agents, every=options.every, model=model)
            report = Soak(directory, plan, tell).run()
        except PylonError as error:
            tell(f"error: {error.message}")
            return 1
        except KeyboardInterrupt:
            tell("interrupted; every process has ended")
            return 130
    options.report.write_text(json.dumps({"minutes": options.minutes, **report}, indent=1) + "\n")
    tell(f"report: {options.report}")
    try:
        draw(report, plot)
        tell(f"memory: {plot}")
    except ImportError:
        tell("no picture: matplotlib is not installed (pip install 'pylon-runtime[deep]')")
    for name in ("killed", "recovery_seconds", "states", "thoughts", "purchases", "paid_purchases", "sales"):
        tell(f"{name}: {report[name]}")
    for problem in report["problems"]:
        tell(f"PROBLEM: {problem}")
    tell("everything is as it must be" if not report["problems"] else "it is NOT as it must be")
    return 1 if report["problems"] else 0


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="pylon-soak-") as name:
            yield Path(name)
        return
    keep.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(keep.iterdir()):
        raise SystemExit(f"{keep} is not empty: every soak begins with new homes")
    yield keep.absolute()


if __name__ == "__main__":
    sys.exit(main())
