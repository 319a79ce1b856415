"""NIP-04: direct messages of old clients, kind 4. Read, and answered in kind; never the first choice (see ``nip17``).

AES-256-CBC under the x coordinate of the shared point as it is. Nothing authenticates the text but the event's
signature: verify that first. Every text that cannot be opened is a ``Nip04Error`` of the same words, so that nobody
learns from the answer whether the padding was right.
"""

from __future__ import annotations

import base64
import binascii

import attrs
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from protocols import entropy
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import Event, sign_event

KIND = 4
MAX_PLAINTEXT = 65_535
"""Bytes that are read or written."""

_BLOCK = 16
_SEPARATOR = "?iv="


class Nip04Error(ValueError):
    """A payload that cannot be opened, a text that cannot be sealed, or an event that is no message for us."""


@attrs.frozen
class Message:
    """A kind 4 message, opened."""

    id: str
    sender: str
    receiver: str
    text: str = attrs.field(repr=False)
    created_at: int
    reply_to: str | None = None
    """Id of the message before it (``e`` tag)."""


def encrypt(text: str, secret: SecretKey, other: PublicKey, iv: bytes | None = None) -> str:
    """``<base64>?iv=<base64>``. ``iv`` (16 bytes) is for tests only; it must never be used twice."""
    iv = entropy.random_bytes(_BLOCK) if iv is None else iv
    if len(iv) != _BLOCK:
        raise Nip04Error("an initialisation vector has 16 bytes")
    try:
        plain = text.encode()
    except UnicodeEncodeError:
        raise Nip04Error("the text is not Unicode") from None
    if len(plain) > MAX_PLAINTEXT:
        raise Nip04Error(f"a text has at most {MAX_PLAINTEXT} bytes")
    padder = PKCS7(8 * _BLOCK).padder()
    padded = padder.update(plain) + padder.finalize()
    cipher = Cipher(AES256(secret.ecdh_x(other)), CBC(iv)).encryptor()
    sealed = cipher.update(padded) + cipher.finalize()
    return base64.b64encode(sealed).decode() + _SEPARATOR + base64.b64encode(iv).decode()


def decrypt(payload: str, secret: SecretKey, other: PublicKey, *, max_bytes: int = MAX_PLAINTEXT) -> str:
    """The text of a payload of at most ``max_bytes`` plaintext bytes. Raises ``Nip04Error``."""
    if len(payload) > (max_bytes // _BLOCK + 1) * _BLOCK // 3 * 4 + 64:
        raise Nip04Error("the payload is too long")
    head, separator, tail = payload.partition(_SEPARATOR)
    if not separator:
        raise Nip04Error("the payload has no initialisation vector")
    try:
        sealed, iv = base64.b64decode(head, validate=True), base64.b64decode(tail, validate=True)
    except (binascii.Error, ValueError):
        raise Nip04Error("the payload is not base64") from None
    if len(iv) != _BLOCK or not sealed or len(sealed) % _BLOCK:
        raise Nip04Error("the payload is not made of whole blocks")
    cipher, unpadder = Cipher(AES256(secret.ecdh_x(other)), CBC(iv)).decryptor(), PKCS7(8 * _BLOCK).unpadder()
    padded = cipher.update(sealed) + cipher.finalize()
    try:
        plain = unpadder.update(padded) + unpadder.finalize()
        text = plain.decode()
    except ValueError:
        raise Nip04Error("the payload cannot be opened") from None
    if len(plain) > max_bytes:
        raise Nip04Error("the text is too long")
    return text


def build_message(
    secret: SecretKey, receiver: PublicKey, text: str, *, created_at: int, reply_to: str | None = None
) -> Event:
    """A kind 4 event. ``created_at`` in Unix seconds; ``reply_to`` is the id of the message that is answered."""
    tags = [["p", receiver.hex], *([["e", reply_to]] if reply_to else [])]
    return sign_event(secret, kind=KIND, content=encrypt(text, secret, receiver), tags=tags, created_at=created_at)


def open_message(event: Event, secret: SecretKey) -> Message:
    """From a verified event that ``secret`` sent or was sent. Raises ``Nip04Error``."""
    if event.kind != KIND:
        raise Nip04Error("not a kind 4 message")
    receiver, me = event.tag("p"), secret.public.hex
    if receiver is None or me not in (receiver, event.pubkey):
        raise Nip04Error("it is for somebody else")
    try:
        other = PublicKey.from_hex(event.pubkey if receiver == me else receiver)
    except KeyInvalid as error:
        raise Nip04Error(str(error)) from None
    reply_to = event.tag("e")
    return Message(
        id=event.id,
        sender=event.pubkey,
        receiver=receiver,
        text=decrypt(event.content, secret, other),
        created_at=event.created_at,
        reply_to=reply_to if is_hex(reply_to, 64) else None,
    )
