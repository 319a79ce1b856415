"""``python -m pylon.testing.sim --seed N [--seeds COUNT]``: replay one market, or run many; with ``--host`` one home
that hosts agents."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from pylon.testing.sim import plans, told, world
from pylon.testing.sim.steps import Plan, plan_of

Told = world.Told | told.Told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pylon.testing.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="replay this seed and tell what happened")
    parser.add_argument("--seeds", type=int, default=200, help="run this many seeds (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--host", action="store_true", help="a home with agents instead of a market")
    parser.add_argument(
        "--shrink", action="store_true", help="take out of a broken plan what it does not need (--host)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log of a replay")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.CRITICAL, format="%(name)s %(message)s", stream=sys.stderr
    )
    if arguments.seed is None:
        simulate = plans.simulate_host if arguments.host else world.simulate
        return _many(simulate, range(arguments.first, arguments.first + arguments.seeds), arguments.jobs)
    if not arguments.host:
        return _show(world.simulate(arguments.seed))
    plan = plan_of(arguments.seed)
    if arguments.shrink:
        plan = plans.shrink(plan)
    _show_plan(plan)
    return _show(plans.run_plan(plan))


def _show_plan(plan: Plan) -> None:
    for newcomer in plan.agents:
        print(f"  {newcomer.funds} sat, {newcomer.goals} goals: {newcomer.settings}")
    for number, step in enumerate(plan.steps, 1):
        print(f"  {number}. {step}")


def _show(told: Told) -> int:
    print(told.line())
    for death in told.deaths:
        print(f"  died: {death}")
    for problem in told.broken:
        print(f"  BROKEN {problem}")
    return 0 if told.ok else 1


def _many(simulate: Callable[[int], Told], seeds: range, jobs: int) -> int:
    began = time.perf_counter()
    bad = deaths = 0
    counted: dict[str, int] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for told in pool.map(simulate, seeds, chunksize=4):
            deaths += len(told.deaths)
            for name in told.counted:
                counted[name] = counted.get(name, 0) + getattr(told, name)
            if not told.ok:
                bad += 1
                _show(told)
    seconds = time.perf_counter() - began
    found = ", ".join(f"{count} {name}" for name, count in counted.items())
    print(f"{len(seeds)} seeds from {seeds.start}: {bad} broken; {found}, {deaths} deaths; {seconds:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
