"""NIP-90: jobs. Kind 5050 asks for a text, 7000 tells how it goes, 6050 carries the result.

Real requests are messy, so reading is lenient: an ``i`` tag of any text type or none, nested ``relays``, amounts with
underscores. Writing is strict. In an encrypted job the ``i`` and ``param`` tags travel as a JSON array in the content,
sealed for the provider by NIP-44 and marked ``["encrypted", "nip44"]``; its result is sealed likewise. Old clients seal
by NIP-04, as NIP-90 has it, and mark that ``["encrypted"]``: what they send is known by its ``?iv=``, whatever the tag
says, and is answered in kind.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import orjson

from protocols import nip04, nip40, nip44
from protocols.json_schema import SchemaInvalid, read_schema
from protocols.keys import KeyInvalid, PublicKey, SecretKey, is_hex
from protocols.nip01 import Event, sign_event

JOB_TEXT = 5050
FEEDBACK = 7000
SCHEME = "nip44"
OLD_SCHEME = "nip04"

MAX_INPUTS = 64
MAX_PARAMS = 64
MAX_PARAM_CHARS = 4_096
MAX_TOKENS = 1_000_000
MAX_MSATS = 21_000_000 * 100_000_000 * 1_000
MAX_MESSAGE_CHARS = 2_000

_TEXT_TYPES = frozenset({"", "text", "prompt"})
_OUTSIDE_TYPES = frozenset({"event", "job", "url"})


class JobInvalid(ValueError):
    """A request, feedback or result that cannot be worked with. The message may be told to its sender."""


class FeedbackStatus(enum.StrEnum):
    PAYMENT_REQUIRED = "payment-required"
    PROCESSING = "processing"
    ERROR = "error"
    SUCCESS = "success"
    PARTIAL = "partial"


def result_kind(kind: int) -> int:
    """The kind of a result to a request of ``kind``."""
    return kind + 1_000


@attrs.frozen
class JobInput:
    """An ``i`` tag."""

    data: str = attrs.field(repr=False)
    type: str = ""
    """``text``, ``prompt``, ``event``, ``job``, ``url`` or not said."""
    relay: str = ""
    marker: str = ""


@attrs.frozen
class JobRequest:
    """A request as it was read. Ids and keys are hex, times Unix seconds."""

    id: str
    kind: int
    customer: str
    created_at: int
    provider: str | None
    """The ``p`` tag: who alone is asked; ``None`` asks everybody."""
    encrypted: bool
    inputs: tuple[JobInput, ...]
    content: str = attrs.field(repr=False)
    """Plain content of an open request; empty for an encrypted one."""
    params: Mapping[str, str] = attrs.field(factory=dict, hash=False, repr=False)
    output: str = ""
    bid_msats: int | None = None
    relays: tuple[str, ...] = ()
    expiration: int | None = None
    max_tokens: int | None = None
    scheme: str = SCHEME
    """How an encrypted one was sealed: ``nip44`` or ``nip04``; its answers are to be, too."""

    @property
    def outside(self) -> tuple[JobInput, ...]:
        """The inputs that are somewhere else: an event, the result of another job, or what is at an address."""
        return tuple(entry for entry in self.inputs if entry.type in _OUTSIDE_TYPES)

    def joined(self, found: Mapping[JobInput, str]) -> str | None:
        """``prompt`` with what was ``found`` in the place of the inputs that are somewhere else."""
        texts = [found.get(entry, entry.data if entry.type in _TEXT_TYPES else None) for entry in self.inputs]
        return "\n".join(text for text in texts if text is not None) or None if self.inputs else self.prompt

    @property
    def model(self) -> str | None:
        """The model asked for; ``None``: any."""
        return self.params.get("model") or None

    @property
    def prompt(self) -> str | None:
        """Text inputs joined; the content only where there is no input at all (it is often a mere label)."""
        if self.inputs:
            texts = [entry.data for entry in self.inputs if entry.type in _TEXT_TYPES]
            return "\n".join(texts) or None
        return self.content or None

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the reply must satisfy (``json_schema`` parameter); ``None``: none is asked for.

        Raises ``JobInvalid`` for one that ``protocols.json_schema`` does not accept.
        """
        text = self.params.get("json_schema")
        if not text:
            return None
        try:
            return read_schema(text)
        except SchemaInvalid as error:
            raise JobInvalid(f"json_schema: {error}") from None

    @property
    def pay_on_delivery(self) -> bool:
        """Whether the customer can pay a hold invoice (``pay_on_delivery`` parameter)."""
        return self.params.get("pay_on_delivery", "").strip().lower() in ("true", "1", "yes")

    def number(self, name: str, least: float, most: float) -> float | None:
        """A numeric parameter, if it is there and within bounds."""
        try:
            value = float(self.params.get(name, "nan"))
        except ValueError:
            return None
        return value if math.isfinite(value) and least <= value <= most else None


