"""A stranger on the relay: answers everybody's requests with quotes and results of its own, and asks nonsense.

To a request that is meant for everybody its quote is one that nobody may pay: its invoice says another amount.
"""

from __future__ import annotations

import random

import orjson
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter, sign_event
from protocols.nip90 import FEEDBACK, JOB_TEXT, FeedbackStatus, build_feedback, build_result
from pylon.clock import Clock
from pylon.money import sats
from pylon.testing.relay import MemoryRelay
from pylon.wallets.simnet import SimnetLedger

WORDS = "No worky"


class Stranger:
    """Publishes straight into the relay, as fast as it likes."""

    def __init__(self, relay: MemoryRelay, rng: random.Random, clock: Clock, ledger: SimnetLedger) -> None:
        self._relay = relay
        self._rng = rng
        self._clock = clock
        self._secret = SecretKey(rng.randbytes(32))
        self.wallet = ledger.wallet("stranger", rng.randbytes(32))

    async def run(self) -> None:
        answered: set[str] = set()
        looked_at = -1
        while True:
            await trio.sleep(self._rng.uniform(0.2, 3.0))
            if self._relay.core.counters.accepted != looked_at:
                looked_at = self._relay.core.counters.accepted
                for request in self._relay.events(Filter(kinds=[JOB_TEXT])):
                    if request.id not in answered:
                        answered.add(request.id)
                        await self._answer(request)
            if self._rng.random() < 0.1:
                self._relay.publish(self._nonsense(answered))

    async def _answer(self, request: Event) -> None:
        now = int(self._clock.now())
        invoice = await self.wallet.receive(sats(1), "cheaper here", 600, key=request.id)
        self._relay.publish(
            build_feedback(
                self._secret,
                request=request.id,
                customer=request.pubkey,
                status=FeedbackStatus.PAYMENT_REQUIRED,
                amount_msats=1_000 if request.tag("p") else 2_000,
                bolt11=invoice.bolt11,
                created_at=now,
            )
        )
        self._relay.publish(
            build_result(
                self._secret,
                request=request.id,
                request_kind=JOB_TEXT,
                customer=request.pubkey,
                text=WORDS,
                encrypt=self._rng.random() < 0.5,
                created_at=now,
            )
        )
        self._relay.publish(
            build_feedback(
                self._secret,
                request=request.id,
                customer=request.pubkey,
                status=FeedbackStatus.ERROR,
                message="go away",
                credit_msats=1,
                created_at=now,
            )
        )

    def _nonsense(self, targets: set[str]) -> Event:
        """Requests, feedback and results that make no sense, addressed to whoever was seen."""
        seen = [event.tag("p") or "" for event in self._relay.events(Filter(kinds=[JOB_TEXT, FEEDBACK], limit=50))]
        someone = self._rng.choice(seen or ["00" * 32])
        request = self._rng.choice(sorted(targets) or ["11" * 32])
        kind = self._rng.choice([JOB_TEXT, FEEDBACK, JOB_TEXT + 1_000])
        tags = [
            ["p", someone],
            ["e", request],
            *self._rng.choice(
                [
                    [],
                    [["encrypted"]],
                    [["i", "x" * 20, "url"]],
                    [["i", "free?"], ["param", "max_tokens", "1e99"]],
                    [["status", "payment-required"], ["amount", "100_000", "lnbc1"]],
                    [["status", "success"]],
                ]
            ),
        ]
        content = self._rng.choice(["", "?iv=", orjson.dumps([["i", "x"]]).decode(), "A" * 200])
        return sign_event(self._secret, kind=kind, tags=tags, content=content, created_at=int(self._clock.now()))
