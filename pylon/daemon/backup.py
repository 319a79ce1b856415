"""A home in one sealed file, and back.

A backup holds the phrase, phrases that were put aside, the data key, ``config.toml`` and the database as of one moment;
a passphrase of its own seals it. Spark's storage, models, logs, the embedded relay's events and simnet's ledger are not
in it: the first comes back from the phrase.

A restored home is not the home that it was: money may have moved since. So it is frozen, its open payments are marked
as unknown until the wallet has been asked, and the epoch of its agents is raised, under a new name of the instance.
"""

from __future__ import annotations

import contextlib
import datetime
import os
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
from pylon.daemon.sealed_file import FRAME_BYTES, read_sealed, write_sealed
from pylon.errors import BackupError, IdentityError
from pylon.files import draft_prefix, publish, put_private, sync_directory, write_private
from pylon.host.registry import RESTORED
from pylon.identity import Unlocked
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import datakey, freeze, intents, settings
from pylon.store.database import Tx, open_store
from pylon.store.datakey import DataKey
from pylon.store.vault import Vault
from pylon.wallets.history import RESTORED_AT

VERSION = 1
_REASON = "restored from a backup: look at the books, then thaw"
_MAX_MANIFEST = 4 << 20
_DAY = 86_400.0


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


# --- out ----------------------------------------------------------------------------------------------------------


