"""The service: what a connection may see and do, in which cipher it is answered, what is never done twice."""

from __future__ import annotations

import logging
import random

import pytest
import trio

from protocols import bolt11, nip47
from protocols.keys import SecretKey
from protocols.nip01 import Filter, sign_event
from protocols.nip47 import Encryption, ErrorCode
from protocols.nip47_methods import Transaction, TransactionState, TransactionType
from pylon.errors import InsufficientFunds, NotFound, UsageError
from pylon.money import Msat, max_fee, sats
from pylon.relays.pool import RelayPool
from pylon.store import approvals, freeze, intents
from pylon.store import wallet_connections as connections
from pylon.store.wallet_connections import DAY
from pylon.wallets import nwc_guests
from pylon.wallets.budgets import Budget
from pylon.wallets.port import PaymentState
from pylon.wallets.simnet import PREFIX, Fault, FaultKind
from tests.pylon.wallets.nwc_world import RELAY, open_world

PRICE = sats(100)
BUDGET = sats(1_000)


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with open_world(tmp_path) as opened:
        yield opened


class App:
    """Somebody with a connection string, playing by hand."""

    def __init__(self, world, uri):
        self.world = world
        self.uri = uri

    def request(self, method, params=None, *, cipher=Encryption.NIP44, age=0, expires_at=None, secret=None):
        return nip47.build_request(
            secret or self.uri.secret,
            self.uri.wallet,
            method=method,
            params=params or {},
            created_at=int(self.world.clock.now()) - age,
            encryption=cipher,
            expires_at=expires_at,
        )

    async def send(self, event, seconds=10.0):
        """All that comes back within so many seconds: responses to this event, opened."""
        async with self.listening() as heard:
            self.world.relay.publish(event)
            await trio.sleep(seconds)
            return [
                (frame, nip47.open_response(frame, self.uri.secret))
                for frame in heard()
                if frame.kind == nip47.RESPONSE and frame.tag("e") == event.id
            ]

    async def ask(self, method, params=None, **more):
        ((_, response),) = await self.send(self.request(method, params, **more))
        assert response.method == method
        return response

    async def ok(self, method, params=None, **more):
        response = await self.ask(method, params, **more)
        assert response.error is None, response.error
        return response.result

    async def refused(self, method, params=None, **more):
        response = await self.ask(method, params, **more)
        assert response.error is not None, response.result
        return response.error.code

    def listening(self):
        return _Listening(self)


class _Listening:
    def __init__(self, app):
        self.app = app

    async def __aenter__(self):
        world = self.app.world
        self.nursery = trio.open_nursery()
        nursery = await self.nursery.__aenter__()
        self.scope = nursery.cancel_scope
        pool = RelayPool([RELAY], connect=world.connect, clock=world.clock, rng=random.Random(3))
        await nursery.start(pool.run)
        self.context = pool.subscribe([nip47.client_filter(self.app.uri)])
        subscription = await self.context.__aenter__()
        await pool.connected()
        await trio.sleep(0.1)
        return subscription.drain

    async def __aexit__(self, *exc):
        await self.context.__aexit__(*exc)
        self.scope.cancel()
        await self.nursery.__aexit__(None, None, None)


@pytest.fixture
async def shop(world):
    return world.wallet("shop")


async def bill(shop, amount=PRICE, key="bill"):
    return await shop.receive(Msat(amount), "tea", 3_600, key)


@pytest.fixture
async def bank(world):
    wallet = world.wallet("bank")
    await wallet.fund(sats(100_000))
    async with world.serving(wallet, "bank") as serving:
        yield serving


@pytest.fixture
async def app(world, bank):
    _, uri = await bank.connect("app", per_day=BUDGET)
    return App(world, uri)


