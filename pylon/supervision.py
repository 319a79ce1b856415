"""Supervision: the OTP ideas, in Trio.

A child is an async function that is meant to run for ever. When it ends, by an exception or cleanly, it alone is
started again, after a wait that doubles from 1 s to 60 s (jittered by a quarter) and goes back to 1 s only when the
child has been up for five times the wait before it. A child that needs more restarts than the window allows is
*quarantined*: it is not started again until someone asks for it, and shows its last error. Its siblings never notice.

Cancellation is not an error and passes. (A ``trio.Cancelled`` that escapes from a library while nobody has cancelled
anything is one: it counts as a failure of the child that let it out.)
"""

from __future__ import annotations

import enum
import random
from collections.abc import Awaitable, Callable

import attrs
import trio

from pylon.backoff import JITTER, Backoff
from pylon.errors import brief


class ChildState(enum.StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    """Ended, and to be started again at ``retry_at``."""
    QUARANTINED = "quarantined"
    """Restarted too often; left alone until ``Supervisor.restart``."""
    FINISHED = "finished"
    """A temporary child that ended cleanly."""
    STOPPED = "stopped"
    """Stopped on purpose."""


@attrs.frozen
class ChildSpec:
    """What to run. ``temporary``: a clean end is the end; an exception still restarts it."""

    name: str
    run: Callable[[], Awaitable[object]]
    temporary: bool = False


@attrs.frozen
class ChildStatus:
    name: str
    state: ChildState
    starts: int
    since: float
    """Trio time at which this state began."""
    retry_at: float | None = None
    """Trio time of the next start, while waiting."""
    last_error: str | None = None
    """Class and message of the last exception."""


@attrs.frozen
class Policy:
    """Waits in seconds; at most ``intensity`` restarts in any ``window`` seconds.

    The window must be wide enough for the waits: a child that fails at once needs 363 s for its eleventh restart.
    """

    first_wait: float = 1.0
    longest_wait: float = 60.0
    jitter: float = JITTER
    intensity: int = 10
    window: float = 600.0


OnFailure = Callable[[ChildStatus, BaseException | None], None]
"""Told of every end of a child that was not asked for: the status after it, the exception or ``None``."""


@attrs.define(eq=False)
class _Child:
    spec: ChildSpec
    status: ChildStatus
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)


class Supervisor:
    """Children of one nursery. All methods must be called from its Trio run.

    ``rng`` draws the jitter, so that a simulation is reproducible.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        rng: random.Random,
        policy: Policy | None = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        self._nursery = nursery
        self._rng = rng
        self._policy = policy or Policy()
        self._on_failure = on_failure
        self._children: dict[str, _Child] = {}

    def start(self, spec: ChildSpec) -> None:
        """Start a child. Its name must not be that of another that still runs, waits or is quarantined."""
        known = self._children.get(spec.name)
        if known is not None and not known.done.is_set():
            raise ValueError(f"a child named {spec.name!r} is there already")
        child = _Child(spec, ChildStatus(spec.name, ChildState.RUNNING, 0, trio.current_time()))
        self._children[spec.name] = child
        self._nursery.start_soon(self._supervise, child, name=f"supervise {spec.name}")

    async def stop(self, name: str) -> None:
        """Cancel a child and wait until it is gone. One that is not there is gone already."""
        child = self._children.get(name)
        if child is None:
            return
        child.scope.cancel()
        await child.done.wait()
        self._set(child, ChildState.STOPPED)

    async def restart(self, name: str) -> None:
        """Start a child again now, with a clean record: how a quarantine ends. Raises ``KeyError``."""
        spec = self._children[name].spec
        await self.stop(name)
        self.start(spec)

    def forget(self, name: str) -> None:
        """Drop a child that has ended from ``statuses``."""
        child = self._children.get(name)
        if child is not None and child.done.is_set():
            del self._children[name]

    def statuses(self) -> list[ChildStatus]:
        """One for each child, in the order of their first starts."""
        return [child.status for child in self._children.values()]

    def status(self, name: str) -> ChildStatus | None:
        """Of one child."""
        child = self._children.get(name)
        return None if child is None else child.status

    async def _supervise(self, child: _Child) -> None:
        try:
            with child.scope:
                await self._keep_running(child)
        finally:
            child.done.set()

    async def _keep_running(self, child: _Child) -> None:
        policy = self._policy
        backoff = Backoff(self._rng, policy.first_wait, policy.longest_wait, policy.jitter)
        restarts: list[float] = []
        while True:
            started = trio.current_time()
            self._set(child, ChildState.RUNNING, started=True)
            error = await _run(child.spec)
            ended = trio.current_time()
            if error is None and child.spec.temporary:
                self._set(child, ChildState.FINISHED)
                return
            if error is not None:
                child.status = attrs.evolve(child.status, last_error=_describe(error))
            restarts = [at for at in restarts if at > ended - policy.window]
            if len(restarts) >= policy.intensity:
                self._set(child, ChildState.QUARANTINED)
                self._tell(child, error)
                await trio.sleep_forever()
            wait = backoff.wait(ended - started)
            self._set(child, ChildState.WAITING, retry_at=ended + wait)
            self._tell(child, error)
            await trio.sleep(wait)
            restarts.append(trio.current_time())

    def _set(self, child: _Child, state: ChildState, *, started: bool = False, retry_at: float | None = None) -> None:
        child.status = attrs.evolve(
            child.status,
            state=state,
            starts=child.status.starts + started,
            since=trio.current_time(),
            retry_at=retry_at,
        )

    def _tell(self, child: _Child, error: BaseException | None) -> None:
        if self._on_failure is not None:
            self._on_failure(child.status, error)


async def _run(spec: ChildSpec) -> BaseException | None:
    """Run a child to its end: the exception that ended it, or ``None``. Raises only what must pass."""
    try:
        await spec.run()
    except Exception as error:
        return error
    except trio.Cancelled as error:
        if _cancelled():
            raise
        return error
    except BaseExceptionGroup as group:
        # A nursery within the child may hand up a cancellation together with failures on the way out: what must pass
        # is passed without them, or a clean shutdown would look like a crash.
        cancellations, others = group.split(trio.Cancelled)
        try:
            if others is not None and not isinstance(others, ExceptionGroup):
                raise
            if cancellations is not None and _cancelled():
                raise cancellations from None
            return group
        finally:
            # An exception that its own traceback leads back to keeps all that the child was made of.
            del cancellations, others
    return None


def _cancelled() -> bool:
    return trio.current_effective_deadline() == float("-inf")


def _describe(error: BaseException) -> str:
    """One line for ``status``: the first cause within groups, its own words only where they are ours."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(brief(error).split())[:300]
