"""The simulated network as an economy: a Hypothesis state machine over three wallets, with every fault."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import attrs
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from protocols import entropy
from pylon.errors import WalletError
from pylon.money import Msat
from pylon.wallets.port import Direction, Payment, PaymentState
from pylon.wallets.simnet import Fault, FaultKind, FeeModel, Side, SimnetLedger

T = TypeVar("T")
SECRETS = {name: hashlib.sha256(name.encode()).digest() for name in ("alice", "bob", "carol")}


class Timeline:
    """A clock that goes on from one ``trio.run`` to the next."""

    def __init__(self) -> None:
        self.base = 1_800_000_000.0

    def now(self) -> float:
        return self.base + self.monotonic()

    def monotonic(self) -> float:
        try:
            return trio.current_time()
        except RuntimeError:
            return 0.0

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            nonlocal elapsed
            try:
                return await work()
            finally:
                elapsed = trio.current_time()

        elapsed = 0.0
        try:
            return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        finally:
            self.base += elapsed


@attrs.frozen
class Issued:
    payee: str
    bolt11: str
    payment_hash: str
    amount: Msat


@attrs.define
class Sent:
    """What the model knows of a payment that was begun."""

    payer: str
    invoice: Issued
    state: PaymentState = PaymentState.PENDING


class Economy(RuleBasedStateMachine):
    """Three wallets, every fault, keys used again, cancellation, reopening: sats are conserved, nothing is paid twice.

    The model books only what the wallets said; what they left open it asks for by ``lookup_payment``.
    """

    invoices = Bundle("invoices")
    wallets = st.sampled_from(sorted(SECRETS))

    def __init__(self) -> None:
        super().__init__()
        entropy.use(random.Random(0).randbytes)
        self.directory = TemporaryDirectory()
        self.time = Timeline()
        self.ledger: SimnetLedger
        self.held = dict.fromkeys(SECRETS, 0)
        self.fees = 0
        self.sent: dict[tuple[str, str], Sent] = {}
        self.keys: dict[tuple[str, str], Issued] = {}
        self.serial = 0

    def open(self) -> None:
        path = Path(self.directory.name) / "simnet.db"
        self.ledger = SimnetLedger(path, clock=self.time, rng=random.Random(0), poll_seconds=None, durable=False)
        self.wallet = {name: self.ledger.wallet(name, secret) for name, secret in SECRETS.items()}

    @initialize(amounts=st.tuples(*[st.integers(1, 10**6)] * 3), base=st.integers(0, 2_000), ppm=st.integers(0, 10_000))
    def begin(self, amounts: tuple[int, ...], base: int, ppm: int) -> None:
        self.open()
        self.ledger.set_fees(FeeModel(Msat(base), ppm))
        for name, amount in zip(sorted(SECRETS), amounts, strict=True):
            self.fund(name, amount)

    @rule(name=wallets, amount=st.integers(1, 10**6))
    def fund(self, name: str, amount: int) -> None:
        deposit = self.time.run(partial(self.wallet[name].fund, Msat(amount)))
        assert deposit.outside
        self.held[name] += amount

    @rule(
        target=invoices, name=wallets, amount=st.integers(1, 10**6) | st.integers(1, 10), expiry=st.integers(30, 7_200)
    )
    def receive(self, name: str, amount: int, expiry: int) -> Issued:
        self.serial += 1
        key = f"job-{self.serial}"
        issued = self.time.run(partial(self.wallet[name].receive, Msat(amount), "job", expiry, key))
        again = self.time.run(partial(self.wallet[name].receive, Msat(amount), "job", expiry, key))
        assert issued == again
        return Issued(name, issued.bolt11, issued.payment_hash, issued.amount)

    @rule(
        fault=st.builds(
            Fault,
            st.sampled_from(FaultKind),
            st.sampled_from([0.0, 1.0, 15.0, 50.0, 5_000.0]),
            st.sampled_from([PaymentState.SETTLED, PaymentState.FAILED]),
        ),
        name=st.none() | wallets,
        side=st.sampled_from(Side),
        count=st.integers(1, 3),
    )
    def inject(self, fault: Fault, name: str | None, side: Side, count: int) -> None:
        self.ledger.inject(fault, wallet=None if name is None else self.wallet[name], side=side, count=count)

    @rule(seconds=st.sampled_from([0.5, 40.0, 1_000.0, 10_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.time.run(partial(trio.sleep, seconds))

    @rule()
    def reopen(self) -> None:
        self.time.run(self.ledger.aclose)
        self.open()

    @rule(
        name=wallets,
        invoice=invoices,
        key=st.integers(0, 3),
        patience=st.sampled_from([0.0, 20.0, float("inf")]),
        at_once=st.integers(1, 3),
    )
    def pay(self, name: str, invoice: Issued, key: int, patience: float, at_once: int) -> None:
        self.time.run(partial(self._pay, name, invoice, f"key-{key}", patience, at_once))

    @rule(
        payer=wallets,
        payee=wallets,
        key=st.integers(4, 9),
        tenths=st.integers(5, 10),
        pends=st.none() | st.sampled_from([5.0, 18.0, 60.0]),
    )
    def pay_most_of_it(self, payer: str, payee: str, key: int, tenths: int, pends: float | None) -> None:
        """So that what is pending is often more than half of what is there."""
        if pends is not None:
            self.ledger.clear_faults()
            self.ledger.inject(Fault(FaultKind.PENDING, pends), wallet=self.wallet[payer])
        invoice = self.receive(payee, max(1, self.held[payer] * tenths // 10), 600)
        self.pay(payer, invoice, key, 20.0, 1)

    async def _pay(self, name: str, invoice: Issued, key: str, patience: float, at_once: int) -> None:
        wallet = self.wallet[name]
        outcomes: list[Payment | BaseException | None] = []

        async def attempt() -> None:
            try:
                outcomes.append(await wallet.pay(invoice.bolt11, max_fee=Msat(50_000), idempotency_key=key))
            except WalletError as error:
                outcomes.append(error)

        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(attempt)
        began = self.keys.get((name, key), invoice)
        for outcome in outcomes:
            if isinstance(outcome, Payment):
                assert outcome.payment_hash == began.payment_hash
                assert outcome.state is not PaymentState.FAILED
                assert outcome.amount == began.amount
        found = await wallet.lookup_payment(invoice.payment_hash)
        if found is not None and (name, invoice.payment_hash, found.payment_id) not in self.sent_ids():
            # This call began it, and nothing but this call.
            assert (name, key) not in self.keys
            self.keys[name, key] = invoice
            self.sent[name, found.payment_id] = Sent(name, invoice)

    def sent_ids(self) -> set[tuple[str, str, str]]:
        return {(name, sent.invoice.payment_hash, number) for (name, number), sent in self.sent.items()}

    async def _catch_up(self) -> None:
        for (name, number), sent in self.sent.items():
            history = {payment.payment_id: payment for payment in await self.wallet[name].payments()}
            found = history[number]
            if sent.state is not PaymentState.PENDING:
                assert found.state is sent.state, "what has ended has ended"
            elif found.state is not PaymentState.PENDING:
                sent.state = found.state
                if found.state is PaymentState.SETTLED:
                    self.held[name] -= found.amount + found.fee
                    self.held[sent.invoice.payee] += found.amount
                    self.fees += found.fee

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "ledger"):
            self.time.run(self._check)

    async def _check(self) -> None:
        await self._catch_up()
        accounts = self.ledger.accounts()
        assert sum(accounts.values()) == 0
        assert accounts["fees"] == self.fees
        paid_hashes: list[str] = []
        for name, wallet in self.wallet.items():
            balance = await wallet.balance()
            history = await wallet.payments()
            mine = [payment for payment in history if payment.direction is Direction.SENT]
            assert balance.settled == self.held[name]
            assert balance.spendable >= 0
            pending = [payment for payment in mine if payment.state is PaymentState.PENDING]
            assert balance.pending_out == sum(payment.amount + payment.fee for payment in pending)
            assert {payment.payment_id for payment in mine} == {number for (who, number) in self.sent if who == name}
            for payment in mine:
                assert (payment.preimage is not None) == (payment.state is PaymentState.SETTLED)
                assert payment.settled_at is None or payment.settled_at <= self.time.now()
                assert payment.state is not PaymentState.FAILED or payment.fee == 0
                if payment.preimage is not None:
                    assert hashlib.sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
            paid_hashes += [payment.payment_hash for payment in mine if payment.state is not PaymentState.FAILED]
        assert len(paid_hashes) == len(set(paid_hashes)), "an invoice is paid once"

    def teardown(self) -> None:
        entropy.use(None)
        if hasattr(self, "ledger"):
            self.time.run(self.ledger.aclose)
        self.directory.cleanup()


TestEconomy = Economy.TestCase
TestEconomy.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
# A failure takes minutes to shrink; cut short, it would be called flaky.
TestEconomy.pytestmark = [pytest.mark.timeout(600)]
