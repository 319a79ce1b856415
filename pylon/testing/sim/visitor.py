"""A customer with whims, who talks straight to the relay: holds, pays twice, late or never, cancels, has credit.

It asks the sellers in the world's trouble, and is the seller's other half only: its own books are its wallet's. What it
has paid, for which request, is what the invariants hold against the sellers.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from protocols import bolt11, nip57
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Event, Filter
from protocols.nip09 import build_deletion
from protocols.nip90 import FEEDBACK, JOB_TEXT, FeedbackStatus, build_request, parse_feedback, parse_result, result_kind
from pylon.clock import Clock
from pylon.errors import PylonError
from pylon.money import Msat, sats
from pylon.testing.relay import MemoryRelay
from pylon.wallets.simnet import SimnetWallet

_FEE = sats(10)
_PATIENCE = 600.0
"""Seconds for which it looks for answers."""
_STEPS = 10.0
"""Seconds within which it looks, pays, and the payment is heard of."""


@attrs.define
class Errand:
    """One request, and what its customer makes of the answers."""

    request: Event
    provider: str
    pays: bool
    cancels_after: float | None
    delay: float
    asked_at: float
    zaps: bool
    """It pays by a zap, instead of the invoice that it is offered."""
    paid: set[str] = attrs.field(factory=set)
    """Payment hashes of what was offered and paid, or tried."""
    acted: set[str] = attrs.field(factory=set)
    """Events that were answered."""


class Visitor:
    """See the module.

    :param chance: draws its whims.
    :param zap: asks a provider (hex) for the invoice of a zap (msats, zap request as JSON).
    """

    def __init__(
        self,
        relay: MemoryRelay,
        wallet: SimnetWallet,
        providers: Sequence[PublicKey],
        chance: random.Random,
        clock: Clock,
        *,
        prompt: Callable[[int], str],
        zap: Callable[[str, Msat, str], Awaitable[str | None]],
    ) -> None:
        self.name = "visitor"
        self.wallet = wallet
        self.errands: list[Errand] = []
        self._relay = relay
        self._providers = providers
        self._chance = chance
        self._clock = clock
        self._prompt = prompt
        self._zap = zap
        self._secret = SecretKey(chance.randbytes(32))
        self._seen: tuple[int, int] | None = None

    @property
    def pubkey(self) -> str:
        return self._secret.public.hex

    async def run(self, until: float) -> None:
        """Ask now and then before ``until`` (trio's time); look at the answers for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_now_and_then, until)
            while True:
                await trio.sleep(1.0)
                self._cancel_some()
                await self._look_at_answers()

    async def _ask_now_and_then(self, until: float) -> None:
        for number in range(self._chance.randint(2, 12)):
            await trio.sleep(self._chance.uniform(0.0, 60.0))
            if trio.current_time() >= until:
                break
            self._ask(number, self._somebody())
        # Once all is well, what is owed by then is of use.
        await trio.sleep_until(until + 5.0)
        for number, provider in enumerate(self._providers):
            self._ask(1_000 + number, provider)

    def _somebody(self) -> PublicKey:
        """It has its favourite."""
        return self._chance.choice(self._providers) if self._chance.random() < 0.3 else self._providers[0]

    def _ask(self, number: int, provider: PublicKey) -> None:
        chance, now = self._chance, int(self._clock.now())
        request = build_request(
            self._secret,
            prompt=self._prompt(number),
            provider=provider,
            max_tokens=chance.choice([16, 200]),
            created_at=now,
            params=[("pay_on_delivery", "true")] if chance.random() < 0.6 else [],
        )
        self.errands.append(
            Errand(
                request,
                provider.hex,
                pays=chance.random() < 0.85,
                cancels_after=chance.choice([None, None, None, 0.0, 0.5, 3.0, 30.0, 200.0]),
                delay=chance.choice([0.0, 0.0, 5.0, 60.0, 115.0, 119.0]),
                asked_at=trio.current_time(),
                zaps=chance.random() < 0.2,
            )
        )
        self._relay.publish(request)

    @property
    def is_about_to_pay(self) -> bool:
        """Whether a moment to pay is still to come, or has come just now."""
        now = trio.current_time()
        return any(errand.pays and now < errand.asked_at + errand.delay + _STEPS for errand in self.errands)

    def _cancel_some(self) -> None:
        now = trio.current_time()
        for errand in self.errands:
            if errand.cancels_after is not None and now >= errand.asked_at + errand.cancels_after:
                errand.cancels_after = None
                ids = [errand.request.id]
                self._relay.publish(
                    build_deletion(self._secret, ids=ids, kinds=[JOB_TEXT], created_at=int(self._clock.now()))
                )

    async def _look_at_answers(self) -> None:
        """Pay what is asked for, where its whim and its moment are so."""
        now = trio.current_time()
        waiting = {
            errand.request.id: errand
            for errand in self.errands
            if errand.pays and errand.asked_at + errand.delay <= now <= errand.asked_at + _PATIENCE
        }
        seen = (self._relay.core.counters.accepted, len(waiting))
        if not waiting or seen == self._seen:
            return
        self._seen = seen
        kinds = [FEEDBACK, result_kind(JOB_TEXT)]
        for event in self._relay.events(Filter(kinds=kinds, tags={"e": sorted(waiting)})):
            errand = waiting[event.tag("e") or ""]
            if event.pubkey == errand.provider and event.id not in errand.acted:
                errand.acted.add(event.id)
                invoice = self._offer(event)
                if invoice is not None and errand.zaps:
                    invoice = await self._zapped(errand, event, invoice)
                if invoice is not None:
                    await self._pay(errand, invoice)

    def _offer(self, event: Event) -> str | None:
        if event.kind != FEEDBACK:
            return parse_result(event, self._secret).bolt11
        feedback = parse_feedback(event, self._secret)
        return feedback.bolt11 if feedback.status is FeedbackStatus.PAYMENT_REQUIRED else None

    async def _zapped(self, errand: Errand, event: Event, invoice: str) -> str | None:
        """The invoice of a zap for the same amount: of the request, or of what asks for the money."""
        amount = Msat(bolt11.decode(invoice).amount_msats or 0)
        request = nip57.build_request(
            self._secret,
            recipient=errand.provider,
            relays=("ws://relay.sim",),
            amount_msats=amount,
            created_at=int(self._clock.now()),
            event=errand.request if event.kind != FEEDBACK or len(errand.acted) % 2 else event,
        )
        return await self._zap(errand.provider, amount, request.to_json())

    async def _pay(self, errand: Errand, invoice: str) -> None:
        payment_hash = bolt11.decode(invoice).payment_hash
        errand.paid.add(payment_hash)
        try:
            await self.wallet.pay(invoice, max_fee=_FEE, idempotency_key=payment_hash)
        except PylonError:
            pass  # it may have gone through all the same: the ledger tells
