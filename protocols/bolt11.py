"""BOLT 11: Lightning invoices, encoded, signed, decoded and checked.

An invoice is a Bech32 string: a readable part (``ln`` + network prefix + amount) and a data part (timestamp, tagged
fields, a recoverable ECDSA signature over both). Amounts are millisatoshi, times are Unix seconds, hashes and keys are
lower-case hex.

Where the text of BOLT 11 and its own examples disagree, the examples win: a ``p``, ``h``, ``s`` or ``n`` field of the
wrong length is skipped, as "Same, but including fields which must be ignored" wants, and an invoice whose only payment
hash or secret has the wrong length therefore fails for the lack of one.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import attrs
from secp256k1 import ffi, lib, secp256k1_ctx

from protocols import bech32_words
from protocols.bech32_words import CHARSET, to_bytes, to_words
from protocols.keys import SecretKey

NETWORKS: Mapping[str, str] = {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest", "sb": "simnet"}
"""Network prefixes after ``ln``. The prefix is everything before the first digit, so that ``lnsb`` (the simulated
network), ``lntb`` and ``lntbs`` are never taken for one another."""

DEFAULT_EXPIRY = 3600
"""Seconds, where an invoice names no expiry."""
DEFAULT_MIN_FINAL_CLTV = 18
"""Blocks, where an invoice names no ``min_final_cltv_expiry_delta``."""
DEFAULT_FEATURES = frozenset({8, 14})
"""What the field sets: variable-length onions and payment secrets, both required."""
KNOWN_REQUIRED_FEATURES = frozenset({0, 8, 12, 14, 16, 24, 36, 44, 48})
"""Even feature bits that we understand: those of BOLT 9 for invoices, and those that every node is assumed to have."""
MAX_CHARS = 7_089
"""What the largest QR code holds; longer text is refused unread."""
MAX_FIELD_BYTES = 639
MAX_AMOUNT_MSATS = 21_000_000 * 100_000_000 * 1_000
MAX_TIMESTAMP = 2**35 - 1
MAX_QUANTITY = 2**53 - 1
"""Of expiry and final CLTV delta: exact in JSON, SQLite and floats alike."""

_MSATS_PER_BITCOIN = 100_000_000_000
_SIGNATURE_WORDS = 104
_TIMESTAMP_WORDS = 7
_HRP = re.compile(r"ln([a-z]+)(?:([0-9]+)([^0-9]*))?")
# Tenths of a millisatoshi, for `p` counts in them.
_MULTIPLIERS = {"": 10 * _MSATS_PER_BITCOIN, "m": 1_000_000_000, "u": 1_000_000, "n": 1_000, "p": 1}


class Bolt11Invalid(ValueError):
    """Text that is no invoice, or fields that make none. The message says which rule is broken."""


class TermsMismatch(Bolt11Invalid):
    """A valid invoice that is not the one agreed upon."""


@attrs.frozen(kw_only=True)
class Invoice:
    """A decoded invoice whose checksum and signature hold."""

    prefix: str
    """``bc``, ``tb``, ``tbs``, ``bcrt`` or ``sb``."""
    amount_msats: int | None
    """``None``: the payer chooses."""
    timestamp: int
    payment_hash: str
    payment_secret: str
    description: str | None
    description_hash: str | None
    expiry: int = DEFAULT_EXPIRY
    """Seconds after ``timestamp``."""
    min_final_cltv: int = DEFAULT_MIN_FINAL_CLTV
    payee: str
    """The node's key, 33 bytes compressed: recovered from the signature, or from the ``n`` field."""
    features: frozenset[int] = frozenset()
    """The bits that are set."""
    metadata: bytes | None = None
    fallbacks: tuple[tuple[int, bytes], ...] = ()
    """On-chain addresses: witness version (17 P2PKH, 18 P2SH) and program."""
    route_hints: tuple[bytes, ...] = ()
    """The ``r`` fields as they are: hops of 51 bytes each."""
    signature: str
    """64 bytes R || S and the recovery id, hex."""

    @property
    def network(self) -> str:
        return NETWORKS[self.prefix]

    @property
    def expires_at(self) -> int:
        """Unix seconds from which on it must not be paid."""
        return self.timestamp + self.expiry

    def is_expired(self, now: float) -> bool:
        return now >= self.expires_at


