"""Walks one record through its machine, in the caller's own task: for what belongs to a nursery and ends with it.

The ``Driver`` runs the effects of many records at once; here each effect is done after the one before it, and the walk
can be cancelled at any await. Nothing is lost by that: what was under way stands in the row, and walking it again
resumes it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import trio

from protocols.nip01 import Event
from pylon.clock import Clock
from pylon.crashpoints import crash_point
from pylon.errors import brief
from pylon.machine import Effect
from pylon.store import outbox
from pylon.store.database import Store, Tx
from pylon.store.records import RecordTable, Step

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Any)

TRIES = 4
"""Attempts at one effect before the walk gives it up."""
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0


class Walker(Generic[R]):
    """See the module.

    :param handlers: for each effect that is not an outbox effect; returns the input that its outcome is, always.
    :param compose: the signed events of an outbox effect, made in the transaction of its step.
    :param book: called in every transaction after the record has moved, before anything is composed.
    :param give_up: the input that an effect comes to which has failed ``TRIES`` times for no reason that its handler
        knows.
    :param relays: where the record's events go.
    """

    def __init__(
        self,
        records: RecordTable[R],
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        handlers: Mapping[Effect, Callable[[R], Awaitable[Any]]],
        compose: Callable[[Tx, R, Effect], Sequence[Event]],
        book: Callable[[Tx, Step[R]], None],
        give_up: Callable[[R, BaseException], Any],
        relays: Callable[[R], Sequence[str]],
    ) -> None:
        self.records = records
        self._store = store
        self._clock = clock
        self._rng = rng
        self._handlers = handlers
        self._compose = compose
        self._book = book
        self._give_up = give_up
        self._relays = relays

    async def begin(self, record: R, message: Any, admit: Callable[[Tx], bool] | None = None) -> R | None:
        """Write a new record moved by its first input; not if ``admit``, asked in the same transaction, says no."""

        def job(tx: Tx) -> R | None:
            if admit is not None and not admit(tx):
                return None
            return self._commit(tx, self.records.begin(tx, record, message, self._clock.now()))

        return await self._store.write(job)

    async def walk(self, record: R) -> R:
        """Do what the record wants until it rests: at its end, or where only an input from outside moves it."""
        while effects := self.records.machine.resume_effects(record):
            outcome = await self._perform(effects[0], record)

            def job(tx: Tx, current: R = record, message: Any = outcome) -> R | None:
                step = self.records.step(tx, current.id, message, self._clock.now())
                return None if step is None else self._commit(tx, step)

            moved = await self._store.write(job)
            if moved is None:
                # Somebody else has moved it meanwhile: go on from where it stands.
                moved = self.records.load(self._store, record.id)
                if moved is None or moved.state is record.state:
                    raise RuntimeError(f"{type(outcome).__name__} means nothing to a {record.state.value} record")
            record = moved
        return record

    async def _perform(self, effect: Effect, record: R) -> Any:
        point = f"{self.records.machine.name}.{effect.value}"
        wait = _FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                crash_point(f"{point}.before")
                outcome = await self._handlers[effect](record)
                crash_point(f"{point}.after")
                return outcome
            except Exception as error:
                log.error("%s of %s (try %d): %s", point, record.id[:40], attempt, brief(error))
                if attempt == TRIES:
                    return self._give_up(record, error)
            await trio.sleep(wait * (0.5 + self._rng.random()))
            wait = min(wait * 4, _LONGEST_WAIT)
        raise AssertionError("the last attempt returns")

    def _commit(self, tx: Tx, step: Step[R]) -> R:
        self._book(tx, step)
        for effect in step.effects:
            if effect in self.records.machine.outbox:
                for event in self._compose(tx, step.after, effect):
                    outbox.add(
                        tx,
                        event,
                        self._relays(step.after),
                        effect=f"{self.records.machine.name}.{effect.value}",
                        subject=step.after.id,
                        at=self._clock.now(),
                    )
        return step.after
