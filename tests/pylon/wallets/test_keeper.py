"""Many wallets seen as one: balances in one look, and whose have changed."""

from __future__ import annotations

import json
import random
import time
from functools import partial
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.clock import VirtualClock
from pylon.errors import StoreError
from pylon.money import Msat, sats
from pylon.wallets.keeper import SimnetKeeper, WalletKeeper
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import Fault, FaultKind, SimnetLedger
from tests.pylon.wallets.test_simnet_economy import Timeline


def secret(number: int) -> bytes:
    return (number + 1).to_bytes(32, "big")


@pytest.fixture
async def ledger(tmp_path):
    async with SimnetLedger(
        tmp_path / "simnet.db", clock=VirtualClock(), rng=random.Random(0), poll_seconds=None, durable=False
    ) as opened:
        yield opened


@pytest.fixture
def keeper(ledger) -> WalletKeeper:
    return SimnetKeeper(ledger)


async def changed(changes, seconds=1.0) -> set[str]:
    """Everybody who is named within so many seconds."""
    names = set()
    with trio.move_on_after(seconds):
        async for name in changes:
            names.add(name)
    return names


async def test_a_wallet_is_known_by_its_secret(autojump_clock, keeper):
    there = keeper.wallet_id(secret(0))
    assert await keeper.balances([there]) == {}, "unknown is not zero"
    wallet = keeper.wallet(secret(0), "alice")
    info = await wallet.info()
    assert (info.node_pubkey, info.kind, info.network) == (there, keeper.kind, keeper.network)
    assert (await wallet.receive(sats(1), "", 60, "k")).bolt11.startswith(f"ln{keeper.invoice_prefix}")
    await keeper.wallet(secret(0), "the same").fund(sats(3))
    assert (await keeper.balances())[there].settled == sats(3)
    await wallet.aclose()
    assert there in await keeper.balances()


async def test_balances_are_those_of_the_wallets(autojump_clock, ledger, keeper):
    wallets = [keeper.wallet(secret(number), f"w{number}") for number in range(5)]
    for number, wallet in enumerate(wallets[:4]):
        await wallet.fund(sats(100 + number))
    issued = await wallets[4].receive(sats(50), "", 600, "k")
    ledger.inject(Fault(FaultKind.PENDING, 30.0), wallet=wallets[0])
    assert (await wallets[0].pay(issued.bolt11, max_fee=sats(2), idempotency_key="k")).state is PaymentState.PENDING
    assert await keeper.balances() == {wallet.node_pubkey: await wallet.balance() for wallet in wallets}
    await trio.sleep(60)  # the pending payment ends, and nobody but the keeper looks
    assert (await keeper.balances([wallets[4].node_pubkey]))[wallets[4].node_pubkey].settled == sats(50)


async def test_only_those_who_were_asked_for(autojump_clock, keeper):
    ids = [keeper.wallet(secret(number), "w").node_pubkey for number in range(3)]
    assert set(await keeper.balances(ids[:2])) == set(ids[:2])
    assert set(await keeper.balances([ids[0], "00" * 33, "fees", "outside", "'; DROP TABLE accounts"])) == {ids[0]}
    assert await keeper.balances([]) == {}


async def test_changes_name_payer_and_payee_and_whoever_is_funded(autojump_clock, keeper):
    alice, bob, carol = (keeper.wallet(secret(number), "w") for number in range(3))
    await carol.fund(sats(1))
    async with keeper.changes() as changes:
        assert await changed(changes) == set(), "what was before does not count"
        await alice.fund(sats(100))
        assert await changed(changes) == {alice.node_pubkey}
        issued = await bob.receive(sats(50), "", 600, "k")
        assert await changed(changes) == set(), "an invoice changes nothing"
        await alice.pay(issued.bolt11, max_fee=sats(2), idempotency_key="k")
        assert await changed(changes) == {alice.node_pubkey, bob.node_pubkey}


@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
async def test_what_leaves_and_when_it_has_left_are_changes(autojump_clock, ledger, keeper, ends):
    alice, bob = (keeper.wallet(secret(number), "w") for number in range(2))
    await alice.fund(sats(100))
    issued = await bob.receive(sats(50), "", 600, "k")
    ledger.inject(Fault(FaultKind.PENDING, 30.0, ends))
    async with keeper.changes() as changes, alice.events() as events:
        await alice.pay(issued.bolt11, max_fee=sats(2), idempotency_key="k")
        assert await changed(changes) == {alice.node_pubkey}
        assert (await keeper.balances())[alice.node_pubkey].pending_out > 0
        both = {alice.node_pubkey, bob.node_pubkey}
        assert await changed(changes, 60.0) == (both if ends is PaymentState.SETTLED else {alice.node_pubkey})
        # Its own listeners are told of the end, and once.
        told = []
        with trio.move_on_after(1.0):
            async for payment in events:
                told = [*told, payment.state]
        assert told == [ends]