class TestWhatItSays:
    async def test_its_info_event(self, world, bank, app):
        (event,) = world.relay.events(Filter(kinds=[nip47.INFO], authors=[app.uri.wallet.hex]))
        info = nip47.read_info(event)
        assert info.encryptions == frozenset(Encryption)
        assert {"pay_invoice", "get_balance", "make_invoice", "lookup_invoice", "list_transactions", "get_info"} <= set(
            info.methods
        )
        assert "pay_keysend" not in info.methods
        assert {"payment_received", "payment_sent"} <= set(info.notifications)

    @pytest.mark.parametrize("cipher", list(Encryption))
    async def test_it_answers_in_the_cipher_of_the_request(self, app, cipher):
        ((frame, response),) = await app.send(app.request("get_info", cipher=cipher))
        assert response.error is None
        assert ("?iv=" in frame.content) == (cipher is Encryption.NIP04)
        assert frame.pubkey == app.uri.wallet.hex
        assert frame.tag("p") == app.uri.client.hex

    async def test_a_cipher_that_nobody_knows(self, world, app):
        tags = [["p", app.uri.wallet.hex], ["encryption", "rot13"]]
        event = sign_event(
            app.uri.secret, kind=nip47.REQUEST, content="x", tags=tags, created_at=int(world.clock.now())
        )
        ((_, response),) = await app.send(event)
        assert response.error.code is ErrorCode.UNSUPPORTED_ENCRYPTION

    @pytest.mark.parametrize("method", ["pay_keysend", "multi_pay_invoice", "sign_message", "format_disk"])
    async def test_what_it_does_not_do(self, app, method):
        assert await app.refused(method) is ErrorCode.NOT_IMPLEMENTED

    async def test_the_balance_is_what_the_budget_leaves(self, world, bank, app, shop):
        assert (await app.ok("get_balance"))["balance"] == BUDGET
        issued = await bill(shop)
        paid = await app.ok("pay_invoice", {"invoice": issued.bolt11})
        assert (await app.ok("get_balance"))["balance"] == BUDGET - PRICE - paid["fees_paid"]
        world.clock.skew += DAY
        assert (await app.ok("get_balance"))["balance"] == BUDGET
        poor = world.wallet("poor")
        async with world.serving(poor, "poor") as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            assert (await App(world, uri).ok("get_balance"))["balance"] == 0


