"""The identity of a home: one BIP-39 phrase, from which its Nostr key and its wallets come.

The phrase stands in ``identity.mnemonic`` (0600, from its first byte on). It is never overwritten: a forced new one
puts the old one aside, for money may hang on it. Without a passphrase the file is the phrase; with one it is::

    Pylon seed phrase, sealed with the data key, version 1
    {"npub":…,"simnet_node":…,"spark":{…}}
    <base64>

The second line is public, and bound to what is sealed; so one can ask who a home is without its passphrase.
"""

from __future__ import annotations

import base64
import datetime
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson

from protocols import nip06
from protocols.bolt11 import node_public_key
from protocols.keys import SecretKey
from protocols.nip19 import decode_public_key, encode_npub
from pylon.errors import IdentityError, SealError
from pylon.files import others, put_private
from pylon.passphrase import Passphrase, wanted
from pylon.paths import Home
from pylon.store import datakey
from pylon.store.datakey import DataKey
from pylon.store.vault import Vault

SIMNET_PATH = "m/8797555'/5458253'/0'"
"""BIP-32 path of the simnet node key: Spark's purpose, and as account "SIM" in ASCII, so that it is neither the
NIP-06 key (m/44'/1237'/0'/0/0) nor a key of the Spark wallet (m/8797555'/<account>'/0', accounts 0 and 1)."""
SPARK_ACCOUNTS = {"mainnet": 1, "regtest": 0}
"""The account of a home's own Spark wallet, by Spark's network."""

MAX_FILE_BYTES = 4_096
_MAX_PHRASE_BYTES = 1_024
_TITLE = "Pylon seed phrase, sealed with the data key, version 1"
_FAMILY = "Pylon seed phrase, "


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

    def public(self) -> Public:
        """What anybody may know."""
        seed = nip06.seed(self._phrase)
        spark = {
            network: node_public_key(nip06.derive(seed, f"m/8797555'/{account}'/0'")).hex()
            for network, account in SPARK_ACCOUNTS.items()
        }
        return Public(self.npub, self.simnet_node, spark)


@attrs.frozen
class Public:
    """What anybody may know of an identity."""

    npub: str
    simnet_node: str
    spark: Mapping[str, str]
    """Identity public keys of its Spark wallets (hex, 33 bytes), by Spark's network."""

    @property
    def pubkey(self) -> str:
        return decode_public_key(self.npub).hex


@attrs.frozen(repr=False, eq=False)
class Unlocked:
    """A home's secrets, opened. The repr is blank."""

    identity: Identity
    key: DataKey

    @property
    def vault(self) -> Vault:
        return Vault(self.key.reveal())

    def __repr__(self) -> str:
        return "Unlocked(…)"


@attrs.frozen
class Found:
    """What can be said of a home's identity without a passphrase."""

    public: Public
    sealed: bool
    """Whether the phrase is sealed; else it lies there in plain."""
    protected: bool
    """Whether a passphrase wraps the data key."""
    kept: tuple[Path, ...] = ()
    """Where phrases are that were replaced."""


@attrs.frozen
class Created:
    """What ``create`` has done."""

    public: Public
    new: bool
    """False where there was an identity already, which is the one told of."""
    identity: Identity | None = None
    """``None`` where it is sealed, and was not opened."""
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


def create(
    home: Home,
    phrase: str | None = None,
    *,
    words: int = 12,
    force: bool = False,
    now: float,
    passphrase: Passphrase | None = None,
) -> Created:
    """Give ``home`` an identity and a data key. Leaves an existing identity as it is, unless ``force``.

    ``phrase`` imports one, ``None`` makes a new one of ``words`` words; ``now`` (Unix seconds) dates the name under
    which a replaced phrase is kept, ``identity.mnemonic.<UTC time>``. A crash leaves the old phrase or the new one.
    ``passphrase`` is the home's: a home that has one gets no phrase in plain.
    """
    _expect_no_restore(home)
    existing = home.mnemonic.exists() or home.mnemonic.is_symlink()
    if existing and not force:
        found = find(home)
        identity = None if found.sealed else load(home)
        if not found.sealed:
            _ensure_data_key(home)
        elif not home.data_key.exists():
            raise IdentityError(f"{home.mnemonic} is sealed, but its key {home.data_key} is not here", datakey.RESTORE)
        return Created(found.public, False, identity)
    identity = from_phrase(phrase if phrase is not None else nip06.new_mnemonic(words))
    home.prepare()
    _ensure_data_key(home)
    content = plain_content(identity)
    if datakey.is_wrapped(home.data_key):
        content = sealed_content(identity, Vault(datakey.load(home.data_key, passphrase).reveal()))
    try:
        kept = _put_aside(home.mnemonic, now) if existing else None
        put_private(home.mnemonic, content, replace=existing)
    except FileExistsError as error:
        raise IdentityError(f"{error.filename2 or error.filename} appeared meanwhile", "run pylon init again") from None
    except OSError as error:
        raise IdentityError(f"cannot write {home.mnemonic}: {error.strerror}", "check the disk and the modes") from None
    return Created(identity.public(), True, identity, kept)


# --- reading ------------------------------------------------------------------------------------------------------


