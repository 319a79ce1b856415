"""Where requests are looked at: each once, refused, taken free or priced; or not heard, where there are too many."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from protocols.keys import SecretKey
from protocols.nip01 import Event
from protocols.nip90 import JobInvalid, parse_request
from pylon.clock import Clock
from pylon.driver import Driver
from pylon.errors import BackendUnavailable
from pylon.inference.router import Router
from pylon.provider import sale as machine
from pylon.provider.credits import use_credit
from pylon.provider.holds import Holds
from pylon.provider.pricing import Terms, appraise, served_as
from pylon.provider.sale import Sale, SaleState
from pylon.provider.sales import OPEN
from pylon.relays.pool import Received
from pylon.store import cursors, inbox
from pylon.store.database import Store, Tx
from pylon.store.records import Step

log = logging.getLogger(__name__)

CONSUMER = "provider"
_LONGEST_REQUEST = 32_768
"""Bytes of an open request that its result repeats; a relay would not take two copies of a larger one."""


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
    ) -> None:
        self._secret = secret
        self._store = store
        self._router = router
        self._clock = clock
        self._terms = terms
        self._driver = driver
        self._holds = holds
        self._unwanted = unwanted

    async def deliver(self, received: Received) -> None:
        event = received.event
        await inbox.deliver(self._store, CONSUMER, event.id, functools.partial(self.take, event))

    async def take(self, event: Event) -> None:
        """Look at a request once, however often and from wherever it comes."""
        now = self._clock.now()
        if not now - self._terms.max_age <= event.created_at <= now + self._terms.max_ahead:
            return
        if inbox.seen(self._store, CONSUMER, event.id):
            return
        sale, verdict = await self._appraise(event, now)

        def job(tx: Tx) -> Step[Sale] | None:
            if self._unwanted(event) or not self._has_room(tx, sale, verdict):
                return None
            cursors.advance(tx, CONSUMER, min(event.created_at, int(self._clock.now())))
            if not inbox.take(tx, CONSUMER, event.id, now):
                return None
            return self._driver.begin_in(tx, sale, use_credit(tx, sale.customer, verdict, self._terms.unit))

        self._driver.acted(await self._store.write(job))

    def _has_room(self, tx: Tx, sale: Sale, verdict: object) -> bool:
        """Whether to hear this request at all. One that is not leaves no trace, so that a flood of them leaves none."""
        if isinstance(verdict, machine.Refused):
            refused = tx.one(
                "SELECT COUNT(*) AS n FROM sales WHERE state = ? AND created_at > ?",
                (SaleState.REFUSED.value, self._clock.now() - 60.0),
            )
            return refused is None or refused["n"] < self._terms.refusals_per_minute
        count = tx.one(
            "SELECT COUNT(*) AS n, COALESCE(SUM(customer = ?), 0) AS mine FROM sales"
            f" WHERE state IN ({','.join('?' * len(OPEN))})",
            (sale.customer, *OPEN),
        )
        if count is None or (count["n"] < self._terms.max_open and count["mine"] < self._terms.max_open_per_customer):
            return True
        log.warning("too many open sales: request %s is not heard", sale.id[:16])
        return False

    async def _appraise(self, event: Event, now: float) -> tuple[Sale, object]:
        sale = Sale(id=event.id, customer=event.pubkey, kind=event.kind, created_at=now)
        try:
            job = parse_request(event, self._secret)
        except JobInvalid as error:
            return sale, machine.Refused(str(error))
        served = await self._router.models()
        models = [model.id for model in served]
        default = await self._default()
        model = served_as(job.model, models, default)
        context = next((info.context_length for info in served if info.id == model), None)
        prompt = job.prompt
        try:
            schema = job.json_schema
        except JobInvalid as error:
            return sale, machine.Refused(str(error))
        verdict = appraise(job, self._terms, prompt=prompt, models=models, default=default, context=context, now=now)
        if isinstance(verdict, machine.Refused):
            return sale, verdict
        if isinstance(verdict, machine.Priced):
            verdict = await self._holds.agree(job, verdict)
        repeated = "" if job.encrypted else event.to_json()
        taken = Sale(
            id=event.id,
            customer=event.pubkey,
            kind=event.kind,
            created_at=now,
            prompt=prompt or "",
            encrypted=job.encrypted,
            model=model or "",
            max_tokens=job.max_tokens or self._terms.default_tokens,
            temperature=job.number("temperature", 0.0, 2.0),
            top_p=job.number("top_p", 0.0, 1.0),
            json_schema=schema,
            request=repeated if len(repeated.encode()) <= _LONGEST_REQUEST else "",
        )
        return taken, verdict

    async def _default(self) -> str:
        """The model that answers where a job names none."""
        try:
            return (await self._router.resolve("")).model
        except BackendUnavailable:
            return ""
