"""The calls of this process that move money over Spark: which of them still run, and since when there is silence.

A call that outlasts its caller's patience may go through at any time, so that nothing is known of its payment, and the
payment is not *lost*, before the call itself has ended. How long nobody has heard of it since is counted on the
monotonic clock: a machine that slept, or a wall clock that was set, makes no silence.

One for all wallets of a process (``SparkKit.calls``), by the SDK's name of a payment: a wallet may be closed and opened
anew, or opened twice, while a call for it runs.
"""

from __future__ import annotations

import math

import trio

from pylon.errors import WalletError
from pylon.wallets.port import Payment
from pylon.wallets.spark_journal import Send


class SparkCalls:
    """See the module."""

    def __init__(self) -> None:
        self._running: dict[str, Sending] = {}
        self._ended: dict[str, float] = {}
        """Monotonic time of the end of each call of which it is not known what came of it."""
        self._looked: dict[str, float] = {}
        """Monotonic time of the first look at each payment that another life of the process has sent."""

    def begin(self, send: Send, owner: object) -> Sending:
        """A payment that is about to be made; ``Sending.end`` ends it."""
        self.forget(send.id)
        sending = self._running[send.id] = Sending(send, owner, self)
        return sending

    def running(self, payment_id: str) -> Sending | None:
        return self._running.get(payment_id)

    def is_paying(self, owner: object) -> bool:
        """Whether a call of this wallet's runs."""
        return any(sending.owner is owner for sending in self._running.values())

    def ended_at(self, payment_id: str) -> float | None:
        """When the call of this process for it ended, monotonic; ``None`` where this process has made none."""
        return self._ended.get(payment_id)

    def first_look(self, payment_id: str, now: float) -> float:
        """When this process looked first for a payment that it has not made itself, monotonic; it is now, if never."""
        return self._looked.setdefault(payment_id, now)

    def forget(self, payment_id: str) -> None:
        """It is known what became of it."""
        self._ended.pop(payment_id, None)
        self._looked.pop(payment_id, None)

    def _end(self, sending: Sending, unknown_since: float | None) -> None:
        if self._running.get(sending.send.id) is sending:
            del self._running[sending.send.id]
            if unknown_since is not None:
                self._ended[sending.send.id] = unknown_since


class Sending:
    """A payment that this process is about to make, or is making: until the SDK's call has ended, however late."""

    def __init__(self, send: Send, owner: object, calls: SparkCalls) -> None:
        self.send = send
        self.owner = owner
        self.payment: Payment | None = None
        self.error: WalletError | None = None
        self._calls = calls
        self._told = trio.Event()
        self._ended = trio.Event()
        self._late_at = math.inf

    def tell(self, patience: float) -> None:
        """The SDK is told now; who waits does so for ``patience`` seconds."""
        self._late_at = trio.current_time() + patience
        self._told.set()

    @property
    def is_late(self) -> bool:
        """Nobody waits for it any more."""
        return trio.current_time() >= self._late_at

    async def wait(self) -> bool:
        """Until it has ended or is late. Whether it has ended."""
        await self._told.wait()
        with trio.move_on_at(self._late_at):
            await self._ended.wait()
        return self._ended.is_set()

    def end(self, unknown_since: float | None = None) -> None:
        """:param unknown_since: monotonic; ``None`` where it is known what came of it."""
        self._calls._end(self, unknown_since)
        self._told.set()
        self._ended.set()
