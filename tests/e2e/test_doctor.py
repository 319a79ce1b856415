"""``pylon doctor`` in set-ups that are broken, each in one way: what fails, its remedy, and what ``--fix`` mends.

Each remedy names what mends it: a command, a key, a file. Where the test can do what the remedy says, it does, and the
home is sound again.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from contextlib import closing

import pytest

from tests.e2e.homes import PORTS_OF_ITS_OWN, environment, free_port
from tests.e2e.test_disk import fill, mount, small

pytestmark = pytest.mark.e2e

__all__ = ["small"]


@pytest.fixture
def node(world):
    return world.node("home").configure(more=PORTS_OF_ITS_OWN)


def doctor(node, *options):
    done = node.run("doctor", "--json", *options)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    assert "Traceback" not in done.stderr
    return report


def finding(report, check, status="fail"):
    """The only one of its kind. No other check fails."""
    failed = {row["check"] for row in report["checks"] if row["status"] == "fail"}
    assert failed == ({check} if status == "fail" else set()), report["checks"]
    (found,) = [row for row in report["checks"] if (row["check"], row["status"]) == (check, status)]
    assert report["ok"] is (status != "fail")
    print(f"\n$ pylon doctor --json; echo $?\n{json.dumps(found, indent=2)}\n{0 if report['ok'] else 1}")
    return found["detail"], found["remedy"]


def sound(node, *options):
    report = doctor(node, *options)
    assert report["ok"], report["checks"]
    return report


def ran(node):
    """A home that has been used."""
    node.start("host")
    node.fund()
    node.stop()


def test_a_key_that_others_can_read(node):
    phrase = node.root / "identity.mnemonic"
    phrase.chmod(0o644)
    report = doctor(node)
    rows = [row for row in report["checks"] if row["status"] == "fail"]
    assert {row["check"] for row in rows} >= {"permissions"}
    (row,) = [row for row in rows if row["check"] == "permissions"]
    print(f"\n$ pylon doctor --json; echo $?\n{json.dumps(row, indent=2)}\n1")
    assert "open to others (mode 0644)" in row["detail"]
    assert row["remedy"] == f"chmod 600 {phrase}; or pylon doctor --fix"
    assert row["fixable"] is True
    assert sound(node, "--fix")["fixed"] == [row["detail"]]
    assert phrase.stat().st_mode & 0o777 == 0o600


def test_a_configuration_that_is_wrong(node):
    node.home.config.write_text(node.home.config.read_text().replace('"simnet"', '"bitcoin"'))
    detail, remedy = finding(doctor(node), "config")
    assert f"{node.home.config}:1: network" in detail
    assert "pylon config set KEY VALUE" in remedy
    assert str(node.home.config) in remedy
    assert doctor(node, "--fix")["fixed"] == [], "what was meant, nobody but its owner knows"
    assert node.run("config", "set", "network", "simnet").returncode == 0
    sound(node)


def test_a_relay_that_cannot_be_reached(node):
    url = f"ws://127.0.0.1:{free_port()}"
    node.json("relay", "add", url)
    detail, remedy = finding(doctor(node), "relays")
    assert url in detail
    assert f"pylon relay remove {url}" in remedy
    node.json("relay", "remove", url)
    sound(node)


def test_a_model_that_is_not_there(node):
    node.home.config.write_text(node.home.config.read_text() + '[provider]\nmodel_file = "/nowhere/model.gguf"\n')
    detail, remedy = finding(doctor(node), "backends")
    assert "/nowhere/model.gguf" in detail
    assert "provider.model_file" in remedy
    assert "pylon models pull" in remedy


@pytest.mark.deep
def test_a_port_that_is_taken(node):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert node.run("config", "set", "api.bind", f"127.0.0.1:{port}").returncode == 0
        detail, remedy = finding(doctor(node), "ports")
        assert f"127.0.0.1:{port} is taken" in detail
        assert "pylon config set api.bind 127.0.0.1:PORT" in remedy
        assert node.run("config", "set", "api.bind", f"127.0.0.1:{free_port()}").returncode == 0
        sound(node)


def test_a_clock_that_is_off(world):
    """Of a daemon that runs, against a relay of somebody else."""
    relay = world.our_relay().replace("127.0.0.1", "localhost")
    off = world.directory / "clock"
    off.write_text("-3600")
    node = world.node("home").configure(relays=[relay], more='\n[api]\nbind = "127.0.0.1:0"\n')
    node.start("host", "--clock", str(off), fake=True)
    detail, remedy = finding(doctor(node), "clock")
    assert detail == f"it is 3,600 s behind that of {relay}"
    assert remedy == "set the clock: timedatectl set-ntp true"
    off.write_text("0")
    sound(node)
    node.stop()


def test_books_that_do_not_match(node):
    ran(node)
    with closing(sqlite3.connect(node.home.database)) as database:
        assert database.execute("UPDATE entries SET credit = 'somebody'").rowcount
        database.commit()
    detail, remedy = finding(doctor(node), "books")
    assert "between unknown accounts" in detail
    assert remedy == "pylon books --check; pylon wallet freeze until it is understood"
    assert node.run("books", "--check").returncode == 1


@pytest.mark.deep
def test_a_database_that_is_damaged(node):
    ran(node)
    content = bytearray(node.home.database.read_bytes())
    content[4_096:] = os.urandom(len(content) - 4_096)
    node.home.database.write_bytes(content)
    report = doctor(node)
    (row,) = [row for row in report["checks"] if row["check"] == "database"]
    assert row["status"] == "fail"
    assert "is damaged" in row["detail"]
    assert "pylon restore --force FILE" in row["remedy"]
    assert doctor(node, "--fix")["fixed"] == []
    assert node.home.database.read_bytes() == bytes(content), "it is left as it is"


@pytest.mark.deep
def test_a_wallet_of_ones_own_without_its_string(node):
    node.home.config.write_text(node.home.config.read_text() + '[wallet]\nkind = "nwc"\n')
    detail, remedy = finding(doctor(node), "wallet")
    assert str(node.root / "keys" / "wallet.nwc") in detail
    assert "PYLON_NWC_URI" in remedy
    assert environment().get("PYLON_NWC_URI") is None


@pytest.mark.parametrize(
    ("leave", "status"),
    [pytest.param(30, "fail", id="full"), pytest.param(90, "warn", id="nearly", marks=pytest.mark.deep)],
)
def test_a_disk_without_room(small, world, leave, status):
    if leave > 60:
        assert mount("-o", "remount,size=256m", str(small)).returncode == 0
    node = world.node("small/home").configure(more=PORTS_OF_ITS_OWN)
    ballast = fill(small, leave=leave)
    detail, remedy = finding(doctor(node), "disk", status)
    assert str(node.root) in detail
    assert "make room" in remedy
    ballast.unlink()


@pytest.mark.deep
def test_a_phrase_without_its_data_key(node):
    ran(node)
    kept = node.home.data_key.read_bytes()
    node.home.data_key.unlink()
    report = doctor(node)
    (row,) = [row for row in report["checks"] if row["check"] == "identity"]
    assert row["status"] == "fail"
    assert "pylon restore --force FILE" in row["remedy"]
    assert not node.home.data_key.exists(), "a new one would open nothing"
    node.home.data_key.write_bytes(kept)
    node.home.data_key.chmod(0o600)
    sound(node)
