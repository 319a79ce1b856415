"""Fetches an ``i`` input of type ``url`` (NIP-90): a customer's address, a provider's network, and a wall between them.

Only with ``[provider] fetch_urls = true``. Where an address may lead, and how it is looked at before anybody connects
to it, is ``pylon.publicnet``'s to say; here is what is asked of an input beyond that:

1. http or https, on its own port: whatever listens on another one was not put there for strangers to read.
2. A redirect is an address like the first: looked at anew, three of them at most, and none from https to http.
3. A text, so many bytes of it, within so many seconds for all of it.
4. What is refused is told in words that say nothing of this machine's network: a name that leads within, and one that
   does not exist, get the same answer.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from protocols.lnurl import LnurlInvalid, check_url
from pylon import publicnet
from pylon.errors import InferenceError

if TYPE_CHECKING:
    import httpx

SECONDS = 15.0
"""For all of it: names, connections, redirects and the text."""
MAX_BYTES = 262_144
"""More than the longest prompt that is sold."""
MAX_URL_CHARS = 2_048
MAX_REDIRECTS = 3

_PORTS = {"http": (80,), "https": (443,)}
_ACCEPT = "text/*, application/json;q=0.9, application/xml;q=0.8"
_TEXTS = re.compile(r"text/[a-z0-9.+-]+|application/(?:[a-z0-9.-]+\+)?(?:json|xml|yaml)|application/(?:yaml|x-ndjson)")
_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252", "utf-16"})
"""As ``codecs`` names them. Python knows more, and some of those take minutes for what a stranger may send."""
_NOWHERE = "its address cannot be reached in the public network"


class InputRefused(InferenceError):
    """An input that is not fetched. The message may be told to whoever asked for it."""

    code = "input_refused"


async def fetch_input(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> str:
    """The text at ``url``, where a customer may have us look. Raises ``InputRefused``."""
    text: str | None = None
    try:
        with trio.move_on_after(seconds):
            async with publicnet.open_client() as client:
                text = await _text(client, url, max_bytes)
    except (publicnet.Unreachable, publicnet.NotPublic):
        raise _refused(_NOWHERE) from None
    except publicnet.TooLong:
        raise _refused(f"it is longer than {max_bytes:,} bytes") from None
    except publicnet.Compressed:
        raise _refused("it came compressed, which was not asked for") from None
    if text is None:
        raise _refused(f"it took longer than {seconds:g} s")
    return text


async def _text(client: httpx.AsyncClient, url: str, max_bytes: int) -> str:
    import httpx

    for _ in range(1 + MAX_REDIRECTS):
        _check(url)
        async with publicnet.get(client, url, accept=_ACCEPT) as response:
            if not response.has_redirect_location:
                if response.status_code != 200:
                    raise _refused(f"it answers {response.status_code}")
                charset = _charset(response.headers.get("content-type", ""))
                return _decoded(await publicnet.read(response, max_bytes), charset)
            # What was sent names an address where the first one had a name.
            onward = str(httpx.URL(url).join(response.headers["location"]))
        if url.startswith("https:") and not onward.startswith("https:"):
            raise _refused("it leads from https to something else")
        url = onward
    raise _refused(f"it leads on more than {MAX_REDIRECTS} times")


def _check(url: str) -> None:
    """By its looks. Raises ``InputRefused``."""
    if len(url) > MAX_URL_CHARS:
        raise _refused("its address is too long")
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise _refused("its address is neither http nor https")
        # What leads somewhere is the same for both.
        check_url(f"https://{parts.netloc}/")
        if parts.port is not None and parts.port not in _PORTS[parts.scheme]:
            raise _refused(f"its address names a port other than that of {parts.scheme}")
    except (LnurlInvalid, ValueError):
        raise _refused(_NOWHERE) from None


def _charset(content_type: str) -> str:
    """How the body is written. Raises ``InputRefused`` for what is no text."""
    kind, *parameters = (part.strip() for part in content_type[:200].lower().split(";"))
    if _TEXTS.fullmatch(kind) is None:
        raise _refused("it is not a text" if kind else "it does not say that it is a text")
    named = [
        value.strip("\"' ") for name, _, value in (entry.partition("=") for entry in parameters) if name == "charset"
    ]
    if not named:
        return "utf-8"
    try:
        charset = codecs.lookup(named[0]).name
    except (LookupError, ValueError):
        charset = ""
    if charset not in _CHARSETS:
        raise _refused("it is a text in a character set that is not read here")
    return charset


def _decoded(body: bytes, charset: str) -> str:
    """What a charset cannot hold is replaced; a byte order mark goes, and so does NUL, which no database likes."""
    return body.decode(charset, "replace").removeprefix("\ufeff").replace("\0", "\ufffd")


def _refused(why: str) -> InputRefused:
    return InputRefused(f"the input was not fetched: {why}")
