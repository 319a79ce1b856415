"""Many Spark wallets seen as one: a few in client mode, the rest swept, over the pretended network."""

from __future__ import annotations

import hashlib
import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from pylon.clock import VirtualClock
from pylon.errors import StoreError
from pylon.money import sats
from pylon.testing.spark import FakeSpark
from pylon.wallets.bridge import InlineBridge
from pylon.wallets.keeper import WalletKeeper
from pylon.wallets.spark_fleet import FleetSettings, SparkFleet
from pylon.wallets.spark_kit import SparkKit
from pylon.wallets.spark_types import REGTEST


def seed(number: int) -> bytes:
    return hashlib.sha512(number.to_bytes(4, "big")).digest()


SMALL = FleetSettings(client_cap=3, parked_cap=5, idle_seconds=600.0, sweeps_per_second=10.0, sweep_seconds=300.0)


@pytest.fixture
def network(autojump_clock):
    return FakeSpark(VirtualClock())


@pytest.fixture
async def make(network, tmp_path):
    fleets = []

    def made(settings=SMALL, agents=0) -> SparkFleet:
        kit = SparkKit(
            REGTEST, clock=network.clock, directory=tmp_path / "spark", bridge=InlineBridge(), sdk=network,
            fresh_seconds=0.0, durable=False,
        )  # fmt: skip
        seeds = {kit.identity(seed(number)): seed(number) for number in range(agents)}
        fleet = SparkFleet(kit, random.Random(0), settings=settings, seed_of=seeds.get)
        fleets.append(fleet)
        return fleet

    yield made
    for fleet in fleets:
        await fleet.aclose()


@asynccontextmanager
async def running(fleet: SparkFleet):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.run)
        yield
        nursery.cancel_scope.cancel()


def clients(network) -> list[str]:
    return [sdk.identity for sdk in network.open if not sdk.server]


async def test_a_wallet_is_known_by_its_seed(make, network):
    fleet: WalletKeeper = make()
    there = fleet.wallet_id(seed(0))
    assert await fleet.balances([there]) == {}, "unknown is not zero"
    wallet = fleet.wallet(seed(0), "alice")
    assert wallet is fleet.wallet(seed(0), "the same")
    info = await wallet.info()
    assert (info.kind, info.network) == (fleet.kind, fleet.network) == ("spark", "regtest")
    assert (await wallet.receive(sats(1), "", 60, "k")).bolt11.startswith(f"ln{fleet.invoice_prefix}")
    assert wallet.identity_pubkey == there
    assert fleet.seeded


async def test_sleeping_wallets_are_swept_and_closed_again(make, network):
    fleet = make(agents=8)
    ids = [fleet.wallet_id(seed(number)) for number in range(8)]
    for number, name in enumerate(ids[:7]):
        await network.deposit(name, 100 + number)
    async with running(fleet), fleet.changes() as changes:
        assert await fleet.balances(ids) == {}
        told = set()
        with trio.move_on_after(30):
            async for name in changes:
                told.add(name)
        found = await fleet.balances(ids)
        assert {name: balance.settled for name, balance in found.items()} == {
            name: sats(100 + number) if number < 7 else 0 for number, name in enumerate(ids)
        }
        assert told == set(ids)
        assert network.open == set(), "nobody uses them"
        assert all(abs(balance.known_at - network.clock.now()) < 31 for balance in found.values())


async def test_a_strangers_wallet_is_unknown_and_asked_nothing(make, network):
    fleet = make(agents=1)
    async with running(fleet):
        assert await fleet.balances(["02" * 33, "'; DROP TABLE"]) == {}
        await trio.sleep(60)
        assert await fleet.balances(["02" * 33]) == {}
    assert network.calls == []


