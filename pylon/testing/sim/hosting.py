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
import gc
import hashlib
import logging
import math
import random
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import orjson
import trio
from trio.testing import MockClock

from protocols import nip17
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event, sign_event
from protocols.nip90 import JobRequest
from pylon.clock import VirtualClock
from pylon.compute.purchase import PURCHASE
from pylon.daemon import books
from pylon.daemon.books import Owned
from pylon.errors import PaymentFailed, PylonError
from pylon.host import triggers
from pylon.host.acting import ACTION, ActionState
from pylon.host.host import Host, HostSettings
from pylon.host.lifecycle import may_tick
from pylon.host.registry import PAUSED, Agent
from pylon.host.settings import ActionKind
from pylon.host.ticking import TICK
from pylon.money import Msat, sats
from pylon.relays.relay import Limits
from pylon.store import intents
from pylon.store.database import Store, Tx
from pylon.store.intents import IntentState
from pylon.supervision import ChildState
from pylon.testing.relay import Faults, MemoryRelay, network, open_memory_relay
from pylon.testing.sim import host_invariants, steps
from pylon.testing.sim.chronicle import Chronicle
from pylon.testing.sim.host_invariants import HOUR, POLL
from pylon.testing.sim.host_node import HostNode
from pylon.testing.sim.node import Killed, Setting, current
from pylon.testing.sim.steps import Market, Newcomer, Plan, Relay, Wallets, Who
from pylon.testing.sim.world import determined
from pylon.testing.vendor import Manners, Vendor
from pylon.wallets.keeper import SimnetKeeper
from pylon.wallets.port import Payment, Wallet
from pylon.wallets.purse import Unknown
from pylon.wallets.simnet import Fault, SimnetLedger, SimnetWallet

log = logging.getLogger(__name__)

RELAY = "ws://relay.sim"
POISON = "poison"
"""How the words begin that break whoever handles them."""
SWEEP_SECONDS = 300.0
LISTEN_SECONDS = 150.0
"""Of calm in which everybody hears what it has missed: a half-open connection is found out after 90."""
CALM_SECONDS = 7_200.0
INVOICES = 6
"""That are there to be paid."""
EARLY, LATE = -250.0, 5 * 86_400.0
"""How wrong the home's clock may be before what it hears is rightly too old for it, or too new."""


@attrs.define
class Told:
    """What happened, for people and for the invariants."""

    seed: int
    agents: int = 0
    steps: int = 0
    ticks: int = 0
    """Quiet ones included."""
    quiet: int = 0
    thoughts: int = 0
    """Bought and answered."""
    failed: int = 0
    """Ticks that failed."""
    triggers: int = 0
    actions: int = 0
    payments: int = 0
    """Settled, of agents."""
    deaths: list[str] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)
    virtual_seconds: float = 0.0
    digest: str = ""
    """Of all steps of all records, in their order, each with its time."""
    counted: ClassVar[tuple[str, ...]] = ("ticks", "thoughts", "triggers", "actions", "payments")
    """What is added up over many seeds."""

    @property
    def ok(self) -> bool:
        return not self.broken

    def line(self) -> str:
        verdict = "ok" if self.ok else "BROKEN"
        return (
            f"seed {self.seed}: {verdict}; {self.agents} agents, {self.steps} steps: {self.ticks} ticks"
            f" ({self.quiet} quiet, {self.failed} failed), {self.thoughts} thoughts, {self.triggers} triggers,"
            f" {self.actions} actions, {self.payments} payments; {len(self.deaths)} deaths;"
            f" {self.virtual_seconds:.0f} s"
        )


@attrs.define
class Span:
    """From when to when something lasted, in Trio's time."""

    start: float
    end: float = math.inf

    @property
    def lasts(self) -> bool:
        return self.end == math.inf


