"""The messages of one session to the page: numbered, sent in order, kept for a while to be sent once more.

Whoever adds to a journal waits while too much of it is unsent: the page, or its connection, is slower than Claude, and
Claude waits. So what is kept is bounded, and nothing is lost that was not told long ago.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from pylon.tunnel.messages import (
    Chunk,
    Prompted,
    SessionCreated,
    SessionError,
    SessionState,
    ToolApproval,
    ToolApprovalClosed,
    write,
)

log = logging.getLogger(__name__)

Numbered: TypeAlias = (
    SessionCreated | SessionError | Chunk | ToolApproval | ToolApprovalClosed | Prompted | SessionState
)

MAX_UNSENT = 256
MAX_UNSENT_CHARACTERS = 1 << 20
KEPT = 2_000
KEPT_CHARACTERS = 4 << 20
"""What may be sent once more: the last of both."""


class Journal:
    def __init__(self, session_id: str, wake: Callable[[], None]) -> None:
        """``wake``: called when there is something to send."""
        self.session_id = session_id
        self.last = 0
        """The number of the newest message."""
        self._wake = wake
        self._texts: deque[str] = deque()
        self._characters = 0
        self._sent = 0
        """Up to here all is sent, or is not kept any more."""
        self._unsent_characters = 0
        self._moved = trio.Event()

    @property
    def first(self) -> int:
        """The number of the oldest message that is kept; 0: none is."""
        return self.last - len(self._texts) + 1 if self._texts else 0

    @property
    def all_sent(self) -> bool:
        return self._sent == self.last

    @property
    def unsent(self) -> int:
        return self.last - self._sent

    async def add(self, message: Numbered) -> None:
        """Number a message, and have it sent. Waits while too much is unsent."""
        await trio.lowlevel.checkpoint()
        while self.last - self._sent >= MAX_UNSENT or self._unsent_characters >= MAX_UNSENT_CHARACTERS:
            await self._moved.wait()
        self.add_now(message)

    def add_now(self, message: Numbered) -> None:
        """The same for what must not wait; the caller sees to it that there is little of it.

        Raises ``ValueError`` for a message that is none, or too long: then it has no number, either.
        """
        text = write(attrs.evolve(message, seq=self.last + 1))
        self.last += 1
        self._texts.append(text)
        self._characters += len(text)
        self._unsent_characters += len(text)
        self._trim()
        self._wake()

    def next(self) -> tuple[int, str] | None:
        """The oldest message that is unsent, with its number."""
        if self._sent == self.last:
            return None
        number = self._sent + 1
        return number, self._texts[number - self.first]

    def mark_sent(self, number: int) -> None:
        """``number``, which ``next`` has told, was sent."""
        if number != self._sent + 1:
            return  # wound back meanwhile
        self._unsent_characters -= len(self._texts[number - self.first])
        self._sent = number
        self._trim()
        self._tell()

    def rewind(self, after: int) -> None:
        """Send what follows ``after`` once more, as far as it is kept."""
        oldest = self.first
        target = max(after, oldest - 1) if oldest else self.last
        if target >= self._sent:
            return
        for number in range(target + 1, self._sent + 1):
            self._unsent_characters += len(self._texts[number - oldest])
        self._sent = target
        self._wake()

    def _trim(self) -> None:
        """Only what was sent is let go."""
        while (len(self._texts) > KEPT or self._characters > KEPT_CHARACTERS) and self.first <= self._sent:
            self._characters -= len(self._texts.popleft())

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
