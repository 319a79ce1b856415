"""Asking a relay for its NIP-11 document, by HTTP on the address of its websocket; and, beside, for its time."""

from __future__ import annotations

import email.utils
import functools
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

import attrs
import trio

from protocols.nip11 import MEDIA_TYPE, InformationInvalid, RelayInformation
from pylon import publicnet
from pylon.clock import Clock
from pylon.errors import RelayError, brief

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
MAX_BYTES = 262_144


@attrs.frozen
class Answered:
    """What a relay has said of itself."""

    information: RelayInformation
    ahead: float | None
    """Seconds by which the relay's clock is ahead of ours, to about a second; ``None`` where it did not tell its time.
    Less than two seconds is nothing: a date has no fractions."""


Inform: TypeAlias = Callable[[str], Awaitable[RelayInformation | None]]
"""The document of a relay's address; ``None`` where there is none to be had. Never raises for what a relay does."""


@functools.cache
def _authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


def http_address(url: str) -> str:
    """``wss://relay/path`` -> ``https://relay/path`` (NIP-11)."""
    scheme, separator, rest = url.partition("://")
    return {"ws": "http", "wss": "https"}.get(scheme, scheme) + separator + rest


async def fetch_information(url: str, *, clock: Clock, timeout: float = ANSWER_SECONDS, near: bool = False) -> Answered:
    """Raises ``RelayError`` where the relay has no such document, or does not answer in time.

    ``near``: it is on this machine, though its address may not say so.
    """
    import httpx

    near = near or urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    try:
        with trio.fail_after(timeout):
            # Reading all certificates takes long: once, and not for an address that has none. A proxy in the
            # environment is not meant for this machine.
            verify = _authorities() if url.startswith("wss://") else False
            async with httpx.AsyncClient(timeout=None, trust_env=not near, verify=verify) as client:
                headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Connection": "close"}
                began = clock.now()
                async with client.stream("GET", http_address(url), headers=headers) as answer:
                    middle = (began + clock.now()) / 2
                    date = answer.headers.get("date", "")
                    if answer.status_code != 200:
                        raise RelayError(f"{url}: no NIP-11 document (HTTP {answer.status_code})")
                    received = await publicnet.read(answer, MAX_BYTES)
    except trio.TooSlowError:
        raise RelayError(f"{url}: no NIP-11 document within {timeout:g} s") from None
    except publicnet.TooLong:
        raise RelayError(f"{url}: its NIP-11 document is too long") from None
    except publicnet.Compressed:
        raise RelayError(f"{url}: no NIP-11 document (it is compressed)") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        raise RelayError(f"{url}: no NIP-11 document ({type(error).__name__})") from None
    try:
        information = RelayInformation.from_json(received)
    except InformationInvalid as error:
        raise RelayError(f"{url}: no NIP-11 document ({error})") from None
    return Answered(information, _ahead(date, middle))


def _ahead(date: str, middle: float) -> float | None:
    """By how much an HTTP date is ahead of our time; a date stands for the whole of its second."""
    try:
        told = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    ahead = told + 0.5 - middle
    return ahead if math.isfinite(ahead) else None


def informer(clock: Clock) -> Inform:
    """``Inform`` by HTTP, for a pool."""

    async def inform(url: str) -> RelayInformation | None:
        try:
            return (await fetch_information(url, clock=clock)).information
        except RelayError:
            return None
        except Exception as error:
            # What one relay answers must not take the others down.
            log.warning("%s: a fault in asking for its document: %s", url, brief(error))
            return None

    return inform
