"""LNURL-pay (LUD-01, 06, 12, 16, 17, with NIP-57's additions): addresses, documents and callbacks, for both ends.

Amounts are millisatoshi. An address comes out of somebody's profile, so it is hostile: unless ``allow_local`` is said,
nothing leads to an address or a name inside one's own network, and plain HTTP leads to onion services only. A name in
public may still resolve to a private address: whoever connects looks at that.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import attrs
import orjson
from bech32 import bech32_decode, bech32_encode, convertbits

from protocols import bolt11
from protocols.keys import KeyInvalid, PublicKey

MAX_URL_CHARS = 2_000
MAX_DOCUMENT_BYTES = 400_000
"""A document may carry a picture of 136,536 characters, twice escaped."""
MAX_COMMENT_CHARS = 2_000
MAX_TEXT_CHARS = 500
MAX_MSATS = bolt11.MAX_AMOUNT_MSATS

_ADDRESS = re.compile(r"([a-z0-9._+-]{1,64})@([a-z0-9.-]{1,253}(?::[0-9]{1,5})?)")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


class LnurlInvalid(ValueError):
    """An address, document or call that cannot be used. The message quotes nothing and may be told to its sender."""


class LnurlRefused(LnurlInvalid):
    """The service answered that it will not."""

    def __init__(self, reason: str) -> None:
        super().__init__("the service refused")
        self.reason = reason
        """In the service's words, cut; not to be trusted."""


# --- addresses ------------------------------------------------------------------------------------------------


def encode_lnurl(url: str) -> str:
    """Bech32, lower case (LUD-01)."""
    words = convertbits(url.encode(), 8, 5, True)
    if not url.isascii() or words is None or len(url) > MAX_URL_CHARS:
        raise LnurlInvalid("no address that LNURL can carry")
    return str(bech32_encode("lnurl", words))


def decode_lnurl(text: str, *, allow_local: bool = False) -> str:
    """The address in an ``lnurl1…``, upper or lower case, ``lightning:`` before it or not. Raises ``LnurlInvalid``."""
    if len(text) > 2 * MAX_URL_CHARS:
        raise LnurlInvalid("longer than any LNURL")
    prefix, words = bech32_decode(re.sub("^lightning:", "", text, flags=re.IGNORECASE))
    data = None if words is None else convertbits(words, 5, 8, False)
    if prefix != "lnurl" or data is None:
        raise LnurlInvalid("not an LNURL, or its checksum is wrong")
    try:
        return check_url(bytes(data).decode("ascii"), allow_local=allow_local)
    except UnicodeDecodeError:
        raise LnurlInvalid("the address in it is not ASCII") from None


def lightning_address_url(address: str, *, allow_local: bool = False) -> str:
    """Where the document of ``name@domain`` is (LUD-16, a ``lud16`` of a profile). Raises ``LnurlInvalid``."""
    match = _ADDRESS.fullmatch(address.strip().lower()) if len(address) <= MAX_URL_CHARS else None
    if match is None:
        raise LnurlInvalid("not a lightning address: name@domain is wanted")
    name, domain = match.groups()
    host = domain.partition(":")[0]
    scheme = "http" if host.endswith(".onion") or (allow_local and _is_loopback(host)) else "https"
    return check_url(f"{scheme}://{domain}/.well-known/lnurlp/{name}", allow_local=allow_local)


def pay_url(text: str, *, allow_local: bool = False) -> str:
    """Where the document of a lightning address, an LNURL or an ``lnurlp://`` address is. Raises ``LnurlInvalid``."""
    text = text.strip()
    if "@" in text and "://" not in text:
        return lightning_address_url(text, allow_local=allow_local)
    if text.lower().startswith("lnurlp://"):
        rest = text[len("lnurlp://") :]
        host = re.split("[/:?]", rest, maxsplit=1)[0]
        plain = host.endswith(".onion") or (allow_local and _is_loopback(host))
        return check_url(("http://" if plain else "https://") + rest, allow_local=allow_local)
    return decode_lnurl(text, allow_local=allow_local)


