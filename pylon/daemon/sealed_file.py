"""A sealed file of any size: what a home's backup is written as, and read from.

::

    Pylon home backup, version 1
    {"cipher":"chacha20-poly1305","kdf":"scrypt","log_n":17,"nonce":…,"p":1,"r":8,"salt":…}
    <frames>

    Pylon home backup, version 2
    {"cipher":"chacha20-poly1305","data_key":…,"kdf":"hkdf-sha256","nonce":…,"salt":…}
    <frames>

The key of the first is scrypt's of a passphrase of its own; that of the second is derived (HKDF, RFC 5869) from the
home's data key, which stands in the head as it stands in ``keys/data.key``: wrapped by the home's passphrase, or open
where there is none. So whoever runs a home can back it up without asking for its passphrase, and a file is as well
guarded as the home is.

A frame is up to 1 MiB of content and its tag, sealed by ChaCha20-Poly1305 with the first two lines as associated data.
Its nonce is 7 bytes of the head's, the frame's number (4 bytes, big-endian), and 1 for the last frame, else 0 (the
STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár): so frames can be neither changed, left out, moved, nor
cut off at the end.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import attrs
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols import entropy
from pylon.errors import BackupError, PassphraseError, SealError
from pylon.passphrase import Passphrase, Stretching
from pylon.store import datakey
from pylon.store.datakey import DataKey

_FAMILY = b"Pylon home backup, version "
TITLE = _FAMILY + b"1\n"
HOME_TITLE = _FAMILY + b"2\n"
FRAME_BYTES = 1 << 20
_TAG_BYTES = 16
_PREFIX_BYTES = 7
_SALT_BYTES, _NONCE_BYTES = 16, 12
_MAX_LINE = 8_192
_DAMAGED = "take another copy of the file"
_INFO = b"pylon home backup, version 2"
_KDF, _CIPHER = "hkdf-sha256", "chacha20-poly1305"


class Lock(enum.Enum):
    """What opens a sealed file."""

    OWN = "own"
    """A passphrase of its own."""
    HOME = "home"
    """The passphrase that the home had when it was written."""
    OPEN = "open"
    """Nothing: its key lies in it."""


@attrs.frozen(repr=False)
class HomeSeal:
    """To seal as the home is sealed. Its repr is blank."""

    key: DataKey
    key_file: bytes
    """What stands in ``keys/data.key``."""

    @property
    def lock(self) -> Lock:
        return Lock.HOME if datakey.is_wrapped_content(self.key_file) else Lock.OPEN

    def __repr__(self) -> str:
        return "HomeSeal(…)"


@attrs.frozen(repr=False)
class _HomeHead:
    """The second line of version 2."""

    key_file: bytes
    salt: bytes
    nonce: bytes

    def to_line(self) -> bytes:
        values = {
            "cipher": _CIPHER,
            "data_key": base64.b64encode(self.key_file).decode(),
            "kdf": _KDF,
            "nonce": self.nonce.hex(),
            "salt": self.salt.hex(),
        }
        return orjson.dumps(values)

    @classmethod
    def parse(cls, line: bytes) -> _HomeHead:
        """The only way to say ``line``, else ``ValueError``: so that no byte of a file can change unnoticed."""
        try:
            values: Any = orjson.loads(line)
            found = cls(
                base64.b64decode(values["data_key"], validate=True),
                bytes.fromhex(values["salt"]),
                bytes.fromhex(values["nonce"]),
            )
        except (ValueError, TypeError, KeyError):
            raise ValueError("not what describes a key") from None
        if (len(found.salt), len(found.nonce)) != (_SALT_BYTES, _NONCE_BYTES) or found.to_line() != line:
            raise ValueError("not as it was written")
        return found

    def cipher(self, key: DataKey) -> ChaCha20Poly1305:
        derived = HKDF(algorithm=SHA256(), length=32, salt=self.salt, info=_INFO).derive(key.reveal())
        return ChaCha20Poly1305(derived)


def write_sealed(file: BinaryIO, seal: Passphrase | HomeSeal, content: Iterable[bytes]) -> None:
    """Write all of ``content`` (pieces of any length). Raises ``OSError``."""
    if isinstance(seal, HomeSeal):
        home = _HomeHead(seal.key_file, entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(_NONCE_BYTES))
        head, nonce, cipher = HOME_TITLE + home.to_line() + b"\n", home.nonce, home.cipher(seal.key)
    else:
        stretching = Stretching.fresh()
        head, nonce = TITLE + stretching.to_line() + b"\n", stretching.nonce
        cipher = ChaCha20Poly1305(stretching.key(seal))
    file.write(head)
    number, waiting = 0, None
    for frame in _frames(content):
        if waiting is not None:
            file.write(cipher.encrypt(_nonce(nonce, number, last=False), waiting, head))
            number += 1
        waiting = frame
    file.write(cipher.encrypt(_nonce(nonce, number, last=True), waiting or b"", head))


def lock_of(file: BinaryIO) -> Lock:
    """What a sealed file wants, by its head. Raises ``BackupError``. Reads from where the file stands."""
    head = _read_head(file)[1]
    if isinstance(head, Stretching):
        return Lock.OWN
    return Lock.HOME if datakey.is_wrapped_content(head.key_file) else Lock.OPEN


def read_sealed(file: BinaryIO, seal: Passphrase | DataKey | None) -> Iterator[bytes]:
    """The content, frame by frame: trust none of it before the end has come.

    ``seal``: the passphrase that ``lock_of`` asks for; or the data key itself, of one sealed with it.
    Raises ``BackupError``, and ``PassphraseError`` where none was given.
    """
    lines, head = _read_head(file)
    cipher, nonce = _cipher(head, seal), head.nonce
    number, sealed = 0, file.read(FRAME_BYTES + _TAG_BYTES)
    while True:
        following = file.read(FRAME_BYTES + _TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(nonce, number, last=not following), sealed, lines)
        except InvalidTag:
            raise BackupError(
                "the backup does not open: another passphrase, or a damaged file"
                if number == 0
                else "the backup is damaged or cut short",
                "type the passphrase again; if it is right, take another copy of the file",
            ) from None
        if not following:
            return
        number, sealed = number + 1, following


def _read_head(file: BinaryIO) -> tuple[bytes, Stretching | _HomeHead]:
    title, line = file.readline(_MAX_LINE), file.readline(_MAX_LINE)
    if title not in (TITLE, HOME_TITLE):
        if title.startswith(_FAMILY):
            raise BackupError("the backup has a version that this Pylon does not read", "upgrade Pylon")
        raise BackupError("this is no backup of a home", "give the file that pylon backup has written")
    try:
        parse = Stretching.parse if title == TITLE else _HomeHead.parse
        return title + line, parse(line.removesuffix(b"\n"))
    except ValueError:
        raise BackupError("the backup is damaged: its second line does not read", _DAMAGED) from None


def _cipher(head: Stretching | _HomeHead, seal: Passphrase | DataKey | None) -> ChaCha20Poly1305:
    if isinstance(head, _HomeHead):
        try:
            passphrase = None if isinstance(seal, DataKey) else seal
            return head.cipher(
                seal if isinstance(seal, DataKey) else datakey.opened(head.key_file, "of the backup", passphrase)
            )
        except PassphraseError:
            if seal is None:
                raise
        except SealError:
            raise BackupError("the backup is damaged: the key in it does not read", _DAMAGED) from None
        raise BackupError(
            "the backup does not open: another passphrase, or a damaged file",
            "it is the one that the home had then; if it is right, take another copy of the file",
        )
    if not isinstance(seal, Passphrase):
        raise PassphraseError("the backup has a passphrase of its own", "--backup-passphrase-fd 3 3< FILE")
    return ChaCha20Poly1305(head.key(seal))


def _nonce(nonce: bytes, number: int, *, last: bool) -> bytes:
    return nonce[:_PREFIX_BYTES] + number.to_bytes(4, "big") + bytes([last])


def _frames(content: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ``FRAME_BYTES``, but for the last."""
    gathered = bytearray()
    for piece in content:
        gathered += piece
        while len(gathered) >= FRAME_BYTES:
            yield bytes(gathered[:FRAME_BYTES])
            del gathered[:FRAME_BYTES]
    if gathered:
        yield bytes(gathered)
