"""What a service manager is told: sd_notify(3), by a few lines over ``NOTIFY_SOCKET``.

Each message is one datagram of ``NAME=value`` lines. Telling never fails and never waits: a manager that does not
listen is no reason to stop.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

import trio

_BEATS = 3.0
"""In each interval of the watchdog: one may be lost."""


class Notifier:
    """Of this process; silent where nobody listens."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        """``address``: the socket's path, or ``@`` and the name of an abstract one. ``watchdog``: seconds."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog if address else None

    @classmethod
    def taken(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """What the environment says, taken out of it: it is not meant for the processes that we start."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        known = usec.isascii() and usec.isdecimal() and 0 < len(usec) < 18 and int(usec) > 0
        return cls(address, int(usec) / 1e6 if ours and known else None)

    def tell(self, *lines: str) -> bool:
        """Send one message; false if it did not arrive."""
        if not self._address:
            return False
        message = "\n".join(" ".join(line.splitlines()) for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(errors="replace"), self._address)
        except OSError:
            return False
        return True

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """``ready`` must follow."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def stopping(self) -> None:
        self.tell("STOPPING=1", "STATUS=stopping")

    async def beat(self) -> None:
        """Tell the watchdog that the loop turns, for ever; nothing where there is none.

        It is a task like any other: when the loop hangs, it is silent.
        """
        if self.watchdog is None:
            return
        while True:
            self.tell("WATCHDOG=1")
            await trio.sleep(self.watchdog / _BEATS)
