"""NIP-57: zaps. A request (kind 9734) goes to the receiver's LNURL service, a receipt (kind 9735) comes of its payment.

A receipt proves that the key which the receiver's service named says so, and no more. ``check_receipt`` is for those
who know that key; nothing else may act on a receipt. One payment may be told by several receipts: count by
``payment_hash``. Amounts are millisatoshi. The service itself is in ``protocols.lnurl``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import attrs

from protocols import bolt11, lnurl
from protocols.keys import SecretKey, is_hex
from protocols.nip01 import MAX_KIND, Event, EventInvalid, sign_event
from protocols.nip65 import is_relay_url

REQUEST = 9734
RECEIPT = 9735

MAX_REQUEST_BYTES = 16_384
"""It travels in the query of an address."""
MAX_RELAYS = 20
MAX_MSATS = bolt11.MAX_AMOUNT_MSATS
MAX_SPLIT = 50


class ZapInvalid(ValueError):
    """A request or receipt that must not be honoured. The message may be told to its sender."""


@attrs.frozen
class ZapRequest:
    """A kind 9734 event that keeps Appendix D."""

    id: str
    sender: str
    recipient: str
    relays: tuple[str, ...]
    """Where the receipt is to go."""
    amount_msats: int | None
    """``None``: not said; the invoice says it."""
    comment: str = attrs.field(repr=False)
    event_id: str | None = None
    """What is zapped; ``None``: the recipient as such."""
    address: str | None = None
    kind: int | None = None
    lnurl: str | None = None
    created_at: int = 0


@attrs.frozen
class ZapReceipt:
    """A kind 9735 event that keeps Appendix F."""

    id: str
    author: str
    """The service's key."""
    amount_msats: int
    """Of the invoice."""
    payment_hash: str
    bolt11: str = attrs.field(repr=False)
    request: ZapRequest
    created_at: int
    preimage: str | None = attrs.field(default=None, repr=False)
    """Only if it is the payment hash's."""

    @property
    def sender(self) -> str:
        return self.request.sender

    @property
    def recipient(self) -> str:
        return self.request.recipient

    @property
    def comment(self) -> str:
        return self.request.comment


@attrs.frozen
class ZapShare:
    """Somebody who is to get a part of the zaps on an event (Appendix G)."""

    pubkey: str
    relay: str
    share: float
    """From 0 to 1; all shares of an event together make 1."""


def build_request(
    secret: SecretKey,
    *,
    recipient: str,
    relays: Sequence[str],
    amount_msats: int,
    created_at: int,
    comment: str = "",
    lnurl: str | None = None,
    event: Event | None = None,
) -> Event:
    """A kind 9734 event, to be sent to the recipient's callback and not published.

    ``event`` is what is zapped, if not the recipient as such; ``lnurl`` the recipient's, bech32. Raises ``ZapInvalid``.
    """
    if not is_hex(recipient, 64):
        raise ZapInvalid("recipient: 64 lower-case hex digits are wanted")
    if not 0 < len(relays) <= MAX_RELAYS or not all(map(is_relay_url, relays)):
        raise ZapInvalid(f"1 to {MAX_RELAYS} relays are wanted, each ws:// or wss://")
    if not 0 < amount_msats <= MAX_MSATS:
        raise ZapInvalid("the amount must be positive, and not more than exists")
    tags = [["relays", *relays], ["amount", str(amount_msats)], ["p", recipient]]
    if lnurl:
        tags.append(["lnurl", lnurl])
    if event is not None:
        tags.append(["e", event.id])
        if event.address is not None:
            tags.append(["a", event.address])
        tags.append(["k", str(event.kind)])
    request = sign_event(secret, kind=REQUEST, content=comment, tags=tags, created_at=created_at)
    if len(request.to_json().encode()) > MAX_REQUEST_BYTES:
        raise ZapInvalid(f"a zap request has at most {MAX_REQUEST_BYTES} bytes")
    return request


