"""What gives a secret away, however it is dressed up, and what does not."""

from __future__ import annotations

import base64

from hypothesis import assume, given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from protocols.keys import SecretKey
from protocols.nip19 import encode_npub, encode_nsec
from protocols.strategies import texts
from pylon.host.disclosure import PIECE, Secrets


def phrase_of(entropy: bytes) -> str:
    return str(Mnemonic("english").to_mnemonic(entropy))


KEY, PHRASE = SecretKey(bytes(range(40, 72))), phrase_of(bytes(range(16)))
SECRETS = Secrets([KEY], [PHRASE])
RAW, HEX, NSEC = KEY.reveal(), KEY.reveal().hex(), encode_nsec(KEY)
PLAIN = st.sampled_from([HEX, NSEC[5:], PHRASE, str(int(HEX, 16)), " ".join(reversed(PHRASE.split()))])
between = st.sampled_from([" ", "-", "\n", ", ", "...", "​", "\N{WAVY DASH}", "_", "☕"])


def coded(data: bytes, before: bytes = b"", after: bytes = b"") -> str:
    return base64.b64encode(before + data + after).decode()


@given(PLAIN, between, st.integers(1, 9), st.booleans(), st.booleans(), texts, texts)
def test_dressed_up(secret, filler, step, upper, backwards, before, after):
    dressed = filler.join(secret[start : start + step] for start in range(0, len(secret), step))
    dressed = dressed.upper() if upper else dressed
    dressed = dressed[::-1] if backwards else dressed
    assert SECRETS.told_by([before, dressed, after])
    wide = dressed.translate({code: code + 0xFEE0 for code in range(0x30, 0x7B)})
    assert SECRETS.told_by([wide])


@given(
    st.sampled_from([RAW, HEX.encode(), HEX.upper().encode(), NSEC.encode(), PHRASE.encode()]),
    st.binary(max_size=20),
    st.binary(max_size=20),
    st.booleans(),
)
def test_in_base64_wherever_it_begins(data, before, after, url_safe):
    text = coded(data, before, after)
    assert SECRETS.told_by([text.replace("+", "-").replace("/", "_").rstrip("=") if url_safe else text])


@given(PLAIN, st.data())
def test_in_pieces(secret, data):
    """One right after the other, however small; a piece by itself if it is long enough, and not if it is not."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(secret) - 1))))
    pieces = [secret[a:b] for a, b in zip([0, *cuts], [*cuts, len(secret)], strict=True)]
    assert SECRETS.told_by(pieces)
    bare = "".join(secret.split())
    start = data.draw(st.integers(0, len(bare) - PIECE))
    assert SECRETS.told_by([bare[start : start + PIECE]])
    assert not SECRETS.told_by([bare[start : start + PIECE - 1]])


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), texts)
def test_what_is_no_secret(other, entropy, text):
    assume(other != RAW and 0 < int.from_bytes(other) < 2**255)
    key = SecretKey(other)
    for said in (text, key.reveal().hex(), encode_nsec(key), coded(other), phrase_of(entropy)):
        assert not SECRETS.told_by([said])


def test_public_things():
    names = [
        KEY.public.hex,
        encode_npub(KEY.public),
        "nsec1",
        "abandon ability able about above absent absorb abstract",
    ]
    assert not SECRETS.told_by([*names, "", "0" * 64, "a" * 2_000])
    assert not SECRETS.told_by([])
    assert repr(SECRETS) == "Secrets(…)"
