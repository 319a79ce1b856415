"""A sealed file of any size: what a home's backup is written as, and read from.

::

    Pylon home backup, version 1
    {"cipher":"chacha20-poly1305","kdf":"scrypt","log_n":17,"nonce":…,"p":1,"r":8,"salt":…}
    <frames>

The key is scrypt's of a passphrase. A frame is up to 1 MiB of content and its tag, sealed by ChaCha20-Poly1305 with the
first two lines as associated data. Its nonce is 7 bytes of the head's, the frame's number (4 bytes, big-endian), and 1
for the last frame, else 0 (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár): so frames can be neither
changed, left out, moved, nor cut off at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pylon.errors import BackupError
from pylon.passphrase import Passphrase, Stretching

TITLE = b"Pylon home backup, version 1\n"
FRAME_BYTES = 1 << 20
_FAMILY = b"Pylon home backup, version "
_TAG_BYTES = 16
_PREFIX_BYTES = 7
_MAX_LINE = 1_024
_DAMAGED = "take another copy of the file"


def write_sealed(file: BinaryIO, passphrase: Passphrase, content: Iterable[bytes]) -> None:
    """Write all of ``content`` (pieces of any length). Raises ``OSError``."""
    stretching = Stretching.fresh()
    head = TITLE + stretching.to_line() + b"\n"
    cipher = ChaCha20Poly1305(stretching.key(passphrase))
    file.write(head)
    number, waiting = 0, None
    for frame in _frames(content):
        if waiting is not None:
            file.write(cipher.encrypt(_nonce(stretching, number, last=False), waiting, head))
            number += 1
        waiting = frame
    file.write(cipher.encrypt(_nonce(stretching, number, last=True), waiting or b"", head))


def read_sealed(file: BinaryIO, passphrase: Passphrase) -> Iterator[bytes]:
    """The content, frame by frame: trust none of it before the end has come. Raises ``BackupError``."""
    title, line = file.readline(_MAX_LINE), file.readline(_MAX_LINE)
    if title != TITLE:
        if title.startswith(_FAMILY):
            raise BackupError("the backup has a version that this Pylon does not read", "upgrade Pylon")
        raise BackupError("this is no backup of a home", "give the file that pylon identity backup has written")
    try:
        stretching = Stretching.parse(line.removesuffix(b"\n"))
    except ValueError:
        raise BackupError("the backup is damaged: its second line does not read", _DAMAGED) from None
    cipher = ChaCha20Poly1305(stretching.key(passphrase))
    number, sealed = 0, file.read(FRAME_BYTES + _TAG_BYTES)
    while True:
        following = file.read(FRAME_BYTES + _TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(stretching, number, last=not following), sealed, title + line)
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


def _nonce(stretching: Stretching, number: int, *, last: bool) -> bytes:
    return stretching.nonce[:_PREFIX_BYTES] + number.to_bytes(4, "big") + bytes([last])


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