@attrs.frozen
class Feedback:
    """Kind 7000: how a job goes, what it costs, or why it failed."""

    id: str
    provider: str
    request_id: str
    customer: str
    status: FeedbackStatus
    message: str = ""
    amount_msats: int | None = None
    bolt11: str | None = None
    credit_msats: int | None = None
    """What the provider owes for this request (``credit`` tag)."""
    credit_used_msats: int | None = None
    """What it takes off the price, of what it owes the customer from before (``credit_used`` tag)."""
    hold_until: int | None = None
    """The invoice is a hold invoice: when it is settled or cancelled at the latest, Unix seconds (``hold`` tag)."""
    content: str = attrs.field(default="", repr=False)


@attrs.frozen
class JobResult:
    """Kind 6000 to 6999: the answer, and what it costs where it was not paid before."""

    id: str
    kind: int
    provider: str
    request_id: str
    customer: str
    text: str = attrs.field(repr=False)
    amount_msats: int | None = None
    bolt11: str | None = None
    credit_used_msats: int | None = None
    """As in ``Feedback``, where all of the price was owed."""


# --- requests -------------------------------------------------------------------------------------------------


def build_request(
    secret: SecretKey,
    *,
    prompt: str,
    provider: PublicKey | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    bid_msats: int | None = None,
    relays: Sequence[str] = (),
    created_at: int,
    expiration: int | None = None,
    params: Sequence[tuple[str, str]] = (),
    encrypt: bool = True,
    scheme: str = SCHEME,
) -> Event:
    """A kind 5050 request. To be encrypted it must name its provider. Times in Unix seconds."""
    private = [["i", prompt, "text"]]
    if model is not None:
        private.append(["param", "model", model])
    if max_tokens is not None:
        private.append(["param", "max_tokens", str(max_tokens)])
    private += [["param", name, value] for name, value in params]
    public: list[list[str]] = [] if provider is None else [["p", provider.hex]]
    if relays:
        public.append(["relays", *relays])
    if bid_msats is not None:
        public.append(["bid", str(bid_msats)])
    if expiration is not None:
        public.append(["expiration", str(expiration)])
    if not encrypt:
        return sign_event(secret, kind=JOB_TEXT, tags=[*private, *public], created_at=created_at)
    if provider is None:
        raise JobInvalid("only a request to one provider can be encrypted")
    sealed = _seal(orjson.dumps(private).decode(), secret, provider, scheme)
    tags = [*public, _mark(scheme)]
    return sign_event(secret, kind=JOB_TEXT, content=sealed, tags=tags, created_at=created_at)


def parse_request(event: Event, secret: SecretKey | None = None) -> JobRequest:
    """A request from a verified event, opened with ``secret`` where it is encrypted. Raises ``JobInvalid``."""
    if not 5_000 <= event.kind < 6_000:
        raise JobInvalid("not a job request")
    encrypted = bool(event.tags_named("encrypted"))
    tags, content = event.tags, event.content
    if encrypted:
        tags, content = (*event.tags, *_open_tags(event, secret)), ""
    inputs = [_input(tag) for tag in tags if len(tag) > 1 and tag[0] == "i"]
    if len(inputs) > MAX_INPUTS:
        raise JobInvalid(f"more than {MAX_INPUTS} inputs")
    params = _params(tags)
    provider = event.tag("p")
    return JobRequest(
        id=event.id,
        kind=event.kind,
        customer=event.pubkey,
        created_at=event.created_at,
        provider=provider if is_hex(provider, 64) else None,
        encrypted=encrypted,
        scheme=_scheme_of(event.content),
        inputs=tuple(inputs),
        content=content,
        params=params,
        output=event.tag("output") or "",
        bid_msats=_msats(event.tag("bid")),
        relays=_relays(event),
        expiration=nip40.expiration(event),
        max_tokens=_max_tokens(params),
    )


def _open_tags(event: Event, secret: SecretKey | None) -> list[tuple[str, ...]]:
    """The sealed ``i`` and ``param`` tags. Any other is ignored: none may contradict what stands in public."""
    if secret is None or event.tag("p") != secret.public.hex:
        raise JobInvalid("it is encrypted for somebody else")
    try:
        value = orjson.loads(_open(event.content, secret, event.pubkey))
    except orjson.JSONDecodeError:
        raise JobInvalid("the encrypted part is not JSON") from None
    if not isinstance(value, list) or len(value) > MAX_INPUTS + MAX_PARAMS:
        raise JobInvalid("the encrypted part is not a list of tags")
    tags = []
    for tag in value:
        if not isinstance(tag, list) or not all(isinstance(entry, str) for entry in tag):
            raise JobInvalid("the encrypted part is not a list of tags")
        if tag and tag[0] in ("i", "param"):
            tags.append(tuple(tag))
    return tags


