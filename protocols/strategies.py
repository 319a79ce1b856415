"""Hypothesis strategies for Nostr: the public harness, for other projects too. Needs ``hypothesis``.

Valid values come as values (``events()``, ``filters()``, ``client_frames()``, ``job_requests()`` ...). Broken ones
come as ``(name, text)``: the name says what is wrong, so that a failing test says it too. Lightning invoices have
``protocols.strategies_invoices``.

    @given(events(kinds=[1]), broken_events())
    def test_my_relay(event, broken): ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from protocols.keys import CURVE_ORDER, PublicKey, SecretKey
from protocols.nip01 import (
    MAX_SUBSCRIPTION_ID,
    ClientAuth,
    ClientClose,
    ClientEvent,
    ClientReq,
    Event,
    Filter,
    RelayAuth,
    RelayClosed,
    RelayEose,
    RelayEvent,
    RelayNotice,
    RelayOk,
    event_id,
    sign_event,
)
from protocols.nip89 import build_announcement
from protocols.nip90 import FeedbackStatus, build_feedback, build_request, build_result

texts: st.SearchStrategy[str] = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
"""Any Unicode text that UTF-8 can carry, control characters included."""

secret_keys: st.SearchStrategy[SecretKey] = st.integers(1, CURVE_ORDER - 1).map(
    lambda n: SecretKey(n.to_bytes(32, "big"))
)
public_keys: st.SearchStrategy[PublicKey] = secret_keys.map(lambda secret: secret.public)
hex_ids: st.SearchStrategy[str] = st.binary(min_size=32, max_size=32).map(bytes.hex)
times: st.SearchStrategy[int] = st.integers(0, 2**33)
kinds: st.SearchStrategy[int] = st.one_of(
    st.sampled_from([0, 1, 3, 4, 5, 1059, 5050, 6050, 7000, 9735, 10002, 20001, 31990, 39200]), st.integers(0, 65_535)
)
subscription_ids: st.SearchStrategy[str] = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=MAX_SUBSCRIPTION_ID
)


@st.composite
def tags(draw: st.DrawFn) -> tuple[str, ...]:
    """One tag: usually a letter with a value that others may share, sometimes anything."""
    name = draw(st.one_of(st.sampled_from(["p", "e", "d", "t", "k", "i", "relays", "expiration"]), texts))
    values = st.one_of(st.sampled_from(["", "a", "b", "aa" * 32, "bb" * 32, "1700000000"]), texts)
    return (name, *draw(st.lists(values, max_size=3)))


@st.composite
def events(
    draw: st.DrawFn,
    *,
    secrets: st.SearchStrategy[SecretKey] = secret_keys,
    kinds: Sequence[int] | None = None,
    created_at: st.SearchStrategy[int] = times,
) -> Event:
    """A signed, valid event."""
    return sign_event(
        draw(secrets),
        kind=draw(_ANY_KIND if kinds is None else st.sampled_from(kinds)),
        content=draw(texts),
        tags=draw(st.lists(tags(), max_size=5)),
        created_at=draw(created_at),
    )


_ANY_KIND = kinds


def _some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any] | None]:
    return st.one_of(st.none(), st.lists(values, max_size=3))


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    """Any filter."""
    return Filter(
        ids=draw(_some(hex_ids)),
        authors=draw(_some(hex_ids)),
        kinds=draw(_some(_ANY_KIND)),
        since=draw(st.one_of(st.none(), times)),
        until=draw(st.one_of(st.none(), times)),
        limit=draw(st.one_of(st.none(), st.integers(0, 500))),
        tags=draw(st.dictionaries(st.sampled_from("pedtk"), st.lists(texts, min_size=1, max_size=3), max_size=2)),
    )


@st.composite
def filters_matching(draw: st.DrawFn, event: Event) -> Filter:
    """A filter that matches ``event``, by any subset of its properties."""
    letters = [tag for tag in event.tags if len(tag) > 1 and len(tag[0]) == 1 and tag[0].isascii() and tag[0].isalpha()]
    chosen = draw(st.lists(st.sampled_from(letters), max_size=2)) if letters else []
    maybe = st.booleans()
    return Filter(
        ids=[event.id] if draw(maybe) else None,
        authors=[event.pubkey, *draw(st.lists(hex_ids, max_size=2))] if draw(maybe) else None,
        kinds=[event.kind, *draw(st.lists(_ANY_KIND, max_size=2))] if draw(maybe) else None,
        since=draw(st.integers(0, event.created_at)) if draw(maybe) else None,
        until=event.created_at + draw(st.integers(0, 1_000)) if draw(maybe) else None,
        tags={tag[0]: [tag[1]] for tag in chosen},
    )


@st.composite
def client_frames(draw: st.DrawFn) -> ClientEvent | ClientReq | ClientClose | ClientAuth:
    match draw(st.integers(0, 3)):
        case 0:
            return ClientEvent(draw(events()))
        case 1:
            return ClientReq(draw(subscription_ids), tuple(draw(st.lists(filters(), min_size=1, max_size=3))))
        case 2:
            return ClientClose(draw(subscription_ids))
        case _:
            return ClientAuth(draw(events(kinds=[22242])))


@st.composite
def relay_frames(
    draw: st.DrawFn,
) -> RelayEvent | RelayOk | RelayEose | RelayClosed | RelayNotice | RelayAuth:
    match draw(st.integers(0, 5)):
        case 0:
            return RelayEvent(draw(subscription_ids), draw(events()))
        case 1:
            return RelayOk(draw(hex_ids), draw(st.booleans()), draw(texts))
        case 2:
            return RelayEose(draw(subscription_ids))
        case 3:
            return RelayClosed(draw(subscription_ids), draw(texts))
        case 4:
            return RelayNotice(draw(texts))
        case _:
            return RelayAuth(draw(texts))


# --- broken in named ways -------------------------------------------------------------------------------------

Broken = tuple[str, str]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def _without(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda event: _dump({key: value for key, value in event.items() if key != name})


def _with(name: str, value: Any) -> Callable[[dict[str, Any]], str]:
    return lambda event: _dump({**event, name: value})


EVENT_BREAKS: dict[str, Callable[[dict[str, Any]], str]] = {
    **{f"no {name}": _without(name) for name in ("id", "pubkey", "created_at", "kind", "tags", "content", "sig")},
    "id of another event": _with("id", "ab" * 32),
    "upper-case id": lambda event: _dump({**event, "id": "AB" * 32}),
    "short id": lambda event: _dump({**event, "id": event["id"][:-2]}),
    "id with a newline": lambda event: _dump({**event, "id": event["id"][:-1] + "\n"}),
    "non-ASCII digits in the id": lambda event: _dump({**event, "id": "٣" * 64}),
    "key that is no point": _with("pubkey", "ff" * 32),
    "somebody else's key": lambda event: _dump({**event, "pubkey": SecretKey(b"\x07" * 32).public.hex}),
    "signature of zeros": _with("sig", "00" * 64),
    "signature cut off": lambda event: _dump({**event, "sig": event["sig"][:-2]}),
    "signature changed": lambda event: _dump(
        {**event, "sig": event["sig"][:-2] + ("00" if event["sig"][-2:] != "00" else "01")}
    ),
    "content changed": lambda event: _dump({**event, "content": event["content"] + "!"}),
    "content null": _with("content", None),
    "content a number": _with("content", 5),
    "kind true": _with("kind", True),
    "kind text": _with("kind", "1"),
    "kind negative": _with("kind", -1),
    "kind too large": _with("kind", 65_536),
    "kind a fraction": _with("kind", 1.0),
    "created_at a fraction": lambda event: _dump({**event, "created_at": event["created_at"] + 0.5}),
    "created_at text": lambda event: _dump({**event, "created_at": str(event["created_at"])}),
    "created_at huge": _with("created_at", 10**30),
    "created_at negative": _with("created_at", -1),
    "created_at NaN": lambda event: json.dumps({**event, "created_at": float("nan")}),
    "tags an object": _with("tags", {"p": "x"}),
    "tag a text": _with("tags", ["p"]),
    "tag with a number": _with("tags", [["p", 1]]),
    "tag with a list": _with("tags", [["p", ["x"]]]),
    "tag added": lambda event: _dump({**event, "tags": [*event["tags"], ["p", "x"]]}),
    "too many tags": _with("tags", [["t", "x"]] * 5_001),
    "lone surrogate in content": lambda event: json.dumps({**event, "content": "\ud800"}),
    "deep nesting": lambda event: '{"id":' + "[" * 2_000 + "]" * 2_000 + "}",
    "cut off": lambda event: _dump(event)[:-3],
    "a list": lambda event: _dump([event]),
    "not JSON": lambda event: "EVENT",
    "nothing": lambda event: "",
}
"""How an event can be wrong, by name. ``Event.from_json`` or ``Event.check`` refuses each."""


@st.composite
def broken_events(draw: st.DrawFn) -> Broken:
    """``(name, JSON text)`` of an event that must be refused."""
    name = draw(st.sampled_from(sorted(EVENT_BREAKS)))
    event = draw(events())
    value = {**attrs.asdict(event, recurse=False), "tags": [list(tag) for tag in event.tags]}
    return name, EVENT_BREAKS[name](value)


FRAME_BREAKS: dict[str, str] = {
    "nothing": "",
    "not JSON": "hello",
    "an object": "{}",
    "a text": '"EVENT"',
    "empty list": "[]",
    "verb a number": "[1]",
    "unknown verb": '["FROB","x"]',
    "verb in lower case": '["event",{}]',
    "EVENT alone": '["EVENT"]',
    "EVENT with a text": '["EVENT","s","x"]',
    "EVENT with null": '["EVENT","s",null]',
    "REQ without filters": '["REQ","s"]',
    "REQ with a text for a filter": '["REQ","s","x"]',
    "REQ with an empty id": '["REQ","",{}]',
    "REQ with a long id": _dump(["REQ", "x" * 65, {}]),
    "REQ with a number for an id": '["REQ",1,{}]',
    "filter with text kinds": '["REQ","s",{"kinds":["1"]}]',
    "filter with fractional kinds": '["REQ","s",{"kinds":[1.0]}]',
    "filter with true for a kind": '["REQ","s",{"kinds":[true]}]',
    "filter with a text for authors": '["REQ","s",{"authors":"aa"}]',
    "filter with a number in a tag": '["REQ","s",{"#p":[1]}]',
    "filter with negative limit": '["REQ","s",{"limit":-1}]',
    "filter with text since": '["REQ","s",{"since":"1"}]',
    "filter with huge until": '["REQ","s",{"until":1e300}]',
    "CLOSE without an id": '["CLOSE"]',
    "CLOSE with null": '["CLOSE",null]',
    "OK without an id": '["OK"]',
    "OK with a short id": '["OK","ab",true,""]',
    "OK with text for its verdict": _dump(["OK", "ab" * 32, "true", ""]),
    "EOSE without an id": '["EOSE"]',
    "CLOSED with a number": '["CLOSED",1,""]',
    "NOTICE with a number": '["NOTICE",1]',
    "AUTH with a list": '["AUTH",[]]',
    "NaN": '["NOTICE",NaN]',
    "lone surrogate": '["NOTICE","\\ud800"]',
    "deep nesting": "[" * 5_000 + "]" * 5_000,
    "cut off": '["NOTICE","x"',
    "two values": '["NOTICE","x"]["NOTICE","y"]',
    "NUL": '["NOTICE","x"]\x00',
}
"""Texts that are no frame, of a client or of a relay, by what is wrong with them."""


def broken_frames() -> st.SearchStrategy[Broken]:
    """``(name, text)`` that neither end may take for a frame, or break on."""
    return st.sampled_from(sorted(FRAME_BREAKS.items()))


# --- jobs (NIP-90, NIP-89) ------------------------------------------------------------------------------------

prompts: st.SearchStrategy[str] = texts.filter(lambda text: bool(text.strip()))
models: st.SearchStrategy[str] = st.sampled_from(["smollm2-135m", "llama3.2", "modèle"])
amounts_msats: st.SearchStrategy[int] = st.integers(0, 21_000_000 * 10**11)


@attrs.frozen
class BuiltJob:
    """A request with what it was built from, so that a test can compare."""

    event: Event
    customer: SecretKey
    provider: SecretKey
    prompt: str
    model: str | None
    max_tokens: int | None
    bid_msats: int | None
    encrypted: bool


@st.composite
def job_requests(draw: st.DrawFn, *, encrypted: bool | None = None) -> BuiltJob:
    """A valid kind 5050 request to one provider, open or encrypted."""
    customer, provider = draw(secret_keys), draw(secret_keys)
    sealed = draw(st.booleans()) if encrypted is None else encrypted
    prompt, model = draw(prompts), draw(st.one_of(st.none(), models))
    max_tokens = draw(st.one_of(st.none(), st.integers(1, 1_000_000)))
    bid = draw(st.one_of(st.none(), amounts_msats))
    event = build_request(
        customer,
        prompt=prompt,
        provider=provider.public,
        model=model,
        max_tokens=max_tokens,
        bid_msats=bid,
        relays=draw(st.lists(st.sampled_from(["wss://a.example", "ws://127.0.0.1:1"]), unique=True)),
        created_at=draw(times),
        expiration=draw(st.one_of(st.none(), times)),
        encrypt=sealed,
    )
    return BuiltJob(event, customer, provider, prompt, model, max_tokens, bid, sealed)


@st.composite
def job_feedback(draw: st.DrawFn) -> Event:
    """A valid kind 7000 event."""
    return build_feedback(
        draw(secret_keys),
        request=draw(hex_ids),
        customer=draw(hex_ids),
        status=draw(st.sampled_from(FeedbackStatus)),
        message=draw(texts),
        amount_msats=draw(st.one_of(st.none(), amounts_msats)),
        bolt11=draw(st.one_of(st.none(), st.just("lnsb10u1"))),
        credit_msats=draw(st.one_of(st.none(), amounts_msats)),
        content=draw(texts),
        created_at=draw(times),
    )


@st.composite
def job_results(draw: st.DrawFn) -> tuple[Event, SecretKey, str]:
    """A valid kind 6050 event, the customer's key, and the text in it."""
    customer, text = draw(secret_keys), draw(prompts)
    event = build_result(
        draw(secret_keys),
        request=draw(hex_ids),
        request_kind=5050,
        customer=customer.public.hex,
        text=text,
        encrypt=draw(st.booleans()),
        created_at=draw(times),
    )
    return event, customer, text


