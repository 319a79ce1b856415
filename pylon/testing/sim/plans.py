"""Plans of a home with agents: run one from its seed to its end, and make a broken one smaller."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from protocols.nip01 import Event
from pylon.host import triggers
from pylon.testing.sim import steps
from pylon.testing.sim.crowd import POISON
from pylon.testing.sim.hosting import HostWorld
from pylon.testing.sim.steps import Plan
from pylon.testing.sim.told import Told
from pylon.testing.sim.world import determined


def simulate_host(seed: int) -> Told:
    """Run the plan of one seed to its end."""
    return run_plan(steps.plan_of(seed))


def run_plan(plan: Plan) -> Told:
    """Run one plan to its end. What falls over is told as broken, too."""
    told = Told(plan.seed, len(plan.agents), len(plan.steps))
    with (
        tempfile.TemporaryDirectory(prefix=f"pylon-host-{plan.seed}-") as name,
        determined(plan.seed),
        _poisonous(),
        _uncollected(),
    ):
        world = HostWorld(plan, Path(name), told)
        try:
            trio.run(world.run, clock=MockClock(autojump_threshold=0.0))
        except Exception as error:
            told.broken.append(f"fell_over: {_innermost(error)}")
    return told


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Have no garbage collected in between: what it finalizes, and when, hangs on what this process did before."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def shrink(plan: Plan) -> Plan:
    """A plan that is broken like this one and from which nothing can be taken; itself, if it is not broken."""
    broken = _names(run_plan(plan))
    smaller = True
    while broken and smaller:
        smaller = False
        for lesser in _lesser(plan):
            if broken & _names(run_plan(lesser)):
                plan, smaller = lesser, True
                break
    return plan


def _names(told: Told) -> set[str]:
    return {problem.partition(":")[0] for problem in told.broken}


def _lesser(plan: Plan) -> Iterator[Plan]:
    """Plans with one step less, or one agent."""
    for place in range(len(plan.steps)):
        yield attrs.evolve(plan, steps=(*plan.steps[:place], *plan.steps[place + 1 :]))
    for place in range(len(plan.agents) if len(plan.agents) > 1 else 0):
        yield attrs.evolve(plan, agents=(*plan.agents[:place], *plan.agents[place + 1 :]))


@contextlib.contextmanager
def _poisonous() -> Iterator[None]:
    """Whoever understands an event breaks over one that begins like this: a bug of ours that waits to be found."""
    real = triggers.understand

    def understand(event: Event, **around: Any) -> triggers.Heard | None:
        if event.content.startswith(POISON):
            raise RuntimeError("this event is poison")
        return real(event, **around)

    triggers.understand = understand
    try:
        yield
    finally:
        triggers.understand = real


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