def _input(tag: Sequence[str]) -> JobInput:
    data, kind, relay, marker = (*tag[1:5], "", "", "")[:4]
    return JobInput(data, kind.lower(), relay, marker)


def _params(tags: Sequence[Sequence[str]]) -> dict[str, str]:
    """The first value of each parameter; ``top-k`` and ``top_k`` are one name."""
    params: dict[str, str] = {}
    for tag in tags:
        if len(tag) > 2 and tag[0] == "param":
            if len(params) >= MAX_PARAMS or len(tag[1]) + len(tag[2]) > MAX_PARAM_CHARS:
                raise JobInvalid("too many parameters, or one too long")
            params.setdefault(tag[1].lower().replace("-", "_"), tag[2])
    return params


def _max_tokens(params: Mapping[str, str]) -> int | None:
    text = params.get("max_tokens")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= MAX_TOKENS:
        raise JobInvalid(f"max_tokens must be a whole number from 1 to {MAX_TOKENS}")
    return int(text)


def _relays(event: Event) -> tuple[str, ...]:
    """Also where the list was nested: some clients put it into one value, as text."""
    found: list[str] = []
    for tag in event.tags_named("relays"):
        for entry in tag[1:]:
            if entry.startswith("["):
                found.extend(_nested(entry))
            else:
                found.append(entry)
    return tuple(dict.fromkeys(url for url in found if url.startswith(("wss://", "ws://"))))


def _nested(text: str) -> list[str]:
    """A list as JSON, or as languages print one that quote with ``'``: no relay's URL has one."""
    try:
        value = orjson.loads(text.replace("'", '"'))
    except orjson.JSONDecodeError:
        return []
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


# --- feedback and results -------------------------------------------------------------------------------------


def build_feedback(
    secret: SecretKey,
    *,
    request: str,
    customer: str,
    status: FeedbackStatus,
    message: str = "",
    amount_msats: int | None = None,
    bolt11: str | None = None,
    credit_msats: int | None = None,
    credit_used_msats: int | None = None,
    hold_until: int | None = None,
    content: str = "",
    encrypt: bool = False,
    scheme: str = SCHEME,
    created_at: int,
    expiration: int | None = None,
) -> Event:
    """A kind 7000 event. ``credit_msats``: what we owe the customer for this request; ``encrypt``: the content.

    ``credit_used_msats``, ``hold_until``: as in ``Feedback``.
    """
    tags = [["status", status.value, *([message] if message else [])], ["e", request], ["p", customer]]
    if amount_msats is not None:
        tags.append(["amount", str(amount_msats), *([bolt11] if bolt11 else [])])
    if credit_msats is not None:
        tags.append(["credit", str(credit_msats), request])
    if credit_used_msats is not None:
        tags.append(["credit_used", str(credit_used_msats)])
    if hold_until is not None:
        tags.append(["hold", str(hold_until)])
    if expiration is not None:
        tags.append(["expiration", str(expiration)])
    if encrypt:
        tags.append(_mark(scheme))
        content = _seal(content, secret, _customer_key(customer), scheme)
    return sign_event(secret, kind=FEEDBACK, content=content, tags=tags, created_at=created_at)


def parse_feedback(event: Event, secret: SecretKey | None = None) -> Feedback:
    """From a verified event, its content opened with ``secret`` where it is encrypted; without one it stays empty.

    Raises ``JobInvalid``; amounts that are none are ``None``.
    """
    if event.kind != FEEDBACK:
        raise JobInvalid("not job feedback")
    status = event.tags_named("status")
    if not status or len(status[0]) < 2:
        raise JobInvalid("feedback without a status")
    try:
        known = FeedbackStatus(status[0][1])
    except ValueError:
        raise JobInvalid("feedback with an unknown status") from None
    content = event.content
    if event.tags_named("encrypted"):
        content = "" if secret is None else _open(event.content, secret, event.pubkey)
    amount, bolt11 = _amount(event)
    credit = next((tag for tag in event.tags_named("credit") if len(tag) > 1), None)
    return Feedback(
        id=event.id,
        provider=event.pubkey,
        request_id=_request_id(event),
        customer=event.tag("p") or "",
        status=known,
        message=(status[0][2] if len(status[0]) > 2 else "")[:MAX_MESSAGE_CHARS],
        amount_msats=amount,
        bolt11=bolt11,
        credit_msats=None if credit is None else _msats(credit[1]),
        credit_used_msats=_msats(event.tag("credit_used")),
        hold_until=_seconds(event.tag("hold")),
        content=content,
    )


