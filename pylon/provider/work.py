"""The thinking of a sale: attempts at an answer that can be sent, and the words so far to whoever listens."""

from __future__ import annotations

import logging
import random

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import MAX_EVENT_BYTES, EventInvalid
from protocols.nip90 import JobInvalid
from pylon.clock import Clock
from pylon.errors import InferenceError, brief
from pylon.inference.port import Deadlines, InferenceRequest, Message
from pylon.inference.router import Router
from pylon.provider import sale as machine
from pylon.provider.replies import compose, compose_partial
from pylon.provider.sale import Sale, SaleEffect
from pylon.relays.pool import RelayPool

log = logging.getLogger(__name__)

_SURELY_FITS = 8_000
"""Characters of an answer, and of the request it repeats, that fit into an event however they are written there."""
_PARTIAL_SECONDS = 0.5
"""Between two partial results of a job: what the limits of public relays bear."""


class Work:
    """Makes the attempts. ``infer`` is the handler of ``SaleEffect.INFER``."""

    def __init__(
        self,
        *,
        secret: SecretKey,
        pool: RelayPool,
        router: Router,
        clock: Clock,
        rng: random.Random,
        deadlines: Deadlines,
        slots: int,
    ) -> None:
        self._secret = secret
        self._pool = pool
        self._router = router
        self._clock = clock
        self._rng = rng
        self._deadlines = deadlines
        self._slots = trio.CapacityLimiter(slots)

    async def infer(self, sale: Sale) -> object:
        if sale.attempts:
            # An engine that died needs a moment to come back; others must not be hammered either.
            await trio.sleep(min(2.0 ** (sale.attempts - 1), 15.0) * (0.75 + 0.5 * self._rng.random()))
        request = InferenceRequest(
            model=sale.model,
            messages=(Message("user", sale.prompt),),
            max_tokens=sale.max_tokens,
            temperature=sale.temperature,
            top_p=sale.top_p,
            json_schema=sale.json_schema,
            seed=sale.seed,
        )
        async with self._slots:
            try:
                return await self._think(sale, request)
            except InferenceError as error:
                log.warning("sale %s: attempt %d failed: %s", sale.id[:16], sale.attempts + 1, error.message)
                return machine.AttemptFailed(error.message)
            except Exception as error:
                # Whatever a backend does, a paid job comes to its end.
                log.error("sale %s: attempt %d broke: %s", sale.id[:16], sale.attempts + 1, brief(error))
                return machine.AttemptFailed("the backend broke")

    async def _think(self, sale: Sale, request: InferenceRequest) -> machine.Answered | machine.AttemptFailed:
        text, usage, told = "", None, trio.current_time()
        async with self._router.stream(request, self._deadlines) as chunks:
            async for chunk in chunks:
                # Engines that cut in the middle of a character leave halves of it, which no event can carry.
                text += chunk.text.encode("utf-8", "replace").decode()
                usage = chunk.usage or usage
                if trio.current_time() - told >= _PARTIAL_SECONDS and chunk.finish_reason is None:
                    told = trio.current_time()
                    await self._tell_partial(sale, text)
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        if not self._can_be_sent(sale, text):
            return machine.AttemptFailed("the answer is too long to be sent")
        return machine.Answered(text, *tokens)

    def _can_be_sent(self, sale: Sale, text: str) -> bool:
        if text.strip() and max(len(text), len(sale.request)) <= _SURELY_FITS:
            return True
        try:
            event = compose(
                self._secret, attrs.evolve(sale, result=text), SaleEffect.PUBLISH_RESULT, int(self._clock.now())
            )
        except (JobInvalid, EventInvalid):
            return not text.strip()  # an empty answer is the machine's to judge
        return len(event.to_json().encode()) <= MAX_EVENT_BYTES

    async def _tell_partial(self, sale: Sale, text: str) -> None:
        """All words so far, to whoever listens now: partials are not kept, and nothing depends on them."""
        try:
            partial = compose_partial(self._secret, sale, text, int(self._clock.now()))
        except (JobInvalid, EventInvalid):
            return
        await self._pool.send_ephemeral(partial)
