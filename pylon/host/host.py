"""Host mode: every agent of a home that may run, runs; the others are rows.

One rule starts and ends agents' nurseries: whenever an agent has changed, or its funds have, what its row says is held
against what runs. So a spawn, a deposit, a pause, a state read on a relay need no commands to each other, and a
restart is the same as any other change.

Who sleeps costs nothing here: its wallet is one among all that the keeper tells of, and a deposit starts its nursery.
"""

from __future__ import annotations

import functools
import gc
import logging
import random

import attrs
import orjson
import trio

from pylon import events
from pylon.clock import Clock
from pylon.compute.buyer import Buyer
from pylon.errors import NotFound, PylonError, UsageError, brief
from pylon.host import registry
from pylon.host.agent import Runner
from pylon.host.agents import Agents
from pylon.host.deeds import Deeds
from pylon.host.funds import AgentFunds
from pylon.host.lifecycle import LifecycleState, may_tick
from pylon.host.mailroom import Mailroom
from pylon.host.registry import PAUSED, Agent
from pylon.host.seedlock import SeedLocks
from pylon.host.tick import Ticks
from pylon.host.ticking import TickRecord
from pylon.logcontext import AGENT
from pylon.relays.pool import RelayPool
from pylon.supervision import ChildSpec, ChildState, ChildStatus, Policy, Supervisor

log = logging.getLogger(__name__)

_CLOCK_LOOK = 30.0
_CLOCK_JUMP = 5.0
"""Seconds by which the wall clock must leave the monotonic one to be called set anew."""
_LOCK_AGAIN = 5.0
_MANY = 500
"""Nurseries from which on the garbage collector is kept away from them."""
_SWEEP_CHUNK = 500
_SWEEP_AGAIN = 30.0
"""Seconds until wallets that did not say are asked again."""
_LOOKS_AT_ONCE = 16
_STARTS_WITHIN, _LOOK_SECONDS = 20.0, 0.1
"""For an agent that may run to be started: its seed may be free again only when another home has ended."""
AGENTS_POLICY = Policy(intensity=10, window=600.0)


@attrs.frozen(kw_only=True)
class HostSettings:
    thoughts_at_once: int = 16
    """How many thoughts are bought at the same time; the others wait their turn."""
    sweep_seconds: float = 300.0
    """Within this time the balance of every agent is compared with what is known of it, whatever the wallets tell."""


