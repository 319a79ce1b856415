from __future__ import annotations

import json

import pytest

SUMMARY = {
    "today_msats": 1_000, "week_msats": 2_500, "total_msats": 10_000, "total_sats": 10, "job_count": 4,
    "owed_msats": 0, "unearned_msats": 0,
}  # fmt: skip
RECENT = [{"job_id": "ab" * 32, "amount_msats": 1_000, "earned_at": 1_800_000_000.0}]


def test_nothing_yet(simnet):
    code, out, err = simnet("earnings")
    assert (code, err) == (0, "")
    assert out == "Today:     0 sat\nThis week: 0 sat\nTotal:     0 sat for 0 jobs\n"
    report = json.loads(simnet("earnings", "--json")[1])
    assert report["summary"] == dict.fromkeys(SUMMARY, 0)
    assert report["recent"] == []


def test_on_a_network_without_a_wallet_too(pylon):
    pylon("init")
    assert pylon("earnings")[0] == 0


def test_text(simnet, daemon):
    with daemon({"result": {"summary": SUMMARY, "recent": RECENT}}) as asked:
        _, out, _ = simnet("earnings", "-l", "3")
    assert asked[0]["params"] == {"limit": 3}
    assert "Total:     10 sat for 4 jobs" in out
    assert "ab" * 8 in out
    assert "Owed" not in out
    assert "in the works" not in out
    with daemon({"result": {"summary": {**SUMMARY, "owed_msats": 7_000, "unearned_msats": 500}, "recent": []}}):
        _, out, _ = simnet("earnings")
    assert "Owed to customers: 7 sat" in out
    assert "in the works: 0.5 sat" in out


def test_the_year_of_an_entry_of_long_ago_is_shown(simnet, daemon):
    with daemon({"result": {"summary": SUMMARY, "recent": RECENT}}):
        assert "2027-01-1" in simnet("earnings")[1]


@pytest.mark.parametrize("limit", ["-1", "x", "10001", "1.5"])
def test_limits(simnet, limit):
    assert simnet("earnings", "--limit", limit)[0] == 2