@st.composite
def announcements(draw: st.DrawFn) -> Event:
    """A valid kind 31990 event of a provider."""
    return build_announcement(
        draw(secret_keys),
        d=draw(texts),
        kinds=draw(st.lists(st.integers(5_000, 5_999), min_size=1, max_size=3, unique=True)),
        models=draw(st.lists(models, max_size=3, unique=True)),
        price_msats=draw(amounts_msats),
        network=draw(st.sampled_from(["mainnet", "testnet", "simnet"])),
        name=draw(texts),
        about=draw(texts),
        created_at=draw(times),
    )


_I = ["i", "a question", "text"]

MESSY_JOBS: dict[str, tuple[bool, list[list[str]], str]] = {
    # name -> (is it acceptable, tags, content); as seen in the wild or as an attacker would have it
    "noogle's label in the content": (True, [_I, ["relays", "wss://a.example"]], "NIP 90 Text Generation Request"),
    "Amethyst's prompt type": (True, [["i", "a question", "prompt"], ["param", "top_k", "50"]], ""),
    "no type": (True, [["i", "a question"]], ""),
    "content only": (True, [], "a question"),
    "nested relays": (True, [_I, ["relays", '["wss://a.example","wss://b.example"]']], ""),
    "relays that are none": (True, [_I, ["relays", "[", "http://x", "javascript:0"]], ""),
    "bid with underscores": (True, [_I, ["bid", "100_000"]], ""),
    "bid in words": (True, [_I, ["bid", "ten sats"]], ""),
    "bid beyond all money": (True, [_I, ["bid", "9" * 18]], ""),
    "top-k with a hyphen": (True, [_I, ["param", "top-k", "50"]], ""),
    "empty tags": (True, [_I, [], ["i"], ["param"], ["param", "x"]], ""),
    "max_tokens 1e99": (False, [_I, ["param", "max_tokens", "1e99"]], ""),
    "max_tokens negative": (False, [_I, ["param", "max_tokens", "-1"]], ""),
    "max_tokens zero": (False, [_I, ["param", "max_tokens", "0"]], ""),
    "max_tokens in words": (False, [_I, ["param", "max_tokens", "abc"]], ""),
    "max_tokens in other digits": (False, [_I, ["param", "max_tokens", "١٢"]], ""),
    "max_tokens of a thousand digits": (False, [_I, ["param", "max_tokens", "9" * 1_000]], ""),
    "too many inputs": (False, [_I] * 65, ""),
    "too many parameters": (False, [_I, *(["param", f"p{n}", "1"] for n in range(65))], ""),
    "a parameter too long": (False, [_I, ["param", "x", "y" * 5_000]], ""),
    "encrypted, but is not": (False, [["encrypted"]], "a question"),
    "encrypted by NIP-04": (False, [["encrypted"]], "AAAA?iv=AAAA"),
}


@st.composite
def messy_jobs(draw: st.DrawFn) -> tuple[str, bool, Event]:
    """``(name, whether it is acceptable, signed event)`` of a request as the wild has it."""
    name = draw(st.sampled_from(sorted(MESSY_JOBS)))
    acceptable, found, content = MESSY_JOBS[name]
    return name, acceptable, sign_event(draw(secret_keys), kind=5050, tags=found, content=content, created_at=1)


def resigned(secret: SecretKey, event: Event, *, tags: Iterable[Sequence[str]]) -> Event:
    """``event`` with other tags, signed anew: for tests that need a valid event that says something wrong."""
    frozen = tuple(tuple(tag) for tag in tags)
    name = event_id(secret.public.hex, event.created_at, event.kind, frozen, event.content)
    return attrs.evolve(
        event, id=name, pubkey=secret.public.hex, tags=frozen, sig=secret.sign(bytes.fromhex(name)).hex()
    )
