from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

WRONG = {"accounts": {"wallet_msats": 5_000}, "wallet_msats": 4_000, "problems": ["a", "b"], "clean": False}


def test_a_new_home_is_clean(simnet):
    code, out, err = simnet("books", "--check")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "the books are clean"
    assert "brought_forward" in out
    assert "(wallet says)" in out


def test_json(simnet):
    simnet("wallet", "fund", "-a", "7")
    report = json.loads(simnet("books", "--json")[1])
    assert report["accounts"]["wallet_msats"] == report["accounts"]["outside_msats"] == report["wallet_msats"] == 7_000
    assert (report["problems"], report["clean"]) == ([], True)


@pytest.mark.usefixtures("offline")
def test_a_wallet_that_does_not_answer_is_no_problem_of_the_books(pylon):
    """Spark, without the internet."""
    pylon("init")
    code, out, _ = pylon("books", "--check")
    assert code == 0
    assert "wallet says" not in out
    assert "not compared with the wallet" in out


def test_problems_are_told_and_check_exits_with_1(simnet, daemon):
    with daemon({"result": WRONG}):
        code, out, _ = simnet("books")
        assert code == 0
        assert out.splitlines()[-2:] == ["PROBLEM: a", "PROBLEM: b"]
        assert "clean" not in out
        assert simnet("books", "--check")[0] == 1
        code, out, err = simnet("books", "--check", "--json")
        assert (code, json.loads(out), err) == (1, WRONG, "")


def test_an_entry_that_is_gone_is_noticed(simnet, home):
    simnet("wallet", "fund")
    simnet("wallet", "fund")
    assert simnet("books", "--check")[0] == 0
    with closing(sqlite3.connect(home.database)) as database:
        database.execute("UPDATE entries SET msats = msats + 1 WHERE id = 1")
        database.commit()
    code, out, _ = simnet("books", "--check")
    assert code == 1
    assert "200,000.001 sat" in out
