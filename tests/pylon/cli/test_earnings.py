from __future__ import annotations

import json
import sys

import pytest

from pylon.cli.earnings import MOST_BARS, bars

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


ROW = {
    "job_id": "ab" * 32,
    "amount_msats": 1_500,
    "earned_at": 1_800_000_000.0,
    "model": "=cmd()",
    "customer": "cd" * 32,
}


def test_csv_is_no_formula(simnet, daemon):
    with daemon({"result": {"summary": SUMMARY, "recent": [ROW, {**ROW, "model": None}]}}):
        code, out, err = simnet("earnings", "--csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "time,job_id,model,customer,amount_msats",
        f"2027-01-15T08:00:00Z,{'ab' * 32},'=cmd(),{'cd' * 32},1500",
        f"2027-01-15T08:00:00Z,{'ab' * 32},,{'cd' * 32},1500",
    ]
    groups = [{"model": "+1", "amount_msats": 5, "job_count": 2}]
    with daemon({"result": {"summary": SUMMARY, "recent": [], "by": "model", "groups": groups}}):
        assert simnet("earnings", "--csv", "--by", "model")[1] == "model,job_count,amount_msats\n'+1,2,5\n"
    assert simnet("earnings", "--csv", "--json")[0] == 2


def test_by_and_since(simnet, daemon):
    groups = [{"customer": None, "amount_msats": 2_000, "job_count": 1}]
    since = {"at": 1_767_225_600.0, "amount_msats": 2_000, "job_count": 1}
    result = {"summary": SUMMARY, "recent": RECENT, "by": "customer", "groups": groups, "since": since}
    with daemon({"result": result}) as asked:
        _, out, _ = simnet("earnings", "--by", "customer", "--since", "2026-01-01")
    assert asked[0]["params"] == {"limit": 10, "since": 1_767_225_600.0, "by": "customer"}
    assert "Since 2026-01-01 00:00 UTC: 2 sat for 1 job\n" in out
    assert out.splitlines()[-1].split() == ["2", "sat", "1", "job", "unknown"]


@pytest.mark.parametrize(
    "arguments",
    [("--since", "2999-01-01"), ("--since", "2026-02-30"), ("--since", "x"), ("--since", "0d"), ("--by", "colour")],
)
def test_what_cannot_be_asked(simnet, arguments):
    assert simnet("earnings", *arguments)[0] == 2


def test_in_this_time(simnet):
    report = json.loads(simnet("earnings", "--since", "7d", "--by", "model", "--json")[1])
    assert (report["since"]["amount_msats"], report["groups"], len(report["days"])) == (0, [], 8)


def test_a_chart_on_a_terminal_only(simnet, daemon, monkeypatch):
    days = [{"day": 1_800_000_000.0 // 86_400 * 86_400, "amount_msats": 1_000}]
    with daemon({"result": {"summary": SUMMARY, "recent": [], "days": days}}):
        assert "█" not in simnet("earnings")[1]
    with daemon({"result": {"summary": SUMMARY, "recent": [], "days": days}}):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert "  01-15  " + "█" * 40 + " 1 sat\n" in simnet("earnings")[1]


def test_bars():
    amounts = [0, 1, 500, 1_000, -5]
    shown = bars([{"day": 86_400.0 * n, "amount_msats": amount} for n, amount in enumerate(amounts)])
    assert [line.count("█") for line in shown] == [0, 0, 20, 40, 0]
    assert "▏" in shown[1]
    assert len({line.index(" sat") - len(line.split()[-2]) for line in shown}) == 1
    assert len(bars([{"day": 0.0, "amount_msats": 1}] * 99)) == MOST_BARS
    assert bars([{"day": 0.0, "amount_msats": 0}]) == bars([]) == []
