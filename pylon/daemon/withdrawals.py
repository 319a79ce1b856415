"""What the operator pays: out of an agent's wallet, or from the home's own into one, or to anybody.

No tick and no purchase drives these payments, so that they have a driver of their own: the call that was asked for
them. What such a call has left behind, the ``Reconciler`` sees to; it sends nothing later on.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from pylon.clock import Clock
from pylon.daemon.reconciler import Reconciler
from pylon.errors import AlreadyPaid, PaymentFailed, PaymentUnknown
from pylon.money import Msat
from pylon.store.database import RECORD_SECONDS, Store, Tx
from pylon.store.intents import WITHDRAWAL, Intent, IntentState
from pylon.wallets.purse import Purse, Settled, Unknown


class Withdrawals:
    """See the module. One for a home."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.reconciler = Reconciler(store, clock)
        self._store = store

    async def pay(
        self,
        purse: Purse,
        target: str,
        payment_hash: str | None,
        amount: Msat,
        *,
        cause: str | None = None,
        highest_fee: Msat | None = None,
        kind: str = WITHDRAWAL,
        admit: Callable[[Tx], None] | None = None,
    ) -> Msat:
        """Pay on the operator's word; returns the fee.

        :param target: an invoice, or an address that the wallet pays to.
        :param payment_hash: of the invoice; ``None`` for an address.
        :param amount: as for ``Purse.reserve``.
        :param cause: what tells two payments to one address apart, whatever is asked for twice: wanted for an address.
        :param kind: begins the cause of its intent.
        :param admit: asked in the transaction that reserves it; raises what speaks against it.

        Raises ``WalletFrozen``, and ``WalletError`` where it did not, or may still, settle, and for what was paid
        before.
        """
        if cause is None and payment_hash is None:
            raise ValueError("a payment to an address needs a cause of its own")

        def reserve(tx: Tx) -> Intent:
            if admit is not None:
                admit(tx)
            return purse.reserve(
                tx,
                cause=f"{kind}:{cause or payment_hash}",
                bolt11=target,
                payment_hash=payment_hash,
                amount=amount,
                purpose=WITHDRAWAL,
                highest_fee=highest_fee,
            )

        intent = await self._store.write(reserve)
        if intent.state is IntentState.SETTLED:
            raise AlreadyPaid("this invoice was paid already", "ask for another one")
        with self.reconciler.holding(intent) as free:
            if not free:
                raise AlreadyPaid("this invoice is being paid", "pylon books shows what is under way")
            # What the wallet has said is written down, whoever goes away meanwhile.
            with trio.CancelScope(shield=True) as scope:
                outcome = await purse.send(intent)
                scope.deadline = trio.current_time() + RECORD_SECONDS
                await self._store.write(lambda tx: purse.record(tx, intent, outcome))
        match outcome:
            case Settled(fee=fee):
                return fee
            case Unknown(reason):
                raise PaymentUnknown(f"the payment is not known to have settled: {reason}", "pylon wallet history")
            case failed:
                hint = "try less: the fee comes on top" if failed.ours else "ask the payee for another invoice"
                raise PaymentFailed(f"nothing was paid: {failed.reason}", hint)
