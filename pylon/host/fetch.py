"""GET what an address out of somebody's profile names: one bounded answer, from a public address, and nothing more.

Where it may lead is ``pylon.publicnet``'s to say. No redirect is followed, and one deadline covers it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import trio

from protocols.lnurl import LnurlInvalid, check_url
from pylon import publicnet
from pylon.errors import WalletError
from pylon.publicnet import open_client as open_client

if TYPE_CHECKING:
    import httpx

SECONDS = 10.0
"""For one answer: name, connection, head and body."""


class ServiceUnreachable(WalletError):
    """The service did not answer, or not in a way that can be read. Nothing was paid; later it may do better."""

    code = "service_unreachable"


@attrs.frozen
class Answer:
    """What came back, whatever its status."""

    status: int
    body: bytes = attrs.field(repr=False)


async def fetch(
    url: str, *, client: httpx.AsyncClient, max_bytes: int, allow_local: bool = False, seconds: float = SECONDS
) -> Answer:
    """The answer to a GET. ``allow_local`` lets an address that names the loopback lead there.

    Raises ``LnurlInvalid`` for where nothing may lead us, ``ServiceUnreachable`` for what did not answer.
    """
    parts = urlsplit(url)
    # The query of a zap is longer than an address may be; what leads somewhere is what stands before it.
    check_url(f"{parts.scheme}://{parts.netloc}/", allow_local=allow_local)
    try:
        with trio.move_on_after(seconds):
            async with publicnet.get(client, url, accept="application/json", allow_loopback=allow_local) as response:
                if response.is_redirect:
                    raise LnurlInvalid("the service sends us elsewhere, which is not followed")
                return Answer(response.status_code, await publicnet.read(response, max_bytes))
    except publicnet.Unreachable as error:
        raise ServiceUnreachable(error.message, error.hint) from None
    except (publicnet.NotPublic, publicnet.TooLong, publicnet.Compressed) as error:
        raise LnurlInvalid(error.message) from None
    raise ServiceUnreachable(f"{publicnet.said(url)} did not answer within {seconds:g} s", "try again later")
