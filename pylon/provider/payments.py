"""What comes in for sales: invoices are made, and each payment is claimed once, by whichever way we learn of it."""

from __future__ import annotations

import logging
import random

import trio

from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import WalletError, brief
from pylon.money import Msat
from pylon.provider import sale as machine
from pylon.provider.pricing import Terms
from pylon.provider.sale import Sale, SaleState
from pylon.provider.sales import LATE_PAYMENT
from pylon.store import claims
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.together import handle_together
from pylon.wallets.port import Direction, Payment, PaymentState, Wallet

log = logging.getLogger(__name__)

_JUST_EXPIRED = 600.0
"""Seconds after its expiry for which an invoice is asked about at every poll."""
_WALLET_SECONDS = 20.0
"""How long a wallet may take to make an invoice, or to look one up."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_POLL_SECONDS = 30.0
"""Wallets may miss telling us of a payment; open invoices are asked about this often."""


async def mint(wallet: Wallet | None, terms: Terms, sale: Sale) -> machine.Minted | machine.MintFailed:
    """The invoice of a sale. Its key is the request's id: minting again after a crash gives the same invoice."""
    if wallet is None:
        return machine.MintFailed("no wallet is open")
    try:
        with trio.fail_after(_WALLET_SECONDS):
            invoice = await wallet.receive(sale.price, f"Pylon job {sale.id[:16]}", terms.invoice_seconds, key=sale.id)
    except WalletError as error:
        return machine.MintFailed(f"no invoice can be made: {error.message}")
    return machine.Minted(invoice.bolt11, invoice.payment_hash, invoice.expires_at)


class Payments:
    """Hears of payments, asks about those it may have missed, and claims them."""

    def __init__(
        self, *, store: Store, wallet: Wallet, wallet_name: str, clock: Clock, rng: random.Random, driver: Driver[Sale]
    ) -> None:
        self._store = store
        self._wallet = wallet
        self._wallet_name = wallet_name
        self._clock = clock
        self._rng = rng
        self._driver = driver

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim what comes in. A wallet that is not there, or ends its events, is listened to again later."""
        wait, lately = _FIRST_WAIT, LATE_PAYMENT
        while True:
            began = trio.current_time()
            try:
                async with self._wallet.events() as events:
                    await self._claim_all_paid(lately)
                    lately = _JUST_EXPIRED
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await handle_together(events, self._take_payment)
            except Exception as error:
                log.warning("cannot hear of payments, asking instead: %s", brief(error))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            wait = _FIRST_WAIT if trio.current_time() - began > 5 * wait else min(2 * wait, _LONGEST_WAIT)
            await trio.sleep(wait * (0.75 + 0.5 * self._rng.random()))

    async def _take_payment(self, payment: Payment) -> None:
        if payment.direction is Direction.RECEIVED and payment.state is PaymentState.SETTLED:
            await self.claim(payment.payment_hash, payment.amount, payment.preimage)

    async def poll(self) -> None:
        while True:
            await trio.sleep(_POLL_SECONDS * (0.75 + 0.5 * self._rng.random()))
            try:
                await self._claim_all_paid(_JUST_EXPIRED)
            except Exception as error:
                log.warning("cannot ask about open invoices: %s", brief(error))

    async def _claim_all_paid(self, lately: float) -> None:
        """Whatever was paid while nobody listened; what expired lately may have been paid in its last moment."""
        condition = "state = ? OR (state = ? AND expires_at > ?)"
        states = (SaleState.QUOTED.value, SaleState.EXPIRED.value)
        for sale in list(self._driver.records.where(self._store, condition, (*states, self._clock.now() - lately))):
            await self.claim_if_paid(sale)

    async def claim_if_paid(self, sale: Sale) -> None:
        if sale.payment_hash is None:
            return
        with trio.fail_after(_WALLET_SECONDS):
            invoice = await self._wallet.lookup_invoice(sale.payment_hash)
        if invoice is not None and invoice.received > 0:
            await self.claim(sale.payment_hash, invoice.received)

    async def claim(self, payment_hash: str, amount: Msat, preimage: str | None = None) -> None:
        """Claim a payment once, for the sale whose invoice it paid; claim, entry and state in one transaction.

        An invoice of ours is paid once, so its hash is the payment's id, by whichever way we learn of it.
        """

        def job(tx: Tx) -> Step[Sale] | None:
            row = tx.one("SELECT id FROM sales WHERE payment_hash = ?", (payment_hash,))
            if (
                amount <= 0
                or row is None
                or not claims.take(
                    tx,
                    wallet=self._wallet_name,
                    payment_id=payment_hash,
                    payment_hash=payment_hash,
                    sale_id=row["id"],
                    amount=amount,
                    at=self._clock.now(),
                    preimage=preimage,
                )
            ):
                return None
            return self._driver.advance_in(tx, row["id"], machine.Paid(amount))

        self._driver.acted(await self._store.write(job))
