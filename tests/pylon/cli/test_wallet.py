from __future__ import annotations

import json
import time

import pytest

REPORT = {
    "network": "simnet", "settled_msats": 21_000, "pending_msats": 1_500, "spendable_msats": 19_500, "known_at": 5.0,
    "node_pubkey": "02" * 33,
}  # fmt: skip


def test_a_new_wallet_is_empty_and_is_funded(simnet):
    assert simnet("wallet", "balance")[:2] == (0, "Balance: 0 sat\nNetwork: simnet (these sats are not money)\n")
    code, out, err = simnet("wallet", "fund")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["funded with 100,000 sat", "Balance: 100,000 sat"]
    report = json.loads(simnet("wallet", "fund", "-a", "1500msat", "--json")[1])
    assert report["funded_msats"] == 1_500
    assert report["settled_msats"] == report["spendable_msats"] == 100_001_500
    assert json.loads(simnet("--json", "wallet", "balance")[1])["settled_msats"] == 100_001_500


def test_two_homes_have_two_wallets_in_one_ledger(simnet, tmp_path, capsys, monkeypatch):
    from pylon.cli.main import run

    monkeypatch.setenv("PYLON_SIMNET_LEDGER", str(tmp_path / "shared.db"))
    other = ["--json", "--home", str(tmp_path / "other")]
    run([*other, "init", "--network", "simnet"])
    simnet("wallet", "fund", "-a", "5")
    run([*other, "wallet", "balance"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["settled_msats"] == 0
    assert json.loads(simnet("--json", "wallet", "balance")[1])["settled_msats"] == 5_000
    assert (tmp_path / "shared.db").exists()


def test_what_is_on_its_way_is_said(simnet, daemon):
    with daemon({"result": REPORT}):
        assert "On its way out: 1.5 sat\n" in simnet("wallet", "balance")[1]
    with daemon({"result": {**REPORT, "pending_msats": 0, "network": "testnet"}}):
        assert simnet("wallet", "balance")[1] == "Balance: 21 sat\n"


def test_the_daemon_is_asked_if_there_is_one(simnet, daemon):
    with daemon({"result": {**REPORT, "funded_msats": 2_000}}) as asked:
        assert simnet("wallet", "fund", "--amount", "2")[0] == 0
    assert (asked[0]["method"], asked[0]["params"]) == ("wallet.fund", {"amount_msats": 2_000})


@pytest.mark.parametrize("amount", ["0", "-5", "1e30", "1.5", "1,5", "abc", "2100000000000000sat"])
def test_what_the_faucet_does_not_give(simnet, amount):
    code, out, err = simnet("--json", "wallet", "fund", f"--amount={amount}")
    assert (code, out) == (2, "")
    error = json.loads(err)["error"]
    assert error["code"] == "usage"
    assert error["hint"]
    assert "_msats" not in error["message"], "that is the interface of programs"


@pytest.mark.parametrize("command", ["balance", "fund"])
@pytest.mark.usefixtures("offline")
def test_offline_spark_is_named_with_what_works_without(pylon, command):
    pylon("init")
    began = time.monotonic()
    code, out, err = pylon("--json", "wallet", command)
    assert time.monotonic() - began < 20
    assert (code, out) == (1, "")
    error = json.loads(err)["error"]
    assert error["code"] == "wallet_unreachable"
    assert "Spark's servers" in error["message"]
    assert "init --network simnet" in error["hint"]


def test_mainnet_without_a_key_says_where_it_is_to_be_had(pylon):
    pylon("init", "--network", "mainnet")
    code, _, err = pylon("--json", "wallet", "balance")
    assert code == 1
    error = json.loads(err)["error"]
    assert error["code"] == "config"
    assert "breez.technology" in error["hint"]
    assert "PYLON_SPARK_API_KEY" in error["hint"]


@pytest.mark.parametrize("amount", ["999", "50001", "1500500msat"])
def test_what_the_regtest_faucet_does_not_give(pylon, amount):
    pylon("init", "--network", "regtest")
    code, _, err = pylon("--json", "wallet", "fund", "-a", amount)
    assert code == 2
    assert "50,000 sat" in json.loads(err)["error"]["message"]


def test_what_comes_with_the_next_blocks_is_said(simnet, daemon):
    report = {"funded_msats": 5_000_000, "state": "pending", "network": "testnet", "payment": "ab" * 32}
    with daemon({"result": report}) as asked:
        out = simnet("wallet", "fund")[1]
    assert asked[0]["params"] == {}
    assert "5,000 sat" in out
    assert "next blocks" in out
    assert "ab" * 32 in out


def test_a_damaged_database_is_named(simnet, home):
    home.database.write_bytes(b"this is no database, and never was one" * 100)
    code, out, err = simnet("--json", "wallet", "balance")
    assert (code, out) == (1, "")
    error = json.loads(err)["error"]
    assert error["code"] == "store"
    assert str(home.database) in error["message"]


def test_a_lost_data_key_is_named(simnet, home):
    simnet("wallet", "balance")
    home.data_key.unlink()
    code, _, err = simnet("wallet", "balance")
    assert code == 1
    assert "data.key" in err
    assert "hint: " in err
