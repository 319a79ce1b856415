"""``pylon identity`` and every way in which a home's passphrase reaches a command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import click
import pytest

from protocols import nip06, nip49
from protocols.nip19 import decode
from pylon.cli.local import run_verb
from pylon.cli.output import State
from pylon.cli.unlock import OPEN
from pylon.daemon.process import hold_home
from pylon.identity import find, is_protected, load, unlock
from pylon.passphrase import Passphrase
from pylon.paths import Home

PHRASE = "leader monkey parrot ring guide accident before fence cannon height naive bean"
WORDS = "correct horse battery staple"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("pylon.passphrase.LOG_N", 10)
    for name in ("PYLON_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def descriptor(text: str):
    """Its number, as an option wants it."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    try:
        yield str(reading)
    finally:
        os.close(reading)


@pytest.fixture
def hidden(monkeypatch):
    """What is typed where nothing is shown, in order."""

    def hidden(*answers):
        left = list(answers)
        monkeypatch.setattr(click.termui, "hidden_prompt_func", lambda text: left.pop(0))
        return left

    return hidden


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setattr("pylon.cli.agent_options.on_terminal", lambda: False)


@pytest.fixture
def protected(simnet, home):
    """``pylon``, in a home with the passphrase ``WORDS``."""
    with descriptor(WORDS + "\n") as number:
        code, out, err = simnet("identity", "passphrase", "--new-passphrase-fd", number)
    assert (code, out) == (0, "The passphrase is set; the seed phrase is sealed.\n"), err
    assert is_protected(home)
    return simnet


def error(err: str):
    return json.loads(err.splitlines()[-1])["error"]


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_says_that_nothing_protects_it(simnet, home):
    code, out, err = simnet("identity", "show")
    assert (code, err) == (0, "")
    assert load(home).npub in out
    assert OPEN in out
    assert str(home.data_key) in out


def test_show_wants_no_passphrase(protected, home, nobody):
    code, out, err = protected("identity", "show", "--json")
    report = json.loads(out)
    known = load(home, Passphrase(WORDS))
    assert (code, err) == (0, "")
    assert (report["npub"], report["pubkey"], report["simnet_node"]) == (known.npub, known.pubkey, known.simnet_node)
    assert (report["passphrase"], report["phrase"], report["spark_identity"]) == (True, "sealed", None)
    assert not any(word in out for word in ('mnemonic":', "nsec"))


def test_show_without_an_identity(pylon):
    code, out, err = pylon("--json", "identity", "show")
    assert (code, out) == (1, "")
    assert error(err)["hint"] == "pylon init"


SDK = """
import asyncio, json, sys
from breez_sdk_spark import *
async def main():
    config = default_server_config(Network.REGTEST)
    config.api_key = None
    sdk = await connect(ConnectRequest(config=config, seed=Seed.MNEMONIC(mnemonic=sys.stdin.read(), passphrase=None),
                                       storage_dir=sys.argv[1]))
    print((await sdk.get_info(GetInfoRequest(ensure_synced=False))).identity_pubkey)
    await sdk.disconnect()
asyncio.run(main())
"""


