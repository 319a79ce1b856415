"""NIP-19's TLV forms: an independent library both ways, unknown entries, wrong lengths, what cannot be written."""

from __future__ import annotations

import nostr_sdk
import pytest
from bech32 import bech32_decode, bech32_encode, convertbits
from hypothesis import given
from hypothesis import strategies as st

from protocols import nip19
from protocols.keys import SecretKey
from protocols.strategies import hex_ids, secret_keys

KEY = SecretKey(b"\x01" * 32).public
ID = "ab" * 32
KIND = (1).to_bytes(4, "big")

# The library normalises urls, so these are in its normal form.
relays = st.lists(
    st.sampled_from(["wss://r.x.com", "wss://a.example/path", "ws://127.0.0.1:7777"]), max_size=3, unique=True
).map(tuple)
kinds = st.integers(0, 65_535)
identifiers = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def entity(prefix, *entries):
    data = b"".join(bytes([kind, len(value)]) + value for kind, value in entries)
    return bech32_encode(prefix, convertbits(data, 8, 5, True))


def theirs_of(urls):
    return [nostr_sdk.RelayUrl.parse(url) for url in urls]


def urls_of(theirs):
    return tuple(str(url) for url in theirs)


@given(secret_keys, relays)
def test_profiles_agree_with_nostr_sdk_both_ways(secret, urls):
    ours = nip19.Profile(secret.public.hex, urls)
    read = nostr_sdk.Nip19Profile.from_bech32(nip19.encode_nprofile(ours))
    assert (read.public_key().to_hex(), urls_of(read.relays())) == (ours.pubkey, urls)
    written = nostr_sdk.Nip19Profile(nostr_sdk.PublicKey.parse(ours.pubkey), theirs_of(urls)).to_bech32()
    assert nip19.decode(written) == ours


@given(hex_ids, relays, st.none() | secret_keys.map(lambda secret: secret.public.hex), st.none() | kinds)
def test_events_agree_with_nostr_sdk_both_ways(event_id, urls, author, kind):
    ours = nip19.EventPointer(event_id, urls, author, kind)
    read = nostr_sdk.Nip19Event.from_bech32(nip19.encode_nevent(ours))
    assert (read.event_id().to_hex(), urls_of(read.relays())) == (event_id, urls)
    assert (read.author() and read.author().to_hex()) == author
    assert (None if read.kind() is None else read.kind().as_u16()) == kind
    written = nostr_sdk.Nip19Event(
        nostr_sdk.EventId.parse(event_id),
        author=None if author is None else nostr_sdk.PublicKey.parse(author),
        kind=None if kind is None else nostr_sdk.Kind(kind),
        relays=theirs_of(urls),
    ).to_bech32()
    assert nip19.decode(written) == ours


@given(secret_keys, relays, kinds, identifiers)
def test_addresses_agree_with_nostr_sdk_both_ways(secret, urls, kind, d):
    ours = nip19.Address(d, secret.public.hex, kind, urls)
    read = nostr_sdk.Nip19Coordinate.from_bech32(nip19.encode_naddr(ours))
    there = read.coordinate()
    assert (there.identifier(), there.public_key().to_hex(), there.kind().as_u16()) == (d, ours.pubkey, kind)
    assert urls_of(read.relays()) == urls
    coordinate = nostr_sdk.Coordinate(nostr_sdk.Kind(kind), nostr_sdk.PublicKey.parse(ours.pubkey), d)
    assert nip19.decode(nostr_sdk.Nip19Coordinate(coordinate, theirs_of(urls)).to_bech32()) == ours


@given(hex_ids)
def test_notes_agree_with_nostr_sdk(event_id):
    assert nostr_sdk.EventId.parse(event_id).to_bech32() == nip19.encode_note(event_id)


@given(st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40)), max_size=4))
def test_unknown_entries_are_skipped(unknown):
    text = entity("nprofile", *unknown, (0, KEY.raw), *unknown, (1, b"wss://r.x.com"))
    assert nip19.decode(text) == nip19.Profile(KEY.hex, ("wss://r.x.com",))


