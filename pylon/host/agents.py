"""The agents of a home, as everybody else deals with them: spawned, set, funded, paused, deleted.

Each change is one transaction, with the events that tell of it (NIP-SA) in the outbox; nothing here needs a relay or
the internet. Whoever runs agents (``pylon.host.host``) is told afterwards which one has changed. Budgets are kept
here too, outside the agent: ``limits`` is what each purse asks in the transaction of every reservation.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence

import attrs

from protocols import entropy, nip06
from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip_sa import PROFILE, to_json
from protocols.nip_sa_state import AgentState
from pylon import events
from pylon.clock import Clock
from pylon.compute.buyer import Account
from pylon.errors import BudgetExceeded, IdentityError, NotFound
from pylon.host import memory, publishing, registry
from pylon.host.acting import ACTION, Action, ActionState
from pylon.host.burn import Burn
from pylon.host.lifecycle import BalanceKnown, Lifecycle, LifecycleEffect, LifecycleState, Spawned, follow
from pylon.host.registry import Agent, Keys
from pylon.host.settings import ActionKind, AgentSettings
from pylon.identity import SIMNET_PATH
from pylon.money import Msat, sats
from pylon.store import intents, outbox, settings
from pylon.store.database import Reads, Store, Tx
from pylon.store.records import RecordTable, Step
from pylon.wallets.keeper import WalletKeeper
from pylon.wallets.port import Wallet, WalletInfo
from pylon.wallets.purse import DAY, Budget, Purse, Spend

_PURPOSES = {"zap": ActionKind.ZAP, "invoice": ActionKind.PAY_INVOICE}
_INSTANCE = "instance"
_LISTED = "agents.listed_relays"
"""The home's relays as its agents' lists name them."""
_AT_ONCE = 20
"""Agents in one transaction, where all of them publish something."""
_HOME_RELAYS = (
    "SELECT id FROM agents WHERE deleted_at IS NULL AND moved = ''"
    " AND CASE WHEN json_valid(settings) THEN json_extract(settings, '$.relays') END = '[]'"
)
"""Agents that publish wherever the home does. A row that does not read harms no other."""


@attrs.frozen(repr=False)
class Born:
    """What ``spawn`` has made. The phrase is shown once, and its repr is blank."""

    agent: Agent
    phrase: str

    def __repr__(self) -> str:
        return f"Born({self.agent.name!r})"


def keys_of(phrase: str) -> Keys:
    """The keys of an agent's phrase: NIP-06 for Nostr, another path for its wallet. Raises ``IdentityError``."""
    try:
        phrase = nip06.check_mnemonic(phrase)
        seed = nip06.seed(phrase)
        return Keys(nip06.nostr_key(phrase), SecretKey(nip06.derive(seed, SIMNET_PATH)))
    except ValueError:
        raise IdentityError(
            "this is not a BIP-39 seed phrase: its words or its checksum are wrong",
            "check the spelling and the order of all 12 or 24 English words",
        ) from None


