"""A wallet that outlives crashes and is fickle: it settles, hesitates, loses answers, refuses, lies and goes away.

It keeps the port's promises: one payment a key and one a hash, a fee within the bound, nothing after a refusal, except
where it *lies*: then it says "failed", and the money leaves later. What it has done is the witness of the tests.
"""

from __future__ import annotations

import enum
import hashlib
from collections import deque
from collections.abc import Callable

import attrs
import trio

from protocols import bolt11
from protocols.keys import SecretKey
from pylon.clock import Clock
from pylon.errors import AlreadyPaid, InsufficientFunds, NoRoute, PaymentFailed, PaymentUnknown
from pylon.money import Msat
from pylon.wallets.port import Balance, Direction, Payment, PaymentState

PAYEES = [SecretKey(bytes([40 + number]) * 32) for number in range(2)]


class Crash(BaseException):
    """The process ends here."""


class Does(enum.StrEnum):
    """What becomes of a call of ``pay``."""

    SETTLES = "settles"
    REFUSES = "refuses"
    LOSES_THE_ANSWER = "loses the answer"
    BREAKS_BEFORE = "breaks before it pays"
    BREAKS_AFTER = "breaks after it paid"
    HESITATES = "hesitates"
    HANGS = "hangs"
    LIES = "lies"
    DIES_BEFORE = "the process dies before it pays"
    DIES_AFTER = "the process dies after it paid"


@attrs.frozen
class Fate:
    does: Does
    delay: float = 0.0
    """Seconds until what is open resolves."""
    settles: bool = True
    fee_percent: int = 100
    """Of the highest fee."""


@attrs.define
class Attempt:
    """What it was asked to pay, and what became of it."""

    key: str
    payment_hash: str
    target: str
    payee: str
    amount: int
    fee: int
    created_at: float
    state: PaymentState = PaymentState.PENDING
    settled_at: float | None = None
    resolves_at: float | None = None
    settles: bool = True
    lied: bool = False

    @property
    def gone(self) -> bool:
        """Whether its money has left, or may: not where it has failed for good."""
        return self.state is not PaymentState.FAILED

    @property
    def takes(self) -> int:
        return self.amount + self.fee if self.gone else 0


