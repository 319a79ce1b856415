"""The machine's end of the tunnel: one connection at a time to the server, and the sessions, which outlive it.

1. The first connection has to succeed; after that a broken one is opened again, ever more slowly, with jitter. What a
   server says is final ends the tunnel: a refused token, a tunnel that it does not know, another version, another
   machine that took this one's place.
2. Sessions go on while there is no connection. What they have to say waits in their journals, and Claude waits when
   these are full; what wants a yes in vain is denied. After ``ORPHAN_SECONDS`` without a connection all end.
3. The server and the page are strangers. A message has at most a MiB, and comes no faster than ``RATE``; of what is
   refused or unknown a connection bears ``MAX_REFUSED``. At most ``max_sessions`` run at once, no more than
   ``CREATIONS`` begin in a row, and all together cost no more in any 24 hours than ``max_cost_day_usd``. The URL, which
   holds a token, is neither logged nor shown.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs
import trio

from pylon import __version__
from pylon.backoff import Backoff
from pylon.errors import RelayError, TunnelError
from pylon.relays import websocket
from pylon.relays.transport import Transport, TransportClosed
from pylon.store.database import Store
from pylon.tunnel import messages as m
from pylon.tunnel import record
from pylon.tunnel.address import TunnelAddress
from pylon.tunnel.bucket import Bucket
from pylon.tunnel.claude import Claude
from pylon.tunnel.policy import RequestRefused, Rules, tighten
from pylon.tunnel.session import Session, Start, dollars

log = logging.getLogger(__name__)

PING_SECONDS = 20.0
PONG_SECONDS = 20.0
SEND_SECONDS = 30.0
"""How long the server may leave a message of ours unread."""
ORPHAN_SECONDS = 900.0
RATE = 50.0
"""Messages a second that are taken; faster ones wait."""
BURST = 200.0
MAX_REFUSED = 100
CREATIONS = 10.0
CREATION_SECONDS = 6.0
"""Seconds after which one more session may begin."""
ENDED_KEPT = 16
"""Sessions that have ended, and can be replayed."""
GOODBYE_SECONDS = 2.0
DAY = 86_400.0
_MAX_DIRECT = 256

FINAL_STATUS = {
    401: ("the server refuses the token", "ask it for a new address: a token does not last for ever"),
    403: ("the server refuses the token", "ask it for a new address: a token does not last for ever"),
    404: ("the server knows no such tunnel", "ask it for a new address; the path belongs to it"),
    410: ("the tunnel is over", "ask the server for a new address"),
    426: ("the server speaks another version of the protocol", "upgrade Pylon, or the server"),
}
FINAL_CODES = {
    "unauthorized": FINAL_STATUS[401],
    "version": FINAL_STATUS[426],
    "replaced": ("another machine has taken this tunnel over", "ask the server for an address of its own for each"),
}

Dial = Callable[[TunnelAddress], AbstractAsyncContextManager[Transport]]
Say = Callable[[str], None]


def dial(address: TunnelAddress) -> AbstractAsyncContextManager[Transport]:
    return websocket.connect(address.url, max_message_bytes=m.MAX_FRAME_BYTES, named=address.shown)


class Tunnel:
    """Made once; ``run`` it in a task."""

    def __init__(
        self,
        address: TunnelAddress,
        rules: Rules,
        *,
        executable: Path,
        store: Store,
        rng: random.Random,
        approval_seconds: float = 300.0,
        max_sessions: int = 4,
        max_cost_day_usd: int | None = None,
        say: Say = lambda text: None,
        connect: Dial = dial,
        start: Start = Claude.start,
        backoff: Backoff | None = None,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        """Those that live, and the last that have ended, by the page's id."""
        self.refused = 0
        """Messages that were refused or unknown, so far."""
        self._address = address
        self._rules = rules
        self._executable = executable
        self._store = store
        self._backoff = backoff or Backoff(rng)
        self._approval_seconds = approval_seconds
        self._max_sessions = max_sessions
        self._max_cost_day_usd = max_cost_day_usd
        self._unfinished: list[Session] = []
        """Those whose end is not recorded yet."""
        self._say = say
        self._connect = connect
        self._start = start
        self._direct: deque[str] = deque(maxlen=_MAX_DIRECT)
        self._wake = trio.Event()
        self._connected = False
        self._closing = False
        self._changed = trio.Event()
        self._creations = Bucket(CREATIONS, 1 / CREATION_SECONDS)
        self._warnings = Bucket(20.0, 0.2)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. Reports started once it is connected. Raises ``TunnelError`` where it is over."""
        failure: TunnelError | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._end_orphans)
            try:
                await self._keep_connected(task_status)
            except TunnelError as error:
                failure = error  # kept out of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @property
    def living(self) -> list[Session]:
        return [session for session in self.sessions.values() if not session.ended]

    # The connection.

    async def _keep_connected(self, task_status: trio.TaskStatus[None]) -> None:
        first = True
        while True:
            began = trio.current_time()
            try:
                async with self._connect(self._address) as transport:
                    began = trio.current_time()
                    if first:
                        task_status.started()
                    self._say(f"connected to {self._address.shown}" if first else "connected again")
                    first = False
                    reason = await self._serve(transport)
            except RelayError as error:
                reason = error.message
                if isinstance(error, websocket.Rejected) and (told := FINAL_STATUS.get(error.status)):
                    raise TunnelError(f"{self._address.shown}: {told[0]} (HTTP {error.status})", told[1]) from None
                if first:
                    raise TunnelError(reason, "is the address right, and the server up?") from None
            wait = self._backoff.wait(trio.current_time() - began)
            living = len(self.living)
            kept = f"; {living} session{'s' if living != 1 else ''} kept" if living else ""
            self._say(f"{reason}; connecting again in {wait:.0f} s{kept}")
            await trio.sleep(wait)

    async def _serve(self, transport: Transport) -> str:
        """One connection, to its end. Returns why it ended; raises ``TunnelError`` for what is final."""
        ended: list[str | TunnelError] = []
        self._direct.clear()
        self._direct.append(m.write(m.TunnelConnected(__version__, sessions=tuple(s.info for s in self.living))))
        self._connected = True
        self._tell()
        try:
            async with trio.open_nursery() as nursery:

                async def work(part: Callable[[Transport], Awaitable[str | TunnelError]]) -> None:
                    try:
                        ended.append(await part(transport))
                    except TransportClosed as closed:
                        ended.append(str(closed))
                    nursery.cancel_scope.cancel()

                for part in (self._receive_all, self._send_all, self._ping_always):
                    nursery.start_soon(work, part)
        finally:
            self._connected = False
            self._tell()
        if isinstance(ended[0], TunnelError):
            raise ended[0]
        return ended[0]

    async def _receive_all(self, transport: Transport) -> str | TunnelError:
        messages = Bucket(BURST, RATE)
        refused = 0
        while True:
            text = await transport.receive()
            await trio.sleep(messages.take())
            try:
                received = m.read(text)
            except m.MessageRefused as error:
                refused += 1
                self.refused += 1
                log.warning("refused from %s: %s", self._address.shown, error.reason)
                if error.session_id in self.sessions:
                    self._complain(error.session_id, error.reason)
            else:
                message = received.message
                if received.ignored:
                    log.info("ignored in a %s: %s", type(message).__name__, ", ".join(received.ignored)[:200])
                if isinstance(message, m.Error) and message.code in FINAL_CODES:
                    told, remedy = FINAL_CODES[message.code]
                    return TunnelError(f"{self._address.shown}: {told}", remedy)
                if not self._handle(message):
                    refused += 1
                    self.refused += 1
                    log.info("not for us: %s", str(getattr(message, "type", type(message).__name__))[:60])
            if refused > MAX_REFUSED:
                return f"{refused} messages had to be refused"

    async def _send_all(self, transport: Transport) -> str:
        while True:
            self._wake = trio.Event()
            sent = False
            while self._direct:
                await self._send(transport, self._direct.popleft())
                sent = True
            for session in list(self.sessions.values()):  # one of each in turn: none is kept waiting by another
                if unsent := session.journal.next():
                    number, text = unsent
                    await self._send(transport, text)
                    session.journal.mark_sent(number)
                    sent = True
            if not sent:
                self._tell()
                await self._wake.wait()

    async def _send(self, transport: Transport, text: str) -> None:
        with trio.move_on_after(SEND_SECONDS) as waited:
            await transport.send(text)
        if waited.cancelled_caught:
            raise TransportClosed(f"the server has read nothing for {SEND_SECONDS:g} s")

    async def _ping_always(self, transport: Transport) -> str:
        while True:
            await trio.sleep(PING_SECONDS)
            with trio.move_on_after(PONG_SECONDS) as waited:
                await transport.ping()
            if waited.cancelled_caught:
                return f"the server has answered nothing for {PONG_SECONDS:g} s"

    async def close(self, reason: str) -> None:
        """End all sessions, and let the page know, if it listens. The rest is to cancel ``run``."""
        self._closing = True
        for session in self.living:
            session.end(reason)
        while self.living:
            await self._changed.wait()
        with trio.move_on_after(GOODBYE_SECONDS):
            while self._connected and not all(session.journal.all_sent for session in self.sessions.values()):
                await self._changed.wait()

    async def _end_orphans(self) -> None:
        while True:
            while self._connected or not self.living:
                await self._changed.wait()
            with trio.move_on_after(ORPHAN_SECONDS):
                while not self._connected:
                    await self._changed.wait()
            if not self._connected:
                for session in self.living:
                    session.end(f"no connection for {ORPHAN_SECONDS / 60:.0f} minutes")
                while self.living:
                    await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # What the page says.

    def _handle(self, message: m.Message | m.Unused | m.Unknown) -> bool:
        """Returns whether it was one for a machine."""
        match message:
            case m.Ping(timestamp):
                self._answer(m.Pong(timestamp))
            case m.ListSessions():
                self._answer(m.Sessions(tuple(session.info for session in self.living)))
            case m.CreateSession(session_id, request):
                self._create(session_id, request)
            case m.Prompt() | m.ToolApprovalResponse() | m.Stop() | m.Pause() | m.Resume() | m.Replay():
                session = self.sessions.get(message.session_id)
                if session is None:
                    self._complain(message.session_id, "there is no such session")
                elif isinstance(message, m.Replay):
                    session.journal.rewind(message.after)
                elif session.ended:
                    self._complain(session.id, "the session has ended")
                else:
                    _hand_on(session, message)
            case m.Error(code, text):
                log.warning("the server says: %s: %s", code, text)
            case m.Pong() | m.TunnelDisconnected():
                pass
            case _:
                return False
        return True

    def _create(self, session_id: str, request: m.SessionRequest) -> None:
        if session_id in self.sessions:
            self._complain(session_id, "there is a session of this id already")
            return
        if self._closing:
            self._refuse(session_id, "the tunnel is being closed")
            return
        if len(self.living) >= self._max_sessions:
            self._refuse(session_id, f"{self._max_sessions} sessions run already, the most that this machine allows")
            return
        try:
            tightened = tighten(self._within_the_day(self._rules), request)
        except RequestRefused as error:
            self._refuse(session_id, str(error))
            return
        if wait := self._creations.take_now():
            self._refuse(session_id, f"too many sessions were begun: try again in {wait:.0f} s")
            return
        for wish in tightened.refused:
            log.warning("session %s: not granted: %s", session_id, wish)
        session = Session(
            session_id,
            tightened.rules,
            executable=self._executable,
            store=self._store,
            server=self._address.shown,
            wake=self._wake_sender,
            approval_seconds=self._approval_seconds,
            system_prompt=request.system_prompt,
            initial_prompt=request.initial_prompt,
            refused=tightened.refused,
            start=self._start,
        )
        self.sessions[session_id] = session
        self._unfinished.append(session)
        assert self._nursery is not None
        self._nursery.start_soon(self._run_session, session)

    def _within_the_day(self, rules: Rules) -> Rules:
        """The rules with what is left of the day's cap. Raises ``RequestRefused`` where nothing is."""
        if self._max_cost_day_usd is None:
            return rules
        taken = record.spent(self._store, self._store.clock.now() - DAY)
        # While the day has a cap, each session has one.
        taken += sum(max(each.cost_usd, each.rules.max_cost_usd or 0) for each in self._unfinished)
        left = self._max_cost_day_usd - taken
        if left <= 0:
            raise RequestRefused(
                f"{dollars(self._max_cost_day_usd)} is all that sessions may cost in 24 hours: they have cost it,"
                " or those that run may yet"
            )
        cap = rules.max_cost_usd
        return attrs.evolve(rules, max_cost_usd=left if cap is None else min(cap, left))

    async def _run_session(self, session: Session) -> None:
        where = session.rules.shown_cwd
        begins = f"session {session.id} begins: {session.rules.model}, {session.rules.autonomy}, in {where}"
        self._say(begins)
        log.info(begins)
        try:
            await session.run()
        finally:
            if session.is_recorded:  # else it still counts, with its cap
                self._unfinished.remove(session)
            ended = f"session {session.id} has ended: {session.reason} ({dollars(session.cost_usd)})"
            self._say(ended)
            log.info(ended)
            over = [each.id for each in self.sessions.values() if each.ended]
            for session_id in over[: max(0, len(over) - ENDED_KEPT)]:
                del self.sessions[session_id]
            self._tell()

    def _refuse(self, session_id: str, reason: str) -> None:
        """A session that is not begun."""
        if not self._warnings.take_now():  # whoever asks for thousands does not fill the terminal and the log with it
            self._say(f"a session was refused: {reason}")
            log.warning("session %s refused: %s", session_id, reason)
        self._complain(session_id, reason)

    def _complain(self, session_id: str, error: str) -> None:
        """What belongs to no journal."""
        self._answer(m.SessionError(session_id, error))

    def _answer(self, message: m.FromMachine) -> None:
        self._direct.append(m.write(message))
        self._wake_sender()

    def _wake_sender(self) -> None:
        self._wake.set()


def _hand_on(session: Session, message: m.Prompt | m.ToolApprovalResponse | m.Stop | m.Pause | m.Resume) -> None:
    match message:
        case m.Prompt(_, content):
            session.prompt(content)
        case m.ToolApprovalResponse(_, approved, approval_id):
            session.answer(approved, approval_id)
        case m.Stop():
            session.stop()
        case m.Pause():
            session.pause()
        case m.Resume():
            session.resume()