class Agents:
    """See the module.

    :param runner: the home's key: the operator's, and that of ticks.
    :param relays: the home's, for agents that name none.
    :param address: the lightning address of an agent's name, where there is one (``lud16``).
    """

    def __init__(
        self,
        store: Store,
        keeper: WalletKeeper,
        clock: Clock,
        rng: random.Random,
        *,
        runner: SecretKey,
        relays: Callable[[], Sequence[str]],
        address: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        self.store = store
        self.keeper = keeper
        self.clock = clock
        self.rng = rng
        self.runner = runner
        self.address = address
        self.lifecycles: RecordTable[Lifecycle] = registry.lifecycle_records(store)
        self.on_change: list[Callable[[str], None]] = []
        """Told, after the commit, which agent has changed."""
        self.publish: Callable[[events.Event], None] = lambda event: None
        """Told what happens to agents' parts, where nothing of it is written down."""
        self._relays = relays
        self._purses: dict[str, Purse] = {}
        self._goals: dict[str, tuple[bytes, AgentState]] = {}

    @property
    def operator(self) -> str:
        """Public key of the operator, hex."""
        return self.runner.public.hex

    # --- what belongs to an agent -----------------------------------------------------------------------------

    def relays(self, agent: Agent) -> Sequence[str]:
        """Where it publishes and listens."""
        return agent.settings.relays or self._relays()

    def keys(self, agent_id: str, source: Reads | None = None) -> Keys:
        return registry.keys(source or self.store, self.store.vault, agent_id)

    def purse(self, agent_id: str) -> Purse:
        """The one way to an agent's money. Raises ``NotFound``."""
        purse = self._purses.get(agent_id)
        if purse is None:
            agent = registry.load(self.store, agent_id)
            wallet = self.keeper.wallet(self._wallet_secret(agent_id), agent.name or agent_id[:16])
            purse = Purse(wallet, self.store, self.clock, owner=agent_id, limits=self.limits)
            self._purses[agent_id] = purse
        return purse

    def _wallet_secret(self, agent_id: str) -> bytes:
        """What the keeper opens an agent's wallet with."""
        if self.keeper.seeded:
            return nip06.seed(registry.phrase(self.store, self.store.vault, agent_id))
        return self.keys(agent_id).wallet.reveal()

    def seed_of_wallet(self, wallet_id: str) -> bytes | None:
        """The BIP-39 seed of an agent's wallet, by its public id; ``None`` for a wallet that is no agent's."""
        phrase = registry.phrase_of_wallet(self.store, self.store.vault, wallet_id)
        return None if phrase is None else nip06.seed(phrase)

    def wallet(self, agent_id: str) -> Wallet:
        return self.purse(agent_id).wallet

    def account(self, owner: str) -> Account:
        """What the buyer needs to buy for an agent. Raises ``NotFound``."""
        agent = registry.load(self.store, owner)
        info = WalletInfo(
            name=agent.name or owner[:16],
            network=self.keeper.network,
            kind=self.keeper.kind,
            # On Spark it is the service that signs invoices, for everybody.
            node_pubkey="" if self.keeper.seeded else agent.wallet,
        )
        return Account(
            owner=owner,
            secret=self.keys(owner).nostr,
            purse=self.purse(owner),
            wallet=info,
            relays=agent.settings.relays or None,
        )

    def lifecycle(self, agent_id: str, source: Reads | None = None) -> Lifecycle:
        found = self.lifecycles.load(source or self.store, agent_id)
        if found is None:
            raise _no_lifecycle(agent_id)
        return found

    def state_of(self, agent_id: str, source: Reads | None = None) -> LifecycleState:
        """``lifecycle(agent_id).state``, without opening what is sealed."""
        row = (source or self.store).one("SELECT state FROM lifecycles WHERE id = ?", (agent_id,))
        if row is None:
            raise _no_lifecycle(agent_id)
        return LifecycleState(row["state"])

    def active_goals(self, agent_id: str) -> AgentState:
        """What the schedule asks of a state at every turn: its active goals, without their words.

        A state is opened once for each time that it was written, for it may be 40 kB.
        """
        stamp = registry.state_stamp(self.store, agent_id)
        known = self._goals.get(agent_id)
        if known is None or known[0] != stamp:
            goals = registry.goals(self.store, self.store.vault, agent_id)
            active = tuple(attrs.evolve(goal, description="") for goal in goals if goal.status == "active")
            known = self._goals[agent_id] = stamp, AgentState(goals=active)
        return known[1]

    def forget(self, agent_id: str) -> None:
        """Let go of what is held open for an agent; it is opened again when needed."""
        self._purses.pop(agent_id, None)
        self._goals.pop(agent_id, None)

    # --- budgets ----------------------------------------------------------------------------------------------

    def limits(self, source: Reads, spend: Spend) -> Budget:
        """What one payment may cost, as it stands in this transaction. Raises ``BudgetExceeded``, ``NotFound``."""
        agent = registry.load(source, spend.owner)
        if agent.moved or agent.deleted_at is not None:
            raise BudgetExceeded(f"{agent.name or spend.owner[:16]} is not run here any more")
        if agent.paused == registry.STOPPED:
            raise BudgetExceeded(f"{agent.name} is stopped", f"pylon agent start {agent.name}")
        chosen = agent.settings
        per_scope = chosen.budget_tick
        tick = source.one("SELECT strangers, allowance_msats FROM ticks WHERE id = ?", (spend.scope,))
        if tick is not None and tick["allowance_msats"] is not None:
            per_scope = Msat(min(per_scope, tick["allowance_msats"], self._strangers_left(source, agent, spend.scope)))
        common = Budget(
            per_scope=per_scope,
            per_day=chosen.budget_day,
            reserve=sats(chosen.lifecycle.reserve_sats),
            payee_day=chosen.payee_day,
            approve_above=chosen.approve_above,
        )
        kind = _PURPOSES.get(spend.purpose)
        if kind is None:
            return common
        if self._approved(source, spend):
            return attrs.evolve(common, per_scope=None, approve_above=None)
        grant = chosen.grant(kind)
        if grant is None:
            raise BudgetExceeded(f"no grant for {kind.value}", f"pylon agent grant {agent.name} {kind.value}")
        if tick is None or (tick["strangers"] and not grant.strangers):
            raise BudgetExceeded(f"the grant for {kind.value} does not hold where strangers have a word")
        return attrs.evolve(common, each=grant.each, purpose_day=grant.day)

    def _strangers_left(self, source: Reads, agent: Agent, tick: str) -> Msat:
        """What strangers may still cause by this tick, when it pays: an earlier one may pay later than it was asked."""
        since = self.clock.now() - DAY
        others = source.read(
            "SELECT id FROM ticks WHERE agent = ? AND created_at > ? AND allowance_msats IS NOT NULL AND id <> ?",
            (agent.id, since, tick),
        )
        spent = sum(intents.spent_in(source, row["id"]) for row in others)
        return Msat(max(0, sats(agent.settings.schedule.stranger_budget_sats) - spent))

    def _approved(self, source: Reads, spend: Spend) -> bool:
        """Whether the operator has said yes to this very action, knowing what it costs."""
        record = action_records(self.store).load(source, spend.cause)
        if record is None or not record.approved:
            return False
        return spend.amount <= sats(record.wish.sats) or record.wish.sats == 0

    # --- spawning ---------------------------------------------------------------------------------------------

    async def spawn(
        self,
        chosen: AgentSettings,
        *,
        phrase: str | None = None,
        goals: Iterable[str] = (),
        mind: AgentState | None = None,
        epoch: int = 1,
        burn: Burn | None = None,
        words: int = 12,
    ) -> Born:
        """Make an agent, or bring one that was elsewhere. Raises ``UsageError``, ``IdentityError``, ``ConfigError``.

        :param phrase: its phrase; ``None`` makes a new one.
        :param mind: what it holds in mind already.
        """
        phrase = nip06.new_mnemonic(words) if phrase is None else phrase
        secrets = keys_of(phrase)
        phrase = nip06.check_mnemonic(phrase)
        secret = nip06.seed(phrase) if self.keeper.seeded else secrets.wallet.reveal()
        wallet_id = self.keeper.wallet_id(secret)
        now = self.clock.now()
        mind = mind or AgentState()
        for goal in goals:
            mind, _ = memory.add_goal(mind, goal, priority=1, now=now)

        def job(tx: Tx) -> Agent:
            instance = self.instance(tx)
            before = tx.one("SELECT MAX(n) AS n FROM ticks WHERE agent = ?", (secrets.nostr.public.hex,))
            agent = Agent(
                id=secrets.nostr.public.hex,
                name=chosen.name,
                created_at=now,
                wallet=wallet_id,
                epoch=epoch,
                instance=instance,
                paused="",
                moved="",
                deleted_at=None,
                # One that comes back here goes on from its last tick here, or elsewhere.
                ticks=max(mind.tick_count, 0 if before is None else before["n"] or 0),
                quiet=0,
                beat=None,
                last_error="",
                settings=chosen,
                burn=burn or Burn(),
            )
            registry.insert(tx, agent, secrets, phrase)
            state = registry.with_settings(attrs.evolve(mind, instance=instance, epoch=epoch), chosen)
            state = memory.compact(state, now=now)
            registry.save_state(tx, agent.id, state)
            lifecycle = Lifecycle(id=agent.id, created_at=now, settings=chosen.lifecycle)
            tx.execute("DELETE FROM lifecycles WHERE id = ?", (agent.id,))
            self.lifecycles.begin(tx, lifecycle, Spawned(), now)
            self._introduce(tx, agent, secrets.nostr, state)
            tx.touch("agents")
            return agent

        born = await self.store.write(job)
        self._tell(born.id)
        return Born(born, phrase)

    def instance(self, tx: Tx) -> str:
        """This runner's own name: random, made once for a home."""
        known = settings.get(tx, _INSTANCE)
        if known is None:
            known = entropy.random_bytes(8).hex()
            settings.put(tx, _INSTANCE, known)
        return known

    # --- changing ---------------------------------------------------------------------------------------------

    async def change(self, agent_id: str, evolve: Callable[[AgentSettings], AgentSettings]) -> Agent:
        """Set an agent anew, from what is set now. What others see of it is published again."""

        def job(tx: Tx) -> Agent:
            before = registry.load(tx, agent_id)
            after = evolve(before.settings)
            registry.save_settings(tx, agent_id, after)
            agent = attrs.evolve(before, settings=after, name=after.name)
            secret = self.keys(agent_id, tx).nostr
            if after.publish:
                self._publish(tx, agent, "profile", lambda now: self._profile(tx, agent, secret, now))
                self._publish(tx, agent, "triggers", lambda now: publishing.triggers(tx, agent, secret, now))
            self._announce(tx, agent, secret)
            mind = registry.with_settings(registry.state(tx, tx.vault, agent_id), after)
            self.keep_mind(tx, agent, memory.compact(mind, now=self.clock.now()))
            tx.touch("agents")
            return agent

        agent = await self.store.write(job)
        self.forget(agent_id)
        self._tell(agent_id)
        return agent

    async def pause(self, agent_id: str, why: str) -> Agent:
        """``paused``, ``stopped``, or empty to let it run again."""
        return await self._mark(agent_id, "paused", why)

    async def take_over(self, agent_id: str, seen: AgentState) -> None:
        """A state of an earlier epoch was read. Where it knows more than ours (this home was restored from a backup),
        it is taken; and whoever published it is told that we run the agent now."""

        def job(tx: Tx) -> None:
            agent, ours = registry.load(tx, agent_id), registry.state(tx, tx.vault, agent_id)
            restored = settings.get(tx, f"{registry.RESTORED}{agent_id}") is not None
            newer = seen.tick_count > max(ours.tick_count, agent.ticks)
            if not (restored or newer) or seen.epoch >= agent.epoch:
                return
            tx.execute("DELETE FROM settings WHERE key = ?", (f"{registry.RESTORED}{agent_id}",))
            if newer:
                tx.execute("UPDATE agents SET ticks = ? WHERE id = ?", (seen.tick_count, agent_id))
            mind = attrs.evolve(seen if newer else ours, instance=agent.instance, epoch=agent.epoch)
            mind = registry.with_settings(mind, agent.settings)
            self.keep_mind(tx, agent, memory.compact(mind, now=self.clock.now()))

        await self.store.write(job)
        self._tell(agent_id)

    async def park(self, agent_id: str, moved: str) -> Agent:
        """It is run elsewhere now: it stays here, and neither ticks nor spends."""
        return await self._mark(agent_id, "moved", moved)

    async def _mark(self, agent_id: str, column: str, value: str) -> Agent:
        def job(tx: Tx) -> Agent:
            before = registry.load(tx, agent_id)
            tx.execute(f"UPDATE agents SET {column} = ? WHERE id = ?", (value, agent_id))
            agent = registry.load(tx, agent_id)
            if _held(agent) != _held(before):
                tx.tell(events.AgentHeld(agent=agent_id, held=_held(agent)))
            if not agent.moved:
                self._announce(tx, agent, self.keys(agent_id, tx).nostr)
            tx.touch("agents")
            return agent

        agent = await self.store.write(job)
        self._tell(agent_id)
        return agent

    async def remind(self, agent_id: str, evolve: Callable[[AgentState], AgentState]) -> AgentState:
        """Change what an agent holds in mind, as the operator; it is published as its state."""

        def job(tx: Tx) -> AgentState:
            agent = registry.load(tx, agent_id)
            mind = evolve(registry.state(tx, tx.vault, agent_id))
            mind = memory.compact(mind, now=self.clock.now())
            self.keep_mind(tx, agent, mind)
            return mind

        mind = await self.store.write(job)
        self._tell(agent_id)
        return mind

    def keep_mind(self, tx: Tx, agent: Agent, mind: AgentState) -> None:
        """Save a state and publish it."""
        registry.save_state(tx, agent.id, mind)
        if agent.settings.publish:
            secret = self.keys(agent.id, tx).nostr
            self._publish(tx, agent, "state", lambda now: publishing.state(tx, agent, secret, mind, now))

    async def delete(self, agent_id: str) -> Agent:
        """Let an agent go. Its row and keys stay, sealed: money that comes late is not lost. Its name is free again."""

        def job(tx: Tx) -> Agent:
            agent = registry.load(tx, agent_id)
            tx.execute("UPDATE agents SET deleted_at = ?, name = NULL WHERE id = ?", (self.clock.now(), agent_id))
            tx.tell(events.AgentHeld(agent=agent_id, held="deleted", name=agent.name))
            self._announce(tx, attrs.evolve(agent, deleted_at=self.clock.now()), self.keys(agent_id, tx).nostr)
            tx.touch("agents")
            return agent

        agent = await self.store.write(job)
        self.forget(agent_id)
        self._tell(agent_id)
        return agent

    # --- the lifecycle ----------------------------------------------------------------------------------------

    async def know(self, agent_id: str, spendable: Msat) -> bool:
        """A balance is known: follow the lifecycle. True if the state has changed."""
        if not self._moves(self.store, agent_id, spendable):
            return False

        def job(tx: Tx) -> bool:
            return self.know_in(tx, registry.load(tx, agent_id), spendable)

        moved = await self.store.write(job)
        if moved:
            self._tell(agent_id)
        return moved

    def know_in(self, tx: Tx, agent: Agent, spendable: Msat) -> bool:
        """``know`` within a transaction; whoever calls it tells of the change (``tell``)."""
        now = self.clock.now()
        before = self.lifecycle(agent.id, tx)
        message = self._balance(agent, spendable)
        path, effects = follow(attrs.evolve(before, settings=agent.settings.lifecycle), message)
        if not path or path[-1] == before:
            return False
        self.lifecycles.amend(tx, path[-1], now)
        if path[-1].balance != before.balance:
            tx.tell(events.WalletBalance(agent=agent.id, spendable_msats=path[-1].balance))
        for one, other in zip([before, *path], path, strict=False):
            if one.state is not other.state:
                self.lifecycles.note(tx, Step(one, other, ()), message, now)
        if LifecycleEffect.ANNOUNCE in effects:
            self._announce(tx, agent, self.keys(agent.id, tx).nostr, path[-1])
        if path[-1].state is not before.state:
            tx.touch("agents")
            return True
        return False

    def _moves(self, source: Reads, agent_id: str, spendable: Msat) -> bool:
        """Whether ``know`` would write anything."""
        agent, before = registry.load(source, agent_id), self.lifecycle(agent_id, source)
        path, _ = follow(attrs.evolve(before, settings=agent.settings.lifecycle), self._balance(agent, spendable))
        return bool(path) and path[-1] != before

    def _balance(self, agent: Agent, spendable: Msat) -> BalanceKnown:
        return BalanceKnown(spendable, agent.burn.per_day(sats(agent.settings.lifecycle.assumed_daily_burn_sats)))

    def tell(self, agent_id: str) -> None:
        """An agent has changed, and the change is committed."""
        self._tell(agent_id)

    def _tell(self, agent_id: str) -> None:
        for told in self.on_change:
            told(agent_id)

    # --- what others see --------------------------------------------------------------------------------------

    async def readdress(self) -> None:
        """Publish the profiles again whose lightning address is not what it was: the API listens elsewhere now."""

        def job(tx: Tx) -> None:
            for agent in registry.everybody(tx):
                told = outbox.newest(tx, f"{PROFILE}:{agent.id}:profile")
                if agent.settings.publish and told is not None and told.tag("lud16") != self.address(agent.name):
                    secret = self.keys(agent.id, tx).nostr
                    self._republish(tx, agent, secret)

        await self.store.write(job)

    def _republish(self, tx: Tx, agent: Agent, secret: SecretKey) -> None:
        self._publish(tx, agent, "profile", lambda now: self._profile(tx, agent, secret, now))

    async def introduce(self) -> None:
        """Have relays that are new to this home told of its agents, as they are now."""

        def job(tx: Tx) -> None:
            for relay in self._relays():
                outbox.spread(tx, relay, "agent.", _HOME_RELAYS, self.clock.now())

        await self.store.write(job)

    async def relist(self, relays: Sequence[str]) -> None:
        """Publish the relay lists (NIP-65, NIP-17) of those who publish wherever the home does, where the home has
        other relays than when this was done last: nobody must look for them where they no longer are.

        A few at a time, so that thousands keep nobody waiting.
        """
        wanted = to_json(sorted(relays))
        if not relays or settings.get(self.store, _LISTED) == wanted:
            return
        ids = [row["id"] for row in self.store.read(_HOME_RELAYS)]
        for start in range(0, len(ids), _AT_ONCE):
            batch = ids[start : start + _AT_ONCE]
            await self.store.write(functools.partial(self._relist, batch=batch, relays=relays))
        await self.store.write(lambda tx: settings.put(tx, _LISTED, wanted))

    def _relist(self, tx: Tx, batch: Sequence[str], relays: Sequence[str]) -> None:
        for agent_id in batch:
            agent = registry.load(tx, agent_id)
            if agent.settings.publish and not agent.moved:
                secret = self.keys(agent_id, tx).nostr
                lists = functools.partial(publishing.relay_lists, tx, agent, secret, relays)
                self._publish(tx, agent, "profile", lists)

    def _introduce(self, tx: Tx, agent: Agent, secret: SecretKey, mind: AgentState) -> None:
        if not agent.settings.publish:
            return
        lifecycle = self.lifecycle(agent.id, tx)
        self._publish(tx, agent, "profile", lambda now: self._profile(tx, agent, secret, now))
        self._publish(tx, agent, "schedule", lambda now: publishing.schedule(tx, agent, secret, lifecycle, now))
        self._publish(tx, agent, "triggers", lambda now: publishing.triggers(tx, agent, secret, now))
        self._publish(tx, agent, "state", lambda now: publishing.state(tx, agent, secret, mind, now))

    def _profile(self, tx: Tx, agent: Agent, secret: SecretKey, now: float) -> list[Event]:
        lud16 = self.address(agent.name)
        return [
            *publishing.profile(tx, agent, secret, operator=self.operator, lud16=lud16, now=now),
            *publishing.metadata(tx, agent, secret, lud16=lud16, now=now),
            *publishing.relay_lists(tx, agent, secret, self.relays(agent), now),
        ]

    def _announce(self, tx: Tx, agent: Agent, secret: SecretKey, lifecycle: Lifecycle | None = None) -> None:
        if agent.settings.publish:
            now_known = lifecycle or self.lifecycle(agent.id, tx)
            self._publish(tx, agent, "schedule", lambda now: publishing.schedule(tx, agent, secret, now_known, now))

    def _publish(self, tx: Tx, agent: Agent, what: str, build: Callable[[float], Sequence[Event]]) -> None:
        if agent.moved:
            return  # whoever runs it tells of it: ours would stand in the place of theirs
        now = self.clock.now()
        for event in build(now):
            outbox.add(tx, event, self.relays(agent), effect=f"agent.{what}", subject=agent.id, at=now)


def _held(agent: Agent) -> str:
    """Why it does not run, whatever its balance; empty: it may."""
    return "moved" if agent.moved else agent.paused


def _no_lifecycle(agent_id: str) -> NotFound:
    return NotFound(f"agent {agent_id[:16]} has no lifecycle", "restore a backup of the home")


def action_records(store: Store | Tx) -> RecordTable[Action]:
    """The table of actions."""
    return RecordTable(
        ACTION,
        Action,
        "actions",
        store.vault,
        lambda record: {
            "agent": record.agent,
            "tick": record.tick,
            "seq": record.seq,
            "kind": record.kind.value,
            "due": record.lapses_at if record.state is ActionState.WAITING else None,
        },
    )
