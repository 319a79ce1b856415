"""Spark addresses: the identity key of a Spark wallet, in bech32m.

The payload is a protobuf message ``SparkAddress`` (field 1: identity public key, 33 bytes; field 2, where it is there:
the fields of a *Spark invoice*), the prefix names the network. Source: the ``address`` module
of the ``spark`` crate that the Breez SDK is built on. bech32m: BIP-350.
"""

from __future__ import annotations

import attrs
import bech32

from protocols.keys import PublicKey

PREFIXES = {"mainnet": "spark", "testnet": "sparkt", "regtest": "sparkrt", "signet": "sparks"}
"""Of addresses, by network."""
_OLD_PREFIXES = {"mainnet": "sp", "testnet": "spt", "regtest": "sprt", "signet": "sps"}
_NETWORKS = {prefix: network for table in (PREFIXES, _OLD_PREFIXES) for network, prefix in table.items()}
_BECH32M = 0x2BC830A3
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
    key = _key(bytes.fromhex(identity))
    data = bech32.convertbits(b"\x0a\x21" + key, 8, 5)
    assert data is not None, "bytes convert"
    values = bech32.bech32_hrp_expand(PREFIXES[network]) + data
    checksum = bech32.bech32_polymod([*values, *[0] * 6]) ^ _BECH32M
    words = data + [(checksum >> 5 * (5 - place)) & 31 for place in range(6)]
    return PREFIXES[network] + "1" + "".join(bech32.CHARSET[word] for word in words)


def decode(text: str) -> SparkAddress:
    """Read an address. Raises ``SparkAddressInvalid``."""
    text = text.strip()
    if len(text) > _MAX_CHARS or not text.isascii():
        raise SparkAddressInvalid("not a Spark address")
    if text not in (text.lower(), text.upper()):
        raise SparkAddressInvalid("capitals and small letters are mixed")
    prefix, separator, rest = text.lower().rpartition("1")
    network = _NETWORKS.get(prefix)
    if not separator or network is None:
        raise SparkAddressInvalid("it does not begin as Spark addresses do")
    words = [bech32.CHARSET.find(char) for char in rest]
    if len(words) < 6 or -1 in words:
        raise SparkAddressInvalid("it has characters that no address has")
    if bech32.bech32_polymod(bech32.bech32_hrp_expand(prefix) + words) != _BECH32M:
        raise SparkAddressInvalid("its checksum is wrong: is it complete?")
    payload = bech32.convertbits(words[:-6], 5, 8, False)
    if payload is None:
        raise SparkAddressInvalid("its length is wrong")
    fields = dict(_fields(bytes(payload)))
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
