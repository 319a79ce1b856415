"""Our client with wallets that are not ours: they forget, lie, speak the old cipher only, and answer late or never."""

from __future__ import annotations

import hashlib
import logging
import random

import attrs
import pytest
import trio

from protocols import bolt11, nip47
from protocols.keys import PublicKey, SecretKey
from protocols.nip47 import ConnectionUri, Encryption, ErrorCode, Failure
from pylon.errors import (
    AlreadyPaid,
    BudgetExceeded,
    InsufficientFunds,
    NoRoute,
    NotSupported,
    PaymentFailed,
    PaymentUnknown,
    WalletError,
    WrongNetwork,
)
from pylon.money import max_fee, sats
from pylon.relays.pool import RelayPool, Verdict
from pylon.wallets.port import Can, PaymentState
from tests.pylon.wallets.conformance_house import FEE_CAP, key
from tests.pylon.wallets.nwc_world import PATIENCE, RELAY, open_world

AMOUNT = sats(1_000)
PREIMAGE = "42" * 32
HASH = hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest()
ALL = ("pay_invoice", "get_balance", "make_invoice", "lookup_invoice", "list_transactions", "get_info")


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with open_world(tmp_path) as opened:
        yield opened


@attrs.define
class Scripted:
    """A wallet service whose answers a test decides: a result, a ``Failure``, or ``None`` for silence."""

    world: object
    secret: SecretKey = SecretKey(b"\x51" * 32)
    client: SecretKey = SecretKey(b"\x52" * 32)
    cipher: Encryption | None = None
    network: str = "mainnet"
    methods: tuple = ALL
    answers: dict = attrs.field(factory=dict)
    asked: list = attrs.field(factory=list)

    @property
    def uri(self):
        return ConnectionUri(self.secret.public, (RELAY,), self.client)

    def answer(self, request):
        known = {
            "get_info": {"alias": "theirs", "network": self.network, "methods": list(self.methods)},
            "get_balance": {"balance": 5_000_000},
            "lookup_invoice": Failure(ErrorCode.NOT_FOUND, "no such invoice"),
            "list_transactions": {"transactions": []},
        }
        found = {**known, **self.answers}.get(request.method, Failure(ErrorCode.NOT_IMPLEMENTED, "no"))
        return found(request) if callable(found) else found

    def count(self, method):
        return sum(request.method == method for request in self.asked)

    def notify(self, type, body):
        self.world.relay.publish(
            nip47.build_notification(
                self.secret, self.client.public, type=type, body=body, created_at=int(self.world.clock.now())
            )
        )

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        world = self.world
        pool = RelayPool([RELAY], connect=world.connect, clock=world.clock, rng=random.Random(5))
        wanted = nip47.service_filter([self.secret.public.hex], [self.client.public.hex])
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            async with pool.subscribe([wanted]) as subscription:
                await pool.connected()
                await trio.sleep(0.1)
                task_status.started()
                async for received in subscription:
                    request = nip47.open_request(received.event, self.secret)
                    assert self.cipher in (None, request.encryption)
                    self.asked.append(request)
                    answer = self.answer(request)
                    if answer is None:
                        continue
                    failed = isinstance(answer, Failure)
                    response = nip47.build_response(
                        self.secret,
                        PublicKey.from_hex(request.client),
                        request=request.id,
                        method=request.method,
                        result=None if failed else answer,
                        error=answer if failed else None,
                        created_at=int(world.clock.now()),
                        encryption=request.encryption,
                    )
                    await pool.send_ephemeral(response)


@pytest.fixture
async def theirs(world, nursery):
    service = Scripted(world)
    await nursery.start(service.run)
    return service


@pytest.fixture
async def wallet(world, theirs):
    async with world.using(theirs.uri, "client") as opened:
        yield opened


def invoice(world, amount=AMOUNT, prefix="bc", payment_hash=HASH):
    return bolt11.encode(
        prefix=prefix,
        amount_msats=amount,
        timestamp=int(world.clock.now()),
        payment_hash=payment_hash,
        payment_secret="22" * 32,
        description="tea",
        node_secret=b"\x07" * 32,
    )


def sent(state="settled", **more):
    said = {"type": "outgoing", "state": state, "payment_hash": HASH, "amount": AMOUNT, "fees_paid": 7, "created_at": 9}
    return said | ({"preimage": PREIMAGE, "settled_at": 1_800_000_050} if state == "settled" else {}) | more


