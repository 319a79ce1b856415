"""The freeze of a restore ends when everything is known, and not before; the operator's own does not."""

from __future__ import annotations

import pytest
import trio

from pylon.daemon.books import Report
from pylon.daemon.thawing import thaw_when_reconciled
from pylon.errors import NotFound
from pylon.money import Msat
from pylon.store import freeze, intents
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.purse import Failed, Settled, Unknown

CLEAN = Report({}, 0, ())
AT = 100.0


@pytest.fixture
async def store(tmp_path):
    from pylon.clock import VirtualClock

    vault = Vault(bytes(32))
    async with open_store(
        tmp_path / "x.db", vault=vault, clock=VirtualClock(), executor="inline", durable=False
    ) as store:
        yield store


def reserve(tx, cause, at):
    intents.reserve(
        tx, tx.vault, cause=cause, payment_hash=cause * 64, invoice="lnsb1", amount=Msat(1_000), max_fee=Msat(10), at=at
    )


async def run_for(store, look, audit, seconds):
    with trio.move_on_after(seconds):
        await thaw_when_reconciled(store, look, audit)


def answering(*answers):
    """Looks that give these answers one after the other, and the last one for ever."""
    left = list(answers)

    async def answer(*_):
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise type(found)(*found.args)
        return found

    return answer


@pytest.mark.parametrize("known", [None, Failed("no"), Settled(Msat(1_000), Msat(1), None)])
async def test_it_thaws_once_the_wallet_has_told_of_each_open_payment(autojump_clock, store, known):
    await store.write(lambda tx: (reserve(tx, "a", AT - 1), freeze.freeze_until_reconciled(tx, "restored", AT)))
    await run_for(store, answering(Unknown("away"), NotFound("no such agent", ""), known), answering(CLEAN), 5)
    assert freeze.mark(store) is not None, "nobody knows yet"
    await run_for(store, answering(Unknown("away"), NotFound("no such agent", ""), known), answering(CLEAN), 100)
    assert freeze.mark(store) is None


async def test_what_was_asked_for_after_the_restore_does_not_count(autojump_clock, store):
    await store.write(lambda tx: (reserve(tx, "a", AT + 1), freeze.freeze_until_reconciled(tx, "restored", AT)))
    await run_for(store, answering(Unknown("away")), answering(CLEAN), 100)
    assert freeze.mark(store) is None


@pytest.mark.parametrize(
    "report",
    [
        Report({}, 0, ("the wallet holds less",)),
        Report({}, None, (), unknown=("not compared with the wallet, which does not say what it holds: away",)),
        RuntimeError("broken"),
    ],
)
async def test_books_that_are_not_clean_keep_it_frozen(autojump_clock, store, report, caplog):
    await store.write(lambda tx: freeze.freeze_until_reconciled(tx, "restored", AT))
    await run_for(store, answering(None), answering(report), 10_000)
    assert freeze.mark(store) is not None
    assert len([record for record in caplog.records if "stays frozen" in record.message]) == 1
    await run_for(store, answering(None), answering(report, CLEAN), 10_000)
    assert freeze.mark(store) is None


@pytest.mark.parametrize("before", [True, False])
async def test_the_operators_own_freeze_stays(autojump_clock, store, before):
    def both(tx):
        if before:
            freeze.freeze(tx, "mine", 1.0)
        freeze.freeze_until_reconciled(tx, "restored", AT)
        if not before:
            freeze.freeze(tx, "mine", AT + 1)

    await store.write(both)
    await run_for(store, answering(None), answering(CLEAN), 10_000)
    assert freeze.mark(store).reason == "mine"
    await store.write(freeze.thaw)
    assert freeze.mark(store) is None


async def test_one_that_comes_while_it_is_looked_stays(autojump_clock, store):
    await store.write(lambda tx: freeze.freeze_until_reconciled(tx, "restored", AT))

    async def audit():
        await store.write(lambda tx: freeze.freeze(tx, "mine", AT + 1))
        return CLEAN

    await run_for(store, answering(None), audit, 100)
    assert freeze.mark(store).reason == "mine"


async def test_a_second_restore_freezes_until_it_is_reconciled_too(autojump_clock, store):
    for at in (AT, AT + 1):
        await store.write(lambda tx, at=at: freeze.freeze_until_reconciled(tx, "restored", at))
    assert freeze.ends_when_reconciled(store)
    assert freeze.mark(store).at == AT + 1
