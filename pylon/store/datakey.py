"""The home's data key on disk: 32 bytes as they are, or wrapped by a passphrase.

Wrapped, ``keys/data.key`` is text::

    Pylon data key, sealed with a passphrase, version 1
    {"cipher":"chacha20-poly1305","kdf":"scrypt","log_n":17,"nonce":…,"p":1,"r":8,"salt":…}
    <base64>

The first two lines are the associated data. The key itself never changes: setting, changing and removing a passphrase
write this one file anew, and each of that is one rename.
"""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pylon.errors import IdentityError, PassphraseError, SealError
from pylon.files import NONBLOCK, others
from pylon.passphrase import Passphrase, Stretching, wanted

KEY_BYTES = 32
RESTORE = "restore the home's keys/ directory from a backup; without its data key, what is sealed stays sealed"
_TITLE = b"Pylon data key, sealed with a passphrase, version 1\n"
_FAMILY = b"Pylon data key, "
_MAX_BYTES = 4_096


class DataKey:
    """A secret: its repr is blank. Raises ``SealError`` for a key of another length."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise SealError(f"the data key has {len(raw)} bytes, not {KEY_BYTES}", RESTORE)
        self._raw = bytes(raw)

    def reveal(self) -> bytes:
        return self._raw

    def __repr__(self) -> str:
        return "DataKey(…)"


def is_wrapped(path: Path) -> bool:
    """Whether the key at ``path`` wants a passphrase; a key that is not there wants none. Raises as ``load`` does."""
    return path.exists() and _read(path).startswith(_FAMILY)


def load(path: Path, passphrase: Passphrase | None = None) -> DataKey:
    """The key. One that lies open wants no passphrase, and ignores it.

    Raises ``IdentityError`` (missing, readable by others), ``PassphraseError`` (none given, or another one),
    ``SealError`` (no key). A wrong passphrase and a damaged file look the same.
    """
    return opened(_read(path), str(path), passphrase)


def opened(content: bytes, name: str, passphrase: Passphrase | None) -> DataKey:
    """The key of what stands in a file called ``name``; raises what ``load`` raises for it."""
    if not content.startswith(_FAMILY):
        if len(content) != KEY_BYTES:
            raise SealError(f"the data key {name} does not have exactly {KEY_BYTES} bytes", RESTORE)
        return DataKey(content)
    head, stretching, sealed = _split(content, name)
    if passphrase is None:
        raise wanted(name)
    try:
        return DataKey(ChaCha20Poly1305(stretching.key(passphrase)).decrypt(stretching.nonce, sealed, head))
    except InvalidTag:
        raise PassphraseError(
            f"the data key {name} does not open: another passphrase, or a damaged file",
            "try again; without the passphrase, only a backup with one of its own helps: pylon restore FILE",
        ) from None


def is_wrapped_content(content: bytes) -> bool:
    """Whether what stands in a key's file wants a passphrase."""
    return content.startswith(_FAMILY)


def read(path: Path) -> bytes:
    """What stands in a key's file, wrapped or not: a secret either way. Raises ``IdentityError``."""
    return _read(path)


def content(key: DataKey, passphrase: Passphrase | None) -> bytes:
    """What stands in the file: the key wrapped, or as it is."""
    if passphrase is None:
        return key.reveal()
    stretching = Stretching.fresh()
    head = _TITLE + stretching.to_line() + b"\n"
    sealed = ChaCha20Poly1305(stretching.key(passphrase)).encrypt(stretching.nonce, key.reveal(), head)
    return head + base64.b64encode(sealed) + b"\n"


def _split(content: bytes, name: str) -> tuple[bytes, Stretching, bytes]:
    title, _, rest = content.partition(b"\n")
    line, _, body = rest.partition(b"\n")
    if title + b"\n" != _TITLE:
        raise SealError(f"the data key {name} has a format that this Pylon does not read", "upgrade Pylon")
    try:
        sealed = base64.b64decode(body.removesuffix(b"\n"), validate=True)
        return title + b"\n" + line + b"\n", Stretching.parse(line), sealed
    except ValueError:
        raise SealError(f"the data key {name} is damaged", RESTORE) from None


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK, a pipe at this place would keep us waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK)
    except FileNotFoundError:
        raise IdentityError(f"there is no data key at {path}", RESTORE) from None
    except OSError as error:
        raise IdentityError(f"the data key at {path} cannot be read: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise IdentityError(f"the data key {path} is not a file", RESTORE)
        if others(mode):
            raise IdentityError(
                f"the data key {path} is open to others (mode {stat.S_IMODE(mode):04o})", f"chmod 600 {path}"
            )
        return os.read(descriptor, _MAX_BYTES + 1)
    finally:
        os.close(descriptor)
