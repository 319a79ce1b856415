"""What was earned, and when."""

from __future__ import annotations

import pytest

from pylon.clock import VirtualClock
from pylon.money import Msat
from pylon.provider.earnings import earnings, recent
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
