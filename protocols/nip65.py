"""NIP-65: the relays where somebody reads and writes, kind 10002; and what passes for a relay's address at all."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event

KIND = 10_002
MAX_RELAYS = 50
"""Of a list that is read; the NIP advises two to four a side."""
MAX_URL_CHARS = 512


class RelayListInvalid(ValueError):
    """An event that is no list of relays, or addresses that no list can hold."""


@attrs.frozen
class RelayList:
    """Somebody's relays, each once, in the order of the list."""

    author: str
    read: tuple[str, ...]
    """Where to send what concerns the author."""
    write: tuple[str, ...]
    """Where to find what the author published."""
    created_at: int


def is_relay_url(text: object) -> bool:
    """Whether ``text`` may be a relay's address: ``ws://`` or ``wss://``, a host, no white space, no controls."""
    if not isinstance(text, str) or len(text) > MAX_URL_CHARS or not text.startswith(("ws://", "wss://")):
        return False
    host = text.partition("://")[2].partition("/")[0]
    return bool(host) and text.isprintable() and " " not in text


def build_relay_list(
    secret: SecretKey,
    *,
    both: Iterable[str] = (),
    read: Iterable[str] = (),
    write: Iterable[str] = (),
    created_at: int,
) -> Event:
    """A kind 10002 event. Raises ``RelayListInvalid`` for no relay at all, too many, or one that is no address."""
    reads, writes = dict.fromkeys([*both, *read]), dict.fromkeys([*both, *write])
    urls = list(dict.fromkeys([*reads, *writes]))
    if not 0 < len(urls) <= MAX_RELAYS:
        raise RelayListInvalid(f"a list names 1 to {MAX_RELAYS} relays")
    if not all(map(is_relay_url, urls)):
        raise RelayListInvalid("a relay's address begins with ws:// or wss://")
    tags = []
    for url in urls:
        marker = [] if url in reads and url in writes else ["read"] if url in reads else ["write"]
        tags.append(["r", url, *marker])
    return sign_event(secret, kind=KIND, tags=tags, created_at=created_at)


def parse_relay_list(event: Event) -> RelayList:
    """From a verified event; a marker that is none means both. Raises ``RelayListInvalid`` for another kind."""
    if event.kind != KIND:
        raise RelayListInvalid("another kind of event")
    read: dict[str, None] = {}
    write: dict[str, None] = {}
    for tag in event.tags_named("r"):
        if len(tag) < 2 or not is_relay_url(tag[1]):
            continue
        marker = tag[2] if len(tag) > 2 else ""
        if marker != "write":
            read[tag[1]] = None
        if marker != "read":
            write[tag[1]] = None
    return RelayList(event.pubkey, tuple(read)[:MAX_RELAYS], tuple(write)[:MAX_RELAYS], event.created_at)
