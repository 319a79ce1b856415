"""What of a home's life is told: all that is committed, once, in its order, and without a word of anybody's."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import asynccontextmanager, closing
from functools import partial
from types import SimpleNamespace

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon import config as configuration
from pylon import events, identity
from pylon.clock import SystemClock
from pylon.daemon import runtime
from pylon.daemon.control import Limits, serve_control
from pylon.daemon.events import MOST_FOLLOWERS, EventVerbs, Tally, of_fact, open_stream, watch_balance
from pylon.daemon.logs import start_logging
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.errors import NotFound, PylonError, StoreError, UsageError
from pylon.events import EventStream
from pylon.host.agent import Runner
from pylon.host.host import Host
from pylon.host.ticking import TickRecord, TickState
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.provider.sale import Sale, SaleState
from pylon.store import ledger
from pylon.store.database import open_store
from pylon.store.records import Moved
from pylon.store.vault import Vault
from pylon.supervision import ChildState, ChildStatus
from pylon.testing.backend import ScriptedBackend
from pylon.testing.sim import node
from pylon.testing.sim.plans import simulate_host
from pylon.testing.sim.world import simulate
from pylon.wallets.port import Balance
from tests.pylon.daemon.agent_home import furnish, open_verbs
from tests.pylon.market import until

ALICE = "aa" * 32
PROMPT, ANSWER = "why-is-the-sky-so-blue?", "nobody-has-ever-known"


# --- what is committed is told --------------------------------------------------------------------------------

_MACHINES = {
    "sale.state": ("sale", "sale"),
    "purchase.state": ("purchase", "purchase"),
    "agent.tick": ("tick", "tick"),
    "agent.action": ("action", "action"),
    "agent.state": ("lifecycle", "agent"),
}


def _step(event):
    """An event as a row of the history; ``None`` where it is none."""
    if event.kind not in _MACHINES:
        return None
    machine, subject = _MACHINES[event.kind]
    before = event.from_state or "spawning"
    return machine, getattr(event, subject), before, event.to_state


def _rows(path, table, columns):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()


def _money(entries):
    """The entries of the books that are payments, as events tell them."""
    fees = {(owner, cause, kind): msats for owner, cause, kind, debit, _, msats in entries if debit == "fees"}
    for owner, cause, kind, debit, credit, msats in entries:
        if credit == "wallet" and debit != "fees":
            purpose, colon, rest = kind.partition(":")
            yield "sent", owner, cause, purpose, msats, fees.get((owner, cause, f"{purpose}_fee{colon}{rest}"), 0)
        elif debit == "wallet" and credit != "brought_forward":
            yield "received", owner, cause, "sale" if credit == "unearned" else "deposit", msats, 0


def _moved(event):
    if isinstance(event, events.PaymentSent):
        return "sent", event.agent, event.cause, event.purpose, event.amount_msats, event.fee_msats
    if isinstance(event, events.PaymentReceived):
        return "received", event.agent, event.cause, event.purpose, event.amount_msats, 0
    return None


@pytest.mark.parametrize(
    ("run", "seed", "machines"),
    [
        (simulate, 7, {"sale", "purchase"}),
        (simulate, 11, {"sale", "purchase"}),
        (simulate_host, 2, {"purchase", "tick", "action", "lifecycle"}),
        (simulate_host, 13, {"purchase", "tick", "action", "lifecycle"}),
    ],
)
def test_every_committed_step_and_payment_is_told_once_and_in_order_through_crashes(monkeypatch, run, seed, machines):
    """Homes that are killed and started again: what each life has committed is what it has told, no more, no less."""
    lives = []

    @asynccontextmanager
    async def told(path, **options):
        had = {"transitions": 0, "entries": 0}
        if path.exists():
            had = {table: len(_rows(path, table, "id")) for table in had}
        heard = []
        try:
            async with open_store(path, **options) as store:
                stream = open_stream(store, options["clock"])
                stream.on_event[:] = [lambda each: heard.append(each.event)]
                yield store
        finally:
            steps = _rows(path, "transitions", "machine, subject, from_state, to_state")[had["transitions"] :]
            entries = _rows(path, "entries", "owner, cause, kind, debit, credit, msats")[had["entries"] :]
            lives.append((heard, steps, list(_money(entries))))

    monkeypatch.setattr(node, "open_store", told)
    logging.disable(logging.CRITICAL)
    try:
        assert run(seed).ok
    finally:
        logging.disable(logging.NOTSET)
    for heard, steps, payments in lives:
        assert [step for step in map(_step, heard) if step] == steps
        assert [moved for moved in map(_moved, heard) if moved] == payments
    assert {machine for _, steps, _ in lives for machine, *_ in steps} >= machines
    assert any(payments for _, _, payments in lives)
    assert len(lives) > 1, "somebody was killed, and lived again"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["well", "raises", "sql"])), min_size=1, max_size=12))
def test_a_transaction_that_is_undone_tells_nothing(tmp_path_factory, jobs):
    path = tmp_path_factory.mktemp("store") / "pylon.db"
    heard = []

    async def run():
        async with open_store(
            path, vault=Vault(bytes(32)), clock=SystemClock(), executor="inline", durable=False
        ) as store:
            store.on_fact = heard.append

            async def write(number, count, how):
                def job(tx):
                    for nth in range(count):
                        tx.tell((number, nth))
                    if how == "raises":
                        raise ValueError
                    if how == "sql":
                        tx.execute("INSERT INTO nowhere VALUES (1)")

                try:
                    await store.write(job)
                except (ValueError, StoreError):
                    assert how != "well"

            async with trio.open_nursery() as nursery:
                for number, (count, how) in enumerate(jobs):
                    nursery.start_soon(write, number, count, how)

    trio.run(run)
    for number, (count, how) in enumerate(jobs):
        assert [nth for told, nth in heard if told == number] == (list(range(count)) if how == "well" else [])


async def test_what_is_booked_again_is_told_once_and_what_was_there_before_is_not_received(tmp_path):
    heard = []

    def book(tx):
        ledger.brought_forward(tx, "wallet", 9_000, 1.0)
        ledger.deposit(tx, "d1", 4_000, 2.0, ALICE)
        ledger.payment_settled(tx, cause="p1", payment_hash="ab" * 32, amount=3_000, fee=1_000, at=3.0)
        ledger.withdrawal(tx, "w1", 500, 0, 4.0)

    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=SystemClock(), executor="inline", durable=False
    ) as store:
        store.on_fact = heard.append
        await store.write(book)
        await store.write(book)
    assert heard == [
        events.PaymentReceived(agent=ALICE, cause="d1", purpose="deposit", amount_msats=4_000),
        events.PaymentSent(
            agent="", cause="p1", purpose="purchase", payment_hash="ab" * 32, amount_msats=3_000, fee_msats=1_000
        ),
        events.PaymentSent(agent="", cause="w1", purpose="withdrawal", payment_hash="", amount_msats=500, fee_msats=0),
    ]


async def test_a_commit_that_fails_tells_nothing(tmp_path, monkeypatch):
    heard = []
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=SystemClock(), executor="inline", durable=False
    ) as store:
        store.on_fact = heard.append

        async def fails():
            assert heard == [], "nothing is told before its commit"
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(store, "_commit", fails)
            with pytest.raises(StoreError):
                await store.write(lambda tx: tx.tell("never"))
        await store.write(lambda tx: tx.tell("this"))
    assert heard == ["this"]


# --- a home ---------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))

    def make(name: str, **changes):
        home = Home(tmp_path / name)
        identity.create(home, now=1.0)
        home.config.write_text(
            f'network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n[simnet]\nledger = "{tmp_path}/ledger.db"\n'
            '[api]\nbind = "127.0.0.1:0"\n'
        )
        return home, attrs.evolve(configuration.load(home.config, environ={}).config, **changes)

    return make


@asynccontextmanager
async def opened(home, config, **options):
    with trio.fail_after(20):
        async with open_runtime(home, config, **options) as runtime:
            yield runtime


async def verb(runtime, name, notify=None, **params):
    async def nobody(method, data):
        return True

    return await Verbs.of(runtime).table()[name](params, notify or nobody)


async def test_a_market_is_told_by_both_sides_and_no_word_of_it(make):
    """The events, the lines of the log that they are, and what the metrics add up to."""
    seller, terms = make("seller", min_price_msats=7_000)
    log = start_logging(seller.log, logging.DEBUG)
    try:
        async with opened(seller, terms, mode="provider", backend=ScriptedBackend(ANSWER), serve_http=True) as selling:
            logging.getLogger().setLevel(logging.DEBUG)
            buyer, config = make("buyer", relays=tuple(selling.pool.urls))
            config = attrs.evolve(config, relay=attrs.evolve(config.relay, enabled=False))
            async with opened(buyer, config) as buying:
                await verb(buying, "wallet.fund", amount_msats=sats(100))
                await verb(buying, "job.submit", prompt=PROMPT, bid_msats=sats(20), max_tokens=8, wait=True)
                await until(lambda: any(_of(buying, "wallet.balance")))
                states = [each.event.to_state for each in _of(buying, "purchase.state")]
                assert (states[0], states[-1]) == ("seeking", "answered")
                (sent,) = _of(buying, "payment.sent")
                assert (sent.event.purpose, sent.event.amount_msats) == ("purchase", 7_000)
                assert [each.event.relay for each in _of(buying, "relay.connected")] == selling.pool.urls
                selling.pool.remove_relay(selling.pool.urls[0])
            assert not _of(buying, "relay.lost"), "it is we who went"
            await until(lambda: any(each.event.to_state == "delivered" for each in _of(selling, "sale.state")))
            (received,) = _of(selling, "payment.received")
            assert (received.event.purpose, received.event.amount_msats, received.event.agent) == ("sale", 7_000, "")
            assert [each.event.kind for each in _of(selling, "provider")] == ["provider.opened"]
            assert [each.event.kind for each in _of(selling, "relay")] == ["relay.connected", "relay.lost"]
            told = [each.to_json() for each in selling.events.recent(1_000)]
            metrics = selling.openai.metrics.text().decode()
            both = json.dumps([told, [each.to_json() for each in buying.events.recent(1_000)]])
        told = [each.to_json() for each in selling.events.recent(1_000)]
        assert [each["kind"] for each in told if each["kind"].startswith("provider")][-1] == "provider.closed"
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    assert 'pylon_events_total{kind="payment.received"} 1.0' in metrics
    assert 'pylon_entered_total{of="sale",state="delivered"} 1.0' in metrics
    assert 'pylon_booked_msats_total{direction="received",purpose="sale"} 7000.0' in metrics
    text = seller.log.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    lines = [record for record in records if record["logger"] == "pylon.events" and record["kind"] in told[0]["kind"]]
    assert lines, "an event is a line of the log"
    own = [record for record in records if record.get("kind", "").startswith(("sale", "provider"))]
    assert [(record["kind"], record["seq"]) for record in own] == [
        (each["kind"], each["seq"]) for each in told if each["kind"].startswith(("sale", "provider"))
    ], "each event is one line"
    ended = next(record for record in own if record["data"].get("to_state") == "delivered")
    assert (ended["level"], ended["data"]["earned_msats"]) == ("info", 7_000)
    for secret in (PROMPT, ANSWER, *(identity.load(home).reveal_phrase() for home in (seller, buyer))):
        assert secret not in both
        assert secret not in text


def _of(runtime, *kinds):
    return runtime.events.recent(1_000, events.Wanted.of(kinds))


async def test_what_happens_to_an_agent_is_told_with_its_name(tmp_path):
    root = await furnish(tmp_path / "home")
    async with open_verbs(root) as home:
        stream = open_stream(home.store, SystemClock())
        stream.on_event.clear()
        await home.ask("agent.pause", agent="bob")
        await home.ask("agent.pause", agent="bob")
        await home.ask("agent.resume", agent="bob")
        await home.ask("agent.spawn", name="carol")
        await home.ask("agent.delete", agent="bob", name="bob")
        told = [each.to_json() for each in stream.recent(99)]
        verbs = EventVerbs(stream, home.store)
        heard, notify = listening()
        await verbs.events({"agent": "carol", "limit": 10}, notify)
        assert [(each["kind"], each["to_state"]) for _, each in heard] == [("agent.state", "spawning")]
        with pytest.raises(NotFound):
            await verbs.events({"agent": "nobody"}, notify)
    assert [(each["kind"], each["name"], each.get("held", each.get("from_state"))) for each in told] == [
        ("agent.held", "bob", "paused"),
        ("agent.held", "bob", ""),
        ("agent.state", "carol", ""),
        ("agent.held", "bob", "deleted"),
    ]


# --- the control socket ---------------------------------------------------------------------------------------


def listening(most=10_000):
    heard = []

    async def notify(method, data):
        await trio.lowlevel.checkpoint()
        heard.append((method, data))
        return len(heard) < most

    return heard, notify


@pytest.fixture
def verbs():
    stream = EventStream(lambda: 5.0, kept=8)
    return EventVerbs(stream, None)


async def test_recent_ones_and_those_behind_a_mark(verbs):
    stream = verbs._stream
    for number in range(3):
        stream.publish(events.DaemonStall(seconds=number))
    heard, notify = listening()
    answer = await verbs.events({"limit": 2}, notify)
    assert [(method, each["seq"]) for method, each in heard] == [("event", 2), ("event", 3)]
    assert answer == {"mark": f"{stream.run}-3"}
    for number in range(9):
        stream.publish(events.DaemonStall(seconds=number))
    heard, notify = listening()
    answer = await verbs.events({"mark": answer["mark"], "kinds": ["daemon.stall"]}, notify)
    assert heard[0] == ("gap", {"missed": 1})
    assert [each["seq"] for _, each in heard[1:]] == list(range(5, 13))


async def test_following_begins_with_recent_ones_says_that_it_lives_and_ends_with_its_caller(verbs, autojump_clock):
    stream = verbs._stream
    stream.publish(events.DiskTrouble())
    heard, notify = listening(6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verbs.events, {"follow": True, "limit": 1, "alive": 2}, notify)
        await trio.sleep(5)
        stream.publish(events.DiskWell())
        await trio.sleep(1)
    assert [method if method != "event" else each["kind"] for method, each in heard] == [
        "disk.trouble", "alive", "alive", "alive", "disk.well", "alive",
    ]  # fmt: skip
    assert verbs._followers == 0


async def test_so_many_may_follow(verbs, autojump_clock):
    _, notify = listening()
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_FOLLOWERS):
            nursery.start_soon(verbs.events, {"follow": True}, notify)
        await trio.sleep(1)
        with pytest.raises(PylonError, match="follow the events already"):
            await verbs.events({"follow": True}, notify)
        nursery.cancel_scope.cancel()
    assert verbs._followers == 0


async def test_a_client_that_takes_nothing_is_cut_off_and_one_that_reads_hears_all(tmp_path):
    stream = EventStream(lambda: 5.0)
    verbs, home = EventVerbs(stream, None), Home(tmp_path / "home")
    home.prepare()
    asked = b'{"jsonrpc": "2.0", "id": 1, "method": "events", "params": {"follow": true}}\n'
    heard = []

    async def read(client):
        left = b""
        async for data in client:
            *lines, left = (left + data).split(b"\n")
            heard.extend(told["params"]["seq"] for told in map(json.loads, lines) if told["method"] == "event")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            limits = Limits(write=0.3)
            await nursery.start(partial(serve_control, limits=limits), home, verbs.table())
            deaf, reader = [await trio.open_unix_socket(str(home.socket)) for _ in range(2)]
            for client in (deaf, reader):
                await client.send_all(asked)
            nursery.start_soon(read, reader)
            await until(lambda: verbs._followers == 2)
            while verbs._followers > 1:
                for _ in range(10):
                    stream.publish(events.DaemonReload(applied=("x" * 10_000,)))
                await trio.sleep(0.01)
            await until(lambda: len(heard) == stream.last)
            nursery.cancel_scope.cancel()
    assert heard == list(range(1, stream.last + 1))
    for client in (deaf, reader):
        await client.aclose()


@pytest.mark.parametrize(
    "params",
    [
        {"limit": -1}, {"limit": "9"}, {"limit": True}, {"limit": 1_001}, {"alive": 0}, {"alive": "1"},
        {"alive": True}, {"kinds": "sale"}, {"kinds": [1]}, {"kinds": ["sail"]}, {"agent": 7}, {"mark": "x"},
    ],
)  # fmt: skip
async def test_what_cannot_be_asked(verbs, params):
    with pytest.raises(UsageError):
        await verbs.events(params, listening()[1])


# --- the wallet -----------------------------------------------------------------------------------------------


async def test_a_balance_is_told_when_it_is_another_one(tmp_path, autojump_clock):
    """And not while it is not known, nor again for being asked again."""
    held = [None, Balance(Msat(5_000), Msat(0), 1.0), Balance(Msat(5_000), Msat(0), 2.0)]

    async def known():
        return held.pop(0) if len(held) > 1 else held[0]

    stream = EventStream(lambda: 5.0)
    async with (
        open_store(
            tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=SystemClock(), executor="inline", durable=False
        ) as store,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_balance, stream, store, known)
        await trio.sleep(200)
        held[:] = [Balance(Msat(5_000), Msat(2_000), 3.0)]
        await store.write(lambda tx: tx.touch("ledger"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    told = [
        (each.event.spendable_msats, each.event.settled_msats, each.event.pending_msats) for each in stream.recent(9)
    ]
    assert told == [(5_000, 5_000, 0), (3_000, 5_000, 2_000)]


def test_what_stays_in_its_state_is_not_entered_again():
    tally, stream = Tally(), EventStream(lambda: 5.0)
    stream.on_event.append(tally)
    for before in ("new", "thinking"):
        stream.publish(events.AgentTick(agent="aa", tick="aa:1", cause="asked", from_state=before, to_state="thinking"))
    assert tally.states == {("tick", "thinking"): 1}
    assert tally.kinds == {"agent.tick": 2}


def test_a_part_that_ends_is_told_whoever_it_belongs_to():
    told = []
    publisher = SimpleNamespace(publish=told.append)
    for state in (ChildState.WAITING, ChildState.QUARANTINED):
        status = ChildStatus("heartbeat", state, 3, 0.0, last_error="ValueError")
        runtime._tell(publisher, status, ValueError("a secret"))
        Runner._tell(SimpleNamespace(id=ALICE, _agents=publisher), status, None)
        Host._tell(SimpleNamespace(agents=publisher), attrs.evolve(status, name=ALICE), None)
    for kind, three in ((events.ChildFailed, told[:3]), (events.ChildQuarantined, told[3:])):
        assert three == [
            kind(child="heartbeat", starts=3),
            kind(child="heartbeat", agent=ALICE, starts=3),
            kind(child="nursery", agent=ALICE, starts=3),
        ]


def test_the_log_is_told_of_ends_and_whoever_debugs_of_the_way_there():
    tick, sale = TickRecord(f"{ALICE[:16]}:1", ALICE, 1, 5.0, "heartbeat"), Sale("5f" * 32, ALICE, 5050, 5.0)
    for machine, record, state, level in (
        ("tick", tick, TickState.THINKING, logging.DEBUG),
        ("tick", tick, TickState.QUIET, logging.DEBUG),
        ("tick", tick, TickState.FAILED, None),
        ("sale", sale, SaleState.WORKING, logging.DEBUG),
        ("sale", sale, SaleState.OWED, None),
    ):
        event, found = of_fact(Moved(machine, record, attrs.evolve(record, state=state), "Begun"))
        assert (event.from_state, event.to_state, found) == (record.state.value, state.value, level)
    low = events.BudgetLow(agent="", budget="day", used_msats=8, bound_msats=10)
    assert of_fact(low) == (low, None)
    assert of_fact(attrs.evolve(low, budget="tick"))[1] == logging.INFO
    assert of_fact(events.WalletBalance(agent="", spendable_msats=1))[1] == logging.DEBUG
    assert of_fact("anything else") is None