def encode(
    *,
    prefix: str,
    amount_msats: int | None,
    timestamp: int,
    payment_hash: str,
    payment_secret: str,
    node_secret: bytes | SecretKey,
    description: str | None = None,
    description_hash: str | None = None,
    expiry: int = DEFAULT_EXPIRY,
    min_final_cltv: int | None = DEFAULT_MIN_FINAL_CLTV,
    features: Iterable[int] = DEFAULT_FEATURES,
    metadata: bytes | None = None,
    fallbacks: Sequence[tuple[int, bytes]] = (),
    route_hints: Sequence[bytes] = (),
    name_payee: bool = False,
) -> str:
    """A signed invoice, lower case.

    Exactly one of ``description`` (at most 639 bytes of UTF-8) and ``description_hash`` is wanted. ``name_payee`` adds
    the ``n`` field; without it the payee is known from the signature. ``min_final_cltv=None`` leaves the field out.
    Raises ``Bolt11Invalid``.
    """
    if prefix not in NETWORKS:
        raise Bolt11Invalid(f"unknown network prefix {prefix!r}")
    if not 0 <= timestamp <= MAX_TIMESTAMP:
        raise Bolt11Invalid("timestamp does not fit into 35 bits")
    if (description is None) == (description_hash is None):
        raise Bolt11Invalid("an invoice has either a description or the hash of one")
    words = _to_words(timestamp, _TIMESTAMP_WORDS)
    words += field("s", to_words(_hex32(payment_secret, "payment secret")))
    words += field("p", to_words(_hex32(payment_hash, "payment hash")))
    if description is not None:
        words += field("d", to_words(_utf8(description)))
    if description_hash is not None:
        words += field("h", to_words(_hex32(description_hash, "description hash")))
    if expiry != DEFAULT_EXPIRY:
        words += field("x", _quantity(expiry, "expiry"))
    if min_final_cltv is not None:
        words += field("c", _quantity(min_final_cltv, "final CLTV delta"))
    if name_payee:
        words += field("n", to_words(node_public_key(node_secret)))
    for version, program in fallbacks:
        if not 0 <= version <= 18:
            raise Bolt11Invalid(f"unknown fallback version {version}")
        words += field("f", [version, *to_words(program)])
    for hint in route_hints:
        if not hint or len(hint) % 51:
            raise Bolt11Invalid("a route hint is made of hops of 51 bytes")
        words += field("r", to_words(hint))
    if metadata is not None:
        words += field("m", to_words(metadata))
    bits = sum(1 << bit for bit in set(features))
    if bits:
        words += field("9", _to_words(bits))
    return seal("ln" + prefix + _amount_text(amount_msats), words, node_secret)


# The quote's check and the payment that follows read the same invoice: half a millisecond each.
@functools.lru_cache(maxsize=64)
def decode(text: str, *, max_chars: int = MAX_CHARS) -> Invoice:
    """Parse an invoice, upper or lower case, and check its checksum and signature.

    Raises ``Bolt11Invalid`` with the reason. Says nothing about whether it should be paid: see ``check_terms``.
    """
    if len(text) > max_chars:
        raise Bolt11Invalid(f"longer than {max_chars} characters")
    hrp, words = _split(text)
    prefix, amount = _read_hrp(hrp)
    if len(words) < _TIMESTAMP_WORDS + _SIGNATURE_WORDS:
        raise Bolt11Invalid("too short to be an invoice")
    body, signed = words[:-_SIGNATURE_WORDS], to_bytes(words[-_SIGNATURE_WORDS:])
    found = _read_fields(body[_TIMESTAMP_WORDS:])
    description, description_hash = found.description, found.description_hash
    if found.payment_hash is None:
        raise Bolt11Invalid("no payment hash")
    if found.payment_secret is None:
        raise Bolt11Invalid("no payment secret")
    if description is None and description_hash is None:
        raise Bolt11Invalid("neither a description nor the hash of one")
    if description is not None and description_hash is not None:
        raise Bolt11Invalid("both a description and the hash of one")
    unknown = sorted(bit for bit in found.features if bit % 2 == 0 and bit not in KNOWN_REQUIRED_FEATURES)
    if unknown:
        raise Bolt11Invalid(f"requires unknown feature {unknown[0]}")
    digest = _digest(hrp, body)
    payee = _recover(digest, signed) if found.payee is None else _verify(digest, signed, found.payee)
    return Invoice(
        prefix=prefix,
        amount_msats=amount,
        timestamp=_from_words(body[:_TIMESTAMP_WORDS]),
        payment_hash=found.payment_hash,
        payment_secret=found.payment_secret,
        description=description,
        description_hash=description_hash,
        expiry=DEFAULT_EXPIRY if found.expiry is None else found.expiry,
        min_final_cltv=DEFAULT_MIN_FINAL_CLTV if found.min_final_cltv is None else found.min_final_cltv,
        payee=payee.hex(),
        features=frozenset(found.features),
        metadata=found.metadata,
        fallbacks=tuple(found.fallbacks),
        route_hints=tuple(found.route_hints),
        signature=signed.hex(),
    )


