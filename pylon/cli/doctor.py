"""``pylon doctor``: what is in order, what is not, and what to do about it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.output import State, emit, json_option, note, pass_state
from pylon.errors import PylonError

if TYPE_CHECKING:
    from pylon.daemon.doctor import Check, Finding
    from pylon.identity import Unlocked
    from pylon.paths import Home

_MARKS = {"pass": "OK", "warn": "!!", "fail": "XX"}


@click.command()
@click.option("--fix", is_flag=True, help="Mend what is safe to mend: modes of files, what a dead daemon has left.")
@json_option
@pass_state
@click.pass_context
def doctor(context: click.Context, state: State, fix: bool) -> None:
    """Look at the home from all sides and name the remedy of whatever is wrong.

    With a daemon running, it is asked; without one, the same is looked at from here. Nothing is changed but by --fix.
    Exit code 1 if a check fails; warnings alone are no failure.
    """
    import trio

    from pylon.daemon.doctor import failure

    running, fixed = False, []
    try:
        home = state.home
    except PylonError as error:
        found: Sequence[Finding] = [failure("home", error)]
    else:
        found, running = trio.run(_examine, home)
        if fix:
            fixed = _mend(found)
            if fixed:
                found, running = trio.run(_examine, home)
    report = {
        "ok": not any(finding.status.value == "fail" for finding in found),
        "running": running,
        "counts": {status: sum(finding.status.value == status for finding in found) for status in _MARKS},
        "fixed": fixed,
        "checks": [finding.to_json() for finding in found],
    }
    emit(state, report, lambda: _text(report))
    if not report["ok"]:
        context.exit(1)


def checks() -> Mapping[str, tuple[Check, float]]:
    """All of them, in the order in which they are told, with their bounds in seconds."""
    from pylon.daemon import doctor_files as files
    from pylon.daemon import doctor_parts as parts
    from pylon.daemon.doctor import BOUND, PATIENCE

    return {
        "config": (files.config, BOUND),
        "identity": (files.who, BOUND),
        "permissions": (files.modes, BOUND),
        "disk": (files.disk, BOUND),
        "daemon": (files.process, BOUND),
        "database": (files.database, 3 * PATIENCE),
        "backup": (files.backup, BOUND),
        "books": (parts.books, PATIENCE),
        "wallet": (parts.wallet, PATIENCE),
        "agents": (parts.agents, BOUND),
        "relays": (parts.relays, PATIENCE),
        "backends": (parts.backends, BOUND),
        "ports": (parts.ports, BOUND),
    }


async def _examine(home: Home) -> tuple[Sequence[Finding], bool]:
    from pylon import config as configuration
    from pylon.clock import SystemClock
    from pylon.daemon.doctor import admit, examine

    def ask(verb: str, params: Mapping[str, Any], seconds: float) -> Any:
        from pylon.cli.client import call

        return call(home, verb, params, timeout=seconds)

    load = functools.partial(configuration.load, home.config)
    patient = await admit(home, SystemClock(), ask, load, _key_of(home))
    return await examine(patient, checks()), patient.running


def _key_of(home: Home) -> Callable[[], Unlocked] | None:
    """What opens the home without asking anybody: once, for the checks run side by side, and opening takes memory."""
    from pylon import identity
    from pylon.passphrase import from_environment

    try:
        given = from_environment() if identity.is_protected(home) else None
        if identity.is_protected(home) and given is None:
            return None
    except (PylonError, OSError):
        return None  # the check of the identity says why
    one_at_a_time, opened = threading.Lock(), functools.cache(functools.partial(identity.unlock, home, given))

    def unlock() -> Unlocked:
        with one_at_a_time:
            return opened()

    return unlock


def _mend(found: Sequence[Finding]) -> list[str]:
    """Do what can be done; what was done, in words."""
    done = []
    for finding in found:
        if finding.fix is None:
            continue
        try:
            finding.fix()
        except (OSError, PylonError) as error:
            note(f"warning: {finding.detail}: it cannot be mended: {error}")
        else:
            done.append(finding.detail)
    return done


def _text(report: dict[str, Any]) -> str:
    width = max(len(check["check"]) for check in report["checks"])
    lines = [f"fixed: {detail}" for detail in report["fixed"]]
    for check in report["checks"]:
        lines.append(f"[{_MARKS[check['status']]}] {check['check']:<{width}}  {check['detail']}")
        if check["remedy"]:
            lines.append(f"     {'':<{width}}  -> {check['remedy']}")
    counts = report["counts"]
    warnings = f"{counts['warn']} warning{'' if counts['warn'] == 1 else 's'}"
    lines.append(f"{counts['pass']} in order, {warnings}, {counts['fail']} failure{'' if counts['fail'] == 1 else 's'}")
    return "\n".join(lines)
