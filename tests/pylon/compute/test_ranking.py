"""Whom a buyer asks, and in which order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocols.nip89 import Announcement
from pylon.compute import ranking
from pylon.compute.purchase import Quote
from pylon.compute.ranking import Experience, Offer, choose, why_none
from pylon.compute.standing import UNKNOWN, Standing
from pylon.money import Msat, max_fee

NAMES = [f"{number:02x}" * 32 for number in range(6)]
BID = Msat(10_000)
NOW = 1_800_000_000.0


def announced(provider=NAMES[0], price=5_000, network="simnet", models=("m",), created_at=1):
    return Announcement(provider, "d", (5050,), tuple(models), price, network, "", "", created_at)


def ranked(found, bid=BID, model=None, network="simnet", excluded=(), wanted=None, distrusted=(), **known):
    strangers = known.pop("proven_first", False)
    experience = Experience(distrusted=distrusted, now=NOW, **known)
    return ranking.rank(
        found,
        bid=bid,
        model=model,
        network=network,
        excluded=excluded,
        wanted=wanted,
        experience=experience,
        proven_first=strangers,
    )


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


# --- what experience says -----------------------------------------------------------------------------------------

GOOD = Standing(good=20.0, seconds=60.0, at=NOW)
SLOW = Standing(good=20.0, seconds=1_200.0, at=NOW)
FAILED = UNKNOWN.failed(NOW - 60.0, owes=False)
standings_ = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        Standing,
        st.floats(0, 100),
        st.floats(0, 100),
        st.floats(0, 6_000),
        st.sampled_from([0.0, NOW - 100, NOW - 10_000, NOW + 50]),
        st.just(NOW),
    ),
)
debts_ = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 20_000).map(Msat))


@given(st.lists(announcements_, max_size=12), standings_, debts_, names, st.booleans())
def test_nobody_is_excluded_by_experience_and_its_order_is_the_promised_one(
    found, standings, debts, distrusted, proven_first
):
    known = {"standings": standings, "debts": debts, "distrusted": distrusted, "proven_first": proven_first}
    offers = ranked(found, **known)
    assert sorted(offer.provider for offer in offers) == sorted(offer.provider for offer in ranked(found))
    experience = Experience(standings=standings, debts=debts, distrusted=distrusted, now=NOW)
    keys = [
        (experience.tier(o.provider, proven_first=proven_first), experience.cost(o.provider, o.ceiling)) for o in offers
    ]
    assert keys == sorted(keys)


def first_of(*found, **known):
    return ranked(found, **known)[0].provider


def test_a_debt_is_used_before_anything_is_paid():
    dear, cheap = announced(A, price=9_000), announced(B, price=5_000)
    assert first_of(dear, cheap) == B
    assert first_of(dear, cheap, debts={A: Msat(9_000)}) == A
    assert first_of(dear, cheap, debts={A: Msat(1)}) == B, "a debt of one msat makes nobody the cheapest"
    assert first_of(dear, cheap, debts={A: Msat(9_000)}, distrusted=[A]) == B


def test_who_has_just_failed_comes_behind_and_not_for_ever():
    cheap, dear = announced(A, price=1_000), announced(B, price=9_000)
    assert first_of(cheap, dear, standings={A: FAILED}) == B
    later = FAILED.decayed(NOW + 1_000)
    assert Experience({A: later}, now=NOW + 1_000).tier(A) == (False, False, False)
    assert [o.provider for o in ranked([cheap], standings={A: FAILED})] == [A], (
        "where nobody else is there, it is asked"
    )
    assert first_of(cheap, dear, standings={A: FAILED.answered(1.0, NOW)}) == A, "an answer makes good"


def test_who_told_us_that_it_failed_and_owes_does_not_rest():
    owing = UNKNOWN.failed(NOW - 60.0, owes=True)
    cheap, dear = announced(A, price=1_000), announced(B, price=9_000)
    assert first_of(cheap, dear, standings={A: owing}, debts={A: Msat(1_000)}) == A


def test_reliable_and_fast_are_worth_something():
    one, other = announced(A, price=5_000), announced(B, price=5_200)
    assert first_of(one, other) == A
    assert first_of(one, other, standings={B: GOOD}) == B
    assert first_of(one, other, standings={A: SLOW, B: GOOD}) == B
    assert first_of(one, announced(B, price=50_000), standings={B: GOOD}, bid=Msat(100_000)) == A


def test_of_equal_ones_that_comes_first_which_says_where_it_is_paid():
    assert first_of(announced(A, network="", created_at=9), announced(B, network="simnet", created_at=1)) == B


def test_after_three_strangers_those_come_first_that_have_answered():
    crowd = [announced(name, price=1) for name in NAMES[1:]]
    serving = announced(NAMES[0], price=9_000)
    known = {"standings": {NAMES[0]: GOOD}}
    assert first_of(serving, *crowd, **known) != NAMES[0]
    experience = Experience(**known, now=NOW)
    assert not experience.wary(NAMES[1:3])
    assert not experience.wary(NAMES[:3])
    assert experience.wary(NAMES[1:4])
    assert first_of(serving, *crowd, **known, proven_first=True) == NAMES[0]


def quote(provider, amount, used=0, hold=None):
    return Quote(provider, "lnsb1", provider, Msat(amount), Msat(used), hold)


def test_quotes_are_chosen_as_providers_are_ranked():
    one, other = quote(A, 5_000), quote(B, 4_900)
    assert choose([one, other]) == [other, one]
    assert choose([one, other], Experience({A: GOOD}, now=NOW)) == [one, other]
    assert choose([one, other], Experience({B: FAILED}, now=NOW)) == [one, other]
    assert choose([one, quote(B, 4_900, used=4_000)], Experience(debts={A: Msat(5_000)}, now=NOW))[0].provider == B, (
        "what is not taken off in the quote is not taken off"
    )
    assert choose([quote(A, 5_000), quote(B, 5_000, hold=NOW + 60)])[0].provider == B