class TestPaying:
    async def test_each_request_once(self, world, bank, app, shop):
        issued = await bill(shop)
        event = app.request("pay_invoice", {"invoice": issued.bolt11})
        ((_, first),) = await app.send(event)
        assert first.result["preimage"]
        assert await shop.lookup_invoice(issued.payment_hash)
        world.relay.publish(event)
        await trio.sleep(5)
        other = await app.ask("pay_invoice", {"invoice": issued.bolt11})
        assert other.result == first.result
        assert (await shop.balance()).settled == PRICE
        assert len([p for p in await bank.wallet.payments() if p.direction == "sent"]) == 1

    async def test_a_request_is_once_ever_also_after_a_restart(self, world, shop):
        wallet = world.wallet("home")
        await wallet.fund(sats(10_000))
        issued = await bill(shop)
        async with world.serving(wallet, "home") as serving:
            _, uri = await serving.connect(per_day=sats(50))
            app = App(world, uri)
            event = app.request("pay_invoice", {"invoice": issued.bolt11})
            ((_, response),) = await app.send(event)
            assert response.error.code is ErrorCode.QUOTA_EXCEEDED
        async with world.serving(wallet, "home") as serving:
            await serving.store.write(
                lambda tx: tx.execute("UPDATE wallet_connections SET day_msats = ?", (sats(5_000),))
            )
            await app.send(event)
            assert (await shop.balance()).settled == 0
            assert "preimage" in await app.ok("pay_invoice", {"invoice": issued.bolt11})
        assert (await shop.balance()).settled == PRICE

    @pytest.mark.parametrize("age", [1_000, -500])
    async def test_too_old_or_of_the_future(self, bank, app, shop, age):
        issued = await bill(shop)
        event = app.request("pay_invoice", {"invoice": issued.bolt11}, age=age)
        async with app.listening() as heard:
            bank.service._take(event)  # relays pass on by themselves only what is of the present
            await trio.sleep(5)
            (frame,) = heard()
        assert nip47.open_response(frame, app.uri.secret).error.code is ErrorCode.OTHER
        await trio.sleep(500)
        bank.service._take(event)
        await trio.sleep(5)
        assert (await shop.balance()).settled == 0

    async def test_expired_it_is_ignored(self, world, bank, app, shop):
        issued = await bill(shop)
        now = int(world.clock.now())
        event = app.request("pay_invoice", {"invoice": issued.bolt11}, expires_at=now + 5)
        await trio.sleep(6)
        bank.service._take(event)  # a relay that knows NIP-40 does not pass it on
        await trio.sleep(5)
        assert (await shop.balance()).settled == 0

    async def test_somebody_elses_request(self, world, app, shop):
        issued = await bill(shop)
        event = app.request("pay_invoice", {"invoice": issued.bolt11}, secret=SecretKey(b"\x66" * 32))
        assert await app.send(event) == []
        assert (await shop.balance()).settled == 0

    async def test_over_the_bound_of_one_invoice(self, world, bank, shop):
        _, uri = await bank.connect("each", per_day=BUDGET, each=PRICE)
        app = App(world, uri)
        more = await bill(shop, PRICE + 1, "more")
        assert await app.refused("pay_invoice", {"invoice": more.bolt11}) is ErrorCode.QUOTA_EXCEEDED
        assert "preimage" in await app.ok("pay_invoice", {"invoice": (await bill(shop)).bolt11})

    async def test_frozen(self, bank, app, shop):
        await bank.store.write(lambda tx: freeze.freeze(tx, "holidays", tx.clock.now()))
        issued = await bill(shop)
        assert await app.refused("pay_invoice", {"invoice": issued.bolt11}) is ErrorCode.RESTRICTED
        assert (await shop.balance()).settled == 0

    @pytest.mark.parametrize(
        "params",
        [
            {},
            {"invoice": ""},
            {"invoice": "lnsb1"},
            {"invoice": 7},
            {"invoice": ["x"]},
            {"invoice": "x", "amount": "y"},
        ],
    )
    async def test_what_cannot_be_paid(self, app, params):
        assert await app.refused("pay_invoice", params) is ErrorCode.OTHER

    async def test_what_is_not_known_is_answered_when_it_is(self, world, bank, app, shop):
        issued = await bill(shop)
        world.ledger.inject(Fault(FaultKind.PENDING, 150.0, PaymentState.SETTLED), wallet=bank.wallet)
        event = app.request("pay_invoice", {"invoice": issued.bolt11})
        assert await app.send(event, 90.0) == []
        (found,) = intents.pending(bank.store)
        left = (await app.ok("get_balance"))["balance"]
        assert left == BUDGET - PRICE - max_fee(PRICE)
        told = Transaction.read(await app.ok("lookup_invoice", {"payment_hash": issued.payment_hash}))
        assert (told.state, told.type) == (TransactionState.PENDING, TransactionType.OUTGOING)
        async with app.listening() as heard:
            await trio.sleep(120)
            kinds = [frame.kind for frame in heard()]
        assert sorted(kinds) == [nip47.RESPONSE, nip47.NOTIFICATION_NIP04, nip47.NOTIFICATION]
        assert intents.get(bank.store, found.id).state == "settled"

    async def test_what_waits_for_the_operator(self, world, shop):
        wallet = world.wallet("home")
        await wallet.fund(sats(10_000))

        def limits(source, spend):
            return Budget(None, None, approve_above=Msat(0))

        async with world.serving(wallet, "home", limits=limits) as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            issued = await bill(shop)
            event = app.request("pay_invoice", {"invoice": issued.bolt11})
            assert await app.send(event, 1_000.0) == []
            assert (await app.ok("get_balance"))["balance"] == BUDGET - PRICE - max_fee(PRICE)
            (waiting,) = approvals.waiting(serving.store)
            async with app.listening() as heard:
                await serving.store.write(lambda tx: approvals.approve(tx, waiting.id, tx.clock.now()))
                await trio.sleep(70)
                responses = [frame for frame in heard() if frame.kind == nip47.RESPONSE]
            assert [nip47.open_response(frame, uri.secret).error for frame in responses] == [None]
        assert (await shop.balance()).settled == PRICE

    async def test_unknown_through_a_restart(self, world, shop):
        """It was asked for by a process that died; it is seen to its end, and answered, and not paid again."""
        wallet = world.wallet("home")
        await wallet.fund(sats(10_000))
        issued = await bill(shop)
        world.ledger.inject(Fault(FaultKind.TIMEOUT, 50.0, PaymentState.SETTLED), wallet=wallet)
        async with world.serving(wallet, "home") as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            assert await app.send(app.request("pay_invoice", {"invoice": issued.bolt11}), 20.0) == []
        async with app.listening() as heard:
            async with world.serving(wallet, "home") as serving:
                await trio.sleep(100)
                assert connections.open_requests(serving.store) == []
            responses = [frame for frame in heard() if frame.kind == nip47.RESPONSE]
        assert [nip47.open_response(frame, uri.secret).error for frame in responses] == [None]
        assert (await shop.balance()).settled == PRICE

    async def test_closed_it_pays_nothing(self, world, bank, app, shop):
        issued = await bill(shop)
        await bank.store.write(lambda tx: connections.close(tx, "app", tx.clock.now()))
        await trio.sleep(1)
        assert await app.refused("pay_invoice", {"invoice": issued.bolt11}) is ErrorCode.UNAUTHORIZED
        assert await app.refused("get_balance") is ErrorCode.UNAUTHORIZED
        newest = max(world.relay.events(Filter(kinds=[nip47.INFO])), key=lambda event: event.created_at)
        assert nip47.read_info(newest).methods == ()

    async def test_it_closes_by_itself(self, world, bank, shop):
        _, uri = await bank.connect("soon", per_day=BUDGET, expires_at=world.clock.now() + 100)
        app = App(world, uri)
        await app.ok("get_balance")
        await trio.sleep(100)
        issued = await bill(shop)
        assert await app.refused("pay_invoice", {"invoice": issued.bolt11}) is ErrorCode.UNAUTHORIZED


