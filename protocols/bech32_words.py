"""Bech32 (BIP-173) and Bech32m (BIP-350) for texts of any length, and the 5-bit words that they consist of.

What the ``bech32`` package does, word for word, without a loop over single bits: an invoice has three hundred words,
and every job makes one and reads two.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_WORDS = 6
_BECH32, _BECH32M = 1, 0x2BC830A3
"""What the register holds after a right checksum."""
_LONGEST_HRP = 83
_NONE = 255

_RFC4648 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_WORD_OF_RFC4648 = bytes.maketrans(_RFC4648, bytes(range(32)))
_RFC4648_OF_WORD = bytes.maketrans(bytes(range(32)), _RFC4648)
_CHARACTER_OF_WORD = bytes.maketrans(bytes(range(32)), CHARSET.encode())
_WORD_OF_CHARACTER = bytes(CHARSET.find(chr(code)) % 256 for code in range(256))


def _feedback(top: int) -> int:
    """What the five bits that leave the register do to it."""
    found = 0
    for bit, generator in enumerate(_GENERATOR):
        if top >> bit & 1:
            found ^= generator
    return found


_FEEDBACK = tuple(_feedback(top) for top in range(32))


def _polymod(hrp: str, words: bytes) -> int:
    feedback, register = _FEEDBACK, 1
    codes = hrp.encode("ascii")
    for word in (*(code >> 5 for code in codes), 0, *(code & 31 for code in codes), *words):
        register = (register & 0x1FFFFFF) << 5 ^ word ^ feedback[register >> 25]
    return register


def encode(hrp: str, words: Sequence[int], *, bech32m: bool = False) -> str:
    """The text with this human-readable part (ASCII, lower case) and these words (0 to 31), checksum added."""
    data = bytes(words)
    register = _polymod(hrp, data + bytes(_CHECKSUM_WORDS)) ^ (_BECH32M if bech32m else _BECH32)
    data += bytes(register >> 5 * (_CHECKSUM_WORDS - 1 - place) & 31 for place in range(_CHECKSUM_WORDS))
    return f"{hrp}1{data.translate(_CHARACTER_OF_WORD).decode()}"


def decode(text: str, *, bech32m: bool = False) -> tuple[str, list[int]] | None:
    """Human-readable part and words, the checksum checked and taken off; ``None`` for what is not bech32."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return None
    low = text.lower()
    if text not in (low, text.upper()):
        return None
    hrp, separator, rest = low.rpartition("1")
    words = rest.encode().translate(_WORD_OF_CHARACTER)
    if not separator or not 1 <= len(hrp) <= _LONGEST_HRP or len(words) < _CHECKSUM_WORDS or _NONE in words:
        return None
    if _polymod(hrp, words) != (_BECH32M if bech32m else _BECH32):
        return None
    return hrp, list(words[:-_CHECKSUM_WORDS])


def to_words(data: bytes) -> list[int]:
    """Bytes as words; what is missing of the last one is zeros."""
    return list(base64.b32encode(data).rstrip(b"=").translate(_WORD_OF_RFC4648))


def to_bytes(words: Sequence[int]) -> bytes:
    """Words as bytes; what is missing of the last byte is zeros."""
    padded = bytes(words) + bytes(-len(words) % 8)
    return base64.b32decode(padded.translate(_RFC4648_OF_WORD))[: -(-len(words) * 5 // 8)]
