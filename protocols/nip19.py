"""NIP-19: bech32 forms of keys, events and addresses.

Unknown TLV entries are skipped, as the NIP asks; a known one of the wrong length is an error. What cannot be written
so that ``decode`` reads it again is a ``Nip19Error`` of the encoder.
"""

from __future__ import annotations

import attrs
from bech32 import bech32_decode, bech32_encode, convertbits

from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex

MAX_CHARS = 5_000


class Nip19Error(ValueError):
    """Text that is no such entity. The message never repeats it: it may have been a secret."""


@attrs.frozen
class Profile:
    """``nprofile``: a key (hex), and relays on which to look for it."""

    pubkey: str
    relays: tuple[str, ...] = ()


@attrs.frozen
class EventPointer:
    """``nevent``: an event's id (hex), and what helps to find it."""

    id: str
    relays: tuple[str, ...] = ()
    author: str | None = None
    kind: int | None = None


@attrs.frozen
class Address:
    """``naddr``: the address of a replaceable or addressable event."""

    d: str
    pubkey: str
    kind: int
    relays: tuple[str, ...] = ()


def encode_npub(key: PublicKey) -> str:
    return _encode("npub", key.raw)


def encode_nsec(key: SecretKey) -> str:
    """Reveals the secret: for those who asked for it by name."""
    return _encode("nsec", key.reveal())


def encode_note(event_id: str) -> str:
    return _encode("note", _hex32(event_id))


def encode_nprofile(profile: Profile) -> str:
    return _encode("nprofile", _tlv([(0, _hex32(profile.pubkey)), *_relays(profile.relays)]))


def encode_nevent(pointer: EventPointer) -> str:
    entries = [(0, _hex32(pointer.id)), *_relays(pointer.relays)]
    if pointer.author is not None:
        entries.append((2, _hex32(pointer.author)))
    if pointer.kind is not None:
        entries.append((3, _kind_bytes(pointer.kind)))
    return _encode("nevent", _tlv(entries))


def encode_naddr(address: Address) -> str:
    entries = [(0, _text_bytes(address.d, "utf-8")), *_relays(address.relays)]
    entries += [(2, _hex32(address.pubkey)), (3, _kind_bytes(address.kind))]
    return _encode("naddr", _tlv(entries))


def decode(text: str) -> PublicKey | SecretKey | str | Profile | EventPointer | Address:
    """Whatever ``text`` stands for; a note is its id in hex. Accepts ``nostr:`` before it (NIP-21; in capitals in
    QR codes). Raises ``Nip19Error``.
    """
    prefix, data = _decode(text[6:] if text[:6].lower() == "nostr:" else text)
    try:
        match prefix:
            case "npub":
                return PublicKey(_length32(data))
            case "nsec":
                return SecretKey(_length32(data))
            case "note":
                return _length32(data).hex()
            case "nprofile":
                entries = _entries(data)
                return Profile(_point(entries, 0), _relay_texts(entries))
            case "nevent":
                entries = _entries(data)
                author = _length32(entries[2][0]).hex() if 2 in entries else None
                kind = _kind(entries) if 3 in entries else None
                return EventPointer(_point(entries, 0), _relay_texts(entries), author, kind)
            case "naddr":
                entries = _entries(data)
                if 0 not in entries:
                    raise Nip19Error("an naddr without an identifier")
                d = entries[0][0].decode()
                return Address(d, _point(entries, 2), _kind(entries), _relay_texts(entries))
    except KeyInvalid as error:
        raise Nip19Error(str(error)) from None
    except UnicodeDecodeError:
        raise Nip19Error("text in it is not UTF-8") from None
    raise Nip19Error("no entity of NIP-19 begins like this")


def decode_public_key(text: str) -> PublicKey:
    """A public key as npub, nprofile or 64 hex digits. Raises ``Nip19Error``."""
    try:
        if is_hex(text.lower(), 64):
            return PublicKey.from_hex(text.lower())
        found = decode(text)
        if isinstance(found, Profile):
            return PublicKey.from_hex(found.pubkey)
    except KeyInvalid as error:
        raise Nip19Error(str(error)) from None
    if not isinstance(found, PublicKey):
        raise Nip19Error("not a public key")
    return found


def _encode(prefix: str, data: bytes) -> str:
    words = convertbits(data, 8, 5, True)
    assert words is not None, "whole bytes, padded"
    text = str(bech32_encode(prefix, words))
    if len(text) > MAX_CHARS:
        raise Nip19Error(f"more than {MAX_CHARS} characters")
    return text


def _decode(text: str) -> tuple[str, bytes]:
    if len(text) > MAX_CHARS:
        raise Nip19Error(f"more than {MAX_CHARS} characters")
    prefix, words = bech32_decode(text)
    data = None if words is None else convertbits(words, 5, 8, False)
    if prefix is None or data is None:
        raise Nip19Error("not bech32, or its checksum is wrong")
    return prefix, bytes(data)


def _hex32(text: str) -> bytes:
    if not is_hex(text, 64):
        raise Nip19Error("64 lower-case hex digits are wanted")
    return bytes.fromhex(text)


def _length32(data: bytes) -> bytes:
    if len(data) != 32:
        raise Nip19Error("32 bytes are wanted")
    return data


def _relays(relays: tuple[str, ...]) -> list[tuple[int, bytes]]:
    return [(1, _text_bytes(relay, "ascii")) for relay in relays]


def _text_bytes(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        raise Nip19Error(f"text in it cannot be written in {encoding}") from None


def _kind_bytes(kind: int) -> bytes:
    if not 0 <= kind < 1 << 32:
        raise Nip19Error("a kind is a number of 32 bits")
    return kind.to_bytes(4, "big")


def _tlv(entries: list[tuple[int, bytes]]) -> bytes:
    if any(len(value) > 255 for _, value in entries):
        raise Nip19Error("an entry has at most 255 bytes")
    return b"".join(bytes([kind, len(value)]) + value for kind, value in entries)


def _entries(data: bytes) -> dict[int, list[bytes]]:
    entries: dict[int, list[bytes]] = {}
    while data:
        if len(data) < 2 or len(data) < 2 + data[1]:
            raise Nip19Error("it is cut off")
        entries.setdefault(data[0], []).append(data[2 : 2 + data[1]])
        data = data[2 + data[1] :]
    return entries


def _point(entries: dict[int, list[bytes]], kind: int) -> str:
    if kind not in entries:
        raise Nip19Error("what it should name is missing")
    return _length32(entries[kind][0]).hex()


def _kind(entries: dict[int, list[bytes]]) -> int:
    if 3 not in entries or len(entries[3][0]) != 4:
        raise Nip19Error("the kind is missing, or not 4 bytes")
    return int.from_bytes(entries[3][0], "big")


def _relay_texts(entries: dict[int, list[bytes]]) -> tuple[str, ...]:
    return tuple(relay.decode() for relay in entries.get(1, []))
