"""One session: a child, its rules, its journal, its record, and the people who say yes or no.

1. Nothing that happens in a session harms another, or the tunnel: ``run`` raises nothing but a cancellation.
2. Every use of a tool is decided by the rules (``policy``), and recorded before Claude hears of it; where one was not,
   the session ends. What wants a yes
   waits for the page, at most ``approval_seconds``: no answer is a no. Several may wait at once; an answer that names
   none is for the oldest.
3. Prompts wait in line; one turn at a time, and one that Claude begins by itself, when something that it has left
   running ends, is a turn too. *Pause* interrupts the turn, and everything waits; *resume* goes on. *Stop* ends the
   session.
4. The cost is what Claude Code says of the whole process. When it reaches the cap the session ends; where a cap is set
   and the cost is not told, too.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from pylon.errors import PylonError, brief
from pylon.groups import cause
from pylon.store.database import RECORD_SECONDS, Store
from pylon.tunnel import messages as m
from pylon.tunnel import record as records
from pylon.tunnel import stream
from pylon.tunnel.claude import Claude, Launch
from pylon.tunnel.journal import Journal
from pylon.tunnel.policy import Decision, Rules
from pylon.tunnel.record import Record
from pylon.tunnel.stream import Asked

log = logging.getLogger(__name__)

MAX_PROMPTS = 32
"""That wait in line."""
MAX_APPROVALS = 16
"""That wait at once; what comes beyond them is denied."""
MAX_UNHEARD = 1_024
"""Messages unsent; Claude itself waits long before."""
IDLE_SECONDS = 3_600.0
"""A session that nobody prompts for so long ends: its child is no small thing."""
HEED_SECONDS = 15.0
"""How long Claude may take to heed an interrupt."""
CONTINUE = "Go on where you were interrupted."
_PIECE = 65_536
_KEPT_USES = 8_192

Start = Callable[[Launch], Awaitable[Claude]]


@attrs.define(eq=False)
class _Pending:
    id: str
    asked: Asked
    expires_at: float
    """Trio's time."""
    answered: trio.Event = attrs.field(factory=trio.Event)
    outcome: str = ""

    def close(self, outcome: str) -> None:
        """It waits no longer. The first outcome holds."""
        if not self.answered.is_set():
            self.outcome = outcome
            self.answered.set()


