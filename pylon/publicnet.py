"""GET what a stranger's address names, from the public network and from nowhere else.

Rules
-----
1. The name is resolved once, every address that it has is looked at, and the connection goes to one of those: so that
   no name in public leads into one's own network, whatever it resolves to later. TLS still proves the name.
2. Nothing is followed, nothing is decompressed, no cookie is kept, no proxy of the environment is asked.
3. A connection serves one request: it was proven for one name, and another name may have the same address.
4. A body that grows over its bound is left at once. Deadlines over it all are the caller's.
"""

from __future__ import annotations

import functools
import http.cookiejar
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import trio

from pylon.errors import PylonError

if TYPE_CHECKING:
    import httpx

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_CONNECT_SECONDS = 4.0
"""For one of a name's addresses."""
_TRIED = 3
"""Addresses of a name that are tried."""
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6 (RFC 4291 2.4)."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Carries an IPv4 address (RFC 6052 2.1)."""
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
"""RFC 9637; not every Python that we run on knows it."""
_RELAYS_6TO4 = ipaddress.ip_network("192.88.99.0/24")
"""RFC 7526: whoever still answers there leads on to somewhere else."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""In front of an IPv4 address within an interface's identifier (RFC 5214 6.1)."""


class NotPublic(PylonError):
    """A name, or an address, that does not lead to the public network."""

    code = "not_public"


class Unreachable(PylonError):
    """Nobody answered, or not in HTTP. Later it may be better."""

    code = "unreachable"


class TooLong(PylonError):
    """More bytes than were wanted."""

    code = "too_long"


class Compressed(PylonError):
    """Compressed, though nobody asked for that: whoever unpacks it, unpacks a bomb."""

    code = "compressed"


def is_public(address: Address) -> bool:
    """Whether an address is somebody's in the public network, also where it carries another one within."""
    if isinstance(address, ipaddress.IPv4Address):
        return (
            address.is_global
            and not (address.is_multicast or address.is_reserved or address.is_unspecified)
            and address not in _RELAYS_6TO4
        )
    number = int(address)
    within = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        within = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if within is not None:
        return is_public(within)
    if number >> 32 & 0xFFFFFFFF in _ISATAP or address.teredo is not None:
        return False
    return address in _UNICAST and address.is_global and address not in _DOCUMENTATION


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Reading who is trusted takes longer than an answer."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def open_client() -> httpx.AsyncClient:
    """A client that keeps the rules, to be shared and closed by its owner."""
    import httpx

    # A jar that takes no cookie of anybody.
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        verify=_trusted(),
        headers={"User-Agent": "pylon"},
        cookies=jar,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=0),
    )


@asynccontextmanager
async def get(
    client: httpx.AsyncClient, url: str, *, accept: str, allow_loopback: bool = False
) -> AsyncIterator[httpx.Response]:
    """The head of an answer, whatever its status, its body still to come. ``url`` is http or https, and has a host.

    ``allow_loopback``: where the address itself names the loopback, it leads there. Raises ``NotPublic`` and
    ``Unreachable``, the latter also for what breaks within the block.
    """
    import httpx

    try:
        target = httpx.URL(url)
        host = target.raw_host.decode("ascii").rstrip(".")
        response = await _connected(client, target, host, accept, allow_loopback)
        try:
            yield response
        finally:
            await response.aclose()
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError) as error:
        raise Unreachable(f"the connection to {said(url)} broke ({type(error).__name__})") from None


async def _connected(
    client: httpx.AsyncClient, target: httpx.URL, host: str, accept: str, allow_loopback: bool
) -> httpx.Response:
    import httpx

    found = await _addresses(host, target.port or (443 if target.scheme == "https" else 80), allow_loopback)
    for address in found[:_TRIED]:
        request = client.build_request(
            "GET",
            target.copy_with(host=str(address)),
            headers={
                "Host": target.netloc.decode("ascii"),
                "Accept": accept,
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            extensions={"sni_hostname": host},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        )
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    raise Unreachable(f"{_cut(host)} cannot be connected to", "is its name right, and its certificate?")


async def read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body. Raises ``TooLong``, ``Compressed``."""
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Compressed("the service answered compressed, which was not asked for")
    body = bytearray()
    # Left by cancelling: httpx has a stack of generators here, and whoever just stops leaves them to the collector.
    with trio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                scope.cancel()
    if len(body) > max_bytes:
        raise TooLong(f"an answer has at most {max_bytes} bytes")
    return bytes(body)


async def _addresses(host: str, port: int, allow_loopback: bool) -> list[Address]:
    """All addresses of a name. Raises ``NotPublic`` where any of them is not for us to connect to."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unreachable(f"{_cut(host)} has no address", "is its name right, and is this machine online?") from None
    addresses = list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))
    local = allow_loopback and is_loopback(host)
    for address in addresses:
        if not (is_public(address) or (local and address.is_loopback)):
            raise NotPublic("the address does not lead to the public network")
    return addresses


def is_loopback(host: str) -> bool:
    """Whether a host, by its name or address, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def said(url: str) -> str:
    """The host of an address, for a message: a stranger's word, cut."""
    return _cut(url.partition("://")[2].partition("/")[0])


def _cut(host: str) -> str:
    return host if len(host) <= 80 else host[:77] + "..."
