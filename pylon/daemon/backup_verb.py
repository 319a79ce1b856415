"""The running daemon's part in ``pylon backup``: it has the keys, so that nobody is asked for a passphrase.

It writes the sealed file into the home, for that is all that a sandboxed service may write; whoever asked takes it from
there to where it is wanted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import trio

from pylon.daemon.backup import STAGED, BackedUp, back_up, home_seal
from pylon.daemon.control import Method, Notify
from pylon.daemon.runtime import Runtime
from pylon.errors import UsageError

_TELL_EVERY = 0.5


@attrs.frozen
class BackupVerb:
    runtime: Runtime

    def table(self) -> dict[str, Method]:
        """The verbs by their names."""
        return {"backup": self.backup}

    async def backup(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """A backup under the home's own seal: where it is, and its SHA-256. ``progress`` notifications come before."""
        runtime = self.runtime
        if runtime.keys is None:
            raise UsageError("this home is not open", "pylon start")
        target = runtime.home.data / f"{STAGED}{secrets.token_hex(8)}"
        seal, send = home_seal(runtime.home, runtime.keys), _Progress()
        job = partial(
            back_up, runtime.home, runtime.keys, target, seal, now=runtime.clock.now(), told=send.put, noted=False
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.run, notify)
            done: BackedUp = await trio.to_thread.run_sync(job)
            nursery.cancel_scope.cancel()
        return {
            "path": str(done.path),
            "bytes": done.length,
            "sha256": done.sha256,
            "npub": runtime.identity.npub,
            "sealed": seal.lock.value,
        }


class _Progress:
    """What a thread does, told now and then by the loop."""

    def __init__(self) -> None:
        self._now: tuple[str, int, int] | None = None

    def put(self, what: str, done: int, total: int) -> None:
        self._now = (what, done, total)

    async def run(self, notify: Notify) -> None:
        while True:
            await trio.sleep(_TELL_EVERY)
            if self._now is not None:
                what, done, total = self._now
                await notify("progress", {"what": what, "done": done, "total": total})
