"""Every wrong invoice, by name."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocols import bolt11
from protocols.nip90 import Feedback, FeedbackStatus
from pylon.compute.purchase import Purchase, PurchaseState, Quoted, TurnedAway
from pylon.compute.quotes import MAX_FINAL_CLTV, check_quote
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


def check(text, amount: int | None = 5_000, now=float(NOW)):
    feedback = Feedback("ff" * 32, "aa" * 32, REQUEST, "bb" * 32, FeedbackStatus.PAYMENT_REQUIRED, "", amount, text)
    own = bolt11.node_public_key(OURS).hex()
    return check_quote(PURCHASE, feedback, now=now, network_prefix="sb", own_payee=own, answer_seconds=60.0)


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
