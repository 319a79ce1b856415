"""The README that Pylon was begun with, followed command by command on a fresh home.

``README`` is the commands of its quick start and of its tables, as they stand there; a ``Follower`` runs each of them
by the installed command, in ``~/.openagents/pylon`` of a user of its own. In an order that can be followed: what is to
be shown has to be there, so that an agent is spawned before it is listed, and a daemon started before it is stopped.

``python -m tests.e2e.seed_readme`` prints commands and output of both homes.
"""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from protocols import bolt11
from pylon.inference.models import models_directory
from pylon.paths import Home
from pylon.testing.scripted_claude import install
from tests.e2e.homes import READY_WITHIN, Daemon, World, command, environment
from tests.pylon.test_config import SEED_SAMPLE

README = {
    "Quick Start": """
        pylon init
        pylon start
        pylon status
        pylon agent spawn --name "my-agent"
        pylon doctor
    """,
    "Setup & Diagnostics": """
        pylon init
        pylon doctor
    """,
    "Daemon": """
        pylon start
        pylon start -d
        pylon stop
        pylon status
    """,
    "Agent Management": """
        pylon agent list
        pylon agent info <name>
        pylon agent spawn --name X
        pylon agent delete <name>
    """,
    "Compute & Inference": """
        pylon compute
        pylon infer
        pylon api
    """,
    "Claude Tunnel": """
        pylon connect --tunnel-url <url>
    """,
    "Provider Mode": """
        pylon earnings
    """,
    "Wallet (Spark/Lightning)": """
        pylon wallet balance
        pylon wallet status
        pylon wallet address
        pylon wallet invoice <amount>
        pylon wallet pay <invoice>
        pylon wallet history
        pylon wallet history --completed
        pylon wallet fund
    """,
}
"""Heading -> its commands, as the README has them."""
ROWS = tuple(dict.fromkeys(line.strip() for part in README.values() for line in part.strip().splitlines()))
CONNECT = "pylon connect --tunnel-url <url>"
"""What wants a server elsewhere on every network; one of one's own has tests of its own."""

BOUND = 30.0
"""Seconds within which whatever is asked has to be answered, also without internet."""
AGENT = "my-agent"
TUNNEL = "wss://tunnel.example/api/tunnel/ws/tunnel?session_id=5f0c&token=secret"
PROMPT = "Why is the sky blue?"


@attrs.frozen
class Outcome:
    """What became of a command."""

    row: str
    """The README's; empty for what it takes for granted."""
    line: str
    """What was typed."""
    code: int | None
    """``None``: it had not ended within ``BOUND``."""
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return self.out + self.err

    def __str__(self) -> str:
        ended = "it did not end" if self.code is None else f"exit {self.code}"
        return f"$ {self.line}\n{self.said.rstrip()}\n[{ended}, {self.seconds:.1f} s]\n"


