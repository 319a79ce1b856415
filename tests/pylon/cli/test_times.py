from __future__ import annotations

import math

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.cli.times import DURATION, ago, in_days, span, until

anything = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("900", 900), ("90s", 90), ("15m", 900), ("1h", 3_600), ("2 D", 172_800), (" 1H ", 3_600), ("007", 7)],
)
def test_a_duration(text, seconds):
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "-5", "1.5h", "1h30m", "h", "1w", "1e3", "٣", "9" * 13, "1 000", "15M m"]
)
def test_what_is_no_duration(text):
    with pytest.raises(click.BadParameter, match="is no time"):
        DURATION.convert(text, None, None)


@given(st.integers(1, 10**12 - 1), st.sampled_from([("", 1), ("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)]))
def test_every_duration_can_be_written(number, unit):
    assert DURATION.convert(f"{number}{unit[0]}", None, None) == number * unit[1]


@given(st.text())
def test_anything_else_is_a_time_or_refused(text):
    try:
        assert DURATION.convert(text, None, None) > 0
    except click.BadParameter:
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"), (0.9, "0s"), (59.9, "59s"), (60, "1m"), (725, "12m"), (3_599, "59m"), (3_600, "1h"),
        (12_000, "3h 20m"), (86_399, "23h 59m"), (86_400, "1d"), (183_600, "2d 3h"),
    ],
)  # fmt: skip
def test_a_span(seconds, text):
    assert span(seconds) == text


def test_ages_and_what_is_to_come():
    assert ago(None, 1_000.0) == "never"
    assert ago(280.0, 1_000.0) == "12m ago"
    assert ago(999.5, 1_000.0) == ago(2_000.0, 1_000.0) == "just now"
    assert until(1_725.0, 1_000.0) == "in 12m"
    assert until(1_000.5, 1_000.0) == until(3.0, 1_000.0) == "due now"


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (0, "0 days"), (-1, "0 days"), (0.04, "under 0.1 days"), (0.89, "0.9 days"), (0.999, "1 day"), (1, "1 day"),
        (1.04, "1 day"), (2.0, "2 days"), (9.94, "9.9 days"), (9.96, "10 days"), (10, "10 days"), (12.9, "12 days"),
        (1_234.5, "1,234 days"), (math.inf, "unlimited"),
    ],
)  # fmt: skip
def test_a_runway(days, text):
    assert in_days(days) == text


@given(anything, anything)
def test_no_number_breaks_them(at, now):
    for text in (span(at), ago(at, now), until(at, now), in_days(at)):
        assert text.isprintable()
        assert text


@given(st.floats(0.0, 1e9))
def test_a_runway_is_near_what_it_says(days):
    words = in_days(days)
    if words != "under 0.1 days":
        assert abs(float(words.split()[0].replace(",", "")) - days) <= (1 if days >= 10 else 0.05 + 1e-9)
