"""Every open intent of every owner and purpose is seen to, and a wallet's word is held against its deeds."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio

from protocols import bolt11
from pylon import config as configuration
from pylon import identity
from pylon.clock import SystemClock, VirtualClock
from pylon.compute.purchase import Begun, Chosen, Purchase, PurchaseState, Quoted
from pylon.compute.purchases import purchase_records
from pylon.daemon.reconciler import DOUBT, EVERY, Reconciler
from pylon.daemon.runtime import open_home_store, open_runtime
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import AlreadyPaid, NotFound, WalletError, WalletFrozen
from pylon.host import registry
from pylon.host.settings import AgentSettings
from pylon.money import Msat, sats
from pylon.paths import Home
from pylon.store import approvals, books, freeze, intents, ledger
from pylon.store.database import open_store
from pylon.store.intents import INVOICE, PURCHASE, PURPOSES, WITHDRAWAL, ZAP, IntentState
from pylon.store.vault import Vault
from pylon.wallets.history import book_late
from pylon.wallets.port import Direction, Payment, PaymentState
from pylon.wallets.purse import DAY, Budget, Failed, Purse, Settled, Unknown
from pylon.wallets.simnet import SimnetLedger
from tests.pylon.market import until
from tests.pylon.wallets.fickle import Does, Fate, FickleWallet, invoice

FUNDS = sats(1_000)
FIVE = sats(5)
OWNERS = ["", "aa" * 32]


# --- whoever and whatever it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["buyer", "host"])
async def test_every_open_intent_is_seen_to(tmp_path, monkeypatch, mode):
    """Left by an earlier life: settled in the wallet, and nobody has heard of it. A record drives some, none others."""
    monkeypatch.setenv("PYLON_MODELS", str(tmp_path / "models"))
    home = Home(tmp_path / "home")
    identity.create(home, now=1.0)
    home.config.write_text('network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n')
    config = configuration.load(home.config, environ={}).config
    clock = SystemClock()
    async with open_runtime(home, config, mode="buyer", clock=clock) as first:
        born = await first.hosting.agents.spawn(AgentSettings(name="alice"))
        await first.wallet.fund(sats(500))
        await first.hosting.agents.wallet(born.agent.id).fund(sats(500))
    known = identity.unlock(home)
    made: dict[tuple[str, str, bool], str] = {}
    async with open_home_store(home, config, clock, known) as store, SimnetLedger(home.simnet, clock=clock) as net:
        shop = net.wallet("shop", b"\x09" * 32)
        keys = registry.keys(store, store.vault, born.agent.id)
        wallets = {
            "": net.wallet("own", known.identity.simnet.reveal()),
            born.agent.id: net.wallet("alice", keys.wallet.reveal()),
        }
        for owner, wallet in wallets.items():
            purse = Purse(wallet, store, clock, owner)
            for purpose in PURPOSES:
                for recorded in (False, True) if purpose == PURCHASE else (False,):
                    issued = await shop.receive(sats(3), "", 3_600, f"{owner} {purpose} {recorded}")
                    cause = f"{purpose} {recorded} {owner[:4]}"
                    ask = {"bolt11": issued.bolt11, "payment_hash": issued.payment_hash, "amount": sats(3)}
                    if recorded:
                        await _paying(store, clock, owner, cause, issued)
                    intent = await store.write(
                        lambda tx, purse=purse, cause=cause, purpose=purpose, ask=ask: purse.reserve(
                            tx, cause=cause, purpose=purpose, **ask
                        )
                    )
                    await purse.send(intent)  # and the process dies before it is recorded
                    made[owner, purpose, recorded] = intent.id
        assert len(intents.pending(store)) == len(made) == 2 * (len(PURPOSES) + 1)
    async with open_runtime(home, config, mode=mode, clock=clock) as runtime:
        with trio.fail_after(20):
            await until(lambda: not intents.pending(runtime.store))
        for name, ident in made.items():
            assert intents.get(runtime.store, ident).state is IntentState.SETTLED, name
        assert [str(problem) for problem in books.check(runtime.store)] == []
        for state in runtime.store.read("SELECT state FROM purchases"):
            assert state["state"] != PurchaseState.PAYING.value


async def _paying(store, clock, owner, cause, issued) -> None:
    """A purchase that was paying when its process died."""
    records = purchase_records(store)
    fresh = Purchase(id=cause, created_at=clock.now(), prompt="?", max_tokens=1, bid=sats(5), owner=owner)
    quoted = Quoted("e" * 64, issued.bolt11, issued.payment_hash, sats(3), clock.now() + 1_000)

    def job(tx):
        now = clock.now()
        records.begin(tx, fresh, Begun(), now)
        records.step(tx, cause, Chosen("bb" * 32, sats(5), "e" * 64, now + 1_000), now)
        records.step(tx, cause, quoted, now)

    await store.write(job)
    assert records.load(store, cause).state is PurchaseState.PAYING


def test_every_purpose_is_named_here():
    """One that is new wants to be thought of: who drives it, and who sees to it when that one is not there?"""
    assert set(PURPOSES) == {PURCHASE, ZAP, INVOICE, WITHDRAWAL}


# --- one at a time ------------------------------------------------------------------------------------------------


@attrs.define
class Desk:
    store: object
    clock: VirtualClock
    wallets: dict[str, FickleWallet]
    reconciler: Reconciler
    budget: Budget = attrs.field(factory=lambda: Budget(None, None))

    def purse(self, owner: str) -> Purse:
        if owner not in self.wallets:
            raise NotFound("there is no such agent")
        return Purse(self.wallets[owner], self.store, self.clock, owner, lambda source, spend: self.budget)

    async def reserve(self, name="job", owner="", purpose=INVOICE, cause="cause", target=None, amount=FIVE):
        text = target or invoice(name, amount, self.clock.now())
        payment_hash = None if target else bolt11.decode(text).payment_hash
        ask = {"cause": cause, "bolt11": text, "payment_hash": payment_hash, "amount": amount, "purpose": purpose}
        return await self.store.write(partial(self.purse(owner).reserve, **ask)), text

    async def pay(self, *fates: Fate, **ask):
        """Reserve, send and record; the wallet does as it is told."""
        intent, _text = await self.reserve(**ask)
        self.wallets[intent.owner].fates.extend(fates)
        outcome = await self.purse(intent.owner).send(intent)
        await self.store.write(partial(self.purse(intent.owner).record, intent=intent, outcome=outcome))
        return intents.get(self.store, intent.id), outcome

    async def look(self, rounds=1, driven=lambda intent: False):
        for _ in range(rounds):
            await self.reconciler.settle(self.purse, driven)
            await self.reconciler.doubt(self.purse)

    def now(self, intent):
        return intents.get(self.store, intent.id)

    def clean(self) -> bool:
        for wallet in self.wallets.values():
            wallet.resolve()
        held = {owner: ledger.held(self.store, owner) for owner in self.wallets}
        settled = {owner: wallet.settled for owner, wallet in self.wallets.items()}
        return held == settled and not books.check(self.store)


@pytest.fixture
async def desk(tmp_path):
    clock = VirtualClock()
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=clock, executor="inline", durable=False
    ) as store:
        for owner in OWNERS:
            await store.write(lambda tx, owner=owner: ledger.deposit(tx, "all", FUNDS, clock.now(), owner))
        yield Desk(store, clock, {owner: FickleWallet(clock, FUNDS) for owner in OWNERS}, Reconciler(store, clock))


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("settles", [True, False])
@pytest.mark.parametrize("target", [None, "spsb1friend"])
async def test_what_was_not_known_is_booked_once_it_is(autojump_clock, desk, owner, settles, target):
    if target:
        target = "addr of a friend"
    intent, outcome = await desk.pay(Fate(Does.HANGS, 500.0, settles), owner=owner, target=target)
    assert isinstance(outcome, Unknown)
    await desk.look()
    assert desk.now(intent).state is IntentState.PENDING
    await trio.sleep(500.0)
    await desk.look()
    assert desk.now(intent).state is (IntentState.SETTLED if settles else IntentState.FAILED)
    assert desk.wallets[owner].calls == 1
    assert desk.clean()


async def test_who_drives_it_is_left_alone(autojump_clock, desk):
    intent, _ = await desk.pay(Fate(Does.BREAKS_AFTER))
    await desk.look(driven=lambda found: found.id == intent.id)
    assert desk.now(intent).state is IntentState.PENDING
    with desk.reconciler.holding(intent) as free:
        assert free
        with desk.reconciler.holding(intent) as again:
            assert not again
        await desk.look()
        assert desk.now(intent).state is IntentState.PENDING
    await desk.look()
    assert desk.now(intent).state is IntentState.SETTLED


async def test_an_owner_that_is_gone_keeps_nobody_from_theirs(autojump_clock, desk):
    gone, _ = await desk.pay(Fate(Does.BREAKS_AFTER), owner=OWNERS[1], name="a")
    mine, _ = await desk.pay(Fate(Does.BREAKS_AFTER), name="b")
    wallet = desk.wallets.pop(OWNERS[1])
    await desk.look()
    assert (desk.now(gone).state, desk.now(mine).state) == (IntentState.PENDING, IntentState.SETTLED)
    desk.wallets[OWNERS[1]] = wallet
    await desk.look()
    assert desk.clean()


@pytest.mark.parametrize(("target", "until"), [(None, 7_200.0), ("addr of a friend", DAY)])
async def test_what_was_never_sent_is_not_sent_later(autojump_clock, desk, target, until):
    intent, _ = await desk.reserve(target=target)
    await trio.sleep(until - 10)
    await desk.look()
    assert desk.now(intent).state is IntentState.PENDING
    await trio.sleep(20)
    await desk.look()
    assert desk.now(intent).state is IntentState.FAILED
    assert desk.wallets[""].calls == 0


async def test_a_yes_that_comes_while_the_wallet_is_asked_is_kept(autojump_clock, desk):
    """The look takes longer than the question has left: what was known before it is not what counts."""
    desk.budget = Budget(None, None, approve_above=Msat(0))
    intent, _ = await desk.reserve()
    wallet = desk.wallets[""]
    answer = wallet.lookup_payment

    async def slowly(payment_hash):
        found = await answer(payment_hash)
        await trio.sleep(5.0)
        return found

    wallet.lookup_payment = slowly
    await trio.sleep(intent.lapses_at - desk.clock.now() - 3.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.look)
        await trio.sleep(1.0)
        await desk.store.write(lambda tx: approvals.approve(tx, intent.id, desk.clock.now()))
    assert desk.now(intent).state is IntentState.SETTLED
    assert desk.clean()


async def test_what_is_being_sent_is_not_failed_by_an_older_look(autojump_clock, desk):
    intent, _ = await desk.reserve()
    wallet = desk.wallets[""]
    pay = wallet.pay

    async def takes_its_time(*target, **how):
        await trio.sleep(30.0)
        return await pay(*target, **how)

    wallet.pay = takes_its_time

    async def failed_once(payment_hash):
        await trio.sleep(5.0)
        return Payment(
            "old", payment_hash, Direction.SENT, PaymentState.FAILED, FIVE, Msat(0), created_at=desk.clock.now()
        )

    wallet.lookup_payment = failed_once
    outcomes = []

    async def drive():
        outcomes.append(await desk.purse("").send(intent))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.look)
        await trio.sleep(1.0)
        nursery.start_soon(drive)
        await trio.sleep(10.0)
        assert desk.now(intent).state is IntentState.PENDING
    assert isinstance(outcomes[0], Settled)


# --- a wallet that has told two stories ---------------------------------------------------------------------------


async def test_a_payment_that_settles_after_it_had_failed(autojump_clock, desk):
    """Its cause has gone on and paid another: both are booked, and it is said."""
    first, outcome = await desk.pay(Fate(Does.LIES, 3_000.0), name="a")
    assert isinstance(outcome, Failed)
    await desk.look()
    second, _ = await desk.pay(Fate(Does.SETTLES), name="b")
    assert (second.cause, second.state) == (first.cause, IntentState.SETTLED)
    await trio.sleep(3_000.0)
    assert not desk.clean()
    await desk.look()
    late = desk.now(first)
    assert (late.state, late.cause) == (IntentState.SETTLED, f"cause:late:{first.payment_hash[:16]}")
    assert desk.clean()
    (remark,) = books.remarks(desk.store)
    assert "settled after it was reported as failed" in str(remark)
    assert ledger.balances(desk.store)["spent"] == sats(10)
    await desk.look(rounds=2)
    assert desk.clean()


async def test_a_payment_that_is_on_its_way_after_it_had_failed(autojump_clock, desk):
    """It counts against the budgets again, and is seen to its end."""
    desk.budget = Budget(None, per_day=sats(8))
    intent, _ = await desk.pay(Fate(Does.LIES, 1e9))
    attempt = desk.wallets[""].attempts[intent.idempotency_key]
    attempt.state, attempt.resolves_at = attempt.state.PENDING, desk.clock.now() + 1_000
    await desk.look()
    assert desk.now(intent).state is IntentState.PENDING
    with pytest.raises(WalletError, match="24 hours"):
        await desk.reserve(name="b", cause="another")
    await trio.sleep(1_000)
    await desk.look()
    assert desk.now(intent).state is IntentState.SETTLED
    assert desk.clean()


async def test_a_failure_is_doubted_ever_more_seldom_and_for_a_week(autojump_clock, desk):
    intent, _ = await desk.pay(Fate(Does.LIES, 1e9))
    asked = []
    wallet = desk.wallets[""]
    lookup, wallet.lookup_payment = wallet.lookup_payment, lambda h: _noting(asked, desk.clock, lookup, h)
    began = desk.clock.now()
    while desk.clock.now() < began + DOUBT + DAY:
        await desk.look()
        await trio.sleep(EVERY * 10)
    assert 5 <= len(asked) <= 8
    assert asked[0] == began
    assert asked[-1] < began + DOUBT
    assert desk.now(intent).state is IntentState.FAILED


async def _noting(asked, clock, lookup, payment_hash):
    asked.append(clock.now())
    return await lookup(payment_hash)


async def test_the_audit_books_what_is_late_too(autojump_clock, desk):
    intent, _ = await desk.pay(Fate(Does.LIES, 1.0))
    await trio.sleep(1.0)
    payments = await desk.wallets[""].payments()
    assert await book_late(desk.store, payments, now=desk.clock.now()) == [intent]
    assert await book_late(desk.store, payments, now=desk.clock.now()) == []
    assert desk.clean()


async def test_a_wallet_that_takes_settled_back_is_not_believed(autojump_clock, desk):
    """Nothing is paid again, nothing is booked back; whoever drives it hears what was settled."""
    intent, outcome = await desk.pay(Fate(Does.SETTLES))
    attempt = desk.wallets[""].attempts[intent.idempotency_key]
    attempt.state = attempt.state.FAILED
    purse = desk.purse("")
    assert await purse.reconcile(intent) == attrs.evolve(outcome, amount=intent.amount_msats)
    assert isinstance(await purse.send(intent), Settled)
    await desk.look(rounds=3)
    assert desk.now(intent).state is IntentState.SETTLED
    assert desk.wallets[""].calls == 1


# --- the freeze ---------------------------------------------------------------------------------------------------


async def test_what_is_on_its_way_is_seen_to_while_spending_is_frozen(autojump_clock, desk):
    under_way, _ = await desk.pay(Fate(Does.HANGS, 100.0), name="a", cause="a")
    reserved, _text = await desk.reserve(name="b", cause="b")
    await desk.store.write(lambda tx: freeze.freeze(tx, "strange things", desk.clock.now()))
    await trio.sleep(100.0)
    await desk.look()
    assert desk.now(under_way).state is IntentState.SETTLED
    purse = desk.purse("")
    for outcome in (await purse.send(reserved), await purse.reconcile(reserved)):
        assert isinstance(outcome, Unknown)
        assert "pylon wallet thaw" in outcome.reason
    with pytest.raises(WalletFrozen):
        await desk.reserve(name="c", cause="c")
    assert desk.wallets[""].calls == 1
    await desk.store.write(freeze.thaw)
    assert isinstance(await purse.reconcile(reserved), Settled)


async def test_a_freeze_between_the_intent_and_the_wallet(autojump_clock, desk):
    """The operator's own payment: told, kept on record, never sent, and failed once nobody could pay it."""
    withdrawals = Withdrawals(desk.store, desk.clock)
    text = invoice("w", sats(5), desk.clock.now())
    ask = (desk.purse(""), text, bolt11.decode(text).payment_hash, sats(5))
    write, frozen = desk.store.write, []

    async def freezing(job):
        done = await write(job)
        if not frozen:
            frozen.append(await write(lambda tx: freeze.freeze(tx, "", desk.clock.now())))
        return done

    desk.store.write = freezing
    with pytest.raises(WalletError, match="frozen"):
        await withdrawals.pay(*ask)
    desk.store.write = write
    assert desk.wallets[""].calls == 0
    await trio.sleep(2 * DAY)
    await withdrawals.reconciler.settle(desk.purse)
    assert intents.pending(desk.store) == []
    assert desk.clean()


