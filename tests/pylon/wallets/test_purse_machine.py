"""The purse in any order of anything: crashes at every await and commit, late news, lies, crowds, freezes, yes and no.

A step is one rule; a run of the machine is some 900 of them (30 × 30), in which wallets are asked for some 400
payments; ``PYLON_DEEP=1`` makes 1,000 × 60. Each step is a process that starts, works and may die in the middle. The
witness is the wallet's own history (``fickle``), never what the purse believes. Planted and found: a check outside the
transaction, unknown taken for failed, a fee or what is pending left out, a new key at every call, an address looked up
by its hash, a freeze that is not asked before the wallet or in the reservation, a freeze or a budget that does not read
and lets pass, a waiting payment that is sent, a no that is not kept, a payee that is not counted, 0 taken for no bound,
a lie that is believed for ever, a fee that is not booked.

What must hold, after every step:

* conserved: what the ledger holds, less what settled and is not booked, is the wallet's balance, to the millisatoshi;
* never over budget: per scope, per rolling day, per payee and day, reserve, one payment, fee; what a wallet has lied
  about counts from the moment that it is known, and cannot be held against a budget before;
* never paid twice: one payment for a key, for a hash, and one for a cause (unless the wallet lied about the first);
* nothing is sent while spending is frozen, nothing that waits for a yes, nothing that was denied;
* a freeze that does not read, and budgets that do not, refuse.

In the end everything is known and booked, and the books are clean.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, closing, nullcontext, suppress
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
from pylon.daemon.reconciler import Reconciler
from pylon.errors import BudgetExceeded, StoreError, UsageError, WalletError, WalletFrozen
from pylon.money import Msat, max_fee, sats
from pylon.store import approvals, books, freeze, intents, ledger
from pylon.store import settings as remembered
from pylon.store.database import Store, open_store
from pylon.store.intents import INVOICE, PURCHASE, WITHDRAWAL, Intent, IntentState, TargetForm
from pylon.store.vault import Vault
from pylon.wallets.port import PaymentState
from pylon.wallets.purse import DAY, Budget, Purse, Unknown
from tests.pylon.payees import _empty_database
from tests.pylon.wallets.fickle import Attempt, Crash, Does, Fate, FickleWallet, invoice
from tests.pylon.wallets.test_simnet_economy import Timeline

OWNERS = ["", "aa" * 32]
FUNDS = sats(400)
MINE = "addr of a friend"

owners = st.sampled_from(OWNERS)
# One or two bounds a budget: with more of them hardly anything would ever be paid.
BOUNDS = [
    {},
    *({name: bound} for name in ("per_scope", "per_day", "payee_day") for bound in (7_000, 20_000, 60_000)),
    {"per_day": 0},
    {"payee_day": 0},
    {"reserve": sats(380)},
    {"reserve": sats(380), "max_fee": 500},
    {"max_fee": 0, "per_day": 20_000},
    {"each": 5_000, "payee_day": 20_000},
    {"approve_above": 0},
    {"approve_above": 5_000, "per_day": 60_000},
]
budgets = st.sampled_from([Budget(**{"per_scope": None, "per_day": None, **bound}) for bound in BOUNDS])
delays = st.sampled_from([0.0, 1.0, 50.0, 5_000.0, DAY])
fates = st.builds(
    Fate,
    st.sampled_from(Does),
    delays,
    st.booleans(),
    st.sampled_from([0, 37, 100]),
)


class Witness:
    """What is committed, read past the store: quicker than opening one."""

    def __init__(self, path: Path) -> None:
        self.vault = Vault(bytes(32))
        self._connection = sqlite3.connect(path)
        self._connection.row_factory = sqlite3.Row

    def read(self, sql, params=()):
        return self._connection.execute(sql, params).fetchall()

    def one(self, sql, params=()):
        return self._connection.execute(sql, params).fetchone()

    def snapshot(self):
        return nullcontext()

    def close(self) -> None:
        self._connection.close()


@attrs.frozen
class Want:
    """A payment that somebody wants, and where the process dies on the way."""

    owner: str
    cause: str
    scope: str
    purpose: str
    target: str
    payment_hash: str | None
    amount: int
    dies: str = ""
    """``reserving`` (rolled back), ``reserved``, ``recording`` (rolled back), ``recorded``, or nowhere."""


class Guarded(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        entropy.use(random.Random(0).randbytes)
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "pylon.db"
        self.path.write_bytes(_empty_database())
        self.time = Timeline()
        self.serial = 0
        self.readable = True
        self.frozen = False
        self.wants: dict[str, Want] = {}
        """By the key under which the wallet is asked."""
        self.approved: set[str] = set()
        self.denied: set[str] = set()
        self.wallets: dict[str, FickleWallet] = {}
        self.broken: list[str] = []

    @initialize(chosen=st.lists(budgets, min_size=len(OWNERS), max_size=len(OWNERS)))
    def begin(self, chosen: list[Budget]) -> None:
        self.budgets = dict(zip(OWNERS, chosen, strict=True))
        self.wallets = {owner: FickleWallet(self.time, FUNDS, partial(self._is_sent, owner)) for owner in OWNERS}
        self.live(self._fund)

    async def _fund(self, store: Store) -> None:
        for owner in OWNERS:
            await store.write(lambda tx, owner=owner: ledger.deposit(tx, "all", FUNDS, self.time.now(), owner))

    # --- what the machine does it with ------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self):
        async with open_store(
            self.path, vault=Vault(bytes(32)), clock=self.time, executor="inline", durable=False
        ) as store:
            yield store

    def live(self, work: Callable[[Store], Awaitable[None]]) -> None:
        """Let a process start, work, and die where it must."""

        async def process() -> None:
            async with self.opened() as store:
                try:
                    await work(store)
                except* Crash:
                    store.kill()
                except* StoreError:
                    pass  # of a process that is dead, and does not know

        self.time.run(process)
        with closing(Witness(self.path)) as store:
            # One that died may not have heard that its freeze was committed.
            self.frozen = remembered.get(store, freeze.KEY) is not None

    def limits(self, source, spend):
        if not self.readable:
            raise OSError("the settings are gone")
        return self.budgets[spend.owner]

    def purse(self, store: Store, owner: str) -> Purse:
        return Purse(self.wallets[owner], store, self.time, owner, self.limits)

    def _is_sent(self, owner: str, attempt: Attempt) -> None:
        """The witness: at the moment in which a wallet is asked for something new. What it raised would be taken for
        the wallet's own trouble, so that it takes notes.
        """
        want, budget = self.wants.get(attempt.key), self.budgets[owner]
        if want is None:
            self.broken.append("paid under a key that no intent has")
            return
        bounded = want.purpose != WITHDRAWAL
        asks = bounded and budget.approve_above is not None and attempt.amount > budget.approve_above
        wrong = {
            "sent while spending is frozen": self.frozen,
            "paid from another's wallet": want.owner != owner,
            "sent in spite of a no": attempt.key in self.denied,
            "sent without the yes that it wants": asks and attempt.key not in self.approved,
            "a fee above the highest": attempt.fee > max_fee(Msat(attempt.amount)),
            "a fee above the budget's": bounded and budget.max_fee is not None and attempt.fee > budget.max_fee,
            "more than one may cost": bounded and budget.each is not None and attempt.amount > budget.each,
        }
        self.broken.extend(words for words, is_so in wrong.items() if is_so)

    def want(self, owner: str, cause: str, scope: str, purpose: str, kind: str, amount: int, payee: int) -> Want:
        self.serial += 1
        scope = f"{owner[:2]} {scope}"
        if kind == "address":
            return Want(owner, cause, scope, purpose, f"{MINE} {payee}", None, amount)
        named = None if kind == "open" else amount
        text = invoice(f"job {self.serial}", named, self.time.now(), payee)
        return Want(owner, cause, scope, purpose, text, bolt11.decode(text).payment_hash, amount)

    async def spend(self, store: Store, want: Want) -> None:
        """What a driver does with its purse, and where it dies."""
        purse = self.purse(store, want.owner)

        def reserve(tx) -> Intent:
            intent = purse.reserve(
                tx,
                cause=want.cause,
                bolt11=want.target,
                payment_hash=want.payment_hash,
                amount=Msat(want.amount),
                scope=want.scope,
                purpose=want.purpose,
            )
            if want.dies == "reserving":
                raise Crash
            self.wants.setdefault(intent.idempotency_key, want)
            return intent

        readable, frozen = self.readable, self.frozen
        try:
            intent = await store.write(reserve)
        except WalletFrozen:
            return
        except (BudgetExceeded, WalletError):
            return
        if intent.state is IntentState.PENDING:
            assert not frozen or not self.frozen, "reserved while spending was frozen"
        if want.purpose != WITHDRAWAL and self.wants[intent.idempotency_key] is want:
            assert readable, "a budget that does not read let it pass"
        if want.dies == "reserved":
            raise Crash
        outcome = await purse.send(intent)

        def record(tx) -> None:
            purse.record(tx, intent, outcome)
            if want.dies == "recording":
                raise Crash

        await store.write(record)
        if want.dies == "recorded":
            raise Crash

    # --- what happens -----------------------------------------------------------------------------------------

    @rule(
        owner=owners,
        cause=st.integers(0, 4),
        fresh=st.sampled_from([True, True, False]),
        scope=st.sampled_from(["tick 1", "tick 2"]),
        purpose=st.sampled_from([PURCHASE, PURCHASE, INVOICE, WITHDRAWAL]),
        kind=st.sampled_from(["named", "named", "open", "address"]),
        amount=st.sampled_from([5_000, 5_000, 5_001, 17_777, 1]),
        payee=st.integers(0, 1),
        count=st.integers(1, 10),
        dies=st.sampled_from([*[""] * 8, "reserving", "reserved", "recording", "recorded"]),
        will=st.lists(fates, max_size=3),
        freezes=st.sampled_from([*[None] * 9, 0.0, 0.5, 10.0]),
        calm=st.sampled_from([True, True, False]),
    )
    def a_crowd_buys(
        self, owner, cause, fresh, scope, purpose, kind, amount, payee, count, dies, will, freezes, calm
    ) -> None:
        """Up to ten at once, for one cause or for one each; the first may die, and somebody may freeze meanwhile."""
        if calm:
            self.calm()
        self.wallets[owner].fates.extend(will)
        name = [f"new {self.serial} {n}" if fresh else f"cause {cause} {n % 2}" for n in range(count)]
        wanted = [self.want(owner, name[n], scope, purpose, kind, amount, payee) for n in range(count)]
        wanted[0] = attrs.evolve(wanted[0], dies=dies)

        async def crowd(store: Store) -> None:
            async with trio.open_nursery() as nursery:
                if freezes is not None:
                    nursery.start_soon(self._freeze_later, store, freezes)
                for want in wanted:
                    nursery.start_soon(self.spend, store, want)

        self.live(crowd)

    @rule(
        owner=owners,
        cause=st.integers(0, 7),
        purpose=st.sampled_from([PURCHASE, INVOICE, WITHDRAWAL]),
        kind=st.sampled_from(["named", "open", "address"]),
        dies=st.sampled_from(["", "", "", "reserved", "recording"]),
        fate=fates,
        reconciles=st.booleans(),
        calm=st.sampled_from([True, True, False]),
        blind=st.sampled_from([False, False, False, True]),
    )
    def one_buys(self, owner, cause, purpose, kind, dies, fate, reconciles, calm, blind) -> None:
        """A small sum, which most budgets carry: so much goes wrong with it that it is bought once more."""
        if calm:
            self.calm()
        self.readable = self.readable and not blind
        self.wallets[owner].fates.appendleft(fate)
        want = attrs.evolve(self.want(owner, f"cause {cause}", "tick 1", purpose, kind, 100, 0), dies=dies)
        self.live(lambda store: self.spend(store, want))
        if reconciles:
            self.live(self._reconcile)

    @rule(data=st.data(), times=st.integers(1, 3))
    def ask_again(self, data, times: int) -> None:
        """The very same, whatever has become of it: never paid again."""
        if not self.wants:
            return
        want = attrs.evolve(data.draw(st.sampled_from(list(self.wants.values()))), dies="")

        async def again(store: Store) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(times):
                    nursery.start_soon(self.spend, store, want)

        self.live(again)

    @rule(owner=owners, will=st.lists(fates, min_size=1, max_size=3))
    def reconcile(self, owner: str, will: list[Fate]) -> None:
        """What runs after a start, and now and then."""
        self.wallets[owner].fates.extend(will)
        self.live(self._reconcile)

    async def _reconcile(self, store: Store) -> None:
        known = set()
        for wallet in self.wallets.values():
            wallet.resolve()
            if not wallet.away:
                known |= {a.key for a in wallet.attempts.values() if a.state is not PaymentState.PENDING}
        for intent in intents.pending(store):
            if intent.purpose == PURCHASE and ":late:" not in intent.cause:
                purse = self.purse(store, intent.owner)
                outcome = await purse.reconcile(intent)
                await store.write(partial(purse.record, intent=intent, outcome=outcome))
                now = intents.get(store, intent.id)
                assert isinstance(outcome, Unknown) == (now.state is IntentState.PENDING)
        reconciler = Reconciler(store, self.time)
        await reconciler.settle(partial(self.purse, store), lambda intent: intent.purpose == PURCHASE)
        await reconciler.settle(partial(self.purse, store), lambda intent: ":late:" not in intent.cause)
        await reconciler.doubt(partial(self.purse, store))
        left = {intent.idempotency_key for intent in intents.pending(store)}
        assert not left & known, "known, and not booked"

    @rule(
        kind=st.sampled_from(["", "", "frozen", "frozen unreadably", "a wallet is away", "budgets do not read"]),
        owner=owners,
    )
    def trouble(self, kind: str, owner: str) -> None:
        async def work(store: Store) -> None:
            if kind == "frozen":
                await self._freeze_later(store, 0.0, "strange things")
            elif kind == "frozen unreadably":
                await store.write(lambda tx: remembered.put(tx, freeze.KEY, "{canary"))

        self.live(work)
        if kind == "a wallet is away":
            self.wallets[owner].away = True
        elif kind == "budgets do not read":
            self.readable = False

    async def _freeze_later(self, store: Store, seconds: float, reason: str = "") -> None:
        await trio.sleep(seconds)
        await store.write(lambda tx: freeze.freeze(tx, reason, self.time.now()))
        self.frozen = True

    @rule()
    def calm(self) -> None:
        """It thaws, wallets come back, budgets read."""

        async def work(store: Store) -> None:
            self.frozen = False
            await store.write(freeze.thaw)

        self.live(work)
        self.readable = True
        for wallet in self.wallets.values():
            wallet.away = False

    @rule(data=st.data(), yes=st.booleans(), driver=st.booleans())
    def decide(self, data, yes: bool, driver: bool) -> None:
        """The operator says yes or no; somebody may be waiting for just that."""

        async def work(store: Store) -> None:
            waiting = approvals.waiting(store)
            if not waiting:
                return
            intent = data.draw(st.sampled_from(waiting))
            async with trio.open_nursery() as nursery:
                if driver and intent.purpose == PURCHASE:
                    nursery.start_soon(self._drive, store, intent)
                    await trio.sleep(1.0)
                (self.approved if yes else self.denied).add(intent.idempotency_key)
                with suppress(UsageError):  # it has lapsed
                    if yes:
                        await store.write(lambda tx: approvals.approve(tx, intent.id, self.time.now()))
                    else:
                        await store.write(lambda tx: approvals.deny(tx, intent.id, "", self.time.now()))

        self.live(work)

    async def _drive(self, store: Store, intent: Intent) -> None:
        purse = self.purse(store, intent.owner)
        outcome = await purse.reconcile(intent)
        await store.write(partial(purse.record, intent=intent, outcome=outcome))

    @rule(seconds=st.sampled_from([0.5, 100.0, 4_000.0, DAY / 2, DAY]))
    def pass_time(self, seconds: float) -> None:
        self.time.run(partial(trio.sleep, seconds))

    # --- what holds -------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if self.wallets:
            self._check()

    def _check(self) -> None:
        assert self.broken == []
        with closing(Witness(self.path)) as store:
            for owner, wallet in self.wallets.items():
                wallet.resolve()
                assert wallet.complaints == []
                self._check_owner(store, owner, wallet)
            assert [str(problem) for problem in books.check(store)] == []

    def _check_owner(self, store: Witness, owner: str, wallet: FickleWallet) -> None:
        budget, gone = self.budgets[owner], [a for a in wallet.attempts.values() if a.gone]
        honest = [a for a in gone if not a.lied]
        hashes = Counter(a.payment_hash for a in gone if a.payment_hash)
        assert max(hashes.values(), default=0) <= 1, "an invoice is paid twice"
        causes = Counter(self.wants[a.key].cause for a in honest)
        assert max(causes.values(), default=0) <= 1, "a cause is paid twice"
        # Conserved.
        unbooked = 0
        for attempt in wallet.attempts.values():
            intent = _intent_of(store, attempt)
            if attempt.state is PaymentState.SETTLED and intent.state is not IntentState.SETTLED:
                unbooked += attempt.takes
            assert intent.state is not IntentState.SETTLED or attempt.state is PaymentState.SETTLED
            assert intent.owner == owner
            if not attempt.lied and attempt.gone:
                assert attempt.takes <= intent.reserved, "more has gone than was reserved"
        assert ledger.held(store, owner) - unbooked == wallet.settled, "not a millisatoshi is lost"
        # Within the budgets; withdrawals are the operator's own.
        bought = [a for a in honest if self.wants[a.key].purpose != WITHDRAWAL]
        for scope in (f"{owner[:2]} tick 1", f"{owner[:2]} tick 2"):
            spent = sum(a.takes for a in bought if self.wants[a.key].scope == scope)
            assert budget.per_scope is None or spent <= budget.per_scope
        for last in bought:
            day = [a for a in bought if _ended(last) - DAY < _ended(a) <= _ended(last)]
            assert budget.per_day is None or sum(a.takes for a in day) <= budget.per_day
            to_one = sum(a.takes for a in day if a.payee == last.payee)
            assert budget.payee_day is None or to_one <= budget.payee_day
        if len(bought) == len(gone) > 0:  # the operator's own payments, and lies, may go below it
            assert FUNDS - sum(a.takes for a in gone) >= budget.reserve

    def teardown(self) -> None:
        try:
            if self.wallets:
                self._end()
        finally:
            entropy.use(None)
            self.directory.cleanup()

    def _end(self) -> None:
        """Nothing goes wrong any more: everything comes to its end, and is booked."""
        self.calm()
        for wallet in self.wallets.values():
            wallet.fates.clear()
        for _ in range(4):
            self.pass_time(1.5 * DAY)
            self.live(self._reconcile)
        self._check()
        self._check_ended()

    def _check_ended(self) -> None:
        with closing(Witness(self.path)) as store:
            assert intents.pending(store) == []
            assert approvals.waiting(store) == []
            for owner, wallet in self.wallets.items():
                assert ledger.held(store, owner) == wallet.settled
                for attempt in wallet.attempts.values():
                    settled = _intent_of(store, attempt).state is IntentState.SETTLED
                    assert settled == (attempt.state is PaymentState.SETTLED)


def _intent_of(store: Witness, attempt: Attempt) -> Intent:
    intent = intents.by_hash(store, attempt.payment_hash or intents.hash_of_key(attempt.key))
    assert (intent.target is TargetForm.ADDRESS) == (not attempt.payment_hash)
    return intent


def _ended(attempt: Attempt) -> float:
    return attempt.settled_at if attempt.settled_at is not None else float("inf")


DEEP = os.environ.get("PYLON_DEEP") == "1"
TestGuarded = Guarded.TestCase
TestGuarded.settings = settings(
    max_examples=1_000 if DEEP else 30,
    stateful_step_count=60 if DEEP else 30,
    deadline=None,
    report_multiple_bugs=False,
)
TestGuarded.pytestmark = [pytest.mark.timeout(7_200 if DEEP else 600)]
