"""Sells inference: the driver of ``pylon.provider.sale``.

The seed's five steps: a kind 5050 request arrives, kind 7000 answers with an invoice, Lightning pays it, the local
backend thinks, kind 6050 carries the result.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Sequence

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import MAX_EVENT_BYTES, Event, EventInvalid, Filter
from protocols.nip90 import (
    JOB_TEXT,
    JobInvalid,
    parse_request,
)
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import InferenceError, WalletError, brief
from pylon.inference.port import DEFAULT_DEADLINES, Deadlines, InferenceRequest, Message
from pylon.inference.router import Router
from pylon.machine import Effect
from pylon.money import Msat
from pylon.provider import sale as machine
from pylon.provider.pricing import Terms, appraise
from pylon.provider.replies import compose, compose_partial
from pylon.provider.sale import SALE, Sale, SaleEffect, SaleState
from pylon.relays.pool import Received, RelayPool
from pylon.store import claims, cursors, inbox, ledger, outbox
from pylon.store.database import Store, Tx
from pylon.store.records import RecordTable, Step
from pylon.together import handle_together
from pylon.wallets.port import Direction, Payment, PaymentState, Wallet

log = logging.getLogger(__name__)

_CONSUMER = "provider"
_OVERLAP = 900
_EXPIRY_GRACE = 5.0
"""Seconds after an invoice's expiry before it is given up: a payment may have been under way."""
_LATE_PAYMENT = 86_400.0
"""Seconds after its expiry for which an invoice is asked about at a start: it may have been paid in its last moment."""
_JUST_EXPIRED = 600.0
"""The same for every poll between."""
_WALLET_SECONDS = 20.0
"""How long a wallet may take to make an invoice, or to look one up."""
_UNDELIVERED = 86_400.0
"""Seconds for which relays may take a result, before its price is owed; a late payment's time is added."""
_LONGEST_REQUEST = 32_768
"""Bytes of an open request that its result repeats; a relay would not take two copies of a larger one."""
_SURELY_FITS = 8_000
"""Characters of an answer, and of the request it repeats, that fit into an event however they are written there."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_PARTIAL_SECONDS = 0.5
"""Between two partial results of a job: what the limits of public relays bear."""
_POLL_SECONDS = 30.0
"""Wallets may miss telling us of a payment; open invoices are asked about this often."""


class Provider:
    """Drives this home's sales. One instance a store."""

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
    ) -> None:
        self._secret = secret
        self._store = store
        self._pool = pool
        self._wallet = wallet
        self._wallet_name = wallet_name
        self.router = router
        self._clock = clock
        self._rng = rng
        self.terms = terms
        self._deadlines = deadlines
        self._slots = trio.CapacityLimiter(slots)
        self.records = sale_records(store)
        self._driver = Driver(
            self.records,
            store,
            clock,
            rng,
            handlers={SaleEffect.MINT_INVOICE: self._mint, SaleEffect.INFER: self._infer},
            compose=lambda tx, sale, effect: [self._compose(sale, effect)],
            book=self._book,
            due=_due,
            attend=self._attend,
            relays=lambda record: pool.urls,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume open sales, then take requests until cancelled."""
        me = self._secret.public.hex
        since = cursors.since(self._store, _CONSUMER, _OVERLAP)
        if since is None:
            since = int(self._clock.now() - self.terms.max_age)
        async with self._pool.subscribe([Filter(kinds=[JOB_TEXT], tags={"p": [me]})], since=since) as requests:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._driver.run)
                if self._wallet is not None:
                    await nursery.start(self._watch_payments, self._wallet)
                    nursery.start_soon(self._poll_payments)
                nursery.start_soon(self._watch_deliveries)
                task_status.started()
                await handle_together(requests, self._deliver)

    # --- requests ---------------------------------------------------------------------------------------------

    async def _deliver(self, received: Received) -> None:
        event = received.event
        await inbox.deliver(self._store, _CONSUMER, event.id, functools.partial(self._take, event))

    async def _take(self, event: Event) -> None:
        """Look at a request once, however often and from wherever it comes."""
        now = self._clock.now()
        if not now - self.terms.max_age <= event.created_at <= now + self.terms.max_ahead:
            return
        if inbox.seen(self._store, _CONSUMER, event.id):
            return
        sale, verdict = await self._appraise(event, now)

        def admit(tx: Tx) -> bool:
            if not self._has_room(tx, sale, verdict):
                return False
            cursors.advance(tx, _CONSUMER, min(event.created_at, int(self._clock.now())))
            return inbox.take(tx, _CONSUMER, event.id, now)

        await self._driver.begin(sale, verdict, admit)

    def _has_room(self, tx: Tx, sale: Sale, verdict: object) -> bool:
        """Whether to hear this request at all. One that is not leaves no trace, so that a flood of them leaves none."""
        if isinstance(verdict, machine.Refused):
            refused = tx.one(
                "SELECT COUNT(*) AS n FROM sales WHERE state = ? AND created_at > ?",
                (SaleState.REFUSED.value, self._clock.now() - 60.0),
            )
            return refused is None or refused["n"] < self.terms.refusals_per_minute
        states = (SaleState.PRICED.value, SaleState.QUOTED.value, SaleState.WORKING.value)
        count = tx.one(
            "SELECT COUNT(*) AS n, COALESCE(SUM(customer = ?), 0) AS mine FROM sales WHERE state IN (?, ?, ?)",
            (sale.customer, *states),
        )
        if count is None or (count["n"] < self.terms.max_open and count["mine"] < self.terms.max_open_per_customer):
            return True
        log.warning("too many open sales: request %s is not heard", sale.id[:16])
        return False

    async def _appraise(self, event: Event, now: float) -> tuple[Sale, object]:
        sale = Sale(id=event.id, customer=event.pubkey, kind=event.kind, created_at=now)
        try:
            job = parse_request(event, self._secret)
        except JobInvalid as error:
            return sale, machine.Refused(str(error))
        served = await self.router.models()
        models = [model.id for model in served]
        context = next((model.context_length for model in served if job.model in (None, model.id)), None)
        prompt = job.prompt
        try:
            schema = job.json_schema
        except JobInvalid as error:
            return sale, machine.Refused(str(error))
        verdict = appraise(job, self.terms, prompt=prompt, models=models, context=context, now=now)
        if isinstance(verdict, machine.Refused):
            return sale, verdict
        repeated = "" if job.encrypted else event.to_json()
        taken = Sale(
            id=event.id,
            customer=event.pubkey,
            kind=event.kind,
            created_at=now,
            prompt=prompt or "",
            encrypted=job.encrypted,
            model=job.model or "",
            max_tokens=job.max_tokens or self.terms.default_tokens,
            temperature=job.number("temperature", 0.0, 2.0),
            top_p=job.number("top_p", 0.0, 1.0),
            json_schema=schema,
            request=repeated if len(repeated.encode()) <= _LONGEST_REQUEST else "",
        )
        return taken, verdict

    # --- effects ----------------------------------------------------------------------------------------------

    async def _mint(self, sale: Sale) -> object:
        """The invoice's key is the request's id: minting again after a crash gives the same invoice."""
        if self._wallet is None:
            return machine.MintFailed("no wallet is open")
        try:
            with trio.fail_after(_WALLET_SECONDS):
                invoice = await self._wallet.receive(
                    sale.price, f"Pylon job {sale.id[:16]}", self.terms.invoice_seconds, key=sale.id
                )
        except WalletError as error:
            return machine.MintFailed(f"no invoice can be made: {error.message}")
        return machine.Minted(invoice.bolt11, invoice.payment_hash, invoice.expires_at)

    async def _infer(self, sale: Sale) -> object:
        if sale.attempts:
            # An engine that died needs a moment to come back; others must not be hammered either.
            await trio.sleep(min(2.0 ** (sale.attempts - 1), 15.0) * (0.75 + 0.5 * self._rng.random()))
        request = InferenceRequest(
            model=sale.model,
            messages=(Message("user", sale.prompt),),
            max_tokens=sale.max_tokens,
            temperature=sale.temperature,
            top_p=sale.top_p,
            json_schema=sale.json_schema,
            seed=sale.seed,
        )
        async with self._slots:
            try:
                return await self._think(sale, request)
            except InferenceError as error:
                log.warning("sale %s: attempt %d failed: %s", sale.id[:16], sale.attempts + 1, error.message)
                return machine.AttemptFailed(error.message)
            except Exception as error:
                # Whatever a backend does, a paid job comes to its end.
                log.error("sale %s: attempt %d broke: %s", sale.id[:16], sale.attempts + 1, brief(error))
                return machine.AttemptFailed("the backend broke")

    async def _think(self, sale: Sale, request: InferenceRequest) -> machine.Answered | machine.AttemptFailed:
        text, usage, told = "", None, trio.current_time()
        async with self.router.stream(request, self._deadlines) as chunks:
            async for chunk in chunks:
                # Engines that cut in the middle of a character leave halves of it, which no event can carry.
                text += chunk.text.encode("utf-8", "replace").decode()
                usage = chunk.usage or usage
                if trio.current_time() - told >= _PARTIAL_SECONDS and chunk.finish_reason is None:
                    told = trio.current_time()
                    await self._tell_partial(sale, text)
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        if not self._can_be_sent(sale, text):
            return machine.AttemptFailed("the answer is too long to be sent")
        return machine.Answered(text, *tokens)

    def _can_be_sent(self, sale: Sale, text: str) -> bool:
        if text.strip() and max(len(text), len(sale.request)) <= _SURELY_FITS:
            return True
        try:
            event = self._compose(attrs.evolve(sale, result=text), SaleEffect.PUBLISH_RESULT)
        except (JobInvalid, EventInvalid):
            return not text.strip()  # an empty answer is the machine's to judge
        return len(event.to_json().encode()) <= MAX_EVENT_BYTES

    async def _tell_partial(self, sale: Sale, text: str) -> None:
        """All words so far, to whoever listens now: partials are not kept, and nothing depends on them."""
        try:
            partial = compose_partial(self._secret, sale, text, int(self._clock.now()))
        except (JobInvalid, EventInvalid):
            return
        await self._pool.send_ephemeral(partial)

    async def _attend(self, sale: Sale) -> object | None:
        """An invoice's time is over: expired, unless the wallet knows better. A wallet that cannot tell: later.

        Or the time of a result that no relay has taken.
        """
        if sale.state is SaleState.SERVED:
            return machine.Undeliverable()
        await self._claim_if_paid(sale)
        return machine.InvoiceExpired()

    # --- payments ---------------------------------------------------------------------------------------------

    async def _watch_payments(
        self, wallet: Wallet, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Claim what comes in. A wallet that is not there, or ends its events, is listened to again later."""
        wait, lately = _FIRST_WAIT, _LATE_PAYMENT
        while True:
            began = trio.current_time()
            try:
                async with wallet.events() as events:
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
            await self._claim(payment.payment_hash, payment.amount, payment.preimage)

    async def _poll_payments(self) -> None:
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
        for sale in list(self.records.where(self._store, condition, (*states, self._clock.now() - lately))):
            await self._claim_if_paid(sale)

    async def _claim_if_paid(self, sale: Sale) -> None:
        if sale.payment_hash is None or self._wallet is None:
            return
        with trio.fail_after(_WALLET_SECONDS):
            invoice = await self._wallet.lookup_invoice(sale.payment_hash)
        if invoice is not None and invoice.received > 0:
            await self._claim(sale.payment_hash, invoice.received)

    async def _claim(self, payment_hash: str, amount: Msat, preimage: str | None = None) -> None:
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

    # --- deliveries -------------------------------------------------------------------------------------------

    async def _watch_deliveries(self) -> None:
        """A result is delivered as soon as one relay has it; the outbox goes on with the others."""
        offered = False
        with self._store.listen("delivered") as changed:
            while True:
                wait = float("inf")
                try:
                    if not offered:
                        await self._store.write(self._offer_again)
                        offered = True
                    await self._note_deliveries(self._delivery_states())
                except Exception as error:
                    log.error("cannot note what was delivered: %s", brief(error))
                    wait = _LONGEST_WAIT
                with trio.move_on_after(wait):
                    await changed.receive()

    async def _note_deliveries(self, found: Sequence[tuple[str, bool]]) -> None:
        def job(tx: Tx) -> list[Step[Sale] | None]:
            return [
                self._driver.advance_in(tx, sale_id, machine.Delivered() if accepted else machine.Undeliverable())
                for sale_id, accepted in found
            ]

        if found:
            for step in await self._store.write(job):
                self._driver.acted(step)

    def _offer_again(self, tx: Tx) -> None:
        """The relays may be others than when a result was written: offer it to those, too."""
        rows = tx.all(
            "SELECT o.event AS event FROM sales s JOIN outbox o ON o.subject = s.id AND o.effect = ? WHERE s.state = ?",
            (f"{SALE.name}.{SaleEffect.PUBLISH_RESULT.value}", SaleState.SERVED.value),
        )
        for row in rows:
            outbox.add(tx, Event.from_json(row["event"]), self._pool.urls, at=self._clock.now())

    def _delivery_states(self) -> list[tuple[str, bool]]:
        rows = self._store.read(
            "SELECT s.id AS id, MAX(d.state = 'accepted') AS accepted, MAX(d.state = 'pending') AS pending"
            " FROM sales s JOIN outbox o ON o.subject = s.id AND o.effect = ?"
            " JOIN deliveries d ON d.event_id = o.event_id WHERE s.state = ? GROUP BY s.id",
            (f"{SALE.name}.{SaleEffect.PUBLISH_RESULT.value}", SaleState.SERVED.value),
        )
        return [(row["id"], bool(row["accepted"])) for row in rows if row["accepted"] or not row["pending"]]

    # --- what is signed and booked ----------------------------------------------------------------------------

    def _compose(self, sale: Sale, effect: Effect) -> Event:
        return compose(self._secret, sale, effect, int(self._clock.now()))

    def _book(self, tx: Tx, step: Step[Sale]) -> None:
        """Whatever moved in the record moves in the ledger; what is given back is delivered no more."""
        if step.before.state is SaleState.SERVED and step.after.state in (SaleState.OWED, SaleState.FAILED):
            self._take_back_result(tx, step.after)
        before, after = step.before, step.after
        if (before.paid, before.earned, before.owed) == (after.paid, after.earned, after.owed):
            return
        ledger.sale_moved(
            tx,
            cause=after.id,
            paid=(before.paid, after.paid),
            earned=(before.earned, after.earned),
            owed=(before.owed, after.owed),
            at=self._clock.now(),
        )

    def _take_back_result(self, tx: Tx, sale: Sale) -> None:
        rows = tx.all(
            "SELECT event_id FROM outbox WHERE subject = ? AND effect = ?",
            (sale.id, f"{SALE.name}.{SaleEffect.PUBLISH_RESULT.value}"),
        )
        for row in rows:
            outbox.cancel(tx, row["event_id"], self._clock.now())


def sale_records(store: Store) -> RecordTable[Sale]:
    """The table of sales."""
    return RecordTable(
        SALE,
        Sale,
        "sales",
        store.vault,
        lambda sale: {
            "customer": sale.customer,
            "model": sale.model,
            "price_msats": sale.price,
            "payment_hash": sale.payment_hash,
            "expires_at": sale.expires_at,
            "attempts": sale.attempts,
        },
    )


def _due(sale: Sale) -> float | None:
    if sale.state is SaleState.QUOTED and sale.expires_at is not None:
        return sale.expires_at + _EXPIRY_GRACE
    if sale.state is SaleState.SERVED:
        return sale.created_at + _LATE_PAYMENT + _UNDELIVERED
    return None
