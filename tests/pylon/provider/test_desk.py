"""Who is heard, and what a flood may cost: the quote book, its triggers, what is forgotten."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from protocols.nip90 import FEEDBACK, JOB_TEXT
from pylon.errors import WalletError
from pylon.money import Msat
from pylon.provider import book, customers, forgetting
from pylon.provider.book import Book, Ration
from pylon.provider.pricing import Standing, Terms
from pylon.provider.sale import SaleState
from pylon.testing.backend import Reply, ScriptedBackend
from tests.pylon.market import PRICE, open_actor, open_home, until


def count(store, table, condition="1"):
    return store.one(f"SELECT COUNT(*) AS n FROM {table} WHERE {condition}")["n"]


def counted(store):
    """What the book should say, counted by hand."""
    rows = store.read(
        "SELECT customer, COUNT(*) AS n FROM sales WHERE state IN ('priced', 'quoted', 'working') AND paid_msats = 0"
        " GROUP BY customer"
    )
    found = {row["customer"]: row["n"] for row in rows}
    return {**found, "": sum(found.values())} if found else {}


def booked(store):
    return {row["customer"]: row["sales"] for row in store.read("SELECT customer, sales FROM quote_book")}


async def crowd_of(market, number):
    return [await open_actor(market, f"crowd{n}", funds=0) for n in range(number)]


# --- the rules ------------------------------------------------------------------------------------------------

BOOKS = st.builds(Book, most=st.integers(1, 20_000), each=st.integers(1, 200))


@given(BOOKS, st.integers(0, 30_000), st.integers(0, 300), st.integers(0, 100_000), st.booleans())
def test_no_stranger_holds_more_than_a_customer_may(book, total, mine, size, rationed):
    heard = book.hears(total=total, mine=mine, size=size, rationed=rationed)
    assert not heard or mine < book.each
    assert not (heard and rationed) or mine == 0
    assert heard <= book.hears(total=total, mine=mine, size=size, known=True), (
        "who has paid is heard wherever a stranger is"
    )
    if mine == 0 and size <= 1_000:
        assert heard, "who has nothing open is always looked at"


@given(BOOKS, st.integers(0, 30_000), st.integers(0, 30_000))
def test_the_fuller_the_book_the_smaller_the_share(book, total, more):
    assert book.share(total) >= book.share(total + more) >= 1


@given(st.lists(st.floats(0, 10), max_size=50))
def test_the_ration_leaks_and_never_goes_below_nothing(pauses):
    ration, now = Ration(), 0.0
    for pause in pauses:
        now += pause
        ration.take(now)
        assert 1.0 <= ration.level(now) <= len(pauses)
        assert not ration.is_short(now)
    assert ration.level(now + 10_000) == 0


def test_a_burst_is_rationed_and_then_has_to_wait():
    ration = Ration()
    for _ in range(300):
        assert not ration.is_short(0.0)
        ration.take(0.0)
    assert ration.is_short(0.0)
    assert ration.wait(0.0) == 0
    for _ in range(930):
        ration.take(0.0)
    assert ration.wait(0.0) == pytest.approx(1.0)
    assert ration.wait(1.0) == 0
    assert not ration.is_short(31.1)


# --- at the desk ----------------------------------------------------------------------------------------------


async def test_a_flood_leaves_a_bounded_trace_and_room_for_a_newcomer(autojump_clock, market):
    home, crowd = await open_home(market), await crowd_of(market, 6)
    terms = Terms(PRICE, max_open=20, max_open_per_customer=6)
    async with home.selling(terms=terms) as (_provider, store):
        for number in range(100):
            crowd[0].ask(home.secret, prompt=f"{number}")
        await trio.sleep(20)
        assert count(store, "sales") == 6
        for number in range(100):
            crowd[1 + number % 4].ask(home.secret, prompt=f"{number}")
        await trio.sleep(20)
        assert 6 < count(store, "sales") <= 20
        assert count(store, "sales") == count(store, "inbox")
        assert booked(store) == counted(store)
        newcomer = crowd[5].ask(home.secret, prompt="I am new here")
        await crowd[5].told(newcomer, "payment-required")
        await trio.sleep(700)
        assert booked(store) == counted(store) == {}
        request = crowd[0].ask(home.secret, prompt="when the quotes have expired")
        await crowd[0].told(request, "payment-required")


async def test_many_new_keys_make_each_other_wait_and_who_has_paid_waits_for_none(autojump_clock, market, monkeypatch):
    monkeypatch.setattr(book, "_BURST", 2.0)
    monkeypatch.setattr(book, "_STRANGERS_A_SECOND", 2.0)
    home, payer = await open_home(market), await open_actor(market, "payer")
    crowd = await crowd_of(market, 40)
    async with home.selling() as (provider, store):
        first = payer.ask(home.secret, prompt="first")
        await payer.pay(await payer.told(first, "payment-required"))
        await until(lambda: provider.records.load(store, first.id).state is SaleState.DELIVERED)
        await trio.sleep(10)
        for actor in crowd:
            actor.ask(home.secret)
        newcomer = await open_actor(market, "newcomer", funds=0)
        new = newcomer.ask(home.secret, prompt="I am new here")
        await trio.sleep(2)
        assert 8 <= count(store, "sales", "state = 'quoted'") <= 8 + 2 * 2 + 8
        began = trio.current_time()
        await payer.told(payer.ask(home.secret, prompt="again"), "payment-required")
        assert trio.current_time() - began < 5, "one turn of each who is being looked at"
        await newcomer.told(new, "payment-required")
        assert count(store, "sales", "state = 'quoted'") >= 41


async def test_who_has_paid_or_is_trusted_is_not_rationed(autojump_clock, market):
    home, payer, friend, stranger = [
        await open_home(market),
        *[await open_actor(market, name) for name in ("payer", "friend", "stranger")],
    ]
    async with home.selling(terms=Terms(PRICE, standings={friend.hex: Standing.TRUSTED})) as (provider, store):
        first = payer.ask(home.secret, prompt="first")
        await payer.pay(await payer.told(first, "payment-required"))
        await until(lambda: provider.records.load(store, first.id).state is SaleState.DELIVERED)
        for _ in range(1_200 + 30 * 20):
            provider.desk._ration.take(market.clock.monotonic())
        began = trio.current_time()
        for actor in (payer, friend):
            await actor.told(actor.ask(home.secret, prompt="again"), "payment-required")
        assert trio.current_time() - began < 1
        await stranger.told(stranger.ask(home.secret), "payment-required")
        assert 19 < trio.current_time() - began < 22


async def test_a_full_book_gives_up_its_oldest_quote_but_no_fresh_one_and_none_that_is_paid(autojump_clock, market):
    home, crowd = await open_home(market), await crowd_of(market, 8)
    payer = await open_actor(market, "payer")
    backend = ScriptedBackend(Reply("a", first=300.0))
    async with home.selling(backend, terms=Terms(PRICE, max_open=4)) as (provider, store):
        paid = payer.ask(home.secret, prompt="paid")
        await payer.pay(await payer.told(paid, "payment-required"))
        await until(lambda: provider.records.load(store, paid.id).state is SaleState.WORKING)
        again = payer.ask(home.secret, prompt="by one who has paid before")
        first = []
        for actor in crowd[:3]:
            first.append(actor.ask(home.secret))
            await actor.told(first[-1], "payment-required")
        await trio.sleep(10)
        late = crowd[3].ask(home.secret)
        await trio.sleep(10)
        assert provider.records.load(store, late.id) is None, "all are fresh: the newcomer is not heard"
        await trio.sleep(60)
        newcomers = [actor.ask(home.secret) for actor in crowd[4:6]]
        for actor, request in zip(crowd[4:6], newcomers, strict=True):
            await actor.told(request, "payment-required")
        states = [provider.records.load(store, request.id).state for request in (*first, again, paid)]
        assert states == [
            SaleState.EXPIRED, SaleState.EXPIRED, SaleState.QUOTED, SaleState.QUOTED, SaleState.WORKING
        ]  # fmt: skip
        assert booked(store) == counted(store)


async def test_who_was_pushed_out_is_served_when_he_pays_nevertheless(autojump_clock, market):
    home, slow, other = await open_home(market), await open_actor(market, "slow"), await open_actor(market, "other")
    async with home.selling(terms=Terms(PRICE, max_open=1)) as (provider, store):
        request = slow.ask(home.secret)
        quote = await slow.told(request, "payment-required")
        await trio.sleep(61)
        await other.told(other.ask(home.secret), "payment-required")
        assert provider.records.load(store, request.id).state is SaleState.EXPIRED
        await slow.pay(quote)
        await until(lambda: provider.records.load(store, request.id).state is SaleState.DELIVERED)


async def test_the_wallet_is_asked_for_nothing_that_is_not_heard(autojump_clock, market):
    home, stranger = await open_home(market), await open_actor(market, "stranger", funds=0)
    made, receive = [], home.wallet.receive

    async def counting(*args, **kwargs):
        made.append(kwargs.get("key"))
        return await receive(*args, **kwargs)

    home.wallet.receive = counting
    async with home.selling(terms=Terms(PRICE, max_open_per_customer=3)):
        for number in range(30):
            stranger.ask(home.secret, prompt=f"{number}")
        await trio.sleep(20)
    assert len(made) == 3


async def test_a_paid_job_does_not_wait_for_the_invoices_of_others(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    crowd = await crowd_of(market, 40)
    async with home.selling() as (provider, store):
        request = customer.ask(home.secret)
        quote = await customer.told(request, "payment-required")
        receive, at_once, most = home.wallet.receive, [], []

        async def slow(*args, **kwargs):
            at_once.append(1)
            most.append(len(at_once))
            await trio.sleep(15)
            at_once.pop()
            return await receive(*args, **kwargs)

        home.wallet.receive = slow
        for actor in crowd:
            actor.ask(home.secret)
        await trio.sleep(1)
        await customer.pay(quote)
        await until(lambda: provider.records.load(store, request.id).state is SaleState.DELIVERED, 5)
        assert max(most) <= 4


@pytest.mark.parametrize("shape", ["long", "many tags"])
async def test_what_is_too_large_is_not_even_opened(autojump_clock, market, monkeypatch, shape):
    home, stranger = await open_home(market), await open_actor(market, "stranger", funds=0)
    opened = []
    monkeypatch.setattr("pylon.provider.desk.parse_request", lambda event, secret: opened.append(event))
    tags = [["p", home.secret.public.hex], ["encrypted", "nip44"]]
    content = "A" * 140_000 if shape == "long" else ""
    if shape == "many tags":
        tags += [["t", f"{number}"] for number in range(300)]
    event = sign_event(stranger.secret, kind=JOB_TEXT, content=content, tags=tags, created_at=market.now)
    async with home.selling() as (provider, store):
        await provider.desk.take(event)
        assert (opened, count(store, "sales"), count(store, "inbox")) == ([], 0, 0)


async def test_blocked_keys_get_silence_at_once_and_are_heard_again_when_they_are_not(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, standings={customer.hex: Standing.BLOCKED})) as (_, store):
        customer.ask(home.secret, prompt="blocked by the configuration")
        await trio.sleep(20)
        assert (count(store, "sales"), count(store, "inbox")) == (0, 0)
        await store.write(lambda tx: customers.set_standing(tx, customer.hex, Standing.STRANGER, 0.0))
        await customer.told(customer.ask(home.secret, prompt="and now"), "payment-required")
        await store.write(lambda tx: customers.set_standing(tx, customer.hex, Standing.BLOCKED, 0.0))
        silent = customer.ask(home.secret, prompt="blocked by a command")
        await trio.sleep(20)
        assert [e for e in market.events(FEEDBACK) if e.tag("e") == silent.id] == []


async def test_trusted_keys_are_not_capped_and_may_be_free(autojump_clock, market):
    home, friend, guest = await open_home(market), await open_actor(market, "friend"), await open_actor(market, "guest")
    standings = {friend.hex: Standing.TRUSTED, guest.hex: Standing.FREE}
    terms = Terms(PRICE, max_open=2, max_open_per_customer=2, standings=standings)
    async with home.selling(terms=terms) as (provider, store):
        requests = [friend.ask(home.secret, prompt=f"{number}") for number in range(10)]
        for request in requests:
            await friend.told(request, "payment-required")
        gift = guest.ask(home.secret, bid_msats=1)
        await until(lambda: (s := provider.records.load(store, gift.id)) and s.state is SaleState.DELIVERED)
        assert provider.records.load(store, gift.id).price == 0


async def test_an_allowance_is_so_many_jobs_a_day_and_key(autojump_clock, market):
    home, one, other = await open_home(market), await open_actor(market, "one"), await open_actor(market, "other")
    async with home.selling(terms=Terms(PRICE, free_per_day=3)) as (_provider, store):
        for number in range(10):
            one.ask(home.secret, prompt=f"{number}")
        other.ask(home.secret)
        await trio.sleep(30)

        def of(actor, condition):
            return count(store, "sales", f"customer = '{actor.hex}' AND {condition}")

        assert (of(one, "price_msats = 0"), of(one, "state = 'quoted'"), of(other, "price_msats = 0")) == (3, 7, 1)
        await trio.sleep(customers.DAY)
        for number in range(5):
            one.ask(home.secret, prompt=f"tomorrow {number}")
        await trio.sleep(30)
        assert of(one, "price_msats = 0") == 6
        await forgetting.forget(store, market.clock.now(), Terms(PRICE), None)
        assert count(store, "allowances") == 1


async def test_what_cannot_be_written_uses_up_no_allowance(autojump_clock, market):
    home, one = await open_home(market), await open_actor(market, "one")
    backend = ScriptedBackend(Reply("a", first=50.0))
    async with home.selling(backend, terms=Terms(PRICE, free_per_day=5, max_open_per_customer=1)) as (_provider, store):
        for number in range(10):
            one.ask(home.secret, prompt=f"{number}")
        await trio.sleep(20)
        assert customers.free_left(store, one.hex, 5, market.clock.now()) == 4


async def test_the_book_counts_whatever_happens_to_sales(autojump_clock, market):
    """Against counting by hand, through payments, expiries, refusals, deletion; and a restart."""
    rng = random.Random(5)
    home, crowd = await open_home(market), [await open_actor(market, f"c{n}") for n in range(4)]
    for _life in range(3):
        async with home.selling(ScriptedBackend(Reply("a", first=3.0)), terms=Terms(PRICE, max_open=30)) as (_, store):
            for number in range(20):
                actor = rng.choice(crowd)
                request = actor.ask(home.secret, prompt=rng.choice([" ", f"{rng.random()}"]))
                await trio.sleep(rng.random() * 20)
                assert booked(store) == counted(store)
                quotes = [e for e in market.events(FEEDBACK) if e.tag("e") == request.id and e.tag("amount")]
                if quotes and rng.random() < 0.5:
                    await actor.pay(quotes[0])
                if number == 10:
                    await trio.sleep(rng.choice([0, 700]))
    async with home.opened() as (store, _pool):
        assert booked(store) == counted(store)
        await store.write(lambda tx: tx.execute("DELETE FROM sales"))
        assert booked(store) == {}


# --- growth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "SELECT customer, sales FROM quote_book WHERE customer IN ('', 'x')",
        "SELECT 1 FROM sales WHERE customer = 'x' AND paid_msats > 0 LIMIT 1",
        "SELECT id FROM sales WHERE state = 'quoted' AND created_at < 1 AND NOT EXISTS"
        " (SELECT 1 FROM sales p WHERE p.customer = sales.customer AND p.paid_msats > 0) ORDER BY created_at LIMIT 1",
        "SELECT id FROM sales WHERE payment_hash = 'x'",
        "SELECT COUNT(*) AS n FROM sales WHERE state = 'refused' AND created_at > 1",
        "SELECT standing FROM standings WHERE customer = 'x'",
    ],
)
async def test_what_is_asked_at_each_request_is_answered_by_an_index(autojump_clock, market, query):
    home = await open_home(market)
    async with home.opened() as (store, _pool):
        plan = [row["detail"] for row in store.read(f"EXPLAIN QUERY PLAN {query}")]
        assert all("SCAN" not in line and "TEMP B-TREE" not in line for line in plan), plan


async def test_alarms_are_kept_for_what_is_open_alone(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer", funds=1_000_000_000)
    async with home.selling(terms=Terms(Msat(1_000))) as (provider, store):
        for number in range(200):
            request = customer.ask(home.secret, prompt=f"{number}")
            await customer.pay(await customer.told(request, "payment-required"))
        await until(lambda: count(store, "sales", "state = 'delivered'") == 200)
        assert len(provider._driver._alarms) <= 64


async def test_more_that_came_to_nothing_than_anybody_reads_is_forgotten(autojump_clock, market):
    home, customer = await open_home(market), await open_actor(market, "customer")
    async with home.selling(terms=Terms(PRICE, invoice_seconds=60)) as (provider, store):
        paid = customer.ask(home.secret, prompt="paid")
        await customer.pay(await customer.told(paid, "payment-required"))
        for number in range(30):
            await customer.told(customer.ask(home.secret, prompt=f"{number}"), "payment-required")
            await trio.sleep(0.5)
        for number in range(10):
            customer.ask(home.secret, prompt=" ", params=[("n", f"{number}")])
            await trio.sleep(0.5)
        await trio.sleep(120)
        assert count(store, "sales", "state = 'expired'") == 30

        async def forget(later):
            return await forgetting.forget(store, market.clock.now() + later, provider.terms, None, keep=5)

        assert await forget(4_000) == 0, "its request could be taken again"
        assert await forget(5_000) == 25 + 5, "the wallet said after its end that nothing had come"
        assert count(store, "sales") == 1 + 5 + 5
        assert count(store, "transitions", "subject NOT IN (SELECT id FROM sales)") == 0
        assert count(store, "outbox", "subject NOT IN (SELECT id FROM sales)") == 0
        assert count(store, "inbox") == 11
        assert provider.records.load(store, paid.id).state is SaleState.DELIVERED


async def test_a_quote_that_was_pushed_out_is_not_forgotten_before_the_wallet_has_been_asked(autojump_clock, market):
    home, crowd = await open_home(market), [await open_actor(market, f"c{n}") for n in range(4)]
    async with home.selling(terms=Terms(PRICE, max_open=1)) as (provider, store):
        for actor in crowd:
            await actor.told(actor.ask(home.secret), "payment-required")
            await trio.sleep(61)
        lookup, asked = home.wallet.lookup_invoice, []

        async def lost(payment_hash):
            asked.append(payment_hash)
            raise WalletError("away")

        home.wallet.lookup_invoice = lost
        later = market.clock.now() + 10_000
        assert await forgetting.forget(store, later, provider.terms, provider._ask_about, keep=0) == 0
        assert await forgetting.forget(store, later, provider.terms, None, keep=0) == 0
        assert len(asked) == 3
        home.wallet.lookup_invoice = lookup
        assert await forgetting.forget(store, later, provider.terms, provider._ask_about, keep=0) == 3


def test_keys_are_never_in_the_trace_of_terms():
    key = SecretKey(bytes(31) + b"\1").public.hex
    assert key not in repr(Terms(PRICE, standings={key: Standing.BLOCKED}))


def count_lookups(wallet):
    """The payment hashes that the wallet is asked about from now on."""
    asked, lookup = [], wallet.lookup_invoice

    async def counting(payment_hash):
        asked.append(payment_hash)
        return await lookup(payment_hash)

    wallet.lookup_invoice = counting
    return asked


async def test_quotes_that_nobody_pays_cost_the_wallet_a_bounded_number_of_questions(
    autojump_clock, market, monkeypatch
):
    monkeypatch.setattr("pylon.provider.payments._ASKED_AT_ONCE", 5)
    home, crowd = await open_home(market), await crowd_of(market, 40)
    asked = count_lookups(home.wallet)
    async with home.selling() as (_provider, store):
        for actor in crowd:
            actor.ask(home.secret)
        await trio.sleep(45)
        asked.clear()
        await trio.sleep(300)
        assert 30 <= len(asked) <= 5 * 15
        assert len(set(asked)) >= 30, "each has its turn"
        plan = [
            row["detail"]
            for row in store.read(
                "EXPLAIN QUERY PLAN SELECT id, expires_at FROM sales WHERE paid_msats = 0 AND expires_at >= 1"
                " AND (expires_at > 1 OR id > '') AND state <> 'held' ORDER BY expires_at, id LIMIT 5"
            )
        ]
        assert len(plan) == 1
        assert plan[0].startswith("SEARCH sales USING INDEX sales_unpaid")


async def test_a_wallet_that_is_heard_again_is_asked_about_every_open_invoice(autojump_clock, market, monkeypatch):
    """However far the polls have come, which ask about a few at a time."""
    monkeypatch.setattr("pylon.provider.payments._ASKED_AT_ONCE", 5)
    home, crowd = await open_home(market), await crowd_of(market, 18)
    asked = count_lookups(home.wallet)
    async with home.selling() as (provider, _):
        for actor in crowd:
            actor.ask(home.secret)
        await until(lambda: len(set(asked)) in range(5, 15), 400)
        asked.clear()
        await provider.payments._claim_all_paid(0.0)
        assert len(asked) == 18
