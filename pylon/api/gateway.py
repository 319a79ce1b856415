"""The market behind the API: each call buys its answer from a provider, within a budget.

Rules
-----
1. A call is one purchase of the home's, with the scope ``API_SCOPE``: the purse holds it against the home's own limits
   and those of the gateway, in the transaction that reserves (``pylon.wallets.limits``). Here it is only asked
   beforehand what they leave, so that a call that cannot be paid for is refused at once.
2. Words are passed on as the provider sends them. What was passed on cannot be taken back: if the result does not go
   on where they ended, the call ends with an error that names the job, whose result is kept.
3. Nothing tempts a client into paying twice: an error after a payment says that it is not worth another try.
   A call that comes with the ``Idempotency-Key`` of an earlier one gets the answer of that one.
4. A caller that leaves gives the purchase up, as long as nothing is paid for good and no word was passed on: a payment
   that is held until the delivery comes back. Later its answer is kept in ``pylon job``. One with a key may come again,
   and what it asked for takes its course.

Providers count no tokens for us: usage is an estimate. Stop sequences are cut here, for a request carries none.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import trio

from protocols.json_schema import MAX_CHARS, SchemaInvalid, read_schema
from pylon.api.answerer import FEE_HEADER, JOB_HEADER, PAID_HEADER, PRICE_HEADER, Answer
from pylon.api.openai_shapes import ApiError, flatten, model_not_found
from pylon.compute.buyer import Buyer
from pylon.compute.purchase import PURCHASE, Purchase, PurchaseState
from pylon.compute.ranking import rank
from pylon.errors import PylonError
from pylon.inference.port import Chunk, InferenceRequest, ModelInfo
from pylon.money import MAX_MSAT, Msat, format_msat
from pylon.store import intents
from pylon.store.database import Reads, Store
from pylon.wallets.limits import API_SCOPE
from pylon.wallets.purse import Purse

MAX_PROMPT_CHARS = 32_000
"""What a provider reads at most."""
WALLET_SECONDS = 15.0
ANSWER_SECONDS = 600.0
"""For a purchase; then its caller is told that it goes on: a payment may be pending, or wait for the operator's yes."""
_GIVE_UP_SECONDS = 5.0
_ONCE = (("x-should-retry", "false"),)
"""OpenAI's own clients heed it."""


