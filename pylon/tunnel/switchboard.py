"""Who is connected in which session, and what passes between a machine and its pages. Knows no HTTP and no sockets.

Rules
-----
1. A session has one machine and some pages. What a page says goes to the machine; what the machine says goes to all
   pages. A machine that connects anew takes the place of the one before it: that one may be half dead.
2. Texts pass unread but for their ``type``. What is no JSON object with a type is dropped, and so is what claims to
   come from the server. Pings are answered here, by hop.
3. Nothing is kept for who is not there: the machine replays (``claude_replay``). A page that falls behind by more than
   ``MAX_BACKLOG_BYTES`` is cut off, and may come back and ask; a machine that does not read lets the pages wait.
4. A session lives as long as anybody is connected in it. Nothing that passes is logged.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Protocol

import attrs
import orjson
import trio

from pylon.tunnel import messages
from pylon.tunnel.bucket import Bucket
from pylon.tunnel.messages import Error, MessageRefused, Ping, Pong, TunnelConnected, TunnelDisconnected
from pylon.tunnel.websocket import SocketClosed

log = logging.getLogger(__name__)

MAX_SESSIONS = 32
"""That anybody is connected in."""
MAX_PAGES = 8
"""Of one session."""
MAX_BACKLOG_BYTES = 8 << 20
"""What a page may have left unread. Pages of one session share the texts, so it bounds the session, too."""
PAGE_MESSAGES_PER_SECOND = 20.0
PAGE_MESSAGES_AT_ONCE = 100

REFUSED = 4401
"""The ticket is none, or has ended. Codes from 4000 on are an application's own (RFC 6455, 7.4.2)."""
REPLACED = 4409
TOO_MUCH = 4429
"""Too many pages, sessions or messages."""
VERSION = 4426
"""Machine and server speak different protocols."""
GOING_AWAY = 1001

_DISMISS_SECONDS = 1.0
_FROM_SERVER = frozenset({"tunnel_connected", "tunnel_disconnected", "error"})
_NO_MACHINE = messages.write(Error("no_tunnel", "the machine is not connected; it may come back"))


class Link(Protocol):
    """One end's connection; ``ServerSocket`` is one. ``receive`` and ``send`` raise ``SocketClosed``."""

    async def receive(self) -> str: ...

    async def send(self, text: str) -> None: ...

    async def close(self, code: int, reason: str = "") -> None: ...


@attrs.define(eq=False)
class _Page:
    link: Link
    waiting: deque[tuple[str, int]] = attrs.field(factory=deque)
    """Texts, and how many bytes each has."""
    waiting_bytes: int = 0
    changed: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def put(self, text: str, size: int) -> None:
        if self.waiting_bytes + size > MAX_BACKLOG_BYTES:
            self.waiting.clear()
            self.scope.cancel()  # it is stuck in the middle of a message, and no word would reach it
            return
        self.waiting.append((text, size))
        self.waiting_bytes += size
        self.changed.set()


@attrs.define(eq=False)
class _Session:
    session_id: str
    machine: Link | None = None
    greeting: str | None = None
    """What a page that comes later is told of the machine."""
    pages: list[_Page] = attrs.field(factory=list)

    def tell_pages(self, text: str) -> None:
        size = len(text.encode())
        for page in self.pages:
            page.put(text, size)


