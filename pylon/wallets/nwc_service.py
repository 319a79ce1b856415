"""The home's wallet for others: a Nostr Wallet Connect service (NIP-47), bounded by the purse.

Rules
-----
1. Whoever holds a connection's secret may ask. It may spend what the connection's budget leaves (a rolling day, fees
   included, and so much for each invoice), and see what it has caused itself.
2. A request to pay has one effect, ever: its inbox row, its own row and the intent are written in one transaction,
   before the wallet is called. A request that is refused is written down too, before it is told so, so that it cannot
   be played again later. The same invoice asked for again by the same connection pays nothing, and is answered by what
   became of it; another invoice of the same payment hash is refused.
3. An outcome that is not known is not answered. It stays pending, counts against the budget, and is answered when it
   is known, whether or not anybody still waits.
4. A request that is too old, from too far in the future, or past its expiration pays nothing: it is looked at as it
   comes, and again in the transaction that sets the money aside. That holds at a restart too: what the wallet has never
   heard of by then is not sent any more.
5. Answers come in the cipher of the request; notifications in both. They go by the outbox where money moved, so that
   they leave with the record of it.
6. A connection may ask so often, and so much at once; the others do not feel it.
7. What a connection is told of a refusal names no figures of the home, and nothing of who else uses it.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Mapping
from typing import Any

import trio

from protocols import bolt11, nip47
from protocols.nip01 import Event
from protocols.nip40 import is_expired
from protocols.nip47 import ErrorCode, Failure, Nip47Invalid, Request
from protocols.nip47_methods import (
    HOLD_INVOICE_ACCEPTED,
    PAY_INVOICE,
    PAYMENT_RECEIVED,
    PAYMENT_SENT,
    Paid,
    PayInvoice,
)
from pylon.backoff import Backoff
from pylon.clock import Clock
from pylon.crashpoints import crash_point
from pylon.errors import (
    InvoiceInvalid,
    StoreError,
    WalletError,
    brief,
)
from pylon.money import Msat
from pylon.relays.pool import RelayPool
from pylon.store import inbox, intents, outbox
from pylon.store import wallet_connections as connections
from pylon.store.database import RECORD_SECONDS, Reads, Store, Tx
from pylon.store.intents import INVOICE, Approval, Intent, IntentState
from pylon.store.wallet_connections import Connection, PayRequest
from pylon.wallets.budgets import Limits
from pylon.wallets.nwc_answers import WALLET_SECONDS, Answers, failed, failure_of, is_same, outgoing, payable
from pylon.wallets.nwc_guests import Guest, Witness, connection_limits
from pylon.wallets.nwc_post import Post
from pylon.wallets.nwc_records import LATE
from pylon.wallets.nwc_turned_away import TurnedAway
from pylon.wallets.port import Direction, Payment, Wallet
from pylon.wallets.purse import Failed, Outcome, Purse, Settled, Unknown

log = logging.getLogger(__name__)

CONSUMER = "nwc"
MAX_AGE = 300.0
"""Seconds after which a request pays nothing any more; also how far a client's clock may be wrong."""
MAX_CONTENT = 64 << 10
"""Characters of a request, encrypted."""
CLOSED_SECONDS = 7 * 86_400.0
"""For which a closed connection is told that it is closed."""
_SWEEP_SECONDS = 20.0
_OVERLAP_SECONDS = 5.0


