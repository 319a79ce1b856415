"""Handle what a stream brings, several at a time: so that items that come together share commits."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

AT_ONCE = 8
"""Enough to share commits; with many more, all items would come to their end together, at the end."""


async def handle_together(
    items: AsyncIterable[T], handle: Callable[[T], Awaitable[None]], at_once: int = AT_ONCE
) -> None:
    """Handle every item, at most ``at_once`` at a time, in no order; the stream waits meanwhile.

    Returns when the stream has ended and all of it is handled. An exception from ``handle`` ends everything.
    """
    limit = trio.Semaphore(at_once)

    async def one(item: T) -> None:
        try:
            await handle(item)
        finally:
            limit.release()

    async with trio.open_nursery() as nursery:
        async for item in items:
            await limit.acquire()
            nursery.start_soon(one, item)
