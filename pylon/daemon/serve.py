"""The long-running process: lock, log, runtime, control socket, signals."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from pylon import __version__, identity
from pylon.clock import Clock
from pylon.config import Config
from pylon.crashpoints import install_from_environment
from pylon.daemon import books
from pylon.daemon.control import Notify, serve_control, to_nobody
from pylon.daemon.coredumps import forbid_core_dumps
from pylon.daemon.logs import Log, start_logging
from pylon.daemon.notify import Notifier
from pylon.daemon.process import Life, hold_home
from pylon.daemon.reload import Reloading
from pylon.daemon.runtime import Runtime, open_runtime
from pylon.daemon.stalls import StallWatch
from pylon.daemon.verbs import Verbs
from pylon.errors import AlreadyRunning, PylonError, brief
from pylon.events import DaemonReady, DaemonStopping, Event
from pylon.groups import cause
from pylon.host.seedlock import SeedLocks
from pylon.identity import Unlocked
from pylon.inference.port import Backend
from pylon.money import Msat, format_msat
from pylon.passphrase import from_environment
from pylon.paths import Home

log = logging.getLogger(__name__)

_LAST_WORDS = 0.1
"""Seconds for those who listen to hear that it ends."""
_LOOKS_INTO_THE_BOOKS = 5
"""At the start, a second apart."""


def run_daemon(
    home: Home,
    config: Config,
    mode: str,
    *,
    say: Callable[[str], None],
    backend: Backend | None = None,
    unlock: Callable[[], Unlocked] | None = None,
    on_ready: Callable[[Runtime], None] = lambda runtime: None,
    background: bool = False,
    clock: Clock | None = None,
) -> None:
    """Run until a signal ends it, or the verb ``stop``. ``say`` tells the terminal.

    ``backend`` answers instead of the embedded engine. ``unlock`` opens the home, and may ask somebody for its
    passphrase; without it, only a file or a credential gives one. ``on_ready`` is called before ``say`` says so.
    ``background``: whatever is written to stdout and stderr belongs to the log. ``clock``: other than the system's.
    Raises ``PylonError`` where it cannot start.
    """
    forbid_core_dumps()
    manager = Notifier.taken()
    with hold_home(home, pid_file=True):
        keys = _unattended(home) if unlock is None else unlock()
        level = logging.DEBUG if os.environ.get("PYLON_DEBUG") == "1" else logging.INFO
        written = start_logging(home.log, level, streams=background)
        install_from_environment()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            faulthandler.enable()  # what a crash, or the watchdog's SIGABRT, says: files and lines, no values
        daemon = _Daemon(home, config, mode, say, on_ready, backend, manager, written, clock)
        try:
            trio.run(daemon.run, keys, strict_exception_groups=True)
        except BaseExceptionGroup as group:
            raise cause(group) from None
        except BaseException as error:
            log.error("ended by %s", brief(error))
            raise


def _tell_fault(method: str, error: BaseException) -> None:
    log.error("%s failed unexpectedly: %s", method, brief(error))


def _unattended(home: Home) -> Unlocked:
    return identity.unlock(home, from_environment() if identity.is_protected(home) else None)


@attrs.frozen
class _Daemon:
    """What ``run_daemon`` was asked for."""

    home: Home
    config: Config
    mode: str
    say: Callable[[str], None]
    on_ready: Callable[[Runtime], None]
    backend: Backend | None
    manager: Notifier
    log: Log
    clock: Clock | None = None
    life: Life = attrs.field(factory=Life)
    reloading: trio.Lock = attrs.field(factory=trio.Lock)

    async def run(self, keys: Unlocked) -> None:
        running: list[Runtime] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(self.life.watch, functools.partial(self._hang_up, running))
            nursery.start_soon(self.manager.beat)  # a start may take longer than the watchdog allows
            nursery.start_soon(StallWatch(publish=functools.partial(_publish, running)).run)
            with self.life.scope as scope, SeedLocks() as seeds:
                if not seeds.acquire(f"home {keys.identity.pubkey}"):
                    raise AlreadyRunning(
                        "another home of this machine runs with the same phrase", "stop that one: a seed runs once"
                    )
                await self._serve(keys, running)
            nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            self.say("stopped before it was ready")
            log.info("stopped before it was ready")
        else:
            self.say("stopped")
            log.info("stopped")

    async def _serve(self, keys: Unlocked, running: list[Runtime]) -> None:
        async with (
            open_runtime(
                self.home,
                self.config,
                mode=self.mode,
                backend=self.backend,
                serve_http=True,
                clock=self.clock,
                keys=keys,
            ) as runtime,
            trio.open_nursery() as nursery,
        ):
            running.append(runtime)
            verbs = {**Verbs.of(runtime).table(), "stop": self._stop}
            await nursery.start(functools.partial(serve_control, on_error=_tell_fault), self.home, verbs)
            lines = await _greeting(runtime)
            self.life.ready()
            for line in lines:
                log.info("%s", line)
                self.say(line)
            self.manager.ready(self._told())
            self.on_ready(runtime)
            self.say("ready")
            log.info("ready")
            network = runtime.config.network
            runtime.events.publish(DaemonReady(version=__version__, network=network, mode=runtime.mode))
            nursery.start_soon(_check_books, runtime, self.say)
            await self.life.over()
            self.manager.stopping()
            self.say("stopping")
            log.info("stopping")
            waited_for = runtime.events.waited_for
            runtime.events.publish(DaemonStopping())
            if waited_for:
                await trio.sleep(_LAST_WORDS)
            nursery.cancel_scope.cancel()

    def _told(self) -> str:
        return f"{self.mode}, {self.config.network}"

    async def _stop(self, params: dict[str, Any], notify: Notify) -> dict[str, Any]:
        """Begin the end: open work is parked, announcements are withdrawn, then the process ends."""
        self.life.end()
        return {"stopping": True, "pid": os.getpid()}

    async def _hang_up(self, running: list[Runtime]) -> None:
        """SIGHUP: open the log anew, and read the configuration again; one that is wrong changes nothing."""
        self.log.reopen()
        if not running:
            return
        async with self.reloading:
            self.manager.reloading()
            try:
                await Reloading(running[0]).reload({}, to_nobody)
            except PylonError as error:
                log.error("the configuration was not taken over: %s", error.message)
            except Exception as error:
                log.error("the configuration was not taken over: %s", brief(error))
            self.manager.ready(self._told())


def _publish(running: Sequence[Runtime], event: Event) -> None:
    for runtime in running:
        runtime.events.publish(event)


def facts(runtime: Runtime) -> dict[str, Any]:
    """What the command that started a daemon in the background tells of it."""
    return {
        "pid": os.getpid(),
        "home": str(runtime.home.root),
        "log": str(runtime.home.log),
        "npub": runtime.identity.npub,
        "network": runtime.config.network,
        "mode": runtime.mode,
        "relays": list(runtime.pool.urls),
        "api": None if runtime.api is None else f"http://{runtime.api}",
    }


async def _check_books(runtime: Runtime, say: Callable[[str], None]) -> None:
    """Say what is wrong with the books, and stays so: what a crash has left open is being put right just now."""
    lasting: list[str] | None = None
    for _ in range(_LOOKS_INTO_THE_BOOKS):
        try:
            hosting = runtime.hosting
            report = await books.audit(
                runtime.store,
                None if runtime.config.wallet.kind == "nwc" else runtime.wallet,
                runtime.clock,
                keeper=None if hosting is None else hosting.agents.keeper,
                agents=None if hosting is None else hosting.owned(),
            )
            found = report.problems
        except Exception as error:
            # A wallet that is away at the start must not keep the daemon from running.
            found = (f"they cannot be checked: {brief(error)}",)
        lasting = [problem for problem in found if lasting is None or problem in lasting]
        if not lasting:
            return
        await trio.sleep(1.0)
    for problem in lasting or ():
        log.error("books: %s", problem)
        say(f"warning: books: {problem}")


async def _greeting(runtime: Runtime) -> list[str]:
    config = runtime.config
    lines = [f"Pylon runs as {runtime.identity.npub} in {runtime.home.root}"]
    if config.network == "simnet":
        lines.append("network: simnet. These sats are not money: a file on this machine says who has how many.")
    elif runtime.wallet is not None:
        note = (await runtime.wallet.info()).note
        lines.append(f"network: {config.network}" + (f". {note}" if note else ""))
    if not identity.is_protected(runtime.home):
        lines.append("no passphrase protects the keys of this home: pylon identity passphrase sets one")
    lines.extend(f"relay: {url}" for url in runtime.pool.urls)
    if runtime.provider is not None:
        price = "free" if not config.enable_payments else format_msat(Msat(runtime.provider.terms.price))
        lines.append(f"selling: kind 5050 at {price} a job")
    if runtime.provider_off:
        lines.append(f"selling nothing: {runtime.provider_off}")
    if runtime.api is not None:
        lines.append(f"api: http://{runtime.api}")
        if config.api.market:
            lines.append(f"/v1 buys its answers: at most {format_msat(config.api.budget_day_msats)} in 24 hours")
    return lines
