from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import pytest

from protocols import nip06
from pylon.cli.main import run
from pylon.config import load as load_config
from pylon.daemon.process import hold_home
from pylon.identity import load
from pylon.paths import Home

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NPUB = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("PYLON_HOME", "PYLON_NETWORK"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "home")


@pytest.fixture
def pylon(home, capsys):
    """Run ``pylon --home ...``: exit code, stdout, stderr."""

    def pylon(*arguments: str):
        code = run(["--home", str(home.root), *arguments])
        return code, *capsys.readouterr()

    return pylon


def type_in(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def words_in(text: str) -> bool:
    """Whether twelve words in a row of it are a phrase."""
    words = text.split()
    for start in range(len(words) - 11):
        try:
            nip06.check_mnemonic(" ".join(words[start : start + 12]))
        except ValueError:
            continue
        return True
    return False


def test_a_new_home(pylon, home):
    code, out, err = pylon("init", "--network", "simnet")
    assert (code, err) == (0, "")
    assert load(home).npub in out
    assert str(home.mnemonic) in out
    assert str(home.data_key) in out
    assert "not money" in out
    assert "pylon start" in out
    assert load_config(home.config, environ={}).config.network == "simnet"
    assert load_config(home.config, environ={}).config.relays == ()
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o600


def test_without_a_network_it_is_testnet(pylon, home):
    pylon("init")
    assert load_config(home.config, environ={}).config.network == "testnet"


def test_the_phrase_is_shown_on_a_terminal_once(pylon, home, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = pylon("init")
    assert load(home).reveal_phrase() in out
    assert "Write these words down" in out
    for again in (("init",), ("init", "--show-mnemonic"), ("--json", "init", "--show-mnemonic")):
        _, out, err = pylon(*again)
        assert not words_in(out + err)


@pytest.mark.parametrize("arguments", [("init",), ("init", "--json"), ("--json", "init")])
def test_the_phrase_is_not_shown_to_a_file_or_a_program(pylon, arguments):
    _, out, err = pylon(*arguments)
    assert not words_in(out + err)
    assert "mnemonic" not in (json.loads(out) if "--json" in arguments else {})


def test_not_even_with_json_on_a_terminal(pylon, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "mnemonic" not in json.loads(pylon("init", "--json")[1])


def test_unless_it_is_asked_for_by_name(pylon, home):
    report = json.loads(pylon("init", "--json", "--show-mnemonic", "--words", "24")[1])
    assert report["mnemonic"] == load(home).reveal_phrase()
    assert len(report["mnemonic"].split()) == 24


def test_json(pylon, home):
    code, out, err = pylon("init", "--network", "simnet", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report == {
        "created": True,
        "npub": load(home).npub,
        "pubkey": load(home).pubkey,
        "network": "simnet",
        "passphrase": False,
        "paths": {
            "home": str(home.root),
            "config": str(home.config),
            "identity": str(home.mnemonic),
            "data_key": str(home.data_key),
        },
        "kept": None,
    }


def test_again_changes_nothing_and_says_so(pylon, home):
    pylon("init", "--network", "simnet")
    home.config.write_text(home.config.read_text() + "\n# mine\n")
    before = (home.config.read_bytes(), home.mnemonic.read_bytes(), home.data_key.read_bytes())
    code, out, err = pylon("init", "--network", "regtest")
    assert code == 0
    assert "already" in out
    assert "'simnet'" in err
    assert (home.config.read_bytes(), home.mnemonic.read_bytes(), home.data_key.read_bytes()) == before


def test_force_keeps_the_old_phrase(pylon, home):
    pylon("init")
    old = home.mnemonic.read_text()
    report = json.loads(pylon("init", "--force", "--json")[1])
    assert report["created"]
    assert Path(report["kept"]).read_text() == old
    assert home.mnemonic.read_text() != old


def test_import_reads_one_line(pylon, home, monkeypatch):
    type_in(monkeypatch, f"  {PHRASE}\nand more\n")
    code, out, err = pylon("init", "--import")
    assert code == 0
    assert NPUB in out
    assert not words_in(out + err)
    assert load(home).npub == NPUB


def test_import_where_one_is_already(pylon, home, monkeypatch):
    pylon("init")
    before = load(home).npub
    type_in(monkeypatch, PHRASE)
    code, _, err = pylon("init", "--import")
    assert code == 0
    assert "nothing was imported" in err
    assert load(home).npub == before
    type_in(monkeypatch, PHRASE)
    pylon("init", "--import", "--force")
    assert load(home).npub == NPUB


@pytest.mark.parametrize(("typed", "code"), [("", 2), ("\n", 2), ("leader monkey", 1), (PHRASE + " bean\n", 1)])
def test_import_of_nonsense_changes_nothing(pylon, home, monkeypatch, typed, code):
    type_in(monkeypatch, typed)
    assert pylon("init", "--import")[0] == code
    assert not home.mnemonic.exists()
    assert not home.config.exists()


def test_not_while_another_works_in_the_home(pylon, home):
    with hold_home(home):
        code, _, err = pylon("--json", "init", "--force")
    assert code == 1
    assert json.loads(err)["error"]["code"] == "already_running"


def test_a_broken_configuration_is_told_before_anything_is_made(pylon, home):
    home.root.mkdir()
    home.config.write_text("network = 3\n")
    code, _, err = pylon("init")
    assert code == 1
    assert f"{home.config}:1" in err
    assert not home.mnemonic.exists()


def test_an_unknown_network_is_a_usage_error(pylon):
    code, _, err = pylon("init", "--network", "bitcoin")
    assert code == 2
    assert "simnet" in err
