"""Whom a buyer asks, and in which order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from protocols.heartbeat import build_heartbeat
from protocols.nip01 import sign_event
from protocols.nip89 import Announcement
from pylon.compute.discovery import ANNOUNCEMENT, Market, Offer, announcements, rank, why_none
from pylon.money import Msat, max_fee, sats
from tests.pylon.market import Home, open_actor, open_home

NAMES = [f"{number:02x}" * 32 for number in range(6)]
BID = Msat(10_000)


def announced(provider=NAMES[0], price=5_000, network="simnet", models=("m",), created_at=1):
    return Announcement(provider, "d", (5050,), tuple(models), price, network, "", "", created_at)


def ranked(found, bid=BID, model=None, network="simnet", excluded=(), wanted=None, distrusted=()):
    return rank(found, bid=bid, model=model, network=network, excluded=excluded, wanted=wanted, distrusted=distrusted)


announcements_ = st.builds(
    announced,
    st.sampled_from(NAMES),
    st.one_of(st.none(), st.integers(0, 20_000), st.just(10**17)),
    st.sampled_from(["simnet", "mainnet", ""]),
    st.lists(st.sampled_from(["m", "n"]), max_size=2),
    st.integers(0, 2**53),
)
names = st.lists(st.sampled_from(NAMES), max_size=3)


@given(
    st.lists(announcements_, max_size=12),
    st.sampled_from([None, "m", "n", "o"]),
    names,
    st.one_of(st.none(), st.sampled_from(NAMES)),
    names,
)
def test_no_ranking_breaks_the_rules(found, model, excluded, wanted, distrusted):
    offers = ranked(found, model=model, excluded=excluded, wanted=wanted, distrusted=distrusted)
    providers = [offer.provider for offer in offers]
    assert len(providers) == len(set(providers)), "each provider once"
    assert not set(providers) & set(excluded)
    assert wanted is None or set(providers) <= {wanted}
    for offer in offers:
        assert 0 <= offer.ceiling <= BID, "never above the bid"
        fits = [
            a
            for a in found
            if a.provider == offer.provider
            and a.network in ("simnet", "")
            and (model is None or model in a.models)
            and (a.price_msats is None or a.price_msats == offer.ceiling)
        ]
        assert fits or not any(a.provider == offer.provider for a in found), "never a wrong network or model"
        assert offer.announced == bool(fits)
    keys = [(offer.provider in distrusted, offer.ceiling + max_fee(offer.ceiling)) for offer in offers]
    assert keys == sorted(keys), "cheapest first, the distrusted last"


def test_of_equal_prices_the_newest_announcement_comes_first():
    found = [announced(NAMES[0], created_at=1), announced(NAMES[1], created_at=2)]
    assert [offer.provider for offer in ranked(found)] == [NAMES[1], NAMES[0]]


def test_without_a_price_it_may_ask_the_bid_and_ranks_so():
    assert ranked([announced(price=None), announced(NAMES[1], price=9_999)]) == [
        Offer(NAMES[1], Msat(9_999), True),
        Offer(NAMES[0], BID, True),
    ]


def test_who_is_named_is_asked_unannounced_but_not_against_its_word():
    assert ranked([], wanted=NAMES[0]) == [Offer(NAMES[0], BID, False)]
    assert ranked([announced(NAMES[1])], wanted=NAMES[0]) == [Offer(NAMES[0], BID, False)]
    assert ranked([announced(network="mainnet")], wanted=NAMES[0]) == []
    assert ranked([announced(price=10_001)], wanted=NAMES[0]) == []
    assert ranked([], wanted=NAMES[0], excluded=[NAMES[0]]) == []


def test_a_cheap_thief_is_asked_last():
    found = [announced(NAMES[0], price=1), announced(NAMES[1], price=9_000)]
    assert [offer.provider for offer in ranked(found, distrusted=[NAMES[0]])] == [NAMES[1], NAMES[0]]


# --- why nobody fits ------------------------------------------------------------------------------------------

OWN = "ee" * 32
A, B, C = NAMES[:3]


def why(found, bid=BID, model=None, network="simnet", tried=(), wanted=None):
    return why_none(found, bid=bid, model=model, network=network, tried=tried, own=OWN, wanted=wanted)


@pytest.mark.parametrize(
    ("found", "changes", "says"),
    [
        ([], {}, "no provider announces itself on the relays"),
        ([announced(OWN)], {}, "no provider announces itself on the relays"),
        ([announced(price=25_000), announced(B, price=30_500)], {}, "the cheapest asks 25 sat, the bid is 10 sat"),
        ([announced(), announced(B, models=("n",))], {"model": "x"}, "nobody serves model 'x' (served: 'm', 'n')"),
        ([announced(models=())], {"model": "x"}, "nobody serves model 'x' (served: none)"),
        ([announced(models=tuple("abcdefgh"))], {"model": "x"}, "'a', 'b', 'c', 'd', 'e' and 3 more)"),
        ([announced(OWN, models=("x",))], {"model": "x"}, "no provider announces itself on the relays"),
        ([announced(network="mainnet")], {}, "nobody sells on simnet (announced: 'mainnet')"),
        ([announced(), announced(B)], {"tried": (A, B)}, "all 2 that fit were tried"),
        ([announced(), announced(B)], {"tried": (A, B, C)}, "all 3 that fit were tried"),
        ([announced()], {"tried": (A,)}, "the only one that fits was tried"),
        ([], {"tried": (A,)}, "the only one that fits was tried"),
        (
            [announced(), announced(B, price=12_000)],
            {"tried": (A,)},
            "the only one that fits was tried; the cheapest other asks 12 sat, the bid is 10 sat",
        ),
        ([announced(), announced(B, price=12_000)], {"wanted": B}, "the cheapest asks 12 sat, the bid is 10 sat"),
        ([announced()], {"wanted": A, "tried": (A,)}, "the only one that fits was tried"),
        ([], {"wanted": A, "tried": (A,)}, "the provider that was named was tried, and announces nothing"),
        ([announced(OWN)], {"wanted": OWN}, "the provider that was named is the buyer, and nobody buys from itself"),
    ],
)
def test_why_nobody_fits(found, changes, says):
    assert says in why(found, **changes)


@given(
    st.lists(announcements_, max_size=12),
    st.sampled_from([None, "m", "o"]),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
    st.one_of(st.none(), st.sampled_from([*NAMES, OWN])),
)
def test_whenever_nobody_fits_something_true_is_said(found, model, tried, wanted):
    if ranked(found, model=model, excluded=(*tried, OWN), wanted=wanted):
        return
    words = why(found, model=model, tried=tried, wanted=wanted)
    assert len(words) < 600
    if "tried" in words:
        assert tried
    if "asks" in words:
        assert any(a.price_msats is not None and a.price_msats > BID and a.provider not in tried for a in found)
    if "serves" in words:
        assert not any(model in a.models for a in found if a.network in ("simnet", "") and wanted in (None, a.provider))


def test_strangers_names_command_no_terminal():
    words = why([announced(models=("\x1b]0;title\x07 \u202e" + "x" * 500,))], model="x")
    assert words.isprintable()
    assert len(words) < 200


async def test_nonsense_announcements_are_left_out(autojump_clock, market):
    seller, other = await open_actor(market, "seller"), await open_actor(market, "other")
    seller.announce(price=sats(3))
    for tags in ([["d", "x"], ["k", "5050"], ["price", "9" * 400]], [["d", "y"], ["k", "5050", "x"], ["price"]]):
        market.relay.publish(
            sign_event(other.secret, kind=ANNOUNCEMENT, content="[[[", tags=tags, created_at=market.now)
        )
    home: Home = await open_home(market)
    async with home.opened() as (_store, pool):
        found = await announcements(pool, 5050, 3.0)
    assert {entry.price_msats for entry in found} == {sats(3), None}


def beat(actor):
    actor.market.relay.publish(build_heartbeat(actor.secret, d="it", created_at=actor.market.now))


async def test_who_beats_no_more_is_passed_over_and_who_never_did_is_believed(autojump_clock, market):
    beating, quiet = await open_actor(market, "beating"), await open_actor(market, "quiet")
    home = await open_home(market)
    async with home.opened() as (_store, pool):
        buyers = Market(pool, market.clock, 5050, 3.0)

        async def sellers():
            await trio.sleep(6.0)
            return {entry.provider for entry in await buyers.ask()}

        both = {beating.hex, quiet.hex}
        beating.announce()
        quiet.announce()
        beat(beating)
        await trio.sleep(500)
        beat(beating)
        await trio.sleep(880)
        assert await sellers() == both, "the last beat counts, not the announcement"
        await trio.sleep(20)
        assert await sellers() == {quiet.hex}
        assert {entry.provider for entry in await Market(pool, market.clock, 5050, 3.0).ask()} == {quiet.hex}
        buyers.heard(beating.hex, market.now)
        assert await sellers() == both, "a reply is a sign of life"
        await trio.sleep(900)
        assert await sellers() == {quiet.hex}
        beating.announce()
        assert await sellers() == both, "so is an announcement"
        await trio.sleep(900)
        beat(beating)
        assert await sellers() == both
        await trio.sleep(2 * 86_400)
        assert await sellers() == {quiet.hex}, "what beat once is not forgotten when relays drop the beat"


async def test_nobody_beats_for_another(autojump_clock, market):
    gone, other = await open_actor(market, "gone"), await open_actor(market, "other")
    home = await open_home(market)
    gone.announce()
    beat(gone)
    await trio.sleep(1_000)
    beat(other)
    async with home.opened() as (_store, pool):
        assert await Market(pool, market.clock, 5050, 3.0).ask() == []
