"""The processes of a soak: the command in homes of its own, a relay, and the engine that a daemon starts."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from pylon import identity, ourselves
from pylon.daemon import doorway
from pylon.errors import PylonError
from pylon.paths import Home

READY_WITHIN = 120.0
POLL = 0.1


class SoakFailed(PylonError):
    """What a soak waited for did not come."""

    code = "soak"


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` gives as soon as it is true. Raises ``SoakFailed``."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise SoakFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(POLL)


class Troupe:
    """Every process that was ever seen, so that none is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
        with output.open("ab") as file:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment())
        self._started.append(process)
        self.see(process.pid)
        return process

    def see(self, pid: int) -> list[psutil.Process]:
        """Remember a process and its children; the children that live."""
        try:
            process = psutil.Process(pid)
            children: list[psutil.Process] = process.children(recursive=True)
            for each in (process, *children):
                self._seen[each.pid, each.create_time()] = each
        except psutil.NoSuchProcess:
            return []
        return children

    def left(self) -> list[str]:
        """Who of them still lives."""
        return [f"pid {each.pid}" for each in self._seen.values() if lives(each)]

    def end(self) -> None:
        """End all of them, each by its id: as a user does, then by force."""
        for process in self._started:
            if process.poll() is None:
                self.see(process.pid)
                process.terminate()
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for each in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if lives(each):
                    each.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Player(abc.ABC):
    """A process that may be killed, and started again over what it left."""

    name = ""

    def __init__(self, troupe: Troupe) -> None:
        self.troupe = troupe
        self.process: subprocess.Popen[bytes] | None = None
        self.output = troupe.directory / f"{self.name}.out"

    @abc.abstractmethod
    def arguments(self) -> list[str]:
        """The command that starts it."""

    @abc.abstractmethod
    def answers(self) -> bool:
        """Whether it does what it is there for, by now."""

    @property
    def pid(self) -> int:
        return 0 if self.process is None or self.process.poll() is not None else self.process.pid

    def start(self) -> None:
        self.process = self.troupe.start(self.arguments(), self.output)

    def ready(self) -> None:
        """Wait until it answers. Raises ``SoakFailed`` with its last words where it ends instead."""

        def look() -> bool:
            if not self.pid:
                raise SoakFailed(f"{self.name} has ended: {self.last_words()}")
            return self.answers()

        until(look, READY_WITHIN, f"{self.name} answers")

    def last_words(self) -> str:
        return " / ".join(self.output.read_text(errors="replace").splitlines()[-3:])

    def kill(self) -> list[psutil.Process]:
        """SIGKILL; its children as they were."""
        assert self.process is not None
        children = self.troupe.see(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return children

    def stop(self) -> int:
        """End it as a user does; its exit code."""
        assert self.process is not None
        self.troupe.see(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(40)


class RelayPlayer(Player):
    """Pylon's own relay as a process by itself, on a port that stays."""

    name = "relay"

    def __init__(self, troupe: Troupe) -> None:
        super().__init__(troupe)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"ws://127.0.0.1:{self.port}"

    def arguments(self) -> list[str]:
        path = str(self.troupe.directory / "relay.db")
        return [*ourselves.module("pylon.relays.server"), "--port", str(self.port), "--path", path]

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class HomePlayer(Player):
    """A home and its daemon."""

    def __init__(self, troupe: Troupe, name: str, mode: str) -> None:
        self.name = name
        super().__init__(troupe)
        self.mode = mode
        self.home = Home(troupe.directory / name)
        self.pubkey = ""
        self.refused = 0
        """Calls that came to nothing, as while it was dead."""

    def make(self, relay: str, more: str) -> None:
        """Write the home: an identity and a configuration."""
        identity.create(self.home, now=time.time())
        ledger = json.dumps(str(self.troupe.directory / "simnet.db"))
        self.home.config.write_text(
            f'network = "simnet"  # not money\nrelays = ["{relay}"]\nmin_price_msats = {PRICE}\n\n'
            f'[relay]\nenabled = false\n\n[simnet]\nledger = {ledger}\n\n[api]\nbind = "127.0.0.1:0"\n\n{more}\n'
        )
        self.pubkey = identity.load(self.home).pubkey

    def arguments(self) -> list[str]:
        return [*ourselves.command(), "--home", str(self.home.root), "start", "-m", self.mode]

    def answers(self) -> bool:
        try:
            self.ask("earnings")
        except (PylonError, OSError, ValueError):
            return False
        return True

    def engine(self) -> psutil.Process | None:
        """The model's process, the only child of its daemon."""
        children = self.troupe.see(self.pid) if self.pid else []
        return children[0] if children else None

    def ask(self, verb: str, within: float = 15.0, **params: Any) -> Any:
        """A verb of the daemon, which is there. Raises ``PylonError``, ``OSError``."""
        with self._asked(verb, params, within) as client, client.makefile("rb") as answers:
            while True:
                line = answers.readline()
                if not line:
                    raise SoakFailed(f"{self.name} hung up at {verb}")
                reply = json.loads(line)
                if "error" in reply:
                    raise SoakFailed(f"{self.name} refuses {verb}: {reply['error']['message']}")
                if "result" in reply:
                    return reply["result"]

    def tell(self, verb: str, **params: Any) -> None:
        """Ask for something and do not wait for it: what comes of it is written down by whoever does it."""
        try:
            self._asked(verb, params, 2.0).close()
        except (PylonError, OSError):
            self.refused += 1

    def try_(self, verb: str, **params: Any) -> Any:
        """Like ``ask``, and nothing where it cannot be."""
        try:
            return self.ask(verb, **params)
        except (PylonError, OSError):
            self.refused += 1
            return None

    def _asked(self, verb: str, params: dict[str, Any], within: float) -> socket.socket:
        client = doorway.connect(self.home.socket, within)
        client.settimeout(within)
        request = {"jsonrpc": "2.0", "id": 1, "method": verb, "params": params}
        client.sendall(json.dumps(request).encode() + b"\n")
        return client

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in this home."""
        return subprocess.run(
            [*ourselves.command(), "--home", str(self.home.root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment(),
        )

    def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        """What its database holds, read from outside."""
        address = f"file:{quote(str(self.home.database))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(sql, params)]


PRICE = 10_000
"""Of a thought, millisatoshi."""


def environment() -> dict[str, str]:
    """This shell's, without what it says of other homes."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYLON_") or key == "PYLON_MODELS"}
