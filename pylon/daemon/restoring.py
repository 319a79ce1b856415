"""A home out of a backup (``pylon.daemon.backup``), or with another database.

A restored home is not the home that it was: money may have moved since. So it is frozen, its open payments are marked
as unknown until the wallet has been asked, and the epoch of its agents is raised, under a new name of the instance.
Once a daemon has found out what became of all of it, the freeze ends (``pylon.daemon.thawing``), unless it is to stay.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import shutil
import sqlite3
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from pylon import identity
from pylon.clock import Clock
from pylon.daemon import backup
from pylon.daemon.backup import COPIES, SIMNET, TOKEN, WALLET, Told, quiet
from pylon.daemon.sealed_file import Lock, lock_of, read_sealed
from pylon.errors import BackupError, IdentityError, StoreError
from pylon.files import put_private, sync_directory, write_private
from pylon.host import acting
from pylon.host.agents import action_records
from pylon.host.registry import RESTORED
from pylon.host.settings import MONEY
from pylon.identity import Unlocked
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import damage, datakey, freeze, intents, settings
from pylon.store.database import Tx, open_store
from pylon.store.datakey import DataKey
from pylon.store.vault import Vault
from pylon.wallets.history import RESTORED_AT

_VERSIONS = (1, backup.VERSION)
_REASON = "restored from a backup"
_MAX_MANIFEST = 4 << 20
_SQLITE = b"SQLite format 3\x00"
_COPY = re.compile(rf"{COPIES}/[^/\x00.][^/\x00]{{0,254}}")
_MOVED_IN = ("pylon.db", "keys/data.key", SIMNET, TOKEN, WALLET, COPIES)
_LOGS = ("-wal", "-shm")
"""What SQLite keeps beside a database."""


@attrs.frozen
class Restored:
    """What ``restore`` has done."""

    npub: str
    taken_at: float
    """When the backup was made, Unix seconds."""
    protected: bool
    """Whether the backup's passphrase is the home's now, since the home had one before."""
    agents: int
    unknown: int
    """Payments whose outcome is to be asked for."""
    kept: Path | None
    """Where what was here before has gone."""
    config: Path | None = None
    """Where the backup's configuration was written, if it was."""
    stays_frozen: bool = False
    """Whether it is frozen until somebody thaws it."""


def wants(source: Path) -> Lock | None:
    """What opens a backup; ``None``: it is a bare database, which the home that it is for opens. ``BackupError``."""
    try:
        with source.open("rb") as file:
            if file.read(len(_SQLITE)) == _SQLITE:
                return None
            file.seek(0)
            return lock_of(file)
    except OSError as error:
        raise BackupError(f"cannot read {source}: {error.strerror or error}", "name a backup's file") from None


# --- what is to come in -------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class _Opened:
    """What a backup holds beside its files. Its repr is blank."""

    identity: identity.Identity
    key: DataKey
    kept: dict[str, str]
    protected: bool
    config: str | None
    taken_at: float
    files: tuple[tuple[str, int], ...] = ()
    """Names and lengths, in their order."""

    def __repr__(self) -> str:
        return "_Opened(…)"


def expect_room(home: Home, *, force: bool) -> None:
    """Raises ``BackupError`` for a home that has something to lose, unless ``force``."""
    if force or _interrupted(home):
        return
    there = [path for path in (home.mnemonic, home.data_key, home.database) if os.path.lexists(path)]
    if there:
        raise BackupError(
            f"{home.data} is no empty home: {', '.join(path.name for path in there)}",
            "restore into another home, or with --force: what is here is then kept beside",
        )


def _interrupted(home: Home) -> bool:
    return home.restoring.exists() and not home.mnemonic.exists()


def _ready(home: Home) -> Path | None:
    """What an interrupted restore has made ready, but for what it has moved in: the last that came so far."""
    whole = [path.parent for path in home.restoring.glob("*/identity.mnemonic")]
    return max(whole, key=lambda stage: int(stage.name), default=None)