def check_request(
    request: Event | str,
    *,
    amount_msats: int | None = None,
    recipient: str | None = None,
    receipt_signer: str | None = None,
) -> ZapRequest:
    """Appendix D: what a service checks of the ``nostr`` parameter (JSON text), signature included.

    ``amount_msats`` of the call or the invoice, ``recipient`` and ``receipt_signer`` (who will sign the receipt), hex,
    are compared where they are given. Raises ``ZapInvalid``.
    """
    event = _event(request) if isinstance(request, str) else request
    if event.kind != REQUEST:
        raise ZapInvalid("not a zap request")
    people, events = event.tags_named("p"), event.tags_named("e")
    addresses, signers = event.tags_named("a"), event.tags_named("P")
    if len(people) != 1 or len(people[0]) < 2 or not is_hex(people[0][1], 64):
        raise ZapInvalid("a zap request names exactly one recipient (p)")
    if len(events) > 1 or any(len(tag) < 2 or not is_hex(tag[1], 64) for tag in events):
        raise ZapInvalid("a zap request names at most one event (e)")
    if any(len(tag) < 2 or not _is_address(tag[1]) for tag in addresses):
        raise ZapInvalid("its a tag is no address")
    if len(signers) > 1 or any(len(tag) < 2 or receipt_signer not in (None, tag[1]) for tag in signers):
        raise ZapInvalid("its P tag names another signer of the receipt")
    asked = _amount(event)
    if None not in (asked, amount_msats) and asked != amount_msats:
        raise ZapInvalid("its amount is not the one asked for")
    if recipient not in (None, people[0][1]):
        raise ZapInvalid("it is for another recipient")
    try:
        event.check()
    except EventInvalid as error:
        raise ZapInvalid(str(error)) from None
    kind = event.tag("k") or ""
    relays = (url for tag in event.tags_named("relays") for url in tag[1:] if is_relay_url(url))
    return ZapRequest(
        id=event.id,
        sender=event.pubkey,
        recipient=people[0][1],
        relays=tuple(dict.fromkeys(relays))[:MAX_RELAYS],
        amount_msats=asked,
        comment=event.content,
        event_id=events[0][1] if events else None,
        address=addresses[0][1] if addresses else None,
        kind=int(kind) if _is_kind(kind) else None,
        lnurl=event.tag("lnurl"),
        created_at=event.created_at,
    )


def build_receipt(secret: SecretKey, *, request: str, invoice: str, paid_at: int, preimage: str | None = None) -> Event:
    """Appendix E: the kind 9735 event of an invoice that was paid at ``paid_at`` (Unix seconds).

    ``request`` is the zap request's JSON exactly as the invoice's description hash was made of it. Built again from the
    same, it differs in its signature only. Raises ``ZapInvalid`` where the invoice is not for the request, or commits
    to it otherwise than by the hash, which other clients want.
    """
    try:
        decoded = bolt11.decode(invoice)
    except bolt11.Bolt11Invalid as error:
        raise ZapInvalid(f"the invoice: {error}") from None
    zap = check_request(request, amount_msats=decoded.amount_msats, receipt_signer=secret.public.hex)
    if decoded.amount_msats is None:
        raise ZapInvalid("the invoice names no amount")
    if decoded.description_hash is None or not lnurl.commits_to(decoded, request):
        raise ZapInvalid("the invoice's description hash is not the request's")
    tags = [["p", zap.recipient], ["P", zap.sender]]
    tags += [["e", zap.event_id]] if zap.event_id else []
    tags += [["a", zap.address]] if zap.address else []
    tags += [["k", str(zap.kind)]] if zap.kind is not None else []
    tags += [["bolt11", invoice], ["description", request]]
    if preimage is not None:
        if not _is_preimage(preimage, decoded.payment_hash):
            raise ZapInvalid("the preimage is not the payment hash's")
        tags.append(["preimage", preimage])
    return sign_event(secret, kind=RECEIPT, tags=tags, created_at=paid_at)


