"""Drives the records of one machine: commit first, then act, then commit what came of it.

``advance`` moves a record by an input. In one transaction it writes the new record, books, and puts the signed events
of its outbox effects into the outbox. After the commit it starts the other effects, each as a task: the effect's
handler does it and returns the input that its outcome is. A restart starts the resume effects of every unfinished
record; nothing else is needed, for whatever was under way is in a row.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import trio

from protocols.nip01 import Event
from pylon.clock import Clock
from pylon.crashpoints import crash_point
from pylon.errors import SealError, brief
from pylon.machine import Effect
from pylon.store import outbox
from pylon.store.database import Store, Tx
from pylon.store.records import RecordTable, Step

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Any)

Handler = Callable[[R], Awaitable[Any]]
"""Does an effect; returns the input that its outcome is, or ``None`` if nothing follows from it."""

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 60.0
_LONGEST_NAP = 30.0
_ATTEND_SECONDS = 30.0
"""How long one record may keep the others from being attended to."""
_ATTEND_AGAIN = 5.0
_SPARE_ALARMS = 64
_HEARD_BY = 60.0
"""Seconds within which who has written a step hears that it is committed."""
_RESUME_GRACE = 10.0
"""Seconds after a restart in which no deadline counts: what we waited for may lie on a relay already."""


class Driver(Generic[R]):
    """See the module.

    :param handlers: for each effect that is not an outbox effect.
    :param compose: the signed events of an outbox effect, made in the transaction of its step.
    :param book: called in every transaction after the record has moved, for ledger and intents.
    :param due: when (wall time) a waiting record needs attention by itself; ``None``: never.
    :param attend: called when that time has come; returns an input or ``None``.
    :param relays: the relays that a record's events go to.
    :param abandons: effects that are cut off when their record leaves the state they belong to: nobody wants them then.
    :param urgent: whether the events of an effect go out before what else waits.
    """

    def __init__(
        self,
        records: RecordTable[R],
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        handlers: Mapping[Effect, Handler[R]],
        compose: Callable[[Tx, R, Effect], Sequence[Event]],
        book: Callable[[Tx, Step[R]], None],
        due: Callable[[R], float | None],
        attend: Handler[R],
        relays: Callable[[R], Sequence[str]],
        abandons: Collection[Effect] = (),
        urgent: Callable[[Tx, R, Effect], bool] = lambda tx, record, effect: False,
    ) -> None:
        self.records = records
        self._store = store
        self._clock = clock
        self._rng = rng
        self._handlers = handlers
        self._compose = compose
        self._book = book
        self._due = due
        self._attend = attend
        self._relays = relays
        self._abandons = frozenset(abandons)
        self._cut: dict[str, trio.CancelScope] = {}
        """By record: what ends an effect of it that may be abandoned."""
        self._urgent = urgent
        self._alarms: list[tuple[float, str]] = []
        self._alarm_of: dict[str, float] = {}
        """The alarm of each record that counts: what needs attention no more has none."""
        self._alarm_set = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._resumed: dict[str, R] = {}
        """Records as this run has found and resumed them, for a while."""
        self._began = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume what was unfinished, then serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery, self._began = nursery, trio.current_time()
                nursery.start_soon(self._watch_alarms)
                for record in self.records.unfinished(self._store):
                    self._resumed[record.id] = record
                    self._set_alarm(record, not_before=self._clock.now() + _RESUME_GRACE)
                    for effect in self.records.machine.resume_effects(record):
                        nursery.start_soon(self._perform, effect, record)
                task_status.started()
        finally:
            # What is begun or moved meanwhile is in its row, and resumed by the next run.
            self._nursery = None
            self._alarms.clear()
            self._alarm_of.clear()
            self._resumed.clear()

    async def begin(self, record: R, message: Any, admit: Callable[[Tx], bool] | None = None) -> R | None:
        """Write a new record moved by its first input; not if ``admit``, asked in the same transaction, says no."""

        def job(tx: Tx) -> Step[R] | None:
            if admit is not None and not admit(tx):
                return None
            return self.begin_in(tx, record, message)

        return self.acted(await self._store.write(job))

    def begin_in(self, tx: Tx, record: R, message: Any) -> Step[R]:
        """The transactional half of ``begin``. Hand the step to ``acted`` after the commit."""
        return self._commit(tx, self.records.begin(tx, record, message, self._clock.now()))

    async def advance(self, record_id: str, message: Any, admit: Callable[[Tx], bool] | None = None) -> R | None:
        """Move a record by an input; ``None`` if that meant nothing. ``admit`` as in ``begin``."""

        def job(tx: Tx) -> Step[R] | None:
            if admit is not None and not admit(tx):
                return None
            return self.advance_in(tx, record_id, message)

        return self.acted(await self._store.write(job))

    def advance_in(self, tx: Tx, record_id: str, message: Any) -> Step[R] | None:
        """The transactional half of ``advance``. Hand the step to ``acted`` after the commit."""
        step = self.records.step(tx, record_id, message, self._clock.now())
        return None if step is None else self._commit(tx, step)

    def acted(self, step: Step[R] | None) -> R | None:
        """The other half of ``advance_in``: starts the effects of a committed step; returns the record after it.

        While the driver does not run they wait in the row, and the next ``run`` resumes them: also those of a step that
        was committed just before it looked, and of which we hear only now.
        """
        if step is None:
            return None
        if step.after.state is not step.before.state and step.after.id in self._cut:
            self._cut[step.after.id].cancel()
        if self._was_resumed(step):
            return step.after
        self._set_alarm(step.after)
        for effect in step.effects:
            if effect not in self.records.machine.outbox and self._nursery is not None:
                self._nursery.start_soon(self._perform, effect, step.after)
        return step.after

    def _was_resumed(self, step: Step[R]) -> bool:
        if self._resumed and trio.current_time() - self._began > _HEARD_BY:
            self._resumed.clear()
        found = self._resumed.get(step.after.id)
        return found is not None and found == step.after and step.after != step.before

    def _commit(self, tx: Tx, step: Step[R]) -> Step[R]:
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
                        urgent=self._urgent(tx, step.after, effect),
                    )
        return step

    async def _perform(self, effect: Effect, record: R) -> None:
        """Do one effect until its outcome is recorded; an error that no handler expected is retried, ever slower."""
        point = f"{self.records.machine.name}.{effect.value}"
        backoff = _FIRST_BACKOFF
        while True:
            try:
                crash_point(f"{point}.before")
                outcome = await self._handle(effect, record)
                crash_point(f"{point}.after")
                if outcome is not None:
                    await self.advance(record.id, outcome)
                return
            except Exception as error:
                log.error("%s of %s: %s; again in about %.0f s", point, record.id[:16], brief(error), backoff)
            await trio.sleep(backoff * (0.5 + self._rng.random()))
            backoff = min(backoff * 2, _LONGEST_BACKOFF)
            fresh = self._reload(record)
            if fresh is None or fresh.state is not record.state:
                return
            record = fresh
            effect = next(iter(self.records.machine.resume_effects(record)), effect)
            point = f"{self.records.machine.name}.{effect.value}"

    async def _handle(self, effect: Effect, record: R) -> Any:
        """What the handler says; ``None`` where it was cut off, or comes too late to be begun."""
        if effect not in self._abandons:
            return await self._handlers[effect](record)
        row = self._store.one(f"SELECT state FROM {self.records.table} WHERE id = ?", (record.id,))
        if row is None or row["state"] != record.state.value:
            return None
        with trio.CancelScope() as scope:
            self._cut[record.id] = scope
            try:
                return await self._handlers[effect](record)
            finally:
                if self._cut.get(record.id) is scope:
                    del self._cut[record.id]
        return None

    def _reload(self, record: R) -> R | None:
        """As it stands now; the one at hand where the store cannot tell at the moment."""
        try:
            return self.records.load(self._store, record.id)
        except SealError as error:
            log.error("giving up %s %s: %s", self.records.machine.name, record.id[:16], error.message)
            return None
        except Exception as error:
            log.error("%s %s cannot be read: %s", self.records.machine.name, record.id[:16], brief(error))
            return record

    def _set_alarm(self, record: R, not_before: float = 0.0) -> None:
        at = self._due(record)
        if at is None:
            self._alarm_of.pop(record.id, None)
        else:
            self._push_alarm(max(at, not_before), record.id)
            self._alarm_set.set()

    def _push_alarm(self, at: float, record_id: str) -> None:
        if self._alarm_of.get(record_id) == at:
            return
        self._alarm_of[record_id] = at
        heapq.heappush(self._alarms, (at, record_id))
        if len(self._alarms) > 2 * len(self._alarm_of) + _SPARE_ALARMS:
            # Records end before their time, as a rule: what is left of their alarms is not kept until then.
            self._alarms = [(at, record_id) for record_id, at in self._alarm_of.items()]
            heapq.heapify(self._alarms)

    def _pop_alarm(self, now: float) -> str | None:
        """Whose time has come; ``None``: nobody's."""
        while self._alarms and self._alarms[0][0] <= now:
            at, record_id = heapq.heappop(self._alarms)
            if self._alarm_of.get(record_id) == at:
                del self._alarm_of[record_id]
                return record_id
        return None

    async def _watch_alarms(self) -> None:
        """Attend to records whose time has come. Naps are short, so that a jump of the wall clock is noticed."""
        while True:
            self._alarm_set = trio.Event()
            now = self._clock.now()
            while (record_id := self._pop_alarm(now)) is not None:
                await self._ring(record_id, now)
            nap = min(self._alarms[0][0] - now, _LONGEST_NAP) if self._alarms else float("inf")
            with trio.move_on_after(max(nap, 0.001)):
                await self._alarm_set.wait()

    async def _ring(self, record_id: str, now: float) -> None:
        """Attend to one record, if its time has come indeed; whatever fails is tried again soon."""
        again = now + _ATTEND_AGAIN
        try:
            record = self.records.load(self._store, record_id)
            at = None if record is None else self._due(record)
            if record is None or at is None:
                return
            if at > now:
                again = at
            else:
                with trio.fail_after(_ATTEND_SECONDS):
                    outcome = await self._attend(record)
                if outcome is not None and await self.advance(record_id, outcome) is not None:
                    return
        except SealError as error:
            log.error("giving up %s %s: %s", self.records.machine.name, record_id[:16], error.message)
            return
        except Exception as error:
            log.error("attending to %s %s: %s", self.records.machine.name, record_id[:16], brief(error))
        if record_id not in self._alarm_of:
            self._push_alarm(again, record_id)
