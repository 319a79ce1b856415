"""Purses over a real store and a real simnet: crowds, crashes and late news, and no budget is ever exceeded.

The wallet's own history is the witness: what it has sent is held against the budgets, not what the purse believes.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols import bolt11, entropy
from pylon.errors import BudgetExceeded, StoreError, WalletError
from pylon.money import Msat, max_fee, sats
from pylon.store import intents, ledger
from pylon.store.database import open_store
from pylon.store.vault import Vault
from pylon.wallets.history import all_payments, book_outside
from pylon.wallets.port import Direction, PaymentState
from pylon.wallets.purse import DAY, Budget, Purse, Unknown
from pylon.wallets.simnet import Fault, FaultKind, FeeModel, SimnetLedger
from tests.pylon.wallets.test_simnet_economy import Timeline

OWNERS = ["", "aa" * 32, "bb" * 32]
SECRETS = {owner: bytes([number + 1]) * 32 for number, owner in enumerate(OWNERS)}
ENOUGH = sats(10_000)

owners = st.sampled_from(OWNERS)
scopes = st.sampled_from(["tick 1", "tick 2"])
bounds = st.sampled_from([None, 0, 7_000, 7_000, 20_000, 60_000])


class Spending(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        entropy.use(random.Random(0).randbytes)
        self.directory = TemporaryDirectory()
        self.time = Timeline()
        self.simnet: SimnetLedger
        self.readable = True
        self.serial = 0
        self.driving: dict[str, trio.Lock] = {}
        self.scopes: dict[str, tuple[str, str]] = {}
        """Of each payment hash that was offered: whose, in what."""

    @initialize(
        chosen=st.lists(
            st.builds(Budget, per_scope=bounds, per_day=bounds, reserve=st.sampled_from([0, 0, sats(9_980)])),
            min_size=len(OWNERS),
            max_size=len(OWNERS),
        )
    )
    def begin(self, chosen: list[Budget]) -> None:
        self.budgets = dict(zip(OWNERS, chosen, strict=True))
        path = Path(self.directory.name) / "simnet.db"
        self.simnet = SimnetLedger(path, clock=self.time, rng=random.Random(0), poll_seconds=None, durable=False)
        self.simnet.set_fees(FeeModel(Msat(13), 9_000))
        self.shop = self.simnet.wallet("shop", b"\x09" * 32)
        self.wallets = {owner: self.simnet.wallet(owner[:4], secret) for owner, secret in SECRETS.items()}
        for owner in OWNERS:
            self.time.run(partial(self._fund, owner, ENOUGH))

    # --- what the machine does it with ------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self):
        path = Path(self.directory.name) / "pylon.db"
        async with open_store(path, vault=Vault(bytes(32)), clock=self.time, executor="inline", durable=False) as store:
            yield store

    def limits(self, source, spend):
        if not self.readable:
            raise OSError("the settings are gone")
        return self.budgets[spend.owner]

    def purse(self, store, owner: str) -> Purse:
        return Purse(self.wallets[owner], store, self.time, owner, self.limits)

    async def _fund(self, owner: str, amount: int) -> None:
        await self.wallets[owner].fund(Msat(amount))
        async with self.opened() as store:
            payments = await all_payments(self.wallets[owner])
            assert len(await book_outside(store, payments, owner=owner, now=self.time.now())) == 1
            assert await book_outside(store, payments, owner=owner, now=self.time.now()) == []

    async def _invoice(self, owner: str, scope: str, amount: int) -> str:
        self.serial += 1
        issued = await self.shop.receive(Msat(amount), "a thought", 3_600, f"job {self.serial}")
        self.scopes[issued.payment_hash] = (owner, _own(owner, scope))
        return issued.bolt11

    async def _spend(self, store, owner: str, scope: str, bolt11_text: str, dies: bool = False) -> None:
        """What a purchase does with its purse. ``dies``: after the reservation, before the wallet is called."""
        purse, invoice = self.purse(store, owner), bolt11.decode(bolt11_text)
        try:
            intent = await store.write(
                lambda tx: purse.reserve(
                    tx,
                    cause=f"thought {invoice.payment_hash[:8]}",
                    bolt11=bolt11_text,
                    payment_hash=invoice.payment_hash,
                    amount=Msat(invoice.amount_msats),
                    scope=_own(owner, scope),
                )
            )
        except (BudgetExceeded, WalletError):
            return
        assert self.readable
        if dies:
            return
        # One drives an intent at a time; the others come, look, and find it done or under way.
        async with self.driving.setdefault(intent.id, trio.Lock()):
            before, intent = intent, intents.get(store, intent.id)
            if intent.state is not intents.IntentState.PENDING:
                return
            drive = purse.reconcile if intent.error or before != intent else purse.send
            outcome = await drive(intent)
            await store.write(lambda tx: purse.record(tx, intent, outcome))

    async def _mortal(self, dies_after: float | None, work: Callable[..., Awaitable[None]]) -> None:
        """Do ``work`` with a store that may be killed under it."""
        async with self.opened() as store, trio.open_nursery() as nursery:

            async def live() -> None:
                try:
                    await work(store)
                except* StoreError:
                    assert dies_after is not None
                nursery.cancel_scope.cancel()

            nursery.start_soon(live)
            if dies_after is not None:
                await trio.sleep(dies_after)
                store.kill()

    # --- what happens -----------------------------------------------------------------------------------------

    @rule(owner=owners, scope=scopes, amount=st.sampled_from([1, 5_000, 17_777]), count=st.integers(1, 10),
          dies=st.integers(0, 20), dies_after=st.sampled_from([None, None, 0.0, 0.5, 20.0]))  # fmt: skip
    def a_crowd_buys(
        self, owner: str, scope: str, amount: int, count: int, dies: int, dies_after: float | None
    ) -> None:
        async def crowd(store) -> None:
            invoices = [await self._invoice(owner, scope, amount) for _ in range(count)]
            async with trio.open_nursery() as nursery:
                for number, invoice in enumerate(invoices):
                    nursery.start_soon(self._spend, store, owner, scope, invoice, number == dies)

        self.time.run(partial(self._mortal, dies_after, crowd))

    @rule(owner=owners, scope=scopes, times=st.integers(2, 4))
    def one_asks_again_and_again(self, owner: str, scope: str, times: int) -> None:
        async def insist(store) -> None:
            invoice = await self._invoice(owner, scope, 5_000)
            async with trio.open_nursery() as nursery:
                for _ in range(times):
                    nursery.start_soon(self._spend, store, owner, scope, invoice)
            await self._spend(store, owner, scope, invoice)

        self.time.run(partial(self._mortal, None, insist))

    @rule(
        fault=st.builds(
            Fault,
            st.sampled_from(FaultKind),
            st.sampled_from([0.0, 1.0, 50.0, 5_000.0, 2 * DAY]),
            st.sampled_from([PaymentState.SETTLED, PaymentState.FAILED]),
        ),
        count=st.integers(1, 5),
    )
    def inject(self, fault: Fault, count: int) -> None:
        self.simnet.inject(fault, count=count)

    @rule(seconds=st.sampled_from([0.5, 100.0, DAY / 2, DAY]))
    def pass_time(self, seconds: float) -> None:
        self.time.run(partial(trio.sleep, seconds))

    @rule()
    def lose_sight_of_the_budgets(self) -> None:
        self.readable = not self.readable

    @rule()
    def reconcile(self) -> None:
        self.time.run(partial(self._mortal, None, self._reconcile))

    async def _reconcile(self, store) -> None:
        for intent in intents.pending(store):
            purse = self.purse(store, intent.owner)
            outcome = await purse.reconcile(intent)
            await store.write(partial(purse.record, intent=intent, outcome=outcome))
            assert isinstance(outcome, Unknown) == (intents.get(store, intent.id) in intents.pending(store))

    # --- what holds -------------------------------------------------------------------------------------------

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        if hasattr(self, "budgets"):
            self.time.run(self._check)

    async def _check(self) -> None:
        assert sum(self.simnet.accounts().values()) == 0
        async with self.opened() as store:
            for owner, wallet in self.wallets.items():
                budget, balance = self.budgets[owner], await wallet.balance()
                sent = [payment for payment in await wallet.payments() if payment.direction is Direction.SENT]
                gone = [payment for payment in sent if payment.state is not PaymentState.FAILED]
                assert len({payment.payment_hash for payment in gone}) == len(gone), "paid twice"
                for payment in sent:
                    intent = intents.by_hash(store, payment.payment_hash)
                    assert (intent.owner, intent.scope) == self.scopes[payment.payment_hash]
                    assert intent.owner == owner
                if budget.per_scope is not None:
                    for scope in ("tick 1", "tick 2"):
                        spent = sum(
                            p.amount + p.fee for p in gone if self.scopes[p.payment_hash][1] == _own(owner, scope)
                        )
                        assert spent <= budget.per_scope
                        assert spent <= intents.spent_in(store, _own(owner, scope))
                if budget.per_day is not None:
                    for last in gone:
                        day = [p for p in gone if _ended(last) - DAY < _ended(p) <= _ended(last)]
                        assert sum(p.amount + p.fee for p in day) <= budget.per_day
                if gone and budget.reserve:
                    assert balance.spendable >= budget.reserve
                under_way = [
                    i for i in intents.pending(store, owner) if any(p.payment_hash == i.payment_hash for p in gone)
                ]
                settled = [p for p in gone if p.state is PaymentState.SETTLED]
                unbooked = sum(
                    p.amount + p.fee for p in settled if any(p.payment_hash == i.payment_hash for i in under_way)
                )
                assert ledger.held(store, owner) - unbooked == balance.settled, "not a millisatoshi is lost"
                assert intents.reserved(store, owner) >= balance.pending_out

    def teardown(self) -> None:
        if hasattr(self, "budgets"):
            # Nothing goes wrong any more: everything comes to its end, and the books are exact.
            self.simnet.clear_faults()
            self.time.run(partial(trio.sleep, 3 * DAY))
            self.reconcile()
            self.time.run(self._check_ended)
        entropy.use(None)
        if hasattr(self, "simnet"):
            self.time.run(self.simnet.aclose)
        self.directory.cleanup()

    async def _check_ended(self) -> None:
        async with self.opened() as store:
            assert intents.pending(store) == []
            for owner, wallet in self.wallets.items():
                assert ledger.held(store, owner) == (await wallet.balance()).settled
            received = sum(payment.amount for payment in await self.shop.payments())
            assert received == ledger.balances(store)["spent"]


def _own(owner: str, scope: str) -> str:
    """Scopes are an owner's own, as ticks are."""
    return f"{owner[:2]} {scope}"


