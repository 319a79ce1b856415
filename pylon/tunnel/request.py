"""One HTTP/1.1 request on a Trio stream, and its answer: all that the tunnel server needs of HTTP.

A connection carries one request. It either ends with the answer, or goes on as a WebSocket.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import http
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

import attrs
import h11
import orjson
import trio
from wsproto.utilities import generate_accept_token

_HEAD_BYTES = 16_384
_BODY_BYTES = 16_384
_RECEIVE_BYTES = 65_536
_DRAIN_SECONDS = 1.0

Headers = Sequence[tuple[bytes, bytes]]


class Gone(Exception):
    """The client has left before it had asked anything."""


@attrs.frozen
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str, message: str, *headers: tuple[str, str]) -> Answer:
    """An error, in the shape of the CLI's."""
    return Answer(status, orjson.dumps({"error": {"code": code, "message": message}}), headers=headers)


class HttpRefused(Exception):
    """What was asked is no request, or too much of one."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@attrs.frozen
class Request:
    method: str
    path: str
    query: Mapping[str, str] = attrs.field(repr=False)
    """The first value of each name."""
    headers: Headers = attrs.field(repr=False)

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1").strip() for key, value in self.headers if key == name.encode()]

    def one(self, name: str) -> str | None:
        """The value of a header that is there once."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    @property
    def is_upgrade(self) -> bool:
        return "websocket" in _words(self.all("upgrade"))


class HttpConnection:
    """The server's end of a connection, until it is answered or upgraded. Network errors are Trio's."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)

    async def read(self) -> Request:
        """The request, its body read and thrown away: nothing here has one that matters.

        Raises ``Gone``, and ``HttpRefused``.
        """
        head: h11.Request | None = None
        size = 0
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise HttpRefused(refusal(error.error_status_hint, "no_request", "this is no HTTP request")) from None
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.receive_some(_RECEIVE_BYTES))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > _BODY_BYTES:
                    raise HttpRefused(refusal(413, "request_too_large", f"a request has at most {_BODY_BYTES} bytes"))
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head)
            else:
                raise Gone

    async def answer(self, answer: Answer, *, bodiless: bool = False) -> None:
        headers = [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *answer.headers,
        ]
        reason = http.HTTPStatus(answer.status).phrase.encode()
        parts = [self._h11.send(h11.Response(status_code=answer.status, headers=headers, reason=reason))]
        if answer.body and not bodiless:
            parts.append(self._h11.send(h11.Data(data=answer.body)))
        parts.append(self._h11.send(h11.EndOfMessage()))
        await self.stream.send_all(b"".join(part for part in parts if part))
        # A close with input unread would reset the connection, and the answer with it.
        with trio.move_on_after(_DRAIN_SECONDS):
            await self.stream.send_eof()
            while await self.stream.receive_some(_RECEIVE_BYTES):
                pass

    async def upgrade(self, request: Request) -> bytes:
        """Accept the WebSocket (RFC 6455, 4.2). Returns what has come behind the request. Raises ``HttpRefused``."""
        key = request.one("sec-websocket-key")
        if request.method != "GET" or "upgrade" not in _words(request.all("connection")) or not _is_key(key):
            raise HttpRefused(refusal(400, "no_websocket", "this is no handshake of a WebSocket"))
        if request.one("sec-websocket-version") != "13":
            said = refusal(426, "no_websocket", "version 13 is spoken here", ("Sec-WebSocket-Version", "13"))
            raise HttpRefused(said)
        assert key is not None
        accept = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        accept.append(("Sec-WebSocket-Accept", generate_accept_token(key.encode()).decode()))
        response = h11.InformationalResponse(status_code=101, headers=accept, reason=b"Switching Protocols")
        data = self._h11.send(response)
        assert data is not None
        await self.stream.send_all(data)
        return self._h11.trailing_data[0]


def _request(head: h11.Request) -> Request:
    try:
        parts = urlsplit(head.target.decode("ascii"))
        query = {name: values[0] for name, values in parse_qs(parts.query, max_num_fields=20).items()}
    except ValueError:
        raise HttpRefused(refusal(400, "no_request", "this address cannot be read")) from None
    return Request(head.method.decode("ascii"), parts.path, query, list(head.headers))


def _words(values: Sequence[str]) -> list[str]:
    return [word.strip().lower() for value in values for word in value.split(",")]


def _is_key(key: str | None) -> bool:
    try:
        return key is not None and key.isascii() and len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