@attrs.frozen
class Said:
    """Something that was said to an agent."""

    agent: str
    trigger: str
    """The id under which it waits, once it is heard."""
    event: Event
    at: float
    """Trio's time."""
    wanted: bool
    """Whether the agent listens to such."""
    poison: bool


@attrs.frozen
class Damaged:
    """A row that does not read: whose, which, what stands there else, since when."""

    agent: str
    what: str
    was: object
    span: Span


@attrs.define
class Life:
    """A life of the home, in Trio's time."""

    start: float
    overdue: tuple[str, ...]
    """Agents whose heartbeat had been missed by then."""
    end: float = math.inf


def simulate_host(seed: int) -> Told:
    """Run the plan of one seed to its end."""
    return run_plan(steps.plan_of(seed))


def run_plan(plan: Plan) -> Told:
    """Run one plan to its end. What falls over is told as broken, too."""
    told = Told(plan.seed, len(plan.agents), len(plan.steps))
    with (
        tempfile.TemporaryDirectory(prefix=f"pylon-host-{plan.seed}-") as name,
        determined(plan.seed),
        _poisonous(),
        _uncollected(),
    ):
        world = HostWorld(plan, Path(name), told)
        try:
            trio.run(world.run, clock=MockClock(autojump_threshold=0.0))
        except Exception as error:
            told.broken.append(f"fell_over: {_innermost(error)}")
    return told


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Have no garbage collected in between: what it finalizes, and when, hangs on what this process did before."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def shrink(plan: Plan) -> Plan:
    """A plan that is broken like this one and from which nothing can be taken; itself, if it is not broken."""
    broken = _names(run_plan(plan))
    smaller = True
    while broken and smaller:
        smaller = False
        for lesser in _lesser(plan):
            if broken & _names(run_plan(lesser)):
                plan, smaller = lesser, True
                break
    return plan


def _names(told: Told) -> set[str]:
    return {problem.partition(":")[0] for problem in told.broken}


def _lesser(plan: Plan) -> Iterator[Plan]:
    """Plans with one step less, or one agent."""
    for place in range(len(plan.steps)):
        yield attrs.evolve(plan, steps=(*plan.steps[:place], *plan.steps[place + 1 :]))
    for place in range(len(plan.agents) if len(plan.agents) > 1 else 0):
        yield attrs.evolve(plan, agents=(*plan.agents[:place], *plan.agents[place + 1 :]))


