"""Which jobs are taken, and at what price."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocols.nip90 import JobRequest
from pylon.money import Msat
from pylon.provider.pricing import Terms, appraise
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