def build_result(
    secret: SecretKey,
    *,
    request: Event | str,
    request_kind: int,
    customer: str,
    text: str,
    encrypt: bool,
    scheme: str = SCHEME,
    created_at: int,
    amount_msats: int | None = None,
    bolt11: str | None = None,
    credit_used_msats: int | None = None,
) -> Event:
    """The result of a request. An open one repeats the request and its inputs, an encrypted one neither."""
    request_id = request if isinstance(request, str) else request.id
    tags: list[Sequence[str]] = [["e", request_id], ["p", customer]]
    if encrypt:
        tags.append(_mark(scheme))
        content = _seal(text, secret, _customer_key(customer), scheme)
    else:
        content = text
        if isinstance(request, Event):
            tags.append(["request", request.to_json()])
            tags.extend(request.tags_named("i"))
    if amount_msats is not None:
        tags.append(["amount", str(amount_msats), *([bolt11] if bolt11 else [])])
    if credit_used_msats is not None:
        tags.append(["credit_used", str(credit_used_msats)])
    return sign_event(secret, kind=result_kind(request_kind), content=content, tags=tags, created_at=created_at)


def parse_result(event: Event, secret: SecretKey | None = None) -> JobResult:
    """From a verified event, opened with ``secret`` where it is encrypted. Raises ``JobInvalid``."""
    if not 6_000 <= event.kind < 7_000:
        raise JobInvalid("not a job result")
    text = event.content
    if event.tags_named("encrypted"):
        if secret is None:
            raise JobInvalid("it is encrypted")
        text = _open(event.content, secret, event.pubkey)
    amount, bolt11 = _amount(event)
    return JobResult(
        id=event.id,
        kind=event.kind,
        provider=event.pubkey,
        request_id=_request_id(event),
        customer=event.tag("p") or "",
        text=text,
        amount_msats=amount,
        bolt11=bolt11,
        credit_used_msats=_msats(event.tag("credit_used")),
    )


def _request_id(event: Event) -> str:
    request_id = event.tag("e")
    if not is_hex(request_id, 64):
        raise JobInvalid("it names no request")
    return request_id


def _amount(event: Event) -> tuple[int | None, str | None]:
    for tag in event.tags_named("amount"):
        bolt11 = tag[2] if len(tag) > 2 and tag[2].lower().startswith("ln") else None
        return _msats(tag[1] if len(tag) > 1 else None), bolt11
    return None, None


def _msats(text: str | None) -> int | None:
    """Whole msats; ``100_000`` is seen in the wild. Anything else is no amount."""
    digits = (text or "").replace("_", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        return None
    return amount if (amount := int(digits)) <= MAX_MSATS else None


def _seconds(text: str | None) -> int | None:
    """A time in Unix seconds; anything else is none."""
    digits = text or ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 11 else None


def _customer_key(customer: str) -> PublicKey:
    try:
        return PublicKey.from_hex(customer)
    except KeyInvalid as error:
        raise JobInvalid(f"the customer's key: {error}") from None


def _mark(scheme: str) -> list[str]:
    """The tag of what is sealed. NIP-90 knows it without a value, which means NIP-04."""
    return ["encrypted"] if scheme == OLD_SCHEME else ["encrypted", scheme]


def _scheme_of(payload: str) -> str:
    return OLD_SCHEME if "?iv=" in payload else SCHEME


def _seal(text: str, secret: SecretKey, other: PublicKey, scheme: str) -> str:
    try:
        if scheme == OLD_SCHEME:
            return nip04.encrypt(text, secret, other)
        return nip44.encrypt(text, nip44.conversation_key(secret, other))
    except (nip04.Nip04Error, nip44.Nip44Error) as error:
        raise JobInvalid(f"cannot be encrypted: {error}") from None


def _open(payload: str, secret: SecretKey, author: str) -> str:
    try:
        other = PublicKey.from_hex(author)
        if _scheme_of(payload) == OLD_SCHEME:
            return nip04.decrypt(payload, secret, other)
        return nip44.decrypt(payload, nip44.conversation_key(secret, other))
    except (nip04.Nip04Error, nip44.Nip44Error, KeyInvalid) as error:
        raise JobInvalid(f"cannot be decrypted: {error}") from None