# --- a yes --------------------------------------------------------------------------------------------------------


async def test_what_is_approved_goes_out_at_once(autojump_clock, desk):
    """Nobody drives it any more: the reconciler does, woken by the yes."""
    desk.budget = Budget(None, None, approve_above=Msat(0))
    intent, outcome = await desk.pay()
    assert isinstance(outcome, Unknown)
    assert "pylon wallet approvals" in outcome.reason
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.reconciler.run, desk.purse, lambda intent: False)
        await trio.sleep(1.0)
        assert desk.wallets[""].calls == 0
        await desk.store.write(lambda tx: approvals.approve(tx, intent.id, desk.clock.now()))
        await trio.sleep(0.1)
        assert desk.now(intent).state is IntentState.SETTLED
        nursery.cancel_scope.cancel()
    assert desk.wallets[""].calls == 1
    assert desk.clean()


@pytest.mark.parametrize("yes", [True, False])
async def test_a_driver_waits_for_the_operator(autojump_clock, desk, yes):
    desk.budget = Budget(None, None, approve_above=Msat(0))
    intent, _text = await desk.reserve(purpose=PURCHASE)
    heard = []

    async def drive():
        heard.append((await desk.purse("").reconcile(intent), trio.current_time()))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive)
        await trio.sleep(7.0)
        decide = approvals.approve if yes else partial(approvals.deny, reason="too dear")
        await desk.store.write(lambda tx: decide(tx, intent.id, at=desk.clock.now()))
    (outcome, at) = heard[0]
    assert at - began == 7.0
    if yes:
        assert isinstance(outcome, Settled)
    else:
        assert outcome == Failed("too dear", ours=True), "no other payee would fare any better"
        assert desk.wallets[""].calls == 0


