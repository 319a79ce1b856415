"""Who may ask what of the API, before anything of it is read: one layer of ASGI around the application.

Rules
-----
1. Open paths (``is_open``) are for everybody: any Host, any Origin, no token; ``GET``, ``HEAD`` and ``OPTIONS`` only,
   and any web page may read the answer (CORS).
2. Every other path wants a Host that is the loopback or the public name, for a web page whose name was rebound to
   127.0.0.1 says its own; no foreign Origin; and the bearer token. Whether a path exists is told to its holder only.
3. A body is read whole before the application runs, at most so large and for so long. An answer may come before
   its request has ended; then what is still sent is thrown away, and the connection ends.
4. What breaks in the application is answered with 500 and told the log without its text.

Refusals have the shape of OpenAI's errors: ``{"error": {"message", "type", "param", "code"}}``.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import attrs
import orjson
import trio

from pylon.api.token import ApiToken
from pylon.errors import brief

log = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
_GRACE_SECONDS = 1.0
"""For a request that is refused before it has ended: to end, so that its sender reads why."""
_OPEN_METHODS = ("GET", "HEAD", "OPTIONS")
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"86400"),
)


def is_open(path: str) -> bool:
    """Health, and LNURL-pay's document and callback."""
    return path == "/health" or path.startswith(("/.well-known/lnurlp/", "/lnurlp/"))


@attrs.frozen
class Refusal:
    """An answer that ends a request."""

    status: int
    message: str
    code: str
    kind: str = "invalid_request_error"
    headers: Headers = ()

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return orjson.dumps({"error": error})


NOT_FOUND = Refusal(404, "There is nothing at this address.", "unknown_url")
BROKEN = Refusal(500, "The server had an error.", "server_error", kind="server_error")
_FOREIGN_HOST = Refusal(
    403, "This Host is not served here: use the loopback, or name it in [api] public_name.", "foreign_host"
)
_FOREIGN_ORIGIN = Refusal(403, "Requests of this web page (Origin) are not served here.", "foreign_origin")
_NO_TOKEN = Refusal(
    401,
    "You didn't provide the token: send `Authorization: Bearer TOKEN`; it stands in api.token in Pylon's home.",
    "missing_api_key",
    headers=((b"www-authenticate", b"Bearer"),),
)
_WRONG_TOKEN = Refusal(
    401,
    "Incorrect token provided: it stands in api.token in Pylon's home.",
    "invalid_api_key",
    headers=((b"www-authenticate", b"Bearer"),),
)
_METHOD = Refusal(405, "GET this address.", "method_not_allowed", headers=((b"allow", b"GET, HEAD, OPTIONS"),))
_TOO_LARGE = Refusal(413, f"A request has at most {MAX_BODY_BYTES} bytes.", "request_too_large")
_TOO_SLOW = Refusal(408, "The request did not arrive in time.", "request_timeout")


class Guard:
    """``app`` behind the rules. Speaks ASGI, HTTP only.

    :param public_name: the name of ``[api] public_name``, or empty.
    """

    def __init__(self, app: App, *, token: ApiToken, public_name: str = "") -> None:
        self._app = app
        self._token = token
        self._public_host = host_of(f"//{public_name}") if public_name else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            async with trio.open_nursery() as nursery:
                await self._serve(scope, _Exchange(scope, receive, send, nursery))
                nursery.cancel_scope.cancel()

    async def _serve(self, scope: Scope, exchange: _Exchange) -> None:
        """One request. Every way out of here has answered it, unless the client has gone."""
        try:
            taken = self._refusal(scope) or await exchange.read()
            if isinstance(taken, Refusal):
                await exchange.refuse(taken)
            elif taken is not None and exchange.open and scope["method"] == "OPTIONS":
                await exchange.answer(204, b"", ())
            elif taken is not None:
                await self._app(scope, exchange.replay(taken), exchange.send)
        except Exception as error:
            log.error("a request broke: %s", brief(error))
            if not exchange.started:
                await exchange.refuse(BROKEN)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if is_open(scope["path"]):
            return None if scope["method"] in _OPEN_METHODS else _METHOD
        headers = scope["headers"]
        hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
        if len(hosts) != 1 or not self._is_ours(host_of(f"//{hosts[0]}")):
            return _FOREIGN_HOST
        if any(not self._is_ours(host_of(origin)) for origin in origins):
            return _FOREIGN_ORIGIN
        presented = _values(headers, b"authorization")
        if not presented:
            return _NO_TOKEN
        scheme, _, value = presented[0].strip().partition(" ")
        right = self._token.matches(value.strip().encode("latin-1"))
        return None if right and scheme.lower() == "bearer" and len(presented) == 1 else _WRONG_TOKEN

    def _is_ours(self, host: str | None) -> bool:
        if not host:
            return False
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host in ("localhost", self._public_host)


class _Exchange:
    """One request and its answer, as the guard hands them on."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, nursery: trio.Nursery) -> None:
        self.open = is_open(scope["path"])
        self.started = False
        self._receive = receive
        self._send = send
        self._nursery = nursery
        self._ended = trio.Event()
        """The request was received whole, or the client has gone."""
        self._length = _values(scope["headers"], b"content-length")
        self._has_body = bool(self._length or _values(scope["headers"], b"transfer-encoding"))

    async def read(self) -> bytes | Refusal | None:
        """The body, or why it is not taken; ``None`` where the client has gone."""
        if any(length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES for length in self._length):
            return _TOO_LARGE
        body = bytearray()
        with trio.move_on_after(BODY_SECONDS):
            while not self._ended.is_set():
                message = await self._take()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    return _TOO_LARGE
            return bytes(body)
        return _TOO_SLOW

    def replay(self, body: bytes) -> Receive:
        """What the application reads: the body once, then whether the client goes."""
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await self._receive()

        return receive

    async def send(self, message: Message) -> None:
        """What the application answers, with what every answer carries."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            headers += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
            headers += _CORS if self.open else ()
            if not self._ended.is_set():
                headers += [(b"connection", b"close")] if self._has_body else []
                await self._throw_away()
            message = {**message, "headers": headers}
        await self._send(message)

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        await self.answer(refusal.status, refusal.body(), [(b"content-type", b"application/json"), *refusal.headers])

    async def _take(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended.set()
        return message

    async def _throw_away(self) -> None:
        """From now on, take what is still sent: the server waits for that even to close the connection."""

        async def take_all() -> None:
            while not self._ended.is_set():
                await self._take()

        self._nursery.start_soon(take_all)
        with trio.move_on_after(_GRACE_SECONDS):
            await self._ended.wait()


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def host_of(url: str) -> str | None:
    """The host of an address with or without scheme, without its port; ``None`` where there is none to be seen."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        return None
    return (parts.hostname or "").rstrip(".") or None