async def pay(wallet, text, name="1"):
    return await wallet.pay(text, max_fee=FEE_CAP, idempotency_key=key(name))


async def test_what_it_learns_of_a_wallet(wallet):
    info = await wallet.info()
    assert (info.name, info.network, info.kind) == ("theirs", "mainnet", "nwc")
    assert info.can == frozenset({Can.OPEN_AMOUNT})
    assert info.unit_msats == 1_000
    balance = await wallet.balance()
    assert (balance.settled, balance.pending_out) == (5_000_000, 0)
    addresses = await wallet.addresses()
    assert (addresses.spark, addresses.bitcoin) == (None, None)


async def test_a_plain_payment(world, theirs, wallet):
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE, "fees_paid": 7}
    paid = await pay(wallet, invoice(world))
    assert (paid.state, paid.fee, paid.preimage) == (PaymentState.SETTLED, 7, PREIMAGE)
    assert await pay(wallet, invoice(world)) == paid
    with pytest.raises(AlreadyPaid):
        await pay(wallet, invoice(world), "2")
    assert theirs.count("pay_invoice") == 1


@pytest.mark.parametrize("does", ["receive", "cancel"])
async def test_what_the_wallet_has_done_is_written_down_whoever_goes_away(world, theirs, wallet, monkeypatch, does):
    """The answer has come, and the deadline of whoever asked is over in that very moment."""
    theirs.methods = (*ALL, "make_hold_invoice", "settle_hold_invoice", "cancel_hold_invoice")
    theirs.answers["make_invoice"] = lambda request: {"invoice": invoice(world)}
    theirs.answers["make_hold_invoice"] = lambda request: {"invoice": invoice(world)}
    theirs.answers["cancel_hold_invoice"] = {}
    if does == "cancel":
        await wallet.hold(AMOUNT, "tea", 600, "job", HASH)
    name = "ask" if does == "receive" else "end_hold"
    real = getattr(wallet._link, name)
    scope = trio.CancelScope()

    async def answered(*asked):
        answer = await real(*asked)
        scope.cancel()
        return answer

    monkeypatch.setattr(wallet._link, name, answered)
    with scope:
        await (wallet.receive(AMOUNT, "tea", 600, "job") if does == "receive" else wallet.cancel(HASH))
    monkeypatch.undo()
    if does == "cancel":
        assert (await wallet.lookup_invoice(HASH)).cancelled
    else:
        assert (await wallet.receive(AMOUNT, "tea", 600, "job")).payment_hash == HASH
        assert theirs.count("make_invoice") == 1


async def test_a_proof_in_hand_outlives_the_look_that_follows_it(world, theirs, wallet):
    """The wallet has answered with the preimage late, and is then slow to say when it paid."""
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE, "fees_paid": 1_000}
    text = invoice(world)

    def slow(request):
        return None if theirs.count("pay_invoice") else Failure(ErrorCode.NOT_FOUND, "no")

    theirs.answers["lookup_invoice"] = slow
    wallet._payer._patience = 5.0
    await pay(wallet, text)
    theirs.answers["lookup_invoice"] = Failure(ErrorCode.NOT_FOUND, "no")
    found = await wallet.lookup_payment(HASH)
    assert (found.state, found.preimage, found.fee) == (PaymentState.SETTLED, PREIMAGE, 1_000)


async def test_silence_is_unknown_and_is_asked_once(world, theirs, wallet):
    theirs.answers["pay_invoice"] = None
    began = trio.current_time()
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert trio.current_time() - began < PATIENCE + 20
    assert theirs.count("pay_invoice") == 1
    # While the request may still arrive, it is neither unheard of nor asked for again.
    found = await wallet.lookup_payment(HASH)
    assert found.state is PaymentState.PENDING
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert theirs.count("pay_invoice") == 1
    assert (await wallet.balance()).pending_out == AMOUNT + max_fee(AMOUNT)
    # It has lapsed: the wallet has never heard of it, and may be asked again.
    await trio.sleep(120)
    assert await wallet.lookup_payment(HASH) is None
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE}
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED
    assert theirs.count("pay_invoice") == 2
    expires = [request.expires_at for request in theirs.asked if request.method == "pay_invoice"]
    assert None not in expires


