"""What every machine of Pylon must satisfy, derived from its table."""

from __future__ import annotations

from pylon.machine import Machine


def check_table(machine: Machine) -> None:
    """Every state is reachable, every unfinished one moves on, every outbox effect is an effect."""
    states = set(machine.states())
    assert machine.final <= states
    assert machine.outbox <= set(machine.effects())
    for state in states - {machine.initial}:
        leaves = any(origin is state for origin, _ in machine.table)
        if state in machine.final:
            assert state not in machine.resume, f"{state} is final and resumes"
        else:
            assert leaves, f"{state} is a dead end"
            resumes = bool(machine.resume.get(state))
            assert resumes != (state in machine.waiting), f"{state} must either resume by an effect or wait"
    reached = {machine.initial}
    while True:
        more = {a.to for (origin, _), row in machine.table.items() if origin in reached for a in row} - reached
        if not more:
            break
        reached |= more
    assert reached == states
    for row in machine.table.values():
        # The last arrow of a pair with guards may have one too; no arrow may stand behind an unguarded one.
        guarded = [arrow.label != "" for arrow in row]
        assert all(guarded[:-1]), f"an arrow of {row} can never be taken"


def check_effects_distinct(machine: Machine) -> None:
    names = [effect.value for effect in machine.effects()]
    assert len(names) == len(set(names))
    assert len(machine.crash_points()) == 2 * len(names)
