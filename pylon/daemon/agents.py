"""What can be asked of a home's agents: one function a verb, with or without a running host.

Parameters and results are JSON; amounts are ``*_msats``, ids hex, times Unix seconds. Secrets are in a result only
where the verb is named after them: ``spawn`` (once), ``reveal``, ``export``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols.nip_sa_state import Goal
from pylon.config import Config
from pylon.daemon import agent_params as reading
from pylon.daemon import agent_views as views
from pylon.daemon.control import Method, Notify
from pylon.daemon.hosting import Hosting
from pylon.errors import NotFound, PylonError, UsageError, WalletError
from pylon.files import write_private
from pylon.host import memory, migration, registry
from pylon.host.acting import Action
from pylon.host.agents import Agents
from pylon.host.deeds import DAY, Deeds, cost_of, describe
from pylon.host.host import Host
from pylon.host.registry import PAUSED, STOPPED, Agent
from pylon.host.settings import AgentSettings, check_name
from pylon.host.tick import tick_records
from pylon.host.ticking import TickRecord
from pylon.money import MAX_MSAT, Msat, format_msat
from pylon.paths import Home
from pylon.relays.pool import RelayPool
from pylon.store import approvals, intents
from pylon.store.database import Store
from pylon.wallets import budgets
from pylon.wallets.port import Balance, Wallet
from pylon.wallets.purse import Purse

_CHUNK = 200
"""Agents that are looked at before others have their turn."""


@attrs.frozen
class AgentVerbs:
    """The verbs of agents, over the parts that happen to be open."""

    home: Home
    config: Config
    hosting: Hosting
    purse: Purse
    """The home's own."""
    host: Host | None = None
    pool: RelayPool | None = None

    @property
    def agents(self) -> Agents:
        return self.hosting.agents

    @property
    def deeds(self) -> Deeds:
        return self.hosting.deeds

    @property
    def store(self) -> Store:
        return self.agents.store

    def table(self) -> dict[str, Method]:
        """The verbs by their names."""
        return {
            "agent.list": self.list,
            "agent.info": self.info,
            "agent.spawn": self.spawn,
            "agent.delete": self.delete,
            "agent.pause": self._pausing(PAUSED),
            "agent.stop": self._pausing(STOPPED),
            "agent.resume": self._pausing(""),
            "agent.start": self._pausing(""),
            "agent.fund": self.fund,
            "agent.invoice": self.invoice,
            "agent.withdraw": self.withdraw,
            "agent.reveal": self.reveal,
            "agent.tick": self.tick,
            "agent.ticks": self.ticks,
            "agent.goals": self.goals,
            "agent.goal_add": self.goal_add,
            "agent.goal_set": self.goal_set,
            "agent.memory": self.memory,
            "agent.memory_add": self.memory_add,
            "agent.memory_forget": self.memory_forget,
            "agent.approvals": self.approvals,
            "agent.approve": self.approve,
            "agent.deny": self.deny,
            "agent.set": self.set,
            "agent.grant": self.grant,
            "agent.revoke": self.revoke,
            "agent.export": self.export,
            "agent.import": self.import_,
        }

    # --- who there is -----------------------------------------------------------------------------------------

    async def list(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        """All of them, or the ``limit`` that are oldest; how many there are, and in which states, in any case."""
        limit = None if params.get("limit") is None else reading.whole(params, "limit", 0, 1_000_000)
        everybody, found = list(registry.everybody(self.store, limit)), []
        for start in range(0, len(everybody), _CHUNK):
            chunk = everybody[start : start + _CHUNK]
            facts = await self._facts(chunk)
            found += [self._view(agent, facts[agent.id]) for agent in chunk]
        states = registry.count_by_state(self.store)
        return {"agents": found, "total": sum(states.values()), "states": states}

    async def info(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        mind = registry.state(self.store, self.store.vault, agent.id)
        return {
            **await self.view(agent),
            "about": agent.settings.about,
            "goal_list": [views.goal_json(goal) for goal in mind.goals],
            "settings": views.plain(attrs.asdict(agent.settings)),
        }

    async def view(self, agent: Agent) -> dict[str, Any]:
        """An agent as users see it."""
        facts = await self._facts([agent])
        return self._view(agent, facts[agent.id])

    async def _facts(self, agents: Sequence[Agent]) -> dict[str, views.Facts]:
        """What is asked for many agents at once: of ten thousand, one by one, it would keep the caller waiting."""
        balances = await self._balances(agents)
        names, now = [agent.id for agent in agents], self.agents.clock.now()
        lifecycles, rows = registry.lifecycles(self.store, agents), registry.summaries(self.store, names)
        nearly_gone = budgets.warnings(self.store, now)
        waiting = Counter(intent.owner for intent in approvals.waiting(self.store))
        return {
            agent.id: views.Facts(
                lifecycle=lifecycles[agent.id],
                balance=balances.get(agent.wallet),
                last_tick=rows[agent.id]["last_tick"],
                goals=rows[agent.id]["goals"],
                approvals=rows[agent.id]["approvals"],
                spent_day=intents.committed(self.store, agent.id, since=now - DAY)
                if rows[agent.id]["pays"]
                else Msat(0),
                payments_waiting=waiting[agent.id],
                warnings=nearly_gone.get(agent.id, ()),
            )
            for agent in agents
        }

    def _view(self, agent: Agent, facts: views.Facts) -> dict[str, Any]:
        runner = None if self.host is None else self.host.runner(agent.id)
        children = [] if runner is None else runner.statuses()
        own = None if self.host is None else self.host.status(agent.id)
        troubled = [child for child in ([own] if own else []) + children if child.last_error]
        return views.agent_json(
            agent,
            facts,
            network=self.config.network,
            relays=self.agents.relays(agent),
            address=self.agents.address(agent.name),
            last_error=troubled[0].last_error if troubled else self._why_failed(agent),
            children=children,
        )

    def _why_failed(self, agent: Agent) -> str | None:
        """Why its last thought came to nothing, if it did."""
        tick = tick_records(self.store).load(self.store, agent.last_error) if agent.last_error else None
        return None if tick is None else tick.reason or None

    async def _balances(self, agents: Sequence[Agent]) -> dict[str, Balance]:
        """What the wallets say, by wallet; those that do not are left out."""
        try:
            return await self.agents.keeper.balances([agent.wallet for agent in agents])
        except PylonError:
            return {}

    # --- coming and going -------------------------------------------------------------------------------------

    async def spawn(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        network = params.get("network")
        if network is not None and network != self.config.network:
            raise UsageError(f"this home is on {self.config.network}, and so are its agents", "leave --network out")
        chosen = reading.settings(AgentSettings(name=check_name(reading.text(params, "name"))), params)
        phrase = None if params.get("mnemonic") is None else reading.text(params, "mnemonic")
        goals = [reading.text({"goal": goal}, "goal") for goal in reading.listed(params, "goals")]
        born = await self.agents.spawn(chosen, phrase=phrase, goals=goals)
        await self._look(born.agent.id)
        return {**await self.view(registry.load(self.store, born.agent.id)), "mnemonic": born.phrase}

    async def delete(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        if params.get("name") != agent.name:
            raise UsageError(f"to delete {agent.name}, say its name", f"pylon agent delete {agent.name}")
        balance = (await self._balances([agent])).get(agent.wallet)
        backup = self._back_up(agent)
        await self.agents.delete(agent.id)
        return {
            "name": agent.name,
            "npub": agent.npub,
            "backup": str(backup),
            "remaining_msats": None if balance is None else balance.settled,
        }

    def _back_up(self, agent: Agent) -> Path:
        """All of it, in a file that ``agent import --bundle`` reads in this home."""
        directory = self.home.data / "backups"
        directory.mkdir(mode=0o700, exist_ok=True)
        stamp = int(self.agents.clock.now())
        path = directory / f"{agent.name}-{stamp}.agent"
        write_private(path, migration.back_up(self.agents, agent.id).encode())
        return path

    def _pausing(self, why: str) -> Method:
        async def method(params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
            agent = self._agent(params)
            if agent.moved and not why:
                raise UsageError(f"{agent.name} is {agent.moved}", "import it here again, if it is to come back")
            return await self.view(await self.agents.pause(agent.id, why))

        return method

    # --- money ------------------------------------------------------------------------------------------------

    async def fund(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        amount = Msat(reading.whole(params, "amount_msats", 1, MAX_MSAT))
        source = reading.one_of({"source": "faucet", **params}, "source", ["faucet", "wallet"])
        wallet, fee = self.agents.wallet(agent.id), 0
        if source == "faucet":
            give = getattr(wallet, "fund", None)
            if give is None:
                raise UsageError(f"{self.config.network} has no faucet here", "pylon agent fund NAME --invoice")
            await give(amount)
        else:
            issued = await wallet.receive(amount, f"for {agent.name}", 3_600, key=_key(self, "fund"))
            fee = await self.hosting.withdrawals.pay(self.purse, issued.bolt11, issued.payment_hash, amount)
        await self._look(agent.id)
        view = await self.view(registry.load(self.store, agent.id))
        return {"funded_msats": amount, "fee_msats": fee, "source": source, "agent": view}

    async def invoice(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        amount = Msat(reading.whole(params, "amount_msats", 1, MAX_MSAT))
        words = f"for {agent.name}"
        if params.get("description") is not None:
            words = reading.text(params, "description")[:200] or words
        issued = await self.agents.wallet(agent.id).receive(amount, words, 86_400, key=_key(self, "invoice"))
        return {
            "bolt11": issued.bolt11,
            "payment_hash": issued.payment_hash,
            "amount_msats": issued.amount,
            "expires_at": issued.expires_at,
        }

    async def withdraw(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        purse = self.agents.purse(agent.id)
        wanted = params.get("amount_msats")
        amount = None if wanted is None else Msat(reading.whole(params, "amount_msats", 1, MAX_MSAT))
        target = params.get("to")
        if target is not None:
            text, payment_hash, amount = reading.target(reading.text(params, "to"), amount)
        else:
            amount = await self._most(purse.wallet) if amount is None else amount
            issued = await self.purse.wallet.receive(amount, f"from {agent.name}", 3_600, key=_key(self, "withdraw"))
            text, payment_hash = issued.bolt11, issued.payment_hash
        fee = await self.hosting.withdrawals.pay(purse, text, payment_hash, amount)
        await self._look(agent.id)
        view = await self.view(registry.load(self.store, agent.id))
        return {
            "withdrawn_msats": amount,
            "fee_msats": fee,
            "left_msats": view["balance_msats"],
            "agent": view,
        }

    async def _most(self, wallet: Wallet) -> Msat:
        """About the most that the wallet can send with its fee, never more. Raises ``WalletError`` where it is none."""
        spendable = Msat(max((await wallet.balance()).spendable, 0))

        async def fee(amount: int) -> int:
            if amount <= 0:
                raise WalletError(
                    f"there is nothing to withdraw: {format_msat(spendable)} can be spent, fees included",
                    "pylon agent info says what is under way",
                )
            probe = await self.purse.wallet.receive(Msat(amount), "what would it cost", 600, key=_key(self, "probe"))
            return await wallet.quote(probe.bolt11)

        # A fee grows with the amount: what the larger one costs pays for the smaller one, too.
        safe = spendable - await fee(spendable)
        better = spendable - await fee(safe)
        return Msat(better if better + await fee(better) <= spendable else safe)

    async def _look(self, agent_id: str) -> None:
        """Book what moved, and let the lifecycle follow it."""
        await self.hosting.funds.look(agent_id)

    async def reveal(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        phrase = registry.phrase(self.store, self.store.vault, agent.id)
        return {"name": agent.name, "npub": agent.npub, "mnemonic": phrase}

    # --- what it thinks ---------------------------------------------------------------------------------------

    async def tick(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        if self.host is None:
            raise UsageError("nothing runs agents here", "pylon start, or pylon start -m host")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_of, agent.id, agent.ticks, notify)
            record = await self.host.tick(agent.id)
            nursery.cancel_scope.cancel()
        return {"tick": self.tick_view(record)}

    async def _tell_of(self, agent_id: str, after: int, notify: Notify) -> None:
        """A ``tick`` notification whenever a tick after the ``after``-th has moved on."""
        told = None
        with self.store.listen("ticks") as changed:
            async for _ in changed:
                found = tick_records(self.store).where(
                    self.store, "agent = ? AND n > ? ORDER BY n DESC LIMIT 1", (agent_id, after)
                )
                for record in found:
                    if (record.id, record.state) != told and not record.quiet:
                        told = (record.id, record.state)
                        await notify("tick", self.tick_view(record))

    async def ticks(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        limit = reading.whole({"limit": 20, **params}, "limit", 1, 10_000)
        quiet = params.get("quiet") is not None and reading.flag(params, "quiet")
        condition = "" if quiet else " AND state <> 'quiet'"
        records = tick_records(self.store).where(
            self.store, f"agent = ?{condition} ORDER BY n DESC LIMIT ?", (agent.id, limit)
        )
        return {
            "ticks": [self.tick_view(record) for record in records],
            "quiet": agent.quiet,
            "total": agent.ticks,
        }

    def tick_view(self, tick: TickRecord) -> dict[str, Any]:
        """A tick as users see it. Its cost is what its payments come to now, however late they settle."""
        actions = self.deeds.of_tick(self.store, tick.id)
        return {
            "id": tick.id,
            "n": tick.n,
            "cause": tick.cause,
            "trigger": ", ".join(tick.kinds) or tick.cause,
            "state": tick.lifecycle,
            "status": tick.status,
            "cost_msats": intents.spent_in(self.store, tick.id),
            "started_at": tick.created_at,
            "ended_at": tick.ended_at,
            "provider": tick.provider,
            "purchase": None if tick.quiet else tick.purchase,
            "thought": tick.thought,
            "reason": tick.reason,
            "actions": [views.action_json(action) for action in actions],
            "events": [event for action in actions for event in action.events]
            + [row["event_id"] for row in self.store.read("SELECT event_id FROM outbox WHERE subject = ?", (tick.id,))],
        }

    async def goals(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        mind = registry.state(self.store, self.store.vault, agent.id)
        return {"goals": [views.goal_json(goal) for goal in mind.goals]}

    async def goal_add(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        words = reading.text(params, "description")
        priority = reading.whole({"priority": 1, **params}, "priority", -1_000, 1_000)
        made: dict[str, str] = {}

        def add(mind: Any) -> Any:
            mind, made["id"] = memory.add_goal(mind, words, priority=priority, now=self.agents.clock.now())
            return mind

        mind = await self.agents.remind(agent.id, add)
        return {"goal": views.goal_json(_named(mind.goals, made["id"]))}

    async def goal_set(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        mind = registry.state(self.store, self.store.vault, agent.id)
        goal = reading.by_prefix(mind.goals, reading.text(params, "id"), "goal", "pylon agent goals NAME")
        status = None if params.get("status") is None else reading.one_of(params, "status", sorted(memory.STATUSES))
        progress = None if params.get("progress") is None else reading.number(params, "progress", 0, 1)
        priority = None if params.get("priority") is None else reading.whole(params, "priority", -1_000, 1_000)

        def change(mind: Any) -> Any:
            mind = memory.update_goal(mind, goal.id, status=status, progress=progress, now=self.agents.clock.now())
            if priority is None:
                return mind
            changed = tuple(
                attrs.evolve(entry, priority=priority) if entry.id == goal.id else entry for entry in mind.goals
            )
            return attrs.evolve(mind, goals=changed)

        mind = await self.agents.remind(agent.id, change)
        return {"goal": views.goal_json(_named(mind.goals, goal.id))}

    async def memory(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        limit = reading.whole({"limit": 50, **params}, "limit", 1, 10_000)
        mind = registry.state(self.store, self.store.vault, agent.id)
        return {
            "memories": [views.memory_json(entry) for entry in mind.memory[-limit:]],
            "bytes": len(mind.to_json().encode()),
            "budget_bytes": memory.MEMORY_BUDGET,
        }

    async def memory_add(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        words = reading.text(params, "text")
        mind = await self.agents.remind(
            agent.id,
            lambda mind: memory.remember(
                mind, type="note", content=words, now=self.agents.clock.now(), relevance=1.0, origin="operator"
            ),
        )
        return {"memory": views.memory_json(max(mind.memory, key=lambda entry: entry.timestamp))}

    async def memory_forget(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        mind = registry.state(self.store, self.store.vault, agent.id)
        entry = reading.by_prefix(mind.memory, reading.text(params, "id"), "memory", "pylon agent memory NAME")

        def forget(mind: Any) -> Any:
            return attrs.evolve(mind, memory=tuple(kept for kept in mind.memory if kept.id != entry.id))

        await self.agents.remind(agent.id, forget)
        return {"forgotten": 1}

    # --- what it may ------------------------------------------------------------------------------------------

    async def approvals(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = None if params.get("agent") is None else self._agent(params)
        waiting = self.deeds.waiting(None if agent is None else agent.id)
        return {"approvals": [self._approval(action) for action in waiting]}

    def _approval(self, action: Action) -> dict[str, Any]:
        return {
            "id": action.id,
            "agent": registry.load(self.store, action.agent).name,
            "tick": action.tick,
            "kind": action.kind.value,
            "text": describe(action),
            "cost_msats": cost_of(action.wish) or None,
            "at": action.created_at,
            "expires_at": action.lapses_at,
        }

    async def approve(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        done = await self.deeds.approve(self._waiting(params).id)
        return {"approval": {"id": done.id, "state": done.state.value, "outcome": done.reason}}

    async def deny(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        reason = "" if params.get("reason") is None else reading.text(params, "reason", 500)
        done = await self.deeds.deny(self._waiting(params).id, reason)
        return {"approval": {"id": done.id, "state": done.state.value, "outcome": done.reason}}

    def _waiting(self, params: Mapping[str, Any]) -> Action:
        found: Action = reading.by_prefix(
            self.deeds.waiting(), reading.text(params, "id"), "action that waits", "pylon agent approvals"
        )
        return found

    async def set(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        if params.get("name") is not None:
            check_name(reading.text(params, "name"))
        changed = await self.agents.change(agent.id, lambda chosen: reading.settings(chosen, params))
        await self._look(agent.id)
        return await self.view(registry.load(self.store, changed.id))

    async def grant(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        grant = reading.read_grant(params)
        await self.agents.change(
            agent.id,
            lambda chosen: attrs.evolve(
                chosen, grants=(*(known for known in chosen.grants if known.action is not grant.action), grant)
            ),
        )
        return await self.view(registry.load(self.store, agent.id))

    async def revoke(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        kind = reading.action_kind(params.get("action"))
        if agent.settings.grant(kind) is None:
            raise NotFound(f"{agent.name} has no grant for {kind.value}", f"pylon agent info {agent.name}")
        await self.agents.change(
            agent.id,
            lambda chosen: attrs.evolve(
                chosen, grants=tuple(known for known in chosen.grants if known.action is not kind)
            ),
        )
        return await self.view(registry.load(self.store, agent.id))

    # --- moving -----------------------------------------------------------------------------------------------

    async def export(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        agent = self._agent(params)
        said = {"name": agent.name, "npub": agent.npub}
        match reading.one_of(params, "form", ["phrase", "bundle"]):
            case "phrase":
                return {**said, "mnemonic": registry.phrase(self.store, self.store.vault, agent.id)}
            case _:
                return {
                    **said,
                    "bundle": await migration.export_bundle(self.agents, agent.id, reading.text(params, "passphrase")),
                }

    async def import_(self, params: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
        if self.pool is None:
            raise UsageError("importing needs relays", "pylon start")

        async def tell(text: str) -> None:
            await notify("import", {"text": text})

        name = None if params.get("name") is None else check_name(reading.text(params, "name"))
        relays = tuple(reading.listed(params, "relays"))
        if params.get("bundle") is not None:
            text = reading.text(params, "bundle", reading.MAX_BUNDLE)
            found = await migration.import_bundle(
                self.agents,
                text,
                "" if migration.is_backup(text) else reading.text(params, "passphrase"),
                name=name,
                pool=self.pool,
                tell=tell,
            )
        else:
            found = await migration.import_phrase(
                self.agents, reading.text(params, "mnemonic"), name=name, relays=relays, pool=self.pool, tell=tell
            )
        await self._look(found.agent)
        agent = registry.load(self.store, found.agent)
        return {
            **await self.view(agent),
            "found": {"profile": found.profile, "schedule": found.schedule, "state": found.state},
        }

    def _agent(self, params: Mapping[str, Any]) -> Agent:
        agent = registry.find(self.store, reading.text(params, "agent"))
        if agent.deleted_at is not None:
            raise NotFound(f"{agent.npub} was deleted here", "pylon agent import brings it back")
        return agent


def _named(entries: Iterable[Goal], name: str) -> Goal:
    return next(entry for entry in entries if entry.id == name)


def _key(verbs: AgentVerbs, what: str) -> str:
    """A key for an invoice that is made once and never again."""
    from protocols import entropy

    return f"{what}:{entropy.random_bytes(12).hex()}"