def check_url(url: str, *, allow_local: bool = False) -> str:
    """``url``, if a stranger may send us there: https, or http to an onion service. Raises ``LnurlInvalid``.

    ``allow_local`` accepts loopback too, by http as well.
    """
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or re.search(r'[\s\\"<>^`{|}]', url):
        raise LnurlInvalid("not an address")
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise LnurlInvalid("not an address") from None
    if not host or "@" in parts.netloc:
        raise LnurlInvalid("an address names a host, and no user")
    if allow_local and _is_loopback(host) and parts.scheme in ("http", "https"):
        return url
    if parts.scheme != "https" and not (parts.scheme == "http" and host.endswith(".onion")):
        raise LnurlInvalid("only https leads to a service, or http to an onion service")
    if not _is_public(host):
        raise LnurlInvalid("the address does not lead to the public network")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_public(host: str) -> bool:
    """By its looks. A last label that is a number makes resolvers read an IPv4 address, in whatever form."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    labels = host.lower().split(".")
    if len(labels) < 2 or not all(labels) or _NUMERIC_LABEL.fullmatch(labels[-1]):
        return False
    return labels[-1] not in ("local", "localhost", "internal", "lan", "home", "arpa")


# --- documents ------------------------------------------------------------------------------------------------


@attrs.frozen
class PayRequest:
    """What a service says of itself: the answer to the first call."""

    callback: str
    min_msats: int
    max_msats: int
    metadata: str = attrs.field(repr=False)
    """The JSON text as it is: an invoice that is no zap commits to its hash."""
    comment_chars: int = 0
    """Longest comment that is taken (LUD-12)."""
    allows_nostr: bool = False
    nostr_pubkey: str | None = None
    """Whose key signs zap receipts, hex (NIP-57)."""

    @property
    def zappable(self) -> bool:
        return self.allows_nostr and self.nostr_pubkey is not None

    @property
    def description(self) -> str:
        """The metadata's plain text; empty where there is none."""
        return _metadata_text(self.metadata)

    def to_json(self) -> str:
        document: dict[str, Any] = {
            "tag": "payRequest",
            "callback": self.callback,
            "minSendable": self.min_msats,
            "maxSendable": self.max_msats,
            "metadata": self.metadata,
        }
        if self.comment_chars:
            document["commentAllowed"] = self.comment_chars
        if self.nostr_pubkey is not None:
            document |= {"allowsNostr": self.allows_nostr, "nostrPubkey": self.nostr_pubkey}
        return orjson.dumps(document).decode()

    @classmethod
    def parse(cls, text: str | bytes, *, allow_local: bool = False) -> PayRequest:
        """From what a service answered. Raises ``LnurlInvalid``, or ``LnurlRefused`` where it says that it will not."""
        document = _answer(text)
        if document.get("tag") != "payRequest":
            raise LnurlInvalid("the service offers something else than payment")
        least, most = _whole(document.get("minSendable")), _whole(document.get("maxSendable"))
        callback, metadata = document.get("callback"), document.get("metadata")
        if least is None or most is None or not 0 < least <= most:
            raise LnurlInvalid("minSendable and maxSendable are no range")
        if not isinstance(callback, str) or not isinstance(metadata, str):
            raise LnurlInvalid("callback or metadata is missing")
        pubkey = _point(document.get("nostrPubkey"))
        return cls(
            callback=check_url(callback, allow_local=allow_local),
            min_msats=least,
            max_msats=min(most, MAX_MSATS),
            metadata=metadata,
            comment_chars=min(_whole(document.get("commentAllowed")) or 0, MAX_COMMENT_CHARS),
            allows_nostr=document.get("allowsNostr") is True,
            nostr_pubkey=pubkey,
        )

    def invoice_url(
        self, amount_msats: int, *, comment: str = "", zap_request: str | None = None, lnurl: str | None = None
    ) -> str:
        """Where to get an invoice. ``zap_request``: the signed 9734 event as JSON. Raises ``LnurlInvalid``."""
        self._check(amount_msats, comment)
        query = {"amount": str(amount_msats)}
        if zap_request is not None:
            if not self.zappable:
                raise LnurlInvalid("the service gives no zap receipts")
            query["nostr"] = zap_request
        if comment:
            query["comment"] = comment
        if lnurl:
            query["lnurl"] = lnurl
        base, _, _ = self.callback.partition("#")
        return base + ("&" if "?" in base else "?") + urlencode(query, quote_via=quote)

    def _check(self, amount_msats: int, comment: str) -> None:
        if not self.min_msats <= amount_msats <= self.max_msats:
            raise LnurlInvalid(f"the amount must be from {self.min_msats} to {self.max_msats} msat")
        if len(comment) > self.comment_chars:
            raise LnurlInvalid(f"a comment has at most {self.comment_chars} characters")


