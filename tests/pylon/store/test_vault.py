from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.errors import IdentityError, SealError
from pylon.store.vault import Vault

KEY = bytes(range(32))
texts = st.text(st.characters(exclude_categories=()), max_size=200)  # lone surrogates too


@given(text=texts, where=texts)
def test_what_was_sealed_opens_at_its_place(text, where):
    assert Vault(KEY).open(Vault(KEY).seal(text, where), where) == text


@given(text=texts, place=st.tuples(texts, texts).filter(lambda pair: pair[0] != pair[1]))
def test_it_opens_nowhere_else(text, place):
    with pytest.raises(SealError):
        Vault(KEY).open(Vault(KEY).seal(text, place[0]), place[1])


@given(data=st.data())
def test_a_changed_byte_is_noticed(data):
    blob = bytearray(Vault(KEY).seal("a prompt", "sales.record:1"))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealError):
        Vault(KEY).open(bytes(blob), "sales.record:1")


@given(blob=st.binary(max_size=60))
def test_garbage_is_refused_and_not_quoted(blob):
    with pytest.raises(SealError) as caught:
        Vault(KEY).open(blob, "sales.record:1")
    assert "sales.record:1" in caught.value.message


def test_sealing_hides_the_text_and_its_repetition():
    one, two = (Vault(KEY).seal("canary", "a") for _ in range(2))
    assert one != two
    assert b"canary" not in one


def test_another_key_does_not_open():
    with pytest.raises(SealError, match="wrong key"):
        Vault(bytes(32)).open(Vault(KEY).seal("x", "a"), "a")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_32_bytes(length):
    with pytest.raises(SealError):
        Vault(bytes(length))


def test_repr_is_blank():
    assert repr(Vault(KEY)) == "Vault(…)"
    assert not hasattr(Vault(KEY), "__dict__")


def test_key_file(tmp_path):
    path = tmp_path / "keys" / "data.key"
    old = os.umask(0)
    try:
        made = Vault.generate_file(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["data.key"]
    assert Vault.load(path).open(made.seal("x", "a"), "a") == "x"


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "keys" / "data.key"
    Vault.generate_file(path)
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="already"):
        Vault.generate_file(path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_draft_left_by_a_crash_does_no_harm(tmp_path):
    (tmp_path / f".data.key.{os.getpid()}").write_bytes(b"half")
    Vault.generate_file(tmp_path / "data.key")
    Vault.load(tmp_path / "data.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "data.key"
    Vault.generate_file(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="open to others") as caught:
        Vault.load(path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_a_key_file_of_another_length_is_refused(tmp_path, length):
    path = tmp_path / "data.key"
    path.write_bytes(bytes(length))
    path.chmod(0o600)
    with pytest.raises(SealError, match="32 bytes"):
        Vault.load(path)


def test_no_key_file(tmp_path):
    with pytest.raises(IdentityError, match="no data key"):
        Vault.load(tmp_path / "data.key")
    with pytest.raises(IdentityError, match="not a file"):
        Vault.load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(IdentityError, match="not a file"):
        Vault.load(tmp_path / "pipe")
