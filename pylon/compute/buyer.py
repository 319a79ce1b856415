"""Buys thoughts: the driver of ``pylon.compute.purchase``."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
from collections.abc import Iterator

import attrs
import trio

from protocols import entropy
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip89 import Announcement
from protocols.nip90 import (
    FEEDBACK,
    JOB_TEXT,
    Feedback,
    FeedbackStatus,
    JobInvalid,
    build_request,
    parse_feedback,
    parse_result,
    result_kind,
)
from pylon.clock import Clock
from pylon.compute import purchase as machine
from pylon.compute.discovery import Market, Offer, rank, why_none
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseEffect, PurchaseState
from pylon.compute.quotes import check_quote
from pylon.driver import Driver
from pylon.errors import NotFound, WalletError
from pylon.machine import Effect
from pylon.money import Msat
from pylon.relays.pool import Received, RelayPool
from pylon.relays.subscription import OVERLAP
from pylon.store import cursors, inbox, intents
from pylon.store.database import Store, Tx
from pylon.store.records import RecordTable, Step
from pylon.together import handle_together
from pylon.wallets.port import WalletInfo
from pylon.wallets.purse import Failed, Outcome, Purse, Settled, Unknown

log = logging.getLogger(__name__)

Paid = machine.PaymentSettled | machine.PaymentFailed | machine.PaymentRefused
"""What a payment comes to in the end."""
Reply = machine.Answered | machine.Quoted | machine.TurnedAway | machine.Credited
"""What a provider's event may mean to a purchase."""

_CONSUMER = "buyer"
_REQUEST_LIFE = 3_600
"""Seconds after which a request asks to be forgotten (NIP-40)."""
_FIRST_LOOK = 0.2
_LONGEST_LOOK = 30.0
"""Seconds between two questions to a wallet that does not know yet."""
_DISTRUST = 7 * 86_400.0
"""Seconds for which a provider that kept our money is asked last."""


@attrs.frozen
class BuyerSettings:
    network: str
    """As providers announce it."""
    invoice_prefix: str
    """The network part of a payable invoice's prefix."""
    discovery_seconds: float = 3.0
    patience_seconds: float = 10.0
    """How long to go on looking while nobody announces anything at all."""
    quote_seconds: float = 10.0
    answer_seconds: float = 180.0


