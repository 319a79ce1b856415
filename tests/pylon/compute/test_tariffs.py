"""Provider and buyer reckon the same price by tokens, from what was announced."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import example, given

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip89 import build_announcement, parse_announcement
from pylon.compute.ranking import price_of
from pylon.money import Msat
from pylon.provider.pricing import Terms

SECRET = SecretKey.from_hex("01" * 32)
MODELS = ("a", "b", "c")
prices = st.integers(0, 100_000).map(Msat)
multipliers = st.dictionaries(st.sampled_from(MODELS), st.fractions(0, 100, max_denominator=1_000), max_size=3)


def announced(terms: Terms):
    event = build_announcement(
        SECRET,
        d="d",
        kinds=(5050,),
        models=MODELS,
        price_msats=terms.cheapest(MODELS),
        price_in_msats=terms.price_in,
        price_out_msats=terms.price_out,
        tariffs={model: terms.tariff(model) for model in MODELS} if terms.multipliers else {},
        network="simnet",
        name="",
        about="",
        created_at=1,
    )
    return parse_announcement(event)


@given(
    st.builds(
        Terms,
        min_price=prices,
        price_in=prices,
        price_out=prices,
        multipliers=multipliers,
        unit=st.sampled_from([Msat(1), Msat(1_000)]),
    ),
    st.sampled_from(MODELS),
    st.integers(1, 200_000),
    st.integers(1, 1_000_000),
)
@example(Terms(Msat(1_001), multipliers={"b": Fraction(1, 3)}, unit=Msat(1_000)), "a", 1, 1)
def test_a_quote_is_never_above_what_was_announced(terms, model, tokens_in, tokens_out):
    said = announced(terms)
    asked = terms.cost(model, tokens_in, tokens_out)
    expected = price_of(said, model, (tokens_in, tokens_out))
    assert asked <= expected
    # What is announced is no licence to ask more: a sat of rounding, and what two roundings of a price by tokens make.
    assert expected < asked + 2_000 + (tokens_in + tokens_out) // 1_000 + 2
    assert price_of(said, None, (tokens_in, tokens_out)) >= expected


def test_what_others_write_behind_a_model_s_name_is_no_price():
    for more in (["2.5"], ["1", "2"], ["1", "2", "-3"], ["1", "2", "3", "4"], ["1", "x", "3"], ["9" * 30, "1", "1"]):
        event = sign_event(
            SECRET, kind=31990, content="", tags=[["d", "d"], ["k", "5050"], ["model", "a", *more], ["price", "7"]],
            created_at=1,
        )  # fmt: skip
        said = parse_announcement(event)
        assert (said.models, said.tariffs, price_of(said, "a", (10**6, 10**6))) == (("a",), {}, 7)


def test_an_announcement_without_a_price_names_none():
    event = sign_event(SECRET, kind=31990, content="", tags=[["d", "d"], ["k", "5050"], ["model", "a"]], created_at=1)
    assert price_of(parse_announcement(event), "a", (1, 1)) is None
