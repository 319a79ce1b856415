"""A sealed bundle: all of an agent in one text file, opened by a passphrase.

::

    Pylon sealed bundle, version 1
    {"cipher":"chacha20-poly1305","created_at":…,"kdf":"scrypt","log_n":17,"nonce":…,"p":1,"r":8,"salt":…}
    <base64 in lines of 76 characters>

The key is scrypt's (RFC 7914) of the NFKC form of the passphrase; what it seals (ChaCha20-Poly1305, RFC 8439) has the
first two lines as associated data. There is one way to write a bundle, so that no byte of it can change unnoticed;
only line ends of another system, and a last one that got lost, are let pass.

A file may come from anybody: sizes and scrypt's parameters are bounded before anything is computed. No error quotes
the passphrase, or what was sealed. Both functions take about half a second and 128 MiB: call them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from typing import Any

import attrs
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocols import entropy
from pylon.errors import BundleError

VERSION = 1
MAX_PAYLOAD_BYTES = 16 << 20
MAX_PASSPHRASE_CHARS = 1_024

LOG_N = 17
"""Of scrypt's N, with r = 8: 128 MiB, and about half a second on a small machine."""
_LOG_NS = range(10, 19)
"""What is computed for a file that asks for it: 256 MiB at most. Fewer are no danger to the one who opens."""
_R, _P = 8, 1
_KDF, _CIPHER = "scrypt", "chacha20-poly1305"
_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16

_TITLE = re.compile(r"Pylon sealed bundle, version ([1-9][0-9]{0,5})")
_MAX_HEAD_CHARS = 1_000
_MAX_TEXT_CHARS = 2 * _MAX_HEAD_CHARS + (MAX_PAYLOAD_BYTES + _TAG_BYTES + 2) // 3 * 4 * 78 // 76 + 78
_DAMAGED = "export it again, or take another copy of the file"


@attrs.frozen
class _Parameters:
    log_n: int
    salt: bytes
    nonce: bytes

    def key(self, passphrase: str) -> bytes:
        secret = _normal(passphrase)
        try:
            return Scrypt(salt=self.salt, length=32, n=1 << self.log_n, r=_R, p=_P).derive(secret)
        except MemoryError:
            need = (128 * _R << self.log_n) >> 20
            raise BundleError(f"scrypt needs {need} MiB of memory", "close something, and try again") from None


def seal(passphrase: str, payload: bytes, *, now: float, log_n: int = LOG_N) -> str:
    """``payload`` as the text of a bundle that ``passphrase`` opens.

    :param now: Unix seconds; stands in the file, readable.
    :param log_n: of scrypt's N, 10 to 18; another one is for tests.

    Raises ``BundleError`` for a passphrase that is empty, too long or no Unicode, and for a payload over
    ``MAX_PAYLOAD_BYTES``.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise BundleError(f"a bundle holds at most {MAX_PAYLOAD_BYTES >> 20} MiB, this is {len(payload):,} bytes")
    parameters = _Parameters(log_n, entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(_NONCE_BYTES))
    head = _head(parameters, int(now))
    sealed = ChaCha20Poly1305(parameters.key(passphrase)).encrypt(parameters.nonce, payload, head.encode())
    return head + base64.encodebytes(sealed).decode()


def open_bundle(text: str, passphrase: str) -> bytes:
    """What was sealed. Raises ``BundleError``, whatever ``text`` is."""
    if len(text) > _MAX_TEXT_CHARS:
        raise BundleError(f"a bundle has at most {_MAX_TEXT_CHARS:,} characters, this has {len(text):,}", _DAMAGED)
    title, parameters, body = _split(text.replace("\r\n", "\n"))
    _check_title(title)
    head = f"{title}\n{parameters}\n"
    found = _parameters(parameters)
    sealed = _sealed(body)
    try:
        return ChaCha20Poly1305(found.key(passphrase)).decrypt(found.nonce, sealed, head.encode())
    except InvalidTag:
        raise BundleError(
            "the bundle does not open: another passphrase, or a damaged file",
            "type the passphrase again; if it is right, take another copy of the file",
        ) from None


def _head(parameters: _Parameters, created_at: int) -> str:
    values = {
        "cipher": _CIPHER,
        "created_at": created_at,
        "kdf": _KDF,
        "log_n": parameters.log_n,
        "nonce": parameters.nonce.hex(),
        "p": _P,
        "r": _R,
        "salt": parameters.salt.hex(),
    }
    return f"Pylon sealed bundle, version {VERSION}\n{orjson.dumps(values).decode()}\n"


def _split(text: str) -> tuple[str, str, str]:
    title, _, rest = text.partition("\n")
    parameters, _, body = rest.partition("\n")
    return title, parameters, body


def _check_title(title: str) -> None:
    known = _TITLE.fullmatch(title)
    if known is None:
        raise BundleError("this is no sealed bundle of Pylon's", "give the file that pylon agent export has written")
    if int(known[1]) != VERSION:
        raise BundleError(
            f"the bundle has version {known[1]}, this Pylon reads version {VERSION}", "upgrade Pylon on this machine"
        )


def _parameters(line: str) -> _Parameters:
    damaged = BundleError("the bundle is damaged: its second line cannot be read", _DAMAGED)
    if len(line) > _MAX_HEAD_CHARS:
        raise damaged
    try:
        values: Any = orjson.loads(line)
        salt, nonce = bytes.fromhex(values["salt"]), bytes.fromhex(values["nonce"])
        kdf, cipher, log_n, r, p = (values[name] for name in ("kdf", "cipher", "log_n", "r", "p"))
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    if any(type(value) is not int for value in (log_n, r, p)) or (len(salt), len(nonce)) != (_SALT_BYTES, _NONCE_BYTES):
        raise damaged
    if (kdf, cipher) != (_KDF, _CIPHER):
        raise BundleError(f"the bundle is sealed in another way than by {_KDF} and {_CIPHER}", _DAMAGED)
    if log_n not in _LOG_NS or (r, p) != (_R, _P):
        raise BundleError(
            f"the bundle asks for scrypt with N = 2^{log_n}, r = {r}, p = {p}; this Pylon computes N = 2^{_LOG_NS[0]} "
            f"to 2^{_LOG_NS[-1]}, r = {_R}, p = {_P}",
            "Pylon writes no such bundle: ask where the file comes from",
        )
    return _Parameters(log_n, salt, nonce)


def _sealed(body: str) -> bytes:
    if body and not body.endswith("\n"):
        body += "\n"
    try:
        sealed = base64.b64decode(body.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        sealed = b""
    # Base64 can say the same bytes in several ways: only ours passes.
    if len(sealed) < _TAG_BYTES or base64.encodebytes(sealed).decode() != body:
        raise BundleError("the bundle is damaged or cut short: its base64 is not as it was written", _DAMAGED)
    return sealed


def _normal(passphrase: str) -> bytes:
    if not passphrase:
        raise BundleError("the passphrase is empty", "choose one that nobody guesses: several random words")
    if len(passphrase) > MAX_PASSPHRASE_CHARS:
        raise BundleError(f"a passphrase has at most {MAX_PASSPHRASE_CHARS:,} characters")
    try:
        return unicodedata.normalize("NFKC", passphrase).encode()
    except UnicodeEncodeError:
        raise BundleError("the passphrase is not Unicode", "type it in a terminal with a UTF-8 locale") from None
