"""The wallets of a home, by its network: those of a simnet ledger, or Spark's.

Each network module is imported where it is needed: the Spark SDK is 50 MB, and a home on simnet has no use for it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, runtime_checkable

import attrs

from protocols import nip06
from pylon.clock import Clock
from pylon.config import Config
from pylon.identity import Identity
from pylon.money import Msat
from pylon.paths import Home
from pylon.wallets.keeper import SimnetKeeper, WalletKeeper
from pylon.wallets.port import Balance, Payment, Wallet
from pylon.wallets.simnet import SimnetLedger


@runtime_checkable
class Fundable(Protocol):
    """A wallet of a network with a faucet."""

    async def fund(self, amount: Msat) -> Payment:
        """Settled, or pending where it takes a while."""
        ...


@attrs.frozen
class Wallets:
    """What is open."""

    own: Wallet
    """The home's."""
    keeper: WalletKeeper
    """Of the agents'."""
    known: Callable[[], Awaitable[Balance | None]]
    """What the home's own wallet holds, without waiting for anybody; ``None`` where that is not known yet."""
    look_after: Callable[[], Awaitable[None]] | None = None
    """What a daemon runs for as long as it lives, where the network does not tell by itself."""
    learn_seeds: Callable[[Callable[[str], bytes | None]], None] = lambda seed_of: None
    """Told how to find the seed of an agent's wallet by its id."""


@asynccontextmanager
async def open_wallets(
    home: Home, config: Config, identity: Identity, clock: Clock, *, stays: bool = False
) -> AsyncIterator[Wallets]:
    """Open them; nobody is asked yet. Raises ``ConfigError`` for a mainnet without an API key, ``StoreError``.

    :param stays: who opens them listens, and looks after them (``Wallets.look_after``); else they are asked and closed.
    """
    if config.network == "simnet":
        async with SimnetLedger(config.simnet.ledger or home.simnet, clock=clock, rng=random.Random()) as ledger:
            wallet = ledger.wallet(identity.pubkey[:16], identity.simnet.reveal(), label=home.root.name)
            yield Wallets(wallet, SimnetKeeper(ledger), wallet.balance)
            await wallet.aclose()
        return

    from pylon.wallets.spark_fleet import FleetSettings, SparkFleet
    from pylon.wallets.spark_kit import SparkKit
    from pylon.wallets.spark_types import network_of

    kit = SparkKit(network_of(config.network), clock=clock, directory=home.spark, api_key=config.spark.api_key)
    settings = FleetSettings(client_cap=config.spark.client_wallets, sweeps_per_second=config.spark.sweeps_per_second)
    fleet = SparkFleet(kit, random.Random(), settings=settings)
    own = fleet.own(nip06.seed(identity.reveal_phrase()), identity.pubkey[:16], client=stays)

    async def known() -> Balance | None:
        return fleet.known(own.identity_pubkey)

    def learn_seeds(seed_of: Callable[[str], bytes | None]) -> None:
        fleet.seed_of = seed_of

    try:
        yield Wallets(own, fleet, known, fleet.run, learn_seeds)
    finally:
        await fleet.aclose()
