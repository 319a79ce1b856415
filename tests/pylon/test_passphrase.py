from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import PassphraseError
from pylon.passphrase import CREDENTIAL, MAX_CHARS, Passphrase, Stretching, from_descriptor, from_environment, from_file

WORDS = "four words at random"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1, max_size=30)


def same(one: Passphrase, two: Passphrase) -> bool:
    return one.stretched(b"salt" * 4, 2) == two.stretched(b"salt" * 4, 2)


def given_by(raw: bytes) -> Passphrase:
    reading, writing = os.pipe()
    try:
        os.write(writing, raw)
        os.close(writing)
        return from_descriptor(reading)
    finally:
        os.close(reading)


@given(texts, st.sampled_from(["", "\n", "\r\n", "\nmore\n"]))
def test_a_descriptor_gives_its_first_line(text, end):
    assert same(given_by((text + end).encode()), Passphrase(text))


def test_one_line_and_not_a_byte_more():
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    assert same(from_descriptor(reading), Passphrase("one"))
    assert same(from_descriptor(reading), Passphrase("two"))
    with pytest.raises(PassphraseError, match="empty"):
        from_descriptor(reading)
    os.close(reading)
    with pytest.raises(PassphraseError, match="gives no passphrase"):
        from_descriptor(reading)


@pytest.mark.parametrize("raw", [b"", b"\n", b"\xff\xfe", b"x" * 5_000, b"x" * (MAX_CHARS + 1), b"\xed\xa0\x80"])
def test_what_is_none(raw):
    with pytest.raises(PassphraseError) as caught:
        given_by(raw)
    assert caught.value.hint
    assert "xx" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_it_is_what_it_looks_like():
    assert same(Passphrase("\u212b"), Passphrase("\u00c5"))
    assert not same(Passphrase("a"), Passphrase("A"))
    assert repr(Passphrase(WORDS)) == str(Passphrase(WORDS)) == "Passphrase(…)"


def test_where_it_is_found(tmp_path):
    file, directory = tmp_path / "file", tmp_path / "credentials"
    file.write_text("of the file\n")
    directory.mkdir()
    both = {"PYLON_PASSPHRASE_FILE": str(file), "CREDENTIALS_DIRECTORY": str(directory)}
    assert from_environment({}) is None
    assert from_environment({"CREDENTIALS_DIRECTORY": str(directory)}) is None
    assert from_environment({"PYLON_PASSPHRASE_FILE": ""}) is None
    (directory / CREDENTIAL).write_text("of systemd")
    assert same(from_environment({"CREDENTIALS_DIRECTORY": str(directory)}), Passphrase("of systemd"))
    assert same(from_environment(both), Passphrase("of the file"))
    file.unlink()
    with pytest.raises(PassphraseError, match="PYLON_PASSPHRASE_FILE"):
        from_environment(both)
    with pytest.raises(PassphraseError):
        from_file(tmp_path, "a directory")


@given(st.integers(10, 20), st.binary(min_size=16, max_size=16), st.binary(min_size=12, max_size=12))
def test_a_head_reads_as_it_was_written(log_n, salt, nonce):
    made = Stretching(log_n, salt, nonce)
    assert Stretching.parse(made.to_line()) == made


LINE = Stretching(17, bytes(16), bytes(12)).to_line()


@given(
    st.binary(max_size=300)
    | st.integers(0, len(LINE) - 1).map(lambda at: LINE[:at] + LINE[at + 1 :])
    | st.sampled_from([LINE + b" ", b"[]", b"{}", b"null", LINE.replace(b"17", b"21"), LINE.replace(b"17", b"true")])
)
def test_any_other_head_is_an_error(line):
    with pytest.raises(ValueError, match=r"."):
        Stretching.parse(line)
