"""What comes in for sales: invoices are made, and each payment is claimed once, by whichever way we learn of it."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable

import trio

from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import WalletError, brief
from pylon.money import Msat
from pylon.provider import sale as machine
from pylon.provider import zaps
from pylon.provider.pricing import Terms
from pylon.provider.sale import Sale, SaleState
from pylon.provider.sales import LATE_PAYMENT
from pylon.store import claims, credits
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.together import handle_together
from pylon.wallets.port import Direction, IssuedInvoice, Payment, PaymentState, Wallet

log = logging.getLogger(__name__)

_JUST_EXPIRED = 600.0
"""Seconds after its expiry for which an invoice is asked about at every poll."""
WALLET_SECONDS = 20.0
"""How long a wallet may take to make an invoice, or to look one up."""
HOLD_DOUBT = 20.0
"""Seconds for which a wallet must say that a hold is gone, without saying that it was cancelled, to be believed."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_ASKED_AT_ONCE = 200
"""Invoices that are asked about at a poll."""
_BEGINNING = (0.0, "")
_HOLDING = (SaleState.HELD, SaleState.SETTLING, SaleState.CANCELLING)
_ENDED_UNPAID = (SaleState.EXPIRED, SaleState.CANCELLED)
_POLL_SECONDS = 30.0
"""Wallets may miss telling us of a payment; open invoices are asked about this often."""


async def mint(wallet: Wallet | None, terms: Terms, sale: Sale) -> machine.Minted | machine.MintFailed:
    """The invoice of a sale, for what its price leaves to pay; a hold invoice where it has a preimage.

    Its key is the request's id: minting again after a crash gives the same invoice.
    """
    if wallet is None:
        return machine.MintFailed("no wallet is open")
    try:
        words, seconds = f"Pylon job {sale.id[:16]}", terms.invoice_seconds
        with trio.fail_after(WALLET_SECONDS):
            if sale.preimage is None:
                invoice = await wallet.receive(sale.asked, words, seconds, key=sale.id)
            else:
                invoice = await wallet.hold(sale.asked, words, seconds, sale.id, hash_of(sale.preimage))
    except WalletError as error:
        return machine.MintFailed(f"no invoice can be made: {error.message}")
    until = None if sale.preimage is None else invoice.expires_at + terms.hold_seconds
    return machine.Minted(invoice.bolt11, invoice.payment_hash, invoice.expires_at, until)


def hash_of(preimage: str) -> str:
    """The payment hash of a preimage, both hex."""
    return hashlib.sha256(bytes.fromhex(preimage)).hexdigest()


