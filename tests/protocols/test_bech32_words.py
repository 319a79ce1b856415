"""The same as the ``bech32`` package, for whatever it is given."""

from __future__ import annotations

import bech32
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import bech32_words

WORDS = st.lists(st.integers(0, 31), max_size=400)
HRPS = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789!~"), min_size=1, max_size=85)


@given(HRPS, WORDS)
def test_the_same_text_and_back(hrp, words):
    text = bech32_words.encode(hrp, words)
    assert text == bech32.bech32_encode(hrp, words)
    for spelled in (text, text.upper()):
        found = bech32_words.decode(spelled)
        assert (found or (None, None)) == bech32.bech32_decode(spelled)
        assert found == ((hrp, words) if len(hrp) <= 83 else None)


@given(HRPS, WORDS, st.data())
def test_the_same_of_what_is_damaged(hrp, words, data):
    text = bech32_words.encode(hrp, words)
    at = data.draw(st.integers(0, len(text) - 1))
    what = data.draw(st.sampled_from(["", "Q", "q", "1", "b", " ", "\x7f", "\n", "é", "\u212a", "\u0130", "qq"]))
    damaged = text[:at] + what + text[at + data.draw(st.integers(0, 2)) :]
    assert (bech32_words.decode(damaged) or (None, None)) == bech32.bech32_decode(damaged)


@given(st.text(st.sampled_from("1qpzQ!b é\x00"), max_size=12))
@example("")
@example("1")
@example("11qqqqqq")
def test_the_same_of_any_text(text):
    assert (bech32_words.decode(text) or (None, None)) == bech32.bech32_decode(text)


@given(st.binary(max_size=300))
def test_bytes_as_words(data):
    words = bech32_words.to_words(data)
    assert words == bech32.convertbits(data, 8, 5, True)
    assert bech32_words.to_bytes(words)[: len(data)] == data


@given(WORDS)
def test_words_as_bytes(words):
    assert list(bech32_words.to_bytes(words)) == bech32.convertbits(words, 5, 8, True)


@pytest.mark.parametrize(
    "text",
    [
        "A1LQFN3A",
        "a1lqfn3a",
        "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
        "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
        "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
        "?1v759aa",
    ],
)
def test_bech32m(text):
    """The valid ones of BIP-350; none of them is bech32 also."""
    found = bech32_words.decode(text, bech32m=True)
    assert found is not None
    assert bech32_words.encode(*found, bech32m=True) == text.lower()
    assert bech32_words.decode(text) is None


@pytest.mark.parametrize(
    "text", ["M1VUXWEZ", "1p2gdwpf", "y1b0jsk6g", "lt1igcx5c0", "in1muywd", "mm1crxm3i", "au1s5cgom"]
)
def test_not_bech32m(text):
    assert bech32_words.decode(text, bech32m=True) is None
