"""A home with agents for one plan: what is done to it step by step, and how it ends.

The home is the real one over the simulated network (``HostNode``); around it are a relay, a ledger and vendors that
are always right about the time. Only the home's clock is set forwards and backwards, as clocks of machines are.

While the steps are done, the invariants that concern a moment are looked at after each of them. Then everything is
well again for a while: all hear, nobody begins anything new, and all must come to its end. ``host_invariants`` says
what must hold.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip90 import JobRequest
from pylon.clock import VirtualClock
from pylon.daemon import books
from pylon.daemon.books import Owned
from pylon.errors import PaymentFailed, PylonError
from pylon.host.host import Host, HostSettings
from pylon.host.lifecycle import may_tick
from pylon.host.registry import PAUSED, Agent
from pylon.money import Msat, sats
from pylon.relays.relay import Limits
from pylon.store import intents
from pylon.store.database import Store, Tx
from pylon.store.intents import IntentState
from pylon.supervision import ChildState
from pylon.testing.relay import Faults, MemoryRelay, network, open_memory_relay
from pylon.testing.sim import host_invariants, steps
from pylon.testing.sim.chronicle import Chronicle
from pylon.testing.sim.crowd import POISON, Crowd
from pylon.testing.sim.history import carries_active, lines
from pylon.testing.sim.host_invariants import POLL
from pylon.testing.sim.host_node import HostNode
from pylon.testing.sim.node import Killed, Setting, current
from pylon.testing.sim.steps import Market, Newcomer, Plan, Relay, Wallets
from pylon.testing.sim.thinkers import Thinkers
from pylon.testing.sim.told import Damaged, Life, Span, Told
from pylon.testing.vendor import Vendor
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.port import Payment, Wallet
from pylon.wallets.purse import Unknown
from pylon.wallets.simnet import Fault, SimnetLedger, SimnetWallet

log = logging.getLogger(__name__)

RELAY = "ws://relay.sim"
SWEEP_SECONDS = 300.0
LISTEN_SECONDS = 150.0
"""Of calm in which everybody hears what it has missed: a half-open connection is found out after 90."""
CALM_SECONDS = 7_200.0
INVOICES = 6
"""That are there to be paid."""
EARLY, LATE = -250.0, 5 * 86_400.0
"""How wrong the home's clock may be before what it hears is rightly too old for it, or too new."""