async def test_a_slow_listener_misses_nothing_and_hears_each_once_a_look(autojump_clock, keeper):
    wallets = [keeper.wallet(secret(number), "w") for number in range(20)]
    async with keeper.changes() as changes:
        for wallet in wallets * 3:
            await wallet.fund(sats(1))
        seen = []
        with trio.move_on_after(1.0):
            async for name in changes:
                seen.append(name)
                await trio.sleep(0.01)
        assert sorted(seen) == sorted(wallet.node_pubkey for wallet in wallets)


async def test_several_listen(autojump_clock, keeper):
    alice = keeper.wallet(secret(0), "w")
    heard = []

    async def listen(*, task_status):
        async with keeper.changes() as changes:
            task_status.started()
            heard.append(await changed(changes))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await nursery.start(listen)
        await alice.fund(sats(1))
    assert heard == [{alice.node_pubkey}] * 3


async def test_it_ends_with_the_ledger(autojump_clock, ledger, keeper):
    alice = keeper.wallet(secret(0), "w")
    ended = trio.Event()

    async def listen(*, task_status):
        async with keeper.changes() as changes:
            task_status.started()
            async for _ in changes:
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        await alice.aclose()
        await trio.sleep(1)
        assert not ended.is_set(), "a wallet that is closed ends nothing but itself"
        await ledger.aclose()
        with trio.fail_after(1):
            await ended.wait()
    with pytest.raises(StoreError):
        await keeper.balances()
    with pytest.raises(StoreError):
        async with keeper.changes():
            pass


async def test_another_process_is_heard(tmp_path):
    """In real time: the other ledger is another connection to the same file."""
    path, clock = tmp_path / "simnet.db", Timeline()
    async with (
        SimnetLedger(path, clock=clock, durable=False) as here,
        SimnetLedger(path, clock=clock, durable=False) as there,
    ):
        alice = SimnetKeeper(here).wallet(secret(0), "w")
        async with SimnetKeeper(here).changes() as changes:
            await there.wallet("w", secret(0)).fund(sats(1))
            with trio.fail_after(5):
                assert await changes.__anext__() == alice.node_pubkey


async def test_opening_a_wallet_that_is_there_writes_nothing(autojump_clock, ledger, keeper):
    keeper.wallet(secret(0), "w")
    before = ledger._changes
    wallet = keeper.wallet(secret(0), "w")
    await wallet.aclose()
    assert ledger._changes == before, "nobody was woken for it"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 10**6)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_whose_balance_has_changed_is_named(moves):
    """Any order of payments and gifts: who has another balance than before was named since."""
    clock = Timeline()
    with TemporaryDirectory() as name:
        clock.run(partial(_watched, f"{name}/simnet.db", clock, moves))


async def _watched(path, clock, moves):
    async with SimnetLedger(path, clock=clock, rng=random.Random(0), poll_seconds=None, durable=False) as ledger:
        keeper = SimnetKeeper(ledger)
        wallets = [keeper.wallet(secret(number), "w") for number in range(4)]
        async with keeper.changes() as changes:
            before = await keeper.balances()
            for number, (payer, payee, amount) in enumerate(moves):
                if payer == payee:
                    await wallets[payer].fund(Msat(amount))
                    continue
                issued = await wallets[payee].receive(Msat(amount), "", 600, str(number))
                ledger.inject(Fault(FaultKind.PENDING, float(amount % 3) * 40.0))
                try:
                    await wallets[payer].pay(issued.bolt11, max_fee=sats(100), idempotency_key=str(number))
                except Exception:
                    continue
            named = await changed(changes, 30.0)
            after = await keeper.balances()
    moved = {
        name
        for name in after
        if (after[name].settled, after[name].pending_out) != (before[name].settled, before[name].pending_out)
    }
    assert moved <= named


async def test_ten_thousand_wallets_cost_nothing_while_idle(autojump_clock, ledger, keeper):
    """One look for all their balances; and who sleeps is asked nothing."""
    ids = [f"{number:066x}" for number in range(10_000)]
    ledger._file._db.execute("INSERT INTO accounts SELECT value, 'w', '', 0, 7 FROM json_each(?)", (json.dumps(ids),))
    alice = keeper.wallet(secret(0), "w")
    async with keeper.changes() as changes, trio.open_nursery() as nursery:
        looks = 0
        real = ledger._file.changed_wallets

        def counting(after):
            nonlocal looks
            looks += 1
            return real(after)

        ledger._file.changed_wallets = counting
        heard: set[str] = set()

        async def listen():
            async for name in changes:
                heard.add(name)

        nursery.start_soon(listen)
        await trio.sleep(7 * 86_400)
        assert looks <= 2
        await alice.fund(sats(1))
        await trio.sleep(1)
        assert heard == {alice.node_pubkey}
        nursery.cancel_scope.cancel()
    began = time.perf_counter()
    assert len(await keeper.balances(ids)) == 10_000
    assert time.perf_counter() - began < 2.0
