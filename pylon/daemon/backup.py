"""A home in one sealed file. The way back is ``pylon.daemon.restoring``.

A backup holds the phrase, phrases that were put aside, the data key, ``config.toml``, the database as of one moment,
simnet's ledger where it is the home's own, the connection string of a wallet (``keys/wallet.nwc``), the API's token,
and the copies of deleted agents. It is sealed as the home is: by its passphrase, or openly where there is none; or by a
passphrase of its own. Spark's storage, models, logs and the embedded relay's events are not in it: the first comes back
from the phrase.

It is complete, 0600 and on the disk before it has its name; and it has been read again, and compared.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs
import orjson

from pylon import identity
from pylon.daemon.sealed_file import FRAME_BYTES, HomeSeal, read_sealed, write_sealed
from pylon.errors import BackupError, IdentityError, StoreError
from pylon.files import draft_prefix, publish, put_private
from pylon.identity import Unlocked
from pylon.passphrase import Passphrase
from pylon.paths import Home
from pylon.store import damage, datakey, remedy
from pylon.store.copying import copied

VERSION = 2
"""Of what is sealed. 1 had no files beside the database."""
SIMNET = "simnet.db"
TOKEN = "api.token"
WALLET = "keys/wallet.nwc"
COPIES = "backups"
"""Names of files in a backup, as they stand in a home; of the last, what is in that directory."""
SUFFIX = ".backup"
STAGED = ".outgoing-"
"""How the names of finished backups begin that wait in the home for the command that asked for them."""
_DAY = 86_400.0
_CHECKED_WHOLE = 256 << 20
"""Bytes of a database up to which its indexes are compared with their tables, too: some seconds."""
_MOST_COPY = 64 << 20
"""Bytes of a deleted agent's copy; there is none as large."""

Told = Callable[[str, int, int], None]
"""Called with what is being done, and how many bytes of how many of that are."""


@attrs.frozen
class BackedUp:
    """What ``back_up`` has written."""

    path: Path
    length: int
    sha256: str
    """Of the file."""


def quiet(_: str, __: int, ___: int) -> None:
    """Tells nobody."""


def home_seal(home: Home, unlocked: Unlocked) -> HomeSeal:
    """The seal of the home itself. Raises ``IdentityError``."""
    return HomeSeal(unlocked.key, datakey.read(home.data_key))


# --- where to -----------------------------------------------------------------------------------------------------


def own_directory(home: Home) -> Path:
    """Where backups go for which nobody named a place."""
    return home.data / "home-backups"


def file_name(npub: str, now: float) -> str:
    """Of a backup that nobody has named."""
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{_prefix(npub)}{stamp}{SUFFIX}"


def rotate(directory: Path, npub: str, keep: int, written: Path | None = None) -> list[Path]:
    """Remove all but the newest ``keep`` backups of this home that were named by ``file_name``; returns the removed.

    :param written: the one that was just written: the newest, whatever its name says by a clock that went back.
    """
    found = sorted(path for path in directory.glob(f"{_prefix(npub)}*{SUFFIX}") if path.is_file())
    found.sort(key=lambda path: path == written)
    removed = found[: max(0, len(found) - keep)]
    for path in removed:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return removed


def _prefix(npub: str) -> str:
    return f"pylon-{npub[5:13]}-"


# --- writing ------------------------------------------------------------------------------------------------------


def back_up(
    home: Home,
    unlocked: Unlocked,
    target: Path,
    seal: Passphrase | HomeSeal,
    *,
    now: float,
    told: Told = quiet,
    noted: bool = True,
) -> BackedUp:
    """Write ``target``, a new file of mode 0600, and read it again. Raises ``BackupError``.

    Works beside a running daemon: SQLite copies the database as of one moment.

    :param noted: whether this is a backup to come back to, which the home remembers.
    """
    _sweep(home, target.parent)
    with _new(target) as draft:
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(_copy(home.database, "the database", told))
            # After the database: a ledger that knows more than the books is what every wallet is after a restore.
            ledger = stack.enter_context(_copy(home.simnet, "simnet's ledger", told))
            files = [(name, path, path.stat().st_size) for name, path in _others(home, ledger)]
            length = 0 if database is None else database.stat().st_size
            manifest = _manifest(home, unlocked, length, [(name, size) for name, _, size in files], now)
            content = [(path, size) for path, size in ((database, length), *(entry[1:] for entry in files)) if path]
            done = _write(draft, manifest, content, seal, told)
    if noted:
        note(home, target, now)
    return attrs.evolve(done, path=target)


def fetch(home: Home, staged: Path, target: Path, sha256: str, *, now: float) -> None:
    """Take what a daemon has written into the home to ``target``, a new file of mode 0600. Raises ``BackupError``."""
    try:
        with _new(target) as draft:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w+b") as file, staged.open("rb") as source:
                shutil.copyfileobj(source, file, FRAME_BYTES)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise BackupError(
                        f"{target} does not hold what was written", "check the disk, and take another one"
                    )
    finally:
        staged.unlink(missing_ok=True)
    note(home, target, now)