class Session:
    """Made by the tunnel, which runs ``run`` in a task; everything else is called meanwhile, and returns at once.

    What a call refuses it says by ``SessionError`` to the page.
    """

    def __init__(
        self,
        session_id: str,
        rules: Rules,
        *,
        executable: Path,
        store: Store,
        server: str,
        wake: Callable[[], None],
        approval_seconds: float,
        system_prompt: str | None = None,
        initial_prompt: str | None = None,
        refused: tuple[str, ...] = (),
        start: Start = Claude.start,
    ) -> None:
        self.id = session_id
        self.rules = rules
        self.journal = Journal(session_id, wake)
        self.state = "starting"
        self.cost_usd = 0
        self._executable = executable
        self._store = store
        self._server = server
        self._approval_seconds = approval_seconds
        self._system_prompt = system_prompt
        self._refused = refused
        self._start = start
        self._record: Record | None = None
        self._prompts: deque[str] = deque([initial_prompt] if initial_prompt else [])
        self._pending: dict[str, _Pending] = {}
        self._approvals = 0
        self._yes: set[str] = set()
        """Uses in this turn that a person has said yes to."""
        self._decided: dict[str, None] = {}
        """The last uses that were asked for."""
        self._earlier_cost = 0
        self._told_cost = 0
        self._turn: trio.Event | None = None
        """Of the turn that runs: set when it has ended."""
        self._paused = False
        self._broken_off = False
        """A turn was interrupted by a pause."""
        self._changed = trio.Event()
        self._wishes: deque[str] = deque()
        self._scope = trio.CancelScope()
        self._reason = ""
        self.reason = ""
        """Why it has ended, once it has."""
        self.is_recorded = False
        """Whether its end is, or nothing of it needs to be."""

    @property
    def ended(self) -> bool:
        return self.state == "ended"

    @property
    def _busy(self) -> bool:
        """Whether a turn runs."""
        return self._turn is not None and not self._turn.is_set()

    @property
    def info(self) -> m.SessionInfo:
        now = trio.current_time()
        return m.SessionInfo(
            session_id=self.id,
            state=self.state,
            last_seq=self.journal.last,
            first_seq=self.journal.first,
            cost_usd=self.cost_usd,
            model=self.rules.model,
            autonomy=self.rules.autonomy,
            max_cost_usd=self.rules.max_cost_usd,
            cwd=self.rules.shown_cwd,
            approvals=tuple(
                # Without the parameters, of which there may be much: they are in the journal.
                m.PendingApproval(each.id, _name(each.asked.tool), expires_in=max(0, round(each.expires_at - now)))
                for each in self._pending.values()
            ),
        )

    # What the page says.

    def prompt(self, text: str) -> None:
        if not text.strip():
            self._complain("an empty prompt was not taken")
        elif len(self._prompts) >= MAX_PROMPTS:
            self._complain(f"{MAX_PROMPTS} prompts wait already: this one was not taken")
        else:
            self._prompts.append(text)
            self._tell()

    def answer(self, approved: bool, approval_id: str | None) -> None:
        waiting = [each for each in self._pending.values() if not each.answered.is_set()]
        found = next((each for each in waiting if approval_id in (None, each.id)), None)
        if found is None:
            self._complain("no such approval waits: it was answered, or too late")
            return
        found.close("approved" if approved else "denied")

    def pause(self) -> None:
        self._wish("pause")

    def resume(self) -> None:
        self._wish("resume")

    def stop(self) -> None:
        self._wish("stop")

    def end(self, reason: str) -> None:
        """End it now. The first reason is told."""
        self._reason = self._reason or reason
        self._scope.cancel()

    def _wish(self, what: str) -> None:
        if not self._wishes or self._wishes[-1] != what:
            # What is told of each has no bound of its own: beyond it, whoever does not read is heard no more.
            if len(self._wishes) >= MAX_PROMPTS or (what != "stop" and self.journal.unsent >= MAX_UNHEARD):
                return
            self._wishes.append(what)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _complain(self, error: str) -> None:
        # Not beyond what the page reads: whoever does not read is not told.
        if self.journal.last < 8 or self.journal.all_sent:
            self._say_now(m.SessionError(self.id, error))
        else:
            log.info("session %s: %s", self.id, error)

    # What happens.

    async def run(self) -> None:
        """The whole life of the session."""
        failure = ""
        try:
            with self._scope:
                try:
                    failure = await self._live()
                except Exception as error:
                    failure = _told(error)
                    log.warning("session %s: %s", self.id, brief(error))
        finally:
            reason = self._reason or failure or "the tunnel was closed"
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RECORD_SECONDS):
                await self._finish(reason)

    async def _finish(self, reason: str) -> None:
        for each in self._pending.values():
            self._say_now(m.ToolApprovalClosed(self.id, each.id, "withdrawn"))
        self._pending.clear()
        self.state, self.reason = "ended", reason
        self._say_now(m.SessionError(self.id, reason))
        self._say_now(m.SessionState(self.id, "ended", reason, self.cost_usd))
        self.is_recorded = self._record is None
        if self._record is not None:
            try:
                await self._record.end(reason, unsettled=self._busy)
                self.is_recorded = True
            except PylonError as error:
                log.error("the end of session %s is not recorded: %s", self.id, error.message)

    async def _live(self) -> str:
        """Returns why it has ended."""
        rules = self.rules
        if rules.max_cost_usd == 0:
            return "max_cost_usd is 0: nothing may be spent"
        self._record = await records.open_record(self._store, name=self.id, server=self._server, rules=rules)
        launch = Launch(
            executable=self._executable,
            model=rules.model,
            cwd=rules.cwd,
            max_cost_usd=rules.max_cost_usd,
            blocked=rules.blocked,
            tools=rules.known_tools,
            closed=rules.closed,
            system_prompt=self._system_prompt,
            approval_seconds=self._approval_seconds,
        )
        claude = await self._start(launch)
        try:
            self._say_now(
                m.SessionCreated(
                    self.id,
                    model=rules.model,
                    autonomy=rules.autonomy,
                    max_cost_usd=rules.max_cost_usd,
                    cwd=rules.shown_cwd,
                    allowed_tools=rules.allowed_names,
                    blocked_tools=rules.blocked,
                    approval_required_tools=rules.asks,
                    refused=self._refused,
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claude.drain)
                nursery.start_soon(self._take_prompts, claude)
                nursery.start_soon(self._grant_wishes, claude)
                await self._read(claude, nursery)
                ended = await claude.cause()
                nursery.cancel_scope.cancel()
        finally:
            await claude.aclose()
        log.warning("session %s: %s: %s", self.id, ended, claude.last_words)
        return ended

    async def _take_prompts(self, claude: Claude) -> None:
        assert self._record is not None
        while True:
            while self._paused or self._busy or not self._prompts:
                self._say_state()
                with trio.move_on_after(IDLE_SECONDS) as waited:
                    await self._changed.wait()
                if waited.cancelled_caught and not self._busy:
                    self.end("nobody has prompted it for an hour")
            text = self._prompts.popleft()
            turn = self._turn = trio.Event()
            self._yes.clear()
            await self._record.act("prompt", text=text)
            await self.journal.add(m.Prompted(self.id, text))
            self._say_state()
            await claude.prompt(text)
            await turn.wait()

    async def _grant_wishes(self, claude: Claude) -> None:
        while True:
            while not self._wishes:
                await self._changed.wait()
            match self._wishes.popleft():
                case "pause" if not self._paused:
                    self._paused = True
                    self._broken_off = await self._interrupt(claude)
                case "resume" if self._paused:
                    self._paused = False
                    if self._broken_off:
                        self._prompts.appendleft(CONTINUE)
                    self._broken_off = False
                    self._tell()
                case "stop":
                    self._reason = self._reason or "stopped"
                    await self._interrupt(claude)
                    self.end("stopped")
            self._say_state()

    async def _interrupt(self, claude: Claude) -> bool:
        """End the turn, if one runs. Returns whether one did."""
        turn = self._turn
        if turn is None or not self._busy:
            return False
        for each in self._pending.values():
            each.close("withdrawn")
        await claude.interrupt()
        while not turn.is_set():
            with trio.move_on_after(HEED_SECONDS):
                await turn.wait()
            # It cannot be heard while the page does not read.
            if not turn.is_set() and (self.journal.all_sent or self._reason):
                self.end("claude does not heed an interrupt")
                break
        return True

    async def _read(self, claude: Claude, nursery: trio.Nursery) -> None:
        assert self._record is not None
        async with contextlib.aclosing(claude.events()) as events:
            async for event in events:
                if isinstance(event, stream.Text | stream.ToolStarted | stream.Asked) and not self._busy:
                    self._turn = trio.Event()
                    await self._record.turn_begun()
                    self._say_state()
                    if self._paused:
                        nursery.start_soon(self._interrupt, claude)
                match event:
                    case stream.Text(text):
                        for at in range(0, len(text), _PIECE):
                            await self._chunk("text", delta=text[at : at + _PIECE])
                    case stream.ToolStarted(use, name, params):
                        await self._chunk("tool_start", tool=_use(use, name, params=params))
                    case stream.ToolEnded(use, name, output, failed):
                        if not failed and use not in self._decided:
                            log.error(
                                "session %s: %s was used, and nobody was asked: are hooks turned off?", self.id, name
                            )
                            self.end(f"{_name(name)} was used without having been asked for")
                        await self._chunk("tool_output", tool=_use(use, name, result=output))
                        error = output[: m.MAX_NOTE] or "it failed"
                        await self._chunk("tool_done", tool=_use(use, name, error=error if failed else None))
                    case stream.Asked():
                        self._decided[event.use_id] = None
                        if len(self._decided) > _KEPT_USES:
                            del self._decided[next(iter(self._decided))]
                        nursery.start_soon(self._permit, claude, event)
                    case stream.Withdrawn(request_id):
                        for each in self._pending.values():
                            if each.asked.request_id == request_id:
                                each.close("withdrawn")
                    case stream.Unanswerable(_, subtype):
                        await claude.complain(event, f"unsupported: {subtype}")
                    case stream.Unreadable():
                        # What is not answered counts as no objection, in the end.
                        self.end("claude has asked what cannot be read")
                    case stream.TurnEnded():
                        await self._end_turn(event)

    async def _end_turn(self, event: stream.TurnEnded) -> None:
        assert self._record is not None
        if event.cost_usd is not None:
            if event.cost_usd < self._told_cost:  # it counts anew
                self._earlier_cost += self._told_cost
            self._told_cost = event.cost_usd
            self.cost_usd = min(self._earlier_cost + event.cost_usd, m.MAX_MICRO_USD)
        await self._record.turn(self.cost_usd, known=event.cost_usd is not None, outcome=event.outcome)
        if event.outcome == "failed":
            await self._chunk("error", delta=event.error)
        await self._chunk("done", usage=event.usage, cost_usd=self.cost_usd)
        cap = self.rules.max_cost_usd
        if cap is not None and event.cost_usd is None:
            self.end("claude does not say what it has cost, and there is a cap")
        elif cap is not None and self.cost_usd >= cap:
            self.end(f"the cap is reached: it has cost {dollars(self.cost_usd)} of {dollars(cap)}")
        if self._turn is not None:
            self._turn.set()
        self._tell()
        self._say_state()

    # May it?

    async def _permit(self, claude: Claude, asked: Asked) -> None:
        """Decide, record, answer."""
        outcome, reason = await self._decide(asked)
        if outcome == "withdrawn":
            # Claude waits for no answer; if it does all the same, this is it.
            await self._note(outcome, asked)
            await claude.refuse(asked, "interrupted")
        elif await self._note(outcome, asked) and outcome in ("allowed", "approved"):
            await claude.allow(asked)
        else:
            await claude.refuse(asked, reason)

    async def _note(self, outcome: str, asked: Asked) -> bool:
        assert self._record is not None
        try:
            await self._record.act(outcome, tool=_name(asked.tool), text=_json(asked.params))
        except PylonError as error:
            log.error("session %s: %s is not recorded, and so denied: %s", self.id, asked.tool[:100], error.message)
            return False
        return True

    async def _decide(self, asked: Asked) -> tuple[str, str]:
        """The outcome (``record.Act.kind``), and the reason of a no."""
        verdict = self.rules.decide(asked.tool, asked.params)
        decision, reason = verdict.decision, verdict.reason
        if decision is not Decision.DENY and (self._paused or self._reason):
            return "withdrawn", "interrupted"
        if not asked.by_hook and decision is not Decision.DENY:
            # Claude Code's own rules want a person, whatever ours say; who was asked already is not asked again.
            decision = Decision.ALLOW if asked.use_id in self._yes else Decision.ASK
        if decision is Decision.DENY:
            log.info("session %s: denied: %s", self.id, reason)
            return "refused", reason
        if decision is Decision.ALLOW:
            return "allowed", reason
        return await self._ask(asked)

    async def _ask(self, asked: Asked) -> tuple[str, str]:
        if len(self._pending) >= MAX_APPROVALS:
            return "refused", f"{MAX_APPROVALS} approvals wait already"
        self._approvals += 1
        pending = _Pending(f"a{self._approvals}", asked, trio.current_time() + self._approval_seconds)
        message = m.ToolApproval(
            self.id, asked.tool, dict(asked.params), pending.id, expires_in=round(self._approval_seconds)
        )
        try:
            self.journal.add_now(message)
        except ValueError:
            return "refused", "its parameters are too much to be shown, so nobody can say yes to them"
        self._pending[pending.id] = pending
        self._say_state()
        with trio.move_on_at(pending.expires_at):
            await pending.answered.wait()
        pending.close("timed_out")
        del self._pending[pending.id]
        self._say_now(m.ToolApprovalClosed(self.id, pending.id, pending.outcome))
        self._say_state()
        if pending.outcome == "approved":
            self._yes.add(asked.use_id)
        reasons = {"denied": "the user said no", "timed_out": "nobody said yes in time"}
        return pending.outcome, reasons.get(pending.outcome, "")

    # What the page hears.

    def _say_state(self) -> None:
        if self.ended:
            return
        if self._paused:
            state = "paused"
        elif self._pending:
            state = "waiting"
        elif self._busy:
            state = "running"
        else:
            state = "idle"
        if state != self.state:
            self.state = state
            self._say_now(m.SessionState(self.id, state, cost_usd=self.cost_usd))

    def _say_now(self, message: Any) -> None:
        """For what is little, and must be told in any case."""
        try:
            self.journal.add_now(message)
        except ValueError as error:
            log.error("session %s: cannot be told: %s", self.id, error)

    async def _chunk(self, chunk_type: str, **fields: Any) -> None:
        body = m.ChunkBody(session_id=self.id, chunk_type=chunk_type, **fields)
        try:
            await self.journal.add(m.Chunk(body))
        except ValueError:
            tool = fields.get("tool")
            if tool is None:
                log.error("session %s: a %s could not be told", self.id, chunk_type)
                return
            short = attrs.evolve(tool, params={"…": "too much to be shown"}, result=None)
            await self.journal.add(m.Chunk(attrs.evolve(body, tool=short)))


def dollars(micro_usd: int) -> str:
    """An amount for people."""
    whole, part = divmod(micro_usd, 1_000_000)
    digits = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"${whole}.{digits}"


def _use(use: str, name: str, **fields: Any) -> m.ToolUse:
    return m.ToolUse(name=_name(name), id=use[: m.MAX_NAME], **fields)


def _name(tool: str) -> str:
    return tool[: m.MAX_NAME]


def _json(params: Any) -> str:
    try:
        return orjson.dumps(params).decode()
    except orjson.JSONEncodeError:
        return ""


def _told(error: BaseException) -> str:
    """What the page may know of a failure."""
    error = cause(error)
    return error.message if isinstance(error, PylonError) else f"it failed ({type(error).__name__})"
