"""Pay on delivery: invoices whose payment is held while the job is done, then taken, or given back.

Rules
-----
1. The preimage is drawn here and committed, sealed, in the sale's record before the invoice is asked for: after any
   crash the same invoice is made, and can be settled.
2. It is told to the wallet by ``settle`` alone, once the result is stored.
3. What the wallet does not say is asked again. Only what it says clearly ends a hold: it has it no more, and was not
   paid (``HoldGone``). One that was paid after all is claimed like any payment.
4. What is held for a sale that wants it no more (paid by another rail, ended) is given back at once.
"""

from __future__ import annotations

import logging
import random

import attrs
import trio

from protocols import entropy
from protocols.nip90 import JobRequest
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import PaymentFailed, PaymentUnknown, WalletError, brief
from pylon.provider import sale as machine
from pylon.provider.payments import HOLD_DOUBT, WALLET_SECONDS, Payments, hash_of
from pylon.provider.sale import Sale, SaleState
from pylon.store.database import Store
from pylon.wallets.port import Can, Wallet

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Between two looks at the newest quotes, for wallets that do not tell of what they hold."""
_NEWEST = 20
_FRESH = 60.0
"""Seconds for which a quote is new."""


class Holds:
    """Agrees to hold, hears what is held, and ends it. ``settle`` and ``give_back`` are handlers of effects.

    :param payments: where what was taken is claimed; ``None`` with the wallet.
    """

    def __init__(
        self,
        *,
        store: Store,
        wallet: Wallet | None,
        payments: Payments | None,
        clock: Clock,
        rng: random.Random,
        driver: Driver[Sale],
    ) -> None:
        self._store = store
        self._wallet = wallet
        self._payments = payments
        self._clock = clock
        self._rng = rng
        self._driver = driver
        self._can: bool | None = None
        self._doubted: dict[str, float] = {}
        """Sales whose hold could not be settled at the last looks, and since when."""

    async def agree(self, job: JobRequest, verdict: machine.Priced) -> machine.Priced:
        """The verdict, with a preimage where both sides can do without trust."""
        if self._wallet is None or not job.pay_on_delivery:
            return verdict
        if self._can is None:
            try:
                with trio.fail_after(WALLET_SECONDS):
                    self._can = Can.HOLD in (await self._wallet.info()).can
            except Exception as error:
                log.warning("cannot tell whether the wallet holds payments: %s", brief(error))
        return attrs.evolve(verdict, preimage=entropy.random_bytes(32).hex()) if self._can else verdict

    async def watch(self) -> None:
        """Look at the newest quotes that may be held by now; at the others, ``Payments`` looks now and then."""
        if self._payments is None:
            return
        with self._store.listen("sales") as changed:
            while True:
                quoted = self._newest()
                for sale in quoted:
                    try:
                        await self._payments.claim_if_paid(sale)
                    except Exception as error:
                        log.warning("cannot tell what is held for %s: %s", sale.id[:16], brief(error))
                        break
                if quoted:
                    await trio.sleep(_LOOK_SECONDS * (0.75 + 0.5 * self._rng.random()))
                else:
                    await changed.receive()

    def _newest(self) -> list[Sale]:
        return list(
            self._driver.records.where(
                self._store,
                "state = ? AND held_until IS NOT NULL AND created_at > ? ORDER BY created_at DESC LIMIT ?",
                (SaleState.QUOTED.value, self._clock.now() - _FRESH, _NEWEST),
            )
        )

    # --- effects ----------------------------------------------------------------------------------------------

    async def settle(self, sale: Sale) -> object | None:
        """Take what is held. Raises where that is not known to have happened, or to be past: it is asked again."""
        wallet, payments = self._parts()
        assert sale.preimage is not None, "only a hold is settled"
        refused = ""
        try:
            with trio.fail_after(WALLET_SECONDS):
                await wallet.settle(sale.preimage)
        except PaymentFailed as error:
            refused = error.message
        invoice = await payments.look(hash_of(sale.preimage))
        if invoice is not None and invoice.received > 0:
            self._doubted.pop(sale.id, None)
            await payments.claim(invoice.payment_hash, invoice.received, sale.preimage)
            return None
        if not refused or (invoice is not None and invoice.held > 0):
            raise PaymentUnknown("the wallet does not say whether the hold is settled")
        # A wallet that settles may be a moment behind with what it says.
        since = self._doubted.setdefault(sale.id, self._clock.monotonic())
        cancelled = invoice is not None and invoice.cancelled
        if not cancelled and self._clock.monotonic() - since < HOLD_DOUBT:
            raise PaymentUnknown(f"the hold may be gone: {refused}")
        del self._doubted[sale.id]
        log.error("sale %s: its hold is gone, nothing was paid: %s", sale.id[:16], refused)
        return machine.HoldGone()

    async def give_back(self, sale: Sale) -> object | None:
        """Cancel the hold. Raises where that is not known to have happened: it is asked again."""
        wallet, payments = self._parts()
        assert sale.preimage is not None, "only a hold is given back"
        payment_hash = hash_of(sale.preimage)
        try:
            with trio.fail_after(WALLET_SECONDS):
                await wallet.cancel(payment_hash)
            return machine.HoldGone()
        except PaymentUnknown:
            raise
        except WalletError as error:
            refused = error
        invoice = await payments.look(payment_hash)
        if invoice is not None and invoice.received > 0:
            await payments.claim(payment_hash, invoice.received, sale.preimage)
            return None
        if invoice is None or invoice.cancelled or (invoice.held == 0 and self._clock.now() > invoice.expires_at):
            return machine.HoldGone()
        raise refused

    def _parts(self) -> tuple[Wallet, Payments]:
        if self._wallet is None or self._payments is None:
            raise WalletError("no wallet is open", "start it with the wallet that the invoice was made by")
        return self._wallet, self._payments
