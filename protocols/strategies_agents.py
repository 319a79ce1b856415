"""Hypothesis strategies for what agents say: notes, private messages, zaps, NIP-SA. For other projects too.

Valid values come signed, with what they were built from where a test wants to compare. ``hostile_json`` and
``twisted`` make what an attacker would send.

    @given(zaps(), twisted(kinds=[9735]))
    def test_my_agent(zap, event): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any

import attrs
import orjson
from hypothesis import strategies as st

from protocols import bolt11, lnurl, nip17, nip57, nip59, nip_sa, nip_sa_state, nip_sa_trajectory
from protocols.keys import SecretKey
from protocols.nip01 import Event, sign_event
from protocols.strategies import hex_ids, secret_keys, tags, texts

NOW = 1_790_000_000
"""A present for these events, Unix seconds."""

moments: st.SearchStrategy[int] = st.integers(NOW - 10**8, NOW + 10**8)
relay_urls: st.SearchStrategy[str] = st.sampled_from(
    ["wss://a.example", "wss://b.example/path", "ws://127.0.0.1:7777", "wss://relay.example:8443/?x=1"]
)
sats: st.SearchStrategy[int] = st.integers(0, 10**9)
fractions: st.SearchStrategy[float] = st.floats(0, 1)
words: st.SearchStrategy[str] = texts.filter(lambda text: bool(text.strip()))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False),
              texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
"""Any JSON that survives a round trip."""

hostile_json: st.SearchStrategy[str] = st.one_of(
    json_values.map(lambda value: orjson.dumps(value).decode()),
    st.sampled_from(
        ["", "{", "[]", "null", "NaN", '"\\ud800"', "1" * 400, "[" * 2_000 + "]" * 2_000, '{"a":1,"a":2}', "\x00", "{}",
         '{"goals":[{"id":1}],"memory":{"content":"x"},"beliefs":[],"tick_count":-1,"epoch":1e300,"wallet":7}',
         '{"goals":[null,"x",{"id":"g","progress":"NaN","priority":9e99}],"memory":[[[]]],"wallet":{"balance":[]}}',
         '{"type":[],"content":{},"step":-5,"ts":7,"tokens_in":"many"}']
    ),
    texts,
)  # fmt: skip
"""Text that claims to be JSON, of the shapes that break readers."""


@st.composite
def twisted(draw: st.DrawFn, *, kinds: Sequence[int], secrets: st.SearchStrategy[SecretKey] = secret_keys) -> Event:
    """A properly signed event of one of ``kinds`` that need make no sense: tags and content of every sort."""
    names = st.sampled_from(
        ["d", "p", "P", "e", "a", "k", "q", "r", "relay", "relays", "amount", "bolt11", "description", "preimage",
         "status", "actions", "cost", "duration", "trigger", "heartbeat", "next_tick", "active", "threshold", "signer",
         "operator", "seq", "budget", "max_steps", "expiration", "subject", "lnurl", "started_at"]
    )  # fmt: skip
    values = st.one_of(
        st.sampled_from(
            ["", "-1", "0", "1", "9" * 400, "١٢", "true", "root", "reply", "mention", "kind", "custom:7", "custom:",
             "schedule", "triggers", "profile", "state", "goals", "1e99", "NaN", "ff" * 32, "wss://a.example", "wss://",
             "5:", "30000:" + "aa" * 32 + ":x", "lnbc1", "read", "write", "\x00", "s:1"]
        ),
        hex_ids, texts, hostile_json,
    )  # fmt: skip
    entries = st.one_of(tags(), st.tuples(names, values), st.tuples(names, values, values, values), st.just(()))
    return sign_event(
        draw(secrets),
        kind=draw(st.sampled_from(list(kinds))),
        content=draw(st.one_of(texts, hostile_json)),
        tags=draw(st.lists(entries, max_size=8)),
        created_at=draw(moments),
    )


# --- private messages -----------------------------------------------------------------------------------------


@attrs.frozen
class SentMessage:
    """A private message with its wraps."""

    sender: SecretKey
    receivers: tuple[SecretKey, ...]
    rumor: nip59.Rumor
    text: str
    wraps: dict[str, Event] = attrs.field(hash=False)
    """By the public key that can open it."""


@st.composite
def private_messages(draw: st.DrawFn, *, sender: SecretKey | None = None) -> SentMessage:
    """A kind 14 message, wrapped for its receivers and for its sender."""
    author = draw(secret_keys) if sender is None else sender
    receivers = tuple(draw(st.lists(secret_keys, min_size=1, max_size=2, unique_by=lambda key: key.public.hex)))
    text, now = draw(texts), draw(moments)
    rumor = nip17.build_message(
        author.public,
        [key.public for key in receivers],
        text,
        created_at=now,
        reply_to=draw(st.none() | hex_ids),
        subject=draw(st.one_of(st.just(""), texts)),
    )
    wraps = nip17.wrap_message(rumor, author, now=now, random=Random(draw(st.integers(0, 2**32))))
    return SentMessage(author, receivers, rumor, text, wraps)


# --- zaps -----------------------------------------------------------------------------------------------------


@attrs.frozen
class PaidZap:
    """A zap from request to receipt."""

    sender: SecretKey
    recipient: str
    service: SecretKey
    """Who signs the receipt."""
    amount_msats: int
    comment: str
    request: Event
    invoice: str
    preimage: str
    receipt: Event


def zap_invoice(request: str, *, amount_msats: int, timestamp: int, preimage: bytes, prefix: str = "sb") -> str:
    """An invoice that commits to ``request`` (JSON) by its hash, as a service's wallet makes it."""
    return bolt11.encode(
        prefix=prefix,
        amount_msats=amount_msats,
        timestamp=timestamp,
        payment_hash=hashlib.sha256(preimage).hexdigest(),
        payment_secret="33" * 32,
        description_hash=lnurl.description_hash(request),
        node_secret=b"\x11" * 32,
    )


