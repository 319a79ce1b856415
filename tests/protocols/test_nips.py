"""The small NIPs: published vectors first, then an independent library, then round trips."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nostr_sdk
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip06, nip11, nip19, nip40, nip44
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import sign_event
from protocols.strategies import hex_ids, kinds, public_keys, secret_keys, texts

# paulmillr/nip44, nip44.vectors.json; the one that the NIP names
NIP44 = json.loads((Path(__file__).parent / "vectors" / "nip44.vectors.json").read_text())["v2"]
SECRET = SecretKey(b"\x01" * 32)


# --- NIP-06 and BIP-32 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "secret", "npub"),
    [
        (
            "leader monkey parrot ring guide accident before fence cannon height naive bean",
            "7f7ff03d123792d6ac594bfa67bf6d0c0ab55b6b1fdb6249303fe861f1ccba9a",
            "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu",
        ),
        (
            "what bleak badge arrange retreat wolf trade produce cricket blur garlic valid proud rude strong choose"
            " busy staff weather area salt hollow arm fade",
            "c15d739894c81a2fcfd3a2df85a0d2c0dbc47a280d092799f144d73d7ae78add",
            "npub16sdj9zv4f8sl85e45vgq9n7nsgt5qphpvmf7vk8r5hhvmdjxx4es8rq74h",
        ),
    ],
)
def test_nip06_vectors(phrase, secret, npub):
    key = nip06.nostr_key(phrase)
    assert key.reveal().hex() == secret
    assert nip19.encode_npub(key.public) == npub


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("m", "e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35"),
        ("m/0'", "edb2e14f9ee77d26dd93b4ecede8d16ed408ce149b6cd80b0715a2d911a0afea"),
        ("m/0'/1", "3c6cb8d0f6a264c91ea8b5030fadaa8e538b020f0a387421a12de9319dc93368"),
        ("m/0h/1/2h/2/1000000000", "471b76e389e528d6de6d816857e012c5455051cad6660850e58372a6c3e6e7c8"),
    ],
)
def test_bip32_vector_1(path, key):
    assert nip06.derive(bytes.fromhex("000102030405060708090a0b0c0d0e0f"), path).hex() == key


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([12, 24]), st.integers(0, 5))
def test_nip06_agrees_with_nostr_sdk(words, account):
    phrase = nip06.new_mnemonic(words)
    assert len(phrase.split()) == words
    theirs = nostr_sdk.Keys.from_mnemonic(phrase, account=account)
    assert theirs.secret_key().to_hex() == nip06.nostr_key(phrase, account).reveal().hex()


def test_a_phrase_is_normalised_and_a_wrong_one_never_repeated():
    phrase = "leader monkey parrot ring guide accident before fence cannon height naive bean"
    assert nip06.check_mnemonic(f"  {phrase.upper()}\n".replace(" ", "   ")) == phrase
    for wrong in ("", "abandon", phrase.replace("bean", "zoo"), phrase.replace("bean", "héllo"), phrase + " bean"):
        with pytest.raises(nip06.MnemonicInvalid) as caught:
            nip06.seed(wrong)
        assert not any(word in str(caught.value).split() for word in wrong.split())


@pytest.mark.parametrize("path", ["", "0", "m/", "m/x", "m/-1", "m/2147483648", "m/1''", "m/١"])
def test_broken_paths(path):
    with pytest.raises(nip06.PathInvalid):
        nip06.derive(bytes(64), path)


# --- NIP-19 ---------------------------------------------------------------------------------------------------

relays = st.lists(st.sampled_from(["wss://r.x.com", "wss://djbas.sadkb.com", "ws://127.0.0.1:7777"]), max_size=2)


def test_nip19_examples():
    key = PublicKey.from_hex("3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d")
    npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6"
    assert nip19.encode_npub(key) == npub
    assert nip19.decode(npub) == key == nip19.decode("nostr:" + npub)
    profile = nip19.decode(
        "nprofile1qqsrhuxx8l9ex335q7he0f09aej04zpazpl0ne2cgukyawd24mayt8gpp4mhxue69uhhytnc9e3k7mgpz4mhxue69uhkg6nzv9ejuum"
        "pv34kytnrdaksjlyr9p"
    )
    assert profile == nip19.Profile(key.hex, ("wss://r.x.com", "wss://djbas.sadkb.com"))


@given(secret_keys, hex_ids, relays, kinds, st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_nip19_round_trips(secret, event_id, urls, kind, d):
    urls = tuple(urls)
    pointer = nip19.EventPointer(event_id, urls, secret.public.hex, kind)
    profile = nip19.Profile(secret.public.hex, urls)
    address = nip19.Address(d, secret.public.hex, kind, urls)
    assert nip19.decode(nip19.encode_nsec(secret)) == secret
    assert nip19.decode(nip19.encode_note(event_id)) == event_id
    assert nip19.decode(nip19.encode_nprofile(profile)) == profile
    assert nip19.decode(nip19.encode_nevent(pointer)) == pointer
    assert nip19.decode(nip19.encode_naddr(address)) == address


@given(secret_keys)
def test_nip19_agrees_with_nostr_sdk(secret):
    keys = nostr_sdk.Keys.parse(nip19.encode_nsec(secret))
    assert keys.public_key().to_bech32() == nip19.encode_npub(secret.public)


@given(st.one_of(texts, st.text("npub1nsecqpzry9x8gf2tvdw0s3jn54khce6mua7l", max_size=80)))
def test_nip19_refuses_everything_else_without_repeating_it(text):
    try:
        nip19.decode(text)
        said = ""
    except nip19.Nip19Error as error:
        said = str(error)
    assert len(text) < 8 or text not in said


@given(public_keys)
def test_a_public_key_may_be_written_in_three_ways(key):
    for text in (key.hex, key.hex.upper(), nip19.encode_npub(key), nip19.encode_nprofile(nip19.Profile(key.hex))):
        assert nip19.decode_public_key(text) == key


def test_a_secret_key_is_no_public_key():
    with pytest.raises(nip19.Nip19Error):
        nip19.decode_public_key(nip19.encode_nsec(SECRET))


# --- NIP-40 and NIP-11 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "expected"),
    [(["expiration", "100"], 100), (["expiration"], None), (["expiration", "x"], None), (["expiration", "-5"], None),
     (["expiration", "1" * 400], None), (["expiration", "٣"], None)],
)  # fmt: skip
def test_expiration(tag, expected):
    event = sign_event(SECRET, kind=1, tags=[tag], created_at=5)
    assert nip40.expiration(event) == expected
    assert nip40.is_expired(event, 100) is (expected is not None)
    assert not nip40.is_expired(event, 99)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["name", "software", "supported_nips", "limitation", "x"]), json_values))
def test_any_relay_document_is_read(value):
    read = nip11.RelayInformation.parse(value)
    assert nip11.RelayInformation.from_json(read.to_json()) == read
    assert read.name == (value["name"] if isinstance(value.get("name"), str) else "")


@pytest.mark.parametrize("text", ["", "[]", "nope", '"x"', "x" * 300_000])
def test_what_is_no_relay_document(text):
    with pytest.raises(nip11.InformationInvalid):
        nip11.RelayInformation.from_json(text)


def test_a_flag_is_no_number():
    read = nip11.RelayInformation.parse({"limitation": {"max_limit": True, "auth_required": 1, "max_subscriptions": 7}})
    assert read.limitation == nip11.Limitation(max_subscriptions=7)


# --- NIP-44 ---------------------------------------------------------------------------------------------------


def _key(case):
    return bytes.fromhex(case["conversation_key"])


@pytest.mark.parametrize("case", NIP44["valid"]["get_conversation_key"], ids=lambda case: case["sec1"][:8])
def test_nip44_conversation_key(case):
    key = nip44.conversation_key(SecretKey.from_hex(case["sec1"]), PublicKey.from_hex(case["pub2"]))
    assert key.hex() == case["conversation_key"]


@pytest.mark.parametrize("case", NIP44["invalid"]["get_conversation_key"], ids=lambda case: case["note"][:40])
def test_nip44_invalid_keys(case):
    with pytest.raises(ValueError):
        nip44.conversation_key(SecretKey.from_hex(case["sec1"]), PublicKey.from_hex(case["pub2"]))


def test_nip44_padding():
    for plain, padded in NIP44["valid"]["calc_padded_len"]:
        assert nip44.padded_length(plain) == padded


@pytest.mark.parametrize("case", NIP44["valid"]["encrypt_decrypt"], ids=lambda case: case["nonce"][:8])
def test_nip44_encrypt_decrypt(case):
    sec1, sec2 = SecretKey.from_hex(case["sec1"]), SecretKey.from_hex(case["sec2"])
    key = nip44.conversation_key(sec1, sec2.public)
    assert key == _key(case) == nip44.conversation_key(sec2, sec1.public)
    assert nip44.encrypt(case["plaintext"], key, bytes.fromhex(case["nonce"])) == case["payload"]
    assert nip44.decrypt(case["payload"], key) == case["plaintext"]


@pytest.mark.parametrize("case", NIP44["valid"]["encrypt_decrypt_long_msg"], ids=lambda case: str(case["repeat"]))
def test_nip44_long_messages(case):
    plain = case["pattern"] * case["repeat"]
    assert hashlib.sha256(plain.encode()).hexdigest() == case["plaintext_sha256"]
    payload = nip44.encrypt(plain, _key(case), bytes.fromhex(case["nonce"]))
    assert hashlib.sha256(payload.encode()).hexdigest() == case["payload_sha256"]
    assert nip44.decrypt(payload, _key(case)) == plain


@pytest.mark.parametrize("case", NIP44["invalid"]["decrypt"], ids=lambda case: case["note"][:40])
def test_nip44_refuses(case):
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(case["payload"], _key(case))


@given(secret_keys, secret_keys, texts.filter(bool))
def test_nip44_agrees_with_nostr_sdk_both_ways(one, other, text):
    theirs = nostr_sdk.SecretKey.parse(other.reveal().hex())
    me = nostr_sdk.PublicKey.parse(one.public.hex)
    key = nip44.conversation_key(one, other.public)
    assert nostr_sdk.nip44_decrypt(theirs, me, nip44.encrypt(text, key)) == text
    assert nip44.decrypt(nostr_sdk.nip44_encrypt(theirs, me, text, nostr_sdk.Nip44Version.V2), key) == text


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 31, 32, 33, 65_535, 65_536, 65_537, 200_000]), st.binary(min_size=32, max_size=32))
def test_nip44_lengths(length, key):
    text = "x" * length
    payload = nip44.encrypt(text, key)
    assert nip44.decrypt(payload, key) == text
    if length > 32:
        with pytest.raises(nip44.Nip44Error):
            nip44.decrypt(payload, key, max_bytes=length // 2)


@given(st.text(max_size=300), st.binary(min_size=32, max_size=32))
def test_no_text_breaks_nip44(text, key):
    with pytest.raises(nip44.Nip44Error):
        nip44.decrypt(text, key)


def test_orjson_is_what_ids_are_made_of():
    assert orjson.dumps("\x7fé/\u2028\x00") == '"\x7fé/\u2028\\u0000"'.encode()
