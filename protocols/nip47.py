"""NIP-47, Nostr Wallet Connect: the connection string and the events between a client and a wallet service.

A service publishes what it can (kind 13194); a client that holds a connection string asks (23194), the service answers
(23195) and tells of payments (23197, and 23196 for clients of NIP-04). What is inside requests and results is in
``protocols.nip47_methods``.

Reading is lenient, since services and clients differ in what they leave out; writing is strict. Whatever cannot be read
is ``Nip47Invalid``, whose message quotes nothing. Verify an event's signature before it comes here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import attrs
import orjson

from protocols import nip04, nip44
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import Event, Filter, sign_event
from protocols.nip40 import expiration
from protocols.nip65 import is_relay_url

INFO = 13194
REQUEST = 23194
RESPONSE = 23195
NOTIFICATION_NIP04 = 23196
NOTIFICATION = 23197

SCHEME = "nostr+walletconnect"
MAX_URI_CHARS = 8_192
MAX_RELAYS = 20
MAX_TEXT_BYTES = 65_535
"""Of a request, response or notification in plain: relays of wallets carry 64 kB at least."""
MAX_METADATA_CHARS = 4_096
"""Longer metadata must be dropped."""
PAGE = 20
"""Transactions that a client asks for at once, at most."""


class Nip47Invalid(ValueError):
    """A connection string or an event that cannot be read, or must not be written."""


class Encryption(enum.StrEnum):
    """The values are those of the ``encryption`` tag. Where there is none, NIP-04 is meant."""

    NIP44 = "nip44_v2"
    NIP04 = "nip04"


class ErrorCode(enum.StrEnum):
    RATE_LIMITED = "RATE_LIMITED"
    """Nothing was done; try again in a few seconds."""
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RESTRICTED = "RESTRICTED"
    UNAUTHORIZED = "UNAUTHORIZED"
    INTERNAL = "INTERNAL"
    UNSUPPORTED_ENCRYPTION = "UNSUPPORTED_ENCRYPTION"
    OTHER = "OTHER"
    PAYMENT_FAILED = "PAYMENT_FAILED"
    """Also "due to a timeout", says the NIP: it is no promise that nothing will be paid."""
    NOT_FOUND = "NOT_FOUND"


@attrs.frozen
class ConnectionUri:
    """A connection string: whoever has it can use the wallet within its limits. The secret is in no repr."""

    wallet: PublicKey
    """The service's key, one for each connection."""
    relays: tuple[str, ...]
    secret: SecretKey
    """The client's key; its public half is how the service knows the client."""
    lud16: str | None = None
    """A lightning address of the wallet."""

    @classmethod
    def parse(cls, text: str) -> ConnectionUri:
        """From its text. Also without ``//``, with capitals in hex, and with parameters that mean nothing here.

        Raises ``Nip47Invalid``; the message repeats nothing of the text.
        """
        text = text.strip()
        if len(text) > MAX_URI_CHARS or not text.isprintable() or not text.isascii():
            raise Nip47Invalid(f"a connection string is printable ASCII, at most {MAX_URI_CHARS} characters")
        scheme, separator, rest = text.partition(":")
        if not separator or scheme.lower() != SCHEME:
            raise Nip47Invalid(f"a connection string begins with {SCHEME}://")
        try:
            parts = urlsplit("//" + rest.lstrip("/"))
            query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
        except ValueError:
            raise Nip47Invalid("the connection string is no address") from None
        values: dict[str, list[str]] = {}
        for name, value in query:
            values.setdefault(name, []).append(value.strip())
        relays = tuple(dict.fromkeys(filter(is_relay_url, values.get("relay", []))))[:MAX_RELAYS]
        if not relays:
            raise Nip47Invalid("the connection string names no relay (relay=wss://...)")
        secrets = values.get("secret", [])
        if len(secrets) != 1:
            raise Nip47Invalid("the connection string has one secret (secret=<64 hex digits>)")
        try:
            wallet = PublicKey.from_hex(parts.netloc.lower())
        except KeyInvalid:
            raise Nip47Invalid("the wallet's public key in the connection string is none") from None
        try:
            secret = SecretKey.from_hex(secrets[0].lower())
        except KeyInvalid:
            raise Nip47Invalid("the secret in the connection string is none") from None
        return cls(wallet, relays, secret, next(filter(None, values.get("lud16", [])), None))

    def __attrs_post_init__(self) -> None:
        if not 0 < len(self.relays) <= MAX_RELAYS or not all(map(is_relay_url, self.relays)):
            raise Nip47Invalid(f"a connection string has 1 to {MAX_RELAYS} relays, each ws:// or wss://")

    @property
    def client(self) -> PublicKey:
        return self.secret.public

    def reveal(self) -> str:
        """The whole text, secret included: to be shown once, and nowhere else."""
        query = [("relay", url) for url in self.relays] + [("secret", self.secret.reveal().hex())]
        if self.lud16:
            query.append(("lud16", self.lud16))
        return f"{SCHEME}://{self.wallet.hex}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query)


