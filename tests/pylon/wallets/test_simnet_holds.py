"""Simnet's own rules of hold invoices and addresses, ledger files of earlier versions, and a wallet that has less."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols import bolt11
from pylon.clock import VirtualClock
from pylon.errors import (
    AlreadyPaid,
    InvoiceInvalid,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    StoreError,
    WrongNetwork,
)
from pylon.money import Msat, sats
from pylon.wallets.port import Addresses, Can, Direction, PaymentState, TargetKind
from pylon.wallets.simnet import Fault, FaultKind, FeeModel, Side, SimnetLedger, SimnetWallet
from pylon.wallets.simnet_address import bitcoin_address, bitcoin_owner, read_target, spark_address
from pylon.wallets.simnet_file import APPLICATION_ID, SCHEMA_VERSION
from pylon.wallets.simnet_ledger import HOLD_SECONDS
from tests.pylon.wallets.conformance import AMOUNT, FEE_CAP, House, key
from tests.pylon.wallets.conformance_holds import HASH, PREIMAGE, HoldConformance
from tests.pylon.wallets.conformance_targets import SOMEBODYS_SPARK_ADDRESS, TargetConformance

SECRETS = {name: hashlib.sha256(name.encode()).digest() for name in ("alice", "bob", "carol")}
VERSION_1 = Path(__file__).parent / "vectors" / "simnet_ledger_1.sql"


@pytest.fixture
async def ledger(tmp_path, autojump_clock):
    path = tmp_path / "simnet.db"
    async with SimnetLedger(path, clock=VirtualClock(), rng=random.Random(0), durable=False) as opened:
        yield opened


@pytest.fixture
async def alice(ledger):
    wallet = ledger.wallet("alice", SECRETS["alice"])
    await wallet.fund(sats(100_000))
    return wallet


@pytest.fixture
async def bob(ledger):
    return ledger.wallet("bob", SECRETS["bob"])


async def hold(bob: SimnetWallet) -> str:
    return (await bob.hold(AMOUNT, "a job", 600, "hold-1", HASH)).bolt11


async def held(bob: SimnetWallet) -> Msat:
    issued = await bob.lookup_invoice(HASH)
    assert issued is not None
    return issued.held


class TestHolding:
    async def test_pay_returns_it_pending(self, alice, bob):
        paid = await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        assert paid.state is PaymentState.PENDING
        assert await held(bob) == AMOUNT

    async def test_given_back_six_hours_after_it_arrived_whenever_one_looks(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.PENDING, 60.0))
        paid = await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        assert await held(bob) == 0
        with pytest.raises(PaymentFailed):
            await bob.settle(PREIMAGE)
        await trio.sleep(60)
        assert await held(bob) == AMOUNT
        await trio.sleep(HOLD_SECONDS - 1)
        assert await held(bob) == AMOUNT
        await trio.sleep(1)
        assert await held(bob) == 0
        assert (await bob.lookup_invoice(HASH)).cancelled
        found = await alice.lookup_payment(HASH)
        assert (found.payment_id, found.state, found.fee) == (paid.payment_id, PaymentState.FAILED, 0)
        assert (await alice.balance()).spendable == sats(100_000)

    async def test_arrived_and_given_back_while_nobody_looked(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.PENDING, 60.0))
        await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        await trio.sleep(10 * HOLD_SECONDS)
        assert (await alice.balance()).spendable == sats(100_000)
        with pytest.raises(PaymentFailed):
            await bob.settle(PREIMAGE)

    async def test_a_slow_one_is_waited_for_until_it_is_held(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.DELAY, 5.0))
        began = trio.current_time()
        paid = await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.01)
        assert paid.state is PaymentState.PENDING
        assert await held(bob) == AMOUNT
        again = await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        assert again == paid
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.01)

    async def test_an_unknown_one_is_held(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.TIMEOUT))
        with pytest.raises(PaymentUnknown):
            await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        await bob.settle(PREIMAGE)
        assert (await alice.lookup_key(key("1"))).preimage == PREIMAGE

    async def test_cancelled_under_way_it_fails_where_it_arrives(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.PENDING, 60.0))
        await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        await bob.cancel(HASH)
        assert (await alice.lookup_payment(HASH)).state is PaymentState.PENDING
        await trio.sleep(60)
        assert (await alice.lookup_payment(HASH)).state is PaymentState.FAILED
        assert await held(bob) == 0

    async def test_one_payment_hash_is_one_invoice(self, ledger, alice, bob):
        await hold(bob)
        for wallet in (alice, bob):
            with pytest.raises(InvoiceInvalid, match="payment hash"):
                await wallet.hold(AMOUNT, "", 600, "another", HASH)
        issued = await bob.receive(AMOUNT, "", 600, "job-1")
        with pytest.raises(InvoiceInvalid, match="another payment hash"):
            await bob.hold(AMOUNT, "", 600, "job-1", HASH)
        with pytest.raises(InvoiceInvalid):
            await alice.hold(AMOUNT, "", 600, "stolen", issued.payment_hash)
        with pytest.raises(InvoiceInvalid, match="no hold invoice"):
            await bob.cancel(issued.payment_hash)

    @pytest.mark.parametrize("preimage", ["", "no hex", "5a" * 31, PREIMAGE + "00"])
    async def test_what_is_no_preimage_settles_nothing(self, alice, bob, preimage):
        await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        with pytest.raises(PaymentFailed):
            await bob.settle(preimage)
        assert await held(bob) == AMOUNT

    async def test_the_invoice_leaves_the_payment_as_long_as_it_may_be_held(self, bob):
        assert bolt11.decode(await hold(bob)).min_final_cltv * 600 == HOLD_SECONDS

    async def test_expired_it_is_still_settled(self, alice, bob):
        await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
        await trio.sleep(700)
        await bob.settle(PREIMAGE)
        assert (await bob.balance()).settled == AMOUNT

    async def test_another_process_hears_whose_invoice_holds(self, ledger, alice, bob):
        async with SimnetLedger(ledger.path, clock=ledger.clock, durable=False) as another:
            async with another.changes() as changes:
                await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
                with trio.fail_after(5):
                    heard = {await anext(changes), await anext(changes)}
        assert heard == {alice.node_pubkey, bob.node_pubkey}

    async def test_its_arrival_and_its_settlement_are_events(self, alice, bob):
        with trio.fail_after(5):
            async with bob.events() as events:
                await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
                waits = await anext(aiter(events))
                await bob.settle(PREIMAGE)
                heard = await anext(aiter(events))
        for payment, state in ((waits, PaymentState.PENDING), (heard, PaymentState.SETTLED)):
            assert (payment.payment_hash, payment.amount, payment.state) == (HASH, AMOUNT, state)
            assert payment.direction is Direction.RECEIVED
        assert waits.preimage is None
        assert await bob.payments() == [heard]

    async def test_what_was_given_back_is_an_event(self, alice, bob):
        with trio.fail_after(5):
            async with bob.events() as events:
                await alice.pay(await hold(bob), max_fee=FEE_CAP, idempotency_key=key("1"))
                await bob.cancel(HASH)
                heard = await anext(aiter(events))
        assert (heard.payment_hash, heard.direction, heard.state) == (HASH, Direction.RECEIVED, PaymentState.FAILED)
        assert await bob.payments() == []


class TestAddresses:
    async def test_they_say_that_they_are_of_simnet(self, alice):
        assert await alice.addresses() == Addresses(
            spark_address(alice.node_pubkey), bitcoin_address(alice.node_pubkey)
        )
        assert spark_address(alice.node_pubkey).startswith("simspark1")
        assert bitcoin_address(alice.node_pubkey).startswith("simbtc1")
        info = await alice.info()
        assert info.can == frozenset(Can)
        assert "not money" in info.note

    @given(secret=st.binary(min_size=32, max_size=32).filter(lambda s: 0 < int.from_bytes(s, "big") < 2**255))
    def test_they_are_read_back(self, secret):
        node = bolt11.node_public_key(secret).hex()
        for text in (spark_address(node), spark_address(node).upper()):
            target = read_target(text)
            assert (target.kind, target.network, target.payee) == (TargetKind.SPARK, "simnet", node)
        assert bitcoin_owner(bitcoin_address(node)) == node
        with pytest.raises(InvoiceInvalid, match="deposit"):
            read_target(bitcoin_address(node))
        with pytest.raises(InvoiceInvalid):
            bitcoin_owner(spark_address(node))

    @given(data=st.data(), character=st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
    def test_a_wrong_character_is_seen(self, data, character):
        address = spark_address(bolt11.node_public_key(SECRETS["bob"]).hex())
        place = data.draw(st.integers(len("simspark1"), len(address) - 1))
        damaged = address[:place] + character + address[place + 1 :]
        if damaged != address:
            with pytest.raises(InvoiceInvalid):
                read_target(damaged)

    async def test_nobody_there(self, ledger, alice):
        nobody = bolt11.node_public_key(SECRETS["carol"]).hex()
        for work in (
            partial(alice.quote, spark_address(nobody), amount=AMOUNT),
            partial(alice.pay, spark_address(nobody), amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1")),
            partial(ledger.deposit, bitcoin_address(nobody), AMOUNT),
        ):
            with pytest.raises(NoRoute):
                await work()
        assert sum(ledger.accounts().values()) == 0

    async def test_not_to_itself(self, alice):
        with pytest.raises(NoRoute):
            await alice.pay(spark_address(alice.node_pubkey), amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_it_costs_nothing(self, ledger, alice, bob):
        ledger.set_fees(FeeModel(Msat(1_000), 10_000))
        address = spark_address(bob.node_pubkey)
        assert await alice.quote(address, amount=AMOUNT) == 0
        paid = await alice.pay(address, amount=sats(100_000), max_fee=Msat(0), idempotency_key=key("1"))
        assert paid.fee == 0
        assert (await alice.balance()).settled == 0

    async def test_faults_of_the_payee(self, ledger, alice, bob):
        ledger.inject(Fault(FaultKind.FAIL), wallet=bob, side=Side.PAYEE)
        with pytest.raises(PaymentFailed):
            await alice.pay(spark_address(bob.node_pubkey), amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))

    async def test_real_addresses_are_named_and_not_paid(self, alice):
        target = await alice.decode(SOMEBODYS_SPARK_ADDRESS)
        assert (target.kind, target.network, target.payee) == (TargetKind.SPARK, "mainnet", SOMEBODYS_SPARK_ADDRESS)
        with pytest.raises(WrongNetwork, match="mainnet"):
            await alice.pay(SOMEBODYS_SPARK_ADDRESS, amount=AMOUNT, max_fee=FEE_CAP, idempotency_key=key("1"))

    @pytest.mark.parametrize("amount", [0, -1, 22_000_000 * 10**11])
    async def test_deposits_of_what_exists(self, ledger, bob, amount):
        with pytest.raises(Exception, match="faucet"):
            await ledger.deposit(bitcoin_address(bob.node_pubkey), Msat(amount))


class TestEarlierVersions:
    """A file that version 1 wrote: two wallets, payments that have settled, failed and are pending, a fault."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "simnet.db"
        with sqlite3.connect(path) as db:
            db.executescript(VERSION_1.read_text())
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute("PRAGMA user_version = 1")
            db.execute("PRAGMA journal_mode = WAL")
        db.close()
        return path

    def open(self, path: Path) -> SimnetLedger:
        return SimnetLedger(path, clock=VirtualClock(1_800_000_010.0), durable=False)

    async def test_nothing_is_lost(self, path, autojump_clock):
        async with self.open(path) as ledger:
            alice, bob = (ledger.wallet(name, SECRETS[name]) for name in ("alice", "bob"))
            assert ledger.fees() == FeeModel(Msat(10), 1_000)
            history = await alice.payments()
            assert [payment.state for payment in history] == ["settled", "settled", "failed", "pending"]
            assert [payment.key for payment in history] == ["", "pay-0", "pay-1", "pay-2"]
            balance = await alice.balance()
            assert (balance.settled, balance.pending_out) == (899_890, 100_110)
            paid = await alice.lookup_key("pay-0")
            assert await alice.pay(paid.bolt11, max_fee=Msat(0), idempotency_key="pay-0") == paid
            with pytest.raises(AlreadyPaid):
                await alice.pay(paid.bolt11, max_fee=FEE_CAP, idempotency_key="pay-9")
            invoice = await bob.lookup_invoice(paid.payment_hash)
            assert (invoice.received, invoice.held, invoice.cancelled) == (100_000, 0, False)
            await trio.sleep(60)
            assert [payment.state for payment in await alice.payments()][-1] == "settled"
            assert (await bob.balance()).settled == 200_000
            assert sum(ledger.accounts().values()) == 0

    async def test_it_goes_on_with_what_is_new(self, path, autojump_clock):
        async with self.open(path) as ledger:
            alice, bob = (ledger.wallet(name, SECRETS[name]) for name in ("alice", "bob"))
            unpaid = await bob.receive(sats(100), "job 3", 3_600, "job-3")
            assert unpaid.payment_hash.startswith("707e0e21")
            await alice.pay(unpaid.bolt11, max_fee=FEE_CAP, idempotency_key="pay-3")
            issued = await bob.hold(sats(100), "", 600, "hold-1", HASH)
            await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="hold-1")
            await bob.settle(PREIMAGE)
            for nth in range(2):
                await alice.pay(
                    spark_address(bob.node_pubkey), amount=sats(1), max_fee=Msat(0), idempotency_key=f"address-{nth}"
                )
            # The fault that was left is still there.
            with pytest.raises(NoRoute, match="fault"):
                await bob.pay(spark_address(alice.node_pubkey), amount=sats(1), max_fee=Msat(0), idempotency_key="1")
            assert (await bob.balance()).settled == sats(302)
            assert sum(ledger.accounts().values()) == 0

    async def test_it_is_then_as_one_made_anew(self, path, tmp_path, autojump_clock):
        def schema(at: Path) -> list[Any]:
            db = sqlite3.connect(at)
            rows = db.execute("SELECT name, replace(sql, '\"invoices\"', 'invoices') FROM sqlite_master ORDER BY name")
            found = [*rows, db.execute("PRAGMA user_version").fetchone()]
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            db.close()
            return found

        async with self.open(path), self.open(tmp_path / "new.db"):
            pass
        assert schema(path) == schema(tmp_path / "new.db")

    @pytest.mark.parametrize("statement", range(12))
    async def test_broken_off_it_is_as_it_was(self, path, autojump_clock, monkeypatch, statement):
        class Breaking(sqlite3.Connection):
            left = 6 + statement

            def execute(self, *arguments):
                if self.left == 0 and arguments[0] != "ROLLBACK":
                    raise sqlite3.OperationalError("disk full")
                self.left -= 1
                return super().execute(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Breaking))
            with pytest.raises(StoreError, match="disk full"):
                self.open(path)
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM invoices").fetchone() == (4,)
        db.close()
        async with self.open(path) as ledger:
            assert ledger._file._version() == SCHEMA_VERSION


