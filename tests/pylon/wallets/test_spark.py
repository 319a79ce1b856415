"""The Spark wallet over a pretended network: conformance, and what is Spark's own."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import bolt11, spark_address
from pylon.clock import VirtualClock
from pylon.errors import (
    AlreadyPaid,
    InvoiceInvalid,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    StoreError,
    WalletError,
    WalletUnreachable,
    WrongNetwork,
)
from pylon.money import Msat, sats
from pylon.testing.spark import FakeSpark
from pylon.testing.spark_sdk import FakeBreezSdk
from pylon.testing.spark_values import Fault
from pylon.wallets import spark_link
from pylon.wallets.bridge import InlineBridge
from pylon.wallets.port import Direction, PaymentState
from pylon.wallets.spark import SparkWallet
from pylon.wallets.spark_journal import Send, Stage
from pylon.wallets.spark_kit import SparkDeadlines, SparkKit
from pylon.wallets.spark_payments import LOST_SECONDS
from pylon.wallets.spark_types import REGTEST
from tests.pylon.wallets.conformance import FEE_CAP, House, WalletConformance
from tests.pylon.wallets.conformance_holds import HASH, PREIMAGE, held, hold
from tests.pylon.wallets.conformance_house import nothing_moves

SEEDS = {name: hashlib.sha512(name.encode()).digest() for name in ("alice", "bob", "carol", "dave")}


@pytest.fixture
def clock(autojump_clock):
    return VirtualClock()


@pytest.fixture
def network(clock):
    return FakeSpark(clock)


@pytest.fixture
def kit(clock, network, tmp_path):
    return SparkKit(
        REGTEST,
        clock=clock,
        directory=tmp_path / "spark",
        bridge=InlineBridge(),
        sdk=network,
        fresh_seconds=0.0,
        durable=False,
    )


@pytest.fixture
async def wallet(kit):
    """Opens wallets by name, and closes them."""
    opened: list[SparkWallet] = []

    def open_wallet(name: str, **options) -> SparkWallet:
        made = SparkWallet(kit, SEEDS[name], name, **options)
        opened.append(made)
        return made

    yield open_wallet
    for made in opened:
        await made.aclose()


@pytest.fixture(params=["client", "server"])
def server(request):
    return request.param == "server"


class TestConformance(WalletConformance):
    @pytest.fixture
    async def house(self, request, network, wallet, clock, server):
        alice, bob, carol = (wallet(name, server=server) for name in ("alice", "bob", "carol"))
        for one, amount in ((alice, 100_000), (carol, 50_000)):
            await network.deposit(one.identity_pubkey, amount)
            await one.balance()
        await bob.balance()
        before = network.total()

        async def open_invoice(description: str) -> str:
            return network.open_invoice(description)

        def inject(kind: str, seconds: float = 0.0, ends: PaymentState = PaymentState.SETTLED) -> None:
            network.fault(alice.identity_pubkey, Fault(kind, seconds, ends is PaymentState.SETTLED))

        yield House(
            payer=alice,
            other=carol,
            payee=bob,
            clock=clock,
            prefix=REGTEST.prefix,
            delay_next=partial(inject, "delay"),
            pend_next=partial(inject, "pend"),
            fail_next=partial(inject, "fail"),
            unroute_next=partial(inject, "no_route"),
            time_out_next=partial(inject, "lost"),
            open_invoice=open_invoice,
            deposit=lambda address, amount: network.deposit_to(address, amount // 1_000),
            hold_lapses=network.htlc_seconds,
        )
        if "deposit" not in request.node.name:
            assert network.total() + network.fees() == before

    async def test_an_invoice_may_commit_to_its_description_by_a_hash(self, house: House):
        """The SDK has no way to ask for one."""
        with pytest.raises(NotSupported):
            await house.payee.receive(sats(1), "words", 600, "zap-1", hash_description=True)

    async def test_cancelled_it_comes_back(self, house: House):
        """Spark has no way to send it back before the HTLC expires, nor to call an invoice back: it is never taken."""
        issued = await hold(house)
        async with nothing_moves(house):
            async with held(house, issued):
                await house.payee.cancel(HASH)
                await house.payee.cancel(HASH)
                with pytest.raises(PaymentFailed):
                    await house.payee.settle(PREIMAGE)
                await house.pass_time(house.hold_lapses)
            failed = await house.payer.lookup_payment(HASH)
            assert (failed.state, failed.preimage, failed.settled_at) == (PaymentState.FAILED, None, None)
            invoice = await house.payee.lookup_invoice(HASH)
            assert (invoice.received, invoice.held, invoice.cancelled) == (0, 0, True)

    async def test_cancelled_before_it_is_paid(self, house: House):
        issued = await hold(house)
        await house.payee.cancel(HASH)
        await house.payee.cancel(HASH)
        assert (await house.payee.lookup_invoice(HASH)).cancelled
        async with nothing_moves(house):
            pending = await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
            assert pending.state is PaymentState.PENDING
            with pytest.raises(PaymentFailed):
                await house.payee.settle(PREIMAGE)
            await house.pass_time(house.hold_lapses)
        assert (await house.payer.lookup_payment(HASH)).state is PaymentState.FAILED

    async def test_what_settles_later_is_heard_then(self, house: House, server: bool):
        """At once in client mode; in server mode the wallet is asked every few seconds."""
        issued = await self.invoice(house)
        house.pend_next(20.0, PaymentState.SETTLED)
        with trio.fail_after(60):
            async with house.payee.events() as events:
                await house.payer.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
                began = house.clock.monotonic()
                heard = await anext(aiter(events))
        assert heard.payment_hash == issued.payment_hash
        assert house.clock.monotonic() - began == pytest.approx(20.0, abs=5.1 if server else 0.1)


# --- knowing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def funded(network, wallet, server):
    async def make(name: str, amount: int = 100_000) -> SparkWallet:
        made = wallet(name, server=server)
        await network.deposit(made.identity_pubkey, amount)
        await made.balance()
        return made

    return make


async def test_offline_a_balance_is_unknown_although_the_sdk_says_that_it_is_in_step(network, funded):
    alice = await funded("alice")
    network.online = False
    with pytest.raises(WalletUnreachable):
        await alice.balance()
    assert "sync_wallet" not in network.calls[network.calls.index("get_user_settings", len(network.calls) - 3) :]
    network.online = True
    assert (await alice.balance()).settled == sats(100_000)


async def test_a_lost_connection_in_the_middle_proves_nothing(network, funded, monkeypatch):
    alice = await funded("alice")
    real = FakeBreezSdk.sync_wallet

    async def sync(self, request):
        network.online = False
        return await real(self, request)  # returns as if all were well

    monkeypatch.setattr(FakeBreezSdk, "sync_wallet", sync)
    with pytest.raises(WalletUnreachable):
        await alice.balance()


async def test_an_instance_that_never_said_that_it_is_in_step_knows_nothing(network, wallet, monkeypatch, server):
    """Both ends of the trip answer, and the leaves could not be read: the SDK says nothing of that."""
    alice = wallet("alice", server=server)

    async def sync(self, request):
        await trio.lowlevel.checkpoint()
        return network.real.SyncWalletResponse()

    monkeypatch.setattr(FakeBreezSdk, "sync_wallet", sync)
    with pytest.raises(WalletUnreachable):
        await alice.balance()


@pytest.mark.parametrize("method", ["get_user_settings", "sync_wallet", "get_info", "list_payments", "get_payment"])
async def test_no_call_hangs_for_ever(network, funded, method, clock):
    alice = await funded("alice")
    issued = await (await funded("bob")).receive(sats(10), "", 600, "k")
    await alice.pay(issued.bolt11, max_fee=sats(5), idempotency_key="k")
    network.hangs = {method}
    began = clock.monotonic()
    with pytest.raises(WalletUnreachable):
        await alice.balance() if method != "get_payment" else await alice.lookup_key("another")
    assert clock.monotonic() - began < 90
    network.hangs = set()
    await alice.balance()


async def test_a_trip_serves_for_a_while_and_not_after_news(network, tmp_path, clock):
    kit = SparkKit(REGTEST, clock=clock, directory=tmp_path, bridge=InlineBridge(), sdk=network, fresh_seconds=10.0)
    alice = SparkWallet(kit, SEEDS["alice"], "alice")
    first = await alice.balance()
    await trio.sleep(5)
    trips = network.calls.count("sync_wallet")
    assert (await alice.balance()).known_at == first.known_at
    assert network.calls.count("sync_wallet") == trips
    await network.deposit(alice.identity_pubkey, 5)
    assert (await alice.balance()).settled == sats(5)
    assert network.calls.count("sync_wallet") == trips + 1
    await trio.sleep(11)
    assert (await alice.balance()).known_at == clock.now()
    # Many who ask at once share a trip.
    await trio.sleep(11)
    trips = network.calls.count("sync_wallet")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(alice.balance)
    assert network.calls.count("sync_wallet") <= trips + 2
    await alice.aclose()


async def test_it_is_kept_private(network, funded):
    alice = await funded("alice")
    if alice.server:  # in client mode the SDK sees to it
        assert network.account(alice.identity_pubkey).private


async def test_addresses(network, wallet, server):
    alice = wallet("alice", server=server)
    network.online = False
    assert (await alice.addresses()).bitcoin is None
    network.online = True
    found = await alice.addresses()
    assert found.spark == spark_address.encode("regtest", alice.identity_pubkey)
    assert found.bitcoin
    network.online = False
    assert await alice.addresses() == found, "what was learnt is remembered"


# --- invoices ---------------------------------------------------------------------------------------------------------


async def test_an_invoice_outlives_the_process(network, kit, server):
    one = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    issued = await one.receive(sats(10), "a job", 600, "job-1")
    await one.aclose()
    again = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    network.online = False
    assert await again.receive(sats(10), "a job", 600, "job-1") == issued
    with pytest.raises(WalletUnreachable):
        await again.lookup_invoice(issued.payment_hash)
    await again.aclose()


async def test_ten_at_once_make_one_invoice(network, wallet):
    alice, made = wallet("alice"), []

    async def ask():
        made.append(await alice.receive(sats(10), "a job", 600, "job-1"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(set(made)) == 1
    assert network.calls.count("receive_payment") == 1


@pytest.mark.parametrize("amount", [1, 999, 1_500])
async def test_whole_sats_only(wallet, amount):
    with pytest.raises(InvoiceInvalid, match="whole sats"):
        await wallet("alice").receive(Msat(amount), "", 600, "k")


async def test_another_invoice_than_was_asked_for_is_not_handed_out(network, wallet, monkeypatch):
    alice = wallet("alice")
    real = FakeBreezSdk._invoice

    def less(self, method):
        method.amount_sats -= 1
        return real(self, method)

    monkeypatch.setattr(FakeBreezSdk, "_invoice", less)
    with pytest.raises(WalletError, match="another invoice"):
        await alice.receive(sats(10), "", 600, "k")
    assert alice._journal.issued_by_key("k") is None


async def test_a_long_description_is_cut_to_what_fits(wallet):
    issued = await wallet("alice").receive(sats(10), "ü" * 500, 600, "k")
    text = bolt11.decode(issued.bolt11).description
    assert text.startswith("üüü")
    assert text.endswith("…")
    assert len(text.encode()) <= bolt11.MAX_FIELD_BYTES


# --- holding ----------------------------------------------------------------------------------------------------------


async def test_what_is_held_is_settled_by_its_preimage(funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.hold(sats(1_000), "held", 600, "k", HASH)
    assert issued.payment_hash == HASH
    assert await bob.hold(sats(1_000), "held", 600, "k", HASH) == issued
    assert (await bob.lookup_invoice(HASH)).held == 0
    with pytest.raises(PaymentFailed):
        await bob.settle(PREIMAGE)
    paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert paid.state is PaymentState.PENDING
    during = await bob.lookup_invoice(HASH)
    assert (during.held, during.received, during.settled_at) == (sats(1_000), 0, None)
    assert (await bob.balance()).settled == sats(1)
    await bob.settle(PREIMAGE)
    await bob.settle(PREIMAGE)
    after = await bob.lookup_invoice(HASH)
    assert (after.held, after.received) == (0, sats(1_000))
    assert (await bob.balance()).settled == sats(1_001)
    done = await alice.lookup_payment(HASH)
    assert (done.state, done.preimage) == (PaymentState.SETTLED, PREIMAGE)
    with pytest.raises(AlreadyPaid):
        await bob.cancel(HASH)


async def test_what_is_cancelled_is_never_taken_and_comes_back(network, funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.hold(sats(1_000), "held", 600, "k", HASH)
    await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    await bob.cancel(HASH)
    await bob.cancel(HASH)
    with pytest.raises(PaymentFailed):
        await bob.settle(PREIMAGE)
    assert (await bob.lookup_invoice(HASH)).cancelled
    await trio.sleep(network.htlc_seconds + 1)
    assert (await alice.balance()).spendable == sats(100_000)
    assert (await alice.lookup_payment(HASH)).state is PaymentState.FAILED
    assert (await bob.lookup_invoice(HASH)).held == 0


async def test_nothing_of_a_strangers_is_settled_or_cancelled(funded):
    bob = await funded("bob", 1)
    with pytest.raises(PaymentFailed):
        await bob.settle(PREIMAGE)
    with pytest.raises(PaymentFailed):
        await bob.settle("no hex")
    with pytest.raises(PaymentFailed):
        await bob.cancel(HASH)
    for bad in ("", "zz" * 32, HASH.upper()):
        with pytest.raises(InvoiceInvalid):
            await bob.hold(sats(1), "", 600, "k", bad)


# --- addresses and open amounts ---------------------------------------------------------------------------------------


async def test_a_payment_to_an_address(funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    address = (await bob.addresses()).spark
    assert await alice.quote(address, amount=sats(10)) == 0
    async with bob.events() as events:
        paid = await alice.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="1")
        with trio.fail_after(10):
            heard = await anext(aiter(events))
    assert (paid.state, paid.amount, paid.payment_hash, paid.key) == (PaymentState.SETTLED, sats(10), "", "1")
    assert (heard.payment_id, heard.amount, heard.outside) == (paid.payment_id, sats(10), True)
    assert await alice.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="1") == paid
    assert await alice.lookup_key("1") == paid
    assert await alice.lookup_key("2") is None
    assert (await bob.balance()).settled == sats(11)
    again = await alice.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="2")
    assert again.payment_id != paid.payment_id, "an address is paid as often as one likes"


async def test_an_address_wants_an_amount_in_whole_sats_and_is_not_ones_own(funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    address = (await bob.addresses()).spark
    for amount in (None, Msat(0), Msat(-1_000), Msat(1_500)):
        with pytest.raises(InvoiceInvalid):
            await alice.pay(address, amount=amount, max_fee=Msat(0), idempotency_key="1")
    with pytest.raises(NoRoute):
        await alice.pay((await alice.addresses()).spark, amount=sats(1), max_fee=Msat(0), idempotency_key="1")
    mainnet = spark_address.encode("mainnet", bob.identity_pubkey)
    with pytest.raises(WrongNetwork):
        await alice.pay(mainnet, amount=sats(1), max_fee=Msat(0), idempotency_key="1")
    assert await alice.lookup_key("1") is None


async def test_a_fraction_of_a_sat_is_paid_as_a_fee(network, funded, monkeypatch):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(2), "", 600, "k")
    read = bolt11.decode(issued.bolt11)
    text = bolt11.encode(
        prefix="bcrt", amount_msats=1_500, timestamp=read.timestamp, payment_hash=read.payment_hash,
        payment_secret=read.payment_secret, description="", node_secret=b"\x05" * 32,
    )  # fmt: skip
    network._invoices[read.payment_hash].bolt11 = text
    fee = await alice.quote(text)
    assert fee == sats(network.fee(2)) + 500
    paid = await alice.pay(text, max_fee=fee, idempotency_key="1")
    assert (paid.amount, paid.fee) == (1_500, fee)
    assert (await alice.balance()).settled == sats(100_000) - 1_500 - fee


async def test_a_named_amount_that_is_another_is_refused(funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(10), "", 600, "k")
    with pytest.raises(InvoiceInvalid):
        await alice.quote(issued.bolt11, amount=sats(11))
    assert await alice.quote(issued.bolt11, amount=sats(10)) > 0


async def test_what_has_just_come_in_can_be_spent(network, kit, funded, wallet, server):
    """Also by a wallet that is opened for this payment, and has taken nothing yet."""
    bob = await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    alice = wallet("alice", server=server)
    await network.deposit(alice.identity_pubkey, 5_000)
    paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert paid.state is PaymentState.SETTLED


async def test_what_has_come_in_since_the_last_look_can_be_spent(network, tmp_path, clock, funded, server):
    bob = await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    kit = SparkKit(
        REGTEST, clock=clock, directory=tmp_path, bridge=InlineBridge(), sdk=network, fresh_seconds=60, durable=False
    )
    alice = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    assert (await alice.balance()).settled == 0
    await network.deposit(alice.identity_pubkey, 5_000)
    paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert paid.state is PaymentState.SETTLED
    await alice.aclose()


# --- unknown ----------------------------------------------------------------------------------------------------------


async def test_an_answer_that_never_comes_is_unknown_in_time_and_found_later(network, funded, clock):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    network.fault(alice.identity_pubkey, Fault("silent"))
    began = clock.monotonic()
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert clock.monotonic() - began == pytest.approx(SparkDeadlines().send, abs=1)
    found = await alice.lookup_payment(issued.payment_hash)
    assert found.state is PaymentState.SETTLED
    assert await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1") == found


async def test_what_never_arrived_is_pending_until_it_is_certain(network, funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 6_000, "k")
    network.fault(alice.identity_pubkey, Fault("dropped"))
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    during = await alice.lookup_payment(issued.payment_hash)
    assert (during.state, during.fee) == (PaymentState.PENDING, FEE_CAP)
    assert (await alice.balance()).spendable == sats(100_000) - sats(1_000) - FEE_CAP
    with pytest.raises(AlreadyPaid):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="2")
    await trio.sleep(LOST_SECONDS - 30)
    assert (await alice.lookup_payment(issued.payment_hash)).state is PaymentState.PENDING
    await trio.sleep(60)
    network.online = False
    with pytest.raises(WalletUnreachable):
        await alice.lookup_payment(issued.payment_hash)
    network.online = True
    assert (await alice.lookup_payment(issued.payment_hash)).state is PaymentState.PENDING, "one look proves nothing"
    assert (await alice.lookup_payment(issued.payment_hash)).state is PaymentState.FAILED
    assert (await alice.balance()).spendable == sats(100_000)
    paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="2")
    assert paid.state is PaymentState.SETTLED


async def looks(wallet: SparkWallet, payment_hash: str) -> set[PaymentState]:
    """What a wallet says of a payment, asked thrice: once proves nothing."""
    return {(await wallet.lookup_payment(payment_hash)).state for _ in range(3)}


@pytest.mark.parametrize(("seconds", "jump"), [(70, 1_000), (70, -1_000), (1_200, 0)])
async def test_while_the_call_runs_its_payment_is_not_lost(network, funded, clock, seconds, jump):
    """Also where the wall clock was set, or the machine slept."""
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    network.fault(alice.identity_pubkey, Fault("slow", seconds))
    began = clock.monotonic()
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert clock.monotonic() - began == pytest.approx(SparkDeadlines().send, abs=1)
    clock.skew += jump
    while clock.monotonic() - began < seconds - 10:
        assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
        with pytest.raises(AlreadyPaid):
            await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="2")
        again = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
        assert again.state is PaymentState.PENDING
        assert (await alice.balance()).spendable == sats(100_000) - sats(1_000) - FEE_CAP
        assert alice.is_busy
        assert not await alice.let_go(), "the call is not broken off"
        await trio.sleep(5)
    await trio.sleep(20)
    assert await looks(alice, issued.payment_hash) == {PaymentState.SETTLED}
    assert not alice.is_busy
    assert (await bob.balance()).settled == sats(1_001)
    assert network.calls.count("send_payment") == 1


async def test_the_call_of_a_wallet_that_was_closed_counts_too(network, kit, funded, server):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    network.fault(alice.identity_pubkey, Fault("slow", 3_000.0))
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    await alice.aclose()
    again = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    for _ in range(2):
        await trio.sleep(LOST_SECONDS + 60)
        assert await looks(again, issued.payment_hash) == {PaymentState.PENDING}
    await trio.sleep(1_500)
    assert await looks(again, issued.payment_hash) == {PaymentState.SETTLED}
    assert alice._journal._db is None
    await again.aclose()


async def test_silence_is_not_counted_by_the_wall_clock(network, funded, clock):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    network.fault(alice.identity_pubkey, Fault("dropped"))
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    clock.skew += 10_000
    assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
    clock.skew -= 20_000
    await trio.sleep(LOST_SECONDS - 30)
    assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
    await trio.sleep(60)
    assert PaymentState.FAILED in await looks(alice, issued.payment_hash)


@pytest.mark.parametrize("ago", [10_000.0, 0.0, -5_000.0])
async def test_another_life_of_the_process_counts_for_nothing(funded, clock, ago):
    """What it has sent is waited for anew, by either clock: it may have been sent just before it died."""
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    began = clock.now() - ago
    alice._journal.begin(
        Send("1", alice._id("1"), issued.payment_hash, issued.bolt11, sats(1_000), FEE_CAP, began, Stage.SENT)
    )
    await trio.sleep(2 * LOST_SECONDS)  # nobody has looked yet
    assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
    await trio.sleep(LOST_SECONDS - 30)
    assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
    await trio.sleep(60)
    if ago < 0:  # the wall clock was set back
        assert await looks(alice, issued.payment_hash) == {PaymentState.PENDING}
        await trio.sleep(5_000)
    assert PaymentState.FAILED in await looks(alice, issued.payment_hash)
    assert (await alice.balance()).spendable == sats(100_000)


async def test_what_is_refused_late_was_not_sent_and_is_not_tried_again(network, funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    network.fault(alice.identity_pubkey, Fault("slow", 100.0))
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    network.account(alice.identity_pubkey).balance = 0
    await trio.sleep(60)
    assert await alice.lookup_payment(issued.payment_hash) is None
    assert await alice.lookup_key("1") is None
    assert network.calls.count("send_payment") == 1
    await network.deposit(alice.identity_pubkey, 5_000)
    assert (await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")).state is PaymentState.SETTLED


@pytest.mark.parametrize("forgets", [True, False])
async def test_what_has_settled_is_settled_whatever_the_sdk_remembers(network, funded, forgets):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    if forgets:
        network._transfers.clear()
        for storage in network._storages.values():
            storage.payments.clear()
    else:
        for transfer in network._transfers.values():
            transfer.state = "FAILED"
        await alice.balance()
        for storage in network._storages.values():
            storage.payments = {p.id: network.payment(network._transfers[p.id], alice.identity_pubkey)
                                for p in storage.payments.values()}  # fmt: skip
    await trio.sleep(2 * LOST_SECONDS)
    assert await looks(alice, issued.payment_hash) == {PaymentState.SETTLED}
    found = await alice.lookup_key("1")
    assert (found.amount, found.fee, found.key) == (sats(1_000), FEE_CAP, "1")
    with pytest.raises(AlreadyPaid):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="2")
    if forgets:
        network.online = False
        with pytest.raises(WalletUnreachable):
            await alice.lookup_key("1")  # Spark may tell more, once it is there


async def test_what_was_taken_for_lost_and_comes_after_all_is_paid(network, funded):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    alice._journal._write("UPDATE sends SET stage = 'failed'", ())
    assert await looks(alice, issued.payment_hash) == {PaymentState.SETTLED}
    with pytest.raises(AlreadyPaid):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="2")


async def test_what_is_not_written_down_any_more_is_not_sent(network, funded, monkeypatch):
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    real = FakeBreezSdk.prepare_send_payment

    async def prepare(self, request):
        alice._journal.forget("1")  # as another process would that takes it for dead
        return await real(self, request)

    monkeypatch.setattr(FakeBreezSdk, "prepare_send_payment", prepare)
    with pytest.raises(StoreError):
        await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert "send_payment" not in network.calls
    assert not alice.is_busy
    monkeypatch.undo()
    assert (await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")).state is PaymentState.SETTLED


async def test_two_that_are_one_wallet_forget_nothing_of_each_other(network, kit, funded, server):
    """A wallet may be opened twice for a while: what one is about to send, the other leaves alone."""
    alice, bob = await funded("alice"), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 60_000, "k")
    twin = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    real, seen = FakeBreezSdk.prepare_send_payment, []

    async def prepare(self, request):
        seen.append(await twin.lookup_payment(issued.payment_hash))
        return await real(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeBreezSdk, "prepare_send_payment", prepare)
        paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert [found.state for found in seen] == [PaymentState.PENDING]
    assert paid.state is PaymentState.SETTLED
    await twin.aclose()


async def test_no_more_is_on_its_way_than_there_is(network, funded):
    """Of an unknown payment the highest fee counts, which the wallet may not have."""
    alice, bob = await funded("alice", 1_004), await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    network.fault(alice.identity_pubkey, Fault("dropped"))
    with pytest.raises(PaymentUnknown):
        await alice.pay(issued.bolt11, max_fee=sats(500), idempotency_key="1")
    balance = await alice.balance()
    assert (balance.settled, balance.pending_out, balance.spendable) == (sats(1_004), sats(1_004), 0)


async def test_a_process_that_died_before_it_told_the_sdk_has_sent_nothing(kit, funded, server):
    bob = await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    alice = await funded("alice")
    send = Send("1", alice._id("1"), issued.payment_hash, issued.bolt11, sats(1_000), FEE_CAP, 1.0, Stage.ASKED)
    alice._journal.begin(send)
    assert await alice.lookup_payment(issued.payment_hash) is None
    assert (await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")).state is PaymentState.SETTLED


async def test_a_process_that_died_while_sending_finds_out(kit, network, funded, server):
    bob = await funded("bob", 1)
    issued = await bob.receive(sats(1_000), "", 600, "k")
    alice = await funded("alice")
    network.fault(alice.identity_pubkey, Fault("pend", 30.0))
    paid = await alice.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert paid.state is PaymentState.PENDING
    await alice.aclose()
    again = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    assert (await again.lookup_key("1")).state is PaymentState.PENDING
    await trio.sleep(31)
    done = await again.pay(issued.bolt11, max_fee=FEE_CAP, idempotency_key="1")
    assert (done.payment_id, done.state, done.key) == (paid.payment_id, PaymentState.SETTLED, "1")
    assert again._journal.under_way() == []
    await again.aclose()


async def test_a_lost_journal_pays_nothing_twice(kit, network, funded, server):
    """The names of payments follow from wallet and key: the operators know them."""
    alice, bob = await funded("alice"), await funded("bob", 1)
    address = (await bob.addresses()).spark
    paid = await alice.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="1")
    await alice.aclose()
    (kit.directory / alice.identity_pubkey[:16] / "journal.db").unlink()
    again = SparkWallet(kit, SEEDS["alice"], "alice", server=server)
    same = await again.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="1")
    assert same.payment_id == paid.payment_id
    assert (await again.balance()).settled == sats(100_000 - 10)
    await again.aclose()


async def test_two_wallets_with_one_key_make_two_payments(funded):
    alice, carol, bob = await funded("alice"), await funded("carol"), await funded("bob", 1)
    address = (await bob.addresses()).spark
    for payer in (alice, carol):
        await payer.pay(address, amount=sats(10), max_fee=Msat(0), idempotency_key="1")
    assert (await bob.balance()).settled == sats(21)


async def test_payments_come_by_pages_and_either_way(funded, clock, monkeypatch):
    monkeypatch.setattr(spark_link, "PAGE", 3)
    alice, bob = await funded("alice"), await funded("bob", 1)
    address = (await bob.addresses()).spark
    for number in range(8):
        await trio.sleep(2)
        await alice.pay(address, amount=sats(1 + number), max_fee=Msat(0), idempotency_key=str(number))
    everything = await alice.payments()
    assert [payment.amount for payment in everything] == [sats(100_000), *(sats(1 + number) for number in range(8))]
    assert [payment.key for payment in everything][1:] == [str(number) for number in range(8)]
    assert await alice.payments(newest=True, limit=4) == everything[::-1][:4]
    assert await alice.payments(limit=5) == everything[:5]
    assert await alice.payments(since=everything[4].created_at - 0.5) == everything[4:]
    assert await alice.payments(completed=True) == everything
    assert len({payment.payment_id for payment in everything}) == 9
    deposit = everything[0]
    assert (deposit.outside, deposit.description, deposit.payment_hash) == (True, "on-chain deposit", "")


async def test_offline_the_history_is_what_was_known(network, funded):
    alice = await funded("alice")
    known = await alice.payments()
    network.online = False
    assert await alice.payments() == known


FAULTS = ["", "pend", "delay", "fail", "lost", "silent", "dropped", "slow"]


@given(
    st.lists(st.tuples(st.sampled_from(FAULTS), st.booleans(), st.integers(0, 3), st.integers(1, 30_000)), max_size=6)
)
@settings(max_examples=30, deadline=None)
def test_whatever_goes_wrong_a_key_pays_once_and_nothing_is_lost(steps):
    """Keys used again and again, with every fault, restarts between them: each pays once at most, to the millisat."""
    with TemporaryDirectory() as name:
        trio.run(partial(_payments, Path(name), steps), clock=trio.testing.MockClock(autojump_threshold=0))


async def _payments(directory, steps):
    clock = VirtualClock()
    network = FakeSpark(clock)
    kit = SparkKit(
        REGTEST, clock=clock, directory=directory, bridge=InlineBridge(), sdk=network, fresh_seconds=0.0, durable=False
    )
    alice, bob = SparkWallet(kit, SEEDS["alice"], "alice"), SparkWallet(kit, SEEDS["bob"], "bob")
    await network.deposit(alice.identity_pubkey, 50_000)
    before = network.total()
    for kind, settles, key, amount in steps:
        if kind:
            network.fault(alice.identity_pubkey, Fault(kind, 200.0 if kind == "slow" else 20.0, settles))
        issued = await bob.receive(sats(amount), "", 3_600, f"{key}-{amount}")
        try:
            await alice.pay(issued.bolt11, max_fee=sats(1_000), idempotency_key=str(key))
        except WalletError:
            pass
        network.account(alice.identity_pubkey).faults.clear()
        if settles:
            await alice.aclose()
            alice = SparkWallet(kit, SEEDS["alice"], "alice")
        balance = await alice.balance()
        assert 0 <= balance.spendable <= balance.settled
    await trio.sleep(LOST_SECONDS * 2)
    made = [t for t in network._transfers.values() if t.sender == alice.identity_pubkey]
    paid = [t for t in made if t.state == "COMPLETED"]
    assert len({t.hash for t in paid}) == len(paid), "no invoice is paid twice"
    assert len(made) <= len({key for _, _, key, _ in steps}), "no key pays twice"
    settled = [p for p in await alice.payments() if p.direction is Direction.SENT and p.state is PaymentState.SETTLED]
    assert sorted(p.payment_id for p in settled) == sorted(t.id for t in paid)
    for _ in range(2):  # what was never made is believed when it was missed twice
        balance = await alice.balance()
    assert balance.settled == sats(50_000) - sum(p.amount + p.fee for p in settled)
    assert balance.pending_out == 0
    for key in {str(key) for _, _, key, _ in steps}:
        found = await alice.lookup_key(key)
        assert found is None or found.state is not PaymentState.PENDING
    assert network.total() + network.fees() == before
    await alice.aclose()
    await bob.aclose()
