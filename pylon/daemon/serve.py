"""The long-running process: lock, log, runtime, control socket, signals."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import trio

from pylon import identity
from pylon.config import Config
from pylon.crashpoints import install_from_environment
from pylon.daemon import books
from pylon.daemon.control import serve_control
from pylon.daemon.coredumps import forbid_core_dumps
from pylon.daemon.logs import start_logging
from pylon.daemon.process import hold_home, until_signal
from pylon.daemon.runtime import Runtime, open_runtime
from pylon.daemon.verbs import Verbs
from pylon.errors import brief
from pylon.groups import cause
from pylon.identity import Unlocked
from pylon.inference.port import Backend
from pylon.money import Msat, format_msat
from pylon.passphrase import from_environment
from pylon.paths import Home

log = logging.getLogger(__name__)

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
) -> None:
    """Run until a signal ends it. ``say`` tells the terminal. Raises ``PylonError`` where it cannot start.

    ``backend`` answers instead of the embedded engine. ``unlock`` opens the home, and may ask somebody for its
    passphrase; without it, only a file or a credential gives one. ``on_ready`` is called before ``say`` says so.
    """
    forbid_core_dumps()
    with hold_home(home, pid_file=True):
        keys = _unattended(home) if unlock is None else unlock()
        start_logging(home.log, logging.DEBUG if os.environ.get("PYLON_DEBUG") == "1" else logging.INFO)
        install_from_environment()
        try:
            trio.run(_serve, home, config, mode, say, on_ready, backend, keys, strict_exception_groups=True)
        except BaseExceptionGroup as group:
            raise cause(group) from None


def _tell_fault(method: str, error: BaseException) -> None:
    log.error("%s failed unexpectedly: %s", method, brief(error))


def _unattended(home: Home) -> Unlocked:
    return identity.unlock(home, from_environment() if identity.is_protected(home) else None)


async def _serve(
    home: Home,
    config: Config,
    mode: str,
    say: Callable[[str], None],
    on_ready: Callable[[Runtime], None],
    backend: Backend | None,
    keys: Unlocked,
) -> None:
    async with open_runtime(home, config, mode=mode, backend=backend, serve_http=True, keys=keys) as runtime:
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve_control, on_error=_tell_fault), home, Verbs.of(runtime).table())
            lines = await _greeting(runtime)

            def ready() -> None:
                on_ready(runtime)
                for line in lines:
                    say(line)
                log.info("ready")
                nursery.start_soon(_check_books, runtime, say)

            await until_signal(ready)
            say("stopping")
            log.info("stopping")
            nursery.cancel_scope.cancel()
    say("stopped")


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
    lines.append("ready")
    return lines
