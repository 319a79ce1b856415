"""The purse: whatever a wallet does, a payment is settled, failed or unknown, and never made twice."""

from __future__ import annotations

import hashlib

import pytest
import trio

from pylon.clock import VirtualClock
from pylon.errors import AlreadyPaid, InsufficientFunds, NoRoute, PaymentFailed, PaymentUnknown
from pylon.money import Msat, sats
from pylon.store import intents, ledger
from pylon.store.database import open_store
from pylon.store.intents import IntentState
from pylon.store.vault import Vault
from pylon.wallets.port import Direction, Payment, PaymentState
from pylon.wallets.purse import SEND_DEADLINE, Failed, Purse, Settled, Unknown

PREIMAGE = "11" * 32
HASH = hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest()
AMOUNT = sats(5)
FEE = Msat(25)


def payment(state=PaymentState.SETTLED, amount=AMOUNT, fee=FEE, preimage=PREIMAGE):
    return Payment("1", HASH, Direction.SENT, state, amount, fee, created_at=0.0, preimage=preimage)


class ScriptedWallet:
    """Does what it is told: a payment, an exception, or a sleep for ever."""

    def __init__(self, pay=None, lookup=None):
        self.answers = {"pay": pay, "lookup": lookup}
        self.keys = []

    async def pay(self, bolt11, *, max_fee, idempotency_key):
        self.keys.append(idempotency_key)
        return await self._do("pay")

    async def lookup_payment(self, payment_hash):
        return await self._do("lookup")

    async def _do(self, what):
        await trio.lowlevel.checkpoint()
        answer = self.answers[what]
        if answer == "hang":
            await trio.sleep_forever()
        if isinstance(answer, float):
            await trio.sleep(answer)
            return payment()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
async def store(tmp_path):
    clock = VirtualClock()
    async with open_store(
        tmp_path / "pylon.db", vault=Vault(bytes(32)), clock=clock, executor="inline", durable=False
    ) as opened:
        yield opened


async def reserved(store, wallet):
    purse = Purse(wallet, store, store.clock)
    intent = await store.write(
        lambda tx: purse.reserve(tx, cause="purchase", bolt11="lnsb1", payment_hash=HASH, amount=AMOUNT)
    )
    return purse, intent


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        (payment(), Settled),
        (payment(PaymentState.PENDING), Unknown),
        (payment(PaymentState.FAILED), Failed),
        (PaymentUnknown("timed out"), Unknown),
        (PaymentFailed("no"), Failed),
        (NoRoute("no"), Failed),
        (InsufficientFunds(2, 1), Failed),
        (OSError("connection reset"), Unknown),
        (ValueError("a bug"), Unknown),
        (ExceptionGroup("many", [OSError("reset")]), Unknown),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
async def test_outcomes(autojump_clock, store, does, kind):
    purse, intent = await reserved(store, ScriptedWallet(pay=does))
    outcome = await purse.send(intent)
    assert isinstance(outcome, kind)
    await store.write(lambda tx: purse.record(tx, intent, outcome))
    state = {Settled: IntentState.SETTLED, Failed: IntentState.FAILED, Unknown: IntentState.PENDING}[kind]
    assert intents.by_hash(store, HASH).state is state
    spent = {Settled: AMOUNT + FEE, Failed: 0, Unknown: 0}[kind]
    assert -ledger.balances(store)["wallet"] == spent


async def test_only_our_own_empty_wallet_is_our_own_fault(autojump_clock, store):
    purse, intent = await reserved(store, ScriptedWallet(pay=InsufficientFunds(2, 1)))
    assert (await purse.send(intent)).ours
    purse, intent = await reserved(store, ScriptedWallet(pay=NoRoute("no")))
    assert not (await purse.send(intent)).ours


async def test_silence_is_unknown_after_a_minute(autojump_clock, store):
    purse, intent = await reserved(store, ScriptedWallet(pay="hang"))
    began = trio.current_time()
    assert isinstance(await purse.send(intent), Unknown)
    assert trio.current_time() - began == SEND_DEADLINE


async def test_a_cancelled_caller_does_not_cut_a_payment_in_half(autojump_clock, store):
    purse, intent = await reserved(store, ScriptedWallet(pay=20.0))
    began = trio.current_time()
    with trio.move_on_after(1.0):
        outcome = await purse.send(intent)
    assert isinstance(outcome, Settled)
    assert trio.current_time() - began == 20.0


@pytest.mark.parametrize(
    ("lookup", "kind"),
    [(payment(), Settled), (payment(PaymentState.PENDING), Unknown), (None, Failed), (OSError(), Unknown)],
    ids=["ours", "ours, on its way", "somebody else's", "cannot tell"],
)
async def test_already_paid_is_asked_about_before_it_is_believed(autojump_clock, store, lookup, kind):
    """A wallet that has forgotten our key says so of our own payment: taking that for failed would pay twice."""
    purse, intent = await reserved(store, ScriptedWallet(pay=AlreadyPaid("the invoice is paid"), lookup=lookup))
    assert isinstance(await purse.send(intent), kind)


async def test_reconcile_pays_only_what_the_wallet_never_heard_of(autojump_clock, store):
    wallet = ScriptedWallet(pay=payment(), lookup=payment(PaymentState.PENDING))
    purse, intent = await reserved(store, wallet)
    assert isinstance(await purse.reconcile(intent), Unknown)
    wallet.answers["lookup"] = OSError("away")
    assert isinstance(await purse.reconcile(intent), Unknown)
    wallet.answers["lookup"] = "hang"
    assert isinstance(await purse.reconcile(intent), Unknown)
    assert wallet.keys == []
    wallet.answers["lookup"] = None
    assert isinstance(await purse.reconcile(intent), Settled)
    assert wallet.keys == [intent.idempotency_key]


@pytest.mark.parametrize(
    ("amount", "fee", "spent"),
    [
        *((0, 0, 5_000), (-1, -1, 5_000), (5_000, -7, 5_000), (4, 1, 5)),
        # One invented figure would stand in an append-only ledger for good.
        *((5_000, 10**18, 7_000), (10**18, 0, 5_000), (10**18, 10**18, 7_000)),
    ],
)
async def test_amounts_that_cannot_be_are_those_agreed(autojump_clock, store, amount, fee, spent):
    purse, intent = await reserved(store, ScriptedWallet(pay=payment(amount=Msat(amount), fee=Msat(fee))))
    outcome = await purse.send(intent)
    for _ in range(2):
        await store.write(lambda tx: purse.record(tx, intent, outcome))
    assert -ledger.balances(store)["wallet"] == spent


async def test_no_proof_of_payment_is_shown(autojump_clock, store):
    purse, intent = await reserved(store, ScriptedWallet(pay=payment()))
    outcome = await purse.send(intent)
    assert PREIMAGE not in repr(outcome) + repr(payment()) + repr(intent)
