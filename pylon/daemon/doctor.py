"""Looking at a home from all sides, with a daemon running or without: what is in order, what is not, and the remedy.

Each check stands for itself: it has its own bound of time, and one that breaks is itself a failure with its reason, and
keeps no other from being told. Nothing is changed, and no secret is asked for; what a passphrase guards is looked at
through the daemon if one runs.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from pylon.clock import Clock
from pylon.config import Loaded
from pylon.daemon.holder import holder as holder_of
from pylon.errors import ConfigError, ControlError, NotRunning, PylonError, brief
from pylon.identity import Unlocked
from pylon.paths import Home

BOUND = 10.0
"""Seconds for one check."""
PATIENCE = 20.0
"""Seconds for those that ask others, one after the other."""


class Status(enum.StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """One thing that was found."""

    check: str
    status: Status
    detail: str
    remedy: str = ""
    """What to do: a command, or a key of the configuration."""
    fix: Callable[[], None] | None = attrs.field(default=None, eq=False, repr=False)
    """Does it, where that is safe. Raises ``OSError`` or ``PylonError``."""

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "status": self.status.value,
            "detail": self.detail,
            "remedy": self.remedy or None,
            "fixable": self.fix is not None,
        }


class Ask(Protocol):
    """Asking the daemon: the CLI's client of the control socket."""

    def __call__(self, verb: str, params: Mapping[str, Any], seconds: float) -> Any:
        """Blocks. Raises ``NotRunning`` where no daemon listens, ``PylonError`` where it does not answer."""
        ...


@attrs.frozen
class Patient:
    """The home, and what the checks have in common."""

    home: Home
    clock: Clock
    ask: Ask
    loaded: Loaded | None
    """The configuration; ``None`` where it is wrong."""
    config_error: ConfigError | None
    running: bool
    """Whether a daemon listens on the control socket."""
    status: Mapping[str, Any] | None
    """What it says of itself; ``None`` where none runs, or where it does not answer."""
    silence: str
    """Why a daemon that listens does not answer."""
    holder: int | None
    """The process that holds the home's lock: asked before any check takes it for itself."""
    unlock: Callable[[], Unlocked] | None = None
    """Opens the home without asking anybody; ``None`` where it wants a passphrase that nobody has given."""

    async def call(self, verb: str, params: Mapping[str, Any] | None = None, seconds: float = BOUND - 1) -> Any:
        """A verb of the daemon, without keeping the loop. Raises ``PylonError``; one that is silent is asked once."""
        if self.silence:
            raise ControlError(f"the daemon does not answer: {self.silence}", "see the daemon's own line here")
        return await trio.to_thread.run_sync(
            functools.partial(self.ask, verb, params or {}, seconds), abandon_on_cancel=True
        )

    def says(self) -> Mapping[str, Any]:
        return self.status or {}


Check = Callable[[Patient], Awaitable[Sequence[Finding]]]


def passed(check: str, detail: str) -> Finding:
    return Finding(check, Status.PASS, detail)


def warned(check: str, detail: str, remedy: str, fix: Callable[[], None] | None = None) -> Finding:
    return Finding(check, Status.WARN, detail, remedy, fix)


def failed(check: str, detail: str, remedy: str, fix: Callable[[], None] | None = None) -> Finding:
    return Finding(check, Status.FAIL, detail, remedy, fix)


def failure(check: str, error: PylonError, remedy: str = "") -> Finding:
    """What a check has raised on purpose."""
    return failed(check, error.message, error.hint or remedy or "pylon doctor again; see logs/pylon.log")


async def admit(
    home: Home, clock: Clock, ask: Ask, load: Callable[[], Loaded], unlock: Callable[[], Unlocked] | None
) -> Patient:
    """Find out what all checks want to know."""
    loaded, wrong = None, None
    try:
        loaded = load()
    except ConfigError as error:
        wrong = error
    running, status, silence = False, None, ""
    if home.may_answer:
        try:
            status = await trio.to_thread.run_sync(ask, "status", {}, 3.0, abandon_on_cancel=True)
            running = True
        except NotRunning:
            pass
        except PylonError as error:
            running, silence = True, error.message
    holder = await trio.to_thread.run_sync(holder_of, home.pid, abandon_on_cancel=True) if not running else None
    return Patient(home, clock, ask, loaded, wrong, running, status, silence, holder, unlock)


async def examine(patient: Patient, checks: Mapping[str, tuple[Check, float]]) -> list[Finding]:
    """All checks at once; their findings in the order of ``checks``, whatever each of them does."""
    found: dict[str, Sequence[Finding]] = {}

    async def look(name: str, check: Check, seconds: float) -> None:
        with trio.move_on_after(seconds) as scope:
            try:
                found[name] = await check(patient)
            except PylonError as error:
                found[name] = [failure(name, error)]
            except Exception as error:
                found[name] = [broken(name, error)]
        if scope.cancelled_caught:
            why = f"it could not be looked at within {seconds:g} s"
            found[name] = [failed(name, why, "pylon doctor again; if it stays so, see logs/pylon.log")]

    async with trio.open_nursery() as nursery:
        for name, (check, seconds) in checks.items():
            nursery.start_soon(look, name, check, seconds)
    return [finding for name in checks for finding in found[name]]


def broken(name: str, error: Exception) -> Finding:
    """A check that fell over. Its own text may quote anything; where it arose says enough."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, PylonError):
        return failure(name, error)
    if isinstance(error, OSError):
        return failed(name, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "check owner and mode")
    return failed(name, f"the check itself broke: {brief(error)}", "report this as a fault of Pylon's")