class Spied:
    """A wallet that is watched: what it was asked to pay, and what it is to do before it answers."""

    def __init__(self, wallet, asked=0.0, fails=None):
        self.wallet = wallet
        self.asked = asked
        self.fails = fails
        self.paid = []
        self.looks = 0

    def __getattr__(self, name):
        return getattr(self.wallet, name)

    async def quote(self, target, **named):
        await trio.sleep(self.asked)
        return await self.wallet.quote(target, **named)

    async def balance(self):
        self.looks += 1
        return await self.wallet.balance()

    async def pay(self, target, **named):
        self.paid.append((target, named.get("amount")))
        if self.fails is not None:
            raise self.fails
        return await self.wallet.pay(target, **named)


@pytest.fixture
async def spied(world):
    wallet = world.wallet("spied")
    await wallet.fund(sats(12_345))
    return Spied(wallet)


def forged(world, issued, amount):
    """Another invoice of the same payment hash."""
    return bolt11.encode(
        prefix=PREFIX,
        amount_msats=amount,
        timestamp=int(world.clock.now()),
        payment_hash=issued.payment_hash,
        payment_secret="11" * 32,
        description="more",
        node_secret=b"\x02" * 32,
    )


class TestOneHash:
    @pytest.mark.parametrize("first", ["pending", "settled", "waits", "failed"])
    @pytest.mark.parametrize("amount", [PRICE, sats(50), sats(400), sats(50_000)])
    async def test_another_invoice_of_it_is_refused(self, world, shop, spied, first, amount):
        def limits(source, spend):
            return Budget(None, None, approve_above=Msat(0) if first == "waits" else None)

        issued = await bill(shop)
        if first in ("pending", "failed"):
            kind = FaultKind.PENDING if first == "pending" else FaultKind.FAIL
            world.ledger.inject(Fault(kind, 100.0, PaymentState.SETTLED), wallet=spied.wallet)
        async with world.serving(spied, "home", limits=limits) as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            await app.send(app.request("pay_invoice", {"invoice": issued.bolt11}), 5.0)
            stands = intents.find(serving.store, issued.payment_hash)
            other = forged(world, issued, amount)
            assert await app.refused("pay_invoice", {"invoice": other}) is ErrorCode.OTHER
            still = intents.find(serving.store, issued.payment_hash)
            assert (still.state, still.reserved) == (stands.state, stands.reserved)
            if first == "waits":
                await serving.store.write(lambda tx: approvals.approve(tx, stands.id, tx.clock.now()))
            await trio.sleep(200)
            # The same one again, in capitals, is no other.
            again = await app.ask("pay_invoice", {"invoice": issued.bolt11.upper()})
            assert (again.error is None) == (first != "failed")
        assert {text for text, _ in spied.paid} == {issued.bolt11}

    async def test_another_amount_of_an_open_one_is_refused(self, world, shop, spied):
        issued = await shop.receive_any("tea", 3_600, "open")
        world.ledger.inject(Fault(FaultKind.PENDING, 100.0, PaymentState.SETTLED), wallet=spied.wallet)
        async with world.serving(spied, "home") as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            asked = {"invoice": issued.bolt11, "amount": PRICE}
            await app.send(app.request("pay_invoice", asked), 5.0)
            for _ in range(2):
                code = await app.refused("pay_invoice", {"invoice": issued.bolt11, "amount": 4 * PRICE})
                assert code is ErrorCode.OTHER
                await trio.sleep(200)
            assert "preimage" in await app.ok("pay_invoice", asked)
        assert spied.paid == [(issued.bolt11, PRICE)]


