"""``Vendor``: a fake provider that sells scripted thoughts on a memory relay. **No model, and no provider of ours.**

It speaks NIP-90 as any provider does: announces, quotes with a real simnet invoice, waits for the payment, answers. It
shares nothing with ``pylon.provider`` but the wire, costs a few milliseconds a thought, and remembers what it was
asked, for assertions.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip89 import build_announcement
from protocols.nip90 import JOB_TEXT, FeedbackStatus, JobRequest, build_feedback, build_result, parse_request
from pylon.clock import Clock
from pylon.money import Msat
from pylon.relays.pool import RelayPool
from pylon.testing.relay import MemoryRelay, network
from pylon.wallets.simnet import SimnetLedger, SimnetWallet

Script = Callable[[JobRequest], str | None]
"""The answer to a request; ``None``: takes the money and says nothing, ever."""


class Manners(enum.StrEnum):
    """How a vendor quotes."""

    FAIR = "fair"
    DEAR = "dear"
    """Twice what it has announced."""
    FALSE = "false"
    """Half of what its invoice says."""


@attrs.define
class Sold:
    """One thought that was asked for."""

    request: JobRequest
    price: Msat
    paid: bool = False
    text: str | None = None


class Vendor:
    """See the module.

    :param price: what each thought costs.
    :param seconds: how long it thinks.
    """

    def __init__(
        self,
        relay: MemoryRelay,
        ledger: SimnetLedger,
        clock: Clock,
        rng: random.Random,
        script: Script,
        *,
        price: Msat,
        name: str = "vendor",
        seconds: float = 0.0,
        announced_every: float = 3_600.0,
    ) -> None:
        self._relay = relay
        self._clock = clock
        self._script = script
        self.price = price
        self.name = name
        self.seconds = seconds
        self.manners = Manners.FAIR
        self._every = announced_every
        self.secret = SecretKey(rng.randbytes(32))
        self.wallet: SimnetWallet = ledger.wallet(name, rng.randbytes(32))
        self.sold: list[Sold] = []
        self._pool = RelayPool([relay.url], connect=network(relay), clock=clock, rng=rng)
        self.up = True
        """Whether it announces itself and answers."""
        self._waiting: dict[str, Sold] = {}
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Sell until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce)
            nursery.start_soon(self._deliver, nursery)
            await nursery.start(self._pool.run)
            wanted = Filter(kinds=[JOB_TEXT], tags={"p": [self.secret.public.hex]})
            async with self._pool.subscribe([wanted]) as requests:
                async for received in requests:
                    if self.up:
                        nursery.start_soon(self._quote, received.event)

    async def _announce(self) -> None:
        while True:
            if self.up:
                self._relay.publish(
                    build_announcement(
                        self.secret,
                        d="vendor",
                        kinds=(JOB_TEXT,),
                        models=("scripted-1",),
                        price_msats=self.price,
                        network="simnet",
                        name=self.name,
                        about="FAKE: answers from a script",
                        created_at=int(self._clock.now()),
                    )
                )
            await trio.sleep(self._every)

    async def _quote(self, event: Event) -> None:
        if event.id in self._asked:
            return
        self._asked.add(event.id)
        job = parse_request(event, self.secret)
        amount = Msat(self.price * 2) if self.manners is Manners.DEAR else self.price
        issued = await self.wallet.receive(amount, "a thought", 600, key=job.id)
        sold = Sold(job, amount)
        self.sold.append(sold)
        self._waiting[issued.payment_hash] = sold
        self._relay.publish(
            build_feedback(
                self.secret,
                request=job.id,
                customer=job.customer,
                status=FeedbackStatus.PAYMENT_REQUIRED,
                amount_msats=Msat(amount // 2) if self.manners is Manners.FALSE else amount,
                bolt11=issued.bolt11,
                created_at=int(self._clock.now()),
            )
        )

    async def _deliver(self, nursery: trio.Nursery) -> None:
        async with self.wallet.events() as payments:
            async for payment in payments:
                sold = self._waiting.pop(payment.payment_hash, None)
                if sold is not None:
                    sold.paid = True
                    nursery.start_soon(self._answer, sold)

    async def _answer(self, sold: Sold) -> None:
        await trio.sleep(self.seconds)
        sold.text = self._script(sold.request)
        if sold.text is None:
            return
        self._relay.publish(
            build_result(
                self.secret,
                request=sold.request.id,
                request_kind=JOB_TEXT,
                customer=sold.request.customer,
                text=sold.text,
                encrypt=True,
                created_at=int(self._clock.now()),
            )
        )
