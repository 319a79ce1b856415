from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.cli.amounts import AMOUNT, SATS
from pylon.money import MAX_MSAT

amounts = st.integers(1, MAX_MSAT)


def read(text: str) -> int:
    return AMOUNT.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "msats"),
    [
        ("25", 25_000), ("25sat", 25_000), ("25 sats", 25_000), ("5SAT", 5_000), ("1500msat", 1_500),
        ("1msats", 1), (" 7 ", 7_000), ("1_000", 1_000_000), ("1,000", 1_000_000), ("21,000_000", 21_000_000_000),
        ("007", 7_000), ("2100000000000000", MAX_MSAT),
    ],
)  # fmt: skip
def test_an_amount(text, msats):
    assert read(text) == msats


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "0", "0msat", "00", "-5", "+5", "1e3", "1e30", "1.5", "1,5", "1,00", "1,0000", "1_", "_1", "1__000",
        "1,,000", ",000", "1000,000", "abc", "sat", "msat", "5 btc", "5 sat sat", "٣", "²", "5\u00a0msats x", "0x10",
        "1 000", "2100000000000001", "2100000000000000001msat", "9" * 400, "inf", "nan", "5sat\x00",
    ],
)  # fmt: skip
def test_what_is_none(text):
    with pytest.raises(click.BadParameter) as caught:
        read(text)
    assert "msat" in caught.value.message or "sat" in caught.value.message


@given(amounts)
def test_every_amount_can_be_written(msats):
    assert read(f"{msats}msat") == msats
    assert read(f"{msats:,}msat") == read(f"{msats:_} msats") == msats


@given(st.integers(1, MAX_MSAT // 1_000))
def test_sats_are_what_is_meant(whole):
    assert read(str(whole)) == read(f"{whole}sat") == whole * 1_000


@given(st.text())
def test_anything_else_is_an_amount_within_bounds_or_refused(text):
    try:
        assert 0 < read(text) <= MAX_MSAT
    except click.BadParameter:
        pass


# --- what limits are set in -------------------------------------------------------------------------------------------


@given(st.integers(0, MAX_MSAT // 1_000))
def test_every_number_of_sats_can_be_written(whole):
    for text in (str(whole), f"{whole}sat", f"{whole:,} SATS", f"{whole:_}"):
        assert SATS.convert(text, None, None) == whole


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "1,5", "1500msat", "1000msat", "sat", "x", "2100000000000001", "9" * 400, "٣"]
)
def test_what_is_no_number_of_sats(text):
    with pytest.raises(click.BadParameter, match="sat"):
        SATS.convert(text, None, None)


@given(st.text())
def test_anything_else_is_a_number_of_sats_or_refused(text):
    try:
        assert 0 <= SATS.convert(text, None, None) <= MAX_MSAT // 1_000
    except click.BadParameter:
        pass
