"""Would these words give a secret away? Pure: a last net behind the wall, and a net has holes.

The wall is that nothing an agent thinks with holds a secret (``pylon.host.prompt``, rule 4). This is for the day on
which somebody has told it one.

Rules
-----
1. Only letters and digits count, of whatever case and width: blanks, dots, dashes and what cannot be seen are nothing.
2. A key is known by its hex digits, as a number, and in bech32, whatever stands before it; a phrase by its words. Each
   also backwards, a phrase from its last word to its first, and in base64, wherever in a longer text that begins.
3. ``PIECE`` characters of it are too many; fewer say little, and are no test by which a stranger could guess the rest.
4. What is said in pieces, one right after the other, is one text: give all that is to be said together.

Not found: other alphabets, ciphers, words between the pieces, pieces said days apart.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Iterator

from protocols.keys import SecretKey
from protocols.nip19 import encode_nsec

PIECE = 16
"""Characters, squeezed: 64 bits of a key in hex, about three words of a phrase."""
_REST = re.compile("[^a-z0-9]+")


class Secrets:
    """What must not be said. Its repr is blank."""

    __slots__ = ("_pieces",)

    def __init__(self, keys: Iterable[SecretKey], phrases: Iterable[str]) -> None:
        forms = [form for key in keys for form in _forms_of_key(key)]
        forms += [form for phrase in phrases for form in _forms_of_phrase(phrase)]
        bare = [_squeezed(form) for form in forms]
        self._pieces = frozenset(piece for form in bare for way in (form, form[::-1]) for piece in _pieces(way))

    def __repr__(self) -> str:
        return "Secrets(…)"

    def told_by(self, words: Iterable[str]) -> bool:
        """Whether ``words``, one after the other, tell enough of any of them."""
        return not self._pieces.isdisjoint(_pieces(_squeezed("".join(words))))


def _forms_of_key(key: SecretKey) -> Iterator[str]:
    raw, digits = key.reveal(), key.reveal().hex()
    bech32 = encode_nsec(key).partition("1")[2]
    yield from (digits, bech32, str(int(digits, 16)))
    for text in (raw, digits.encode(), digits.upper().encode(), encode_nsec(key).encode()):
        yield from _base64(text)


def _forms_of_phrase(phrase: str) -> Iterator[str]:
    words = phrase.lower().split()
    yield "".join(words)
    yield "".join(reversed(words))
    yield from _base64(" ".join(words).encode())


def _base64(data: bytes) -> Iterator[str]:
    """What stands in the base64 of every text that ``data`` is in, by the place of its first byte in a group."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        yield whole[-(-8 * before // 6) : 8 * (before + len(data)) // 6]


def _squeezed(text: str) -> str:
    """Small letters and digits of ASCII, and nothing else; wide and other compatible forms are read as those."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _REST.sub("", text.lower())


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(len(text) - PIECE + 1))
