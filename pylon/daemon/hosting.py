"""The agents' half of a home, put together: with nurseries and relays in a daemon, without them in a command."""

from __future__ import annotations

import functools
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
from pylon.provider import zaps
from pylon.relays.pool import RelayPool
from pylon.store.database import Store, Tx
from pylon.wallets.keeper import WalletKeeper
from pylon.wallets.port import IssuedInvoice, Wallet

HOME_NAME = "pylon"
"""What stands before the @ of the home's own lightning address."""


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
    seller: Wallet | None = None,
) -> Hosting:
    """Over what is open already; ``pool`` is there where relays can be asked.

    :param seller: the home's own wallet, where it sells: then its customers may pay by zapping it.
    """
    own = None
    if seller is not None:
        own = Payee(identity.pubkey, HOME_NAME, config.provider.description, lambda: seller)
    agents = Agents(store, keeper, clock, rng, runner=identity.nostr, relays=relays)
    pay = PayService(
        _Payees(agents, own),
        signer=identity.nostr,
        store=store,
        relays=relays,
        clock=clock,
        limits=PayLimits(most=sats(config.api.zap_max_sats)),
        issued=functools.partial(note_sale, identity.pubkey),
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


def note_sale(own: str, tx: Tx, payee: str, issued: IssuedInvoice, zap_request: str | None) -> None:
    """What is zapped to the home itself may pay for a sale."""
    if payee == own and zap_request is not None:
        zaps.note(tx, issued.payment_hash, zap_request, at=tx.clock.now(), expires_at=issued.expires_at)


class _Payees:
    """``pylon.host.zaps.Payees``: the agents, and the home itself where it sells. A name is an agent's first."""

    def __init__(self, agents: Agents, own: Payee | None = None) -> None:
        self._agents = agents
        self._own = own

    def named(self, name: str) -> Payee | None:
        found = self._payee(registry.by_name(self._agents.store, name))
        return self._own if found is None and self._own is not None and name == self._own.name else found

    def keyed(self, agent: str) -> Payee | None:
        if self._own is not None and agent == self._own.agent:
            return self._own
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
