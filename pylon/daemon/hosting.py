"""The agents' half of a home, put together: with nurseries and relays in a daemon, without them in a command."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs

from pylon.clock import Clock
from pylon.config import Config
from pylon.daemon.books import Owned
from pylon.daemon.withdrawals import Withdrawals
from pylon.host import registry
from pylon.host.agents import Agents
from pylon.host.deeds import Deeds
from pylon.host.funds import AgentFunds
from pylon.host.registry import Agent
from pylon.host.zapper import Zapper
from pylon.host.zaps import Payee, PayLimits, PayService
from pylon.identity import Identity
from pylon.money import sats
from pylon.relays.pool import RelayPool
from pylon.store.database import Store
from pylon.wallets.keeper import WalletKeeper
from pylon.wallets.port import Wallet


@attrs.frozen
class Hosting:
    """What deals with agents; ``pylon.host.host`` runs them over it."""

    agents: Agents
    deeds: Deeds
    funds: AgentFunds
    pay: PayService
    withdrawals: Withdrawals

    def owned(self) -> dict[str, Owned]:
        """The agents' wallets as the audit wants them. Deleted ones are among them, for money may come late; those of
        agents that have moved are not, for another home spends from them."""
        rows = self.agents.store.read("SELECT id, wallet, created_at FROM agents WHERE moved = ''")
        return {row["id"]: Owned(row["wallet"], _opener(self.agents, row["id"]), row["created_at"]) for row in rows}


def assemble(
    config: Config,
    identity: Identity,
    store: Store,
    keeper: WalletKeeper,
    clock: Clock,
    rng: random.Random,
    *,
    relays: Callable[[], Sequence[str]],
    pool: RelayPool | None = None,
) -> Hosting:
    """Over what is open already; ``pool`` is there where relays can be asked."""
    agents = Agents(store, keeper, clock, rng, runner=identity.nostr, relays=relays)
    pay = PayService(
        _Payees(agents),
        signer=identity.nostr,
        store=store,
        relays=relays,
        clock=clock,
        limits=PayLimits(most=sats(config.api.zap_max_sats)),
    )
    agents.address = pay.lightning_address
    zapper = Zapper(
        pool,
        clock,
        network_prefix=keeper.invoice_prefix,
        allow_local=config.network == "simnet",
        relays=agents.relays,
    )
    deeds = Deeds(agents, zap_invoice=zapper, invoice_prefix=keeper.invoice_prefix)
    return Hosting(agents, deeds, AgentFunds(agents, paid_zap=pay.paid), pay, Withdrawals(store, clock))


def usual_relays(config: Config) -> list[str]:
    """Where a daemon of this home would publish: what a command puts into the outbox waits for it there."""
    own = [f"ws://{config.relay.bind}"] if config.relay.enabled and config.relay.bind.port else []
    return [*own, *config.relays]


class _Payees:
    """``pylon.host.zaps.Payees``."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def named(self, name: str) -> Payee | None:
        return self._payee(registry.by_name(self._agents.store, name))

    def keyed(self, agent: str) -> Payee | None:
        row = self._agents.store.one("SELECT id FROM agents WHERE id = ?", (agent,))
        return None if row is None else self._payee(registry.load(self._agents.store, agent))

    def _payee(self, agent: Agent | None) -> Payee | None:
        if agent is None or agent.deleted_at is not None or agent.moved:
            return None
        return Payee(agent.id, agent.name, agent.settings.about, lambda: self._agents.wallet(agent.id))


def _opener(agents: Agents, agent_id: str) -> Callable[[], AbstractAsyncContextManager[Wallet]]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Wallet]:
        yield agents.wallet(agent_id)

    return opened
