"""What ``pylon connect`` does: the tunnel in the foreground, until a signal."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import trio

from pylon import config as configuration
from pylon.cli.output import State, emit, note, warn
from pylon.cli.unlock import unlock
from pylon.clock import SystemClock
from pylon.daemon.coredumps import forbid_core_dumps
from pylon.daemon.logs import start_logging
from pylon.errors import AlreadyRunning, ConfigError, IdentityError
from pylon.store import remedy
from pylon.store.database import open_store
from pylon.tunnel import record
from pylon.tunnel.address import TunnelAddress
from pylon.tunnel.claude import find_executable, version_of
from pylon.tunnel.client import Tunnel
from pylon.tunnel.policy import Rules, rules_of
from pylon.tunnel.session import dollars

if TYPE_CHECKING:
    from pylon.config import Config
    from pylon.identity import Unlocked
    from pylon.paths import Home

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(state: State, url: str, flags: dict[str, Any], config_path: Path | None, *, insecure: bool) -> None:
    """Raises ``TunnelError``, ``ConfigError``, ``UsageError``, ``IdentityError``, ``AlreadyRunning``."""
    if config_path is not None and not config_path.is_file():
        raise ConfigError(f"there is no configuration {config_path}", "pylon init writes one into the home")
    path = config_path or state.home.config
    loaded = configuration.load(path, flags=flags)
    warn(loaded.warnings)
    config = loaded.config
    if not config.claude.enabled:
        raise ConfigError("[claude] enabled = false: no tunnel is allowed", f"set it to true in {path}")
    address = TunnelAddress.of(url, insecure=insecure)
    home = state.home
    rules = rules_of(config.claude, default_cwd=Path.cwd(), closed=secret_places(home, config, os.environ))
    executable = find_executable(config.claude.executable_path)
    if not home.mnemonic.exists():
        raise IdentityError(
            f"there is no identity in {home.data}, and what is recorded is sealed with its key", "pylon init"
        )
    home.prepare()
    # One for each home: whoever is alone knows that a session which is open in the record is nobody's any more.
    lock = filelock.FileLock(home.data / "tunnel.lock", mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise AlreadyRunning(
            f"another pylon connect is at work in {home.data}", "end it first; one carries many sessions"
        ) from None
    try:
        forbid_core_dumps()  # nor can what a session runs look into our memory or environment
        keys = unlock(state)
        start_logging(home.logs / "tunnel.log")
        trio.run(_run, state, config, address, rules, executable, keys)
    finally:
        lock.release()


def secret_places(home: Home, config: Config, environ: Mapping[str, str]) -> list[Path]:
    """Where keys are: no session reaches into these. A backup is whole home, and may not be sealed."""
    places = [config.wallet.uri_file, environ.get("PYLON_PASSPHRASE_FILE"), environ.get("CREDENTIALS_DIRECTORY")]
    backup = remedy.newest(home.data)
    return [home.root, home.data, *(Path(path) for path in places if path), *([backup[0]] if backup else [])]


async def _run(
    state: State, config: Config, address: TunnelAddress, rules: Rules, executable: Path, keys: Unlocked
) -> None:
    version = await version_of(executable)
    async with open_store(state.home.database, vault=keys.vault, clock=SystemClock()) as store:
        await record.tidy(store)
        tunnel = Tunnel(
            address,
            rules,
            executable=executable,
            store=store,
            rng=random.Random(),
            approval_seconds=config.claude.approval_seconds,
            max_sessions=config.claude.max_sessions,
            max_cost_day_usd=config.claude.max_cost_day_usd,
            say=note,
        )
        facts = {
            "server": address.shown,
            "executable": str(executable),
            "version": version,
            "model": rules.model,
            "autonomy": rules.autonomy,
            "cwd": str(rules.cwd),
            "max_cost_usd": rules.max_cost_usd,
            "max_cost_day_usd": config.claude.max_cost_day_usd,
        }
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(tunnel.run)
                cap = "no cap" if rules.max_cost_usd is None else f"at most {dollars(rules.max_cost_usd)} a session"
                note(f"sessions run Claude Code {version} in {rules.cwd}: {rules.model}, {rules.autonomy}, {cap}")
                note("until Ctrl-C")
                emit(state, facts, "ready")
                await anext(aiter(signals))
                for number in _SIGNALS:  # a second one ends us at once; the children end with their stdin
                    signal.signal(number, signal.SIG_DFL)
                note("closing the tunnel")
                await tunnel.close("the tunnel was closed on the machine")
                nursery.cancel_scope.cancel()