def test_the_spark_identity_is_the_sdks(pylon, home, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PHRASE))
    assert pylon("init", "--import", "--network", "regtest")[0] == 0
    report = json.loads(pylon("identity", "show", "--json")[1])
    done = subprocess.run(
        [sys.executable, "-c", SDK, str(tmp_path / "sdk")], input=PHRASE, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == report["spark_identity"], done.stderr


# --- reveal -------------------------------------------------------------------------------------------------------


def test_reveal(simnet, home, nobody):
    phrase = load(home).reveal_phrase()
    assert simnet("identity", "reveal") == (0, phrase + "\n", "")
    assert json.loads(simnet("--json", "identity", "reveal")[1]) == {"npub": load(home).npub, "mnemonic": phrase}
    _, out, _ = simnet("identity", "reveal", "--nsec")
    assert decode(out.strip()) == load(home).nostr
    assert " ".join(phrase.split()[:2]) not in out


def test_reveal_asks_on_a_terminal_and_wants_the_passphrase(protected, home, terminal, hidden):
    terminal("n")
    left = hidden(WORDS)
    code, out, _ = protected("identity", "reveal")
    assert (code, out, left) == (1, "", [WORDS])
    terminal("y")
    code, out, _ = protected("identity", "reveal")
    assert out.strip() == load(home, Passphrase(WORDS)).reveal_phrase()
    hidden("another")
    code, out, err = protected("identity", "reveal", "-y")
    assert (code, out) == (1, "")
    assert "another passphrase" in err
    assert WORDS not in err


def test_reveal_works_beside_a_daemon(simnet, home, nobody):
    with hold_home(home):
        assert simnet("identity", "reveal")[0] == 0


def test_phrases_put_aside_can_be_read_again(protected, home, nobody):
    before = load(home, Passphrase(WORDS)).reveal_phrase()
    with descriptor(WORDS) as number:
        assert protected("--passphrase-fd", number, "init", "--force")[0] == 0
    (kept,) = find(home).kept
    assert before not in kept.read_text()
    assert " ".join(before.split()[:2]) not in kept.read_text()
    with descriptor(WORDS) as number:
        code, out, _ = protected("identity", "reveal", "--kept", "--json", "--passphrase-fd", number)
    assert json.loads(out)["kept"] == {kept.name: before}
    assert code == 0


# --- passphrase ---------------------------------------------------------------------------------------------------


def test_set_change_and_remove_on_a_terminal(simnet, home, terminal, hidden):
    terminal()
    hidden("one", "two", WORDS, WORDS)
    code, out, err = simnet("identity", "passphrase")
    assert (code, "do not match" in err) == (0, True)
    assert unlock(home, Passphrase(WORDS))
    hidden(WORDS, "new", "new")
    assert simnet("identity", "passphrase")[:2] == (0, "The passphrase is changed.\n")
    assert unlock(home, Passphrase("new"))
    hidden("new")
    code, out, err = simnet("identity", "passphrase", "--remove", "-y")
    assert (code, out) == (0, "The passphrase is removed.\n")
    assert OPEN in err
    assert not is_protected(home)
    assert simnet("identity", "passphrase", "--remove", "-y")[:2] == (0, "There is no passphrase.\n")


def test_two_lines_of_one_descriptor(protected, home, nobody):
    with descriptor(f"{WORDS}\nnew\n") as number:
        code, _, err = protected("identity", "passphrase", "--passphrase-fd", number, "--new-passphrase-fd", number)
    assert code == 0, err
    assert unlock(home, Passphrase("new"))


def test_a_wrong_one_is_told_before_a_new_one_is_asked_for(protected, home, terminal, hidden):
    terminal()
    left = hidden("wrong", "new", "new")
    code, out, err = protected("--json", "identity", "passphrase")
    assert (code, out, left) == (1, "", ["new", "new"])
    assert error(err)["code"] == "passphrase"
    assert unlock(home, Passphrase(WORDS))


def test_not_while_another_works_in_the_home(simnet, home, nobody):
    with hold_home(home), descriptor(WORDS) as number:
        code, _, err = simnet("--json", "identity", "passphrase", "--new-passphrase-fd", number)
    assert (code, error(err)["code"]) == (1, "already_running")
    assert not is_protected(home)


@pytest.mark.parametrize("typed", ["", "\n", "x" * 5_000, "\udcff"])
def test_what_is_no_passphrase(simnet, home, nobody, typed):
    raw = b"\xff\n" if typed == "\udcff" else typed.encode()
    reading, writing = os.pipe()
    os.write(writing, raw)
    os.close(writing)
    code, _, err = simnet("--json", "identity", "passphrase", "--new-passphrase-fd", str(reading))
    os.close(reading)
    assert (code, error(err)["code"]) == (1, "passphrase")
    assert error(err)["hint"]
    assert not is_protected(home)


# --- where it comes from ------------------------------------------------------------------------------------------


def test_commands_open_a_protected_home_by_each_way(protected, home, monkeypatch, tmp_path, terminal, hidden):
    file, directory = tmp_path / "words", tmp_path / "credentials"
    file.write_text(WORDS + "\nmore\n")
    directory.mkdir()
    (directory / "pylon.passphrase").write_text(WORDS)
    spawned = ("agent", "spawn", "--name", "alice", "--json")
    with descriptor(WORDS) as number:
        assert protected("--passphrase-fd", number, *spawned)[0] == 0
    with monkeypatch.context() as patch:
        patch.setenv("PYLON_PASSPHRASE_FILE", str(file))
        assert protected("agent", "list")[0] == 0
    with monkeypatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(directory))
        assert protected("wallet", "balance")[0] == 0
    terminal()
    left = hidden(WORDS)
    assert protected("books")[0] == 0
    assert left == []