async def test_sweeps_keep_to_their_rate_and_come_round(make, network):
    fleet = make(FleetSettings(sweeps_per_second=2.0, sweep_seconds=300.0), agents=100)
    ids = [fleet.wallet_id(seed(number)) for number in range(100)]
    async with running(fleet):
        await fleet.balances(ids)
        await trio.sleep(10)
        assert network.calls.count("sync_wallet") == pytest.approx(20, abs=2)
        assert len(await fleet.balances(ids)) == pytest.approx(20, abs=2)
        await trio.sleep(45)
        assert len(await fleet.balances(ids)) == 100
        await trio.sleep(200)
        assert network.calls.count("sync_wallet") == 100, "no sooner than every five minutes"
        await trio.sleep(400)
        assert network.calls.count("sync_wallet") >= 200
        # Nobody asks any more.
        await trio.sleep(5_000)
        swept = network.calls.count("sync_wallet")
        await trio.sleep(5_000)
        assert network.calls.count("sync_wallet") == swept


async def test_offline_the_sweeps_pause_and_nothing_becomes_zero(make, network):
    fleet = make(agents=50)
    ids = [fleet.wallet_id(seed(number)) for number in range(50)]
    await network.deposit(ids[0], 7)
    async with running(fleet):
        await fleet.balances(ids)
        await trio.sleep(30)
        before = await fleet.balances(ids)
        assert len(before) == 50
        network.online = False
        await trio.sleep(1_000)
        calls = len(network.calls)
        await trio.sleep(1_000)
        assert len(network.calls) - calls < 100, "ever longer pauses, whoever is due"
        assert await fleet.balances(ids) == before, "with the age that they have"
        network.online = True
        await network.deposit(ids[1], 9)
        await trio.sleep(900)
        after = await fleet.balances(ids)
        assert after[ids[1]].settled == sats(9)
        assert after[ids[0]].known_at > before[ids[0]].known_at


async def test_the_homes_own_and_those_used_last_are_in_client_mode(make, network):
    fleet = make()
    own = fleet.own(seed(99), "home")
    wallets = [fleet.wallet(seed(number), f"w{number}") for number in range(5)]
    async with running(fleet):
        await trio.sleep(1)
        for wallet in wallets:
            await trio.sleep(1)
            await wallet.payments()
        await trio.sleep(35)
        assert set(clients(network)) == {name.identity_pubkey for name in (own, wallets[4], wallets[3])}
        # A payment is heard at once there.
        async with wallets[4].events() as events:
            await network.deposit(wallets[4].identity_pubkey, 5)
            with trio.fail_after(1):
                assert (await anext(aiter(events))).amount == sats(5)
        await wallets[0].payments()
        await trio.sleep(35)
        assert wallets[0].identity_pubkey in clients(network)
        assert len(clients(network)) == 3
        ids = [wallet.identity_pubkey for wallet in wallets]
        for _ in range(10):  # being swept is no use
            assert len(await fleet.balances(ids)) in (0, 5)
            await trio.sleep(100)
        assert clients(network) == [own.identity_pubkey], "the others have not been used for long"


async def test_who_is_busy_is_not_moved(make, network):
    fleet = make()
    one = fleet.wallet(seed(0), "one")
    async with running(fleet):
        await one.payments()
        await trio.sleep(35)
        assert clients(network) == [one.identity_pubkey]
        async with one.events():
            await trio.sleep(2_000)
            assert clients(network) == [one.identity_pubkey]
        await trio.sleep(1_000)
        assert clients(network) == []


async def test_no_more_than_so_many_are_kept_open(make, network):
    fleet = make()
    wallets = [fleet.wallet(seed(number), f"w{number}") for number in range(20)]
    for wallet in wallets:
        await wallet.payments()
    assert len(network.open) == 20
    async with running(fleet):
        await trio.sleep(1)
        assert len(network.open) <= SMALL.client_cap + SMALL.parked_cap
        for wallet in wallets:
            assert await wallet.payments() == []


