"""NIP-01: round trips, an independent library both ways, and everything that must be refused."""

from __future__ import annotations

import json

import attrs
import nostr_sdk
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import nip01
from protocols.nip01 import (
    ClientEvent,
    Event,
    EventInvalid,
    Filter,
    FrameInvalid,
    KindClass,
    event_frame,
    kind_class,
    newer,
    parse_client_frame,
    parse_relay_frame,
    peek_event_id,
    sign_event,
)
from protocols.strategies import (
    EVENT_BREAKS,
    FRAME_BREAKS,
    broken_events,
    broken_frames,
    client_frames,
    events,
    filters,
    filters_matching,
    relay_frames,
    secret_keys,
    texts,
)


@given(events())
def test_an_event_survives_the_wire(event):
    event.check()
    again = Event.from_json(event.to_json())
    assert again == event
    again.check()


@given(events())
def test_nostr_sdk_accepts_what_we_sign(event):
    theirs = nostr_sdk.Event.from_json(event.to_json())
    assert theirs.verify()
    assert theirs.id().to_hex() == event.id


@settings(max_examples=50)
@given(secret_keys, texts, st.integers(0, 65_535))
def test_we_accept_what_nostr_sdk_signs(secret, content, kind):
    keys = nostr_sdk.Keys.parse(secret.reveal().hex())
    theirs = nostr_sdk.EventBuilder(nostr_sdk.Kind(kind), content).finalize(keys)
    ours = Event.from_json(theirs.as_json())
    ours.check()
    assert ours.content == content


@pytest.mark.parametrize("name", sorted(EVENT_BREAKS))
def test_every_named_break_is_refused(name):
    event = sign_event(SECRET, kind=1, content="héllo\x01", tags=[["p", "x"]], created_at=5)
    value = {**attrs.asdict(event, recurse=False), "tags": [list(tag) for tag in event.tags]}
    with pytest.raises(EventInvalid):
        Event.from_json(EVENT_BREAKS[name](value)).check()


SECRET = nip01.SecretKey(b"\x01" * 32)


@given(broken_events())
def test_broken_events_raise_nothing_but_event_invalid(broken):
    _, text = broken
    with pytest.raises(EventInvalid):
        Event.from_json(text).check()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda x: st.lists(x) |
                    st.dictionaries(st.sampled_from(["id", "kind", "tags", "sig", "content"]), x)))  # fmt: skip
def test_no_value_breaks_the_parser(value):
    with pytest.raises(EventInvalid):
        Event.parse(value)


def test_sizes_are_checked_before_parsing():
    with pytest.raises(EventInvalid, match="at most"):
        Event.from_json("x" * (nip01.MAX_EVENT_BYTES + 1))
    with pytest.raises(FrameInvalid, match="at most"):
        parse_relay_frame("x" * (nip01.MAX_FRAME_BYTES + 1))


def test_what_utf8_cannot_carry_cannot_be_signed():
    with pytest.raises(EventInvalid):
        sign_event(SECRET, kind=1, content="\ud800", created_at=1)


@given(client_frames())
def test_client_frames_survive_the_wire(frame):
    assert parse_client_frame(frame.encode()) == frame


@given(relay_frames())
def test_relay_frames_survive_the_wire(frame):
    assert parse_relay_frame(frame.encode()) == frame


@pytest.mark.parametrize("name", sorted(FRAME_BREAKS))
def test_no_end_takes_a_broken_frame(name):
    for parse in (parse_client_frame, parse_relay_frame):
        with pytest.raises(FrameInvalid):
            parse(FRAME_BREAKS[name])
        with pytest.raises(FrameInvalid):
            parse(FRAME_BREAKS[name].encode("utf-8", "surrogatepass"))


@given(broken_frames(), st.binary(max_size=50))
def test_no_bytes_break_the_parsers(broken, raw):
    for parse in (parse_client_frame, parse_relay_frame):
        with pytest.raises(FrameInvalid):
            parse(broken[1])
        try:
            parse(raw)
        except FrameInvalid:
            pass