class MarketAnswerer:
    """Buys each answer.

    :param most: for one answer, fee not included.
    :param network: as providers announce it.
    :param own: the buyer's public key, hex: nobody buys from itself.
    :param open_market: everybody is asked, in public.
    :param scope: of the purchases; the empty one is for what somebody buys by hand, bounded by ``most`` alone.
    """

    default_tokens = 256

    def __init__(
        self,
        buyer: Buyer,
        purse: Purse,
        store: Store,
        *,
        most: Msat,
        network: str,
        own: str,
        scope: str = API_SCOPE,
        open_market: bool = False,
    ) -> None:
        self._buyer = buyer
        self._purse = purse
        self._store = store
        self._most = most
        self._network = network
        self._own = own
        self._scope = scope
        self._open = open_market

    async def models(self) -> list[ModelInfo]:
        """Those that providers of this network announce now."""
        found = await self._buyer.announced()
        names = {name for each in found if each.network in ("", self._network) for name in each.models}
        return [ModelInfo(name, "market") for name in sorted(names)]

    @asynccontextmanager
    async def stream(self, request: InferenceRequest, *, whole: bool = False, key: str = "") -> AsyncIterator[Answer]:
        prompt = flatten(request.messages)
        if len(prompt) > MAX_PROMPT_CHARS:
            raise ApiError(
                400,
                f"The messages have {len(prompt):,} characters; at most {MAX_PROMPT_CHARS:,} are sent to the market.",
                "context_length_exceeded",
                param="messages",
            )
        if not prompt.strip():
            raise ApiError(400, "There is nothing to answer.", "empty_prompt", param="messages")
        params = _params(request)
        ident, standing = self._standing(key) if key else (None, None)
        bid = await self._bid() if standing is None else standing.bid
        model = request.model or None
        purchase = await self._buyer.buy(
            prompt,
            bid=bid,
            max_tokens=request.max_tokens,
            model=model,
            open_market=self._open,
            scope=self._scope,
            params=params,
            upfront=not whole,
            purchase_id=ident,
        )
        asked = (purchase.prompt, purchase.max_tokens, purchase.model, purchase.params)
        if asked != (prompt, request.max_tokens, model, params):
            raise ApiError(400, "This Idempotency-Key was used for another question.", "idempotency_key_reused")
        with self._buyer.watch(purchase.id) as partials:
            bought = _Bought(self._buyer, self._store, purchase, None if whole else partials, self._why_failed)
            try:
                yield bought.answer
            finally:
                if not (bought.over or bought.said or key):
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + _GIVE_UP_SECONDS):
                        await self._buyer.give_up(purchase.id, "its caller has left")

    def _standing(self, key: str) -> tuple[str, Purchase | None]:
        """The purchase of a key, and its id. One that has failed is nobody's: it has cost nothing."""
        for attempt in itertools.count():
            ident = hashlib.sha256(f"{self._scope}:{attempt}:{key}".encode()).hexdigest()[:32]
            found = self._buyer.records.load(self._store, ident)
            if found is None or found.state is not PurchaseState.FAILED:
                return ident, found
        raise AssertionError("there is always a next one")

    async def _bid(self) -> Msat:
        """The most that this answer may cost now. Raises ``ApiError``."""
        try:
            with trio.fail_after(WALLET_SECONDS):
                spendable = (await self._purse.wallet.balance()).spendable
            left = self._purse.affordable(self._store, scope=self._scope, spendable=spendable)
        except (PylonError, trio.TooSlowError) as error:
            why = error.message if isinstance(error, PylonError) else "the wallet did not answer in time"
            raise ApiError(
                503, f"Nothing can be bought now: {why}.", "wallet_unavailable", kind="server_error", headers=_ONCE
            ) from None
        if left < 1:
            raise quota_exceeded("the budgets of this home, or its balance, carry no answer now")
        return min(left, self._most)

    async def _why_failed(self, record: Purchase) -> ApiError:
        """What the caller is told of a purchase that ended without an answer."""
        job = f"job {record.id[:16]}"
        headers = (*_costs(record), *_ONCE)
        if record.state is PurchaseState.LOST:
            words = f"{job} was paid, and no answer came in time; a late one is kept: pylon job status {record.id[:16]}"
            return ApiError(503, f"The {words}.", "answer_lost", kind="server_error", headers=headers)
        if record.state is PurchaseState.CREDITED:
            words = f"the provider failed, and owes {format_msat(record.credit)} for {job}"
            return ApiError(
                503, f"{words[:1].upper()}{words[1:]}.", "provider_failed", kind="server_error", headers=headers
            )
        try:
            left = await self._bid()
        except ApiError as error:
            return error
        if left < record.bid or (not record.tried and self._sold(record.model)):
            return quota_exceeded(record.reason)
        if record.model and not record.tried and self._sold(None):
            return model_not_found(record.model)
        return ApiError(
            503,
            f"No provider has answered: {record.reason}.",
            "no_provider",
            kind="server_error",
            headers=_costs(record),
        )

    def _sold(self, model: str | None) -> bool:
        """Whether it was for sale a moment ago, at any price."""
        found = self._buyer.remembered()
        return bool(
            rank(found, bid=Msat(MAX_MSAT), model=model, network=self._network, excluded=[self._own], wanted=None)
        )


def paid_so_far(source: Reads) -> dict[str, float]:
    """For ``/metrics``: what the API's purchases have cost, each once, whoever has waited for its answer."""
    row = source.one(
        "SELECT COALESCE(SUM(amount_msats), 0) AS paid, COALESCE(SUM(fee_msats), 0) AS fees FROM intents"
        " WHERE scope = ? AND state = 'settled' AND purpose = ?",
        (API_SCOPE, intents.PURCHASE),
    )
    assert row is not None, "an aggregate has a row"
    return {"api_paid_msats_total": row["paid"], "api_fee_msats_total": row["fees"]}