@contextlib.contextmanager
def _new(target: Path) -> Iterator[Path]:
    """A name beside ``target`` for the block to write under, which is ``target`` then. Raises ``BackupError``."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        yield draft
        publish(draft, target)
    except FileExistsError:
        raise BackupError(f"{target} is there already, and is not overwritten", "name a new file") from None
    except OSError as error:
        raise BackupError(f"cannot write {target}: {error.strerror or error}", "name another file") from None
    finally:
        draft.unlink(missing_ok=True)


def note(home: Home, path: Path, at: float) -> None:
    """Remember where the newest backup is. One that cannot be noted is one all the same."""
    with contextlib.suppress(OSError):
        put_private(home.data / remedy.NOTE, remedy.note(str(path), at), replace=True)


def _write(
    draft: Path, manifest: bytes, content: list[tuple[Path, int]], seal: Passphrase | HomeSeal, told: Told
) -> BackedUp:
    """The file under another name, on disk, and read again."""
    total = len(manifest) + sum(size for _, size in content)
    written, read = hashlib.sha256(), hashlib.sha256()

    def counted() -> Iterator[bytes]:
        done = 0
        for piece in _pieces(manifest, content):
            written.update(piece)
            yield piece
            done += len(piece)
            told("sealing", done, total)

    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        write_sealed(file, seal, counted())
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        done = 0
        for piece in read_sealed(file, seal.key if isinstance(seal, HomeSeal) else seal):
            read.update(piece)
            done += len(piece)
            told("reading it again", done, total)
        if read.digest() != written.digest():
            raise BackupError(f"{draft} does not hold what was written", "check the disk, and take another one")
        file.seek(0)
        return BackedUp(draft, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _pieces(manifest: bytes, content: list[tuple[Path, int]]) -> Iterator[bytes]:
    yield len(manifest).to_bytes(4, "big") + manifest
    for path, size in content:
        with path.open("rb") as file:
            while size and (piece := file.read(min(size, FRAME_BYTES))):
                size -= len(piece)
                yield piece
        if size:
            raise BackupError(f"{path} has become shorter meanwhile", "try again")


def _others(home: Home, ledger: Path | None) -> Iterator[tuple[str, Path]]:
    """Files beside the database, each with its name in the backup."""
    if ledger is not None:
        yield SIMNET, ledger
    for name in (TOKEN, WALLET):
        if (path := home.data / name).is_file():
            yield name, path
    if (directory := home.data / COPIES).is_dir():
        for path in sorted(directory.iterdir()):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_COPY and not path.name.startswith("."):
                yield f"{COPIES}/{path.name}", path


def _copy(database: Path, what: str, told: Told) -> AbstractContextManager[Path | None]:
    return database_copy(database, what, told) if database.exists() else contextlib.nullcontext()


@contextlib.contextmanager
def database_copy(database: Path, what: str, told: Told = quiet) -> Iterator[Path]:
    """A database as of one moment, whole, in one file beside it, for the block. Raises ``BackupError``."""
    size = database.stat().st_size
    told(f"copying {what}", 0, size)
    try:
        damage.expect_sound(database, check_bytes=0)
    except StoreError as error:
        raise BackupError(f"{what} cannot be copied: {error.message}", error.hint) from None
    except sqlite3.Error as error:
        raise BackupError(f"{what} {database} cannot be copied: {error}", "pylon doctor says what it is") from None
    check = "integrity_check" if size <= _CHECKED_WHOLE else "quick_check"
    try:
        with copied(database, check) as (copy, said):
            told(f"copying {what}", size, size)
            if said != "ok":
                raise BackupError(f"{what} {database} is damaged: {said}", "restore an older backup: pylon restore")
            yield copy
    except sqlite3.Error as error:
        raise BackupError(f"{what} {database} cannot be copied: {error}", "pylon doctor says what it is") from None


def _sweep(home: Home, directory: Path) -> None:
    """What a killed backup has left: that of another one that runs now is younger than a day."""
    left = [
        path
        for begin in (draft_prefix(home.database), draft_prefix(home.simnet), STAGED)
        for path in home.data.glob(f"{begin}*")
    ]
    for path in (*left, *directory.glob(f".pylon-*{SUFFIX}.{'[0-9a-f]' * 16}")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()


def _manifest(home: Home, unlocked: Unlocked, database_bytes: int, files: list[tuple[str, int]], now: float) -> bytes:
    config = None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        config = home.config.read_text(encoding="utf-8")
    return orjson.dumps(
        {
            "version": VERSION,
            "taken_at": now,
            "phrase": unlocked.identity.reveal_phrase(),
            "kept": kept_phrases(home, unlocked),
            "data_key": unlocked.key.reveal().hex(),
            "protected": identity.is_protected(home),
            "config": config,
            "database_bytes": database_bytes,
            "files": [{"name": name, "bytes": size} for name, size in files],
        }
    )


def kept_phrases(home: Home, unlocked: Unlocked) -> dict[str, str]:
    """Phrases that were put aside, by the names of their files."""
    kept = {}
    for path in identity.kept_files(home):
        text = identity.read(path, home)
        with contextlib.suppress(IdentityError):  # sealed by another key: there is nothing to keep of it
            kept[path.name] = identity.opened_text(text, path, unlocked.vault) if identity.is_sealed(text) else text
    return kept