class HostWorld:
    """See the module."""

    def __init__(self, plan: Plan, directory: Path, told: Told) -> None:
        self.plan = plan
        self.told = told
        self.sweep = SWEEP_SECONDS
        self.rng = random.Random(plan.seed)
        self.directory = directory
        self.clock = VirtualClock()
        self.home_clock = VirtualClock()
        self.chronicle = Chronicle()
        self.people = [SecretKey(self.rng.randbytes(32)) for _ in range(4)]
        """The first is everybody's friend; the others are strangers."""
        self.ids: list[str] = []
        self.newcomers: dict[str, Newcomer] = {}
        self.wallets: dict[str, SimnetWallet] = {}
        """The bare ones, which no outage and no death keeps silent."""
        self.moved_at: dict[str, float] = {}
        """When there was news of a wallet last, by its id."""
        self.outages: list[Span] = []
        """When no wallet said what it held."""
        self.jumps: list[float] = []
        """When the home's clock was set."""
        self.odd_until = 0.0
        """Until when what was said may rightly have been too old for the home, or too new."""
        self.damaged: dict[str, Damaged] = {}
        self.repaired: list[Damaged] = []
        self.harmed: set[str] = set()
        """Agents of which a row did not read, ever."""
        self.pauses: dict[str, list[Span]] = defaultdict(list)
        self.paused_at: dict[str, float] = {}
        """When an agent was last paused or let go."""
        self.marked: Counter[str] = Counter()
        """How often an agent was paused and let go; and how often perhaps, for the home died over it."""
        self.maybe_marked: Counter[str] = Counter()
        self.lives: list[Life] = []
        self.payments: dict[str, list[Payment]] = {}
        self.withdrawn: list[str] = []
        """Hashes of the invoices that the operator has withdrawn to."""
        self.asking: Counter[int] = Counter()
        """Questions of the operator's that are not answered, by the life of the home."""
        self.report: books.Report | None = None
        self.relay: MemoryRelay
        self.ledger: SimnetLedger
        self.node: HostNode
        self.crowd: Crowd
        self.thinkers: Thinkers
        self._friend: SimnetWallet
        self._background: trio.Nursery
        self._words = 0
        self._down = 1.0
        self._restart = trio.Event()
        self._dying: dict[str, list[int]] = {}
        self._problems: dict[str, None] = {}

    # --- from the beginning to the end ------------------------------------------------------------------------

    async def run(self) -> None:
        rng = self.rng
        async with (
            open_memory_relay(
                RELAY,
                clock=self.clock,
                faults=Faults(),
                random=random.Random(rng.random()),
                limits=Limits(ping_interval=600.0),
            ) as self.relay,
            SimnetLedger(
                self.directory / "simnet.db",
                clock=self.clock,
                rng=random.Random(rng.random()),
                poll_seconds=None,
                durable=False,
            ) as self.ledger,
            trio.open_nursery() as nursery,
        ):
            self._background = nursery
            self._friend = self.ledger.wallet("friend", rng.randbytes(32))
            drawn = [random.Random(rng.random()) for _ in self.plan.prices]
            self.node = HostNode(
                "home",
                Setting(self.directory, self.home_clock, self.ledger, network(self.relay), (RELAY,)),
                random.Random(rng.random()),
                settings=HostSettings(thoughts_at_once=self.plan.thoughts_at_once, sweep_seconds=self.sweep),
                zap_invoice=self._zap_invoice,
                chronicle=self.chronicle,
                begins=self._note_life,
            )
            self.chronicle.told = self._committed
            operator = self.node.secret
            self.thinkers = Thinkers(rng, operator=operator, people=self.people, word=self._word)
            self.crowd = Crowd(
                self.relay,
                self.clock,
                rng,
                operator=operator,
                people=self.people,
                newcomers=self.newcomers,
                word=self._word,
            )
            for number, (price, chance) in enumerate(zip(self.plan.prices, drawn, strict=True)):
                vendor = Vendor(
                    self.relay,
                    self.ledger,
                    self.clock,
                    chance,
                    self._answer,
                    price=sats(price),
                    name=f"vendor{number}",
                )
                self.thinkers.vendors.append(vendor)
                nursery.start_soon(vendor.run)
            nursery.start_soon(self._watch_ledger)
            nursery.start_soon(self._keep_alive)
            await self._settle_in()
            await self._live_through()
            await self._calm_down()
            await self._account()
            nursery.cancel_scope.cancel()

    async def _keep_alive(self) -> None:
        """Start the home, and again whenever it has died, after a while."""
        while True:
            await self.node.live()
            self.lives[-1].end = self.node.ended_at
            self.told.deaths.extend(self.node.deaths)
            self.node.deaths.clear()
            self._restart = trio.Event()
            with trio.move_on_after(self._down):
                await self._restart.wait()

    def _note_life(self, store: Store) -> None:
        """A life begins: whose heartbeats were missed?"""
        now = self.home_clock.now()
        rows = store.read(
            "SELECT a.id, a.beat FROM agents a JOIN lifecycles l ON l.id = a.id"
            " WHERE l.state IN ('active', 'low_balance') AND a.paused = '' AND a.beat IS NOT NULL ORDER BY a.id"
        )
        missed = tuple(row["id"] for row in rows if row["beat"] < now - 61.0)
        self.lives.append(Life(trio.current_time(), missed))

    async def _watch_ledger(self) -> None:
        async with self.ledger.changes() as changed:
            async for wallet in changed:
                self.moved_at[wallet] = trio.current_time()

    async def _settle_in(self) -> None:
        """Spawn everybody, with the funds that they have from the beginning."""
        await self._until(lambda: self.node.ready, 30.0)
        for place in range(INVOICES):
            amount = sats(self.rng.randint(3, 20))
            issued = await self._friend.receive(amount, "please", 30 * 86_400, f"please {place}")
            self.thinkers.invoices.append(issued.bolt11)
        agents = self._host().agents
        for number, newcomer in enumerate(self.plan.agents):
            trusted = (self.people[0].public.hex,)
            chosen = attrs.evolve(newcomer.settings, name=f"agent{number}", trusted=trusted)
            goals = [f"goal {place} of agent {number}" for place in range(newcomer.goals)]
            agent = (await agents.spawn(chosen, goals=goals)).agent
            self.ids.append(agent.id)
            self.newcomers[agent.id] = attrs.evolve(newcomer, settings=chosen)
            self.wallets[agent.id] = self.ledger.wallet(chosen.name, agents.keys(agent.id).wallet.reveal())
            if newcomer.funds:
                await self.wallets[agent.id].fund(sats(newcomer.funds))

    async def _live_through(self) -> None:
        """What happens to the home."""
        for step in self.plan.steps:
            await self._do(step)
            self._look_round()

    async def _calm_down(self) -> None:
        """All is well again: everybody hears, then nobody begins anything new, and all must come to its end."""
        self.thinkers.calm = True
        self.node.plan.clear()
        self._dying.clear()
        self.ledger.clear_faults()
        self.crowd.relay_is(Relay.FINE)
        self.thinkers.market_is(Market.FINE)
        self._wallets_are(Wallets.FINE)
        self._set_clock(0.0)
        self.node.cursed.clear()
        self._down = 0.0
        self._restart.set()
        await self._until(lambda: self.node.ready and not self.crowd.storms, 120.0)
        for agent in list(self.damaged):
            await self._damage(agent, "")
        for agent in self.ids:
            await self._pause(agent, False)
            await self._wake(agent)
        agents = self._host().agents
        with contextlib.suppress(trio.TooSlowError):
            awake = [agent for agent in self.ids if agent not in self.damaged]
            await self._until(
                lambda: all(may_tick(agents.lifecycle(agent).state) for agent in awake), SWEEP_SECONDS + 2 * POLL
            )
        await trio.sleep(LISTEN_SECONDS)
        self._look_round()
        for agent in self.ids:
            await self._pause(agent, True)
        for payment_hash in self.withdrawn:
            await self._call(functools.partial(self._reconcile, payment_hash))
        if self.outages:
            # What came in meanwhile is found by the sweep; the audit at the end would book it before.
            await trio.sleep_until(self.outages[-1].end + self.sweep + POLL)
        with contextlib.suppress(trio.TooSlowError):
            await self._until(lambda: not host_invariants.unfinished(self), CALM_SECONDS)

    async def _wake(self, agent: str) -> None:
        """See to it that an agent is awake, and hears."""
        host = self._host()
        runner = host.runner(agent)
        if runner is not None and any(status.state is ChildState.QUARANTINED for status in runner.statuses()):
            await self._call(lambda: host.restart(agent))
        lifecycle = host.agents.lifecycle(agent)
        spendable = (await self.wallets[agent].balance()).spendable
        chosen = self.newcomers[agent].settings
        # What it still may spend must not send it to sleep; and its burn may not be known yet.
        enough = chosen.budget_day + sats(8 * chosen.lifecycle.assumed_daily_burn_sats)
        missing = carries_active(lifecycle) + enough - spendable
        if missing > 0:
            await self.wallets[agent].fund(Msat(missing))

    async def _account(self) -> None:
        """Ask everybody for the accounts, count, and judge."""
        told = self.told
        told.virtual_seconds = trio.current_time()
        store = self.node.store
        if store is None or not self.node.ready:
            told.broken = [*self._problems, "comes_to_rest: the home is dead"]
            return
        self.chronicle.read(store, trio.current_time())
        for agent, wallet in self.wallets.items():
            self.payments[agent] = await wallet.payments(limit=100_000)
        owned = {agent: Owned(wallet.node_pubkey, _opened(wallet)) for agent, wallet in self.wallets.items()}
        self.report = await books.audit(
            store, self.node.bare_wallet(), self.clock, keeper=SimnetKeeper(self.ledger), agents=owned
        )
        told.count(store, self.chronicle)
        told.broken = [*self._problems, *self._judge(store)]

    def _judge(self, store: Store) -> Iterable[str]:
        """What is broken at the end, in words."""
        return host_invariants.at_the_end(self, store)

    def _look_round(self) -> None:
        for problem in host_invariants.at_any_moment(self):
            self._problems[problem] = None

    async def _until(self, condition: Callable[[], Any], seconds: float) -> None:
        """Raises ``TooSlowError`` where ``condition`` is not fulfilled in time."""
        with trio.fail_after(seconds):
            while True:
                if condition():
                    return
                await trio.sleep(0.5)

    # --- one step ---------------------------------------------------------------------------------------------

    async def _do(self, step: steps.Step) -> None:
        match step:
            case steps.Wait(seconds):
                await trio.sleep(seconds)
            case steps.Fund(agent, amount):
                await self.wallets[self._id(agent)].fund(sats(amount))
            case steps.Withdraw(agent, amount):
                self._begin(self._withdraw, self._id(agent), sats(amount))
            case steps.Hover(agent, line, percent):
                await self._hover(self._id(agent), line, percent)
            case steps.Outage(wallets):
                self._wallets_are(wallets)
            case steps.PaymentFault(kind, seconds, ends):
                self.ledger.inject(Fault(kind, seconds=seconds, ends=ends))
            case steps.RelayTrouble(relay):
                self.crowd.relay_is(relay)
            case steps.Crash(turns, down):
                await self._die_after(turns, down, "a random moment")
            case steps.CrashAt(agent, point, passage, down):
                self.crowd.say(self._id(agent), self.node.secret, f"what now? {self._word()}")
                self.node.plan[point] = self.node.passages.get(point, 0) + passage
                self._down = down
            case steps.CrashAfter(agent, table, commits, turns, down):
                self.crowd.say(self._id(agent), self.node.secret, f"what now? {self._word()}")
                self._dying[table] = [commits, turns]
                self._down = down
            case steps.Restart():
                self._down = 0.0
                self.node.kill("a restart")
                self._restart.set()
            case steps.Storm():
                self._background.start_soon(self.crowd.storm, self._id(step.agent), step)
            case steps.Repeat():
                self._background.start_soon(self.crowd.repeat)
            case steps.Poison(agent, count):
                for _ in range(count):
                    self.crowd.say(self._id(agent), self.people[-1], f"{POISON} {self._word()}", poison=True)
            case steps.SetClock(by):
                self._set_clock(self.home_clock.skew + by)
            case steps.MarketTurns(market):
                self.thinkers.market_is(market)
            case steps.Rush(agent, count):
                for _ in range(count):
                    self._begin(self._buy, self._id(agent))
            case steps.Decide(yes):
                self._begin(self._decide, yes)
            case steps.Ask(agent):
                self._background.start_soon(self._ask, self._id(agent))
            case steps.Pause(agent, on):
                await self._pause(self._id(agent), on)
            case steps.Curse(agent, on):
                (self.node.cursed.add if on else self.node.cursed.discard)(self._id(agent))
            case steps.Damage(agent, what):
                await self._damage(self._id(agent), what)
        # What was begun is under way before the next step, as far as no time has to pass for it.
        await trio.sleep(0.001)

    def _id(self, number: int) -> str:
        return self.ids[number % len(self.ids)]

    def _word(self) -> int:
        """No two texts are alike, so that no two events are."""
        self._words += 1
        return self._words

    def _host(self) -> Host:
        assert self.node.host is not None, "it has lived"
        return self.node.host

    def _begin(self, what: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Have the home do something while we go on."""
        self._background.start_soon(self._call, functools.partial(what, *arguments))

    async def _call(self, what: Callable[[], Awaitable[Any]]) -> Any:
        """Do something in the home's name; ``None`` where it is dead, dies meanwhile, or refuses."""
        node, life = self.node, self.chronicle.life
        if not node.ready:
            return None
        result: list[Any] = []

        async def act() -> None:
            current.set(node)
            try:
                result.append(await what())
            except (PylonError, TimeoutError) as error:
                log.info("the home refuses: %s", error)
            except Killed:
                if node.ready and self.chronicle.life == life:
                    raise

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
        return result[0] if result else None

    def _answer(self, job: JobRequest) -> str | None:
        return self.thinkers.answer(job)

    # --- the home's money -------------------------------------------------------------------------------------

    async def _withdraw(self, agent: str, amount: Msat) -> None:
        host, store, life = self._host(), self.node.store, self.chronicle.life
        purse = host.agents.purse(agent)
        spendable = (await purse.wallet.balance()).spendable
        amount = Msat(min(amount, spendable - self.ledger.fees().fee(spendable)))
        if amount <= 0 or store is None:
            return
        issued = await self._friend.receive(amount, "withdrawn", 3_600, f"withdrawn {self._word()}")
        payment_hash, bolt11 = issued.payment_hash, issued.bolt11
        self.withdrawn.append(payment_hash)
        await store.write(
            lambda tx: purse.reserve(
                tx,
                cause=f"withdrawal:{payment_hash}",
                bolt11=bolt11,
                payment_hash=payment_hash,
                amount=amount,
                purpose=intents.WITHDRAWAL,
            )
        )
        while self.chronicle.life == life:
            if await self._reconcile(payment_hash):
                return
            await trio.sleep(20.0)

    async def _hover(self, agent: str, line: str, percent: int) -> None:
        if not self.node.ready:
            return
        hibernate, low = lines(self._host().agents.lifecycle(agent))
        wanted = (hibernate if line == "hibernate" else low) * percent // 100
        spendable = (await self.wallets[agent].balance()).spendable
        if 0 < spendable < wanted:
            await self.wallets[agent].fund(Msat(wanted - spendable))
        elif spendable > wanted > 0:
            # The fee comes on top.
            self._begin(self._withdraw, agent, Msat((spendable - wanted) * 200 // 201))

    async def _reconcile(self, payment_hash: str) -> bool:
        """Bring a withdrawal to its end; false where the wallet does not know it yet."""
        store = self.node.store
        if store is None or store.one("SELECT 1 FROM intents WHERE payment_hash = ?", (payment_hash,)) is None:
            return True
        intent = intents.by_hash(store, payment_hash)
        if intent.state is not IntentState.PENDING:
            return True
        purse = self._host().agents.purse(intent.owner)
        outcome = await purse.reconcile(intent)
        if isinstance(outcome, Unknown):
            return False
        await store.write(lambda tx: purse.record(tx, intent, outcome))
        return True

    async def _buy(self, agent: str) -> None:
        buyer = self.node.buyer
        assert buyer is not None, "it has lived"
        await buyer.buy(f"what else? {self._word()}", bid=sats(20), max_tokens=64, owner=agent)

    async def _zap_invoice(
        self, agent: Agent, secret: SecretKey, to: str, amount: Msat, comment: str, note: Event | None
    ) -> str:
        await trio.sleep(self.rng.choice([0.0, 1.0]))
        if self.rng.random() < 0.1:
            raise PaymentFailed("nobody answers there")
        return (await self._friend.receive(amount, comment, 600, f"zap {self._word()}")).bolt11

    def _wallets_are(self, wallets: Wallets) -> None:
        silent = wallets is not Wallets.FINE
        if self.outages and self.outages[-1].lasts and not silent:
            self.outages[-1].end = trio.current_time()
        if silent and not (self.outages and self.outages[-1].lasts):
            self.outages.append(Span(trio.current_time()))
        self.node.outage = wallets is Wallets.MUTE
        self.node.unreachable = wallets is Wallets.DEAD

    # --- the home's life --------------------------------------------------------------------------------------

    async def _die_after(self, turns: int, down: float, why: str) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        self._down = down
        self.node.kill(why)

    def _committed(self, table: str) -> None:
        left = self._dying.get(table)
        if left is None:
            return
        left[0] -= 1
        if left[0] <= 0:
            del self._dying[table]
            self._background.start_soon(self._die_after, left[1], self._down, f"after a commit of {table}")

    def _set_clock(self, skew: float) -> None:
        if skew == self.home_clock.skew:
            return
        self.home_clock.skew = skew
        self.jumps.append(trio.current_time())
        if not EARLY < skew < LATE:
            self.odd_until = math.inf
        elif self.odd_until == math.inf:
            self.odd_until = trio.current_time()

    async def _pause(self, agent: str, on: bool) -> None:
        if not self.node.ready:
            return
        agents, spans = self._host().agents, self.pauses[agent]
        if spans and spans[-1].lasts and not on:
            spans[-1].end = trio.current_time()
        self.paused_at[agent] = trio.current_time()
        if await self._call(lambda: agents.pause(agent, PAUSED if on else "")) is None:
            self.maybe_marked[agent] += 1
            return
        self.marked[agent] += 1
        if on and not (spans and spans[-1].lasts):
            spans.append(Span(trio.current_time()))

    async def _ask(self, agent: str) -> None:
        host, life = self._host(), self.chronicle.life
        if self.node.ready:
            self.asking[life] += 1
            await self._call(lambda: host.tick(agent))
            self.asking[life] -= 1

    async def _decide(self, yes: bool) -> None:
        deeds = self._host().deeds
        for action in deeds.waiting():
            await (deeds.approve(action.id) if yes else deeds.deny(action.id, "no"))

    async def _damage(self, agent: str, what: str) -> None:
        """Make a row unreadable; the second time, as it was."""
        store, host = self.node.store, self._host()
        known = self.damaged.get(agent)
        what = what if known is None else known.what
        table, key = ("agents", "id") if what == "settings" else ("agent_states", "agent")
        spoilt: object = "{" if what == "settings" else b"\x00"

        def job(tx: Tx) -> list[object]:
            row = tx.one(f"SELECT {what} AS was FROM {table} WHERE {key} = ?", (agent,))
            assert row is not None, "it is there"
            tx.execute(
                f"UPDATE {table} SET {what} = ? WHERE {key} = ?", (spoilt if known is None else known.was, agent)
            )
            return [row["was"]]

        if store is None:
            return
        was = await self._call(lambda: store.write(job))
        if was is None:
            return
        if known is None:
            self.damaged[agent] = Damaged(agent, what, was[0], Span(trio.current_time()))
            self.harmed.add(agent)
            return
        del self.damaged[agent]
        known.span.end = trio.current_time()
        self.repaired.append(known)
        # What was quarantined meanwhile is the operator's to let go.
        await self._call(lambda: host.restart(agent))


def _opened(wallet: SimnetWallet) -> Callable[[], contextlib.AbstractAsyncContextManager[Wallet]]:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Wallet]:
        yield wallet

    return opened