def check_terms(
    invoice: Invoice,
    *,
    prefix: str,
    amount_msats: int,
    now: float,
    min_seconds: float = 0.0,
    payment_hash: str | None = None,
    payee: str | None = None,
) -> None:
    """Is this the invoice that was agreed upon? ``amount_msats`` must be equal, not merely enough.

    ``min_seconds`` is the time that it must still be payable. Raises ``TermsMismatch`` naming the first difference.
    """
    if invoice.prefix != prefix:
        raise TermsMismatch(f"the invoice is for {invoice.network}, not for {NETWORKS.get(prefix, prefix)}")
    if invoice.amount_msats is None:
        raise TermsMismatch("the invoice names no amount")
    if invoice.amount_msats != amount_msats:
        raise TermsMismatch(f"the invoice asks for {invoice.amount_msats} msat, agreed were {amount_msats} msat")
    if invoice.is_expired(now):
        raise TermsMismatch("the invoice has expired")
    if invoice.is_expired(now + min_seconds):
        raise TermsMismatch(f"the invoice expires in less than {min_seconds:g} s")
    if payment_hash is not None and invoice.payment_hash != payment_hash:
        raise TermsMismatch("the invoice has another payment hash")
    if payee is not None and invoice.payee != payee:
        raise TermsMismatch("the invoice pays another node")


def node_public_key(node_secret: bytes | SecretKey) -> bytes:
    """The node's identity: 33 bytes, compressed. Raises ``Bolt11Invalid`` for a secret that is no key."""
    point = ffi.new("secp256k1_pubkey *")
    if lib.secp256k1_ec_pubkey_create(secp256k1_ctx, point, _secret(node_secret)) != 1:
        raise Bolt11Invalid("the node secret is no valid key")
    return _serialize(point)


def field(letter: str, words: Sequence[int]) -> list[int]:
    """One tagged field: type, length, data. ``words`` are 5-bit values."""
    if len(words) > 1023:
        raise Bolt11Invalid(f"field {letter!r} is longer than {MAX_FIELD_BYTES} bytes")
    return [CHARSET.index(letter), len(words) >> 5, len(words) & 31, *words]


def seal(hrp: str, words: Sequence[int], node_secret: bytes | SecretKey) -> str:
    """Sign a readable part and its data (timestamp and fields, 5-bit values); the invoice as text.

    The last step of ``encode``; by itself it makes invoices that no honest writer makes, for tests.
    """
    signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    secret, digest = _secret(node_secret), _digest(hrp, words)
    if lib.secp256k1_ecdsa_sign_recoverable(secp256k1_ctx, signature, digest, secret, ffi.NULL, ffi.NULL) != 1:
        raise Bolt11Invalid("the node secret is no valid key")
    compact, recovery_id = ffi.new("unsigned char[64]"), ffi.new("int *")
    lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(secp256k1_ctx, compact, recovery_id, signature)
    return attach_signature(hrp, words, bytes(ffi.buffer(compact, 64)) + bytes([recovery_id[0]]))


def attach_signature(hrp: str, words: Sequence[int], signature: bytes) -> str:
    """The invoice as text with a signature made elsewhere: 64 bytes R || S and the recovery id."""
    return bech32_words.encode(hrp, [*words, *to_words(signature)])