def back_up(home: Home, unlocked: Unlocked, target: Path, passphrase: Passphrase, *, now: float) -> int:
    """Write ``target``, a new file of mode 0600, and read it again. Returns its length.

    Works beside a running daemon: SQLite copies the database as of one moment. Raises ``BackupError``.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _database_copy(home) as copy:
            manifest = _manifest(home, unlocked, 0 if copy is None else copy.stat().st_size, now)
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w+b") as file:
                write_sealed(file, passphrase, _content(manifest, copy))
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                for _ in read_sealed(file, passphrase):
                    pass
                length = file.tell()
        publish(draft, target)
    except FileExistsError:
        raise BackupError(f"{target} is there already, and is not overwritten", "name a new file") from None
    except OSError as error:
        raise BackupError(f"cannot write {target}: {error.strerror or error}", "name another file") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return length


@contextlib.contextmanager
def _database_copy(home: Home) -> Iterator[Path | None]:
    """The database as of one moment, beside it, for the block; ``None``: there is none yet."""
    if not home.database.exists():
        yield None
        return
    _sweep_copies(home)
    copy = home.data / f"{draft_prefix(home.database)}{secrets.token_hex(8)}"
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(home.database, timeout=30)) as source:
            with contextlib.closing(sqlite3.connect(copy)) as target:
                # All pages in one step: a writer meanwhile neither waits nor makes it begin anew.
                source.backup(target, pages=-1)
                # The copy's own journal would be a second file.
                target.execute("PRAGMA journal_mode = DELETE").fetchone()
                if (said := target.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise BackupError(f"the database {home.database} is damaged: {said}", "restore an older backup")
        yield copy
    except sqlite3.Error as error:
        raise BackupError(f"the database {home.database} cannot be copied: {error}", "pylon books --check") from None
    finally:
        for path in (copy, copy.with_name(copy.name + "-journal")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _sweep_copies(home: Home) -> None:
    """Copies that a killed backup has left: those of another one that runs now are younger than a day."""
    for path in home.data.glob(f"{draft_prefix(home.database)}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()


def _manifest(home: Home, unlocked: Unlocked, database_bytes: int, now: float) -> bytes:
    kept = {}
    for path in identity.kept_files(home):
        text = identity.read(path, home)
        with contextlib.suppress(IdentityError):  # sealed by another key: there is nothing to keep of it
            kept[path.name] = identity.opened_text(text, path, unlocked.vault) if identity.is_sealed(text) else text
    config = None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        config = home.config.read_text(encoding="utf-8")
    return orjson.dumps(
        {
            "version": VERSION,
            "taken_at": now,
            "phrase": unlocked.identity.reveal_phrase(),
            "kept": kept,
            "data_key": unlocked.key.reveal().hex(),
            "protected": identity.is_protected(home),
            "config": config,
            "database_bytes": database_bytes,
        }
    )


def _content(manifest: bytes, database: Path | None) -> Iterator[bytes]:
    yield len(manifest).to_bytes(4, "big") + manifest
    if database is not None:
        with database.open("rb") as file:
            while piece := file.read(FRAME_BYTES):
                yield piece


# --- in -----------------------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class _Opened:
    """What a backup holds beside the database. Its repr is blank."""

    identity: identity.Identity
    key: DataKey
    kept: dict[str, str]
    protected: bool
    config: str | None
    taken_at: float
    database_bytes: int

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


def restore(home: Home, source: Path, passphrase: Passphrase, clock: Clock, *, force: bool = False) -> Restored:
    """Make ``home`` what the backup holds. Whoever calls holds the home. Raises ``BackupError``; then all is as it was.

    Everything is gathered in ``.restoring``, then what was here moves out and the new moves in. The phrase goes first
    and comes last: a home between the two has no identity, nothing runs in it, and the same command again completes it.
    """
    expect_room(home, force=force)
    home.prepare()
    stage = home.restoring
    interrupted = _interrupted(home)
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        try:
            opened = _unseal(source, passphrase, stage)
            restored = _prepare(stage, opened, passphrase, clock)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            if interrupted:
                stage.mkdir(mode=0o700)
            raise
        kept = _move_out(home, clock.now())
        config = _restore_config(home, opened.config)
        _move_in(home, stage)
    except OSError as error:
        raise BackupError(f"cannot restore into {home.data}: {error.strerror or error}", "do the same again") from None
    return attrs.evolve(restored, kept=kept, config=config)


def _restore_config(home: Home, text: str | None) -> Path | None:
    """Write the configuration, unless there is one. One that says that everything is elsewhere is put beside."""
    if text is None or os.path.lexists(home.config):
        return None
    path = home.config
    try:
        if tomllib.loads(text).get("data_dir"):
            path = path.with_name(f"{path.name}.restored")
    except tomllib.TOMLDecodeError:
        pass
    with contextlib.suppress(FileExistsError):
        put_private(path, text.encode(), replace=False)
    return path


def _unseal(source: Path, passphrase: Passphrase, stage: Path) -> _Opened:
    """Read the backup; its database is written to the stage."""
    try:
        with source.open("rb") as file:
            content = read_sealed(file, passphrase)
            first, rest = _take_manifest(content)
            opened = _read_manifest(first)
            if opened.database_bytes:
                _write_database(stage / "pylon.db", rest, content, opened.database_bytes)
            elif rest or next(content, b""):
                raise BackupError("the backup holds more than it says", "take another copy of the file")
    except OSError as error:
        raise BackupError(f"cannot read {source}: {error.strerror or error}", "name a backup's file") from None
    return opened


def _take_manifest(content: Iterator[bytes]) -> tuple[bytes, bytes]:
    """The manifest, and what of its last frame follows it."""
    gathered = bytearray(next(content, b""))
    length = int.from_bytes(gathered[:4], "big")
    if len(gathered) < 4 or length > _MAX_MANIFEST:
        raise BackupError("what the backup holds does not read", "upgrade Pylon")
    while len(gathered) < 4 + length:
        piece = next(content, None)
        if piece is None:
            raise BackupError("what the backup holds is cut short", "take another copy of the file")
        gathered += piece
    return bytes(gathered[4 : 4 + length]), bytes(gathered[4 + length :])


def _read_manifest(raw: bytes) -> _Opened:
    try:
        value: Any = orjson.loads(raw)
        if value["version"] != VERSION:
            raise BackupError(f"the backup has version {value['version']}, this Pylon reads {VERSION}", "upgrade Pylon")
        kept = {str(name): str(text) for name, text in value["kept"].items()}
        if not all(name.startswith("identity.mnemonic.") and "/" not in name for name in kept):
            raise ValueError
        return _Opened(
            identity=identity.from_phrase(value["phrase"]),
            key=DataKey(bytes.fromhex(value["data_key"])),
            kept=kept,
            protected=bool(value["protected"]),
            config=None if value["config"] is None else str(value["config"]),
            taken_at=float(value["taken_at"]),
            database_bytes=int(value["database_bytes"]),
        )
    except BackupError:
        raise
    except Exception as error:
        raise BackupError(f"what the backup holds does not read ({type(error).__name__})", "upgrade Pylon") from None


def _write_database(path: Path, first: bytes, content: Iterator[bytes], length: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(first)
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != length:
            raise BackupError("the backup's database is not as long as it says", "take another copy of the file")


def _prepare(stage: Path, opened: _Opened, passphrase: Passphrase, clock: Clock) -> Restored:
    """Put keys and phrases on the stage, and the database into the state in which a restored one begins."""
    wrapped = passphrase if opened.protected else None
    unlocked = Unlocked(opened.identity, opened.key)
    (stage / "keys").mkdir(mode=0o700)
    write_private(stage / "keys" / "data.key", datakey.content(opened.key, wrapped))
    for name, text in opened.kept.items():
        content = identity.sealed_text(text, unlocked.vault) if wrapped else f"{text.rstrip()}\n".encode()
        write_private(stage / name, content)
    phrase = identity.sealed_content(opened.identity, unlocked.vault) if wrapped else None
    write_private(stage / "identity.mnemonic", phrase or identity.plain_content(opened.identity))
    # A home without records yet gets a database too, for the freeze.
    agents, unknown = trio.run(_open_and_mark, stage / "pylon.db", unlocked.vault, clock)
    for name in ("pylon.db-wal", "pylon.db-shm"):
        (stage / name).unlink(missing_ok=True)  # empty: closing the store has brought the log home
    return Restored(opened.identity.npub, opened.taken_at, opened.protected, agents, unknown, None)


async def _open_and_mark(path: Path, vault: Vault, clock: Clock) -> tuple[int, int]:
    async with open_store(path, vault=vault, clock=clock) as store:
        return await store.write(_begin_anew)


def _begin_anew(tx: Tx) -> tuple[int, int]:
    """Freeze, mark what is open as unknown, close wallet connections, raise the epochs.

    How many agents and payments there are.
    """
    now = tx.clock.now()
    freeze.freeze(tx, _REASON, now)
    pending = intents.pending(tx)
    for intent in pending:
        intents.mark_unknown(tx, intent.id, error="the home was restored from a backup", at=now)
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


def _move_out(home: Home, now: float) -> Path | None:
    """Put what is here beside, the phrase first. ``None``: there was nothing."""
    there = [
        path
        for path in (
            home.mnemonic,
            home.database,
            *(home.database.with_name(home.database.name + end) for end in ("-wal", "-shm")),
            home.data_key,
            *identity.kept_files(home),
            home.data / "backups",
        )
        if os.path.lexists(path)
    ]
    if not there:
        return None
    _bring_log_home(home.database)
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, number = home.data / f"replaced-{stamp}", 1
    while os.path.lexists(aside):
        number += 1
        aside = home.data / f"replaced-{stamp}-{number}"
    aside.mkdir(mode=0o700)
    (aside / "keys").mkdir(mode=0o700)
    for path in there:
        target = (aside / "keys" if path == home.data_key else aside) / path.name
        if os.path.lexists(path):
            os.rename(path, target)
            sync_directory(path.parent)
            sync_directory(target.parent)
    sync_directory(home.data)
    return aside


def _bring_log_home(database: Path) -> None:
    """Have the old database in one file; where that fails, its log moves with it."""
    if database.exists():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _move_in(home: Home, stage: Path) -> None:
    """The phrase last."""
    os.rename(stage / "pylon.db", home.database)
    os.rename(stage / "keys" / "data.key", home.data_key)
    for path in sorted(stage.glob("identity.mnemonic.*")):
        os.rename(path, home.data / path.name)
    sync_directory(home.keys)
    sync_directory(home.data)
    os.rename(stage / "identity.mnemonic", home.mnemonic)
    sync_directory(home.data)
    shutil.rmtree(stage, ignore_errors=True)