class Buyer:
    """Drives this home's purchases. One instance a store."""

    def __init__(
        self,
        *,
        secret: SecretKey,
        store: Store,
        pool: RelayPool,
        purse: Purse,
        wallet: WalletInfo,
        clock: Clock,
        rng: random.Random,
        settings: BuyerSettings,
    ) -> None:
        self._secret = secret
        self._store = store
        self._pool = pool
        self._purse = purse
        self._wallet = wallet
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._signed: dict[str, Event] = {}
        self._market = Market(pool, JOB_TEXT, settings.discovery_seconds)
        self._watchers: dict[str, set[trio.MemorySendChannel[str]]] = {}
        self.records = purchase_records(store)
        self._driver = Driver(
            self.records,
            store,
            clock,
            rng,
            handlers={
                PurchaseEffect.DISCOVER: self._discover,
                PurchaseEffect.PAY: self._pay,
                PurchaseEffect.RECONCILE: self._reconcile,
            },
            compose=self._compose,
            book=self._book,
            due=_due,
            attend=self._attend,
            relays=lambda: pool.urls,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume unfinished purchases, then listen for replies until cancelled."""
        me = self._secret.public.hex
        since = cursors.since(self._store, _CONSUMER, OVERLAP)
        filters = [Filter(kinds=[FEEDBACK, result_kind(JOB_TEXT)], tags={"p": [me]})]
        async with self._pool.subscribe(filters, since=since) as replies, trio.open_nursery() as nursery:
            await nursery.start(self._driver.run)
            task_status.started()
            await handle_together(replies, self._deliver)

    async def buy(
        self,
        prompt: str,
        *,
        bid: Msat,
        max_tokens: int,
        model: str | None = None,
        provider: str | None = None,
    ) -> Purchase:
        """Begin a purchase and return it as first written; ``finished`` waits for its end."""
        fresh = Purchase(
            id=entropy.random_bytes(16).hex(),
            created_at=self._clock.now(),
            prompt=prompt,
            max_tokens=max_tokens,
            bid=bid,
            model=model,
            wanted=provider,
        )
        begun = await self._driver.begin(fresh, machine.Begun())
        assert begun is not None, "nothing bars a new purchase"
        return begun

    @contextlib.contextmanager
    def watch(self, purchase_id: str) -> Iterator[trio.MemoryReceiveChannel[str]]:
        """Partial results as they come, each all the words so far. Some may be missing, or come twice."""
        put, got = trio.open_memory_channel[str](16)
        watchers = self._watchers.setdefault(purchase_id, set())
        watchers.add(put)
        try:
            with put, got:
                yield got
        finally:
            watchers.discard(put)
            if not watchers:
                self._watchers.pop(purchase_id, None)

    async def finished(self, purchase_id: str) -> Purchase:
        """Wait until a purchase has ended (``lost`` and ``credited`` are ends too)."""
        with self._store.listen(f"purchases:{purchase_id}") as changed:
            while True:
                row = self._store.one("SELECT state FROM purchases WHERE id = ?", (purchase_id,))
                if row is None:
                    raise NotFound(f"no purchase {purchase_id}", "pylon job list shows them")
                if row["state"] in PURCHASE.final:
                    record = self.records.load(self._store, purchase_id)
                    assert record is not None, "nothing deletes a purchase"
                    return record
                await changed.receive()

    # --- effects ----------------------------------------------------------------------------------------------

    async def _discover(self, record: Purchase) -> machine.Chosen | machine.NoneLeft:
        found = [] if record.tried else self._market.remembered()
        offers = self._fitting(record, found)
        if not offers or not offers[0].announced:
            found = await self._announced()
            offers = self._fitting(record, found)
        if not offers:
            return machine.NoneLeft(
                why_none(
                    found,
                    bid=record.bid,
                    model=record.model,
                    network=self._settings.network,
                    tried=record.tried,
                    own=self._secret.public.hex,
                    wanted=record.wanted,
                )
            )
        offer, now = offers[0], self._clock.now()
        request = build_request(
            self._secret,
            prompt=record.prompt,
            provider=PublicKey.from_hex(offer.provider),
            model=record.model,
            max_tokens=record.max_tokens,
            bid_msats=offer.ceiling,
            relays=tuple(self._pool.urls),
            created_at=int(now),
            expiration=int(now) + _REQUEST_LIFE,
        )
        # One at a time for a purchase: one that was not taken up by the machine is of no more use.
        self._signed[record.id] = request
        return machine.Chosen(offer.provider, offer.ceiling, request.id, now + self._settings.quote_seconds)

    def _fitting(self, record: Purchase, found: list[Announcement]) -> list[Offer]:
        return rank(
            found,
            bid=record.bid,
            model=record.model,
            network=self._settings.network,
            excluded=(*record.tried, self._secret.public.hex),
            wanted=record.wanted,
            distrusted=self._distrusted(),
        )

    async def _announced(self) -> list[Announcement]:
        """Who sells. Where nobody does, look again for a while: a provider may be starting, a relay coming back."""
        end = self._clock.monotonic() + self._settings.patience_seconds
        while True:
            found = await self._market.ask()
            if found or self._clock.monotonic() >= end:
                return found
            await trio.sleep(self._rng.uniform(0.5, 1.5))

    def _distrusted(self) -> list[str]:
        rows = self._store.read(
            "SELECT DISTINCT provider FROM purchases WHERE state = ? AND updated_at > ?",
            (PurchaseState.LOST.value, self._clock.now() - _DISTRUST),
        )
        return [row["provider"] for row in rows]

    async def _pay(self, record: Purchase) -> Paid:
        outcome = await self._purse.send(intents.by_hash(self._store, _hash(record)), _bolt11(record))
        if isinstance(outcome, Unknown):
            return await self._reconcile(record)
        return self._payment_input(outcome)

    async def _reconcile(self, record: Purchase) -> Paid:
        """Ask until the wallet knows; a pending payment may take as long as it likes."""
        wait = _FIRST_LOOK
        while True:
            intent = intents.by_hash(self._store, _hash(record))
            outcome = await self._purse.reconcile(intent, _bolt11(record))
            if not isinstance(outcome, Unknown):
                return self._payment_input(outcome)
            await trio.sleep(wait * (0.5 + self._rng.random()))
            wait = min(wait * 2, _LONGEST_LOOK)

    async def _attend(self, record: Purchase) -> machine.TurnedAway | machine.AnswerOverdue:
        if record.state is PurchaseState.REQUESTED and record.request_id is not None:
            return machine.TurnedAway(record.request_id, "no quote in time")
        return machine.AnswerOverdue()

    def _compose(self, record: Purchase, effect: Effect) -> Event:
        """The request that ``_discover`` has signed: the only event of a purchase."""
        return self._signed.pop(record.id)

    def _payment_input(self, outcome: Settled | Failed) -> Paid:
        match outcome:
            case Settled(amount, fee, preimage):
                answer_by = self._clock.now() + self._settings.answer_seconds
                return machine.PaymentSettled(amount, fee, preimage, answer_by)
            case Failed(reason, ours=True):
                return machine.PaymentRefused(reason)
            case Failed(reason):
                return machine.PaymentFailed(reason)

    def _book(self, tx: Tx, step: Step[Purchase]) -> None:
        before, after = step.before, step.after
        if after.request_id is not None and after.request_id != before.request_id:
            tx.execute(
                "INSERT INTO purchase_requests (request_id, purchase_id, provider, created_at) VALUES (?, ?, ?, ?)",
                (after.request_id, after.id, after.provider, self._clock.now()),
            )
        if before.state is PurchaseState.REQUESTED and after.state is PurchaseState.PAYING:
            self._purse.reserve(
                tx, cause=after.id, bolt11=_bolt11(after), payment_hash=_hash(after), amount=after.quoted
            )
        elif before.state is PurchaseState.PAYING and after.state is not PurchaseState.PAYING:
            intent = intents.by_hash(tx, _hash(before))
            outcome: Outcome = (
                Settled(after.paid, after.fee, after.preimage) if after.paid > 0 else Failed(after.reason)
            )
            self._purse.record(tx, intent, outcome)

    # --- replies ----------------------------------------------------------------------------------------------

    async def _deliver(self, received: Received) -> None:
        event = received.event
        await inbox.deliver(self._store, _CONSUMER, event.id, functools.partial(self._take, event))

    async def _take(self, event: Event) -> None:
        """Act on a reply if it comes from the provider that the request was sent to; strangers mean nothing."""
        request_id = event.tag("e")
        row = self._store.one("SELECT purchase_id, provider FROM purchase_requests WHERE request_id = ?", (request_id,))
        if request_id is None or row is None or row["provider"] != event.pubkey:
            return
        record = self.records.load(self._store, row["purchase_id"])
        if record is None or record.request_id != request_id or inbox.seen(self._store, _CONSUMER, event.id):
            return
        message = self._understand(record, event)
        if isinstance(message, Feedback):
            self._pass_on(record, message.content)
            return
        if message is None:
            return  # means nothing now: not worth a row, for a provider could send any number of these

        def admit(tx: Tx) -> bool:
            cursors.advance(tx, _CONSUMER, event.created_at)
            return inbox.take(tx, _CONSUMER, event.id, self._clock.now())

        try:
            await self._driver.advance(record.id, message, admit)
        except WalletError as error:
            log.warning("purchase %s: quote refused: %s", record.id[:16], error.message)
            await self._driver.advance(record.id, machine.TurnedAway(request_id, error.message), admit)

    def _pass_on(self, record: Purchase, text: str) -> None:
        """Words on their way: for whoever watches, and kept nowhere."""
        for watcher in self._watchers.get(record.id, ()):
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                watcher.send_nowait(text)

    def _understand(self, record: Purchase, event: Event) -> Reply | Feedback | None:
        """The input that a reply is; a ``Feedback`` for a partial result; ``None`` for what means nothing."""
        try:
            if event.kind != FEEDBACK:
                result = parse_result(event, self._secret)
                return machine.Answered(result.request_id, event.id, result.text)
            feedback = parse_feedback(event, self._secret)
        except JobInvalid as error:
            log.warning("purchase %s: unreadable reply: %s", record.id[:16], error)
            return None
        return self._understand_feedback(record, feedback)

    def _understand_feedback(self, record: Purchase, feedback: Feedback) -> Reply | Feedback | None:
        match feedback.status:
            case FeedbackStatus.PAYMENT_REQUIRED if record.state is PurchaseState.REQUESTED:
                return check_quote(
                    record,
                    feedback,
                    now=self._clock.now(),
                    network_prefix=self._settings.invoice_prefix,
                    own_payee=self._wallet.node_pubkey,
                    answer_seconds=self._settings.answer_seconds,
                )
            case FeedbackStatus.PARTIAL:
                return feedback
            case FeedbackStatus.ERROR if feedback.credit_msats:
                return machine.Credited(feedback.request_id, Msat(feedback.credit_msats), _printable(feedback.message))
            case FeedbackStatus.ERROR:
                return machine.TurnedAway(feedback.request_id, _printable(feedback.message) or "refused")
            case _:
                return None


def purchase_records(store: Store) -> RecordTable[Purchase]:
    """The table of purchases."""
    return RecordTable(
        PURCHASE,
        Purchase,
        "purchases",
        store.vault,
        lambda record: {
            "provider": record.provider,
            "request_id": record.request_id,
            "payment_hash": record.payment_hash,
            "paid_msats": record.paid,
            "fee_msats": record.fee,
            "deadline": _due(record),
        },
    )


def _due(record: Purchase) -> float | None:
    if record.state is PurchaseState.REQUESTED:
        return record.quote_by
    return record.answer_by if record.state is PurchaseState.PAID else None


def _hash(record: Purchase) -> str:
    assert record.payment_hash is not None, "a quote was taken"
    return record.payment_hash


def _bolt11(record: Purchase) -> str:
    assert record.bolt11 is not None, "a quote was taken"
    return record.bolt11


def _printable(words: str) -> str:
    """A stranger's words, fit for a terminal: without control and direction characters, and cut."""
    return "".join(char if char.isprintable() else " " for char in words[:300]).strip()
