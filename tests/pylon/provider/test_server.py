"""The provider against customers, strangers, wallets and backends that fail it."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from protocols.nip01 import MAX_EVENT_BYTES, Event
from protocols.nip90 import FEEDBACK, JOB_TEXT, build_request, parse_result
from pylon.daemon import books
from pylon.errors import BackendUnavailable, StoreError, WalletError
from pylon.money import Msat, sats
from pylon.provider import sale as machine
from pylon.provider import sales
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, SaleState
from pylon.store import ledger, outbox
from pylon.testing.backend import Reply, ScriptedBackend
from pylon.wallets import history
from tests.pylon.market import PRICE, open_actor, open_home, until

RESULT = JOB_TEXT + 1_000


def sale_of(provider, store, request):
    return provider.records.load(store, request.id)


async def ended(provider, store, request, seconds=600.0):
    def look():
        sale = sale_of(provider, store, request)
        return sale if sale is not None and sale.state in SALE.final else None

    return await until(look, seconds)


def refusals(market, request):
    return [e for e in market.events(FEEDBACK) if e.tag("e") == request.id and e.tag("status") == "error"]


async def test_a_thought_is_sold(autojump_clock, market):
    home, customer = await open_home(market, funds=0), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.DELIVERED, PRICE, 0)
        result = market.events(RESULT)[0]
        assert parse_result(result, customer.secret).text == "an answer"
        assert books.report(store, await home.wallet.balance()).problems == ()


async def test_the_same_request_from_many_relays_and_after_a_restart_is_one_job(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        for _ in range(4):
            await provider.desk.take(request)
    async with home.selling() as (provider, store):
        await provider.desk.take(request)
        await trio.sleep(10)
        rows = store.read("SELECT COUNT(*) AS n FROM sales")
        assert rows[0]["n"] == 1
    quotes = [e for e in market.events(FEEDBACK) if e.tag("status") == "payment-required"]
    assert len(quotes) == 1


async def test_nothing_is_served_unpaid(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend("an answer")
    async with home.selling(backend) as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        sale = await ended(provider, store, request, 2_000)
        assert sale.state is SaleState.EXPIRED
        assert backend.requests == []


@pytest.mark.parametrize(
    "answer",
    ["x" * 300_000, "half \ud83d of a character"],
    ids=["too long for any relay", "a lone surrogate"],
)
@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_paid_job_ends_whatever_the_model_says(autojump_clock, market, answer, encrypt):
    """An answer that no event can carry must not be thought again and again, with the customer's money kept."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(answer), terms=Terms(PRICE, max_tokens=10**6)) as (provider, store):
        request = customer.ask(home.secret, max_tokens=10**6, encrypt=encrypt)
        await customer.pay(await customer.told(request, "payment-required"))
        sale = await ended(provider, store, request)
        assert (sale.state, sale.unearned) in ((SaleState.DELIVERED, 0), (SaleState.OWED, 0))
        for event in market.events(RESULT):
            assert len(event.to_json()) <= MAX_EVENT_BYTES


