"""The driver: commit first, then act; resume, retry, and attend in time, whatever the clock does."""

from __future__ import annotations

import itertools
import random
from contextlib import asynccontextmanager

import pytest
import trio

from protocols.keys import SecretKey
from protocols.nip01 import sign_event
from pylon.clock import VirtualClock
from pylon.driver import Driver
from pylon.errors import StoreError
from pylon.money import Msat
from pylon.provider import sale as machine
from pylon.provider.sale import SALE, Sale, SaleEffect, SaleState
from pylon.provider.sales import sale_records
from pylon.store import inbox
from pylon.store.database import open_store
from pylon.store.vault import Vault

PRICE = Msat(5_000)
KEY = SecretKey(bytes(31) + b"\x01")


class Stage:
    """A driver of sales whose handlers a test sets."""

    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        self.records = sale_records(store)
        self.done = []
        self.handlers = {
            SaleEffect.MINT_INVOICE: self.mint,
            SaleEffect.INFER: self.infer,
            SaleEffect.SETTLE_HOLD: self.settle,
            SaleEffect.CANCEL_HOLD: self.cancel,
        }
        self.attend = self.expire
        self.driver = Driver(
            self.records,
            store,
            clock,
            random.Random(1),
            handlers=self.handlers,
            compose=lambda tx, record, effect: [sign_event(KEY, kind=7000, content=str(effect), created_at=1)],
            book=lambda tx, step: None,
            due=lambda sale: sale.expires_at if sale.state is SaleState.QUOTED else None,
            attend=lambda sale: self.attend(sale),
            relays=lambda record: ["ws://a"],
            abandons=(SaleEffect.INFER,),
        )

    async def mint(self, sale):
        self.done.append("mint")
        return machine.Minted("lnsb1", sale.id, self.clock.now() + 100)

    async def infer(self, sale):
        self.done.append("infer")
        return machine.Answered("words")

    async def settle(self, sale):
        self.done.append("settle")
        return machine.Paid(sale.held, by_hold=True)

    async def cancel(self, sale):
        self.done.append("cancel")
        return machine.HoldGone()

    async def expire(self, sale):
        self.done.append("expire")
        return machine.InvoiceExpired()

    async def begin(self, number=1, message=None):
        sale = Sale(id=f"{number:064x}", customer="cd" * 32, kind=5050, created_at=float(number))
        return await self.driver.begin(sale, message or machine.Priced(PRICE))

    def state(self, number=1):
        record = self.records.load(self.store, f"{number:064x}")
        return None if record is None else record.state


@asynccontextmanager
async def staged(directory, clock):
    async with open_store(
        directory / "pylon.db", vault=Vault(bytes(32)), clock=clock, executor="inline", durable=False
    ) as store:
        yield Stage(store, clock)


@asynccontextmanager
async def running(stage):
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.driver.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.mark.parametrize("late", [0.05, 3.0])
async def test_what_a_run_has_resumed_is_not_done_again_by_who_wrote_it(autojump_clock, tmp_path, clock, late):
    """Who has begun a record hears of its commit a little later than a driver that starts just then finds it."""
    async with staged(tmp_path, clock) as stage:
        write = stage.store.write

        async def slowly(job):
            done = await write(job)
            await trio.sleep(late)
            return done

        stage.store.write = slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.begin)
            await trio.sleep(late / 2)
            stage.store.write = write
            await nursery.start(stage.driver.run)
            await trio.sleep(2 * late)
            assert stage.done == ["mint"]
            nursery.cancel_scope.cancel()