def test_where_nobody_gives_it(protected, home, nobody, monkeypatch, tmp_path):
    for arguments in (
        ("wallet", "balance"),
        ("agent", "list"),
        ("start",),
        ("init", "--force"),
        ("identity", "reveal"),
    ):
        code, out, err = protected("--json", *arguments)
        assert (code, out) == (1, ""), arguments
        assert error(err)["code"] == "passphrase"
        for way in ("--passphrase-fd", "PYLON_PASSPHRASE_FILE", "terminal"):
            assert way in error(err)["hint"]
    monkeypatch.setenv("PYLON_PASSPHRASE_FILE", str(tmp_path / "nothing"))
    code, _, err = protected("--json", "wallet", "balance")
    assert (code, error(err)["code"]) == (1, "passphrase")
    assert "PYLON_PASSPHRASE_FILE" in error(err)["message"]


def test_a_wrong_one_anywhere_is_exit_1(protected, home):
    before = home.data_key.read_bytes(), home.mnemonic.read_bytes()
    for arguments in (("wallet", "balance"), ("start",), ("init", "--force"), ("identity", "backup", "new")):
        with descriptor("wrong secret words") as number:
            code, out, err = protected("--json", "--passphrase-fd", number, *arguments)
        assert (code, out) == (1, ""), (arguments, err)
        assert error(err)["code"] == "passphrase"
        assert "wrong secret" not in err
    assert (home.data_key.read_bytes(), home.mnemonic.read_bytes()) == before


def test_a_command_of_several_steps_asks_once(protected, home, terminal, hidden, monkeypatch):
    terminal()
    left = hidden(WORDS, "not asked for")
    for given in ("typed", "descriptor"):
        state = State()
        state.home_option = str(home.root)
        with descriptor(WORDS) as number:
            state.passphrase_fd = int(number) if given == "descriptor" else None
            for _ in range(2):
                assert run_verb(state, "wallet.balance")["settled_msats"] == 0
    assert left == ["not asked for"]


def test_one_that_is_not_wanted_is_said(simnet):
    with descriptor(WORDS) as number:
        code, _, err = simnet("--passphrase-fd", number, "wallet", "balance")
    assert code == 0
    assert "has none" in err


# --- export, backup, restore --------------------------------------------------------------------------------------


def test_export_is_nip_49(simnet, home, nobody):
    with descriptor("pässwörd\n") as number:
        code, out, err = simnet("identity", "export", "--ncryptsec", "--password-fd", number, "--log-n", "16")
    assert (code, err) == (0, "")
    opened = nip49.decrypt(out.strip(), "pässwörd")
    assert opened.secret == load(home).nostr
    assert opened.security is nip49.KeySecurity.INSECURE
    assert simnet("identity", "export")[0] == 2
    assert simnet("identity", "export", "--ncryptsec")[0] == 2


def test_export_of_a_protected_home_does_not_claim_to_know(protected, home):
    with descriptor("word") as number, descriptor(WORDS) as own:
        arguments = ("identity", "export", "--ncryptsec", "--password-fd", number, "--log-n", "16", "--json")
        report = json.loads(protected("--passphrase-fd", own, *arguments)[1])
    assert nip49.decrypt(report["ncryptsec"], "word").security is nip49.KeySecurity.UNTRACKED


