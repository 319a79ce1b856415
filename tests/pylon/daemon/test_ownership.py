"""One home's books are one identity's, on one network."""

from __future__ import annotations

import json

import pytest

from pylon.cli.main import run

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"


@pytest.fixture
def pylon(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYLON_SIMNET_LEDGER", str(tmp_path / "ledger.db"))

    def pylon(*arguments):
        code = run(["--home", str(tmp_path / "home"), *arguments])
        return code, *capsys.readouterr()

    assert pylon("init", "--network", "simnet")[0] == 0
    return pylon


def _is_told(answer, *words):
    code, out, err = answer
    assert (code, out) == (1, "")
    assert all(word in err for word in words), err
    assert "hint:" in err


def test_where_sats_have_moved_the_network_stays(pylon, monkeypatch):
    pylon("wallet", "fund")
    for network in ("mainnet", "regtest"):
        monkeypatch.setenv("PYLON_NETWORK", network)
        _is_told(pylon("books"), "the books of this home are of simnet", "--network")
    monkeypatch.delenv("PYLON_NETWORK")
    assert pylon("books", "--check")[0] == 0


@pytest.mark.usefixtures("offline")
def test_a_home_in_which_nothing_has_moved_may_change_it(pylon, monkeypatch):
    assert pylon("books")[0] == 0
    for network in ("testnet", "signet", "regtest", "simnet"):
        monkeypatch.setenv("PYLON_NETWORK", network)
        assert pylon("books")[0] == 0
    assert pylon("wallet", "fund")[0] == 0


def test_books_are_not_parted_from_their_identity(pylon, tmp_path):
    before = pylon("identity")[1]
    pylon("wallet", "fund")
    _is_told(pylon("init", "--force"), "the books of this home are of npub1", "move pylon.db away")
    assert pylon("identity")[1] == before
    (tmp_path / "home" / "pylon.db").unlink()
    assert pylon("init", "--force")[0] == 0


def test_a_phrase_that_was_changed_by_hand_is_noticed(pylon, tmp_path):
    pylon("wallet", "fund")
    (tmp_path / "home" / "identity.mnemonic").write_text(PHRASE + "\n")
    _is_told(pylon("books"), "its identity is another now", "identity.mnemonic.TIME")


def test_a_home_in_which_nothing_has_moved_may_change_its_identity(pylon, tmp_path):
    assert pylon("books")[0] == 0
    (tmp_path / "home" / "identity.mnemonic").write_text(PHRASE + "\n")
    assert pylon("books")[0] == 0
    assert pylon("wallet", "fund")[0] == 0
    assert pylon("books", "--check")[0] == 0


def test_the_same_phrase_may_be_brought_back(tmp_path, monkeypatch, capsys):
    import io

    monkeypatch.setenv("PYLON_SIMNET_LEDGER", str(tmp_path / "ledger.db"))
    home = ["--home", str(tmp_path / "home")]
    monkeypatch.setattr("sys.stdin", io.StringIO(PHRASE + "\n"))
    assert run([*home, "init", "--network", "simnet", "--import"]) == 0
    assert run([*home, "wallet", "fund"]) == 0
    (tmp_path / "home" / "identity.mnemonic").write_text("damaged\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(PHRASE + "\n"))
    assert run([*home, "init", "--import", "--force"]) == 0
    capsys.readouterr()
    assert run([*home, "books", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wallet_msats"] == 100_000_000
