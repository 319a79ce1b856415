"""``python -m pylon.testing.sim --seed N [--seeds COUNT]``: replay one market, or run many."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from pylon.testing.sim.world import Told, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pylon.testing.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="replay this seed and tell what happened")
    parser.add_argument("--seeds", type=int, default=200, help="run this many seeds (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log of a replay")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.CRITICAL, format="%(name)s %(message)s", stream=sys.stderr
    )
    if arguments.seed is not None:
        return _show(simulate(arguments.seed))
    return _many(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs)


def _show(told: Told) -> int:
    print(told.line())
    for death in told.deaths:
        print(f"  died: {death}")
    for problem in told.broken:
        print(f"  BROKEN {problem}")
    return 0 if told.ok else 1


def _many(seeds: range, jobs: int) -> int:
    began = time.perf_counter()
    bad = purchases = answered = deaths = 0
    with ProcessPoolExecutor(jobs) as pool:
        for told in pool.map(simulate, seeds, chunksize=4):
            purchases += told.purchases
            answered += told.answered
            deaths += len(told.deaths)
            if not told.ok:
                bad += 1
                _show(told)
    seconds = time.perf_counter() - began
    print(
        f"{len(seeds)} seeds from {seeds.start}: {bad} broken; {purchases} purchases, {answered} answered,"
        f" {deaths} deaths; {seconds:.1f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
