"""Buys thoughts: the driver of ``pylon.compute.purchase``, for the home and for each of its agents.

Rules
-----
1. A purchase belongs to an *owner*: '' is the home itself, else an agent's public key (hex). Its requests are signed by
   the owner's key, paid from the owner's purse, and answered to the owner's key.
2. Owners share the market and what is known of its providers; they share no money, and no debts. An owner buys neither
   from its own key nor from whoever is paid into its own wallet.
3. A reply counts if it comes from the provider that the request was sent to; of an open request, from whoever was
   chosen, and before that every quote does.
4. An owner that is gone harms no other: what it sought is given up, what it pays waits for it, and what the wallet has
   said of a payment is booked in any case.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
from collections.abc import Iterator, Sequence

import attrs
import trio

from protocols import entropy
from protocols.job_price import estimate_tokens
from protocols.keys import PublicKey
from protocols.nip01 import Event, Filter
from protocols.nip09 import build_deletion
from protocols.nip89 import Announcement
from protocols.nip90 import FEEDBACK, JOB_TEXT, Feedback, build_request, result_kind
from pylon.clock import Clock
from pylon.compute import debts
from pylon.compute import purchase as machine
from pylon.compute.account import Account, Accounts, BuyerSettings
from pylon.compute.discovery import Market
from pylon.compute.experience import gather, learn
from pylon.compute.listening import Listening
from pylon.compute.paying import Paying
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseEffect, PurchaseState
from pylon.compute.purchases import due, purchase_records
from pylon.compute.quotes import is_payable
from pylon.compute.ranking import Experience, Offer, choose, rank, why_none
from pylon.compute.understanding import Reply, understand
from pylon.driver import Driver
from pylon.errors import NotFound, WalletError
from pylon.machine import Effect
from pylon.money import Msat
from pylon.relays.pool import Received, RelayPool
from pylon.store import cursors, freeze, inbox, outbox
from pylon.store.database import Store, Tx
from pylon.store.records import Step
from pylon.together import handle_together

__all__ = ["Account", "Accounts", "Buyer", "BuyerSettings"]

log = logging.getLogger(__name__)

_CONSUMER = "buyer"
_REQUEST_LIFE = 3_600
"""Seconds after which a request asks to be forgotten (NIP-40)."""
_LONGEST_OPEN = 1_024
"""Bytes of a prompt that everybody may be shown: relays take no longer value of an ``i`` tag."""
_PAY_ON_DELIVERY = ("pay_on_delivery", "true")
"""What a request says where its buyer pays hold invoices."""
_EVERYBODY = ""
"""Whom an open request is meant for, until somebody is chosen."""
_ASKED = "SELECT purchase_id, provider FROM purchase_requests WHERE request_id = ?"


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
        self._listening = Listening(accounts, store, pool, clock, _CONSUMER, self._deliver)
        self._paying = Paying(accounts, store, clock, rng, settings)
        self._watchers: dict[str, set[trio.MemorySendChannel[str]]] = {}
        self.records = purchase_records(store)
        self._driver = Driver(
            self.records,
            store,
            clock,
            rng,
            handlers={
                PurchaseEffect.DISCOVER: self._discover,
                PurchaseEffect.PAY: self._paying.pay,
                PurchaseEffect.RECONCILE: self._paying.reconcile,
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
        since = self._listening.since("")
        async with (
            self._pool.subscribe(filters, since=since, relays=home.relays or None) as replies,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._market.run)
            await nursery.start(self._listening.run)
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
        open_market: bool = False,
        owner: str = "",
        scope: str = "",
        params: Sequence[tuple[str, str]] = (),
        upfront: bool = False,
        purchase_id: str | None = None,
    ) -> Purchase:
        """Begin a purchase and return it as first written; ``finished`` waits for its end.

        :param provider: only this one is asked, even if it announces nothing.
        :param open_market: ask everybody, in public: prompt and bid are for all to read.
        :param scope: what it is a part of, for its owner's budgets.
        :param params: what else the request asks for (NIP-90).
        :param upfront: not on delivery, also where the wallets could: its words are read while they come.
        :param purchase_id: with it, a purchase that is there already is returned as it stands, and nothing begun.

        Raises ``NotFound`` for an owner that is not there, ``WalletFrozen``, ``ValueError`` for an id that another
        owner has used, or where everybody and one alone are to be asked.
        """
        self._accounts(owner)
        if open_market and provider is not None:
            raise ValueError("either everybody is asked, or one provider")
        self._market.want()
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
            open=open_market,
            upfront=upfront,
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

        Its provider is told in public, by a deletion request (kind 5) that says nothing of ``reason``. One whose
        payment is held ends when the provider lets go of it.
        """
        record = await self._driver.advance(purchase_id, machine.GivenUp(reason))
        return record is not None and record.state in PURCHASE.final

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

    def _relays(self, account: Account) -> Sequence[str]:
        return account.relays or self._pool.urls

    # --- whom to ask ------------------------------------------------------------------------------------------

    async def _discover(self, record: Purchase) -> machine.Chosen | machine.Opened | machine.NoneLeft:
        try:
            account = self._accounts(record.owner)
        except NotFound as error:
            return machine.NoneLeft(error.message)
        frozen = freeze.mark(self._store)
        if frozen is not None:
            return machine.NoneLeft(frozen.words)
        offer: Offer | None = None
        if record.open:
            if len(record.prompt.encode()) > _LONGEST_OPEN:
                return machine.NoneLeft(f"everybody can be asked in {_LONGEST_OPEN:,} bytes at most: ask one provider")
        else:
            found = await self._find(record, account)
            if isinstance(found, machine.NoneLeft):
                return found
            offer = found
        await self._listening.listen(account)
        now = self._clock.now()
        request = self._request(record, account, offer, int(now))
        fresh = self.records.load(self._store, record.id)
        if fresh is None or fresh.state is not record.state:
            return machine.NoneLeft("it was given up")
        # One at a time for a purchase: one that was not taken up by the machine is of no more use.
        self._signed[record.id] = request
        if offer is None:
            return machine.Opened(request.id, now + self._settings.window_seconds)
        return machine.Chosen(offer.provider, offer.ceiling, request.id, now + self._settings.quote_seconds)

    def _request(self, record: Purchase, account: Account, offer: Offer | None, now: int) -> Event:
        """Sealed for the provider that is asked, or for everybody to read."""
        holds = not record.upfront and self._settings.holds(account.wallet)
        return build_request(
            account.secret,
            prompt=record.prompt,
            provider=None if offer is None else PublicKey.from_hex(offer.provider),
            model=record.model,
            max_tokens=record.max_tokens,
            bid_msats=record.bid if offer is None else offer.ceiling,
            relays=tuple(self._relays(account)),
            created_at=now,
            expiration=now + _REQUEST_LIFE,
            params=(*record.params, _PAY_ON_DELIVERY) if holds else record.params,
            encrypt=offer is not None,
        )

    async def _find(self, record: Purchase, account: Account) -> Offer | machine.NoneLeft:
        """Whom to ask next: of those who are known to be there, or else of those whom the relays show now."""
        own = account.secret.public.hex
        experience = gather(self._store, record.owner, self._clock.now())
        self._market.want()
        self._market.favour([name for name, standing in experience.standings.items() if standing.proven])
        found = self._market.remembered()
        offers = self._fitting(record, own, found, experience)
        if not offers or not offers[0].announced or any(experience.tier(offers[0].provider)):
            # Nobody, or nobody good: a better one may have come this moment.
            found = await self._announced()
            offers = self._fitting(record, own, found, experience)
        if offers:
            return offers[0]
        return machine.NoneLeft(
            why_none(
                found,
                bid=record.bid,
                model=record.model,
                network=self._settings.network,
                tried=record.tried,
                own=own,
                wanted=record.wanted,
                tokens=_tokens(record),
            )
        )

    def _fitting(
        self, record: Purchase, own: str, found: Sequence[Announcement], experience: Experience
    ) -> list[Offer]:
        return rank(
            found,
            bid=record.bid,
            model=record.model,
            network=self._settings.network,
            excluded=(*record.tried, own),
            wanted=record.wanted,
            tokens=_tokens(record),
            experience=experience,
            proven_first=experience.wary(record.tried),
        )

    async def _announced(self) -> list[Announcement]:
        """Who sells. Where nobody does, look again for a while: a provider may be starting, a relay coming back."""
        end = self._clock.monotonic() + self._settings.patience_seconds
        while True:
            found = await self._market.ask()
            if found or self._clock.monotonic() >= end:
                return found
            with trio.move_on_after(self._rng.uniform(0.5, 1.5)):
                await self._market.changed()

    # --- what is waited for -----------------------------------------------------------------------------------

    async def _attend(
        self, record: Purchase
    ) -> machine.TurnedAway | machine.NoneLeft | machine.HoldOverdue | machine.AnswerOverdue | None:
        match record.state:
            case PurchaseState.REQUESTED:
                assert record.request_id is not None, "a request was made"
                silent = "no answer in time" if record.served else "no quote in time"
                return machine.TurnedAway(record.request_id, silent)
            case PurchaseState.COLLECTING:
                return await self._pick(record)
            case PurchaseState.PAYING:
                return machine.HoldOverdue()
            case _:
                return machine.AnswerOverdue()

    async def _pick(self, record: Purchase) -> machine.NoneLeft | None:
        """Choose a quote for an open request, the best that can still be paid.

        Where there is none yet, the first one is waited for as long as for that of a single provider.
        """
        now = self._clock.now()
        if not record.quotes and now < record.quote_by + self._settings.quote_seconds:
            return None
        experience = gather(self._store, record.owner, now)
        why = "nobody has offered anything"
        for quote in choose(record.quotes, experience, proven_first=experience.wary(record.tried)):
            if not is_payable(quote, now):
                why = "what was offered has expired"
                continue
            try:
                picked = machine.Picked(quote.provider, now + self._settings.answer_seconds)
                await self._driver.advance(record.id, picked)
                return None
            except WalletError as error:
                why = error.message
        return machine.NoneLeft(why)

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

    def _book(self, tx: Tx, step: Step[Purchase]) -> None:
        before, after = step.before, step.after
        if after.request_id is not None and after.request_id != before.request_id:
            tx.execute(
                "INSERT INTO purchase_requests (request_id, purchase_id, provider, created_at) VALUES (?, ?, ?, ?)",
                (after.request_id, after.id, _EVERYBODY if after.open else after.provider, self._clock.now()),
            )
        elif after.open and after.state is not before.state:
            tx.execute(
                "UPDATE purchase_requests SET provider = ? WHERE request_id = ?",
                (_EVERYBODY if after.state is PurchaseState.COLLECTING else after.provider or "", after.request_id),
            )
        self._paying.book(tx, step)
        self._use_debt(tx, step)
        learn(tx, step, self._clock.now())
        if after.state in PURCHASE.final:
            self._listening.ended(after.owner)

    def _use_debt(self, tx: Tx, step: Step[Purchase]) -> None:
        """What is said to be taken off counts up to what is owed."""
        now = self._clock.now()
        used = debts.use(tx, step.before, step.after, now)
        if used != step.after.credit_used:
            self.records.amend(tx, attrs.evolve(step.after, credit_used=used), now)

    # --- replies ----------------------------------------------------------------------------------------------

    async def _deliver(self, received: Received) -> None:
        event = received.event
        await inbox.deliver(self._store, _CONSUMER, event.id, functools.partial(self._take, event))

    async def _take(self, event: Event) -> None:
        """Act on a reply if it comes from whom the request is meant for now; all others mean nothing."""
        request_id = event.tag("e")
        row = self._store.one(_ASKED, (request_id,))
        if request_id is None or row is None or row["provider"] not in (_EVERYBODY, event.pubkey):
            return
        asked = row["provider"]
        if asked != _EVERYBODY:
            self._market.heard(event.pubkey, event.created_at)
        record = self.records.load(self._store, row["purchase_id"])
        if record is None or record.request_id != request_id or inbox.seen(self._store, _CONSUMER, event.id):
            return
        if (asked == _EVERYBODY) != (record.state is PurchaseState.COLLECTING):
            return
        try:
            message = self._understand(record, event)
        except NotFound as error:
            log.warning("purchase %s: a reply to nobody: %s", record.id[:16], error.message)
            return
        if isinstance(message, Feedback):
            self._pass_on(record, message.content)
            return
        if isinstance(message, machine.Offered) and PURCHASE.step(record, message) is None:
            return  # dearer than what is there already: anybody could send any number of these
        if message is None:
            return  # means nothing now: not worth a row, for a provider could send any number of these

        def admit(tx: Tx) -> bool:
            still = tx.one(_ASKED, (request_id,))
            if still is None or still["provider"] != asked:
                return False  # another one was chosen meanwhile
            if not record.owner:
                cursors.advance(tx, _CONSUMER, event.created_at)
            return inbox.take(tx, _CONSUMER, event.id, self._clock.now())

        try:
            await self._driver.advance(record.id, message, admit)
        except WalletError as error:
            log.warning("purchase %s: quote refused: %s", record.id[:16], error.message)
            await self._driver.advance(record.id, machine.TurnedAway(request_id, error.message), admit)
        # A held payment ends with the job: what ends the one has ended the other, as a rule.
        self._paying.nudge(record.id)

    def _pass_on(self, record: Purchase, text: str) -> None:
        """Words on their way: for whoever watches, and kept nowhere."""
        for watcher in self._watchers.get(record.id, ()):
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                watcher.send_nowait(text)

    def _understand(self, record: Purchase, event: Event) -> Reply | Feedback | None:
        """See ``understand``. Raises ``NotFound`` where its owner is gone, whose key opens the reply."""
        return understand(record, event, self._accounts(record.owner), self._settings, self._clock.now())


def _tokens(record: Purchase) -> tuple[int, int]:
    """Of the prompt, and of the longest answer: what a price by tokens goes by."""
    return estimate_tokens(record.prompt), record.max_tokens