async def test_a_paid_job_ends_however_the_backend_breaks(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    broken = ScriptedBackend(Reply("a", error=KeyError("no such slot")))
    async with home.selling(broken) as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        sale = await ended(provider, store, request)
        assert (sale.state, sale.owed) == (SaleState.OWED, PRICE)
        debt = (await customer.told(request, "error")).tags_named("credit")[0]
        assert debt[1] == str(PRICE)


async def test_a_request_cannot_make_a_result_that_stops_the_publisher(autojump_clock, market):
    """An open result repeats its request: a large one must not make an event that nothing can read again."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret, prompt="\x01" * 30_000, encrypt=False)
        await customer.pay(await customer.told(request, "payment-required"))
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED
        assert Event.from_json(market.events(RESULT)[0].to_json())


async def test_the_schema_of_a_reply_reaches_the_backend(autojump_clock, market):
    """Also after a restart between payment and answer: it stands in the sale's record."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    schema = {"type": "object", "properties": {"z": {"enum": [1]}, "a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}
    broken = ScriptedBackend(Reply("", error=BackendUnavailable("not yet")))
    async with home.selling(broken) as (provider, store):
        request = customer.ask(home.secret, params=[("json_schema", json.dumps(schema))])
        await customer.pay(await customer.told(request, "payment-required"))
        await until(lambda: broken.requests)
        assert sale_of(provider, store, request).state is SaleState.WORKING
    backend = ScriptedBackend("{}")
    async with home.selling(backend) as (provider, store):
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED
    for asked in (broken.requests[0], backend.requests[0]):
        assert json.dumps(asked.json_schema) == json.dumps(schema)


@pytest.mark.parametrize(
    "schema",
    ["{", "[]", '{"pattern": "canary"}', '{"a": {"$ref": "#/canary"}}', '{"items": ' * 40 + "{}" + "}" * 40],
)
@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_schema_that_would_stop_the_backend_is_refused(autojump_clock, market, schema, encrypt):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend("an answer")
    async with home.selling(backend):
        request = customer.ask(home.secret, params=[("json_schema", schema)], encrypt=encrypt)
        refusal = await customer.told(request, "error")
        assert refusal.tags_named("status")[0][2].startswith("json_schema: ")
        assert "canary" not in refusal.to_json()
        assert backend.requests == []


async def test_what_the_backend_said_stays_at_home(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    secret = "http://10.0.0.7:8080 says: canary"
    broken = ScriptedBackend(Reply("", error=BackendUnavailable(secret)))
    async with home.selling(broken) as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        assert (await ended(provider, store, request)).state is SaleState.OWED
        assert (await customer.told(request, "error")).tags_named("status")[0][2] == "the job failed"
    assert all(secret not in event.to_json() for event in market.events(FEEDBACK))


async def test_what_the_wallet_said_stays_at_home(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")

    async def receive(*args, **kwargs):
        raise WalletError("canary: the ledger in /home/me is read-only")

    home.wallet.receive = receive
    async with home.selling():
        request = customer.ask(home.secret)
        event = await customer.told(request, "error")
        assert "canary" not in event.to_json()


async def test_a_flood_of_nonsense_is_not_answered_for_ever(autojump_clock, market):
    home, stranger = await open_home(market), await open_actor(market, "stranger", funds=0)
    async with home.selling() as (_provider, store):
        for number in range(300):
            stranger.ask(home.secret, prompt=" ", params=[("n", str(number))])
        await trio.sleep(30)
        assert store.one("SELECT COUNT(*) AS n FROM sales")["n"] == 60


async def test_a_free_provider_is_not_buried(autojump_clock, market):
    home, stranger = await open_home(market), await open_actor(market, "stranger", funds=0)
    terms = Terms(Msat(0), max_open=10)
    async with home.selling(ScriptedBackend(Reply("a", first=50.0)), terms=terms) as (_provider, store):
        for number in range(100):
            stranger.ask(home.secret, prompt=f"{number}")
        await trio.sleep(20)
        assert store.one("SELECT COUNT(*) AS n FROM sales WHERE state = 'working'")["n"] == 10


@pytest.mark.parametrize("shift", [-7_200, 7_200, 10**9])
async def test_requests_of_another_time_are_not_heard(autojump_clock, market, shift):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = build_request(
            customer.secret, prompt="think", provider=home.secret.public, created_at=market.now + shift
        )
        await provider.desk.take(request)
        assert sale_of(provider, store, request) is None


async def test_a_request_for_another_key_earns_a_refusal_and_nothing_else(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        other = build_request(customer.secret, prompt="think", provider=customer.secret.public, created_at=market.now)
        await provider.desk.take(other)
        assert sale_of(provider, store, other).state is SaleState.REFUSED


async def test_no_money_is_taken_while_no_model_is_there(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    backend = ScriptedBackend("a")
    backend.up = False
    async with home.selling(backend) as (provider, store):
        request = customer.ask(home.secret)
        assert (await ended(provider, store, request)).state is SaleState.REFUSED


async def test_a_wallet_that_is_away_does_not_stop_the_provider(autojump_clock, market):
    """It comes back after a long while, and what was paid meanwhile is served."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
    away = True
    lookup, events = home.wallet.lookup_invoice, home.wallet.events

    async def lookup_invoice(payment_hash):
        if away:
            raise StoreError("the ledger is locked")
        return await lookup(payment_hash)

    def listen():
        if away:
            raise OSError("no route to host")
        return events()

    home.wallet.lookup_invoice, home.wallet.events = lookup_invoice, listen
    async with home.selling() as (provider, store):
        await customer.pay(quote)
        await trio.sleep(1_000)
        away = False
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned) == (SaleState.DELIVERED, PRICE)


async def test_a_wallet_that_hangs_does_not_keep_other_sales_from_ending(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    lookup = home.wallet.lookup_invoice
    hanging = set()

    async def lookup_invoice(payment_hash):
        if payment_hash in hanging:
            await trio.sleep_forever()
        return await lookup(payment_hash)

    home.wallet.lookup_invoice = lookup_invoice
    async with home.selling() as (provider, store):
        first = customer.ask(home.secret, prompt="first")
        await customer.told(first, "payment-required")
        hanging.add(sale_of(provider, store, first).payment_hash)
        second = customer.ask(home.secret, prompt="second")
        sale = await ended(provider, store, second, 2_000)
        assert sale.state is SaleState.EXPIRED


async def test_a_late_payment_is_served_and_a_second_one_finds_no_second_invoice(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        await ended(provider, store, request, 2_000)
        sale = sale_of(provider, store, request)
        for _ in range(3):
            await provider.payments.claim(sale.payment_hash, PRICE)
        sale = await until(lambda: s if (s := sale_of(provider, store, request)).state is SaleState.DELIVERED else None)
        assert (sale.paid, sale.earned, sale.owed) == (PRICE, PRICE, 0)
        assert books.report(store, None).problems == ()


async def test_what_is_overpaid_is_owed_and_told(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        await provider.payments.claim(sale_of(provider, store, request).payment_hash, Msat(PRICE + 700))
        sale = await ended(provider, store, request)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.DELIVERED, PRICE, 700)
        assert (await customer.told(request, "error")).tags_named("credit")[0][1] == "700"


async def test_a_payment_of_nothing_is_none(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        await customer.told(request, "payment-required")
        await provider.payments.claim(sale_of(provider, store, request).payment_hash, Msat(0))
        assert sale_of(provider, store, request).state is SaleState.QUOTED


async def test_a_result_that_no_relay_takes_in_time_is_owed(autojump_clock, market, monkeypatch):
    """A relay that has gone for good must not leave a paid job neither delivered nor owed."""
    monkeypatch.setattr(sales, "LATE_PAYMENT", 300.0)
    monkeypatch.setattr(sales, "_UNDELIVERED", 300.0)
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(Reply("words", first=5.0))) as (provider, store):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        await customer.pay(quote)
        await trio.sleep(1)
        market.relay.faults.refuse_connections = True
        market.relay.disconnect_all()
        await until(lambda: sale_of(provider, store, request).state is SaleState.SERVED)
        sale = await ended(provider, store, request, 1_000)
        assert (sale.state, sale.earned, sale.owed) == (SaleState.OWED, 0, PRICE)
        market.relay.faults.refuse_connections = False
        await customer.told(request, "error")
        assert market.events(RESULT) == []
        assert books.report(store, None).problems == ()


async def test_a_damaged_sale_harms_no_other(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        bad = customer.ask(home.secret, prompt="spoilt")
        await customer.told(bad, "payment-required")
        await store.write(lambda tx: tx.execute("UPDATE sales SET record = x'01' WHERE id = ?", (bad.id,)))
    async with home.selling() as (provider, store):
        good = customer.ask(home.secret, prompt="fine")
        await customer.pay(await customer.told(good, "payment-required"))
        assert (await ended(provider, store, good)).state is SaleState.DELIVERED
        await trio.sleep(1_000)
        assert any(bad.id[:16] in problem for problem in books.report(store, None).problems)


async def test_books_asked_while_a_payment_is_under_way_raise_no_false_alarm(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")

    async def deaf(payment_hash):
        return None

    home.wallet.lookup_invoice = deaf
    async with home.selling() as (provider, store):
        await books.book_deposits(store, home.wallet, market.clock.now())
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        provider.payments.claim = _never  # the wallet has it, the provider does not know yet
        await customer.pay(quote)
        await trio.sleep(1)
        assert (await home.wallet.balance()).settled == sats(1_000) + PRICE
        assert (await books.audit(store, home.wallet, market.clock)).problems == ()
        assert ledger.balances(store)["wallet"] == sats(1_000)


async def _never(*_):
    await trio.lowlevel.checkpoint()


async def test_books_see_money_that_nobody_booked(autojump_clock, market):
    home = await open_home(market)
    async with home.selling() as (_provider, store):
        assert (await books.audit(store, home.wallet, market.clock)).problems == ()
        other = await open_actor(market, "other")
        await home.wallet.pay(await other.invoice(), max_fee=sats(10), idempotency_key="behind our back")
        assert len((await books.audit(store, home.wallet, market.clock)).problems) == 1


async def test_deposits_are_booked_beyond_the_first_page(autojump_clock, market, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 3)
    home = await open_home(market, funds=0)
    for number in range(10):
        await home.wallet.fund(Msat(1_000))
        if number > 7:
            await trio.sleep(1)
    async with home.selling() as (_provider, store):
        assert (await books.audit(store, home.wallet, market.clock)).problems == ()
        assert ledger.balances(store)["wallet"] == 10_000


def test_reasons_of_our_own_may_be_told():
    from pylon.provider.replies import public_reason

    sale = machine.Sale(id="a" * 64, customer="b" * 64, kind=5050, created_at=0.0)
    refused = attrs.evolve(sale, state=SaleState.REFUSED, reason="the prompt is too long")
    assert public_reason(refused) == "the prompt is too long"
    short = attrs.evolve(sale, state=SaleState.OWED, price=Msat(5), paid=Msat(4))
    assert public_reason(short) == "less was paid than the job costs"


async def test_a_full_disk_does_not_end_the_provider(autojump_clock, market):
    """No paid work is taken while it lasts; afterwards everything goes on by itself."""
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        quoted = customer.ask(home.secret, prompt="first")
        quote = await customer.told(quoted, "payment-required")
        await trio.sleep(5)
        write = store.write

        async def full(fn):
            await trio.lowlevel.checkpoint()
            raise StoreError("the disk is full")

        store.write = full
        await customer.pay(quote)
        waiting = customer.ask(home.secret, prompt="second")
        await trio.sleep(2_000)
        assert sale_of(provider, store, waiting) is None
        store.write = write
        assert (await ended(provider, store, quoted)).state is SaleState.DELIVERED
        await customer.told(waiting, "payment-required")


async def test_a_result_is_offered_to_relays_that_joined_since(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(ScriptedBackend(Reply("words", first=5.0))) as (provider, store):
        request = customer.ask(home.secret)
        await customer.pay(await customer.told(request, "payment-required"))
        await trio.sleep(1)
        market.relay.faults.refuse_connections = True
        market.relay.disconnect_all()
        await until(lambda: sale_of(provider, store, request).state is SaleState.SERVED)
        # The home's relays change: what it had written was for one that is gone.
        await store.write(lambda tx: tx.execute("UPDATE deliveries SET relay = 'ws://gone' WHERE state = 'pending'"))
    market.relay.faults.refuse_connections = False
    async with home.selling() as (provider, store):
        assert (await ended(provider, store, request)).state is SaleState.DELIVERED


async def test_what_is_paid_for_goes_out_before_the_quotes_of_strangers(autojump_clock, market, monkeypatch):
    said, add = [], outbox.add

    def noting(tx, event, relays, **changes):
        said.append((changes.get("effect"), changes.get("urgent")))
        return add(tx, event, relays, **changes)

    monkeypatch.setattr(outbox, "add", noting)
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling() as (provider, store):
        for urgent in (False, True):
            said.clear()
            request = customer.ask(home.secret)
            await customer.pay(await customer.told(request, "payment-required"))
            await until(lambda asked=request: provider.records.load(store, asked.id).state is SaleState.DELIVERED)
            assert ("sale.publish_quote", urgent) in said, "who has paid before is no stranger"
            assert {("sale.publish_processing", True), ("sale.publish_result", True)} <= set(said)