# --- what a service can ---------------------------------------------------------------------------------------


@attrs.frozen
class Info:
    """A kind 13194 event. A service that names no encryption speaks NIP-04 only."""

    methods: tuple[str, ...]
    encryptions: frozenset[Encryption]
    notifications: tuple[str, ...] = ()
    created_at: int = 0

    @property
    def best(self) -> Encryption | None:
        """What a client should use; ``None`` where it has no cipher in common with us."""
        return next((cipher for cipher in Encryption if cipher in self.encryptions), None)


def build_info(
    secret: SecretKey,
    *,
    methods: Sequence[str],
    created_at: int,
    notifications: Sequence[str] = (),
    encryptions: Sequence[Encryption] = (Encryption.NIP44, Encryption.NIP04),
) -> Event:
    """The replaceable event by which a service says what it can. Raises ``Nip47Invalid`` for names with spaces."""
    named = [*methods, *(["notifications"] if notifications else [])]
    if not encryptions or not all(name and not set(name) & set(" \t\n") for name in (*named, *notifications)):
        raise Nip47Invalid("methods and notifications are single words, and there is one encryption at least")
    tags = [["encryption", " ".join(encryptions)]]
    if notifications:
        tags.append(["notifications", " ".join(notifications)])
    return sign_event(secret, kind=INFO, content=" ".join(named), tags=tags, created_at=created_at)


def read_info(event: Event) -> Info:
    """Raises ``Nip47Invalid``."""
    if event.kind != INFO:
        raise Nip47Invalid("not a wallet's info event")
    # Some services separate by commas.
    methods = event.content.replace(",", " ").split()
    notifications = " ".join(" ".join(tag[1:]) for tag in event.tags_named("notifications")).split()
    named = [" ".join(tag[1:]).replace(",", " ").split() for tag in event.tags_named("encryption")]
    ciphers = {cipher for words in named for cipher in Encryption if cipher in words} if named else {Encryption.NIP04}
    return Info(
        methods=tuple(dict.fromkeys(name for name in methods if name != "notifications")),
        encryptions=frozenset(ciphers),
        notifications=tuple(dict.fromkeys(notifications)),
        created_at=event.created_at,
    )


# --- requests -------------------------------------------------------------------------------------------------


@attrs.frozen
class Request:
    """A kind 23194 event, opened. ``params`` may hold anything."""

    id: str
    client: str
    method: str
    params: Mapping[str, Any] = attrs.field(repr=False)
    encryption: Encryption
    created_at: int
    expires_at: int | None = None
    """Seconds; to be ignored from then on."""


def build_request(
    secret: SecretKey,
    wallet: PublicKey,
    *,
    method: str,
    params: Mapping[str, Any],
    created_at: int,
    encryption: Encryption = Encryption.NIP44,
    expires_at: int | None = None,
) -> Event:
    """``secret`` is the connection's. Raises ``Nip47Invalid``."""
    tags = [["p", wallet.hex], ["encryption", encryption.value]]
    if expires_at is not None:
        tags.append(["expiration", str(expires_at)])
    content = _seal({"method": method, "params": dict(params)}, secret, wallet, encryption)
    return sign_event(secret, kind=REQUEST, content=content, tags=tags, created_at=created_at)