async def test_the_row_is_committed_before_its_effect(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        seen = []

        async def mint(sale):
            seen.append(stage.state())
            return None

        stage.handlers[SaleEffect.MINT_INVOICE] = mint
        async with running(stage):
            await stage.begin()
            await trio.sleep(1)
        assert seen == [SaleState.PRICED]


async def test_an_outbox_effect_is_in_the_transaction_of_its_state(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        async with running(stage):
            await stage.begin()
            await trio.sleep(1)
        assert stage.state() is SaleState.QUOTED
        rows = stage.store.read("SELECT effect, subject FROM outbox")
        assert [tuple(row) for row in rows] == [("sale.publish_quote", f"{1:064x}")]


async def test_what_cannot_be_composed_is_not_committed(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage, running(stage):

        def refuse(tx, record, effect):
            raise ValueError("no")

        stage.driver._compose = refuse
        with pytest.raises(ValueError, match="no"):
            await stage.begin(message=machine.Refused("no"))
        assert stage.state() is None


async def test_a_restart_resumes_each_unfinished_record(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        await stage.begin(1)
        await stage.begin(2, machine.Free())
        await stage.begin(3, machine.Refused("no"))
        assert stage.done == []
    async with staged(tmp_path, clock) as stage, running(stage):
        await trio.sleep(1)
        assert sorted(stage.done) == ["infer", "mint"]
        assert [stage.state(number) for number in (1, 2, 3)] == [
            SaleState.QUOTED,
            SaleState.SERVED,
            SaleState.REFUSED,
        ]


async def test_a_damaged_record_does_not_keep_the_others_from_resuming(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        await stage.begin(1)
        await stage.begin(2)
        await stage.store.write(lambda tx: tx.execute("UPDATE sales SET record = x'00' WHERE created_at = 1"))
    async with staged(tmp_path, clock) as stage, running(stage):
        await trio.sleep(1)
        assert stage.state(2) is SaleState.QUOTED


async def test_a_record_of_another_shape_is_named_and_quoted_nowhere(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        await stage.begin(1)
        blob = stage.store.vault.seal('{"id": "canary", "state": "canary"}', f"sales.record:{1:064x}")
        await stage.store.write(lambda tx: tx.execute("UPDATE sales SET record = ?", (blob,)))
        with pytest.raises(StoreError) as caught:
            stage.state(1)
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_a_handler_that_breaks_is_tried_again_ever_slower(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        times = []

        async def mint(sale):
            times.append(trio.current_time())
            if len(times) < 6:
                raise RuntimeError("prompt canary")
            return await stage.mint(sale)

        stage.handlers[SaleEffect.MINT_INVOICE] = mint
        async with running(stage):
            await stage.begin()
            await trio.sleep(300)
        assert stage.state() is not SaleState.PRICED
        waits = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))


async def test_a_record_that_was_damaged_meanwhile_is_given_up(autojump_clock, tmp_path, clock, caplog):
    async with staged(tmp_path, clock) as stage:

        async def mint(sale):
            stage.done.append("mint")
            await stage.store.write(lambda tx: tx.execute("UPDATE sales SET record = x'0102'"))
            raise RuntimeError

        stage.handlers[SaleEffect.MINT_INVOICE] = mint
        async with running(stage):
            await stage.begin()
            await trio.sleep(3_600)
        assert stage.done == ["mint"]
        assert "giving up sale" in caplog.text


async def test_no_prompt_in_the_log_of_what_broke(autojump_clock, tmp_path, clock, caplog):
    async with staged(tmp_path, clock) as stage:

        async def mint(sale):
            raise RuntimeError("canary")

        stage.handlers[SaleEffect.MINT_INVOICE] = mint
        async with running(stage):
            await stage.begin()
            await trio.sleep(5)
    assert "RuntimeError" in caplog.text
    assert "canary" not in caplog.text


async def test_an_outcome_that_cannot_be_written_now_is_written_later(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        write = stage.store.write

        async def full(fn):
            raise StoreError("the disk is full")

        async with running(stage):
            await stage.begin()
            stage.store.write = full
            await trio.sleep(200)
            assert stage.state() is SaleState.PRICED
            stage.store.write = write
            await trio.sleep(100)
            assert stage.state() is SaleState.QUOTED


async def test_an_alarm_rings_in_time_and_once(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage, running(stage):
        await stage.begin()
        await trio.sleep(99)
        assert stage.state() is SaleState.QUOTED
        await trio.sleep(2)
        assert stage.state() is SaleState.EXPIRED
        await trio.sleep(1_000)
        assert stage.done.count("expire") == 1


@pytest.mark.parametrize("jump", [3_600.0, 10**8])
async def test_a_clock_that_jumps_ahead_is_noticed_within_half_a_minute(autojump_clock, tmp_path, clock, jump):
    async with staged(tmp_path, clock) as stage, running(stage):
        await stage.begin()
        await trio.sleep(1)
        clock.skew += jump
        await trio.sleep(31)
        assert stage.state() is SaleState.EXPIRED


async def test_a_clock_that_jumps_back_only_delays(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage, running(stage):
        await stage.begin()
        await trio.sleep(1)
        clock.skew -= 3_600
        await trio.sleep(200)
        assert stage.state() is SaleState.QUOTED
        await trio.sleep(3_600)
        assert stage.state() is SaleState.EXPIRED


async def test_an_attendance_that_breaks_or_hangs_is_repeated_and_harms_no_other(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        moods = [RuntimeError("no"), "hang", None]

        async def attend(sale):
            if sale.created_at == 1.0 and moods:
                mood = moods.pop(0)
                if mood == "hang":
                    await trio.sleep_forever()
                if mood is not None:
                    raise mood
                return None
            return machine.InvoiceExpired()

        stage.attend = attend
        async with running(stage):
            await stage.begin(1)
            await stage.begin(2)
            await trio.sleep(300)
            assert (stage.state(1), stage.state(2)) == (SaleState.EXPIRED, SaleState.EXPIRED)


async def test_a_stopped_driver_writes_and_the_next_run_acts(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        async with running(stage):
            pass
        await stage.begin()
        assert stage.state() is SaleState.PRICED
        async with running(stage):
            await trio.sleep(1)
            assert stage.state() is SaleState.QUOTED


async def test_an_input_that_means_nothing_changes_nothing(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage, running(stage):
        await stage.begin()
        assert await stage.driver.advance(f"{1:064x}", machine.Delivered()) is None
        assert await stage.driver.advance("no such sale", machine.Paid(PRICE)) is None
        assert await stage.driver.advance(f"{1:064x}", machine.Paid(PRICE), lambda tx: False) is None


# --- the inbox, which hands events to drivers -------------------------------------------------------------------


async def test_an_event_that_breaks_its_consumer_is_put_aside(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        tries = []

        async def handle():
            tries.append(trio.current_time())
            raise KeyError("canary")

        await inbox.deliver(stage.store, "c", "ee" * 32, handle)
        assert len(tries) == inbox.TRIES
        assert tries[-1] - tries[0] < 1.0
        assert inbox.seen(stage.store, "c", "ee" * 32)


async def test_while_the_store_is_broken_no_event_is_put_aside(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        write, healthy, taken = stage.store.write, [], []

        async def maybe(fn):
            if not healthy:
                raise StoreError("the disk is full")
            return await write(fn)

        stage.store.write = maybe

        async def handle():
            await stage.store.write(lambda tx: taken.append(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.deliver, stage.store, "c", "ee" * 32, handle)
            await trio.sleep(3_600)
            healthy.append(True)
        assert taken == [1]
        assert not inbox.seen(stage.store, "c", "ee" * 32)


def test_the_stage_covers_each_effect_that_is_done():
    handled = {SaleEffect.MINT_INVOICE, SaleEffect.INFER, SaleEffect.SETTLE_HOLD, SaleEffect.CANCEL_HOLD}
    assert handled == set(SALE.effects()) - SALE.outbox


@pytest.mark.parametrize("later", [0.0, 3.0])
async def test_what_nobody_wants_any_more_is_cut_off(autojump_clock, tmp_path, clock, later):
    """Also where it has not begun yet; and what a state that is left has in hand harms no other record's."""
    async with staged(tmp_path, clock) as stage:
        ended = []

        async def infer(sale):
            try:
                await trio.sleep(60)
                return machine.Answered("words")
            finally:
                ended.append((sale.id[-1], trio.current_time()))

        stage.handlers[SaleEffect.INFER] = infer
        async with running(stage):
            await stage.begin(1, machine.Free())
            await stage.begin(2, machine.Free())
            await trio.sleep(later)
            began = trio.current_time()
            assert await stage.driver.advance(f"{1:064x}", machine.Cancelled()) is not None
            await trio.sleep(1)
            assert ended in ([], [("1", began)])
            await trio.sleep(100)
        assert [name for name, _ in ended][-1] == "2"
        assert (stage.state(1), stage.state(2)) == (SaleState.CANCELLED, SaleState.SERVED)


async def test_an_attempt_that_is_repeated_is_not_cut_off(autojump_clock, tmp_path, clock):
    async with staged(tmp_path, clock) as stage:
        answers = [machine.AttemptFailed("no"), machine.Answered(""), machine.Answered("words")]

        async def infer(sale):
            await trio.sleep(1)
            return answers.pop(0)

        stage.handlers[SaleEffect.INFER] = infer
        async with running(stage):
            await stage.begin(1, machine.Free())
            await trio.sleep(10)
        assert (answers, stage.state()) == ([], SaleState.SERVED)
