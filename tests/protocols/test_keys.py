"""Keys: the published BIP-340 vectors, an independent library, and what must be refused."""

from __future__ import annotations

import csv
from pathlib import Path

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.keys import KeyInvalid, PublicKey, SecretKey
from protocols.strategies import secret_keys

# bitcoin/bips, bip-0340/test-vectors.csv
VECTORS = list(csv.DictReader((Path(__file__).parent / "vectors" / "bip340.csv").read_text().splitlines()))
FIT = [vector for vector in VECTORS if len(vector["message"]) == 64]
messages = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("vector", FIT, ids=lambda vector: vector["index"])
def test_bip340(vector):
    message, signature = bytes.fromhex(vector["message"]), bytes.fromhex(vector["signature"])
    if vector["secret key"]:
        secret = SecretKey(bytes.fromhex(vector["secret key"]))
        assert secret.public.hex == vector["public key"].lower()
        assert secret.sign(message, bytes.fromhex(vector["aux_rand"])) == signature
    try:
        verified = PublicKey(bytes.fromhex(vector["public key"])).verify(message, signature)
    except KeyInvalid:
        verified = False
    assert verified is (vector["verification result"] == "TRUE")


def test_most_vectors_apply():
    assert len(FIT) == 15, "those with messages of another length do not concern Nostr"


@given(secret_keys, messages)
def test_what_we_sign_verifies_and_nothing_else_does(secret, message):
    signature = secret.sign(message)
    assert secret.public.verify(message, signature)
    assert not secret.public.verify(bytes([message[0] ^ 1]) + message[1:], signature)
    assert not secret.public.verify(message, signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not secret.public.verify(message, signature[:-1])
    assert not secret.public.verify(message[:-1], signature)


@given(secret_keys, secret_keys)
def test_both_ends_share_the_same_point(one, other):
    assert one.ecdh_x(other.public) == other.ecdh_x(one.public)


@given(secret_keys)
def test_nostr_sdk_derives_the_same_public_key(secret):
    keys = nostr_sdk.Keys.parse(secret.reveal().hex())
    assert keys.public_key().to_hex() == secret.public.hex


@given(secret_keys)
def test_a_secret_key_shows_nothing(secret):
    assert secret.reveal().hex() not in f"{secret!r} {secret} {secret:}"
    with pytest.raises(TypeError):
        hash(secret)


@pytest.mark.parametrize("raw", [b"", bytes(32), b"\xff" * 32, b"\x01" * 31, b"\x01" * 33])
def test_what_is_no_secret_key_is_refused(raw):
    with pytest.raises(KeyInvalid) as caught:
        SecretKey(raw)
    assert raw.hex() not in str(caught.value) or not raw


@pytest.mark.parametrize("text", ["", "ff" * 32, "AB" * 32, "a" * 63, "g" * 64, "٣" * 64, "aa" * 31 + "a\n"])
def test_what_is_no_public_key_is_refused(text):
    with pytest.raises(KeyInvalid):
        PublicKey.from_hex(text)