@st.composite
def zaps(draw: st.DrawFn, *, recipient: str | None = None, service: SecretKey | None = None) -> PaidZap:
    """A valid zap, of somebody or of a note."""
    sender, signer = draw(secret_keys), draw(secret_keys) if service is None else service
    note = draw(st.none() | st.builds(sign_event, secret_keys, kind=st.sampled_from([1, 30_023]), created_at=moments))
    target = recipient or (draw(secret_keys).public.hex if note is None else note.pubkey)
    amount, comment, at = draw(st.integers(1, 10**12)), draw(texts), draw(moments)
    request = nip57.build_request(
        sender,
        recipient=target,
        relays=draw(st.lists(relay_urls, min_size=1, max_size=3, unique=True)),
        amount_msats=amount,
        comment=comment,
        event=note,
        lnurl=draw(st.none() | st.just(lnurl.encode_lnurl("https://a.example/.well-known/lnurlp/alice"))),
        created_at=at,
    )
    preimage = draw(st.binary(min_size=32, max_size=32))
    invoice = zap_invoice(request.to_json(), amount_msats=amount, timestamp=at, preimage=preimage)
    receipt = nip57.build_receipt(
        signer,
        request=request.to_json(),
        invoice=invoice,
        paid_at=at + draw(st.integers(0, 600)),
        preimage=preimage.hex() if draw(st.booleans()) else None,
    )
    return PaidZap(sender, target, signer, amount, comment, request, invoice, preimage.hex(), receipt)


@st.composite
def pay_requests(draw: st.DrawFn) -> lnurl.PayRequest:
    """What an LNURL service may say of itself."""
    least = draw(st.integers(1, 10**6))
    return lnurl.PayRequest(
        callback=draw(st.sampled_from(["https://a.example/cb", "https://a.example/cb?user=1", "http://abc.onion/cb"])),
        min_msats=least,
        max_msats=least + draw(st.integers(0, 10**9)),
        metadata=lnurl.build_metadata(draw(texts), draw(st.sampled_from(["", "alice@a.example"]))),
        comment_chars=draw(st.integers(0, 200)),
        allows_nostr=draw(st.booleans()),
        nostr_pubkey=draw(st.none() | secret_keys.map(lambda key: key.public.hex)),
    )


