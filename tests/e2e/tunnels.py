"""``pylon connect serve`` and ``pylon connect`` as processes."""

from __future__ import annotations

import json
from typing import Any

import httpx

from pylon.testing.scripted_claude import install
from tests.e2e.homes import Daemon, World, command


class TunnelServer:
    """Started, and ended with its world."""

    def __init__(self, world: World, name: str = "tunnel-server", bind: str = "127.0.0.1:0") -> None:
        self._world = world
        self._home = world.directory / name
        self._start(bind)
        self.first = self.told
        """The session that it made at its first start."""

    def _start(self, bind: str) -> None:
        output = self._world.directory / f"{self._home.name}{len(self._world.daemons)}.out"
        arguments = [command(), "--home", str(self._home), "connect", "serve", "--bind", bind, "--json"]
        self.daemon = Daemon(arguments, output)
        self._world.daemons.append(self.daemon)
        self.daemon.ready("serving until")
        self.told: dict[str, Any] = json.loads(next(line for line in self.daemon.said().splitlines() if "{" in line))
        self.url: str = self.told["url"]

    def start_again(self) -> None:
        """At the same address."""
        self._start(self.url.removeprefix("http://"))

    def register(self) -> dict[str, Any]:
        """A new session, as its owner makes one."""
        token = (self._home / "tunnel.token").read_text().strip()
        answer = httpx.post(
            f"{self.url}/api/tunnel/register", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=10
        )
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made


class TunnelMachine:
    """A home whose ``pylon connect`` runs the scripted claude.

    :param rules: of the script.
    :param claude: what stands in ``[claude]``.
    """

    def __init__(self, world: World, rules: list[dict[str, Any]], claude: str = "") -> None:
        self._world = world
        self.node = world.node("machine")
        self.directory = world.directory / "work"
        self.directory.mkdir()
        self.node.configure(more=f"[claude]\n{claude}\n")
        bin_directory = world.directory / "bin"
        bin_directory.mkdir()
        self._executable = install(bin_directory, rules)

    def connect(self, tunnel_url: str, *options: str) -> Daemon:
        self.daemon = Daemon(
            [
                *(command(), "--home", str(self.node.root), "connect", "--tunnel-url", tunnel_url),
                *("--executable-path", str(self._executable), "--cwd", str(self.directory), *options),
            ],
            self._world.directory / f"machine{len(self._world.daemons)}.out",
        )
        self._world.daemons.append(self.daemon)
        self.daemon.ready("ready")
        return self.daemon
