"""``pylon trace``: how one job's life reads."""

from __future__ import annotations

import json

NOW = 1_800_000_000.0
RELAY = {"relay": "ws://a", "state": "accepted", "attempts": 1, "message": "", "done_at": NOW + 0.3, "ms": 12}
STEP = {"at": NOW + 0.25, "from_state": "new", "input": "Begun", "to_state": "seeking", "ms": 250}
EVENT = {
    "event_id": "ee" * 32, "kind": 5050, "effect": "purchase.publish_request", "queued_at": NOW + 0.288,
    "relays": [RELAY, {**RELAY, "relay": "ws://b", "state": "pending", "attempts": 3, "ms": None,
                       "message": "\x1b[2Jno"}],
}  # fmt: skip
PAYMENT = {
    "payment_hash": "cc" * 32, "state": "settled", "amount_msats": 5_000, "max_fee_msats": 2_000, "fee_msats": 50,
    "error": None, "created_at": NOW, "updated_at": NOW,
}  # fmt: skip
LIFE = {"created_at": NOW, "model": None, "reason": "", "ms": 1_250, "history": [STEP], "events": [EVENT]}
PURCHASE = {
    **LIFE, "machine": "purchase", "id": "ab" * 16, "state": "answered", "bid_msats": 20_000, "invoice_msats": 5_000,
    "paid_msats": 5_000, "fee_msats": 50, "credit_msats": 0, "credit_used_msats": 0, "hold_until": None,
    "result": "dd" * 32, "payments": [PAYMENT],
    "requests": [{"request_id": "ee" * 32, "provider": "bb" * 32, "created_at": NOW}],
}  # fmt: skip
SALE = {
    **LIFE, "machine": "sale", "id": "ee" * 32, "state": "owed", "reason": "the engine died", "customer": "11" * 32,
    "attempts": 5, "price_msats": 5_000, "paid_msats": 5_000, "earned_msats": 0, "owed_msats": 5_000,
    "credit_used_msats": 0, "held_msats": 0, "held_until": None, "on_trust": False, "prompt_tokens": None,
    "completion_tokens": None, "payment_hash": "cc" * 32,
    "payments": [{"payment_hash": "cc" * 32, "amount_msats": 5_000, "at": NOW}],
    "events": [],
}  # fmt: skip
TOLD = {"id": "ab" * 16, "records": [PURCHASE, SALE]}


def test_text(pylon, daemon):
    with daemon({"result": TOLD}) as asked:
        code, out, err = pylon("trace", "abab")
    assert (code, err) == (0, "")
    assert (asked[0]["method"], asked[0]["params"]) == ("trace", {"id": "abab"})
    bought, sold = out.split("\n\n")
    for line in (
        f"purchase {'ab' * 16}",
        "answered after 1,250 ms",
        "bid 20 sat, quoted 5 sat",
        f"request {'ee' * 32} to {'bb' * 32}",
        f"payment {'cc' * 32}: 5 sat, settled, 0.05 sat fee",
        f"result {'dd' * 32}",
        "  2027-01-15 08:00:00.250        250 ms  new -> seeking  Begun",
        f"  2027-01-15 08:00:00.288  kind 5050  {'ee' * 32}  publish request",
        "      accepted ws://a after 12 ms",
        "      pending ws://b, 3 attempts: \N{REPLACEMENT CHARACTER}[2Jno",
    ):
        assert line in bought.splitlines()
    assert "owed (the engine died) after 1,250 ms" in sold
    assert "price 5 sat, paid 5 sat, earned 0 sat, owed 5 sat" in sold


def test_how_it_was_paid(pylon, daemon):
    bought = {**PURCHASE, "hold_until": NOW + 60, "credit_used_msats": 1_000}
    sold = {
        **SALE, "held_msats": 4_000, "held_until": NOW + 60, "credit_used_msats": 1_000, "on_trust": True,
        "prompt_tokens": 1_200, "completion_tokens": 7,
    }  # fmt: skip
    with daemon({"result": {"id": "x", "records": [bought, sold]}}):
        out = pylon("trace", "abab")[1].splitlines()
    for line in (
        "paid on delivery, held until 2027-01-15 08:01:00.000 at the latest",
        "1 sat taken off, of what the provider owed",
        "paid on delivery: 4 sat held, until 2027-01-15 08:01:00.000 at the latest",
        "served on trust, and paid afterwards",
        "1 sat of it paid by what was owed to the customer",
        "1,200 tokens asked, 7 answered",
    ):
        assert line in out


def test_a_payment_that_has_not_settled_has_no_fee_yet(pylon, daemon):
    failed = {**PAYMENT, "state": "failed", "fee_msats": None, "error": "no route"}
    pending = {**PAYMENT, "state": "pending", "fee_msats": None}
    with daemon({"result": {"id": "x", "records": [{**PURCHASE, "payments": [failed, pending]}]}}):
        out = pylon("trace", "abab")[1]
    assert "5 sat, failed: no route\n" in out
    assert "5 sat, pending\n" in out


def test_json(pylon, daemon):
    with daemon({"result": TOLD}):
        assert json.loads(pylon("trace", "abab", "--json")[1]) == TOLD


def test_an_id_that_is_none(simnet):
    for ident, code in (("abcd", 1), ("xyz", 2)):
        got, out, err = simnet("trace", ident)
        assert (got, out) == (code, "")
        assert "hint: " in err
