"""Throwaway homes, real daemons, and what can be read about them from outside.

A ``World`` is one test's: a directory, a simnet ledger that its homes share, and every process that was started. It
ends each of them by its own pid. Daemons are the installed command; a provider is ``pylon.testing.provider_process``,
the same daemon with a fake backend, unless its real engine is asked for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Ping, Request, TextMessage

from protocols.nip01 import Event, Filter
from pylon import identity
from pylon.cli.client import call
from pylon.compute.purchase import PURCHASE
from pylon.daemon import holder
from pylon.paths import Home
from pylon.provider.sale import SALE
from pylon.wallets.simnet_ledger import Fault, LedgerFile, Side

READY_WITHIN = 40.0
FUNDS_SATS = 100_000
PRICE_MSATS = 10_000
FEE_MSATS = 50
"""What simnet charges to pay ``PRICE_MSATS``."""
BEFOREHAND = "pay_on_delivery = false"
"""Of a provider that takes a payment at once, and holds none until the work is done."""
PASSPHRASE = "four words at random"
PORTS_OF_ITS_OWN = '[relay]\nbind = "127.0.0.1:0"\n\n[api]\nbind = "127.0.0.1:0"\n'

PURCHASE_ENDS = {state.value for state in PURCHASE.final}
SALE_ENDS = {state.value for state in SALE.final}


def command() -> str:
    """The installed command of this installation."""
    found = shutil.which("pylon", path=str(Path(sys.executable).parent))
    assert found is not None, "pylon is not installed beside this python"
    return found


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """What ``condition`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.03)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if not key.startswith("PYLON_")}, **(more or {})}


class Daemon:
    """A process of ours, and its stderr in a file."""

    def __init__(self, arguments: list[str], output: Path, more: dict[str, str] | None = None) -> None:
        self.output = output
        with output.open("ab") as file:
            self._from = file.tell()
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment(more)
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.output.read_bytes()[self._from :].decode(errors="replace")

    def ready(self, word: str = "\nready\n", within: float = READY_WITHIN) -> None:
        def look() -> bool:
            if word in self.said():
                return True
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said()}"
            return False

        until(look, within, lambda: f"{word.strip()!r} in:\n{self.said()}")

    def killed(self, within: float = 30.0) -> None:
        """Wait until it has died of SIGKILL."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not died within {within:.0f} s:\n{self.said()}") from None
        assert code == -signal.SIGKILL, f"it ended with {code}:\n{self.said()}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM, within: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within)


class Node:
    """One home with its daemon."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.root = world.directory / name
        self.home = Home(self.root)
        self.daemon: Daemon | None = None
        made = self.json("init", "--network", "simnet")
        self.npub: str = made["npub"]
        self.pubkey: str = made["pubkey"]
        self.node = identity.load(self.home).simnet_node

    def configure(self, *, relays: Iterable[str] = (), network: str = "simnet", top: str = "", more: str = "") -> Node:
        """Write config.toml. The embedded relay is off unless ``more`` has its section."""
        embedded = "" if "[relay]" in more else "\n[relay]\nenabled = false\n"
        self.home.config.write_text(
            f"network = {json.dumps(network)}\nrelays = {json.dumps(list(relays))}\n{top}\n{embedded}"
            f"\n[simnet]\nledger = {json.dumps(str(self.world.ledger))}\n{more}\n"
        )
        return self

    # --- the command ------------------------------------------------------------------------------------------

    def run(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command(), "--home", str(self.root), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(),
        )

    def run_with(self, words: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that finds this file open, its descriptor's number being the last argument."""
        with words.open("rb") as file:
            return subprocess.run(
                [command(), "--home", str(self.root), *arguments, str(file.fileno())],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                pass_fds=(file.fileno(),),
                env=environment(),
            )

    def json(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> Any:
        return json.loads(self._told(*arguments, stdin=stdin, timeout=timeout))

    def json_lines(self, *arguments: str) -> list[Any]:
        """What a command prints with ``--json``, one value a line."""
        return [json.loads(line) for line in self._told(*arguments).splitlines()]

    def _told(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> str:
        done = self.run(*arguments, "--json", stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fund(self) -> None:
        self.json("wallet", "fund", "-a", str(FUNDS_SATS))

    def submit(self, prompt: str, *options: str) -> dict[str, Any]:
        """Ask the running daemon, and do not wait. The prompt goes through stdin."""
        job: dict[str, Any] = self.json("job", "submit", "-", *options, stdin=prompt)
        return job

    def check_books(self) -> dict[str, Any]:
        done = self.run("books", "--check", "--json")
        assert done.returncode == 0, f"books of {self.name}: {done.stdout}\n{done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # --- the daemon -------------------------------------------------------------------------------------------

    def start(
        self,
        mode: str = "host",
        *options: str,
        fake: bool = False,
        crash_at: str | None = None,
        wait: bool = True,
        more: dict[str, str] | None = None,
    ) -> Daemon:
        """``fake``: with the scripted backend. ``crash_at``: it kills itself there. ``more``: of its environment."""
        if fake:
            arguments = [sys.executable, "-m", "pylon.testing.provider_process", "--home", str(self.root)]
        else:
            arguments = [command(), "--home", str(self.root), "start"]
        self.daemon = Daemon(
            [*arguments, "-m", mode, *options],
            self.world.directory / f"{self.root.name}.out",
            more if crash_at is None else {**(more or {}), "PYLON_CRASH_AT": crash_at},
        )
        self.world.daemons.append(self.daemon)
        if wait:
            self.daemon.ready()
        return self.daemon

    def start_detached(
        self, *options: str, timeout: float = READY_WITHIN, more: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``pylon start -d``. What comes of it is ended with the world."""
        self.world.detached.append(self.home)
        return subprocess.run(
            [command(), "--home", str(self.root), "start", "-d", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(more),
        )

    def stop(self) -> None:
        """End it as a user does; it must end well."""
        stop(self)

    def ask(self, verb: str, **params: Any) -> Any:
        """The control socket, for polling: a command costs a process."""
        return call(self.home, verb, params, timeout=10.0)

    # --- from outside -----------------------------------------------------------------------------------------

    def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        return _rows(self.home.database, sql, *params)

    def purchases(self) -> list[dict[str, Any]]:
        return self.rows("SELECT id, state, provider, request_id, paid_msats, fee_msats FROM purchases")

    def sales(self) -> list[dict[str, Any]]:
        return self.rows("SELECT id, state, price_msats, attempts FROM sales")

    def balances(self) -> dict[str, int]:
        return {
            row["account"]: row["msats"]
            for row in self.rows(
                "SELECT account, SUM(msats) AS msats FROM (SELECT credit AS account, msats FROM entries"
                " UNION ALL SELECT debit, -msats FROM entries) GROUP BY account"
            )
        }

    def purchase_ended(self, *, within: float = 30.0) -> dict[str, Any]:
        """The only purchase, when it has ended."""

        def look() -> dict[str, Any] | None:
            found = self.purchases()
            assert len(found) <= 1, found
            return found[0] if found and found[0]["state"] in PURCHASE_ENDS else None

        ended: dict[str, Any] = until(look, within, lambda: f"an end of {self.purchases()}")
        return ended

    def sale_ended(self, *, within: float = 20.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.sales()
            assert len(found) <= 1, found
            return found[0] if found and found[0]["state"] in SALE_ENDS else None

        ended: dict[str, Any] = until(look, within, lambda: f"an end of {self.sales()}")
        return ended

    def charges(self) -> list[dict[str, Any]]:
        """What its wallet has paid or is paying, from the ledger that is not its own."""
        return _rows(
            self.world.ledger,
            "SELECT payment_hash, state, msats, fee_msats FROM payments"
            " WHERE wallet = ? AND direction = 'sent' AND state <> 'failed'",
            self.node,
        )

    def held(self) -> list[dict[str, Any]]:
        """Which of them have arrived and are held until the work is done."""
        return _rows(
            self.world.ledger,
            "SELECT payment_hash FROM payments WHERE wallet = ? AND direction = 'sent' AND held",
            self.node,
        )

    def wallet_msats(self) -> int:
        rows = _rows(self.world.ledger, "SELECT msats FROM accounts WHERE account = ?", self.node)
        return int(rows[0]["msats"]) if rows else 0


def stop(*nodes: Node) -> None:
    """End daemons as a user does, at the same time; they must end well."""
    daemons = [node.daemon for node in nodes if node.daemon is not None]
    assert len(daemons) == len(nodes)
    for daemon in daemons:
        daemon.process.terminate()
    for daemon in daemons:
        assert daemon.process.wait(20) == 0, daemon.said()


def check_paid(provider: Node, buyer: Node, jobs: int = 1) -> None:
    """So many jobs were paid once each, to the millisatoshi: by charges, both wallets, and the buyer's books."""
    total = jobs * PRICE_MSATS
    charges = [(charge["state"], charge["msats"], charge["fee_msats"]) for charge in buyer.charges()]
    assert charges == [("settled", PRICE_MSATS, FEE_MSATS)] * jobs, charges
    wallets = buyer.wallet_msats(), provider.wallet_msats()
    assert wallets == (FUNDS_SATS * 1000 - total - jobs * FEE_MSATS, total), wallets
    spent = buyer.check_books()["accounts"]["spent_msats"]
    assert spent == total, spent


class World:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "simnet.db"
        self.daemons: list[Daemon] = []
        self.detached: list[Home] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        for home in self.detached:
            if (running := holder.find(home.pid)) is not None:
                with running:
                    running.signal(signal.SIGKILL)
                    running.wait(5)
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in self.daemons:
            try:
                daemon.process.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def relay(self, *options: str) -> str:
        """Start an independent relay and return its URL."""
        return self._relay(str(Path(__file__).with_name("local_relay.py")), *options)

    def our_relay(self) -> str:
        """Start Pylon's own as a process of its own, and return its URL."""
        return self._relay("-m", "pylon.relays.server", "--port", "0")

    def _relay(self, *arguments: str) -> str:
        daemon = Daemon([sys.executable, *arguments], self.directory / f"relay{len(self.daemons)}.out")
        self.daemons.append(daemon)
        daemon.ready("ws://")
        until(lambda: daemon.said().endswith("\n"), 5, "the whole URL")
        return daemon.said().split()[-1]

    def node(self, name: str) -> Node:
        return Node(self, name)

    def market(self, relay: str, *, selling: str = "", more: str = "") -> tuple[Node, Node]:
        """A provider and a customer, both stopped. ``selling``: of the provider's own table; ``more``: its others."""
        provider = self.node("provider").configure(
            relays=[relay], top=f"min_price_msats = {PRICE_MSATS}", more=f"[provider]\n{selling}\n{more}"
        )
        return provider, self.node("buyer").configure(relays=[relay])

    def inject(self, fault: Fault, payer: Node, count: int = 1) -> None:
        """Let the next payments of ``payer`` go wrong."""
        with closing(LedgerFile(self.ledger, rng=random.Random(1))) as ledger:
            ledger.inject(fault, payer.node, Side.PAYER, count)


class Stranger:
    """A client of a relay that shares nothing with Pylon's: wsproto on a blocking socket."""

    def __init__(self, relay: str) -> None:
        parts = urlsplit(relay)
        self._socket = socket.create_connection((str(parts.hostname), parts.port), timeout=10)
        self._session = WSConnection(ConnectionType.CLIENT)
        self._frames: deque[list[Any]] = deque()
        self._partial = ""
        self._open = False
        self._socket.sendall(self._session.send(Request(host=parts.netloc, target="/")))
        while not self._open:
            self._receive()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def say(self, *frame: Any) -> None:
        self._socket.sendall(self._session.send(TextMessage(json.dumps(frame))))

    def hear(self) -> list[Any]:
        """The relay's next frame. Raises ``TimeoutError`` after 10 s of silence."""
        while not self._frames:
            self._receive()
        return self._frames.popleft()

    def publish(self, event: Event) -> None:
        self.say("EVENT", event.to_dict())
        while (frame := self.hear())[:2] != ["OK", event.id]:
            pass
        assert frame[2] is True, frame

    def fetch(self, **wanted: Any) -> list[Event]:
        """What is stored."""
        self.say("REQ", "stored", Filter(**wanted).to_dict())
        found = []
        while (frame := self.hear())[:2] != ["EOSE", "stored"]:
            if frame[:2] == ["EVENT", "stored"]:
                event = Event.parse(frame[2])
                event.check()
                found.append(event)
        self.say("CLOSE", "stored")
        return found

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        assert data, "the relay hung up"
        self._session.receive_data(data)
        for event in self._session.events():
            if isinstance(event, AcceptConnection):
                self._open = True
            elif isinstance(event, Ping):
                self._socket.sendall(self._session.send(event.response()))
            elif isinstance(event, TextMessage):
                self._partial += event.data
                if event.message_finished:
                    self._frames.append(json.loads(self._partial))
                    self._partial = ""


def fetch(relay: str, **wanted: Any) -> list[Event]:
    """What a relay has stored."""
    with Stranger(relay) as stranger:
        return stranger.fetch(**wanted)


def _rows(path: Path, sql: str, *params: Any) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(sql, params)]
