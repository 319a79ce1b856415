"""The tunnel server: a machine behind a router and a web page anywhere meet here. It forwards, and keeps nothing.

====  ================================  ==========================================================================
GET   ``/``                             the page; its address carries session and ticket behind the ``#``
POST  ``/api/tunnel/register``          the owner: a new session -> ``{session_id, tunnel_token, tunnel_url, …}``
GET   ``/api/tunnel/status/{session}``  the owner, or who has a ticket of it: ``{tunnel_connected, browsers}``
GET   ``/api/tunnel/ws/tunnel``         the machine's WebSocket: ``?session_id=…&token=…``, or a bearer token
GET   ``/api/tunnel/ws/browser``        a page's: ``?session_id=…``; its first message is
                                        ``{"type": "browser_auth", "token": …}``
====  ================================  ==========================================================================

Rules
-----
1. The owner's token registers; each end of a session has a ticket of its own, good for a day. All are compared in
   constant time, and stand in no log. A socket ends with its ticket.
2. A Host that is neither the loopback nor the public name is refused, for a web page whose name was rebound to
   127.0.0.1 says its own; so is the Origin of any other web page.
3. Strangers, who have shown no ticket yet, have ten seconds, small messages, and connections of their own number.
"""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlencode, urlsplit

import attrs
import orjson
import trio

from pylon.api.guard import host_of
from pylon.api.server import open_listeners
from pylon.api.token import ApiToken
from pylon.clock import Clock
from pylon.config_values import Bind
from pylon.errors import ConfigError, UsageError, brief
from pylon.publicnet import is_loopback
from pylon.tunnel.messages import MAX_FRAME_BYTES
from pylon.tunnel.page import load_page
from pylon.tunnel.request import Answer, Gone, HttpConnection, HttpRefused, Request, refusal
from pylon.tunnel.switchboard import GOING_AWAY, REFUSED, Switchboard, dismiss
from pylon.tunnel.tickets import LIFETIME_SECONDS, Role, Tickets, is_session_id, new_session_id
from pylon.tunnel.websocket import ServerSocket, SocketClosed

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_STRANGERS = 64
STRANGER_SECONDS = 10.0
_STRANGER_BYTES = 4_096
_FAREWELL_SECONDS = 0.5

_API = "/api/tunnel/"
_NOT_FOUND = refusal(404, "not_found", "there is nothing at this address")
_FOREIGN_HOST = refusal(403, "foreign_host", "this Host is not served here: name it with --public-url")
_FOREIGN_ORIGIN = refusal(403, "foreign_origin", "requests of this web page (Origin) are not served here")
_NOT_OWNER = refusal(
    401, "owner_token", "send the owner's token: Authorization: Bearer TOKEN", ("WWW-Authenticate", "Bearer")
)
_NO_TICKET = refusal(401, "ticket_refused", "this ticket is none, or has ended: register a new session")


@attrs.frozen
class Registration:
    """A session, and how its two ends reach it. Who knows these addresses is that end."""

    session_id: str
    tunnel_token: str = attrs.field(repr=False)
    tunnel_url: str = attrs.field(repr=False)
    browser_token: str = attrs.field(repr=False)
    browser_url: str
    """The WebSocket; it wants the token as its first message."""
    page_url: str = attrs.field(repr=False)
    expires_at: int
    """Unix seconds."""


@attrs.frozen
class _Ticket:
    """Who has shown one, and for how many seconds it is good."""

    role: Role
    session_id: str
    seconds: float