class TestTooLate:
    """The wallet is asked for a fee, and takes its time."""

    @pytest.mark.parametrize(("age", "lives"), [(0, 3), (295, None)])
    async def test_a_request_lapses_meanwhile(self, world, shop, spied, age, lives):
        issued = await bill(shop)
        spied.asked = 10.0
        async with world.serving(spied, "home") as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            expires_at = None if lives is None else int(world.clock.now()) + lives
            event = app.request("pay_invoice", {"invoice": issued.bolt11}, age=age, expires_at=expires_at)
            async with app.listening() as heard:
                serving.service._take(event)
                await trio.sleep(30)
                (frame,) = heard()
            assert nip47.open_response(frame, uri.secret).error.code is ErrorCode.OTHER
            assert intents.find(serving.store, issued.payment_hash) is None
        assert spied.paid == []

    async def test_its_connection_is_closed_meanwhile(self, world, shop, spied):
        issued = await bill(shop)
        spied.asked = 10.0
        async with world.serving(spied, "home") as serving:
            _, uri = await serving.connect("app", per_day=BUDGET)
            app = App(world, uri)
            event = app.request("pay_invoice", {"invoice": issued.bolt11})
            async with app.listening() as heard:
                world.relay.publish(event)
                await trio.sleep(5)
                await serving.store.write(lambda tx: connections.close(tx, "app", tx.clock.now()))
                await trio.sleep(30)
                (frame,) = [frame for frame in heard() if frame.kind == nip47.RESPONSE]
            assert nip47.open_response(frame, uri.secret).error.code is ErrorCode.UNAUTHORIZED
        assert spied.paid == []


