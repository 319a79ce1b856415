"""The market on Spark: whole homes over the pretended network, each with the wallet of its own phrase."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from protocols import nip06
from pylon import config as configuration
from pylon import identity
from pylon.clock import SystemClock
from pylon.compute.purchase import PurchaseState
from pylon.config_values import Bind
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.money import sats
from pylon.paths import Home
from pylon.testing.backend import ScriptedBackend
from pylon.testing.spark import FakeSpark
from pylon.wallets import spark_kit
from pylon.wallets.bridge import InlineBridge
from pylon.wallets.spark_fleet import SparkFleet
from pylon.wallets.spark_types import REGTEST


@pytest.fixture
def network(monkeypatch):
    made = FakeSpark(SystemClock())
    real = spark_kit.SparkKit.__init__

    def init(self, *args, **options):
        real(self, *args, **{**options, "bridge": InlineBridge(), "sdk": made, "fresh_seconds": 0.2, "durable": False})

    monkeypatch.setattr(spark_kit.SparkKit, "__init__", init)
    fleet = SparkFleet.__init__

    def brisk(self, *args, settings, **options):
        # A deposit that nobody tells of is found within minutes; nobody here waits for that.
        brisk = attrs.evolve(settings, sweep_seconds=0.5, sweeps_per_second=20.0)
        fleet(self, *args, settings=brisk, **options)

    monkeypatch.setattr(SparkFleet, "__init__", brisk)
    return made


@pytest.fixture
def make(tmp_path):
    def make(name: str, **changes):
        home = Home(tmp_path / name)
        identity.create(home, now=1.0)
        config = configuration.Config(network="testnet", relays=(), **changes)
        relay = attrs.evolve(config.relay, bind=Bind("127.0.0.1", 0))
        return home, attrs.evolve(config, relay=relay)

    return make


@asynccontextmanager
async def opened(home, config, **options):
    with trio.fail_after(30):
        async with open_runtime(home, config, **options) as runtime:
            yield runtime


async def verb(runtime, verb_name, **params):
    async def notify(method, data):
        pass

    return await Verbs.of(runtime).table()[verb_name](params, notify)


async def until(look, wanted):
    while True:
        found = await look()
        if wanted(found):
            return found
        await trio.sleep(0.05)


async def test_one_home_sells_to_another(network, make):
    seller, terms = make("seller", min_price_msats=6_500)
    async with opened(seller, terms, mode="provider", backend=ScriptedBackend("blue")) as selling:
        buyer, config = make("buyer")
        config = attrs.evolve(config, relays=tuple(selling.pool.urls), relay=attrs.evolve(config.relay, enabled=False))
        async with opened(buyer, config) as buying:
            wallet = buying.wallet.identity_pubkey
            seed = nip06.seed(identity.load(buyer).reveal_phrase())
            assert wallet == buying.hosting.agents.keeper.wallet_id(seed)
            await network.deposit(wallet, 1_000)
            record = await verb(buying, "job.submit", prompt="sky?", bid_msats=sats(20), max_tokens=8, wait=True)
            assert (record["state"], record["text"]) == (PurchaseState.ANSWERED, "blue")
            assert record["paid_msats"] == 7_000, "whole sats"
            assert (await verb(buying, "wallet.balance"))["settled_msats"] == sats(1_000 - 7) - record["fee_msats"]
            books = await verb(buying, "books")
            assert (books["clean"], books["problems"]) == (True, [])
            report = await until(
                lambda: verb(buying, "status"), lambda report: report["wallet"]["settled_msats"] is not None
            )
            assert report["wallet"]["known_at"] > 0
        assert (await verb(selling, "earnings"))["summary"]["total_msats"] == 7_000
        assert (await verb(selling, "books"))["problems"] == []
        assert (await verb(selling, "wallet.balance"))["settled_msats"] == 7_000
    assert network.open == set(), "all are closed with their homes"


async def test_an_agent_is_funded_lives_and_gives_back(network, make):
    home, config = make("home")
    async with opened(home, config, mode="host") as runtime:
        born = await verb(runtime, "agent.spawn", name="alice")
        row = runtime.store.one("SELECT wallet FROM agents")
        assert row["wallet"] == network_id(born["mnemonic"])
        await network.deposit(runtime.wallet.identity_pubkey, 50_000)
        funded = await verb(runtime, "agent.fund", agent="alice", amount_msats=sats(10_000), source="wallet")
        assert funded["funded_msats"] == sats(10_000)
        info = await until(lambda: verb(runtime, "agent.info", agent="alice"), lambda info: info["state"] != "spawning")
        assert info["balance_msats"] in (None, sats(10_000)), "unknown is not zero, and what is known is right"
        # From outside, to the address of its wallet, while nobody looks.
        await network.deposit(row["wallet"], 500)
        await until(
            lambda: verb(runtime, "agent.info", agent="alice"), lambda info: info["balance_msats"] == sats(10_500)
        )
        back = await verb(runtime, "agent.withdraw", agent="alice", amount_msats=sats(1_000))
        assert back["withdrawn_msats"] == sats(1_000)
        assert (await verb(runtime, "books"))["problems"] == []


def network_id(phrase: str) -> str:
    from protocols import bolt11
    from pylon.wallets.spark_types import identity_path

    return bolt11.node_public_key(nip06.derive(nip06.seed(phrase), identity_path(REGTEST))).hex()
