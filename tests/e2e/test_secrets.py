"""Planted secrets, looked for wherever real processes leave something: output, logs at their most talkative, every page
of every file, the process list. Commands that are named for a secret are the only ones that tell it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from protocols import nip06
from protocols.nip19 import encode_nsec
from pylon.host.agents import keys_of
from pylon.identity import from_phrase, unlock
from pylon.passphrase import Passphrase
from pylon.paths import Home
from tests.e2e.homes import Daemon, Node, command, environment
from tests.pylon.host.test_canary import found_in, of_key, of_phrase, spelled

pytestmark = pytest.mark.e2e

PASSPHRASE = "canary passphrase vuqolet"
BACKUP_PASSPHRASE = "canary backup hixamor"
PASSWORD = "canary password zepilun"
PROMPT = "canary prompt wobadif"
SEPARATORS = (" ", ",", "\n", '", "', '","')


def of_words(phrase):
    """A phrase in any form: three words of it in a row are too many."""
    words = phrase.split()
    rows = {sep.join(words[i : i + 3]).encode() for i in range(len(words) - 2) for sep in SEPARATORS}
    seed = nip06.seed(phrase)
    return of_phrase(phrase) | rows | {seed, seed.hex().encode(), base64.b64encode(seed)}


def of_bytes(raw):
    coded = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
    return {raw, *spelled(raw.hex()), *(text.rstrip(b"=")[:-1] for text in coded)}


class ProcessList(threading.Thread):
    """Reads, again and again, what the system tells of any process's command line and environment."""

    def __init__(self, secrets):
        super().__init__(daemon=True)
        self.secrets, self.found, self.seen, self.looks = secrets, [], set(), 0
        self._stop_it = threading.Event()

    def run(self):
        while not self._stop_it.wait(0.05):
            self.looks += 1
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        raw = Path(f"/proc/{pid}/{name}").read_bytes()
                        if b"pylon" in raw:
                            self.seen.add((pid, name))
                            if names := found_in(raw, dict(self.secrets)):
                                self.found.append((names, name, raw[:300]))

    def end(self):
        self._stop_it.set()
        self.join(10)


class Searched:
    """A home, and everything that its commands say."""

    def __init__(self, node: Node, protected: bool, directory: Path):
        self.node, self.protected = node, protected
        self.secrets = {}
        self.files = {}
        for name, text in (("home", PASSPHRASE), ("backup", BACKUP_PASSPHRASE), ("password", PASSWORD)):
            self.files[name] = directory / name
            self.files[name].write_text(text + "\n")
            self.files[name].chmod(0o600)

    def run(self, *arguments, tells=(), stdin="", fds=(), root=None, code=0, passphrase=True):
        """A command, with its passphrases on descriptors; ``{}`` in arguments stands for the next one's number."""
        with contextlib.ExitStack() as stack:
            numbers = []
            for name in fds:
                file = stack.enter_context(self.files[name].open("rb"))
                numbers.append(file.fileno())
            own = []
            if self.protected and passphrase:
                file = stack.enter_context(self.files["home"].open("rb"))
                own = ["--passphrase-fd", str(file.fileno())]
                numbers.append(file.fileno())
            filled = [part.format(*numbers) if part.startswith("{") else part for part in arguments]
            done = subprocess.run(
                [command(), "--home", str(root or self.node.root), *own, *filled],
                input=stdin, capture_output=True, text=True, timeout=60, check=False,
                env=environment({"PYLON_DEBUG": "1"}), pass_fds=numbers,
            )  # fmt: skip
        said = (done.stdout + done.stderr).encode()
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert set(found_in(said, self.secrets)) == set(tells), arguments
        assert found_in(done.stderr.encode(), self.secrets) == [], arguments
        return done.stdout

    def start(self, mode, *options, fake=False):
        arguments = [command(), "--home", str(self.node.root), "start"]
        if fake:
            arguments = [sys.executable, "-m", "pylon.testing.provider_process", "--home", str(self.node.root)]
        more = {"PYLON_DEBUG": "1"} | ({"PYLON_PASSPHRASE_FILE": str(self.files["home"])} if self.protected else {})
        before = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        try:
            output = self.node.world.directory / f"{self.node.name}.out"
            daemon = Daemon([*arguments, "-m", mode, *options], output, more)
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, before)
        self.node.daemon = daemon
        self.node.world.daemons.append(daemon)
        daemon.ready()
        return daemon


