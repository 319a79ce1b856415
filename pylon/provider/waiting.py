"""Where requests wait to be looked at: who has paid before goes first, and the others take turns. No I/O.

Rules
-----
1. Customers take turns, whatever each of them has sent: one that sends a thousand requests waits for itself.
2. Those who have paid before are looked at before all strangers.
3. What waits has a bound, for either of the two. From half full on a customer may have one request waiting, so that
   there is room for many; a full room lets in nobody. What is not let in leaves no trace.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

MOST = 4_000
"""Requests that wait at a time, of strangers, and as many of those who have paid."""


class _Line(Generic[T]):
    """Customers in the order of their turns, and what each has waiting."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[T]] = OrderedDict()
        self.count = 0

    def of(self, customer: str) -> int:
        return len(self._turns.get(customer, ()))

    def put(self, customer: str, item: T) -> None:
        self._turns.setdefault(customer, deque()).append(item)
        self.count += 1

    def pop(self) -> T:
        """Of the customer whose turn it is, and who then goes to the end."""
        customer, items = self._turns.popitem(last=False)
        item = items.popleft()
        if items:
            self._turns[customer] = items
        self.count -= 1
        return item


class WaitingRoom(Generic[T]):
    """See the module. Iterate over it for what is next, for ever: it waits while nothing does.

    :param is_known: whether a customer (public key, hex) has paid before; asked at each request, so keep it cheap.
    """

    def __init__(self, is_known: Callable[[str], bool], most: int = MOST) -> None:
        self._is_known = is_known
        self._most = most
        self._known: _Line[T] = _Line()
        self._strangers: _Line[T] = _Line()
        self._came = trio.Event()

    def __len__(self) -> int:
        return self._known.count + self._strangers.count

    def put(self, customer: str, item: T) -> bool:
        """Let a request in; ``False``: there is no room for it."""
        line = self._known if self._is_known(customer) else self._strangers
        if line.count >= self._most or (2 * line.count >= self._most and line.of(customer)):
            return False
        line.put(customer, item)
        self._came.set()
        return True

    def __aiter__(self) -> WaitingRoom[T]:
        return self

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        while not len(self):
            self._came = trio.Event()
            await self._came.wait()
        return (self._known if self._known.count else self._strangers).pop()
