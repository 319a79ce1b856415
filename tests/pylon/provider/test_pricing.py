"""Which jobs are taken, and at what price."""

from __future__ import annotations

from fractions import Fraction

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocols import bolt11
from protocols.job_price import estimate_tokens
from protocols.nip90 import JobRequest
from pylon.money import MAX_MSAT, Msat
from pylon.provider.pricing import Terms, appraise, served_as
from pylon.provider.sale import Free, Priced, Refused
from tests.pylon.market import open_actor, open_home

NOW = 1_800_000_000.0
TERMS = Terms(min_price=Msat(5_000))
JOB = JobRequest(
    id="aa" * 32,
    kind=5050,
    customer="bb" * 32,
    created_at=int(NOW),
    provider="cc" * 32,
    encrypted=True,
    inputs=(),
    content="",
)


def verdict(job=JOB, terms=TERMS, prompt="think", models=("m1", "m2"), now=NOW):
    return appraise(job, terms, prompt=prompt, models=models, now=now)


def test_a_plain_job_has_the_price():
    assert verdict() == Priced(Msat(5_000))


@pytest.mark.parametrize(
    ("changes", "terms", "prompt", "models", "says"),
    [
        ({}, TERMS, None, ("m1",), "no input"),
        ({}, TERMS, " \n\t", ("m1",), "no input"),
        ({}, TERMS, "x" * 32_001, ("m1",), "longer than 32,000"),
        ({}, TERMS, "think", (), "no model is running"),
        ({"expiration": int(NOW)}, TERMS, "think", ("m1",), "expired"),
        ({"params": {"model": "m3"}}, TERMS, "think", ("m1",), "not served here"),
        ({"max_tokens": 1_025}, TERMS, "think", ("m1",), "above 1024"),
        ({"bid_msats": 4_999}, TERMS, "think", ("m1",), "below the price"),
        ({"bid_msats": 0}, TERMS, "think", ("m1",), "below the price"),
    ],
)
def test_each_refusal_says_why(changes, terms, prompt, models, says):
    found = verdict(attrs.evolve(JOB, **changes), terms, prompt, models)
    assert isinstance(found, Refused)
    assert says in found.reason


def test_a_refusal_repeats_no_more_than_a_name_of_it():
    found = verdict(attrs.evolve(JOB, encrypted=False, params={"model": "x" * 4_000}))
    assert "x" * 80 in found.reason
    assert len(found.reason) < 300


@given(
    st.text(st.characters(categories=["L"]), min_size=6).filter(lambda text: text not in "m1 m2"),
    st.integers(10_000, 10**9),
)
def test_the_refusal_of_an_encrypted_job_repeats_nothing_that_was_encrypted(model, max_tokens):
    for changes in ({"params": {"model": model}}, {"max_tokens": max_tokens}):
        told = verdict(attrs.evolve(JOB, **changes)).reason
        other = {"params": {"model": "another"}} if "params" in changes else {"max_tokens": 2_000}
        assert told == verdict(attrs.evolve(JOB, **other)).reason
        assert told != verdict(attrs.evolve(JOB, encrypted=False, **changes)).reason


async def test_the_refusal_as_it_is_published(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling():
        for encrypt in (True, False):
            for changes in ({"model": "canary-7b"}, {"max_tokens": 77_777}):
                told = await customer.told(customer.ask(home.secret, encrypt=encrypt, **changes), "error")
                words = str(next(iter(changes.values())))
                assert (words in told.to_json()) == (not encrypt)


@pytest.mark.parametrize("terms", [Terms(Msat(0)), Terms(Msat(5_000), payments=False)])
def test_free_is_free_whatever_is_bid(terms):
    assert verdict(attrs.evolve(JOB, bid_msats=1), terms) == Free()


def test_what_just_fits_is_taken():
    job = attrs.evolve(JOB, bid_msats=5_000, max_tokens=1_024, expiration=int(NOW) + 1, params={"model": "m2"})
    assert verdict(job, prompt="x" * 32_000) == Priced(Msat(5_000))


@given(st.integers(1, 10**12), st.integers(1, 10**6))
def test_a_price_is_rounded_up_to_what_the_wallet_can_settle(price, unit):
    rounded = Terms(Msat(price), unit=Msat(unit)).price
    assert rounded % unit == 0
    assert price <= rounded < price + unit


@given(
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.integers(0, 10**5),
    st.booleans(),
)
def test_nobody_is_charged_above_their_bid_nor_served_below_the_price(bid, tokens, price, payments):
    terms = Terms(Msat(price), payments=payments)
    found = verdict(attrs.evolve(JOB, bid_msats=bid, max_tokens=tokens), terms)
    match found:
        case Priced(asked):
            assert payments
            assert asked == price > 0
            assert bid is None or asked <= bid
        case Free():
            assert not payments or price == 0
        case Refused(_):
            assert (tokens or 0) > terms.max_tokens or (bid is not None and bid < price)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "fits"),
    [
        ("x" * 4_000, 1_000, True),
        ("x" * 20_000, 256, False),
        ("\N{GRINNING FACE}" * 2_000, 256, True),
        ("\N{GRINNING FACE}" * 20_000, 256, False),
        ("think", 1_024, True),
    ],
)
def test_what_no_context_can_hold_is_refused_before_it_is_paid(prompt, max_tokens, fits):
    job = attrs.evolve(JOB, max_tokens=max_tokens)
    found = appraise(job, TERMS, prompt=prompt, models=("m1",), context=4_096, now=NOW)
    assert isinstance(found, Priced if fits else Refused)
    assert isinstance(appraise(job, TERMS, prompt=prompt, models=("m1",), now=NOW), Priced), "not said: not refused"


