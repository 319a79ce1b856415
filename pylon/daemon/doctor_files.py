"""``pylon doctor``: what lies on the disk. Nothing here wants a passphrase, and nothing but a ``fix`` writes."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from pylon import config as configuration
from pylon import identity
from pylon.api.token import token_path
from pylon.daemon.backup import own_directory
from pylon.daemon.doctor import Finding, Patient, failed, passed, warned
from pylon.daemon.nwc_home import uri_file
from pylon.daemon.process import hold_home, read_pid
from pylon.errors import StoreError
from pylon.files import others
from pylon.paths import Home
from pylon.store import damage, remedy, upgrade_copies
from pylon.store.schema import APPLICATION_ID, MIGRATIONS

_FEW_BYTES, _TOO_FEW_BYTES = 500 << 20, 50 << 20
_LARGE_LOG = 256 << 20
"""A write-ahead log that a running daemon should have folded back long ago."""
_MOST_TOLD = 5
_VARIABLES = {
    "PYLON_API_TOKEN",
    "PYLON_CONTROL",
    "PYLON_CRASH_AT",
    "PYLON_DEBUG",
    "PYLON_HOME",
    "PYLON_LOCKS",
    "PYLON_MODELS",
    "PYLON_NWC_URI",
    "PYLON_PASSPHRASE_FILE",
}
"""Of no key."""


async def config(patient: Patient) -> Sequence[Finding]:
    """Whether a daemon could start with it."""
    file = patient.home.config
    if patient.config_error is not None:
        return [
            failed("config", problem, f"pylon config set KEY VALUE, or edit {file}")
            for problem in patient.config_error.message.splitlines()
        ]
    assert patient.loaded is not None, "loaded, or wrong"
    loaded = patient.loaded
    found = [warned("config", warning, f"pylon config show; edit {file}") for warning in loaded.warnings]
    found += [_misspelt(name, meant) for name, meant in misspelt(os.environ)]
    found += [warned("config", warning, "pylon config unset data_dir") for warning in patient.home.warnings]
    where = str(file) if file.exists() else f"no {file}: the defaults hold"
    return [passed("config", f"{where}; network {loaded.config.network}"), *found]


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that look like those of a key, and are none; each with the one that may have been meant."""
    keys = [configuration.variable(key) for key in configuration.known_keys() if key != ("data_dir",)]
    ours = {*keys, *_VARIABLES}
    strangers = [name for name in environ if name.startswith("PYLON_") and name not in ours]
    close = [(name, difflib.get_close_matches(name, ours, n=1, cutoff=0.88)) for name in strangers]
    return [(name, meant[0]) for name, meant in close if meant]


def _misspelt(name: str, meant: str) -> Finding:
    return warned("config", f"the variable {name} means nothing", f"did you mean {meant}? unset {name}")


async def who(patient: Patient) -> Sequence[Finding]:
    """The identity, and the key that its records are sealed with."""
    home = patient.home
    if not home.mnemonic.exists():
        if home.restoring.exists():
            return [failed("identity", "a restore was interrupted", "the same pylon restore again")]
        return [failed("identity", f"there is no {home.mnemonic}", "pylon init; pylon restore FILE, from a backup")]
    found = identity.find(home)
    if not home.data_key.exists() and (found.sealed or home.database.exists()):
        remedy = "restore keys/data.key from your backup: pylon restore --force FILE"
        return [failed("identity", f"{home.data_key} is not there, and records are sealed with it", remedy)]
    findings = [passed("identity", f"{found.public.npub}" + (", behind a passphrase" if found.protected else ""))]
    real = patient.loaded is not None and patient.loaded.config.network == "mainnet"
    if real and not found.protected:
        findings.append(
            warned("identity", "no passphrase guards a wallet with real money", "pylon identity passphrase")
        )
    return findings


async def modes(patient: Patient) -> Sequence[Finding]:
    """Who may read what."""
    home = patient.home
    if not home.root.exists():
        return [passed("permissions", f"{home.root} is not there yet")]
    nwc = None if patient.loaded is None else uri_file(home, patient.loaded.config)
    found = [finding for path, secret in _private(home, nwc) if (finding := _mode(path, secret)) is not None]
    if not found:
        return [passed("permissions", "nobody else can read this home")]
    if len(found) > _MOST_TOLD:
        rest = found[_MOST_TOLD:]
        told = warned("permissions", f"and {len(rest)} more", "pylon doctor --fix", functools.partial(_all, rest))
        return [*found[:_MOST_TOLD], told]
    return found