def asked_encryption(event: Event) -> Encryption | None:
    """The cipher of a request; ``None`` for one that nobody here knows (answer ``UNSUPPORTED_ENCRYPTION``)."""
    named = event.tag("encryption")
    if named is None:
        return Encryption.NIP04
    return next((cipher for cipher in Encryption if cipher == named.strip()), None)


def open_request(event: Event, secret: SecretKey) -> Request:
    """``secret`` is the service's. A client that does not name NIP-44 but uses it is understood."""
    if event.kind != REQUEST:
        raise Nip47Invalid("not a request to a wallet")
    if event.tag("p") not in (None, secret.public.hex):
        raise Nip47Invalid("it is for another wallet")
    if asked_encryption(event) is None:
        raise Nip47Invalid("its encryption is unknown")
    body, cipher = _open(event, secret)
    method, params = body.get("method"), body.get("params")
    if not isinstance(method, str) or not 0 < len(method) <= 100:
        raise Nip47Invalid("a request names its method")
    return Request(
        id=event.id,
        client=event.pubkey,
        method=method,
        params=params if isinstance(params, dict) else {},
        encryption=cipher,
        created_at=event.created_at,
        expires_at=expiration(event),
    )


# --- responses ------------------------------------------------------------------------------------------------


@attrs.frozen
class Failure:
    """The ``error`` of a response."""

    code: ErrorCode
    message: str
    detail: str = ""
    """Beside the NIP (``pylon_code``): which error of the service's own it was, for clients that know."""


@attrs.frozen
class Response:
    """A kind 23195 event, opened: a result, or an error."""

    request: str | None
    """Id of the request; ``None`` where the service does not say."""
    method: str
    result: Mapping[str, Any] | None = attrs.field(repr=False)
    error: Failure | None
    created_at: int = 0


def build_response(
    secret: SecretKey,
    client: PublicKey,
    *,
    request: str,
    method: str,
    created_at: int,
    result: Mapping[str, Any] | None = None,
    error: Failure | None = None,
    encryption: Encryption = Encryption.NIP44,
) -> Event:
    """``secret`` is the service's; ``encryption`` that of the request. Raises ``Nip47Invalid``."""
    if (result is None) == (error is None):
        raise Nip47Invalid("a response is a result or an error")
    if not is_hex(request, 64):
        raise Nip47Invalid("a response names its request")
    told: dict[str, Any] | None = None
    if error is not None:
        told = {"code": error.code.value, "message": error.message}
        if error.detail:
            told["pylon_code"] = error.detail
    body = {"result_type": method, "error": told, "result": None if result is None else dict(result)}
    tags = [["p", client.hex], ["e", request]]
    content = _seal(body, secret, client, encryption)
    return sign_event(secret, kind=RESPONSE, content=content, tags=tags, created_at=created_at)


def open_response(event: Event, secret: SecretKey) -> Response:
    """``secret`` is the client's. An unknown error code is ``OTHER``. Raises ``Nip47Invalid``."""
    if event.kind != RESPONSE:
        raise Nip47Invalid("not a wallet's response")
    body, _ = _open(event, secret)
    method, error, result = body.get("result_type"), body.get("error"), body.get("result")
    request = event.tag("e")
    failure = None
    if error is not None and error != {}:
        told = error if isinstance(error, dict) else {"message": error}
        code = str(told.get("code", "")).upper()
        failure = Failure(
            ErrorCode(code) if code in set(ErrorCode) else ErrorCode.OTHER,
            _words(told.get("message")),
            _words(told.get("pylon_code"))[:50],
        )
    if failure is None and not isinstance(result, dict):
        raise Nip47Invalid("a response has a result or an error")
    return Response(
        request=request if is_hex(request, 64) else None,
        method=method if isinstance(method, str) else "",
        result=result if failure is None and isinstance(result, dict) else None,
        error=failure,
        created_at=event.created_at,
    )


