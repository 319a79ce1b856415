from __future__ import annotations

import csv
import io
import json
import time

import pytest

from protocols import bolt11

REPORT = {
    "wallet": "home", "kind_of_wallet": "simnet", "network": "simnet", "note": "simnet sats are not money",
    "settled_msats": 21_000, "pending_msats": 1_500, "spendable_msats": 19_500, "known_at": 5.0,
    "node_pubkey": "02" * 33, "spark_address": "simspark1x", "bitcoin_address": None, "can": ["spark_address"],
}  # fmt: skip


def test_a_new_wallet_is_empty_and_is_funded(simnet):
    code, out, _ = simnet("wallet", "balance")
    lines = out.splitlines()
    assert (code, lines[0], lines[-1]) == (0, "Balance: 0 sat", "Network: simnet (simnet sats are not money)")
    assert [line.partition(": ")[0] for line in lines[1:3]] == ["Spark address", "Bitcoin address"]
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
    with daemon({"result": {**REPORT, "pending_msats": 0, "network": "testnet", "note": ""}}):
        out = simnet("wallet", "balance")[1]
    assert "On its way out" not in out
    assert out.endswith("Network: testnet\n")
    assert "Bitcoin address: none: it has no such address\n" in out


def test_the_daemon_is_asked_if_there_is_one(simnet, daemon):
    with daemon({"result": {**REPORT, "funded_msats": 2_000, "state": "settled"}}) as asked:
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


# --- invoices and payments --------------------------------------------------------------------------------------


@pytest.fixture
def two(simnet, tmp_path, capsys, monkeypatch):
    """Two homes on one ledger; the first has 1,000 sat. Returns how to run a command in each."""
    from pylon.cli.main import run

    monkeypatch.setenv("PYLON_SIMNET_LEDGER", str(tmp_path / "shared.db"))

    def other(*arguments: str):
        code = run(["--home", str(tmp_path / "other"), *arguments])
        return code, *capsys.readouterr()

    assert other("init", "--network", "simnet")[0] == 0
    assert simnet("wallet", "fund", "-a", "1000")[0] == 0
    return simnet, other


def an_invoice(pylon, *arguments):
    return pylon("wallet", "invoice", *arguments)[1].strip()


def test_an_invoice_is_all_that_is_on_stdout(two):
    _, other = two
    code, out, err = other("wallet", "invoice", "25", "-d", "a coffee", "--expires", "15m")
    assert code == 0, err
    assert out.startswith("lnsb")
    assert out.count("\n") == 1
    assert "an invoice for 25 sat; it expires in 1" in err
    assert "not money" in err
    report = json.loads(other("--json", "wallet", "invoice", "1500msat")[1])
    assert report["amount_msats"] == 1_500
    assert report["bolt11"].startswith("lnsb")


def test_a_code_that_can_be_scanned_is_drawn_on_stderr(two):
    _, other = two
    code, out, err = other("wallet", "invoice", "25", "--qr")
    assert (code, out.count("\n")) == (0, 1)
    assert "▄" in err


def test_an_invoice_is_paid_once(two):
    payer, payee = two
    invoice = an_invoice(payee, "25", "-d", "a coffee")
    code, out, err = payer("wallet", "pay", invoice, "--dry-run")
    assert code == 0
    assert "Amount: 25 sat" in out
    assert "For: a coffee" in out
    assert "nothing was sent" in err
    assert json.loads(payer("--json", "wallet", "balance")[1])["settled_msats"] == 1_000_000
    code, out, err = payer("wallet", "pay", invoice, "-y")
    assert (code, out.startswith("paid 25 sat")) == (0, True)
    assert "Amount: 25 sat" in err
    code, _, err = payer("wallet", "pay", invoice)
    assert code == 4
    assert "paid already" in err
    assert json.loads(payee("--json", "wallet", "balance")[1])["settled_msats"] == 25_000
    for home in two:
        assert home("books", "--check")[0] == 0


def test_history_says_what_was_for_whom(two):
    payer, payee = two
    assert payee("wallet", "history")[1] == "no payments yet\n"
    payer("wallet", "pay", an_invoice(payee, "25", "-d", "=a coffee\x1b[31m"))
    line = payee("wallet", "history")[1]
    assert "← 25 sat" in line
    assert "settled" in line
    assert "\x1b" not in line
    sent, funded = json.loads(payer("--json", "wallet", "history")[1])["payments"]
    assert (sent["direction"], sent["amount_msats"], sent["purpose"]) == ("sent", 25_000, "withdrawal")
    assert (funded["direction"], funded["outside"]) == ("received", True)
    assert len(json.loads(payer("--json", "wallet", "history", "-l", "1")[1])["payments"]) == 1
    assert len(json.loads(payer("--json", "wallet", "history", "--completed")[1])["payments"]) == 2
    table = list(csv.DictReader(io.StringIO(payee("wallet", "history", "--csv")[1])))
    assert (table[0]["direction"], table[0]["amount_msats"]) == ("received", "25000")
    assert table[0]["description"].startswith("'=")
    assert payee("--json", "wallet", "history", "--csv")[0] == 2


def test_an_address_is_paid_what_the_payer_names(two):
    payer, payee = two
    address = json.loads(payee("--json", "wallet", "address")[1])["spark_address"]
    code, _, err = payer("wallet", "pay", address)
    assert code == 2
    assert "--amount" in err
    assert payer("wallet", "pay", address, "--amount", "30")[0] == 0
    assert json.loads(payee("--json", "wallet", "balance")[1])["settled_msats"] == 30_000
    # Another payment is another payment: an address is paid as often as one asks.
    assert payer("wallet", "pay", address, "--amount", "30")[0] == 0
    assert json.loads(payee("--json", "wallet", "balance")[1])["settled_msats"] == 60_000
    for home in two:
        assert home("books", "--check")[0] == 0


