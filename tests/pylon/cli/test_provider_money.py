"""``pylon provider credits|payout``."""

from __future__ import annotations

import json

import pytest

CUSTOMER = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
OWED = {
    "customer": CUSTOMER,
    "npub": "npub10xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqpkge6d",
    "owed_msats": 21_000,
    "paying_msats": 4_000,
    "available_msats": 17_000,
    "since": 1_700_000_000.0,
    "jobs": [{"id": "ab" * 32, "owed_msats": 21_000, "paid_msats": 21_000, "at": 1.0, "state": "owed", "reason": "x"}],
}


def test_nothing_is_owed(simnet):
    code, out, err = simnet("provider", "credits")
    assert (code, out, err) == (0, "Nothing is owed.\n", "")
    assert json.loads(simnet("provider", "credits", "--json")[1]) == {"total_msats": 0, "credits": []}


def test_who_is_owed_what(simnet, daemon):
    report = {"total_msats": 21_000, "credits": [OWED]}
    with daemon({"result": report}) as asked:
        code, out, err = simnet("provider", "credits", "--customer", OWED["npub"])
    assert asked[0]["params"] == {"customer": OWED["npub"]}
    assert code == 0
    assert "21 sat" in out
    assert OWED["npub"] in out
    assert "1 job, 4 sat of it being paid out" in out
    assert "pylon provider payout" in err


def test_a_payout_says_what_was_paid_and_what_is_left(simnet, daemon):
    told = {"customer": CUSTOMER, "paid_out_msats": 17_000, "fee_msats": 85, "owed_msats": 4_000}
    with daemon({"result": told}) as asked:
        code, out, _ = simnet("provider", "payout", CUSTOMER, "lnsb1x", "--amount", "17")
    assert asked[0]["method"] == "provider.payout"
    assert asked[0]["params"] == {"customer": CUSTOMER, "target": "lnsb1x", "amount_msats": 17_000}
    assert code == 0
    assert "paid out 17 sat" in out
    assert "4 sat is still owed" in out


@pytest.mark.parametrize(("customer", "code"), [(CUSTOMER, 4), ("nobody", 2)])
def test_nothing_goes_out_that_is_not_owed(simnet, customer, code):
    assert simnet("wallet", "fund")[0] == 0
    address = json.loads(simnet("wallet", "address", "--json")[1])["spark_address"]
    failed, out, err = simnet("provider", "payout", customer, address)
    assert (failed, out) == (code, "")
    assert ("nothing is owed" in err) == (code == 4)