@attrs.define
class _Fields:
    payment_hash: str | None = None
    payment_secret: str | None = None
    description: str | None = None
    description_hash: str | None = None
    expiry: int | None = None
    min_final_cltv: int | None = None
    payee: bytes | None = None
    metadata: bytes | None = None
    features: list[int] = attrs.Factory(list)
    fallbacks: list[tuple[int, bytes]] = attrs.Factory(list)
    route_hints: list[bytes] = attrs.Factory(list)


def _read_fields(words: Sequence[int]) -> _Fields:
    """Of a field given twice the first counts, as payers do with ``p``."""
    found, at, seen = _Fields(), 0, set[str]()
    while at < len(words):
        if at + 3 > len(words):
            raise Bolt11Invalid("a field is cut off")
        letter, length = CHARSET[words[at]], words[at + 1] << 5 | words[at + 2]
        data = words[at + 3 : at + 3 + length]
        if len(data) != length:
            raise Bolt11Invalid(f"field {letter!r} is cut off")
        at += 3 + length
        if letter == "r":
            found.route_hints.append(_unpack(data))
        elif letter == "f":
            if data and data[0] <= 18:
                found.fallbacks.append((data[0], _unpack(data[1:])))
        elif letter in seen:
            continue
        elif _read_single(found, letter, data):
            seen.add(letter)
    return found


def _read_single(found: _Fields, letter: str, data: Sequence[int]) -> bool:
    """A field of which there is one; whether it was one that we know, and of the right length."""
    match letter, len(data):
        case "p", 52:
            found.payment_hash = _unpack(data).hex()
        case "s", 52:
            found.payment_secret = _unpack(data).hex()
        case "h", 52:
            found.description_hash = _unpack(data).hex()
        case "n", 53:
            found.payee = _unpack(data)
        case "d", _:
            try:
                found.description = _unpack(data).decode()
            except UnicodeDecodeError:
                raise Bolt11Invalid("the description is not UTF-8") from None
        case "m", _:
            found.metadata = _unpack(data)
        case "x", _:
            found.expiry = _read_quantity(data, "expiry")
        case "c", _:
            found.min_final_cltv = _read_quantity(data, "final CLTV delta")
        case "9", _:
            bits = _from_words(_minimal(data, "features"))
            found.features = [bit for bit in range(bits.bit_length()) if bits >> bit & 1]
        case _:
            return False
    return True


def _split(text: str) -> tuple[str, list[int]]:
    """Bech32 without its limit of 90 characters; the reason of a failure is found afterwards."""
    found = bech32_words.decode(text)
    if found is not None:
        return found
    if not text.isascii() or not text.isprintable():
        raise Bolt11Invalid("characters that no invoice has")
    if text.lower() != text and text.upper() != text:
        raise Bolt11Invalid("mixed upper and lower case")
    before, separator, after = text.lower().rpartition("1")
    if not separator or not before.startswith("ln"):
        raise Bolt11Invalid("does not look like an invoice: it starts with 'ln' and has a '1'")
    if not set(after) <= set(CHARSET):
        raise Bolt11Invalid("characters that no invoice has")
    raise Bolt11Invalid("the checksum does not match: a character is wrong or missing")


def _read_hrp(hrp: str) -> tuple[str, int | None]:
    matched = _HRP.fullmatch(hrp)
    if matched is None:
        raise Bolt11Invalid("does not start with 'ln', a network and an amount")
    prefix, digits, multiplier = matched.groups()
    if prefix not in NETWORKS:
        raise Bolt11Invalid(f"unknown network prefix {prefix!r}")
    if digits is None:
        return prefix, None
    if multiplier not in _MULTIPLIERS:
        raise Bolt11Invalid(f"unknown multiplier {multiplier!r} of the amount")
    if digits.startswith("0"):
        raise Bolt11Invalid("the amount is zero or has leading zeros")
    msats, rest = divmod(int(digits) * _MULTIPLIERS[multiplier], 10)
    if rest:
        raise Bolt11Invalid("the amount is no whole number of millisatoshi")
    if msats > MAX_AMOUNT_MSATS:
        raise Bolt11Invalid("the amount is more than exists")
    return prefix, msats


def _amount_text(amount_msats: int | None) -> str:
    """The shortest form: the largest multiplier that leaves a whole number."""
    if amount_msats is None:
        return ""
    if not 0 < amount_msats <= MAX_AMOUNT_MSATS:
        raise Bolt11Invalid("the amount must be positive, and not more than exists")
    tenths = amount_msats * 10
    letter, unit = next((letter, unit) for letter, unit in _MULTIPLIERS.items() if tenths % unit == 0)
    return f"{tenths // unit}{letter}"