# --- notifications --------------------------------------------------------------------------------------------


@attrs.frozen
class Notification:
    """A kind 23197 or 23196 event, opened."""

    type: str
    """``payment_received``, ``payment_sent``, ``hold_invoice_accepted`` or what is yet to be invented."""
    body: Mapping[str, Any] = attrs.field(repr=False)
    created_at: int = 0


def build_notification(
    secret: SecretKey,
    client: PublicKey,
    *,
    type: str,
    body: Mapping[str, Any],
    created_at: int,
    encryption: Encryption = Encryption.NIP44,
) -> Event:
    """``secret`` is the service's. A service that speaks both ciphers sends both. Raises ``Nip47Invalid``."""
    kind = NOTIFICATION if encryption is Encryption.NIP44 else NOTIFICATION_NIP04
    content = _seal({"notification_type": type, "notification": dict(body)}, secret, client, encryption)
    return sign_event(secret, kind=kind, content=content, tags=[["p", client.hex]], created_at=created_at)


def open_notification(event: Event, secret: SecretKey) -> Notification:
    """``secret`` is the client's. Raises ``Nip47Invalid``."""
    if event.kind not in (NOTIFICATION, NOTIFICATION_NIP04):
        raise Nip47Invalid("not a wallet's notification")
    body, _ = _open(event, secret)
    type, inner = body.get("notification_type"), body.get("notification")
    if not isinstance(type, str) or not isinstance(inner, dict):
        raise Nip47Invalid("a notification has a type and a body")
    return Notification(type, inner, event.created_at)


# --- filters --------------------------------------------------------------------------------------------------


def client_filter(uri: ConnectionUri, *, since: int | None = None) -> Filter:
    """What a client listens to."""
    kinds = (RESPONSE, NOTIFICATION_NIP04, NOTIFICATION)
    return Filter(kinds=kinds, authors=[uri.wallet.hex], tags={"p": [uri.client.hex]}, since=since)


def service_filter(services: Iterable[str], clients: Iterable[str], *, since: int | None = None) -> Filter:
    """What a service listens to: requests of its clients, by their keys (hex)."""
    return Filter(kinds=[REQUEST], authors=clients, tags={"p": services}, since=since)


# --- within ---------------------------------------------------------------------------------------------------


def _seal(body: Mapping[str, Any], secret: SecretKey, other: PublicKey, cipher: Encryption) -> str:
    try:
        text = orjson.dumps(body).decode()
    except (orjson.JSONEncodeError, TypeError):
        raise Nip47Invalid("it cannot be written as JSON") from None
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise Nip47Invalid(f"a text has at most {MAX_TEXT_BYTES} bytes")
    if cipher is Encryption.NIP44:
        return nip44.encrypt(text, nip44.conversation_key(secret, other))
    return nip04.encrypt(text, secret, other)


def _guess(content: str) -> Encryption:
    """A payload of NIP-04 cannot be mistaken; responses name no cipher, and some requests a wrong one."""
    return Encryption.NIP04 if "?iv=" in content else Encryption.NIP44


def _open(event: Event, secret: SecretKey) -> tuple[dict[str, Any], Encryption]:
    """The text by the cipher that it was really sealed with, whatever was said."""
    cipher = _guess(event.content)
    try:
        other = PublicKey.from_hex(event.pubkey)
        if cipher is Encryption.NIP44:
            text = nip44.decrypt(event.content, nip44.conversation_key(secret, other), max_bytes=MAX_TEXT_BYTES)
        else:
            text = nip04.decrypt(event.content, secret, other, max_bytes=MAX_TEXT_BYTES)
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Nip47Invalid("its text is not JSON") from None
    except (KeyInvalid, nip04.Nip04Error, nip44.Nip44Error):
        raise Nip47Invalid("it cannot be opened") from None
    if not isinstance(body, dict):
        raise Nip47Invalid("its text is no JSON object")
    return body, cipher


def _words(value: object) -> str:
    """A stranger's words, cut."""
    return value[:500] if isinstance(value, str) else ""
