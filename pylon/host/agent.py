"""One agent that is awake: a nursery with a heartbeat timer, a trigger listener and a wallet watcher.

Each of the three is supervised alone: it is restarted when it ends, ever more slowly, and quarantined in the end; the
others never notice. Cancelling ``run`` stops all of them. Nothing here is remembered but what stands in rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Protocol

import trio

from protocols.nip01 import Event
from protocols.nip_sa import STATE, AgentEventInvalid
from protocols.nip_sa_state import parse_state
from pylon import events
from pylon.errors import UsageError
from pylon.host import registry, schedule, triggers
from pylon.host.agents import Agents
from pylon.host.mailroom import Box, Mailroom, Wanted
from pylon.host.schedule import Beat
from pylon.host.tick import Ticks
from pylon.host.ticking import TickRecord
from pylon.relays.pool import Received
from pylon.store import cursors, inbox, outbox, settings
from pylon.store.database import Tx
from pylon.supervision import ChildSpec, ChildStatus, Policy, Supervisor

log = logging.getLogger(__name__)

NOTES, DIRECT, ZAPS = 1, 4, 9735
HEARD_WITHIN = 10.0
"""Seconds that a first thought waits for what relays have: another runner may have the agent by now."""
_LONGEST_NAP = 6 * 3_600.0
_LOOK_AGAIN = 30.0
"""Seconds after which a wallet that did not say is asked again."""


class Funds(Protocol):
    """Where an agent's watcher asks."""

    async def look(self, agent_id: str) -> bool:
        """Ask the wallet, book what came in, follow the lifecycle; false where the wallet did not say."""
        ...


