"""Keys of Nostr: BIP-340 signatures and raw-x ECDH on secp256k1.

libsecp256k1 is called directly: the Python wrapper around it hashes what it should not and checks with ``assert``.
The C functions read blindly, so every length is checked here first.
"""

from __future__ import annotations

import hmac
from typing import Any, TypeGuard

from secp256k1 import PublicKey as _RawPublicKey
from secp256k1 import ffi, lib, secp256k1_ctx

from protocols import entropy

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1 (SEC 2, 2.4.1): a secret key is a number from 1 to one less."""


class KeyInvalid(ValueError):
    """Bytes or text that are no key. The message never repeats them."""


class PublicKey:
    """An x-only public key (BIP-340), known to be a point of the curve. Compares and hashes by its bytes.

    Made of 32 bytes; raises ``KeyInvalid`` for others, and for an x that is on no point of the curve.
    """

    __slots__ = ("_point", "raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise KeyInvalid("a public key has 32 bytes")
        self.raw = bytes(raw)
        self._point: Any = ffi.new("secp256k1_xonly_pubkey *")
        if lib.secp256k1_xonly_pubkey_parse(secp256k1_ctx, self._point, self.raw) != 1:
            raise KeyInvalid("not a point of the curve")

    @classmethod
    def from_hex(cls, text: str) -> PublicKey:
        """From 64 lower-case hex digits. Raises ``KeyInvalid``."""
        if not is_hex(text, 64):
            raise KeyInvalid("a public key has 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        return self.raw.hex()

    def verify(self, message32: bytes, signature64: bytes) -> bool:
        """Whether the signature is this key's over the 32-byte message."""
        if len(message32) != 32 or len(signature64) != 64:
            return False
        return bool(lib.secp256k1_schnorrsig_verify(secp256k1_ctx, signature64, message32, 32, self._point) == 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({self.hex})"


class SecretKey:
    """A secret key. Its repr is blank, it does not hash, and it compares in constant time.

    Made of 32 bytes; raises ``KeyInvalid`` for others, for zero, and from the order of the curve on.
    """

    __slots__ = ("_keypair", "_raw", "public")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32 or not 0 < int.from_bytes(raw, "big") < CURVE_ORDER:
            raise KeyInvalid("not a secret key of secp256k1")
        self._raw = bytes(raw)
        self._keypair: Any = ffi.new("secp256k1_keypair *")
        if lib.secp256k1_keypair_create(secp256k1_ctx, self._keypair, self._raw) != 1:
            raise KeyInvalid("not a secret key of secp256k1")
        point = ffi.new("secp256k1_xonly_pubkey *")
        lib.secp256k1_keypair_xonly_pub(secp256k1_ctx, point, ffi.NULL, self._keypair)
        out = ffi.new("unsigned char[32]")
        lib.secp256k1_xonly_pubkey_serialize(secp256k1_ctx, out, point)
        self.public = PublicKey(bytes(ffi.buffer(out, 32)))

    @classmethod
    def generate(cls) -> SecretKey:
        return cls(entropy.random_bytes(32))

    @classmethod
    def from_hex(cls, text: str) -> SecretKey:
        """From 64 lower-case hex digits. Raises ``KeyInvalid``."""
        if not is_hex(text, 64):
            raise KeyInvalid("a secret key has 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    def sign(self, message32: bytes, aux32: bytes | None = None) -> bytes:
        """A BIP-340 signature, 64 bytes, with fresh auxiliary randomness unless it is given."""
        if len(message32) != 32:
            raise ValueError("a message to sign has 32 bytes")
        aux = entropy.random_bytes(32) if aux32 is None else aux32
        if len(aux) != 32:
            raise ValueError("auxiliary randomness has 32 bytes")
        signature = ffi.new("unsigned char[64]")
        if lib.secp256k1_schnorrsig_sign(secp256k1_ctx, signature, message32, self._keypair, aux) != 1:
            raise ValueError("cannot sign")
        return bytes(ffi.buffer(signature, 64))

    def ecdh_x(self, other: PublicKey) -> bytes:
        """The x coordinate of the shared point, 32 bytes, not hashed (NIP-04, NIP-44)."""
        point = _RawPublicKey(b"\x02" + other.raw, raw=True)
        return bytes(point.ecdh(self._raw, hashfn=_copy_x))

    def reveal(self) -> bytes:
        """The secret itself."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._raw, other._raw)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "SecretKey(…)"


@ffi.callback("int(unsigned char *, const unsigned char *, const unsigned char *, void *)")  # type: ignore[untyped-decorator]
def _copy_x(out: Any, x32: Any, y32: Any, data: Any) -> int:
    ffi.memmove(out, x32, 32)
    return 1


def is_hex(text: object, length: int) -> TypeGuard[str]:
    """Whether ``text`` is exactly ``length`` lower-case hex digits."""
    return isinstance(text, str) and len(text) == length and not text.strip("0123456789abcdef")
