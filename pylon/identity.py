"""The identity of a home: one BIP-39 phrase, from which its Nostr key and its wallets come.

The phrase stands in ``identity.mnemonic`` (0600, from its first byte on). It is never overwritten: a forced new one
puts the old one aside, for money may hang on it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import stat
from pathlib import Path

import attrs

from protocols import nip06
from protocols.bolt11 import node_public_key
from protocols.keys import SecretKey
from protocols.nip19 import encode_npub
from pylon.errors import IdentityError
from pylon.files import sync_directory, write_private
from pylon.paths import Home
from pylon.store.vault import Vault

SIMNET_PATH = "m/8797555'/5458253'/0'"
"""BIP-32 path of the simnet node key: Spark's purpose, and as account "SIM" in ASCII, so that it is neither the
NIP-06 key (m/44'/1237'/0'/0/0) nor a key of the Spark wallet (m/8797555'/<account>'/0', accounts 0 and 1)."""

MAX_PHRASE_BYTES = 1_024


@attrs.frozen(repr=False, eq=False)
class Identity:
    """Who a home is. Holds secrets: the repr is blank, and comparing two is not offered."""

    nostr: SecretKey
    """The NIP-06 key of account 0."""
    simnet: SecretKey
    """The key of the simnet node (``SIMNET_PATH``): it signs this home's simnet invoices."""
    _phrase: str

    def __repr__(self) -> str:
        return "Identity(…)"

    @property
    def npub(self) -> str:
        return encode_npub(self.nostr.public)

    @property
    def simnet_node(self) -> str:
        """Hex of the simnet node's public key, 33 bytes compressed, as invoices name it."""
        return node_public_key(self.simnet.reveal()).hex()

    @property
    def pubkey(self) -> str:
        """Hex of the x-only public key."""
        return self.nostr.public.hex

    def reveal_phrase(self) -> str:
        """The phrase, for a wallet to be opened with, or for one who asked for it by name."""
        return self._phrase


@attrs.frozen
class Created:
    """What ``create`` has done."""

    identity: Identity
    new: bool
    """False where there was an identity already, which is the one returned."""
    kept: Path | None = None
    """Where the identity that was there before has gone."""


def from_phrase(phrase: str) -> Identity:
    """Raises ``IdentityError`` for a phrase that is none; the message never repeats it."""
    try:
        phrase = nip06.check_mnemonic(phrase)
        seed = nip06.seed(phrase)
        return Identity(nip06.nostr_key(phrase), SecretKey(nip06.derive(seed, SIMNET_PATH)), phrase)
    except ValueError:
        raise IdentityError(
            "this is not a BIP-39 seed phrase: its words or its checksum are wrong",
            "check the spelling and the order of all 12 or 24 English words",
        ) from None


def create(home: Home, phrase: str | None = None, *, words: int = 12, force: bool = False, now: float) -> Created:
    """Give ``home`` an identity and a data key. Leaves an existing identity as it is, unless ``force``.

    ``phrase`` imports one, ``None`` makes a new one of ``words`` words; ``now`` (Unix seconds) dates the name under
    which a replaced phrase is kept, ``identity.mnemonic.<UTC time>``. A crash leaves the old phrase or the new one.
    """
    existing = home.mnemonic.exists() or home.mnemonic.is_symlink()
    if existing and not force:
        identity = load(home)
        _ensure_data_key(home)
        return Created(identity, new=False)
    identity = from_phrase(phrase if phrase is not None else nip06.new_mnemonic(words))
    home.prepare()
    _ensure_data_key(home)
    try:
        kept = _put_aside(home.mnemonic, now) if existing else None
        _write(home.mnemonic, identity.reveal_phrase(), replace=existing)
    except FileExistsError as error:
        raise IdentityError(f"{error.filename2 or error.filename} appeared meanwhile", "run pylon init again") from None
    except OSError as error:
        raise IdentityError(f"cannot write {home.mnemonic}: {error.strerror}", "check the disk and the modes") from None
    return Created(identity, new=True, kept=kept)


def load(home: Home) -> Identity:
    """The identity of ``home``. Raises ``IdentityError`` where there is none, or one that others could read."""
    path = home.mnemonic
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(MAX_PHRASE_BYTES + 1)
    except FileNotFoundError:
        raise IdentityError(f"there is no identity in {home.data}", "pylon init") from None
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from None
    if mode & 0o077:
        raise IdentityError(f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    try:
        return from_phrase(raw.decode() if len(raw) <= MAX_PHRASE_BYTES else "")
    except (IdentityError, UnicodeDecodeError):
        raise IdentityError(
            f"{path} holds no BIP-39 seed phrase: its words or its checksum are wrong",
            "restore it from your backup: pylon init --import --force",
        ) from None


def _ensure_data_key(home: Home) -> None:
    """A data key where there is none; but never a new one for a database that another has sealed."""
    if home.data_key.exists():
        return
    if home.database.exists():
        raise IdentityError(
            f"{home.database} is here, but its key {home.data_key} is not", "restore keys/data.key from your backup"
        )
    home.prepare()
    Vault.generate_file(home.data_key)


def _put_aside(path: Path, now: float) -> Path:
    """A second name for the phrase that is about to be replaced; never one that is taken."""
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{stamp}-{number}")
    os.link(path, aside)
    aside.chmod(0o600)
    return aside


def _write(path: Path, phrase: str, *, replace: bool) -> None:
    """Write all of it, or nothing: 0600 before the first byte, on disk before it has its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private(temporary, f"{phrase}\n".encode())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)
