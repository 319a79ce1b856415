"""What a payer on simnet is given, read: invoices, and simnet's own forms of a Spark and of a Bitcoin address.

Both addresses are Bech32m (BIP-350) of the wallet's node key (33 bytes, compressed). Their prefixes, ``simspark`` and
``simbtc``, are those of no real network: no real wallet pays to them, and who reads one sees what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocols import bech32_words, bolt11
from pylon.errors import InvoiceInvalid
from pylon.wallets.port import Target, TargetKind

NETWORK = "simnet"
SPARK_PREFIX = "simspark"
BITCOIN_PREFIX = "simbtc"

_REAL_SPARK: Mapping[str, str] = {
    **{"spark": "mainnet", "sparkt": "testnet", "sparks": "signet", "sparkrt": "regtest", "sparkl": "local"},
    # As they were spelled before.
    **{"sp": "mainnet", "spt": "testnet", "sps": "signet", "sprt": "regtest", "spl": "local"},
}
_REAL_SPARK_BEGINS = bytes([0x0A, 33])
"""Protobuf: field 1, 33 bytes, the wallet's key. Tells them from silent payments (BIP-352), ``sp1`` too."""
_MAX_CHARS = 1_000


def spark_address(node_pubkey: str) -> str:
    return _address(SPARK_PREFIX, node_pubkey)


def bitcoin_address(node_pubkey: str) -> str:
    return _address(BITCOIN_PREFIX, node_pubkey)


def bitcoin_owner(address: str) -> str:
    """The node key, in hex, that a simnet Bitcoin address is of. Raises ``InvoiceInvalid``."""
    node = _node(BITCOIN_PREFIX, address)
    if node is None:
        raise InvoiceInvalid("not a Bitcoin address of simnet", f"they begin with {BITCOIN_PREFIX}1")
    return node


def read_target(text: str) -> Target:
    """An invoice of any Lightning network, or a Spark address of simnet or of any Spark network.

    Raises ``InvoiceInvalid``.
    """
    return _read_address(text) or _read_invoice(text)


def _read_invoice(text: str) -> Target:
    try:
        invoice = bolt11.decode(text)
    except bolt11.Bolt11Invalid as error:
        raise InvoiceInvalid(f"not a Lightning invoice: {error}") from None
    return Target.of_invoice(text.lower(), invoice)


def _read_address(text: str) -> Target | None:
    """``None`` for what is no address at all."""
    if len(text) > _MAX_CHARS:
        return None
    found = bech32_words.decode(text, bech32m=True)
    if found is None:
        return None
    low, (prefix, words) = text.lower(), found
    if prefix in _REAL_SPARK and bech32_words.to_bytes(words).startswith(_REAL_SPARK_BEGINS):
        return Target(TargetKind.SPARK, low, _REAL_SPARK[prefix], None, payee=low)
    if prefix == BITCOIN_PREFIX:
        raise InvoiceInvalid("a Bitcoin address of simnet is to deposit to", "pay to the wallet's Spark address")
    if prefix == SPARK_PREFIX:
        node = _node(SPARK_PREFIX, text)
        if node is None:
            raise InvoiceInvalid("a Spark address of simnet that names no wallet")
        return Target(TargetKind.SPARK, low, NETWORK, None, payee=node)
    return None


def _address(prefix: str, node_pubkey: str) -> str:
    return bech32_words.encode(prefix, bech32_words.to_words(bytes.fromhex(node_pubkey)), bech32m=True)


def _node(prefix: str, address: str) -> str | None:
    """The key in an address of this prefix, if there is one, spelled in the one way there is."""
    found = bech32_words.decode(address, bech32m=True) if len(address) <= _MAX_CHARS else None
    if found is None or found[0] != prefix:
        return None
    # 33 bytes are 53 words and a bit; what is beyond the bytes must be nothing.
    node = bech32_words.to_bytes(found[1])[:33].hex()
    return node if len(node) == 66 and _address(prefix, node) == address.lower() else None
