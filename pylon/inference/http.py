"""What the backends that are reached by HTTP have in common: one client, bodies with a limit, and who is to blame."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import trio

from pylon.errors import BackendUnavailable, ConfigError
from pylon.inference.deadlines import Accepted

PROBE = 5.0
"""Seconds for a question that costs a server nothing."""

MAX_BODY = 4 << 20
MAX_ERROR = 64 << 10

BROKEN = (httpx.HTTPError, httpx.StreamError)
"""What httpx raises where a connection fails."""


def parse_url(name: str, base: str) -> httpx.URL:
    """The address of the backend ``name``. Raises ``ConfigError``."""
    try:
        urlsplit(base).port  # noqa: B018 - finds what httpx lets pass: half brackets, ports beyond 65535
        url = httpx.URL(base)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"the address of {name} is no http or https URL", "write it like http://127.0.0.1:11434/v1")
    return url


def plain_address(url: httpx.URL) -> str:
    """A URL without user, password and last slash: what may be shown."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}".rstrip("/")


def open_client(
    name: str, url: httpx.URL, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client for one backend; its deadlines are the port's. Raises ``ConfigError`` for a key that cannot be."""
    headers = {"User-Agent": "pylon", "Accept-Encoding": "identity", "Connection": "close"}
    if api_key:
        if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError(f"the API key of {name} has characters that no key has", "paste it again")
        headers["Authorization"] = f"Bearer {api_key}"
    return httpx.AsyncClient(
        headers=headers,
        auth=httpx.BasicAuth(url.username, url.password) if url.username and not api_key else None,
        timeout=None,
        # Reading all certificates takes long, and on this machine there are none to check.
        verify=url.scheme == "https" or not is_loopback(url.host),
        # A server may close a kept connection at the moment when the next prompt goes out on it, and nobody
        # can tell whether the prompt was read. A new one costs nothing beside an answer.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        transport=transport,
        trust_env=not is_loopback(url.host),  # a proxy in the environment is not meant for this machine
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unreachable(name: str, address: str, error: Exception) -> BackendUnavailable:
    """What a failed connection means."""
    if isinstance(error, httpx.ConnectError):
        return BackendUnavailable(f"{name} does not answer at {address}", "is it running?")
    return BackendUnavailable(
        f"the connection to {name} at {address} broke ({type(error).__name__})", "see the backend's log"
    )


def when_sent(accepted: Accepted) -> Any:
    """The server has the request long before it answers: models load, prompts are read. httpcore says when."""

    async def trace(event: str, info: Any) -> None:
        if event.endswith(".send_request_body.complete"):
            accepted()

    return trace


@asynccontextmanager
async def pieces_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body, which may be left before its end.

    Under ``aiter_bytes`` httpx has a stack of async generators, and whoever stops in the middle leaves all but the
    outermost to the garbage collector. A cancellation that runs through them ends every one, in order, at once.
    """
    pieces = response.aiter_bytes()
    try:
        yield pieces
    finally:
        with trio.CancelScope(shield=True) as scope:
            scope.cancel()
            with suppress(*BROKEN):
                while await anext(pieces, None) is not None:
                    pass


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """The body, cut at ``limit`` bytes."""
    body = bytearray()
    async with pieces_of(response) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > limit:
                break
    return bytes(body[:limit])


def loads(body: bytes) -> Any:
    """JSON, or ``None``."""
    try:
        return orjson.loads(body)
    except ValueError:
        return None
