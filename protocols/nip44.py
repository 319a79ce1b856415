"""NIP-44 version 2: encrypted payloads.

Verify the event's signature before decrypting its content. Sizes are checked before anything is decoded; the MAC is
compared in constant time; every failure is a ``Nip44Error`` that tells nothing about the plaintext.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from protocols import entropy
from protocols.keys import PublicKey, SecretKey

VERSION = 2
MAX_PLAINTEXT = 262_144
"""Bytes that we are ready to decrypt unless told otherwise; the NIP asks each implementation for a limit."""

_EXTENDED = 65_536
_MIN_PAYLOAD_CHARS = 132
_MIN_PAYLOAD_BYTES = 99


class Nip44Error(ValueError):
    """A payload that cannot be opened, or a text that cannot be sealed."""


def conversation_key(secret: SecretKey, other: PublicKey) -> bytes:
    """The 32-byte key that both ends share: HKDF-extract of the unhashed x coordinate."""
    return hmac.new(b"nip44-v2", secret.ecdh_x(other), hashlib.sha256).digest()


def encrypt(text: str, key: bytes, nonce: bytes | None = None) -> str:
    """A payload, base64. ``nonce`` (32 bytes) is for test vectors only; it must never be used twice.

    Raises ``Nip44Error`` for an empty text, or one that is not Unicode.
    """
    nonce = entropy.random_bytes(32) if nonce is None else nonce
    try:
        plain = text.encode()
    except UnicodeEncodeError:
        raise Nip44Error("the text is not Unicode") from None
    cipher_key, cipher_nonce, mac_key = _message_keys(key, nonce)
    sealed = _chacha20(cipher_key, cipher_nonce, _pad(plain))
    mac = hmac.new(mac_key, nonce + sealed, hashlib.sha256).digest()
    return base64.b64encode(bytes([VERSION]) + nonce + sealed + mac).decode()


def decrypt(payload: str, key: bytes, *, max_bytes: int = MAX_PLAINTEXT) -> str:
    """The text of a payload of at most ``max_bytes`` plaintext bytes. Raises ``Nip44Error``."""
    if payload.startswith("#"):
        raise Nip44Error("unknown encryption version")
    if not _MIN_PAYLOAD_CHARS <= len(payload) <= _longest_payload(max_bytes):
        raise Nip44Error("the payload's length is out of bounds")
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise Nip44Error("the payload is not base64") from None
    if data[0] != VERSION:
        raise Nip44Error("unknown encryption version")
    if len(data) < _MIN_PAYLOAD_BYTES:
        raise Nip44Error("the payload is too short")
    nonce, sealed, mac = data[1:33], data[33:-32], data[-32:]
    cipher_key, cipher_nonce, mac_key = _message_keys(key, nonce)
    if not hmac.compare_digest(hmac.new(mac_key, nonce + sealed, hashlib.sha256).digest(), mac):
        raise Nip44Error("the authentication code is wrong")
    plain = _unpad(_chacha20(cipher_key, cipher_nonce, sealed))
    if len(plain) > max_bytes:
        raise Nip44Error("the text is too long")
    try:
        return plain.decode()
    except UnicodeDecodeError:
        raise Nip44Error("the text is not UTF-8") from None


def padded_length(length: int) -> int:
    """What a plaintext of ``length`` bytes is padded to."""
    if length <= 32:
        return 32
    next_power = 1 << (length - 1).bit_length()
    chunk = 32 if next_power <= 256 else next_power // 8
    return chunk * ((length - 1) // chunk + 1)


def _longest_payload(plain: int) -> int:
    return (1 + 32 + 6 + padded_length(plain) + 32 + 2) // 3 * 4


def _message_keys(key: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    if len(key) != 32 or len(nonce) != 32:
        raise Nip44Error("key and nonce have 32 bytes")
    block, blocks = b"", b""
    for counter in (1, 2, 3):  # HKDF-expand (RFC 5869) to 76 bytes
        block = hmac.new(key, block + nonce + bytes([counter]), hashlib.sha256).digest()
        blocks += block
    return blocks[:32], blocks[32:44], blocks[44:76]


def _chacha20(key: bytes, nonce: bytes, data: bytes) -> bytes:
    # The library's nonce is the 32-bit block counter, which begins at 0, and then RFC 8439's nonce.
    return Cipher(ChaCha20(key, b"\0\0\0\0" + nonce), mode=None).encryptor().update(data)


def _pad(plain: bytes) -> bytes:
    length = len(plain)
    if not 0 < length < 1 << 32:
        raise Nip44Error("a text has at least one byte")
    prefix = length.to_bytes(2, "big") if length < _EXTENDED else b"\0\0" + length.to_bytes(4, "big")
    return prefix + plain + bytes(padded_length(length) - length)


def _unpad(padded: bytes) -> bytes:
    length, start = int.from_bytes(padded[:2], "big"), 2
    if length == 0:
        length, start = int.from_bytes(padded[2:6], "big"), 6
        if length < _EXTENDED:
            raise Nip44Error("the padding is wrong")
    plain = padded[start : start + length]
    if len(plain) != length or len(padded) != start + padded_length(length):
        raise Nip44Error("the padding is wrong")
    return plain
