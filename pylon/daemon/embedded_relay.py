"""The relay of this machine, shared by its homes.

The first home to bind the port serves it. A home that finds the port served by another Pylon's relay (its NIP-11
document says so) uses that one, and binds the port itself when that one goes away. Any other clash is an error that
names the key to change.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from pylon.clock import Clock
from pylon.config_values import Bind
from pylon.errors import ConfigError, RelayError, StoreError
from pylon.relays.information import fetch_information
from pylon.relays.relay import Relay, open_relay
from pylon.relays.server import SOFTWARE, PortTaken, serve_relay

log = logging.getLogger(__name__)

_TRY_AGAIN = 1.0
"""Seconds between two attempts to bind a port that another home serves."""
_FORGET_EVERY = 3_600.0
_PAUSE = 0.05
"""Seconds between two batches: clients come first."""
_ANSWER_WITHIN = 5.0
"""Seconds for whoever has the port to say what it is."""


class EmbeddedRelay:
    """Serves one address, or watches over it."""

    def __init__(self, bind: Bind, path: Path, clock: Clock, *, job_days: int = 0) -> None:
        """``job_days``: how long jobs are kept, 0 is for ever."""
        self._job_days = job_days
        self._bind = bind
        self._path = path
        self._clock = clock
        self.serving = False

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Started with the relay's URL as soon as somebody serves it. Raises ``ConfigError`` on a foreign clash."""
        told = False
        while True:
            try:
                await self._serve(trio.TASK_STATUS_IGNORED if told else task_status)
            except PortTaken:
                if not told:
                    await self._expect_pylon()
                    told = True
                    task_status.started(f"ws://{self._bind}")
            await trio.sleep(_TRY_AGAIN)

    async def _serve(self, task_status: trio.TaskStatus[str]) -> None:
        failed: Exception | None = None
        async with open_relay(self._path, clock=self._clock) as relay, trio.open_nursery() as nursery:
            if self._job_days:
                nursery.start_soon(self._forget_jobs, relay)
            try:
                await serve_relay(relay, self._bind.host, self._bind.port, task_status=_Bound(self, task_status))
            except Exception as error:
                # Kept out of the nursery, which would wrap it in a group.
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _forget_jobs(self, relay: Relay) -> None:
        while True:
            gone = 0
            try:
                gone = relay.store.forget_jobs(int(self._clock.now()) - self._job_days * 86_400)
            except StoreError as error:
                log.warning("old jobs stay on the relay: %s", error.message)
            await trio.sleep(_PAUSE if gone else _FORGET_EVERY)

    def bound(self, host: str, port: int) -> str:
        """The port is ours."""
        self.serving = True
        url = f"ws://{Bind(host, port)}"
        log.info("the embedded relay serves %s", url)
        return url

    async def _expect_pylon(self) -> None:
        software = await software_at(self._bind, self._clock)
        if software != SOFTWARE:
            raise ConfigError(
                f"the embedded relay's address {self._bind} is taken by something that is no Pylon relay",
                "set [relay] bind to another port, or [relay] enabled = false",
            )
        log.info("%s is served by another home of this machine; using it", self._bind)


class _Bound(trio.TaskStatus[list[tuple[str, int]]]):
    """Passes on, as a URL, that the relay listens."""

    def __init__(self, relay: EmbeddedRelay, outer: trio.TaskStatus[str]) -> None:
        self._relay = relay
        self._outer = outer

    def started(self, value: list[tuple[str, int]] | None = None) -> None:
        host, port = (value or [])[0]
        self._outer.started(self._relay.bound(host, port))


async def software_at(bind: Bind, clock: Clock) -> str | None:
    """What the NIP-11 document of an address of this machine calls its software; ``None`` without such a document."""
    try:
        answer = await fetch_information(f"ws://{bind}", clock=clock, timeout=_ANSWER_WITHIN, near=True)
    except RelayError:
        return None
    return answer.information.software