class Runner:
    """See the module.

    :param parked: called when a state with a higher epoch was read: somebody else runs the agent now.
    """

    def __init__(
        self,
        agent_id: str,
        wallet: str,
        agents: Agents,
        ticks: Ticks,
        mailroom: Mailroom,
        funds: Funds,
        *,
        zap_signer: str,
        invoice_prefix: str,
        policy: Policy | None = None,
    ) -> None:
        self.id = agent_id
        self.wallet = wallet
        """The public id of its wallet."""
        self._agents = agents
        self._ticks = ticks
        self._mailroom = mailroom
        self._funds = funds
        self._zap_signer = zap_signer
        self._prefix = invoice_prefix
        self._policy = policy
        self._supervisor: Supervisor | None = None
        self._poked = trio.Event()
        self._paid = trio.Event()
        self._seated = trio.Event()
        self._box: Box | None = None
        self._busy = False
        self._ending: Callable[[], None] | None = None
        self._asked: list[Callable[[TickRecord | BaseException], None]] = []
        self.ask_at: float | None = None
        """When it decides anew if nothing happens, wall time."""

    async def run(self) -> None:
        """Live until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._supervisor = Supervisor(nursery, rng=self._agents.rng, policy=self._policy, on_failure=self._tell)
                self._supervisor.start(ChildSpec("heartbeat", self._heartbeat))
                self._supervisor.start(ChildSpec("listener", self._listen))
                self._supervisor.start(ChildSpec("watcher", self._watch))
        finally:
            # They know us: else we would be garbage that must be looked for, and not simply gone.
            self._supervisor = self._box = None
            self._seated.set()
            self._seated = trio.Event()
            while self._asked:
                self._asked.pop()(UsageError("the agent was stopped before it came to that tick"))

    def statuses(self) -> list[ChildStatus]:
        return [] if self._supervisor is None else self._supervisor.statuses()

    # --- what others tell it ----------------------------------------------------------------------------------

    def poke(self) -> None:
        """Something has changed: decide anew."""
        self._poked.set()

    def paid(self) -> None:
        """Its wallet may hold something else now."""
        self._paid.set()

    def ask(self, told: Callable[[TickRecord | BaseException], None]) -> None:
        """The operator wants a tick now; ``told`` hears of its end."""
        self._asked.append(told)
        self.poke()

    async def caught_up(self) -> None:
        """Wait until it has heard what its relays had for it."""
        await self._seated.wait()
        if self._box is not None:
            await self._box.caught_up()

    @property
    def busy(self) -> bool:
        """Whether a tick is under way."""
        return self._busy

    def when_idle(self, told: Callable[[], None]) -> None:
        """Begin no more ticks; ``told`` hears of the end of the one under way."""
        self._ending = told

    # --- the heartbeat timer ----------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        self._busy = True
        try:
            await self._ticks.resume(self.id)
        finally:
            self._busy = False
        with trio.move_on_after(HEARD_WITHIN):
            await self.caught_up()
        due = registry.beat(self._agents.store, self.id)
        beat = None if due is None else Beat(due)
        while True:
            self._poked = trio.Event()
            if self._ending is not None:
                # Whoever wants it to end decides again: it may have been funded meanwhile.
                self._ending()
                self._ending = None
                await self._poked.wait()
                continue
            if self._asked:
                await self._tick(self._ticks.everything(self.id), beat, self._asked.pop(0))
                continue
            decision = self._ticks.decide(self.id, beat)
            due_before, beat = None if beat is None else beat.due, decision.beat
            if decision.tick is not None:
                done = await self._tick(decision.tick, beat, None)
                if not done.quiet or self._poked.is_set():
                    continue
                # Nothing was there to think about, and nothing has come since: what was decided holds.
            elif beat is not None and beat.due != due_before:
                await self._keep_beat(beat)
            self.ask_at = decision.ask_at
            nap = min(max(decision.ask_at - self._agents.clock.now(), 0.001), _LONGEST_NAP)
            with trio.move_on_after(nap):
                await self._poked.wait()

    async def _tick(
        self, tick: schedule.Tick, beat: Beat | None, told: Callable[[TickRecord | BaseException], None] | None
    ) -> TickRecord:
        self._busy = True
        try:
            done = await self._ticks.run(self.id, tick, beat, asked=told is not None)
            if not done.quiet:
                await self._funds.look(self.id)
        except BaseException as error:
            if told is not None:
                told(error)
            raise
        finally:
            self._busy = False
        if told is not None:
            told(done)
        return done

    async def _keep_beat(self, beat: Beat) -> None:
        await self._agents.store.write(
            lambda tx: tx.execute("UPDATE agents SET beat = ? WHERE id = ?", (beat.due, self.id))
        )

    # --- the trigger listener ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async with self._mailroom.box(self._wanted()) as self._box:
            self._seated.set()
            async for received in self._box:
                take = functools.partial(self._take, received)
                await inbox.deliver(self._agents.store, self._consumer, received.event.id, take)
                # Else every agent would hold the last thing that it has heard until it hears another one.
                del received, take

    def _wanted(self) -> Wanted:
        row = registry.load(self._agents.store, self.id)
        since = cursors.since(self._agents.store, self._consumer, 0)
        chosen = row.settings
        kinds = [
            kind for kind, wanted in ((NOTES, chosen.mentions), (DIRECT, chosen.dms), (ZAPS, chosen.zaps)) if wanted
        ]
        return Wanted(
            agent=self.id,
            kinds=tuple(dict.fromkeys([*kinds, *chosen.kinds])),
            wraps=chosen.dms,
            relays=chosen.relays or None,
            since=int(row.created_at) if since is None else since,
        )

    def _since(self) -> int:
        """From when on a later life of the agent must ask its relays."""
        return 0 if self._box is None else self._box.since

    @property
    def _consumer(self) -> str:
        return f"agent:{self.id}"

    async def _take(self, received: Received) -> None:
        event = received.event
        if event.kind == STATE:
            await self._compare(event)
            return
        if inbox.seen(self._agents.store, self._consumer, event.id):
            return
        row = registry.load(self._agents.store, self.id)
        now = self._agents.clock.now()
        heard = triggers.understand(
            event,
            secret=self._agents.keys(self.id).nostr,
            settings=row.settings,
            zap_signer=self._zap_signer,
            invoice_prefix=self._prefix,
            now=now,
            relay=received.relay,
        )
        if heard is None:
            return  # means nothing to this agent: not worth a row, for anybody could send any number of these
        stranger = triggers.is_stranger(heard.author, row.settings, self._agents.operator)

        def job(tx: Tx) -> bool:
            if not inbox.take(tx, self._consumer, event.id, now):
                return False
            # Not this event's own time: relays show what is newest first, and what is older may still be to come. Nor
            # beyond it: our clock may be ahead, and what is said by clocks that are right would be missed.
            reached = max(self._since(), int(now - triggers.LATE_SECONDS))
            cursors.advance(tx, self._consumer, min(reached, heard.created_at))
            return triggers.note(tx, tx.vault, self.id, heard, at=now, stranger=stranger)

        if await self._agents.store.write(job):
            self.poke()

    async def _compare(self, event: Event) -> None:
        """A state of this agent on a relay: is it ours, or does somebody else run it by now?"""
        store = self._agents.store
        restored = settings.get(store, f"{registry.RESTORED}{self.id}") is not None
        if not restored and outbox.wrote(store, event.id):
            return  # this home has published it: as we wrote it, and not worth opening at every start
        row = registry.load(store, self.id)
        try:
            seen = parse_state(event, self._agents.keys(self.id).nostr)
        except AgentEventInvalid as error:
            log.warning("agent %s: a state on a relay does not read: %s", row.name, error)
            return
        if seen.epoch > row.epoch or (seen.epoch == row.epoch and seen.instance and seen.instance < row.instance):
            who = seen.instance[:16] or "another runner"
            log.error("agent %s is run by %s (epoch %d, ours %d): parked", row.name, who, seen.epoch, row.epoch)
            await self._agents.park(self.id, f"run by {who} since epoch {seen.epoch}")
        elif seen.epoch < row.epoch:
            await self._agents.take_over(self.id, seen)

    # --- the wallet watcher -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look when told to. What came while nobody listened, the host's sweep finds, for all agents in one go."""
        while True:
            await self._paid.wait()
            self._paid, known = trio.Event(), False
            try:
                while not (known := await self._funds.look(self.id)):
                    with trio.move_on_after(_LOOK_AGAIN):
                        await self._paid.wait()
                    self._paid = trio.Event()
            finally:
                if not known:
                    self._paid.set()  # it is not known yet: who is started again in my place looks first

    def _tell(self, status: ChildStatus, error: BaseException | None) -> None:
        log.error("agent %s: %s ended: %s", self.id[:16], status.name, status.last_error or "cleanly")
        self._agents.publish(events.child_ended(status.name, status.starts, status.state, agent=self.id))