class Switchboard:
    """All sessions of one server."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    def status(self, session_id: str) -> dict[str, Any]:
        session = self._sessions.get(session_id)
        return {
            "session_id": session_id,
            "tunnel_connected": session is not None and session.machine is not None,
            "browsers": 0 if session is None else len(session.pages),
        }

    async def serve_machine(self, session_id: str, link: Link) -> None:
        """Until it is gone. Raises nothing but what cancels."""
        session = self._enter(session_id)
        if session is None:
            await link.close(TOO_MUCH, "too many sessions")
            return
        before, session.machine, session.greeting = session.machine, link, None
        log.info("session %s: its machine has connected", session_id[:8])
        try:
            if before is not None:
                await dismiss(before, "replaced", REPLACED, "another connection has taken its place")
            while session.machine is link:
                await self._from_machine(session, link, await link.receive())
        except SocketClosed:
            pass
        finally:
            if session.machine is link:
                session.machine, session.greeting = None, None
                session.tell_pages(messages.write(TunnelDisconnected("the machine has gone")))
                log.info("session %s: its machine has gone", session_id[:8])
            self._leave(session)

    async def serve_page(self, session_id: str, link: Link) -> None:
        """Until it is gone. Raises nothing but what cancels."""
        session = self._enter(session_id)
        if session is None or len(session.pages) >= MAX_PAGES:
            if session is not None:
                self._leave(session)
            await link.close(TOO_MUCH, "too many sessions" if session is None else "too many pages")
            return
        page = _Page(link)
        greeting = session.greeting or messages.write(TunnelDisconnected("the machine is not connected"))
        page.put(greeting, len(greeting.encode()))
        session.pages.append(page)
        try:
            with page.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed, page)
                    await self._from_page(session, page)
                    nursery.cancel_scope.cancel()
        finally:
            session.pages.remove(page)
            self._leave(session)

    def _enter(self, session_id: str) -> _Session | None:
        session = self._sessions.get(session_id)
        if session is None and len(self._sessions) < MAX_SESSIONS:
            session = self._sessions[session_id] = _Session(session_id)
        return session

    def _leave(self, session: _Session) -> None:
        if session.machine is None and not session.pages:
            self._sessions.pop(session.session_id, None)

    async def _from_machine(self, session: _Session, link: Link, text: str) -> None:
        kind = _kind(text)
        if kind == "ping":
            await _answer(link, text)
        elif kind == "tunnel_connected":
            greeting = _greeting(text)
            if greeting is None:
                await dismiss(
                    link, "version", VERSION, f"this server speaks protocol {messages.PROTOCOL} of the tunnel"
                )
                return
            session.greeting = greeting
            session.tell_pages(text)
        elif kind is not None and kind not in ("pong", "tunnel_disconnected"):
            session.tell_pages(text)

    async def _from_page(self, session: _Session, page: _Page) -> None:
        messages_in = Bucket(PAGE_MESSAGES_AT_ONCE, PAGE_MESSAGES_PER_SECOND)
        while True:
            try:
                text = await page.link.receive()
                if messages_in.take():
                    await page.link.close(TOO_MUCH, "too many messages")
                    return
                kind = _kind(text)
                if kind == "ping":
                    await _answer(page.link, text)
                elif kind is not None and kind != "pong" and kind not in _FROM_SERVER:
                    await self._to_machine(session, page, text)
            except SocketClosed:
                return

    async def _to_machine(self, session: _Session, page: _Page, text: str) -> None:
        machine = session.machine
        if machine is not None and session.greeting is not None:
            try:
                await machine.send(text)
                return
            except SocketClosed:
                pass  # its own task notices
        await page.link.send(_NO_MACHINE)

    async def _feed(self, page: _Page) -> None:
        """Send a page what waits for it, until it is gone."""
        try:
            while True:
                while page.waiting:
                    text, size = page.waiting[0]
                    await page.link.send(text)
                    page.waiting.popleft()
                    page.waiting_bytes -= size
                page.changed = trio.Event()
                await page.changed.wait()
        except SocketClosed:
            page.scope.cancel()


async def dismiss(link: Link, error: str, code: int, reason: str) -> None:
    """Tell a machine why, and end its connection: with an ``error`` that it knows, it does not come again."""
    with trio.move_on_after(_DISMISS_SECONDS):
        try:
            await link.send(messages.write(Error(error, reason)))
        except SocketClosed:
            pass
    await link.close(code, reason)


def _kind(text: str) -> str | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _greeting(text: str) -> str | None:
    """What is told of a machine to a page that comes later; its sessions would be out of date. ``None``: not ours."""
    try:
        said = messages.read(text).message
    except MessageRefused:
        return None
    if not isinstance(said, TunnelConnected) or said.protocol != messages.PROTOCOL:
        return None
    return messages.write(attrs.evolve(said, sessions=()))


async def _answer(link: Link, text: str) -> None:
    try:
        said = messages.read(text).message
    except MessageRefused:
        return
    if isinstance(said, Ping):
        await link.send(messages.write(Pong(said.timestamp)))