# --- by tokens ------------------------------------------------------------------------------------------------

AMOUNTS = st.integers(0, MAX_MSAT).map(Msat)
TOKENS = st.integers(0, 10**9)
TERMS_BY_TOKENS = st.builds(
    Terms,
    min_price=AMOUNTS,
    price_in=AMOUNTS,
    price_out=AMOUNTS,
    multipliers=st.dictionaries(st.sampled_from(["m1", "m2"]), st.fractions(0, 10_000)),
    unit=st.sampled_from([Msat(1), Msat(1_000), Msat(7)]),
)


@given(TERMS_BY_TOKENS, st.sampled_from(["m1", "m2", "m3"]), TOKENS, TOKENS, TOKENS, TOKENS)
def test_more_tokens_never_cost_less_and_no_job_less_than_the_minimum(terms, model, few_in, few_out, more_in, more_out):
    cost = terms.cost(model, few_in, few_out)
    assert cost >= terms.min_price
    assert cost % terms.unit == 0
    assert cost <= terms.cost(model, few_in + more_in, few_out + more_out)
    assert terms.cheapest([model]) <= terms.cost(model, few_in + 1, few_out + 1)
    assert attrs.evolve(terms, payments=False).cost(model, few_in, few_out) == 0


@given(TERMS_BY_TOKENS, st.text(max_size=200), st.one_of(st.none(), st.integers(1, 10**6)))
def test_a_quote_is_the_cost_of_the_prompt_and_of_the_longest_answer(terms, prompt, max_tokens):
    terms = attrs.evolve(terms, max_tokens=10**6)
    found = verdict(attrs.evolve(JOB, max_tokens=max_tokens), terms, prompt, ("m1",))
    if not prompt.strip():
        assert isinstance(found, Refused)
        return
    cost = terms.cost("m1", estimate_tokens(prompt), max_tokens or terms.default_tokens)
    if cost == 0:
        assert found == Free()
    elif cost > MAX_MSAT:
        assert isinstance(found, Refused)
    else:
        assert found == Priced(cost)


@given(st.text(max_size=100), st.text(max_size=100))
def test_a_longer_prompt_has_no_fewer_tokens(text, more):
    assert estimate_tokens(text) <= estimate_tokens(text + more)
    assert estimate_tokens(text) <= len(text.encode("utf-8", "replace"))
    assert (estimate_tokens(text) > 0) == bool(text)


def test_prices_as_people_set_them():
    terms = Terms(
        Msat(1_000), price_in=Msat(100), price_out=Msat(2_000), multipliers={"big": Fraction(5, 2)}, unit=Msat(1_000)
    )
    assert terms.cost("small", 500, 256) == 1_000, "the minimum, for 562 msats of tokens"
    assert terms.cost("small", 4_000, 1_000) == 3_000, "2,400 msats, rounded up once"
    assert terms.cost("big", 4_000, 1_000) == 6_000
    assert terms.cost("big", 1, 1) == 3_000, "two and a half times the minimum"
    assert terms.cost("big:latest", 1, 1) == 3_000
    assert terms.cheapest(["big"]) == 3_000
    assert terms.cheapest(["big", "small"]) == 1_000
    assert Terms(Msat(0), price_out=Msat(1)).cost("m", 0, 1) == 1, "a fraction of a msat is one"


@pytest.mark.parametrize(
    ("asked", "default", "found"),
    [
        (None, "m2", "m2"),
        (None, "m9", "m1"),
        (None, "", "m1"),
        ("m2", "m1", "m2"),
        ("m3", "m1", "m3:latest"),
        ("m9", "m1", None),
    ],
)
def test_the_model_that_is_priced_is_the_one_that_answers(asked, default, found):
    assert served_as(asked, ["m1", "m2", "m3:latest"], default) == found


async def test_the_amount_that_is_told_is_that_of_the_invoice(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    terms = Terms(Msat(1_500), price_in=Msat(10_001), price_out=Msat(333), unit=Msat(1_000))
    async with home.selling(terms=terms):
        for prompt, max_tokens in (("think", 16), ("think " * 500, 1_000)):
            quote = await customer.told(
                customer.ask(home.secret, prompt=prompt, max_tokens=max_tokens), "payment-required"
            )
            _, amount, invoice = quote.tags_named("amount")[0]
            assert int(amount) == terms.cost("", estimate_tokens(prompt), max_tokens)
            assert bolt11.decode(invoice).amount_msats == int(amount)
