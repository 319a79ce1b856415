"""What was earned, and when."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.clock import VirtualClock
from pylon.money import Msat
from pylon.provider.earnings import daily, earnings, grouped, recent, since_then
from pylon.provider.sale import Free, Sale
from pylon.provider.sales import sale_records
from pylon.store import ledger
from pylon.store.database import open_store
from pylon.store.vault import Vault

DAY = 86_400.0
NOW = 20_833 * DAY + 3_600.0
"""An hour after midnight, UTC."""


@pytest.fixture
async def store(tmp_path):
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=VirtualClock(NOW), executor="inline", durable=False
    ) as opened:
        yield opened


async def sold(store, cause, msats, at, earned=True):
    done = {"earned": (0, msats), "owed": (0, 0)} if earned else {"earned": (0, 0), "owed": (0, msats)}
    await store.write(lambda tx: ledger.sale_moved(tx, cause=cause, paid=(0, msats), **done, at=at))


def nothing_done(tx, cause, msats):
    ledger.sale_moved(tx, cause=cause, paid=(0, msats), earned=(0, 0), owed=(0, 0), at=NOW)


async def test_nothing_yet(store):
    found = earnings(store, NOW)
    assert (found.today, found.week, found.total, found.jobs, found.owed, found.unearned) == (0, 0, 0, 0, 0, 0)
    assert recent(store, 10) == []


async def test_days_and_weeks(store):
    await sold(store, "old", 1, NOW - 8 * DAY)
    await sold(store, "week", 10, NOW - 6 * DAY)
    await sold(store, "yesterday", 100, NOW - 3_601.0)
    await sold(store, "today", 1_000, NOW - 3_600.0)
    await sold(store, "debt", 10_000, NOW, earned=False)
    await store.write(lambda tx: nothing_done(tx, "open", 100_000))
    found = earnings(store, NOW)
    assert (found.today, found.week, found.total) == (1_000, 1_110, 1_111)
    assert (found.jobs, found.owed, found.unearned) == (4, 10_000, 100_000)
    assert [row["job_id"] for row in recent(store, 2)] == ["today", "yesterday"]


async def test_what_was_given_back_is_not_earned(store):
    def job(tx):
        ledger.sale_moved(tx, cause="s", paid=(0, 5), earned=(0, 5), owed=(0, 0), at=NOW)
        ledger.sale_moved(tx, cause="s", paid=(5, 5), earned=(5, 0), owed=(0, 5), at=NOW)

    await store.write(job)
    found = earnings(store, NOW)
    assert (found.total, found.owed) == (Msat(0), Msat(5))


async def known(store, cause, model, customer):
    sale = Sale(id=cause, customer=customer, kind=5050, created_at=NOW, model=model)
    await store.write(lambda tx: sale_records(store).begin(tx, sale, Free(), NOW))


async def test_by_model_and_by_customer(store):
    for cause, model, customer, msats in (("a", "m", "x", 5), ("b", "m", "y", 7), ("c", "n", "x", 30)):
        await known(store, cause, model, customer)
        await sold(store, cause, msats, NOW)
    await sold(store, "pruned", 1, NOW - 2 * DAY)
    assert grouped(store, "model", 10) == [
        {"model": "n", "amount_msats": 30, "job_count": 1},
        {"model": "m", "amount_msats": 12, "job_count": 2},
        {"model": None, "amount_msats": 1, "job_count": 1},
    ]
    assert [(row["customer"], row["amount_msats"]) for row in grouped(store, "customer", 1)] == [("x", 35)]
    assert (
        sum(row["amount_msats"] for row in grouped(store, "customer", 9, NOW - DAY)) == since_then(store, NOW - DAY)[0]
    )
    assert recent(store, 9, NOW - DAY)[0] == {
        "job_id": "c", "amount_msats": 30, "earned_at": NOW, "model": "n", "customer": "x"
    }  # fmt: skip


async def test_each_day_is_told_also_those_without_earnings(store):
    await sold(store, "a", 5, NOW)
    await sold(store, "b", 7, NOW - 2 * DAY)
    await sold(store, "long ago", 9, NOW - 9 * DAY)
    days = daily(store, NOW - 3 * DAY, NOW)
    assert [day["amount_msats"] for day in days] == [0, 7, 0, 5]
    assert days[-1]["day"] == NOW - 3_600.0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 1_000_000), st.booleans()), max_size=12))
@settings(max_examples=25, deadline=None)
def test_every_view_sums_up_to_the_same(sales):
    trio.run(sums_up, sales)


async def sums_up(sales):
    with tempfile.TemporaryDirectory() as directory:
        async with open_store(
            Path(directory) / "pylon.db",
            vault=Vault(bytes(32)),
            clock=VirtualClock(NOW),
            executor="inline",
            durable=False,
        ) as store:
            for number, (days, msats, kept) in enumerate(sales):
                at, cause = NOW - days * DAY, str(number)
                await sold(store, cause, msats, at)
                if not kept:
                    await store.write(functools.partial(taken_back, cause=cause, msats=msats, at=at))
            total = earnings(store, NOW).total
            assert since_then(store, 0.0)[0] == total == sum(msats for _, msats, kept in sales if kept)
            assert sum(day["amount_msats"] for day in daily(store, NOW - 20 * DAY, NOW)) == total
            assert sum(group["amount_msats"] for group in grouped(store, "model", 99)) == total


def taken_back(tx, cause, msats, at):
    ledger.sale_moved(tx, cause=cause, paid=(msats, msats), earned=(msats, 0), owed=(0, msats), at=at)