def test_backup_and_restore(protected, home, tmp_path, capsys, nobody):
    from pylon.cli.main import run

    file = tmp_path / "backup"
    with descriptor("of the backup") as number, descriptor(WORDS) as own:
        arguments = ("identity", "backup", str(file), "--passphrase-fd", own, "--backup-passphrase-fd", number)
        code, out, err = protected(*arguments)
    assert (code, out) == (0, f"{file}\n"), err
    with descriptor("of the backup") as number:
        code, _, err = protected("--json", "identity", "restore", str(file), "--backup-passphrase-fd", number)
    assert (code, error(err)["code"]) == (1, "backup")
    new = Home(tmp_path / "new")
    with descriptor("of the backup") as number:
        arguments = ["--home", str(new.root), "identity", "restore", str(file), "--backup-passphrase-fd", number]
        assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "frozen" in out
    assert "passphrase: that of the backup" in out
    assert unlock(new, Passphrase("of the backup")).identity.pubkey == find(home).public.pubkey
    assert find(new).public == find(home).public
    with descriptor("another") as number:
        arguments[-1] = number
        assert run([*arguments, "--force", "--json"]) == 1
    assert "another passphrase" in capsys.readouterr().err


def test_a_backup_needs_a_new_file_and_a_passphrase(simnet, tmp_path, nobody):
    there = tmp_path / "there"
    there.write_text("mine")
    assert simnet("identity", "backup", str(there))[0] == 2
    code, _, err = simnet("identity", "backup", str(tmp_path / "new"))
    assert (code, "--backup-passphrase-fd" in err) == (1, True)
    assert simnet("identity", "restore", str(tmp_path / "nothing"))[0] == 2
    assert there.read_text() == "mine"


def test_no_phrase_in_any_output(protected, home, nobody, tmp_path):
    words = load(home, Passphrase(WORDS)).reveal_phrase().split()
    said = ""
    for arguments in (
        ("identity", "show"),
        ("identity", "export", "--ncryptsec", "--password-fd", "999"),
        ("identity", "backup", str(tmp_path / "b"), "--backup-passphrase-fd", "999"),
        ("identity", "passphrase", "--new-passphrase-fd", "999"),
        ("init",),
        ("wallet", "balance"),
    ):
        with descriptor(WORDS) as number:
            said += "".join(map(str, protected("--passphrase-fd", number, *arguments)))
    for start in range(len(words) - 2):
        assert " ".join(words[start : start + 3]) not in said
    assert WORDS not in said
    assert nip06.check_mnemonic(" ".join(words))


def test_what_moved_between_a_backup_and_its_restore_is_booked_as_outside(simnet, home, tmp_path, capsys, monkeypatch):
    """The wallet is the same, its books are a day old: both are right."""
    from pylon.cli.main import run

    monkeypatch.setenv("PYLON_SIMNET_LEDGER", str(tmp_path / "ledger.db"))
    file, new = tmp_path / "backup", tmp_path / "new"
    simnet("wallet", "fund", "-a", "1000")
    with descriptor("of the backup") as number:
        assert simnet("identity", "backup", str(file), "--backup-passphrase-fd", number)[0] == 0
    assert run(["--home", str(tmp_path / "other"), "init", "--network", "simnet"]) == 0
    capsys.readouterr()
    assert run(["--home", str(tmp_path / "other"), "--json", "wallet", "invoice", "200"]) == 0
    invoice = json.loads(capsys.readouterr().out)["bolt11"]
    assert simnet("wallet", "pay", invoice, "--yes")[0] == 0
    with descriptor("of the backup") as number:
        arguments = ["identity", "restore", str(file), "--backup-passphrase-fd", number]
        assert run(["--home", str(new), *arguments]) == 0
    capsys.readouterr()
    for _ in range(2):
        code = run(["--home", str(new), "books", "--check", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (code, report["problems"]) == (0, [])
        assert report["accounts"]["outside_msats"] == 800_000
        assert report["accounts"]["wallet_msats"] == report["wallet_msats"] < 800_000, "a fee was paid"
