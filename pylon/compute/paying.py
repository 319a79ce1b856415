"""The payment of a purchase: sent once, and asked about until the wallet knows.

A payment may be on its way for as long as it likes; one to a hold invoice is, until its provider settles or cancels
it. What may have ended it (a reply of the provider) has the wallet asked at once.
"""

from __future__ import annotations

import logging
import math
import random

import trio

from pylon.clock import Clock
from pylon.compute import purchase as machine
from pylon.compute.account import Accounts, BuyerSettings
from pylon.compute.purchase import Purchase, PurchaseState
from pylon.errors import NotFound, WalletError
from pylon.store import intents
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.wallets.purse import Failed, Outcome, Purse, Settled, Unknown, book_outcome

log = logging.getLogger(__name__)

Paid = machine.PaymentSettled | machine.PaymentFailed | machine.PaymentRefused
"""What a payment comes to in the end."""

_FIRST_LOOK = 0.2
_LONGEST_LOOK = 30.0
"""Seconds between two questions to a wallet that does not know yet."""
_NUDGE_SECONDS = 1.0
"""A nudge within this time of the last one waits: a provider may send any number of replies."""


class Paying:
    """See the module."""

    def __init__(
        self, accounts: Accounts, store: Store, clock: Clock, rng: random.Random, settings: BuyerSettings
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._nudges: dict[str, trio.Event] = {}
        """By purchase that waits for its wallet."""

    async def pay(self, record: Purchase) -> Paid:
        """Send the payment that was reserved, and see to its end."""
        try:
            purse = self._accounts(record.owner).purse
        except NotFound:
            return await self.reconcile(record)
        outcome = await purse.send(intents.by_hash(self._store, _hash(record)))
        if isinstance(outcome, Unknown):
            return await self.reconcile(record)
        return self._outcome(outcome)

    async def reconcile(self, record: Purchase) -> Paid:
        """Ask until the wallet knows."""
        wait, nudged = _FIRST_LOOK, -math.inf
        nudge = self._nudges[record.id] = trio.Event()
        try:
            while True:
                try:
                    purse = self._accounts(record.owner).purse
                except NotFound as error:
                    if wait < _LONGEST_LOOK:
                        log.warning("payment of purchase %s: %s", record.id[:16], error.message)
                    wait = _LONGEST_LOOK
                else:
                    outcome = await purse.reconcile(intents.by_hash(self._store, _hash(record)))
                    if not isinstance(outcome, Unknown):
                        return self._outcome(outcome)
                with trio.move_on_after(wait * (0.5 + self._rng.random())):
                    await trio.sleep_until(nudged + _NUDGE_SECONDS)
                    await nudge.wait()
                    nudge, wait, nudged = trio.Event(), _FIRST_LOOK, trio.current_time()
                    self._nudges[record.id] = nudge
                    continue
                wait = min(wait * 2, _LONGEST_LOOK)
        finally:
            if self._nudges.get(record.id) is nudge:
                del self._nudges[record.id]

    def nudge(self, purchase_id: str) -> None:
        """Something has happened by which the wallet may know more."""
        waiting = self._nudges.get(purchase_id)
        if waiting is not None:
            waiting.set()

    def book(self, tx: Tx, step: Step[Purchase]) -> None:
        """Reserve what is to be paid, with the step that decides it; book what became of it, with the step that hears.

        Raises ``WalletError`` where nothing may be paid.
        """
        before, after = step.before, step.after
        if before.state is not PurchaseState.PAYING and after.state is PurchaseState.PAYING:
            assert after.bolt11 is not None, "a quote was taken"
            self._purse_of(after).reserve(
                tx,
                cause=after.id,
                bolt11=after.bolt11,
                payment_hash=_hash(after),
                amount=after.quoted,
                scope=after.scope,
            )
        elif before.state is PurchaseState.PAYING and after.state is not PurchaseState.PAYING:
            intent = intents.by_hash(tx, _hash(before))
            outcome: Outcome = (
                Settled(after.paid, after.fee, after.preimage) if after.paid > 0 else Failed(after.reason)
            )
            book_outcome(tx, intent, outcome, self._clock.now())

    def _outcome(self, outcome: Settled | Failed) -> Paid:
        match outcome:
            case Settled(amount, fee, preimage):
                answer_by = self._clock.now() + self._settings.answer_seconds
                return machine.PaymentSettled(amount, fee, preimage, answer_by)
            case Failed(reason, ours=True):
                return machine.PaymentRefused(reason)
            case Failed(reason):
                return machine.PaymentFailed(reason)

    def _purse_of(self, purchase: Purchase) -> Purse:
        """Raises ``WalletError`` where the owner is gone: then nothing is to be paid."""
        try:
            return self._accounts(purchase.owner).purse
        except NotFound as error:
            raise WalletError(error.message, error.hint) from None


def _hash(record: Purchase) -> str:
    assert record.payment_hash is not None, "a quote was taken"
    return record.payment_hash
