"""``pylon doctor`` on homes that are in order, and on homes that are not: each names its remedy."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import time

import pytest
import trio

from pylon import identity
from pylon.clock import SystemClock
from pylon.config import known_keys, variable
from pylon.config_backends import DEFAULT_URLS
from pylon.passphrase import Passphrase
from pylon.protection import protect
from pylon.store.database import open_store


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """From the machine's own backends, models, ports and variables."""
    for path in known_keys():
        monkeypatch.delenv(variable(path), raising=False)
    monkeypatch.delenv("PYLON_PASSPHRASE_FILE", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    for kind in DEFAULT_URLS:
        monkeypatch.setitem(DEFAULT_URLS, kind, "http://127.0.0.1:1/v1")


@pytest.fixture
def sound(simnet, home):
    """A home on simnet with a database, on ports of its own choice."""
    simnet("config", "set", "relay.bind", "127.0.0.1:0")
    simnet("config", "set", "api.bind", "127.0.0.1:0")

    async def begin():
        keys = identity.unlock(home)
        async with open_store(home.database, vault=keys.vault, clock=SystemClock()):
            await trio.lowlevel.checkpoint()

    trio.run(begin)
    return simnet


def examined(pylon, *options):
    began = time.monotonic()
    code, out, err = pylon("doctor", "--json", *options)
    assert time.monotonic() - began < 20
    report = json.loads(out)
    assert code == (0 if report["ok"] else 1), err
    return report


def of(report, check, status=None):
    return [row for row in report["checks"] if row["check"] == check and status in (None, row["status"])]


def remedies(report, check, status="fail"):
    return " ".join(row["remedy"] for row in of(report, check, status))


def test_a_sound_home_has_no_failure(sound, home):
    report = examined(sound)
    assert report["ok"] is True
    assert report["running"] is False
    assert report["counts"]["fail"] == 0
    assert [row for row in report["checks"] if row["status"] != "pass" and not row["remedy"]] == []
    names = {row["check"] for row in report["checks"]}
    assert names >= {"config", "identity", "permissions", "disk", "daemon", "database", "books", "wallet", "agents"}
    assert names >= {"relays", "clock", "backends", "ports"}
    code, out, _ = sound("doctor")
    assert code == 0
    assert "[OK] books" in out
    assert "-> pylon models pull" in out


def test_a_home_that_is_none_is_not_made(pylon, home):
    report = examined(pylon)
    assert "pylon init" in remedies(report, "identity")
    assert not home.root.exists()


def test_open_to_others(sound, home):
    home.mnemonic.chmod(0o644)
    home.config.chmod(0o640)
    report = examined(sound)
    assert f"chmod 600 {home.mnemonic}" in remedies(report, "permissions")
    assert f"chmod 600 {home.config}" in remedies(report, "permissions", "warn")
    assert of(report, "relays", "fail") == [], "the others are looked at all the same"
    report = examined(sound, "--fix")
    assert report["ok"] is True
    assert len(report["fixed"]) == 2
    assert stat.S_IMODE(home.mnemonic.stat().st_mode) == 0o600
    assert of(report, "permissions", "pass")


def test_a_configuration_that_is_wrong(sound, home):
    home.config.write_text('network = "bitcoin"\nmin_price_msats = "x"\n')
    report = examined(sound)
    told = of(report, "config", "fail")
    assert len(told) == 2
    assert f"{home.config}:1" in told[0]["detail"]
    assert '"simnet"' in told[0]["detail"]
    assert "pylon config set" in told[0]["remedy"]
    assert of(report, "database", "pass"), "the others are looked at all the same"


def test_a_variable_that_is_misspelt(sound, home, monkeypatch):
    monkeypatch.setenv("PYLON_RELAY_BNID", "127.0.0.1:1")
    monkeypatch.setenv("PYLON_SOMETHING_ELSE", "1")
    (told,) = of(examined(sound), "config", "warn")
    assert "PYLON_RELAY_BNID" in told["detail"]
    assert "PYLON_RELAY_BIND" in told["remedy"]


def test_a_damaged_database(sound, home):
    with home.database.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * 8_192)
    report = examined(sound)
    assert "pylon restore" in remedies(report, "database")
    assert of(report, "identity", "pass")
    home.database.write_bytes(b"no database at all" * 500)
    assert "damaged" in of(examined(sound), "database", "fail")[0]["detail"]


