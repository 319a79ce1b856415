"""A provider of other software: it sells to whoever asks, in the open too, holds payments, owes, and uses what it owes.

It shares nothing with ``pylon.provider`` but the wire, never dies, and talks straight to the relay. Not all that it
does is good: it refuses, cancels what it holds or holds it too long, keeps money and says nothing, and its quotes lie
about its debts now and then. It never takes a hold without delivering.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable
from typing import TypedDict, Unpack

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip89 import build_announcement
from protocols.nip90 import (
    JOB_TEXT,
    FeedbackStatus,
    JobInvalid,
    JobRequest,
    build_feedback,
    build_result,
    parse_request,
)
from pylon.clock import Clock
from pylon.errors import PylonError
from pylon.money import Msat
from pylon.testing.relay import MemoryRelay
from pylon.wallets.port import IssuedInvoice
from pylon.wallets.simnet import SimnetLedger

_INVOICE_SECONDS = 120
_LATE_SECONDS = 100.0
"""How long after its expiry an invoice may still turn out to be paid."""
_LIES = 0.05
"""How often a quote takes off more than it does."""
_PRICES = (1_000, 4_000, 9_000)


class _Said(TypedDict, total=False):
    """Of ``build_feedback``, what it says."""

    message: str
    amount_msats: int
    bolt11: str
    credit_msats: int
    credit_used_msats: int | None
    hold_until: int | None


@attrs.define
class Job:
    """One request, and what became of it here."""

    request: JobRequest
    credit_used: Msat
    """Taken off the price, as the quote says."""
    payment_hash: str = ""
    preimage: str = attrs.field(default="", repr=False)
    """Of a hold."""
    delivered: bool = False
    ended: bool = False


class Foreigner:
    """See the module.

    :param answer: the only right answer of a provider of this name to a prompt.
    """

    name = "foreigner"

    def __init__(
        self,
        relay: MemoryRelay,
        ledger: SimnetLedger,
        clock: Clock,
        chance: random.Random,
        answer: Callable[[str, str], str],
    ) -> None:
        self._relay = relay
        self._clock = clock
        self._chance = chance
        self._answer = answer
        self._secret = SecretKey(chance.randbytes(32))
        self.wallet = ledger.wallet(self.name, chance.randbytes(32))
        self.price = Msat(chance.choice(_PRICES))
        self.calm = False
        """Whether it behaves from now on."""
        self.owes: dict[str, int] = {}
        """By customer."""
        self.jobs: list[Job] = []

    @property
    def pubkey(self) -> str:
        return self._secret.public.hex

    async def run(self) -> None:
        heard: set[str] = set()
        looked_at = -1
        self._announce()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._chance.uniform(0.1, 1.0))
                if self._relay.core.counters.accepted == looked_at:
                    continue
                looked_at = self._relay.core.counters.accepted
                for event in self._relay.events(Filter(kinds=[JOB_TEXT])):
                    if event.id not in heard and event.tag("p") in (None, self.pubkey):
                        heard.add(event.id)
                        with contextlib.suppress(JobInvalid):
                            nursery.start_soon(self._serve, parse_request(event, self._secret))

    def _announce(self) -> None:
        now = int(self._clock.now())
        self._relay.publish(
            build_announcement(
                self._secret,
                d="it",
                kinds=(JOB_TEXT,),
                models=("scripted-1",),
                price_msats=self.price,
                network="simnet",
                name=self.name,
                about="",
                created_at=now,
            )
        )

    # --- one job ----------------------------------------------------------------------------------------------

    async def _serve(self, request: JobRequest) -> None:
        if not self.calm and self._chance.random() < 0.1:
            self._say(request, FeedbackStatus.ERROR, message="not today")
            return
        # A customer who asks everybody may take another, and what was used would be gone.
        open_to_all = request.provider is None
        used = Msat(0) if open_to_all else Msat(min(self.owes.get(request.customer, 0), self.price))
        self._owe(request, -used)
        job = Job(request, used)
        self.jobs.append(job)
        amount = Msat(self.price - used)
        if amount == 0:
            await self._serve_what_is_owed(job)
        elif request.params.get("pay_on_delivery") == "true" and self._chance.random() < 0.7:
            await self._sell_on_delivery(job, amount)
        else:
            await self._sell(job, amount)
        job.ended = True

    async def _serve_what_is_owed(self, job: Job) -> None:
        self._say(job.request, FeedbackStatus.PROCESSING, credit_used_msats=job.credit_used)
        await self._think()
        if not self.calm and self._chance.random() < 0.2:
            self._say(job.request, FeedbackStatus.ERROR, message="it broke")
            self._owe(job.request, job.credit_used)
        else:
            self._deliver(job)

    async def _sell(self, job: Job, amount: Msat) -> None:
        issued = await self.wallet.receive(amount, "a thought", _INVOICE_SECONDS, key=job.request.id)
        job.payment_hash = issued.payment_hash
        self._quote(job, issued)
        paid = await self._until(issued, lambda now: now.received > 0, _INVOICE_SECONDS + _LATE_SECONDS)
        if not paid:
            self._owe(job.request, job.credit_used)
            return
        await self._think()
        mood = 1.0 if self.calm else self._chance.random()
        if mood < 0.3:
            self._owe(job.request, amount + job.credit_used)
            self._say(job.request, FeedbackStatus.ERROR, message="it broke", credit_msats=amount)
        elif mood > 0.4:
            self._deliver(job)

    async def _sell_on_delivery(self, job: Job, amount: Msat) -> None:
        job.preimage = self._chance.randbytes(32).hex()
        job.payment_hash = hashlib.sha256(bytes.fromhex(job.preimage)).hexdigest()
        issued = await self.wallet.hold(amount, "a thought", _INVOICE_SECONDS, job.request.id, job.payment_hash)
        until = int(self._clock.now()) + self._chance.choice([150, 300])
        self._quote(job, issued, hold_until=until)
        held = await self._until(issued, lambda now: now.held > 0, _INVOICE_SECONDS)
        mood = 1.0 if self.calm else self._chance.random()
        if held and mood > 0.3 and not self._cancelled(job.request):
            await self._think()
            if mood < 0.45:
                await trio.sleep(until - self._clock.now() + self._chance.uniform(70.0, 300.0))
            if await self._take(job):
                self._deliver(job)
                return
        elif held:
            self._say(job.request, FeedbackStatus.ERROR, message="it broke")
        await self.wallet.cancel(job.payment_hash)
        self._owe(job.request, job.credit_used)

    async def _take(self, job: Job) -> bool:
        """Whether what is held was taken; whoever has cancelled meanwhile gets it back."""
        if self._cancelled(job.request):
            return False
        try:
            await self.wallet.settle(job.preimage)
        except PylonError:
            return False
        return True

    async def _until(self, issued: IssuedInvoice, come: Callable[[IssuedInvoice], bool], seconds: float) -> bool:
        """Whether a payment comes in time."""
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(1.0)
            now = await self.wallet.lookup_invoice(issued.payment_hash)
            if now is not None and come(now):
                return True
        return False

    async def _think(self) -> None:
        await trio.sleep(self._chance.choice([0.0, 0.5, 5.0]))

    def _cancelled(self, request: JobRequest) -> bool:
        asked = Filter(kinds=[5], authors=[request.customer], tags={"e": [request.id]})
        return bool(self._relay.events(asked))

    def _owe(self, request: JobRequest, msats: int) -> None:
        self.owes[request.customer] = self.owes.get(request.customer, 0) + msats

    # --- what it says -----------------------------------------------------------------------------------------

    def _quote(self, job: Job, issued: IssuedInvoice, hold_until: int | None = None) -> None:
        lie = 0 if self._chance.random() > _LIES or self.calm else self._chance.choice([1, 10**9])
        for _ in range(self._chance.choice([1, 1, 2])):
            self._say(
                job.request,
                FeedbackStatus.PAYMENT_REQUIRED,
                amount_msats=issued.amount,
                bolt11=issued.bolt11,
                credit_used_msats=(job.credit_used + lie) or None,
                hold_until=hold_until,
            )

    def _deliver(self, job: Job) -> None:
        job.delivered = True
        self._publish(
            build_result(
                self._secret,
                request=job.request.id,
                request_kind=JOB_TEXT,
                customer=job.request.customer,
                text=self._answer(self.name, job.request.prompt or ""),
                encrypt=job.request.encrypted,
                created_at=int(self._clock.now()),
                credit_used_msats=job.credit_used if job.credit_used == self.price else None,
            )
        )

    def _say(self, request: JobRequest, status: FeedbackStatus, **said: Unpack[_Said]) -> None:
        now = int(self._clock.now())
        self._publish(
            build_feedback(
                self._secret,
                request=request.id,
                customer=request.customer,
                status=status,
                created_at=now,
                **said,
            )
        )

    def _publish(self, event: Event) -> None:
        self._relay.publish(event)