def _all(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.fix is not None:
            finding.fix()


def _private(home: Home, nwc: Path | None) -> Iterator[tuple[Path, bool]]:
    """What others must not read, and whether it holds a secret."""
    secrets_ = [home.mnemonic, token_path(home), home.cookie, *home.data.glob(f"{home.mnemonic.name}.*")]
    if home.keys.is_dir():
        secrets_ += list(home.keys.iterdir())
    if (backups := own_directory(home)).is_dir():
        secrets_ += list(backups.iterdir())
    if nwc is not None:
        secrets_.append(nwc)
    yield from ((path, True) for path in dict.fromkeys(secrets_))
    yield from ((path, True) for path in (home.root, home.data, home.keys) if path.is_dir())
    less = [
        *upgrade_copies.copies(home.database),
        home.config,
        home.simnet,
        home.relay_database,
        home.database,
        home.logs,
        home.spark,
    ]
    less += [home.database.with_name(home.database.name + end) for end in ("-wal", "-shm")]
    if home.logs.is_dir():
        less += list(home.logs.iterdir())
    yield from ((path, False) for path in less)


def _mode(path: Path, secret: bool) -> Finding | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return failed(
            "permissions", f"{path} belongs to user {found.st_uid}, not to you", f"chown {os.getuid()} {path}"
        )
    mode = stat.S_IMODE(found.st_mode)
    wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
    if not others(mode) and mode & wanted == wanted:
        return None
    what = f"{path} is open to others (mode {mode:04o})" if others(mode) else f"{path} is closed to you ({mode:04o})"
    tell = failed if secret or not others(mode) else warned
    return tell(
        "permissions", what, f"chmod {wanted:o} {path}; or pylon doctor --fix", functools.partial(path.chmod, wanted)
    )


async def disk(patient: Patient) -> Sequence[Finding]:
    """Room, and whether it can be written."""
    data = patient.home.data
    there = next(path for path in (data, *data.parents) if path.exists())
    usage = shutil.disk_usage(there)
    free = f"{usage.free / (1 << 30):,.1f} GiB free of {usage.total / (1 << 30):,.1f}"
    findings = []
    if usage.free < _TOO_FEW_BYTES:
        findings.append(failed("disk", f"{there} is full: {free}", "make room; paid work stops until there is"))
    elif usage.free < _FEW_BYTES:
        findings.append(warned("disk", f"{there} is nearly full: {free}", "make room"))
    if data.exists():
        trouble = await trio.to_thread.run_sync(_cannot_write, data, abandon_on_cancel=True)
        if trouble:
            remedy = f"make {data} writable for you: mount it for writing, chown, chmod"
            findings.append(failed("disk", f"{data} cannot be written: {trouble}", remedy))
    return findings or [passed("disk", free)]


def _cannot_write(directory: Path) -> str:
    """Why not; or nothing."""
    probe = directory / f".doctor.{secrets.token_hex(4)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, b"x" * 4_096)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


# --- the process ------------------------------------------------------------------------------------------------------


async def process(patient: Patient) -> Sequence[Finding]:
    """Whether a daemon runs, and what one that died has left."""
    home = patient.home
    if patient.running:
        if patient.silence:
            pid = read_pid(home)
            remedy = "pylon stop -f" if pid is None else f"pylon stop -f; or kill {pid}; then see logs/pylon.log"
            return [failed("daemon", f"it listens, and does not answer: {patient.silence}", remedy)]
        findings = [passed("daemon", f"it runs (pid {patient.says().get('daemon', {}).get('pid')})")]
        findings += [_quarantined(entry) for entry in patient.says().get("quarantined", [])]
        findings += [
            warned("daemon", f"it does not tell of {part}: {why}", "pylon status, again; see logs/pylon.log")
            for part, why in patient.says().get("incomplete", {}).items()
        ]
        closed = (patient.says().get("provider") or {}).get("closed")
        if closed:
            findings.append(failed("daemon", f"no paid work is taken: {closed}", "make room, and it goes on by itself"))
        off = patient.says().get("daemon", {}).get("provider_off")
        if off:
            findings.append(warned("daemon", f"nothing is sold: {off}", "pylon compute; pylon models pull"))
        return findings
    if not home.data.is_dir():
        return [passed("daemon", "none runs")]
    if patient.holder is not None:
        told = f"process {patient.holder} holds this home, and does not listen (yet)"
        return [warned("daemon", told, "pylon status, soon; pylon stop -f if it stays so")]
    left = _left(home)
    if left:
        names = " and ".join(path.name for path in left)
        remedy = "pylon doctor --fix; the next start also replaces them"
        return [warned("daemon", f"none runs, and one that died has left {names}", remedy, lambda: _sweep(home))]
    return [passed("daemon", "none runs")]


def _quarantined(entry: Mapping[str, Any]) -> Finding:
    """What has failed so often that it is not started again by itself."""
    agent, name, why = entry.get("agent"), entry.get("name"), entry.get("last_error")
    if agent:
        remedy = f"mend the cause; pylon agent pause {agent}; pylon agent resume {agent}"
        return failed("daemon", f"{name} of {agent} is quarantined: {why}", remedy)
    return failed("daemon", f"{name} is quarantined: {why}", "mend the cause; pylon stop; pylon start")


def _left(home: Home) -> list[Path]:
    return [path for path in (home.socket, home.cookie, home.pid) if os.path.lexists(path)]


def _sweep(home: Home) -> None:
    """Remove what a dead daemon has left, as the one who holds the home."""
    with hold_home(home):
        for path in (home.socket, home.cookie, home.pid):
            path.unlink(missing_ok=True)


# --- the database -----------------------------------------------------------------------------------------------------


async def database(patient: Patient) -> Sequence[Finding]:
    """Whether it is whole, and of a version that this Pylon knows."""
    path = patient.home.database
    log = path.with_name(path.name + "-wal")
    if not path.exists() and not log.exists():
        return [passed("database", "made at the first start")]
    return await trio.to_thread.run_sync(_look_into, path, abandon_on_cancel=True)


def _look_into(path: Path) -> Sequence[Finding]:
    way_back = remedy.restore(path)
    try:
        with contextlib.closing(read_only(path)) as database:
            whole = database.execute("PRAGMA quick_check(3)").fetchall()
            if whole != [("ok",)]:
                return [failed("database", f"{path} is damaged: {str(whole[0][0]).splitlines()[-1][:200]}", way_back)]
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                return [failed("database", f"{path} is no database of Pylon's", "name another home with --home")]
            strays = database.execute("PRAGMA foreign_key_check").fetchmany(3)
            applied = {row[0] for row in database.execute("SELECT name FROM _sqlite_migrations")}
    except StoreError as error:
        return [failed("database", error.message, error.hint)]
    except sqlite3.OperationalError as error:
        return [failed("database", f"{path} cannot be read: {error}", "check its owner and mode, and who else has it")]
    except sqlite3.DatabaseError as error:
        return [failed("database", f"{path} is damaged: {error}", way_back)]
    known = {migration.name for migration in MIGRATIONS}
    if applied - known:
        newer = "upgrade Pylon, or restore the backup made before the upgrade"
        return [
            failed("database", f"{path} was made by a newer Pylon: {', '.join(sorted(applied - known))[:200]}", newer)
        ]
    if strays:
        return [failed("database", f"{path}: rows of {strays[0][0]} refer to what is not there", way_back)]
    log = path.with_name(path.name + "-wal")
    size = f"{path.stat().st_size / (1 << 20):,.1f} MiB, {len(applied)} migrations"
    if known - applied:
        size += f", {len(known - applied)} more at the next start"
    findings = [passed("database", f"whole, {size}")]
    if log.exists() and log.stat().st_size > _LARGE_LOG:
        told = f"its write-ahead log has {log.stat().st_size / (1 << 20):,.0f} MiB"
        findings.append(warned("database", told, "restart the daemon: pylon stop; pylon start"))
    return findings


_OLD_BACKUP = 30 * 86_400.0


async def backup(patient: Patient) -> Sequence[Finding]:
    """Whether there is a way back. On simnet nothing is lost that matters."""
    if not patient.home.mnemonic.exists():
        return []
    known, remedy_ = remedy.newest(patient.home.data), "pylon backup DIRECTORY, on another disk"
    if known is None:
        if patient.loaded is not None and patient.loaded.config.network == "simnet":
            return [passed("backup", "none is known of; on simnet nothing is lost with it")]
        return [warned("backup", "no backup of this home is known of", remedy_)]
    path, at = known
    days = max(0.0, patient.clock.now() - at) / 86_400
    told = f"{path}, {days:,.0f} days old" + ("" if path.exists() else ", and not here now")
    if days * 86_400 > _OLD_BACKUP:
        return [warned("backup", f"the newest is {told}", remedy_)]
    return [passed("backup", told)]


def read_only(path: Path) -> sqlite3.Connection:
    """The database as it is, whoever else has it open; nothing is made, changed or migrated.

    By ``query_only`` and not by ``mode=ro``: SQLite does not read the CHECKs of a database that it has opened so, and
    then finds nothing against rows that break them. Raises ``StoreError`` for one that is damaged: SQLite would write
    home what it understands of it.
    """
    damage.expect_sound(path, check_bytes=0)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5.0)
    connection.execute("PRAGMA query_only = ON")
    return connection