class Host:
    """See the module. ``run`` keeps the agents; the other methods may be called while it runs.

    :param locks: one runner for a wallet seed on one machine; ``None`` in simulations.
    """

    def __init__(
        self,
        agents: Agents,
        buyer: Buyer,
        pool: RelayPool,
        deeds: Deeds,
        funds: AgentFunds,
        *,
        locks: SeedLocks | None,
        settings: HostSettings | None = None,
    ) -> None:
        self.agents = agents
        self.settings = settings or HostSettings()
        self._store = agents.store
        self._clock: Clock = agents.clock
        self._rng: random.Random = agents.rng
        self._pool = pool
        self._locks = locks
        self._held: set[str] = set()
        self._barred: set[str] = set()
        """Whose seed another process has."""
        self.deeds = deeds
        self.mailroom = Mailroom(pool, self._clock, self._rng)
        self.funds = funds
        self.ticks = Ticks(agents, buyer, self.deeds, thoughts=trio.CapacityLimiter(self.settings.thoughts_at_once))
        self._runners: dict[str, Runner] = {}
        self._supervisor: Supervisor | None = None
        self._nursery: trio.Nursery | None = None
        self._looks = trio.CapacityLimiter(_LOOKS_AT_ONCE)
        self._young = 0
        """How many were started since nurseries were put aside."""
        self._all_aside = True
        self._dirty: dict[str, None] = {}
        self._stirred = trio.Event()
        self._wallets: dict[str, str] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all agents that may, until cancelled."""
        self.agents.on_change.append(self._stir)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._supervisor = Supervisor(nursery, rng=self._rng, policy=AGENTS_POLICY, on_failure=self._tell)
                await nursery.start(self.mailroom.run)
                await nursery.start(self.deeds.run)
                self._gather()
                await self.agents.introduce()
                await nursery.start(self._watch_wallets)
                nursery.start_soon(self._sweep)
                nursery.start_soon(self._watch_clock)
                nursery.start_soon(self._keep)
                task_status.started()
        finally:
            self.agents.on_change.remove(self._stir)
            self._supervisor = self._nursery = None
            self._runners.clear()
            for wallet in list(self._held):
                self._release(wallet)

    # --- asked from outside -----------------------------------------------------------------------------------

    def runner(self, agent_id: str) -> Runner | None:
        """The nursery of an agent that is awake."""
        return self._runners.get(agent_id)

    @property
    def running(self) -> int:
        """How many are awake."""
        return len(self._runners)

    async def caught_up(self) -> None:
        """Wait until all that are awake have heard what their relays had for them."""
        for runner in list(self._runners.values()):
            await runner.caught_up()

    def status(self, agent_id: str) -> ChildStatus | None:
        """How the agent's nursery as a whole fares."""
        if self._supervisor is None:
            return None
        return self._supervisor.status(agent_id)

    def quarantined(self) -> list[tuple[str, ChildStatus]]:
        """What has ended too often, of all that are awake: whose it is, and which part; ``nursery`` is the whole."""
        wholes = [] if self._supervisor is None else self._supervisor.statuses()
        found = [(whole.name, attrs.evolve(whole, name="nursery")) for whole in wholes]
        found += [(agent_id, part) for agent_id, runner in self._runners.items() for part in runner.statuses()]
        return [(agent_id, part) for agent_id, part in found if part.state is ChildState.QUARANTINED]

    async def tick(self, agent_id: str) -> TickRecord:
        """A tick now, whatever the schedule says. Raises ``UsageError`` for an agent that does not run."""
        runner = await self._awake(agent_id)
        done = trio.Event()
        result: list[TickRecord | BaseException] = []

        def told(outcome: TickRecord | BaseException) -> None:
            result.append(outcome)
            done.set()

        runner.ask(told)
        await done.wait()
        if isinstance(result[0], PylonError):
            raise result[0]
        if isinstance(result[0], BaseException):
            raise PylonError(f"the tick broke off ({type(result[0]).__name__})", "pylon agent ticks") from None
        return result[0]

    async def _awake(self, agent_id: str) -> Runner:
        """The nursery of an agent that may run; one that is just being started is waited for."""
        with trio.move_on_after(_STARTS_WITHIN):
            while True:
                agent, state = registry.load(self._store, agent_id), self.agents.lifecycle(agent_id).state
                runner = self._runners.get(agent_id)
                if runner is not None:
                    return runner
                if not (agent.may_run and may_tick(state)):
                    break
                await trio.sleep(_LOOK_SECONDS)
        why = agent.paused or agent.moved or state.value
        raise UsageError(f"{agent.name} does not run: {why}", f"pylon agent info {agent.name}")

    async def restart(self, agent_id: str) -> None:
        """End a quarantine, of an agent or of a part of it."""
        if self._supervisor is not None and self._runners.get(agent_id) is not None:
            await self._supervisor.restart(agent_id)

    # --- who runs ---------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Whose wallets there are, and who is to be started; sleepers are not even read."""
        self._wallets = {row["wallet"]: row["id"] for row in self._store.read("SELECT id, wallet FROM agents")}
        awake = [state.value for state in LifecycleState if may_tick(state)]
        marks = ",".join("?" * len(awake))
        for row in self._store.read(
            "SELECT a.id FROM agents a JOIN lifecycles l ON l.id = a.id WHERE a.deleted_at IS NULL AND a.paused = ''"
            f" AND a.moved = '' AND l.state IN ({marks}) ORDER BY a.created_at, a.id",
            awake,
        ):
            self._stir(row["id"])

    def _stir(self, agent_id: str) -> None:
        self._dirty[agent_id] = None
        self._stirred.set()

    async def _keep(self) -> None:
        """Hold what runs against what should, for each agent that has changed."""
        while True:
            self._stirred = trio.Event()
            while self._dirty:
                dirty, self._dirty = self._dirty, {}
                for agent_id in dirty:
                    await trio.lowlevel.checkpoint()
                    try:
                        await self._settle(agent_id)
                    except PylonError as error:
                        log.error("agent %s cannot be started or stopped: %s", agent_id[:16], error.message)
            await self._stirred.wait()

    async def _settle(self, agent_id: str) -> None:
        try:
            agent = registry.load(self._store, agent_id)
        except NotFound:
            await self._stop(agent_id)
            return
        if agent.wallet not in self._wallets:
            self._wallets[agent.wallet] = agent_id
            self._paid(agent_id)
        for url in agent.settings.relays:
            self._pool.add_relay(url)
        state = self.agents.state_of(agent_id)
        runner = self._runners.get(agent_id)
        if agent.may_run and may_tick(state):
            if runner is None:
                self._start(agent)
            else:
                runner.poke()
        else:
            self._barred.discard(agent_id)
            if runner is not None:
                await self._end(agent, runner)

    def _start(self, agent: Agent) -> None:
        assert self._supervisor is not None, "only a running host settles anything"
        if not self._acquire(agent):
            return
        runner = Runner(
            agent.id,
            agent.wallet,
            self.agents,
            self.ticks,
            self.mailroom,
            self.funds,
            zap_signer=self.agents.operator,
            invoice_prefix=self.agents.keeper.invoice_prefix,
        )
        self._runners[agent.id] = runner
        self._supervisor.start(ChildSpec(agent.id, functools.partial(_run_as, agent.name, runner)))
        self._young += 1
        self._all_aside = False
        if self._young >= _MANY:
            self._put_aside()

    async def _end(self, agent: Agent, runner: Runner) -> None:
        """A pause and a lack of funds let the tick under way end, which is paid for; all else ends at once."""
        gently = not agent.moved and agent.deleted_at is None and agent.paused in ("", PAUSED)
        if gently and runner.busy:
            runner.when_idle(lambda: self._stir(agent.id))
            return
        await self._stop(agent.id)
        if gently:
            # What its wallet told a watcher that was just being ended would be lost until the next sweep.
            self._paid(agent.id)

    async def _stop(self, agent_id: str) -> None:
        runner = self._runners.pop(agent_id, None)
        if runner is None or self._supervisor is None:
            return
        await self._supervisor.stop(agent_id)
        self._supervisor.forget(agent_id)
        self._release(runner.wallet)
        self.agents.forget(agent_id)

    def _acquire(self, agent: Agent) -> bool:
        """A wallet seed runs once on a machine."""
        if self._locks is None or agent.wallet in self._held:
            return True
        if self._locks.acquire(agent.wallet):
            self._held.add(agent.wallet)
            self._barred.discard(agent.id)
            return True
        if agent.id not in self._barred:
            log.error("agent %s runs in another home of this machine; waiting for it to end there", agent.name)
        self._barred.add(agent.id)
        return False

    def _release(self, wallet: str) -> None:
        if wallet in self._held:
            self._held.discard(wallet)
            if self._locks is not None:
                self._locks.release(wallet)

    # --- whose funds have changed -----------------------------------------------------------------------------

    async def _watch_wallets(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self.agents.keeper.changes() as changed:
            task_status.started()
            async for wallet in changed:
                agent_id = self._wallets.get(wallet)
                if agent_id is not None:
                    self._paid(agent_id)

    def _paid(self, agent_id: str) -> None:
        runner = self._runners.get(agent_id)
        if runner is not None:
            runner.paid()
        elif self._nursery is not None:
            # A task of its own: a wallet that hangs keeps nobody else from waking.
            self._nursery.start_soon(self._look, agent_id)

    async def _look(self, agent_id: str) -> None:
        async with self._looks:
            try:
                await self.funds.look(agent_id)
            except Exception as error:
                log.error("agent %s: its funds cannot be booked: %s", agent_id[:16], brief(error))

    async def _sweep(self) -> None:
        """Compare every balance with what is known of it: at once at the start, then spread over a while."""
        pause = 0.0
        while True:
            wallets, complete = list(self._wallets.items()), True
            for start in range(0, len(wallets), _SWEEP_CHUNK):
                chunk = wallets[start : start + _SWEEP_CHUNK]
                complete &= await self._compare(dict(chunk))
                await trio.sleep(pause * len(chunk) / len(wallets))
            if not complete:
                await trio.sleep(_SWEEP_AGAIN)
                continue
            if not wallets:
                await trio.sleep(self.settings.sweep_seconds)
            pause = self.settings.sweep_seconds

    async def _compare(self, wallets: dict[str, str]) -> bool:
        """Have those looked at whose balance is another one; false where the wallets do not say."""
        try:
            balances = await self.agents.keeper.balances(list(wallets))
        except Exception as error:
            log.warning("the wallets do not say what they hold: %s", brief(error))
            return False
        rows = self._store.read(
            "SELECT id, balance_msats FROM lifecycles WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(wallets.values())).decode(),),
        )
        known = {row["id"]: row["balance_msats"] for row in rows}
        for wallet, balance in balances.items():
            if known.get(wallets[wallet], balance.spendable) != balance.spendable:
                self._paid(wallets[wallet])
        return True

    # --- the clock --------------------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """A wall clock that was set anew, or a machine that has slept: everybody decides anew."""
        apart = self._clock.now() - self._clock.monotonic()
        waiting = self._clock.monotonic()
        while True:
            await trio.sleep(_CLOCK_LOOK)
            now_apart = self._clock.now() - self._clock.monotonic()
            if abs(now_apart - apart) > _CLOCK_JUMP:
                log.warning("the clock was set by %+.0f s", now_apart - apart)
                for runner in self._runners.values():
                    runner.poke()
            apart = now_apart
            if self._clock.monotonic() - waiting >= _LOCK_AGAIN:
                waiting = self._clock.monotonic()
                self._try_locked_again()
            if not self._all_aside and len(self._runners) >= _MANY:
                # Once more for those who were only starting the last time.
                self._put_aside()
                self._all_aside = True

    def _try_locked_again(self) -> None:
        for agent_id in self._barred:
            self._stir(agent_id)

    def _tell(self, status: ChildStatus, error: BaseException | None) -> None:
        log.error("agent %s: its nursery ended: %s", status.name[:16], status.last_error or "cleanly")
        self.agents.publish(events.child_ended("nursery", status.starts, status.state, agent=status.name))

    def _put_aside(self) -> None:
        """Have the garbage collector pass over the nurseries that are there.

        Those of ten thousand agents are two million objects: to find out that none of them is garbage takes a second,
        in which no tick begins. A nursery that ends goes by its reference counts.
        """
        self._young = 0
        gc.collect()
        gc.freeze()


async def _run_as(name: str, runner: Runner) -> None:
    """What is logged from here on bears the agent's name."""
    AGENT.set(name)
    await runner.run()
