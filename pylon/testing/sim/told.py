"""What happened in a simulated home: for people, and for the invariants."""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar

import attrs

from protocols.nip01 import Event
from pylon.store.database import Store
from pylon.testing.sim.chronicle import Chronicle


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

    def count(self, store: Store, chronicle: Chronicle) -> None:
        """Count what came of it all."""

        def count(table: str, condition: str = "1 = 1") -> int:
            row = store.one(f"SELECT COUNT(*) AS n FROM {table} WHERE {condition}")
            return 0 if row is None else int(row["n"])

        self.ticks, self.quiet = count("ticks"), count("ticks", "state = 'quiet'")
        self.failed = count("ticks", "state = 'failed'")
        self.thoughts = count("purchases", "state = 'answered'")
        self.triggers, self.actions = count("triggers"), count("actions")
        self.payments = count("intents", "state = 'settled' AND owner <> ''")
        lines = [
            f"{p.at:.6f} {p.life} {p.machine} {p.subject} {p.before} {p.message} {p.after}" for p in chronicle.passages
        ]
        self.digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

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