class Lesser:
    """A wallet without holds, addresses and open amounts, made of one that has them all."""

    def __init__(self, wallet: SimnetWallet) -> None:
        self._wallet = wallet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wallet, name)

    async def info(self) -> Any:
        info = await self._wallet.info()
        return type(info)(info.name, info.network, "lesser", info.node_pubkey)

    async def addresses(self) -> Addresses:
        return Addresses()

    async def hold(self, *arguments: Any) -> Any:
        raise NotSupported("no hold invoices")

    settle = cancel = hold

    async def _able(self, target: str) -> None:
        if (await self._wallet.decode(target)).amount is None:
            raise NotSupported("no addresses, no invoices without an amount")

    async def quote(self, target: str, **options: Any) -> Msat:
        await self._able(target)
        return await self._wallet.quote(target, **options)

    async def pay(self, target: str, **options: Any) -> Any:
        await self._able(target)
        return await self._wallet.pay(target, **options)


class TestAWalletThatCannot(TargetConformance, HoldConformance):
    """The suite as it is for one that has less: it must refuse what it has not."""

    @pytest.fixture
    async def house(self, ledger, alice, bob):
        carol = ledger.wallet("carol", SECRETS["carol"])
        await carol.fund(sats(50_000))
        return House(payer=Lesser(alice), other=Lesser(carol), payee=Lesser(bob), clock=ledger.clock, prefix="sb")
