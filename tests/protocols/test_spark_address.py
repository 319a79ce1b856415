"""Spark addresses: what the SDK makes of the same keys, both ways, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import bolt11
from protocols.spark_address import PREFIXES, SparkAddress, SparkAddressInvalid, decode, encode, looks_like

KEY = "02698b27ac308b275671b3ca25436346469d04a5bba578ae39feba1d65897a6abc"
ADDRESS = "sparkrt1pgssy6vty7krpze82ecm8j39gd35v35aqjjmhftc4culawsavkyh564u2uv8v0"
"""What the Breez SDK 0.27.2 gives for that key on regtest."""

secrets = st.integers(1, 2**255).map(lambda number: number.to_bytes(32, "big"))


def test_it_is_the_sdks():
    assert encode("regtest", KEY) == ADDRESS
    assert decode(ADDRESS) == SparkAddress("regtest", KEY)
    assert decode(f" {ADDRESS.upper()}\n") == SparkAddress("regtest", KEY)


@given(secrets, st.sampled_from(sorted(PREFIXES)))
def test_what_is_encoded_is_decoded(secret, network):
    key = bolt11.node_public_key(secret).hex()
    text = encode(network, key)
    assert looks_like(text)
    assert decode(text) == SparkAddress(network, key)


@given(st.integers(9, len(ADDRESS) - 1), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
def test_one_wrong_letter_is_seen(place, letter):
    changed = ADDRESS[:place] + letter + ADDRESS[place + 1 :]
    if changed != ADDRESS:
        with pytest.raises(SparkAddressInvalid):
            decode(changed)


@given(st.text(max_size=80) | st.text("sparkt1qpzry9x8gf2tvdw0s3jn54khce6mua7l", max_size=120))
def test_anything_else_is_refused_and_never_breaks(text):
    looks_like(text)
    try:
        decode(text)
    except SparkAddressInvalid:
        pass


@pytest.mark.parametrize("text", ["", "1", "spark1", "sparkrt1qqqqqq", ADDRESS[:-1], ADDRESS.replace("p", "P", 1)])
def test_what_is_none(text):
    with pytest.raises(SparkAddressInvalid):
        decode(text)


def test_a_key_off_the_curve_has_no_address():
    with pytest.raises(SparkAddressInvalid):
        encode("regtest", "02" + "ff" * 32)
    with pytest.raises(SparkAddressInvalid):
        encode("simnet", KEY)