def test_a_database_whose_rows_are_wrong(sound, home):
    with sqlite3.connect(home.database) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute(
            "INSERT INTO entries (at, cause, kind, debit, credit, msats, owner) VALUES (1, 'c', 'k', 'a', 'b', -5, '')"
        )
    database.close()
    assert "pylon restore" in remedies(examined(sound), "database")


def test_a_database_of_a_newer_pylon(sound, home):
    with sqlite3.connect(home.database) as database:
        database.execute("INSERT INTO _sqlite_migrations VALUES (99, 'pylon', 'from_the_future', '2099')")
    database.close()
    assert "upgrade Pylon" in remedies(examined(sound), "database")


def test_books_that_do_not_agree(sound, home):
    with sqlite3.connect(home.database) as database:
        database.execute(
            "INSERT INTO entries (at, cause, kind, debit, credit, msats, owner)"
            " VALUES (1, 'c', 'job.paid', 'wallet', 'unearned', 5, '')"
        )
    database.close()
    assert "pylon books --check" in remedies(examined(sound), "books")


def test_no_data_key(sound, home):
    home.data_key.unlink()
    report = examined(sound)
    assert "keys/data.key" in remedies(report, "identity")
    assert of(report, "agents", "pass")


def test_a_port_that_is_taken(sound, home, monkeypatch):
    monkeypatch.setattr("pylon.daemon.embedded_relay._ANSWER_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sound("config", "set", "relay.bind", f"127.0.0.1:{port}")
        sound("config", "set", "api.bind", f"127.0.0.1:{port}")
        report = examined(sound)
    assert "pylon config set relay.bind" in remedies(report, "ports")
    assert "pylon config set api.bind" in remedies(report, "ports")


def test_relays_that_are_all_away(sound, home):
    sound("relay", "add", "ws://127.0.0.1:1")
    assert "pylon relay remove ws://127.0.0.1:1" in remedies(examined(sound), "relays")


def test_no_relay_at_all(sound, home):
    sound("config", "set", "relay.enabled", "false")
    assert "pylon relay add" in remedies(examined(sound), "relays")


def test_what_a_dead_daemon_has_left_is_swept(sound, home):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(home.socket))
    left.close()
    home.pid.write_text("999999\n")
    report = examined(sound)
    (told,) = of(report, "daemon", "warn")
    assert "control.sock and pylon.pid" in told["detail"]
    assert told["fixable"] is True
    report = examined(sound, "--fix")
    assert not os.path.lexists(home.socket)
    assert not home.pid.exists()
    assert of(report, "daemon", "pass")