def restore(
    home: Home,
    source: Path,
    passphrase: Passphrase | None,
    clock: Clock,
    *,
    force: bool = False,
    stay_frozen: bool = False,
    told: Told = quiet,
) -> Restored:
    """Make ``home`` what the backup holds. Whoever calls holds the home. Raises ``BackupError``; then all is as it was.

    Everything is gathered in ``.restoring``, then what was here moves out and the new moves in. The phrase goes first
    and comes last: a home between the two has no identity, nothing runs in it, and the same command again completes it.
    Each time gathers in a directory of its own, so that one that fails takes nothing from one that was interrupted.

    :param stay_frozen: until somebody thaws it, and not only until everything is reconciled.
    """
    expect_room(home, force=force)

    def gather(stage: Path) -> tuple[_Opened, Passphrase | None]:
        return _unseal(source, passphrase, stage, told), passphrase

    return _replace(home, gather, clock, stay_frozen)


def restore_database(
    home: Home, source: Path, unlocked: Unlocked, passphrase: Passphrase | None, clock: Clock, *, stay_frozen: bool
) -> Restored:
    """Have ``source`` for a database, as it was copied before an upgrade. For whoever holds the home, and opened it.

    The rest of the home stays. Raises ``BackupError`` for one that is damaged or another's; then all is as it was.
    """
    taken_at = source.stat().st_mtime

    def gather(stage: Path) -> tuple[_Opened, Passphrase | None]:
        with backup.database_copy(source, "the copy") as copy:
            shutil.copyfile(copy, stage / home.database.name)
        (stage / home.database.name).chmod(0o600)
        kept = backup.kept_phrases(home, unlocked)
        protected = identity.is_protected(home)
        return _Opened(unlocked.identity, unlocked.key, kept, protected, None, taken_at), passphrase

    return _replace(home, gather, clock, stay_frozen)


def complete(home: Home) -> None:
    """Move in what an interrupted restore has made ready, if there is such. Whoever calls holds the home.

    For one whose keys were the home's own: there is nothing else that would open it. Raises ``BackupError``.
    """
    stage = _ready(home)
    if stage is None or not _interrupted(home):
        return
    try:
        coming = [name for name in _MOVED_IN if os.path.lexists(stage / name)]
        coming += [path.name for path in stage.glob("identity.mnemonic.*")]
        old = [home.data / name for name in coming]
        if home.database in old:
            _bring_log_home(home.database)
            old += _logs(home.database)
        if home.simnet in old:
            old += _logs(home.simnet)
        if there := [path for path in old if os.path.lexists(path)]:
            aside = _aside(home, time.time())
            for path in there:
                _move(path, aside / path.relative_to(home.data))
        _move_in(home, stage)
    except OSError as error:
        raise BackupError(f"cannot restore into {home.data}: {error.strerror or error}", "do the same again") from None


def _replace(home: Home, gather: Any, clock: Clock, stay_frozen: bool) -> Restored:
    home.prepare()
    interrupted = _interrupted(home)
    before = _ready(home) if interrupted else None
    # After an interrupted one, they may have come as far as its stage.
    froze = before is not None and _operator_froze(before / home.database.name)
    stage = home.restoring / str(1 if before is None else int(before.name) + 1)
    try:
        home.restoring.mkdir(mode=0o700, exist_ok=True)
        for left in home.restoring.iterdir():
            if left != before:
                shutil.rmtree(left, ignore_errors=True)
        stage.mkdir(mode=0o700)
        try:
            opened, passphrase = gather(stage)
            same = _is_here(home, opened.identity)
            froze = froze or ((same or interrupted) and _operator_froze(home.database))
            stay_frozen = stay_frozen or froze
            restored = _prepare(stage, opened, passphrase, clock, stay_frozen)
            stay_frozen = _operator_froze(stage / home.database.name)  # also where the backup's own records say so
        except BaseException:
            shutil.rmtree(stage if interrupted else home.restoring, ignore_errors=True)
            raise
        kept = _move_out(home, stage, same, clock.now())
        config, kept = _restore_config(home, opened.config, same, kept, clock.now())
        _move_in(home, stage)
    except OSError as error:
        raise BackupError(f"cannot restore into {home.data}: {error.strerror or error}", "do the same again") from None
    return attrs.evolve(restored, kept=kept, config=config, stays_frozen=stay_frozen)