class TestWhatItSees:
    async def test_a_refusal_names_no_figures(self, world, shop, spied):
        """Neither what the home has nor what its budgets leave; the wallet is not even asked beyond one's own."""

        def limits(source, spend):
            return Budget(None, per_day=Msat(777_000))

        async with world.serving(spied, "home", limits=limits) as serving:
            asked = {}
            for name, per_day, amount in (("none", 0, sats(50)), ("some", sats(99_999), sats(20_000))):
                _, uri = await serving.connect(name, per_day=per_day)
                app = App(world, uri)
                issued = await bill(shop, amount, name)
                asked[name] = await app.ask("pay_invoice", {"invoice": issued.bolt11})
                if name == "none":
                    assert spied.looks == 0
            issued = await bill(shop, sats(5_000), "home")
            asked["home"] = await app.ask("pay_invoice", {"invoice": issued.bolt11})
            await serving.store.write(lambda tx: freeze.freeze(tx, "Bob has 5 sat", tx.clock.now()))
            issued = await bill(shop, sats(5), "frozen")
            asked["frozen"] = await app.ask("pay_invoice", {"invoice": issued.bolt11})
        assert {name: response.error.code for name, response in asked.items()} == {
            "none": ErrorCode.QUOTA_EXCEEDED,
            "some": ErrorCode.INSUFFICIENT_BALANCE,
            "home": ErrorCode.QUOTA_EXCEEDED,
            "frozen": ErrorCode.RESTRICTED,
        }
        for response in asked.values():
            assert not any(letter.isdigit() for letter in response.error.message)

    async def test_a_failure_names_no_figures(self, world, shop, spied):
        spied.fails = InsufficientFunds(100_000, 12_345)
        issued = await bill(shop)
        async with world.serving(spied, "home") as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            event = app.request("pay_invoice", {"invoice": issued.bolt11})
            ((_, first),) = await app.send(event)
            assert first.error.code is ErrorCode.INSUFFICIENT_BALANCE
            again = await app.ask("pay_invoice", {"invoice": issued.bolt11})
            async with app.listening() as heard:
                serving.service._take(event)
                await trio.sleep(5)
                told = [nip47.open_response(frame, uri.secret) for frame in heard()]
        for response in (first, again, *told):
            assert not any(letter.isdigit() for letter in response.error.message)

    async def test_nothing_of_others(self, world, bank, app, shop):
        _, uri = await bank.connect("other", per_day=BUDGET)
        other = App(world, uri)
        paid, under_way = await bill(shop), await bill(shop, PRICE, "slow")
        event = app.request("pay_invoice", {"invoice": paid.bolt11})
        await app.send(event)
        world.ledger.inject(Fault(FaultKind.PENDING, 500.0, PaymentState.SETTLED), wallet=bank.wallet)
        slow = app.request("pay_invoice", {"invoice": under_way.bolt11})
        await app.send(slow)
        for issued in (paid, under_way):
            response = await other.ask("pay_invoice", {"invoice": issued.bolt11})
            assert response.error.code is ErrorCode.OTHER
            for name in (event.id, slow.id, "nwc:"):
                assert name not in response.error.message

    async def test_the_operator_says_no(self, world, shop, spied):
        def limits(source, spend):
            return Budget(None, None, approve_above=Msat(0))

        issued = await bill(shop)
        async with world.serving(spied, "home", limits=limits) as serving:
            _, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            assert await app.send(app.request("pay_invoice", {"invoice": issued.bolt11})) == []
            (waiting,) = approvals.waiting(serving.store)
            await serving.store.write(lambda tx: approvals.deny(tx, waiting.id, "no", tx.clock.now()))
            assert await app.refused("pay_invoice", {"invoice": issued.bolt11}) is ErrorCode.RESTRICTED

    async def test_only_its_own(self, world, bank, app, shop):
        _, uri = await bank.connect("other", per_day=BUDGET)
        other = App(world, uri)
        made = await app.ok("make_invoice", {"amount": 5_000, "description": "mine"})
        issued = await bill(shop)
        await app.ok("pay_invoice", {"invoice": issued.bolt11})
        for payment_hash in (made["payment_hash"], issued.payment_hash):
            await app.ok("lookup_invoice", {"payment_hash": payment_hash})
            assert await other.refused("lookup_invoice", {"payment_hash": payment_hash}) is ErrorCode.NOT_FOUND
        assert (await other.ok("list_transactions", {"unpaid": True}))["transactions"] == []
        assert len((await app.ok("list_transactions", {"unpaid": True}))["transactions"]) == 2
        assert [t["type"] for t in (await app.ok("list_transactions"))["transactions"]] == ["outgoing"]
        assert (await app.ok("list_transactions", {"type": "incoming"}))["transactions"] == []
        # What the home itself was paid is nobody else's business.
        own = await bank.wallet.receive(PRICE, "private", 600, "private")
        assert await app.refused("lookup_invoice", {"invoice": own.bolt11}) is ErrorCode.NOT_FOUND
        # An invoice that another has paid is not paid again; nor is it told whose it was.
        assert await other.refused("pay_invoice", {"invoice": issued.bolt11}) is ErrorCode.OTHER

    async def test_an_invoice_that_is_paid_is_told_in_both_ciphers(self, world, bank, app, shop):
        made = await app.ok("make_invoice", {"amount": 5_000, "description": "mine", "expiry": 600})
        read = bolt11.decode(made["invoice"])
        assert (read.amount_msats, read.description, read.expiry) == (5_000, "mine", 600)
        await shop.fund(sats(100))
        async with app.listening() as heard:
            await shop.pay(made["invoice"], max_fee=sats(5), idempotency_key="1")
            await trio.sleep(60)
            frames = heard()
        assert sorted(frame.kind for frame in frames) == [nip47.NOTIFICATION_NIP04, nip47.NOTIFICATION]
        for frame in frames:
            told = nip47.open_notification(frame, app.uri.secret)
            entry = Transaction.read(told.body)
            assert (told.type, entry.payment_hash) == ("payment_received", made["payment_hash"])
            assert (entry.amount, entry.state) == (5_000, TransactionState.SETTLED)

    async def test_a_page_is_small_enough_for_a_relay(self, bank, app):
        for n in range(25):
            await app.ok("make_invoice", {"amount": 1_000 + n, "description": "x" * 600})
        first = (await app.ok("list_transactions", {"unpaid": True, "limit": 1_000}))["transactions"]
        assert len(first) == 20
        rest = (await app.ok("list_transactions", {"unpaid": True, "offset": 20}))["transactions"]
        assert [entry["amount"] for entry in first + rest] == [1_024 - n for n in range(25)]

    async def test_a_page_of_much_text_is_cut_and_goes_on(self, bank, app):
        for n in range(20):
            await app.ok("make_invoice", {"amount": 1_000 + n, "description": '"' * 600})
        first = (await app.ok("list_transactions", {"unpaid": True}))["transactions"]
        assert 0 < len(first) < 20
        rest = (await app.ok("list_transactions", {"unpaid": True, "offset": len(first)}))["transactions"]
        assert [entry["amount"] for entry in first + rest] == [1_019 - n for n in range(20)]

    async def test_a_description_hash_wants_its_description(self, app):
        code = await app.refused("make_invoice", {"amount": 1_000, "description_hash": "ab" * 32})
        assert code is ErrorCode.NOT_IMPLEMENTED