def test_a_home_that_cannot_be_written(sound, home, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pylon.daemon.doctor_files.os.write", full)
    report = examined(sound)
    assert "No space left" in of(report, "disk", "fail")[0]["detail"]
    assert "writable" in remedies(report, "disk")
    assert not list(home.data.glob(".doctor.*"))


def test_a_passphrase_is_never_asked_for(sound, home, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("canary horse battery\n")
    secret.chmod(0o600)
    monkeypatch.setenv("PYLON_PASSPHRASE_FILE", str(secret))
    protect(home, Passphrase("canary horse battery"))
    opened, unlock = [], identity.unlock
    monkeypatch.setattr(identity, "unlock", lambda *given: opened.append(given) or unlock(*given))
    report = examined(sound)
    assert of(report, "books", "pass")
    assert len(opened) == 1, "opening takes 128 MiB"
    assert "canary" not in json.dumps(report)
    monkeypatch.delenv("PYLON_PASSPHRASE_FILE")
    report = examined(sound)
    assert "PYLON_PASSPHRASE_FILE" in remedies(report, "books", "warn")
    assert report["ok"] is True


def test_agents_elsewhere_in_trouble_or_without_funds(sound, home):
    with sqlite3.connect(home.database) as database:
        for number, (name, moved, error) in enumerate(
            [("alice", "run by abcd since epoch 4", ""), ("bob", "", "the model\nis away"), ("carol", "", "")]
        ):
            database.execute(
                "INSERT INTO agents (id, name, created_at, wallet, epoch, instance, moved, last_error, settings, burn,"
                " keys, phrase) VALUES (?, ?, 1, ?, 1, 'i', ?, ?, '{}', '{}', x'00', x'00')",
                (f"{number:064x}", name, f"w{number}", moved, error),
            )
            database.execute("INSERT INTO lifecycles VALUES (?, 'dormant', 0, 0, 1, 1, x'00')", (f"{number:064x}",))
    database.close()
    report = examined(sound)
    assert "one seed has one home" in remedies(report, "agents")
    warnings = of(report, "agents", "warn")
    assert [row["detail"] for row in warnings] == [
        "bob: the model is away",
        "there are 2 agents without funds (dormant)",
    ]
    assert of(report, "agents", "pass")[0]["detail"] == "2 dormant"


def test_a_running_daemon_is_asked(sound, home, daemon):
    status = {
        "daemon": {"pid": 7, "provider_off": "no model (pylon models pull)"},
        "wallet": {"settled_msats": 5_000, "known_at": time.time() - 3_600, "frozen": {"reason": "x"}, "approvals": 2},
        "quarantined": [
            {"agent": None, "name": "buyer", "last_error": "it broke"},
            {"agent": "alice", "name": "timer", "last_error": "it broke, too"},
        ],
        "incomplete": {"backends": "no answer within 0.8 s"},
        "provider": {"closed": "the disk is full"},
        "api": "http://127.0.0.1:4",
    }
    with daemon(
        {
            "result": {
                **status,
                "problems": ["a debt"],
                "remarks": [],
                "relays": [],
                "local_backends": [],
                "embedded_missing": None,
                "default_model": "m",
                "default_model_used": None,
            }
        }
    ) as asked:
        report = examined(sound)
    assert report["running"] is True
    assert {call["method"] for call in asked} == {"status", "books", "relay.check", "compute"}
    assert "pylon books --check" in remedies(report, "books")
    assert [row["detail"] for row in of(report, "daemon", "fail")] == [
        "buyer is quarantined: it broke",
        "timer of alice is quarantined: it broke, too",
        "no paid work is taken: the disk is full",
    ]
    assert "pylon agent resume alice" in remedies(report, "daemon")
    assert "does not tell of backends" in of(report, "daemon", "warn")[0]["detail"]
    assert "pylon wallet thaw" in remedies(report, "wallet", "warn")
    assert "pylon wallet approvals" in remedies(report, "wallet", "warn")
    assert "s old" in of(report, "wallet", "warn")[2]["detail"]


def test_a_daemon_that_does_not_answer(sound, home, monkeypatch):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home.socket))
    listener.listen()
    home.pid.write_text("4242\n")
    try:
        report = examined(sound)
    finally:
        listener.close()
    assert "kill 4242" in remedies(report, "daemon")
    assert of(report, "database", "pass")


def test_a_home_that_cannot_be_named(pylon, home):
    home.root.write_text("a file")
    code, out, _ = pylon("doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["checks"][0]["check"]) == (1, False, "home")


def test_what_cannot_be_mended_is_said(sound, home, monkeypatch):
    home.config.chmod(0o644)

    def fail(path, mode):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr("pathlib.Path.chmod", fail)
    _, out, err = sound("doctor", "--fix", "--json")
    assert "cannot be mended" in err
    assert json.loads(out)["fixed"] == []
