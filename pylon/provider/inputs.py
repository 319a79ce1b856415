"""The inputs of a request that are somewhere else (NIP-90 ``i`` tags): an event, another job's result, an address.

Rules
-----
1. They are looked for before the job is priced, for what they hold is part of the prompt; and only on our own relays:
   a relay that a stranger names is not one that we connect to.
2. An event is its content.
3. A job is its result: of ours, where it was published and is not somebody else's secret; of others, the earliest
   result by the provider that its request names, or by anybody where it names none. It is waited for, a minute.
4. An address is fetched where the owner has said so (``fetch_urls``), by ``pylon.provider.fetching``.
5. So many requests at a time may look for inputs, each for so many; the others are refused.
"""

from __future__ import annotations

import trio

from protocols.keys import SecretKey, is_hex
from protocols.nip01 import Event, Filter
from protocols.nip90 import JobInput, JobInvalid, JobRequest, parse_result
from pylon.provider.fetching import InputRefused, fetch_input
from pylon.provider.pricing import Terms
from pylon.provider.sale import SALE, Sale, SaleState
from pylon.relays.pool import RelayPool
from pylon.store.database import Store
from pylon.store.records import RecordTable

MOST = 8
"""Inputs of one request that are somewhere else."""
AT_ONCE = 16
"""Requests that look for theirs at a time."""
JOB_SECONDS = 60.0
"""How long the result of another job is waited for."""
_EVENT_SECONDS = 5.0
_PUBLISHED = (SaleState.SERVED, SaleState.DELIVERED)


class Inputs:
    """Finds them."""

    def __init__(self, *, secret: SecretKey, store: Store, pool: RelayPool, records: RecordTable[Sale]) -> None:
        self._secret = secret
        self._store = store
        self._pool = pool
        self._records = records
        self._places = trio.Semaphore(AT_ONCE)

    async def find(self, job: JobRequest, terms: Terms) -> dict[JobInput, str]:
        """The texts of all ``outside`` inputs of ``job``. Raises ``InputRefused``, in words for everybody."""
        wanted = dict.fromkeys(job.outside)
        if not terms.fetch_urls and any(entry.type == "url" for entry in wanted):
            raise InputRefused("inputs of type url are not fetched here")
        if len(wanted) > MOST:
            raise InputRefused(f"more than {MOST} inputs are somewhere else")
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            raise InputRefused("too many inputs are being looked for at the moment") from None
        found: dict[JobInput, str] = {}
        try:
            async with trio.open_nursery() as nursery:
                for entry in wanted:
                    nursery.start_soon(self._find, job, entry, terms.max_prompt_chars, found)
        except BaseExceptionGroup as group:
            refused, other = group.split(InputRefused)
            if other is not None or refused is None:
                raise
            raise _first(refused) from None
        finally:
            self._places.release()
        return found

    async def _find(self, job: JobRequest, entry: JobInput, most_chars: int, found: dict[JobInput, str]) -> None:
        match entry.type:
            case "url":
                text = await fetch_input(entry.data, max_bytes=4 * most_chars)
            case "event":
                text = (await self._event(entry.data)).content
            case _:
                text = await self._result(job, entry.data)
        if len(text) > most_chars:
            raise InputRefused(f"an input is longer than {most_chars:,} characters")
        found[entry] = text

    async def _event(self, event_id: str) -> Event:
        if not is_hex(event_id, 64):
            raise InputRefused("an input names no event")
        events = await self._pool.fetch([Filter(ids=[event_id])], _EVENT_SECONDS)
        if not events:
            raise InputRefused("an input names an event that is not on our relays")
        return events[0]

    async def _result(self, job: JobRequest, request_id: str) -> str:
        if not is_hex(request_id, 64):
            raise InputRefused("an input names no job")
        ours = self._records.load(self._store, request_id)
        text: str | None = None
        with trio.move_on_after(JOB_SECONDS):
            text = await (self._of_others(request_id) if ours is None else self._of_ours(job, ours))
        if text is None:
            raise InputRefused("an input names a job that has no result")
        return text

    async def _of_ours(self, job: JobRequest, sale: Sale) -> str:
        """Waits for it for as long as it may still come."""
        if sale.encrypted and sale.customer != job.customer:
            raise InputRefused("an input names a job whose result is for somebody else")
        with self._store.listen(f"{self._records.table}:{sale.id}") as moved:
            while True:
                now = self._records.load(self._store, sale.id)
                if now is not None and now.state in _PUBLISHED and now.result:
                    return now.result
                if now is None or now.state in SALE.final:
                    raise InputRefused("an input names a job that has no result")
                await moved.receive()

    async def _of_others(self, request_id: str) -> str:
        """Waits for it, if need be for ever."""
        request = await self._event(request_id)
        provider = request.tag("p")
        authors = [provider] if is_hex(provider, 64) else None
        wanted = Filter(kinds=[request.kind + 1_000], authors=authors, tags={"e": [request_id]})
        stored = await self._pool.fetch([wanted], _EVENT_SECONDS)
        for event in reversed(stored):
            if (text := self._read(event)) is not None:
                return text
        async with self._pool.subscribe([wanted], since=request.created_at) as results:
            async for received in results:
                if (text := self._read(received.event)) is not None:
                    return text
        raise InputRefused("an input names a job that has no result")

    def _read(self, event: Event) -> str | None:
        """The words of a result that we can read."""
        try:
            return parse_result(event, self._secret).text.strip() or None
        except JobInvalid:
            return None


def _first(group: BaseExceptionGroup[InputRefused]) -> InputRefused:
    """One of the refusals."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, InputRefused)
    return error
