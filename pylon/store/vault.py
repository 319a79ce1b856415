"""Sealed columns: ChaCha20-Poly1305 (RFC 8439) under the home's data key.

A sealed value is bound to its place. ``where`` is ``table.column:row``; it goes in as associated data, so that a
value copied into another row or column does not open there. Layout: version byte (1), nonce (12), ciphertext with tag.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols import entropy
from pylon.errors import IdentityError, SealError
from pylon.files import sync_directory, write_private
from pylon.passphrase import Passphrase
from pylon.store import datakey
from pylon.store.datakey import KEY_BYTES, RESTORE

_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
STAMP_BYTES = 1 + _NONCE_BYTES
"""How a sealed value begins: no two that were ever sealed begin alike."""


class Vault:
    """Seals and opens text with one 32-byte key. Raises ``SealError`` for a key of another length."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise SealError(f"the data key has {len(key)} bytes, not {KEY_BYTES}", RESTORE)
        self._cipher = ChaCha20Poly1305(key)

    def __repr__(self) -> str:
        return "Vault(…)"

    def seal(self, text: str, where: str) -> bytes:
        """Seal ``text`` for the place ``where`` (``table.column:row``). Twice the same text looks different."""
        nonce = entropy.random_bytes(_NONCE_BYTES)
        # surrogatepass: text from the network may hold lone surrogates, and keeping it must not fail.
        sealed = self._cipher.encrypt(nonce, text.encode("utf-8", "surrogatepass"), _bound(where))
        return _VERSION + nonce + sealed

    def open(self, blob: bytes, where: str) -> str:
        """The text that was sealed for ``where``. Raises ``SealError``, which names the place and nothing else."""
        if len(blob) < 1 + _NONCE_BYTES + _TAG_BYTES:
            raise SealError(f"the sealed value at {where} is cut short", RESTORE)
        if blob[:1] != _VERSION:
            raise SealError(
                f"the sealed value at {where} has format {blob[0]}, this Pylon reads format {_VERSION[0]}",
                "upgrade Pylon, or restore a backup made by this version",
            )
        nonce, sealed = blob[1 : 1 + _NONCE_BYTES], blob[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, sealed, _bound(where)).decode("utf-8", "surrogatepass")
        except (InvalidTag, UnicodeDecodeError):
            raise SealError(f"the sealed value at {where} does not open: wrong key or damaged", RESTORE) from None

    @classmethod
    def generate_file(cls, path: str | os.PathLike[str]) -> Vault:
        """Make a new key and keep it at ``path`` (mode 0600, its directory 0700): whole, or not at all.

        Raises ``IdentityError`` where a file is already: a data key is never overwritten.
        """
        path = Path(path)
        key = entropy.random_bytes(KEY_BYTES)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.chmod(0o700)
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            write_private(draft, key)
            try:
                # A link, unlike a rename, refuses to replace; so the key appears at once and complete.
                os.link(draft, path)
            finally:
                draft.unlink()
            sync_directory(path.parent)
        except FileExistsError:
            raise IdentityError(
                f"there is a data key at {path} already", "it is never overwritten; move it away to make a new one"
            ) from None
        except OSError as error:
            raise IdentityError(f"the data key cannot be written to {path}: {error.strerror}") from error
        return cls(key)

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: Passphrase | None = None) -> Vault:
        """The vault of a key file. Raises what ``datakey.load`` raises."""
        return cls(datakey.load(Path(path), passphrase).reveal())


def _bound(where: str) -> bytes:
    return b"pylon:" + where.encode("utf-8", "surrogatepass")