def _ended(payment) -> float:
    return payment.settled_at if payment.settled_at is not None else float("inf")


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, report_multiple_bugs=False)
TestSpending.pytestmark = [pytest.mark.timeout(600)]


async def test_ten_at_once_against_a_budget_for_one(autojump_clock, market, tmp_path):
    wallet, shop = market.ledger.wallet("agent", b"\x01" * 32), market.ledger.wallet("shop", b"\x02" * 32)
    await wallet.fund(sats(1_000))
    price = sats(5)
    budget = Budget(per_scope=Msat(price + max_fee(price)), per_day=None)
    done: list[str] = []
    async with open_store(
        tmp_path / "p.db", vault=Vault(bytes(32)), clock=market.clock, executor="inline", durable=False
    ) as store:
        purse = Purse(wallet, store, market.clock, "aa" * 32, lambda source, spend: budget)

        async def buy(number: int) -> None:
            issued = await shop.receive(price, "a thought", 600, str(number))
            ask = {"cause": f"p{number}", "bolt11": issued.bolt11, "payment_hash": issued.payment_hash}
            try:
                intent = await store.write(lambda tx: purse.reserve(tx, **ask, amount=price, scope="tick"))
            except BudgetExceeded:
                done.append("refused")
            else:
                await purse.send(intent)
                done.append("paid")

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(buy, number)
    assert sorted(done) == ["paid"] + ["refused"] * 9
    assert (await shop.balance()).settled == price


