"""NIP-89: announcements of other software, and hostile ones (round trips are in test_jobs.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip89 import AnnouncementInvalid, build_announcement, parse_announcement

SECRET = SecretKey(b"\x01" * 32)
EVERYTHING = 21_000_000 * 100_000_000 * 1_000


def announced(*tags, content="", kind=31990):
    return parse_announcement(sign_event(SECRET, kind=kind, tags=[["k", "5050"], *tags], content=content, created_at=7))


def test_the_form_that_is_pinned():
    event = build_announcement(
        SECRET,
        d="pylon-1",
        kinds=(5050, 5100),
        models=("a", "b"),
        price_msats=1_000,
        network="simnet",
        name="n",
        about="x",
        created_at=7,
    )
    assert event.address == f"31990:{SECRET.public.hex}:pylon-1"
    assert event.tags_named("k") == (("k", "5050"), ("k", "5100"))
    assert event.tags_named("model") == (("model", "a"), ("model", "b"))
    assert event.tags_named("price") == (("price", "1000", "msats"),)
    assert event.tag("network") == "simnet"
    read = parse_announcement(event)
    assert (read.name, read.about, read.models, read.price_msats) == ("n", "x", ("a", "b"), 1_000)


def test_what_other_software_says():
    read = announced(["t", "bitcoin"], ["web", "https://x/<bech32>"], content='{"name":"N","about":"A","picture":"p"}')
    assert (read.name, read.about, read.kinds, read.models, read.d) == ("N", "A", (5050,), (), "")
    assert (read.price_msats, read.network) == (None, "")


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", "5", '"x"', '{"name":5,"about":[],"models":{}}', "[" * 5_000, '{"name":NaN}']
)
def test_content_that_is_no_profile_is_passed_over(content):
    read = announced(["price", "10", "msats"], content=content)
    assert (read.name, read.about, read.models, read.price_msats) == ("", "", (), 10)


def test_models_may_stand_in_the_content():
    assert announced(content='{"models":["a",5,"","b","a"]}').models == ("a", "b")
    assert announced(["model", "tagged"], content='{"models":["a"]}').models == ("tagged",)


@pytest.mark.parametrize(
    ("tag", "price"),
    [
        (["price", "100_000", "msats"], 100_000),
        (["price", "10", "Sats"], 10_000),
        (["price", str(EVERYTHING)], EVERYTHING),
        (["price", str(EVERYTHING // 1_000), "sats"], EVERYTHING),
        (["price", str(EVERYTHING + 1)], None),
        (["price", str(EVERYTHING // 1_000 + 1), "sats"], None),
        (["price", "9" * 19, "sats"], None),
        (["price", "9" * 5_000], None),
        (["price", "-5", "msats"], None),
        (["price", "1e3", "msats"], None),
        (["price", "٣", "msats"], None),
        (["price", "_", "msats"], None),
        (["price", "1000", "per-request", "sats"], None),
        (["price"], None),
    ],
)
def test_no_price_is_more_than_exists(tag, price):
    assert announced(tag).price_msats == price


def test_a_later_tag_may_say_what_the_first_does_not():
    assert announced(["price", "9" * 19, "sats"], ["price", "7", "msats"]).price_msats == 7


def test_long_texts_and_lists_are_cut():
    many = [["k", str(5_000 + n)] for n in range(500)] + [["model", f"m{n}"] for n in range(1_000)]
    read = announced(*many, ["model", "x" * 5_000], ["network", "n" * 500], content='{"about":"' + "a" * 5_000 + '"}')
    assert len(read.kinds) <= 64
    assert len(read.models) <= 256
    assert max(len(text) for text in (*read.models, read.network, read.about)) <= 500


@given(
    st.lists(st.lists(st.sampled_from(["k", "price", "msats", "sats", "5050", "", "9" * 30, "model", "d"])), max_size=6)
)
def test_a_price_fits_into_a_database(tags):
    event = sign_event(SECRET, kind=31990, tags=tags, created_at=1)
    try:
        read = parse_announcement(event)
    except AnnouncementInvalid:
        return
    assert read.price_msats is None or 0 <= read.price_msats < 1 << 63


def test_another_kind_announces_nothing():
    with pytest.raises(AnnouncementInvalid):
        announced(kind=31989)