BROKEN = {
    "nprofile without a key": entity("nprofile", (1, b"wss://x")),
    "nprofile of nothing": entity("nprofile"),
    "key one byte short": entity("nprofile", (0, KEY.raw[:-1])),
    "key one byte long": entity("nprofile", (0, KEY.raw + b"\0")),
    "id too short": entity("nevent", (0, b"\1" * 31)),
    "author too short": entity("nevent", (0, b"\1" * 32), (2, KEY.raw[1:])),
    "kind of two bytes": entity("nevent", (0, b"\1" * 32), (3, b"\0\1")),
    "kind of eight bytes": entity("nevent", (0, b"\1" * 32), (3, bytes(8))),
    "naddr without an author": entity("naddr", (0, b"d"), (3, KIND)),
    "naddr without a kind": entity("naddr", (0, b"d"), (2, KEY.raw)),
    "naddr without an identifier": entity("naddr", (2, KEY.raw), (3, KIND)),
    "identifier that is no text": entity("naddr", (0, b"\xff"), (2, KEY.raw), (3, KIND)),
    "relay that is no text": entity("nprofile", (0, KEY.raw), (1, b"\xff")),
    "length beyond the end": bech32_encode("nprofile", convertbits(b"\0\x21" + KEY.raw, 8, 5, True)),
    "type without a length": bech32_encode("nprofile", convertbits(b"\0\x20" + KEY.raw + b"\1", 8, 5, True)),
    "npub of 31 bytes": bech32_encode("npub", convertbits(KEY.raw[1:], 8, 5, True)),
    "npub of no point": bech32_encode("npub", convertbits(b"\xff" * 32, 8, 5, True)),
    "nsec of zero": bech32_encode("nsec", convertbits(bytes(32), 8, 5, True)),
    "note of 33 bytes": bech32_encode("note", convertbits(bytes(33), 8, 5, True)),
    "nrelay": entity("nrelay", (0, b"wss://x")),
    "an address of bitcoin": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "too long": entity("nprofile", (0, KEY.raw), *[(1, b"x" * 255)] * 20),
    "mixed case": nip19.encode_npub(KEY)[:10] + nip19.encode_npub(KEY)[10:].upper(),
    "uri of nothing": "nostr:",
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_is_broken_is_refused(name):
    with pytest.raises(nip19.Nip19Error):
        nip19.decode(BROKEN[name])


def test_a_changed_letter_is_noticed():
    text = nip19.encode_npub(KEY)
    for at in range(5, len(text)):
        other = "q" if text[at] != "q" else "p"
        with pytest.raises(nip19.Nip19Error):
            nip19.decode(text[:at] + other + text[at + 1 :])


def test_a_qr_code_has_capitals():
    assert nip19.decode(f"nostr:{nip19.encode_npub(KEY)}".upper()) == KEY


@pytest.mark.parametrize(
    "write",
    [
        lambda: nip19.encode_note("AB" * 32),
        lambda: nip19.encode_note("ab" * 31),
        lambda: nip19.encode_nprofile(nip19.Profile(KEY.hex, ("wss://é.example",))),
        lambda: nip19.encode_nprofile(nip19.Profile(KEY.hex, ("wss://" + "x" * 250,))),
        lambda: nip19.encode_nprofile(nip19.Profile(KEY.hex, ("wss://" + "x" * 200,) * 20)),
        lambda: nip19.encode_nevent(nip19.EventPointer(ID, author="me")),
        lambda: nip19.encode_nevent(nip19.EventPointer(ID, kind=-1)),
        lambda: nip19.encode_naddr(nip19.Address("d", KEY.hex, 1 << 32)),
        lambda: nip19.encode_naddr(nip19.Address("\ud800", KEY.hex, 1)),
        lambda: nip19.encode_naddr(nip19.Address("é" * 128, KEY.hex, 1)),
    ],
)
def test_what_could_not_be_read_again_is_not_written(write):
    with pytest.raises(nip19.Nip19Error):
        write()


def test_the_forms_are_plain_bech32():
    prefix, words = bech32_decode(nip19.encode_nevent(nip19.EventPointer(ID, kind=1)))
    assert prefix == "nevent"
    assert bytes(convertbits(words, 5, 8, False)) == b"\0\x20" + bytes.fromhex(ID) + b"\3\4" + KIND
