"""GET what an address out of somebody's profile names: one bounded answer, from a public address, and nothing more.

Rules
-----
1. The name is resolved once, every address that it has is looked at, and the connection goes to one of those: so that
   no name in public leads into one's own network, whatever it resolves to later. TLS still proves the name.
2. No redirect is followed, nothing is decompressed, no cookie is kept, no proxy of the environment is asked.
3. A connection serves one request: it was proven for one name, and another name may have the same address.
4. One deadline covers it all; an answer that grows over its bound is left at once.
"""

from __future__ import annotations

import http.cookiejar
import ipaddress
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import attrs
import trio

from protocols.lnurl import LnurlInvalid, check_url
from pylon.errors import WalletError

if TYPE_CHECKING:
    import httpx

SECONDS = 10.0
"""For one answer: name, connection, head and body."""
_CONNECT_SECONDS = 4.0
"""For one of a name's addresses."""
_TRIED = 3
"""Addresses of a name that are tried."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class ServiceUnreachable(WalletError):
    """The service did not answer, or not in a way that can be read. Nothing was paid; later it may do better."""

    code = "service_unreachable"


@attrs.frozen
class Answer:
    """What came back, whatever its status."""

    status: int
    body: bytes = attrs.field(repr=False)


def open_client() -> httpx.AsyncClient:
    """A client that keeps the rules, to be shared and closed by its owner."""
    import httpx

    # A jar that takes no cookie of anybody.
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        headers={"User-Agent": "pylon"},
        cookies=jar,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=0),
    )


async def fetch(
    url: str, *, client: httpx.AsyncClient, max_bytes: int, allow_local: bool = False, seconds: float = SECONDS
) -> Answer:
    """The answer to a GET. ``allow_local`` lets an address that names the loopback lead there.

    Raises ``LnurlInvalid`` for where nothing may lead us, ``ServiceUnreachable`` for what did not answer.
    """
    parts = urlsplit(url)
    # The query of a zap is longer than an address may be; what leads somewhere is what stands before it.
    check_url(f"{parts.scheme}://{parts.netloc}/", allow_local=allow_local)
    host = (parts.hostname or "").rstrip(".")
    with trio.move_on_after(seconds):
        return await _answer(url, host, client, max_bytes, allow_local)
    raise ServiceUnreachable(f"{_said(host)} did not answer within {seconds:g} s", "try again later")


async def _answer(url: str, host: str, client: httpx.AsyncClient, max_bytes: int, allow_local: bool) -> Answer:
    import httpx

    try:
        target = httpx.URL(url)
        addresses = await _addresses(host, target.port or (443 if target.scheme == "https" else 80), allow_local)
        for address in addresses[:_TRIED]:
            request = client.build_request(
                "GET",
                target.copy_with(host=str(address)),
                headers={
                    "Host": target.netloc.decode("ascii"),
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
                extensions={"sni_hostname": host},
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            )
            try:
                response = await client.send(request, stream=True, follow_redirects=False)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            try:
                return await _read(response, host, max_bytes)
            finally:
                await response.aclose()
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise ServiceUnreachable(f"the connection to {_said(host)} broke ({type(error).__name__})") from None
    raise ServiceUnreachable(f"{_said(host)} cannot be connected to", "is its name right, and its certificate?")


async def _read(response: httpx.Response, host: str, max_bytes: int) -> Answer:
    if response.is_redirect:
        raise LnurlInvalid("the service sends us elsewhere, which is not followed")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise LnurlInvalid("the service answered compressed, which was not asked for")
    body = bytearray()
    # Left by cancelling: httpx has a stack of generators here, and whoever just stops leaves them to the collector.
    with trio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                scope.cancel()
    if len(body) > max_bytes:
        raise LnurlInvalid(f"an answer has at most {max_bytes} bytes")
    return Answer(response.status_code, bytes(body))


async def _addresses(host: str, port: int, allow_local: bool) -> list[_Address]:
    """All addresses of a name. Raises ``LnurlInvalid`` where any of them is not for us to connect to."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ServiceUnreachable(
            f"{_said(host)} has no address", "is its name right, and is this machine online?"
        ) from None
    addresses = list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))
    local = allow_local and _is_loopback(host)
    for address in addresses:
        if not (is_public(address) or (local and address.is_loopback)):
            raise LnurlInvalid("the address does not lead to the public network")
    return addresses


def is_public(address: _Address) -> bool:
    """Whether an address is somebody's in the public network, also where it carries another one within."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.teredo is not None:
            return False
        within = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if within is not None:
            return is_public(within)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(host: str) -> str:
    """A stranger's word, cut."""
    return host if len(host) <= 80 else host[:77] + "..."
