"""Notes and messages: NIP-04, 09, 10, 17, 59, 65, against another library and against strangers."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from random import Random

import attrs
import nostr_sdk
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip04, nip09, nip10, nip17, nip19, nip44, nip59, nip65
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event, sign_event
from protocols.strategies import events, secret_keys, texts
from protocols.strategies_agents import NOW, hostile_json, moments, private_messages, relay_urls, twisted

NIP17_CONTENT = (
    "AsqzdlMsG304G8h08bE67dhAR1gFTzTckUUyuvndZ8LrGCvwI4pgC3d6hyAK0Wo9gtkLqSr2rT2RyHlE5wRqbCOlQ8WvJEKwqwIJwT5PO3l2Rx"
    "vGCHDbd1b1o40ZgIVwwLCfOWJ86I5upXe8K5AgpxYTOM1BD+SbgI5jOMA8tgpRoitJedVSvBZsmwAxXM7o7sbOON4MXHzOqOZpALpS2zgBDXSA"
    "aYAsTdEM4qqFeik+zTk3+L6NYuftGidqVluicwSGS2viYWr5OiJ1zrj1ERhYSGLpQnPKrqDaDi7R1KrHGFGyLgkJveY/45y0rv9aVIw9IWF11u"
    "53cf2CP7akACel2WvZdl1htEwFu/v9cFXD06fNVZjfx3OssKM/uHPE9XvZttQboAvP5UoK6lv9o3d+0GM4/3zP+yO3C0NExz1ZgFmbGFz703YJ"
    "zM+zpKCOXaZyzPjADXp8qBBeVc5lmJqiCL4solZpxA1865yPigPAZcc9acSUlg23J1dptFK4n3Tl5HfSHP+oZ/QS/SHWbVFCtq7ZMQSRxLgEit"
    "fglTNz9P1CnpMwmW/Y4Gm5zdkv0JrdUVrn2UO9ARdHlPsW5ARgDmzaxnJypkfoHXNfxGGXWRk0sKLbz/ipnaQP/eFJv/ibNuSfqL6E4BnN/tHJ"
    "SHYEaTQ/PdrA2i9laG3vJti3kAl5Ih87ct0w/tzYfp4SRPhEF1zzue9G/16eJEMzwmhQ5Ec7jJVcVGa4RltqnuF8unUu3iSRTQ+/MNNUkK6Mk+"
    "YuaJJs6Fjw6tRHuWi57SdKKv7GGkr0zlBUU2Dyo1MwpAqzsCcCTeQSv+8qt4wLf4uhU9Br7F/L0ZY9bFgh6iLDCdB+4iABXyZwT7Ufn762195h"
    "rSHcU4Okt0Zns9EeiBOFxnmpXEslYkYBpXw70GmymQfJlFOfoEp93QKCMS2DAEVeI51dJV1e+6t3pCSsQN69Vg6jUCsm1TMxSs2VX4BRbq562+"
    "VffchvW2BB4gMjsvHVUSRl8i5/ZSDlfzSPXcSGALLHBRzy+gn0oXXJ/447VHYZJDL3Ig8+QW5oFMgnWYhuwI5QSLEyflUrfSz+Pdwn/5eyjybX"
    "KJftePBD9Q+8NQ8zulU5sqvsMeIx/bBUx0fmOXsS3vjqCXW5IjkmSUV7q54GewZqTQBlcx+90xh/LSUxXex7UwZwRnifvyCbZ+zwNTHNb12chY"
    "eNjMV7kAIr3cGQv8vlOMM8ajyaZ5KVy7HpSXQjz4PGT2/nXbL5jKt8Lx0erGXsSsazkdoYDG3U"
)
"""Of the first example of NIP-17."""

ALICE, BOB, EVE = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3))


def theirs(secret: SecretKey) -> nostr_sdk.Keys:
    return nostr_sdk.Keys.parse(secret.reveal().hex())


def their_key(key: PublicKey) -> nostr_sdk.PublicKey:
    return nostr_sdk.PublicKey.parse(key.hex)


# --- NIP-04 ---------------------------------------------------------------------------------------------------


@given(texts, secret_keys, secret_keys)
def test_nip04_agrees_with_nostr_sdk_both_ways(text, one, other):
    sealed = nip04.encrypt(text, one, other.public)
    assert nostr_sdk.nip04_decrypt(theirs(other).secret_key(), their_key(one.public), sealed) == text
    sealed = nostr_sdk.nip04_encrypt(theirs(other).secret_key(), their_key(one.public), text)
    assert nip04.decrypt(sealed, one, other.public) == text


@given(texts)
def test_nip04_messages_are_read_by_both_ends_and_nobody_else(text):
    event = nip04.build_message(ALICE, BOB.public, text, created_at=NOW, reply_to="ab" * 32)
    for reader in (ALICE, BOB):
        message = nip04.open_message(event, reader)
        assert (message.sender, message.receiver, message.text) == (ALICE.public.hex, BOB.public.hex, text)
        assert message.reply_to == "ab" * 32
    with pytest.raises(nip04.Nip04Error):
        nip04.open_message(event, EVE)


@given(st.one_of(texts, st.builds("{}?iv={}".format, st.binary(max_size=64).map(lambda b: base64.b64encode(b).decode()),
                                  st.binary(max_size=20).map(lambda b: base64.b64encode(b).decode()))))  # fmt: skip
def test_nip04_refuses_what_is_none(payload):
    try:
        nip04.decrypt(payload, ALICE, BOB.public)
    except nip04.Nip04Error:
        pass


@pytest.mark.parametrize("last", [b"\x00", b"\x11", b"\x02", b"\xff"])
def test_nip04_padding_is_checked(last):
    cipher = Cipher(algorithms.AES256(ALICE.ecdh_x(BOB.public)), modes.CBC(bytes(16))).encryptor()
    sealed = base64.b64encode(cipher.update(b"x" * 15 + last)).decode()
    with pytest.raises(nip04.Nip04Error, match="cannot be opened"):
        nip04.decrypt(f"{sealed}?iv={base64.b64encode(bytes(16)).decode()}", ALICE, BOB.public)


def test_nip04_sizes():
    assert nip04.decrypt(nip04.encrypt("x" * 65_535, ALICE, BOB.public), BOB, ALICE.public) == "x" * 65_535
    for refused in ("x" * 65_536, "\ud800"):
        with pytest.raises(nip04.Nip04Error):
            nip04.encrypt(refused, ALICE, BOB.public)
    sealed = nip04.encrypt("x" * 100, ALICE, BOB.public)
    with pytest.raises(nip04.Nip04Error, match="too long"):
        nip04.decrypt(sealed, BOB, ALICE.public, max_bytes=99)
    with pytest.raises(nip04.Nip04Error, match="too long"):
        nip04.decrypt("A" * 10**6, BOB, ALICE.public)


def test_what_is_said_in_private_is_not_shown():
    rumor = nip17.build_message(ALICE.public, [BOB.public], "xyzzy", subject="xyzzy", created_at=NOW)
    old = nip04.build_message(ALICE, BOB.public, "xyzzy", created_at=NOW)
    assert "xyzzy" not in repr((rumor, nip17.parse_message(rumor), nip04.open_message(old, BOB)))


# --- NIP-09 ---------------------------------------------------------------------------------------------------


@given(st.lists(events(secrets=st.just(ALICE)), min_size=1, max_size=4), events())
def test_a_deletion_covers_its_own_events_and_no_others(own, foreign):
    own = [event for event in own if event.kind != 5] or [sign_event(ALICE, kind=1, created_at=1)]
    request = nip09.build_deletion(ALICE, events=own, reason="oops", created_at=2**34)
    deletion = nip09.parse_deletion(request)
    assert all(map(deletion.covers, own))
    assert not deletion.covers(request)
    assert deletion.kinds == {event.kind for event in own}
    forged = nip09.parse_deletion(sign_event(BOB, kind=5, tags=request.tags, created_at=2**34))
    assert not any(map(forged.covers, own))
    assert not forged.addresses
    assert foreign.pubkey == ALICE.public.hex or not deletion.covers(foreign)


def test_an_address_covers_versions_up_to_the_request_only():
    def version(at: int) -> Event:
        return sign_event(ALICE, kind=30_023, tags=[["d", "x:y"]], created_at=at)

    deletion = nip09.parse_deletion(nip09.build_deletion(ALICE, events=[version(10)], created_at=20))
    assert deletion.addresses == {f"30023:{ALICE.public.hex}:x:y"}
    assert [deletion.covers(version(at)) for at in (10, 20, 21)] == [True, True, False]
    assert not deletion.covers(sign_event(ALICE, kind=30_023, tags=[["d", "z"]], created_at=10))


def test_the_receiver_of_a_gift_wrap_may_have_it_deleted():
    rumor = nip59.build_rumor(ALICE.public, kind=1, created_at=NOW)
    gift = nip59.wrap(rumor, ALICE, BOB.public, now=NOW, random=Random(1))
    for asker, covered in ((BOB, True), (EVE, False), (ALICE, False)):
        assert nip09.parse_deletion(nip09.build_deletion(asker, ids=[gift.id], created_at=NOW)).covers(gift) is covered


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"ids": ["AB" * 32]},
        {"addresses": [f"1:{ALICE.public.hex}:"]},
        {"addresses": [f"30023:{BOB.public.hex}:x"]},
        {"addresses": [f"030023:{ALICE.public.hex}:x"]},
        {"events": [sign_event(BOB, kind=1, created_at=1)]},
        {"events": [sign_event(ALICE, kind=5, created_at=1)]},
    ],
)
def test_deletions_that_cannot_be_asked_for(wanted):
    with pytest.raises(nip09.DeletionInvalid):
        nip09.build_deletion(ALICE, created_at=1, **wanted)


# --- NIP-10 ---------------------------------------------------------------------------------------------------


def note(secret: SecretKey, tags=(), at: int = NOW) -> Event:
    return sign_event(secret, kind=1, tags=tags, content="hi", created_at=at)


def test_a_thread_of_replies_keeps_its_root():
    root = note(ALICE)
    people, above = [ALICE, BOB, EVE, ALICE], root
    for author in people[1:]:
        reply = note(author, nip10.build_reply(above, relay="wss://a.example", me=author.public.hex))
        thread = nip10.parse_thread(reply)
        assert thread.root is not None
        assert thread.reply_to is not None
        assert (thread.root.id, thread.reply_to.id) == (root.id, above.id)
        assert thread.root.author == ALICE.public.hex
        assert author.public.hex not in thread.participants
        assert not thread.mentions
        above = reply
    assert len([tag for tag in above.tags if tag[0] == "e"]) == 2
    direct = nip10.build_reply(root)
    assert direct[0] == ["e", root.id, "", "root", ALICE.public.hex]
    assert len([tag for tag in direct if tag[0] == "e"]) == 1


IDS = [digit * 64 for digit in "abcd"]


@pytest.mark.parametrize(
    ("tags", "root", "reply_to", "cited"),
    [
        ([], None, None, ""),
        ([["e", IDS[0]]], 0, 0, ""),
        ([["e", IDS[0]], ["e", IDS[1]]], 0, 1, ""),
        ([["e", IDS[0]], ["e", IDS[2]], ["e", IDS[3]], ["e", IDS[1]]], 0, 1, "cd"),
        ([["e", IDS[0], "", "root"]], 0, 0, ""),
        ([["e", IDS[1], "", "reply"], ["e", IDS[0], "", "root"]], 0, 1, ""),
        ([["e", IDS[1], "", "reply"]], 1, 1, ""),
        ([["e", IDS[2]], ["e", IDS[0], "", "root"], ["q", IDS[3]]], 0, 0, "cd"),
        ([["e", IDS[2], "", "mention"], ["e", IDS[0]]], 0, 0, "c"),
        ([["e", IDS[2], "", "mention"]], None, None, "c"),
        ([["e"], ["e", "xyz"], ["e", IDS[0], "wss://r", EVE.public.hex]], 0, 0, ""),
    ],
)
def test_threads_marked_and_positional(tags, root, reply_to, cited):
    thread = nip10.parse_thread(note(ALICE, tags))
    assert (thread.root and thread.root.id) == (None if root is None else IDS[root])
    assert (thread.reply_to and thread.reply_to.id) == (None if reply_to is None else IDS[reply_to])
    assert "".join(found.id[0] for found in thread.mentions) == cited


@given(twisted(kinds=[1]))
def test_any_note_can_be_answered(event):
    tags = nip10.build_reply(event, me=ALICE.public.hex)
    thread = nip10.parse_thread(note(ALICE, tags))
    assert thread.reply_to is not None
    assert thread.reply_to.id == event.id
    before = nip10.parse_thread(event).root
    assert thread.root is not None
    assert thread.root.id == (event.id if before is None else before.id)
    assert nip10.mentions(note(ALICE, tags), event.pubkey) or event.pubkey == ALICE.public.hex


def test_other_kinds_are_not_answered_by_notes_and_crowds_not_repeated():
    with pytest.raises(nip10.ReplyInvalid, match="NIP-22"):
        nip10.build_reply(sign_event(ALICE, kind=30_023, created_at=1))
    crowd = note(ALICE, [["p", f"{n:064x}"] for n in range(3_000)])
    assert len(nip10.build_reply(crowd)) == 1 + 1 + nip10.MAX_PARTICIPANTS


# --- NIP-59 and NIP-17 ----------------------------------------------------------------------------------------


def test_the_gift_of_the_nip_is_opened():
    event = Event(
        id="2886780f7349afc1344047524540ee716f7bdc1b64191699855662330bf235d8",
        pubkey="8f8a7ec43b77d25799281207e1a47f7a654755055788f7482653f9c9661c6d51",
        created_at=1703128320,
        kind=1059,
        tags=(("p", "918e2da906df4ccd12c8ac672d8335add131a4cf9d27ce42b3bb3625755f0788"),),
        content=NIP17_CONTENT,
        sig="a3c6ce632b145c0869423c1afaff4a6d764a9b64dedaf15f170b944ead67227518a72e455567ca1c2a0d187832cecbde7ed478395ec4c95"
        "dd3e71749ed66c480",
    )
    event.check()
    receiver = nip19.decode("nsec12ywtkplvyq5t6twdqwwygavp5lm4fhuang89c943nf2z92eez43szvn4dt")
    sender = nip19.decode("nsec1w8udu59ydjvedgs3yv5qccshcj8k05fh3l60k9x57asjrqdpa00qkmr89m")
    message = nip17.open_message(event, receiver)
    assert message.text == "Hola, que tal?"
    assert message.sender == sender.public.hex
    assert message.receivers == (receiver.public.hex,)


@settings(deadline=None)
@given(private_messages())
def test_a_message_reaches_everybody_and_says_nothing_outside(sent):
    assert set(sent.wraps) == {sent.sender.public.hex, *(key.public.hex for key in sent.receivers)}
    assert len({wrap.pubkey for wrap in sent.wraps.values()}) == len(sent.wraps)
    now = sent.rumor.created_at
    for reader in (sent.sender, *sent.receivers):
        event = sent.wraps[reader.public.hex]
        event.check()
        message = nip17.open_message(event, reader)
        assert (message.id, message.text, message.sender) == (sent.rumor.id, sent.text, sent.sender.public.hex)
        assert message.created_at == now
        assert now - nip59.MAX_SHIFT <= event.created_at <= now
        assert event.pubkey != sent.sender.public.hex
        assert nip59.receiver_of(event) == reader.public.hex
    with pytest.raises(nip17.MessageInvalid):
        nip17.open_message(next(iter(sent.wraps.values())), EVE)


@settings(max_examples=25, deadline=None)
@given(texts, secret_keys, secret_keys, st.booleans())
def test_gift_wraps_agree_with_nostr_sdk_both_ways(text, one, other, ephemeral):
    rumor = nip17.build_message(one.public, [other.public], text, created_at=NOW)
    ours = nip59.wrap(rumor, one, other.public, now=NOW, random=Random(1))
    signer = theirs(other)
    gift = nostr_sdk.UnwrappedGift.from_gift_wrap(signer, nostr_sdk.Event.from_json(ours.to_json()))
    assert gift.sender().to_hex() == one.public.hex
    assert gift.rumor().content() == text
    assert gift.rumor().id().to_hex() == rumor.id
    made = Event.from_json(nostr_sdk.nip17_make_private_msg(signer, their_key(one.public), text or "x").as_json())
    made.check()
    message = nip17.open_message(made, one)
    assert (message.sender, message.text) == (other.public.hex, text or "x")


def test_a_message_that_disappears_is_read_from_nostr_sdk_and_by_it():
    made = nostr_sdk.nip17_make_private_msg(theirs(ALICE), their_key(BOB.public), "brief", timedelta(seconds=3600))
    assert nip17.open_message(Event.from_json(made.as_json()), BOB).text == "brief"
    rumor = nip17.build_message(BOB.public, [ALICE.public], "brief", created_at=NOW)
    ours = nip17.wrap_message(rumor, BOB, now=NOW, random=Random(1), expiration=2**33)[ALICE.public.hex]
    assert ours.tag("expiration") == str(2**33)
    gift = nostr_sdk.UnwrappedGift.from_gift_wrap(theirs(ALICE), nostr_sdk.Event.from_json(ours.to_json()))
    assert gift.rumor().content() == "brief"


def gift_of(inner: str, to: SecretKey = BOB, kind: int = 1059) -> Event:
    content = nip44.encrypt(inner, nip44.conversation_key(EVE, to.public))
    return sign_event(EVE, kind=kind, content=content, tags=[["p", to.public.hex]], created_at=NOW)


def seal_of(inner: str, by: SecretKey = EVE, to: SecretKey = BOB, **changes) -> Event:
    content = nip44.encrypt(inner, nip44.conversation_key(by, to.public))
    return sign_event(by, **{"kind": 13, "content": content, "created_at": NOW, **changes})


RUMOR = nip17.build_message(ALICE.public, [BOB.public], "pay eve", created_at=NOW)
ELSEWHERE = nip17.build_message(EVE.public, [ALICE.public], "x", created_at=NOW)
EVES = nip17.build_message(EVE.public, [BOB.public], "hello", created_at=NOW)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("another author's rumor in one's own seal", gift_of(seal_of(RUMOR.to_json()).to_json())),
        (
            "a seal in another's name",
            gift_of(attrs.evolve(seal_of(RUMOR.to_json()), pubkey=ALICE.public.hex).to_json()),
        ),
        ("a seal changed", gift_of(attrs.evolve(seal_of(EVES.to_json()), created_at=1).to_json())),
        ("a seal with tags", gift_of(seal_of(EVES.to_json(), tags=[["p", BOB.public.hex]]).to_json())),
        ("a seal with an empty tag", gift_of(seal_of(EVES.to_json(), tags=[[]]).to_json())),
        ("a seal of another kind", gift_of(seal_of(EVES.to_json(), kind=14).to_json())),
        ("a rumor at once", gift_of(EVES.to_json())),
        ("an id that is not the hash", gift_of(seal_of(EVES.to_json().replace("hello", "hallo")).to_json())),
        ("a rumor that is a list", gift_of(seal_of("[]").to_json())),
        ("a rumor that is a number", gift_of(seal_of("1").to_json())),
        ("a rumor without fields", gift_of(seal_of("{}").to_json())),
        ("a rumor of surrogates", gift_of(seal_of('{"content":"\\ud800"}').to_json())),
        ("depth", gift_of(seal_of("[" * 3_000).to_json())),
        ("a rumor that is too long", gift_of(seal_of('"' + "x" * 65_536).to_json())),
        ("no JSON", gift_of("hello")),
        ("no encryption", sign_event(EVE, kind=1059, content="hello", created_at=NOW)),
        ("no wrap", gift_of(seal_of(EVES.to_json()).to_json(), kind=1060)),
        ("sealed for another", gift_of(seal_of(EVES.to_json(), to=ALICE).to_json())),
        ("not one of the receivers", gift_of(seal_of(ELSEWHERE.to_json()).to_json())),
    ],
)
def test_gifts_that_are_not_taken(name, event):
    with pytest.raises(nip17.MessageInvalid):
        nip17.open_message(event, BOB)


def test_a_rumor_without_an_id_or_with_a_signature_is_read():
    value = json.loads(EVES.to_json())
    for change in ({"id": None}, {"sig": "00" * 64}, {"sig": 5}):
        event = gift_of(seal_of(json.dumps({**value, **change})).to_json())
        assert nip59.unwrap(event, BOB) == EVES


def test_ephemeral_gifts_carry_the_present():
    gift = nip59.wrap(EVES, EVE, BOB.public, now=NOW, random=Random(1), ephemeral=True)
    assert (gift.kind, gift.created_at) == (21_059, NOW)
    assert nip59.unwrap(gift, BOB) == EVES


def test_the_longest_rumor_fits_and_a_longer_one_is_refused():
    for length, fits in ((65_000, True), (65_536, False)):
        rumor = nip59.build_rumor(
            EVE.public, kind=14, content="x" * length, tags=[["p", BOB.public.hex]], created_at=NOW
        )
        if fits:
            gift = Event.from_json(nip59.wrap(rumor, EVE, BOB.public, now=NOW, random=Random(1)).to_json())
            assert nip59.unwrap(gift, BOB) == rumor
        else:
            with pytest.raises(nip59.GiftWrapInvalid):
                nip59.wrap(rumor, EVE, BOB.public, now=NOW, random=Random(1))
    with pytest.raises(nip59.GiftWrapInvalid):
        nip59.wrap(EVES, ALICE, BOB.public, now=NOW, random=Random(1))


@pytest.mark.parametrize(
    "wanted",
    [
        {"receivers": [], "text": "x"},
        {"receivers": [SecretKey(bytes([n]) * 32).public for n in range(1, 12)], "text": "x"},
        {"receivers": [BOB.public], "text": "\ud800"},
        {"receivers": [BOB.public], "text": "x", "reply_to": "x"},
    ],
)
def test_messages_that_cannot_be_made(wanted):
    with pytest.raises(nip17.MessageInvalid):
        nip17.build_message(ALICE.public, created_at=NOW, **wanted)


# --- relay lists ----------------------------------------------------------------------------------------------

lists = st.lists(relay_urls, max_size=3)


@given(lists, lists, lists, moments)
def test_relay_lists(both, read, write, at):
    if not both + read + write:
        with pytest.raises(nip65.RelayListInvalid):
            nip65.build_relay_list(ALICE, created_at=at)
        return
    event = nip65.build_relay_list(ALICE, both=both, read=read, write=write, created_at=at)
    found = nip65.parse_relay_list(event)
    assert set(found.read) == {*both, *read}
    assert set(found.write) == {*both, *write}
    said = nostr_sdk.extract_relay_list(nostr_sdk.Event.from_json(event.to_json()))
    assert {str(url) for url in said} == {*both, *read, *write}
    for url, marker in said.items():
        assert (marker is None) == (str(url) in found.read and str(url) in found.write)
        assert marker is None or (marker == nostr_sdk.RelayMetadata.READ) == (str(url) in found.read)


@given(st.lists(relay_urls, min_size=1, max_size=4))
def test_relays_for_private_messages(urls):
    event = nip17.build_relay_list(ALICE, urls, created_at=NOW)
    assert nip17.parse_relay_list(event) == tuple(dict.fromkeys(urls))
    said = nostr_sdk.nip17_extract_relay_list(nostr_sdk.Event.from_json(event.to_json()))
    assert [str(url) for url in said] == list(dict.fromkeys(urls))


@pytest.mark.parametrize("url", ["", "http://a", "wss://", "wss:///x", "wss://a b", "wss://a\n", "wss://\ud800", 5,
                                 None, "wss://" + "a" * 600, "ws://\x7f"])  # fmt: skip
def test_what_is_no_relay(url):
    assert not nip65.is_relay_url(url)
    if isinstance(url, str):
        with pytest.raises(nip65.RelayListInvalid):
            nip65.build_relay_list(ALICE, both=[url], created_at=NOW)
        with pytest.raises(nip17.MessageInvalid):
            nip17.build_relay_list(ALICE, [url], created_at=NOW)


# --- strangers ------------------------------------------------------------------------------------------------

READERS = [
    (lambda event: nip04.open_message(event, BOB), nip04.Nip04Error),
    (nip09.parse_deletion, nip09.DeletionInvalid),
    (lambda event: nip17.open_message(event, BOB), nip17.MessageInvalid),
    (nip17.parse_relay_list, nip17.MessageInvalid),
    (lambda event: nip59.unwrap(event, BOB), nip59.GiftWrapInvalid),
    (nip65.parse_relay_list, nip65.RelayListInvalid),
    (nip10.parse_thread, ()),
]


@settings(max_examples=200, deadline=None)
@given(twisted(kinds=[1, 4, 5, 13, 14, 1059, 21_059, 10_002, 10_050]), st.sampled_from(READERS))
def test_readers_raise_their_own_errors_only(event, reader):
    read, own = reader
    try:
        read(event)
    except own:
        pass


@settings(deadline=None)
@given(hostile_json.filter(bool))
def test_what_is_sealed_may_be_anything(inner):
    event = gift_of(seal_of(inner).to_json())
    with pytest.raises(nip59.GiftWrapInvalid):
        nip59.unwrap(event, BOB)
