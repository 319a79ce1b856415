"""NIP-17: private direct messages: kind 14 rumors in gift wraps (NIP-59), and kind 10050, the relays for them.

Each receiver gets a wrap of its own, and so does the sender, who could not read the message again otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import attrs

from protocols import nip59
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import Event, sign_event
from protocols.nip59 import Rumor
from protocols.nip65 import is_relay_url

MESSAGE = 14
FILE = 15
RELAY_LIST = 10_050

MAX_RECEIVERS = 10
"""Beyond which the NIP advises another scheme; a message to more is neither written nor read."""
MAX_RELAYS = 10
MAX_SUBJECT_CHARS = 200


class MessageInvalid(ValueError):
    """What is no private message for us, or cannot be made into one."""


@attrs.frozen
class PrivateMessage:
    """A kind 14 message."""

    id: str
    """Of the rumor: the same in every wrap of one message."""
    sender: str
    receivers: tuple[str, ...]
    text: str = attrs.field(repr=False)
    created_at: int
    """The true time, as the sender tells it."""
    subject: str = attrs.field(default="", repr=False)
    reply_to: str | None = None

    @property
    def room(self) -> frozenset[str]:
        """Everybody in the conversation, the sender too: the set *is* the room."""
        return frozenset((self.sender, *self.receivers))


def build_message(
    sender: PublicKey,
    receivers: Iterable[PublicKey],
    text: str,
    *,
    created_at: int,
    reply_to: str | None = None,
    subject: str = "",
) -> Rumor:
    """A kind 14 rumor, to be wrapped by ``wrap_message``. Raises ``MessageInvalid``."""
    names = list(dict.fromkeys(key.hex for key in receivers))
    if not 0 < len(names) <= MAX_RECEIVERS:
        raise MessageInvalid(f"a message has 1 to {MAX_RECEIVERS} receivers")
    if reply_to is not None and not is_hex(reply_to, 64):
        raise MessageInvalid("reply_to: 64 lower-case hex digits are wanted")
    tags = [["p", name] for name in names]
    tags += [["e", reply_to]] if reply_to else []
    tags += [["subject", subject]] if subject else []
    try:
        return nip59.build_rumor(sender, kind=MESSAGE, content=text, tags=tags, created_at=created_at)
    except nip59.GiftWrapInvalid as error:
        raise MessageInvalid(str(error)) from None


def parse_message(rumor: Rumor) -> PrivateMessage:
    """From a rumor out of ``nip59.unwrap``. Raises ``MessageInvalid`` if it is no kind 14 or names no receiver."""
    if rumor.kind != MESSAGE:
        raise MessageInvalid("not a chat message")
    names = tuple(dict.fromkeys(tag[1] for tag in rumor.tags_named("p") if len(tag) > 1 and is_hex(tag[1], 64)))
    if not 0 < len(names) <= MAX_RECEIVERS:
        raise MessageInvalid(f"a message has 1 to {MAX_RECEIVERS} receivers")
    reply_to = rumor.tag("e")
    return PrivateMessage(
        id=rumor.id,
        sender=rumor.pubkey,
        receivers=names,
        text=rumor.content,
        created_at=rumor.created_at,
        subject=(rumor.tag("subject") or "")[:MAX_SUBJECT_CHARS],
        reply_to=reply_to if is_hex(reply_to, 64) else None,
    )


def wrap_message(
    rumor: Rumor,
    secret: SecretKey,
    *,
    now: int,
    random: Random,
    for_self: bool = True,
    expiration: int | None = None,
) -> dict[str, Event]:
    """One wrap for each receiver, by its public key in hex, and one for the sender unless ``for_self`` is false.

    ``now`` in Unix seconds; ``random`` draws the times (see ``nip59.wrap``). Raises ``MessageInvalid``.
    """
    names = dict.fromkeys([*parse_message(rumor).receivers, *([rumor.pubkey] if for_self else [])])
    try:
        return {
            name: nip59.wrap(rumor, secret, PublicKey.from_hex(name), now=now, random=random, expiration=expiration)
            for name in names
        }
    except (KeyInvalid, nip59.GiftWrapInvalid) as error:
        raise MessageInvalid(str(error)) from None


def open_message(event: Event, secret: SecretKey) -> PrivateMessage:
    """The message in a verified gift wrap, where ``secret`` is its sender or one of its receivers.

    Raises ``MessageInvalid``.
    """
    try:
        message = parse_message(nip59.unwrap(event, secret))
    except nip59.GiftWrapInvalid as error:
        raise MessageInvalid(str(error)) from None
    if secret.public.hex not in message.room:
        raise MessageInvalid("the message is for somebody else")
    return message


def build_relay_list(secret: SecretKey, relays: Sequence[str], *, created_at: int) -> Event:
    """A kind 10050 event: where one wants private messages. Raises ``MessageInvalid``."""
    if not 0 < len(relays) <= MAX_RELAYS or not all(map(is_relay_url, relays)):
        raise MessageInvalid(f"1 to {MAX_RELAYS} relays are wanted, each ws:// or wss://")
    tags = [["relay", url] for url in dict.fromkeys(relays)]
    return sign_event(secret, kind=RELAY_LIST, tags=tags, created_at=created_at)


def parse_relay_list(event: Event) -> tuple[str, ...]:
    """The relays of a verified kind 10050 event; none: its author is not ready for private messages.

    Raises ``MessageInvalid`` for another kind of event.
    """
    if event.kind != RELAY_LIST:
        raise MessageInvalid("another kind of event")
    urls = (tag[1] for tag in event.tags_named("relay") if len(tag) > 1 and is_relay_url(tag[1]))
    return tuple(dict.fromkeys(urls))[:MAX_RELAYS]
