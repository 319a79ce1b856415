"""A machine's records in SQLite: one sealed JSON blob a row, plus the columns that queries need.

The state of a record changes only through ``RecordTable.step``, which also writes the history that ``trace`` reads.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import attrs
import cattrs
import orjson

from pylon.errors import SealError
from pylon.machine import Effect, Machine
from pylon.store.database import Reads, Tx
from pylon.store.vault import Vault

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Any)


@attrs.frozen
class Step(Generic[R]):
    """One transition as it was committed. ``before`` and ``after`` may be in the same state."""

    before: R
    after: R
    effects: tuple[Effect, ...]


@attrs.frozen
class Moved:
    """What the history has of a step, for those who are told after the commit (``Tx.tell``)."""

    machine: str
    before: Any
    after: Any
    by: str
    """The input's name."""


@functools.cache
def _converter() -> cattrs.Converter:
    return cattrs.Converter(forbid_extra_keys=False)


class RecordTable(Generic[R]):
    """The rows of one machine.

    ``columns`` gives the queryable columns of a record beside ``id``, ``state``, ``created_at`` and ``updated_at``;
    everything else stands in the sealed blob only.
    """

    def __init__(
        self,
        machine: Machine[R],
        record_type: type[R],
        table: str,
        vault: Vault,
        columns: Callable[[R], Mapping[str, Any]],
    ) -> None:
        self.machine = machine
        self.table = table
        self._type = record_type
        self._vault = vault
        self._columns = columns

    def _seal(self, record: R) -> bytes:
        text = orjson.dumps(_converter().unstructure(record)).decode()
        return self._vault.seal(text, f"{self.table}.record:{record.id}")

    def _open(self, row: Any) -> R:
        place = f"{self.table}.record:{row['id']}"
        text = self._vault.open(row["record"], place)
        try:
            return _converter().structure(orjson.loads(text), self._type)
        except Exception as error:
            # The converter's texts quote values, which are prompts and replies.
            raise SealError(
                f"the record at {place} does not read ({type(error).__name__})", "restore a backup of the home"
            ) from None

    def load(self, source: Reads, record_id: str) -> R | None:
        """One record, or ``None``. Raises ``SealError`` for a record that is damaged, or sealed with another key."""
        row = source.one(f"SELECT id, record FROM {self.table} WHERE id = ?", (record_id,))
        return None if row is None else self._open(row)

    def where(
        self,
        source: Reads,
        condition: str,
        params: tuple[Any, ...] = (),
        *,
        damaged: Callable[[str, SealError], None] | None = None,
    ) -> Iterator[R]:
        """Records by a condition on the plain columns; ``condition`` is SQL of ours, never of the network.

        One that does not open is left out, so that it harms no other: ``damaged`` is told its id and why, or the log.
        """
        for row in source.read(f"SELECT id, record FROM {self.table} WHERE {condition}", params):
            try:
                record = self._open(row)
            except SealError as error:
                (damaged or _complain)(row["id"], error)
            else:
                yield record

    def unfinished(self, source: Reads) -> Iterator[R]:
        """Every record that is not in a final state, oldest first."""
        final = sorted(self.machine.final)
        marks = ",".join("?" * len(final))
        return self.where(source, f"state NOT IN ({marks}) ORDER BY created_at, id", tuple(final))

    def begin(self, tx: Tx, record: R, message: Any, at: float) -> Step[R]:
        """Write a new record, moved by its first input: the initial state itself is never stored."""
        moved = self.machine.step(record, message)
        if moved is None:
            raise ValueError(f"{self.machine.name} cannot begin with {type(message).__name__}")
        after, effects = moved
        columns = {
            "id": after.id,
            "state": after.state.value,
            "created_at": after.created_at,
            "updated_at": at,
            "record": self._seal(after),
            **self._columns(after),
        }
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        tx.execute(f"INSERT INTO {self.table} ({names}) VALUES ({marks})", tuple(columns.values()))
        return self.note(tx, Step(record, after, effects), message, at)

    def step(self, tx: Tx, record_id: str, message: Any, at: float) -> Step[R] | None:
        """Move a record by an input; ``None`` if there is no such record or the input means nothing to it now."""
        before = self.load(tx, record_id)
        if before is None:
            return None
        moved = self.machine.step(before, message)
        if moved is None:
            return None
        after, effects = moved
        self.amend(tx, after, at)
        return self.note(tx, Step(before, after, effects), message, at)

    def amend(self, tx: Tx, record: R, at: float) -> None:
        """Write a record as it is now, without history: for what moves by more than one step, or by none.

        The caller notes the steps that people shall read of (``note``).
        """
        columns = {
            "state": record.state.value,
            "updated_at": at,
            "record": self._seal(record),
            **self._columns(record),
        }
        settings = ", ".join(f"{name} = ?" for name in columns)
        tx.execute(f"UPDATE {self.table} SET {settings} WHERE id = ?", (*columns.values(), record.id))
        tx.touch(self.table)
        tx.touch(f"{self.table}:{record.id}")

    def note(self, tx: Tx, step: Step[R], message: Any, at: float) -> Step[R]:
        """Write a step into the history, and tell of it."""
        tx.execute(
            "INSERT INTO transitions (machine, subject, at, from_state, input, to_state) VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.machine.name,
                step.after.id,
                at,
                step.before.state.value,
                type(message).__name__,
                step.after.state.value,
            ),
        )
        tx.touch(self.table)
        tx.touch(f"{self.table}:{step.after.id}")
        tx.tell(Moved(self.machine.name, step.before, step.after, type(message).__name__))
        return step


def _complain(record_id: str, error: SealError) -> None:
    log.error("left out: %s", error.message)