@given(st.data(), events())
def test_a_filter_made_for_an_event_matches_it(data, event):
    wanted = data.draw(filters_matching(event))
    assert wanted.matches(event)
    assert Filter.parse(orjson.loads(orjson.dumps(wanted.to_dict()))) == wanted


@given(filters(), events())
def test_matching_is_what_the_nip_says(wanted, event):
    expected = (
        (wanted.ids is None or event.id in wanted.ids)
        and (wanted.authors is None or event.pubkey in wanted.authors)
        and (wanted.kinds is None or event.kind in wanted.kinds)
        and (wanted.since is None or wanted.since <= event.created_at)
        and (wanted.until is None or event.created_at <= wanted.until)
        and all({t[1] for t in event.tags if t[:1] == (n,) and len(t) > 1} & v for n, v in wanted.tags.items())
    )
    assert wanted.matches(event) is bool(expected)


def test_an_empty_list_matches_nothing():
    event = sign_event(SECRET, kind=1, created_at=5)
    assert Filter().matches(event)
    assert not Filter(kinds=[]).matches(event)
    assert not Filter(tags={"p": []}).matches(event)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (0, KindClass.REPLACEABLE), (1, KindClass.REGULAR), (3, KindClass.REPLACEABLE), (5050, KindClass.REGULAR),
        (9_999, KindClass.REGULAR), (10_000, KindClass.REPLACEABLE), (19_999, KindClass.REPLACEABLE),
        (20_000, KindClass.EPHEMERAL), (29_999, KindClass.EPHEMERAL), (30_000, KindClass.ADDRESSABLE),
        (39_210, KindClass.ADDRESSABLE), (40_000, KindClass.REGULAR), (65_535, KindClass.REGULAR),
    ],
)  # fmt: skip
def test_kind_classes(kind, expected):
    assert kind_class(kind) is expected


def test_addresses():
    assert sign_event(SECRET, kind=31990, tags=[["d", "x"]], created_at=1).address == f"31990:{SECRET.public.hex}:x"
    assert sign_event(SECRET, kind=31990, created_at=1).address == f"31990:{SECRET.public.hex}:"
    assert sign_event(SECRET, kind=31990, tags=[["d"]], created_at=1).d == ""
    assert sign_event(SECRET, kind=0, tags=[["d", "x"]], created_at=1).address == f"0:{SECRET.public.hex}:"
    assert sign_event(SECRET, kind=1, tags=[["d", "x"]], created_at=1).address is None


@given(events(), events())
def test_which_version_counts_does_not_depend_on_the_order(one, other):
    assert newer(one, other).id == newer(other, one).id
    same_time = attrs.evolve(other, created_at=one.created_at)
    assert newer(one, same_time).id == min(one.id, same_time.id)


@given(relay_frames())
def test_peeking_agrees_with_parsing(frame):
    if isinstance(frame, nip01.RelayEvent):
        assert peek_event_id(frame.encode()) == frame.event.id


def test_peeking_is_not_fooled_by_content():
    event = sign_event(SECRET, kind=1, content=json.dumps({"id": "ab" * 32}), created_at=1)
    assert peek_event_id(event.to_json()) == event.id
    assert peek_event_id('{"x":{"id":"' + "ab" * 32 + '"},"id":"' + "cd" * 32 + '"}') is None


@given(events())
def test_a_frame_of_stored_text_is_the_frame_of_the_event(event):
    assert event_frame(event.to_json(), event.id) == ClientEvent(event).encode()
    for damaged, name in ((event.to_json()[:-1], event.id), (event.to_json(), "0" * 64), ("[]", event.id), ("", "")):
        with pytest.raises(EventInvalid):
            event_frame(damaged, name)
    with pytest.raises(EventInvalid):
        event_frame(event.to_json() + " " * nip01.MAX_EVENT_BYTES, event.id)
