"""Hold invoices, addresses and open amounts on simnet: a Hypothesis state machine in which processes die anywhere.

Every call may die before or after any of its SQL statements; the file is opened again, and the same rules hold: sats
are conserved to the millisatoshi, and what was held is settled or given back, once.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from protocols import entropy
from pylon.errors import AlreadyPaid, NoRoute, PaymentFailed, WalletError
from pylon.money import Msat
from pylon.wallets.port import Direction, PaymentState
from pylon.wallets.simnet import Fault, FaultKind, FeeModel, SimnetLedger
from pylon.wallets.simnet_address import spark_address
from pylon.wallets.simnet_ledger import HOLD_SECONDS
from tests.pylon.wallets.test_simnet_economy import SECRETS, Timeline

T = TypeVar("T")
CAP = Msat(100_000)
SLOWEST = 5_000.0


class Died(BaseException):
    """The process is gone."""


class Dying:
    """A connection of a process that dies before the first statement, or after the n-th."""

    def __init__(self, db: sqlite3.Connection, statements: int) -> None:
        self.db = db
        self._left = statements

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._step(0)
        done = self.db.execute(*arguments)
        self._step(1)
        return done

    def _step(self, count: int) -> None:
        self._left -= count
        if self._left <= 0:
            raise Died

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


@attrs.define
class Invoice:
    payee: str
    bolt11: str
    payment_hash: str
    amount: Msat | None
    """``None``: any."""
    preimage: str | None = None
    """Of a hold invoice."""
    settle_asked: bool = False
    cancel_asked: bool = False
    end: str | None = None
    was_held: bool = False


@attrs.define
class Sent:
    payer: str
    payee: str
    amount: Msat
    invoice: Invoice | None
    created_at: float
    state: PaymentState = PaymentState.PENDING


deaths = st.none() | st.none() | st.integers(0, 30)


class Holds(RuleBasedStateMachine):
    invoices = Bundle("invoices")
    holds = Bundle("holds")
    wallets = st.sampled_from(sorted(SECRETS))
    amounts = st.integers(1, 10**6) | st.integers(1, 10)
    keys = st.integers(0, 9)

    def __init__(self) -> None:
        super().__init__()
        entropy.use(random.Random(0).randbytes)
        self.directory = TemporaryDirectory()
        self.time = Timeline()
        self.ledger: SimnetLedger
        self.owns = dict.fromkeys(SECRETS, 0)
        self.fees = 0
        self.all_invoices: list[Invoice] = []
        self.sent: dict[tuple[str, str], Sent] = {}
        self.serial = 0

    def open(self) -> None:
        path = Path(self.directory.name) / "simnet.db"
        self.ledger = SimnetLedger(path, clock=self.time, rng=random.Random(0), poll_seconds=None, durable=False)
        self.wallet = {name: self.ledger.wallet(name, secret) for name, secret in SECRETS.items()}

    def do(self, work: Callable[[], Awaitable[T]], dies: int | None = None) -> T | WalletError | None:
        """What it returned or raised; ``None`` where the process has died."""
        file = self.ledger._file
        db = file._db
        if dies is not None:
            file._db = Dying(db, dies)  # type: ignore[assignment]
        try:
            return self.time.run(work)
        except WalletError as error:
            return error
        except Died:
            # A cursor that is still about would keep the transaction alive, which no dead process does.
            db.rollback()
            db.close()
            self.open()
            return None
        finally:
            file._db = db

    @initialize(
        amounts=st.tuples(*[st.integers(10**5, 10**6)] * 3), base=st.integers(0, 2_000), ppm=st.integers(0, 10_000)
    )
    def begin(self, amounts: tuple[int, ...], base: int, ppm: int) -> None:
        self.open()
        self.ledger.set_fees(FeeModel(Msat(base), ppm))
        for name, amount in zip(sorted(SECRETS), amounts, strict=True):
            self.fund(name, amount, None, False)

    @rule(name=wallets, amount=amounts, dies=deaths, on_chain=st.booleans())
    def fund(self, name: str, amount: int, dies: int | None, on_chain: bool) -> None:
        wallet = self.wallet[name]
        before = len(self.time.run(wallet.payments))
        address = self.time.run(wallet.addresses).bitcoin
        assert address is not None
        give = partial(self.ledger.deposit, address) if on_chain else wallet.fund
        self.do(partial(give, Msat(amount)), dies)
        added = self.time.run(self.wallet[name].payments)[before:]
        assert len(added) == 1 or dies is not None
        for deposit in added:
            assert deposit.outside
            assert deposit.amount == amount
            self.owns[name] += amount

    @rule(target=holds, name=wallets, amount=amounts, expiry=st.sampled_from([30, 7_200]), dies=deaths)
    def hold(self, name: str, amount: int, expiry: int, dies: int | None) -> Any:
        self.serial += 1
        preimage = hashlib.sha256(b"%d" % self.serial).digest()
        payment_hash = hashlib.sha256(preimage).hexdigest()
        issue = partial(self._hold, name, amount, expiry, f"hold-{self.serial}", payment_hash)
        first, issued = self.do(issue, dies), self.time.run(issue)
        assert first in (None, issued)
        invoice = Invoice(name, issued.bolt11, payment_hash, Msat(amount), preimage.hex())
        self.all_invoices.append(invoice)
        return invoice

    async def _hold(self, name: str, amount: int, expiry: int, key: str, payment_hash: str) -> Any:
        return await self.wallet[name].hold(Msat(amount), "hold", expiry, key, payment_hash)

    @rule(target=invoices, name=wallets)
    def any_amount(self, name: str) -> Invoice:
        self.serial += 1
        issued = self.time.run(partial(self.wallet[name].receive_any, "any", 7_200, f"any-{self.serial}"))
        invoice = Invoice(name, issued.bolt11, issued.payment_hash, None)
        self.all_invoices.append(invoice)
        return invoice

    @rule(
        kind=st.sampled_from(FaultKind),
        seconds=st.sampled_from([0.0, 1.0, 50.0, SLOWEST]),
        ends=st.sampled_from([PaymentState.SETTLED, PaymentState.SETTLED, PaymentState.FAILED]),
    )
    def inject(self, kind: FaultKind, seconds: float, ends: PaymentState) -> None:
        self.ledger.clear_faults()
        self.ledger.inject(Fault(kind, seconds, ends))

    @rule(seconds=st.sampled_from([0.5, 60.0, 3_600.0, HOLD_SECONDS, 100_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.time.run(partial(trio.sleep, seconds))

    @rule(name=wallets, invoice=holds, key=keys, dies=deaths)
    def pay_hold(self, name: str, invoice: Invoice, key: int, dies: int | None) -> None:
        assert invoice.amount is not None
        self.pay(name, f"{key}", invoice.bolt11, None, invoice.amount, invoice.payee, invoice, dies)

    @rule(name=wallets, invoice=invoices, key=keys, amount=amounts, dies=deaths)
    def pay_any(self, name: str, invoice: Invoice, key: int, amount: int, dies: int | None) -> None:
        self.pay(name, f"{key}", invoice.bolt11, Msat(amount), Msat(amount), invoice.payee, invoice, dies)

    @rule(name=wallets, payee=wallets, key=keys, amount=amounts, dies=deaths)
    def pay_address(self, name: str, payee: str, key: int, amount: int, dies: int | None) -> None:
        address = spark_address(self.wallet[payee].node_pubkey)
        self.pay(name, f"{key}", address, Msat(amount), Msat(amount), payee, None, dies)

    @rule(
        payers=st.permutations(sorted(SECRETS)),
        tenths=st.integers(1, 9),
        under_way=st.sampled_from([0.0, 0.0, 50.0]),
        answers=st.permutations(["settle", "cancel", "pass"]),
        dies=st.none() | st.integers(3, 14),
    )
    def the_whole_way(
        self, payers: list[str], tenths: int, under_way: float, answers: list[str], dies: int | None
    ) -> None:
        """Hold invoices that are paid are rare enough by chance."""
        payer, payee, _ = payers
        self.ledger.clear_faults()
        if under_way:
            self.ledger.inject(Fault(FaultKind.PENDING, under_way))
        invoice = self.hold(payee, max(1, self.owns[payer] * tenths // 10), 600, None)
        self.serial += 1
        self.pay(payer, f"key-{self.serial}", invoice.bolt11, None, invoice.amount, payee, invoice, None)
        for answer in answers:
            self.the_books_are_right()
            if answer == "pass":
                self.pass_time(60.0)
            elif answer == "settle":
                self.settle(invoice, dies)
            else:
                self.cancel(invoice, dies)

    def pay(
        self,
        name: str,
        key: str,
        target: str,
        amount: Msat | None,
        worth: Msat,
        payee: str,
        invoice: Invoice | None,
        dies: int | None,
    ) -> None:
        call = partial(self.wallet[name].pay, target, amount=amount, max_fee=CAP, idempotency_key=key)
        outcome = self.do(call, dies)
        found = self.time.run(partial(self.wallet[name].lookup_key, key))
        if (name, key) not in self.sent and found is not None:
            assert name != payee
            assert found.amount == worth
            assert found.payment_hash == ("" if invoice is None else invoice.payment_hash)
            self.sent[name, key] = Sent(name, payee, worth, invoice, found.created_at)
        assert name != payee or found is not None or outcome is None or isinstance(outcome, WalletError)
        if isinstance(outcome, NoRoute):
            assert found is None or (name, key) in self.sent

    @rule(invoice=holds, dies=deaths)
    def settle(self, invoice: Invoice, dies: int | None) -> None:
        assert invoice.preimage is not None
        for name in sorted(SECRETS):
            if name != invoice.payee:
                assert isinstance(self.do(partial(self.wallet[name].settle, invoice.preimage)), PaymentFailed)
        self.time.run(self._catch_up)
        ended, before = invoice.end, self.time.run(partial(self._issued, invoice))
        invoice.settle_asked = True
        outcome = self.do(partial(self.wallet[invoice.payee].settle, invoice.preimage), dies)
        after = self.time.run(partial(self._issued, invoice))
        if isinstance(outcome, WalletError):
            assert isinstance(outcome, PaymentFailed)
            assert (after.settled_at, before.held) == (None, 0)
        elif dies is None:
            assert ended in (None, "settled")
            assert after.settled_at is not None
            assert after.received == invoice.amount

    @rule(invoice=holds, dies=deaths)
    def cancel(self, invoice: Invoice, dies: int | None) -> None:
        for name in sorted(SECRETS):
            if name != invoice.payee:
                assert isinstance(self.do(partial(self.wallet[name].cancel, invoice.payment_hash)), WalletError)
        self.time.run(self._catch_up)
        invoice.cancel_asked = True
        outcome = self.do(partial(self.wallet[invoice.payee].cancel, invoice.payment_hash), dies)
        after = self.time.run(partial(self._issued, invoice))
        if isinstance(outcome, WalletError):
            assert isinstance(outcome, AlreadyPaid)
            assert after.settled_at is not None
        elif dies is None:
            assert after.cancelled

    async def _issued(self, invoice: Invoice) -> Any:
        return await self.wallet[invoice.payee].lookup_invoice(invoice.payment_hash)

    async def _catch_up(self) -> None:
        for (name, key), sent in self.sent.items():
            found = await self.wallet[name].lookup_key(key)
            assert found is not None
            if sent.state is not PaymentState.PENDING:
                assert found.state is sent.state, "what has ended has ended"
                continue
            sent.state = found.state
            if found.state is PaymentState.SETTLED:
                self.owns[name] -= found.amount + found.fee
                self.owns[sent.payee] += found.amount
                self.fees += found.fee
            if found.state is PaymentState.PENDING:
                most = SLOWEST + (HOLD_SECONDS if sent.invoice is not None and sent.invoice.preimage else 0.0)
                assert self.time.now() < sent.created_at + most + 1.0, "no money is stuck for ever"

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "ledger"):
            self.time.run(self._check)

    async def _check(self) -> None:
        await self._catch_up()
        accounts = self.ledger.accounts()
        assert sum(accounts.values()) == 0
        assert accounts["fees"] == self.fees
        for name, wallet in self.wallet.items():
            balance, history = await wallet.balance(), await wallet.payments()
            mine = [payment for payment in history if payment.direction is Direction.SENT]
            pending = [payment for payment in mine if payment.state is PaymentState.PENDING]
            assert balance.settled == self.owns[name]
            assert balance.spendable >= 0
            assert balance.pending_out == sum(payment.amount + payment.fee for payment in pending)
            assert {payment.key for payment in mine} == {key for (who, key) in self.sent if who == name}
            assert await wallet.payments(newest=True) == history[::-1]
            complete = [payment for payment in history if payment.state is PaymentState.SETTLED]
            assert await wallet.payments(completed=True) == complete
            for payment in mine:
                proven = payment.state is PaymentState.SETTLED and bool(payment.payment_hash)
                assert (payment.preimage is not None) == proven
        for invoice in self.all_invoices:
            await self._check_invoice(invoice)

    async def _check_invoice(self, invoice: Invoice) -> None:
        now, issued = self.time.now(), await self._issued(invoice)
        payments = [sent for sent in self.sent.values() if sent.invoice is invoice]
        settled = [sent for sent in payments if sent.state is PaymentState.SETTLED]
        pending = [sent for sent in payments if sent.state is PaymentState.PENDING]
        received = [p for p in await self.wallet[invoice.payee].payments() if p.payment_hash == invoice.payment_hash]
        received = [payment for payment in received if payment.direction is Direction.RECEIVED]
        assert len(settled) + len(pending) <= 1
        assert len(received) == len(settled)
        assert (issued.settled_at is not None) == bool(settled)
        assert issued.received == sum(sent.amount for sent in settled)
        if issued.held:
            (sent,) = pending
            assert issued.held == sent.amount
            invoice.was_held = True
        elif pending:
            assert not invoice.was_held, "held, until it ends"
            assert now < pending[0].created_at + SLOWEST + 1.0
        end = "settled" if settled else "cancelled" if issued.cancelled else None
        assert invoice.end in (None, end), "it ends once"
        invoice.end = end
        if invoice.preimage is None:
            assert (issued.held, issued.cancelled) == (0, False)
        elif end == "settled":
            assert invoice.settle_asked
        elif end == "cancelled" and not invoice.cancel_asked:
            assert [sent for sent in payments if sent.created_at + HOLD_SECONDS <= now], "nobody waited so long"

    def teardown(self) -> None:
        entropy.use(None)
        if hasattr(self, "ledger"):
            self.time.run(self.ledger.aclose)
        self.directory.cleanup()


TestHolds = Holds.TestCase
TestHolds.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, report_multiple_bugs=False)
# A failure takes minutes to shrink; cut short, it would be called flaky.
TestHolds.pytestmark = [pytest.mark.timeout(600)]
