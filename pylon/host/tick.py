"""Runs ticks: the effects of ``pylon.host.ticking``, and what the schedule is drawn from.

A tick belongs to its agent's nursery and ends with it; whatever was under way stands in its row, and is taken up again
when the agent's nursery is there again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs
import trio

from protocols.nip01 import Event
from protocols.nip_sa_state import AgentState, Goal
from pylon.compute.buyer import Buyer
from pylon.compute.purchase import Purchase, PurchaseState
from pylon.errors import NotFound, PylonError, WalletFrozen
from pylon.host import memory, policy, prompt, publishing, registry, replies, schedule, ticking, triggers
from pylon.host.acting import Action, ActionState
from pylon.host.agents import Agents
from pylon.host.deeds import Deeds
from pylon.host.lifecycle import heartbeat_factor
from pylon.host.registry import Agent
from pylon.host.schedule import Beat, Cause, Decision, Past, StrangerCost, View, decide
from pylon.host.settings import MONEY, ActionKind
from pylon.host.ticking import TICK, TickEffect, TickRecord, TickState
from pylon.host.triggers import Heard
from pylon.machine import Effect
from pylon.money import MSATS_PER_SAT, Msat, format_msat
from pylon.store import intents
from pylon.store.database import Reads, Store, Tx
from pylon.store.records import RecordTable, Step
from pylon.walker import Walker

log = logging.getLogger(__name__)

THINK_SECONDS = 600.0
"""How long a tick waits for its thought; what is bought goes on by itself."""
ACT_SECONDS = 90.0
"""How long a tick waits for its actions to rest."""
WALLET_SECONDS = 20.0
_AFTER_RESTART = 30.0
"""The least that is waited for, however long ago the tick began: an answer may lie on a relay."""
ASKED = "asked"
"""The cause of a tick that the operator wanted."""
_RECALLED = 12
_RECALLED_CHARS = 3_000
_PROMPT_CHARS = 12_000
_LONGEST_NOTE = 280
_INWARD = frozenset({ActionKind.UPDATE_GOAL, ActionKind.ADD_MEMORY, ActionKind.SET_HEARTBEAT})


class Ticks:
    """The ticks of all agents of a home.

    :param thoughts: how many may be bought at the same time.
    """

    def __init__(self, agents: Agents, buyer: Buyer, deeds: Deeds, *, thoughts: trio.CapacityLimiter) -> None:
        self._agents = agents
        self._store = agents.store
        self._clock = agents.clock
        self._rng = agents.rng
        self._buyer = buyer
        self._deeds = deeds
        self._thoughts = thoughts
        self.records = tick_records(self._store)
        self._walker: Walker[TickRecord] = Walker(
            self.records,
            self._store,
            self._clock,
            self._rng,
            handlers={TickEffect.THINK: self._think, TickEffect.ACT: self._act},
            compose=self._compose,
            book=self._book,
            give_up=self._give_up,
            relays=lambda tick: agents.relays(registry.load(self._store, tick.agent)),
        )

    # --- when -------------------------------------------------------------------------------------------------

    def decide(self, agent_id: str, beat: Beat | None) -> Decision:
        """Whether the agent ticks now, else when to ask again."""
        agent = registry.load(self._store, agent_id)
        now = self._clock.now()
        return decide(self._view(agent, beat, now), now, self._rng, agent.settings.schedule)

    def everything(self, agent_id: str) -> schedule.Tick:
        """A tick that takes all there is: what waits, and every active goal. For an operator who asks for one."""
        mind = registry.state(self._store, self._store.vault, agent_id)
        waiting = schedule.unhandled(triggers.pending(self._store, agent_id), ())
        return schedule.Tick(Cause.HEARTBEAT, waiting, memory.goals_due(mind, now=self._clock.now(), beat=None))

    def _view(self, agent: Agent, beat: Beat | None, now: float) -> View:
        state = self._agents.state_of(agent.id)
        waiting = triggers.pending(self._store, agent.id)
        # Goals are looked at by a tick, and only what thinks keeps a distance: mostly neither matters.
        may_tick = bool(waiting) or beat is None or beat.due <= now
        goals = memory.goals_due(self._agents.active_goals(agent.id), now=now, beat=beat) if may_tick else ()
        thinks = bool(waiting) or any(goal.review_at <= now for goal in goals)
        return View(
            agent=agent.id,
            state=state,
            heartbeat=float(agent.settings.heartbeat),
            factor=heartbeat_factor(state, agent.settings.lifecycle),
            beat=beat,
            triggers=waiting,
            goals=goals,
            past=self._past(agent, now) if thinks else Past(),
        )

    def _past(self, agent: Agent, now: float) -> Past:
        chosen = agent.settings.schedule
        paid = self._store.one(
            # Those further ahead began before the clock was set back, and hide none that began since.
            "SELECT MAX(created_at) AS at FROM ticks WHERE agent = ? AND created_at > ? AND created_at <= ?"
            " AND state <> 'quiet'",
            (agent.id, now - chosen.min_gap, now + chosen.min_gap),
        )
        triggered = self._store.read(
            "SELECT created_at FROM ticks WHERE agent = ? AND created_at > ? AND cause = 'trigger'",
            (agent.id, now - schedule.HOUR),
        )
        strangers = self._store.read(
            "SELECT id, created_at FROM ticks WHERE agent = ? AND created_at > ? AND allowance_msats IS NOT NULL",
            (agent.id, now - schedule.DAY),
        )
        return Past(
            last_paid=None if paid is None else paid["at"],
            triggered=tuple(row["created_at"] for row in triggered),
            strangers=tuple(
                StrangerCost(row["created_at"], intents.spent_in(self._store, row["id"])) for row in strangers
            ),
        )

    # --- from the beginning to the end ------------------------------------------------------------------------

    async def resume(self, agent_id: str) -> None:
        """Bring what an earlier life of the agent has left unfinished to its end."""
        # In the words of the index ``ticks_open``.
        unfinished = "agent = ? AND state NOT IN ('done', 'failed', 'quiet') ORDER BY n"
        for record in list(self.records.where(self._store, unfinished, (agent_id,))):
            await self._walker.walk(record)

    async def run(self, agent_id: str, tick: schedule.Tick, beat: Beat | None, *, asked: bool = False) -> TickRecord:
        """One tick. ``beat`` is the next heartbeat, kept in the transaction that begins it."""
        begun = await self._begin(agent_id, tick, beat, asked=asked)
        if begun.state is TickState.QUIET:
            return begun
        async with self._thoughts:
            return await self._walker.walk(begun)

    async def _begin(self, agent_id: str, tick: schedule.Tick, beat: Beat | None, *, asked: bool) -> TickRecord:
        agent = registry.load(self._store, agent_id)
        state = self._agents.state_of(agent_id)
        n = agent.ticks + 1
        record = TickRecord(
            id=ticking.name_of(agent_id, n),
            agent=agent_id,
            n=n,
            created_at=self._clock.now(),
            cause=ASKED if asked else tick.cause.value,
            # Those who are known first: no flood of strangers may leave the prompt without room for them.
            triggers=tuple(trigger.id for trigger in sorted(tick.triggers, key=lambda trigger: trigger.stranger)),
            kinds=tuple(dict.fromkeys(trigger.kind.value for trigger in tick.triggers)),
            goals=tuple(goal.id for goal in tick.goals),
            asked=asked,
            strangers=any(trigger.stranger for trigger in tick.triggers),
            allowance=tick.allowance,
            lifecycle=state.value,
            heartbeat=float(agent.settings.heartbeat),
            factor=heartbeat_factor(state, agent.settings.lifecycle),
            next_beat=None if beat is None else beat.due,
        )
        begun = await self._walker.begin(record, ticking.Begun())
        assert begun is not None, "nothing bars a tick"
        return begun

    # --- effects ----------------------------------------------------------------------------------------------

    async def _think(self, tick: TickRecord) -> ticking.Thought | ticking.Failed:
        """Buy the thought, or wait for the one that was bought before a crash."""
        known = self._buyer.records.load(self._store, tick.purchase)
        agent = registry.load(self._store, tick.agent)
        if known is None:
            refused = await self._buy(tick, agent)
            if refused:
                return self._failed(tick, refused)
        # From the purchase on: a tick may have waited for its turn to think. Bounded: the clock may be set back.
        waited = 0.0 if known is None else self._clock.now() - known.created_at
        done: Purchase | None = None
        with trio.move_on_after(min(max(_AFTER_RESTART, THINK_SECONDS - waited), THINK_SECONDS)):
            done = await self._buyer.finished(tick.purchase)
        if done is None:
            return self._failed(tick, "no answer in time")
        if done.state is not PurchaseState.ANSWERED or not done.text:
            return self._failed(tick, f"{done.state.value}: {done.reason}", done.provider)
        heard = self._heard(tick)
        try:
            reply = replies.parse(
                done.text,
                self._allowed(agent, tick, heard),
                agent.settings.max_steps,
                len(heard),
                goals=[goal.id for goal in self._goals(agent) if goal.status == "active"],
            )
        except replies.ReplyInvalid as error:
            return self._failed(tick, f"the reply does not read: {error}", done.provider)
        # A goal that is put off for longer than the slowest heartbeat would be forgotten.
        review = None if reply.review_seconds is None else min(reply.review_seconds, agent.settings.heartbeat_most)
        return ticking.Thought(done.provider, reply.thought, reply.actions, review)

    def _goals(self, agent: Agent) -> Sequence[Goal]:
        return registry.goals(self._store, self._store.vault, agent.id)

    async def _buy(self, tick: TickRecord, agent: Agent) -> str:
        """Begin the purchase; returns why it was not, or nothing."""
        purse = self._agents.purse(agent.id)
        with trio.fail_after(WALLET_SECONDS):
            balance = await purse.wallet.balance()
        try:
            bid = purse.affordable(self._store, scope=tick.id, spendable=balance.spendable)
        except PylonError as error:
            return error.message
        if bid < 1:
            return "nothing may be spent: budgets, reserve or balance do not carry a thought"
        heard = self._heard(tick)
        allowed = self._allowed(agent, tick, heard)
        scene = self._scene(tick, agent, heard, allowed, balance.spendable, bid)
        try:
            await self._ask(tick, agent, scene, bid)
        except WalletFrozen as error:
            return error.message
        return ""

    async def _ask(self, tick: TickRecord, agent: Agent, scene: prompt.Scene, bid: Msat) -> None:
        schema = prompt.schema(scene, agent.settings.thought_tokens)
        await self._buyer.buy(
            prompt.render(scene, _PROMPT_CHARS),
            bid=bid,
            max_tokens=agent.settings.thought_tokens,
            model=agent.settings.model,
            owner=agent.id,
            scope=tick.id,
            params=(("json_schema", schema), ("temperature", replies.TEMPERATURE)),
            purchase_id=tick.purchase,
        )

    def _scene(
        self,
        tick: TickRecord,
        agent: Agent,
        heard: Sequence[Heard],
        allowed: Sequence[ActionKind],
        spendable: Msat,
        bid: Msat,
    ) -> prompt.Scene:
        mind = registry.state(self._store, self._store.vault, agent.id)
        now = self._clock.now()
        about = " ".join([*(entry.text for entry in heard), *(goal.description for goal in mind.goals)])
        return prompt.Scene(
            name=agent.name,
            about=agent.settings.about,
            now=now,
            autonomy=agent.settings.autonomy,
            goals=tuple(goal for goal in mind.goals if goal.status == "active"),
            due=frozenset(tick.goals),
            memories=memory.recall(
                mind if tick.strangers else _without_strangers(mind),
                about=about,
                now=now,
                limit=_RECALLED,
                max_chars=_RECALLED_CHARS,
            ),
            heard=tuple(
                prompt.HeardText(
                    number=number,
                    kind=entry.kind,
                    author=entry.author,
                    amount_msats=entry.amount_msats,
                    text=entry.text,
                )
                for number, entry in enumerate(heard, 1)
            ),
            wallet_sats=spendable // MSATS_PER_SAT,
            budget_sats=bid // MSATS_PER_SAT,
            allowed=tuple(prompt.AllowedAction(kind=kind, limits=self._limits(agent, kind)) for kind in allowed),
            heartbeat_seconds=agent.settings.heartbeat,
            heartbeat_least=agent.settings.heartbeat_least,
            heartbeat_most=agent.settings.heartbeat_most,
            max_steps=agent.settings.max_steps,
            cause=tick.cause,
        )

    def _limits(self, agent: Agent, kind: ActionKind) -> str:
        grant = agent.settings.grant(kind)
        if kind in MONEY and grant is not None:
            return f"at most {format_msat(grant.each)} each, {format_msat(grant.day)} a day"
        return ""

    def _heard(self, tick: TickRecord) -> list[Heard]:
        """What woke it, in the order in which the prompt numbers it."""
        found = {entry.id: entry for entry in triggers.heard(self._store, self._store.vault, tick.triggers, tick.agent)}
        return [found[name] for name in tick.triggers if name in found]

    def _allowed(self, agent: Agent, tick: TickRecord, heard: Sequence[Heard]) -> tuple[ActionKind, ...]:
        return policy.allowed(agent.settings, strangers=tick.strangers, answerable=any(e.event for e in heard))

    async def _act(self, tick: TickRecord) -> ticking.Acted:
        names = await self._deeds.begin(tick)
        await self._deeds.settle(names, ACT_SECONDS)
        actions = self._deeds.of_tick(self._store, tick.id)
        done = sum(action.state is ActionState.DONE for action in actions)
        still = sum(action.state not in self._deeds.records.machine.final for action in actions)
        return ticking.Acted(
            done=done,
            failed=len(actions) - done - still,
            open=still,
            cost=intents.spent_in(self._store, tick.id),
            at=self._clock.now(),
        )

    def _failed(self, tick: TickRecord, reason: str, provider: str | None = None) -> ticking.Failed:
        return ticking.Failed(reason, provider, intents.spent_in(self._store, tick.id), self._clock.now())

    def _give_up(self, tick: TickRecord, error: BaseException) -> ticking.Failed:
        said = error.message if isinstance(error, PylonError) else type(error).__name__
        return self._failed(tick, f"it broke: {said}")

    # --- what is written with each step -----------------------------------------------------------------------

    def _book(self, tx: Tx, step: Step[TickRecord]) -> None:
        before, after = step.before, step.after
        if before.state is TickState.NEW:
            self._book_begin(tx, after)
        if after.state in TICK.final:
            self._book_end(tx, after)

    def _book_begin(self, tx: Tx, tick: TickRecord) -> None:
        tx.execute(
            "UPDATE agents SET ticks = ?, quiet = quiet + ?, beat = COALESCE(?, beat) WHERE id = ?",
            (tick.n, tick.quiet, tick.next_beat, tick.agent),
        )
        triggers.take(tx, tick.agent, tick.triggers, tick.id)

    def _book_end(self, tx: Tx, tick: TickRecord) -> None:
        agent = registry.load(tx, tick.agent)
        burn = agent.burn
        if tick.cause == Cause.HEARTBEAT:
            burn = burn.beaten(at=tick.created_at, cost=tick.cost, heartbeat=tick.heartbeat, factor=tick.factor)
        else:
            burn = burn.prompted(cost=tick.cost)
        registry.save_burn(tx, agent.id, burn)
        tx.touch(f"ticks:{tick.agent}")
        if tick.state is TickState.QUIET:
            return
        # Not the reason itself: it may quote a provider, who may quote the prompt, and this column is not sealed.
        tx.execute("UPDATE agents SET last_error = ? WHERE id = ?", (tick.id if tick.reason else "", agent.id))
        actions = self._deeds.of_tick(tx, tick.id)
        self._set_heartbeat(tx, agent, actions)
        mind = self._absorb(tx, tick, agent, actions)
        registry.save_state(tx, agent.id, mind)

    def _absorb(self, tx: Tx, tick: TickRecord, agent: Agent, actions: Sequence[Action]) -> AgentState:
        """What the agent holds in mind after a tick."""
        now = self._clock.now()
        mind = registry.state(tx, tx.vault, agent.id)
        origin = "stranger" if tick.strangers else "own"
        operator = self._agents.operator
        for entry in triggers.heard(tx, tx.vault, tick.triggers, agent.id):
            stranger = triggers.is_stranger(entry.author, agent.settings, operator)
            mind = memory.remember(
                mind,
                type="observation",
                content=f"{entry.kind.value} from {entry.author[:12]}: {entry.text[:_LONGEST_NOTE]}",
                now=now,
                relevance=0.5,
                origin="stranger" if stranger else "trusted",
            )
        for action in actions:
            if action.state is ActionState.DONE:
                mind = _apply(mind, action, now, origin)
        review_at = None if tick.review_seconds is None else now + tick.review_seconds
        mind = memory.reviewed(mind, tick.goals, review_at=review_at, now=now)
        mind = memory.ticked(
            mind,
            n=tick.n,
            now=now,
            success=tick.state is TickState.DONE,
            actions=tick.done,
            cost_msats=tick.cost,
            balance_msats=self._agents.lifecycle(agent.id, tx).balance,
        )
        mind = attrs.evolve(mind, instance=agent.instance, epoch=agent.epoch)
        return memory.compact(registry.with_settings(mind, registry.load(tx, agent.id).settings), now=now)

    def _set_heartbeat(self, tx: Tx, agent: Agent, actions: Sequence[Action]) -> None:
        wanted = [
            action.wish.seconds
            for action in actions
            if action.kind is ActionKind.SET_HEARTBEAT and action.state is ActionState.DONE and action.wish.seconds
        ]
        if wanted:
            chosen = agent.settings
            seconds = min(max(int(wanted[-1]), chosen.heartbeat_least), chosen.heartbeat_most)
            registry.save_settings(tx, agent.id, attrs.evolve(chosen, heartbeat=seconds))

    def _compose(self, tx: Tx, tick: TickRecord, effect: Effect) -> Sequence[Event]:
        agent = registry.load(tx, tick.agent)
        if not agent.settings.publish or agent.moved:
            return ()
        runner, secret = self._agents.runner, self._agents.keys(agent.id, tx).nostr
        claim = publishing.claim(tick, agent, runner, self._trigger_event(tx, tick))
        match effect:
            case TickEffect.PUBLISH_CLAIM:
                return (claim,)
            case TickEffect.PUBLISH_STATE:
                mind = registry.state(tx, tx.vault, agent.id)
                return publishing.state(tx, agent, secret, mind, self._clock.now())
            case TickEffect.PUBLISH_TRAJECTORY:
                return publishing.trajectory(tick, agent, secret, self._deeds.of_tick(tx, tick.id))
            case _:
                actions = self._deeds.of_tick(tx, tick.id)
                return publishing.result(tick, agent, runner, secret, actions, claim.id)

    def _trigger_event(self, source: Reads, tick: TickRecord) -> str | None:
        """The public event that woke it; a private message's id is its reader's own business."""
        for entry in triggers.heard(source, self._store.vault, tick.triggers[:1], tick.agent):
            if entry.kind is not schedule.TriggerKind.DM and entry.event_id:
                return entry.event_id
        return None


def tick_records(store: Store) -> RecordTable[TickRecord]:
    """The table of ticks."""
    return RecordTable(
        TICK,
        TickRecord,
        "ticks",
        store.vault,
        lambda record: {
            "agent": record.agent,
            "n": record.n,
            "cause": record.cause,
            "strangers": int(record.strangers),
            "allowance_msats": record.allowance,
        },
    )


def _apply(mind: AgentState, action: Action, now: float, origin: str) -> AgentState:
    """What a deed leaves in mind."""
    wish = action.wish
    match action.kind:
        case ActionKind.UPDATE_GOAL:
            try:
                return memory.update_goal(
                    mind, wish.goal, progress=wish.progress, status=wish.status or None, note=wish.text or None, now=now
                )
            except NotFound:
                return mind
        case ActionKind.ADD_MEMORY:
            return memory.remember(mind, type="note", content=wish.text, now=now, relevance=0.8, origin=origin)
        case ActionKind.SET_HEARTBEAT | ActionKind.NOTHING:
            return mind
        case _:
            said = f"{action.kind.value}: {wish.text[:_LONGEST_NOTE]}"
            return memory.remember(mind, type="action_result", content=said, now=now, relevance=0.6, origin=origin)


def _without_strangers(mind: AgentState) -> AgentState:
    """A mind without what strangers have said or caused to be noted: who remembers their words gives them a word."""
    return attrs.evolve(mind, memory=tuple(known for known in mind.memory if memory.origin_of(known) != "stranger"))
