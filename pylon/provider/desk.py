"""Where requests are looked at: each once, refused, taken free or priced; or not heard, where there are too many.

What costs little comes first: age and size, then what the store's indexes tell of the customer and of the book
(``pylon.provider.book``); only a request that there is room for is decrypted, priced, and given a row. Room is looked
for once more in the transaction that begins the sale, and nothing is asked of the wallet before that.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip90 import JobInput, JobInvalid, JobRequest, parse_request
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import BackendUnavailable
from pylon.inference.router import Router
from pylon.provider import customers
from pylon.provider import sale as machine
from pylon.provider.book import Book, Ration
from pylon.provider.credits import use_credit
from pylon.provider.fetching import InputRefused
from pylon.provider.holds import Holds
from pylon.provider.inputs import Inputs
from pylon.provider.pricing import Standing, Terms, appraise, served_as
from pylon.provider.sale import Sale, SaleState
from pylon.store import cursors, inbox
from pylon.store.database import Reads, Store, Tx
from pylon.store.records import Step

log = logging.getLogger(__name__)

CONSUMER = "provider"
_LONGEST_REQUEST = 32_768
"""Bytes of an open request that its result repeats; a relay would not take two copies of a larger one."""
_MINTING = 4
"""Invoices that are made at a time: none of them is more urgent than a job that is paid."""
_MOST_UNMINTED = 256
"""Sales that wait for their invoice: while there are more, strangers are not heard, for the wallet does not keep up."""
_TRUSTED = (Standing.TRUSTED, Standing.FREE)
_SAY_AGAIN = 60.0
"""Seconds between two lines in the log about requests that are not heard."""


@attrs.frozen
class _Caller:
    """Who asks, and what is known of the request before it is opened."""

    customer: str
    standing: Standing
    known: bool
    """Has ever paid."""
    size: int

    @property
    def trusted(self) -> bool:
        return self.standing in _TRUSTED


@attrs.frozen
class _Asked:
    """A request as it was read."""

    event: Event
    job: JobRequest
    schema: dict[str, Any] | None


class _NoRoom(Exception):
    """Not now: nothing is written."""


class _NoneLeft(Exception):
    """What was given free is not there any more: nothing is written."""


class Desk:
    """Looks at requests, and begins their sales."""

    def __init__(
        self,
        *,
        secret: SecretKey,
        store: Store,
        router: Router,
        clock: Clock,
        terms: Terms,
        driver: Driver[Sale],
        holds: Holds,
        unwanted: Callable[[Event], bool],
        inputs: Inputs,
    ) -> None:
        self._secret = secret
        self._store = store
        self._router = router
        self._clock = clock
        self.terms = terms
        """Those that the next request is looked at by; nobody else keeps any."""
        self._driver = driver
        self._book = Book(terms.max_open, terms.max_open_per_customer)
        self._ration = Ration()
        self._minting = trio.CapacityLimiter(_MINTING)
        self._unheard = 0
        self._said_at = float("-inf")
        self._holds = holds
        self._unwanted = unwanted
        self._inputs = inputs
        self._looking: set[str] = set()
        """Requests whose inputs are being looked for."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for the inputs of requests that have them elsewhere, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._looking.clear()

    def is_known(self, customer: str) -> bool:
        """Whether it has ever paid, or is trusted: then it is no stranger."""
        if customers.has_paid(self._store, customer):
            return True
        return customers.standing_of(self._store, customer, self.terms.standings) in _TRUSTED

    async def deliver(self, event: Event) -> None:
        await inbox.deliver(self._store, CONSUMER, event.id, functools.partial(self.take, event))

    @property
    def minting(self) -> trio.CapacityLimiter:
        """Held by whoever makes an invoice."""
        return self._minting

    async def take(self, event: Event) -> None:
        """Look at a request once, however often and from wherever it comes."""
        now = self._clock.now()
        if not now - self.terms.max_age <= event.created_at <= now + self.terms.max_ahead:
            return
        size = len(event.content) + sum(len(entry) for tag in event.tags for entry in tag)
        if size > self.terms.max_request_chars or len(event.tags) > self.terms.max_request_tags:
            return
        standing = customers.standing_of(self._store, event.pubkey, self.terms.standings)
        if standing is Standing.BLOCKED or inbox.seen(self._store, CONSUMER, event.id):
            return
        caller = _Caller(event.pubkey, standing, customers.has_paid(self._store, event.pubkey), size)
        if not (caller.known or caller.trusted):
            await trio.sleep(self._ration.wait(self._clock.monotonic()))
        if not self._hears(self._store, caller):
            self._pass_over(event)
            return
        await self._hear(event, caller, self._clock.now())

    # --- room ---------------------------------------------------------------------------------------------------

    def _hears(self, source: Reads, caller: _Caller) -> bool:
        """Whether to hear this request at all. One that is not leaves no trace, so that a flood of them leaves none."""
        if caller.trusted:
            return True
        total, mine = customers.open_sales(source, caller.customer)
        if not caller.known and self._minting.statistics().tasks_waiting > _MOST_UNMINTED:
            return False
        rationed = self._ration.is_short(self._clock.monotonic())
        return self._book.hears(total=total, mine=mine, size=caller.size, known=caller.known, rationed=rationed)

    def _make_room(self, tx: Tx, caller: _Caller) -> Step[Sale] | None:
        """Room for a sale of this caller; the step of the one that was pushed out for it. Raises ``_NoRoom``."""
        if not self._hears(tx, caller):
            raise _NoRoom
        total, _ = customers.open_sales(tx, caller.customer)
        if not self._book.is_full(total):
            return None
        oldest = customers.oldest_unpaid(tx, self._clock.now() - self._book.young)
        if oldest is not None:
            return self._driver.advance_in(tx, oldest, machine.InvoiceExpired())
        if caller.trusted or caller.known:
            return None
        raise _NoRoom

    def _may_refuse(self, tx: Tx) -> bool:
        """Whether one more refusal is said, and written down."""
        refused = tx.one(
            "SELECT COUNT(*) AS n FROM sales WHERE state = ? AND created_at > ?",
            (SaleState.REFUSED.value, self._clock.now() - 60.0),
        )
        return refused is None or refused["n"] < self.terms.refusals_per_minute

    def _pass_over(self, event: Event) -> None:
        self._unheard += 1
        if self._clock.monotonic() - self._said_at >= _SAY_AGAIN:
            log.warning(
                "%d requests were not heard, for there are too many; the last was %s", self._unheard, event.id[:16]
            )
            self._unheard, self._said_at = 0, self._clock.monotonic()

    # --- a sale begins --------------------------------------------------------------------------------------------

    async def _hear(self, event: Event, caller: _Caller, now: float) -> None:
        sale = Sale(id=event.id, customer=event.pubkey, kind=event.kind, created_at=now)
        try:
            job = parse_request(event, self._secret)
            schema = job.json_schema
        except JobInvalid as error:
            if event.tag("p") is not None:
                await self._decide(event, caller, sale, machine.Refused(str(error)), now)
            return
        asked = _Asked(event, job, schema)
        if not job.outside:
            await self._offer(asked, caller, {}, now)
        elif event.id not in self._looking and self._nursery is not None:
            # Others do not wait for what this one waits for. It is noted as taken when it is decided on: until then it
            # comes again after a restart.
            self._looking.add(event.id)
            self._nursery.start_soon(self._look_for_inputs, asked, caller, sale)

    async def _look_for_inputs(self, asked: _Asked, caller: _Caller, sale: Sale) -> None:
        async def handle() -> None:
            try:
                found = await self._inputs.find(asked.job, self.terms)
            except InputRefused as error:
                if asked.job.provider is None:
                    return
                why = "an input could not be had" if asked.job.encrypted else error.message
                await self._decide(asked.event, caller, sale, machine.Refused(why), self._clock.now())
            else:
                await self._offer(asked, caller, found, self._clock.now())

        try:
            await inbox.deliver(self._store, CONSUMER, asked.event.id, handle)
        finally:
            self._looking.discard(asked.event.id)

    async def _offer(self, asked: _Asked, caller: _Caller, found: Mapping[JobInput, str], now: float) -> None:
        """Price it, or take it free where the customer has it free."""
        if asked.job.provider is None:
            await self._bid(asked, caller, found, now)
            return
        given = customers.free_left(self._store, caller.customer, self.terms.free_per_day, now) > 0
        while True:
            terms = self.terms
            if given or caller.standing is Standing.FREE:
                terms = attrs.evolve(terms, payments=False)
            sale, verdict = await self._appraise(asked, found, now, terms)
            takes_one = given and caller.standing is not Standing.FREE and isinstance(verdict, machine.Free)
            try:
                await self._decide(asked.event, caller, sale, verdict, now, takes_one=takes_one)
                return
            except _NoneLeft:
                given = False

    async def _bid(self, asked: _Asked, caller: _Caller, found: Mapping[JobInput, str], now: float) -> None:
        """Offer to do what everybody is asked to do: for money, or not at all.

        Its customer chooses one of many: what is not chosen must have cost nobody anything, so nothing is done free, on
        trust, or for what we owe; and that we cannot do it is no news to anybody.
        """
        sale, verdict = await self._appraise(asked, found, now, attrs.evolve(self.terms, on_trust=False))
        if isinstance(verdict, machine.Priced):
            await self._decide(asked.event, caller, sale, verdict, now)

    async def _decide(
        self, event: Event, caller: _Caller, sale: Sale, verdict: object, now: float, *, takes_one: bool = False
    ) -> None:
        """Write it down, if there is room. Raises ``_NoneLeft``."""
        begin = functools.partial(self._begin, event, caller, sale, verdict, takes_one, now)
        try:
            steps = await self._store.write(begin)
        except _NoRoom:
            self._pass_over(event)
            return
        for step in steps:
            self._driver.acted(step)
        if not (caller.trusted or caller.known):
            self._ration.take(self._clock.monotonic())

    def _begin(
        self, event: Event, caller: _Caller, sale: Sale, verdict: object, takes_one: bool, now: float, tx: Tx
    ) -> list[Step[Sale] | None]:
        """Write all that a request causes; the steps that it makes. Raises ``_NoRoom`` or ``_NoneLeft``."""
        if self._unwanted(event) or not inbox.take(tx, CONSUMER, event.id, now):
            return []
        pushed = None
        if not isinstance(verdict, machine.Refused):
            pushed = self._make_room(tx, caller)
        elif not self._may_refuse(tx):
            raise _NoRoom
        if takes_one and not customers.take_free(tx, caller.customer, self.terms.free_per_day, now):
            raise _NoneLeft
        cursors.advance(tx, CONSUMER, min(event.created_at, int(self._clock.now())))
        if event.tag("p") is not None:
            verdict = use_credit(tx, caller.customer, verdict, self.terms.unit)
        return [pushed, self._driver.begin_in(tx, sale, verdict)]

    async def _appraise(
        self, asked: _Asked, found: Mapping[JobInput, str], now: float, terms: Terms
    ) -> tuple[Sale, object]:
        """The sale as it would begin by these terms, and its first input: refused, free, or priced."""
        event, job = asked.event, asked.job
        prompt = job.joined(found)
        sale = Sale(id=event.id, customer=event.pubkey, kind=event.kind, created_at=now)
        served = await self._router.models()
        models = [model.id for model in served]
        default = "" if job.model is not None else await self._default()
        model = served_as(job.model, models, default)
        verdict = appraise(
            job,
            terms,
            prompt=prompt,
            models=models,
            default=default,
            context=next((info.context_length for info in served if info.id == model), None),
            now=now,
        )
        if isinstance(verdict, machine.Refused):
            return sale, verdict
        if isinstance(verdict, machine.Priced) and terms.pay_on_delivery:
            verdict = await self._holds.agree(job, verdict)
        repeated = "" if job.encrypted else event.to_json()
        taken = attrs.evolve(
            sale,
            prompt=prompt or "",
            encrypted=job.encrypted,
            scheme=job.scheme,
            model=model or "",
            max_tokens=job.max_tokens or terms.default_tokens,
            temperature=job.number("temperature", 0.0, 2.0),
            top_p=job.number("top_p", 0.0, 1.0),
            json_schema=asked.schema,
            request=repeated if len(repeated.encode()) <= _LONGEST_REQUEST else "",
        )
        return taken, verdict

    async def _default(self) -> str:
        """The model that answers where a job names none."""
        try:
            return (await self._router.resolve("")).model
        except BackendUnavailable:
            return ""