class WalletService:
    """See the module. ``run`` serves until cancelled; it may be run again."""

    def __init__(
        self,
        wallet: Wallet,
        store: Store,
        pool: RelayPool,
        clock: Clock,
        rng: random.Random,
        *,
        alias: str = "Pylon",
        limits: Limits | None = None,
    ) -> None:
        """``alias`` is how the wallet calls itself; ``limits`` bound all programs of the home together."""
        self._wallet = wallet
        self._store = store
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._why: dict[str, str] = {}
        self._purse = Purse(Witness(wallet, self._why), store, clock, limits=connection_limits(clock, limits))
        self._answers = Answers(wallet, store, clock, alias)
        self._guests: dict[str, Guest] = {}
        self._under_way: set[str] = set()
        self._turned_away = TurnedAway(store, CONSUMER, self._tell_too_fast)
        self._waits: dict[str, tuple[float, Backoff]] = {}
        self._kick = trio.Event()
        self._met = trio.Event()
        self._post = Post(pool, clock)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve. Started once the present connections are listened for."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = self._post.nursery = nursery
                self._guests.clear()
                nursery.start_soon(self._keep_settling)
                nursery.start_soon(self._keep_sweeping)
                nursery.start_soon(self._keep_hearing)
                nursery.start_soon(self._turned_away.run)
                await self._follow_connections(task_status)
        finally:
            self._nursery = self._post.nursery = None
            self._under_way.clear()

    # --- listening --------------------------------------------------------------------------------------------

    async def _follow_connections(self, task_status: trio.TaskStatus[None]) -> None:
        """Listen for all connections; when one comes or goes, first listen anew, and then stop the old listening."""
        assert self._nursery is not None
        old: trio.CancelScope | None = None
        started = False
        with self._store.listen(connections.TOPIC) as changed:
            while True:
                known = connections.known(self._store, closed_since=self._clock.now() - CLOSED_SECONDS)
                self._welcome(known)
                await self._announce(known)
                scope = None
                if known:
                    scope = trio.CancelScope()
                    await self._nursery.start(self._listen, scope, known)
                if not started:
                    task_status.started()
                    started = True
                if old is not None:
                    old.cancel()
                old = scope
                try:
                    await changed.receive()
                except trio.EndOfChannel:
                    raise StoreError("the store was closed under the wallet's connections") from None

    def _welcome(self, known: list[Connection]) -> None:
        for connection in known:
            guest = self._guests.get(connection.client)
            if guest is not None:
                guest.connection = connection
                continue
            try:
                key = connections.secret(self._store, self._store.vault, connection.client)
            except StoreError as error:
                log.error("wallet connection %s cannot be served: %s", connection.name, error.message)
                continue
            self._guests[connection.client] = Guest(connection, key, refilled_at=trio.current_time())
            self._met.set()
            for url in connection.relays:
                self._pool.add_relay(url)

    async def _announce(self, known: list[Connection]) -> None:
        """Publish what we can (kind 13194), where that is news."""
        try:
            methods, notifications = await self._answers.methods(), await self._answers.notifications()
        except Exception as error:
            log.warning("wallet connections are not announced: %s", brief(error))
            return
        now = self._clock.now()
        for connection in known:
            guest = self._guests.get(connection.client)
            if guest is None:
                continue
            address = f"{nip47.INFO}:{connection.service}:"
            said = outbox.newest(self._store, address)
            able = connection.is_open(now)
            event = nip47.build_info(
                guest.secret,
                methods=methods if able else (),
                notifications=notifications if able else (),
                created_at=max(int(now), outbox.last_created_at(self._store, address) + 1),
            )
            if said is None or (said.content, said.tags) != (event.content, event.tags):
                await self._store.write(
                    functools.partial(
                        outbox.add,
                        event=event,
                        relays=connection.relays,
                        effect="nwc.info",
                        subject=connection.client,
                        at=now,
                    )
                )

    async def _listen(
        self, scope: trio.CancelScope, known: list[Connection], *, task_status: trio.TaskStatus[None]
    ) -> None:
        wanted = nip47.service_filter(
            [connection.service for connection in known],
            [connection.client for connection in known],
            since=int(self._clock.now() - MAX_AGE),
        )
        relays = {url for connection in known for url in connection.relays}
        with scope:
            async with self._pool.subscribe([wanted], relays=relays) as subscription:
                # What relays have stored is not waited for long: some of them may be down.
                with trio.move_on_after(_OVERLAP_SECONDS):
                    while any(self._pool.is_connected(url) and not subscription.stored_from(url) for url in relays):
                        await subscription.progress.wait()
                task_status.started()
                async for received in subscription:
                    self._take(received.event)

    def _take(self, event: Event) -> None:
        """Take a request, or refuse it: nothing is waited for here."""
        guest = self._guests.get(event.pubkey)
        if guest is None or event.tag("p") != guest.connection.service or event.id in self._turned_away:
            return
        now = self._clock.now()
        if len(event.content) > MAX_CONTENT or is_expired(event, now):
            log.debug("%s: a request that is too long, or expired", guest.connection.name)
            return
        assert self._nursery is not None
        if not guest.may_ask(trio.current_time()):
            return self._turned_away.add(guest, event)
        guest.working += 1
        self._nursery.start_soon(self._handle, guest, event)

    async def _tell_too_fast(self, guest: Guest, event: Event) -> None:
        failure = Failure(ErrorCode.RATE_LIMITED, "too many requests: try again in a few seconds")
        await self._post.refuse_unread(guest, event, failure)

    async def _handle(self, guest: Guest, event: Event) -> None:
        try:
            await self._serve(guest, event)
        except Exception as error:
            # Nothing is answered: what was written down before it broke is seen to its end, the rest did not happen.
            log.error("%s: request %s broke: %s", guest.connection.name, event.id[:16], brief(error))
        finally:
            guest.working -= 1

    async def _serve(self, guest: Guest, event: Event) -> None:
        now = self._clock.now()
        connection = guest.connection
        if not connection.is_open(now):
            return await self._post.refuse_unread(
                guest, event, Failure(ErrorCode.UNAUTHORIZED, "this wallet connection is closed")
            )
        if nip47.asked_encryption(event) is None:
            return await self._post.refuse_unread(
                guest, event, Failure(ErrorCode.UNSUPPORTED_ENCRYPTION, "nip44_v2 and nip04 are spoken here")
            )
        try:
            request = nip47.open_request(event, guest.secret)
        except Nip47Invalid as error:
            log.debug("%s: a request that cannot be read: %s", connection.name, error)
            return None
        if abs(now - event.created_at) > MAX_AGE:
            stale = WalletError("the request's time is not ours: is the clock right?")
            if request.method == PAY_INVOICE:
                # Written down, so that one from the future is not paid when its time has come.
                return await self._refuse(guest, request, stale)
            answer: Mapping[str, Any] | Failure = failure_of(stale)
            self._post.send(guest, self._post.response(guest, request.id, request.method, request.encryption, answer))
            return None
        if request.method == PAY_INVOICE:
            return await self._pay(guest, request)
        answer = await self._answers.answer(connection, request)
        self._post.send(guest, self._post.response(guest, request.id, request.method, request.encryption, answer))
        return None

    # --- paying -----------------------------------------------------------------------------------------------

    async def _pay(self, guest: Guest, request: Request) -> None:
        taken = connections.find_request(self._store, request.id)
        if taken is not None or inbox.seen(self._store, CONSUMER, request.id):
            return await self._tell_again(guest, taken)
        try:
            text, invoice, amount = payable(PayInvoice.read(request.params))
        except (Nip47Invalid, WalletError) as error:
            return await self._refuse(guest, request, error)
        there = intents.find(self._store, invoice.payment_hash)
        if there is None or there.scope != guest.connection.scope:
            try:
                await self._answers.check(guest.connection, text, invoice, amount)
            except Exception as error:
                return await self._refuse(guest, request, error)
        intent = await self._store.write(lambda tx: self._reserve(tx, guest, request, text, invoice, amount))
        if intent is None:
            return await self._tell_again(guest, connections.find_request(self._store, request.id))
        if intent.state is IntentState.PENDING:
            await self._drive(intent)
        return None

    def _reserve(
        self, tx: Tx, guest: Guest, request: Request, text: str, invoice: bolt11.Invoice, amount: Msat
    ) -> Intent | None:
        """Take the request, and set aside what it costs, in one.

        ``None`` where nothing is to be paid: it was taken before, or it was refused, which is written down.
        """
        now = tx.clock.now()
        if not inbox.take(tx, CONSUMER, request.id, now):
            return None
        connection = guest.connection
        note = functools.partial(
            connections.add_request,
            tx,
            request_id=request.id,
            client=connection.client,
            encryption=request.encryption,
            created_at=request.created_at,
            expires_at=request.expires_at,
            at=now,
        )
        # The wallet was asked meanwhile, and that takes its time.
        refused = self._too_late(tx, connection, request, now)
        there = intents.find(tx, invoice.payment_hash)
        if refused is None and there is not None:
            if there.scope != connection.scope:
                refused = failure_of(InvoiceInvalid("this wallet has had the invoice before: ask for a new one"))
            elif not is_same(tx, self._store, there, text, invoice, amount):
                refused = failure_of(InvoiceInvalid("another invoice of this payment hash was asked for before"))
        if refused is not None:
            note(error=refused)
            return None
        if there is not None:
            # Asked for again, by another request: it is paid once, and both are answered.
            note(payment_hash=invoice.payment_hash)
            self._answer_all(tx, there)
            return there
        try:
            intent = self._purse.reserve(
                tx,
                cause=f"nwc:{request.id}",
                bolt11=text,
                payment_hash=invoice.payment_hash,
                amount=amount,
                scope=connection.scope,
                purpose=INVOICE,
            )
        except WalletError as error:
            note(error=failure_of(error))
            return None
        note(payment_hash=invoice.payment_hash)
        return intent

    def _too_late(self, source: Reads, connection: Connection, request: Request, now: float) -> Failure | None:
        """Why a request that was good when it came pays nothing any more."""
        if not connections.get(source, connection.client).is_open(now):
            return Failure(ErrorCode.UNAUTHORIZED, "this wallet connection is closed")
        if abs(now - request.created_at) > MAX_AGE or (request.expires_at is not None and now >= request.expires_at):
            return failure_of(WalletError("the request has expired"))
        return None

    async def _refuse(self, guest: Guest, request: Request, error: Exception) -> None:
        """A request to pay that comes to nothing is written down as answered, and never looked at again."""
        failure = failure_of(error)

        def write(tx: Tx) -> bool:
            now = tx.clock.now()
            if not inbox.take(tx, CONSUMER, request.id, now):
                return False
            connections.add_request(
                tx,
                request_id=request.id,
                client=guest.connection.client,
                encryption=request.encryption,
                created_at=request.created_at,
                expires_at=request.expires_at,
                at=now,
                error=failure,
            )
            return True

        if await self._store.write(write):
            self._post.send(guest, self._post.response(guest, request.id, PAY_INVOICE, request.encryption, failure))

    async def _tell_again(self, guest: Guest, taken: PayRequest | None) -> None:
        """A request that came before: what it was answered is said again, and nothing is done."""
        if taken is None or taken.answered_at is None:
            return
        answer: Mapping[str, Any] | Failure | None = taken.error
        if answer is None and taken.payment_hash is not None:
            intent = intents.find(self._store, taken.payment_hash)
            answer = None if intent is None else self._outcome(self._store, intent)
        if answer is not None:
            self._post.send(guest, self._post.response(guest, taken.id, PAY_INVOICE, taken.encryption, answer))

    async def _drive(self, intent: Intent, *, reconcile: bool = False) -> None:
        """Pay, or find out what became of it, and write that down with the answers to all who asked."""
        if intent.id in self._under_way:
            return
        self._under_way.add(intent.id)
        try:
            # What the wallet has said is written down, whoever goes away meanwhile.
            with trio.CancelScope(shield=True) as scope:
                crash_point("nwc.pay.before")
                outcome = await (self._purse.reconcile if reconcile else self._purse.send)(intent)
                crash_point("nwc.pay.after")
                scope.deadline = trio.current_time() + RECORD_SECONDS
                await self._store.write(lambda tx: self._record(tx, intent, outcome))
        finally:
            self._under_way.discard(intent.id)
        if isinstance(outcome, Unknown):
            self._wait_longer(intent)
        else:
            self._waits.pop(intent.id, None)

    def _record(self, tx: Tx, intent: Intent, outcome: Outcome) -> None:
        self._purse.record(tx, intent, outcome)
        now = intents.get(tx, intent.id)
        if now.state is IntentState.PENDING:
            return
        self._answer_all(
            tx,
            now,
            own_fault=isinstance(outcome, Failed) and outcome.ours,
            detail=self._why.pop(intent.idempotency_key, ""),
        )
        if isinstance(outcome, Settled) and intent.state is IntentState.PENDING:
            guest = self._guests.get(connections.by_scope(tx, now.scope).client)
            if guest is not None:
                told = outgoing(tx, self._store, now, now.fee_msats or Msat(0))
                self._post.notify(tx, guest, PAYMENT_SENT, told)

    def _answer_all(self, tx: Tx, intent: Intent, own_fault: bool = False, detail: str = "") -> None:
        """Answer every request that waits for this payment, once its outcome is known."""
        answer = self._outcome(tx, intent, own_fault, detail)
        if answer is None:
            return
        now = tx.clock.now()
        for waiting in connections.open_requests(tx, intent.payment_hash):
            guest = self._guests.get(waiting.client)
            connections.answered(tx, waiting.id, now)
            if guest is not None:
                response = self._post.response(guest, waiting.id, PAY_INVOICE, waiting.encryption, answer)
                outbox.add(tx, response, guest.connection.relays, "nwc.response", guest.connection.client, at=now)

    def _outcome(
        self, source: Reads, intent: Intent, own_fault: bool = False, detail: str = ""
    ) -> Mapping[str, Any] | Failure | None:
        match intent.state:
            case IntentState.SETTLED:
                preimage = intents.preimage(source, self._store.vault, intent.id)
                fee = intent.fee_msats or 0
                # A wallet that keeps the proof to itself has paid all the same.
                return {"preimage": "", "fees_paid": fee} if preimage is None else Paid(preimage, fee).result()
            case IntentState.FAILED:
                return failed(intent, own_fault, detail)
            case _:
                return None

    # --- what is not known ------------------------------------------------------------------------------------

    def _wait_longer(self, intent: Intent) -> None:
        _, backoff = self._waits.get(intent.id, (0.0, Backoff(self._rng)))
        self._waits[intent.id] = (trio.current_time() + backoff.wait(0.0), backoff)
        self._kick.set()

    async def _keep_settling(self) -> None:
        """Find out what became of payments that nobody drives: at the start, and ever slower."""
        while True:
            self._kick = trio.Event()
            try:
                nap = await self._settle_due()
            except StoreError as error:
                log.error("payments of wallet connections cannot be looked into: %s", error.message)
                nap = 10.0
            with trio.move_on_after(nap):
                await self._kick.wait()

    async def _settle_due(self) -> float:
        """One look at all that waits; returns the seconds until the next."""
        nap = 60.0
        for payment_hash in dict.fromkeys(r.payment_hash for r in connections.open_requests(self._store)):
            intent = None if payment_hash is None else intents.find(self._store, payment_hash)
            if intent is None or intent.id in self._under_way:
                continue
            due = self._waits.get(intent.id, (0.0, None))[0]
            if due > trio.current_time():
                nap = min(nap, due - trio.current_time())
                continue
            if intent.state is not IntentState.PENDING:
                await self._store.write(functools.partial(self._answer_all, intent=intent))
                continue
            if self._is_fresh(intent):
                await self._drive(intent, reconcile=True)
            else:
                await self._look_up(intent)
            nap = min(nap, max(self._waits.get(intent.id, (0.0, None))[0] - trio.current_time(), 0.5))
        return nap

    def pays(self, intent: Intent) -> bool:
        """Whether this service sees to an intent."""
        if self._nursery is None or not connections.is_scope(intent.scope):
            return False
        return intent.id in self._under_way or bool(connections.open_requests(self._store, intent.payment_hash))

    def _is_fresh(self, intent: Intent) -> bool:
        """Whether somebody may still want it to be paid: who asked, or the operator, who has said yes since."""
        now = self._clock.now()
        if intents.get(self._store, intent.id).approval is Approval.GIVEN:
            return connections.by_scope(self._store, intent.scope).is_open(now)
        for asked in connections.open_requests(self._store, intent.payment_hash):
            if now - asked.created_at <= MAX_AGE and (asked.expires_at is None or now < asked.expires_at):
                return connections.get(self._store, asked.client).is_open(now)
        return False

    async def _look_up(self, intent: Intent) -> None:
        """Ask the wallet what became of a payment, and send nothing."""
        self._under_way.add(intent.id)
        try:
            outcome = await self._purse.look(intent)
            # A request of an earlier life may still be on its way to the wallet; not after the invoice's end.
            if outcome is None:
                invoice = bolt11.decode(intents.invoice(self._store, self._store.vault, intent.id))
                if self._clock.now() > invoice.expires_at + LATE:
                    outcome = Failed("it was never sent")
            if outcome is not None and not isinstance(outcome, Unknown):
                await self._store.write(functools.partial(self._record, intent=intent, outcome=outcome))
        finally:
            self._under_way.discard(intent.id)
        if outcome is None or isinstance(outcome, Unknown):
            self._wait_longer(intent)
        else:
            self._waits.pop(intent.id, None)

    # --- what comes in ----------------------------------------------------------------------------------------

    async def _keep_hearing(self) -> None:
        """Tell a connection of its invoices as they are paid, and settle what was not known."""
        backoff = Backoff(self._rng)
        # Listening costs some wallets a poll of their own: not before there is somebody to tell.
        await self._met.wait()
        while True:
            began = trio.current_time()
            try:
                async with self._wallet.events() as events:
                    async for payment in events:
                        await self._heard(payment)
            except Exception as error:
                log.warning("the wallet's events broke off: %s", brief(error))
            await trio.sleep(backoff.wait(trio.current_time() - began))

    async def _heard(self, payment: Payment) -> None:
        if payment.direction is Direction.RECEIVED:
            if payment.payment_hash and connections.find_invoice(self._store, payment.payment_hash) is not None:
                await self._look_at(payment.payment_hash, payment.preimage)
            return
        intent = intents.find(self._store, payment.payment_hash) if payment.payment_hash else None
        if intent is not None and intent.id in self._waits:
            _, waited = self._waits[intent.id]
            self._waits[intent.id] = (0.0, waited)
            self._kick.set()

    async def _keep_sweeping(self) -> None:
        """Wallets may miss telling: look at what waits to be paid now and then."""
        while True:
            try:
                for made in connections.unpaid_invoices(self._store, self._clock.now() - LATE):
                    await self._look_at(made.payment_hash, None)
            except StoreError as error:
                log.error("invoices of wallet connections cannot be looked into: %s", error.message)
            except Exception as error:
                log.warning("the wallet cannot tell of invoices: %s", brief(error))
            await trio.sleep(_SWEEP_SECONDS)

    async def _look_at(self, payment_hash: str, preimage: str | None) -> None:
        with trio.fail_after(WALLET_SECONDS):
            issued = await self._wallet.lookup_invoice(payment_hash)
        made = connections.find_invoice(self._store, payment_hash)
        guest = None if made is None else self._guests.get(made.client)
        if issued is None or made is None or guest is None:
            return
        settled_at = issued.settled_at
        if settled_at is None and issued.held <= 0:
            return
        told = self._answers.incoming(made, issued, preimage)
        type, step = (HOLD_INVOICE_ACCEPTED, "accepted") if settled_at is None else (PAYMENT_RECEIVED, "settled")

        def write(tx: Tx) -> None:
            if connections.mark_told(tx, payment_hash, step, settled_at):
                self._post.notify(tx, guest, type, told)

        await self._store.write(write)