def test_status_tells_what_the_wallet_is(simnet):
    out = simnet("wallet", "status")[1]
    assert "(simnet)" in out
    assert "Answers: yes" in out
    report = json.loads(simnet("--json", "wallet", "status")[1])
    assert report["reachable"] is True
    assert "hold" in report["can"]


def test_a_wallet_that_does_not_answer_is_said(simnet, daemon):
    status = {
        **REPORT, "settled_msats": None, "pending_msats": None, "known_at": None, "reachable": False,
        "answered_in_ms": None, "problem": "the servers do not answer", "can": [], "open_payments": 1,
        "reserved_msats": 5_000, "frozen": None,
    }  # fmt: skip
    with daemon({"result": status}):
        out = simnet("wallet", "status")[1]
    assert "Answers: no: the servers do not answer" in out
    assert "Balance: unknown" in out
    assert "Open payments: 1, at most 5 sat" in out


@pytest.mark.parametrize("amount", ["0", "-5", "1e30", "1.5", "abc"])
@pytest.mark.parametrize("command", [("invoice", "{}"), ("pay", "lnsb1", "--amount={}")])
def test_what_is_no_amount_is_a_usage_error(simnet, command, amount):
    code, out, err = simnet("--json", "wallet", command[0], *(part.format(amount) for part in command[1:]))
    assert (code, out) == (2, "")
    assert json.loads(err)["error"]["hint"]


def elsewhere(prefix, *, at=None, amount=25_000):
    return bolt11.encode(
        prefix=prefix, amount_msats=amount, timestamp=int(time.time() if at is None else at), expiry=600,
        payment_hash="11" * 32, payment_secret="22" * 32, description="x", node_secret=b"\x07" * 32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("nonsense", "invoice_invalid", "not a Lightning invoice"),
        ("lnsb1qqq", "invoice_invalid", "checksum"),
        (elsewhere("bc"), "wrong_network", "mainnet"),
        (elsewhere("bcrt"), "wrong_network", "regtest"),
        (elsewhere("sb"), "no_route", ""),
    ],
)
def test_what_cannot_be_paid_says_why(two, target, code, words):
    exit_code, out, err = two[0]("--json", "wallet", "pay", target)
    assert (exit_code, out) == (4, "")
    error = json.loads(err)["error"]
    assert error["code"] == code
    assert words in error["message"]


def test_more_than_there_is_names_both(two):
    payer, payee = two
    code, _, err = payer("--json", "wallet", "pay", an_invoice(payee, "2000"))
    error = json.loads(err)["error"]
    assert (code, error["code"]) == (4, "insufficient_funds")
    assert "1,000.000 sat" in error["message"]
    assert payer("books", "--check")[0] == 0


def test_a_frozen_wallet_pays_nothing_and_still_receives(two):
    payer, payee = two
    invoice = an_invoice(payee, "25")
    assert payer("wallet", "freeze", "--reason", "I am away")[0] == 0
    code, _, err = payer("--json", "wallet", "pay", invoice)
    error = json.loads(err)["error"]
    assert (code, error["code"], error["hint"]) == (4, "frozen", "pylon wallet thaw")
    assert "I am away" in payer("wallet", "status")[1]
    assert payer("wallet", "pay", invoice, "--dry-run")[0] == 0
    assert payer("wallet", "invoice", "5")[0] == 0
    assert payer("wallet", "thaw")[0] == 0
    assert payer("wallet", "pay", invoice)[0] == 0


def test_an_expired_invoice_is_not_paid(two):
    payer, payee = two
    invoice = an_invoice(payee, "25", "--expires", "1s")
    time.sleep(2.1)
    code, _, err = payer("--json", "wallet", "pay", invoice)
    assert (code, json.loads(err)["error"]["code"]) == (4, "invoice_expired")


def test_the_fee_is_bounded(two):
    payer, payee = two
    code, _, err = payer("--json", "wallet", "pay", an_invoice(payee, "500"), "--max-fee", "0")
    assert (code, json.loads(err)["error"]["code"]) == (4, "fee_too_high")
    assert json.loads(payer("--json", "wallet", "balance")[1])["spendable_msats"] == 1_000_000


def test_another_amount_than_the_invoices_is_refused(two):
    payer, payee = two
    code, _, err = payer("--json", "wallet", "pay", an_invoice(payee, "25"), "--amount", "26")
    assert (code, json.loads(err)["error"]["code"]) == (4, "invoice_invalid")


def test_the_wallet_of_an_agent(two):
    payer, payee = two
    assert payee("agent", "spawn", "--name", "ada")[0] == 0
    assert payer("wallet", "pay", an_invoice(payee, "25", "--agent", "ada"))[0] == 0
    assert json.loads(payee("--json", "wallet", "balance", "--agent", "ada")[1])["settled_msats"] == 25_000
    assert json.loads(payee("--json", "wallet", "balance")[1])["settled_msats"] == 0
    code, _, err = payee("--json", "wallet", "balance", "--agent", "bob")
    assert (code, json.loads(err)["error"]["code"]) == (1, "not_found")


def test_on_a_terminal_it_asks(two, monkeypatch):
    payer, payee = two
    monkeypatch.setattr("pylon.cli.agent_options.on_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, _, err = payer("wallet", "pay", an_invoice(payee, "25"))
    assert code == 1
    assert "Pay 25 sat" in err
    assert "nothing was paid" in err