class TestTooMuch:
    async def test_too_fast(self, world, bank, app):
        async with app.listening() as heard:
            for n in range(200):
                world.relay.publish(app.request("get_balance", {"n": n}))
            await trio.sleep(20)
            responses = [nip47.open_response(frame, app.uri.secret) for frame in heard()]
        good = [response for response in responses if response.error is None]
        assert len(good) <= nwc_guests.BURST
        assert {r.error.code for r in responses if r.error} == {ErrorCode.RATE_LIMITED}
        assert len(responses) < 80
        await trio.sleep(60)
        assert (await app.ok("get_balance"))["balance"] == BUDGET

    async def test_too_fast_it_is_not_paid_later_either(self, world, shop, spied):
        issued = await bill(shop)
        async with world.serving(spied, "home") as serving:
            made, uri = await serving.connect(per_day=BUDGET)
            app = App(world, uri)
            guest = serving.service._guests[made.client]
            event = app.request("pay_invoice", {"invoice": issued.bolt11})
            async with app.listening() as heard:
                guest.tokens, guest.refilled_at = 0.0, trio.current_time()
                world.relay.publish(event)
                await trio.sleep(5)
                told = [nip47.open_response(frame, uri.secret) for frame in heard()]
            assert [(response.request, response.error.code) for response in told] == [
                (event.id, ErrorCode.RATE_LIMITED)
            ]
            serving.service._turned_away._known.clear()  # a flood of others would push it out
            serving.service._take(event)
            await trio.sleep(5)
        async with world.serving(spied, "home") as serving:
            await app.send(event)
            assert spied.paid == []
            await app.ok("pay_invoice", {"invoice": issued.bolt11})

    async def test_too_long(self, bank, app):
        event = app.request("lookup_invoice", {"invoice": "x" * 60_000})
        assert await app.send(event) == []

    async def test_names(self, bank, app):
        with pytest.raises(UsageError, match="already"):
            await bank.connect("app")
        for name in ("", " ", "x" * 65, "a\nb"):
            with pytest.raises(UsageError):
                await bank.connect(name)
        with pytest.raises(NotFound):
            await bank.store.write(lambda tx: connections.close(tx, "nobody", 0.0))


async def test_no_secret_is_kept_or_logged(world, bank, shop, caplog):
    caplog.set_level(logging.DEBUG)
    made, uri = await bank.connect("app", per_day=BUDGET)
    app = App(world, uri)
    issued = await bill(shop)
    paid = await app.ok("pay_invoice", {"invoice": issued.bolt11})
    client, service = uri.secret.reveal().hex(), connections.secret(bank.store, bank.store.vault, made.client)
    kept = (world.directory / "bank.db").read_bytes() + (world.directory / "bank.db-wal").read_bytes()
    for secret in (client, service.reveal().hex(), paid["preimage"], issued.bolt11):
        assert secret not in caplog.text
        assert secret.encode() not in kept
        for thing in (made, uri, bank.service, bank.service._guests):
            assert secret not in repr(thing)
    assert uri.secret.reveal() not in kept
    assert service.reveal() not in kept
