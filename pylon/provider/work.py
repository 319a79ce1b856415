"""The thinking of a sale: attempts at an answer that can be sent.

An attempt asks the backends that have the model, one after the other, until one answers; each has its own room, for
which customers take turns (``pylon.provider.turns``). It counts only if a backend really tried. While none is there
the job waits for one that comes up, for a bounded time: so an engine that restarts costs a paid job nothing, and one
that is gone for good does not keep the customer's money waiting.
"""

from __future__ import annotations

import logging
import random

import attrs
import trio

from protocols.keys import SecretKey
from protocols.nip01 import MAX_EVENT_BYTES, EventInvalid
from protocols.nip90 import JobInvalid
from pylon.clock import Clock
from pylon.errors import BackendUnavailable, InferenceError, brief
from pylon.inference.port import Deadlines, InferenceRequest, Message
from pylon.inference.router import Route, Router
from pylon.provider import sale as machine
from pylon.provider.partials import Partials
from pylon.provider.replies import compose
from pylon.provider.sale import MAX_ATTEMPTS, Sale, SaleEffect
from pylon.provider.turns import Ticket, Turns
from pylon.relays.pool import RelayPool

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds for which a job waits, in all, for a backend that can answer."""
_SURELY_FITS = 8_000
"""Characters of an answer, and of the request it repeats, that fit into an event however they are written there."""
_LOOK_AGAIN = 15.0
"""Seconds after which a job that waits for its turn looks whether other backends have come up."""
_LONGEST_NAP = 15.0
_MOST_REMEMBERED = 10_000


class _Gone(Exception):
    """The backend could not begin: not a try."""


class Work:
    """Makes the attempts. ``infer`` is the handler of ``SaleEffect.INFER``.

    :param slots: answers at a time of a backend that says nothing of how many it makes.
    """

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
        self._router = router
        self._clock = clock
        self._rng = rng
        self._deadlines = deadlines
        self._turns: Turns[int] = Turns({id(place.backend): place.most or slots for place in router.places})
        self._partials = Partials(secret=secret, pool=pool, clock=clock)
        self._patience: dict[str, float] = {}
        """Seconds for which jobs may still wait for a backend: of those that have waited."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return self._turns.waiting

    async def infer(self, sale: Sale) -> object:
        if sale.attempts:
            # An engine that died needs a moment to come back; others must not be hammered either.
            await trio.sleep(min(2.0 ** (sale.attempts - 1), 15.0) * (0.75 + 0.5 * self._rng.random()))
        outcome = await self._attempt(sale)
        if isinstance(outcome, machine.Answered) or sale.attempts + 1 >= MAX_ATTEMPTS:
            self._patience.pop(sale.id, None)
        return outcome

    async def _attempt(self, sale: Sale) -> machine.Answered | machine.AttemptFailed:
        """One attempt, by whichever backend: the first that answers."""
        tried: set[int] = set()
        away: set[int] = set()
        failure, nap = "", 1.0
        while True:
            why = "no backend can answer"
            try:
                routes = await self._routes(sale, tried | away)
                if routes:
                    return await self._take_turn(sale, routes, tried, away)
            except _Gone as error:
                log.info("sale %s: %s", sale.id[:16], error)
                continue
            except BackendUnavailable as error:
                why = error.message
            except InferenceError as error:
                failure = failure or error.message
                log.warning("sale %s: attempt %d failed: %s", sale.id[:16], sale.attempts + 1, error.message)
                continue
            except Exception as error:
                # Whatever a backend does, a paid job comes to its end.
                failure = failure or "the backend broke"
                log.error("sale %s: attempt %d broke: %s", sale.id[:16], sale.attempts + 1, brief(error))
                continue
            if failure:
                return machine.AttemptFailed(failure)
            if not await self._nap(sale, nap):
                log.warning("sale %s: nobody could do it in %g s: %s", sale.id[:16], PATIENCE, why)
                return machine.AttemptFailed(why)
            away.clear()
            nap = min(2 * nap, _LONGEST_NAP)

    async def _nap(self, sale: Sale, seconds: float) -> bool:
        """Wait a moment for a backend; ``False``: this job has waited long enough."""
        left = self._patience.get(sale.id, PATIENCE)
        if left <= 0:
            return False
        if len(self._patience) >= _MOST_REMEMBERED:
            self._patience.pop(next(iter(self._patience)))
        seconds *= 0.75 + 0.5 * self._rng.random()
        self._patience[sale.id] = left - seconds
        await trio.sleep(min(seconds, left))
        return True

    async def _routes(self, sale: Sale, besides: set[int]) -> list[Route]:
        """The backends that could do it, the best first. Raises ``BackendUnavailable``."""
        return [route for route in await self._router.candidates(sale.model) if id(route.backend) not in besides]

    async def _take_turn(
        self, sale: Sale, routes: list[Route], tried: set[int], away: set[int]
    ) -> machine.Answered | machine.AttemptFailed:
        """Think at one of these backends, when it is our turn. One that fails is noted in ``tried`` or in ``away``."""
        ticket = self._turns.enter(sale.customer, first=_is_paid(sale))
        try:
            route = await self._wait_for_turn(sale, ticket, routes, tried | away)
            try:
                return await self._think(sale, route)
            except _Gone:
                away.add(id(route.backend))
                raise
            except Exception:
                tried.add(id(route.backend))
                raise
        finally:
            self._turns.leave(ticket)

    async def _wait_for_turn(self, sale: Sale, ticket: Ticket[int], routes: list[Route], besides: set[int]) -> Route:
        while True:
            by_backend = {id(route.backend): route for route in routes}
            key = await self._turns.wait(ticket, tuple(by_backend), _LOOK_AGAIN)
            if key is not None:
                return by_backend[key]
            try:
                routes = await self._routes(sale, besides) or routes
            except BackendUnavailable:
                log.debug("sale %s waits for its turn at a backend that is away", sale.id[:16])
            if ticket.at is not None:
                return by_backend[ticket.at]

    async def _think(self, sale: Sale, route: Route) -> machine.Answered | machine.AttemptFailed:
        """Raises ``InferenceError``, and ``_Gone`` for a backend that was away before it said a word."""
        request = InferenceRequest(
            model=sale.model,
            messages=(Message("user", sale.prompt),),
            max_tokens=sale.max_tokens,
            temperature=sale.temperature,
            top_p=sale.top_p,
            json_schema=sale.json_schema,
            seed=sale.seed,
        )
        text, usage = "", None
        telling = self._partials.of(sale)
        try:
            async with self._router.stream(request, self._deadlines, only=route.backend) as chunks:
                async for chunk in chunks:
                    # Engines that cut in the middle of a character leave halves of it, which no event can carry.
                    text += chunk.text.encode("utf-8", "replace").decode()
                    usage = chunk.usage or usage
                    if chunk.finish_reason is None:
                        await telling.tell(text)
        except BackendUnavailable as error:
            if text:
                # It had begun: let the machine count it.
                raise InferenceError(error.message, error.hint) from error
            raise _Gone(error.message) from error
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


def _is_paid(sale: Sale) -> bool:
    """Whether something was paid for it, or is held: its turn comes before those of all free jobs."""
    return sale.paid + sale.held + sale.credit_used > 0
