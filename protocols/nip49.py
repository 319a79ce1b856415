"""NIP-49: a secret key under a password, as ``ncryptsec1…``.

Layout of the 91 bytes: version 2 (1), log2 of scrypt's N (1), salt (16), nonce (24), key security byte (1), ciphertext
with tag (48). scrypt (RFC 7914) has r = 8, p = 1 and stretches the NFKC form of the password; the cipher is
XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with the key security byte as associated data. No error quotes the key,
the password or the text.
"""

from __future__ import annotations

import enum
import struct
import unicodedata

import attrs
from bech32 import bech32_decode, bech32_encode, convertbits
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocols import entropy
from protocols.keys import KeyInvalid, SecretKey

PREFIX = "ncryptsec"
VERSION = 2
LOG_N = 17
"""128 MiB, and about half a second on a small machine."""
MAX_LOG_N = 20
"""1 GiB: what is computed for a text that asks for it, unless told otherwise. scrypt's N must exceed 1."""

_LENGTH = 91
_SALT_BYTES, _NONCE_BYTES = 16, 24
_CONSTANTS = b"expand 32-byte k"


class Nip49Error(ValueError):
    """A text that does not open, or a password that is none."""


class KeySecurity(enum.IntEnum):
    """What is known of how the key was handled before."""

    INSECURE = 0
    """It is known to have been kept or copied unencrypted."""
    SECURE = 1
    """It is not known to have been."""
    UNTRACKED = 2
    """Nobody has kept track."""


@attrs.frozen
class Decrypted:
    """What was under the password."""

    secret: SecretKey
    security: KeySecurity


def encrypt(secret: SecretKey, password: str, *, security: KeySecurity, log_n: int = LOG_N) -> str:
    """``secret`` as ``ncryptsec1…``. Takes the time and the memory of scrypt: 2^``log_n`` KiB.

    Raises ``Nip49Error`` for a password that is empty or no Unicode, and for a ``log_n`` out of 1 to ``MAX_LOG_N``.
    """
    _check_log_n(log_n, MAX_LOG_N)
    salt, nonce = entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(_NONCE_BYTES)
    associated = bytes([security])
    sealed = _cipher(_key(password, salt, log_n), nonce).encrypt(_short(nonce), secret.reveal(), associated)
    words = convertbits(bytes([VERSION, log_n]) + salt + nonce + associated + sealed, 8, 5, True)
    assert words is not None, "whole bytes, padded"
    return str(bech32_encode(PREFIX, words))


def decrypt(text: str, password: str, *, max_log_n: int = MAX_LOG_N) -> Decrypted:
    """What ``encrypt`` has sealed, here or elsewhere. Raises ``Nip49Error``, whatever ``text`` is."""
    data = _decode(text)
    log_n, rest = data[1], data[2:]
    _check_log_n(log_n, max_log_n)
    salt, rest = rest[:_SALT_BYTES], rest[_SALT_BYTES:]
    nonce, associated, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES : _NONCE_BYTES + 1], rest[_NONCE_BYTES + 1 :]
    try:
        security = KeySecurity(associated[0])
    except ValueError:
        raise Nip49Error("its key security byte has no meaning") from None
    try:
        plain = _cipher(_key(password, salt, log_n), nonce).decrypt(_short(nonce), sealed, associated)
        return Decrypted(SecretKey(plain), security)
    except InvalidTag:
        raise Nip49Error("it does not open: another password, or damaged") from None
    except KeyInvalid:
        raise Nip49Error("what it holds is no secret key") from None


def hchacha20(key: bytes, nonce16: bytes) -> bytes:
    """The 32-byte subkey of a 32-byte key and 16 bytes of nonce (draft-irtf-cfrg-xchacha-03, 2.2).

    ChaCha20's block is its rounds plus its input; HChaCha20 is the first and last row of the rounds alone. So what was
    added is taken away: the constants, and what stands where counter and nonce are.
    """
    block = Cipher(ChaCha20(key, nonce16), mode=None).encryptor().update(bytes(64))
    ends = struct.unpack("<8I", block[:16] + block[48:])
    added = struct.unpack("<8I", _CONSTANTS + nonce16)
    return struct.pack("<8I", *((end - start) & 0xFFFFFFFF for end, start in zip(ends, added, strict=True)))


def _cipher(key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(hchacha20(key, nonce[:16]))


def _short(nonce: bytes) -> bytes:
    """What of XChaCha20's nonce is left for ChaCha20, 12 bytes."""
    return bytes(4) + nonce[16:]


def _key(password: str, salt: bytes, log_n: int) -> bytes:
    if not password:
        raise Nip49Error("the password is empty")
    try:
        secret = unicodedata.normalize("NFKC", password).encode()
    except UnicodeEncodeError:
        raise Nip49Error("the password is not Unicode") from None
    try:
        return Scrypt(salt=salt, length=32, n=1 << log_n, r=8, p=1).derive(secret)
    except MemoryError:
        raise Nip49Error(f"scrypt needs {1 << max(0, log_n - 10)} MiB of memory") from None


def _check_log_n(log_n: int, most: int) -> None:
    if not 1 <= log_n <= most:
        raise Nip49Error(f"scrypt with N = 2^{log_n} is not computed here: 2^1 to 2^{most} are")


def _decode(text: str) -> bytes:
    if len(text) > 1_000:
        raise Nip49Error("it is longer than an ncryptsec")
    prefix, words = bech32_decode(text.strip())
    data = None if words is None else convertbits(words, 5, 8, False)
    if prefix != PREFIX or data is None:
        raise Nip49Error("not an ncryptsec, or its checksum is wrong")
    raw = bytes(data)
    if raw[:1] != bytes([VERSION]):
        raise Nip49Error("it has another version than 2")
    if len(raw) != _LENGTH:
        raise Nip49Error(f"it has {len(raw)} bytes, not {_LENGTH}")
    return raw