# --- NIP-SA ---------------------------------------------------------------------------------------------------

_extras = st.dictionaries(st.sampled_from(["type", "target", "next_review", "unknown"]), json_values, max_size=2)

goals: st.SearchStrategy[nip_sa_state.Goal] = st.builds(
    nip_sa_state.Goal,
    id=words,
    description=texts,
    priority=st.integers(-100, 100),
    created_at=moments,
    status=st.sampled_from(["active", "paused", "completed", "cancelled"]),
    progress=fractions,
    extra=_extras,
)
memories: st.SearchStrategy[nip_sa_state.Memory] = st.builds(
    nip_sa_state.Memory,
    type=st.sampled_from(["observation", "action_result", "thought"]),
    content=words,
    timestamp=moments,
    id=texts,
    relevance=fractions,
    extra=st.dictionaries(st.sampled_from(["source", "unknown"]), json_values, max_size=2),
)
agent_states: st.SearchStrategy[nip_sa_state.AgentState] = st.builds(
    nip_sa_state.AgentState,
    instance=texts,
    epoch=st.integers(0, 2**40),
    goals=st.lists(goals, max_size=4).map(tuple),
    memory=st.lists(memories, max_size=4).map(tuple),
    pending_tasks=st.lists(json_values, max_size=2).map(tuple),
    beliefs=st.dictionaries(texts, json_values, max_size=3),
    wallet_balance=sats,
    last_tick=moments,
    tick_count=sats,
    budget=st.builds(
        nip_sa_state.Budget, balance=sats, daily_limit=sats, per_tick_limit=sats, reserved=sats, daily_spent=sats
    ),
    tick_stats=st.builds(nip_sa_state.TickStats, total_ticks=sats, total_actions=sats, total_cost=sats),
    extra=st.dictionaries(st.sampled_from(["mood", "from_the_future"]), json_values, max_size=2),
)
public_goals: st.SearchStrategy[nip_sa.PublicGoal] = st.builds(
    nip_sa.PublicGoal,
    description=words,
    id=texts,
    status=st.sampled_from(["active", "completed"]),
    progress=fractions,
    priority=st.integers(-100, 100),
)


@st.composite
def profiles(draw: st.DrawFn) -> Event:
    """A valid kind 39200 event."""
    existing = draw(st.integers(1, 5))
    return nip_sa.build_profile(
        draw(secret_keys),
        name=draw(words),
        about=draw(texts),
        picture=draw(texts),
        capabilities=draw(st.lists(words, max_size=3)),
        autonomy=draw(st.sampled_from(nip_sa.Autonomy)),
        operator=draw(st.none() | secret_keys.map(lambda key: key.public.hex)),
        threshold=(draw(st.integers(1, existing)), existing),
        signers=draw(st.lists(secret_keys.map(lambda key: key.public.hex), max_size=2)),
        lud16=draw(st.none() | st.just("alice@a.example")),
        created_at=draw(moments),
    )


@attrs.frozen
class Trajectory:
    """A session with its steps, in order."""

    agent: SecretKey
    session: Event
    steps: tuple[Event, ...]


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """A valid session of one to four steps."""
    agent, at = draw(secret_keys), draw(moments)
    name = draw(st.text("abcdef0123456789-", min_size=1, max_size=20))
    session = nip_sa_trajectory.build_session(agent, session=name, model="m", started_at=at, created_at=at)
    steps: list[Event] = []
    for seq in range(draw(st.integers(1, 4))):
        steps.append(
            nip_sa_trajectory.build_step(
                agent,
                session=session,
                seq=seq,
                type=draw(st.sampled_from(sorted(nip_sa_trajectory.TYPES))),
                content=draw(texts),
                previous=steps[-1] if steps else None,
                tokens_in=draw(sats),
                tokens_out=draw(sats),
                fields=draw(st.dictionaries(st.sampled_from(["name", "call_id", "result"]), json_values, max_size=2)),
                created_at=at + seq,
            )
        )
    return Trajectory(agent, session, tuple(steps))