def _digest(hrp: str, words: Sequence[int]) -> bytes:
    return hashlib.sha256(hrp.encode("ascii") + to_bytes(words)).digest()


def _recover(digest: bytes, signed: bytes) -> bytes:
    """High-S is accepted here, as the specification says: the recovery id says which key is meant."""
    signature, point = ffi.new("secp256k1_ecdsa_recoverable_signature *"), ffi.new("secp256k1_pubkey *")
    if (
        signed[64] > 3
        or lib.secp256k1_ecdsa_recoverable_signature_parse_compact(secp256k1_ctx, signature, signed[:64], signed[64])
        != 1
        or lib.secp256k1_ecdsa_recover(secp256k1_ctx, point, signature, digest) != 1
    ):
        raise Bolt11Invalid("no key can be recovered from the signature")
    return _serialize(point)


def _verify(digest: bytes, signed: bytes, payee: bytes) -> bytes:
    signature, point = ffi.new("secp256k1_ecdsa_signature *"), ffi.new("secp256k1_pubkey *")
    if lib.secp256k1_ec_pubkey_parse(secp256k1_ctx, point, payee, len(payee)) != 1:
        raise Bolt11Invalid("the payee named is no public key")
    if lib.secp256k1_ecdsa_signature_parse_compact(secp256k1_ctx, signature, signed[:64]) != 1:
        raise Bolt11Invalid("the signature is malformed")
    if lib.secp256k1_ecdsa_signature_normalize(secp256k1_ctx, ffi.NULL, signature) == 1:
        raise Bolt11Invalid("the signature is not in low-S form, which an invoice that names its payee must have")
    if lib.secp256k1_ecdsa_verify(secp256k1_ctx, signature, digest, point) != 1:
        raise Bolt11Invalid("the signature is not by the payee named")
    return payee


def _serialize(point: object) -> bytes:
    out, length = ffi.new("unsigned char[33]"), ffi.new("size_t *", 33)
    lib.secp256k1_ec_pubkey_serialize(secp256k1_ctx, out, length, point, lib.SECP256K1_EC_COMPRESSED)
    return bytes(ffi.buffer(out, 33))


def _secret(node_secret: bytes | SecretKey) -> bytes:
    raw = node_secret.reveal() if isinstance(node_secret, SecretKey) else node_secret
    # The C side reads 32 bytes whatever it is given.
    if len(raw) != 32:
        raise Bolt11Invalid("a node secret has 32 bytes")
    return raw


def _hex32(text: str, what: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32 or len(text) != 64:
        raise Bolt11Invalid(f"the {what} must be 64 hex characters")
    return raw


def _utf8(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise Bolt11Invalid("the description is not Unicode text") from None
    if len(raw) > MAX_FIELD_BYTES:
        raise Bolt11Invalid(f"the description is longer than {MAX_FIELD_BYTES} bytes: use its hash")
    return raw


def _quantity(value: int, what: str) -> list[int]:
    if not 0 < value <= MAX_QUANTITY:
        raise Bolt11Invalid(f"the {what} must be positive, and at most 2^53")
    return _to_words(value)


def _read_quantity(data: Sequence[int], what: str) -> int:
    if len(_minimal(data, what)) > 11 or (value := _from_words(data)) > MAX_QUANTITY:
        raise Bolt11Invalid(f"the {what} is over 2^53")
    return value


def _minimal(data: Sequence[int], what: str) -> Sequence[int]:
    if data and data[0] == 0:
        raise Bolt11Invalid(f"the {what} field starts with zeros")
    return data


def _unpack(words: Sequence[int]) -> bytes:
    """Whole bytes; the bits that pad the last word are dropped."""
    return to_bytes(words)[: len(words) * 5 // 8]


def _to_words(value: int, length: int | None = None) -> list[int]:
    """Big-endian 5-bit words; as few as possible where no length is given."""
    count = -(-value.bit_length() // 5) if length is None else length
    return [value >> 5 * i & 31 for i in reversed(range(count))]


def _from_words(words: Sequence[int]) -> int:
    value = 0
    for word in words:
        value = value << 5 | word
    return value
