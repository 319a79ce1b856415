"""NIP-44 beyond the vector file's conversations (those are in test_nips.py): its other parts, the NIP's long texts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import nip44

# From paulmillr/nip44; NIP-44 names it by this hash.
FILE = Path(__file__).parent / "vectors" / "nip44.vectors.json"
VECTORS = json.loads(FILE.read_text())["v2"]

# NIP-44, "Extended length prefix test vectors": the letter a, so many times, under this key and nonce.
LONG_KEY = bytes.fromhex("c41c775356fd92eadc63ff5a0dc1da211b268cbea22316767095b2871ea1412d")
LONG_NONCE = (1).to_bytes(32, "big")
LONG = [
    (65_535, 65_536, "6d8c2810d1e870fbaa1f0a0937126cca837a15f9260e27060c331d70a3c0bc84"),
    (65_536, 65_536, "b7b4edb36ba92e267d322d56d9aebc22e7fa96ff52e3c12adc07f07a43cbc616"),
    (65_537, 81_920, "eeb7c7c5373894ea2c1547cfd3ccb15d5a0b2d619da852e5c79df792dcc9e435"),
]


def test_the_vectors_are_those_that_the_nip_names():
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest == "269ed0f69e4c192512cc779e78c555090cebc7c785b609e338a62afc3ce25040"


def test_message_keys():
    group = VECTORS["valid"]["get_message_keys"]
    for case in group["keys"]:
        found = nip44._message_keys(bytes.fromhex(group["conversation_key"]), bytes.fromhex(case["nonce"]))
        assert [part.hex() for part in found] == [case["chacha_key"], case["chacha_nonce"], case["hmac_key"]]


@pytest.mark.parametrize(("length", "padded", "digest"), LONG)
def test_long_texts(length, padded, digest):
    assert nip44.padded_length(length) == padded
    payload = nip44.encrypt("a" * length, LONG_KEY, LONG_NONCE)
    assert hashlib.sha256(payload.encode()).hexdigest() == digest
    assert nip44.decrypt(payload, LONG_KEY) == "a" * length


def test_an_empty_text_is_not_sealed():
    # The file's other lengths there are refused by the older text of the NIP only: see the long texts.
    assert VECTORS["invalid"]["encrypt_msg_lengths"][0] == 0
    with pytest.raises(nip44.Nip44Error):
        nip44.encrypt("", LONG_KEY)


def test_a_text_that_is_not_unicode_is_not_sealed():
    with pytest.raises(nip44.Nip44Error) as caught:
        nip44.encrypt("secret \ud800", LONG_KEY)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("key", "nonce"), [(b"", LONG_NONCE), (LONG_KEY, b"\1" * 31), (LONG_KEY + b"\0", LONG_NONCE)])
def test_keys_and_nonces_have_32_bytes(key, nonce):
    with pytest.raises(nip44.Nip44Error):
        nip44.encrypt("x", key, nonce)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80), st.data())
def test_a_changed_bit_is_noticed(text, data):
    raw = bytearray(base64.b64decode(nip44.encrypt(text, LONG_KEY)))
    at = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(base64.b64encode(raw).decode(), LONG_KEY)


def sealed(padded):
    """A payload with a valid authentication code over this padded text: what only the other end can make."""
    cipher_key, cipher_nonce, mac_key = nip44._message_keys(LONG_KEY, LONG_NONCE)
    hidden = nip44._chacha20(cipher_key, cipher_nonce, padded)
    mac = hmac.new(mac_key, LONG_NONCE + hidden, hashlib.sha256).digest()
    return base64.b64encode(b"\2" + LONG_NONCE + hidden + mac).decode()


PADDINGS = {
    "length 0": bytes(34),
    "length beyond the end": b"\0\x21" + b"a" * 32,
    "padding too short": b"\0\x21" + b"a" * 33,
    "padding too long": b"\0\1a" + bytes(63),
    "extended form of a short text": b"\0\0\0\0\0\5hello" + bytes(27),
    "extended form cut off": b"\0\0\0\1\0\0" + bytes(32),
    "extended form beyond everything": b"\0\0\xff\xff\xff\xff" + bytes(32),
    "extended length one below its least": b"\0\0\0\0\xff\xff" + b"a" * 65_535 + b"\0",
    "not UTF-8": b"\0\1\xff" + bytes(31),
}


@pytest.mark.parametrize("name", sorted(PADDINGS))
def test_a_wrong_padding_is_refused_although_its_code_is_right(name):
    assert nip44.decrypt(sealed(b"\0\5hello" + bytes(27)), LONG_KEY) == "hello"
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(sealed(PADDINGS[name]), LONG_KEY)


def test_a_payload_beyond_the_limit_is_not_even_decoded(monkeypatch):
    payload = nip44.encrypt("a" * 70_000, LONG_KEY)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(payload, LONG_KEY, max_bytes=65_535)


@pytest.mark.parametrize("length", [1, 32, 33, 300, 1_024])
def test_the_limit_is_the_texts_length(length):
    payload = nip44.encrypt("a" * length, LONG_KEY)
    assert nip44.decrypt(payload, LONG_KEY, max_bytes=length) == "a" * length
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(payload, LONG_KEY, max_bytes=length - 1)