async def test_a_question_lapses(autojump_clock, desk):
    desk.budget = Budget(None, None, approve_above=Msat(0))
    intent, _text = await desk.reserve()
    assert isinstance(await desk.purse("").reconcile(intent), Unknown)
    await trio.sleep(3_600.0)
    assert isinstance(await desk.purse("").reconcile(intent), Failed)
    await desk.look()
    assert desk.now(intent).error == "the operator did not approve it in time"
    assert desk.wallets[""].calls == 0


# --- what the operator pays ---------------------------------------------------------------------------------------


async def test_an_address_is_paid_by_hand_once_for_each_time_it_is_asked_for(autojump_clock, desk):
    withdrawals, purse = Withdrawals(desk.store, desk.clock), desk.purse("")
    with pytest.raises(ValueError, match="cause"):
        await withdrawals.pay(purse, "addr x", None, sats(5))
    for cause in ("one", "two"):
        await withdrawals.pay(purse, "addr x", None, sats(5), cause=cause)
        with pytest.raises(AlreadyPaid):
            await withdrawals.pay(purse, "addr x", None, sats(5), cause=cause)
    assert desk.wallets[""].calls == 2
    assert desk.clean()


async def test_what_the_wallet_has_said_is_written_down_whoever_goes_away(autojump_clock, desk):
    withdrawals, wallet = Withdrawals(desk.store, desk.clock), desk.wallets[""]
    text, pay = invoice("w", sats(5), desk.clock.now()), wallet.pay
    payment_hash = bolt11.decode(text).payment_hash
    with trio.CancelScope() as caller:

        async def leaving(*args, **said):
            caller.cancel()
            return await pay(*args, **said)

        wallet.pay = leaving
        await withdrawals.pay(desk.purse(""), text, payment_hash, sats(5))
    assert intents.by_hash(desk.store, payment_hash).state is IntentState.SETTLED
    assert desk.clean()


async def test_two_calls_at_once_make_one_call_of_the_wallet(autojump_clock, desk):
    intent, _text = await desk.reserve()
    outcomes = []

    async def send():
        outcomes.append(await desk.purse("").send(intent))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send)
    assert desk.wallets[""].calls == 1
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Settled"] + ["Unknown"] * 4
