"""The one bridge to libraries that know asyncio only (the Spark SDK): a loop in a thread of its own.

One daemon thread with one asyncio loop lives as long as the process, for such libraries keep the first loop that they
see. From Trio, ``run`` calls a coroutine function there and waits for it:

* what it returns is returned, what it raises is raised;
* a cancelled caller cancels the asyncio task and waits until that has unwound (Trio deadlines work through this), so
  that nothing of a call is left running behind the caller's back;
* ``outlast`` is for what must not be broken off half-way: a cancelled caller leaves at once and the call goes on.

What a library reports from its loop (events) comes back through ``post``, in the order of posting.

``InlineBridge`` has the same face and no thread: it awaits coroutines that are Trio's in truth, which is what fakes
in virtual time are made of.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, TypeVar

import trio

from pylon.errors import brief

log = logging.getLogger(__name__)

T = TypeVar("T")

_DRAIN_SECONDS = 15.0


class Bridge(Protocol):
    """What a wallet needs of a bridge."""

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call and wait; cancelled, it cancels what it called."""
        ...

    async def outlast(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call and wait; cancelled, it leaves what it called to end by itself."""
        ...

    def poster(self) -> Callable[..., None]:
        """For a callback: a function ``post(call, *args)`` that has ``call`` run on the Trio side of the caller.

        It may be called from any thread, also after the Trio run has ended, and never blocks.
        """
        ...


class AsyncioBridge:
    """See the module. ``shared`` gives the one of this process; others are for tests, which ``stop`` them."""

    _shared: AsyncioBridge | None = None
    _making = threading.Lock()

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls: set[_Call] = set()
        """Under way; touched in the loop's thread only."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), name="asyncio-bridge", daemon=True)
        self._thread.start()
        started.wait()

    @classmethod
    def shared(cls) -> AsyncioBridge:
        """The one of this process, started when it is first asked for."""
        with cls._making:
            if cls._shared is None or not cls._shared._thread.is_alive():
                cls._shared = cls()
                atexit.register(cls._shared.drain)
            return cls._shared

    def _main(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(started.set)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._submit(function, args)
        reason: Callable[[], Any] | None = None

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            nonlocal reason
            reason = raise_cancel
            call.cancel()
            return trio.lowlevel.Abort.FAILED  # the asyncio side unwinds first, and then wakes us

        await self._wait(call, abort)
        if call.outcome().cancelled and reason is not None:
            reason()
        value: T = call.outcome().unwrap()
        return value

    async def outlast(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._submit(function, args)
        await self._wait(call, lambda raise_cancel: trio.lowlevel.Abort.SUCCEEDED)
        value: T = call.outcome().unwrap()
        return value

    def poster(self) -> Callable[..., None]:
        token = trio.lowlevel.current_trio_token()

        def post(call: Callable[..., object], *args: Any) -> None:
            try:
                token.run_sync_soon(call, *args)
            except trio.RunFinishedError:
                pass  # nobody is there to hear it any more

        return post

    def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Wait for the calls that were left to end by themselves. At the end of the process.

        A native library wakes its calls from threads of its own: where one of these meets an interpreter that is
        being taken down, the process is aborted.
        """
        until = time.monotonic() + seconds
        while self._calls and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.02)

    def stop(self) -> None:
        """End the thread: cancel what still runs, and wait for it to unwind. For tests."""

        async def wind_up() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(wind_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> _Call:
        submitted = _Call(self._loop, self._calls)
        try:
            self._loop.call_soon_threadsafe(submitted.start, function, args)
        except RuntimeError as error:  # the loop is closed
            submitted.future.set_result(_Outcome(error=RuntimeError(f"the asyncio bridge has stopped: {error}")))
        return submitted

    async def _wait(self, call: _Call, abort: Callable[[Any], trio.lowlevel.Abort]) -> None:
        """Until ``call`` is done, or ``abort`` has let the caller go."""
        task, post = trio.lowlevel.current_task(), self.poster()
        waiting = True

        def wake() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                trio.lowlevel.reschedule(task)

        def leave(raise_cancel: Any) -> trio.lowlevel.Abort:
            nonlocal waiting
            verdict = abort(raise_cancel)
            if verdict is trio.lowlevel.Abort.SUCCEEDED:
                waiting = False
            return verdict

        call.future.add_done_callback(lambda _: post(wake))
        await trio.lowlevel.wait_task_rescheduled(leave)


class _Outcome:
    """What came of a call. Not raised where it was kept, so that asyncio has nothing to complain of."""

    __slots__ = ("cancelled", "error", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None, cancelled: bool = False) -> None:
        self.value = value
        self.error = error
        self.cancelled = cancelled

    def unwrap(self) -> Any:
        if self.cancelled:
            raise CancelledError("the call was cancelled on its own side")
        if self.error is not None:
            raise self.error
        return self.value


class _Call:
    """A call in the other thread: started there, cancelled there, its outcome readable here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, under_way: set[_Call]) -> None:
        self._loop = loop
        self._under_way = under_way
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self.future: Future[_Outcome] = Future()

    def start(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        self._under_way.add(self)
        self._task = self._loop.create_task(self._call(function, args))
        if self._cancelled:
            self._task.cancel()
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(self)
        if not self.future.done():  # it was cancelled before its first step
            self.future.set_result(_Outcome(cancelled=True))

    async def _call(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            # The coroutine is made here: some libraries look at the running loop when they are called.
            outcome = _Outcome(await function(*args))
        except asyncio.CancelledError:
            outcome = _Outcome(cancelled=True)
        except BaseException as error:
            outcome = _Outcome(error=error)
        self.future.set_result(outcome)

    def cancel(self) -> None:
        def there() -> None:
            self._cancelled = True
            if self._task is not None:
                self._task.cancel()

        try:
            self._loop.call_soon_threadsafe(there)
        except RuntimeError:
            pass  # the loop is closed, and the outcome is there

    def outcome(self) -> _Outcome:
        return self.future.result(0)


class InlineBridge:
    """No thread: what is called awaits Trio's own things. For fakes, and for virtual time."""

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        return await function(*args)

    async def outlast(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        done, outcome = trio.Event(), _Outcome()

        async def call() -> None:
            try:
                outcome.value = await function(*args)
            except trio.Cancelled:
                outcome.cancelled = True
                raise
            except Exception as error:
                outcome.error = error
                log.debug("a call ended with %s", brief(error))
            finally:
                done.set()

        trio.lowlevel.spawn_system_task(call)
        await done.wait()
        value: T = outcome.unwrap()
        return value

    def poster(self) -> Callable[..., None]:
        return lambda call, *args: call(*args)