class Payments:
    """Hears of payments, asks about those it may have missed, and claims them.

    :param received: told of each payment that has come in, whatever it is for.
    """

    def __init__(
        self,
        *,
        store: Store,
        wallet: Wallet,
        wallet_name: str,
        clock: Clock,
        rng: random.Random,
        driver: Driver[Sale],
        received: Callable[[Payment], Awaitable[object]] | None = None,
    ) -> None:
        self._store = store
        self._wallet = wallet
        self._wallet_name = wallet_name
        self._clock = clock
        self._rng = rng
        self._driver = driver
        self._received = received
        self._gone: dict[str, float] = {}
        """Sales whose hold was not there at the last looks, and since when."""
        self._asked = _BEGINNING
        """End and sale of the last invoice that was asked about: where the next poll goes on."""

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
        if payment.direction is not Direction.RECEIVED:
            return
        if payment.state is PaymentState.SETTLED:
            await self.claim(payment.payment_hash, payment.amount, payment.preimage)
            if self._received is not None:
                await self._received(payment)
        else:
            # It is held, or was given back: the invoice tells.
            for sale in list(self._driver.records.where(self._store, "payment_hash = ?", (payment.payment_hash,))):
                await self.claim_if_paid(sale)

    async def poll(self) -> None:
        while True:
            await trio.sleep(_POLL_SECONDS * (0.75 + 0.5 * self._rng.random()))
            try:
                await self._claim_all_paid(_JUST_EXPIRED, _ASKED_AT_ONCE)
            except Exception as error:
                log.warning("cannot ask about open invoices: %s", brief(error))

    async def _claim_all_paid(self, lately: float, most: int | None = None) -> None:
        """Whatever was paid while nobody listened.

        What has expired lately may have been paid in its last moment, or the wallet may not have told the truth of it;
        and what was done on trust may be paid by now.

        ``most`` bounds how many invoices are asked about now; the next such look goes on where this one ends. So ten
        thousand quotes that nobody pays cost no more than a few: each is asked about once more when its time is over.
        """
        for sale in list(self._driver.records.where(self._store, "state = ?", (SaleState.HELD.value,))):
            await self.claim_if_paid(sale)
        for payment_hash in zaps.unpaid(self._store, self._clock.now() - lately):
            zapped = await self.look(payment_hash)
            if zapped is not None and zapped.received > 0:
                await self.claim(payment_hash, zapped.received)
        since, asked = self._clock.now() - lately, 0
        at = _BEGINNING if most is None else self._asked
        try:
            while most is None or asked < most:
                rows = self._store.read(
                    "SELECT id, expires_at FROM sales WHERE paid_msats = 0 AND expires_at >= ?1"
                    " AND (expires_at > ?1 OR id > ?2) AND state <> ?3 ORDER BY expires_at, id LIMIT ?4",
                    (*max((since, ""), at), SaleState.HELD.value, _ASKED_AT_ONCE),
                )
                for row in rows:
                    for sale in list(self._driver.records.where(self._store, "id = ?", (row["id"],))):
                        await self.claim_if_paid(sale)
                    at = (row["expires_at"], row["id"])
                asked += len(rows)
                if len(rows) < _ASKED_AT_ONCE:
                    at = _BEGINNING
                    return
        finally:
            if most is not None:
                self._asked = at

    async def look(self, payment_hash: str) -> IssuedInvoice | None:
        """What the wallet says of an invoice of ours."""
        with trio.fail_after(WALLET_SECONDS):
            return await self._wallet.lookup_invoice(payment_hash)

    async def claim_if_paid(self, sale: Sale) -> None:
        """Ask the wallet, and claim what was paid, or take note of what is held."""
        if sale.payment_hash is None:
            return
        invoice = await self.look(sale.payment_hash)
        if invoice is None:
            return
        if invoice.received > 0:
            await self.claim(sale.payment_hash, invoice.received)
        elif sale.preimage is not None:
            await self._look_at_hold(sale, invoice)

    async def _look_at_hold(self, sale: Sale, invoice: IssuedInvoice) -> None:
        if invoice.held > 0 and not invoice.cancelled:
            self._gone.pop(sale.id, None)
            await self._take_hold(sale.id, invoice)
        elif sale.state is SaleState.HELD:
            # A wallet may be a moment behind; one that goes on saying so, or that says cancelled, means it.
            since = self._gone.setdefault(sale.id, self._clock.monotonic())
            if invoice.cancelled or self._clock.monotonic() - since >= HOLD_DOUBT:
                del self._gone[sale.id]
                await self._driver.advance(sale.id, machine.HoldGone())

    async def _take_hold(self, sale_id: str, invoice: IssuedInvoice) -> None:
        """Work for what is held; or give it back, where nobody will work for it any more."""

        def job(tx: Tx) -> tuple[Step[Sale] | None, bool]:
            sale = self._driver.records.load(tx, sale_id)
            if sale is None:
                return None, False
            step = self._driver.advance_in(tx, sale_id, machine.Held(invoice.held, self._credit(tx, sale)))
            return step, step is None and sale.state not in _HOLDING

        step, unwanted = await self._store.write(job)
        self._driver.acted(step)
        if unwanted:
            with trio.fail_after(WALLET_SECONDS):
                await self._wallet.cancel(invoice.payment_hash)

    def _credit(self, tx: Tx, sale: Sale) -> Msat:
        """What may make up for the credit that was given back when the sale ended unpaid."""
        return credits.available(tx, sale.customer) if sale.state in _ENDED_UNPAID else Msat(0)

    async def claim(self, payment_hash: str, amount: Msat, preimage: str | None = None) -> None:
        """Claim a payment once, for the sale whose invoice it paid; claim, entry and state in one transaction.

        An invoice of ours is paid once, so its hash is the payment's id, by whichever way we learn of it.
        """

        def job(tx: Tx) -> Step[Sale] | None:
            sale_id = claims.sale_of(tx, payment_hash)
            if (
                amount <= 0
                or sale_id is None
                or not claims.take(
                    tx,
                    wallet=self._wallet_name,
                    payment_id=payment_hash,
                    payment_hash=payment_hash,
                    sale_id=sale_id,
                    amount=amount,
                    at=self._clock.now(),
                    preimage=preimage,
                )
            ):
                return None
            sale = self._driver.records.load(tx, sale_id)
            assert sale is not None, "its row is there"
            by_hold = sale.preimage is not None and payment_hash == sale.payment_hash
            return self._driver.advance_in(tx, sale.id, machine.Paid(amount, self._credit(tx, sale), by_hold))

        self._driver.acted(await self._store.write(job))
