"""NIP-49 against the NIP's own example, the XChaCha draft's vectors, and nostr-sdk."""

from __future__ import annotations

import unicodedata

import nostr_sdk
import pytest
from bech32 import bech32_decode, bech32_encode, convertbits
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip49
from protocols.keys import CURVE_ORDER, SecretKey
from protocols.nip49 import KeySecurity, Nip49Error, decrypt, encrypt, hchacha20

FROM_THE_NIP = (
    "ncryptsec1qgg9947rlpvqu76pj5ecreduf9jxhselq2nae2kghhvd5g7dgjtcxfqtd67p9m0w57lspw8gsq6yphnm8623nsl8xn9j4jdzz84zm3"
    "frztj3z7s35vpzmqf6ksu8r89qk5z2zxfmu5gv8th8wclt0h4p"
)
KEY = SecretKey.from_hex("3501454135014541350145413501453fefb02227e449e57cf4d3a3ce05378683")
OTHERS = {
    KeySecurity.INSECURE: nostr_sdk.KeySecurity.WEAK,
    KeySecurity.SECURE: nostr_sdk.KeySecurity.MEDIUM,
    KeySecurity.UNTRACKED: nostr_sdk.KeySecurity.UNKNOWN,
}
secrets = st.integers(1, CURVE_ORDER - 1).map(lambda n: SecretKey(n.to_bytes(32, "big")))
passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def test_the_example_of_the_nip():
    opened = decrypt(FROM_THE_NIP, "nostr")
    assert opened.secret == KEY
    assert opened.security is KeySecurity.INSECURE
    assert nip49._decode(FROM_THE_NIP)[1] == 16
    assert "3501" not in repr(opened)


def test_hchacha20_of_the_draft():
    """draft-irtf-cfrg-xchacha-03, 2.2.1."""
    found = hchacha20(bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927"))
    assert found.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_xchacha20_poly1305_of_the_draft():
    """draft-irtf-cfrg-xchacha-03, A.3.1: its tag covers all of the ciphertext."""
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would"
        b" be it."
    )
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = nip49._cipher(key, nonce).encrypt(nip49._short(nonce), plain, associated)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"


@settings(max_examples=40)
@given(secrets, passwords, st.sampled_from(KeySecurity), st.integers(1, 6))
def test_what_was_sealed_opens(secret, password, security, log_n):
    text = encrypt(secret, password, security=security, log_n=log_n)
    opened = decrypt(text, password)
    assert (opened.secret, opened.security) == (secret, security)
    assert decrypt(text.upper(), password).secret == secret, "in a QR code"
    assert encrypt(secret, password, security=security, log_n=log_n) != text


@settings(max_examples=40)
@given(secrets, passwords, st.sampled_from(KeySecurity))
def test_nostr_sdk_opens_ours_and_we_open_its(secret, password, security):
    theirs = nostr_sdk.EncryptedSecretKey.from_bech32(encrypt(secret, password, security=security, log_n=4))
    assert theirs.decrypt(password).to_hex() == secret.reveal().hex()
    assert theirs.key_security() == OTHERS[security]
    made = nostr_sdk.EncryptedSecretKey(
        nostr_sdk.SecretKey.parse(secret.reveal().hex()), password, 4, OTHERS[security]
    ).to_bech32()
    opened = decrypt(made, password)
    assert (opened.secret, opened.security) == (secret, security)


def test_a_password_is_what_it_looks_like():
    """NFKC: the same word typed on two systems, as the NIP's earlier text spells it."""
    composed, typed = "\u00c5\u03a9\u1e69", "\u212b\u2126\u1e9b\u0323"
    text = encrypt(KEY, typed, security=KeySecurity.UNTRACKED, log_n=2)
    assert decrypt(text, composed).secret == KEY
    assert nostr_sdk.EncryptedSecretKey.from_bech32(text).decrypt(composed).to_hex() == KEY.reveal().hex()


@given(passwords, passwords)
def test_another_password_opens_nothing_and_is_not_told(right, wrong):
    text = encrypt(KEY, right, security=KeySecurity.SECURE, log_n=1)
    if unicodedata.normalize("NFKC", right) == unicodedata.normalize("NFKC", wrong):
        assert decrypt(text, wrong).secret == KEY
        return
    with pytest.raises(Nip49Error, match="another password, or damaged") as caught:
        decrypt(text, wrong)
    assert caught.value.__cause__ is None


@given(st.integers(0, 90), st.integers(1, 255))
def test_no_byte_of_it_can_change(at, change):
    raw = bytearray(nip49._decode(encrypt(KEY, "word", security=KeySecurity.SECURE, log_n=2)))
    raw[at] ^= change
    words = convertbits(bytes(raw), 8, 5, True)
    with pytest.raises(Nip49Error):
        decrypt(bech32_encode(nip49.PREFIX, words), "word", max_log_n=8)


@given(
    st.text(max_size=200)
    | st.binary(min_size=1, max_size=120).map(lambda raw: bech32_encode("ncryptsec", convertbits(raw, 8, 5, True)))
)
def test_any_text_is_an_error(text):
    with pytest.raises(Nip49Error) as caught:
        decrypt(text, "word", max_log_n=4)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("log_n", [0, 21, 255])
def test_what_is_not_computed(log_n):
    raw = bytearray(nip49._decode(FROM_THE_NIP))
    raw[1] = log_n
    with pytest.raises(Nip49Error, match="not computed"):
        decrypt(bech32_encode("ncryptsec", convertbits(bytes(raw), 8, 5, True)), "nostr")
    with pytest.raises(Nip49Error, match="not computed"):
        encrypt(KEY, "nostr", security=KeySecurity.SECURE, log_n=log_n)


@pytest.mark.parametrize("password", ["", "\ud800"])
def test_what_is_no_password(password):
    with pytest.raises(Nip49Error):
        encrypt(KEY, password, security=KeySecurity.SECURE, log_n=1)


def test_a_number_that_is_no_key():
    """Zero, sealed by somebody else."""
    salt, nonce = bytes(16), bytes(24)
    sealed = ChaCha20Poly1305(hchacha20(nip49._key("word", salt, 1), nonce[:16])).encrypt(bytes(12), bytes(32), b"\x01")
    raw = bytes([2, 1]) + salt + nonce + b"\x01" + sealed
    with pytest.raises(Nip49Error, match="no secret key"):
        decrypt(bech32_encode("ncryptsec", convertbits(raw, 8, 5, True)), "word")


def test_it_is_as_long_as_the_nip_says():
    _, words = bech32_decode(encrypt(KEY, "word", security=KeySecurity.SECURE, log_n=1))
    assert len(convertbits(words, 5, 8, False)) == 91
