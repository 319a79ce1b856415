"""The address of a tunnel server: it holds a token, so it is never shown whole."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import attrs

from pylon.errors import UsageError
from pylon.publicnet import is_loopback

_LONGEST = 4_096
_WANTED = "the server gives it, as in wss://tunnel.example/api/tunnel/ws/tunnel?session_id=...&token=..."


@attrs.frozen
class TunnelAddress:
    url: str = attrs.field(repr=False)
    shown: str
    """Scheme and host: what may be said of it."""

    @classmethod
    def of(cls, url: str, *, insecure: bool = False) -> TunnelAddress:
        """Raises ``UsageError``, which does not repeat what may be a secret."""
        url = url.strip()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError("--tunnel-url is no address", _WANTED) from None
        if parts.scheme not in ("ws", "wss") or not host or port == 0:
            raise UsageError("--tunnel-url: an address that begins with wss:// and names a host is wanted", _WANTED)
        if len(url) > _LONGEST or re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii():
            raise UsageError("--tunnel-url holds what stands in no address", _WANTED)
        if "@" in parts.netloc or parts.fragment:
            raise UsageError("--tunnel-url: a user, a password or a # means nothing to a tunnel server", _WANTED)
        name = f"[{host}]" if ":" in host else host
        shown = f"{parts.scheme}://{name}{f':{port}' if port else ''}"
        if parts.scheme == "ws" and not insecure and not is_loopback(host):
            raise UsageError(
                f"{shown} is not encrypted: whoever is between reads everything, and can say yes in your place",
                "use wss://; or --insecure, if you know what is between",
            )
        return cls(url, shown)