def quota_exceeded(why: str) -> ApiError:
    """Status 429, as OpenAI has it; another try before the budget has room again is of no use."""
    return ApiError(
        429,
        f"The budget is spent: {why}. See [api] and [wallet] in config.toml, and pylon wallet balance.",
        "insufficient_quota",
        kind="insufficient_quota",
        headers=_ONCE,
    )


def _params(request: InferenceRequest) -> tuple[tuple[str, str], ...]:
    """What a NIP-90 request can say of it. Raises ``ApiError``."""
    params = []
    for name in ("temperature", "top_p", "seed"):
        value = getattr(request, name)
        if value is not None:
            params.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
    if request.json_schema is not None:
        text = orjson.dumps(request.json_schema).decode()
        try:
            read_schema(text)
        except SchemaInvalid as error:
            raise ApiError(
                400,
                f"The schema cannot be sent to the market (at most {MAX_CHARS:,} characters): {error}.",
                "invalid_schema",
                param="response_format",
            ) from None
        params.append(("json_schema", text))
    return tuple(params)


def _costs(record: Purchase) -> tuple[tuple[str, str], ...]:
    """A payment that is held until the answer is whole is none yet, and not one of nothing."""
    if record.state is not PurchaseState.PAID and record.state not in PURCHASE.final:
        return (PRICE_HEADER, str(record.quoted)), (JOB_HEADER, record.id)
    return (PAID_HEADER, str(record.paid)), (FEE_HEADER, str(record.fee)), (JOB_HEADER, record.id)


class _Bought(AsyncIterator[Chunk]):
    """The words of one purchase, as they come."""

    def __init__(
        self,
        buyer: Buyer,
        store: Store,
        purchase: Purchase,
        partials: trio.MemoryReceiveChannel[str] | None,
        why_failed: Callable[[Purchase], Awaitable[ApiError]],
    ) -> None:
        self._buyer = buyer
        self._store = store
        self._id = purchase.id
        self._partials = partials
        self._why_failed = why_failed
        self.said = ""
        """What was passed on. It is paid for, also where the rest is not wanted any more: it was said on trust."""
        self.over = False
        """Nothing more will come, or nobody waits for it here."""
        self._until = trio.current_time() + ANSWER_SECONDS
        self.answer = Answer(self, purchase.model or "market")
        self.answer.headers[JOB_HEADER] = purchase.id

    async def __anext__(self) -> Chunk:
        while not self.over:
            text = await self._next()
            if isinstance(text, Purchase):
                return await self._last(text)
            if len(text) > len(self.said) and text.startswith(self.said):
                if not self.said:
                    self._tell(self._buyer.records.load(self._store, self._id))
                more, self.said = text[len(self.said) :], text
                return Chunk(more)
        raise StopAsyncIteration

    async def _next(self) -> str | Purchase:
        """All the words so far, or how it ended. Raises ``ApiError`` where neither comes in time."""
        found: list[str | Purchase] = []

        async def look(wait: Callable[[], Awaitable[str | Purchase]]) -> None:
            found.append(await wait())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = self._until
            if self._partials is not None:
                nursery.start_soon(look, self._partials.receive)
            nursery.start_soon(look, functools.partial(self._buyer.finished, self._id))
        if not found:
            self.over = True
            raise ApiError(
                503,
                f"Job {self._id[:16]} takes long, and goes on: pylon job status {self._id[:16]}.",
                "answer_pending",
                kind="server_error",
                headers=((JOB_HEADER, self._id), *_ONCE),
            )
        return next((end for end in found if isinstance(end, Purchase)), found[0])

    async def _last(self, record: Purchase) -> Chunk:
        self.over = True
        self._tell(record)
        if record.state is not PurchaseState.ANSWERED:
            raise await self._why_failed(record)
        text = record.text or ""
        if not text.startswith(self.said):
            raise ApiError(
                500,
                f"The provider began anew; the whole answer is kept: pylon job status {record.id[:16]}.",
                "answer_changed",
                kind="server_error",
                headers=(*_costs(record), *_ONCE),
            )
        return Chunk(text[len(self.said) :], "stop")

    def _tell(self, record: Purchase | None) -> None:
        if record is not None:
            self.answer.headers.pop(PRICE_HEADER, None)
            self.answer.headers.update(_costs(record))
