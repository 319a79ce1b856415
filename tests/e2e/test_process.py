"""The daemon as a process: one in a home, ended by signals, started over what a dead one left, silent about secrets."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time

import pytest

from protocols.keys import PublicKey, SecretKey
from protocols.nip90 import build_request, parse_result
from pylon import identity
from pylon.testing.provider_process import answer
from tests.e2e.homes import Stranger, fetch, free_port, stop, until

pytestmark = pytest.mark.e2e

DAEMON_FILES = ("pylon.pid", "control.sock")


@pytest.fixture
def node(world):
    return world.node("home").configure(more='[relay]\nbind = "127.0.0.1:0"\n')


def left_behind(node):
    return [name for name in DAEMON_FILES if (node.root / name).exists() or (node.root / name).is_symlink()]


def at_work(provider):
    """Its only sale is paid, or its payment is held, and there is no answer yet."""
    return [row["state"] for row in provider.sales()] in (["working"], ["held"])


# --- one in a home, and how it ends ---------------------------------------------------------------------------


def test_a_second_daemon_is_refused_by_the_pid_of_the_first(node):
    daemon = node.start()
    for arguments in (("start",), ("start", "-m", "host"), ("start", "--json")):
        second = node.run(*arguments, timeout=20)
        assert second.returncode == 1
        assert f"pid {daemon.pid}" in second.stderr
        assert second.stdout == ""
    assert json.loads(second.stderr)["error"]["code"] == "already_running"
    assert node.json("status")["daemon"]["pid"] == daemon.pid
    node.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number, node):
    daemon = node.start()
    assert left_behind(node) == list(DAEMON_FILES)
    assert (node.root / "pylon.pid").read_text() == f"{daemon.pid}\n"
    began = time.monotonic()
    assert daemon.terminate(number) == 0, daemon.said()
    assert time.monotonic() - began < 10
    assert left_behind(node) == []
    assert daemon.said().splitlines()[-2:] == ["stopping", "stopped"]
    assert "Traceback" not in daemon.said()
    node.check_books()


def test_it_ends_cleanly_in_the_middle_of_a_trade(world):
    relay = world.relay()
    provider, buyer = world.market(relay)
    provider.start("provider", "--seconds", "20", fake=True)
    buyer.start()
    buyer.fund()
    buyer.submit("Take your time", "--provider", provider.npub)
    until(lambda: at_work(provider), 20, "work")
    stop(provider, buyer)
    assert at_work(provider)
    for each in (provider, buyer):
        assert left_behind(each) == []
        each.check_books()
    # And goes on where it was.
    buyer.start()
    provider.start("provider", fake=True)
    assert buyer.purchase_ended()["state"] == "answered"
    assert provider.sale_ended()["state"] == "delivered"
    assert len(buyer.charges()) == 1


def test_what_a_killed_daemon_leaves_is_in_nobodys_way(node):
    node.start().kill()
    assert left_behind(node) == list(DAEMON_FILES)
    assert node.run("status").returncode == 3
    assert node.json("wallet", "balance")["settled_msats"] == 0
    daemon = node.start()
    assert node.json("status")["daemon"]["pid"] == daemon.pid
    node.stop()
    assert left_behind(node) == []


def test_the_pid_of_a_stranger_is_not_believed(node):
    """A pid file may name a process that has come since."""
    node.start().kill()
    (node.root / "pylon.pid").write_text(f"{os.getpid()}\n")
    assert node.run("status").returncode == 3
    daemon = node.start()
    assert node.json("status")["daemon"]["pid"] == daemon.pid


def test_status_without_a_daemon(node):
    done = node.run("status")
    assert done.returncode == 3
    done = node.run("status", "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert told["daemon"]["running"] is False
    assert told["wallet"]["settled_msats"] is None


# --- what it refuses ------------------------------------------------------------------------------------------


def test_a_wrong_key_is_named_with_value_line_and_remedy(node):
    node.home.config.write_text('network = "simnet"\n\n[relay]\nenabled = false\nbind = "nowhere"\n')
    for arguments in (("start",), ("wallet", "balance")):
        done = node.run(*arguments)
        assert done.returncode == 1
        for words in ("relay.bind", '"nowhere"', f"{node.home.config}:5", "host:port", "hint:"):
            assert words in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert left_behind(node) == []


def test_without_any_relay_there_is_nothing_to_do(world):
    done = world.node("home").configure().run("start")
    assert done.returncode == 1
    assert "no relay is configured" in done.stderr
    assert "relays = [...]" in done.stderr


def test_without_payments_it_serves_free_on_any_network(world):
    relay = world.relay()
    node = world.node("home").configure(network="testnet", relays=[relay], top="enable_payments = false")
    node.start("provider", fake=True)
    assert "at free a job" in node.daemon.said()
    customer = SecretKey.generate()
    request = build_request(
        customer,
        prompt="What does it cost?",
        provider=PublicKey.from_hex(node.pubkey),
        created_at=int(time.time()),
    )
    with Stranger(relay) as stranger:
        stranger.publish(request)
    (result,) = until(lambda: fetch(relay, kinds=[6050], tags={"e": [request.id]}), 15, "a result")
    assert parse_result(result, customer).text == answer("What does it cost?")
    feedback = fetch(relay, kinds=[7000], tags={"e": [request.id]})
    assert {event.tag("status") for event in feedback} == {"processing"}
    (announcement,) = fetch(relay, kinds=[31990], authors=[node.pubkey])
    assert announcement.tag("price") == "0"
    assert node.sale_ended()["state"] == "delivered"
    assert fetch(relay, kinds=[11998], authors=[node.pubkey])
    node.stop()
    assert fetch(relay, kinds=[31990, 11998], authors=[node.pubkey]) == [], "what has ended is announced no more"


# --- secrets --------------------------------------------------------------------------------------------------


def test_no_secret_is_where_it_does_not_belong(world):
    rng = random.Random(os.urandom(8))
    prompt = "prompt canary " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=24))
    reply = answer(prompt)
    port = free_port()
    provider = world.node("provider").configure(
        more=f'[relay]\nbind = "127.0.0.1:{port}"\n', top="min_price_msats = 10000"
    )
    buyer = world.node("buyer").configure(relays=[f"ws://127.0.0.1:{port}"])
    secrets = {"prompt": prompt[-24:], "reply": reply[-24:], "reply too": prompt[::-1][:24]}
    for each in (provider, buyer):
        words = identity.load(each.home).reveal_phrase().split()
        secrets |= {f"phrase of {each.name}, from word {i}": " ".join(words[i : i + 3]) for i in range(10)}
        secrets |= {f"data key of {each.name}": each.home.data_key.read_bytes().hex()}

    def look(what, data):
        found = [name for name, secret in secrets.items() if secret.encode() in data]
        assert found == [], f"{found} in {what}"

    provider.start("provider", "--seconds", "1", fake=True)
    buyer.start()
    buyer.fund()
    submitted = buyer.run("job", "submit", "-", "--provider", provider.npub, stdin=prompt)
    assert submitted.returncode == 0, submitted.stderr
    look("job submit", (submitted.stdout + submitted.stderr).encode())
    until(lambda: at_work(provider), 20, "work")
    look("ps", subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, check=True).stdout)
    assert buyer.purchase_ended()["state"] == "answered"
    provider.sale_ended()
    assert buyer.json("job", "status", buyer.purchases()[0]["id"])["text"] == reply

    for each, options in ((provider, ()), (buyer, ("--json",))):
        for arguments in (("status",), ("wallet", "balance"), ("earnings",), ("books", "--check"), ("init",)):
            done = each.run(*arguments, *options)
            look(" ".join(arguments), (done.stdout + done.stderr).encode())
    checked = set()

    def look_at_files():
        for each in (provider, buyer):
            for path in each.root.rglob("*"):
                if path.is_file() and path not in (each.home.mnemonic, each.home.data_key):
                    look(path, path.read_bytes())
                    checked.add(path.name)
        for path in (world.ledger, *world.directory.glob("*.out"), *world.directory.glob("simnet.db-*")):
            look(path, path.read_bytes())

    look_at_files()
    assert {"pylon.db", "pylon.db-wal", "pylon.log", "relay.db", "config.toml"} <= checked
    stop(provider, buyer)
    look_at_files()
    look("an event", "".join(event.to_json() for event in _stored(provider)).encode())


def _stored(provider):
    """Every event that the provider has ever sent, from its outbox."""
    from protocols.nip01 import Event

    return [Event.from_json(row["event"]) for row in provider.rows("SELECT event FROM outbox")]


# --- one relay for the homes of a machine ---------------------------------------------------------------------


def test_two_homes_share_one_embedded_relay_and_the_second_takes_it_over(world):
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    embedded = f'[relay]\nbind = "127.0.0.1:{port}"\n'
    first = world.node("first").configure(more=embedded, top="min_price_msats = 10000")
    second = world.node("second").configure(more=embedded)
    first.start("both", fake=True)
    second.start()
    second.fund()
    assert f"relay: {url}" in second.daemon.said()

    def buys(text):
        done = second.run("job", "submit", "-", "--wait", "--provider", first.npub, stdin=text)
        assert (done.returncode, done.stdout) == (0, answer(text) + "\n"), done.stderr

    buys("through yours")
    first.daemon.kill()

    def serves():
        try:
            with Stranger(url) as stranger:
                stranger.fetch(kinds=[1])
        except (OSError, AssertionError):
            return False
        return True

    until(serves, 10, "the second home serves the relay")
    first.start("both", fake=True)
    until(lambda: [relay["state"] for relay in second.ask("status")["relays"]] == ["connected"], 15, "its own relay")
    until(lambda: [relay["state"] for relay in first.ask("status")["relays"]] == ["connected"], 15, "that relay")
    buys("through mine")
    stop(first, second)
    assert len(second.charges()) == 2
    first.check_books()
    second.check_books()


def test_a_foreign_server_on_the_relays_port_is_said(world):
    with contextlib.closing(socket.socket()) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        node = world.node("home").configure(more=f'[relay]\nbind = "127.0.0.1:{port}"\n')
        done = node.run("start", "-m", "host", timeout=30)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "[relay] bind" in done.stderr
    assert left_behind(node) == []