class FickleWallet:
    """``look`` is called with every attempt that is new, before anything moves."""

    def __init__(self, clock: Clock, funds: int, look: Callable[[Attempt], None] = lambda attempt: None) -> None:
        self.clock = clock
        self.funds = funds
        self.look = look
        self.attempts: dict[str, Attempt] = {}
        self.fates: deque[Fate] = deque()
        self.away = False
        self.calls = 0
        self.complaints: list[str] = []
        """What no payer may do to it. Not raised, for the payer would take that for trouble of the wallet's."""

    # --- the port, as far as a purse uses it ------------------------------------------------------------------

    async def pay(self, target: str, *, amount: Msat | None = None, max_fee: Msat, idempotency_key: str) -> Payment:
        self.calls += 1
        self._meet()
        payment_hash, payee, named = _read(target)
        if (named is None) != (amount is not None):
            self.complaints.append("an amount is said where the target has none, and only there")
        wanted = named or amount
        there = self.attempts.get(idempotency_key)
        if there is None:
            if payment_hash and any(a.payment_hash == payment_hash and a.gone for a in self.attempts.values()):
                raise AlreadyPaid("the invoice is paid under another key")
            there = self._begin(idempotency_key, payment_hash, target, payee, wanted, max_fee)
        if (there.target, there.amount) != (target, wanted):
            self.complaints.append("a key stands for one payment")
        await trio.lowlevel.checkpoint()
        return self._report(there)

    def _begin(self, key: str, payment_hash: str, target: str, payee: str, amount: int, max_fee: int) -> Attempt:
        fate = self.fates.popleft() if self.fates else Fate(Does.SETTLES)
        fee = max_fee * fate.fee_percent // 100
        attempt = Attempt(key, payment_hash, target, payee, amount, fee, self.clock.now())
        self.look(attempt)
        match fate.does:
            case Does.DIES_BEFORE:
                raise Crash
            case Does.BREAKS_BEFORE:
                raise OSError("connection refused")
            case Does.REFUSES:
                attempt.state = PaymentState.FAILED
                self.attempts[key] = attempt
                raise NoRoute("there is no way to this payee")
        spendable = self.funds - sum(a.takes for a in self.attempts.values())
        if amount + fee > spendable:
            raise InsufficientFunds(amount + fee, spendable)
        self.attempts[key] = attempt
        match fate.does:
            case Does.HESITATES | Does.HANGS:
                attempt.resolves_at, attempt.settles = self.clock.now() + fate.delay, fate.settles
                if fate.does is Does.HANGS:
                    raise TimeoutError
                return attempt
            case Does.LIES:
                attempt.state, attempt.lied = PaymentState.FAILED, True
                attempt.resolves_at, attempt.settles = self.clock.now() + fate.delay, fate.settles
                raise PaymentFailed("it has failed for good")
        self._settle(attempt)
        match fate.does:
            case Does.LOSES_THE_ANSWER:
                raise PaymentUnknown("it did not say")
            case Does.BREAKS_AFTER:
                raise OSError("connection reset")
            case Does.DIES_AFTER:
                raise Crash
        return attempt

    async def lookup_payment(self, payment_hash: str) -> Payment | None:
        await trio.lowlevel.checkpoint()
        self._meet()
        found = [a for a in self.attempts.values() if a.payment_hash == payment_hash]
        assert len(found) <= 1, "an invoice is paid under one key"
        return self._payment(found[0]) if found else None

    async def lookup_key(self, idempotency_key: str) -> Payment | None:
        await trio.lowlevel.checkpoint()
        self._meet()
        found = self.attempts.get(idempotency_key)
        return None if found is None else self._payment(found)

    async def balance(self) -> Balance:
        await trio.lowlevel.checkpoint()
        self.resolve()
        pending = sum(a.takes for a in self.attempts.values() if a.state is PaymentState.PENDING)
        return Balance(Msat(self.settled), Msat(pending), self.clock.now())

    async def payments(self, *, since: float = 0.0, limit: int = 1_000, **_: bool) -> list[Payment]:
        await trio.lowlevel.checkpoint()
        self.resolve()
        return [self._payment(a) for a in self.attempts.values() if a.created_at >= since][:limit]

    # --- what is behind it ------------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """What it holds: all that came, less all that has settled."""
        return self.funds - sum(a.takes for a in self.attempts.values() if a.state is PaymentState.SETTLED)

    def resolve(self) -> None:
        """Let what is open, or was lied about, come to its end in time."""
        for attempt in self.attempts.values():
            if attempt.resolves_at is not None and attempt.resolves_at <= self.clock.now():
                attempt.resolves_at = None
                if attempt.settles:
                    self._settle(attempt)
                else:
                    attempt.state = PaymentState.FAILED

    def _settle(self, attempt: Attempt) -> None:
        attempt.state, attempt.settled_at = PaymentState.SETTLED, self.clock.now()

    def _meet(self) -> None:
        self.resolve()
        if self.away:
            raise OSError("nobody is there")

    def _report(self, attempt: Attempt) -> Payment:
        if attempt.state is PaymentState.FAILED:
            raise PaymentFailed("it has failed for good")
        return self._payment(attempt)

    def _payment(self, attempt: Attempt) -> Payment:
        return Payment(
            payment_id=attempt.key,
            payment_hash=attempt.payment_hash,
            direction=Direction.SENT,
            state=attempt.state,
            amount=Msat(attempt.amount),
            fee=Msat(attempt.fee),
            created_at=attempt.created_at,
            settled_at=attempt.settled_at,
            key=attempt.key,
        )


def invoice(name: str, amount: int | None, now: float, payee: int = 0, expiry: int = 3_600) -> str:
    """A real one, of one of ``PAYEES``; with an amount or without."""
    return bolt11.encode(
        prefix="sb",
        amount_msats=amount,
        timestamp=int(now),
        payment_hash=hashlib.sha256(name.encode()).hexdigest(),
        payment_secret=hashlib.sha256(b"secret").hexdigest(),
        node_secret=PAYEES[payee],
        description=name,
        expiry=expiry,
    )


def _read(target: str) -> tuple[str, str, int | None]:
    """Payment hash (empty for an address), payee, and the amount that the target names."""
    if target.startswith("addr"):
        return "", target, None
    decoded = bolt11.decode(target)
    return decoded.payment_hash, decoded.payee, decoded.amount_msats
