from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

NOW = 1_800_000_000.0


@pytest.fixture
def now(monkeypatch):
    monkeypatch.setattr("time.time", lambda: NOW)


def entry(**changes):
    return {
        "id": "0123abcd-0000-5000-8000-000000000000", "owner": "aa" * 32, "name": "alice", "purpose": "zap",
        "cause": "aa:7:0", "amount_msats": 21_000, "max_fee_msats": 2_000, "payee": "02" * 33,
        "payment_hash": "bb" * 32,
        "approval": "waiting", "state": "pending", "reason": "", "at": NOW - 90, "expires_at": NOW + 605, **changes,
    }  # fmt: skip


def test_frozen_nothing_is_spent_and_everything_is_received(simnet):
    simnet("wallet", "fund", "-a", "100")
    assert simnet("agent", "spawn", "alice")[0] == 0
    code, out, err = simnet("wallet", "freeze", "--reason", "strange things")
    assert (code, err) == (0, "")
    assert out == "spending is frozen (strange things)\nIt goes on with: pylon wallet thaw\n"
    assert simnet("wallet", "freeze")[1].startswith("spending was frozen already, just now (strange things)")
    for refused in (
        ["agent", "fund", "alice", "10", "--from-wallet"],
        ["--json", "agent", "fund", "alice", "10", "--from-wallet"],
    ):
        code, out, err = simnet(*refused)
        assert (code, out) == (4, "")
        assert "pylon wallet thaw" in err
    error = json.loads(err)["error"]
    assert (error["code"], error["message"]) == ("frozen", "spending is frozen: strange things")
    assert simnet("wallet", "fund", "-a", "5")[0] == 0
    assert simnet("agent", "fund", "alice", "10")[0] == 0, "from the faucet"
    code, _, err = simnet("agent", "withdraw", "alice", "5")
    assert code == 4
    assert simnet("books", "--check")[0] == 0
    assert simnet("wallet", "thaw")[1] == "spending goes on; it was frozen (strange things)\n"
    assert simnet("wallet", "thaw")[1] == "spending was not frozen\n"
    assert simnet("agent", "fund", "alice", "10", "--from-wallet")[0] == 0
    assert simnet("agent", "withdraw", "alice", "5")[0] == 0


def test_a_mark_that_does_not_read_freezes(simnet, home):
    simnet("wallet", "fund")
    with closing(sqlite3.connect(home.database)) as database:
        database.execute("INSERT INTO settings (key, value) VALUES ('frozen', '{')")
        database.commit()
    simnet("agent", "spawn", "alice")
    code, _, err = simnet("agent", "fund", "alice", "10", "--from-wallet")
    assert code == 4
    assert "does not read" in err
    assert json.loads(simnet("wallet", "thaw", "--json")[1])["ended"]["at"] is None
    assert simnet("agent", "fund", "alice", "10", "--from-wallet")[0] == 0


def test_nothing_waits(simnet):
    assert simnet("wallet", "approvals")[:2] == (0, "Nothing waits.\n")
    assert json.loads(simnet("wallet", "approvals", "--json")[1]) == {"approvals": []}
    for command in ("approve", "deny"):
        code, out, err = simnet("wallet", command, "0123")
        assert (code, out) == (1, "")
        assert "hint: pylon wallet approvals" in err


def test_what_waits(simnet, daemon, now):
    home_own = entry(name="", owner="", purpose="invoice", payee="", expires_at=None)
    with daemon({"result": {"approvals": [entry(), home_own]}}):
        code, out, err = simnet("wallet", "approvals")
    assert code == 0
    first, second = out.splitlines()
    assert first == (
        "0123abcd-0000-5000  alice  zap  21 sat and at most 2 sat fee to 02020202020202020202  1m ago, lapses in 10m"
    )
    assert second == "0123abcd-0000-5000  this home  invoice  21 sat and at most 2 sat fee  1m ago"
    assert "pylon wallet approve ID" in err


def test_yes_and_no(simnet, daemon):
    answers = {"approvals": [entry()], "approval": entry(approval="given")}
    with daemon({"result": answers}) as asked:
        assert simnet("wallet", "approve", "0123")[1].startswith("payment 0123abcd-0000-5000 of 21 sat is approved")
    # The yes is to what was shown, and not to whatever is called so by then.
    assert [(each["method"], each.get("params", {})) for each in asked] == [
        ("wallet.approvals", {}),
        ("wallet.approve", {"id": entry()["id"], "amount_msats": 21_000, "payee": entry()["payee"]}),
    ]
    with daemon({"result": {"approval": entry(approval="denied")}}) as asked:
        assert (
            simnet("wallet", "deny", "0123", "--reason", "no")[1]
            == "payment 0123abcd-0000-5000 of 21 sat is denied: nothing was paid\n"
        )
    assert asked[0]["params"] == {"id": "0123", "reason": "no"}


def test_status_tells(simnet, daemon, now):
    nearly = {"budget": "day", "used_msats": 850_000, "bound_msats": 1_000_000, "at": NOW}
    wallet = {"settled_msats": 5_000, "pending_msats": 0, "known_at": NOW, "frozen": {"reason": "strange", "at": NOW},
              "approvals": 2, "warnings": [nearly]}  # fmt: skip
    report = {"daemon": {"running": True, "pid": 1}, "network": "simnet", "stats": {}, "wallet": wallet}
    with daemon({"result": report}):
        out = simnet("status")[1]
    assert "FROZEN:   nobody spends (strange); pylon wallet thaw ends it\n" in out
    assert "Waiting:  2 payments, for your yes: pylon wallet approvals\n" in out
    assert "Budget:   day is nearly gone, 850 sat of 1,000 sat\n" in out


def test_books_say_what_left_the_wallets(simnet):
    simnet("wallet", "fund", "-a", "100")
    simnet("agent", "spawn", "alice")
    simnet("agent", "fund", "alice", "50", "--from-wallet")
    simnet("agent", "withdraw", "alice", "7")
    out = simnet("books")[1]
    assert "  this home: taken out, 1 payment, 50 sat and 0.25 sat fees\n" in out
    assert "  alice: taken out, 1 payment, 7 sat and 0.035 sat fees\n" in out
    report = json.loads(simnet("books", "--json", "--causes", "--since", "1h")[1])
    assert [entry["amount_msats"] for entry in report["spent"]] == [50_000, 7_000]
    assert all(entry["cause"].startswith("withdrawal:") for entry in report["spent"])
    assert report["moved"]["fees_msats"] == report["accounts"]["fees_msats"] == 285
    assert "In this time:" in simnet("books", "--since", "1h")[1]
    assert simnet("books", "--since", "0")[0] == 2


def test_an_agents_bounds(simnet):
    simnet("agent", "spawn", "alice", "--payee-day", "50", "--approve-above", "0")
    out = simnet("agent", "info", "alice")[1]
    assert "50 sat a day to one payee; more than 0 sat at once waits for you" in out
    simnet("agent", "set", "alice", "--payee-day", "none", "--approve-above", "none")
    budgets = json.loads(simnet("agent", "info", "alice", "--json")[1])["budgets"]
    assert (budgets["payee_day_msats"], budgets["approve_above_msats"]) == (None, None)
    assert simnet("agent", "set", "alice", "--payee-day", "-1")[0] == 2
