"""Who may use a tunnel session: a ticket for its machine, and one for its pages. Pure; nothing is kept.

A ticket is ``<expiry>.<mac>``: the second at which it ends, and an HMAC-SHA256 under a key that is derived from the
server's secret, over role, session and expiry. So a server that was started anew still knows what it has given out,
and registering costs it no memory. Changing the secret takes back all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal, TypeAlias

from protocols import entropy

LIFETIME_SECONDS = 86_400
MAX_CHARS = 100
"""Of a ticket that is looked at."""

Role: TypeAlias = Literal["tunnel", "browser"]

_TICKET = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")
_SESSION = re.compile(r"[0-9a-f]{32}")
_PURPOSE = b"pylon tunnel tickets, 1"


class Tickets:
    """Gives out tickets and checks them. Its repr is blank.

    :param secret: at least 16 bytes that nobody else knows.
    """

    __slots__ = ("_key",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("a secret has at least 16 bytes")
        self._key = hmac.digest(secret, _PURPOSE, hashlib.sha256)

    def __repr__(self) -> str:
        return "Tickets(…)"

    def issue(self, session_id: str, role: Role, now: float, lifetime: float = LIFETIME_SECONDS) -> str:
        expiry = int(now + lifetime)
        return f"{expiry}.{self._mac(session_id, role, expiry)}"

    def check(self, session_id: str, role: Role, ticket: str, now: float) -> float | None:
        """The seconds for which it is still good; ``None``: it is none of ours, or has ended.

        How long this takes tells nothing of how right a wrong ticket is.
        """
        found = _TICKET.fullmatch(ticket) if len(ticket) <= MAX_CHARS and ticket.isascii() else None
        if found is None or not is_session_id(session_id):
            return None
        expiry = int(found[1])
        if not hmac.compare_digest(found[2], self._mac(session_id, role, expiry)):
            return None
        return expiry - now if now < expiry else None

    def _mac(self, session_id: str, role: Role, expiry: int) -> str:
        return hmac.new(self._key, f"{role}|{session_id}|{expiry}".encode(), hashlib.sha256).hexdigest()


def new_session_id() -> str:
    return entropy.random_bytes(16).hex()


def is_session_id(text: str) -> bool:
    return len(text) == 32 and _SESSION.fullmatch(text) is not None
