"""What the operator pays: out of an agent's wallet, or from the home's own into one.

No tick and no purchase drives these payments, so that they have a driver of their own: the call that was asked for
them, and ``settle`` for what such a call has left behind. An intent whose payment the wallet has never heard of is
not sent later on, for whoever asked has been told that it failed, or has gone; it fails when its invoice has expired.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from protocols import bolt11
from pylon.clock import Clock
from pylon.errors import AlreadyPaid, NotFound, StoreError, WalletError, brief
from pylon.money import Msat
from pylon.store import intents
from pylon.store.database import Store
from pylon.store.intents import WITHDRAWAL, Intent, IntentState
from pylon.wallets.port import PaymentState
from pylon.wallets.purse import Failed, Outcome, Purse, Settled, Unknown

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two looks at what is not known."""
_RECORD_SECONDS = 30.0
_LATE = 3_600.0
"""Seconds after its expiry from which an invoice that no wallet knows as paid is taken for not paid."""


class Withdrawals:
    """See the module. One for a home."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._under_way: set[str] = set()

    async def pay(self, purse: Purse, invoice: str, payment_hash: str, amount: Msat) -> Msat:
        """Pay on the operator's word; returns the fee.

        Raises ``WalletError`` where it did not, or may still, settle, and for what was paid before.
        """
        cause = f"{WITHDRAWAL}:{payment_hash}"
        intent = await self._store.write(
            lambda tx: purse.reserve(
                tx, cause=cause, bolt11=invoice, payment_hash=payment_hash, amount=amount, purpose=WITHDRAWAL
            )
        )
        if intent.state is IntentState.SETTLED:
            raise AlreadyPaid("this invoice was paid already", "ask for another one")
        if intent.id in self._under_way:
            raise AlreadyPaid("this invoice is being paid", "pylon books shows what is under way")
        self._under_way.add(intent.id)
        try:
            # What the wallet has said is written down, whoever goes away meanwhile.
            with trio.CancelScope(shield=True) as scope:
                outcome = await purse.send(intent, invoice)
                scope.deadline = trio.current_time() + _RECORD_SECONDS
                await self._record(purse, intent, outcome)
        finally:
            self._under_way.discard(intent.id)
        match outcome:
            case Settled(fee=fee):
                return fee
            case Unknown(reason):
                raise WalletError(f"the payment is not known to have settled: {reason}", "pylon books")
            case failed:
                hint = "try less: the fee comes on top" if failed.ours else "ask the payee for another invoice"
                raise WalletError(f"nothing was paid: {failed.reason}", hint)

    async def run(self, purse_of: Callable[[str], Purse]) -> None:
        """``settle`` at once, and now and then, until cancelled."""
        while True:
            try:
                await self.settle(purse_of)
            except StoreError as error:
                log.error("what was withdrawn cannot be looked into: %s", error.message)
            await trio.sleep(EVERY)

    async def settle(self, purse_of: Callable[[str], Purse]) -> None:
        """Ask the wallets what became of each withdrawal that nobody drives.

        :param purse_of: the purse of an owner. Raises ``NotFound`` for one that is gone.
        """
        for intent in intents.pending(self._store):
            if intent.purpose != WITHDRAWAL or intent.id in self._under_way:
                continue
            self._under_way.add(intent.id)
            try:
                purse = purse_of(intent.owner)
                outcome = await self._became(purse, intent)
                if outcome is not None:
                    await self._record(purse, intent, outcome)
            except (NotFound, StoreError) as error:
                log.warning("withdrawal %s: %s", intent.payment_hash[:16], error.message)
            finally:
                self._under_way.discard(intent.id)

    async def _record(self, purse: Purse, intent: Intent, outcome: Outcome) -> None:
        await self._store.write(lambda tx: purse.record(tx, intent, outcome))

    async def _became(self, purse: Purse, intent: Intent) -> Outcome | None:
        """``None``: still nobody knows."""
        try:
            with trio.fail_after(_RECORD_SECONDS):
                payment = await purse.wallet.lookup_payment(intent.payment_hash)
        except Exception as error:
            log.warning("withdrawal %s: the wallet cannot tell: %s", intent.payment_hash[:16], brief(error))
            return None
        if payment is None:
            return Failed("it was never sent") if self._is_over(intent) else None
        if payment.state is PaymentState.SETTLED:
            amount = payment.amount if payment.amount > 0 else intent.amount_msats
            return Settled(amount, Msat(max(payment.fee, 0)), payment.preimage)
        return Failed("the wallet reports that the payment failed") if payment.state is PaymentState.FAILED else None

    def _is_over(self, intent: Intent) -> bool:
        """Whether nobody can pay its invoice any more, whatever is on its way to the wallet."""
        invoice = bolt11.decode(intents.invoice(self._store, self._store.vault, intent.id))
        return self._clock.now() > invoice.expires_at + _LATE
