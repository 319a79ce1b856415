"""What happened in a simulated home: for people, and for the invariants."""

from __future__ import annotations

import math
from typing import ClassVar

import attrs

from protocols.nip01 import Event


@attrs.define
class Told:
    """What happened, for people and for the invariants."""

    seed: int
    agents: int = 0
    steps: int = 0
    ticks: int = 0
    """Quiet ones included."""
    quiet: int = 0
    thoughts: int = 0
    """Bought and answered."""
    failed: int = 0
    """Ticks that failed."""
    triggers: int = 0
    actions: int = 0
    payments: int = 0
    """Settled, of agents."""
    deaths: list[str] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)
    virtual_seconds: float = 0.0
    digest: str = ""
    """Of all steps of all records, in their order, each with its time."""
    counted: ClassVar[tuple[str, ...]] = ("ticks", "thoughts", "triggers", "actions", "payments")
    """What is added up over many seeds."""

    @property
    def ok(self) -> bool:
        return not self.broken

    def line(self) -> str:
        verdict = "ok" if self.ok else "BROKEN"
        return (
            f"seed {self.seed}: {verdict}; {self.agents} agents, {self.steps} steps: {self.ticks} ticks"
            f" ({self.quiet} quiet, {self.failed} failed), {self.thoughts} thoughts, {self.triggers} triggers,"
            f" {self.actions} actions, {self.payments} payments; {len(self.deaths)} deaths;"
            f" {self.virtual_seconds:.0f} s"
        )


@attrs.define
class Span:
    """From when to when something lasted, in Trio's time."""

    start: float
    end: float = math.inf

    @property
    def lasts(self) -> bool:
        return self.end == math.inf


@attrs.frozen
class Said:
    """Something that was said to an agent."""

    agent: str
    trigger: str
    """The id under which it waits, once it is heard."""
    event: Event
    at: float
    """Trio's time."""
    wanted: bool
    """Whether the agent listens to such."""
    poison: bool


@attrs.frozen
class Damaged:
    """A row that does not read: whose, which, what stands there else, since when."""

    agent: str
    what: str
    was: object
    span: Span


@attrs.define
class Life:
    """A life of the home, in Trio's time."""

    start: float
    overdue: tuple[str, ...]
    """Agents whose heartbeat had been missed by then."""
    end: float = math.inf
