"""The cast of ``pylon demo``: throwaway homes and the daemons that run in them, each the installed command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from protocols.nip01 import Event, event_frame
from pylon import identity, ourselves
from pylon.cli.client import call
from pylon.errors import ControlError, MarketError, NotRunning, PylonError, RelayError
from pylon.money import Msat
from pylon.paths import Home
from pylon.relays.websocket import connect

READY_WITHIN = 90.0
CALL_SECONDS = 15.0
POLL_SECONDS = 0.1


class Player:
    """One home and its daemon.

    :param price: what it sells a thought for.
    """

    def __init__(self, name: str, directory: Path, price: Msat, mode: str) -> None:
        self.name = name
        self.home = Home(directory / name)
        self.price = price
        self.mode = mode
        self.pubkey = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._output = directory / f"{name}.out"

    def make(self, *, relay: str, relays: list[str], ledger: Path, model: Path, now: float) -> None:
        """Write the home: an identity and a configuration. ``relay`` is the section of the embedded one."""
        identity.create(self.home, now=now)
        self.home.config.write_text(
            f'network = "simnet"  # not money\nrelays = {json.dumps(relays)}\nmin_price_msats = {self.price}\n\n'
            f'[relay]\n{relay}\n\n[simnet]\nledger = {json.dumps(str(ledger))}\n\n[api]\nbind = "127.0.0.1:0"\n\n'
            f"[provider]\nname = {json.dumps(self.name)}\nmodel_file = {json.dumps(str(model))}\nmax_tokens = 400\n"
        )
        self.pubkey = identity.load(self.home).pubkey

    def start(self) -> None:
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*ourselves.command(), "--home", str(self.home.root), "start", "-m", self.mode],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid

    def ready(self) -> None:
        """Wait until it answers. Raises ``MarketError`` with its last words where it has ended."""
        until(self._answers, READY_WITHIN, f"{self.name} was not ready")

    def _answers(self) -> bool:
        self.check_alive()
        try:
            self.ask("earnings")
        except (NotRunning, ControlError):
            return False
        return True

    def check_alive(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise MarketError(f"the daemon {self.name} ended: {self.last_words()}")

    def last_words(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])

    def ask(self, verb: str, *, within: float = CALL_SECONDS, **params: Any) -> Any:
        """A verb of its daemon."""
        return call(self.home, verb, params, timeout=within)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def books(self) -> Any:
        """Its own books, from its own command; it must not run any more."""
        done = subprocess.run(
            [*ourselves.command(), "--home", str(self.home.root), "books", "--json"],
            capture_output=True,
            check=False,
            timeout=60,
            env=environment(),
        )
        if done.returncode != 0:
            raise PylonError(f"the books of {self.name} cannot be read: {done.stderr.decode(errors='replace').strip()}")
        return json.loads(done.stdout)


def stop(players: list[Player]) -> None:
    """End their daemons as a user does, all at once."""
    running = [player.process for player in players if player.process is not None and player.process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` gives as soon as it is true. Raises ``MarketError``."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise MarketError(f"{what} within {seconds:.0f} s", "look into the logs with --keep DIR")
        time.sleep(POLL_SECONDS)


def publish(relay: str, event: Event) -> None:
    """Hand an event to a relay and wait for its yes. Raises ``RelayError``."""

    async def send() -> None:
        with trio.fail_after(CALL_SECONDS):
            async with connect(relay) as transport:
                await transport.send(event_frame(event.to_json(), event.id))
                while True:
                    frame = json.loads(await transport.receive())
                    if frame[:2] == ["OK", event.id]:
                        break
        if frame[2] is not True:
            raise RelayError(f"{relay} refused: {frame[3]}")

    trio.run(send)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """This shell's, without what it says of other homes."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYLON_") or key == "PYLON_MODELS"}
