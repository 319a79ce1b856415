"""Sells inference: the driver of ``pylon.provider.sale``.

The seed's five steps, and the module of each: a kind 5050 request arrives (``desk``), kind 7000 answers with an invoice
and Lightning pays it (``payments``), the local backend thinks (``work``), kind 6050 carries the result
(``deliveries``). What is signed is in ``replies``, the table of sales in ``sales``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from protocols import nip09
from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip90 import JOB_TEXT
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.inference.port import DEFAULT_DEADLINES, Deadlines
from pylon.inference.router import Router
from pylon.machine import Effect
from pylon.money import Msat
from pylon.provider import cancellations, customers
from pylon.provider import sale as machine
from pylon.provider.cancellations import Cancellations
from pylon.provider.deliveries import Deliveries, take_back
from pylon.provider.desk import CONSUMER, Desk
from pylon.provider.forgetting import KEEP, keep_few
from pylon.provider.holds import Holds
from pylon.provider.inputs import Inputs
from pylon.provider.payments import Payments, mint
from pylon.provider.pricing import Terms
from pylon.provider.replies import compose
from pylon.provider.sale import Sale, SaleEffect, SaleState
from pylon.provider.sales import due, sale_records
from pylon.provider.waiting import WaitingRoom
from pylon.provider.work import Work
from pylon.relays.pool import RelayPool
from pylon.store import cursors, ledger
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.together import handle_together
from pylon.wallets.port import Payment, Wallet

_OPEN_SECONDS = 60
"""How old a request to everybody may be when we begin to listen."""
_OVERLAP = 900
_OF_PAID_JOBS = (SaleEffect.PUBLISH_PROCESSING, SaleEffect.PUBLISH_RESULT, SaleEffect.PUBLISH_DEBT)
"""What no flood of quotes may delay; nor the quotes of customers who have paid before."""


class Provider:
    """Drives this home's sales. One instance a store.

    :param received: told of each payment that the wallet has received, whatever it is for.
    """

    def __init__(
        self,
        *,
        secret: SecretKey,
        store: Store,
        pool: RelayPool,
        wallet: Wallet | None,
        wallet_name: str,
        router: Router,
        clock: Clock,
        rng: random.Random,
        terms: Terms,
        deadlines: Deadlines = DEFAULT_DEADLINES,
        slots: int = 1,
        received: Callable[[Payment], Awaitable[object]] | None = None,
        keep_unpaid: int = KEEP,
    ) -> None:
        self._secret = secret
        self._store = store
        self._pool = pool
        self._wallet = wallet
        self._keep_unpaid = keep_unpaid
        self.router = router
        self._clock = clock
        self._work = Work(
            secret=secret, pool=pool, router=router, clock=clock, rng=rng, deadlines=deadlines, slots=slots
        )
        self.records = sale_records(store)
        self._driver = Driver(
            self.records,
            store,
            clock,
            rng,
            handlers={
                SaleEffect.MINT_INVOICE: self._mint,
                SaleEffect.INFER: self._work.infer,
                SaleEffect.SETTLE_HOLD: self._settle_hold,
                SaleEffect.CANCEL_HOLD: self._cancel_hold,
            },
            compose=lambda tx, sale, effect: [self._compose(sale, effect)],
            book=self._book,
            due=due,
            attend=self._attend,
            relays=lambda record: pool.urls,
            abandons=(SaleEffect.INFER,),
            urgent=lambda tx, sale, effect: effect in _OF_PAID_JOBS or customers.has_paid(tx, sale.customer),
        )
        self.deliveries = Deliveries(store=store, pool=pool, clock=clock, driver=self._driver)
        self.payments = (
            None
            if wallet is None
            else Payments(
                store=store,
                wallet=wallet,
                wallet_name=wallet_name,
                clock=clock,
                rng=rng,
                driver=self._driver,
                received=received,
            )
        )
        self.holds = Holds(
            store=store,
            wallet=wallet,
            payments=self.payments,
            clock=clock,
            rng=rng,
            driver=self._driver,
        )
        self.cancellations = Cancellations(store=store, driver=self._driver)
        self.desk = Desk(
            secret=secret,
            store=store,
            router=router,
            clock=clock,
            terms=terms,
            driver=self._driver,
            holds=self.holds,
            unwanted=self.cancellations.unwanted,
            inputs=Inputs(secret=secret, store=store, pool=pool, records=self.records),
        )
        self._waiting: WaitingRoom[Event] = WaitingRoom(self.desk.is_known)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn at a backend."""
        return self._work.waiting

    @property
    def terms(self) -> Terms:
        """How it sells by now."""
        return self.desk.terms

    def sell_by(self, terms: Terms) -> None:
        """Sell by new terms from the next request on; what was quoted stays quoted."""
        self.desk.terms = terms

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume open sales, then take requests until cancelled."""
        me = self._secret.public.hex
        since = cursors.since(self._store, CONSUMER, _OVERLAP)
        if since is None:
            since = int(self._clock.now() - self.terms.max_age)
        # What everybody is asked is over within seconds: of that, nothing old is asked for.
        anybody = Filter(kinds=[JOB_TEXT], since=int(self._clock.now()) - _OPEN_SECONDS)
        filters = [Filter(kinds=[JOB_TEXT], tags={"p": [me]}), anybody, cancellations.FILTER]
        async with self._pool.subscribe(filters, since=since) as heard:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._driver.run)
                await nursery.start(self.desk.run)
                if self.payments is not None:
                    await nursery.start(self.payments.watch)
                    nursery.start_soon(self.payments.poll)
                    nursery.start_soon(self.holds.watch)
                nursery.start_soon(self.deliveries.watch)
                nursery.start_soon(handle_together, self._waiting, self._hear)
                ask = None if self.payments is None else self._ask_about
                nursery.start_soon(keep_few, self._store, self._clock, lambda: self.terms, ask, self._keep_unpaid)
                task_status.started()
                async for received in heard:
                    for event in (received.event, *heard.drain()):
                        if self._concerns(event, me):
                            self._waiting.put(event.pubkey, event)

    def _concerns(self, event: Event, me: str) -> bool:
        """Whether it may be for us: what others are asked is none of our business, and costs a look."""
        if event.kind == nip09.KIND:
            return self.cancellations.concern(event)
        return event.tag("p") == me or (event.tag("p") is None and event.pubkey != me)

    async def _hear(self, event: Event) -> None:
        if event.kind == nip09.KIND:
            await self.cancellations.take(event)
        else:
            await self.desk.deliver(event)

    async def _mint(self, sale: Sale) -> object:
        if self.desk.is_known(sale.customer):
            return await mint(self._wallet, self.terms, sale)
        async with self.desk.minting:
            return await mint(self._wallet, self.terms, sale)

    async def _ask_about(self, sale_id: str) -> None:
        """Have the wallet say whether an old quote was paid."""
        sale = self.records.load(self._store, sale_id)
        if sale is not None and self.payments is not None:
            await self.payments.claim_if_paid(sale)

    async def _settle_hold(self, sale: Sale) -> object | None:
        return await self.holds.settle(sale)

    async def _cancel_hold(self, sale: Sale) -> object | None:
        return await self.holds.give_back(sale)

    def _compose(self, sale: Sale, effect: Effect) -> Event:
        return compose(self._secret, sale, effect, int(self._clock.now()))

    async def _attend(self, sale: Sale) -> object | None:
        """An invoice's time is over: expired, unless the wallet knows better. A wallet that cannot tell: later.

        Or the time of a result that no relay has taken, or of a job for which money is held.
        """
        if sale.state is SaleState.SERVED:
            return machine.Undeliverable()
        if sale.state is SaleState.HELD:
            return machine.HoldOverdue()
        if self.payments is not None:
            await self.payments.claim_if_paid(sale)
        return machine.InvoiceExpired()

    def _book(self, tx: Tx, step: Step[Sale]) -> None:
        """Whatever moved in the record moves in the ledger; what is given back is delivered no more."""
        if step.before.state is SaleState.SERVED and step.after.state in (SaleState.OWED, SaleState.FAILED):
            take_back(tx, step.after.id, self._clock.now())
        before, after = step.before, step.after
        if _money(before) == _money(after):
            return
        ledger.sale_moved(
            tx,
            cause=after.id,
            customer=after.customer,
            credit=(before.credit_used, after.credit_used),
            paid=(before.paid, after.paid),
            earned=(before.earned, after.earned),
            owed=(before.owed, after.owed),
            at=self._clock.now(),
        )


def _money(sale: Sale) -> tuple[Msat, ...]:
    return sale.paid, sale.earned, sale.owed, sale.credit_used
