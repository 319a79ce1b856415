"""Hypothesis strategies for BOLT 11: valid invoices, and invoices broken in named ways.

Part of the public test harness: needs ``hypothesis``, which the runtime does not install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from bech32 import CHARSET, bech32_encode, convertbits
from hypothesis import strategies as st

from protocols import bolt11
from protocols.keys import CURVE_ORDER

_LONGEST_HINT = 12 * 51

node_secrets: st.SearchStrategy[bytes] = st.integers(1, CURVE_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
hashes: st.SearchStrategy[str] = st.binary(min_size=32, max_size=32).map(bytes.hex)
descriptions: st.SearchStrategy[str] = st.text(st.characters(exclude_categories=["Cs"]), max_size=150)
amounts: st.SearchStrategy[int] = st.one_of(
    st.integers(1, 10_000_000),
    st.integers(1, bolt11.MAX_AMOUNT_MSATS),
    st.integers(1, 100_000).map(lambda sats: sats * 1_000),
)


@st.composite
def invoice_fields(
    draw: st.DrawFn, *, prefixes: Sequence[str] = tuple(bolt11.NETWORKS), plain: bool = False
) -> dict[str, Any]:
    """Keyword arguments for ``bolt11.encode``, its ``node_secret`` included.

    ``plain`` keeps to what every wallet's parser knows: an amount, a description, the default features, no metadata,
    fallbacks or hints.
    """
    fields: dict[str, Any] = {
        "prefix": draw(st.sampled_from(list(prefixes))),
        "amount_msats": draw(amounts if plain else st.none() | amounts),
        "timestamp": draw(st.integers(0, bolt11.MAX_TIMESTAMP)),
        "payment_hash": draw(hashes),
        "payment_secret": draw(hashes),
        "node_secret": draw(node_secrets),
        "expiry": draw(st.integers(1, 10_000_000) | st.just(bolt11.DEFAULT_EXPIRY)),
        "min_final_cltv": draw(st.integers(1, 5_000)),
    }
    if plain or draw(st.booleans()):
        return fields | {"description": draw(descriptions)}
    fields["description_hash"] = draw(hashes)
    fields["features"] = bolt11.DEFAULT_FEATURES | draw(
        st.frozensets(st.sampled_from([*bolt11.KNOWN_REQUIRED_FEATURES, *range(1, 200, 2)]))
    )
    fields["metadata"] = draw(st.none() | st.binary(max_size=60))
    fields["fallbacks"] = draw(
        st.lists(st.tuples(st.sampled_from([0, 1, 17, 18]), st.binary(min_size=20, max_size=32)), max_size=2)
    )
    hops = st.integers(1, _LONGEST_HINT // 51).flatmap(lambda n: st.binary(min_size=51 * n, max_size=51 * n))
    fields["route_hints"] = draw(st.lists(hops, max_size=2))
    fields["name_payee"] = draw(st.booleans())
    return fields


def invoices(*, prefixes: Sequence[str] = tuple(bolt11.NETWORKS), plain: bool = False) -> st.SearchStrategy[str]:
    """Valid invoices as text."""
    return invoice_fields(prefixes=prefixes, plain=plain).map(lambda fields: bolt11.encode(**fields))


@attrs.frozen
class BrokenInvoice:
    """Text that ``bolt11.decode`` must refuse, with the way in which it is broken."""

    way: str
    text: str


def broken_invoices(*ways: str) -> st.SearchStrategy[BrokenInvoice]:
    """Invoices broken in one of ``ways`` (keys of ``WAYS``); in any of them where none is named."""

    def break_it(way: str) -> st.SearchStrategy[BrokenInvoice]:
        fields = invoice_fields(plain=True)
        return st.tuples(fields, st.randoms(use_true_random=False)).map(
            lambda drawn: BrokenInvoice(way, WAYS[way](drawn[0], drawn[1]))
        )

    return st.sampled_from(ways or sorted(WAYS)).flatmap(break_it)


def _words(text: str) -> tuple[str, list[int]]:
    """Readable part and data without signature and checksum."""
    hrp, _, data = text.rpartition("1")
    return hrp, [CHARSET.index(letter) for letter in data[:-110]]


def _without(words: list[int], letter: str) -> list[int]:
    kept, at = words[:7], 7
    while at < len(words):
        end = at + 3 + (words[at + 1] << 5 | words[at + 2])
        if CHARSET[words[at]] != letter:
            kept += words[at:end]
        at = end
    return kept


def _rewritten(change: Callable[[list[int]], list[int]]) -> Callable[[dict[str, Any], Any], str]:
    """Other fields, signed properly."""

    def broken(fields: dict[str, Any], random: Any) -> str:
        hrp, words = _words(bolt11.encode(**fields))
        return bolt11.seal(hrp, change(words), fields["node_secret"])

    return broken


def _readable_part(amount: str, prefix: str | None = None) -> Callable[[dict[str, Any], Any], str]:
    """Another readable part, signed properly."""

    def broken(fields: dict[str, Any], random: Any) -> str:
        _, words = _words(bolt11.encode(**fields))
        return bolt11.seal("ln" + (prefix or fields["prefix"]) + amount, words, fields["node_secret"])

    return broken


def _signed_with(signature: bytes) -> Callable[[dict[str, Any], Any], str]:
    def broken(fields: dict[str, Any], random: Any) -> str:
        return bolt11.attach_signature(*_words(bolt11.encode(**fields)), signature)

    return broken


def _mixed_case(fields: dict[str, Any], random: Any) -> str:
    text = bolt11.encode(**fields)
    return text[:2].upper() + text[2:]


def _changed_character(fields: dict[str, Any], random: Any) -> str:
    text = bolt11.encode(**fields)
    at = random.randrange(text.rindex("1") + 1, len(text))
    other: str = random.choice([letter for letter in CHARSET if letter != text[at]])
    return text[:at] + other + text[at + 1 :]


def _cut_off(fields: dict[str, Any], random: Any) -> str:
    text = bolt11.encode(**fields)
    length: int = random.randrange(len(text))
    return text[:length]


def _unsigned(fields: dict[str, Any], random: Any) -> str:
    hrp, words = _words(bolt11.encode(**fields))
    return str(bech32_encode(hrp, words[: random.randrange(104)]))


def _high_s_with_payee(fields: dict[str, Any], random: Any) -> str:
    text = bolt11.encode(**fields, name_payee=True)
    signed = bytes.fromhex(bolt11.decode(text).signature)
    high = CURVE_ORDER - int.from_bytes(signed[32:64], "big")
    return bolt11.attach_signature(*_words(text), signed[:32] + high.to_bytes(32, "big") + bytes([signed[64] ^ 1]))


def _another_payee(fields: dict[str, Any], random: Any) -> str:
    other = (int.from_bytes(fields["node_secret"], "big") % (CURVE_ORDER - 1) + 1).to_bytes(32, "big")
    named = bolt11.node_public_key(other)
    hrp, words = _words(bolt11.encode(**fields))
    return bolt11.seal(hrp, words + bolt11.field("n", convertbits(named, 8, 5, True) or []), fields["node_secret"])


def _payee_off_the_curve(fields: dict[str, Any], random: Any) -> str:
    hrp, words = _words(bolt11.encode(**fields))
    return bolt11.seal(hrp, [*words, *bolt11.field("n", [0] * 53)], fields["node_secret"])


def _feature_words(*bits: int) -> list[int]:
    """Feature bits as 5-bit words."""
    value = sum(1 << bit for bit in bits)
    return [value >> 5 * i & 31 for i in reversed(range(max(bits) // 5 + 1))]


WAYS: dict[str, Callable[[dict[str, Any], Any], str]] = {
    "amount over what exists": _readable_part("21000001"),
    "amount with leading zero": _readable_part("010u"),
    "amount zero": _readable_part("0"),
    "amount with more behind": _readable_part("10m5"),
    "amount with a point": _readable_part("2.5m"),
    "another payee named": _another_payee,
    "changed character": _changed_character,
    "cut off": _cut_off,
    "description and hash": _rewritten(lambda words: words + bolt11.field("h", [0] * 52)),
    "description missing": _rewritten(lambda words: _without(words, "d")),
    "description not UTF-8": _rewritten(
        lambda words: _without(words, "d") + bolt11.field("d", convertbits(b"\xff\xfe", 8, 5, True) or [])
    ),
    "expiry beyond numbers": _rewritten(lambda words: words[:7] + bolt11.field("x", [31] * 500) + words[7:]),
    "expiry with leading zeros": _rewritten(lambda words: words[:7] + bolt11.field("x", [0, 1]) + words[7:]),
    "feature required and unknown": _rewritten(
        lambda words: _without(words, "9") + bolt11.field("9", _feature_words(8, 14, 100))
    ),
    "field overruns": _rewritten(lambda words: [*words, CHARSET.index("d"), 31, 31, 1]),
    "field without length": _rewritten(lambda words: [*words, CHARSET.index("d")]),
    "fraction of a millisatoshi": _readable_part("15p"),
    "hash missing": _rewritten(lambda words: _without(words, "p")),
    "hash of wrong length": _rewritten(lambda words: _without(words, "p") + bolt11.field("p", [1] * 51)),
    "high S with payee named": _high_s_with_payee,
    "mixed case": _mixed_case,
    "multiplier unknown": _readable_part("25x"),
    "network unknown": _readable_part("25m", "xyz"),
    "payee off the curve": _payee_off_the_curve,
    "secret missing": _rewritten(lambda words: _without(words, "s")),
    "signature of zeros": _signed_with(bytes(65)),
    "signature over the order": _signed_with(b"\xff" * 64 + b"\x00"),
    "signature with recovery id 4": _signed_with(b"\x01" * 64 + b"\x04"),
    "too long": _rewritten(lambda words: words + 8 * bolt11.field("z", [0] * 1023)),
    "unsigned": _unsigned,
}
"""Every way in which ``broken_invoices`` breaks one, by name."""
