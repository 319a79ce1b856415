"""A connection to a relay, reduced to what the pool needs: text frames both ways, a ping, an end.

``websocket.connect`` is the real one; tests and simulations bring their own (``pylon.testing.relay``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias


class TransportClosed(Exception):
    """The connection is gone, whoever ended it; the text says why and holds no secret."""


class Transport(Protocol):
    """One open connection. One task may receive while others send; a frame goes out whole or not at all."""

    async def send(self, text: str) -> None:
        """Hand one text frame to the connection. Raises ``TransportClosed``; blocks while the peer does not read.

        A send that was cancelled leaves the connection in an unknown state: close it.
        """
        ...

    async def receive(self) -> str:
        """The next text frame. Raises ``TransportClosed`` once the connection is gone and nothing is left to read."""
        ...

    async def ping(self) -> None:
        """Return when the peer's pong has come. Waits without a limit: the caller brings the deadline."""
        ...

    async def aclose(self) -> None:
        """Close; harmless when repeated. Returns soon, whatever the peer does."""
        ...


Connect: TypeAlias = Callable[[str], AbstractAsyncContextManager[Transport]]
"""Open a relay's URL: ``async with connect(url) as transport``.

A context manager, not a coroutine, because a transport may need tasks that read for it, and their nursery must live
exactly as long as the connection. Entering raises ``pylon.errors.RelayError`` if there is no connection to be had.
"""