@pytest.mark.parametrize("by", ["a look", "a notification"])
async def test_a_lost_response_is_made_up_for(world, theirs, wallet, by):
    def paying(request):
        if by == "a look":
            theirs.answers["lookup_invoice"] = sent()
        else:
            theirs.notify("payment_sent", sent())

    theirs.answers["pay_invoice"] = paying
    paid = await pay(wallet, invoice(world))
    assert (paid.state, paid.fee, paid.preimage) == (PaymentState.SETTLED, 7, PREIMAGE)
    assert theirs.count("pay_invoice") == 1


@pytest.mark.parametrize("code", [ErrorCode.PAYMENT_FAILED, ErrorCode.INTERNAL, ErrorCode.OTHER])
async def test_an_error_of_what_was_paid_all_the_same(world, theirs, wallet, code):
    def paying(request):
        theirs.answers["lookup_invoice"] = sent()
        return Failure(code, "timeout")

    theirs.answers["pay_invoice"] = paying
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED


@pytest.mark.parametrize("code", [ErrorCode.PAYMENT_FAILED, ErrorCode.INTERNAL])
async def test_an_error_of_what_is_on_its_way(world, theirs, wallet, code):
    def paying(request):
        theirs.answers["lookup_invoice"] = sent("pending")
        return Failure(code, "timeout")

    theirs.answers["pay_invoice"] = paying
    assert (await pay(wallet, invoice(world))).state is PaymentState.PENDING
    theirs.answers["lookup_invoice"] = sent("failed")
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED


def failing(theirs, lookup, code=ErrorCode.PAYMENT_FAILED):
    """A wallet that answers so, and from then on is found to know this of it."""

    def paying(request):
        theirs.answers["lookup_invoice"] = lookup
        return Failure(code, "no route")

    theirs.answers["pay_invoice"] = paying


NOTHING = Failure(ErrorCode.NOT_FOUND, "no such invoice")
UNTYPED = {"payment_hash": HASH, "amount": AMOUNT, "created_at": 9}


async def test_failed_is_failed(world, theirs, wallet):
    failing(theirs, sent("failed"))
    with pytest.raises(PaymentFailed, match="no route"):
        await pay(wallet, invoice(world))
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED
    with pytest.raises(PaymentFailed):
        await pay(wallet, invoice(world))
    assert theirs.count("pay_invoice") == 1


@pytest.mark.parametrize("lookup", [NOTHING, UNTYPED, Failure(ErrorCode.INTERNAL, "oops")])
@pytest.mark.parametrize("ends", [PaymentState.SETTLED, PaymentState.FAILED])
async def test_failed_and_not_shown_is_not_known(world, theirs, wallet, lookup, ends):
    """It may be a timeout: neither failed nor asked for again, until nobody can pay the invoice any more."""
    failing(theirs, lookup)
    text = invoice(world)
    for _ in range(3):
        with pytest.raises(PaymentUnknown):
            await pay(wallet, text)
        await trio.sleep(300)
    if not isinstance(lookup, Failure) or lookup is NOTHING:
        assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
        assert (await wallet.lookup_key(key("1"))).state is PaymentState.PENDING
    assert theirs.count("pay_invoice") == 1
    if ends is PaymentState.SETTLED:
        theirs.answers["lookup_invoice"] = sent()
    else:
        theirs.answers["lookup_invoice"] = lookup if lookup is UNTYPED else NOTHING
        world.clock.skew += 3_600
        assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
        world.clock.skew += 3_600
    assert (await wallet.lookup_payment(HASH)).state is ends
    assert (await wallet.balance()).pending_out == 0
    assert theirs.count("pay_invoice") == 1


async def test_a_wallet_that_names_no_direction_has_paid(world, theirs, wallet):
    """What reads as incoming and has settled is no failure of ours, however long we wait."""
    failing(theirs, {**UNTYPED, "state": "settled", "settled_at": 9})
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    world.clock.skew += 3 * 3_600
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING


async def test_failed_is_looked_at_again(world, theirs, wallet):
    failing(theirs, sent("failed"))
    with pytest.raises(PaymentFailed):
        await pay(wallet, invoice(world))
    theirs.answers["lookup_invoice"] = sent(None)  # no word of its state: nothing new
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED
    theirs.answers["lookup_invoice"] = Failure(ErrorCode.INTERNAL, "oops")
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED
    theirs.answers["lookup_invoice"] = sent("pending")
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
    assert (await wallet.balance()).pending_out == AMOUNT + 7
    theirs.answers["lookup_invoice"] = sent()
    assert (await wallet.lookup_key(key("1"))).state is PaymentState.SETTLED
    assert (await wallet.balance()).pending_out == 0