class TunnelServer:
    """One server. ``listen``, then ``serve``.

    :param secret: what the tickets are made with; who has the same one knows the same tickets.
    :param public_url: where others reach it, as ``https://tunnel.example.org``; ``None``: where it listens.
    :param lifetime: of a ticket, seconds.
    """

    def __init__(
        self,
        owner: ApiToken,
        secret: bytes,
        *,
        clock: Clock,
        public_url: str | None = None,
        lifetime: float = LIFETIME_SECONDS,
    ) -> None:
        self._owner = owner
        self._tickets = Tickets(secret)
        self._clock = clock
        self._public = None if public_url is None else _public(public_url)
        self._lifetime = lifetime
        self._page = load_page()
        self._switchboard = Switchboard()
        self._listeners: list[trio.SocketListener] = []
        self.bound: Bind | None = None
        """Where it listens; the first, where a name has several addresses."""
        self.is_plain = False
        """It can be reached from outside this machine, without TLS."""
        self._is_private = True
        self._base = ""
        self._connections = 0
        self._strangers = 0

    async def listen(self, bind: Bind) -> str:
        """Returns the address that others use, without a path. Raises ``ConfigError``."""
        try:
            listeners = await open_listeners(bind)
        except OSError as error:
            raise ConfigError(
                f"the tunnel server cannot listen on {bind}: {error.strerror or error}",
                "name another address with --bind; port 0 takes a free one",
            ) from None
        self._listeners = listeners
        host, port = listeners[0].socket.getsockname()[:2]
        address = ipaddress.ip_address(host)
        self.bound, self._is_private = Bind(host, port), address.is_loopback
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        self._base = self._public or f"http://{Bind(host, port)}"
        private = self._is_private and is_loopback(host_of(self._base.partition(":")[2]) or "")
        self.is_plain = self._base.startswith("http:") and not private
        return self._base

    async def serve(self) -> None:
        """Until cancelled."""
        await trio.serve_listeners(self._handle, self._listeners)

    def register(self) -> Registration:
        """A new session. Nothing is kept of it."""
        session_id, now = new_session_id(), self._clock.now()
        tunnel = self._tickets.issue(session_id, "tunnel", now, self._lifetime)
        browser = self._tickets.issue(session_id, "browser", now, self._lifetime)
        socket = "ws" + self._base.removeprefix("http") + _API + "ws/"
        return Registration(
            session_id=session_id,
            tunnel_token=tunnel,
            tunnel_url=f"{socket}tunnel?{urlencode({'session_id': session_id, 'token': tunnel})}",
            browser_token=browser,
            browser_url=f"{socket}browser?{urlencode({'session_id': session_id})}",
            page_url=f"{self._base}/#{urlencode({'session_id': session_id, 'token': browser})}",
            expires_at=int(now + self._lifetime),
        )

    # --- a connection -----------------------------------------------------------------------------------------

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS or self._strangers >= MAX_STRANGERS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            await self._serve(stream)
        except Exception as error:
            # Whatever a stranger sends may end this connection, never the listener.
            log.debug("a connection failed: %s", brief(error))
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        shown = None
        self._strangers += 1
        try:
            with trio.move_on_after(STRANGER_SECONDS):
                shown = await self._meet(HttpConnection(stream))
        finally:
            self._strangers -= 1
        if shown is not None:
            ticket, socket = shown
            await self._let_in(ticket, socket)

    async def _meet(self, connection: HttpConnection) -> tuple[_Ticket, ServerSocket] | None:
        """Answer a request, or open the WebSocket of somebody who has a ticket."""
        request = None
        try:
            request = await connection.read()
            answer = self._refusal(request) or self._route(request)
            if isinstance(answer, Answer):
                await connection.answer(answer, bodiless=request.method == "HEAD")
                return None
            received = await connection.upgrade(request)
        except HttpRefused as refused:
            await connection.answer(refused.answer)
            return None
        except Gone:
            return None
        socket = ServerSocket(connection.stream, received, _STRANGER_BYTES)
        if answer.role == "browser":
            found = await self._ask_for_ticket(answer.session_id, socket)
            if found is None:
                await socket.close(REFUSED, "this ticket is none, or has ended")
                return None
            answer = found
        socket.max_bytes = MAX_FRAME_BYTES
        return answer, socket

    async def _ask_for_ticket(self, session_id: str, socket: ServerSocket) -> _Ticket | None:
        try:
            said = orjson.loads(await socket.receive())
        except (orjson.JSONDecodeError, SocketClosed):
            return None
        if not isinstance(said, dict) or said.get("type") != "browser_auth" or not isinstance(said.get("token"), str):
            return None
        return self._ticket(session_id, "browser", said["token"])

    async def _let_in(self, ticket: _Ticket, socket: ServerSocket) -> None:
        serve = self._switchboard.serve_machine if ticket.role == "tunnel" else self._switchboard.serve_page
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.keep_alive)
                with trio.move_on_after(ticket.seconds) as validity:
                    await serve(ticket.session_id, socket)
                if validity.cancelled_caught and ticket.role == "tunnel":
                    await dismiss(socket, "unauthorized", REFUSED, "the ticket has ended")
                elif validity.cancelled_caught:
                    await socket.close(REFUSED, "the ticket has ended")
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(_FAREWELL_SECONDS, shield=True):  # where nobody else has ended it, the server does
                await socket.close(GOING_AWAY, "the server stops")

    # --- requests ---------------------------------------------------------------------------------------------

    def _refusal(self, request: Request) -> Answer | None:
        host = request.one("host")
        if host is None or not self._is_ours(host_of(f"//{host}")):
            return _FOREIGN_HOST
        origins = request.all("origin")
        if any(_place(origin) is None or _place(origin) != _place(_like(origin, host)) for origin in origins):
            return _FOREIGN_ORIGIN
        return None

    def _is_ours(self, host: str | None) -> bool:
        if host is None or is_loopback(host):
            return host is not None
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return self._public is not None and host == urlsplit(self._public).hostname
        return not self._is_private  # no name stands there, so none was rebound

    def _route(self, request: Request) -> Answer | _Ticket:
        if request.path == "/":
            return self._only("GET", request) or Answer(
                200, self._page.html, "text/html; charset=utf-8", self._page.headers
            )
        if not request.path.startswith(_API):
            return _NOT_FOUND
        match request.path.removeprefix(_API).split("/"):
            case ["register"]:
                return self._only("POST", request) or self._registered(request)
            case ["status", session_id]:
                return self._only("GET", request) or self._status(request, session_id)
            case ["ws", "tunnel"]:
                return self._only("GET", request) or self._machine(request)
            case ["ws", "browser"]:
                session_id = request.query.get("session_id", "")
                return self._only("GET", request) or (
                    # Whether it is good is asked when it is shown.
                    _Ticket("browser", session_id, 0) if is_session_id(session_id) else _NO_TICKET
                )
        return _NOT_FOUND

    @staticmethod
    def _only(method: str, request: Request) -> Answer | None:
        if request.method == method or (method == "GET" and request.method == "HEAD"):
            return None
        return refusal(405, "method_not_allowed", f"{method} this address", ("Allow", method))

    def _registered(self, request: Request) -> Answer:
        if not self._is_owner(request):
            return _NOT_OWNER
        return Answer(200, orjson.dumps(attrs.asdict(self.register())))

    def _status(self, request: Request, session_id: str) -> Answer:
        token = _bearer(request) or ""
        knows = is_session_id(session_id) and any(
            self._ticket(session_id, role, token) is not None for role in ("tunnel", "browser")
        )
        if not knows and not self._is_owner(request):
            return _NOT_OWNER
        if not is_session_id(session_id):
            return _NOT_FOUND
        return Answer(200, orjson.dumps(self._switchboard.status(session_id)))

    def _machine(self, request: Request) -> Answer | _Ticket:
        token = request.query.get("token") or _bearer(request) or ""
        return self._ticket(request.query.get("session_id", ""), "tunnel", token) or _NO_TICKET

    def _ticket(self, session_id: str, role: Role, token: str) -> _Ticket | None:
        seconds = self._tickets.check(session_id, role, token, self._clock.now())
        return None if seconds is None else _Ticket(role, session_id, seconds)

    def _is_owner(self, request: Request) -> bool:
        return self._owner.matches((_bearer(request) or "").encode("latin-1"))


def _bearer(request: Request) -> str | None:
    scheme, _, value = (request.one("authorization") or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def _like(origin: str, host: str) -> str:
    """The Host as an Origin of the same scheme: TLS may end before us, and only the browser knows of it."""
    return f"{origin.partition('://')[0]}://{host}"


def _place(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an Origin; ``None`` for one that is no web page's."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    host = host_of(f"//{parts.netloc}")
    return None if host is None else (parts.scheme, host, port)


def _public(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or host_of(f"//{parts.netloc}") is None or parts.path.strip("/"):
        raise UsageError(
            f"--public-url: {url[:80]!r} is no address of a server", "name it as in https://tunnel.example.org"
        )
    return f"{parts.scheme}://{parts.netloc}"
