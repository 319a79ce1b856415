"""The purse: every payment passes through it, nobody pays around it.

1. ``reserve``, inside the caller's transaction: an intent row is the budget reservation. One open intent per cause,
   one per payment hash, ever.
2. ``send`` calls the wallet, once the intent is committed. The call is shielded: a cancelled caller must not cut a
   payment in half. Whatever is not a clear yes or no is *unknown*.
3. ``record``, inside the caller's transaction: the outcome, and its entries in the ledger.
4. ``reconcile`` asks the wallet what became of an intent, at start and until it knows.
"""

from __future__ import annotations

import logging

import attrs
import trio

from pylon.clock import Clock
from pylon.errors import AlreadyPaid, InsufficientFunds, PaymentUnknown, WalletError, brief
from pylon.money import Msat, max_fee
from pylon.store import intents, ledger
from pylon.store.database import Store, Tx
from pylon.store.intents import Intent
from pylon.wallets.port import Payment, PaymentState, Wallet

log = logging.getLogger(__name__)

SEND_DEADLINE = 60.0
"""Seconds after which a wallet's silence is *unknown*."""


@attrs.frozen
class Settled:
    amount: Msat
    fee: Msat
    preimage: str | None = attrs.field(repr=False)


@attrs.frozen
class Failed:
    """No money has moved, and none will.

    ``ours``: the cause lies in our own wallet, so that another payee would fare no better.
    """

    reason: str
    ours: bool = False


@attrs.frozen
class Unknown:
    """May still settle. Counts as spent until the wallet says otherwise."""

    reason: str


Outcome = Settled | Failed | Unknown


class Purse:
    """Pays from one wallet, on the record."""

    def __init__(self, wallet: Wallet, store: Store, clock: Clock) -> None:
        self.wallet = wallet
        self._store = store
        self._clock = clock

    def reserve(self, tx: Tx, *, cause: str, bolt11: str, payment_hash: str, amount: Msat) -> Intent:
        """Write the intent to pay. Raises ``AlreadyPaid`` where the cause or the hash has an intent already."""
        return intents.reserve(
            tx,
            self._store.vault,
            cause=cause,
            payment_hash=payment_hash,
            invoice=bolt11,
            amount=amount,
            max_fee=max_fee(amount),
            at=self._clock.now(),
        )

    async def send(self, intent: Intent, bolt11: str) -> Outcome:
        """Call the wallet for a committed intent. Never raises for anything that the wallet does."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_DEADLINE):
            try:
                payment = await self.wallet.pay(
                    bolt11, max_fee=Msat(intent.max_fee_msats), idempotency_key=intent.idempotency_key
                )
            except PaymentUnknown as error:
                return Unknown(error.message)
            except AlreadyPaid as error:
                return await self._paid_by_whom(intent, error)
            except WalletError as error:
                return Failed(error.message, ours=isinstance(error, InsufficientFunds))
            except Exception as error:
                log.warning("the wallet broke while paying %s: %s", intent.payment_hash[:16], brief(error))
                return Unknown(f"the wallet broke off ({type(error).__name__})")
            return _outcome(intent, payment)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    async def _paid_by_whom(self, intent: Intent, error: AlreadyPaid) -> Outcome:
        """A wallet that has forgotten our key says "already paid" of our own payment too: ask before believing it."""
        try:
            payment = await self.wallet.lookup_payment(intent.payment_hash)
        except Exception as broken:
            return Unknown(f"already paid, and the wallet cannot tell by whom ({type(broken).__name__})")
        return Failed(error.message) if payment is None else _outcome(intent, payment)

    async def reconcile(self, intent: Intent, bolt11: str) -> Outcome:
        """What became of an intent. Pays it only where the wallet has never heard of it, under the same key."""
        with trio.move_on_after(SEND_DEADLINE):
            try:
                payment = await self.wallet.lookup_payment(intent.payment_hash)
            except Exception as error:
                return Unknown(f"the wallet cannot tell ({type(error).__name__})")
            if payment is not None:
                return _outcome(intent, payment)
            return await self.send(intent, bolt11)
        return Unknown(f"the wallet did not answer within {SEND_DEADLINE:.0f} s")

    def record(self, tx: Tx, intent: Intent, outcome: Outcome) -> None:
        """Write the outcome down. Recording the same outcome again changes nothing."""
        now = self._clock.now()
        match outcome:
            case Settled(amount, fee, preimage):
                settled = intents.settle(
                    tx, self._store.vault, intent.id, amount=amount, fee=fee, preimage=preimage, at=now
                )
                # A wallet may tell another fee the second time it is asked; its first word was booked.
                ledger.purchase_settled(
                    tx,
                    cause=settled.cause,
                    payment_hash=settled.payment_hash,
                    amount=settled.amount_msats,
                    fee=settled.fee_msats or 0,
                    at=now,
                )
            case Failed(reason):
                intents.fail(tx, intent.id, error=reason, at=now)
            case Unknown(reason):
                intents.mark_unknown(tx, intent.id, error=reason, at=now)


def _outcome(intent: Intent, payment: Payment) -> Outcome:
    match payment.state:
        case PaymentState.SETTLED:
            # Some wallets do not say how much it was; then it was what was agreed.
            amount = payment.amount if payment.amount > 0 else intent.amount_msats
            return Settled(amount, Msat(max(payment.fee, 0)), payment.preimage)
        case PaymentState.FAILED:
            return Failed("the wallet reports that the payment failed")
        case PaymentState.PENDING:
            return Unknown("the payment is still on its way")