async def test_what_was_on_its_way_and_is_forgotten_is_not_asked_for_again(world, theirs, wallet):
    theirs.answers["pay_invoice"] = lambda request: theirs.answers.update(lookup_invoice=sent("pending"))
    text = invoice(world)
    assert (await pay(wallet, text)).state is PaymentState.PENDING
    theirs.answers["lookup_invoice"] = NOTHING
    await trio.sleep(300)
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
    with pytest.raises(PaymentUnknown):
        await pay(wallet, text)
    assert theirs.count("pay_invoice") == 1
    world.clock.skew += 2 * 3_600
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED


async def test_an_internal_error_is_no_proof(world, theirs, wallet):
    theirs.answers["pay_invoice"] = Failure(ErrorCode.INTERNAL, "oops")
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.QUOTA_EXCEEDED, BudgetExceeded),
        (ErrorCode.UNAUTHORIZED, WalletError),
        (ErrorCode.NOT_IMPLEMENTED, NotSupported),
    ],
)
async def test_a_refusal_leaves_nothing_behind(world, theirs, wallet, code, expected):
    theirs.answers["pay_invoice"] = Failure(code, "no")
    with pytest.raises(expected) as caught:
        await pay(wallet, invoice(world))
    assert not isinstance(caught.value, PaymentUnknown)
    assert await wallet.lookup_payment(HASH) is None
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE}
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED


UNDONE = [ErrorCode.INSUFFICIENT_BALANCE, ErrorCode.QUOTA_EXCEEDED, ErrorCode.RATE_LIMITED, "already_paid"]


@pytest.mark.parametrize("code", UNDONE)
async def test_a_refusal_of_the_twin_of_what_is_paid(world, theirs, wallet, code):
    """Two relays bring one request: the first is paid, the second refused, and the refusal is heard first."""

    def paying(request):
        theirs.answers["lookup_invoice"] = sent("pending")
        return Failure(ErrorCode.OTHER, "no", code) if code == "already_paid" else Failure(code, "no")

    theirs.answers["pay_invoice"] = paying
    assert (await pay(wallet, invoice(world))).state is PaymentState.PENDING
    theirs.answers["lookup_invoice"] = sent()
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.SETTLED
    assert theirs.count("pay_invoice") == 1


@pytest.mark.parametrize("code", UNDONE[:3])
@pytest.mark.parametrize("lookup", [UNTYPED, Failure(ErrorCode.INTERNAL, "oops")])
async def test_a_refusal_that_cannot_be_looked_into(world, theirs, wallet, code, lookup):
    failing(theirs, lookup, code)
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert theirs.count("pay_invoice") == 1
    theirs.answers["lookup_invoice"] = sent()
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.SETTLED


@pytest.mark.parametrize("balance", [{"balance": 21_000}, Failure(ErrorCode.INTERNAL, "oops")])
async def test_what_is_not_known_is_not_zero(world, theirs, wallet, balance):
    theirs.answers |= {"pay_invoice": Failure(ErrorCode.INSUFFICIENT_BALANCE, "no"), "get_balance": balance}
    with pytest.raises(InsufficientFunds) as caught:
        await pay(wallet, invoice(world))
    known = isinstance(balance, dict)
    assert caught.value.available_msats == (21_000 if known else None)
    assert ("21.000 sat" in caught.value.message) == known
    assert " 0.000 sat" not in caught.value.message
    assert "wallet fund" not in caught.value.hint, "there is no faucet of ours for it"


@pytest.mark.parametrize("code", [ErrorCode.PAYMENT_FAILED, ErrorCode.INSUFFICIENT_BALANCE])
async def test_what_a_wallet_refuses_that_looks_nothing_up(world, nursery, code):
    service = Scripted(world, methods=("pay_invoice", "get_balance"))
    service.answers["pay_invoice"] = Failure(code, "no")
    await nursery.start(service.run)
    async with world.using(service.uri, "poor") as wallet:
        for _ in range(2):
            with pytest.raises(PaymentUnknown):
                await pay(wallet, invoice(world))
            await trio.sleep(300)
        assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
        world.clock.skew += 2 * 3_600
        assert (await wallet.lookup_payment(HASH)).state is PaymentState.FAILED
    assert service.count("pay_invoice") == 1


