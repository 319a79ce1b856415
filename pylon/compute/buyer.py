"""Buys thoughts: the driver of ``pylon.compute.purchase``, for the home and for each of its agents.

Rules
-----
1. A purchase belongs to an *owner*: '' is the home itself, else an agent's public key (hex). Its requests are signed by
   the owner's key, paid from the owner's purse, and answered to the owner's key.
2. Owners share the market and what is known of its providers; they share no money. An owner buys neither from its own
   key nor from whoever is paid into its own wallet.
3. Replies to an owner are listened for only while it has something to expect, and from before its request goes out.
   What ended ``lost`` within a day is remembered then, too. To the home one always listens.
4. An owner that is gone harms no other: what it sought is given up, what it pays waits for it, and what the wallet has
   said of a payment is booked in any case.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterator, Sequence

import attrs
import trio

from protocols import entropy
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip09 import build_deletion
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
from pylon.compute.purchases import due, purchase_records
from pylon.compute.quotes import check_quote
from pylon.compute.replies import Replies
from pylon.driver import Driver
from pylon.errors import NotFound, StoreError, WalletError, brief
from pylon.machine import Effect
from pylon.money import Msat
from pylon.relays.pool import Received, RelayPool
from pylon.relays.subscription import OVERLAP
from pylon.store import cursors, freeze, inbox, intents, outbox
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.together import handle_together
from pylon.wallets.port import WalletInfo
from pylon.wallets.purse import Failed, Outcome, Purse, Settled, Unknown, book_outcome

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
_HOPE = 86_400.0
"""Seconds for which what was lost is listened for."""
_UNFINISHED = tuple(state.value for state in PURCHASE.states() if state not in PURCHASE.final)
_IS_UNFINISHED = f"state IN ({','.join('?' * len(_UNFINISHED))})"


@attrs.frozen
class Account:
    """What an owner buys with."""

    owner: str
    secret: SecretKey
    """Signs its requests; replies are sealed for it."""
    purse: Purse
    wallet: WalletInfo
    relays: tuple[str, ...] | None = None
    """Where it asks and listens; none: on all relays of the home. The pool must have them."""


Accounts = Callable[[str], Account]
"""The account of an owner, asked for anew at each step: keep it cheap. Raises ``NotFound`` for one that is gone."""


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
    """Drives the purchases of a home and its agents. One instance a store."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        store: Store,
        pool: RelayPool,
        clock: Clock,
        rng: random.Random,
        settings: BuyerSettings,
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._signed: dict[str, Event] = {}
        self._market = Market(pool, clock, JOB_TEXT, settings.discovery_seconds)
        self._replies = Replies(pool, self._deliver)
        self._listening: dict[str, str] = {}
        """Owners that expect something, and their keys."""
        self._ended: set[str] = set()
        """Owners of which a purchase has ended."""
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
            due=due,
            attend=self._attend,
            relays=lambda record: self._relays(self._accounts(record.owner)),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume unfinished purchases, then listen for replies until cancelled."""
        home = self._accounts("")
        filters = [Filter(kinds=[FEEDBACK, result_kind(JOB_TEXT)], tags={"p": [home.secret.public.hex]})]
        self._listening.clear()
        async with (
            self._pool.subscribe(filters, since=self._since(""), relays=home.relays or None) as replies,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._replies.run)
            await self._listen_again()
            await nursery.start(self._leave_in_time)
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
        owner: str = "",
        scope: str = "",
        params: Sequence[tuple[str, str]] = (),
        purchase_id: str | None = None,
    ) -> Purchase:
        """Begin a purchase and return it as first written; ``finished`` waits for its end.

        :param scope: what it is a part of, for its owner's budgets.
        :param params: what else the request asks for (NIP-90).
        :param purchase_id: with it, a purchase that is there already is returned as it stands, and nothing begun.

        Raises ``NotFound`` for an owner that is not there, ``WalletFrozen``, ``ValueError`` for an id that another
        owner has used.
        """
        self._accounts(owner)
        fresh = Purchase(
            id=purchase_id or entropy.random_bytes(16).hex(),
            created_at=self._clock.now(),
            prompt=prompt,
            max_tokens=max_tokens,
            bid=bid,
            model=model,
            wanted=provider,
            owner=owner,
            scope=scope,
            params=tuple((name, value) for name, value in params),
        )

        def admit(tx: Tx) -> bool:
            if tx.one("SELECT 1 FROM purchases WHERE id = ?", (fresh.id,)) is not None:
                return False
            freeze.check(tx)
            return True

        begun = await self._driver.begin(fresh, machine.Begun(), admit)
        if begun is None:
            begun = self.records.load(self._store, fresh.id)
            assert begun is not None, "nothing deletes a purchase"
            if begun.owner != owner:
                raise ValueError("another owner has a purchase of this id")
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

    async def give_up(self, purchase_id: str, reason: str) -> bool:
        """End a purchase for which nothing is being paid yet; whether it has ended by this.

        Its provider is told in public, by a deletion request (kind 5) that says nothing of ``reason``.
        """
        return await self._driver.advance(purchase_id, machine.GivenUp(reason)) is not None

    def remembered(self) -> list[Announcement]:
        """Who sells, as it was heard a moment ago; nobody, where that is long ago."""
        return self._market.remembered()

    async def announced(self) -> list[Announcement]:
        """Who sells, as it was heard a moment ago or as the relays say now."""
        return self.remembered() or await self._market.ask()

    def pays(self, purchase_id: str) -> bool:
        """Whether it is paying for this purchase, and sees to the payment's end. Raises ``SealError``."""
        record = self.records.load(self._store, purchase_id)
        return record is not None and record.state is PurchaseState.PAYING

    # --- who listens ------------------------------------------------------------------------------------------

    def _since(self, owner: str) -> int:
        """From when on replies to an owner matter: its oldest purchase that is unfinished, or was lost just now."""
        now = self._clock.now()
        row = self._store.one(
            f"SELECT MIN(created_at) AS at FROM purchases WHERE owner = ? AND ({_IS_UNFINISHED}"
            " OR (state = ? AND updated_at > ?))",
            (owner, *_UNFINISHED, PurchaseState.LOST.value, now - _HOPE),
        )
        oldest = now if row is None or row["at"] is None else min(row["at"], now)
        since = max(int(oldest) - OVERLAP, 0)
        read = None if owner else cursors.since(self._store, _CONSUMER, OVERLAP)
        return since if read is None else min(since, read)

    async def _listen(self, account: Account) -> None:
        """See to it that replies to an owner are heard."""
        if account.owner:
            key = self._listening[account.owner] = account.secret.public.hex
            await self._replies.listen(key, account.relays or None, self._since(account.owner))

    async def _listen_again(self) -> None:
        """Listen for all who were waiting when this home went down."""
        waiting = self._store.read(
            f"SELECT DISTINCT owner FROM purchases WHERE owner <> '' AND {_IS_UNFINISHED}", _UNFINISHED
        )
        async with trio.open_nursery() as nursery:
            for row in waiting:
                try:
                    nursery.start_soon(self._listen, self._accounts(row["owner"]))
                except Exception as error:
                    log.warning("nobody listens for %s: %s", row["owner"][:16], brief(error))

    async def _leave_in_time(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stop listening for those that expect nothing any more."""
        with self._store.listen("purchases") as changed:
            task_status.started()
            while True:
                await changed.receive()
                try:
                    for owner in self._ended & self._listening.keys():
                        if not self._expects(owner):
                            self._replies.leave(self._listening.pop(owner))
                    self._ended.clear()
                except StoreError as error:
                    log.error("cannot tell who still expects a reply: %s", error.message)

    def _expects(self, owner: str) -> bool:
        return (
            self._store.one(
                f"SELECT 1 FROM purchases WHERE owner = ? AND {_IS_UNFINISHED} LIMIT 1", (owner, *_UNFINISHED)
            )
            is not None
        )

    def _relays(self, account: Account) -> Sequence[str]:
        return account.relays or self._pool.urls

    # --- effects ----------------------------------------------------------------------------------------------

    async def _discover(self, record: Purchase) -> machine.Chosen | machine.NoneLeft:
        try:
            account = self._accounts(record.owner)
        except NotFound as error:
            return machine.NoneLeft(error.message)
        frozen = freeze.mark(self._store)
        if frozen is not None:
            return machine.NoneLeft(frozen.words)
        own = account.secret.public.hex
        found = [] if record.tried else self._market.remembered()
        offers = self._fitting(record, own, found)
        if not offers or not offers[0].announced:
            found = await self._announced()
            offers = self._fitting(record, own, found)
        if not offers:
            return machine.NoneLeft(
                why_none(
                    found,
                    bid=record.bid,
                    model=record.model,
                    network=self._settings.network,
                    tried=record.tried,
                    own=own,
                    wanted=record.wanted,
                )
            )
        await self._listen(account)
        offer, now = offers[0], self._clock.now()
        request = build_request(
            account.secret,
            prompt=record.prompt,
            provider=PublicKey.from_hex(offer.provider),
            model=record.model,
            max_tokens=record.max_tokens,
            bid_msats=offer.ceiling,
            relays=tuple(self._relays(account)),
            created_at=int(now),
            expiration=int(now) + _REQUEST_LIFE,
            params=record.params,
        )
        fresh = self.records.load(self._store, record.id)
        if fresh is None or fresh.state is not record.state:
            return machine.NoneLeft("it was given up")
        # One at a time for a purchase: one that was not taken up by the machine is of no more use.
        self._signed[record.id] = request
        return machine.Chosen(offer.provider, offer.ceiling, request.id, now + self._settings.quote_seconds)

    def _fitting(self, record: Purchase, own: str, found: list[Announcement]) -> list[Offer]:
        return rank(
            found,
            bid=record.bid,
            model=record.model,
            network=self._settings.network,
            excluded=(*record.tried, own),
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
        try:
            purse = self._accounts(record.owner).purse
        except NotFound:
            return await self._reconcile(record)
        outcome = await purse.send(intents.by_hash(self._store, _hash(record)))
        if isinstance(outcome, Unknown):
            return await self._reconcile(record)
        return self._payment_input(outcome)

    async def _reconcile(self, record: Purchase) -> Paid:
        """Ask until the wallet knows; a pending payment may take as long as it likes."""
        wait = _FIRST_LOOK
        while True:
            try:
                purse = self._accounts(record.owner).purse
            except NotFound as error:
                if wait < _LONGEST_LOOK:
                    log.warning("payment of purchase %s: %s", record.id[:16], error.message)
                wait = _LONGEST_LOOK
            else:
                outcome = await purse.reconcile(intents.by_hash(self._store, _hash(record)))
                if not isinstance(outcome, Unknown):
                    return self._payment_input(outcome)
            await trio.sleep(wait * (0.5 + self._rng.random()))
            wait = min(wait * 2, _LONGEST_LOOK)

    async def _attend(self, record: Purchase) -> machine.TurnedAway | machine.AnswerOverdue:
        if record.state is PurchaseState.REQUESTED and record.request_id is not None:
            return machine.TurnedAway(record.request_id, "no quote in time")
        return machine.AnswerOverdue()

    def _compose(self, tx: Tx, record: Purchase, effect: Effect) -> list[Event]:
        """The request that ``_discover`` has signed, or that it is wanted no more (NIP-90: by kind 5)."""
        if effect is PurchaseEffect.PUBLISH_REQUEST:
            return [self._signed.pop(record.id)]
        request_id, now = record.request_id, self._clock.now()
        assert request_id is not None, "a request was made"
        outbox.cancel(tx, request_id, now)
        try:
            secret = self._accounts(record.owner).secret
        except NotFound:
            return []  # nobody is left who could sign it
        kinds = [JOB_TEXT]
        return [build_deletion(secret, ids=[request_id], kinds=kinds, reason="cancelled", created_at=int(now))]

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
            self._purse_of(after).reserve(
                tx,
                cause=after.id,
                bolt11=_bolt11(after),
                payment_hash=_hash(after),
                amount=after.quoted,
                scope=after.scope,
            )
        elif before.state is PurchaseState.PAYING and after.state is not PurchaseState.PAYING:
            intent = intents.by_hash(tx, _hash(before))
            outcome: Outcome = (
                Settled(after.paid, after.fee, after.preimage) if after.paid > 0 else Failed(after.reason)
            )
            book_outcome(tx, intent, outcome, self._clock.now())
        if after.owner and after.state in PURCHASE.final:
            self._ended.add(after.owner)

    def _purse_of(self, purchase: Purchase) -> Purse:
        """Raises ``WalletError`` where the owner is gone: then nothing is to be paid."""
        try:
            return self._accounts(purchase.owner).purse
        except NotFound as error:
            raise WalletError(error.message, error.hint) from None

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
        self._market.heard(event.pubkey, event.created_at)
        record = self.records.load(self._store, row["purchase_id"])
        if record is None or record.request_id != request_id or inbox.seen(self._store, _CONSUMER, event.id):
            return
        try:
            message = self._understand(record, event)
        except NotFound as error:
            log.warning("purchase %s: a reply to nobody: %s", record.id[:16], error.message)
            return
        if isinstance(message, Feedback):
            self._pass_on(record, message.content)
            return
        if message is None:
            return  # means nothing now: not worth a row, for a provider could send any number of these

        def admit(tx: Tx) -> bool:
            if not record.owner:
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
        """The input that a reply is; a ``Feedback`` for a partial result; ``None`` for what means nothing.

        Raises ``NotFound`` where its owner is gone, whose key opens it.
        """
        account = self._accounts(record.owner)
        try:
            if event.kind != FEEDBACK:
                result = parse_result(event, account.secret)
                return machine.Answered(result.request_id, event.id, result.text)
            feedback = parse_feedback(event, account.secret)
        except JobInvalid as error:
            log.warning("purchase %s: unreadable reply: %s", record.id[:16], error)
            return None
        return self._understand_feedback(record, account, feedback)

    def _understand_feedback(self, record: Purchase, account: Account, feedback: Feedback) -> Reply | Feedback | None:
        match feedback.status:
            case FeedbackStatus.PAYMENT_REQUIRED if record.state is PurchaseState.REQUESTED:
                return check_quote(
                    record,
                    feedback,
                    now=self._clock.now(),
                    network_prefix=self._settings.invoice_prefix,
                    own_payee=account.wallet.node_pubkey,
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


def _hash(record: Purchase) -> str:
    assert record.payment_hash is not None, "a quote was taken"
    return record.payment_hash


def _bolt11(record: Purchase) -> str:
    assert record.bolt11 is not None, "a quote was taken"
    return record.bolt11


def _printable(words: str) -> str:
    """A stranger's words, fit for a terminal: without control and direction characters, and cut."""
    return "".join(char if char.isprintable() else " " for char in words[:300]).strip()
