"""Spark addresses: the identity key of a Spark wallet, in bech32m.

The payload is a protobuf message ``SparkAddress`` (field 1: identity public key, 33 bytes; field 2, where it is there:
the fields of a *Spark invoice*), the prefix names the network. Source: the ``address`` module
of the ``spark`` crate that the Breez SDK is built on. bech32m: BIP-350.
"""

from __future__ import annotations

import attrs

from protocols import bech32_words
from protocols.keys import PublicKey

PREFIXES = {"mainnet": "spark", "testnet": "sparkt", "regtest": "sparkrt", "signet": "sparks"}
"""Of addresses, by network."""
_OLD_PREFIXES = {"mainnet": "sp", "testnet": "spt", "regtest": "sprt", "signet": "sps"}
_NETWORKS = {prefix: network for table in (PREFIXES, _OLD_PREFIXES) for network, prefix in table.items()}
_MAX_CHARS = 2_000


class SparkAddressInvalid(ValueError):
    """No Spark address; the message says why."""


@attrs.frozen
class SparkAddress:
    """What an address says."""

    network: str
    """``mainnet``, ``testnet``, ``regtest`` or ``signet``."""
    identity: str
    """Public key of the wallet, hex, 33 bytes compressed."""
    invoice: bool = False
    """It asks for something particular: a Spark invoice, not an address."""


def looks_like(text: str) -> bool:
    """Whether ``text`` begins as Spark addresses do, be it right or wrong."""
    prefix, separator, _ = text.strip().lower().rpartition("1")
    return bool(separator) and prefix in _NETWORKS


def encode(network: str, identity: str) -> str:
    """The address of a wallet. Raises ``SparkAddressInvalid``."""
    if network not in PREFIXES:
        raise SparkAddressInvalid(f"no Spark network is called {network!r}")
    words = bech32_words.to_words(b"\x0a\x21" + _key(bytes.fromhex(identity)))
    return bech32_words.encode(PREFIXES[network], words, bech32m=True)


def decode(text: str) -> SparkAddress:
    """Read an address. Raises ``SparkAddressInvalid``."""
    text = text.strip()
    read = bech32_words.decode(text, bech32m=True) if len(text) <= _MAX_CHARS else None
    if read is None:
        raise SparkAddressInvalid("it does not read, or its checksum is wrong: is it complete?")
    prefix, words = read
    network = _NETWORKS.get(prefix)
    if network is None:
        raise SparkAddressInvalid("it does not begin as Spark addresses do")
    payload, whole = bech32_words.to_bytes(words), len(words) * 5 // 8
    if len(words) * 5 % 8 >= 5 or any(payload[whole:]):
        raise SparkAddressInvalid("its length is wrong")
    payload = payload[:whole]
    fields = dict(_fields(payload))
    if 1 not in fields:
        raise SparkAddressInvalid("it names no wallet")
    return SparkAddress(network, _key(fields[1]).hex(), invoice=2 in fields)


def _key(raw: bytes) -> bytes:
    """``raw``, which must be a point on the curve."""
    if len(raw) != 33 or raw[0] not in (2, 3):
        raise SparkAddressInvalid("its key is no public key")
    try:
        PublicKey(raw[1:])
    except ValueError:
        raise SparkAddressInvalid("its key is no public key") from None
    return raw


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    """The fields of a protobuf message, all of which have a length in an address."""
    found, place = [], 0
    while place < len(raw):
        tag, length = raw[place], raw[place + 1] if place + 1 < len(raw) else 0
        place += 2
        if length & 0x80:  # a length of two bytes; more than that no address has
            if place >= len(raw) or raw[place] & 0x80:
                raise SparkAddressInvalid("it is cut off")
            length = (length & 0x7F) | (raw[place] << 7)
            place += 1
        if tag & 7 != 2 or place + length > len(raw):
            raise SparkAddressInvalid("it is cut off")
        found.append((tag >> 3, raw[place : place + length]))
        place += length
    return found