@pytest.mark.parametrize("passes_on", [True, False])
async def test_relays_that_refuse(world, theirs, wallet, monkeypatch, passes_on):
    """A relay may say no and pass it on: the request has left, and lapses."""
    await wallet.info()
    pool = wallet._client._pool

    async def refusing(url, event):
        await trio.sleep(0.1)
        if passes_on or b"pay" not in wanted:
            world.relay.publish(event)
        return Verdict(False, "blocked", "blocked: no wallets here")

    wanted = []
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE}
    monkeypatch.setattr(pool, "publish", refusing)
    if passes_on:
        assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED
        return
    original = wallet._link.pay

    async def paying(asked, seconds):
        wanted.append(b"pay")
        try:
            return await original(asked, seconds)
        finally:
            wanted.clear()

    monkeypatch.setattr(wallet._link, "pay", paying)
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
    monkeypatch.undo()
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert theirs.count("pay_invoice") == 0
    await trio.sleep(120)
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED


async def test_a_success_without_proof(world, theirs, wallet):
    theirs.answers["pay_invoice"] = {"preimage": "00" * 32}
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    theirs.answers["lookup_invoice"] = sent(preimage=None)
    found = await wallet.lookup_payment(HASH)
    assert (found.state, found.preimage) == (PaymentState.SETTLED, None)


async def test_an_old_failure_of_the_same_invoice_is_not_ours(world, theirs, wallet):
    """The wallet remembers a failure of before: it counts only once our own request was answered, or has lapsed."""
    theirs.answers["lookup_invoice"] = sent("failed")
    theirs.answers["pay_invoice"] = None
    with pytest.raises(PaymentUnknown):
        await pay(wallet, invoice(world))
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.PENDING
    theirs.answers["lookup_invoice"] = sent()
    assert (await wallet.lookup_payment(HASH)).state is PaymentState.SETTLED


async def test_its_own_invoice_and_another_network(world, theirs, wallet):
    with pytest.raises(WrongNetwork):
        await pay(wallet, invoice(world, prefix="bcrt"))
    theirs.answers["lookup_invoice"] = {"type": "incoming", "payment_hash": HASH, "amount": AMOUNT}
    with pytest.raises(NoRoute):
        await pay(wallet, invoice(world))
    theirs.answers["lookup_invoice"] = sent()
    with pytest.raises(AlreadyPaid):
        await pay(wallet, invoice(world))
    assert theirs.count("pay_invoice") == 0


async def test_busy_it_is_asked_again(world, theirs, wallet):
    turned_away = []

    def paying(request):
        turned_away.append(request)
        return Failure(ErrorCode.RATE_LIMITED, "slow down") if len(turned_away) < 3 else {"preimage": PREIMAGE}

    theirs.answers["pay_invoice"] = paying
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED


@pytest.mark.parametrize("made", [None, {}, {"invoice": "lnbc1"}, "another amount"])
async def test_what_it_makes_instead_of_an_invoice(world, theirs, wallet, made):
    theirs.answers["make_invoice"] = {"invoice": invoice(world, AMOUNT // 2)} if made == "another amount" else made
    with pytest.raises(WalletError):
        await wallet.receive(AMOUNT, "tea", 600, "k")


async def test_an_invoice_is_made_once(world, theirs, wallet):
    theirs.answers["make_invoice"] = lambda request: {
        "invoice": invoice(world, payment_hash=hashlib.sha256(request.id.encode()).hexdigest())
    }
    first = await wallet.receive(AMOUNT, "tea", 600, "k")
    assert await wallet.receive(AMOUNT, "tea", 600, "k") == first
    assert theirs.count("make_invoice") == 1
    with pytest.raises(NotSupported):
        await wallet.receive(AMOUNT, "tea", 600, "zap", hash_description=True)


async def test_a_wallet_of_the_old_cipher(world, nursery):
    service = Scripted(world, cipher=Encryption.NIP04)
    await nursery.start(service.run)
    now = int(world.clock.now())
    info = nip47.build_info(service.secret, methods=ALL, encryptions=[Encryption.NIP04], created_at=now)
    world.relay.publish(info)
    async with world.using(service.uri, "old") as wallet:
        service.answers["pay_invoice"] = {"preimage": PREIMAGE}
        assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED
        assert (await wallet.balance()).settled == 5_000_000


async def test_a_wallet_that_looks_nothing_up(world, nursery):
    service = Scripted(world, methods=("pay_invoice", "get_balance"))
    service.answers["pay_invoice"] = {"preimage": PREIMAGE, "fees_paid": 3}
    await nursery.start(service.run)
    async with world.using(service.uri, "poor") as wallet:
        paid = await pay(wallet, invoice(world))
        assert (paid.state, paid.fee) == (PaymentState.SETTLED, 3)
        with pytest.raises(NotSupported):
            await wallet.payments()
        with pytest.raises(NotSupported):
            await wallet.hold(AMOUNT, "x", 600, "k", HASH)


async def test_nobody_there(world, theirs, wallet):
    """Nothing has left: that is no "unknown", and the key is free."""
    await wallet.info()
    world.relay.faults.refuse_connections = True
    world.relay.disconnect_all()
    with pytest.raises(WalletError) as caught:
        await pay(wallet, invoice(world))
    assert not isinstance(caught.value, PaymentUnknown)
    with pytest.raises(WalletError):
        await wallet.balance()
    world.relay.faults.refuse_connections = False
    await trio.sleep(120)
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE}
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED


async def test_the_relay_goes_while_it_pays(world, theirs, wallet):
    await wallet.info()

    def paying(request):
        world.relay.disconnect_all()
        theirs.answers["lookup_invoice"] = sent()

    theirs.answers["pay_invoice"] = paying
    assert (await pay(wallet, invoice(world))).state is PaymentState.SETTLED
    assert theirs.count("pay_invoice") == 1


async def test_after_a_restart_it_is_looked_up_and_not_asked_again(world, theirs):
    theirs.answers["pay_invoice"] = None
    async with world.using(theirs.uri, "client") as wallet:
        with trio.move_on_after(5):
            await pay(wallet, invoice(world))
    theirs.answers["lookup_invoice"] = sent()
    async with world.using(theirs.uri, "client") as wallet:
        paid = await pay(wallet, invoice(world))
        assert (paid.state, paid.key) == (PaymentState.SETTLED, key("1"))
        assert await wallet.lookup_key(key("1")) == paid
    assert theirs.count("pay_invoice") == 1


async def test_a_wallet_that_was_met_before_is_known_while_it_is_away(world, theirs):
    async with world.using(theirs.uri, "client") as wallet:
        before = await wallet.info()
    world.relay.faults.refuse_connections = True
    async with world.using(theirs.uri, "client") as wallet:
        began = trio.current_time()
        assert await wallet.info() == before
        assert trio.current_time() - began < 1


async def test_received_without_being_told(world, theirs, wallet):
    """A wallet that never notifies is asked now and then, while somebody listens."""
    received = {
        "type": "incoming", "state": "settled", "payment_hash": HASH, "amount": AMOUNT, "fees_paid": 0,
        "created_at": int(world.clock.now()), "invoice": invoice(world),
    }  # fmt: skip
    with trio.fail_after(120):
        async with wallet.events() as events:
            await trio.sleep(5)
            at = int(world.clock.now())
            theirs.answers["list_transactions"] = {"transactions": [{**received, "settled_at": at}]}
            payment = await anext(aiter(events))
    assert (payment.payment_hash, payment.amount, payment.settled_at) == (HASH, AMOUNT, at)


async def test_the_secret_is_nowhere(world, theirs, wallet, caplog):
    caplog.set_level(logging.DEBUG)
    theirs.answers["pay_invoice"] = {"preimage": PREIMAGE}
    await pay(wallet, invoice(world))
    theirs.answers["get_balance"] = Failure(ErrorCode.INTERNAL, "oops")
    with pytest.raises(WalletError) as caught:
        await wallet.balance()
    secret = theirs.client.reveal().hex()
    kept = (world.directory / "client-client.db").read_bytes()
    for text in (caplog.text, repr(wallet), repr(theirs.uri), str(caught.value), repr(wallet._client)):
        assert secret not in text
    assert PREIMAGE not in caplog.text
    assert secret.encode() not in kept
    assert PREIMAGE.encode() not in kept
