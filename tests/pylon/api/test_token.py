from __future__ import annotations

import os
import stat

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.api.token import ApiToken, load_token, token_path
from pylon.errors import ConfigError
from pylon.paths import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_it_is_made_once_for_its_owner_alone(home):
    before = os.umask(0)
    try:
        token = load_token(home, {})
    finally:
        os.umask(before)
    path = token_path(home)
    assert path.name == "api.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token.reveal() + "\n"
    assert len(token.reveal()) == 64
    assert load_token(home, {}).reveal() == token.reveal()
    assert os.listdir(home.data) == ["api.token"]


def test_two_homes_have_two(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert load_token(Home(tmp_path / "a"), {}).reveal() != load_token(Home(tmp_path / "b"), {}).reveal()


async def test_whoever_is_first_all_get_the_same(home):
    tokens = []

    async def load():
        tokens.append((await trio.to_thread.run_sync(load_token, home, {})).reveal())

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(load)
    assert len(set(tokens)) == 1


def test_the_environment_overrides_and_writes_nothing(home):
    assert load_token(home, {"PYLON_API_TOKEN": "mine"}).reveal() == "mine"
    assert os.listdir(home.data) == []
    assert load_token(home, {"PYLON_API_TOKEN": ""}).reveal() != ""


@pytest.mark.parametrize("text", ["two words", "newline\n", "é", "x" * 1_001, "\x00"])
def test_what_no_header_carries_is_no_token(home, text):
    with pytest.raises(ConfigError) as caught:
        load_token(home, {"PYLON_API_TOKEN": text})
    assert text not in str(caught.value)
    assert "PYLON_API_TOKEN" in str(caught.value)
    token_path(home).write_text(text)
    token_path(home).chmod(0o600)
    if text != "newline\n":
        with pytest.raises(ConfigError, match="no token") as caught:
            load_token(home, {})
        assert text not in str(caught.value)


def test_a_file_that_others_read_is_refused(home):
    load_token(home, {})
    token_path(home).chmod(0o640)
    with pytest.raises(ConfigError) as caught:
        load_token(home, {})
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_at_once(home, make):
    make(token_path(home))
    with pytest.raises(ConfigError, match=r"not a file|Is a directory"):
        load_token(home, {})


def test_an_empty_file_is_no_token(home):
    token_path(home).touch(0o600)
    with pytest.raises(ConfigError) as caught:
        load_token(home, {})
    assert "delete" in caught.value.hint


def test_a_home_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"api\.token"):
        load_token(Home(tmp_path / "nowhere"), {})


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100), st.binary(max_size=100))
def test_only_the_token_matches_the_token(text, other):
    token = ApiToken(text)
    assert token.matches(text.encode())
    assert token.matches(other) == (other == text.encode())
    assert text not in repr(token) or text in "ApiToken(…)"
