"""``pylon connect serve`` as a process."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.e2e.homes import Daemon, World, command


class TunnelServer:
    """Started, and ended with its world."""

    def __init__(self, world: World, name: str = "tunnel-server", bind: str = "127.0.0.1:0") -> None:
        self._world = world
        self._home = world.directory / name
        self._start(bind)

    def _start(self, bind: str) -> None:
        output = self._world.directory / f"{self._home.name}{len(self._world.daemons)}.out"
        arguments = [command(), "--home", str(self._home), "connect", "serve", "--bind", bind, "--json"]
        self.daemon = Daemon(arguments, output)
        self._world.daemons.append(self.daemon)
        self.daemon.ready("serving until")
        self.told: dict[str, Any] = json.loads(next(line for line in self.daemon.said().splitlines() if "{" in line))
        self.url: str = self.told["url"]

    def restart(self) -> None:
        """Kill it, and start it anew at the same address."""
        self.daemon.kill()
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