@attrs.frozen
class PayCall:
    """What a payer asks of a callback."""

    amount_msats: int
    comment: str = attrs.field(default="", repr=False)
    zap_request: str | None = attrs.field(default=None, repr=False)
    """The ``nostr`` parameter as it came, not yet checked: see ``nip57.check_request``."""
    lnurl: str | None = None


def build_metadata(text: str, identifier: str = "") -> str:
    """Metadata of a document: what is paid for, and the lightning address that leads here (LUD-16)."""
    entries = [["text/plain", text]] + ([["text/identifier", identifier]] if identifier else [])
    return orjson.dumps(entries).decode()


def parse_call(query: Mapping[str, str], document: PayRequest) -> PayCall:
    """The second call, against the document that the first one got. Raises ``LnurlInvalid``."""
    amount, comment, zap = query.get("amount", ""), query.get("comment", ""), query.get("nostr")
    if not amount.isascii() or not amount.isdigit() or len(amount) > 19:
        raise LnurlInvalid("amount: whole millisatoshi are wanted")
    document._check(int(amount), comment)
    if zap is not None and not document.zappable:
        raise LnurlInvalid("no zap receipts are given here")
    lnurl = query.get("lnurl", "")
    return PayCall(int(amount), comment, zap, lnurl if 0 < len(lnurl) <= 2 * MAX_URL_CHARS else None)


def build_invoice(invoice: str) -> str:
    """The answer to the second call."""
    return orjson.dumps({"pr": invoice, "routes": []}).decode()


def build_refusal(reason: str) -> str:
    """The answer to a call that cannot be served."""
    return orjson.dumps({"status": "ERROR", "reason": reason}).decode()


def parse_invoice(text: str | bytes) -> str:
    """The invoice in the answer to the second call, unread. Raises ``LnurlInvalid`` or ``LnurlRefused``."""
    invoice = _answer(text).get("pr")
    if not isinstance(invoice, str) or not 0 < len(invoice) <= bolt11.MAX_CHARS:
        raise LnurlInvalid("the service answered without an invoice")
    return invoice


def check_invoice(
    text: str, *, description: str, amount_msats: int, prefix: str, now: float, min_seconds: float = 0.0
) -> bolt11.Invoice:
    """The invoice, if it is the one asked for: amount, network, time, and the hash of ``description``.

    ``description`` is the document's metadata or, for a zap, the JSON of the zap request as it was sent. Raises
    ``LnurlInvalid``.
    """
    try:
        invoice = bolt11.decode(text)
        bolt11.check_terms(invoice, prefix=prefix, amount_msats=amount_msats, now=now, min_seconds=min_seconds)
    except bolt11.Bolt11Invalid as error:
        raise LnurlInvalid(f"the invoice: {error}") from None
    if not commits_to(invoice, description):
        raise LnurlInvalid("the invoice does not commit to what was asked for")
    return invoice


def description_hash(description: str) -> str:
    """SHA-256 of the UTF-8 text, hex: an invoice's ``h`` field. Raises ``LnurlInvalid`` for what is not Unicode."""
    try:
        return hashlib.sha256(description.encode()).hexdigest()
    except UnicodeEncodeError:
        raise LnurlInvalid("the description is not Unicode text") from None


def commits_to(invoice: bolt11.Invoice, description: str) -> bool:
    """Whether an invoice is for ``description``: by its hash, as it should, or by carrying the whole text."""
    if invoice.description_hash is None:
        return invoice.description == description
    return invoice.description_hash == description_hash(description)


def _answer(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise LnurlInvalid(f"an answer has at most {MAX_DOCUMENT_BYTES} bytes")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise LnurlInvalid("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise LnurlInvalid("the answer is not a JSON object")
    status = value.get("status")
    if isinstance(status, str) and status.upper() == "ERROR":
        reason = value.get("reason")
        raise LnurlRefused(reason[:MAX_TEXT_CHARS] if isinstance(reason, str) else "")
    return value


def _metadata_text(metadata: str) -> str:
    try:
        entries = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        return ""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, list) and len(entry) > 1 and entry[0] == "text/plain" and isinstance(entry[1], str):
            return entry[1][:MAX_TEXT_CHARS]
    return ""


def _whole(value: object) -> int | None:
    """A number of JSON that is whole, also where it was written ``1000.0``."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _point(value: object) -> str | None:
    try:
        return PublicKey.from_hex(value).hex if isinstance(value, str) else None
    except KeyInvalid:
        return None
