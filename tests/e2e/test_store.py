"""A home's records, by real processes: backed up and brought back, damaged, held by others."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from pylon.wallets.port import PaymentState
from pylon.wallets.simnet_model import Fault, FaultKind
from tests.e2e.homes import PORTS_OF_ITS_OWN, PRICE_MSATS, until

pytestmark = pytest.mark.e2e


def rows(node, sql):
    with closing(sqlite3.connect(node.home.database, timeout=30)) as db:
        return db.execute(sql).fetchall()


def frozen(node):
    return node.ask("status")["wallet"]["frozen"]


def test_back_from_a_backup_that_was_made_in_the_middle_of_a_payment(world, passphrase_file, tmp_path):
    """Nobody is asked for the passphrase; what was open is found out, and paid once; then spending goes on."""
    relay = world.relay()
    provider = world.node("provider").configure(relays=[relay], top=f"min_price_msats = {PRICE_MSATS}")
    buyer = world.node("buyer").configure(relays=[relay], more='[api]\nbind = "127.0.0.1:0"\n')
    assert buyer.run_with(passphrase_file, "identity", "passphrase", "--new-passphrase-fd").returncode == 0
    unlocked = {"PYLON_PASSPHRASE_FILE": str(passphrase_file)}
    provider.start("provider", fake=True)
    buyer.start(more=unlocked)
    buyer.fund()
    agent = buyer.json("agent", "spawn", "-n", "alice")
    world.inject(Fault(FaultKind.PENDING, 5.0, PaymentState.SETTLED), buyer)
    buyer.submit("Was it paid?", "--provider", provider.npub)
    until(lambda: [row["state"] for row in buyer.purchases()] == ["paying"], 20, "a payment under way")

    backups = tmp_path / "elsewhere"
    backups.mkdir()
    told = buyer.json("backup", str(backups))
    assert told["sealed"] == "home"
    (path,) = backups.iterdir()
    assert str(path) == told["path"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"SQLite format" not in path.read_bytes()
    refused = buyer.run("restore", "--force", str(path))
    assert refused.returncode == 1
    assert "pylon stop" in refused.stderr
    buyer.daemon.kill()
    (before,) = rows(buyer, f"SELECT epoch FROM agents WHERE name = '{agent['name']}'")
    shutil.move(buyer.root, buyer.root.with_name("lost"))

    restored = buyer.run_with(passphrase_file, "restore", str(path), "--json", "--passphrase-fd")
    assert restored.returncode == 0, restored.stderr
    report = json.loads(restored.stdout)
    assert (report["agents"], report["unknown_payments"], report["until"]) == (1, 1, "reconciled")
    assert rows(buyer, "SELECT epoch FROM agents") == [(before[0] + 1,)]
    assert rows(buyer, "SELECT value FROM settings WHERE key = 'frozen'")
    buyer.start(more=unlocked)
    until(lambda: not frozen(buyer), 40, "it is thawed")
    assert buyer.purchase_ended()["state"] == "answered"
    assert len(buyer.charges()) == 1, "paid once, and not again"
    buyer.check_books()
    provider.stop()
    buyer.stop()
    provider.check_books()


@pytest.fixture
def killed(world):
    """A home with records whose daemon was killed, so that its log is there."""
    node = world.node("home").configure(more=PORTS_OF_ITS_OWN)
    node.start("host")
    for _ in range(3):
        node.ask("wallet.freeze")
        node.ask("wallet.thaw")
    node.daemon.kill()
    return node


def files(node):
    return {
        path.name: path.read_bytes()
        for path in node.root.iterdir()
        if path.name.startswith("pylon.db") and not path.name.endswith("-shm") and path.stat().st_size
    } | {"pylon.db": node.home.database.read_bytes()}


def test_a_database_that_is_damaged_is_refused_and_left_as_it_is(killed):
    node, database = killed, killed.home.database
    log = database.with_name("pylon.db-wal")
    sound = files(node)
    assert len(log.read_bytes()) > 3 * 4_120
    told = node.run("backup", "--json")
    assert told.returncode == 0, told.stderr
    backup = json.loads(told.stdout)["path"]

    def damage(kind):
        for name, content in sound.items():
            (node.root / name).write_bytes(content)
        raw = bytearray(sound["pylon.db"])
        match kind:
            case "truncated":
                log.unlink()
                database.write_bytes(raw[: len(raw) // 2 // 4_096 * 4_096])
            case "pages":
                log.unlink()
                raw[8_192 : 40 * 4_096] = os.urandom(38 * 4_096)
                database.write_bytes(raw)
            case "log":
                content = bytearray(log.read_bytes())
                content[32 + 24 + 1_000] ^= 0xFF
                log.write_bytes(content)
            case "empty":
                database.write_bytes(b"")

    for kind in ("truncated", "pages", "log", "empty"):
        damage(kind)
        before = files(node)
        refused = node.run("start", "-m", "host")
        assert refused.returncode == 1, (kind, refused.stderr)
        assert str(database) in refused.stderr
        assert f"pylon restore --force {backup}" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert files(node) == before, kind
    found = node.run("doctor", "--json")
    assert found.returncode == 1
    (told,) = [check for check in json.loads(found.stdout)["checks"] if check["check"] == "database"]
    assert (told["status"], backup in told["remedy"]) == ("fail", True)
    assert files(node) == before
    assert node.run("wallet", "balance").returncode == 1

    assert node.run("restore", "--force", backup).returncode == 0
    node.start("host")
    until(lambda: not frozen(node), 30, "it is thawed")
    node.stop()
    node.check_books()


def test_damage_while_it_runs_ends_selling_and_spending(world):
    relay = world.relay()
    node = world.node("home").configure(relays=[relay], more='[api]\nbind = "127.0.0.1:0"\n')
    node.start("provider", fake=True)
    node.fund()
    with closing(sqlite3.connect(node.home.database, timeout=30)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with node.home.database.open("r+b") as raw:
        raw.seek(4_096)
        raw.write(os.urandom(60 * 4_096))
    checked = node.run("books", "--check")
    assert checked.returncode == 1
    assert "damaged" in checked.stderr
    assert "pylon restore" in checked.stderr
    assert "damaged" in node.ask("status")["database"]["damaged"]
    until(lambda: "no paid work is taken" in node.daemon.said() + node.run("logs").stdout, 20, "it is closed")
    assert "DAMAGED" in node.run("status").stdout
    refused = node.run("wallet", "freeze")
    assert refused.returncode != 0
    assert "damaged" in refused.stderr
    content = node.home.database.read_bytes()
    node.daemon.terminate()
    assert node.home.database.read_bytes()[4_096 : 61 * 4_096] == content[4_096 : 61 * 4_096]


def test_keys_and_configuration_that_are_damaged(killed):
    node = killed
    for path, content, words in (
        (node.home.config, b'network = "simnet"\nrelays = [\n', "config.toml:2"),
        (node.home.data_key, b"short", "data.key"),
        (node.home.mnemonic, b"\xff\x00", "identity.mnemonic"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        refused = node.run("start", "-m", "host")
        assert refused.returncode == 1, path
        assert words in refused.stderr
        assert "hint:" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert path.read_bytes() == content
        path.write_bytes(before)
