"""Passphrases: what stretches them (scrypt, RFC 7914), and where an unattended process finds the one of a home.

A passphrase never stands in argv or in an environment variable: a file descriptor, a file or systemd's credential
gives it, or somebody types it (``pylon.cli.unlock``).
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocols import entropy
from pylon.errors import PassphraseError

VARIABLE = "PYLON_PASSPHRASE_FILE"
CREDENTIAL = "pylon.passphrase"
"""The name for systemd's ``LoadCredential=``."""
MAX_CHARS = 1_024
MAX_LINE_BYTES = 4 * MAX_CHARS

LOG_N = 17
"""Of scrypt's N, with r = 8: 128 MiB, and about half a second on a small machine."""
_LOG_NS = range(10, 21)
"""What is computed for a file that asks for it: 1 GiB at most."""
_R, _P = 8, 1
_KDF, _CIPHER = "scrypt", "chacha20-poly1305"
_SALT_BYTES, _NONCE_BYTES = 16, 12
_MAX_HEAD_BYTES = 1_000
_GIVE = f"pylon --passphrase-fd N COMMAND, {VARIABLE}=FILE, or type it on a terminal"


class Passphrase:
    """A secret: its repr is blank. Raises ``PassphraseError`` for what is empty, too long or no Unicode."""

    __slots__ = ("_secret",)

    def __init__(self, text: str) -> None:
        if not text:
            raise PassphraseError("the passphrase is empty", "choose one that nobody guesses: several random words")
        if len(text) > MAX_CHARS:
            raise PassphraseError(f"a passphrase has at most {MAX_CHARS:,} characters", "choose a shorter one")
        try:
            self._secret = unicodedata.normalize("NFKC", text).encode()
        except UnicodeEncodeError:
            raise PassphraseError("the passphrase is not Unicode", "type it in a locale of UTF-8") from None

    def __repr__(self) -> str:
        return "Passphrase(…)"

    def write_line(self, descriptor: int) -> None:
        """To whoever reads the other end with ``from_descriptor``."""
        os.write(descriptor, self._secret + b"\n")

    def stretched(self, salt: bytes, log_n: int) -> bytes:
        """32 bytes of key."""
        try:
            return Scrypt(salt=salt, length=32, n=1 << log_n, r=_R, p=_P).derive(self._secret)
        except MemoryError:
            need = (128 * _R << log_n) >> 20
            raise PassphraseError(f"scrypt needs {need} MiB of memory", "close something, and try again") from None


@attrs.frozen
class Stretching:
    """How the key of one sealed file is made of a passphrase; stands readable in its second line."""

    log_n: int
    salt: bytes
    nonce: bytes
    """12 bytes."""

    @classmethod
    def fresh(cls) -> Stretching:
        return cls(LOG_N, entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(_NONCE_BYTES))

    def key(self, passphrase: Passphrase) -> bytes:
        return passphrase.stretched(self.salt, self.log_n)

    def to_line(self) -> bytes:
        """One line of JSON, without its end."""
        values = {
            "cipher": _CIPHER,
            "kdf": _KDF,
            "log_n": self.log_n,
            "nonce": self.nonce.hex(),
            "p": _P,
            "r": _R,
            "salt": self.salt.hex(),
        }
        return orjson.dumps(values)

    @classmethod
    def parse(cls, line: bytes) -> Stretching:
        """The only way to say ``line``, else ``ValueError``: so that no byte of a file can change unnoticed.

        What it asks to be computed is bounded.
        """
        if len(line) > _MAX_HEAD_BYTES:
            raise ValueError("too long")
        try:
            values: Any = orjson.loads(line)
            found = cls(values["log_n"], bytes.fromhex(values["salt"]), bytes.fromhex(values["nonce"]))
        except (ValueError, TypeError, KeyError):
            raise ValueError("not what describes a key") from None
        if type(found.log_n) is not int or found.log_n not in _LOG_NS:
            raise ValueError("more than is computed here")
        if (len(found.salt), len(found.nonce)) != (_SALT_BYTES, _NONCE_BYTES) or found.to_line() != line:
            raise ValueError("not as it was written")
        return found


# --- where they come from -----------------------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str] = os.environ) -> Passphrase | None:
    """Of the file that ``PYLON_PASSPHRASE_FILE`` names, else of systemd's credential; ``None``: there is neither.

    Raises ``PassphraseError`` for a file that was named and does not give one.
    """
    if named := environ.get(VARIABLE):
        return from_file(Path(named), VARIABLE)
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(directory) / CREDENTIAL
        if path.exists():
            return from_file(path, "the credential")
    return None


def is_given(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``from_environment`` would give one, or say why not."""
    if environ.get(VARIABLE):
        return True
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and (Path(directory or "") / CREDENTIAL).exists()


def from_file(path: Path, name: str) -> Passphrase:
    """Its first line. Raises ``PassphraseError``, which calls the file ``name``."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise PassphraseError(f"{name} ({path}) cannot be read: {error.strerror}", "name a file that can") from None
    try:
        return from_descriptor(descriptor, f"{name} ({path})")
    finally:
        os.close(descriptor)


def from_descriptor(descriptor: int, name: str = "") -> Passphrase:
    """The next line of an open file, and not a byte more, so that another may follow. Raises ``PassphraseError``."""
    name = name or f"file descriptor {descriptor}"
    line = bytearray()
    try:
        while len(line) <= MAX_LINE_BYTES and (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
            line += byte
    except OSError as error:
        raise PassphraseError(f"{name} gives no passphrase: {error.strerror}", "--passphrase-fd 3 3< FILE") from None
    if len(line) > MAX_LINE_BYTES:
        raise PassphraseError(f"the first line of {name} is too long", "a passphrase is one line")
    try:
        return Passphrase(bytes(line).removesuffix(b"\r").decode())
    except UnicodeDecodeError:
        raise PassphraseError(f"the passphrase of {name} is not UTF-8 text", "write it in UTF-8") from None
    except PassphraseError as error:
        raise PassphraseError(f"{name}: {error.message}", error.hint) from None


def wanted(what: str) -> PassphraseError:
    """The error where one is needed and nobody gave it."""
    return PassphraseError(f"{what} is protected by a passphrase", _GIVE)
