"""``python -m benchmarks [NAME ...] [--json]``: measure, and print what was found. Nothing is asserted or written."""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.report import as_json, as_text

NAMES = ("market", "unpaid", "relay", "api", "startup", "start", "demo", "agents", "spark")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    tables = []
    for name in arguments.names or NAMES:
        if not arguments.json:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
        tables.append(importlib.import_module(f"benchmarks.{name}").run())
    print(as_json(tables) if arguments.json else as_text(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
