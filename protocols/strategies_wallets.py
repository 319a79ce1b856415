"""Hypothesis strategies for Nostr Wallet Connect (NIP-47): connection strings, requests, results, and broken strings.

Part of the public test harness: needs ``hypothesis``, which the runtime does not install.
"""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
from hypothesis import strategies as st

from protocols import nip47_methods as methods
from protocols.bolt11 import MAX_AMOUNT_MSATS
from protocols.nip47 import ConnectionUri, Encryption, ErrorCode, Failure
from protocols.nip47_methods import TransactionState, TransactionType
from protocols.strategies import hex_ids, public_keys, secret_keys, times
from protocols.strategies_invoices import invoices

_texts: st.SearchStrategy[str] = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
_hosts: st.SearchStrategy[str] = st.from_regex(r"[a-z][a-z0-9-]{0,20}\.(example|test|onion)", fullmatch=True)

amounts: st.SearchStrategy[int] = st.integers(1, MAX_AMOUNT_MSATS)
fees: st.SearchStrategy[int] = st.integers(0, 10**9)
encryptions: st.SearchStrategy[Encryption] = st.sampled_from(list(Encryption))
failures: st.SearchStrategy[Failure] = st.builds(
    Failure, st.sampled_from(list(ErrorCode)), _texts, st.sampled_from(["", "no_route", "invoice_expired"])
)
metadata: st.SearchStrategy[dict[str, Any] | None] = st.none() | st.dictionaries(
    st.sampled_from(["comment", "nostr", "payer_data"]), _texts | st.integers(-9, 9) | st.lists(_texts, max_size=2)
)


@st.composite
def relay_urls(draw: st.DrawFn) -> str:
    scheme, host = draw(st.sampled_from(["ws", "wss"])), draw(_hosts)
    port = draw(st.just("") | st.integers(1, 65_535).map(lambda n: f":{n}"))
    return f"{scheme}://{host}{port}" + draw(st.sampled_from(["", "/", "/a%20b", "/v1?key=x&y=z"]))


@st.composite
def connection_uris(draw: st.DrawFn, *, plain: bool = False) -> ConnectionUri:
    """``plain``: relays without a path, which all libraries write alike."""
    urls = relay_urls()
    if plain:
        urls = st.builds(lambda host, tls: f"{'wss' if tls else 'ws'}://{host}", _hosts, st.booleans())
    return ConnectionUri(
        wallet=draw(public_keys),
        relays=tuple(draw(st.lists(urls, min_size=1, max_size=4, unique=True))),
        secret=draw(secret_keys),
        lud16=draw(st.none() | st.builds(lambda host: f"someone@{host}", _hosts)),
    )


def _broken(uri: ConnectionUri) -> dict[str, str]:
    text, wallet, secret = uri.reveal(), uri.wallet.hex, uri.secret.reveal().hex()
    return {
        "another scheme": text.replace("walletconnect", "connect"),
        "control character": text + "\n\x07x",
        "empty": "",
        "no key": text.replace(wallet, ""),
        "key cut short": text.replace(wallet, wallet[:-1]),
        "key that is no point": text.replace(wallet, "ff" * 32),
        "no query": text.partition("?")[0],
        "no relay": text.replace("relay=", "rely="),
        "relay that is none": f"nostr+walletconnect://{wallet}?relay=https%3A%2F%2Fa.example&secret={secret}",
        "no secret": text.replace("secret=", "secre="),
        "secret cut short": text.replace(secret, secret[:-2]),
        "secret of zero": text.replace(secret, "00" * 32),
        "two secrets": text + f"&secret={'11' * 32}",
        "too long": text + "&x=" + "y" * 9_000,
    }


@st.composite
def broken_uris(draw: st.DrawFn) -> tuple[str, str]:
    """What is wrong, and a connection string of which that is true."""
    ways = _broken(draw(connection_uris(plain=True)))
    way = draw(st.sampled_from(sorted(ways)))
    return way, ways[way]


# --- what is inside -------------------------------------------------------------------------------------------

_optional_text = st.none() | _texts.filter(bool)

pay_invoices = st.builds(methods.PayInvoice, invoices(plain=True), st.none() | amounts, metadata)
make_invoices = st.builds(
    methods.MakeInvoice, amounts, st.none() | _texts, st.none() | hex_ids, st.none() | st.integers(1, 10**6), metadata
)
make_hold_invoices = st.builds(
    methods.MakeHoldInvoice,
    amounts,
    hex_ids,
    st.none() | _texts,
    st.none() | hex_ids,
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 2_000),
)
lookups = st.builds(methods.LookupInvoice, hex_ids, st.none() | invoices(plain=True))
listings = st.builds(
    methods.ListTransactions,
    st.none() | times,
    st.none() | times,
    st.none() | st.integers(0, 1_000),
    st.none() | st.integers(0, 1_000),
    st.booleans(),
    st.none() | st.sampled_from(list(TransactionType)),
)
requests: st.SearchStrategy[Any] = st.one_of(
    pay_invoices,
    make_invoices,
    make_hold_invoices,
    lookups,
    listings,
    st.builds(methods.CancelHoldInvoice, hex_ids),
    st.builds(methods.SettleHoldInvoice, hex_ids),
)
"""Values with ``method``, ``params()`` and ``read``."""


@st.composite
def transactions(draw: st.DrawFn) -> methods.Transaction:
    preimage = draw(st.binary(min_size=32, max_size=32))
    state = draw(st.sampled_from(list(TransactionState)))
    settled = state is TransactionState.SETTLED
    return methods.Transaction(
        type=draw(st.sampled_from(list(TransactionType))),
        payment_hash=hashlib.sha256(preimage).hexdigest(),
        amount=draw(amounts),
        fees_paid=draw(fees),
        created_at=draw(st.integers(1, 2**33)),
        state=state,
        invoice=draw(st.none() | invoices(plain=True)),
        description=draw(_optional_text),
        description_hash=draw(st.none() | hex_ids),
        preimage=preimage.hex() if settled else None,
        expires_at=draw(st.none() | st.integers(1, 2**33)),
        settled_at=draw(st.integers(1, 2**33)) if settled else None,
        metadata=draw(metadata),
    )


service_infos = st.builds(
    methods.ServiceInfo,
    alias=_texts,
    network=st.sampled_from(["", "mainnet", "testnet", "signet", "regtest", "simnet"]),
    pubkey=st.just("") | hex_ids.map(lambda text: "02" + text),
    methods=st.lists(st.sampled_from(["pay_invoice", "get_info", "sing_a_song"]), unique=True).map(tuple),
    notifications=st.lists(st.sampled_from(["payment_received", "payment_sent"]), unique=True).map(tuple),
)


@st.composite
def messy(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """The same said as others say it: numbers as text or floats, hex in capitals, ``null`` and more that is unknown."""
    said: dict[str, Any] = {"unheard_of": draw(st.none() | st.just({"x": [1]}))}
    for name, value in body.items():
        if type(value) is int and abs(value) < 2**53 and name not in ("amount_sats",):
            value = draw(st.sampled_from([value, str(value), float(value)]))
        elif isinstance(value, str) and name in ("payment_hash", "preimage") and draw(st.booleans()):
            value = value.upper()
        said[name] = value
    return said


def fields(value: Any) -> dict[str, Any]:
    """An attrs value as keyword arguments."""
    return attrs.asdict(value, recurse=False)
