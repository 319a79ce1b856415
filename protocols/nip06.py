"""NIP-06: keys from a BIP-39 phrase by BIP-32. No error ever contains the phrase."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata

from mnemonic import Mnemonic
from secp256k1 import PrivateKey

from protocols import entropy
from protocols.keys import SecretKey

_HARDENED = 0x80000000
_MOST_DIGITS = len(str(_HARDENED))
_WORDS = Mnemonic("english")


class MnemonicInvalid(ValueError):
    """A phrase that is none."""


class PathInvalid(ValueError):
    """Not a BIP-32 path."""


def new_mnemonic(words: int = 12) -> str:
    """A fresh phrase of 12 or 24 English words."""
    if words not in (12, 24):
        raise MnemonicInvalid("a phrase has 12 or 24 words")
    return str(_WORDS.to_mnemonic(entropy.random_bytes(words * 4 // 3)))


def check_mnemonic(phrase: str) -> str:
    """The phrase in its normal form. Raises ``MnemonicInvalid`` for wrong words, count or checksum."""
    normal = " ".join(unicodedata.normalize("NFKD", phrase).lower().split())
    if len(normal.split()) not in (12, 15, 18, 21, 24):
        raise MnemonicInvalid("a phrase has 12 or 24 words")
    if not _WORDS.check(normal):
        raise MnemonicInvalid("a word is not in the list, or the checksum is wrong")
    return normal


def seed(phrase: str, passphrase: str = "") -> bytes:
    """The 64-byte BIP-39 seed of a phrase. Raises ``MnemonicInvalid``."""
    return bytes(Mnemonic.to_seed(check_mnemonic(phrase), passphrase))


def derive(seed: bytes, path: str) -> bytes:
    """The private key at ``path`` (``m/44'/1237'/0'/0/0``), 32 bytes (BIP-32). Raises ``PathInvalid``."""
    node = hmac.new(b"Bitcoin seed", seed, hashlib.sha512).digest()
    key, chain = node[:32], node[32:]
    for index in _indices(path):
        secret = PrivateKey(key)
        parent = b"\0" + key if index >= _HARDENED else secret.pubkey.serialize()
        node = hmac.new(chain, parent + index.to_bytes(4, "big"), hashlib.sha512).digest()
        key, chain = secret.tweak_add(node[:32]), node[32:]
    return bytes(key)


def nostr_key(phrase: str, account: int = 0) -> SecretKey:
    """The Nostr key of an account, at ``m/44'/1237'/<account>'/0/0``. Raises ``MnemonicInvalid``."""
    return SecretKey(derive(seed(phrase), f"m/44'/1237'/{account}'/0/0"))


def _indices(path: str) -> list[int]:
    root, *parts = path.split("/")
    if root != "m":
        raise PathInvalid("a path begins with m/")
    indices = []
    for part in parts:
        digits = part.rstrip("'h")
        numeric = digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
        if not numeric or len(part) - len(digits) > 1 or int(digits) >= _HARDENED:
            raise PathInvalid("a path is numbers, hardened ones with an apostrophe")
        indices.append(int(digits) + (_HARDENED if part != digits else 0))
    return indices