@contextlib.contextmanager
def _poisonous() -> Iterator[None]:
    """Whoever understands an event breaks over one that begins like this: a bug of ours that waits to be found."""
    real = triggers.understand

    def understand(event: Event, **around: Any) -> triggers.Heard | None:
        if event.content.startswith(POISON):
            raise RuntimeError("this event is poison")
        return real(event, **around)

    triggers.understand = understand
    try:
        yield
    finally:
        triggers.understand = real


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


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
        self.said: list[Said] = []
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
        self.withdrawn: dict[str, str] = {}
        """Invoices that the operator has withdrawn to, by their hashes."""
        self.asking: Counter[int] = Counter()
        """Questions of the operator's that are not answered, by the life of the home."""
        self.report: books.Report | None = None
        self.relay: MemoryRelay
        self.ledger: SimnetLedger
        self.node: HostNode
        self._friend: SimnetWallet
        self._vendors: list[Vendor] = []
        self._invoices: list[str] = []
        self._background: trio.Nursery
        self._market = Market.FINE
        self._calm = False
        self._words = 0
        self._storms = 0
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
            for number, price in enumerate(self.plan.prices):
                self._vendors.append(
                    Vendor(
                        self.relay,
                        self.ledger,
                        self.clock,
                        random.Random(rng.random()),
                        self._answer,
                        price=sats(price),
                        name=f"vendor{number}",
                    )
                )
                nursery.start_soon(self._vendors[-1].run)
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
            self._invoices.append((await self._friend.receive(amount, "please", 30 * 86_400, f"please {place}")).bolt11)
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
        self._calm = True
        self.node.plan.clear()
        self._dying.clear()
        self.ledger.clear_faults()
        self._relay_is(Relay.FINE)
        self._market_is(Market.FINE)
        self._wallets_are(Wallets.FINE)
        self._set_clock(0.0)
        self.node.cursed.clear()
        self._down = 0.0
        self._restart.set()
        await self._until(lambda: self.node.ready and not self._storms, 120.0)
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
        for payment_hash, bolt11 in self.withdrawn.items():
            await self._call(functools.partial(self._reconcile, payment_hash, bolt11))
        if self.outages:
            # What came in meanwhile is found by the sweep; the audit at the end would book it before.
            await trio.sleep_until(self.outages[-1].end + self.sweep + POLL)
        with contextlib.suppress(trio.TooSlowError):
            await self._until(lambda: not self.unfinished(), CALM_SECONDS)

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
        missing = host_invariants.carries_active(lifecycle) + enough - spendable
        if missing > 0:
            await self.wallets[agent].fund(Msat(missing))

    def unfinished(self) -> list[str]:
        """What has not come to its end yet, in words."""
        store = self.node.store
        if store is None or not self.node.ready:
            return ["the home is dead"]
        found = []
        for table, ends in (
            ("ticks", TICK.final),
            ("actions", ACTION.final | {ActionState.WAITING}),
            ("purchases", PURCHASE.final),
            ("intents", {"settled", "failed"}),
            ("deliveries", {"accepted", "refused", "cancelled", "expired"}),
        ):
            marks = ",".join("?" * len(ends))
            excused = self._excused(table)
            rows = store.read(
                f"SELECT state, COUNT(*) AS n FROM {table} WHERE state NOT IN ({marks}){excused} GROUP BY state",
                [str(state) for state in sorted(ends)],
            )
            found += [f"{row['n']} {table} are {row['state']}" for row in rows]
        return found

    def _excused(self, table: str) -> str:
        """What need not have come to its end, as a condition."""
        now = self.home_clock.now()
        # Deadlines are wall time: what was begun while the clock was ahead waits until it is there again.
        ahead = {"purchases": "deadline", "deliveries": "next_at"}.get(table) if self.jumps else None
        excused = f" AND NOT COALESCE({ahead}, 0) > {now + HOUR!r}" if ahead else ""
        if table == "deliveries":
            # Nobody keeps house here.
            excused += f" AND event_id NOT IN (SELECT event_id FROM outbox WHERE expires_at <= {now!r})"
        return excused

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
        self._count(store)
        told.broken = [*self._problems, *self._judge(store)]

    def _judge(self, store: Store) -> Iterable[str]:
        """What is broken at the end, in words."""
        return host_invariants.at_the_end(self, store)

    def _count(self, store: Store) -> None:
        def count(table: str, condition: str = "1 = 1") -> int:
            row = store.one(f"SELECT COUNT(*) AS n FROM {table} WHERE {condition}")
            return 0 if row is None else int(row["n"])

        told = self.told
        told.ticks, told.quiet = count("ticks"), count("ticks", "state = 'quiet'")
        told.failed = count("ticks", "state = 'failed'")
        told.thoughts = count("purchases", "state = 'answered'")
        told.triggers, told.actions = count("triggers"), count("actions")
        told.payments = count("intents", "state = 'settled' AND owner <> ''")
        lines = [
            f"{p.at:.6f} {p.life} {p.machine} {p.subject} {p.before} {p.message} {p.after}"
            for p in self.chronicle.passages
        ]
        told.digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

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
                self._relay_is(relay)
            case steps.Crash(turns, down):
                await self._die_after(turns, down, "a random moment")
            case steps.CrashAt(agent, point, passage, down):
                self._say(self._id(agent), self.node.secret, f"what now? {self._word()}")
                self.node.plan[point] = self.node.passages.get(point, 0) + passage
                self._down = down
            case steps.CrashAfter(agent, table, commits, turns, down):
                self._say(self._id(agent), self.node.secret, f"what now? {self._word()}")
                self._dying[table] = [commits, turns]
                self._down = down
            case steps.Restart():
                self._down = 0.0
                self.node.kill("a restart")
                self._restart.set()
            case steps.Storm():
                self._background.start_soon(self._storm, step)
            case steps.Repeat():
                self._background.start_soon(self._repeat)
            case steps.Poison(agent, count):
                for _ in range(count):
                    self._say(self._id(agent), self.people[-1], f"{POISON} {self._word()}", poison=True)
            case steps.SetClock(by):
                self._set_clock(self.home_clock.skew + by)
            case steps.MarketTurns(market):
                self._market_is(market)
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

    def heartbeats_set(self, history: host_invariants.History, agent: str) -> int:
        """How often an agent has set its own heartbeat."""
        return sum(
            action.agent == agent and action.kind is ActionKind.SET_HEARTBEAT for action in history.actions.values()
        )

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
        self.withdrawn[payment_hash] = bolt11
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
            if await self._reconcile(payment_hash, bolt11):
                return
            await trio.sleep(20.0)

    async def _hover(self, agent: str, line: str, percent: int) -> None:
        if not self.node.ready:
            return
        hibernate, low = host_invariants.lines(self._host().agents.lifecycle(agent))
        wanted = (hibernate if line == "hibernate" else low) * percent // 100
        spendable = (await self.wallets[agent].balance()).spendable
        if 0 < spendable < wanted:
            await self.wallets[agent].fund(Msat(wanted - spendable))
        elif spendable > wanted > 0:
            # The fee comes on top.
            self._begin(self._withdraw, agent, Msat((spendable - wanted) * 200 // 201))

    async def _reconcile(self, payment_hash: str, bolt11: str) -> bool:
        """Bring a withdrawal to its end; false where the wallet does not know it yet."""
        store = self.node.store
        if store is None or store.one("SELECT 1 FROM intents WHERE payment_hash = ?", (payment_hash,)) is None:
            return True
        intent = intents.by_hash(store, payment_hash)
        if intent.state is not IntentState.PENDING:
            return True
        purse = self._host().agents.purse(intent.owner)
        outcome = await purse.reconcile(intent, bolt11)
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

    # --- those who speak to agents ----------------------------------------------------------------------------

    def _say(
        self, agent: str, author: SecretKey, text: str, *, private: bool = False, ahead: int = 0, poison: bool = False
    ) -> None:
        now = int(self.clock.now()) + ahead
        if private:
            rumor = nip17.build_message(author.public, [PublicKey.from_hex(agent)], text, created_at=now)
            event = nip17.wrap_message(rumor, author, now=now, random=self.rng, for_self=False)[agent]
            trigger = rumor.id
        else:
            event = sign_event(author, kind=1, content=text, tags=[["p", agent]], created_at=now)
            trigger = event.id
        self.relay.publish(event)
        wanted = self.newcomers[agent].settings.dms if private else self.newcomers[agent].settings.mentions
        self.said.append(Said(agent, trigger, event, trio.current_time(), wanted, poison))

    async def _storm(self, storm: steps.Storm) -> None:
        agent = self._id(storm.agent)
        self._storms += 1
        for _ in range(storm.count):
            match storm.who:
                case Who.OPERATOR:
                    author = self.node.secret
                case Who.STRANGER:
                    author = self.people[1]
                case _:
                    author = self.rng.choice([self.node.secret, *self.people])
            self._say(agent, author, f"hello {self._word()}", private=storm.private, ahead=storm.ahead)
            if storm.seconds:
                await trio.sleep(storm.seconds / storm.count)
        self._storms -= 1

    async def _repeat(self) -> None:
        """Once more, twice each, over new connections."""
        faults = self.relay.faults
        faults.duplicate = 1.0
        self.relay.disconnect_all()
        for said in self.said:
            self.relay.publish(said.event)
        await trio.sleep(30.0)
        faults.duplicate = 0.0

    def _relay_is(self, relay: Relay) -> None:
        if self.relay.faults.silent:
            # What was lost on a connection that stood still is not lost on one that goes on: it breaks.
            self.relay.disconnect_all()
        faults = self.relay.faults = Faults()
        match relay:
            case Relay.DOWN:
                faults.refuse_connections = True
                self.relay.disconnect_all()
            case Relay.SILENT:
                faults.silent = True
            case Relay.FLAKY:
                faults.delay, faults.duplicate, faults.reorder, faults.lose_ok = (0.0, 0.3), 0.5, 0.5, 0.3
            case Relay.CUT:
                self.relay.disconnect_all()
            case Relay.CLOSING:
                self.relay.close_subscriptions()
            case Relay.BUSY:
                faults.refuse = "rate-limited: later"
            case _:
                pass

    # --- those who think for agents ---------------------------------------------------------------------------

    def _market_is(self, market: Market) -> None:
        self._market = market
        for vendor in self._vendors:
            vendor.up = market is not Market.DOWN
            vendor.seconds = 100.0 if market is Market.SLOW else 0.0
            vendor.manners = {Market.DEAR: Manners.DEAR, Market.LYING: Manners.FALSE}.get(market, Manners.FAIR)

    def _answer(self, job: JobRequest) -> str | None:
        if self._calm:
            return '{"thought": "all is well", "actions": []}'
        match self._market:
            case Market.SILENT:
                return None
            case Market.NOISE:
                return self.rng.choice(["what?", "{", "[1]", '{"actions": 3}', '{"actions": [{"do": "fly"}, 7]}'])
            case Market.EMPTY:
                return " "
            case _:
                return self._reply()

    def _reply(self) -> str:
        """A reply of a model that wishes for all sorts of things, allowed or not."""
        actions = [self._wish() for _ in range(self.rng.choice([0, 1, 2, 2, 3]))]
        reply: dict[str, Any] = {"actions": actions, "thought": f"thought {self._word()}"}
        if self.rng.random() < 0.5:
            reply["review_minutes"] = self.rng.choice([0, 20, 300])
        return orjson.dumps(reply).decode()

    def _wish(self) -> dict[str, Any]:
        rng, text = self.rng, f"words {self._word()}"
        to = rng.choice([self.people[0], self.people[0], self.people[1], self.node.secret]).public.hex
        match rng.choice(
            ["post", "reply", "reply", "react", "dm", "zap", "zap", "pay_invoice", "request_payment", "inward"]
        ):
            case "post":
                return {"do": "post", "text": text}
            case "reply":
                return {"do": "reply", "about": rng.randint(1, 3), "text": text}
            case "react":
                return {"do": "react", "about": rng.randint(1, 3), "text": rng.choice(["+", "🔥"])}
            case "dm":
                return {"do": "dm", "to": to, "text": text}
            case "zap":
                return {"do": "zap", "to": to, "sats": rng.choice([1, 8, 15, 500]), "text": text}
            case "pay_invoice":
                return {"do": "pay_invoice", "invoice": rng.choice(self._invoices)}
            case "request_payment":
                return {"do": "request_payment", "to": to, "sats": rng.randint(1, 9), "text": text}
            case _:
                return rng.choice(
                    [
                        {"do": "update_goal", "goal": "g1", "progress": rng.randint(0, 100)},
                        {"do": "add_memory", "text": text},
                        {"do": "set_heartbeat", "seconds": rng.choice([300, 600, 1_200])},
                        {"do": "nothing"},
                    ]
                )


def _opened(wallet: SimnetWallet) -> Callable[[], contextlib.AbstractAsyncContextManager[Wallet]]:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Wallet]:
        yield wallet

    return opened
