"""The processes of the Lightning tests: the toy chain and Electrum's daemons, on the loopback, on free ports.

Each is ended by its own pid, by whoever started it. What they say is in files beside their data.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import bech32
import psutil

from tests.e2e import local_relay
from tests.lightning.install import Installation

ROOT = Path(__file__).parents[2]
STARTS_WITHIN = 60.0
FAILED = 5
"""What Electrum calls an invoice that could not be paid."""
MSATS = 100_000_000_000
"""In a bitcoin."""
NOBODYS_SCRIPT = "51"
"""``OP_TRUE``: where the subsidies go that nobody is to have."""


class RpcError(Exception):
    """What a daemon says instead of an answer."""


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """What ``condition`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


class Process:
    """One process of ours; leaving the block ends it, and so does our own end, by whatever."""

    def __init__(self, command: list[str], output: Path, environment: dict[str, str] | None = None) -> None:
        self.output = output
        setpriv = shutil.which("setpriv")
        if setpriv is not None:
            # Ours notice that their stdin closes. Electrum does not: the kernel tells it.
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def line(self, word: str) -> str:
        """The first whole line that begins with ``word``, once it is there; without the word."""

        def look() -> list[str]:
            found = [line for line in self.said().split("\n")[:-1] if line.startswith(word)]
            if not found:
                self.must_live()
            return found

        found: list[str] = until(look, STARTS_WITHIN, lambda: f"{word!r} in {self.said()[-2_000:]}")
        return found[0].removeprefix(word).strip()

    def must_live(self) -> None:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said()[-2_000:]}"

    def end(self, within: float = 15.0) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ToyChain(Process):
    """The Electrum server over the toy chain, and who mines on it."""

    def __init__(self, directory: Path) -> None:
        super().__init__([sys.executable, "-m", "tests.lightning.electrum_server"], directory / "chain.log")
        self.port = int(self.line("listening"))

    def mine(self, blocks: int, script: str = NOBODYS_SCRIPT) -> int:
        """Blocks, their subsidies to a script in hex. Returns the height."""
        height = self.ask("toy.mine", blocks, script)
        assert isinstance(height, int)
        return height

    def ask(self, method: str, *params: Any) -> Any:
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=30)) as connection:
            call = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}
            connection.sendall(json.dumps(call).encode() + b"\n")
            answer = json.loads(connection.makefile().readline())
        if "error" in answer:
            raise RpcError(answer["error"]["message"])
        return answer["result"]


class Electrum(Process):
    """One Electrum daemon with one wallet."""

    def __init__(self, name: str, directory: Path, chain: ToyChain, installed: Installation) -> None:
        self.name = name
        self.home = directory / name
        self._lock_file = self.home / "regtest" / "daemon"
        self.password = secrets.token_urlsafe(18)
        self._write_settings(chain.port)
        command = installed.command("--regtest", "-D", str(self.home), "-v", "daemon")
        super().__init__(command, directory / f"{name}.log", installed.environment(self.home))
        self.port = 0

    def _write_settings(self, server: int) -> None:
        """All that it does not ask for later; where no port is named, it takes a free one."""
        settings = {
            "config_version": 3,
            "server": f"127.0.0.1:{server}:t",
            "oneserver": True,
            "auto_connect": False,
            "check_updates": False,
            "rpcsock": "tcp",
            "rpcuser": "test",
            "rpcpassword": self.password,
            "use_gossip": True,  # without it, it pays through other people's trampolines only
            "lightning_forward_payments": True,
            "lightning_to_self_delay": 144,
            "dynamic_fees": False,
            "fee_per_kb": 5_000,
        }
        (self.home / "regtest").mkdir(parents=True)
        (self.home / "regtest" / "config").write_text(json.dumps(settings))

    def wait_started(self) -> None:
        """Until its JSON-RPC answers and it has a wallet."""

        def port() -> int | None:
            self.must_live()
            try:
                kind, address, _ = ast.literal_eval(self._lock_file.read_text())
            except (OSError, SyntaxError, ValueError):
                return None
            assert kind == "tcp"
            return int(address[1])

        self.port = until(port, STARTS_WITHIN, lambda: f"{self.name} listens: {self.said()[-2_000:]}")
        self.call("create")
        self._listen()
        until(lambda: self.call("getinfo")["connected"], STARTS_WITHIN, f"{self.name} reaches the chain")

    def _listen(self) -> None:
        """Load the wallet, which then listens for peers. It refuses port 0, so a port is found for it, and another one
        where somebody was quicker to take that."""
        for _ in range(5):
            with closing(socket.create_server(("127.0.0.1", 0))) as free:
                port = free.getsockname()[1]
            self.call("setconfig", key="lightning_listen", value=f"127.0.0.1:{port}")
            self.call("load_wallet")
            with contextlib.suppress(AssertionError):
                until(lambda: port in self._listening_ports(), 5, "the port")  # noqa: B023
                return
            self.call("close_wallet")
        raise AssertionError(f"{self.name} cannot listen for peers: {self.said()[-2_000:]}")

    def _listening_ports(self) -> set[int]:
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}

    @property
    def url(self) -> str:
        """Of its JSON-RPC."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def authorization(self) -> str:
        return "Basic " + base64.b64encode(f"test:{self.password}".encode()).decode()

    def call(self, method: str, timeout: float = 60.0, **params: Any) -> Any:
        """One of its commands. Raises ``RpcError``."""
        self.must_live()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": method, "params": params})
            connection.request("POST", "/", body, {"Authorization": self.authorization})
            answer = json.loads(connection.getresponse().read())
        if answer.get("error") is not None:
            raise RpcError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    # --- on the chain -----------------------------------------------------------------------------------------

    def script(self) -> str:
        """A script of its own to pay to, in hex."""
        version, program = bech32.decode("bcrt", self.call("getunusedaddress"))
        assert version == 0
        return (bytes([0, len(program)]) + bytes(program)).hex()

    def height(self) -> int:
        found = self.call("getinfo")["blockchain_height"]
        assert isinstance(found, int)
        return found

    def coins(self) -> float:
        """Spendable, in whole bitcoins."""
        return float(self.call("getbalance")["confirmed"])

    # --- on Lightning -----------------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        """Its node key, hex."""
        return str(self.call("nodeid")).partition("@")[0]

    def address(self) -> str:
        """``NODE@HOST:PORT``, as peers are told it."""
        return str(self.call("nodeid"))

    def channels(self) -> list[dict[str, Any]]:
        found = self.call("list_channels")
        return [channel for channel in found if channel["type"] == "CHANNEL"]

    def unsettled_sats(self) -> int:
        """What is on its way out."""
        return sum(channel["local_unsettled_sent"] for channel in self.channels())

    def settle(self, does: bool) -> None:
        """Whether it takes what it is paid, or keeps everybody waiting."""
        self.call("enable_htlc_settle", b=does)

    def fail(self, does: bool) -> None:
        """Whether it turns away what it is to be paid."""
        self.call("setconfig", key="test_fail_htlcs_with_temp_node_failure", value=str(does).lower())

    def forget_failures(self) -> None:
        """Try ways again that have failed."""
        self.call("clear_ln_blacklist")
        self.call("reset_liquidity_hints")

    def history(self) -> dict[str, dict[str, Any]]:
        """Settled payments, by payment hash; amounts signed, fees included."""
        return {entry["payment_hash"]: entry for entry in self.call("lightning_history") if entry["type"] == "payment"}


def channel_msats(*daemons: Electrum) -> list[int]:
    """What is each one's in its channels, exactly: its list of channels has whole sats only."""
    return [int(Decimal(daemon.call("getbalance").get("lightning", "0")) * MSATS) for daemon in daemons]


class WalletService(Process):
    """A wallet of NIP-47 over an Electrum daemon: ``connection`` is what a user pastes into an application."""

    def __init__(self, electrum: Electrum, directory: Path, relay: str, mute: Mapping[str, int] | None = None) -> None:
        command = [sys.executable, "-m", "tests.lightning.nwc_electrum", "--electrum", str(electrum.home)]
        muted = [f"--mute={method}={count}" for method, count in (mute or {}).items()]
        number = len(list(directory.glob(f"nwc-{electrum.name}-*.log")))
        output = directory / f"nwc-{electrum.name}-{number}.log"
        super().__init__([*command, "--relay", relay, *muted], output)
        self.electrum = electrum
        self.connection = self.line("connection")


class Relay(Process):
    """nostr-sdk's relay, in memory."""

    def __init__(self, directory: Path) -> None:
        script = Path(local_relay.__file__)
        super().__init__([sys.executable, str(script)], directory / "relay.log")
        self.url = "ws://" + self.line("ws://")
