"""State machines as tables.

A machine is pure: ``(record, input) -> (record, effects)``. The record is a frozen attrs class with a ``state``;
an input is a frozen attrs class; an effect is a name with nothing in it, for everything that its driver needs
stands in the record. No I/O, no clock, no randomness: time arrives as an input.

The table maps ``(state, input class)`` to arrows, tried in order; the first whose guard holds is taken. A pair that
is not in the table is an input that means nothing in that state, and changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import attrs


class Effect(enum.StrEnum):
    """Base of a machine's effects: the value is the name used in crash points, the store and the docs."""


class State(enum.StrEnum):
    """Base of a machine's states: the value is what the store keeps."""


class Record(Protocol):
    """What a machine moves: frozen attrs classes with a ``state``."""

    @property
    def state(self) -> Any: ...


R = TypeVar("R", bound=Record)


def _keep(record: Any, message: Any) -> Any:
    return record


def _always(record: Any, message: Any) -> bool:
    return True


@attrs.frozen
class Arrow(Generic[R]):
    """One arrow of a table: where to, what to do, what to remember, when it applies.

    ``label`` says the guard in words, for the docs.
    """

    to: State
    effects: tuple[Effect, ...] = ()
    update: Callable[[R, Any], R] = _keep
    guard: Callable[[R, Any], bool] = _always
    label: str = ""


@attrs.frozen
class Machine(Generic[R]):
    """A table with its resume effects and its final states.

    ``resume`` names, for each state that is not final, what a restarted driver must do again; an empty tuple is
    allowed only for states in ``waiting``, which move on by an input that needs no effect (a payment, a deadline).
    ``initial`` is the state of a record that is not stored yet. Effects in ``outbox`` are signed events, committed to
    the outbox together with the state; all others are done by the driver after the commit.
    """

    name: str
    initial: State
    table: Mapping[tuple[State, type], Sequence[Arrow[R]]]
    resume: Mapping[State, tuple[Effect, ...]]
    final: frozenset[State]
    waiting: frozenset[State] = frozenset()
    outbox: frozenset[Effect] = frozenset()

    def step(self, record: R, message: Any) -> tuple[R, tuple[Effect, ...]] | None:
        """The next record and its effects, or ``None`` where ``message`` means nothing in this state."""
        for arrow in self.table.get((record.state, type(message)), ()):
            if arrow.guard(record, message):
                moved = attrs.evolve(arrow.update(record, message), state=arrow.to)  # type: ignore[misc]
                return moved, arrow.effects
        return None

    def resume_effects(self, record: R) -> tuple[Effect, ...]:
        """What to do for ``record`` after a restart."""
        return self.resume.get(record.state, ())

    def states(self) -> list[State]:
        """Every state that the table names, in its order."""
        found: dict[State, None] = {}
        for (state, _), arrows in self.table.items():
            found[state] = None
            for arrow in arrows:
                found[arrow.to] = None
        return list(found)

    def effects(self) -> list[Effect]:
        """Every effect that any arrow or resumption names, in table order."""
        found: dict[Effect, None] = {}
        for arrows in self.table.values():
            for arrow in arrows:
                found.update(dict.fromkeys(arrow.effects))
        for effects in self.resume.values():
            found.update(dict.fromkeys(effects))
        return list(found)

    def crash_points(self) -> list[str]:
        """Before and after each effect: ``sale.infer.before`` ..."""
        return [f"{self.name}.{effect.value}.{side}" for effect in self.effects() for side in ("before", "after")]


def arrows(*rows: tuple[Iterable[State] | State, type, Any]) -> dict[tuple[State, type], list[Any]]:
    """Build a table from rows ``(state or states, input class, arrow)``; rows of one pair keep their order."""
    table: dict[tuple[State, type], list[Any]] = {}
    for states, message, arrow in rows:
        for state in [states] if isinstance(states, State) else states:
            table.setdefault((state, message), []).append(arrow)
    return table
