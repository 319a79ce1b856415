"""Every wrong invoice, by name."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from protocols import bolt11
from protocols.nip90 import Feedback, FeedbackStatus
from pylon.compute.purchase import Offered, Purchase, PurchaseState, Quote, Quoted, TurnedAway
from pylon.compute.quotes import MAX_FINAL_CLTV, MAX_HOLD_SECONDS, check_offer, check_quote, is_payable
from pylon.money import Msat

NOW = 1_800_000_000
NODE, OURS = b"\x01" * 32, b"\x02" * 32
HASH = "ab" * 32
REQUEST = "cd" * 32
CEILING = Msat(5_000)
PURCHASE = Purchase(
    id="p",
    created_at=0.0,
    prompt="",
    max_tokens=1,
    bid=Msat(10_000),
    state=PurchaseState.REQUESTED,
    ceiling=CEILING,
    request_id=REQUEST,
)


def invoice(**changes):
    said = {
        "prefix": "sb",
        "amount_msats": 5_000,
        "timestamp": NOW,
        "payment_hash": HASH,
        "payment_secret": "00" * 32,
        "description": "job",
        "expiry": 600,
        "node_secret": NODE,
        **changes,
    }
    return bolt11.encode(**said)


OWN = bolt11.node_public_key(OURS).hex()


def quoted(text, amount: int | None = 5_000, **changes):
    status = FeedbackStatus.PAYMENT_REQUIRED
    return Feedback("ff" * 32, "aa" * 32, REQUEST, "bb" * 32, status, "", amount, text, **changes)


def check(text, amount: int | None = 5_000, now=float(NOW), can_hold=True, **changes):
    return check_quote(
        PURCHASE,
        quoted(text, amount, **changes),
        now=now,
        network_prefix="sb",
        own_payee=OWN,
        answer_seconds=60.0,
        can_hold=can_hold,
    )


def test_a_good_quote():
    text = invoice()
    assert check(text) == Quoted(REQUEST, text, HASH, Msat(5_000), NOW + 60.0)


@pytest.mark.parametrize(
    ("text", "amount", "why"),
    [
        (None, 5_000, "carries no invoice"),
        ("lnsb1garbage", 5_000, "does not decode"),
        ("lnbc" + "q" * 8_000, 5_000, "does not decode"),
        ("", 5_000, "does not decode"),
        (invoice()[:-1] + "q", 5_000, "does not decode"),
        (invoice(prefix="bc"), 5_000, "is for mainnet"),
        (invoice(prefix="tb"), 5_000, "is for testnet"),
        (invoice(prefix="bcrt"), 5_000, "is for regtest"),
        (invoice(amount_msats=None), 5_000, "names no amount"),
        (invoice(amount_msats=None), None, "names no amount"),
        (invoice(amount_msats=4_000), 5_000, "amount tag says"),
        (invoice(amount_msats=5_001), 5_001, "at most"),
        (invoice(amount_msats=5_001), None, "at most"),
        (invoice(amount_msats=21 * 10**17), None, "at most"),
        (invoice(timestamp=NOW - 600), 5_000, "has expired"),
        (invoice(timestamp=NOW - 597), 5_000, "has expired"),
        (invoice(expiry=1), 5_000, "has expired"),
        (invoice(timestamp=NOW + 601), 5_000, "in the future"),
        (invoice(timestamp=2**35 - 1), 5_000, "in the future"),
        (invoice(min_final_cltv=MAX_FINAL_CLTV + 1), 5_000, "may hold the payment"),
        (invoice(min_final_cltv=2**53 - 1), 5_000, "may hold the payment"),
        (invoice(node_secret=OURS), 5_000, "this very wallet"),
        (invoice(node_secret=OURS, name_payee=True), 5_000, "this very wallet"),
    ],
)
def test_a_wrong_invoice_by_name(text, amount, why):
    found = check(text, amount)
    assert isinstance(found, TurnedAway)
    assert why in found.reason
    assert found.request_id == REQUEST


def test_an_invoice_in_capitals_pays_the_same():
    assert check(invoice().upper()).payment_hash == HASH


@given(st.text(max_size=200))
def test_no_text_breaks_the_check_or_is_repeated(text):
    found = check(text)
    assert isinstance(found, TurnedAway)
    assert len(found.reason) < 200


@given(
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.integers(NOW - 2_000, NOW + 2_000),
    st.integers(1, 3_000),
)
def test_what_passes_is_payable_and_within_the_ceiling(amount, tag, timestamp, expiry):
    found = check(invoice(amount_msats=amount, timestamp=timestamp, expiry=expiry), tag)
    if isinstance(found, Quoted):
        assert found.amount == amount <= CEILING
        assert tag in (None, amount)
        assert timestamp + expiry >= NOW + 5
        assert attrs.evolve(found) == found


@given(
    st.integers(1, 8_000),
    st.one_of(st.none(), st.integers(0, 8_000), st.integers(10**15, 10**17)),
    st.one_of(st.none(), st.integers(NOW - 10**5, NOW + 10**5), st.integers(10**9, 10**11)),
    st.booleans(),
)
@example(5_000, None, NOW + 60, False)
@example(5_000, None, NOW + 60, True)
def test_what_passes_costs_no_more_with_its_debts_and_is_held_for_a_while(amount, used, hold_until, can_hold):
    found = check(invoice(amount_msats=amount), None, can_hold=can_hold, credit_used_msats=used, hold_until=hold_until)
    fits = amount + (used or 0) <= CEILING
    in_time = hold_until is None or (can_hold and NOW < hold_until <= NOW + MAX_HOLD_SECONDS)
    assert isinstance(found, Quoted) == (fits and in_time)
    if isinstance(found, Quoted):
        assert (found.amount, found.credit_used, found.hold_until) == (amount, used or 0, hold_until)
    offer = check_offer(
        attrs.evolve(PURCHASE, open=True, state=PurchaseState.COLLECTING),
        quoted(invoice(amount_msats=amount), None, credit_used_msats=used, hold_until=hold_until),
        now=float(NOW),
        network_prefix="sb",
        own_payee=OWN,
        can_hold=can_hold,
    )
    assert isinstance(offer, Offered) == isinstance(found, Quoted)


def test_an_offer_lasts_as_long_as_its_invoice_and_its_hold():
    for quote, until in (
        (Quote("aa" * 32, invoice(), HASH, CEILING), NOW + 600 - 5),
        (Quote("aa" * 32, invoice(), HASH, CEILING, hold_until=NOW + 100.0), NOW + 100 - 5),
    ):
        assert is_payable(quote, until)
        assert not is_payable(quote, until + 1)
