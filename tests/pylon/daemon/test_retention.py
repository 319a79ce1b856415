"""What is forgotten has ended, is old, and has no money in it; everything else stays, whatever its age."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.compute.purchase import PURCHASE, PurchaseState
from pylon.config import RetentionConfig
from pylon.daemon import retention
from pylon.daemon.retention import BOUNDED, DAY, NEVER, RULES, forget, give_back
from pylon.host.acting import ACTION, ActionState
from pylon.host.ticking import TICK, TickState
from pylon.provider.sale import SALE, SaleState
from pylon.store import ledger
from pylon.store.database import open_store
from pylon.store.schema import migrate
from pylon.store.vault import Vault
from tests.pylon.store.conftest import NOW, StoppedClock, transaction

KEEP = RetentionConfig()
MONEY = ("entries", "intents", "claims", "credits", "nwc_payments", "sale_zaps", "zap_invoices")


def tidy(tx):
    """As ``forget`` does, in one transaction."""
    for rule in RULES:
        while retention._once(tx, rule=rule, before=NOW - getattr(KEEP, rule.key) * DAY, limit=3) == 3:
            pass


def insert(tx, table, **values):
    names = ", ".join(values)
    tx.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))


def ids(tx, table):
    return {row["id"] for row in tx.all(f"SELECT id FROM {table}")}


def test_every_table_has_a_policy():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        migrate(db, ":memory:")
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    ruled = {table for rule in RULES for table in rule.tables}
    assert tables == ruled | NEVER | set(BOUNDED)
    assert not ruled & NEVER
    assert not set(BOUNDED) & (ruled | NEVER)


AGES = st.sampled_from([0.0, 29.0, 31.0, 364.0, 366.0, 4_000.0])
PAID = st.sampled_from(["no", "no", "paid", "claimed", "booked"])


@given(
    st.lists(
        st.tuples(st.sampled_from(list(SaleState)), AGES, AGES, PAID),
        max_size=12,
    )
)
def test_sales(drawn):
    with transaction() as tx:
        stay = set()
        for number, (state, created, touched, paid) in enumerate(drawn):
            name = f"sale{number}"
            insert(
                tx, "sales", id=name, state=state.value, customer="c", model="m", price_msats=1, attempts=0,
                created_at=NOW - created * DAY, updated_at=NOW - min(created, touched) * DAY, record=b"x",
                paid_msats=1_000 if paid == "paid" else 0,
            )  # fmt: skip
            insert(tx, "transitions", machine=SALE.name, subject=name, at=1, from_state="a", input="b", to_state="c")
            if paid == "claimed":
                insert(
                    tx, "claims", wallet="own", payment_id=name, payment_hash=name, sale_id=name, amount_msats=5, at=1
                )
            if paid == "booked":
                insert(tx, "entries", at=1, cause=name, kind="k", debit="wallet", credit="unearned", msats=5)
            old = min(created, touched) > KEEP.requests_days
            if not old or paid != "no" or state not in SALE.final or state in (SaleState.DELIVERED, SaleState.OWED):
                stay.add(name)
        before = {table: tx.all(f"SELECT * FROM {table}") for table in MONEY}
        balances = ledger.balances(tx)
        tidy(tx)
        assert ids(tx, "sales") == stay
        assert {row["subject"] for row in tx.all("SELECT subject FROM transitions")} == stay
        assert {table: tx.all(f"SELECT * FROM {table}") for table in MONEY} == before
        assert ledger.balances(tx) == balances


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(PurchaseState)),
            AGES,
            st.sampled_from(["", "agent"]),
            st.sampled_from(["no", "no", "paid", "credit", "pending", "settled", "failed"]),
        ),
        max_size=12,
    )
)
def test_purchases(drawn):
    with transaction() as tx:
        stay = set()
        for number, (state, age, owner, money) in enumerate(drawn):
            name = f"purchase{number}"
            insert(
                tx, "purchases", id=name, state=state.value, owner=owner, provider="p", request_id=f"r{number}",
                paid_msats=5 if money == "paid" else 0, fee_msats=0, credit_msats=5 if money == "credit" else 0,
                created_at=NOW - age * DAY, updated_at=NOW - age * DAY, record=b"x",
            )  # fmt: skip
            insert(tx, "purchase_requests", request_id=f"r{number}", purchase_id=name, provider="p", created_at=1)
            insert(
                tx, "transitions", machine=PURCHASE.name, subject=name, at=1, from_state="a", input="b", to_state="c"
            )
            if money in ("pending", "settled", "failed"):
                insert(
                    tx, "intents", id=name, owner=owner, cause=name, payment_hash=name, state=money, amount_msats=5,
                    max_fee_msats=1, idempotency_key=name, invoice=b"x", created_at=1, updated_at=1,
                )  # fmt: skip
            bound = KEEP.thoughts_days if owner else KEEP.requests_days
            if age <= bound or state is not PurchaseState.FAILED or money not in ("no", "failed"):
                stay.add(name)
        before = {table: tx.all(f"SELECT * FROM {table}") for table in MONEY}
        tidy(tx)
        assert ids(tx, "purchases") == stay
        assert {row["purchase_id"] for row in tx.all("SELECT purchase_id FROM purchase_requests")} == stay
        assert {row["subject"] for row in tx.all("SELECT subject FROM transitions")} == stay
        assert {table: tx.all(f"SELECT * FROM {table}") for table in MONEY} == before


TICK_STATES = sorted({state.value for state in TICK.final} | {state.value for state in TickState})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["alice", "bob"]),
            st.sampled_from(TICK_STATES),
            AGES,
            st.lists(st.sampled_from(list(ActionState)), max_size=2),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_ticks_and_what_was_done_in_them(drawn):
    with transaction() as tx:
        found = []
        for number, (agent, state, age, actions, paying) in enumerate(drawn):
            name = f"tick{number}"
            insert(
                tx, "ticks", id=name, agent=agent, n=number, state=state, cause="heartbeat", strangers=0,
                created_at=NOW - age * DAY, updated_at=NOW - age * DAY, record=b"x",
            )  # fmt: skip
            insert(tx, "transitions", machine=TICK.name, subject=name, at=1, from_state="a", input="b", to_state="c")
            for seq, done in enumerate(actions):
                insert(
                    tx, "actions", id=f"{name}.{seq}", agent=agent, tick=name, seq=seq, kind="note", state=done.value,
                    created_at=1, updated_at=1, record=b"x",
                )  # fmt: skip
            if paying:
                insert(
                    tx, "intents", id=name, owner=agent, cause=name, scope=name, payment_hash=name, state="pending",
                    amount_msats=5, max_fee_msats=1, idempotency_key=name, invoice=b"x", created_at=1, updated_at=1,
                )  # fmt: skip
            found.append((agent, number, name, state, age, actions, paying))
        # A quiet tick may go at any time: the agent's row has its number.
        quiet_gone = {each[2] for each in found if each[3] == "quiet" and each[4] > KEEP.quiet_days}
        last = {agent: name for agent, _, name, *_ in found if name not in quiet_gone}
        stay = {
            name
            for agent, _, name, state, age, actions, paying in found
            if name not in quiet_gone
            and (
                age <= KEEP.thoughts_days
                or state not in {final.value for final in TICK.final}
                or state == "quiet"
                or any(action not in ACTION.final for action in actions)
                or paying
                or last[agent] == name
            )
        }
        tidy(tx)
        assert ids(tx, "ticks") == stay
        assert {row["tick"] for row in tx.all("SELECT tick FROM actions")} <= stay | quiet_gone
        assert {row["subject"] for row in tx.all("SELECT subject FROM transitions")} == stay


def test_invoices_that_nobody_paid():
    with transaction() as tx:
        old, young = NOW - 31 * DAY, NOW - 29 * DAY
        tx.execute("INSERT INTO wallet_connections VALUES ('app', 'own', 'app', x'00', '[]', 1, NULL, 1.0, NULL, NULL)")
        for name, expires, settled, told in (
            ("old", old, None, ""), ("young", young, None, ""),
            ("paid", old, old, "settled"), ("held", old, None, "accepted"),
        ):  # fmt: skip
            insert(
                tx, "connection_invoices", payment_hash=name, client="app", request_id=name, amount_msats=1,
                invoice=b"x", hold=0, created_at=1, expires_at=expires, settled_at=settled, told=told,
            )  # fmt: skip
        for name, created in (("old", old), ("young", young), ("claimed", old), ("sold", old), ("zap", old)):
            insert(
                tx, "nwc_invoices", wallet="w", key=name, payment_hash=name, amount_msats=1, invoice=b"x", hold=0,
                created_at=created,
            )  # fmt: skip
        insert(tx, "claims", wallet="w", payment_id="p", payment_hash="claimed", sale_id="s", amount_msats=1, at=1)
        insert(
            tx, "sales", id="s", state="delivered", customer="c", model="m", price_msats=1, payment_hash="sold",
            attempts=0, created_at=1, updated_at=1, record=b"x",
        )  # fmt: skip
        insert(
            tx, "zap_invoices", payment_hash="zap", agent="a", amount_msats=1, invoice=b"x", created_at=1, expires_at=1,
        )  # fmt: skip
        tidy(tx)
        assert {row[0] for row in tx.all("SELECT payment_hash FROM connection_invoices")} == {"young", "paid", "held"}
        kept = {row[0] for row in tx.all("SELECT payment_hash FROM nwc_invoices")}
        assert kept == {"young", "claimed", "sold", "zap"}


# --- in the store -------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path):
    path = tmp_path / "pylon.db"
    async with open_store(
        path, vault=Vault(bytes(32)), clock=StoppedClock(), executor="inline", durable=False
    ) as store:
        yield store


def many(tx, count):
    rows = [("c", f"{number:064x}", 1.0) for number in range(count)]
    tx._connection.executemany("INSERT INTO inbox VALUES (?, ?, ?)", rows)


async def test_much_goes_in_small_batches(store):
    await store.write(lambda tx: many(tx, 10 * retention.BATCH + 1))
    sizes, write = [], store.write

    async def counted(fn):
        def job(tx):
            before = tx.one("SELECT COUNT(*) FROM inbox")[0]
            result = fn(tx)
            sizes.append(before - tx.one("SELECT COUNT(*) FROM inbox")[0])
            return result

        return await write(job)

    store.write = counted
    counts = await forget(store, NOW, KEEP)
    assert counts["that an event was taken"] == 10 * retention.BATCH + 1
    assert max(sizes) == retention.BATCH


async def test_room_that_is_not_used_is_given_back(tmp_path, store):
    await store.write(lambda tx: many(tx, 20_000))
    await store.write(lambda tx: tx.execute("DELETE FROM inbox"))
    assert await give_back(store, few=100_000) == 0
    assert await give_back(store, few=50) > 300
    assert await give_back(store, few=50) == 0
    with closing(sqlite3.connect(tmp_path / "pylon.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert (tmp_path / "pylon.db").stat().st_size < 1_000_000


async def test_a_database_from_before_keeps_its_size(tmp_path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        migrate(db, str(path))
    async with open_store(
        path, vault=Vault(bytes(32)), clock=StoppedClock(), executor="inline", durable=False
    ) as store:
        await store.write(lambda tx: many(tx, 5_000))
        await store.write(lambda tx: tx.execute("DELETE FROM inbox"))
        assert await give_back(store, few=50) == 0