def _operator_froze(database: Path) -> bool:
    """Whether the records that go away have a freeze of the operator's own, as far as they can be read."""
    if not database.exists():
        return False
    try:
        damage.expect_sound(database, check_bytes=0)
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = {row[0] for row in connection.execute("SELECT key FROM settings")}
        return freeze.KEY in found and freeze.UNTIL not in found
    except (sqlite3.Error, StoreError):
        return False


def _is_here(home: Home, who: identity.Identity) -> bool:
    """Whether the home is of the same identity already."""
    try:
        return identity.find(home).public.pubkey == who.pubkey
    except IdentityError:
        return False


def _restore_config(
    home: Home, text: str | None, same: bool, kept: Path | None, now: float
) -> tuple[Path | None, Path | None]:
    """Write the configuration; where it was written, and where what it has replaced was put.

    That of a home that was this one already stays, for it is newer, if it reads; that of another home goes with it.
    One that says that everything is elsewhere is put beside, as is one that would take the place of such.
    """
    if text is None:
        return None, kept
    path = home.config
    if os.path.lexists(path):
        if _reads(path) and (same or kept is None or path.read_text(encoding="utf-8") == text):
            return None, kept
        if home.data == home.root:
            kept = kept or _aside(home, now)
            _move(path, kept / path.name)
    try:
        elsewhere = bool(tomllib.loads(text).get("data_dir"))
    except tomllib.TOMLDecodeError:
        elsewhere = False
    if elsewhere or os.path.lexists(path):
        path = path.with_name(f"{path.name}.restored")
    with contextlib.suppress(FileExistsError):
        put_private(path, text.encode(), replace=False)
    return path, kept


def _reads(config: Path) -> bool:
    try:
        tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


# --- reading a backup ---------------------------------------------------------------------------------------------


def _unseal(source: Path, passphrase: Passphrase | None, stage: Path, told: Told) -> _Opened:
    """Read the backup; its files are written to the stage."""
    try:
        with source.open("rb") as file:
            total = os.fstat(file.fileno()).st_size

            def content() -> Iterator[bytes]:
                for piece in read_sealed(file, passphrase):
                    told("reading the backup", file.tell(), total)
                    yield piece

            reading = _Reading(content())
            opened = _read_manifest(reading)
            for name, length in opened.files:
                _write_file(stage / name, reading, length)
            if reading.rest():
                raise BackupError("the backup holds more than it says", "take another copy of the file")
    except OSError as error:
        raise BackupError(f"cannot read {source}: {error.strerror or error}", "name a backup's file") from None
    return opened