class Follower:
    """A user with a fresh home, who follows the README.

    :param network: said to ``pylon init``; ``None``: as the README says it, and its sample as configuration.
    """

    def __init__(self, world: World, user: Path, network: str | None) -> None:
        self.world = world
        self.user = user
        self.network = network
        self.home = Home(user / ".openagents" / "pylon")
        user.mkdir()
        self._bin = user / "bin"
        self._bin.mkdir()
        install(self._bin)  # a claude that plays a script: the real one is another program's

    def follow(self) -> Iterator[Outcome]:
        """Each command of ``ROWS`` (``CONNECT`` as it stands there only), and what has to be there before."""
        if self.network is None:
            yield self._run("pylon init", "pylon init")
            self.home.config.write_text(SEED_SAMPLE, encoding="utf-8")
        else:
            yield self._run("pylon init", f"pylon init --network {self.network}")
        yield self._run("pylon doctor", "pylon doctor")

        foreground, told = self._start_in_foreground()
        yield told
        yield self._run("pylon status", "pylon status")
        yield self._run("pylon stop", "pylon stop")
        yield attrs.evolve(told, row="", line="pylon start  # and its end", code=foreground.process.wait(BOUND))

        self.world.detached.append(self.home)
        yield self._run("pylon start -d", "pylon start -d")
        yield self._run('pylon agent spawn --name "my-agent"', 'pylon agent spawn --name "my-agent"')
        yield self._run("pylon agent spawn --name X", "pylon agent spawn --name other")
        yield self._run("pylon agent list", "pylon agent list")
        yield self._run("pylon agent info <name>", f"pylon agent info {AGENT}")
        yield self._run("pylon compute", "pylon compute")
        yield self._run("pylon infer", f'pylon infer --max-tokens 16 "{PROMPT}"')
        yield self._run("pylon api", "pylon api")
        yield self._run("pylon earnings", "pylon earnings")
        yield self._run("pylon wallet fund", "pylon wallet fund")
        yield self._run("pylon wallet balance", "pylon wallet balance")
        yield self._run("pylon wallet status", "pylon wallet status")
        yield self._run("pylon wallet address", "pylon wallet address")
        yield self._run("pylon wallet invoice <amount>", "pylon wallet invoice 1000")
        yield self._run("pylon wallet pay <invoice>", f"pylon wallet pay {self._invoice()}")
        yield self._run("pylon wallet history", "pylon wallet history")
        yield self._run("pylon wallet history --completed", "pylon wallet history --completed")
        if self.network is None:
            yield self._run(CONNECT, f"pylon connect --tunnel-url '{TUNNEL}'")
        yield self._run("pylon doctor", "pylon doctor")
        yield self._run("pylon agent delete <name>", "pylon agent delete other", typed="other\n")
        yield self._run("pylon stop", "pylon stop")

    # --- one command ------------------------------------------------------------------------------------------

    def _run(self, row: str, line: str, *, typed: str = "") -> Outcome:
        """``typed``: on a terminal, which it then has as stdin."""
        began = time.monotonic()
        leader, follower = pty.openpty()
        try:
            if typed:
                os.write(leader, typed.encode())
            done = subprocess.run(
                [command(), *shlex.split(line)[1:]],
                stdin=follower if typed else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=BOUND,
                check=False,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired as error:
            parts = [(part or b"").decode(errors="replace") for part in (error.stdout, error.stderr)]
            return Outcome(row, line, None, *parts, time.monotonic() - began)
        finally:
            os.close(follower)
            os.close(leader)
        return Outcome(row, line, done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def _start_in_foreground(self) -> tuple[Daemon, Outcome]:
        """It stays; what it has said by the time that it is ready."""
        began = time.monotonic()
        daemon = Daemon([command(), "start"], self.user / "start.out", self._environment())
        self.world.daemons.append(daemon)
        daemon.ready(within=READY_WITHIN)
        return daemon, Outcome("pylon start", "pylon start", 0, daemon.said(), "", time.monotonic() - began)

    def _invoice(self) -> str:
        """Of somebody else: on simnet an agent of this home, else a stranger on Spark's regtest."""
        if self.network is not None:
            return self._run("", f"pylon wallet invoice 500 --agent {AGENT}").out.strip()
        return bolt11.encode(
            prefix="bcrt",
            amount_msats=500_000,
            timestamp=int(time.time()),
            payment_hash=os.urandom(32).hex(),
            payment_secret=os.urandom(32).hex(),
            node_secret=os.urandom(32),
            description="a coffee",
        )

    def _environment(self) -> dict[str, str]:
        # The ports are the machine's, and others may have them; the models are shared by all homes as always.
        return environment(
            {
                "HOME": str(self.user),
                "PATH": f"{self._bin}:{os.environ.get('PATH', os.defpath)}",
                "PYLON_MODELS": str(models_directory()),
                "PYLON_RELAY_BIND": "127.0.0.1:0",
                "PYLON_API_BIND": "127.0.0.1:0",
            }
        )


def main() -> None:
    for title, network in (("as it stands, without internet", None), ("pylon init --network simnet", "simnet")):
        with tempfile.TemporaryDirectory(prefix="pylon-readme-") as directory:
            with World(Path(directory)) as world:
                print(f"# {title}\n", flush=True)
                for outcome in Follower(world, world.directory / "user", network).follow():
                    print(outcome, flush=True)


if __name__ == "__main__":
    sys.exit(main())