def load(home: Home, passphrase: Passphrase | None = None) -> Identity:
    """The identity of ``home``. Raises ``IdentityError`` where there is none, or one that others could read;
    ``PassphraseError`` where one is wanted."""
    text = read(home.mnemonic, home)
    if not is_sealed(text):
        return open_text(text, home.mnemonic, None)
    return open_text(text, home.mnemonic, Vault(datakey.load(home.data_key, passphrase).reveal()))


def unlock(home: Home, passphrase: Passphrase | None = None) -> Unlocked:
    """Identity and data key of ``home``. Raises as ``load`` does, and for a data key that is missing."""
    text = read(home.mnemonic, home)
    if not is_sealed(text):
        open_text(text, home.mnemonic, None)  # a phrase that is none is told before anybody is asked for anything
    key = datakey.load(home.data_key, passphrase)
    return Unlocked(open_text(text, home.mnemonic, Vault(key.reveal())), key)


def is_protected(home: Home) -> bool:
    """Whether opening it wants a passphrase."""
    return datakey.is_wrapped(home.data_key)


def find(home: Home) -> Found:
    """Who a home is, as far as that is public. Raises ``IdentityError``."""
    text = read(home.mnemonic, home)
    sealed = is_sealed(text)
    public = _public(text, home.mnemonic) if sealed else open_text(text, home.mnemonic, None).public()
    return Found(public, sealed, is_protected(home), tuple(kept_files(home)))


def kept_files(home: Home) -> list[Path]:
    """Phrases that were put aside, oldest name first."""
    return sorted(path for path in home.data.glob(f"{home.mnemonic.name}.*") if path.is_file())


def read(path: Path, home: Home) -> str:
    """What stands in a phrase's file. Raises ``IdentityError``; an empty text is what cannot be a phrase."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        _expect_no_restore(home)
        raise IdentityError(f"there is no identity in {home.data}", "pylon init") from None
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from None
    if others(mode):
        raise IdentityError(f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    try:
        return raw.decode() if len(raw) <= MAX_FILE_BYTES else ""
    except UnicodeDecodeError:
        return ""


def is_sealed(text: str) -> bool:
    return text.startswith(_FAMILY)


def open_text(text: str, path: Path, vault: Vault | None) -> Identity:
    """The identity of what ``read`` has read at ``path``, sealed or plain. Raises ``IdentityError``."""
    if not is_sealed(text):
        try:
            return from_phrase(text if len(text) <= _MAX_PHRASE_BYTES else "")
        except IdentityError:
            raise IdentityError(
                f"{path} holds no BIP-39 seed phrase: its words or its checksum are wrong",
                "restore it from your backup: pylon init --import --force",
            ) from None
    if vault is None:
        raise wanted(str(path))
    return from_phrase(opened_text(text, path, vault))


def opened_text(text: str, path: Path, vault: Vault) -> str:
    """What is sealed in ``text``. Raises ``IdentityError``."""
    line, blob = _split(text, path)
    try:
        return vault.open(blob, _where(line))
    except SealError:
        raise IdentityError(
            f"{path} does not open with the data key of this home: damaged, or sealed by another",
            "restore a backup: pylon restore --force FILE",
        ) from None


# --- writing ------------------------------------------------------------------------------------------------------


def plain_content(identity: Identity) -> bytes:
    """The file without a passphrase."""
    return f"{identity.reveal_phrase()}\n".encode()


def sealed_content(identity: Identity, vault: Vault) -> bytes:
    """The file of a home that has a passphrase."""
    line = orjson.dumps(attrs.asdict(identity.public())).decode()
    return _sealed(identity.reveal_phrase(), line, vault)


def sealed_text(text: str, vault: Vault) -> bytes:
    """What stands in a file, sealed: a phrase as ``sealed_content`` has it, anything else without a public line."""
    try:
        return sealed_content(from_phrase(text), vault)
    except IdentityError:
        return _sealed(text, "{}", vault)


def _sealed(text: str, line: str, vault: Vault) -> bytes:
    blob = base64.b64encode(vault.seal(text, _where(line))).decode()
    return f"{_TITLE}\n{line}\n{blob}\n".encode()


def _where(line: str) -> str:
    return f"identity.mnemonic:{line}"


def _split(text: str, path: Path) -> tuple[str, bytes]:
    title, _, rest = text.partition("\n")
    line, _, body = rest.partition("\n")
    if title != _TITLE:
        raise IdentityError(f"{path} has a format that this Pylon does not read", "upgrade Pylon")
    try:
        return line, base64.b64decode(body.strip(), validate=True)
    except ValueError:
        raise IdentityError(f"{path} is damaged", "restore a backup: pylon restore --force FILE") from None


def _public(text: str, path: Path) -> Public:
    line, _ = _split(text, path)
    try:
        values: Any = orjson.loads(line)
        public = Public(str(values["npub"]), str(values["simnet_node"]), dict(values["spark"]))
        decode_public_key(public.npub)
    except (ValueError, TypeError, KeyError):
        raise IdentityError(f"{path} is damaged", "restore a backup: pylon restore --force FILE") from None
    return public


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


def _expect_no_restore(home: Home) -> None:
    """A home in the middle of a restore is not one to begin anew in."""
    if home.restoring.exists() and not home.mnemonic.exists():
        raise IdentityError(
            f"a restore into {home.data} was interrupted: what was there is kept beside", "the same pylon restore again"
        )


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
