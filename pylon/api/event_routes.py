"""``GET /v1/events``: what happens in the home, as server-sent events (WHATWG HTML, 9.2).

Each event has its mark as ``id``, its kind as ``event`` and its JSON as ``data``; missed ones are an event ``gap`` with
``{"missed"}``. A client that comes again says where it was by ``Last-Event-ID``, as browsers do by themselves, or by
``?mark=``, and is told the rest, as far as that is kept. Else ``?limit=`` recent ones come first. ``?kind=`` and
``?agent=`` choose; ``kind`` may be given more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import orjson
import trio

from pylon.api.app import refused
from pylon.api.guard import Message, Receive, Refusal, Scope, Send
from pylon.errors import PylonError
from pylon.events import EventStream, Gap, Heard, Listener, Told, Wanted

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

MOST_LISTENERS = 16
MOST_RECENT = 1_000
KEEP_ALIVE_SECONDS = 15.0
_AGAIN_MS = 1_000
"""After which a browser that was cut off comes again."""
_BUSY = Refusal(429, f"{MOST_LISTENERS} clients listen already: end one of them.", "too_many_requests", kind="requests")


class EventApi:
    """The route, and who listens.

    :param wanted: what somebody asks for, by kinds and an agent. Raises ``PylonError``.
    """

    def __init__(self, stream: EventStream, wanted: Callable[[Sequence[str], str | None], Wanted]) -> None:
        self._stream = stream
        self._wanted = wanted
        self.listeners = 0

    def routes(self) -> list[BaseRoute]:
        from starlette.routing import Route

        return [Route("/v1/events", self._events)]

    async def _events(self, request: Request) -> object:
        query = request.query_params
        limit, mark = query.get("limit", "0"), query.get("mark") or request.headers.get("last-event-id", "")
        try:
            if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and int(limit) <= MOST_RECENT):
                return refused(Refusal(400, f"limit is a whole number up to {MOST_RECENT:,}.", "invalid_limit"))
            wanted = self._wanted(query.getlist("kind"), query.get("agent"))
            listener = self._stream.listen(wanted, mark=mark)
        except PylonError as error:
            return refused(Refusal(400, error.message, error.code))
        recent = [] if mark else self._stream.recent(int(limit), wanted)
        return _Listening(self, listener, recent, request.method == "HEAD")


class _Listening:
    """One client, until it leaves, or takes nothing any more."""

    def __init__(self, api: EventApi, listener: Listener, recent: list[Told], only_head: bool) -> None:
        self._api = api
        self._listener = listener
        self._recent = recent
        self._only_head = only_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._api.listeners >= MOST_LISTENERS:
            await refused(_BUSY)(scope, receive, send)
            return
        start: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
        }
        self._api.listeners += 1  # before anything is waited for: of many at once none comes in unseen
        try:
            await send(start)
            if self._only_head:
                await send({"type": "http.response.body", "body": b""})
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                await self._tell(send)
                nursery.cancel_scope.cancel()
        finally:
            self._api.listeners -= 1

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _tell(self, send: Send) -> None:
        body = f"retry: {_AGAIN_MS}\n\n".encode() + b"".join(map(_frame, self._recent))
        while True:
            # Who takes nothing any more is cut off by the server; who is slow hears of a gap.
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = b": nothing happens\n\n"
            with trio.move_on_after(KEEP_ALIVE_SECONDS):
                body = b"".join(map(_frame, await self._listener.next()))


def _frame(heard: Heard) -> bytes:
    data = orjson.dumps(heard.to_json())
    if isinstance(heard, Gap):
        return b"event: gap\ndata: " + data + b"\n\n"
    return f"id: {heard.mark}\nevent: {heard.event.kind}\ndata: ".encode() + data + b"\n\n"
