"""A home that hosts agents, as a process: ``python -m benchmarks.agent_home SETTINGS``.

The runtime is the daemon's own, with its relay, its wallets and its threaded store. It says when every agent is awake
and has heard what its relay had for it; then commands come as lines of JSON on stdin, answers go to stdout.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import trio

from pylon.config import ApiConfig, Config, RelayConfig
from pylon.config_values import Bind
from pylon.daemon.runtime import Runtime, open_runtime
from pylon.daemon.verbs import Verbs
from pylon.host import host as hosting
from pylon.host.host import Host
from pylon.host.schedule import Beat, Decision, Tick
from pylon.host.ticking import TickRecord
from pylon.paths import Home

_LOOK = 0.1


class Lateness:
    """Seconds from when a heartbeat was due until its tick stood on disk, for every tick."""

    def __init__(self, host: Host) -> None:
        self.seconds: list[float] = []
        self._due: dict[str, float] = {}
        self._clock = host.agents.clock
        self._decide, self._run = host.ticks.decide, host.ticks.run
        host.ticks.decide = self._deciding  # type: ignore[method-assign]
        host.ticks.run = self._running  # type: ignore[method-assign]

    def _deciding(self, agent_id: str, beat: Beat | None) -> Decision:
        decision = self._decide(agent_id, beat)
        if decision.tick is not None and beat is not None:
            self._due[agent_id] = beat.due
        return decision

    async def _running(self, agent_id: str, tick: Tick, beat: Beat | None, *, asked: bool = False) -> TickRecord:
        done = await self._run(agent_id, tick, beat, asked=asked)
        due = self._due.pop(agent_id, None)
        if due is not None:
            self.seconds.append(self._clock.now() - due)
        return done


async def main(settings: dict[str, Any]) -> None:
    """Run the home, and obey until stdin ends.

    ``agents``: how many must be awake until it is ready. ``port``: of its own relay. ``relay``: another one, instead.
    ``kept``: keep the nurseries of those who sleep, too.
    """
    home = Home(Path(settings["directory"]))
    if settings.get("kept"):
        hosting.may_tick = lambda state: True  # type: ignore[attr-defined]
    relay = settings.get("relay")
    config = Config(
        network="simnet",
        relays=() if relay is None else (relay,),
        relay=RelayConfig(enabled=relay is None, bind=Bind("127.0.0.1", settings.get("port", 0))),
        api=ApiConfig(enabled=False),
    )
    began = time.perf_counter()
    async with open_runtime(home, config, mode="host") as runtime:
        opened = time.perf_counter() - began
        assert runtime.host is not None
        lateness = Lateness(runtime.host)
        await _ready(runtime.host, settings["agents"])
        _say({"opened": opened, "ready": time.perf_counter() - began, "cpu": time.process_time()})
        await _obey(runtime, runtime.host, lateness)


async def _ready(host: Host, agents: int) -> None:
    while host.running < agents:  # noqa: ASYNC110  the daemon has no use for such an event
        await trio.sleep(_LOOK)
    await host.caught_up()


async def _obey(runtime: Runtime, host: Host, lateness: Lateness) -> None:
    profile = cProfile.Profile()
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        command = json.loads(line)
        answer: Any = None
        match command["do"]:
            case "reset":
                lateness.seconds.clear()
            case "late":
                answer = lateness.seconds
            case "ask":
                answer = await _ask(Verbs.of(runtime), command["verb"], command["params"])
            case "profile":
                if command.get("file") is None:
                    profile.enable()
                else:
                    profile.disable()
                    profile.dump_stats(command["file"])
        _say(answer)


async def _ask(verbs: Verbs, verb: str, params: dict[str, Any]) -> dict[str, float]:
    """What a verb takes, and how long its answer is."""

    async def notify(method: str, params: Any) -> None:
        return None

    began = time.perf_counter()
    answer = json.dumps(await verbs.table()[verb](params, notify))
    return {"seconds": time.perf_counter() - began, "bytes": len(answer)}


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    trio.run(main, parser.parse_args().settings)