def check_receipt(
    event: Event,
    *,
    nostr_pubkey: str,
    recipient: str | None = None,
    prefix: str | None = None,
    lnurl_of_recipient: str | None = None,
) -> ZapReceipt:
    """Appendix F, for a verified kind 9735 event; the request inside is verified here. Raises ``ZapInvalid``.

    ``nostr_pubkey`` (hex) is what the recipient's LNURL service names. ``recipient`` (hex), ``prefix`` (the network of
    the invoice, see ``bolt11``) and ``lnurl_of_recipient`` are compared where they are given.
    """
    if event.kind != RECEIPT:
        raise ZapInvalid("not a zap receipt")
    if event.pubkey != nostr_pubkey:
        raise ZapInvalid("not by the key that the recipient's service names")
    text, description = event.tag("bolt11"), event.tag("description")
    if text is None or description is None:
        raise ZapInvalid("a receipt carries an invoice and a zap request")
    try:
        invoice = bolt11.decode(text)
        committed = lnurl.commits_to(invoice, description)
    except (bolt11.Bolt11Invalid, lnurl.LnurlInvalid) as error:
        raise ZapInvalid(f"the invoice: {error}") from None
    if invoice.amount_msats is None:
        raise ZapInvalid("the invoice names no amount")
    if prefix not in (None, invoice.prefix):
        raise ZapInvalid("the invoice is for another network")
    if not committed:
        raise ZapInvalid("the invoice's description hash is not the request's")
    request = check_request(
        description, amount_msats=invoice.amount_msats, recipient=recipient, receipt_signer=nostr_pubkey
    )
    named = {name: event.tag(name) for name in ("p", "P", "e", "a")}
    if named["p"] != request.recipient or named["P"] not in (None, request.sender):
        raise ZapInvalid("receipt and request name different people")
    if named["e"] not in (None, request.event_id) or named["a"] not in (None, request.address):
        raise ZapInvalid("receipt and request name different events")
    if lnurl_of_recipient and request.lnurl and request.lnurl.lower() != lnurl_of_recipient.lower():
        raise ZapInvalid("the request went to another service")
    preimage = event.tag("preimage")
    return ZapReceipt(
        id=event.id,
        author=event.pubkey,
        amount_msats=invoice.amount_msats,
        payment_hash=invoice.payment_hash,
        bolt11=text,
        request=request,
        created_at=event.created_at,
        preimage=preimage if preimage and _is_preimage(preimage, invoice.payment_hash) else None,
    )


def zap_split(event: Event) -> tuple[ZapShare, ...]:
    """Who is to be zapped for ``event`` instead of its author; empty: the author. Entries that are none are left out.

    Without any weight all get the same; where some have one, those without get nothing.
    """
    found: dict[str, tuple[str, float | None]] = {}
    for tag in event.tags_named("zap")[:MAX_SPLIT]:
        if len(tag) > 1 and is_hex(tag[1], 64):
            relay = tag[2] if len(tag) > 2 and is_relay_url(tag[2]) else ""
            found.setdefault(tag[1], (relay, _weight(tag[3]) if len(tag) > 3 else None))
    equal = all(weight is None for _, weight in found.values())
    weights = {name: 1.0 if equal else weight or 0.0 for name, (_, weight) in found.items()}
    total = sum(weights.values())
    return tuple(ZapShare(name, found[name][0], weight / total) for name, weight in weights.items() if weight)


def _event(text: str) -> Event:
    try:
        return Event.from_json(text, MAX_REQUEST_BYTES)
    except EventInvalid as error:
        raise ZapInvalid(f"the zap request: {error}") from None


def _amount(event: Event) -> int | None:
    tags = event.tags_named("amount")
    if not tags:
        return None
    text = tags[0][1] if len(tags[0]) > 1 else ""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise ZapInvalid("its amount is no number of millisatoshi")
    return int(text)


def _is_kind(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_KIND


def _is_address(text: str) -> bool:
    kind, _, rest = text.partition(":")
    pubkey, separator, _ = rest.partition(":")
    return _is_kind(kind) and is_hex(pubkey, 64) and bool(separator)


def _is_preimage(text: str, payment_hash: str) -> bool:
    return is_hex(text, 64) and hashlib.sha256(bytes.fromhex(text)).hexdigest() == payment_hash


def _weight(text: str) -> float:
    try:
        value = float(text[:20])
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and 0 < value <= 1e9 else 0.0
