from __future__ import annotations

from pylon.errors import StoreError, brief


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def test_our_own_words_are_told():
    assert brief(raised(StoreError("the disk is full", "free some space"))) == "StoreError: the disk is full"


def test_those_of_others_are_not_for_they_may_quote_a_secret():
    told = brief(raised(ValueError("my prompt")))
    assert "my prompt" not in told
    assert told.startswith("ValueError at test_errors.py:")
    assert told.endswith(" raised")
    assert brief(ValueError("my prompt")) == "ValueError"


def test_one_error_in_groups_is_itself():
    inner = StoreError("the disk is full")
    assert brief(ExceptionGroup("one", [ExceptionGroup("two", [inner])])) == "StoreError: the disk is full"
    assert "disk" not in brief(ExceptionGroup("both", [inner, ValueError("my prompt")]))