def children(pid):
    """Pids of a process's children."""
    found = []
    for other in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(other))
    return found


def core_limit(pid):
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line]
    return line.split()[4:6]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("protected", [False, True], ids=["plain", "passphrase"])
def test_planted_secrets_are_nowhere(world, request, tmp_path_factory, protected):
    hidden = tmp_path_factory.mktemp("passphrases")
    relay = world.relay()
    provider = world.node("provider").configure(relays=[relay], top="min_price_msats = 10000")
    node = world.node("home").configure(relays=[relay], more='\n[api]\nbind = "127.0.0.1:0"\n')
    home = Searched(node, False, hidden)
    seller = Searched(provider, False, hidden)
    secrets = home.secrets = seller.secrets = {
        "passphrase": spelled(PASSPHRASE),
        "backup's passphrase": spelled(BACKUP_PASSPHRASE),
        "password": spelled(PASSWORD),
        "prompt": spelled(PROMPT),
    }
    for name, each in (("", node), ("provider's ", provider)):
        known = unlock(each.home)
        secrets |= {
            f"{name}phrase": of_words(known.identity.reveal_phrase()),
            f"{name}key": of_key(known.identity.nostr) | spelled(encode_nsec(known.identity.nostr)),
            f"{name}wallet": of_key(known.identity.simnet),
            f"{name}data key": of_bytes(known.key.reveal()),
        }
    watcher = ProcessList(secrets)
    watcher.start()
    try:
        play(home, seller, protected, request, relay)
    finally:
        watcher.end()
    assert watcher.found == []
    assert watcher.looks > 20
    assert len(watcher.seen) > 6, "it has seen our processes"
    search_files(world, home, seller)