@attrs.frozen
class Nothing:
    """A wallet that must not be asked."""


async def test_a_crash_between_reserve_and_send_is_paid_once(autojump_clock, market, tmp_path):
    wallet, shop = market.ledger.wallet("agent", b"\x01" * 32), market.ledger.wallet("shop", b"\x02" * 32)
    await wallet.fund(sats(1_000))
    issued = await shop.receive(sats(5), "a thought", 600, "k")
    settings_ = {"vault": Vault(bytes(32)), "clock": market.clock, "executor": "inline", "durable": False}
    ask = {"cause": "p", "bolt11": issued.bolt11, "payment_hash": issued.payment_hash, "amount": sats(5)}
    budget = Budget(None, per_day=sats(7))
    async with open_store(tmp_path / "p.db", **settings_) as store:
        dying = Purse(Nothing(), store, market.clock, "aa" * 32, lambda source, spend: budget)
        await store.write(lambda tx: dying.reserve(tx, **ask))
        store.kill()
    for _ in range(2):
        async with open_store(tmp_path / "p.db", **settings_) as store:
            purse = Purse(wallet, store, market.clock, "aa" * 32, lambda source, spend: budget)
            intent = await store.write(partial(purse.reserve, **ask))
            outcome = await purse.reconcile(intent)
            await store.write(partial(purse.record, intent=intent, outcome=outcome))
            assert ledger.balances(store, "aa" * 32)["spent"] == sats(5)
    assert (await shop.balance()).settled == sats(5)
