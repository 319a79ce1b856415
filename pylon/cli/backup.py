"""``pylon backup`` and ``pylon restore``: a home in one file, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pylon.cli.identity import descriptor_option
from pylon.cli.output import State, emit, home_passphrase_option, json_option, note, pass_state
from pylon.cli.unlock import OPEN, home_passphrase, typed, unlock
from pylon.errors import NotRunning, UsageError

if TYPE_CHECKING:
    from pylon.passphrase import Passphrase

_TELL_EVERY = 2.0
"""Seconds between two words about how far it is; what takes less says nothing."""
_BACKUP_FD = "--backup-passphrase-fd 3 3< FILE"


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option(
    "--keep", type=click.IntRange(1, 10_000), metavar="N", help="In a directory: keep this home's newest N, no more."
)
@click.option("--own-passphrase", is_flag=True, help="Seal it with a passphrase of its own, which is asked for.")
@descriptor_option("--backup-passphrase-fd", "The same, read from file descriptor N.")
@home_passphrase_option
@json_option
@pass_state
def backup(
    state: State, file: str | None, keep: int | None, own_passphrase: bool, backup_passphrase_fd: int | None
) -> None:
    """Write phrase, data key, configuration, database and what else the home needs to the new FILE (0600).

    Where FILE is a directory, the file is named after home and time; without FILE it goes to home-backups/ in the home,
    which helps against mistakes, not against a disk that dies. A daemon may run meanwhile; the file is read again
    before it gets its name. It is sealed by the home's passphrase, if there is one: a running daemon does not ask for
    it. Logs, models and the embedded relay's events are not in it.
    """
    write_backup(state, file, keep=keep, own=own_passphrase, descriptor=backup_passphrase_fd)


@click.command()
@click.argument("file", metavar="FILE")
@click.option("-f", "--force", is_flag=True, help="Replace the identity that is here; it is kept beside.")
@click.option("--stay-frozen", is_flag=True, help="Do not thaw once everything is reconciled: pylon wallet thaw does.")
@descriptor_option("--backup-passphrase-fd", "Read the backup's passphrase from file descriptor N.")
@home_passphrase_option
@json_option
@pass_state
def restore(state: State, file: str, force: bool, stay_frozen: bool, backup_passphrase_fd: int | None) -> None:
    """Make this home what the backup FILE holds; or give it the database FILE, a copy from before an upgrade.

    What is here is moved beside, and never deleted. Spending is frozen until the next start has found out what became
    of the payments that were open; agents that still run elsewhere will be parked there. A home that had a passphrase
    has that of the backup now.
    """
    bring_back(state, file, force=force, stay_frozen=stay_frozen, descriptor=backup_passphrase_fd)


# --- out ----------------------------------------------------------------------------------------------------------


def write_backup(state: State, file: str | None, *, keep: int | None, own: bool, descriptor: int | None) -> None:
    """``pylon backup``. ``own``: sealed with a passphrase of its own, from ``descriptor`` or asked for."""
    from pylon.clock import SystemClock
    from pylon.daemon import backup as backups
    from pylon.identity import find

    home, now = state.home, SystemClock().now()
    npub = find(home).public.npub
    directory = backups.own_directory(home) if file is None else Path(file).absolute()
    named = file is not None and not directory.is_dir()
    if named and keep is not None:
        raise UsageError("--keep wants a directory, for it is about several files", "name a directory, or leave it out")
    if file is None:
        directory.mkdir(mode=0o700, exist_ok=True)
    target = directory if named else directory / backups.file_name(npub, now)
    _expect_new(target)
    progress = _Progress(state)
    if own or descriptor is not None:
        words = _new(descriptor)
        done = backups.back_up(home, unlock(state), target, words, now=now, told=progress)
        sealed, length = "own", done.length
    else:
        fetched = None if _can_open(state) else _by_daemon(state, target, now, progress)
        if fetched is None:
            unlocked = unlock(state)
            seal = backups.home_seal(home, unlocked)
            done = backups.back_up(home, unlocked, target, seal, now=now, told=progress)
            fetched = seal.lock.value, done.length
        sealed, length = fetched
    removed = [] if keep is None else backups.rotate(directory, npub, keep, target)
    report = {
        "path": str(target),
        "bytes": length,
        "npub": npub,
        "sealed": sealed,
        "removed": [str(path) for path in removed],
    }
    if sealed == "open":
        note("WARNING: this backup is NOT SEALED. Whoever reads it has the identity and its money.")
        note("hint: --own-passphrase seals one; pylon identity passphrase protects the home, and its backups with it")
    emit(state, report, str(target))
    if not state.json:
        note(f"hint: keep a copy away from here: pylon restore {target.name} brings it back")


def _can_open(state: State) -> bool:
    """Whether this command opens the home without asking anybody."""
    from pylon import passphrase
    from pylon.identity import is_protected

    return state.passphrase_fd is not None or not is_protected(state.home) or passphrase.is_given()


def _by_daemon(state: State, target: Path, now: float, progress: _Progress) -> tuple[str, int] | None:
    """Have the daemon write it, which asks nobody, and fetch it; ``None``: none runs."""
    from pylon.cli.client import call
    from pylon.daemon import backup as backups

    try:
        report = call(state.home, "backup", {}, on_progress=progress.notified, timeout=None)
    except NotRunning:
        return None
    backups.fetch(state.home, Path(report["path"]), target, report["sha256"], now=now)
    return report["sealed"], report["bytes"]


def _expect_new(target: Path) -> None:
    """Before a passphrase is asked for: whether the file can be made."""
    import os

    if os.path.lexists(target):
        raise UsageError(f"{target} is there already, and is not overwritten", "name a new file")
    if not target.parent.is_dir():
        raise UsageError(f"there is no directory {target.parent}", "make it first, or name another")


def _new(descriptor: int | None) -> Passphrase:
    from pylon.passphrase import from_descriptor

    if descriptor is not None:
        return from_descriptor(descriptor)
    return typed("Passphrase of the backup", "", new=True, option=_BACKUP_FD)


class _Progress:
    """How far it is, on stderr, of what takes long."""

    def __init__(self, state: State) -> None:
        self._quiet = state.json
        self._next = time.monotonic() + _TELL_EVERY

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_EVERY
        share = f": {100 * done // total} % of {total / (1 << 20):,.0f} MiB" if total else ""
        note(f"{what}{share}")

    def notified(self, method: str, params: Any) -> None:
        if method == "progress" and isinstance(params, dict):
            self(str(params.get("what", "")), int(params.get("done", 0)), int(params.get("total", 0)))


# --- in -----------------------------------------------------------------------------------------------------------


def bring_back(state: State, file: str, *, force: bool, stay_frozen: bool, descriptor: int | None) -> None:
    """``pylon restore``."""
    from pylon.clock import SystemClock
    from pylon.daemon import restoring
    from pylon.daemon.process import hold_home
    from pylon.daemon.sealed_file import Lock

    source = Path(file).absolute()
    if not source.is_file():
        raise UsageError(f"there is no file {file}", "name a backup's file")
    lock = restoring.wants(source)
    with hold_home(state.home):
        if lock is None:
            restoring.complete(state.home)
            words = home_passphrase(state)
            done = restoring.restore_database(
                state.home, source, unlock(state), words, SystemClock(), stay_frozen=stay_frozen
            )
        else:
            restoring.expect_room(state.home, force=force)
            given = None if lock is Lock.OPEN else _passphrase_of(state, file, descriptor, home=lock is Lock.HOME)
            done = restoring.restore(
                state.home,
                source,
                given,
                SystemClock(),
                force=force,
                stay_frozen=stay_frozen,
                told=_Progress(state),
            )
    report = {
        "npub": done.npub,
        "taken_at": done.taken_at,
        "passphrase": done.protected,
        "agents": done.agents,
        "unknown_payments": done.unknown,
        "frozen": True,
        "until": None if done.stays_frozen else "reconciled",
        "config": None if done.config is None else str(done.config),
        "kept": None if done.kept is None else str(done.kept),
    }
    emit(state, report, lambda: _restored(report))


def _passphrase_of(state: State, file: str, descriptor: int | None, *, home: bool) -> Passphrase:
    """The backup's. Of one that is sealed as its home was, whatever gives the home's gives it, too."""
    from pylon import passphrase

    if descriptor is None and home:
        descriptor = state.passphrase_fd
        if descriptor is None and (found := passphrase.from_environment()) is not None:
            return found
    if descriptor is not None:
        return passphrase.from_descriptor(descriptor)
    if home:
        return typed("Passphrase that the home had", file, option="that of the home: --passphrase-fd 3 3< FILE")
    return typed("Passphrase of the backup", file, option=_BACKUP_FD)


def _restored(report: dict[str, Any]) -> str:
    taken = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report["taken_at"]))
    lines = [
        f"This home is {report['npub']} again, as of {taken}.",
        f"agents: {report['agents']}; payments whose outcome is unknown: {report['unknown_payments']}",
        "passphrase: that of the backup" if report["passphrase"] else f"passphrase: {OPEN}",
    ]
    if report["until"]:
        lines.append("Spending is frozen, until a daemon has found out what has moved since. Next: pylon start")
        lines.append("If the old home still runs, stop it first: two that spend from one wallet know nothing of it.")
    else:
        lines.append("Spending is frozen. Next: pylon start, pylon books --check, then pylon wallet thaw")
    if report["config"] and report["config"].endswith(".restored"):
        lines.append(f"The backup's configuration is beside: look at {report['config']}; config.toml is as it was")
    if report["kept"]:
        lines.append(f"What was here before is kept in {report['kept']}: money may hang on it.")
    return "\n".join(lines)
