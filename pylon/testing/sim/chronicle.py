"""What a simulated home has committed, in its order, each with the time at which it happened.

Rows tell the order and the wall clock's time, which a simulation sets forwards and backwards. The chronicle adds the
time that only ever grows: it reads after each commit, and no time passes between that and the commit.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from pylon.host import registry
from pylon.host.lifecycle import Lifecycle
from pylon.store.database import Store

TABLES = ("ticks", "lifecycles", "actions", "purchases", "intents")
"""Topics of the store after which it is read."""


@attrs.frozen
class Passage:
    """One step of a record."""

    at: float
    """Trio's time."""
    life: int
    """Which life of the home it was, the first being 1."""
    number: int
    """Grows with the order of the steps."""
    machine: str
    subject: str
    before: str
    message: str
    after: str


@attrs.frozen
class Followed:
    """What a home knew of an agent's balance after a commit."""

    at: float
    life: int
    agent: str
    before: Lifecycle | None
    """As it was known when the chronicle was read last."""
    after: Lifecycle
    jumps: int
    """Steps of the lifecycle in between."""


class Chronicle:
    """See the module. Outlives the home's deaths."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.followed: list[Followed] = []
        self.life = 0
        self.told: Callable[[str], None] = lambda table: None
        """Called after each commit that has touched one of ``TABLES``."""
        self._known: dict[str, Lifecycle] = {}
        self._jumps: dict[str, int] = {}
        self._read = 0

    async def follow(self, store: Store, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read along, as long as this store lives."""
        async with trio.open_nursery() as nursery:
            for table in TABLES:
                await nursery.start(self._listen, store, table)
            task_status.started()

    async def _listen(
        self, store: Store, table: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with store.listen(table) as changed:
            task_status.started()
            async for _ in changed:
                self.read(store, trio.current_time(), lifecycles=table == "lifecycles")
                self.told(table)

    def begin(self, store: Store, died_at: float) -> None:
        """A new life begins; what the last one has committed as it ended was committed at its end."""
        self.read(store, died_at)
        self.life += 1

    def read(self, store: Store, at: float, *, lifecycles: bool = True) -> None:
        """Take down what is new; of what is known of balances only if ``lifecycles``."""
        rows = store.read(
            "SELECT id, machine, subject, from_state, input, to_state FROM transitions WHERE id > ? ORDER BY id",
            (self._read,),
        )
        for row in rows:
            self.passages.append(
                Passage(
                    at,
                    self.life,
                    row["id"],
                    row["machine"],
                    row["subject"],
                    row["from_state"],
                    row["input"],
                    row["to_state"],
                )
            )
        if rows:
            self._read = rows[-1]["id"]
        for row in rows:
            if row["machine"] == "lifecycle" and row["from_state"] != row["to_state"]:
                self._jumps[row["subject"]] = self._jumps.get(row["subject"], 0) + 1
        if lifecycles:
            self._read_lifecycles(store, at)

    def _read_lifecycles(self, store: Store, at: float) -> None:
        for row in store.read("SELECT id, state, balance_msats, burn_msats FROM lifecycles ORDER BY id"):
            before = self._known.get(row["id"])
            if before is not None and (before.state, before.balance, before.burn) == tuple(row)[1:]:
                continue
            after = registry.lifecycle_records(store).load(store, row["id"])
            assert after is not None, "it is there"
            self._known[after.id] = after
            jumps = self._jumps.pop(after.id, 0)
            self.followed.append(Followed(at, self.life, after.id, before, after, jumps))