def play(home, seller, protected, request, relay):
    node, secrets = home.node, home.secrets
    if protected:
        for each in (home, seller):
            each.run("identity", "passphrase", "--new-passphrase-fd", "{0}", fds=["home"])
            each.protected = True
    # What is told by name, and nothing else by the way.
    home.run("identity", "reveal", tells=["phrase"])
    home.run("identity", "reveal", "--nsec", "--json", tells=["key"])
    home.run("wallet", "fund", "-a", "100000")
    home.run("init", passphrase=False)
    home.run("init", "--json", "--words", "24", passphrase=False)
    home.run("init", "--import", stdin="canary " * 12, passphrase=False)
    if protected:
        home.run("wallet", "balance", passphrase=False, code=1)
        home.run("--passphrase-fd", "{0}", "wallet", "balance", fds=["password"], passphrase=False, code=1)
        home.run("start", passphrase=False, code=1)
    options = ["--model-file", str(request.getfixturevalue("model").path)] if protected else []
    sold = seller.start("provider", *options, fake=not protected)
    daemon = home.start("host")
    for each in (sold, daemon):
        assert core_limit(each.pid) == ["0", "0"]
        for child in children(each.pid):
            assert core_limit(child) == ["0", "0"]
    assert not protected or children(sold.pid), "the engine is a process of its own"

    born = json.loads(home.run("agent", "spawn", "--name", "ada", "--json"))  # shown once
    phrase = born["mnemonic"]
    keys = keys_of(phrase)
    # From here on the agent's are looked for too; the watcher reads the same table.
    secrets |= {
        "agent's phrase": of_words(phrase),
        "agent's key": of_key(keys.nostr),
        "agent's wallet": of_key(keys.wallet),
        "token": spelled((node.home.data / "api.token").read_text().strip()),
    }
    home.run("agent", "reveal", "ada", tells=["agent's phrase"])
    home.run("agent", "fund", "ada", "5000")
    for line in ("status", "status --json", "agent list", "agent list --json", "agent ticks ada", "identity show",
                 "identity show --json", "wallet balance", "books --check", "earnings --json"):  # fmt: skip
        home.run(*line.split())
    for line in ("wallet status", "wallet address --json", "wallet invoice 10", "wallet history --csv", "wallet freeze",
                 "wallet approvals", "wallet thaw"):  # fmt: skip
        home.run(*line.split())
    home.run("identity", "export", "--ncryptsec", "--password-fd", "{0}", "--log-n", "16", fds=["password"])
    home.run(*f"agent export ada --bundle {node.root}/ada.bundle --passphrase-fd".split(), "{0}", fds=["backup"])
    backup = node.world.directory / "home.backup"
    home.run("identity", "backup", str(backup), "--backup-passphrase-fd", "{0}", fds=["backup"])
    home.run("job", "submit", "-", "--provider", seller.node.npub, stdin=PROMPT)
    assert node.purchase_ended(within=60)["state"] == "answered"
    api = json.loads(home.run("status", "--json"))["api"]
    token = (node.home.data / "api.token").read_text().strip()
    for path in ("/health", "/metrics", "/v1/models"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {token}"}):
            answer = httpx.get(api + path, headers=header)
            assert found_in(answer.content + repr(answer.headers).encode(), secrets) == []
    # Nonsense, which is answered without quoting what is secret.
    home.run("agent", "import", "--phrase", stdin=phrase + " bean\n", code=1)
    home.run("identity", "restore", str(backup), "--backup-passphrase-fd", "{0}", fds=["backup"], code=1)
    search_files(node.world, home, seller)

    new = node.world.directory / "restored"
    bring = ("identity", "restore", str(backup), "--backup-passphrase-fd", "{0}")
    home.run(*bring, fds=["backup"], root=new, passphrase=False)
    # Nobody spends in a restored home, whatever is asked of it.
    bill = json.loads(seller.run("wallet", "invoice", "10", "--json"))["bolt11"]
    words = {"passphrase": False} | ({"fds": ["backup"]} if protected else {})
    own = ["--passphrase-fd", "{0}"] if protected else []
    home.run(*own, "wallet", "pay", bill, "--yes", root=new, code=4, **words)
    opened = unlock(Home(new), Passphrase(BACKUP_PASSPHRASE) if protected else None)
    assert opened.identity.pubkey == node.pubkey == from_phrase(opened.identity.reveal_phrase()).pubkey
    # A daemon that dies of itself leaves no image of its memory.
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(20) == -signal.SIGABRT
    sold.terminate()


def search_files(world, home, seller):
    """Every byte of every file: databases with their logs, relay, ledger, daemons' output, logs, backups."""
    allowed = {}
    for each, name in ((home, ""), (seller, "provider's ")):
        if not home.protected:
            allowed[each.node.home.mnemonic] = [f"{name}phrase"]
            allowed[each.node.home.data_key] = [f"{name}data key"]
        if not name:
            allowed[each.node.home.data / "api.token"] = ["token"]
    restored = world.directory / "restored"
    if not home.protected:
        allowed |= {restored / "identity.mnemonic": ["phrase"], restored / "keys" / "data.key": ["data key"]}
    names, debug = set(), False
    for path in sorted(world.directory.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            names.add(path.name)
            debug = debug or (path.name == "pylon.log" and b'"level": "debug"' in raw)
            assert not path.name.startswith("core"), path
            if path.name == "api.token" and path not in allowed:
                continue  # the provider's own
            assert found_in(raw, home.secrets) == allowed.get(path, []), path
    assert {"pylon.db", "pylon.log", "simnet.db", "home.out", "home.backup", "ada.bundle"} <= names
    assert debug, "the log was at its most talkative"


def test_sparks_storage_holds_no_key(world, tmp_path_factory):
    """What the Spark SDK keeps on disk, as far as it goes without its servers."""
    node = world.node("home").configure(network="regtest")
    home = Searched(node, False, tmp_path_factory.mktemp("passphrases"))
    home.run("identity", "passphrase", "--new-passphrase-fd", "{0}", fds=["home"])
    home.protected = True
    known = unlock(node.home, Passphrase(PASSPHRASE))
    seed = nip06.seed(known.identity.reveal_phrase())
    derived = [nip06.derive(seed, f"m/8797555'/{account}'{rest}") for account in (0, 1) for rest in ("", "/0'")]
    home.secrets = {
        "passphrase": spelled(PASSPHRASE),
        "phrase": of_words(known.identity.reveal_phrase()),
        "key": of_key(known.identity.nostr) | of_key(known.identity.simnet),
        "data key": of_bytes(known.key.reveal()),
        "spark's keys": set().union(*map(of_bytes, derived)),
    }
    assert home.run("wallet", "address", "--json")
    files = [path for path in node.root.rglob("*") if path.is_file()]
    assert any("spark" in path.parts for path in files), "it has opened its wallet"
    for path in files:
        assert found_in(path.read_bytes(), home.secrets) == [], path