async def test_whoever_looks_all_know(make, network):
    fleet = make()
    wallet = fleet.wallet(seed(0), "one")
    await network.deposit(wallet.identity_pubkey, 5)
    async with fleet.changes() as changes:
        found = await wallet.balance()
        assert await fleet.balances() == {wallet.identity_pubkey: found}
        with trio.fail_after(1):
            assert await changes.__anext__() == wallet.identity_pubkey


async def test_who_is_let_go_holds_no_file(make, network):
    fleet = make()
    wallet = fleet.wallet(seed(0), "one")
    await wallet.receive(sats(5), "", 600, "k")
    assert wallet._journal._db is not None
    assert await wallet.let_go()
    assert wallet._journal._db is None
    assert (await wallet.receive(sats(5), "", 600, "k")).amount == sats(5)


async def test_the_homes_own_is_in_client_mode_though_somebody_listens_from_the_start(make, network):
    fleet = make()
    own = fleet.own(seed(99), "home", client=True)
    async with own.events() as events, running(fleet):
        await trio.sleep(100)
        assert clients(network) == [own.identity_pubkey]
        await network.deposit(own.identity_pubkey, 5)
        with trio.fail_after(1):
            assert (await anext(aiter(events))).amount == sats(5)


async def test_a_payment_is_news_of_both_and_swept_at_once(make, network):
    fleet = make(agents=2)
    alice, bob = fleet.wallet(seed(0), "alice"), fleet.wallet(seed(1), "bob")
    await network.deposit(alice.identity_pubkey, 100)
    async with running(fleet):
        ids = [alice.identity_pubkey, bob.identity_pubkey]
        await alice.balance()
        await fleet.balances(ids)
        await trio.sleep(35)
        assert len(clients(network)) == 2
        async with fleet.changes() as changes:
            issued = await bob.receive(sats(50), "", 600, "k")
            await alice.pay(issued.bolt11, max_fee=sats(2), idempotency_key="k")
            told = set()
            with trio.move_on_after(1):
                async for name in changes:
                    told.add(name)
            assert told == set(ids)
        await trio.sleep(3)
        assert (await fleet.balances(ids))[bob.identity_pubkey].settled == sats(50)
        assert fleet.known(bob.identity_pubkey).settled == sats(50)


async def test_a_sibling_that_was_paid_looks_again(network, tmp_path):
    """In server mode nobody tells it, and the last look is not old yet."""
    kit = SparkKit(
        REGTEST, clock=network.clock, directory=tmp_path, bridge=InlineBridge(), sdk=network, fresh_seconds=60.0,
        durable=False,
    )  # fmt: skip
    fleet = SparkFleet(kit, random.Random(0))
    alice, bob = fleet.wallet(seed(0), "alice"), fleet.wallet(seed(1), "bob")
    await network.deposit(alice.identity_pubkey, 100)
    assert (await bob.balance()).settled == 0
    issued = await bob.receive(sats(50), "", 600, "k")
    await alice.pay(issued.bolt11, max_fee=sats(2), idempotency_key="k")
    assert (await bob.balance()).settled == sats(50)
    await fleet.aclose()


async def test_the_end(make, network):
    fleet = make()
    wallet = fleet.wallet(seed(0), "one")
    await wallet.payments()
    ended = trio.Event()

    async def listen(*, task_status):
        async with fleet.changes() as changes:
            task_status.started()
            async for _ in changes:
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        await fleet.aclose()
        await fleet.aclose()
        with trio.fail_after(1):
            await ended.wait()
    assert network.open == set()
    with pytest.raises(StoreError):
        await fleet.balances()
    with pytest.raises(StoreError):
        async with fleet.changes():
            pass
    with pytest.raises(StoreError):
        await wallet.balance()


async def test_disconnecting_that_hangs_holds_up_nobody(make, network):
    fleet = make()
    for number in range(10):
        await fleet.wallet(seed(number), "w").payments()
    network.hangs = {"disconnect"}
    with trio.fail_after(6):
        await fleet.aclose()