class _Reading:
    """Takes content in lengths that are asked for."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self._content = content
        self._waiting = b""

    def take(self, length: int) -> Iterator[bytes]:
        """Pieces of exactly ``length`` bytes together, or ``BackupError``."""
        while length:
            piece = self._waiting or next(self._content, b"")
            if not piece:
                raise BackupError("what the backup holds is cut short", "take another copy of the file")
            self._waiting = piece[length:]
            length -= len(piece) - len(self._waiting)
            yield piece[: len(piece) - len(self._waiting)]

    def rest(self) -> bool:
        """Whether there is more. To be asked in any case: the end of what is sealed is checked with it."""
        return bool(self._waiting) or any(self._content)


def _read_manifest(reading: _Reading) -> _Opened:
    length = int.from_bytes(b"".join(reading.take(4)), "big")
    if length > _MAX_MANIFEST:
        raise BackupError("what the backup holds does not read", "upgrade Pylon")
    raw = b"".join(reading.take(length))
    try:
        value: Any = orjson.loads(raw)
        if value["version"] not in _VERSIONS:
            raise BackupError(
                f"the backup has version {value['version']}, this Pylon reads up to {backup.VERSION}", "upgrade Pylon"
            )
        kept = {str(name): str(text) for name, text in value["kept"].items()}
        if not all(name.startswith("identity.mnemonic.") and "/" not in name for name in kept):
            raise ValueError
        files = [(str(entry["name"]), int(entry["bytes"])) for entry in value.get("files", ())]
        if not all(name in (SIMNET, TOKEN, WALLET) or _COPY.fullmatch(name) for name, _ in files):
            raise ValueError
        if database_bytes := int(value["database_bytes"]):
            files.insert(0, ("pylon.db", database_bytes))
        if any(size < 0 for _, size in files) or len(dict(files)) != len(files):
            raise ValueError
        return _Opened(
            identity=identity.from_phrase(value["phrase"]),
            key=DataKey(bytes.fromhex(value["data_key"])),
            kept=kept,
            protected=bool(value["protected"]),
            config=None if value["config"] is None else str(value["config"]),
            taken_at=float(value["taken_at"]),
            files=tuple(files),
        )
    except BackupError:
        raise
    except Exception as error:
        raise BackupError(f"what the backup holds does not read ({type(error).__name__})", "upgrade Pylon") from None


def _write_file(path: Path, reading: _Reading, length: int) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for piece in reading.take(length):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


# --- making it ready ----------------------------------------------------------------------------------------------


def _prepare(stage: Path, opened: _Opened, passphrase: Passphrase | None, clock: Clock, stay_frozen: bool) -> Restored:
    """Put keys and phrases on the stage, and the database into the state in which a restored one begins."""
    wrapped = passphrase if opened.protected else None
    unlocked = Unlocked(opened.identity, opened.key)
    (stage / "keys").mkdir(mode=0o700, exist_ok=True)
    write_private(stage / "keys" / "data.key", datakey.content(opened.key, wrapped))
    for name, text in opened.kept.items():
        content = identity.sealed_text(text, unlocked.vault) if wrapped else f"{text.rstrip()}\n".encode()
        write_private(stage / name, content)
    # A home without records yet gets a database too, for the freeze.
    agents, unknown = trio.run(_open_and_mark, stage / "pylon.db", unlocked.vault, clock, stay_frozen)
    for end in _LOGS:
        (stage / f"pylon.db{end}").unlink(missing_ok=True)  # empty: closing the store has brought the log home
    # Last: a stage that has it is whole (``complete``).
    phrase = identity.sealed_content(opened.identity, unlocked.vault) if wrapped else None
    write_private(stage / "identity.mnemonic", phrase or identity.plain_content(opened.identity))
    # What is here moves out only once a power cut takes nothing of this.
    for directory in (stage / "keys", stage, stage.parent):
        sync_directory(directory)
    return Restored(opened.identity.npub, opened.taken_at, opened.protected, agents, unknown, None)


async def _open_and_mark(path: Path, vault: Vault, clock: Clock, stay_frozen: bool) -> tuple[int, int]:
    async with open_store(path, vault=vault, clock=clock) as store:
        return await store.write(lambda tx: _begin_anew(tx, stay_frozen))


def _begin_anew(tx: Tx, stay_frozen: bool = False) -> tuple[int, int]:
    """Freeze, mark what is open as unknown, give up what was to be paid, close wallet connections, raise the epochs.

    How many agents and payments there are.
    """
    now = tx.clock.now()
    pending = intents.pending(tx)
    if stay_frozen:
        freeze.freeze(tx, f"{_REASON}: look at the books, then thaw", now)
    else:
        # All of these are waited for, also where the clock that they were made by was ahead of this one.
        freeze.freeze_until_reconciled(tx, _REASON, max([now, *(intent.created_at for intent in pending)]))
    for intent in pending:
        intents.mark_unknown(tx, intent.id, error="the home was restored from a backup", at=now)
    _give_up(tx, now)
    # Some may have been closed since, and what they have spent since is not known here: new ones are cheap.
    tx.execute("UPDATE wallet_connections SET closed_at = ? WHERE closed_at IS NULL", (now,))
    # What the wallets have sent since the backup was another's doing: it is booked as outside.
    settings.put(tx, RESTORED_AT, str(now))
    instance = secrets.token_hex(8)
    settings.put(tx, "instance", instance)
    rows = tx.all("SELECT id FROM agents WHERE deleted_at IS NULL AND moved = ''")
    for row in rows:
        tx.execute("UPDATE agents SET epoch = epoch + 1, instance = ? WHERE id = ?", (instance, row["id"]))
        settings.put(tx, RESTORED + row["id"], str(now))
    return len(rows), len(pending)


def _give_up(tx: Tx, now: float) -> None:
    """What agents were about to pay, and no intent names yet: no wallet can be asked whether it was paid since."""
    actions = action_records(tx)
    why = f"{_REASON}: it may have been paid since"
    for action in list(actions.where(tx, "state IN ('waiting', 'preparing')")):  # but for those that do not read
        if action.kind in MONEY:
            actions.step(tx, action.id, acting.Denied(why) if action.at_rest else acting.Missed(why), now)


# --- moving -------------------------------------------------------------------------------------------------------


def _move_out(home: Home, stage: Path, same: bool, now: float) -> Path | None:
    """Put what is here beside, the phrase first. ``None``: there was nothing.

    A simnet ledger that knows who comes stays: it is to the home what a wallet's server is, and that goes on, too.
    """
    candidates = [
        home.mnemonic,
        home.database,
        *_logs(home.database),
        home.data_key,
        *identity.kept_files(home),
    ]
    candidates += [home.data / name for name in (TOKEN, WALLET) if (stage / name).exists()]
    if not same or (stage / COPIES).exists():
        candidates.append(home.data / COPIES)
    if (stage / SIMNET).exists():
        if _knows(home.simnet, stage):
            (stage / SIMNET).unlink()
        else:
            candidates += [home.simnet, *_logs(home.simnet)]
    there = [path for path in candidates if os.path.lexists(path)]
    if not there:
        return None
    _bring_log_home(home.database)
    aside = _aside(home, now)
    for path in there:
        _move(path, aside / path.relative_to(home.data))
    sync_directory(home.data)
    return aside


def _aside(home: Home, now: float) -> Path:
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, number = home.data / f"replaced-{stamp}", 1
    while os.path.lexists(aside):
        number += 1
        aside = home.data / f"replaced-{stamp}-{number}"
    aside.mkdir(mode=0o700)
    (aside / "keys").mkdir(mode=0o700)
    return aside


def _move(path: Path, target: Path) -> None:
    if os.path.lexists(path):
        os.rename(path, target)
        sync_directory(path.parent)
        sync_directory(target.parent)


def _knows(ledger: Path, stage: Path) -> bool:
    """Whether the ledger that is here is whole, and has all accounts of the one that would come."""
    if not ledger.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=rw", uri=True)) as here:
            if here.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                return False
            known = {row[0] for row in here.execute("SELECT account FROM accounts")}
        with contextlib.closing(sqlite3.connect(stage / SIMNET)) as coming:
            return {row[0] for row in coming.execute("SELECT account FROM accounts")} <= known
    except sqlite3.Error:
        return False
    finally:
        for path in _logs(stage / SIMNET):
            path.unlink(missing_ok=True)


def _logs(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in _LOGS]


def _bring_log_home(database: Path) -> None:
    """Have the old database in one file; where that fails, its log moves with it."""
    with contextlib.suppress(sqlite3.Error, StoreError):
        damage.expect_sound(database, check_bytes=0)
        if database.exists():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _move_in(home: Home, stage: Path) -> None:
    """The phrase last."""
    for name in _MOVED_IN:
        if os.path.lexists(stage / name):
            os.rename(stage / name, home.data / name)
    for path in sorted(stage.glob("identity.mnemonic.*")):
        os.rename(path, home.data / path.name)
    sync_directory(home.keys)
    sync_directory(home.data)
    os.rename(stage / "identity.mnemonic", home.mnemonic)
    sync_directory(home.data)
    shutil.rmtree(home.restoring, ignore_errors=True)
